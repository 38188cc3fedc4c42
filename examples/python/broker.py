"""The common part of the examples: the broker's address and the caller's credentials.

BROKER_URL   the broker's HTTP listener, such as https://tokenbroker.example.com:8444
BROKER_GRPC  its gRPC listener, HOST:PORT, for the example with stubs
BROKER_CA    the file with the authority of its certificate
BROKER_JWT   the file with the caller's own JWT, such as a projected token of
             Kubernetes; or else:
BROKER_CERT, BROKER_KEY   the files with the caller's certificate and its key
"""

import os

from authlib.integrations.requests_client import OAuth2Session

URL = os.environ.get("BROKER_URL", "")


def jwt():
    """Reads the file each time, because Kubernetes replaces it."""
    with open(os.environ["BROKER_JWT"], encoding="ascii") as file:
        return file.read().strip()


def session(client):
    """Returns a session for the client with this name in the broker's configuration."""
    if "BROKER_JWT" in os.environ:
        oauth = OAuth2Session(client, jwt())
    else:
        oauth = OAuth2Session(client, token_endpoint_auth_method="none")
        oauth.cert = (os.environ["BROKER_CERT"], os.environ["BROKER_KEY"])
    # Otherwise REQUESTS_CA_BUNDLE would override verify, and proxies of the environment
    # would see the address of the broker.
    oauth.trust_env = False
    oauth.verify = os.environ["BROKER_CA"]
    return oauth
