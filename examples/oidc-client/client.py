"""A site that signs people in with their caplai account: OpenID Connect by Authlib, on Python's own web server.

    python client.py --issuer http://127.0.0.1:8000 --client-id … --client-secret … --port 9000

Register it first (README.md). It keeps its sessions in memory: it is an example.
"""

import argparse
import html
import http.cookies
import secrets
from urllib.parse import parse_qs, urlencode
from wsgiref.simple_server import WSGIRequestHandler, make_server

import requests
from authlib.common.security import generate_token
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from joserfc import jwt
from joserfc.jwk import KeySet

SECONDS = 10


class Site:
    """`sessions` holds, by the browser's cookie, what belongs to a sign-in that is under way, then who is in."""

    def __init__(self, issuer: str, client_id: str, client_secret: str | None, scope: str, base: str) -> None:
        found = requests.get(f"{issuer}/.well-known/openid-configuration", timeout=SECONDS).json()
        assert found["issuer"] == issuer, "an issuer names itself"
        self.provider, self.client_id, self.base, self.sessions = found, client_id, base, {}
        self.oauth = lambda: OAuth2Session(
            client_id,
            client_secret,
            scope=scope,
            redirect_uri=f"{base}/back",
            token_endpoint_auth_method="client_secret_basic" if client_secret else "none",
            code_challenge_method="S256",
        )

    def __call__(self, environ, start):
        cookie = http.cookies.SimpleCookie(environ.get("HTTP_COOKIE", "")).get("example")
        key = cookie.value if cookie and cookie.value in self.sessions else secrets.token_urlsafe(32)
        session = self.sessions.setdefault(key, {})
        pages = {
            "/": self.home,
            "/sign-in": self.sign_in,
            "/back": self.back,
            "/renew": self.renew,
            "/out": self.out,
        }
        page = pages.get(environ["PATH_INFO"])
        try:
            answer = page(session, environ) if page else "There is no such page."
        except OAuthError as error:  # such as access_denied, or invalid_grant: the person signs in again
            session.clear()
            answer = f"<p id=error>{html.escape(error.error)}</p><p><a href=/sign-in>Sign in</a>"
        headers = [("Set-Cookie", f"example={key}; HttpOnly; SameSite=Lax; Path=/")]
        if answer.startswith(("http://", "https://")):
            start("302 Found", [*headers, ("Location", answer)])
            return [b""]
        start("200 OK", [*headers, ("Content-Type", "text/html; charset=utf-8")])
        return [f"<!doctype html><title>Example</title><h1>Example</h1>{answer}".encode()]

    def home(self, session, environ):
        if "claims" not in session:
            return "<p><a href=/sign-in>Sign in</a>"
        rows = "".join(
            f"<dt>{html.escape(k)}<dd id={k}>{html.escape(str(v))}" for k, v in session["claims"].items()
        )
        return f"<p>You are in.<dl>{rows}</dl><p><a href=/renew>Renew</a> <a href=/out>Sign out</a>"

    def sign_in(self, session, environ):
        """Send the browser to the provider; keep what proves that the answer is to this question."""
        session.clear()
        session |= {"nonce": secrets.token_urlsafe(16), "verifier": generate_token(64)}
        url, session["state"] = self.oauth().create_authorization_url(
            self.provider["authorization_endpoint"], nonce=session["nonce"], code_verifier=session["verifier"]
        )
        return url

    def back(self, session, environ):
        """The browser comes back with a code: exchange it, check the ID token, ask who it is."""
        if refusal := parse_qs(environ["QUERY_STRING"]).get("error"):
            raise OAuthError(refusal[0])
        oauth = self.oauth()
        session["token"] = oauth.fetch_token(
            self.provider["token_endpoint"],
            authorization_response=f"{self.base}/back?{environ['QUERY_STRING']}",
            state=session.pop("state", secrets.token_hex()),
            code_verifier=session.pop("verifier", None),
        )
        claims = self.checked(
            session["token"]["id_token"], nonce={"essential": True, "value": session.pop("nonce")}
        )
        told = oauth.get(self.provider["userinfo_endpoint"], timeout=SECONDS).json()
        assert told["sub"] == claims["sub"], "OpenID Connect Core 1.0, 5.3.2"
        session["claims"] = claims | told
        return self.base

    def renew(self, session, environ):
        """A new access token, and a new refresh token: the old one is worth nothing now."""
        old = parse_qs(environ["QUERY_STRING"]).get("with") or [session["token"]["refresh_token"]]
        session["token"] = self.oauth().refresh_token(self.provider["token_endpoint"], refresh_token=old[0])
        return f"<p id=renewed>Renewed.</p><p><a href='{self.base}'>Back</a>"

    def out(self, session, environ):
        """Our session ends, and what we were given with it; then the provider asks whether its own is to end, too."""
        if "token" not in session:
            return self.base
        self.oauth().revoke_token(self.provider["revocation_endpoint"], session["token"]["refresh_token"])
        asked = {"id_token_hint": session["token"]["id_token"], "post_logout_redirect_uri": f"{self.base}/"}
        session.clear()
        return f"{self.provider['end_session_endpoint']}?{urlencode(asked)}"

    def checked(self, id_token, **more):
        """The claims of an ID token that is signed by the provider, for us, and not over."""
        keys = KeySet.import_key_set(requests.get(self.provider["jwks_uri"], timeout=SECONDS).json())
        claims = jwt.decode(id_token, keys, algorithms=["RS256"]).claims
        wanted = {"iss": self.provider["issuer"], "aud": self.client_id}
        must = {name: {"essential": True, "value": value} for name, value in wanted.items()}
        jwt.JWTClaimsRegistry(**must, **more, exp={"essential": True}).validate(claims)
        return claims


class Quiet(WSGIRequestHandler):
    """No line of the log has the query, in which codes come."""

    def log_request(self, *args):
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--issuer", default="http://127.0.0.1:8000")
    parser.add_argument("--client-id", required=True)
    parser.add_argument("--client-secret", help="None: a public client.")
    parser.add_argument("--scope", default="openid")
    parser.add_argument("--port", type=int, default=9000)
    given = parser.parse_args()
    base = f"http://127.0.0.1:{given.port}"
    site = Site(given.issuer, given.client_id, given.client_secret, given.scope, base)
    print(f"Open {base}", flush=True)
    make_server("127.0.0.1", given.port, site, handler_class=Quiet).serve_forever()
