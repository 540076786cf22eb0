"""An account's passkeys: listed, added, renamed and removed by their owner, who always keeps a way in."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from allauth.mfa.models import Authenticator
from django.db import connection
from django.test import Client
from django.utils import timezone

from caplai.portal import passkeys as pages
from caplai.service import passkeys
from caplai.service.passkeys import Adding, Removing
from caplai.store.models import Event, Login
from tests.mailbox import text_of
from tests.signin.conftest import CHOSEN, is_in, sign_in
from tests.signin.softkey import HERE, SoftKey, asked, send

PAGE = "/account/passkeys/"
ADD = PAGE + "add/"


@pytest.fixture
def lan(login) -> Client:
    """Her browser, signed in."""
    client = Client(
        **HERE, HTTP_USER_AGENT="Mozilla/5.0 (Linux; Android 14) Chrome/140.0.0.0 Mobile Safari/537.36"
    )
    sign_in(client, login.username, CHOSEN)
    return client


def only() -> Authenticator:
    return Authenticator.objects.get()


def ago(days: float) -> None:
    Authenticator.objects.update(created_at=timezone.now() - timedelta(days=days))


def kinds() -> list[str]:
    return list(Event.objects.exclude(kind="signed_in").order_by("id").values_list("kind", flat=True))


def stale(client: Client) -> None:
    """It signed in twenty minutes ago."""
    session = client.session
    for record in session["account_authentication_methods"]:
        record["at"] = time.time() - 1200
    session.save()


def test_from_the_first_to_none(post, lan, login):
    assert "Bạn chưa thêm vân tay hoặc khuôn mặt." in lan.get(PAGE).content.decode()
    page = lan.get(ADD).content.decode()
    assert 'data-passkey="create"' in page and "Trình duyệt này không dùng được" in page
    key = SoftKey()
    answer = send(lan, key.make(asked(lan, ADD)), ADD)
    assert answer.redirect_chain == [(PAGE, 302)]
    page = answer.content.decode()
    assert "Từ nay bạn có thể đăng nhập bằng cách này." in page
    assert "Chrome trên Android" in page and "chưa dùng lần nào" in page
    assert "đã thêm cách đăng nhập bằng vân tay hoặc khuôn mặt" in text_of(post.newest("lan@example.vn"))
    assert is_in(lan)  # nothing else has ended

    other = Client(**HERE)
    send(other, key.show(asked(other)))
    assert is_in(other)
    assert "dùng lần cuối lúc" in other.get(PAGE).content.decode()

    here = f"{PAGE}{only().pk}/"
    assert 'value="Chrome trên Android"' in lan.get(here).content.decode()
    for wrong in ("", "  ", "x" * 61, "a\0b"):
        assert lan.post(here, {"name": wrong}).status_code == 200
    lan.post(here, {"name": "Máy của <b>Lan"})
    assert "Máy của &lt;b&gt;Lan" in lan.get(PAGE).content.decode()

    assert "Xóa Máy của &lt;b&gt;Lan?" in lan.get(here + "remove/").content.decode()
    assert Authenticator.objects.count() == 1
    for _ in range(2):  # sent twice
        answer = lan.post(here + "remove/", follow=True)
        assert "Đã xóa." in answer.content.decode()
    assert not Authenticator.objects.exists()
    assert kinds() == ["passkey_added", "passkey_removed"]
    assert "đã xóa một cách đăng nhập bằng vân tay hoặc khuôn mặt" in text_of(post.newest("lan@example.vn"))
    gone = Client(**HERE)
    send(gone, key.show(asked(gone)))
    assert not is_in(gone)


def test_the_last_way_in_stays(lan, login):
    key = SoftKey.of(login, "a")
    Login.objects.update(password="!nothing")
    answer = lan.post(f"{PAGE}{only().pk}/remove/", follow=True)
    assert "Đây là cách đăng nhập duy nhất của bạn." in answer.content.decode()
    first = only().pk
    SoftKey.of(login, "b")
    assert pages.remove(login, first) is Removing.REMOVED
    assert pages.remove(login, only().pk) is Removing.LAST
    assert kinds() == ["passkey_removed"]
    del key


@pytest.mark.django_db(transaction=True)
def test_of_two_that_are_removed_at_once_one_stays(login):
    SoftKey.of(login, "a"), SoftKey.of(login, "b")
    Login.objects.update(password="!nothing")

    def remove(passkey):
        try:
            return pages.remove(Login.objects.get(), passkey)
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(remove, Authenticator.objects.values_list("pk", flat=True)))
    assert sorted(one.value for one in done) == ["last", "removed"]
    assert Authenticator.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_of_many_that_are_added_at_once_ten_are(login):
    for number in range(passkeys.MOST - 2):
        SoftKey.of(login, str(number))

    def add(number):
        try:
            who = Login.objects.get()
            request = type("Request", (), {"user": who})
            return pages.add(request, {"id": number}, "x")
        finally:
            connection.close()

    # What is added is read again by nobody here, so that it need be no passkey.
    with ThreadPoolExecutor(5) as threads:
        done = list(threads.map(add, range(5)))
    assert sorted(one.value for one in done) == ["added"] * 2 + ["too_many"] * 3
    assert Authenticator.objects.count() == passkeys.MOST


def test_for_a_day_after_a_re_issue_those_of_before_stay(lan, login, open_case):
    old = SoftKey.of(login, "the owner's")
    ago(30)
    kept = only().pk
    opened = open_case()
    thief = Client(**HERE)
    sign_in(thief, login.username, opened.password)
    send(thief, SoftKey().make(asked(thief, "/choose-password/passkey/")), "/choose-password/passkey/")
    assert is_in(thief)
    page = thief.get(PAGE).content.decode()
    assert page.count("Để an toàn, chỉ xóa được sau") == 1
    assert f"{PAGE}{kept}/remove/" not in page
    answer = thief.post(f"{PAGE}{kept}/remove/", follow=True)
    assert "vì mật khẩu vừa được cấp lại" in answer.content.decode()
    owner = Client(**HERE)
    send(owner, old.show(asked(owner)))
    assert is_in(owner)
    # What came with the case can go at once.
    new = Authenticator.objects.exclude(pk=kept).get().pk
    answer = owner.post(f"{PAGE}{new}/remove/", follow=True)
    assert "Đã xóa." in answer.content.decode()


def test_after_the_day_they_can_go(lan, login, open_case):
    SoftKey.of(login, "old")
    ago(30)
    case = open_case().case
    type(case).objects.update(ended_at=timezone.now() - timedelta(hours=25), ended_as="used")
    lan.post(f"{PAGE}{only().pk}/remove/")
    assert not Authenticator.objects.exists()


@pytest.mark.parametrize("path", [ADD, ADD + "options/", "remove/"])
def test_only_after_a_fresh_sign_in(lan, login, path):
    SoftKey.of(login, "a")
    path = f"{PAGE}{only().pk}/remove/" if path == "remove/" else path
    made = {"credential": "{}"}
    stale(lan)
    answer = lan.post(path, made)
    assert answer.status_code == 403
    assert "Đăng nhập lại" in answer.content.decode()
    assert lan.get(PAGE).status_code == 200
    assert Authenticator.objects.count() == 1

    # A passkey is as good as a password for that.
    again = Client(**HERE)
    key = SoftKey.of(login, "b")
    send(again, key.show(asked(again)))
    assert again.post(path, made).status_code != 403


def test_nobody_elses(lan, login, operator):
    SoftKey.of(operator, "a stranger's")
    passkey = only().pk
    assert lan.get(f"{PAGE}{passkey}/").status_code == 404
    assert lan.post(f"{PAGE}{passkey}/", {"name": "mine"}).status_code == 404
    assert lan.get(f"{PAGE}{passkey}/remove/").status_code == 404
    lan.post(f"{PAGE}{passkey}/remove/")
    assert only().wrap().name == "a stranger's"
    assert "a stranger" not in lan.get(PAGE).content.decode()
    nobody = Client(**HERE)
    for path in (PAGE, ADD, f"{PAGE}{passkey}/", f"{PAGE}{passkey}/remove/"):
        assert nobody.get(path)["Location"].startswith("/login/")
    staff = Client(**HERE)
    sign_in(staff, operator.username, "bảy con cò trắng")
    assert staff.get(PAGE)["Location"] == "/"


def test_what_is_refused(lan, login):
    made = SoftKey(origin="https://evil.example").make(asked(lan, ADD))
    answer = send(lan, made, ADD)
    assert answer.redirect_chain == [(ADD, 302)]
    assert "Chưa lưu được vân tay hoặc khuôn mặt." in answer.content.decode()
    key = SoftKey()
    options = asked(lan, ADD)
    send(lan, key.make(options), ADD)
    send(lan, key.make(options), ADD)  # the same challenge
    assert Authenticator.objects.count() == 1


def test_a_session_that_has_ended_meanwhile_adds_and_removes_nothing(login):
    SoftKey.of(login, "a")
    Login.objects.update(stamp="another")
    assert passkeys.add(login, dict, lambda: 1 / 0) is Adding.ENDED
    assert pages.remove(login, only().pk) is Removing.ENDED


def test_where_browsers_have_none_the_list_says_so(login):
    client = Client(HTTP_HOST="192.0.2.7")
    sign_in(client, login.username, CHOSEN)
    page = client.get(PAGE).content.decode()
    assert "chưa dùng được vân tay hoặc khuôn mặt" in page and ADD not in page
    assert client.get(ADD)["Location"] == PAGE
    assert client.post(ADD + "options/").status_code == 404
    assert not re.search("passkeys.js", page)
