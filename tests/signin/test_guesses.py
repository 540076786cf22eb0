"""The budgets of wrong guesses, the throttles, and what a host without a key does."""

import dataclasses
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from argon2 import low_level
from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.db import connection
from django.test import Client
from django.utils import timezone

from caplai.domain.grammar import Reissue
from caplai.domain.issuing import DIGITS, LETTERS, Inputs, Keyring, derive
from caplai.service import credentials, using
from caplai.service.arriving import signed_in
from caplai.service.credentials import Outcome
from caplai.service.reissue import reissue
from caplai.service.requests import ReplyTo, Request
from caplai.signin.backend import rules as configured
from caplai.store.db import connect
from caplai.store.keyring import Agreed, Token
from caplai.store.models import Account, Case, Device, Event, Guess, Login, Switch
from caplai.wiring import reissue_rules
from tests.signin.conftest import CHOSEN, App, sign_in, wrong

NETWORK = "198.51.100.7"


def guess(
    code: str, password: str, rules=None, *, device: str | None = None, network: str = NETWORK
) -> Outcome:
    return credentials.check(
        code, password, device=device, network=network, rules=rules or configured()
    ).outcome


def book(account: str | None, count: int, **fields) -> None:
    """Failures of before, without the time that their hashes took. `ago`: how long before."""
    at = timezone.now() - fields.pop("ago", timedelta())
    Guess.objects.bulk_create(
        Guess(account=account, at=at, network=fields.get("network", "elsewhere"), cleared=False,
              device=fields.get("device"))
        for _ in range(count)
    )  # fmt: skip


def test_twenty_wrong_guesses_close_six_digits_to_unknown_devices(citizen, login, open_case):
    opened = open_case()
    book(citizen.code, 18)
    assert guess(citizen.code, wrong(opened)) is Outcome.WRONG
    assert guess(citizen.code, opened.password) is Outcome.ISSUED
    assert guess(citizen.code, wrong(opened)) is Outcome.WRONG
    assert guess(citizen.code, opened.password) is Outcome.WRONG
    assert guess(citizen.code, CHOSEN) is Outcome.SIGNED_IN


def test_strangers_do_not_end_a_case_under_its_owners_feet(app, citizen, open_case):
    opened = open_case()
    app.sign_in(citizen.code, opened.password)
    book(citizen.code, 19)
    assert guess(citizen.code, wrong(opened)) is Outcome.WRONG
    assert guess(citizen.code, opened.password) is Outcome.WRONG
    assert Case.objects.get().ended_at is None
    assert app.choose(CHOSEN).status_code == 200


@pytest.mark.parametrize(
    ("length", "alphabet", "open_"),
    [(6, DIGITS, False), (11, DIGITS, False), (12, DIGITS, True), (8, LETTERS, False), (10, LETTERS, True)],
)
def test_how_many_passwords_there_are_decides_whether_guesses_count(
    citizen, open_case, length, alphabet, open_
):
    opened = open_case(length=length, alphabet=alphabet)
    book(citizen.code, 20)
    assert guess(citizen.code, opened.password) is (Outcome.ISSUED if open_ else Outcome.WRONG)


def test_used_up_budget_refuses_six_digits_while_the_case_is_open(citizen, open_case):
    opened = open_case()
    book(citizen.code, 20)
    assert guess(citizen.code, opened.password) is Outcome.WRONG


def test_guesses_count_across_cases_and_only_for_their_window(citizen, open_case):
    book(citizen.code, 19, ago=timedelta(hours=73))
    book(citizen.code, 19, ago=timedelta(hours=71))
    opened = open_case()
    assert guess(citizen.code, opened.password) is Outcome.ISSUED
    book(citizen.code, 1)
    assert guess(citizen.code, opened.password) is Outcome.WRONG


