"""OpenID Connect, as a client and a stranger meet it: what it takes, what it gives, and what it refuses."""

import base64
import logging
from datetime import timedelta
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from allauth.core.internal import jwkkit
from allauth.idp.oidc.internal.oauthlib import server
from allauth.idp.oidc.models import Client, Token
from django.conf import settings
from django.test import Client as Browser
from django.utils import timezone

from caplai.portal.oidc import clients
from caplai.portal.oidc.adapter import load_key
from caplai.portal.oidc.validator import Validator
from caplai.store.contact import Address
from tests.portal.oidc.conftest import BACK, agree, arrived, consent, userinfo, verified
from tests.signin.conftest import CHOSEN, sign_in


@pytest.fixture
def inside(browser, citizen, login):
    """A browser in which the citizen is signed in."""
    sign_in(browser, citizen.code, CHOSEN)
    return browser


def test_it_is_ours_that_allauth_asks(browser):
    browser.get("/")
    assert server.OAuthLibRequestValidator is Validator
    assert jwkkit.load_pem is load_key


def test_discovery_names_what_there_is_and_nothing_else(browser):
    found = browser.get("/.well-known/openid-configuration").json()
    assert found["issuer"] == "http://testserver"
    assert found["code_challenge_methods_supported"] == ["S256"]
    assert found["grant_types_supported"] == ["authorization_code", "refresh_token"]
    assert found["response_types_supported"] == ["code"]
    for name, url in found.items():
        if name.endswith(("_endpoint", "_uri")):
            assert browser.get(url.removeprefix("http://testserver")).status_code != 404, name
    for path in ("device", "api/device/code", "api/clients"):
        assert browser.get(f"/identity/o/{path}").status_code == 404


def test_a_stranger_signs_in_first_and_is_led_back(browser, citizen, login, party):
    clinic = party()
    answer = browser.get(clinic.asks())
    assert answer.status_code == 302 and answer["Location"].startswith("/login/?next=/identity/o/authorize")
    answer = browser.post(answer["Location"], {"username": citizen.code, "password": CHOSEN})
    answer = browser.get(answer["Location"])
    page = answer.content.decode()
    assert "Phòng khám" in page and "0327xxx686" in page and "000686" not in page


def test_without_a_key_that_signs_it_is_put_off_and_no_outage(inside, party, monkeypatch, caplog):
    clinic = party(trusted=True)
    code = arrived(inside.get(clinic.asks()))["code"]
    without = {kind: keys for kind, keys in settings.KEYRING.read().items() if kind != "oidc"}
    with monkeypatch.context() as lacking:
        lacking.setattr(settings.KEYRING, "read", lambda: without)
        assert inside.get("/.well-known/jwks.json").json() == {"keys": []}
        assert inside.get(clinic.asks()).status_code == 503
        answer = clinic.exchange(code)
        assert (answer.status_code, answer.json()) == (503, {"error": "temporarily_unavailable"})
        assert inside.get("/").status_code == 200
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert clinic.exchange(code).status_code == 200


def test_the_whole_way_and_nothing_of_the_person_but_a_name_of_its_own(inside, citizen, party):
    clinic = party()
    brought = arrived(consent(inside, clinic.asks()))
    assert brought["state"] == "abc"
    tokens = clinic.exchange(brought["code"]).json()
    claims = verified(tokens["id_token"], clinic)
    assert set(claims) == {"iss", "sub", "aud", "exp", "iat", "jti", "nonce", "at_hash", "auth_time"}
    assert claims["nonce"] == "xyz" and abs(claims["auth_time"] - claims["iat"]) < 60
    assert userinfo(tokens["access_token"]).json() == {"sub": claims["sub"]}
    assert citizen.code not in str(brought) + str(tokens) + str(claims)


def test_the_name_is_the_same_here_and_another_elsewhere(inside, party):
    def name(who):
        return verified(who.tokens(inside)["id_token"], who)["sub"]

    clinic, bank = party(), party()
    app, portal = party(sector="agency"), party(sector="agency")
    assert name(clinic) == name(clinic)
    assert len({name(clinic), name(bank), name(app)}) == 3
    assert name(app) == name(portal)


