"""Where somebody is signed in: what the sign-in writes down, how long it lives, and how it is ended from elsewhere."""

from datetime import timedelta

import pytest
from django.contrib.sessions.models import Session
from django.db.models import F
from django.test import Client
from django.utils import timezone

from caplai.service import sittings
from caplai.signin.client import client_of, name_of
from caplai.signin.sessions import SessionStore
from caplai.store.models import Device, Event, Login, Sitting
from tests.signin.conftest import CHOSEN, App, is_in, sign_in

ANDROID = "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 Chrome/120.0.0.0 Mobile Safari/537.36"


def row_key(client: Client) -> str:
    return client.session.row_key


def later(passed: timedelta) -> None:
    """Let time pass for all sessions, as their rows tell it."""
    for row in Session.objects.all():
        content = row.get_decoded()
        if "ends" in content:
            content["ends"] -= passed.total_seconds()
        row.session_data = SessionStore().encode(content)
        row.expire_date -= passed
        row.save()
    Sitting.objects.update(created_at=F("created_at") - passed, seen_at=F("seen_at") - passed)


def test_a_sign_in_writes_down_where(browser, app, citizen, login):
    sign_in(browser, citizen.code, "wrong")
    sign_in(browser, citizen.code, CHOSEN, headers={"User-Agent": ANDROID})
    app.sign_in(citizen.code, CHOSEN)

    phone, of_app = sittings.seats(login, row_key(browser))
    assert (phone.client, phone.here, phone.signed_in, phone.remembered) == (
        "chrome/android",
        True,
        True,
        True,
    )
    assert (of_app.client, of_app.here) == ("app/other", False)
    first, second = Event.objects.order_by("id")
    assert (first.kind, first.login_id) == ("signed_in", login.pk)
    assert first.data == {"client": "chrome/android", "how": "password", "wrong": 1}
    assert second.data == {"client": "app/other", "how": "password", "wrong": 0}


def test_signing_out_there_ends_it_at_once_and_forgets_the_device(browser, app, citizen, login):
    sign_in(browser, citizen.code, CHOSEN)
    app.sign_in(citizen.code, CHOSEN)
    here, there = sittings.seats(login, row_key(browser))

    assert not sittings.end(login, here.name, row_key(browser))
    assert sittings.end(login, there.name, row_key(browser))
    assert not app.is_in
    assert is_in(browser)
    assert [seat.here for seat in sittings.seats(login, row_key(browser))] == [True]
    assert Device.objects.count() == Session.objects.count() == Sitting.objects.count() == 1
    assert not sittings.end(login, there.name, row_key(browser))


def test_nobody_ends_what_is_anothers(browser, citizen, login, operator):
    sign_in(browser, citizen.code, CHOSEN)
    [seat] = sittings.seats(login, "")
    for name in (seat.name, f"d{Device.objects.get().pk}", "s", "x1", "s-1", "s" + "9" * 30, "s1 or 1=1"):
        assert not sittings.end(operator, name, "")
    assert is_in(browser)
    assert Device.objects.exists()


def test_a_device_where_nobody_is_can_be_forgotten(browser, citizen, login):
    sign_in(browser, citizen.code, CHOSEN)
    browser.post("/logout/")
    [seat] = sittings.seats(login, "")
    assert (seat.signed_in, seat.remembered, seat.here) == (False, True, False)
    assert sittings.end(login, seat.name, "")
    assert not Device.objects.exists()


def test_everywhere_else_ends_what_nobody_wrote_down_too(browser, app, citizen, login):
    """Such as sessions that a web server of an older version opened."""
    app.sign_in(citizen.code, CHOSEN)
    unknown = Client()
    unknown.force_login(login)
    sign_in(browser, citizen.code, CHOSEN)
    mine = Login.objects.get()

    def rebind() -> None:
        session = browser.session
        session["_auth_user_hash"] = mine.get_session_auth_hash()
        session.save()

    assert sittings.end_others(mine, row_key(browser), rebind)
    assert is_in(browser)
    assert not app.is_in
    assert not is_in(unknown)
    [seat] = sittings.seats(mine, row_key(browser))
    assert seat.here and seat.remembered
    assert not sittings.end_others(login, row_key(browser), lambda: pytest.fail("its stamp is old"))