def test_after_it_the_next_case_is_long_and_strangers_cannot_block_it(citizen, lan_texts, open_case):
    book(citizen.code, 20)
    case = lan_texts()
    assert (case.length, case.alphabet) == (
        settings.CAPLAI.password.long_length,
        settings.CAPLAI.password.long_alphabet,
    )
    case.delete()

    opened = open_case(length=10)
    for _ in range(3):
        assert guess(citizen.code, wrong(opened)) is Outcome.WRONG
    assert Case.objects.get().ended_at is None
    assert guess(citizen.code, opened.password.lower()) is Outcome.ISSUED


@pytest.fixture
def lan_texts(transactional_db, citizen):
    """Let the re-issue open a case for the citizen, as her text would."""

    def text() -> Case:
        """Her case that is open then."""
        with connect() as conn:
            rules = reissue_rules(settings.CAPLAI, settings.KEYRING, conn)
            reply_to = ReplyTo("link", "8079", "84327000686")
            with conn.transaction():
                reissue(
                    conn,
                    [Request(Reissue(citizen.code), "sms", citizen.phone, citizen.phone, reply_to)],
                    rules,
                )
        return Case.objects.get(ended_at=None)

    return text


def test_known_device_has_a_budget_of_its_own(citizen, login, open_case):
    token = signed_in(login, None)
    device = Device.objects.get().pk
    opened = open_case()
    book(citizen.code, 20)
    assert guess(citizen.code, opened.password) is Outcome.WRONG
    assert guess(citizen.code, opened.password, device=token) is Outcome.ISSUED

    book(citizen.code, 19, device=device)
    assert guess(citizen.code, wrong(opened), device=token) is Outcome.WRONG
    assert guess(citizen.code, opened.password, device=token) is Outcome.WRONG
    assert guess(citizen.code, CHOSEN, device=token) is Outcome.SIGNED_IN


def test_a_known_device_that_used_up_its_guesses_is_as_an_unknown_one(citizen, login, open_case):
    """A forgetful owner: twenty wrong ones on her own phone leave her what every stranger has, and no less."""
    token = signed_in(login, None)
    opened = open_case()
    book(citizen.code, 20, device=Device.objects.get().pk)
    assert guess(citizen.code, opened.password, device=token) is Outcome.ISSUED
    assert guess(citizen.code, wrong(opened), device=token) is Outcome.WRONG
    assert Guess.objects.latest("pk").device is None
    book(citizen.code, 18)
    assert guess(citizen.code, opened.password, device=token) is Outcome.ISSUED
    assert guess(citizen.code, wrong(opened)) is Outcome.WRONG
    assert guess(citizen.code, opened.password, device=token) is Outcome.WRONG


def test_nor_then_is_she_without_a_way_for_her_next_case_is_long(citizen, login, lan_texts):
    token = signed_in(login, None)
    book(citizen.code, 20, device=Device.objects.get().pk)
    assert lan_texts().length == 6
    for _ in range(20):
        assert guess(citizen.code, "000000x", device=token, network="hers") is Outcome.WRONG
    case = lan_texts()
    assert case.length == settings.CAPLAI.password.long_length
    key = settings.KEYRING.ring("issuing").keys[case.key]
    password = derive(key, Inputs(case.version, case.id, case.account, case.length, case.alphabet))
    assert guess(citizen.code, password, device=token) is Outcome.ISSUED


@pytest.mark.parametrize("order", ["known first", "unknown first", "by turns"])
def test_who_has_a_known_device_has_forty_and_no_more(citizen, login, open_case, monkeypatch, order):
    """A thief with the phone, with its token and without: twenty as it, twenty as everybody."""
    token = signed_in(login, None)
    other = signed_in(login, None)
    opened = open_case()
    matches, compared = credentials.matches, []
    monkeypatch.setattr(
        credentials, "matches", lambda *given: compared.append(given[1].case_id) or matches(*given)
    )
    monkeypatch.setattr(credentials, "verify_password", lambda *_: (False, False))
    tokens = {"known first": [token] * 50 + [None] * 50, "unknown first": [None] * 50 + [token] * 50}
    for at, brought in enumerate(tokens.get(order, [token, None] * 50)):
        assert guess(citizen.code, wrong(opened), device=brought, network=f"net {at}") is Outcome.WRONG
    assert compared.count(opened.case.id) == 40
    for at in range(30):  # another device that she knows has its own
        guess(citizen.code, wrong(opened), device=other, network=f"net {at}")
    assert compared.count(opened.case.id) == 60