def test_claims_go_by_scopes_that_the_agency_allows(inside, citizen, login, party):
    address = Address.objects.create(account=citizen.code, email="mai@example.vn")
    clinic, office = party(), party(scopes=["email", "phone", "bhxh_code"])
    assert arrived(inside.get(clinic.asks(scope="openid bhxh_code")))["error"] == "invalid_scope"
    assert arrived(inside.get(clinic.asks(scope="email")))["error"] == "invalid_scope"
    told = userinfo(office.tokens(inside, scope="openid email phone bhxh_code")["access_token"]).json()
    assert told["bhxh_code"] == citizen.code and told["phone_number"] == "+84327000686"
    assert "email" not in told  # neither the registry's, nor one that waits for its code
    Address.objects.filter(pk=address.pk).update(confirmed_at=timezone.now())
    told = userinfo(clinic.tokens(inside, scope="openid email")["access_token"]).json()
    assert (told["email"], told["email_verified"]) == ("mai@example.vn", True)
    assert "phone_number" not in told


REFUSED = [
    ({"code_challenge": None, "code_challenge_method": None}, "invalid_request"),
    ({"code_challenge_method": "plain"}, "invalid_request"),
    ({"code_challenge_method": None}, "invalid_request"),
    ({"response_type": "token"}, "unsupported_response_type"),
    ({"response_type": "code id_token"}, "unsupported_response_type"),
    ({"response_type": "id_token"}, "unsupported_response_type"),
    ({"response_type": "nonsense"}, "unsupported_response_type"),
    ({"response_type": None}, "invalid_request"),
    ({"response_mode": "fragment"}, "invalid_request"),
    ({"response_mode": "form_post"}, "invalid_request"),
    ({"request": "e30.e30."}, "request_not_supported"),
    ({"request_uri": "https://clinic.example.vn/request"}, "request_uri_not_supported"),
    ({"scope": None}, "invalid_scope"),
    ({"scope": "profile offline_access"}, "invalid_scope"),
    ({"scope": "openid phone"}, "invalid_scope"),
]


def test_what_a_client_must_not_ask_for(inside, party):
    clinic = party()
    for changes, error in REFUSED:
        answer = inside.get(clinic.asks(**changes))
        assert answer.status_code == 302
        assert f"error={error}" in answer["Location"], changes
    assert not Token.objects.exists()


def test_a_scope_that_nobody_knows_is_left_out(inside, party):
    clinic, own = party(), party(trusted=True)
    asked = "openid profile email offline_access address"
    tokens = clinic.tokens(inside, scope=asked, response_mode="")
    assert tokens["scope"] == "openid email"
    assert clinic.refresh(tokens["refresh_token"], scope=asked).json()["scope"] == "openid email"
    assert own.tokens(inside, scope=asked)["scope"] == "openid email"
    assert "code" in arrived(inside.get(clinic.asks(scope=asked, prompt="none")))


def test_a_client_may_post_what_it_asks(inside, party):
    clinic = party(trusted=True)
    path, _, query = clinic.asks().partition("?")
    assert "code" in arrived(inside.get(inside.post(path, dict(parse_qsl(query)))["Location"]))
    with_object = inside.post(path, dict(parse_qsl(query)) | {"request": "e30.e30."})
    assert arrived(inside.get(with_object["Location"]))["error"] == "request_not_supported"


def test_a_wrong_secret_is_refused_by_the_scheme_that_it_came_by(party):
    clinic = party()
    for endpoint in ("token", "revoke", "introspect"):
        for secret in ("wrong", clinic.secret):
            basic = base64.b64encode(f"{clinic.id}:{secret}".encode()).decode()
            answer = Browser(enforce_csrf_checks=True).post(
                f"/identity/o/api/{endpoint}",
                {"grant_type": "refresh_token", "refresh_token": "x", "token": "x"},
                headers={"Authorization": f"Basic {basic}"},
            )
            assert (answer.status_code == 401) == (secret == "wrong"), (endpoint, answer.content)
            assert answer.headers.get("WWW-Authenticate", "")[:6] == ("Basic " if secret == "wrong" else "")


