#!/usr/bin/env bash
# Load tools and frameworks that others wrote (servebench, aiperf, langchain-openai, litellm), at the coordinator, an agent and a proxy. Not a part of .ci/run: what
# they install is large.
#   scripts/check-tools.sh [path of the titan binary]
set -euo pipefail
cd "$(dirname "$0")/.."
titan=${1:-target/debug/titan}
work=$(mktemp -d)
pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; done
  rm -rf "$work"
}
trap cleanup EXIT

python3 -m venv "$work/clients"
"$work/clients/bin/pip" install -q servebench langchain-openai litellm
# What it needs does not fit together with the others'.
python3 -m venv "$work/aiperf"
"$work/aiperf/bin/pip" install -q aiperf
"$work/aiperf/bin/python" openai/tests/sdk/tokenizer.py "$work/tokenizer"

"$titan" up --synthetic 200 --max-jobs 32 --http-port 9080 --grpc-port 9051 --agent-port 9052 >"$work/up.log" 2>&1 &
pids+=($!)
for _ in $(seq 100); do curl -sf http://localhost:9080/api/v1/status | grep -q '"healthy_agents":1' && break; sleep 0.1; done
"$titan" proxy --coordinator http://localhost:9080 --listen 127.0.0.1:9787 >"$work/proxy.log" 2>&1 &
pids+=($!)
for _ in $(seq 100); do curl -sf http://127.0.0.1:9787/healthz >/dev/null && break; sleep 0.1; done

token() {
  curl -s http://localhost:9080/api/v1/inference/request -d '{"client_id":"tools","model":"synthetic","prompt":"x"}' |
    sed 's/.*"session_token":"\([^"]*\)".*/\1/'
}
for door in "coordinator 9080 any" "agent 9052 $(token)" "proxy 9787 any"; do
  read -r name port key <<<"$door"
  echo "-- servebench, $name"
  OPENAI_API_KEY=$key "$work/clients/bin/servebench" run --url "http://127.0.0.1:$port/v1" --model synthetic --concurrency 1,8 \
    --num-requests 24 --output-len 64 --input-len 32 | tee "$work/servebench.log" | grep 'failed'
  ! grep -qE '[1-9][0-9]* failed' "$work/servebench.log"
  echo "-- aiperf, $name"
  "$work/aiperf/bin/aiperf" profile -m synthetic --url "http://127.0.0.1:$port" --endpoint-type chat --streaming --use-server-token-count \
    --concurrency 4 --request-count 24 --synthetic-input-tokens-mean 32 --output-tokens-mean 64 --tokenizer "$work/tokenizer" \
    --api-key "$key" --ui none --artifact-dir "$work/artifacts" >"$work/aiperf.log" 2>&1 || { tail -n 40 "$work/aiperf.log"; exit 1; }
  grep -o 'Processed .* total)' "$work/aiperf.log"
  grep -q ' and 0 errors' "$work/aiperf.log"
  echo "-- langchain-openai and litellm, $name"
  "$work/clients/bin/python" openai/tests/sdk/frameworks.py "http://127.0.0.1:$port/v1" "$key" 2>/dev/null
done
