"""Somebody says "this was not me": the link does nothing, its form ends all, and the counter lifts it."""

from contextlib import nullcontext
from datetime import timedelta

import pytest
from allauth.mfa.models import Authenticator
from click.testing import CliRunner
from django.conf import settings
from django.db import connection, transaction
from django.test import Client
from django.utils import timezone

from caplai.cli import accounts
from caplai.domain import capability
from caplai.domain.policy import Outcome
from caplai.domain.replies import Texts, septets
from caplai.service import notices, report
from caplai.service.credentials import Outcome as Guessed
from caplai.service.register import import_accounts
from caplai.service.reissue import reissue_inbox
from caplai.store import queues
from caplai.store.models import (
    Account,
    Address,
    Case,
    Device,
    Event,
    Hold,
    Inbox,
    Login,
    Mail,
    TakenOverPassword,
)
from caplai.wiring import reissue_rules
from tests.mailbox import link_in, text_of
from tests.portal.forgetting import otp_of, read_phone
from tests.portal.test_recover import start, use
from tests.service.test_reissue import replies
from tests.signin.conftest import CHOSEN, is_in, sign_in
from tests.signin.test_guesses import guess
from tests.signin.test_taken_over import OLD as OLD_PASSWORD
from tests.signin.test_taken_over import pbkdf2, take_over

__all__ = ["use"]
OLD = "old@example.com"


@pytest.fixture
def lan(post, login):
    """Her account, just imported with the agency's address; an old one of hers and one from yesterday."""
    now = timezone.now()
    Address.objects.create(account=login.account_id, email=OLD, confirmed_at=now - timedelta(days=8))
    Address.objects.create(
        account=login.account_id, email="young@example.com", confirmed_at=now - timedelta(days=1)
    )
    return login


def tell(code, kind="password_chosen"):
    with transaction.atomic():
        notices.tell(code, kind)


def path_in(message):
    return link_in(message).removeprefix("https://caplai.example.vn")


def ask(text):
    """What the registered phone gets when it texts this."""
    conn = connection.connection
    queues.accept(conn, "viettel", None, [queues.Arrival("84327000686", 1, 1, "8079", 0, text)], join=None)
    with transaction.atomic():
        reissue_inbox(conn, reissue_rules(settings.CAPLAI, settings.KEYRING, conn), 10)
    return replies(conn)


def test_from_the_mail_to_the_lock_to_the_counter(post, lan, open_case, caplog):
    case = open_case()
    signed_in, stranger = Client(), Client()
    sign_in(signed_in, lan.username, CHOSEN)
    Authenticator.objects.create(user=lan, type=Authenticator.Type.WEBAUTHN, data={"name": "Máy cũ"})
    TakenOverPassword.objects.create(code=lan.username, hash="x")
    tell(lan.username)
    path = path_in(post.newest(OLD))

    page = stranger.get(path)  # as a link scanner does
    assert page.status_code == 200 and "Không phải tôi" in page.content.decode()
    assert stranger.head(path).status_code == 200
    assert lan.username not in page.content.decode() + path and lan.username[-4:] in page.content.decode()
    assert is_in(signed_in) and not Hold.objects.exists()

    assert "Tài khoản đã khóa" in stranger.post(path).content.decode()
    assert not is_in(signed_in)
    lan.refresh_from_db()
    assert not lan.has_usable_password() and not lan.is_active
    assert Case.objects.get().ended_as == "reported"
    for gone in (Device, Authenticator, TakenOverPassword):
        assert not gone.objects.exists()
    for password in (CHOSEN, case.password):
        client = Client()
        sign_in(client, lan.username, password)
        assert not is_in(client)
    assert Address.objects.get(removed_at__isnull=True).email == OLD
    assert "Tài khoản đã khóa" in str(post.newest(OLD)["Subject"])
    event = Event.objects.get(kind="reported")
    assert (event.login_id, event.case_id, event.data) == (lan.pk, case.case.id, {"by": "mail"})
    assert "held" in caplog.text and lan.username not in caplog.text and path.split("/")[2] not in caplog.text

    assert ask(f"BH MK {lan.username}") == [Texts.held]
    assert Inbox.objects.get().outcome == "held"
    assert "Tài khoản đã khóa" in Client().post(path).content.decode()  # once more is the same
    assert Event.objects.filter(kind="reported").count() == 1

    assert report.lift(lan.username, "Thu Ha")
    assert not report.lift(lan.username, "Thu Ha")
    [reply] = ask(f"BH MK {lan.username}")
    password = reply.split("Mat khau: ")[1][:6]
    assert sign_in(Client(), lan.username, password).headers["Location"] == "/choose-password/"
    assert (
        Client().post(path).status_code == 404
    )  # what was told before the counter looked says nothing any more
    assert Event.objects.get(kind="hold_lifted").data == {"by": "Thu Ha"}
    assert "được mở lại" in str(post.newest(OLD)["Subject"])


