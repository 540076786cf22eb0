"""The main job's end: the password from the text, one of one's own, and who is in; by page and by app."""

import time

import pytest
from django.db import IntegrityError, transaction
from django.test import Client

from caplai.service import credentials, using
from caplai.signin.backend import rules as configured
from caplai.store.models import Case, Device, Event, Guess, Login
from tests.signin.conftest import CHOSEN, App, is_in, sign_in, wrong


def test_page_from_issued_to_chosen_password(browser, citizen, open_case):
    opened = open_case()

    answer = sign_in(browser, citizen.code, opened.password)
    assert (answer.status_code, answer["Location"]) == (302, "/choose-password/")
    assert not is_in(browser)

    answer = browser.post("/choose-password/", {"new_password": CHOSEN})
    assert (answer.status_code, answer["Location"]) == (302, "/")
    home = browser.get("/").content.decode()
    assert home.count('class="message success') == 1
    assert "Đã lưu mật khẩu mới" in home
    assert "0012345678" in home
    assert "0327xxx686" in home
    assert "000686" not in home
    assert "lan@example.vn" in home

    assert Case.objects.get().ended_as == "used"
    event = Event.objects.get(kind="password_chosen")
    assert (event.kind, event.login_id, event.case_id) == (
        "password_chosen",
        Login.objects.get().pk,
        opened.case.id,
    )
    assert citizen.code not in str(event.data)

    again = Client()
    assert sign_in(again, citizen.code, CHOSEN)["Location"] == "/"
    assert is_in(again)
    assert sign_in(Client(), citizen.code, opened.password).status_code == 200


def test_app_from_issued_to_chosen_password(app, citizen, open_case):
    opened = open_case()

    answer = app.sign_in(citizen.code, opened.password)
    assert answer.status_code == 401
    body = answer.json()
    assert {"id": "choose_password", "is_pending": True} in body["data"]["flows"]
    assert {flow["id"] for flow in body["data"]["flows"]} == {
        "login",
        "mfa_login_webauthn",
        "choose_password",
    }
    assert body["meta"]["is_authenticated"] is False
    assert app.session == body["meta"]["session_token"]
    assert app.device is None
    assert not app.is_in

    answer = app.choose(CHOSEN)
    assert answer.status_code == 200
    body = answer.json()
    assert body["data"]["user"] == {
        "id": Login.objects.get().pk,
        "username": citizen.code,
        "display": citizen.code,
        "has_usable_password": True,
        "phone": "0327xxx686",
        "email": "lan@example.vn",
    }
    assert body["meta"]["session_token"] == app.session
    assert app.device
    assert app.is_in

    again = App()
    assert again.sign_in(citizen.code, CHOSEN).status_code == 200
    assert again.is_in
    assert again.call("DELETE", "auth/session").status_code == 401
    assert not again.is_in
    assert app.is_in


def test_app_signs_out_before_it_signs_in_somebody_else(app, citizen, login, open_case):
    """Whatever the password is, it is not looked at."""
    app.sign_in(citizen.code, CHOSEN)
    for password in ("wrong", CHOSEN, open_case().password, ""):
        assert app.sign_in(citizen.code, password).status_code == 409
    assert not Guess.objects.exists()
    assert app.is_in


def test_app_that_tries_another_password_no_longer_chooses(app, citizen, open_case):
    opened = open_case()
    app.sign_in(citizen.code, opened.password)
    assert app.sign_in("9999999999", "wrong").status_code == 400
    assert app.choose(CHOSEN).status_code == 401


@pytest.mark.parametrize(
    "typed",
    [
        "0012345678",
        " 0012 345 678 ",
        "001.234.5678",
        "００１２３４５６７８",
        "0012345678\u200b",
        "OO12345678",
        "DN4010012345678",
        "dn 4 01 0012 345 678",
        "{GD-4-79-0012345678}",
    ],
)
def test_code_as_people_write_it(browser, app, citizen, login, typed):
    assert sign_in(browser, typed, CHOSEN)["Location"] == "/"
    assert app.sign_in(typed, CHOSEN).status_code == 200


@pytest.mark.parametrize(
    "typed", ["12345678", "00012345678", "012345678", "4010012345678", "DNA010012345678", "DN40100123456789"]
)
def test_leading_zeros_matter(browser, app, login, typed):
    assert sign_in(browser, typed, CHOSEN).status_code == 200
    assert app.sign_in(typed, CHOSEN).status_code == 400


def test_issued_password_with_spaces_in_it(browser, citizen, open_case):
    password = open_case().password
    assert (
        sign_in(browser, citizen.code, f" {password[:3]} {password[3:]}")["Location"] == "/choose-password/"
    )


def test_operator_signs_in_by_name(browser, app, operator):
    assert sign_in(browser, "thu.ha", "bảy con cò trắng")["Location"] == "/"
    assert "thu.ha" in browser.get("/").content.decode()
    assert app.sign_in("thu.ha", "bảy con cò trắng").status_code == 200
    assert sign_in(Client(), "THU.HA", "bảy con cò trắng").status_code == 200  # names are exact


def test_operator_cannot_have_the_name_of_a_code(citizen):
    with pytest.raises(IntegrityError), transaction.atomic():
        Login(username=citizen.code, is_staff=True).save()


def test_who_takes_long_to_choose_need_not_sign_in_again(browser, app, citizen, open_case):
    """What the first page leads on to, an e-mail address, wants a fresh sign-in; to choose is one."""
    opened = open_case()
    sign_in(browser, citizen.code, opened.password)
    session = browser.session
    [record] = session["account_authentication_methods"]
    session["account_authentication_methods"] = [{**record, "at": record["at"] - 50 * 60}]
    session.save()
    browser.post("/choose-password/", {"new_password": CHOSEN})
    assert browser.get("/account/email/add/").status_code == 200
    [record] = browser.session["account_authentication_methods"]
    assert (record["method"], time.time() - record["at"] < 60) == ("password", True)


