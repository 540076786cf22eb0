"""The password that a person chooses: what is refused, how it is stored, and how the pepper is rotated."""

import os
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest
from argon2 import low_level
from django.conf import settings
from django.contrib.auth.hashers import check_password, identify_hasher, make_password
from django.test import Client

from caplai.domain.issuing import Keyring
from caplai.signin import hashers
from caplai.store.models import Login
from tests.signin.conftest import CHOSEN, App, is_in, sign_in

REFUSED = {
    "": "required",
    "1234567": "password_too_short",
    "e\u0301" * 4 + "abc": "password_too_short",  # seven characters, whichever way they were typed
    "0012345678": "password_is_code",
    "0012 345 678": "password_is_code",
    "00123456": "password_is_code",
    "0012345678a": "password_is_code",
    "password123": "password_too_common",
    "Anh yêu em 123": "password_too_common",
    "VssID2026": "password_is_obvious",
    "B.H.X.H. 123456": "password_is_obvious",
    "Mật khẩu VssID": "password_is_obvious",
    "bảo hiểm xã hội vn": "password_is_obvious",
    "0327000686": "password_is_obvious",
    "+84 327 000 686": "password_is_obvious",
    "a 0327 000 686": "password_is_obvious",
    "27000686": "password_is_obvious",
    "x" * 129: "password_too_long",
    "x" * 1000: "max_length",
}


@pytest.mark.parametrize(("password", "code"), REFUSED.items())
def test_refused(app, browser, citizen, open_case, password, code):
    issued = open_case().password
    app.sign_in(citizen.code, issued)
    answer = app.choose(password)
    assert answer.status_code == 400
    errors = answer.json()["errors"]
    assert [(error["param"], error["code"]) for error in errors] == [("new_password", code)]

    sign_in(browser, citizen.code, issued)
    page = browser.post("/choose-password/", {"new_password": password})
    assert page.status_code == 200
    text = page.content.decode()
    assert "<title>Lỗi: " in text
    assert text.count(errors[0]["message"]) == 2  # at the top and beside the field
    assert not Login.objects.get().has_usable_password()
    assert app.choose(CHOSEN).status_code == 200


@pytest.mark.parametrize(
    "password",
    [
        "12345 78",
        "vssid của bà Lan",
        "x" * 128,
        "ễ" * 128,
        "mật khẩu của bà ngoại",
        "  hai bên có dấu cách  ",
    ],
)
def test_accepted(app, citizen, open_case, password):
    app.sign_in(citizen.code, open_case().password)
    assert app.choose(password).status_code == 200
    assert App().sign_in(citizen.code, password).status_code == 200
    assert App().sign_in(citizen.code, password.strip() + "x").status_code == 400


def test_long_issued_password_is_refused_as_the_chosen_one(app, browser, citizen, open_case):
    issued = open_case(length=10).password
    app.sign_in(citizen.code, issued)
    assert app.choose(issued.lower()).json()["errors"][0]["code"] == "password_is_issued"
    sign_in(browser, citizen.code, issued)
    assert "trong tin nhắn" in browser.post("/choose-password/", {"new_password": issued}).content.decode()
    assert app.choose(CHOSEN).status_code == 200


@pytest.mark.parametrize("chosen", ["NFC", "NFD"])
@pytest.mark.parametrize("typed", ["NFC", "NFD"])
def test_accents_composed_or_not_are_one_password(app, citizen, open_case, chosen, typed):
    app.sign_in(citizen.code, open_case().password)
    assert app.choose(unicodedata.normalize(chosen, CHOSEN)).status_code == 200
    assert App().sign_in(citizen.code, unicodedata.normalize(typed, CHOSEN)).status_code == 200
    assert sign_in(Client(), citizen.code, unicodedata.normalize(typed, CHOSEN))["Location"] == "/"


def test_how_it_is_stored():
    encoded = make_password(CHOSEN)
    pepper = settings.KEYRING.ring("pepper").active
    assert encoded.startswith(f"argon2p${pepper}$argon2id$v=19$m=19456,t=2,p=1$")
    assert len(encoded) <= Login._meta.get_field("password").max_length
    assert identify_hasher(encoded).algorithm == "argon2p"
    assert check_password(CHOSEN, encoded)
    assert not check_password(CHOSEN + " ", encoded)


def test_hash_is_worth_nothing_without_the_pepper():
    from argon2 import PasswordHasher
    from argon2.exceptions import VerifyMismatchError

    plain = make_password(CHOSEN).split("$", 2)[2]
    with pytest.raises(VerifyMismatchError):
        PasswordHasher().verify(f"${plain}", CHOSEN)


def test_rotated_pepper_is_renewed_at_the_next_sign_in(app, citizen, login, monkeypatch, rules_with):
    old = settings.KEYRING.ring("pepper")
    both = Keyring({**old.keys, "p-next": bytes(range(32))}, "p-next")
    monkeypatch.setattr(hashers, "_peppers", lambda: both)
    rules_with(peppers=both)
    other = App()
    other.sign_in(citizen.code, CHOSEN)
    Login.objects.update(password=login.password)
    assert app.sign_in(citizen.code, CHOSEN + "!").status_code == 400
    assert Login.objects.get().password.split("$")[1] == old.active

    assert app.sign_in(citizen.code, CHOSEN).status_code == 200
    assert app.is_in
    assert Login.objects.get().password.split("$")[1] == "p-next"
    assert other.is_in  # the same password hashed anew ends nobody's session

    new = Keyring({"p-next": bytes(range(32))}, "p-next")
    monkeypatch.setattr(hashers, "_peppers", lambda: new)
    rules_with(peppers=new)
    assert App().sign_in(citizen.code, CHOSEN).status_code == 200


def test_password_that_is_set_ends_the_sessions(browser, citizen, login):
    sign_in(browser, citizen.code, CHOSEN)
    login.set_password(CHOSEN)
    login.save()
    assert not is_in(browser)


def test_weaker_parameters_are_renewed(monkeypatch):
    encoded = make_password(CHOSEN)
    hasher = identify_hasher(encoded)
    assert not hasher.must_update(encoded)
    monkeypatch.setattr(hashers.PepperedArgon2, "time_cost", 3)
    assert hasher.must_update(encoded)


def test_rotated_web_key_keeps_sessions(browser, citizen, login, settings):
    sign_in(browser, citizen.code, CHOSEN)
    old = settings.SECRET_KEY
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "next", [old]
    assert is_in(browser)
    settings.SECRET_KEY_FALLBACKS = []
    assert is_in(browser)


def test_no_more_are_hashed_at_once_than_there_are_cores(monkeypatch, login):
    """Each keeps 19 MiB."""
    cores = len(os.sched_getaffinity(0))
    verify, lock, now, most = low_level.verify_secret, threading.Lock(), 0, 0
    together = threading.Barrier(cores)

    def counted(*given):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        try:
            together.wait(30)
            return verify(*given)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr("argon2._password_hasher.verify_secret", counted)
    with ThreadPoolExecutor(4 * cores) as people:
        assert all(people.map(check_password, [CHOSEN] * 4 * cores, [login.password] * 4 * cores))
    assert most == cores
