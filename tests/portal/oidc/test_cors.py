"""Which pages elsewhere may call the endpoints, and with what; tests/browser/test_oidc_page.py asks Chromium."""

import pytest
from django.test import Client as Browser

from tests.portal.oidc.conftest import BACK, Party, agree
from tests.signin.conftest import CHOSEN, sign_in

PAGE = "https://tra-cuu.example.vn"
OF_PAGES = ("token", "userinfo", "revoke")


@pytest.fixture
def page(db):
    """A public client whose pages are at PAGE; the port is one that a browser never writes."""
    return Party(public=True, redirect_uris=[BACK, f"{PAGE}:443/back", "vn.example.app:/back"])


def let_in(answer) -> str | None:
    assert "Access-Control-Allow-Credentials" not in answer
    return answer.get("Access-Control-Allow-Origin")


@pytest.mark.parametrize("name", OF_PAGES)
def test_a_preflight_is_answered_for_its_origin(page, name):
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    answer = Browser().options(f"/identity/o/api/{name}", headers=asked)
    assert answer.status_code == 200 and let_in(answer) == PAGE
    assert "POST" in answer["Access-Control-Allow-Methods"] and "Origin" in answer["Vary"]
    assert answer["Access-Control-Allow-Headers"] == "Authorization, Content-Type"


STRANGERS = [
    "https://evil.example",
    "https://tra-cuu.example.vn.evil.example",
    "https://tra-cuu.example.vn:8443",
    "http://tra-cuu.example.vn",
    "https://office.example.vn",  # a confidential client's: it has a server of its own
    "vn.example.app://",
    "null",
    "https://",
    "",
]


def test_no_other_origin_is_let_in(page):
    Party(redirect_uris=["https://office.example.vn/back"])
    for origin in STRANGERS:
        for name in OF_PAGES:
            for method in ("OPTIONS", "POST"):
                answer = Browser().generic(method, f"/identity/o/api/{name}", headers={"Origin": origin})
                assert let_in(answer) is None, (origin, name)


def test_what_is_refused_can_be_read_and_what_is_told_too(page, browser, citizen, login):
    sign_in(browser, citizen.code, CHOSEN)
    code = agree(browser, page.asks())["code"]
    url, headers = "/identity/o/api/token", {"Origin": PAGE}
    given = {"client_id": page.id, "grant_type": "authorization_code", "redirect_uri": BACK, "code": code}
    refused = Browser().post(url, given | {"code_verifier": "x" * 43}, headers=headers)
    assert (refused.status_code, let_in(refused)) == (400, PAGE)
    answer = Browser().post(url, given | {"code_verifier": page.verifier}, headers=headers)
    assert (answer.status_code, let_in(answer)) == (200, PAGE)
    bearer = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    assert let_in(Browser().get("/identity/o/api/userinfo", headers=headers | bearer)) == PAGE
    gone = Browser().get("/identity/o/api/userinfo", headers=headers | {"Authorization": "Bearer x"})
    assert (gone.status_code, let_in(gone)) == (401, PAGE)
    assert "WWW-Authenticate" in gone["Access-Control-Expose-Headers"]


def test_nothing_else_here_is_for_pages_elsewhere(page, browser):
    others = ["/", "/login/", page.asks(), "/identity/o/api/introspect", "/_allauth/app/v1/auth/session"]
    for path in others:
        for method in ("OPTIONS", "GET", "POST"):
            assert let_in(browser.generic(method, path, headers={"Origin": PAGE})) is None, path
