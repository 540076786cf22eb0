"""The import of accounts: what a file may do to the store, and what no file can do to the importer."""

import csv
import io
import re
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta

import psycopg
import pytest
from click.testing import CliRunner
from django.utils import timezone
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from caplai.cli import accounts, main
from caplai.domain.grammar import Reissue
from caplai.domain.policy import GRANTED, Outcome
from caplai.service import accounts_file, locks, register
from caplai.service.accounts_file import BadRow, WrongFile, read_lines
from caplai.service.register import import_accounts
from caplai.service.reissue import reissue
from caplai.service.requests import ReplyTo, Request
from caplai.store.db import connect
from caplai.store.models import Account, Case

HEADER = b"code,phone,email,state\n"
LAN = b"0123456789,0327 000 686,lan@example.vn,approved\n"
MAI = b"0000000042,0169.700.0686,,pending\n"
LAN_STORED = ("0123456789", "+84327000686", "lan@example.vn", "approved")
MAI_STORED = ("0000000042", "+84397000686", "", "pending")


def bring(conn, content, **options):
    """Import this file; returns what was done, and the refused rows as {line: reason}."""
    bad: list[BadRow] = []
    done = import_accounts(conn, read_lines(io.BytesIO(content)), report=bad.append, **options)
    assert done.refused == len(bad)
    return done, {row.line: row.reason for row in bad}


def counts(done):
    return done.added, done.changed, done.unchanged


def stored(conn):
    return conn.execute("select code, phone, email, state from account order by code").fetchall()


def many(count, state="approved", phone="+8432{:07}", start=0):
    rows = (f"{n:010},{phone.format(n)},,{state}\n" for n in range(start, start + count))
    return HEADER + "".join(rows).encode()


def open_case(code, phone="+84327000686"):
    now = timezone.now()
    return Case.objects.create(
        account=code,
        phone=phone,
        channel="sms",
        key="k",
        version=1,
        length=6,
        alphabet="0123456789",
        opened_at=now,
        expires_at=now + timedelta(days=1),
    )


def ask(code, phone):
    digits = phone.removeprefix("+")
    return Request(Reissue(code), "sms", phone, digits, ReplyTo("viettel", "8079", digits))


def held_locks(conn):
    return conn.execute(
        "select count(*) filter (where granted), count(*) filter (where not granted) from pg_locks"
        " where locktype = 'advisory'"
    ).fetchone()


@contextmanager
def importing(content, **options):
    """An import in another thread that waits for a lock of somebody's; leave the block with the lock let go."""
    result = []

    def run():
        with connect() as conn:
            result.append(bring(conn, content, **options))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with connect() as looking:
            waiting = 0
            while not waiting and thread.is_alive():
                waiting = held_locks(looking)[1]
                thread.join(0.02)
            assert waiting, "the import did not wait for the lock"
            yield result
    finally:
        thread.join(60)
    assert not thread.is_alive()


# What it does to accounts


def test_rows_become_accounts_with_phones_in_one_form(conn):
    done, bad = bring(conn, HEADER + LAN + MAI)
    assert (counts(done), bad) == ((2, 0, 0), {})
    assert stored(conn) == [MAI_STORED, LAN_STORED]


def test_the_same_file_twice_changes_nothing(conn):
    bring(conn, HEADER + LAN + MAI)
    versions = conn.execute("select xmin::text, ctid::text from account order by code").fetchall()
    done, bad = bring(conn, HEADER + LAN + MAI, update_phones=True)
    assert (counts(done), bad) == ((0, 0, 2), {})
    assert conn.execute("select xmin::text, ctid::text from account order by code").fetchall() == versions


def test_only_what_differs_is_changed_and_only_phone_and_state_end_a_case(conn):
    bring(conn, many(4))
    for n in range(4):
        open_case(f"{n:010}")
    file = b"".join(
        [
            HEADER,
            b"0000000000,+84320000000,new@example.vn,approved\n",
            b"0000000001,+84320000001,,closed\n",
            b"0000000002,+84329999999,,approved\n",
            b"0000000003,+84320000003,,approved\n",
        ]
    )
    before = dict(conn.execute("select code, xmin::text from account").fetchall())
    done, _ = bring(conn, file)
    assert counts(done) == (0, 2, 2)
    assert done.phones_kept == 1
    after = dict(conn.execute("select code, xmin::text from account").fetchall())
    assert {code for code in after if after[code] != before[code]} == {"0000000000", "0000000001"}
    ended = Case.objects.order_by("account").values_list("ended_as", flat=True)
    assert list(ended) == [None, "account_changed", None, None]

    done, _ = bring(conn, file, update_phones=True)
    assert (counts(done), done.phones_kept) == ((0, 1, 3), 0)
    assert Account.objects.get(code="0000000002").phone == "+84329999999"
    assert list(ended.all()) == [None, "account_changed", "account_changed", None]
    case = Case.objects.get(account="0000000002")
    assert case.opened_at < case.ended_at <= timezone.now()


