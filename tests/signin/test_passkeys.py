"""Passkeys by an authenticator in software: what signs in, what is refused, and what is stored with a case's end."""

import json
import random
import time
from datetime import timedelta

import pytest
from allauth.mfa.models import Authenticator
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone
from fido2.utils import websafe_decode, websafe_encode

from caplai.service import passkeys, using
from caplai.signin import webauthn
from caplai.signin.backend import rules as configured
from caplai.store.models import Account, Case, Device, Event, Guess, Login
from tests.signin.conftest import CHOSEN, App, is_in, sign_in, wrong
from tests.signin.softkey import HERE, Ceremony, SoftKey, asked, send

REFUSED = "Lần này vân tay hoặc khuôn mặt chưa dùng được."


@pytest.fixture
def browser() -> Client:
    return Client(**HERE)


@pytest.fixture
def key(login) -> SoftKey:
    """A passkey of hers that she has had for a while."""
    key = SoftKey.of(login, "iPhone")
    Authenticator.objects.update(created_at=timezone.now() - timedelta(days=100))
    return key


def test_it_signs_in_and_counts_as_a_completed_sign_in(browser, citizen, login, key, open_case):
    sign_in(Client(), citizen.code, wrong(open_case()))
    shown = {"credential": json.dumps(key.show(asked(browser))), "remember": "on"}
    answer = browser.post("/login/passkey/", shown)
    assert (answer.status_code, answer["Location"]) == (302, "/")
    assert is_in(browser)
    assert not Guess.objects.filter(cleared=False).exists()
    assert Device.objects.get().login_id == login.pk
    token = answer.cookies["caplai_device"].value
    assert Authenticator.objects.get().last_used_at
    assert Case.objects.get().ended_at is None  # as signing in with the old password leaves it

    browser.post("/logout/")
    send(browser, key.show(asked(browser)))
    assert is_in(browser)
    assert browser.cookies["caplai_device"].value == token
    assert Device.objects.count() == 1


def test_the_device_of_a_passkeys_sign_in_has_guesses_of_its_own(browser, citizen, login, key, rules_with):
    """Strangers used up theirs; her device still gets in with a password."""
    send(browser, key.show(asked(browser)))
    browser.post("/logout/")
    rules_with(network_failures=3)
    for _ in range(3):
        sign_in(Client(), citizen.code, "wrong")
    assert sign_in(Client(), citizen.code, CHOSEN).status_code == 429
    assert sign_in(browser, citizen.code, CHOSEN)["Location"] == "/"


def test_a_password_does_not_ask_for_the_passkey(browser, app, citizen, login, key):
    assert sign_in(browser, citizen.code, CHOSEN)["Location"] == "/"
    assert is_in(browser)
    assert app.sign_in(citizen.code, CHOSEN).status_code == 200


def test_it_leads_where_the_person_wanted_to_go(browser, login, key):
    credential = json.dumps(key.show(asked(browser)))
    answer = browser.post("/login/passkey/", {"credential": credential, "next": "/records/"})
    assert answer["Location"] == "/records/"
    other = Client(**HERE)
    credential = json.dumps(key.show(asked(other)))
    answer = other.post("/login/passkey/", {"credential": credential, "next": "https://evil.example/"})
    assert answer["Location"] == "/"


def _of_another_account(key: SoftKey) -> None:
    other = Account.objects.create(code="0099999999", phone="+84327000687", state="approved")
    stranger = Login.objects.create(username=other.code, account=other)
    key.handle = websafe_encode(str(stranger.pk).encode())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: setattr(key, "origin", "http://localhost.evil.example"),
        lambda key: setattr(key, "origin", "https://localhost"),
        lambda key: setattr(key, "origin", "http://localhost:8001"),
        lambda key: setattr(key, "verified", False),
        lambda key: setattr(key, "private", SoftKey().private),
        lambda key: setattr(key, "id", b"another"),
        lambda key: setattr(key, "handle", ""),
        lambda key: setattr(key, "handle", websafe_encode(b"9" * 40)),
        _of_another_account,
        lambda key: Login.objects.update(is_active=False),
        lambda key: Account.objects.update(state="closed"),
        lambda key: Authenticator.objects.all().delete(),
    ],
    ids=["origin", "scheme", "port", "not-verified", "another-key", "unknown-id", "no-handle", "no-login",
         "handle-of-another", "switched-off", "closed", "removed"],
)  # fmt: skip
def test_what_does_not_sign_in(browser, login, key, spoil):
    options = asked(browser)
    spoil(key)
    answer = send(browser, key.show(options))
    assert answer.redirect_chain == [("/login/", 302)]
    assert REFUSED in answer.content.decode()
    assert not is_in(browser)
    assert not Device.objects.exists()


