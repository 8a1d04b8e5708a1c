#!/usr/bin/env python3
"""Ask the coordinator over REST, stream from the agent over gRPC: what every TitanCompute client does, in Python.

    pip install requests grpcio grpcio-tools
    python rest_client.py "Why is the sky blue?" --model smollm2:135m

Works against `titan up` on the same machine, in plain text. From another machine the agent speaks TLS: give --ca.
"""

import argparse
import os
import pathlib
import sys
import time

import grpc
import requests

# Beside this repository's other parts; TITAN_PROTO says where, if the script was copied elsewhere.
PROTO_DIR = pathlib.Path(os.environ.get("TITAN_PROTO", pathlib.Path(__file__).resolve().parents[2] / "proto"))
AGENT_PROTO = "titancompute/v1/agent.proto"

# The coordinator answers out of memory.
REST_TIMEOUT_S = 10
# The longest answer that is waited for.
STREAM_TIMEOUT_S = 300


class CoordinatorError(Exception):
    """The coordinator named no agent."""


def load_stubs():
    """Compile the .proto when the program starts; returns the modules of messages and of services."""
    if not (PROTO_DIR / AGENT_PROTO).is_file():
        sys.exit(f"{PROTO_DIR / AGENT_PROTO} is not there: set TITAN_PROTO to the directory that holds {AGENT_PROTO}")
    # It is looked up as a module would be.
    sys.path.insert(0, str(PROTO_DIR))
    return grpc.protos_and_services(AGENT_PROTO)


def request_agent(coordinator, question):
    """POST /api/v1/inference/request: an agent's endpoints, and a token for it."""
    response = requests.post(f"{coordinator}/api/v1/inference/request", json=question, timeout=REST_TIMEOUT_S)
    if response.status_code == 200:
        return response.json()
    try:
        body = response.json()
        reason = f"{body['code']} {body['error']}: {body['message']}"
    except (ValueError, KeyError, TypeError):
        reason = f"HTTP status {response.status_code}"
    if "Retry-After" in response.headers:
        reason += f" (try again in {response.headers['Retry-After']} s)"
    raise CoordinatorError(reason)


def open_channel(route, ca):
    """Plain text, or TLS against the cluster's CA where one is given."""
    if ca is None:
        return grpc.insecure_channel(route["agent_endpoint"])
    credentials = grpc.ssl_channel_credentials(root_certificates=pathlib.Path(ca).read_bytes())
    quic = route.get("endpoints", {}).get("quic") or {}
    # The name in the agent's certificate does not depend on where it runs.
    options = [("grpc.ssl_target_name_override", quic["server_name"])] if quic.get("server_name") else []
    return grpc.secure_channel(route["agent_endpoint"], credentials, options)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--coordinator", default="http://localhost:8080")
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="such as seed=42; repeatable")
    parser.add_argument("--ca", help="the cluster's ca.pem, for an agent on another machine")
    args = parser.parse_args()

    messages, services = load_stubs()
    started = time.monotonic()
    what = {
        "model": args.model,
        "prompt": args.prompt,
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
    }
    try:
        route = request_agent(args.coordinator.rstrip("/"), {"client_id": "rest_client.py", **what})
    except (CoordinatorError, requests.RequestException) as error:
        sys.exit(f"the coordinator named no agent: {error}")
    print(f"{route['agent_id']} at {route['agent_endpoint']}, job {route['job_id']}", file=sys.stderr)

    options = dict(option.split("=", 1) for option in args.option)
    request = messages.StreamRequest(session_token=route["session_token"], stream=True, options=options, **what)
    first_text, usage = None, None
    with open_channel(route, args.ca) as channel:
        try:
            for response in services.AgentServiceStub(channel).StreamInference(request, timeout=STREAM_TIMEOUT_S):
                if response.content:
                    first_text = first_text or time.monotonic()
                    print(response.content, end="", flush=True)
                if response.done:
                    usage = dict(response.metadata)
        except grpc.RpcError as error:
            sys.exit(f"\nthe agent answered {error.code().name}: {error.details()}")
    print()
    if usage is None:
        sys.exit("the answer ended without a last message: it is incomplete")
    ttft = f"first text after {1e3 * (first_text - started):.0f} ms" if first_text else "no text"
    tokens, speed = usage.get("completion_tokens", "?"), usage.get("tokens_per_second", "?")
    print(f"{ttft}, {tokens} tokens, {speed} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    main()
