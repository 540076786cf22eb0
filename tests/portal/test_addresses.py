"""An account's e-mail addresses: added, confirmed by a mailed code and removed by their owner, and by nobody else."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.conf import settings
from django.db import connection
from django.test import Client
from django.utils import timezone

from caplai.channels.mailserver import MailServer
from caplai.service import addressbook
from caplai.service.addressbook import Adding, Confirming, Removing
from caplai.service.addresses import confirmed
from caplai.store.models import Address, Case, Event, Mail
from tests.mailbox import code_in, text_of
from tests.signin.conftest import CHOSEN, sign_in

NEW = "lan.tran@example.com"
PAGE = "/account/email/"


def peppers():
    return settings.KEYRING.ring("pepper").keys.values()


@pytest.fixture
def lan(post, login) -> Client:
    """Her browser, signed in."""
    client = Client()
    sign_in(client, login.username, CHOSEN)
    return client


def emails(login):
    return [address.email for address in confirmed(login.account_id)]


def wrong(code):
    return f"{(int(code) + 1) % 10**6:06}"


def test_an_address_is_added_by_the_code_that_is_mailed_to_it(post, lan, login):
    shown = lan.get(PAGE).content.decode()
    assert "lan@example.vn" in shown and "/account/email/add/" in shown
    response = lan.post(PAGE + "add/", {"email": "lan.tran@EXAMPLE.com"})
    assert response.headers["Location"] == PAGE + "confirm/"
    assert NEW in lan.get(PAGE + "confirm/").content.decode()
    assert emails(login) == ["lan@example.vn"]
    mail = post.newest(NEW)
    code = code_in(mail)
    assert post.box.to("lan@example.vn") == []
    assert "chưa đúng" in lan.post(PAGE + "confirm/", {"code": wrong(code)}).content.decode()
    response = lan.post(PAGE + "confirm/", {"code": f"{code[:3]} {code[3:]}"}, follow=True)
    assert "Đã xác nhận địa chỉ email." in response.content.decode()
    assert emails(login) == ["lan@example.vn", NEW]
    told = text_of(post.newest("lan@example.vn"))
    assert "đã thêm và xác nhận một địa chỉ email khác" in told and "5678" in told
    assert login.username not in told
    assert len(post.box.to(NEW)) == 1
    assert Event.objects.get(kind="address_confirmed").login_id == login.pk


def test_after_a_re_issue_the_first_page_leads_to_an_address(post, browser, citizen, open_case, settings):
    asked = "Nếu lại quên mật khẩu, bạn có thể lấy lại bằng email"
    citizen.email = ""
    citizen.save()
    sign_in(browser, citizen.code, open_case().password)
    first = browser.post("/choose-password/", {"new_password": CHOSEN}, follow=True).content.decode()
    assert asked in first and PAGE + "add/" in first
    browser.post(PAGE + "add/", {"email": NEW})
    waiting = browser.get("/").content.decode()
    assert asked not in waiting and NEW in waiting and PAGE + "confirm/" in waiting
    browser.post(PAGE + "confirm/", {"code": code_in(post.newest(NEW))})
    assert asked not in browser.get("/").content.decode()
    Address.objects.all().delete()
    assert asked in browser.get("/").content.decode()
    settings.CAPLAI = settings.CAPLAI.model_copy(update={"mail": MailServer()})  # none
    assert asked not in browser.get("/").content.decode()


def test_who_was_not_re_issued_a_password_is_not_asked_for_an_address(post, lan, citizen):
    citizen.email = ""
    citizen.save()
    assert PAGE + "add/" not in lan.get("/").content.decode()


def test_removing_is_told_to_all_of_them(post, lan, login):
    added = Address.objects.create(account=login.account_id, email=NEW, confirmed_at=timezone.now())
    response = lan.post(f"{PAGE}{added.pk}/remove/", follow=True)
    assert "Đã xóa địa chỉ email." in response.content.decode()
    assert emails(login) == ["lan@example.vn"]
    post.deliver()
    assert "đã xóa một địa chỉ email" in text_of(post.box.to(NEW)[0])
    assert len(post.box.to("lan@example.vn")) == 1
    assert addressbook.remove(login, added.pk) is Removing.UNKNOWN


def test_nobody_else_s_address_can_be_removed_or_confirmed(post, lan, login):
    other = Address.objects.create(account="9999999999", email=NEW, confirmed_at=timezone.now())
    lan.post(f"{PAGE}{other.pk}/remove/")
    assert Address.objects.get().removed_at is None
    Address.objects.create(account="9999999999", email="x@example.com")
    assert addressbook.confirm(login, "000000", peppers()) is Confirming.ENDED


def test_within_a_day_of_a_re_issue_what_was_there_before_stays(post, lan, login, open_case):
    now = timezone.now()
    before = Address.objects.create(
        account=login.account_id, email=NEW, confirmed_at=now - timedelta(days=9), added_at=now
    )
    open_case()
    Case.objects.update(ended_at=now - timedelta(hours=2), ended_as="used")
    after = Address.objects.create(account=login.account_id, email="new@example.com", confirmed_at=now)
    shown = lan.get(PAGE).content.decode()
    assert f"/{before.pk}/remove/" not in shown and f"/{after.pk}/remove/" in shown
    response = lan.post(f"{PAGE}{before.pk}/remove/", follow=True)
    assert "Để an toàn, chỉ xóa được sau" in response.content.decode()
    assert addressbook.remove(login, after.pk) is Removing.REMOVED
    Case.objects.update(ended_at=now - timedelta(hours=25))
    assert addressbook.remove(login, before.pk) is Removing.REMOVED


def test_a_code_bears_five_tries_and_lives_a_day(post, login):
    assert addressbook.add(login, NEW) is Adding.SENT
    code = code_in(post.newest(NEW))
    for _ in range(4):
        assert addressbook.confirm(login, wrong(code), peppers()) is Confirming.WRONG
    assert addressbook.confirm(login, wrong(code), peppers()) is Confirming.ENDED
    assert addressbook.confirm(login, code, peppers()) is Confirming.ENDED
    assert addressbook.add(login, NEW) is Adding.SENT
    fresh = code_in(post.newest(NEW))
    assert fresh != code
    Address.objects.update(added_at=timezone.now() - timedelta(hours=25))
    assert addressbook.confirm(login, fresh, peppers()) is Confirming.ENDED
    assert emails(login) == ["lan@example.vn"]


def test_the_same_code_is_sent_three_times_at_most_and_to_few_addresses(post, login):
    assert [addressbook.add(login, NEW) for _ in range(4)] == [Adding.SENT] * 3 + [Adding.TOO_OFTEN]
    assert len({code_in(message) for message in post.deliver().to(NEW)}) == 1
    assert len(post.box.to(NEW)) == 3
    sent = [addressbook.add(login, f"a{n}@example.com") for n in range(5)]
    assert sent == [Adding.SENT] * 4 + [Adding.TOO_OFTEN]
    assert Address.objects.filter(removed_at__isnull=True).count() == 1


def test_what_is_there_already_and_what_is_too_much(post, login):
    assert addressbook.add(login, "LAN@example.vn") is Adding.ALREADY
    for n in range(5):
        Address.objects.create(
            account=login.account_id,
            email=f"a{n}@example.com",
            confirmed_at=timezone.now(),
            added_at=timezone.now() - timedelta(days=2),
        )
    assert addressbook.add(login, NEW) is Adding.TOO_MANY


@pytest.mark.parametrize(
    "typed", ["", "lan", "lan@", "lan@example", "trần@example.vn", "a\r\nb@example.com", "x" * 260 + "@a.vn"]
)
def test_what_is_no_address_is_refused_beside_the_field(post, lan, typed):
    response = lan.post(PAGE + "add/", {"email": typed})
    assert response.status_code == 200 and 'class="error"' in response.content.decode()
    assert Address.objects.count() == Mail.objects.count() == 0


def test_an_old_sign_in_is_asked_for_again_and_comes_back(post, lan, login, monkeypatch):
    real = time.time
    monkeypatch.setattr("caplai.portal.access.time.time", lambda: real() + 16 * 60)
    response = lan.get(PAGE + "add/")
    assert response.status_code == 403 and "Đăng nhập lại" in response.content.decode()
    assert lan.post(PAGE + "add/", {"email": NEW}).status_code == 403
    assert Address.objects.count() == 0
    response = lan.post("/account/again/", {"next": PAGE + "add/"})
    assert response.headers["Location"] == f"/login/?next={PAGE}add/"
    assert lan.get(PAGE).status_code == 302  # it is signed out
    assert lan.post("/account/again/", {"next": "//evil.example/"}).headers["Location"] == "/login/?next=/"


def test_strangers_and_operators_have_no_such_page(post, login, operator):
    assert Client().get(PAGE).headers["Location"] == f"/login/?next={PAGE}"
    client = Client()
    sign_in(client, operator.username, "bảy con cò trắng")
    assert client.get(PAGE).headers["Location"] == "/"


def test_without_a_mail_server_nothing_is_offered(transactional_db, login):
    client = Client()
    sign_in(client, login.username, CHOSEN)
    assert "/account/email/add/" not in client.get(PAGE).content.decode()
    assert addressbook.add(login, NEW) is Adding.OFF


def test_sixteen_tries_at_once_are_five(post, login):
    assert addressbook.add(login, NEW) is Adding.SENT
    code = code_in(post.newest(NEW))

    def attempt(n):
        try:
            return addressbook.confirm(login, wrong(code), peppers())
        finally:
            connection.close()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(attempt, range(16)))
    assert Address.objects.get().tries == 5


def test_no_code_and_no_address_in_logs_and_events_and_no_code_in_any_table(post, lan, login, caplog, conn):
    lan.post(PAGE + "add/", {"email": NEW})
    code = code_in(post.newest(NEW))
    lan.post(PAGE + "confirm/", {"code": wrong(code)})
    lan.post(PAGE + "confirm/", {"code": code})
    post.deliver()
    ours = "\n".join(
        record.getMessage() for record in caplog.records if record.name.startswith(("caplai", "django"))
    )
    for secret in (code, NEW, "lan@example.vn", login.username):
        assert secret not in ours
        assert secret not in str(list(Event.objects.values("kind", "data")))
    for (table,) in conn.execute(
        "select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace"
    ):
        rows = str(conn.execute(f"select t::text from {table} t").fetchall())
        assert code not in rows, table
        assert NEW not in rows or table == "address"


def test_an_app_does_what_the_page_does(post, app, login, open_case):
    assert app.call("GET", "account/emails").status_code == 401
    app.sign_in(login.username, CHOSEN)
    assert app.call("POST", "account/emails", {"email": "lan"}).status_code == 400
    assert app.call("POST", "account/emails", {"email": "lan@example.vn"}).status_code == 409
    sent = app.call("POST", "account/emails", {"email": NEW}).json()["data"]
    assert sent["pending"] == {"email": NEW, "tries": 5}
    code = code_in(post.newest(NEW))
    refused = app.call("POST", "account/emails/confirm", {"code": wrong(code)})
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (400, "wrong_code")
    [_, added] = app.call("POST", "account/emails/confirm", {"code": code}).json()["data"]["addresses"]
    assert (added["email"], added["kept_until"]) == (NEW, None)
    assert app.call("POST", "account/emails/confirm", {"code": code}).status_code == 409
    assert app.call("DELETE", "account/emails/999").status_code == 404
    open_case()
    Case.objects.update(ended_at=timezone.now(), ended_as="used")
    assert app.call("DELETE", f"account/emails/{added['id']}").status_code == 409
    Case.objects.all().delete()
    left = app.call("DELETE", f"account/emails/{added['id']}").json()["data"]
    assert [address["email"] for address in left["addresses"]] == ["lan@example.vn"]


def test_an_app_whose_sign_in_is_old_is_asked_for_it_again(post, app, login, monkeypatch):
    app.sign_in(login.username, CHOSEN)
    real = time.time
    monkeypatch.setattr("caplai.portal.access.time.time", lambda: real() + 16 * 60)
    response = app.call("POST", "account/emails", {"email": NEW})
    assert (response.status_code, response.json()["errors"][0]["code"]) == (403, "sign_in_again")
    assert app.call("GET", "account/emails").status_code == 200
