"""E-mail goes to a real SMTP server (aiosmtpd) in every mood: sent once it is taken, never lost, never for ever."""

import logging
import time
from datetime import timedelta

import pytest
from django.conf import settings
from django.db import transaction

from caplai.channels.mailserver import MailServer
from caplai.domain.capability import code
from caplai.domain.letters import Code, Link, Part
from caplai.service import mail
from caplai.store import mails
from caplai.store.models import Account, Mail
from tests.mailbox import code_in, mailer, make_due, running, send, text_of


@pytest.fixture
def post(transactional_db, monkeypatch):
    """Queue a mail with a code in it for Lan; mail is on."""
    Account.objects.create(code="0123456789", phone="+84327000686", email="lan@example.vn", state="approved")

    def write(due, site):
        keys = site.keys.ring("pepper")
        digits = code(keys.keys[keys.active], "test", due.name)
        return Part("Mã <thử>", ["Xin chào & tạm biệt.", Code(digits), Link("Mở trang", f"{site.url}/x/")])

    monkeypatch.setitem(mail.KINDS, "test", write)
    monkeypatch.setattr(mail, "is_on", lambda: True)
    return lambda **options: mail.post("test", "0123456789", **options)


def states():
    return list(Mail.objects.order_by("id").values_list("state", "attempts", "error"))


def test_a_mail_has_both_languages_text_and_html_and_nothing_remote(post):
    with running() as (box, server):
        name = post(urgent=True)
        send(mailer(server))
        [(to, message)] = box.mails
    assert to == "lan@example.vn"
    assert message["From"] == "caplai <caplai@agency.vn>"
    assert message["Message-ID"] == f"<{name}@agency.vn>"
    assert message["Auto-Submitted"] == "auto-generated"
    html = message.get_body(("html",)).get_content()
    assert "Xin chào & tạm biệt." in text_of(message) and "Xin chào &amp; tạm biệt." in html
    assert html.index('lang="vi"') < html.index('lang="en"')
    assert not any(word in html for word in ("src=", "<img", "<link", "<style", "url(", "<script"))
    assert code_in(message) in html
    assert states() == [("sent", 1, None)]


def test_the_same_code_each_time_and_in_no_table(post, conn):
    with running() as (box, server):
        name = post()
        sender = mailer(server)
        box.at_data = ["taken and dropped"]
        send(sender)
        assert states() == [("ready", 1, "SMTPServerDisconnected")]
        make_due(sender)
        send(sender)
    first, again = (message for _, message in box.mails)
    assert states() == [("sent", 2, None)]
    assert code_in(first) == code_in(again) and first["Message-ID"] == again["Message-ID"]
    ring = settings.KEYRING.ring("pepper")
    assert code_in(first) == code(ring.keys[ring.active], "test", name)
    [[row]] = conn.execute("select m::text from mail m").fetchall()
    assert code_in(first) not in row


def test_what_the_caller_rolls_back_is_never_sent(post):
    with transaction.atomic():
        post()
        transaction.set_rollback(True)
    assert states() == []


def test_an_address_that_is_refused_fails_and_the_next_one_is_sent(post):
    with running() as (box, server):
        post()
        post()
        box.at_rcpt = ["550 5.1.1 no such mailbox lan@example.vn"]
        send(mailer(server))
    assert states() == [("failed", 1, "SMTP 550"), ("sent", 1, None)]


@pytest.mark.parametrize("where", ["at_rcpt", "at_data"])
def test_a_server_that_puts_off_is_asked_again_later(post, where):
    with running() as (box, server):
        post()
        setattr(box, where, ["451 4.7.1 greylisted"])
        sender = mailer(server)
        began = time.time()
        send(sender)
        assert states() == [("ready", 1, "SMTP 451")]
        assert began + 1 < Mail.objects.get().due_at.timestamp() <= time.time() + 2
        make_due(sender)
        send(sender)
    assert states() == [("sent", 2, None)]


@pytest.mark.parametrize("mood", ["drop", "421 4.3.2 closing"])
def test_a_server_that_hangs_up_is_left_alone_and_tried_again(post, mood):
    with running() as (box, server):
        for _ in range(3):
            post()
        box.at_rcpt = [mood]
        sender = mailer(server)
        send(sender)
        assert box.rcpts == 1  # the others did not even try
        assert [(state, attempts) for state, attempts, _ in states()] == [
            ("ready", 1),
            ("ready", 0),
            ("ready", 0),
        ]
        make_due(sender)
        send(sender)
    assert {state for state, _, _ in states()} == {"sent"}
    assert len(box.mails) == 3


def test_a_server_that_is_away_costs_no_mail_and_is_said_once(post, caplog):
    with running() as (_, server):
        pass
    post()
    sender = mailer(server)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            send(sender)
            make_due(sender)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("caplai")] == [
        "mail: the server cannot be used (ConnectionRefusedError)"
    ]
    assert "lan@" not in caplog.text
    assert states() == [("ready", 3, "ConnectionRefusedError")]


