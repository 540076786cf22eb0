"""One browser and several people: what one of them types is never stored, opened or shown for another."""

import json

import pytest
from django.test import Client

from caplai.store.models import Account, Case, Login, Sitting
from tests.signin.conftest import CHOSEN, Opened, is_in, sign_in, wrong
from tests.signin.softkey import HERE, SoftKey, asked

HERS = "con cò bay lả bay la"
SIGN_IN = 'name="password"'


@pytest.fixture
def child(citizen) -> Account:
    """Of the same phone."""
    return Account.objects.create(code="0099999999", phone=citizen.phone, state="approved")


@pytest.fixture
def hers(child, open_case) -> Opened:
    return open_case(account=child.code)


@pytest.fixture
def browser(browser, citizen, open_case) -> Client:
    """The mother's choice is pending in it."""
    assert sign_in(browser, citizen.code, open_case().password)["Location"] == "/choose-password/"
    return browser


def test_what_is_typed_counts_and_not_who_was_choosing(browser, citizen, child, hers):
    assert sign_in(browser, child.code, hers.password)["Location"] == "/choose-password/"
    page = browser.get("/choose-password/").content.decode()
    assert child.code in page and citizen.code not in page
    browser.post("/choose-password/", {"new_password": HERS, "username": child.code})
    assert child.code in browser.get("/").content.decode()
    assert sign_in(Client(), child.code, HERS)["Location"] == "/"
    assert sign_in(Client(), citizen.code, HERS).status_code == 200
    assert Case.objects.get(account=citizen.code).ended_at is None


def test_a_wrong_password_of_another_is_told_and_leads_nowhere(browser, citizen, child, hers):
    answer = sign_in(browser, child.code, wrong(hers))
    assert answer.status_code == 200
    assert "Mã số BHXH hoặc mật khẩu chưa đúng." in answer.content.decode()
    assert browser.get("/choose-password/")["Location"] == "/login/"


def test_the_sign_in_page_offers_to_go_on(browser, citizen):
    for path in ("/", "/login/"):
        page = browser.get(path, follow=True).content.decode()
        assert SIGN_IN in page
        assert 'href="/choose-password/"' in page
        assert "tận cùng là 5678" in page
        assert citizen.code not in page
    assert browser.get("/choose-password/").status_code == 200
    Case.objects.update(ended_as="used", ended_at="2026-01-01T00:00Z")
    assert 'href="/choose-password/"' not in browser.get("/login/").content.decode()
    assert 'href="/choose-password/"' not in Client().get("/login/").content.decode()


def test_a_page_of_the_one_before_stores_nothing_for_the_one_after(browser, citizen, child, hers):
    """Two tabs: the mother's page to choose is still open when the child signs in in the other."""
    sign_in(browser, child.code, hers.password)
    typed = {"new_password": CHOSEN, "username": citizen.code}
    page = browser.post("/choose-password/", typed, follow=True).content.decode()
    assert "là của tài khoản khác" in page
    assert child.code in page
    assert Case.objects.get(account=child.code).ended_at is None

    browser.post("/choose-password/", {"new_password": HERS, "username": child.code})
    page = browser.post("/choose-password/", typed, follow=True).content.decode()
    assert "là của tài khoản khác" in page
    assert sign_in(Client(), child.code, HERS)["Location"] == "/"


def test_a_finger_of_another_is_hers(citizen, child, open_case):
    login = Login.objects.create(username=child.code, account=child)
    key = SoftKey.of(login, "iPhone")
    browser = Client(**HERE)
    sign_in(browser, citizen.code, open_case().password)
    browser.post("/login/passkey/", {"credential": json.dumps(key.show(asked(browser)))})
    assert child.code in browser.get("/").content.decode()
    assert browser.get("/choose-password/")["Location"] == "/"


# --- where one of them is signed in ---------------------------------------------------------------------


@pytest.fixture
def signed_in(login, citizen) -> Client:
    browser = Client(**HERE)
    assert sign_in(browser, citizen.code, CHOSEN)["Location"] == "/"
    return browser


def test_who_is_in_is_led_to_the_account(signed_in):
    assert signed_in.get("/login/")["Location"] == "/"
    assert signed_in.get("/login/?next=/account/devices/")["Location"] == "/account/devices/"


def test_a_page_of_before_signs_in_whom_it_was_filled_in_for(signed_in, citizen, child, hers):
    """What was right ends the session of who was in; what was not changes nothing."""
    assert sign_in(signed_in, child.code, wrong(hers)).status_code == 200
    assert citizen.code in signed_in.get("/").content.decode()
    assert sign_in(signed_in, child.code, hers.password)["Location"] == "/choose-password/"
    assert not is_in(signed_in)
    assert not Sitting.objects.exists()
    signed_in.post("/choose-password/", {"new_password": HERS, "username": child.code})
    assert child.code in signed_in.get("/").content.decode()

    assert sign_in(signed_in, citizen.code, CHOSEN)["Location"] == "/"
    assert citizen.code in signed_in.get("/").content.decode()
    assert [sitting.login_id for sitting in Sitting.objects.all()] == [Login.objects.get(account=citizen).pk]


def test_so_does_a_finger(signed_in, citizen, child):
    hers = Login.objects.create(username=child.code, account=child)
    key = SoftKey.of(hers, "iPhone")
    shown = json.dumps(key.show(asked(signed_in)))
    assert signed_in.post("/login/passkey/", {"credential": "nothing"})["Location"] == "/login/"
    assert citizen.code in signed_in.get("/").content.decode()
    assert signed_in.post("/login/passkey/", {"credential": shown})["Location"] == "/"
    assert child.code in signed_in.get("/").content.decode()
    assert [sitting.login_id for sitting in Sitting.objects.all()] == [hers.pk]