def test_nobody_is_sent_where_the_client_has_not_registered(inside, party):
    clinic = party()
    for uri in (BACK + "/", BACK + "?x=1", BACK.replace("https", "http"), "https://evil.example/", None):
        page = inside.get(clinic.asks(redirect_uri=uri))
        assert page.status_code == 200 and "Location" not in page, uri
        assert "evil" not in page["Content-Security-Policy"]


def test_who_says_no_is_sent_back_with_it(inside, party):
    assert arrived(consent(inside, party().asks(), "cancel")) == {"error": "access_denied", "state": "abc"}


def test_consent_needs_the_form_of_this_browser(inside, citizen, party):
    clinic = party()
    page = inside.get(clinic.asks()).content.decode()
    request = page.split('name="request" value="')[1].split('"')[0]
    inside.handler.enforce_csrf_checks = True
    assert inside.post("/identity/o/authorize", {"request": request, "action": "grant"}).status_code == 403
    assert not Token.objects.exists()


def test_the_agencys_own_client_asks_nobody(inside, party):
    assert "code" in arrived(inside.get(party(trusted=True).asks()))


@pytest.mark.parametrize("prompt", ["consent", "select_account", "select_account consent"])
def test_the_agencys_own_client_may_want_somebody_asked(inside, party, prompt):
    app = party(trusted=True)
    asked = app.asks(prompt=prompt)
    assert "Dùng tài khoản khác" in inside.get(asked).content.decode()
    assert app.exchange(arrived(consent(inside, asked))["code"]).status_code == 200
    assert arrived(consent(inside, asked, "cancel"))["error"] == "access_denied"


def test_who_uses_another_account_has_chosen(inside, citizen, party):
    app = party(trusted=True)
    where = inside.get(app.asks(prompt="select_account")).context["here"]
    answer = inside.post("/account/again/", {"next": where})
    answer = inside.post(answer["Location"], {"username": citizen.code, "password": CHOSEN})
    assert "code" in arrived(inside.get(answer["Location"]))
    assert arrived(inside.get(app.asks(prompt="none select_account")))["error"] == "invalid_request"
    assert "prompt=consent" in inside.get(app.asks(prompt="login consent")).context["next"]


def test_silently_only_where_somebody_is_in_and_has_agreed_to_this_client(browser, citizen, login, party):
    clinic, bank = party(), party()
    assert arrived(browser.get(clinic.asks(prompt="none")))["error"] == "login_required"
    sign_in(browser, citizen.code, CHOSEN)
    assert arrived(browser.get(clinic.asks(prompt="none")))["error"] == "consent_required"
    clinic.tokens(browser)
    assert "code" in arrived(browser.get(clinic.asks(prompt="none")))
    assert arrived(browser.get(bank.asks(prompt="none")))["error"] == "consent_required"


@pytest.mark.parametrize("asked", [{"prompt": "login"}, {"max_age": "0"}])
def test_a_client_may_have_people_sign_in_again(inside, citizen, party, asked):
    page = inside.get(party(trusted=True).asks(**asked))
    where = page.context["next"]
    answer = inside.post("/account/again/", {"next": where})
    assert answer["Location"].startswith("/login/?next=")
    answer = inside.post(answer["Location"], {"username": citizen.code, "password": CHOSEN})
    assert "code" in arrived(inside.get(answer["Location"]))


