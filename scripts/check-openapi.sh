#!/usr/bin/env bash
# schemathesis at both OpenAPI documents, as the coordinator serves them: what they allow is accepted, what they do not is refused, and every answer is one that they
# describe. A model's words are not needed for it: the engine is the synthetic one.
#   scripts/check-openapi.sh [path of the titan binary]
set -euo pipefail
cd "$(dirname "$0")/.."
titan=${1:-target/debug/titan}
work=$(mktemp -d)
cleanup() {
  kill "$server" 2>/dev/null && wait "$server" 2>/dev/null
  rm -rf "$work"
}
trap cleanup EXIT

"$titan" up --synthetic 0 --max-jobs 64 --http-port 9180 --grpc-port 9151 --agent-port 9152 >"$work/up.log" 2>&1 &
server=$!
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q schemathesis
for _ in $(seq 100); do curl -sf http://localhost:9180/api/v1/status | grep -q '"healthy_agents":1' && break; sleep 0.1; done
cd "$work"
for document in api/v1/openapi.json v1/openapi.json; do
  echo "-- $document"
  venv/bin/st run "http://localhost:9180/$document" --url http://localhost:9180 --max-examples "${EXAMPLES:-30}" --seed 1 --request-timeout 20 --warnings off --continue-on-failure
done
