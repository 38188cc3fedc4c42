"""Gets an access token of a client over gRPC: grpc_token.py CLIENT

TOKENBROKER_ADDR names the broker, HOST:PORT, TOKENBROKER_TOKEN_FILE the file with the caller's
JWT, and TOKENBROKER_CA the file with the CA of the broker's certificate. Without it the
connection is in plaintext: for a broker on this machine only.
"""

import os
import sys

import grpc

from tokenbroker.v1 import tokenbroker_pb2, tokenbroker_pb2_grpc


def main():
    address = os.environ.get("TOKENBROKER_ADDR") or "127.0.0.1:8443"
    if ca := os.environ.get("TOKENBROKER_CA"):
        with open(ca, "rb") as file:
            channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(file.read()))
    else:
        channel = grpc.insecure_channel(address)
    metadata = []
    if path := os.environ.get("TOKENBROKER_TOKEN_FILE"):
        with open(path, encoding="ascii") as file:
            metadata.append(("authorization", "Bearer " + file.read().strip()))
    request = tokenbroker_pb2.GetTokenRequest(client_name=sys.argv[1])
    stub = tokenbroker_pb2_grpc.TokenBrokerServiceStub(channel)
    try:
        response = stub.GetToken(request, timeout=20, metadata=metadata)
    except grpc.RpcError as error:
        sys.exit(error.details())
    print(response.access_token)


if __name__ == "__main__":
    main()
