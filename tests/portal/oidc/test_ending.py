"""Everything that ends a person's sessions ends what clients were given; nothing lives beside it."""

import re
import threading
import time

import pytest
from allauth.idp.oidc.models import Token
from django.db import connections
from django.test import Client as Browser

from caplai.portal.oidc import clients
from caplai.portal.oidc.validator import Validator
from caplai.service import federation, sittings
from caplai.service.report import BY_SESSION, report
from caplai.store.models import Account, Login, new_stamp
from tests.portal.oidc.conftest import Party, agree, arrived, userinfo
from tests.signin.conftest import CHOSEN, sign_in


@pytest.fixture
def inside(browser, citizen, login):
    sign_in(browser, citizen.code, CHOSEN)
    return browser


def use_the_case(citizen, open_case):
    """The citizen texts, signs in with what comes back, and chooses a password."""
    other = Browser()
    sign_in(other, citizen.code, open_case().password)
    assert other.post("/choose-password/", {"new_password": "bà ngoại nấu phở"})["Location"] == "/"


def change_the_password(citizen, open_case):
    other = Browser()
    sign_in(other, citizen.code, CHOSEN)
    given = {"current_password": CHOSEN, "new_password": "bà ngoại nấu phở"}
    assert other.post("/account/password/", given)["Location"] == "/"


def sign_out_elsewhere(citizen, open_case):
    other = Browser()
    sign_in(other, citizen.code, CHOSEN)
    assert other.post("/account/devices/others/")["Location"] == "/account/devices/"


ENDINGS = {
    "a case is used": use_the_case,
    "the password is changed": change_the_password,
    "everybody else is signed out": sign_out_elsewhere,
    "this was not me": lambda citizen, _: report(citizen.code, BY_SESSION),
    "the login is switched off": lambda citizen, _: Login.objects.update(is_active=False),
    "the account is closed": lambda citizen, _: Account.objects.update(state="closed"),
    "another way that changes the stamp": lambda citizen, _: Login.objects.update(stamp=new_stamp()),
}


@pytest.mark.parametrize("end", ENDINGS.values(), ids=ENDINGS)
def test_no_code_and_no_token_lives_on(inside, citizen, open_case, end):
    clinic = Party()
    tokens = clinic.tokens(inside)
    code = agree(inside, clinic.asks())["code"]
    assert userinfo(tokens["access_token"]).status_code == 200
    assert clinic.is_active(tokens["access_token"]) and clinic.is_active(tokens["refresh_token"])
    end(citizen, open_case)
    assert clinic.exchange(code).json() == {"error": "invalid_grant"}
    assert clinic.refresh(tokens["refresh_token"]).json() == {"error": "invalid_grant"}
    assert userinfo(tokens["access_token"]).status_code == 401
    assert not clinic.is_active(tokens["access_token"]) and not clinic.is_active(tokens["refresh_token"])


@pytest.fixture
def phone(citizen, login):
    """Another browser that is in, which somebody may steal."""
    other = Browser()
    sign_in(other, citizen.code, CHOSEN)
    return other


def end_by_page(owner, citizen, app=None):
    page = owner.get("/account/devices/").content.decode()
    assert "/account/apps/" in page
    [seat] = re.findall(r'name="seat" value="(\w+)"', page)
    assert owner.post("/account/devices/end/", {"seat": seat})["Location"] == "/account/devices/"


def end_by_app(owner, citizen, app):
    app.sign_in(citizen.code, CHOSEN)
    login = Login.objects.get()
    [there] = [
        seat
        for seat in sittings.seats(login, owner.session.row_key)
        if not seat.here and "app" not in seat.client
    ]
    assert app.call("DELETE", f"account/devices/{there.name}").status_code == 200


@pytest.mark.parametrize("end", [end_by_page, end_by_app])
@pytest.mark.parametrize("is_in", [True, False], ids=["signed in", "remembered"])
def test_signing_a_device_out_ends_what_was_granted_from_it(inside, phone, app, citizen, end, is_in):
    clinic = Party()
    mine, theirs = clinic.tokens(inside), clinic.tokens(phone)
    theirs = clinic.refresh(theirs["refresh_token"]).json()
    code = agree(phone, clinic.asks())["code"]
    if not is_in:  # the session is over, the device is still remembered
        phone.post("/logout/")
        assert clinic.is_active(theirs["refresh_token"])
    end(inside, citizen, app)
    assert clinic.exchange(code).json() == {"error": "invalid_grant"}
    assert clinic.refresh(theirs["refresh_token"]).json() == {"error": "invalid_grant"}
    assert userinfo(theirs["access_token"]).status_code == 401
    assert userinfo(mine["access_token"]).status_code == 200
    assert clinic.refresh(mine["refresh_token"]).status_code == 200


def test_who_leaves_a_browser_stays_signed_in_to_the_service(inside):
    clinic = Party()
    tokens = clinic.tokens(inside)
    inside.post("/logout/")
    assert userinfo(tokens["access_token"]).status_code == 200
    assert clinic.refresh(tokens["refresh_token"]).status_code == 200


def test_a_session_that_is_ended_meanwhile_grants_nothing(inside, phone, citizen, monkeypatch):
    """The session was read, then ended from elsewhere, then the code written."""
    clinic, at_last = Party(), Validator.save_authorization_code

    def ended_first(self, *args, **kwargs):
        monkeypatch.undo()
        end_by_page(inside, citizen)
        at_last(self, *args, **kwargs)

    clinic.tokens(inside)
    page = phone.get(clinic.asks()).content.decode()
    request = re.search(r'name="request" value="([^"]+)"', page)[1]
    monkeypatch.setattr(Validator, "save_authorization_code", ended_first)
    code = arrived(phone.post("/identity/o/authorize", {"request": request, "action": "grant"}))["code"]
    assert clinic.exchange(code).json() == {"error": "invalid_grant"}


