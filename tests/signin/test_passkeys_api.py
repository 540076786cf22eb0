"""Passkeys by the app API: the same as on the pages, from an app's own origin."""

import base64
import time
from datetime import timedelta

import pytest
from allauth.mfa.models import Authenticator
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone

from caplai.config import SigninSettings
from caplai.signin.sessions import SessionStore
from caplai.store.models import Case, Device, Event, Login
from tests.signin.conftest import CHOSEN, App, sign_in
from tests.signin.softkey import SoftKey

PRINT = ":".join(["0A"] * 32)
ANDROID = "android:apk-key-hash:" + base64.urlsafe_b64encode(b"\n" * 32).decode().rstrip("=")
WEB = "https://caplai.example"


@pytest.fixture(autouse=True)
def site(settings):
    signin = SigninSettings(
        android_apps={"vn.example.app": [PRINT]}, apple_apps=["TEAM012345.vn.example.app"]
    )
    settings.CAPLAI = settings.CAPLAI.model_copy(update={"public_url": WEB, "signin": signin})


@pytest.fixture
def key(login) -> SoftKey:
    """Hers, in the app."""
    return SoftKey.of(login, "a", ANDROID)


def show(app: App, key: SoftKey):
    asked = app.call("GET", "auth/webauthn/login").json()["data"]["request_options"]
    return app.call("POST", "auth/webauthn/login", {"credential": key.show(asked)})


def stale(app: App) -> None:
    session = SessionStore(app.session)
    for record in session["account_authentication_methods"]:
        record["at"] = time.time() - 1200
    session.save()


def add(app: App, key: SoftKey):
    asked = app.call("GET", "account/passkeys/options").json()["data"]["creation_options"]
    return app.call("POST", "account/passkeys", {"credential": key.make(asked)})


def test_sign_in(app, citizen, login, key):
    answer = show(app, key)
    assert answer.status_code == 200
    assert answer.json()["data"]["user"]["username"] == citizen.code
    assert app.is_in
    assert app.device
    assert Device.objects.get().login_id == login.pk
    assert show(app, key).status_code == 409
    iphone = App()  # which calls itself as the site does
    key.origin = WEB
    assert show(iphone, key).status_code == 200


def test_what_is_refused(app, login, key):
    for body in ({}, {"credential": 1}, {"credential": {"id": "x"}}, {"credential": "[" * 1000}):
        answer = app.call("POST", "auth/webauthn/login", body)
        assert answer.status_code == 400
        [error] = answer.json()["errors"]
        assert (error["code"], error["param"]) == ("passkey_refused", "credential")
    for origin in ("android:apk-key-hash:" + "A" * 43, WEB + ":8443", "http://caplai.example", "null"):
        key.origin = origin
        assert show(app, key).status_code == 400
    key.origin = ANDROID
    browser = Client(headers={"host": "caplai.example"})
    browser.get("/login/")  # what a browser was given is no app's
    asked = browser.post("/login/passkey/options/").json()
    assert app.call("POST", "auth/webauthn/login", {"credential": key.show(asked)}).status_code == 400
    assert not app.is_in
    Login.objects.update(is_active=False)
    assert show(app, key).status_code == 400


def test_after_a_re_issue(app, citizen, open_case):
    opened = open_case()
    assert app.call("GET", "auth/choose_passkey").status_code == 401
    app.sign_in(citizen.code, opened.password)
    asked = app.call("GET", "auth/choose_passkey").json()["data"]["creation_options"]
    assert asked["publicKey"]["rp"]["id"] == "caplai.example"
    assert app.call("POST", "auth/choose_passkey", {"credential": {}}).status_code == 400
    key = SoftKey(origin=ANDROID)
    answer = app.call("POST", "auth/choose_passkey", {"credential": key.make(asked)})
    assert answer.status_code == 200
    assert answer.json()["data"]["user"]["has_usable_password"] is False
    assert app.is_in
    assert Case.objects.get().ended_as == "used"
    assert Event.objects.filter(kind="passkey_chosen").count() == 1
    assert show(App(), key).status_code == 200


def test_after_a_re_issue_that_has_ended(app, citizen, open_case):
    app.sign_in(citizen.code, open_case().password)
    asked = app.call("GET", "auth/choose_passkey").json()["data"]["creation_options"]
    Case.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    answer = app.call("POST", "auth/choose_passkey", {"credential": SoftKey(origin=ANDROID).make(asked)})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (409, "case_ended")
    assert not Authenticator.objects.exists()
    assert app.call("GET", "auth/choose_passkey").status_code == 401