def test_device_is_known_to_its_own_account_only(citizen, login, open_case):
    other = Account.objects.create(code="9999999999", phone="+84327000111", state="approved")
    stranger = Login.objects.create(username=other.code, account=other, password="!")
    token = signed_in(stranger, None)
    opened = open_case()
    book(citizen.code, 20)
    assert guess(citizen.code, opened.password, device=token) is Outcome.WRONG


def test_devices_of_a_login_are_few(login):
    tokens = [signed_in(login, None) for _ in range(12)]
    assert Device.objects.count() == 10
    assert signed_in(login, tokens[-1]) == tokens[-1]
    assert signed_in(login, tokens[0]) != tokens[0]


def test_devices_that_are_used_are_kept(login):
    first = signed_in(login, None)
    for _ in range(12):
        signed_in(login, None)
        assert signed_in(login, first) == first


def test_family_browser_is_known_to_each_of_them(citizen, login, open_case):
    child = Account.objects.create(code="9999999999", phone=citizen.phone, state="approved")
    hers = Login.objects.create(username=child.code, account=child, password="!")
    token = signed_in(login, None)
    assert signed_in(hers, token) == token
    assert signed_in(login, token) == token
    assert Device.objects.count() == 2
    for account in (citizen, child):
        opened = open_case(account=account.code)
        book(account.code, 20)
        assert guess(account.code, opened.password, device=token) is Outcome.ISSUED


def test_token_that_we_did_not_give_out_is_no_device(login):
    assert signed_in(login, "made up") != "made up"


def test_completed_sign_in_clears_the_guesses(browser, citizen, login, open_case):
    opened = open_case()
    book(citizen.code, 15)
    assert sign_in(browser, citizen.code, CHOSEN)["Location"] == "/"
    assert not Guess.objects.filter(cleared=False).exists()
    book(citizen.code, 15)
    assert guess(citizen.code, opened.password) is Outcome.ISSUED


def test_issued_password_alone_clears_nothing(browser, citizen, open_case):
    opened = open_case()
    book(citizen.code, 15)
    sign_in(browser, citizen.code, opened.password)
    assert Guess.objects.filter(cleared=False).count() == 15


def test_right_password_is_no_guess(citizen, login):
    assert guess(citizen.code, CHOSEN) is Outcome.SIGNED_IN
    assert not Guess.objects.exists()


def test_sign_in_during_the_twentieth_wrong_guess_keeps_the_case(citizen, login, open_case, monkeypatch):
    opened = open_case()
    book(citizen.code, 19)
    verify = credentials.verify_password

    def slow(password, encoded):
        monkeypatch.undo()
        signed_in(login, None)
        return verify(password, encoded)

    monkeypatch.setattr(credentials, "verify_password", slow)
    assert guess(citizen.code, wrong(opened)) is Outcome.WRONG
    assert Case.objects.get().ended_at is None


def test_parallel_guesses_get_what_is_left_and_no_more(transactional_db, citizen, open_case, monkeypatch):
    """Sixteen at once with three left: three are compared with the issued password."""
    opened = open_case()
    book(citizen.code, 17)
    rules = configured()
    start = threading.Barrier(16)
    compared = []
    matches = credentials.matches
    monkeypatch.setattr(
        credentials, "matches", lambda *given: compared.append(given[1].case_id) or matches(*given)
    )

    def attempt(number: int) -> Outcome:
        try:
            start.wait()
            return guess(citizen.code, wrong(opened), rules, network=f"net {number}")
        finally:
            connection.close()

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(attempt, range(16))) == {Outcome.WRONG}
    assert compared.count(opened.case.id) == 3
    assert Guess.objects.filter(account=citizen.code).count() == 17 + 16
    assert guess(citizen.code, opened.password) is Outcome.WRONG