def test_tokens_of_an_older_version_know_no_place_and_live_on(inside):
    clinic = Party()
    tokens = clinic.tokens(inside)
    for row in Token.objects.all():
        row.data = {name: value for name, value in row.data.items() if name not in ("sitting", "device")}
        row.save()
    assert clinic.refresh(tokens["refresh_token"]).status_code == 200


def test_an_agreement_ends_with_them(inside, citizen, open_case):
    clinic = Party()
    clinic.tokens(inside)
    use_the_case(citizen, open_case)
    again = Browser()
    sign_in(again, citizen.code, "bà ngoại nấu phở")
    assert arrived(again.get(clinic.asks(prompt="none")))["error"] == "consent_required"


def test_a_code_that_was_asked_for_in_an_ended_session_is_worth_nothing(inside, citizen):
    """The session was read, then the case used, then the code written: it carries the old stamp."""
    clinic = Party()
    page = inside.get(clinic.asks())
    request = page.context["form"]["request"].value()
    answer = inside.post("/identity/o/authorize", {"request": request, "action": "grant"})
    Token.objects.update(data={**Token.objects.get().data, "stamp": "the one before"})
    assert clinic.exchange(arrived(answer)["code"]).json() == {"error": "invalid_grant"}


def test_what_the_agency_removes_has_no_tokens(inside):
    clinic = Party()
    tokens = clinic.tokens(inside)
    clients.remove(clinic.id)
    assert userinfo(tokens["access_token"]).status_code == 401
    assert not Token.objects.exists()


def test_a_scope_that_the_agency_takes_away_is_gone_from_what_lives(inside, citizen):
    office = Party(scopes=["phone", "bhxh_code"])
    asked = {"scope": "openid phone bhxh_code"}
    tokens = office.tokens(inside, **asked)
    code = agree(inside, office.asks(**asked))["code"]
    before = userinfo(tokens["access_token"]).json()
    assert before["phone_number"] == "+84327000686" and before["bhxh_code"] == citizen.code
    knows = "mã số BHXH của bạn"
    assert knows in inside.get("/account/apps/").content.decode()
    clients.change(office.id, scopes=["phone"])
    left = {name: before[name] for name in before if name != "bhxh_code"}
    assert userinfo(tokens["access_token"]).json() == left
    told = office.call("introspect", token=tokens["access_token"]).json()
    assert told["scope"] == "openid phone"
    assert knows not in inside.get("/account/apps/").content.decode()
    wide = office.refresh(tokens["refresh_token"], scope="openid bhxh_code").json()
    assert wide["error"] == "invalid_scope"
    for new in (office.refresh(tokens["refresh_token"]).json(), office.exchange(code).json()):
        assert new["scope"] == "openid phone"
        assert userinfo(new["access_token"]).json() == left
    assert arrived(inside.get(office.asks(prompt="none", **asked)))["error"] == "invalid_scope"


def test_a_secret_that_was_replaced_is_none(inside):
    clinic = Party()
    tokens = clinic.tokens(inside)
    old, clinic.secret = clinic.secret, clients.rotate_secret(clinic.id)
    assert clinic.refresh(tokens["refresh_token"], secret=old).status_code == 401
    assert clinic.refresh(tokens["refresh_token"]).status_code == 200


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", ["code", "refresh_token"])
def test_of_many_who_bring_it_at_once_one_gets_tokens(citizen, login, browser, kind):
    clinic = Party()
    sign_in(browser, citizen.code, CHOSEN)
    value = agree(browser, clinic.asks())["code"] if kind == "code" else clinic.tokens(browser)[kind]
    answers, ready = [], threading.Barrier(6)

    def bring():
        ready.wait()
        answers.append((clinic.exchange if kind == "code" else clinic.refresh)(value).status_code)
        connections.close_all()

    threads = [threading.Thread(target=bring) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 400, 400, 400, 400, 400]
    assert not Token.objects.filter(type="at").exists()  # somebody else had it, too


@pytest.mark.django_db(transaction=True)
def test_a_thief_who_renews_all_the_time_does_not_slip_through(citizen, login, browser, phone):
    clinic = Party()
    sign_in(browser, citizen.code, CHOSEN)
    token, renewed = clinic.tokens(phone)["refresh_token"], []

    def renew(token):
        until = time.monotonic() + 20
        try:
            while time.monotonic() < until and (answer := clinic.refresh(token)).status_code == 200:
                token = answer.json()["refresh_token"]
                renewed.append(token)
        finally:
            connections.close_all()

    thief = threading.Thread(target=renew, args=[token])
    thief.start()
    while len(renewed) < 5 and thief.is_alive():
        time.sleep(0.01)  # the other thread tells by its list alone that it renews
    [there] = [seat for seat in sittings.seats(login, browser.session.row_key) if not seat.here]
    browser.post("/account/devices/end/", {"seat": there.name})
    thief.join()
    assert not clinic.is_active(renewed[-1])
    assert not Token.objects.exists()


def test_two_clients_who_ask_at_once_hear_names_of_one_seed(login):
    one, two = Login.objects.get(), Login.objects.get()
    assert federation.subject(one, "a") == federation.subject(two, "a") != federation.subject(two, "b")
