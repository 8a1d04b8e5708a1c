#!/usr/bin/env bash
# The openai packages of Python and Node, unmodified, at the coordinator, an agent and a proxy, with the real model. One table, three addresses.
#   scripts/check-openai.sh [path of the titan binary]
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

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q openai
node=
# The package wants Node 20.
if command -v npm >/dev/null && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ]; then
  node=1
  (cd "$work" && npm init -y >/dev/null && npm install --silent openai >/dev/null)
  cp openai/tests/sdk/table.mjs "$work/"
else
  echo "there is no npm with Node 20 here: the table of Node is skipped"
fi

"$titan" up --chat-template "smollm2:135m=openai/tests/sdk/tools.jinja" --max-jobs 4 >"$work/up.log" 2>&1 &
pids+=($!)
for _ in $(seq 300); do
  curl -sf 'http://localhost:8080/api/v1/status' 2>/dev/null | grep -q '"healthy_agents":1' && break
  kill -0 "${pids[0]}" 2>/dev/null || { cat "$work/up.log"; exit 1; }
  sleep 0.2
done
"$titan" proxy --listen 127.0.0.1:8787 >"$work/proxy.log" 2>&1 &
pids+=($!)
for _ in $(seq 100); do curl -sf http://127.0.0.1:8787/healthz >/dev/null && break; sleep 0.1; done

if unshare --net true 2>/dev/null && [ -e /dev/net/tun ]; then
  echo "-- Python, on the move: RTT 100 ms, 3 % loss, another address, the agent killed"
  "$titan" demo roaming --openai --client "$work/venv/bin/python $PWD/openai/tests/sdk/roaming.py" --tokens 120 | tail -n 6
else
  echo "there can be no emulated network here: the client on the move is skipped"
fi

token() {
  curl -s http://localhost:8080/api/v1/inference/request -d '{"client_id":"sdk","model":"smollm2:135m","prompt":"x"}' |
    sed 's/.*"session_token":"\([^"]*\)".*/\1/'
}
coordinator=http://localhost:8080
for door in "coordinator $coordinator/v1 any" "agent http://localhost:50052/v1 $(token)" "proxy http://127.0.0.1:8787/v1 any"; do
  read -r name url key <<<"$door"
  echo "-- Python, $name"
  "$work/venv/bin/python" openai/tests/sdk/table.py "$url" "$key" "$coordinator"
  if [ -n "$node" ]; then
    echo "-- Node, $name"
    node "$work/table.mjs" "$url" "$key"
  fi
done