def test_of_rows_with_one_code_the_first_stays_and_those_that_differ_are_refused(conn):
    other = LAN.replace(b"approved", b"closed")
    done, bad = bring(conn, HEADER + LAN + MAI + other + LAN + other)
    assert counts(done) == (2, 0, 0)
    assert set(bad) == {4, 6}
    assert all("line 2" in reason for reason in bad.values())
    assert LAN_STORED in stored(conn)


def test_twenty_thousand_changes_fit_the_lock_table_as_it_comes(conn):
    bring(conn, many(20_000, "pending"))
    for code in ("0000000000", "0000012345", "0000019999"):
        open_case(code)
    done, _ = bring(conn, many(20_000, "approved"))
    assert counts(done) == (0, 20_000, 0)
    assert Account.objects.filter(state="approved").count() == 20_000
    assert not Case.objects.filter(ended_at=None).exists()
    assert held_locks(conn) == (0, 0)


# Passwords that people have


HASHES = HEADER.replace(b"\n", b",password_hash\n")
OLD = (
    b"pbkdf2_sha256$600000$muoi$iQ8rXrVJ+KMOOkEZbmyGplVTee8jgZujc7NHAQvgj/Q=",
    b'"$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0$iQ8rXrVJ+KMOOkEZbmyGplVTee8jgZujc7NHAQvgj/Q"',
    b"$2y$12$Dvc873/ucSdaakgxzOh5aOeVYsD3JuXBWFBbJ1HZayeiW9r5hnRJO",
)
LAN_OLD, MAI_OLD = LAN.replace(b"\n", b"," + OLD[0] + b"\n"), MAI.replace(b"\n", b"," + OLD[1] + b"\n")


def taken_over(conn):
    rows = conn.execute("select code, hash from taken_over_password order by code").fetchall()
    return {code: encoded.encode() for code, encoded in rows}


def test_passwords_are_taken_over_in_one_form_and_the_same_file_twice_changes_nothing(conn):
    third = b'"7777777777",0327000687,,approved,' + OLD[2] + b"\n8888888888,0327000688,,approved,\n"
    file = HASHES + LAN_OLD + MAI_OLD + third
    assert (counts(bring(conn, file)[0]), bring(conn, file)[1]) == ((4, 0, 0), {})
    expected = {
        "0000000042": b"argon2" + OLD[1].strip(b'"'),
        "0123456789": OLD[0],
        "7777777777": b"bcrypt$" + OLD[2],
    }
    assert taken_over(conn) == expected
    versions = conn.execute("select xmin::text, ctid::text from taken_over_password order by code").fetchall()
    done, bad = bring(conn, file, update_phones=True)
    assert (counts(done), bad) == ((0, 0, 4), {})
    # And a file that says nothing of them leaves them.
    assert counts(bring(conn, HEADER + LAN + MAI)[0]) == (0, 0, 2)
    assert counts(bring(conn, HASHES + LAN.replace(b"\n", b",\n"))[0]) == (0, 0, 1)
    assert taken_over(conn) == expected
    rows = "select xmin::text, ctid::text from taken_over_password order by code"
    assert conn.execute(rows).fetchall() == versions


def test_the_old_systems_newer_password_replaces_its_older_one(conn):
    bring(conn, HEADER + LAN)
    for encoded in (OLD[0], OLD[2]):
        done, _ = bring(conn, HASHES + LAN.replace(b"\n", b"," + encoded + b"\n"))
        assert counts(done) == (0, 1, 0)
        assert taken_over(conn)["0123456789"].endswith(encoded)