def test_unknown_and_known_codes_answer_alike(app, citizen, login, operator, open_case):
    opened = open_case()
    Account.objects.create(code="5555555555", phone="+84327000111", state="pending")
    names = ["9999999999", citizen.code, "5555555555", operator.username, "nobody", "777", "\u0666" * 10]
    pages = [sign_in(Client(), name, wrong(opened)).content.decode() for name in names]
    fields = r'name="(csrfmiddlewaretoken|username)" value="[^"]*"'
    assert len({re.sub(fields, "", page) for page in pages}) == 1
    answers = [app.sign_in(name, wrong(opened)) for name in names]
    assert {answer.status_code for answer in answers} == {400}
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].json()["errors"][0]["code"] == "username_password_mismatch"
    assert Guess.objects.filter(account=None).count() == 2 * (len(names) - 2)


@pytest.mark.parametrize("name", ["9999999999", "0012345678", "nobody"])
def test_every_wrong_password_costs_one_hash(citizen, open_case, monkeypatch, name):
    """With or without an account, a login, a password of its own: else the time would tell."""
    hashes = []
    original, verify = low_level.hash_secret, low_level.verify_secret
    monkeypatch.setattr(low_level, "hash_secret", lambda *a, **k: hashes.append("hash") or original(*a, **k))
    monkeypatch.setattr(
        "argon2._password_hasher.verify_secret", lambda *a: hashes.append("verify") or verify(*a)
    )
    opened = open_case()
    assert guess(name, wrong(opened)) is Outcome.WRONG
    assert len(hashes) == 1
    if name == citizen.code:
        login = Login.objects.create(username=name, account=citizen, password=make_password(CHOSEN))
        for password, outcome in [("wrong", Outcome.WRONG), (CHOSEN, Outcome.SIGNED_IN)]:
            hashes.clear()
            assert guess(login.username, password) is outcome
            assert hashes == ["verify"]


@pytest.mark.parametrize("state", ["pending", "closed"])
def test_only_approved_accounts_sign_in(browser, citizen, login, open_case, state):
    sign_in(browser, citizen.code, CHOSEN)
    opened = open_case()
    Account.objects.update(state=state)
    assert guess(citizen.code, opened.password) is Outcome.WRONG
    assert guess(citizen.code, CHOSEN) is Outcome.WRONG
    assert browser.get("/")["Location"] == "/login/"  # and sessions end


def test_login_that_is_switched_off(citizen, login, open_case):
    opened = open_case()
    Login.objects.update(is_active=False)
    assert guess(citizen.code, opened.password) is Outcome.WRONG
    assert guess(citizen.code, CHOSEN) is Outcome.WRONG


def test_login_that_is_switched_off_while_it_chooses(browser, app, citizen, login, open_case):
    opened = open_case()
    sign_in(browser, citizen.code, opened.password)
    app.sign_in(citizen.code, opened.password)
    stale = Login.objects.get()
    Login.objects.update(is_active=False)
    answer = app.choose("một mật khẩu khác")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (409, "case_ended")
    assert browser.post("/choose-password/", {"new_password": CHOSEN})["Location"] == "/login/"
    choice = using.choose(stale, opened.case.id, "của ai khác", attempt="a", rules=configured())
    assert choice is using.Choice.ENDED
    assert Login.objects.get().password == login.password
    assert Case.objects.get().ended_at is None


