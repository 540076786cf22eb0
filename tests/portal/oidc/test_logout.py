"""A client's sign-out: who is asked, what ends, and where it may lead."""

import time
from urllib.parse import urlencode

import jwt
import pytest
from allauth.core.internal import jwkkit
from allauth.idp.oidc.adapter import get_adapter
from django.conf import settings
from django.test import Client as Browser

from caplai.store.keyring import KeyringError
from caplai.store.models import Login, Sitting
from tests.portal.oidc.conftest import BACK, Party, agree, userinfo
from tests.signin.conftest import CHOSEN, sign_in

OUT = "/identity/o/logout"
BYE = "https://clinic.example.vn/bye?x="


@pytest.fixture
def inside(browser, citizen, login):
    sign_in(browser, citizen.code, CHOSEN)
    return browser


@pytest.fixture
def clinic(db):
    return Party(post_logout_uris=[BYE])


def is_in(browser: Browser) -> bool:
    return browser.get("/account/apps/").status_code == 200


def answer(browser: Browser, action: str, **asked):
    """Go where the client leads, and press one of the two buttons of the page."""
    page = browser.get(OUT, asked)
    assert page.status_code == 200, (page.status_code, page.headers)
    kept = {name: value for name, value in page.context["kept"] if value}
    return browser.post(
        OUT, kept | {"action": action, "csrfmiddlewaretoken": str(page.context["csrf_token"])}
    )


def test_who_signs_out_is_out_as_by_our_own_button_and_the_clients_tokens_end(inside, clinic):
    bank = Party()
    tokens, others = clinic.tokens(inside), bank.tokens(inside)
    code = agree(inside, clinic.asks())["code"]
    hint = {"id_token_hint": tokens["id_token"], "post_logout_redirect_uri": BYE, "state": "a&b"}
    inside.handler.enforce_csrf_checks = True
    there = answer(inside, "logout", **hint)
    assert there["Location"] == BYE + "&state=a%26b"
    assert not is_in(inside) and not Sitting.objects.exists()
    assert clinic.refresh(tokens["refresh_token"]).json() == {"error": "invalid_grant"}
    assert clinic.exchange(code).json() == {"error": "invalid_grant"}
    assert userinfo(tokens["access_token"]).status_code == 401
    assert userinfo(others["access_token"]).status_code == 200


def test_who_stays_is_in_and_the_clients_tokens_end(inside, clinic):
    tokens = clinic.tokens(inside)
    hint = {"id_token_hint": tokens["id_token"], "post_logout_redirect_uri": BYE}
    assert answer(inside, "stay", **hint)["Location"] == BYE
    assert is_in(inside) and userinfo(tokens["access_token"]).status_code == 401


def test_the_page_says_who_asks_and_who_is_in(inside, clinic, citizen):
    page = inside.get(OUT, {"client_id": clinic.id, "lang": "en"}).content.decode()
    assert "Phòng khám sent you here" in page and citizen.code in page and "0327xxx686" in page
    assert "sent you here" not in inside.get(OUT, {"client_id": "nobody"}).content.decode()


def test_no_link_and_no_other_sites_form_signs_anybody_out(inside, clinic):
    tokens = clinic.tokens(inside)
    asked = {"id_token_hint": tokens["id_token"], "post_logout_redirect_uri": BYE, "action": "logout"}
    assert inside.get(OUT, asked).status_code == 200
    assert inside.head(OUT, asked).status_code == 200
    inside.handler.enforce_csrf_checks = True
    assert inside.post(OUT, asked).status_code == 200  # the question, again
    assert inside.post(OUT, asked | {"csrfmiddlewaretoken": "x" * 32}).status_code == 403
    assert is_in(inside) and userinfo(tokens["access_token"]).status_code == 200


def test_a_client_may_ask_by_a_form(inside, clinic):
    hint = {"id_token_hint": clinic.tokens(inside)["id_token"], "post_logout_redirect_uri": BYE}
    led = inside.post(OUT, hint | {"more": "x"})
    assert led["Location"] == f"{OUT}?{urlencode(hint)}"
    assert "Phòng khám" in inside.get(led["Location"]).content.decode()


def test_who_is_not_in_is_asked_nothing(browser, clinic):
    assert browser.get(OUT, {"client_id": clinic.id, "post_logout_redirect_uri": BYE})["Location"] == BYE
    assert browser.get(OUT)["Location"] == "/login/"
    assert browser.post(OUT, {"action": "logout"})["Location"] == "/login/"


NOWHERE = [
    "https://evil.example/",
    "https://clinic.example.vn/",
    "https://clinic.example.vn:8443/bye?x=",
    BYE + "1",
    BYE.upper(),
    BYE.replace("https", "http"),
    BACK,  # it may be registered for codes
    "vn.gov.example.app:/elsewhere",
    "vn.evil.app:/bye",
    "javascript:alert(1)",
    "//evil.example",
    "\0",
    "\\\\evil.example",
    "https://clinic.example.vn\n.evil.example/",
]


