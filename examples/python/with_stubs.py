"""Both uses through generated gRPC stubs (see stubs.sh):
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
    answer = stub().GetToken(request, timeout=10)
    return {"access_token": answer.access_token, "expires_at": answer.expires_at.seconds}


def verify(scope):
    request = tokenbroker_pb2.VerifyTokenRequest(
        token=sys.stdin.read().strip(), required_scopes=[scope]
    )
    answer = stub().VerifyToken(request, timeout=10)
    # A token with a confirmation is good only for the holder of a key, of which nothing
    # here asks for a proof. It is set also if all its fields are empty.
    if answer.HasField("confirmation"):
        return {"active": False, "subject": ""}
    # The token of a client without a user may have the client's name for a subject.
    user = answer.subject_type == tokenbroker_pb2.SUBJECT_TYPE_SUB
    return {"active": answer.active, "subject": answer.subject if user else ""}


if __name__ == "__main__":
    json.dump({"get": get, "verify": verify}[sys.argv[1]](sys.argv[2]), sys.stdout)