def test_no_password_comes_back_to_an_account_that_somebody_has_signed_in_to(conn):
    bring(conn, HEADER + LAN)
    conn.execute(
        "insert into login (username, account_id, password, is_active, is_staff, is_superuser, stamp)"
        " values ('0123456789', '0123456789', 'argon2p$', true, false, false, 's')"
    )
    assert counts(bring(conn, HASHES + LAN_OLD)[0]) == (0, 0, 1)
    done, _ = bring(conn, HASHES + LAN_OLD.replace(b"lan@", b"new@"))
    assert counts(done) == (0, 1, 0)
    assert taken_over(conn) == {}


def test_an_address_is_new_when_it_changes_and_at_no_other_time(conn):
    def since():
        return conn.execute("select email_since from account where code = '0123456789'").fetchone()[0]

    bring(conn, HEADER + LAN)
    assert since() is None
    bring(conn, HEADER + LAN.replace(b"approved", b"pending").replace(b"lan@", b"Lan@"))
    assert since() is None
    bring(conn, HEADER + LAN.replace(b"lan@", b"new@"))
    changed = since()
    assert timezone.now() - changed < timedelta(minutes=1)
    bring(conn, HEADER + LAN.replace(b"lan@", b"new@").replace(b"approved", b"closed"))
    assert since() == changed
    bring(conn, HEADER + LAN.replace(b"lan@example.vn", b""))
    bring(conn, HEADER + LAN)
    assert since() > changed


def test_nor_to_one_whose_owner_chooses_a_password_meanwhile(conn):
    bring(conn, HEADER + LAN)
    with connect() as citizen, ExitStack() as held:
        held.enter_context(citizen.transaction())
        locks.take(citizen, [locks.account_key("0123456789")])
        with importing(HASHES + LAN_OLD) as result:
            citizen.execute(
                "insert into login (username, account_id, password, is_active, is_staff, is_superuser, stamp)"
                " values ('0123456789', '0123456789', 'argon2p$', true, false, false, 's')"
            )
            held.close()
    assert counts(result[0][0]) == (0, 0, 1)
    assert taken_over(conn) == {}


def test_an_account_that_is_closed_loses_it_and_a_closed_one_gets_none(conn):
    bring(conn, HASHES + LAN_OLD + MAI_OLD.replace(b"pending", b"closed"))
    assert taken_over(conn) == {"0123456789": OLD[0]}
    assert counts(bring(conn, HASHES + LAN_OLD.replace(b"approved", b"closed"))[0]) == (0, 1, 0)
    assert taken_over(conn) == {}
    bring(conn, HEADER + LAN)
    assert taken_over(conn) == {}


def test_one_that_cannot_be_checked_is_refused_with_its_row_and_never_shown(conn):
    rows = [
        LAN.replace(b"\n", b",secret123\n"),
        LAN.replace(b"\n", b"," + OLD[2].replace(b"$12$", b"$31$") + b"\n"),
        LAN.replace(b"0327 000", b"0327000") .replace(b"\n", b"," + OLD[0].replace(b"600000", b"1") + b"\n"),
        LAN,
        MAI_OLD,
        MAI_OLD.replace(OLD[1], OLD[0]),
    ]  # fmt: skip
    done, bad = bring(conn, HASHES + b"".join(rows))
    assert counts(done) == (1, 0, 0)
    words = {
        2: "none that can be checked",
        3: "costly",
        4: "tried out",
        5: "4 columns instead of 5",
        7: "line 6",
    }
    assert set(bad) == set(words)
    assert all(words[line] in reason for line, reason in bad.items())
    assert not any(part in reason for reason in bad.values() for part in ("secret", "Dvc8", "iQ8r"))
    assert list(taken_over(conn)) == ["0000000042"]


def test_stopped_after_a_slice_each_new_account_has_its_password(conn, monkeypatch):
    monkeypatch.setattr(register, "_SLICE", 100)
    rows = many(300).splitlines()[1:]
    file = HASHES + b"".join(row + b"," + OLD[0] + b"\n" for row in rows)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(conn, file, stored=stop)
    assert len(taken_over(conn)) == Account.objects.count() == 100
    assert counts(bring(conn, file)[0]) == (200, 0, 100)
    assert len(taken_over(conn)) == 300


def test_statistics_are_fresh_afterwards(conn):
    bring(conn, many(3_000))
    [(rows, distinct)] = conn.execute(
        "select reltuples, n_distinct from pg_class, pg_stats"
        " where relname = 'account' and tablename = 'account' and attname = 'code'"
    ).fetchall()
    assert (rows, distinct) == (3_000, -1)


