"""A password that came with an import: it signs in as it did before, and is one of ours from then on."""

import hashlib
from base64 import b64encode

import bcrypt
import pytest
from argon2 import low_level
from django.contrib.auth.hashers import check_password, make_password
from django.test import Client

from caplai.domain.foreign_hash import read
from caplai.service import credentials
from caplai.service.credentials import Outcome
from caplai.store.models import Account, Guess, Login, TakenOverPassword
from tests.signin.conftest import CHOSEN, App, is_in, sign_in, wrong
from tests.signin.test_guesses import book, guess

OLD = "mật khẩu của năm ngoái"


def pbkdf2(password: str = OLD, iterations: int = 10_000) -> str:
    key = hashlib.pbkdf2_hmac("sha256", password.encode(), b"muoi", iterations)
    return f"pbkdf2_sha256${iterations}$muoi${b64encode(key).decode()}"


def argon2(password: str = OLD) -> str:
    return low_level.hash_secret(password.encode(), b"muoi" * 4, 5, 7168, 1, 32, low_level.Type.ID).decode()


def blowfish(password: bytes = OLD.encode(), version: str = "2b") -> str:
    salt = bcrypt.gensalt(10).decode().replace("2b", version, 1)
    return bcrypt.hashpw(password[:72], salt.encode()).decode()


FORMS = {
    "Django's PBKDF2": pbkdf2,
    "Django's Argon2": lambda: f"argon2{argon2()}",
    "Django's bcrypt": lambda: f"bcrypt${blowfish()}",
    "Django's bcrypt_sha256": lambda: (
        f"bcrypt_sha256${blowfish(hashlib.sha256(OLD.encode()).hexdigest().encode())}"
    ),
    "bare Argon2": argon2,
    "bare bcrypt": blowfish,
    "PHP's bcrypt": lambda: blowfish(version="2y"),
    "bcrypt of old": lambda: blowfish(version="2a"),
}


def take_over(code: str, encoded: str | None = None) -> str:
    kept, unfit = read(encoded or pbkdf2())
    assert not unfit
    TakenOverPassword.objects.create(code=code, hash=kept)
    return kept


@pytest.mark.parametrize("form", FORMS)
def test_it_signs_in_and_is_one_of_ours_from_then_on(app, browser, citizen, form):
    take_over(citizen.code, FORMS[form]())
    assert app.sign_in(citizen.code, OLD + " ").status_code == 400
    assert not Login.objects.exists()
    assert app.sign_in(citizen.code, OLD).status_code == 200
    assert app.is_in
    login = Login.objects.get()
    assert (login.account_id, login.username) == (citizen.code, citizen.code)
    assert login.password.startswith("argon2p$")
    assert not TakenOverPassword.objects.exists()
    assert not Guess.objects.filter(cleared=False).exists()
    sign_in(browser, citizen.code, OLD)
    assert is_in(browser) and app.is_in
    assert guess(citizen.code, OLD + " ") is Outcome.WRONG


def test_bcrypt_knows_72_octets_and_whoever_types_more_is_no_error(citizen):
    long = "dài lắm " * 20
    take_over(citizen.code, blowfish(long.encode()))
    assert guess(citizen.code, "ngắn") is Outcome.WRONG
    assert guess(citizen.code, long + "nữa") is Outcome.SIGNED_IN


TYPED = ["", "a\0b", "\ud800" * 3, "x" * 5_000]


@pytest.mark.parametrize("form", ["Django's PBKDF2", "bare Argon2", "bare bcrypt", "Django's bcrypt_sha256"])
def test_nothing_that_is_typed_is_an_error(form):
    encoded, _ = read(FORMS[form]())
    assert not any(check_password(typed, encoded) for typed in TYPED)


def test_nothing_that_is_typed_is_an_error_at_the_sign_in(citizen):
    take_over(citizen.code)
    for name in (citizen.code, "9999999999"):
        assert [guess(name, typed) for typed in TYPED] == [Outcome.WRONG] * len(TYPED)


def test_wrong_ones_count_among_the_accounts_guesses_as_with_a_chosen_one(citizen, open_case):
    take_over(citizen.code)
    opened = open_case()
    book(citizen.code, 18)
    assert guess(citizen.code, wrong(opened)) is Outcome.WRONG
    assert guess(citizen.code, opened.password) is Outcome.ISSUED
    assert guess(citizen.code, OLD + "!") is Outcome.WRONG
    assert guess(citizen.code, opened.password) is Outcome.WRONG  # twenty: six digits are closed to strangers
    assert Guess.objects.filter(account=citizen.code).count() == 21
    assert guess(citizen.code, OLD) is Outcome.SIGNED_IN


def test_the_throttle_of_a_network_stands_before_it(citizen, rules_with):
    take_over(citizen.code)
    rules = rules_with(network_failures=3)
    outcomes = [guess(citizen.code, f"sai {n}", rules) for n in range(5)]
    assert outcomes == [Outcome.WRONG] * 3 + [Outcome.THROTTLED] * 2
    assert guess(citizen.code, OLD, rules) is Outcome.THROTTLED


