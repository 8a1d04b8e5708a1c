#!/usr/bin/env bash
# A local cluster in the background.
#   scripts/deploy.sh start [flags of `titan up`] | stop | restart [flags] | status | logs
# TITAN: the binary (default: the newest build in target/). TITAN_STATE: where pid and log are kept.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
state=${TITAN_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/titan}
pid_file=$state/up.pid
log=$state/up.log
rest=http://localhost:${COORDINATOR_HTTP_PORT:-8080}

binary() {
  local newest
  newest=${TITAN:-$(ls -t "${CARGO_TARGET_DIR:-$root/target}"/{release,debug}/titan 2>/dev/null | head -1)}
  [ -n "$newest" ] || { echo "no titan binary: run \`cargo build --bin titan\`, or set TITAN" >&2; exit 1; }
  echo "$newest"
}
running() { [ -f "$pid_file" ] && kill -0 "$(cat "$pid_file")" 2>/dev/null; }

start() {
  if running; then echo "already running, pid $(cat "$pid_file")"; return; fi
  local titan
  titan=$(binary)
  mkdir -p "$state"
  nohup "$titan" up "$@" >"$log" 2>&1 </dev/null &
  echo $! >"$pid_file"
  for _ in $(seq 600); do
    if curl -sf "$rest/api/v1/status" 2>/dev/null | grep -qE '"healthy_agents":[1-9]'; then
      echo "running, pid $(cat "$pid_file"), $rest"
      return
    fi
    running || { echo "it did not start:" >&2; tail -5 "$log" >&2; rm -f "$pid_file"; exit 1; }
    sleep 0.2
  done
  echo "no healthy agent after two minutes; see $log" >&2
  exit 1
}

stop() {
  if ! running; then echo "not running"; rm -f "$pid_file"; return; fi
  kill -TERM "$(cat "$pid_file")"
  while running; do sleep 0.1; done
  rm -f "$pid_file"
  echo "stopped"
}

command=${1:-}
[ $# -gt 0 ] && shift
case $command in
  start) start "$@" ;;
  stop) stop ;;
  restart) stop; start "$@" ;;
  status) if running; then curl -s "$rest/api/v1/status?include_agents=true"; echo; else echo "not running"; exit 3; fi ;;
  logs) exec tail -n 100 -f "$log" ;;
  *) sed -n '2,4s/^# //p' "$0" >&2; exit 2 ;;
esac
