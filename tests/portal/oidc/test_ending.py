"""Everything that ends a person's sessions ends what clients were given; nothing lives beside it."""

import threading

import pytest
from allauth.idp.oidc.models import Token
from django.db import connections
from django.test import Client as Browser

from caplai.portal.oidc import clients
from caplai.service import federation
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
    knows = "mã số bảo hiểm xã hội của bạn"
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


def test_two_clients_who_ask_at_once_hear_names_of_one_seed(login):
    one, two = Login.objects.get(), Login.objects.get()
    assert federation.subject(one, "a") == federation.subject(two, "a") != federation.subject(two, "b")