# Beside a running service


def test_it_holds_the_locks_of_its_chunk_only(conn, rules):
    bring(conn, many(3_000, "pending"))
    last = "0000002999"
    with connect() as holder, connect() as citizen, ExitStack() as held:
        held.enter_context(holder.transaction())
        locks.take(holder, [locks.account_key(last)])
        with importing(many(3_000)) as result:
            # It waits for the last account; the first two thousand are stored, and anybody's again.
            assert Account.objects.filter(state="approved").count() == 2_000
            assert held_locks(conn)[0] <= 1_000
            citizen.execute("set statement_timeout = '5s'")
            with citizen.transaction():
                [decision] = reissue(citizen, [ask("0000000000", "+84320000000")], rules)
            assert decision.outcome is Outcome.ISSUED
            held.close()
    assert counts(result[0][0]) == (0, 3_000, 0)
    assert Case.objects.get().ended_at is None


def test_sixteen_reissues_under_way_lose_their_cases_when_the_phones_change(conn, rules):
    bring(conn, many(16))
    with ExitStack() as under_way:
        citizens = []
        for n in range(16):
            citizens.append(under_way.enter_context(connect()))
            under_way.enter_context(citizens[n].transaction())
            locks.take(citizens[n], [locks.account_key(f"{n:010}")])
        with importing(many(16, phone="+8433{:07}"), update_phones=True) as result:
            for n, citizen in enumerate(citizens):
                [decision] = reissue(citizen, [ask(f"{n:010}", f"+8432{n:07}")], rules)
                assert decision.outcome is Outcome.ISSUED
            under_way.close()
    assert counts(result[0][0]) == (0, 16, 0)
    ended = list(Case.objects.values_list("ended_as", flat=True))
    assert ended == ["account_changed"] * 16
    for case in Case.objects.all():
        assert case.opened_at < case.ended_at
    with conn.transaction():
        decisions = reissue(
            conn, [ask("0000000000", "+84320000000"), ask("0000000000", "+84330000000")], rules
        )
    assert [decision.outcome for decision in decisions] == [Outcome.MISMATCH, Outcome.ISSUED]


def test_sixteen_reissues_of_one_account_at_once_with_its_change_leave_no_case_of_the_old_phone(conn, rules):
    bring(conn, many(1))
    start = threading.Barrier(17)
    granted = []

    def citizen():
        with connect() as mine:
            start.wait()
            with mine.transaction():
                granted.append(reissue(mine, [ask("0000000000", "+84320000000")], rules)[0].outcome)

    threads = [threading.Thread(target=citizen) for _ in range(16)]
    for thread in threads:
        thread.start()
    start.wait()
    done, _ = bring(conn, many(1, phone="+8433{:07}"), update_phones=True)
    for thread in threads:
        thread.join(30)
    assert counts(done) == (0, 1, 0)
    assert len(granted) == 16
    assert set(granted) <= {*GRANTED, Outcome.MISMATCH, Outcome.OVER_LIMIT}
    assert not Case.objects.filter(ended_at=None).exists()


def test_what_somebody_else_changed_meanwhile_is_looked_at_again_under_the_lock(conn):
    bring(conn, many(2, "pending"))
    with connect() as operator, ExitStack() as held:
        held.enter_context(operator.transaction())
        locks.take(operator, [locks.account_key("0000000000")])
        operator.execute("update account set state = 'approved' where code = '0000000000'")
        case = open_case("0000000000")
        with importing(many(2)) as result:
            held.close()
    assert counts(result[0][0]) == (0, 1, 1)
    case.refresh_from_db()
    assert case.ended_at is None


@pytest.mark.parametrize("header", [HEADER, HEADER.replace(b"\n", b",password_hash\n")])
def test_an_account_that_somebody_else_adds_meanwhile_is_no_new_one(conn, header):
    content = many(200).replace(HEADER, header)
    if header != HEADER:
        first = b"pbkdf2_sha256$600000$muoi$iQ8rXrVJ+KMOOkEZbmyGplVTee8jgZujc7NHAQvgj/Q="
        content = content.replace(b"approved\n", b"approved," + first + b"\n")
    result = []

    def run():
        with connect() as mine:
            result.append(bring(mine, content))

    thread = threading.Thread(target=run)
    with connect() as other:
        with other.transaction():
            other.execute(
                "insert into account (code, phone, state) values ('0000000100', '+84327000686', 'approved')"
            )
            thread.start()
            waiting = "select count(*) from pg_stat_activity where wait_event = 'transactionid'"
            while thread.is_alive() and not conn.execute(waiting).fetchone()[0]:
                thread.join(0.02)
            assert thread.is_alive()
        thread.join(30)
    assert not thread.is_alive()
    assert (result[0][0].added, result[0][0].phones_kept, result[0][1]) == (199, 1, {})
    assert Account.objects.get(code="0000000100").phone == "+84327000686"
    assert Account.objects.count() == 200