def test_old_password_works_until_another_is_chosen(citizen, login, open_case):
    opened = open_case()
    assert sign_in(Client(), citizen.code, CHOSEN)["Location"] == "/"
    assert Case.objects.get().ended_at is None

    phone = Client()
    sign_in(phone, citizen.code, opened.password)
    assert sign_in(Client(), citizen.code, CHOSEN)["Location"] == "/"
    phone.post("/choose-password/", {"new_password": "một mật khẩu khác"})
    assert sign_in(Client(), citizen.code, CHOSEN).status_code == 200
    assert sign_in(Client(), citizen.code, "một mật khẩu khác")["Location"] == "/"


def test_choosing_ends_everything_that_came_before(app, citizen, login, open_case):
    other_browser, other_app, other_pending = Client(), App(), App()
    sign_in(other_browser, citizen.code, CHOSEN)
    other_app.sign_in(citizen.code, CHOSEN)
    opened = open_case()
    sign_in(Client(), citizen.code, wrong(opened))
    other_pending.sign_in(citizen.code, opened.password)
    assert is_in(other_browser)
    assert other_app.is_in
    assert Device.objects.count() == 2

    app.sign_in(citizen.code, opened.password)
    assert app.choose("một mật khẩu khác").status_code == 200

    assert Login.objects.get().stamp != login.stamp
    assert app.is_in
    assert not is_in(other_browser)
    assert not other_app.is_in
    answer = other_pending.choose("của người khác")
    assert answer.status_code == 409
    assert answer.json()["errors"][0]["code"] == "case_ended"
    assert other_pending.choose("của người khác").status_code == 401
    assert [device.login_id for device in Device.objects.all()] == [login.pk]  # the one that chose
    assert not Guess.objects.filter(cleared=False).exists()
    assert app.is_in


@pytest.mark.parametrize("path", ["/", "/logout/", "/_allauth/app/v1/auth/session"])
def test_nothing_but_choosing_completes_a_pending_sign_in(browser, app, citizen, open_case, path):
    opened = open_case()
    sign_in(browser, citizen.code, opened.password)
    answer = browser.get(path, headers={"X-Session-Token": browser.cookies["caplai_session"].value})
    assert answer.status_code in (302, 401)
    assert "0327xxx686" not in answer.content.decode()

    app.sign_in(citizen.code, opened.password)
    assert app.call("GET", "auth/choose_password").status_code == 401
    assert app.call("GET", "auth/session").status_code == 401
    assert not is_in(browser)
    assert Case.objects.get().ended_at is None


@pytest.mark.parametrize(
    "path",
    ["signup/", "password/reset/", "password/change/", "password/set/", "email/", "inactive/", "reauthenticate/",
     "accounts/login/", "accounts/signup/", "_allauth/app/v1/auth/signup", "_allauth/app/v1/auth/password/request",
     "_allauth/app/v1/auth/reauthenticate", "_allauth/app/v1/account/password/change",
     "_allauth/app/v1/auth/code/confirm", "_allauth/browser/v1/auth/login", "_allauth/openapi.html"],
)  # fmt: skip
def test_what_allauth_has_and_we_do_not_offer(browser, login, path):
    browser.force_login(login)
    assert browser.get(f"/{path}").status_code == 404
    assert browser.post(f"/{path}", {}).status_code == 404


def test_planted_session_is_worth_nothing(app, citizen, open_case):
    """Whoever knows the session key of before does not share the pending sign-in, nor the session after it."""
    opened = open_case()
    planted = App()
    planted.sign_in(citizen.code, opened.password)
    app.session = planted.session
    app.sign_in(citizen.code, opened.password)
    assert app.session != planted.session
    assert planted.choose("của kẻ gian").status_code in (401, 410)
    pending = app.session
    assert app.choose(CHOSEN).status_code == 200
    assert app.session != pending


def test_without_a_pending_sign_in_there_is_nothing_to_choose(browser, app, db):
    assert browser.get("/choose-password/")["Location"] == "/login/"
    assert browser.post("/choose-password/", {"new_password": CHOSEN})["Location"] == "/login/"
    assert app.choose(CHOSEN).status_code == 401


def test_form_sent_twice_does_no_harm(browser, citizen, open_case):
    opened = open_case()
    sign_in(browser, citizen.code, opened.password)
    browser.post("/choose-password/", {"new_password": CHOSEN})
    stored = Login.objects.get().password

    answer = browser.post("/choose-password/", {"new_password": CHOSEN})
    assert (answer.status_code, answer["Location"]) == (302, "/")
    assert is_in(browser)
    assert Login.objects.get().password == stored


def test_form_sent_twice_at_once_is_stored_once(citizen, open_case):
    """Both requests read the pending session before either is done."""
    opened = open_case()
    rules = configured()
    login = credentials.check(
        citizen.code, opened.password, device=None, network="1.2.3.4", rules=rules
    ).login
    assert login is not None
    twin = Login.objects.get(pk=login.pk)

    def choose(who: Login, password: str, attempt: str) -> using.Choice:
        return using.choose(who, opened.case.id, password, attempt=attempt, rules=rules)

    assert choose(login, CHOSEN, "a") is using.Choice.CHOSEN
    assert choose(twin, CHOSEN, "a") is using.Choice.CHOSEN
    assert twin.get_session_auth_hash() == login.get_session_auth_hash()
    assert choose(twin, "của người khác", "b") is using.Choice.ENDED
    assert Login.objects.get().check_password(CHOSEN)
    assert Event.objects.count() == 1