def test_list_add_rename_remove(app, citizen, login):
    app.sign_in(citizen.code, CHOSEN)
    assert app.call("GET", "account/passkeys").json()["data"] == []
    key = SoftKey(origin=ANDROID)
    answer = add(app, key)
    assert answer.status_code == 200
    added = answer.json()["data"]
    show(App(), key)
    [listed] = app.call("GET", "account/passkeys").json()["data"]
    assert listed["id"] == added["id"]
    assert listed["last_used_at"] and listed["kept_until"] is None
    here = f"account/passkeys/{added['id']}"
    assert app.call("PUT", here, {"name": ""}).status_code == 400
    assert app.call("PUT", here, {"name": "Máy của Lan"}).json()["data"]["name"] == "Máy của Lan"

    Login.objects.update(password="!nothing")
    answer = app.call("DELETE", here)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (409, "last_way_in")
    Login.objects.update(password=login.password)
    Authenticator.objects.update(created_at=timezone.now() - timedelta(days=9))
    Case.objects.create(
        account=citizen.code, phone=citizen.phone, channel="sms", key="k", version=1, length=6, alphabet="0",
        opened_at=timezone.now(), expires_at=timezone.now(), ended_at=timezone.now(), ended_as="used",
    )  # fmt: skip
    assert app.call("GET", "account/passkeys").json()["data"][0]["kept_until"]
    answer = app.call("DELETE", here)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (409, "kept")
    Case.objects.all().delete()
    assert app.call("DELETE", here).status_code == 200
    assert app.call("DELETE", here).status_code == 404
    assert app.call("PUT", here, {"name": "x"}).status_code == 404


def test_only_a_fresh_sign_in_adds_and_removes(app, citizen, login, key):
    for method, path in [("GET", ""), ("POST", ""), ("GET", "/options"), ("DELETE", "/1"), ("PUT", "/1")]:
        assert app.call(method, f"account/passkeys{path}").status_code == 401
    app.sign_in(citizen.code, CHOSEN)
    stale(app)
    for method, path in [("POST", ""), ("GET", "/options"), ("DELETE", f"/{Authenticator.objects.get().pk}")]:
        answer = app.call(method, f"account/passkeys{path}")
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (403, "sign_in_again")
    assert app.call("GET", "account/passkeys").status_code == 200
    assert Authenticator.objects.count() == 1


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("auth/webauthn/login", "GET, POST"), ("auth/choose_passkey", "GET, POST"), ("account/passkeys", "GET, POST"),
     ("account/passkeys/options", "GET"), ("account/passkeys/1", "PUT, DELETE")],
)  # fmt: skip
def test_each_takes_its_own_methods_and_json_only(app, citizen, login, open_case, path, allowed):
    app.sign_in(citizen.code, open_case().password if "choose" in path else CHOSEN)
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        if method not in allowed:
            answer = app.call(method, path, {})
            assert (answer.status_code, answer["Allow"]) == (405, allowed)
    method = allowed.split(", ")[-1]
    answer = Client().generic(
        method,
        f"/_allauth/app/v1/{path}",
        "a=b",
        content_type="text/plain",
        headers={"X-Session-Token": app.session},
    )
    assert answer.status_code == 415


def test_apps_that_may_use_them_are_named(db, settings):
    [statement] = Client().get("/.well-known/assetlinks.json").json()
    assert statement["target"]["package_name"] == "vn.example.app"
    assert statement["target"]["sha256_cert_fingerprints"] == [PRINT]
    answer = Client().get("/.well-known/apple-app-site-association")
    assert answer["Content-Type"] == "application/json"
    assert answer.json() == {"webcredentials": {"apps": ["TEAM012345.vn.example.app"]}}
    settings.CAPLAI = settings.CAPLAI.model_copy(update={"signin": SigninSettings()})
    for path in ("assetlinks.json", "apple-app-site-association"):
        assert Client().get(f"/.well-known/{path}").status_code == 404


@pytest.mark.parametrize(
    "wrong",
    [
        {"android_apps": {"app": [PRINT]}},
        {"android_apps": {"vn.example.app": ["0A"]}},
        {"android_apps": {"vn.example.app": [PRINT.lower()]}},
        {"apple_apps": ["vn.example.app"]},
    ],
)
def test_settings_that_name_no_app_are_refused(wrong):
    with pytest.raises(ValueError, match="pattern"):
        SigninSettings(**wrong)


def test_without_https_there_are_none(app, citizen, login, settings):
    assert app.call("GET", "config").json()["data"]["mfa"]["passkey_login_enabled"]
    settings.CAPLAI = settings.CAPLAI.model_copy(update={"public_url": "http://caplai.example"})
    assert app.call("GET", "auth/webauthn/login").status_code == 404
    assert not app.call("GET", "config").json()["data"]["mfa"]["passkey_login_enabled"]
    sign_in(Client(), citizen.code, CHOSEN)
    app.sign_in(citizen.code, CHOSEN)
    assert app.call("GET", "account/passkeys/options").status_code == 404
    assert Session.objects.count() == 2