@pytest.mark.parametrize("where", ["reading", "repeated", "slice", "chunk"])
def test_stopped_anywhere_every_account_is_whole_and_the_same_file_completes_it(conn, monkeypatch, where):
    monkeypatch.setattr(register, "_SLICE", 1_500)
    bring(conn, many(3_000, "pending"))
    for n in range(0, 3_000, 100):
        open_case(f"{n:010}")
    repeated = b"0000000000,+84320000000,,closed\n"
    file = many(4_000) + repeated

    def stop(*_):
        raise KeyboardInterrupt

    def lines():
        for number, line in enumerate(read_lines(io.BytesIO(file))):
            if number == 3_500 and where == "reading":
                stop()
            yield line

    if where == "chunk":
        change, chunks = register._change, iter([False, True, True])
        monkeypatch.setattr(
            register, "_change", lambda *given: change(*given) if not next(chunks, False) else stop()
        )
    hooks = {"slice": {"stored": stop}, "repeated": {"report": stop}}.get(where, {})
    with pytest.raises(KeyboardInterrupt):
        import_accounts(conn, lines(), **hooks)

    changed = Account.objects.filter(state="approved").count()
    assert changed == {"slice": 1_500, "chunk": 1_000}.get(where, 0)
    ended = set(Case.objects.exclude(ended_at=None).values_list("account", flat=True))
    assert ended == {f"{n:010}" for n in range(0, changed, 100)}
    assert held_locks(conn) == (0, 0)

    monkeypatch.undo()
    done, bad = bring(conn, file)
    assert (done.added, done.changed, done.unchanged) == (1_000, 3_000 - changed, changed)
    assert list(bad) == [4_002]
    assert Account.objects.filter(state="approved").count() == 4_000
    assert not Case.objects.filter(ended_at=None).exists()


def test_several_connections_share_the_work_and_come_to_the_same(conn, monkeypatch):
    monkeypatch.setattr(register, "_SLICE", 100)
    bring(conn, many(1_000, "pending"))
    again = b"".join(b"%010d,+84320000000,,closed\n" % n for n in (7, 1_998, 1_001, 1_000))
    parts = []
    with connect() as second, connect() as third:
        done, bad = bring(
            conn, many(2_000) + again, beside=[second, third], stored=lambda *rows: parts.append(rows)
        )
        for each in (conn, second, third):
            assert each.execute("select relname from pg_class where relpersistence = 't'").fetchall() == []
    assert counts(done) == (1_000, 1_000, 0)
    assert list(bad) == [2_002, 2_003, 2_004, 2_005]
    assert sum(rows for rows, _ in parts) == 2_000
    assert {total for _, total in parts} == {2_000}
    assert Account.objects.filter(state="approved").count() == 2_000


def test_one_that_fails_stops_the_others_and_every_account_is_whole(conn, monkeypatch):
    monkeypatch.setattr(register, "_SLICE", 100)
    slices = iter(range(4))

    def stop(*_):
        match next(slices, None):
            case 3:
                raise KeyboardInterrupt
            case None:  # the other one, which is told to stop as soon as somebody has a turn
                time.sleep(0.1)  # it is asked again and again, and is not to fill the other's core

    with connect() as second, pytest.raises(KeyboardInterrupt):
        bring(conn, many(5_000), beside=[second], stored=stop)
    begun = Account.objects.count()
    assert 400 <= begun < 1_500
    with connect() as second:
        assert counts(bring(conn, many(5_000), beside=[second])[0]) == (5_000 - begun, 0, begun)