def test_it_goes_on_working_until_the_case_is_used_and_ends_with_that(app, citizen, open_case):
    take_over(citizen.code)
    app.sign_in(citizen.code, open_case().password)
    assert TakenOverPassword.objects.exists()
    assert app.choose(CHOSEN).status_code == 200
    assert not TakenOverPassword.objects.exists()
    assert guess(citizen.code, OLD) is Outcome.WRONG
    assert guess(citizen.code, CHOSEN) is Outcome.SIGNED_IN


def test_it_signs_in_while_a_case_is_open_and_ends_no_case(citizen, open_case):
    take_over(citizen.code)
    opened = open_case()
    assert guess(citizen.code, OLD) is Outcome.SIGNED_IN
    assert guess(citizen.code, opened.password) is Outcome.ISSUED


@pytest.mark.parametrize("state", ["pending", "closed"])
def test_only_approved_accounts_sign_in_with_it(citizen, state):
    take_over(citizen.code)
    Account.objects.update(state=state)
    assert guess(citizen.code, OLD) is Outcome.WRONG
    assert TakenOverPassword.objects.exists()


def test_it_opens_nothing_beside_a_password_of_ones_own(citizen, login):
    take_over(citizen.code)
    assert guess(citizen.code, OLD) is Outcome.WRONG
    assert guess(citizen.code, CHOSEN) is Outcome.SIGNED_IN


@pytest.mark.parametrize("ended", ["replaced", "account closed", "switched off"])
def test_it_signs_nobody_in_that_ended_while_it_was_verified(citizen, monkeypatch, ended):
    take_over(citizen.code)
    if ended == "switched off":
        Login.objects.create(username=citizen.code, account=citizen, password=make_password(None))
    verify = credentials.verify_password

    def slow(password, encoded):
        found = verify(password, encoded)
        if ended == "replaced":
            TakenOverPassword.objects.all().delete()
        elif ended == "account closed":
            Account.objects.update(state="closed")
        else:
            Login.objects.update(is_active=False)
        return found

    monkeypatch.setattr(credentials, "verify_password", slow)
    assert guess(citizen.code, OLD) is Outcome.WRONG
    assert not Login.objects.filter(password__startswith="argon2p").exists()
    assert Guess.objects.count() == 1


# Nobody can tell by the time who still has one


@pytest.fixture
def work(monkeypatch) -> list[str]:
    """What was computed: ours and theirs."""
    done: list[str] = []
    hashed, verified = low_level.hash_secret, low_level.verify_secret
    derived = credentials.verify_password.__globals__["identify_hasher"](pbkdf2()).encode
    monkeypatch.setattr(low_level, "hash_secret", lambda *a, **k: done.append("ours") or hashed(*a, **k))
    monkeypatch.setattr(
        "argon2._password_hasher.verify_secret", lambda *a: done.append("ours") or verified(*a)
    )
    monkeypatch.setattr(
        "django.contrib.auth.hashers.PBKDF2PasswordHasher.encode",
        lambda self, *a: done.append("theirs") or derived(*a),
    )
    return done


def test_every_wrong_password_costs_one_hash_of_ours_and_one_of_theirs(citizen, login, operator, work):
    for code, state in [("1111111111", "approved"), ("2222222222", "closed"), ("3333333333", "approved")]:
        Account.objects.create(code=code, phone="+84327000111", state=state)
    take_over("1111111111")
    take_over("2222222222")
    Login.objects.create(username="3333333333", account_id="3333333333", password=make_password(None))
    for name in ["1111111111", "2222222222", "3333333333", "9999999999", citizen.code, "thu.ha", "nobody"]:
        work.clear()
        assert guess(name, "sai rồi") is Outcome.WRONG
        assert sorted(work) == ["ours", "theirs"], name
    work.clear()
    assert guess("1111111111", OLD) is Outcome.SIGNED_IN
    assert sorted(work) == ["ours", "theirs"]
    TakenOverPassword.objects.all().delete()
    work.clear()
    assert guess("9999999999", "sai rồi") is Outcome.WRONG
    assert work == ["ours"]


def test_a_name_is_compared_with_the_same_decoy_each_time(db, monkeypatch):
    ones = {take_over("2500000000"), take_over("7500000000", pbkdf2(iterations=10_001))}
    met: dict[str, set[str]] = {}
    monkeypatch.setattr(
        credentials, "verify_password", lambda _, encoded: met[name].add(encoded) or (False, False)
    )
    name = ""
    for name in [f"{n:010}" for n in range(20)] * 2:
        met.setdefault(name, set())
        guess(name, "sai rồi")
    theirs = [encoded & ones for encoded in met.values()]
    assert all(len(each) <= 1 for each in theirs)
    assert set().union(*theirs) == ones


def test_the_page_says_the_same_to_all(citizen, login):
    Account.objects.create(code="1111111111", phone="+84327000111", state="approved")
    take_over("1111111111")
    answers = {App().sign_in(name, "sai rồi").content for name in ["1111111111", citizen.code, "9999999999"]}
    assert len(answers) == 1
    assert {sign_in(Client(), name, "sai").status_code for name in ["1111111111", "9999999999"]} == {200}