def test_an_old_sign_in_is_told_as_old_and_is_none_where_the_client_wants_a_new_one(inside, party):
    clinic = party(trusted=True)
    session = inside.session
    [record] = session["account_authentication_methods"]
    session["account_authentication_methods"] = [record | {"at": record["at"] - 3600}]
    session.save()
    assert "code" in arrived(inside.get(clinic.asks(prompt="none", max_age="7200")))
    assert arrived(inside.get(clinic.asks(prompt="none", max_age="60")))["error"] == "login_required"
    assert inside.get(clinic.asks(max_age="60")).status_code == 200  # the page that asks to sign in again
    tokens = clinic.exchange(agree(inside, clinic.asks(max_age="7200"))["code"]).json()
    claims = verified(tokens["id_token"], clinic)
    assert claims["iat"] - claims["auth_time"] >= 3600


def test_an_address_that_any_app_may_claim_is_given_nothing_silently(inside, party):
    app = party(redirect_uris=["vn.example.app:/back"], public=True)
    asked = app.asks(redirect_uri="vn.example.app:/back")
    code = parse_qs(urlsplit(consent(inside, asked)["Location"]).query)["code"][0]
    assert app.exchange(code, redirect_uri="vn.example.app:/back").status_code == 200
    again = inside.get(app.asks(redirect_uri="vn.example.app:/back", prompt="none"))
    assert "error=consent_required" in again["Location"]
    with pytest.raises(clients.Refused):
        party(redirect_uris=["vn.example.app:/back"], public=True, trusted=True)


def test_operators_are_nobody_to_clients(browser, operator, party):
    sign_in(browser, operator.username, "bảy con cò trắng")
    assert browser.get(party(trusted=True).asks()).status_code == 403


def test_a_code_is_worth_one_exchange_by_its_client_with_its_verifier(inside, party):
    clinic, bank = party(), party()
    code = agree(inside, clinic.asks())["code"]
    assert bank.exchange(code, code_verifier=clinic.verifier).json() == {"error": "invalid_grant"}
    assert clinic.exchange(code, code_verifier="x" * 43).json() == {"error": "invalid_grant"}
    assert clinic.exchange(code, code_verifier=None).status_code == 400
    assert clinic.exchange(code, redirect_uri="https://evil.example/").status_code == 400
    assert clinic.exchange(code, secret="wrong").status_code == 401
    tokens = clinic.exchange(code).json()
    assert userinfo(tokens["access_token"]).status_code == 200
    # Whoever brings it a second time is somebody else, or the first one was: all of it ends (ASVS 10.4.2).
    assert clinic.exchange(code).json() == {"error": "invalid_grant"}
    assert userinfo(tokens["access_token"]).status_code == 401
    assert clinic.refresh(tokens["refresh_token"]).json() == {"error": "invalid_grant"}


def test_a_code_lives_a_minute(inside, party):
    clinic = party()
    code = agree(inside, clinic.asks())["code"]
    left = Token.objects.get().expires_at - timezone.now()
    assert timedelta(seconds=50) < left <= timedelta(seconds=60)
    Token.objects.update(expires_at=timezone.now())
    assert clinic.exchange(code).json() == {"error": "invalid_grant"}


@pytest.mark.parametrize("public", [False, True])
def test_refreshing_rotates_and_a_used_token_ends_the_family(inside, party, public):
    clinic = party(public=public)
    first = clinic.tokens(inside)
    second = clinic.refresh(first["refresh_token"]).json()
    assert verified(second["id_token"], clinic)["sub"] == verified(first["id_token"], clinic)["sub"]
    other = clinic.tokens(inside)  # another authorization is no concern of this one
    assert clinic.refresh(first["refresh_token"]).json() == {"error": "invalid_grant"}
    assert clinic.refresh(second["refresh_token"]).json() == {"error": "invalid_grant"}
    assert userinfo(second["access_token"]).status_code == 401
    assert userinfo(other["access_token"]).status_code == 200


def test_rotation_prolongs_nothing(inside, party):
    clinic = party()
    tokens = clinic.tokens(inside)
    ends = Token.objects.get(type="rt").expires_at
    assert abs(ends - timezone.now() - settings.CAPLAI.oidc.refresh_lifetime) < timedelta(minutes=1)
    clinic.refresh(tokens["refresh_token"])
    assert {row.expires_at for row in Token.objects.filter(type="rt")} == {ends}


