"""Gets or verifies a token through generated gRPC stubs (see stubs.sh):
with_stubs.py get CLIENT, or with_stubs.py verify SCOPE < TOKEN
"""

import json
import os
import sys

import grpc

import broker
from tokenbroker.v1 import tokenbroker_pb2, tokenbroker_pb2_grpc


def read(path):
    with open(path, "rb") as file:
        return file.read()


def stub():
    ca = read(os.environ["BROKER_CA"])
    if "BROKER_JWT" in os.environ:
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(ca), grpc.access_token_call_credentials(broker.jwt())
        )
    else:
        credentials = grpc.ssl_channel_credentials(
            ca, read(os.environ["BROKER_KEY"]), read(os.environ["BROKER_CERT"])
        )
    channel = grpc.secure_channel(os.environ["BROKER_GRPC"], credentials)
    return tokenbroker_pb2_grpc.TokenBrokerServiceStub(channel)


def get(client):
    request = tokenbroker_pb2.GetTokenRequest(client_name=client)
    response = stub().GetToken(request, timeout=10)
    return {"access_token": response.access_token, "expires_at": response.expires_at.seconds}


def verify(scope):
    request = tokenbroker_pb2.VerifyTokenRequest(
        token=sys.stdin.read().strip(), required_scopes=[scope]
    )
    response = stub().VerifyToken(request, timeout=10)
    # A token with a confirmation is valid only for the holder of a key, and this program
    # requires no proof of the key. The field may be set although all its fields are empty.
    if response.HasField("confirmation"):
        return {"active": False, "subject": ""}
    # The subject of a token without a user may be the name of the client.
    user = response.subject_type == tokenbroker_pb2.SUBJECT_TYPE_SUB
    return {"active": response.active, "subject": response.subject if user else ""}


if __name__ == "__main__":
    json.dump({"get": get, "verify": verify}[sys.argv[1]](sys.argv[2]), sys.stdout)
