"""The clients that somebody signed in to: seen and ended, by page and by app."""

import pytest
from django.test import Client as Browser

from caplai.store.models import Event
from tests.portal.oidc.conftest import Party, userinfo
from tests.signin.conftest import CHOSEN, sign_in


@pytest.fixture
def inside(browser, citizen, login):
    sign_in(browser, citizen.code, CHOSEN)
    return browser


def test_they_are_seen_and_ended(inside):
    assert "đăng nhập dịch vụ nào khác" in inside.get("/account/apps/").content.decode()
    clinic, bank = Party(scopes=["email"]), Party(name="Ngân hàng")
    ended, kept = clinic.tokens(inside, scope="openid email"), bank.tokens(inside)
    page = inside.get("/account/apps/").content.decode()
    assert page.index("Ngân hàng") < page.index("Phòng khám") and "email" in page
    assert "Ngân hàng, Phòng khám" in inside.get("/").content.decode()
    answer = inside.post("/account/apps/end/", {"client_id": clinic.id}, follow=True)
    assert "Từ nay Phòng khám không xem được thông tin của bạn nữa" in answer.content.decode()
    assert clinic.refresh(ended["refresh_token"]).json() == {"error": "invalid_grant"}
    assert userinfo(ended["access_token"]).status_code == 401
    assert userinfo(kept["access_token"]).status_code == 200
    assert inside.post("/account/apps/end/", {"client_id": "\0nobody"})["Location"] == "/account/apps/"


def test_they_are_in_what_happened(inside, app, citizen, login):
    clinic = Party()
    tokens = clinic.tokens(inside)
    again = clinic.refresh(tokens["refresh_token"]).json()
    more = clinic.tokens(inside)  # as a client that sends people here at each visit
    assert Event.objects.filter(kind="service_signed_in").count() == 1
    phone = Browser()
    sign_in(
        phone, citizen.code, CHOSEN, headers={"User-Agent": "Mozilla/5.0 (Windows NT 10.0) Firefox/120.0"}
    )
    clinic.tokens(phone)
    for _ in range(2):
        inside.post("/account/apps/end/", {"client_id": clinic.id})
    there, ended = Event.objects.filter(kind__startswith="service").order_by("id")[1:]
    assert (there.login_id, there.data) == (login.pk, {"service": "Phòng khám", "client": "firefox/windows"})
    assert (ended.login_id, ended.kind, ended.data) == (login.pk, "service_ended", {"service": "Phòng khám"})
    told = str(list(Event.objects.values()))
    for given in (tokens, again, more):
        assert not [secret for secret in given.values() if len(str(secret)) > 20 and str(secret) in told]

    page = inside.get("/account/history/").content.decode()
    assert page.index("Đã ngừng liên kết dịch vụ: Phòng khám") < page.index("Đăng nhập dịch vụ: Phòng khám")
    assert "Firefox trên Windows" in page
    page = inside.get("/account/history/?lang=en").content.decode()
    assert (
        "Ended the sign-in to the service: Phòng khám" in page
        and "Signed in to the service: Phòng khám" in page
    )
    app.sign_in(citizen.code, CHOSEN)
    what = [(one["what"], one["service"]) for one in app.call("GET", "account/history").json()["data"]]
    assert what[:2] == [("signed_in", None), ("service_ended", "Phòng khám")]
    assert what.count(("service_signed_in", "Phòng khám")) == 2


def test_an_app_does_the_same(inside, app, citizen):
    clinic = Party()
    assert app.call("GET", "account/apps").status_code == 401
    tokens = clinic.tokens(inside)
    app.sign_in(citizen.code, CHOSEN)
    [told] = app.call("GET", "account/apps").json()["data"]
    assert (told["client_id"], told["name"], told["scopes"]) == (clinic.id, "Phòng khám", ["openid"])
    assert app.call("DELETE", "account/apps", {"client_id": clinic.id}).status_code == 200
    assert app.call("DELETE", "account/apps", {"client_id": clinic.id}).status_code == 404
    assert app.call("GET", "account/apps").json()["data"] == []
    assert userinfo(tokens["access_token"]).status_code == 401


def test_nobody_sees_or_ends_another_ones(inside, browser, citizen):
    clinic = Party()
    tokens = clinic.tokens(inside)
    browser.post("/logout/")
    assert browser.get("/account/apps/")["Location"].startswith("/login/")
    browser.post("/account/apps/end/", {"client_id": clinic.id})
    assert userinfo(tokens["access_token"]).status_code == 200