def test_one_that_is_removed_at_this_moment_signs_nobody_in(browser, login, key, monkeypatch):
    complete = webauthn.Fido2Server.authenticate_complete

    def removed(*given):
        Authenticator.objects.all().delete()
        return complete(*given)

    monkeypatch.setattr(webauthn.Fido2Server, "authenticate_complete", removed)
    assert REFUSED in send(browser, key.show(asked(browser))).content.decode()
    assert not is_in(browser)


def test_a_challenge_is_good_once_and_for_its_browser(browser, login, key, monkeypatch):
    browser.get("/login/")
    stranger = Client(**HERE)
    stranger.get("/login/")
    options = asked(browser)
    shown = key.show(options)
    send(stranger, shown)
    assert not is_in(stranger)
    send(browser, {**shown, "response": {**shown["response"], "signature": "AA"}})
    assert not is_in(browser)
    monkeypatch.setattr(webauthn.time, "time", lambda: time.time_ns() / 1e9 + 3601)
    send(browser, shown)
    monkeypatch.undo()
    assert not is_in(browser)
    send(browser, shown)
    assert is_in(browser)


def test_nothing_that_was_answered_or_given_before_is_answered_again(login, key):
    request = Ceremony(login)
    before = webauthn.request_options(request)
    shown = key.show(webauthn.request_options(request))
    assert webauthn.shown(request, shown)
    assert webauthn.shown(request, shown) is None
    assert webauthn.shown(request, key.show(before)) is None  # another tab's, of before
    assert webauthn.rename(login, Authenticator.objects.get().pk, "iPad")
    assert webauthn.shown(request, shown) is None
    assert webauthn.shown(request, key.show(webauthn.request_options(request)))
    assert Authenticator.objects.get().wrap().name == "iPad"
    other = SoftKey.of(login, "another")
    assert webauthn.shown(request, other.show(before))  # each its own


def test_a_challenge_that_we_did_not_sign_is_none(login, key):
    request = Ceremony(login)
    given = webauthn.request_options(request)
    challenge = given["publicKey"]["challenge"]
    for other in ("AAAAAAAAAAAAAAAAAAAAAAAA", challenge[:-4] + "AAAA", "AAAA" + challenge[4:]):
        given["publicKey"] = {**given["publicKey"], "challenge": other}
        assert webauthn.shown(request, key.show(given)) is None


NONSENSE = [
    "", "[]", "{", "null", "1", '{"id": "AA"}', '{"id": "AA", "rawId": "AA", "response": 1}', "[" * 10_000,
    '{"id": "AA", "rawId": "AA", "response": {"clientDataJSON": "AA", "attestationObject": "AA", "signature": "é",'
    ' "authenticatorData": "AA"}}', '{"rawId": "' + "A" * 100_000 + '"}',
]  # fmt: skip


