"""A relying party as a citizen's browser and its own server see it, and the citizen herself."""

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt
import pytest
from django.conf import settings
from django.test import Client as Browser

from caplai.portal.oidc import clients
from tests.signin.conftest import app, browser, citizen, login, open_case, operator  # noqa: F401

BACK = "https://clinic.example.vn/back"


@pytest.fixture(autouse=True)
def signing_key(db, monkeypatch):
    """The key that signs: the tests' keyring begins without one, and other tests agree on theirs."""
    monkeypatch.setattr(settings.KEYRING, "_agreed", None)
    if not settings.KEYRING.read().get("oidc"):
        settings.KEYRING.add("oidc")


class Party:
    """A relying party with its registration, by hand: the library's own way is in test_example.py."""

    def __init__(self, **registration) -> None:
        registration = {"name": "Phòng khám", "redirect_uris": [BACK], "scopes": ["email"]} | registration
        self.client, self.secret = clients.add(**registration)
        self.verifier = secrets.token_urlsafe(48)

    @property
    def id(self) -> str:
        return self.client.id

    def asks(self, **changes) -> str:
        """The address that it sends a browser to. None takes a parameter away."""
        digest = hashlib.sha256(self.verifier.encode()).digest()
        asked = {
            "client_id": self.id,
            "redirect_uri": BACK,
            "response_type": "code",
            "scope": "openid",
            "state": "abc",
            "nonce": "xyz",
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        } | changes
        return "/identity/o/authorize?" + urlencode({k: v for k, v in asked.items() if v is not None})

    def call(self, endpoint: str, secret: str | None = None, **body):
        """What its server posts, with its secret if it has one."""
        secret = secret or self.secret
        given = {"client_id": self.id} | ({"client_secret": secret} if secret else {}) | body
        return Browser().post(
            f"/identity/o/api/{endpoint}", {k: v for k, v in given.items() if v is not None}
        )

    def exchange(self, code: str, **changes):
        asked = {"redirect_uri": BACK, "code_verifier": self.verifier} | changes
        return self.call("token", grant_type="authorization_code", code=code, **asked)

    def refresh(self, token: str, **changes):
        return self.call("token", grant_type="refresh_token", refresh_token=token, **changes)

    def tokens(self, browser: Browser, **changes) -> dict:  # noqa: F811
        """All the way, for somebody who is signed in."""
        answer = self.exchange(agree(browser, self.asks(**changes))["code"])
        assert answer.status_code == 200, answer.content
        return answer.json()

    def is_active(self, token: str) -> bool:
        return self.call("introspect", token=token).json()["active"]


def userinfo(token: str):
    return Browser().get("/identity/o/api/userinfo", headers={"Authorization": f"Bearer {token}"})


def arrived(answer) -> dict[str, str]:
    """What the client is brought in its redirect."""
    assert answer.status_code == 302, answer.content
    assert answer["Location"].startswith(BACK + "?"), answer["Location"]
    return dict(parse_qsl(urlsplit(answer["Location"]).query))


def consent(browser: Browser, url: str, action: str = "grant"):  # noqa: F811
    page = browser.get(url)
    assert page.status_code == 200, (page.status_code, page.headers)
    request = re.search(r'name="request" value="([^"]+)"', page.content.decode())[1]
    return browser.post("/identity/o/authorize", {"request": request, "action": action})


def agree(browser: Browser, url: str) -> dict[str, str]:  # noqa: F811
    """Consent, where one is asked for."""
    answer = browser.get(url)
    return arrived(answer if answer.status_code == 302 else consent(browser, url))


def verified(token: str, party: Party) -> dict:
    """An ID token's claims, checked as a client checks them: by the published keys."""
    keys = json.loads(Browser().get("/.well-known/jwks.json").content)
    key = jwt.PyJWKSet.from_dict(keys)[jwt.get_unverified_header(token)["kid"]]
    return jwt.decode(token, key.key, algorithms=["RS256"], audience=party.id, issuer="http://testserver")


@pytest.fixture
def party(db) -> Callable[..., Party]:
    return Party
