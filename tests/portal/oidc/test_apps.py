"""The clients that somebody signed in to: seen and ended, by page and by app."""

import pytest

from tests.portal.oidc.conftest import Party, userinfo
from tests.signin.conftest import CHOSEN, App, sign_in


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


def test_an_app_does_the_same(inside, citizen):
    clinic, app = Party(), App()
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
