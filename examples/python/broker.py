"""What the examples have in common: how the broker is reached, and who asks it.

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
    """Read anew each time: whoever projects the token replaces the file."""
    with open(os.environ["BROKER_JWT"], encoding="ascii") as file:
        return file.read().strip()


def session(client):
    """A session of the OAuth client that the broker calls so."""
    if "BROKER_JWT" in os.environ:
        made = OAuth2Session(client, jwt())
    else:
        made = OAuth2Session(client, token_endpoint_auth_method="none")
        made.cert = (os.environ["BROKER_CERT"], os.environ["BROKER_KEY"])
    # The environment's REQUESTS_CA_BUNDLE would go before verify, and its proxies would
    # see where the token is asked for.
    made.trust_env = False
    made.verify = os.environ["BROKER_CA"]
    return made
