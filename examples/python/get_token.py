"""Gets an access token of a client. It needs only authlib: get_token.py CLIENT [SCOPE]

The broker caches and refreshes tokens, so each call costs a round trip only. To save
that too, keep the token until it expires.
"""

import json
import sys

import broker


def get_token(client, scope=None):
    more = {"scope": scope} if scope else {}
    return broker.session(client).fetch_token(
        broker.URL + "/oauth2/token", grant_type="client_credentials", **more
    )


if __name__ == "__main__":
    json.dump(get_token(*sys.argv[1:]), sys.stdout)