def test_who_renews_for_less_gets_all_of_it_the_next_time(inside, party):
    clinic = party(scopes=["email", "phone"])
    tokens = clinic.tokens(inside, scope="openid email phone")
    less = clinic.refresh(tokens["refresh_token"], scope="openid phone").json()
    assert less["scope"] == "openid phone"
    assert set(userinfo(less["access_token"]).json()) == {"sub", "phone_number", "phone_number_verified"}
    assert clinic.refresh(less["refresh_token"], scope="openid bhxh_code").json()["error"] == "invalid_scope"
    again = clinic.refresh(less["refresh_token"]).json()
    assert again["scope"] == "openid email phone"
    assert Token.objects.filter(type="rt").values_list("scopes").distinct().count() == 1


def test_tokens_are_ended_by_their_client_and_by_no_other(inside, party):
    clinic, bank = party(), party()
    tokens = clinic.tokens(inside)
    assert bank.call("revoke", token=tokens["refresh_token"]).status_code == 200
    assert not bank.is_active(tokens["access_token"])  # not for it to know
    assert clinic.is_active(tokens["access_token"])
    assert clinic.call("revoke", token=tokens["refresh_token"], secret="wrong").status_code == 401
    assert clinic.call("revoke", token=tokens["refresh_token"]).status_code == 200
    assert userinfo(tokens["access_token"]).status_code == 401


def test_a_server_of_records_may_ask_about_the_apps_tokens(inside, party):
    app, records = party(public=True), party(introspects=True)
    tokens = app.tokens(inside)
    told = records.call("introspect", token=tokens["access_token"]).json()
    assert (told["active"], told["client_id"], told["scope"]) == (True, app.id, "openid")


NO_GRANTS = [
    {"grant_type": "password", "username": "0012345678", "password": CHOSEN},
    {"grant_type": "client_credentials"},
    {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "device_code": "x"},
    {},
    {"grant_type": "authorization_code"},
    {"grant_type": "authorization_code", "code": "\0", "client_id": "\0"},
    {"grant_type": "refresh_token", "refresh_token": "\x7f;%ff\u202e"},
    {"grant_type": "refresh_token", "refresh_token": "x", "resource": "nonsense"},
]


def test_no_other_grant_and_no_nonsense(party, login):
    clinic = party()
    for body in NO_GRANTS:
        answer = clinic.call("token", **body)
        assert answer.status_code in (400, 401), body
        assert "error" in answer.json()


def test_no_code_token_or_secret_is_stored(inside, party):
    clinic = party()
    code = agree(inside, clinic.asks())["code"]
    tokens = clinic.exchange(code).json()
    rows = str(list(Token.objects.values())) + str(list(Client.objects.values()))
    for secret in (code, tokens["access_token"], tokens["refresh_token"], tokens["id_token"], clinic.secret):
        assert secret not in rows


def test_no_code_token_or_secret_is_logged(inside, citizen, party, caplog):
    caplog.set_level(logging.DEBUG)
    clinic = party()
    code = agree(inside, clinic.asks())["code"]
    tokens = clinic.exchange(code).json()
    clinic.refresh(tokens["refresh_token"])
    inside.get("/identity/o/logout", {"id_token_hint": tokens["id_token"]})
    logged = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "identity/o/authorize" in logged and "identity/o/logout" in logged
    for secret in (code, *tokens.values(), clinic.secret, "code_challenge", citizen.code):
        assert str(secret) not in logged or secret in ("Bearer", "openid", tokens["expires_in"])


def test_keys_that_wait_and_that_have_retired_are_published_too(inside, party):
    clinic = party()
    before = clinic.tokens(inside)["id_token"]
    settings.KEYRING.add("oidc")
    published = inside.get("/.well-known/jwks.json").json()["keys"]
    assert len(published) == len(settings.KEYRING.read()["oidc"]) >= 2
    assert all(set(key) <= {"kty", "n", "e", "kid", "key_ops", "alg", "use"} for key in published)
    settings.KEYRING.note({"oidc": next(reversed(settings.KEYRING.read()["oidc"]))})
    after = clinic.tokens(inside)["id_token"]
    assert verified(before, clinic)["sub"] == verified(after, clinic)["sub"]