def test_nobody_is_led_where_the_client_has_not_registered(browser, login, citizen, clinic):
    app = Party(public=True, redirect_uris=["vn.gov.example.app:/back"])
    own = Party(
        public=True, redirect_uris=["vn.gov.example.app:/back"], post_logout_uris=["vn.gov.example.app:/x"]
    )
    bare = Party()  # nothing is registered, so nothing is taken
    for uri in NOWHERE:
        for party in (clinic, app, own, bare):
            asked = {"client_id": party.id, "post_logout_redirect_uri": uri}
            assert browser.get(OUT, asked)["Location"] == "/login/", uri
    for asked in ({"post_logout_redirect_uri": BYE}, {"post_logout_redirect_uri": BYE, "client_id": "\0"}):
        assert browser.get(OUT, asked)["Location"] == "/login/"
    sign_in(browser, citizen.code, CHOSEN)
    page = browser.get(OUT, {"client_id": clinic.id, "post_logout_redirect_uri": "https://evil.example/"})
    assert "form-action 'self';" in page["Content-Security-Policy"]
    assert (
        answer(browser, "stay", client_id=clinic.id, post_logout_redirect_uri=NOWHERE[0])["Location"] == "/"
    )


def test_the_policy_lets_the_question_lead_to_the_client_alone(inside, clinic):
    app = Party(public=True, redirect_uris=[BACK], post_logout_uris=["vn.gov.example.app:/bye"])
    for party, uri, source in (
        (clinic, BYE, "https://clinic.example.vn"),
        (app, "vn.gov.example.app:/bye", "vn.gov.example.app:"),
    ):
        asked = {"client_id": party.id, "post_logout_redirect_uri": uri}
        assert f"form-action 'self' {source};" in inside.get(OUT, asked)["Content-Security-Policy"]
        assert answer(inside, "stay", **asked)["Location"] == uri


def forged(party: Party, **changes) -> str:
    """An ID token as ours, for an hour that is over, and as a stranger would change it."""
    jwk, key = jwkkit.load_jwk_from_pem(get_adapter().get_signing_key().pem)
    then = int(time.time()) - 3600
    claims = {
        "iss": "http://testserver",
        "aud": party.id,
        "sub": "x",
        "iat": then,
        "exp": then + 300,
    } | changes
    return jwt.encode(claims, key, algorithm="RS256", headers={"kid": jwk["kid"]})


def test_a_hint_is_used_as_far_as_it_is_proved(inside, clinic, login):
    bank = Party()
    mine = clinic.tokens(inside)
    still, gone = (lambda: userinfo(mine["access_token"]).status_code == 200), "invalid_grant"
    good = mine["id_token"]
    head, body, _ = good.split(".")
    asked = {"post_logout_redirect_uri": BYE}
    # Ones that we did not write say nothing, not even who the client is.
    for hint in (
        "x",
        "..",
        "é\0",
        f"{head}.{body}.",
        f"{head}.{body}.AAAA",
        forged(clinic, iss="https://evil.example"),
    ):
        assert answer(inside, "stay", id_token_hint=hint, **asked)["Location"] == "/" and still()
    # Another client's: neither it nor the client that it is said to be of counts.
    assert answer(inside, "stay", id_token_hint=good, client_id=bank.id, **asked)["Location"] == "/"
    assert still()
    # A client alone is anybody's word: only who signs out ends its tokens.
    assert answer(inside, "stay", client_id=clinic.id, **asked)["Location"] == BYE and still()
    # Somebody else's, who was at this browser before: theirs are not here to end.
    assert answer(inside, "stay", id_token_hint=forged(clinic), **asked)["Location"] == BYE and still()
    # One that is over is as good as any.
    sub = jwt.decode(good, options={"verify_signature": False})["sub"]
    assert answer(inside, "stay", id_token_hint=forged(clinic, sub=sub), **asked)["Location"] == BYE
    assert clinic.refresh(mine["refresh_token"]).json()["error"] == gone


def test_nonsense_is_left_aside(inside, clinic):
    good = {"client_id": clinic.id, "post_logout_redirect_uri": BYE}
    for nonsense in ("\0", "\x7f;%ff\u202e\n", "é" * 300, "../" * 20, "a.b.c", '"><script>', "e30.e30.e30"):
        for name in ("id_token_hint", "client_id", "state", "logout_hint", "ui_locales"):
            there = answer(inside, "stay", **good | {name: nonsense})["Location"]
            assert there.startswith(BYE) if name != "client_id" else there == "/", (name, nonsense)
            assert "\n" not in there and "<" not in there
    assert inside.post(OUT, good | {"ui_locales": "en"})["Location"].endswith("&ui_locales=en")


def test_without_the_clients_word_it_is_the_persons_to_leave(inside, clinic, citizen):
    tokens = clinic.tokens(inside)
    assert answer(inside, "logout", client_id=clinic.id, post_logout_redirect_uri=BYE)["Location"] == BYE
    assert not is_in(inside) and userinfo(tokens["access_token"]).status_code == 401
    sign_in(inside, citizen.code, CHOSEN)
    assert "Đã ngừng liên kết dịch vụ: Phòng khám" in inside.get("/account/history/").content.decode()


def test_operators_sign_out_so_too(browser, operator, clinic):
    sign_in(browser, operator.username, "bảy con cò trắng")
    assert answer(browser, "logout", client_id=clinic.id)["Location"] == "/login/"
    assert "_auth_user_id" not in browser.session and Login.objects.count() == 1


def test_while_keys_cannot_be_read_it_is_put_off(inside, clinic, monkeypatch):
    def lost():
        raise KeyringError("The keyring is away.")

    hint = clinic.tokens(inside)["id_token"]
    inside.raise_request_exception = False
    with monkeypatch.context() as lacking:
        lacking.setattr(settings.KEYRING, "read", lost)
        put_off = inside.get(OUT, {"id_token_hint": hint})
        assert put_off.status_code == 503 and put_off["Retry-After"]
    assert is_in(inside)
