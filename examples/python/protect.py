"""A service whose endpoint wants a good access token, with authlib alone:
protect.py PORT SCOPE

Each request asks the broker, which remembers signatures and does no more than check
them off. Where the broker cannot say, nor can the service: 503, and not 401.
"""

import http.server
import sys

import requests

import broker


def verdict(authorization, scope):
    """The status and challenge that a request gets (RFC 6750), and its claims."""
    scheme, _, token = (authorization or "").partition(" ")
    token = token.lstrip(" ")  # RFC 6750 allows more than one space
    if scheme.lower() != "bearer" or not token:
        return 401, 'Bearer realm="orders"', None
    try:
        answer = broker.session("orders").introspect_token(
            broker.URL + "/oauth2/introspect", token=token
        )
    except requests.RequestException:
        return 503, None, None
    if answer.status_code != 200:
        return 503, None, None
    claims = answer.json()
    # A token with cnf is good only for the holder of a key, and this service asks for no
    # proof of it: no DPoP proof and no client certificate.
    bound = "cnf" in claims or claims.get("token_type") != "Bearer"
    if not claims["active"] or bound:
        return 401, 'Bearer realm="orders", error="invalid_token"', None
    if scope not in claims.get("scope", "").split():
        challenge = f'Bearer realm="orders", error="insufficient_scope", scope="{scope}"'
        return 403, challenge, None
    if claims.get("subject_type") == "client_id":
        # A client without a user: the token has no sub, and its client_id stands for it. A
        # user may have the same name, and the orders are hers. A gateway says the same by
        # an empty X-Auth-Subject.
        return 403, None, None
    return 200, None, claims


class Orders(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        # More than one header is nobody's honest mistake.
        given = self.headers.get_all("Authorization") or []
        status, challenge, claims = verdict(given[0] if len(given) == 1 else None, sys.argv[2])
        body = f"orders of {claims['sub']}\n".encode() if claims else b""
        self.send_response(status)
        if challenge:
            self.send_header("WWW-Authenticate", challenge)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Requests hold tokens, and are not logged."""


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Orders).serve_forever()