@pytest.mark.parametrize("changed", [{"is_active": False}, {"stamp": "another"}])
def test_login_that_changes_while_it_signs_in(app, citizen, login, monkeypatch, changed):
    """After the password was found right, before the session."""
    book(citizen.code, 3)
    check = credentials.check

    def slow(*given, **named):
        checked = check(*given, **named)
        Login.objects.update(**changed)
        return checked

    monkeypatch.setattr(credentials, "check", slow)
    assert sign_in(Client(), citizen.code, CHOSEN)["Location"] == "/login/"
    Login.objects.update(is_active=True, stamp=login.stamp)
    answer = app.sign_in(citizen.code, CHOSEN)
    assert answer.status_code == 401
    assert app.device is None
    assert not Device.objects.exists()
    assert Guess.objects.filter(cleared=False).count() == 3


def test_expired_case(citizen, open_case):
    opened = open_case(lifetime=timedelta(seconds=-1))
    assert guess(citizen.code, opened.password) is Outcome.WRONG


def test_host_without_the_issuing_key(app, citizen, login, open_case, rules_with):
    opened = open_case()
    rules_with(issuing=Keyring({"other": bytes(32)}, "other"))
    answer = app.sign_in(citizen.code, opened.password)
    assert (answer.status_code, answer["Retry-After"]) == (503, "60")
    assert sign_in(Client(), citizen.code, opened.password).status_code == 503
    assert not Guess.objects.exists()


def test_host_without_the_pepper(app, citizen, login, rules_with):
    rules_with(peppers=Keyring({"other": bytes(32)}, "other"))
    assert app.sign_in(citizen.code, CHOSEN).status_code == 503
    assert not Guess.objects.exists()


@pytest.mark.parametrize("kind", ["issuing", "peppers"])
def test_host_that_lacks_a_key_compares_nothing(citizen, login, open_case, monkeypatch, kind):
    """Else its strangers could try six digits for ever: what it compares, it could not count."""
    opened = open_case()
    rules = dataclasses.replace(configured(), **{kind: Keyring({"other": bytes(32)}, "other")})
    compared = []
    monkeypatch.setattr(credentials, "matches", lambda *given: compared.append(given[1].case_id))
    for password in [wrong(opened), opened.password, CHOSEN]:
        assert guess(citizen.code, password, rules) is Outcome.TRY_AGAIN
    assert opened.case.id not in compared
    assert not Guess.objects.exists()


def test_host_that_lacks_any_key_in_use_answers_everybody_alike(
    app, browser, citizen, login, operator, open_case, monkeypatch
):
    """Else a stranger could tell who has an open case: only those would be told to try again."""
    opened = open_case()
    keyring = settings.KEYRING
    lost = Token("issuing", "lost", "0123456789ab")
    monkeypatch.setattr(keyring, "_agreed", Agreed({}, keyring.readable() | {lost}))
    for name, password in [
        (citizen.code, opened.password),
        (citizen.code, wrong(opened)),
        (citizen.code, CHOSEN),
        ("9999999999", "wrong"),
        (operator.username, "bảy con cò trắng"),
    ]:
        assert app.sign_in(name, password).status_code == 503
        assert sign_in(browser, name, password).status_code == 503
    assert not Guess.objects.exists()
    monkeypatch.setattr(keyring, "_agreed", None)
    assert sign_in(browser, citizen.code, CHOSEN).status_code == 302


def test_missing_key_is_logged_once(app, citizen, login, rules_with, caplog):
    credentials._tell_missing.cache_clear()
    rules_with(peppers=Keyring({"other": bytes(32)}, "other"))
    for _ in range(2):
        assert app.sign_in(citizen.code, CHOSEN).status_code == 503
        assert sign_in(Client(), citizen.code, CHOSEN).status_code == 503
    said = [record.name for record in caplog.records if record.name != "caplai.http"]
    assert said == ["caplai.service.credentials"]
    assert settings.KEYRING.ring("pepper").active in caplog.text


