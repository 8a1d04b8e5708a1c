#!/usr/bin/env bash
# Checks a build with GPU support on the machine that has the GPU: no network, no Rust, nothing but the binary and a model.
#
#   scripts/gpu-check.sh path/to/titan path/to/model.gguf
#
# Prints one line a check, PASS or FAIL with figures, and ends with 1 if any failed: texts of concurrent requests stay apart, 1, 16 and 64 streams
# at once end and how fast, memory stays where it was, a cancelled request frees its place. --cpu in the environment variable
# GPU_CHECK_ARGS tries the script itself on a machine without a GPU.
set -uo pipefail

[ $# -eq 2 ] || { echo "usage: $0 path/to/titan path/to/model.gguf" >&2; exit 2; }
titan=$(realpath -e "$1") || exit 2
model=$(realpath -e "$2") || exit 2
work=$(mktemp -d)
failed=0
say() { printf '%-4s  %-10s %s\n' "$1" "$2" "$3"; [ "$1" = FAIL ] && failed=1; return 0; }

if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
  used_mib() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | awk '{ sum += $1 } END { print sum }'; }
else
  echo "no nvidia-smi: memory is that of the process"
  used_mib() { awk '/VmRSS/ { print int($2 / 1024) }' "/proc/$server/status"; }
fi

# A cluster in one process, which tests at its start that requests stay apart.
HOME=${HOME:-$work} "$titan" up --model "check=$model" --max-jobs 64 --self-test ${GPU_CHECK_ARGS:-} >"$work/out" 2>"$work/log" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null; rm -rf "$work"' EXIT
rest=http://localhost:${COORDINATOR_HTTP_PORT:-8080}
status() { curl -fsS "$rest/api/v1/status?include_agents=true" 2>/dev/null || python3 -c "import sys, urllib.request as u; print(u.urlopen('$rest/api/v1/status?include_agents=true').read().decode())" 2>/dev/null; }
for _ in $(seq 600); do
  kill -0 "$server" 2>/dev/null || break
  status | grep -q '"healthy_agents":[1-9]' && break
  sleep 0.5
done
if ! status | grep -q '"healthy_agents":[1-9]'; then
  say FAIL start "$(tail -n 1 "$work/log")"
  exit 1
fi
say PASS isolation "two prompts at once gave the texts that each gives alone"
loaded=$(used_mib)

ask() { "$titan" run --coordinator "$rest" --model check --temperature 0 --max-tokens "$1" --json "$2" 2>"$work/error-$3"; }
for streams in 1 16 64; do
  began=$(date +%s%N)
  pids=()
  for n in $(seq "$streams"); do
    ask 128 "Write a story about the number $n." "$n" >"$work/answer-$n" &
    pids+=($!)
  done
  broken=0
  for pid in "${pids[@]}"; do wait "$pid" || broken=$((broken + 1)); done
  seconds=$(( ($(date +%s%N) - began) / 1000000 ))
  tokens=$(cat "$work"/answer-* | grep -o '"tokens":[0-9]*' | cut -d: -f2 | awk '{ sum += $1 } END { print sum + 0 }')
  figures="$tokens tokens in $seconds ms: $(( tokens * 1000 / (seconds + 1) )) tokens/s together, $broken of $streams failed"
  if [ "$broken" -eq 0 ] && [ "$tokens" -gt 0 ]; then say PASS "$streams" "$figures"; else say FAIL "$streams" "$figures; $(cat "$work"/error-* | tail -n 1)"; fi
  rm -f "$work"/answer-* "$work"/error-*
done

after=$(used_mib)
if [ "$after" -le $((loaded + loaded / 10 + 256)) ]; then say PASS memory "$loaded MiB when loaded, $after MiB after all"; else say FAIL memory "$loaded MiB when loaded, $after MiB after all"; fi

ask 4000 "Write a very long story." cancel >"$work/cancelled" &
victim=$!
for _ in $(seq 100); do [ -s "$work/cancelled" ] && break; sleep 0.1; done
kill -INT "$victim" 2>/dev/null
wait "$victim" 2>/dev/null
freed=no
for _ in $(seq 50); do
  status | grep -q '"running_jobs":0' && { freed=yes; break; }
  sleep 0.2
done
if [ "$freed" = yes ]; then say PASS cancel "its place was free again"; else say FAIL cancel "its place was still taken 10 s later"; fi
exit "$failed"