NO_PLACES = [
    "http://clinic.example.vn/back",
    "https://clinic.example.vn/back#x",
    "https://*.example.vn/",
    "https://a; script-src *",
    "javascript:alert(1)",
    "app:/back",
    "https://user@clinic.example.vn/",
    "https://",
    "nonsense",
]


def test_redirect_uris_that_the_agency_cannot_register(db):
    for uri in NO_PLACES:
        with pytest.raises(clients.Refused):
            clients.add("Phòng khám", [uri], [])
        with pytest.raises(clients.Refused):
            clients.add("Phòng khám", [BACK], [], post_logout_uris=[uri])


def test_a_client_says_in_which_language_until_the_person_does(browser, citizen, login, open_case, party):
    clinic = party()
    in_english, given = clinic.asks(ui_locales="fr-CA en-US vi"), {"username": citizen.code, "password": "x"}

    def language(answer):
        page = answer.content.decode()
        assert f'<html lang="{answer["Content-Language"]}">' in page
        skip = {"vi": "Đến thẳng nội dung chính", "en": "Skip to the content"}
        assert skip[answer["Content-Language"]] in page
        return answer["Content-Language"]

    for asked in (
        clinic.asks(),
        clinic.asks(ui_locales="fr"),
        clinic.asks(ui_locales="vi en"),
        "/?ui_locales=en",
    ):
        assert language(browser.get("/login/", {"next": asked})) == "vi"
    there = browser.get(in_english)["Location"]
    assert language(browser.get(there)) == "en"
    assert language(browser.post("/login/", given | {"next": in_english})) == "en"
    assert language(browser.get("/login/")) == "vi"
    answer = browser.post("/login/", given | {"password": open_case().password, "next": in_english})
    assert language(browser.get(answer["Location"])) == "en"
    answer = browser.post(answer["Location"], {"new_password": "một mật khẩu khác"})
    page = browser.get(answer["Location"])
    assert page["Content-Language"] == "en" and "learns" in page.content.decode()
    assert language(browser.get("/identity/o/logout?ui_locales=en")) == "en"
    assert "lang" not in browser.cookies
    assert browser.get(in_english + "&lang=vi")["Content-Language"] == "vi"
    assert browser.get(in_english)["Content-Language"] == "vi"  # the person chose it, for good


def test_the_policy_lets_forms_end_at_the_waiting_client_alone(browser, citizen, login, open_case, party):
    clinic, app = party(), party(redirect_uris=["vn.gov.example.app:/back"])

    def form_action(answer):
        return answer["Content-Security-Policy"].split("form-action ")[1].split(";")[0]

    plain, at_clinic = "'self'", "'self' https://clinic.example.vn"
    assert form_action(browser.get("/login/")) == plain
    assert form_action(browser.get("/login/", {"next": clinic.asks()})) == at_clinic
    assert (
        form_action(browser.get("/login/", {"next": clinic.asks(redirect_uri="https://evil.example/")}))
        == plain
    )
    assert form_action(browser.get("/login/", {"next": "https://evil.example" + clinic.asks()})) == plain
    assert form_action(
        browser.get("/login/", {"next": app.asks(redirect_uri="vn.gov.example.app:/back")})
    ) == ("'self' vn.gov.example.app:")
    page = browser.post("/login/", {"username": citizen.code, "password": "x", "next": clinic.asks()})
    assert form_action(page) == at_clinic
    opened = open_case()
    browser.post("/login/", {"username": citizen.code, "password": opened.password, "next": clinic.asks()})
    assert form_action(browser.get("/choose-password/")) == at_clinic
    answer = browser.post("/choose-password/", {"new_password": CHOSEN + "!"})
    page = browser.get(answer["Location"])
    assert form_action(page) == at_clinic and "Phòng khám" in page.content.decode()
    assert form_action(browser.get("/")) == plain