def test_what_comes_too_late_or_has_nowhere_to_go_fails(post):
    with running() as (box, server):
        post()
        Mail.objects.update(until="2020-01-01T00:00Z")
        Account.objects.create(code="0000000001", phone="+84327000687", state="approved")
        mail.post("test", "0000000001")
        send(mailer(server))
    assert states() == [("failed", 0, "late"), ("failed", 0, "no_address")]
    assert box.mails == []


def test_who_waits_comes_first_and_what_a_dead_sender_held_is_due_again(post, conn):
    first, second = post(), post(urgent=True)
    assert [due.name for due in mails.claim(conn, "dead", 1, timedelta(seconds=30))] == [second]
    [due] = mails.claim(conn, "living", 5, timedelta(seconds=30))
    assert due.name == first
    conn.execute("update mail set due_at = now() where claimed_by = 'dead'")
    [again] = mails.claim(conn, "living", 5, timedelta(seconds=30))
    assert again.name == second and again.attempts == 2
    assert not mails.settle(conn, "dead", again.id, "failed")  # it is not the dead one's any more
    assert mails.settle(conn, "living", again.id, "sent")


def test_a_claim_goes_by_the_index_and_sorts_nothing_of_what_waits(post, conn):
    conn.execute(
        "insert into mail (name, kind, account, until, due_at, urgent) select gen_random_uuid(), 'test', '', now(),"
        " now() - n * interval '1 second', n % 100 = 0 from generate_series(1, 50000) n"
    )
    conn.execute("analyze mail")
    values = {"by": "m", "count": 10, "lease": timedelta(seconds=30)}
    plan = "\n".join(line for (line,) in conn.execute("explain " + mails._CLAIM, values).fetchall())
    assert "Index Scan using mail_due" in plan, plan
    assert plan.count("Sort  (") == 1, plan  # of the ten


def test_a_chore_that_fails_costs_no_mail_and_is_put_off(post, caplog):
    found = []

    def chore(conn):
        found.append(len(box.mails))
        with conn.transaction():
            conn.execute("set local statement_timeout = '10ms'")
            conn.execute("select pg_sleep(5), 'lan@example.vn'")

    with running() as (box, server):
        sender = mailer(server, chore)
        post()
        send(sender)
        assert found == [1]  # after the mail
        for pause in (8, 16, 32):
            sender._chores_at = 0.0
            began = time.monotonic()
            sender._work()
            assert began + pause <= sender._chores_at <= time.monotonic() + pause
        post()
        send(sender)
        assert len(box.mails) == 2 and len(found) == 4
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("caplai")]
    assert ours == ["mail: a chore failed (QueryCanceled)"] * 4  # and not what it was about


def test_what_a_chore_queues_waits_for_no_poll(post):
    with running() as (box, server):
        left = [1]
        sender = mailer(server, lambda conn: len([post() for _ in range(left.pop() if left else 0)]))
        send(sender)
        assert len(box.mails) == 1


@pytest.mark.slow
def test_the_thread_is_woken_by_a_post_and_survives_a_lost_database_connection(post, conn):
    with running() as (box, server):
        sender = mailer(server)
        sender.start()
        try:
            post()
            box.wait_for(1)
            time.sleep(0.1)
            began = time.monotonic()
            post()
            box.wait_for(2)
            assert time.monotonic() - began < 1.5  # not by the poll
            conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where query like 'listen caplai_mail%'"
            )
            conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
                " and application_name = 'caplai' and datname = current_database()"
            )
            post()
            box.wait_for(3)
        finally:
            sender.stop()
    assert [state for state, _, _ in states()] == ["sent"] * 3


def test_settings_that_cannot_work_are_refused():
    for wrong, says in [
        ({"host": "mx"}, "mail.sender"),
        ({"host": "mx", "sender": "nobody"}, "mail.sender"),
        ({"host": "mx", "sender": "a@b.vn", "username": "a"}, "set both or neither"),
        ({"host": "mx", "sender": "a@b.vn", "username": "a", "password": "x", "tls": "none"}, "in the clear"),
    ]:
        with pytest.raises(ValueError, match=says):
            MailServer(**wrong)
    assert "geheim" not in repr(MailServer(host="mx", sender="a@b.vn", username="a", password="geheim"))
    assert not mail.is_on()


def test_a_server_with_starttls_that_we_cannot_trust_gets_nothing(post):
    with running() as (box, server):  # it offers no TLS at all
        post()
        send(mailer(MailServer(**{**server.model_dump(), "tls": "starttls"})))
    assert states() == [("ready", 1, "SMTPNotSupportedError")]
    assert box.rcpts == 0
