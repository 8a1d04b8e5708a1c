#!/usr/bin/env python3
"""A generic gRPC client: knows no .proto file, asks the servers for their types by reflection.

    pip install grpcio grpcio-reflection
    python reflection_client.py "Name three colours."

Needs a running cluster on this machine: `titan up`.
"""

import argparse
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def call(channel, service, method, **fields):
    """Calls one method of a server that describes itself; yields its responses."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    found = pool.FindServiceByName(service).FindMethodByName(method)
    request = GetMessageClass(found.input_type)(**fields)
    path = f"/{service}/{method}"
    decode = GetMessageClass(found.output_type).FromString
    if found.server_streaming:
        yield from channel.unary_stream(path, type(request).SerializeToString, decode)(request)
    else:
        yield channel.unary_unary(path, type(request).SerializeToString, decode)(request)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--coordinator", default="localhost:50051")
    parser.add_argument("--model", default="smollm2:135m")
    args = parser.parse_args()

    with grpc.insecure_channel(args.coordinator) as coordinator:
        services = ProtoReflectionDescriptorDatabase(coordinator).get_services()
        print("coordinator:", ", ".join(services), file=sys.stderr)
        (route,) = call(
            coordinator, "titancompute.v1.CoordinatorService", "RequestInference",
            client_id="reflection-example", model=args.model, prompt=args.prompt, max_tokens=20,
        )
    with grpc.insecure_channel(route.agent_endpoint) as agent:
        done = None
        for response in call(
            agent, "titancompute.v1.AgentService", "StreamInference",
            session_token=route.session_token, prompt=args.prompt, max_tokens=20, stream=True,
        ):
            print(response.content, end="", flush=True)
            done = response
    print()
    if done is None or not done.done:
        sys.exit("the stream ended without a last message")
    print(dict(done.metadata), file=sys.stderr)


if __name__ == "__main__":
    main()
