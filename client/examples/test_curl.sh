#!/usr/bin/env bash
# Checks a coordinator's REST interface with curl alone: every path, every error. Run it against `titan up`.
#
#   client/examples/test_curl.sh [URL] [MODEL]      defaults: http://localhost:8080 smollm2:135m
#
# Prints one line for each check. Exits 1 if any answer is wrong, 2 if there is no coordinator.
set -uo pipefail

URL=${1:-http://localhost:8080}
MODEL=${2:-smollm2:135m}
URL=${URL%/}
REQUEST=$URL/api/v1/inference/request
# A coordinator answers out of memory; what takes longer is broken.
TIMEOUT_S=10

right=0 wrong=0
status='' headers='' body=''
scratch=$(mktemp -d) || exit 2
trap 'rm -rf "$scratch"' EXIT

# call ARGUMENTS...: sets $status, $headers and $body.
call() {
    : >"$scratch/headers" && : >"$scratch/body"
    status=$(curl --silent --max-time "$TIMEOUT_S" --dump-header "$scratch/headers" --output "$scratch/body" \
        --write-out '%{http_code}' "$@" 2>/dev/null) || status=000
    headers=$(tr -d '\r' <"$scratch/headers")
    body=$(<"$scratch/body")
}

# post JSON: the same, to the inference path.
post() { call --header 'content-type: application/json' --data-binary "$1" "$REQUEST"; }

verdict() {
    if [[ -z $2 ]]; then
        right=$((right + 1))
        echo "ok     $1"
    else
        wrong=$((wrong + 1))
        echo "WRONG  $1: $2"
    fi
}

# check NAME STATUS [PATTERN...]: the answer has this status, and its body matches each extended regular expression.
check() {
    local name=$1 expected=$2 pattern problem=''
    shift 2
    [[ $status == "$expected" ]] || problem="status $status, not $expected, in: $body"
    for pattern in "$@"; do
        grep -Eq -- "$pattern" <<<"$body" || problem=${problem:-"nothing matches $pattern in: $body"}
    done
    verdict "$name" "$problem"
}

# check_error NAME STATUS CODE_WORD: the one shape that errors have.
check_error() { check "$1" "$2" "\"error\": ?\"$3\"" "\"code\": ?$2" '"message": ?"[^"]'; }

# check_header NAME PATTERN
check_header() {
    local problem=''
    grep -Eiq -- "$2" <<<"$headers" || problem="no header matches $2"
    verdict "$1" "$problem"
}

call "$URL/api/v1/health"
if [[ $status == 000 ]]; then
    echo "no coordinator answers at $URL; start one with: titan up" >&2
    exit 2
fi
DATE='"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|[+-][0-9:]+)"'
check 'health' 200 '"status": ?"healthy"' '"service": ?"titancompute-coordinator"' "\"timestamp\": ?$DATE"

call "$URL/api/v1/status"
check 'status' 200 '"total_agents": ?[0-9]+' '"healthy_agents": ?[0-9]+' "\"timestamp\": ?$DATE"
call "$URL/api/v1/status?include_agents=true"
check 'status with agents' 200 '"agents": ?\[' '"id": ?"[^"]' '"endpoint": ?"[^"]+:[0-9]+"' \
    '"status": ?"(healthy|degraded|half_open|offline)"' '"total_vram_mb": ?[0-9]' '"free_vram_mb": ?[0-9]' \
    '"total_ram_mb": ?[0-9]' '"free_ram_mb": ?[0-9]' '"running_jobs": ?[0-9]' '"queued_jobs": ?[0-9]' \
    '"max_jobs": ?[0-9]' '"rtt_ms": ?[0-9]' "\"last_heartbeat\": ?$DATE" '"supported_models": ?\['

post "{\"client_id\":\"test_curl\",\"model\":\"$MODEL\",\"prompt\":\"Hello\",\"max_tokens\":16,\"temperature\":0}"
check 'inference request' 200 '"agent_endpoint": ?"[^"]+:[0-9]+"' '"session_token": ?"eyJ[^"]' '"expires_at": ?[0-9]{10}' \
    '"job_id": ?"job_' '"estimated_rtt_ms": ?[0-9]' '"agent_id": ?"[^"]' '"endpoints": ?\{' '"tls": ?"(none|server|mutual)"'
expires=$(sed -En 's/.*"expires_at": ?([0-9]+).*/\1/p' <<<"$body")
problem=''
[[ ${expires:-0} -gt $(date +%s) ]] || problem="it expires at ${expires:-an unknown time}"
verdict 'the token is good for a while' "$problem"
post "{\"client_id\":\"test_curl\",\"model\":\"$MODEL\",\"prompt\":\"Hello\",\"parameters\":{\"seed\":\"1\"}}"
check 'inference request with parameters' 200 '"session_token": ?"eyJ'

post '{"client_id":'
check_error 'broken JSON' 400 invalid_json
post ''
check_error 'an empty body' 400 invalid_json
post "{\"model\":\"$MODEL\",\"prompt\":\"Hello\"}"
check_error 'no client_id' 400 missing_client_id
post '{"client_id":"test_curl","prompt":"Hello"}'
check_error 'no model' 400 missing_model
post "{\"client_id\":\"test_curl\",\"model\":\"$MODEL\"}"
check_error 'no prompt' 400 missing_prompt
post '{"client_id":"test_curl","model":"no-such-model","prompt":"Hello"}'
check_error 'an unknown model' 404 model_not_found
head -c 1100000 /dev/zero | tr '\0' ' ' >"$scratch/large"
post "@$scratch/large"
check_error 'a body above 1 MiB' 413 payload_too_large
call "$URL/api/v1/nothing"
check_error 'a path that is not there' 404 not_found
call "$REQUEST"
check_error 'GET where POST belongs' 405 method_not_allowed

call --request OPTIONS --header 'origin: https://example.com' --header 'access-control-request-method: POST' \
    --header 'access-control-request-headers: content-type' "$REQUEST"
check 'CORS preflight' 200
check_header 'CORS allows any origin' '^access-control-allow-origin: (\*|https://example\.com)$'
check_header 'CORS allows POST' '^access-control-allow-methods:.*POST'
call --header 'origin: https://example.com' "$URL/api/v1/health"
check_header 'CORS on a plain answer' '^access-control-allow-origin:'

echo "$right right, $wrong wrong"
((wrong == 0))