def test_network_with_too_many_failures_waits(app, citizen, login, rules_with):
    rules_with(network_failures=3, network_window=timedelta(minutes=10))
    for _ in range(3):
        assert app.sign_in("9999999999", "wrong").status_code == 400
    began = time.monotonic()
    Guess.objects.update(at=timezone.now() - timedelta(minutes=9))
    answer = app.sign_in(citizen.code, CHOSEN)
    assert answer.status_code == 429
    assert 59 - (time.monotonic() - began) <= int(answer["Retry-After"]) <= 61
    page = sign_in(Client(), citizen.code, CHOSEN)
    assert page.status_code == 429
    # To the next whole minute: it is not to be told a time that is too early.
    free = timezone.localtime(Guess.objects.latest("at").at + timedelta(minutes=10))
    whole = free.replace(second=0, microsecond=0) + timedelta(minutes=1)
    assert f"sau {whole:%H:%M}." in page.content.decode()
    assert Guess.objects.count() == 3
    assert sign_in(Client(), citizen.code, CHOSEN, REMOTE_ADDR="203.0.113.9").status_code == 302
    Guess.objects.update(at=timezone.now() - timedelta(minutes=11))
    assert App().sign_in(citizen.code, CHOSEN).status_code == 200


@pytest.mark.parametrize("limit", ["network", "site"])
def test_no_strangers_failures_stop_a_password_that_cannot_be_guessed(citizen, login, open_case, limit):
    """It needs no hash, so no throttle. What is wrong waits as ever, and is not counted."""
    rules = dataclasses.replace(
        configured(), **{"network_failures" if limit == "network" else "site_failures_minute": 3}
    )
    book(None, 3, network=NETWORK)
    opened = open_case(length=10)
    for password in (wrong(opened), CHOSEN, "", "\ud800" * 200):
        assert guess(citizen.code, password, rules) is Outcome.THROTTLED
    assert Guess.objects.count() == 3
    assert guess(citizen.code, opened.password.lower(), rules) is Outcome.ISSUED
    for change in [{"ended_at": timezone.now(), "ended_as": "used"}, {"expires_at": timezone.now()}]:
        Case.objects.update(**{"ended_at": None, "ended_as": None, **change})
        assert guess(citizen.code, opened.password, rules) is Outcome.THROTTLED
    Case.objects.update(ended_at=None, ended_as=None, expires_at=timezone.now() + timedelta(hours=1))
    Login.objects.update(is_active=False)
    assert guess(citizen.code, opened.password, rules) is Outcome.THROTTLED
    Login.objects.update(is_active=True)
    Account.objects.update(state="closed")
    assert guess(citizen.code, opened.password, rules) is Outcome.THROTTLED
    Account.objects.update(state="approved")
    assert guess(citizen.code, opened.password, rules) is Outcome.ISSUED
    Case.objects.all().delete()
    short = open_case()
    assert guess(citizen.code, short.password, rules) is Outcome.THROTTLED


def test_a_throttled_answer_costs_the_same_for_every_name(citizen, operator, open_case, monkeypatch):
    """One password is derived and compared for each, though only one of them has a long case: the time tells nobody."""
    rules = dataclasses.replace(configured(), network_failures=3)
    book(None, 3, network=NETWORK)
    child = Account.objects.create(code="9999999999", phone=citizen.phone, state="approved")
    opened = open_case(length=10)
    open_case(account=child.code)
    matches, compared = credentials.matches, []
    monkeypatch.setattr(
        credentials, "matches", lambda *given: compared.append(given[1].length) or matches(*given)
    )
    for name in (citizen.code, child.code, "5555555555", operator.username, "nobody", ""):
        compared.clear()
        assert guess(name, wrong(opened), rules) is Outcome.THROTTLED
        assert compared == [10]


