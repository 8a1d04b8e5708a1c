#!/usr/bin/env bash
# vendor/rustls is the published rustls with vendor/rustls-stored-sessions.patch, and without what only its own build and tests need.
# The published source is looked for among what cargo has fetched already, and else fetched. If it cannot be had, this says so, and fails
# only with --required.
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in diff patch python3; do
  command -v "$tool" >/dev/null || { echo "check-vendor: $tool is not installed"; exit 1; }
done
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' vendor/rustls/Cargo.toml | head -1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

published() { find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -mindepth 2 -maxdepth 2 -name "rustls-$version" 2>/dev/null | head -1; }
if [ -z "$(published)" ]; then
  # A project of its own, which knows nothing of vendor/. Cargo compares what it fetches with the checksum in its registry.
  mkdir -p "$work/fetch/src"
  touch "$work/fetch/src/lib.rs"
  cat >"$work/fetch/Cargo.toml" <<TOML
[package]
name = "fetch"
edition = "2024"

[dependencies]
rustls = { version = "=$version", default-features = false }
TOML
  (cd "$work/fetch" && cargo fetch --quiet) || true
fi
if [ -z "$(published)" ]; then
  echo "check-vendor: cargo has no published rustls $version and cannot fetch it: vendor/rustls was not compared"
  [ "${1:-}" != --required ] || exit 1
  exit 0
fi

cp -R "$(published)" "$work/published"
cp -R vendor/rustls "$work/vendor"
# The manifests: the same but for what builds and tests rustls itself.
python3 - "$work/published/Cargo.toml" "$work/vendor/Cargo.toml" <<'PYTHON'
import sys, tomllib

published, vendored = (tomllib.load(open(path, "rb")) for path in sys.argv[1:])
for section in ("bench", "build-dependencies", "dev-dependencies", "example", "test"):
    published.pop(section, None)
published["package"].pop("readme")
published["package"]["build"] = False
published["features"]["read_buf"] = []
if published != vendored:
    sys.exit("check-vendor: vendor/rustls/Cargo.toml says something else than the published one")
PYTHON
for left_out in .cargo-ok .cargo_vcs_info.json .clippy.toml Cargo.lock Cargo.toml Cargo.toml.orig README.md benches build.rs examples tests; do
  rm -rf "$work/published/$left_out"
done
rm "$work/vendor/Cargo.toml"
patch --quiet --strip 1 --directory "$work/published" <vendor/rustls-stored-sessions.patch
diff --recursive --unified "$work/published" "$work/vendor" || {
  echo "check-vendor: vendor/rustls is not the published rustls $version with vendor/rustls-stored-sessions.patch"
  exit 1
}
echo "vendor/rustls is the published rustls $version with vendor/rustls-stored-sessions.patch"
