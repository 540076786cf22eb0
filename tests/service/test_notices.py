"""Re-issues are told to confirmed addresses, each once, from another process and without the flow's help."""

import threading
from datetime import timedelta

import psycopg
import pytest
from django.db import connection
from django.utils import timezone

from caplai.channels.mailserver import MailServer
from caplai.service import keys, notices
from caplai.service.notices import tell_of_reissues
from caplai.service.reissue import reissue_inbox
from caplai.store import queues
from caplai.store.db import connect
from caplai.store.models import Account, Address, Case, Mail, Retention
from tests.mailbox import link_in, mailer, running, send, text_of
from tests.service.test_reissue import LAN, receive


@pytest.fixture
def mails(settings):
    server = MailServer(host="127.0.0.1", sender="caplai@agency.vn", tls="none")
    settings.CAPLAI = settings.CAPLAI.model_copy(update={"mail": server})


@pytest.fixture
def minh(lan):
    """Lan has two addresses, Minh none; both are told of from now on."""
    now = timezone.now()
    Account.objects.filter(code=LAN).update(email="lan@example.vn", created_at=now - timedelta(days=90))
    Address.objects.create(account=LAN, email="lan@example.com", confirmed_at=now - timedelta(days=1))
    Address.objects.create(account=LAN, email="unconfirmed@example.com")
    Address.objects.create(
        account=LAN, email="gone@example.com", confirmed_at=now - timedelta(days=9), removed_at=now
    )
    return Account.objects.create(code="0000000001", phone="+84327000687", state="approved")


def text(conn, rules, code, phone):
    receive(conn, f"BH MK {code}", phone)
    while reissue_inbox(conn, rules, 100):
        pass


def test_each_re_issue_is_told_once_to_every_confirmed_address(conn, rules, minh, mails):
    text(conn, rules, minh.code, "84327000687")
    assert tell_of_reissues(conn) == 0  # what was before the first look is told to nobody
    text(conn, rules, LAN, "84327000686")
    text(conn, rules, LAN, "84327000686")  # joins
    assert tell_of_reissues(conn) == 2
    assert tell_of_reissues(conn) == 0
    case = Case.objects.get(account=LAN)
    assert set(Mail.objects.values_list("kind", "account", "about")) == {("reissued", LAN, case.id)}
    with running() as (box, server):
        send(mailer(server, tell_of_reissues))
        assert sorted(address for address, _ in box.mails) == ["lan@example.com", "lan@example.vn"]
        told = text_of(box.to("lan@example.vn")[0])
    assert f"{timezone.localtime(case.opened_at):%H:%M %d/%m/%Y}" in told
    assert "mật khẩu mới đã được cấp" in told and "a new password" in told
    assert link_in(box.to("lan@example.vn")[0]).startswith("https://caplai.example.vn/report/")
    assert "/report/" not in text_of(box.to("lan@example.com")[0])  # a day old
    assert LAN not in told and "327000686" not in told


def test_a_case_that_is_committed_late_is_not_passed_over(conn, rules, minh, mails):
    tell_of_reissues(conn)
    receive(conn, f"BH MK {LAN}")
    with connect() as slow, slow.transaction():
        [message] = queues.claim_inbox(slow, 10)
        keys.begin_opening(slow)
        slow.execute(
            "insert into reissue_case (account, id, phone, channel, key, version, length, alphabet, texts, opened_at,"
            " expires_at) values (%s, gen_random_uuid(), '', 'sms', 'k', 1, 6, '0123456789', 1, clock_timestamp(),"
            " now() + interval '1 day')",
            [message.text[-10:]],
        )
        assert tell_of_reissues(conn) == 0
    assert tell_of_reissues(conn) == 2


def test_several_tellers_tell_each_once(conn, rules, minh, mails):
    tell_of_reissues(conn)
    text(conn, rules, LAN, "84327000686")

    def teller():
        with connect() as own:
            for _ in range(5):
                tell_of_reissues(own)

    threads = [threading.Thread(target=teller) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tell_of_reissues(conn)
    assert Mail.objects.count() == 2


def test_days_without_mail_are_not_made_up_for(conn, rules, minh, mails):
    tell_of_reissues(conn)
    for days in (2, 0.5):
        conn.execute("update reissue_case set ended_at = now(), ended_as = 'expired' where ended_at is null")
        text(conn, rules, LAN, "84327000686")
        Case.objects.filter(ended_at=None).update(opened_at=timezone.now() - timedelta(days=days))
    Retention.objects.filter(name="notices").update(
        mark={"upto": (timezone.now() - timedelta(days=9)).isoformat()}
    )
    for _ in range(300):  # half a minute's cases at a time
        tell_of_reissues(conn)
    assert Mail.objects.count() == 2


def test_cases_that_take_too_long_are_told_in_smaller_slices(conn, rules, minh, mails, monkeypatch):
    tell_of_reissues(conn)
    text(conn, rules, LAN, "84327000686")
    monkeypatch.setattr(notices, "_PATIENCE", "50ms")
    with connect() as other, other.transaction():
        other.execute("lock table mail in exclusive mode")
        for _ in range(2):
            with pytest.raises(psycopg.errors.QueryCanceled):
                tell_of_reissues(conn)
    monkeypatch.setattr(notices, "_PATIENCE", "5s")
    assert Retention.objects.get(name="notices").mark["slice"] == 7.5
    Retention.objects.update(mark=Retention.objects.get().mark | {"slice": 0.01})
    while not tell_of_reissues(conn):
        pass
    assert Mail.objects.count() == 2 and tell_of_reissues(conn) == 0
    assert 0.01 < Retention.objects.get(name="notices").mark["slice"] <= 30


def test_it_goes_by_the_index_over_times(conn, minh):
    """With a table of some size and its ways as they are planned; a wave opens thousands of cases a second."""
    conn.execute(
        "insert into reissue_case (account, id, phone, channel, key, version, length, alphabet, texts, opened_at,"
        " expires_at, ended_at, ended_as) select lpad(n::text, 10, '0'), gen_random_uuid(), n::text, 'sms', 'k', 1, 6,"
        " '0123456789', 1, now() - (100000 - n) * interval '1 second', now(), now(), 'expired'"
        " from generate_series(1, 100000) n"
    )
    conn.execute("analyze reissue_case")
    values = {"after": timezone.now(), "upto": timezone.now(), "lasting": timedelta(days=1), "next": 30}
    plan = "\n".join(line for (line,) in conn.execute("explain " + notices._TELL, values).fetchall())
    assert "reissue_case_by_time" in plan, plan


def test_telling_reaches_all_but_who_is_excepted(conn, minh, mails):
    with connection.cursor():
        assert notices.tell(LAN, "passkey_added") == 2
        assert notices.tell(LAN, "passkey_added", except_=[None]) == 1
    assert notices.tell(minh.code, "passkey_added") == 0