def test_only_addresses_older_than_a_week_can_report(post, lan):
    tell(lan.username)
    post.deliver()
    assert "/report/" in text_of(post.box.to(OLD)[0]) and "/report/" in text_of(
        post.box.to("lan@example.vn")[0]
    )
    assert "/report/" not in text_of(post.box.to("young@example.com")[0])
    assert "cơ quan BHXH gần nhất" in text_of(post.box.to("young@example.com")[0])


def test_the_agency_s_address_is_as_old_as_can_be_until_it_changes(post, conn, lan):
    """However long ago the account was imported."""

    def can_report(email):
        tell(lan.username)
        return "/report/" in text_of(post.newest(email))

    head, row = "code,phone,email,state\n", f"{lan.username},0327000686,%s,approved\n"
    assert can_report("lan@example.vn")
    Account.objects.update(created_at=timezone.now() - timedelta(days=900))
    import_accounts(conn, [head, row % "LAN@example.vn"])
    assert can_report("LAN@example.vn")
    import_accounts(conn, [head, row % "new@example.vn"])
    assert not can_report("new@example.vn")
    Account.objects.update(email_since=timezone.now() - timedelta(days=8))
    assert can_report("new@example.vn")


def test_a_stranger_s_phone_does_not_hear_that_an_account_is_held(post, lan):
    report.report(lan.username, report.BY_MAIL)
    Account.objects.update(phone="+84327000999")
    assert ask(f"BH MK {lan.username}") == [Texts.mismatch]


def test_links_that_are_none(post, lan):
    tell(lan.username)
    good = path_in(post.newest(OLD))
    token = good.split("/")[2]
    ring = settings.KEYRING.ring("pepper")
    mail = Mail.objects.filter(kind="password_chosen").last()
    other_use = capability.token(ring.keys[ring.active], "address", mail.name)
    for bad in (token[:-4] + "AAAA", other_use, "x", "%00", "é" * 43):
        assert Client().post(f"/report/{bad}/").status_code == 404
    assert not Hold.objects.exists()
    Mail.objects.update(created_at=timezone.now() - timedelta(days=13))
    assert Client().get(good).status_code == 200
    Mail.objects.update(created_at=timezone.now() - timedelta(days=15))
    assert Client().post(good).status_code == 404
    assert not Hold.objects.exists()


def test_the_form_needs_its_token(post, lan):
    tell(lan.username)
    client = Client(enforce_csrf_checks=True)
    assert client.post(path_in(post.newest(OLD))).status_code == 403
    assert not Hold.objects.exists()


def test_who_is_signed_in_reports_on_the_page(post, lan):
    client = Client()
    sign_in(client, lan.username, CHOSEN)
    assert "Không phải tôi" in client.get("/account/report/").content.decode()
    assert not Hold.objects.exists()
    assert "Tài khoản đã khóa" in client.post("/account/report/").content.decode()
    assert Hold.objects.get().by == "session"
    assert not is_in(client)
    assert Client().post("/account/report/").headers["Location"].startswith("/login/")


def test_a_login_that_was_switched_off_before_stays_so(post, lan):
    Login.objects.update(is_active=False)
    report.report(lan.username, report.BY_MAIL)
    report.lift(lan.username, "Thu Ha")
    assert not Login.objects.get().is_active


def test_an_account_that_nobody_ever_signed_in_to(post, citizen, open_case):
    open_case()
    assert report.report(citizen.code, report.BY_MAIL)
    assert Case.objects.get().ended_as == "reported"
    assert ask(f"BH MK {citizen.code}") == [Texts.held]
    assert not report.report("9999999999", report.BY_MAIL)


def test_an_import_does_not_bring_back_a_password_that_a_report_ended(conn, post, citizen, app):
    """Of somebody who never signed in here: the agency's next file still has the hash."""
    file = ["code,phone,email,state,password_hash\n", f"{citizen.code},0327000686,,approved,{pbkdf2()}\n"]
    import_accounts(conn, file)
    assert TakenOverPassword.objects.exists()
    assert report.report(citizen.code, report.BY_MAIL)
    import_accounts(conn, file)
    assert not TakenOverPassword.objects.exists()
    take_over(citizen.code)  # however it may come back
    assert app.sign_in(citizen.code, OLD_PASSWORD).status_code == 400
    Login.objects.all().delete()
    assert guess(citizen.code, OLD_PASSWORD) is Guessed.WRONG and not Login.objects.exists()


