#!/usr/bin/env bash
# schemathesis at both OpenAPI documents, as the coordinator serves them: what they allow is accepted, what they do not is refused, and every answer is one that they
# describe. A model's words are not needed for it: the engine is the synthetic one.
#   scripts/check-openapi.sh [path of the titan binary]
set -euo pipefail
cd "$(dirname "$0")/.."
titan=${1:-target/debug/titan}
work=$(mktemp -d)
proxy=
cleanup() {
  for pid in $proxy $server; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; done
  rm -rf "$work"
}
trap cleanup EXIT

"$titan" up --synthetic 0 --max-jobs 64 --http-port 9180 --grpc-port 9151 --agent-port 9152 >"$work/up.log" 2>&1 &
server=$!
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q schemathesis
for _ in $(seq 100); do curl -sf http://localhost:9180/api/v1/status | grep -q '"healthy_agents":1' && break; sleep 0.1; done
curl -s http://localhost:9180/v1/openapi.json >"$work/v1.json"
python3 openai/tests/sdk/narrowed.py bounded <"$work/v1.json" >"$work/v1-positive.json"
python3 openai/tests/sdk/narrowed.py <"$work/v1.json" >"$work/v1-negative.json"
for mode in positive negative; do curl -s http://localhost:9180/api/v1/openapi.json >"$work/rest-$mode.json"; done
"$titan" proxy --coordinator http://localhost:9180 --listen 127.0.0.1:9187 >"$work/proxy.log" 2>&1 &
proxy=$!
cd "$work"
# At /v1 a coordinator redirects all that it can read: what is wrong further down is refused by the agent, as it is by the proxy.
for run in "rest http://localhost:9180 positive" "rest http://localhost:9180 negative" "v1 http://localhost:9180 positive" \
  "v1 http://localhost:9180 negative --exclude-checks=negative_data_rejection" "v1 http://127.0.0.1:9187 positive" "v1 http://127.0.0.1:9187 negative"; do
  read -r document url mode more <<<"$run"
  echo "-- $document at $url, $mode"
  venv/bin/st run "$document-$mode.json" --url "$url" --mode "$mode" $more --max-examples "${EXAMPLES:-30}" --seed 1 --request-timeout 20 \
    --warnings off --continue-on-failure --no-color >"$work/st.log" 2>&1 || { cat "$work/st.log"; [ -n "${KEEP_GOING:-}" ] || exit 1; }
  grep -E 'generated|Tested:' "$work/st.log"
done
