"""A service with an endpoint that requires a valid access token. It needs only authlib
and requests: protect.py PORT SCOPE

The service calls the broker for each request. The broker caches verified signatures, so
such a call is cheap. If the broker cannot decide, the service responds with 503, not 401.
"""

import http.server
import sys

import requests

import broker


def decide(authorization, scope):
    """Returns the status and challenge for a request (RFC 6750), and its claims."""
    scheme, _, token = (authorization or "").partition(" ")
    token = token.lstrip(" ")  # RFC 6750 allows more than one space
    if scheme.lower() != "bearer" or not token:
        return 401, 'Bearer realm="orders"', None
    try:
        response = broker.session("orders").introspect_token(
            broker.URL + "/oauth2/introspect", token=token
        )
    except requests.RequestException:
        return 503, None, None
    if response.status_code != 200:
        return 503, None, None
    claims = response.json()
    # A token with cnf is valid only for the holder of a key. This service requires no proof
    # of the key: no DPoP proof and no client certificate.
    bound = "cnf" in claims or claims.get("token_type") != "Bearer"
    if not claims["active"] or bound:
        return 401, 'Bearer realm="orders", error="invalid_token"', None
    if scope not in claims.get("scope", "").split():
        challenge = f'Bearer realm="orders", error="insufficient_scope", scope="{scope}"'
        return 403, challenge, None
    if claims.get("subject_type") == "client_id":
        # The token has no user: it has no sub, and its client_id is the subject. A user with
        # this name may exist, and the orders belong to that user. A gateway sends an empty
        # X-Auth-Subject for such a token.
        return 403, None, None
    return 200, None, claims


class Orders(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        # Refuse more than one header: no correct client sends that.
        given = self.headers.get_all("Authorization") or []
        status, challenge, claims = decide(given[0] if len(given) == 1 else None, sys.argv[2])
        body = f"orders of {claims['sub']}\n".encode() if claims else b""
        self.send_response(status)
        if challenge:
            self.send_header("WWW-Authenticate", challenge)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Logs nothing, because requests contain tokens."""


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Orders).serve_forever()