def test_site_with_too_many_failures_looks_at_known_devices_only(app, citizen, login, rules_with):
    known = Client()
    assert sign_in(known, citizen.code, CHOSEN).status_code == 302
    rules_with(site_failures_minute=3)
    began = time.monotonic()
    for n in range(3):
        Guess.objects.create(network=f"198.51.100.{n}")
    answer = app.sign_in(citizen.code, CHOSEN)
    assert answer.status_code == 429
    assert 59 - (time.monotonic() - began) <= int(answer["Retry-After"]) <= 61
    known.post("/logout/")
    assert sign_in(known, citizen.code, CHOSEN).status_code == 302
    Guess.objects.update(at=timezone.now() - timedelta(seconds=61))
    assert App().sign_in(citizen.code, CHOSEN).status_code == 200


def test_parallel_failures_of_one_network_stay_within_its_limit(transactional_db):
    rules = dataclasses.replace(configured(), network_failures=3)
    start = threading.Barrier(8)

    def attempt(number: int) -> Outcome:
        try:
            start.wait()
            return guess(f"{number:010}", "wrong", rules)
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(8)))
    assert outcomes.count(Outcome.WRONG) == 3
    assert outcomes.count(Outcome.THROTTLED) == 5


def test_failures_across_the_site_raise_the_alarm(citizen, login, lan_texts, rules_with, caplog):
    rules = rules_with(site_failures=4, network_failures=20)
    book(None, 2, ago=timedelta(minutes=61))
    with caplog.at_level(logging.WARNING):
        for number in range(5):
            guess(f"{number:010}", "wrong", rules, network=f"net {number}")
    until = Switch.objects.get(name="guess_alarm").value["until"]
    assert (
        timedelta(minutes=59) < timezone.datetime.fromisoformat(until) - timezone.now() <= timedelta(hours=1)
    )
    assert len([record for record in caplog.records if record.name == "caplai.service.credentials"]) == 1
    assert lan_texts().length == settings.CAPLAI.password.long_length

    # It makes cases long, and nobody's network smaller.
    book(None, 19, network=NETWORK)
    assert guess(citizen.code, CHOSEN, rules) is Outcome.SIGNED_IN


def test_known_device_does_not_pay_for_the_strangers_of_its_network(citizen, login):
    rules = dataclasses.replace(configured(), network_failures=3, guesses=5)
    token = signed_in(login, None)
    book(None, 3, network=NETWORK)
    assert guess(citizen.code, CHOSEN, rules) is Outcome.THROTTLED
    assert guess(citizen.code, CHOSEN, rules, device=token) is Outcome.SIGNED_IN
    book(citizen.code, 4, device=Device.objects.get().pk)
    assert guess(citizen.code, "wrong", rules, device=token) is Outcome.WRONG
    assert guess(citizen.code, CHOSEN, rules, device=token) is Outcome.THROTTLED  # its own are spent


def test_password_that_was_replaced_while_it_was_verified(citizen, login, monkeypatch):
    verify = credentials.verify_password

    def slow(password, encoded):
        result = verify(password, encoded)
        Login.objects.update(password=make_password("một mật khẩu khác"))
        return result

    monkeypatch.setattr(credentials, "verify_password", slow)
    assert guess(citizen.code, CHOSEN) is Outcome.WRONG


def test_choosing_rechecks_its_case(citizen, open_case):
    opened = open_case()
    login = credentials.check(
        citizen.code, opened.password, device=None, network=NETWORK, rules=configured()
    ).login
    assert login is not None

    def choose(password: str = CHOSEN) -> using.Choice:
        return using.choose(login, opened.case.id, password, attempt="a", rules=configured())

    Case.objects.update(ended_at=timezone.now(), ended_as="reported")
    assert choose() is using.Choice.ENDED
    Case.objects.update(ended_at=None, ended_as=None, expires_at=timezone.now())
    assert choose() is using.Choice.ENDED
    Case.objects.update(expires_at=timezone.now() + timedelta(hours=1))
    Account.objects.update(state="closed")
    assert choose() is using.Choice.ENDED
    Account.objects.update(state="approved")
    assert not Login.objects.get().has_usable_password()
    assert not Event.objects.exists()
    assert choose(opened.password) is using.Choice.SAME_AS_ISSUED
    assert choose() is using.Choice.CHOSEN