def test_a_used_case_ends_the_sittings_with_the_sessions(browser, citizen, login, open_case):
    sign_in(browser, citizen.code, CHOSEN)
    other = Client()
    sign_in(other, citizen.code, open_case().password)
    other.post("/choose-password/", {"new_password": "một mật khẩu khác"})
    assert not is_in(browser)
    assert [seat.here for seat in sittings.seats(login, row_key(other))] == [True]


def test_use_keeps_a_session_and_disuse_ends_it(browser, citizen, login):
    sign_in(browser, citizen.code, CHOSEN)
    for _ in range(3):
        later(timedelta(minutes=90))
        assert is_in(browser)
        [seat] = sittings.seats(login, row_key(browser))
        assert timezone.now() - seat.seen < timedelta(minutes=1)
    later(timedelta(minutes=121))
    assert not is_in(browser)
    assert [seat.signed_in for seat in sittings.seats(login, row_key(browser))] == [False]


def test_it_ends_however_much_it_is_used(browser, app, citizen, login):
    sign_in(browser, citizen.code, CHOSEN)
    app.sign_in(citizen.code, CHOSEN)
    for _ in range(7):
        assert is_in(browser) and app.is_in
        later(timedelta(minutes=100))
    assert is_in(browser) and app.is_in
    later(timedelta(minutes=21))
    assert not is_in(browser) and not app.is_in


def test_most_requests_write_nothing(browser, citizen, login, django_assert_num_queries):
    sign_in(browser, citizen.code, CHOSEN)
    later(timedelta(minutes=14))
    before = Session.objects.get().expire_date
    assert is_in(browser)
    assert Session.objects.get().expire_date == before


def test_a_session_under_a_new_key_is_the_same_sitting(browser, citizen, login):
    sign_in(browser, citizen.code, CHOSEN)
    session = browser.session
    was = session.session_key
    session.cycle_key()
    session.save()
    browser.cookies["caplai_session"] = session.session_key
    assert session.session_key != was
    assert is_in(browser)
    assert [seat.here for seat in sittings.seats(login, row_key(browser))] == [True]
    browser.cookies["caplai_session"] = was
    assert not is_in(browser)


@pytest.mark.parametrize(
    ("user_agent", "client", "name"),
    [
        (ANDROID, "chrome/android", "Chrome trên Android"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
         " Version/17.0 Mobile/15E148 Safari/604.1", "safari/iphone", "Safari trên iPhone"),
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) coc_coc_browser/120.0.0"
         " Chrome/114.0.0.0 Safari/537.36", "coccoc/windows", "Cốc Cốc trên Windows"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/120.0 Safari/537.36 Edg/120.0", "edge/windows",
         "Edge trên Windows"),
        ("Mozilla/5.0 (Linux; Android 13; SM-A546E) SamsungBrowser/23.0 Chrome/115 Mobile Safari/537.36",
         "samsung/android", "Samsung Internet trên Android"),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:120.0) Gecko/20100101 Firefox/120.0", "firefox/mac",
         "Firefox trên Mac"),
        ("<script>alert(1)</script>", "other/other", "Một trình duyệt"),
        ("", "other/other", "Một trình duyệt"),
        ("x" * 600 + "Chrome", "other/other", "Một trình duyệt"),
    ],
)  # fmt: skip
def test_what_a_browser_is_called(user_agent, client, name):
    assert client_of(user_agent) == client
    assert name_of(client) == name


def test_what_an_app_is_called():
    assert client_of("VssID/2.1 CFNetwork/1410 Darwin/22.6.0", app=True) == "app/iphone"
    assert name_of("app/android") == "Ứng dụng trên Android"
    assert name_of("app/other") == "Ứng dụng"
    assert name_of("") == name_of("removed/later") == "Một trình duyệt"


def test_apps_are_told_from_browsers(citizen, login):
    app = App()
    app.sign_in(citizen.code, CHOSEN)
    assert Sitting.objects.get().client == "app/other"


def test_what_was_ended_meanwhile_ends_nobody_else_and_is_not_back(browser, app, citizen, login):
    """A request that had read its session before it was ended."""
    sign_in(browser, citizen.code, CHOSEN)
    app.sign_in(citizen.code, CHOSEN)
    there = next(seat for seat in sittings.seats(login, row_key(browser)) if not seat.here)
    ended = Sitting.objects.exclude(row_key=row_key(browser)).get().row_key
    assert sittings.end(login, there.name, row_key(browser))
    assert not sittings.end_others(login, ended, lambda: pytest.fail("it was ended"))
    assert is_in(browser)