@pytest.mark.parametrize("text", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_refused(browser, citizen, login, open_case, text):
    answer = browser.post("/login/passkey/", {"credential": text}, follow=True)
    assert REFUSED in answer.content.decode()
    sign_in(browser, citizen.code, open_case().password)
    answer = browser.post("/choose-password/passkey/", {"credential": text}, follow=True)
    assert answer.redirect_chain == [("/choose-password/", 302)]
    assert "Chưa lưu được vân tay hoặc khuôn mặt." in answer.content.decode()
    assert Case.objects.get().ended_at is None


def test_what_anybody_may_ask_for_is_not_kept(browser, login, key):
    options = asked(browser)
    assert not Session.objects.exists()
    assert "caplai_session" not in browser.cookies
    send(browser, key.show(options))
    assert is_in(browser)


def spoilt(answer: dict, chance: random.Random) -> dict:
    """The same with one part that is other octets, another kind of thing, or missing."""
    answer = json.loads(json.dumps(answer))
    parts = answer["response"] if chance.random() < 0.8 else answer
    name = chance.choice(sorted(parts))
    match chance.randrange(4), parts[name]:
        case 0, _:
            del parts[name]
        case 1, _:
            parts[name] = chance.choice([None, 1, True, [], {}, "", "é", "AA", 10**30, {"a": [1]}])
        case _, str(text):
            octets = bytearray(websafe_decode(text)) if name != "type" else bytearray(b"x")
            at = chance.randrange(len(octets))
            octets[at : at + chance.randrange(1, 5)] = chance.randbytes(chance.randrange(5))
            parts[name] = websafe_encode(bytes(octets))
    return answer


def test_what_is_spoilt_anywhere_is_refused_and_raises_nothing(login, key):
    request, chance = Ceremony(login), random.Random(1)
    taken = 0
    for _ in range(40):
        webauthn.made(
            request, login, spoilt(SoftKey().make(webauthn.creation_options(request, login)), chance)
        )
        shown = key.show(webauthn.request_options(request))
        wrong = spoilt(shown, chance)
        if webauthn.shown(request, wrong):  # its id once, or what is said of it, and nothing that counts
            taken += 1
            assert wrong["response"] == shown["response"]
    assert taken < 10


def test_only_posts_and_only_with_the_forms_token(login):
    strict = Client(enforce_csrf_checks=True, **HERE)
    for path in ("/login/passkey/", "/login/passkey/options/"):
        assert strict.get(path).status_code == 405
        assert strict.post(path).status_code == 403
    assert not Session.objects.exists()


def test_where_browsers_have_none_nothing_is_offered(login, settings):
    at_address = Client(HTTP_HOST="192.0.2.7")
    assert "passkey" not in at_address.get("/login/").content.decode()
    assert at_address.post("/login/passkey/options/").status_code == 404
    here = Client(**HERE)
    assert 'data-passkey="get"' in here.get("/login/").content.decode()
    for url, host in [
        ("http://caplai.example", None),
        ("https://192.0.2.7", None),
        ("https://[2001:db8::1]:8443", None),
        ("https://caplai.example", "caplai.example"),
        ("https://caplai.example:443", "caplai.example"),
        ("http://localhost:8000", "localhost"),
    ]:
        settings.CAPLAI = settings.CAPLAI.model_copy(update={"public_url": url})
        site = webauthn.site(Ceremony(login))
        assert (site.host if site else None) == host
    settings.CAPLAI = settings.CAPLAI.model_copy(update={"public_url": "https://caplai.example:443"})
    assert webauthn.site(Ceremony(login)).origins == {"https://caplai.example"}


# --- after a re-issue ----------------------------------------------------------------------------------


def test_from_the_issued_password_to_a_passkey(browser, citizen, open_case):
    opened = open_case()
    sign_in(browser, citizen.code, opened.password)
    assert 'data-passkey="create"' in browser.get("/choose-password/").content.decode()
    key = SoftKey()
    options = asked(browser, "/choose-password/passkey/")
    assert options["publicKey"]["user"]["name"] == citizen.code
    assert options["publicKey"]["rp"]["id"] == "localhost"
    selection = options["publicKey"]["authenticatorSelection"]
    assert (selection["residentKey"], selection["userVerification"]) == ("required", "required")

    answer = send(browser, key.make(options), "/choose-password/passkey/")
    assert answer.redirect_chain == [("/", 302)]
    assert "Từ nay bạn đăng nhập bằng vân tay hoặc khuôn mặt." in answer.content.decode()
    assert Case.objects.get().ended_as == "used"
    login = Login.objects.get()
    event = Event.objects.exclude(kind="signed_in").get()
    assert (event.kind, event.login_id, event.case_id) == ("passkey_chosen", login.pk, opened.case.id)
    assert not login.has_usable_password()
    assert sign_in(Client(), citizen.code, opened.password).status_code == 200

    again = Client(**HERE)
    send(again, key.show(asked(again)))
    assert is_in(again)


def test_it_ends_everything_that_came_before_but_not_the_passkeys(browser, citizen, login, key, open_case):
    other_browser, other_app, other_pending = Client(), App(), App()
    sign_in(other_browser, citizen.code, CHOSEN)
    other_app.sign_in(citizen.code, CHOSEN)
    opened = open_case()
    sign_in(Client(), citizen.code, wrong(opened))
    other_pending.sign_in(citizen.code, opened.password)

    sign_in(browser, citizen.code, opened.password)
    new = SoftKey()
    send(browser, new.make(asked(browser, "/choose-password/passkey/")), "/choose-password/passkey/")
    assert is_in(browser)
    assert not is_in(other_browser)
    assert not other_app.is_in
    assert other_pending.choose("của người khác").status_code == 409
    assert sign_in(Client(), citizen.code, CHOSEN).status_code == 200  # the old password has ended
    assert Device.objects.count() == 1
    assert not Guess.objects.filter(cleared=False, account=citizen.code, device=None).exclude(
        pk=Guess.objects.latest("pk").pk
    )
    for one in (key, new):
        again = Client(**HERE)
        send(again, one.show(asked(again)))
        assert is_in(again)


@pytest.mark.parametrize("ended", ["ended", "expired", "closed", "switched off"])
def test_of_a_case_that_ended_nothing_is_stored(browser, citizen, open_case, ended):
    sign_in(browser, citizen.code, open_case().password)
    made = SoftKey().make(asked(browser, "/choose-password/passkey/"))
    match ended:
        case "ended":
            Case.objects.update(ended_at=timezone.now(), ended_as="expired")
        case "expired":
            Case.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        case "closed":
            Account.objects.update(state="closed")
        case "switched off":
            Login.objects.update(is_active=False)
    answer = send(browser, made, "/choose-password/passkey/")
    assert answer.redirect_chain == [("/login/", 302)]
    assert not is_in(browser)
    assert not Authenticator.objects.exists()
    assert not Event.objects.exists()


def test_a_form_sent_twice_is_a_success_twice_and_stored_once(citizen, login, open_case):
    """Both requests read the pending session before either is done."""
    opened = open_case()
    twin = Login.objects.get(pk=login.pk)

    def take(who: Login, attempt: str) -> using.Choice:
        return using.take_passkey(
            who, opened.case.id, lambda: webauthn.store(who, {"id": "x"}, "x"), attempt=attempt
        )

    assert take(login, "a") is using.Choice.CHOSEN
    assert take(twin, "a") is using.Choice.CHOSEN
    assert twin.get_session_auth_hash() == login.get_session_auth_hash()
    assert take(twin, "b") is using.Choice.ENDED
    # Of the same pending sign-in, yet not what was stored: nobody is told that a password was.
    choice = using.choose(twin, opened.case.id, CHOSEN, attempt="a", rules=configured())
    assert choice is using.Choice.ENDED
    assert Authenticator.objects.count() == Event.objects.count() == 1


def test_what_cannot_be_stored_ends_nothing(citizen, login, open_case):
    opened = open_case()
    with pytest.raises(ZeroDivisionError):
        using.take_passkey(login, opened.case.id, lambda: 1 / 0, attempt="a")
    assert Case.objects.get().ended_at is None
    assert Login.objects.get().check_password(CHOSEN)


def test_a_passkey_made_for_another_is_not_taken(browser, citizen, login, open_case):
    """A challenge says for whom: the session went on to another account meanwhile."""
    request = Ceremony(login)
    made = SoftKey().make(webauthn.creation_options(request, login))
    other = Login(pk=login.pk + 1, username="0099999999")
    assert webauthn.made(request, other, made) is None
    request = Ceremony(login)
    made = SoftKey(verified=False).make(webauthn.creation_options(request, login))
    assert webauthn.made(request, login, made) is None


def test_there_are_ten_at_most(browser, citizen, login, open_case):
    for number in range(passkeys.MOST):
        webauthn.store(login, SoftKey().make(webauthn.creation_options(Ceremony(login), login)), str(number))
    sign_in(browser, citizen.code, open_case().password)
    assert "data-passkey" not in browser.get("/choose-password/").content.decode()
    assert browser.post("/choose-password/passkey/options/").status_code == 404


def test_pages_of_a_pending_sign_in_only(browser, login):
    for path in ("/choose-password/passkey/", "/choose-password/passkey/options/"):
        assert browser.get(path)["Location"] == "/login/"
        assert browser.post(path)["Location"] == "/login/"
