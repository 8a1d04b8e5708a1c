#!/usr/bin/env bash
# Runs the example clients of client/examples against a local cluster with the real model.
#   scripts/check-examples.sh [path of the titan binary]
set -euo pipefail
cd "$(dirname "$0")/.."
titan=${1:-target/debug/titan}
work=$(mktemp -d)
cleanup() {
  [ -n "${cluster:-}" ] && kill "$cluster" 2>/dev/null && wait "$cluster" 2>/dev/null
  rm -rf "$work"
}
trap cleanup EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q requests grpcio grpcio-tools grpcio-reflection

"$titan" up >"$work/up.log" 2>&1 &
cluster=$!
for _ in $(seq 300); do
  curl -sf 'http://localhost:8080/api/v1/status' 2>/dev/null | grep -q '"healthy_agents":1' && break
  kill -0 "$cluster" 2>/dev/null || { cat "$work/up.log"; exit 1; }
  sleep 0.2
done
bash client/examples/test_curl.sh
"$work/venv/bin/python" client/examples/rest_client.py "Name three colours." --max-tokens 20
"$work/venv/bin/python" client/examples/reflection_client.py "Name three colours."
kill -TERM "$cluster"
wait "$cluster"
cluster=