def test_nothing_temporary_is_left_and_the_connection_goes_on(conn):
    for content in (HEADER + LAN, HEADER + LAN + LAN.replace(b"lan@", b"mai@"), b"nothing\n"):
        try:
            bring(conn, content)
        except WrongFile:
            assert content == b"nothing\n"
        assert conn.execute("select relname from pg_class where relpersistence = 't'").fetchall() == []


def test_a_connection_in_a_transaction_is_a_mistake_of_ours(conn):
    with psycopg.connect(conn.info.dsn, password=conn.info.password) as other, pytest.raises(AssertionError):
        import_accounts(other, ["code,phone,email,state\n"])


# What a file may be


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        (b"\xef\xbb\xbf" + HEADER + LAN + MAI, {}),
        ((HEADER + LAN + MAI).replace(b"\n", b"\r\n"), {}),
        ((HEADER + LAN + MAI).replace(b",", b";"), {}),
        (HEADER + LAN + MAI.rstrip(), {}),
        (b"\xef\xbb\xbf" + b'"State";EMAIL ;" Phone";CODE\r\n'
         b'approved;lan@example.vn;"0327 000 686";"0123456789"\r\nPENDING;;0169.700.0686;0000000042\r\n', {}),
        (HEADER + b"\n" + LAN + b"  \r\n" + MAI + b"\n", {}),
        (HEADER + b'0123456789,"0327,000,686",lan@example.vn,approved\n' + LAN + MAI, {2: "phone"}),
        (HEADER + LAN + b'2222222222,"0327000687,,approved\n' + MAI, {3: "quotation"}),
        (HEADER + LAN + b'2222222222,0327000687,"a"b,approved\n' + MAI, {3: "quotation"}),
        (HEADER + LAN + b'2222222222,0327000687,a"@b.vn,approved\n' + MAI, {3: "quotation"}),
        (HEADER + LAN + b'2222222222,0327000687,"a@b.vn\n' + b'",approved\n' + MAI, {3: "quotation", 4: "quotation"}),
        (HEADER + LAN + b"2222222222,0327\r000687,,approved\n" + MAI, {3: "CR"}),
        (HEADER + LAN + b"2222222222,0327000687,,approved\r2222222223,0327000687,,approved\r\n" + MAI, {3: "CR"}),
        (HEADER + LAN + b"2222222222,0327000687,a\0@b.vn,approved\n" + MAI, {3: "NUL"}),
        (HEADER + LAN + b"2222222222,0327000687,t\xe2n@b.vn,approved\n" + MAI, {3: "UTF-8"}),
        (HEADER + LAN + b"2222222222,0327000687," + b"a" * 10_000_000 + b"@b.vn,approved\n" + MAI, {3: "longer"}),
        (HEADER + LAN + b"2222222222,0327000687,,approved" + b" " * 5_000 + b"nothing\n" + MAI, {3: "longer"}),
        (HEADER + LAN + b"2222222222,0327000687,\\N,approved\n" + MAI, {3: "e-mail"}),
        (HEADER + LAN + b"2222222222,0327000687,,\n" + MAI, {3: "approved, closed, pending"}),
        (HEADER + LAN + b"22222222222,0327000687,,approved\n42,0327000687,,approved\n" + MAI,
         {3: "ten digits (nothing", 4: "leading zeros"}),
        (HEADER + LAN + b"2222222222,0327000687\n,,,\n" + MAI, {3: "2 columns", 4: "code"}),
        (HEADER + LAN + MAI + b'"', {4: "quotation"}),
    ],
)  # fmt: skip
def test_each_line_is_a_row_by_itself(conn, content, refused):
    done, bad = bring(conn, content)
    assert set(bad) == set(refused)
    for line, words in refused.items():
        assert words in bad[line]
    assert stored(conn) == [MAI_STORED, LAN_STORED]
    assert done.added == 2


VALUES = {
    "code": ["0123456789", "０123456789", "012345678", "0123456789\n"],
    "phone": ["0327000686", "+84327000686", "84327000686", "0084327000686", "8432700068", "0227000686", "840327000686",
              "01697000686", "+84 327000686", "+33327000686", "0327 000 686", "+840327000686", "327000686"],
    "email": ["", "a@b.vn", "a.b+c_d-e@f-g.h.vn", "a@b", "@b.vn", "a@@b.vn", "a@b..vn", "ả@b.vn", "a@b.c.d.e.vn",
              "a" * 64 + "@b.vn", "a" * 65 + "@b.vn", "a\\b@c.vn", "a" * 64 + "@" + "b" * 60 + "." + "c" * 60 + ".vn"],
    "state": ["approved", "pending", "closed", "Approved", "approve", "closed "],
    "password_hash": ["", OLD[0].decode(), OLD[1].decode(), OLD[2].decode(), "x", '"x"', '""', "$" * 301, "\\", "a,b",
                      OLD[0].decode() + " "],
}  # fmt: skip


