"""Whether this device is remembered: the box of the sign-in, by whatever way in, and the way to be forgotten."""

import json

import pytest
from django.test import Client

from caplai.service import arriving, sittings
from caplai.store.models import Account, Device, Login, Sitting
from tests.signin.conftest import CHOSEN, App, is_in, sign_in
from tests.signin.softkey import HERE, SoftKey, asked

BOX = '<input type="checkbox" name="remember"'
COOKIE = "caplai_device"


@pytest.fixture
def browser() -> Client:
    return Client(**HERE)


def is_remembered(browser: Client) -> bool:
    """As its cookies say; that of a device which nobody knows is not kept."""
    kept = bool(browser.cookies.get(COOKIE) and browser.cookies[COOKIE].value)
    assert kept == Device.objects.exists()
    return kept


@pytest.mark.parametrize("ticked", [True, False])
def test_by_password(browser, citizen, login, ticked):
    page = browser.get("/login/").content.decode()
    assert BOX in page and "checked" in page.partition(BOX)[2].partition(">")[0]
    sign_in(browser, citizen.code, CHOSEN, remember=ticked)
    assert is_in(browser)
    assert is_remembered(browser) is ticked
    [seat] = sittings.seats(login, browser.session.row_key)
    assert (seat.here, seat.signed_in, seat.remembered) == (True, True, ticked)


def test_a_box_that_was_unticked_stays_so_after_an_error(browser, citizen, login):
    page = sign_in(browser, citizen.code, "wrong", remember=False).content.decode()
    assert "checked" not in page.partition(BOX)[2].partition(">")[0]


@pytest.mark.parametrize("ticked", [True, False])
def test_by_passkey(browser, login, ticked):
    key = SoftKey.of(login, "iPhone")
    shown = {"credential": json.dumps(key.show(asked(browser))), "remember": "on" if ticked else ""}
    browser.post("/login/passkey/", shown)
    assert is_in(browser)
    assert is_remembered(browser) is ticked


@pytest.mark.parametrize("by", ["password", "passkey"])
@pytest.mark.parametrize("ticked", [True, False])
def test_after_choosing_it_is_what_was_said_at_the_sign_in(browser, citizen, open_case, by, ticked):
    sign_in(browser, citizen.code, open_case().password, remember=ticked)
    page = browser.get("/choose-password/").content.decode()
    assert BOX not in page
    assert ('<input type="hidden" name="remember" value="on">' in page) is ticked
    if by == "password":
        browser.post("/choose-password/", {"new_password": CHOSEN, "remember": "" if ticked else "on"})
    else:
        made = SoftKey().make(asked(browser, "/choose-password/passkey/"))
        said = {"credential": json.dumps(made), "remember": "" if ticked else "on"}
        browser.post("/choose-password/passkey/", said)
    assert is_in(browser)
    assert is_remembered(browser) is ticked


@pytest.mark.parametrize("by", ["password", "passkey"])
@pytest.mark.parametrize("ticked", [True, False])
def test_who_comes_by_another_way_is_asked_there(browser, citizen, open_case, monkeypatch, by, ticked):
    """By a one-time code or an e-mail's link: nobody has seen the sign-in page's box."""
    opened = open_case()
    sign_in(browser, citizen.code, opened.password)
    session = browser.session
    pending = session["account_login"]
    pending["state"]["stages"]["choose_password"]["data"]["remembers"] = None
    session["account_login"] = pending
    session.save()
    box = {"remember": "on"} if ticked else {}
    assert BOX in browser.get("/choose-password/").content.decode()
    if by == "password":
        page = browser.post("/choose-password/", {"new_password": "x"}).content.decode()
        assert "checked" not in page.partition(BOX)[2].partition(">")[0]
        browser.post("/choose-password/", {"new_password": CHOSEN, **box})
    else:
        made = SoftKey().make(asked(browser, "/choose-password/passkey/"))
        browser.post("/choose-password/passkey/", {"credential": json.dumps(made), **box})
    assert is_in(browser)
    assert is_remembered(browser) is ticked


def test_an_app_is_remembered_whatever_it_says(app, citizen, open_case):
    app.sign_in(citizen.code, open_case().password)
    app.choose(CHOSEN)
    assert app.device
    again = App()
    body = {"username": citizen.code, "password": CHOSEN, "remember": False}
    assert again.call("POST", "auth/login", body).status_code == 200
    assert again.device
    assert Device.objects.count() == 2


def test_to_leave_the_box_empty_forgets_a_device_that_was_known(browser, citizen, login):
    sign_in(browser, citizen.code, CHOSEN)
    browser.post("/logout/")
    assert is_remembered(browser)
    sign_in(browser, citizen.code, CHOSEN, remember=False)
    assert is_in(browser)
    assert not is_remembered(browser)


def test_signing_out_may_forget_it(browser, citizen, login):
    sign_in(browser, citizen.code, CHOSEN)
    elsewhere = Client()
    sign_in(elsewhere, citizen.code, CHOSEN)
    assert 'name="forget"' in browser.get("/").content.decode()
    page = browser.post("/logout/", {"forget": "yes"}, follow=True).content.decode()
    assert "Bạn đã đăng xuất. Thiết bị này không còn được ghi nhớ." in page
    assert not is_in(browser)
    assert browser.cookies[COOKIE].value == ""
    assert is_in(elsewhere)
    assert Device.objects.count() == 1
    assert Sitting.objects.count() == 1
    # It says nothing of a device where there is none.
    sign_in(browser, citizen.code, CHOSEN, remember=False)
    assert 'name="forget"' not in browser.get("/").content.decode()
    assert browser.post("/logout/", {"forget": "yes"})["Location"] == "/login/"


def test_a_family_browser_is_forgotten_by_one_and_not_by_all(browser, citizen, login):
    child = Account.objects.create(code="9999999999", phone=citizen.phone, state="approved")
    hers = Login.objects.create(username=child.code, account=child, password=login.password)
    for code in (child.code, citizen.code):
        sign_in(browser, code, CHOSEN)
        token = browser.cookies[COOKIE].value
        if code == child.code:
            browser.post("/logout/")
    browser.post("/logout/", {"forget": "yes"})
    assert browser.cookies[COOKIE].value == token
    assert [device.login_id for device in Device.objects.all()] == [hers.pk]
    sign_in(browser, citizen.code, CHOSEN, remember=False)
    assert browser.cookies[COOKIE].value == token
    assert [device.login_id for device in Device.objects.all()] == [hers.pk]
    assert arriving.signed_in(hers, token) == token


def test_nobody_forgets_a_device_who_is_not_in(browser, citizen, login, open_case):
    sign_in(browser, citizen.code, CHOSEN)
    browser.post("/logout/")
    browser.post("/logout/", {"forget": "yes"})
    sign_in(browser, citizen.code, open_case().password)
    browser.post("/logout/", {"forget": "yes"})
    assert is_remembered(browser)