def test_a_report_within_a_day_of_a_re_issue_leaves_what_was_there_before_to_the_counter(
    post, lan, open_case, monkeypatch
):
    """Whoever has the phone re-issues, and reports: what the owner had is to be there, and to hear of it."""
    now = timezone.now()
    open_case()
    Case.objects.update(ended_at=now - timedelta(hours=3), ended_as="used")
    Address.objects.create(account=lan.username, email="thief@example.com", confirmed_at=now)
    Address.objects.create(account=lan.username, email="waits@example.com")
    for name, at in (("Máy cũ", now - timedelta(days=2)), ("Máy mới", now)):
        kind = Authenticator.Type.WEBAUTHN
        Authenticator.objects.create(user=lan, type=kind, data={"name": name}, created_at=at)
    thief = Client()
    sign_in(thief, lan.username, CHOSEN)
    assert "Tài khoản đã khóa" in thief.post("/account/report/").content.decode()

    def left():
        return set(Address.objects.filter(removed_at__isnull=True).values_list("email", flat=True))

    told = ("lan@example.vn", OLD, "young@example.com", "thief@example.com")
    for email in told:
        assert "Tài khoản đã khóa" in str(post.newest(email)["Subject"]), email
    assert left() == {OLD, "young@example.com"}
    assert [each.wrap().name for each in Authenticator.objects.all()] == ["Máy cũ"]
    client = Client()
    sign_in(client, lan.username, CHOSEN)
    assert not is_in(client)

    Address.objects.filter(email=OLD).update(confirmed_at=now - timedelta(days=8))
    monkeypatch.setattr(accounts, "ready", lambda config: nullcontext())
    monkeypatch.setattr(accounts, "load_config", lambda: None)
    lifted = CliRunner().invoke(accounts.accounts_hold_lift, [lan.username, "--by", "Thu Ha"])
    assert lifted.exit_code == 0, lifted.output
    for email in ("lan@example.vn", OLD, "young@example.com"):
        assert "được mở lại" in str(post.newest(email)["Subject"])
    assert "được mở lại" not in str(post.newest("thief@example.com")["Subject"])
    assert left() == {OLD}
    assert not Authenticator.objects.exists()


def test_who_never_signed_in_gets_in_after_the_counter(post, citizen):
    report.report(citizen.code, report.BY_MAIL)
    assert not Login.objects.get().is_active
    report.lift(citizen.code, "Thu Ha")
    [reply] = ask(f"BH MK {citizen.code}")
    password = reply.split("Mat khau: ")[1][:6]
    assert sign_in(Client(), citizen.code, password).headers["Location"] == "/choose-password/"


def test_the_text_of_a_held_account_is_one_segment():
    assert septets(Texts.held) <= 160
    assert str(Outcome.HELD) == "held"


def test_operators_list_and_lift_by_the_command_line(post, lan, monkeypatch):
    monkeypatch.setattr(accounts, "ready", lambda config: nullcontext())
    monkeypatch.setattr(accounts, "load_config", lambda: None)
    report.report(lan.username, report.BY_MAIL)
    run = CliRunner().invoke
    listed = run(accounts.accounts_hold_list).output
    assert "…5678  0327xxx686" in listed and "1 accounts are held." in listed and lan.username not in listed
    lifted = run(accounts.accounts_hold_lift, [lan.username, "--by", "Thu Ha"])
    assert lifted.exit_code == 0, lifted.output
    assert run(accounts.accounts_hold_lift, [lan.username, "--by", "Thu Ha"]).exit_code != 0
    assert Hold.objects.get().lifted_by == "Thu Ha"


def test_an_app_reports_by_session_or_by_the_link_s_token(post, lan, app):
    tell(lan.username)
    token = path_in(post.newest(OLD)).split("/")[2]
    assert app.call("POST", "account/report").status_code == 401
    assert app.call("POST", "report", {}).status_code == 400
    for junk in (1, token[:-1], "\ud800"):
        assert app.call("POST", "report", {"token": junk}).status_code == 404
    assert not Hold.objects.exists()
    assert app.call("POST", "report", {"token": token}).status_code == 200
    assert Hold.objects.get().by == "mail"
    report.lift(lan.username, "Thu Ha")
    lan.refresh_from_db()
    lan.set_password(CHOSEN)
    lan.save()
    app.sign_in(lan.username, CHOSEN)
    assert app.call("POST", "account/report").status_code == 401
    assert Hold.objects.filter(lifted_at=None).get().by == "session"
    assert not app.is_in


def test_the_web_s_way_back_in_says_so_after_the_proof(lan, use, browser):
    report.report(lan.username, report.BY_MAIL)
    Account.objects.update(phone="+84327000686")
    use()
    start(browser, lan.username)
    [(_, text)] = read_phone()
    page = browser.post("/recover/otp/", {"otp": otp_of(text)}, follow=True).content.decode()
    assert "khóa" in page and "cơ quan BHXH" in page
    assert not Case.objects.exists() and read_phone() == []


def test_a_link_s_token_is_in_no_table(post, lan, conn):
    tell(lan.username)
    path = path_in(post.newest(OLD))
    Client().get(path)
    Client().post(path)
    secret = path.split("/")[2][22:]  # what stands before it is the mail's name
    for (table,) in conn.execute(
        "select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace"
    ):
        assert secret not in str(conn.execute(f"select t::text from {table} t").fetchall()), table