@given(
    line=st.fixed_dictionaries(
        {name: st.just(some[0]) | st.sampled_from(some) for name, some in VALUES.items()}
    ),
    columns=st.permutations(list(VALUES)),
    delimiter=st.sampled_from(",;"),
    end=st.sampled_from(["", "\r", " ", "\r\r"]),
    with_hash=st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_the_short_way_to_read_a_line_and_the_long_one_come_to_one_result(
    line, columns, delimiter, end, with_hash
):
    columns = [name for name in columns if with_hash or name != "password_hash"]
    layout = accounts_file.read_header(delimiter.join(columns))
    text = delimiter.join(line[name] for name in columns) + end

    def read(layout):
        bad = []
        return [*accounts_file.read_rows([text], layout, lambda *row: bad.append(row), 2)], bad

    class Long(accounts_file.Layout):
        def plain(self):
            return re.compile(f"(?!){'|'.join(f'(?P<{name}>)' for name in columns)}")

    assert read(layout) == read(Long(layout.delimiter, layout.order))


def test_what_a_line_holds_comes_back_unaltered(conn):
    address = 'tên\\t.\\N\'%s""x@ví-dụ.vn'
    line = io.StringIO()
    csv.writer(line).writerow(["0123456789", "0327000686", address, "approved"])
    _, bad = bring(conn, HEADER + line.getvalue().encode())
    assert bad == {}
    assert Account.objects.get().email == address


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "lacks the column code"),
        (LAN + MAI, "lacks the column code"),
        ((HEADER + LAN + MAI).replace(b"\n", b"\r"), "CR alone"),
        (LAN.replace(b"\n", b"\r") * 1000, "CR alone"),
        ((HEADER + LAN).decode().encode("utf-16"), "UTF-16"),
        ((HEADER + LAN).decode().encode("utf-16-le"), "UTF-16"),
        (b"code,phone,email\n" + LAN, "lacks the column state"),
        (b"code,phone,email,state,mail,code\n", "column 5, 'mail', is none of them; it has the column code twice"),
        (b"code,phone,email,state,lan@example.vn,0327000686\n", "column 5 is none of them"),
        (b'"code,phone,email,state\n' + LAN, "lacks the column code"),
        (b"0123456789,0327 000 686,lan@example.vn,approved,phone\xff", "column 1 is none of them"),
        (LAN.rstrip() * 100_000, "lacks the column code"),
        (b"\x1f\x8b\x08\x00" + bytes(range(256)) * 100, "UTF-16"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_changes_nothing_and_shows_nobody(conn, content, says):
    with pytest.raises(WrongFile) as refusal:
        bring(conn, content)
    message = str(refusal.value)
    assert says in message
    assert len(message) < 500
    for secret in ("0123456789", "0327", "lan@", "Lan@"):
        assert secret not in message
    assert Account.objects.count() == 0


FIELD = st.sampled_from(
    [b"0123456789", b"7000000001", b"0327000686", b"+84 912 345 678", b"", b"approved", b"a@b.vn", b'"', b'""',
     b"\0", b"\r", b"\xff\xfe", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\\.", b"\\N", "０３２７".encode(), b"\x1c"]
) | st.binary(max_size=12)  # fmt: skip
LINE = st.lists(FIELD, max_size=6).map(b",".join) | st.binary(max_size=60)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=300) | st.lists(LINE, max_size=12).map(lambda rest: HEADER + b"\n".join(rest))
)
@example(content=b"\xef\xbb\xbf")
@example(content=HEADER + b"0123456789,0327000686,a\x85@b.vn,approved")
def test_any_bytes_are_a_file_or_a_wrong_file(conn, content):
    try:
        done, _ = bring(conn, content)
    except WrongFile:
        return
    assert done.added + done.changed + done.unchanged + done.refused <= content.count(b"\n") + 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(LINE, max_size=8),
    after=st.lists(LINE, max_size=8),
    ending=st.sampled_from([b"\n", b"\r\n"]),
)
def test_a_good_row_survives_among_garbage(conn, before, after, ending):
    conn.execute("delete from account")
    good = b"9999999999,0327000686,lan@example.vn,approved"
    bring(conn, HEADER + ending.join([*before, good, *after]))
    assert ("9999999999", "+84327000686", "lan@example.vn", "approved") in stored(conn)


@given(
    content=st.lists(LINE | st.integers(0, 12_000).map(lambda n: b"x" * n), max_size=8).map(b"\n".join),
    block=st.sampled_from([1, 7, 5_000, accounts_file._BLOCK]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_are_counted_in_bytes_and_none_is_long(monkeypatch, content, block):
    monkeypatch.setattr(accounts_file, "_BLOCK", block)
    read = []
    lines = list(read_lines(io.BytesIO(content), read.append))
    assert sum(read) == len(content)
    for line, whole in zip(lines, io.BytesIO(content), strict=True):
        assert len(line) <= 4 * accounts_file.LONGEST_LINE + 1
        if len(line) <= accounts_file.LONGEST_LINE:
            assert line.encode("utf-8", "surrogateescape") == whole.removesuffix(b"\n")


# The command


@pytest.fixture
def command(conn, monkeypatch):
    """The command on the test database; a function of the file's content and more arguments."""
    monkeypatch.setattr(accounts, "ready", lambda config: closing(io.StringIO()))

    def run(folder, content, *arguments):
        file = folder / "accounts.csv"
        file.write_bytes(content)
        return CliRunner().invoke(main, ["accounts", "import", str(file), *arguments])

    return run


def test_the_bars_count_the_bytes_of_the_file_and_the_rows_stored(command, tmp_path, monkeypatch):
    drawn = {}

    class Bar:
        def __init__(self, length, label, **options):
            self.label, self.length, self.done = label, length, 0
            assert not options["hidden"]
            drawn[label] = self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, steps):
            self.done += steps

    monkeypatch.setattr(accounts.click, "progressbar", Bar)
    monkeypatch.setattr(register, "_SLICE", 400)
    content = many(1_000).replace(b"\n", b"\r\n") + b"\xff" * 9_000 + b"\r\n" + "số\n".encode()
    done = command(tmp_path, content)
    assert done.exit_code == 1, done.output
    assert "1000 added, 0 changed, 0 unchanged, 2 refused" in done.stdout
    assert (drawn["Reading"].length, drawn["Reading"].done) == (len(content), len(content))
    assert (drawn["Storing"].length, drawn["Storing"].done) == (1_000, 1_000)


def test_ctrl_c_says_what_is_stored(command, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(register, "_change", stop)
    assert command(tmp_path, many(3)).exit_code == 0
    done = command(tmp_path, many(5, "closed"))
    assert done.exit_code not in (0, 2)
    assert "same command again" in done.stderr
    monkeypatch.undo()
    assert Account.objects.filter(state="closed").count() <= 2, "some are new, no other was changed"
    done = command(tmp_path, many(5, "closed"))
    assert done.exit_code == 0
    assert Account.objects.filter(state="closed").count() == 5


def test_an_account_that_is_closed_or_changes_its_phone_loses_its_sign_ins(conn):
    rows = ["code,phone,email,state", "0123456789,0327000686,,approved", "0000000042,0327000687,,approved"]
    import_accounts(conn, rows)
    conn.execute(
        "insert into login (username, account_id, password, is_active, is_staff, is_superuser, stamp)"
        " select code, code, '!', true, false, false, 'before' from account"
    )
    conn.execute("insert into device (login_id, token_hash) select id, username::bytea from login")

    def left():
        return conn.execute(
            "select l.username, l.stamp = 'before', count(d.id) from login l left join device d on d.login_id = l.id"
            " group by 1, 2 order by 1"
        ).fetchall()

    import_accounts(
        conn, [rows[0], "0123456789,0327000686,new@example.vn,approved", "0000000042,0327999999,,approved"]
    )
    assert left() == [("0000000042", True, 1), ("0123456789", True, 1)]
    import_accounts(conn, [rows[0], "0123456789,0327000686,,closed"])
    assert left() == [("0000000042", True, 1), ("0123456789", False, 0)]
    import_accounts(conn, [rows[0], "0000000042,0327999999,,approved"], update_phones=True)
    assert left() == [("0000000042", False, 0), ("0123456789", False, 0)]
