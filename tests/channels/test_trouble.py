"""What goes wrong around the SMS door: a slow store, a failover, a broken keyring, a row that cannot be sent.

Messages wait, nothing is lost or twice, and it heals without hands.
"""

import asyncio
import time
import uuid
from contextlib import contextmanager

import psycopg
import pytest
from django.conf import settings

from caplai.service import locks
from caplai.smpp.pdu import Status
from caplai.store import queues
from tests.channels.carrier import Carrier
from tests.channels.test_esme import TEXT, engine, outcomes


@pytest.fixture
def scenario(conn, lan):
    """Run an async scenario(carrier) with an engine bound to a carrier; the engine must not have failed."""

    def run(play, **options):
        async def whole():
            async with Carrier() as smsc, engine(smsc, **options) as running:
                await smsc.bound()
                while not conn.execute("select count(*) from link_session").fetchone()[0]:
                    await asyncio.sleep(0.02)
                await play(smsc)
                assert running.failure is None

        asyncio.run(whole())

    return run


@contextmanager
def locked(conn, table):
    conn.execute("begin")
    conn.execute(f"lock table {table} in access exclusive mode")
    try:
        yield
    finally:
        conn.execute("rollback")


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


@pytest.mark.slow
def test_every_delivery_is_answered_before_the_carriers_patience_ends(scenario, conn):
    """Also those that came while an earlier batch was stuck in the store."""

    async def play(carrier):
        async def one(n):
            await asyncio.sleep(n * 0.4)
            began = time.monotonic()
            status = await carrier.deliver(f"BH MK 012345678{n}")
            return status, time.monotonic() - began

        with locked(conn, "inbox"):
            answers = await asyncio.gather(*(one(n) for n in range(5)))
        assert {status for status, _ in answers} == {Status.ESME_RSYSERR}
        assert max(seconds for _, seconds in answers) < 4.5

    scenario(play)


@pytest.mark.slow
def test_a_redelivery_that_overtakes_a_late_commit_is_the_same_message(scenario, conn):
    """Each statement of the first one is quick enough for its time-out, all together are too late."""
    conn.execute("create sequence waits")
    conn.execute(
        "create function sleepy() returns trigger language plpgsql as"
        " 'begin if nextval(''waits'') <= 2 then perform pg_sleep(2.4); end if; return new; end'"
    )
    conn.execute("create trigger slow before insert on inbox for each row execute function sleepy()")
    conn.execute(
        "create constraint trigger slower after insert on inbox deferrable initially deferred"
        " for each row execute function sleepy()"
    )

    async def play(carrier):
        assert await carrier.deliver(TEXT) == Status.ESME_RSYSERR
        assert await carrier.deliver(TEXT) == Status.ESME_ROK  # at once: the first one is not committed yet
        await carrier.replies(1)
        await asyncio.sleep(0.5)
        assert len(carrier.submitted) == 1

    try:
        scenario(play)
        assert outcomes(conn) == ["issued"]
    finally:
        conn.execute("drop function sleepy cascade; drop sequence waits")


def test_a_heartbeat_that_could_not_be_written_takes_nobody_for_a_redelivery(scenario, conn, monkeypatch):
    """The second text is a message of its own: the first was acknowledged, and the carrier has said so."""
    touch, touched = queues.touch_session, []

    def fails_once(connection, session, confirmed_at, ended=False):
        touched.append(confirmed_at)
        if confirmed_at is not None and touched.count(confirmed_at) == 1:
            raise psycopg.OperationalError
        touch(connection, session, confirmed_at, ended)

    monkeypatch.setattr(queues, "touch_session", fails_once)

    async def play(carrier):
        assert await carrier.deliver(TEXT) == Status.ESME_ROK
        await carrier.replies(1)
        await until(lambda: any(touched))
        failed = len(touched)
        await until(lambda: len(touched) > failed)
        carrier.drop()
        await carrier.bound_again(1)
        assert await carrier.deliver(TEXT) == Status.ESME_ROK
        await carrier.replies(2)

    scenario(play)
    assert outcomes(conn) == ["issued", "joined"]


def break_keyring(path, mode):
    broken = path.with_name("keyring.broken")
    broken.write_bytes(path.read_bytes())
    broken.chmod(mode)
    broken.replace(path)


def test_with_a_broken_keyring_messages_wait_and_are_decided_once_it_is_mended(scenario, conn):
    path = settings.KEYRING.path

    async def play(carrier):
        break_keyring(path, 0o644)
        try:
            assert await carrier.deliver(TEXT) == Status.ESME_ROK
            await asyncio.sleep(1.5)
            assert conn.execute("select outcome, error from inbox").fetchall() == [(None, None)]
        finally:
            break_keyring(path, 0o600)
        await carrier.replies(1)

    scenario(play)
    assert outcomes(conn) == ["issued"]


def test_with_a_broken_keyring_replies_wait(scenario, conn):
    path = settings.KEYRING.path

    async def play(carrier):
        carrier.statuses = [Status.ESME_RSYSERR]
        await carrier.deliver(TEXT)
        await carrier.replies(1)
        break_keyring(path, 0o644)
        try:
            await until(
                lambda: conn.execute(
                    "select state = 'ready' and attempts = 1 and due_at > now() + interval '5 seconds' from outbox"
                ).fetchone()[0]
            )
        finally:
            break_keyring(path, 0o600)
        conn.execute("update outbox set due_at = now()")
        await carrier.replies(2)

    scenario(play)


@pytest.mark.parametrize("table", ["segment", "account"])
def test_a_table_that_is_not_there_is_no_messages_fault(scenario, conn, table):
    """Half a restore, or an old engine beside a new schema: the carrier keeps it, or it waits in the inbox."""

    async def play(carrier):
        conn.execute(f"alter table {table} rename to elsewhere; alter table inbox rename to inbox_elsewhere")
        try:
            assert await carrier.deliver(TEXT) == Status.ESME_RSYSERR
            conn.execute("alter table inbox_elsewhere rename to inbox")
            assert await carrier.deliver(TEXT) == Status.ESME_ROK
            await asyncio.sleep(1.2)
        finally:
            conn.execute(f"alter table elsewhere rename to {table}")
        await carrier.replies(1)

    scenario(play)
    assert outcomes(conn) == ["issued"]
    assert conn.execute("select error from inbox").fetchall() == [(None,)]


def test_a_database_that_is_read_only_for_a_while(scenario, conn):
    """A failover: what we are connected to is no primary any more."""
    database = conn.info.dbname
    close_others = (
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and application_name = 'caplai' and pid <> pg_backend_pid()"
    )

    async def play(carrier):
        conn.execute(f"alter database {database} set default_transaction_read_only = on")
        try:
            conn.execute(close_others)
            assert await carrier.deliver(TEXT) == Status.ESME_RSYSERR
        finally:
            conn.execute("set default_transaction_read_only = off")
            conn.execute(f"alter database {database} reset default_transaction_read_only")
        conn.execute(close_others)

        async def delivered():
            while await carrier.deliver(TEXT) != Status.ESME_ROK:
                await asyncio.sleep(0.2)

        await asyncio.wait_for(delivered(), 10)
        await carrier.replies(1)

    scenario(play)
    assert outcomes(conn) == ["issued"]


def wording(conn, like):
    return conn.execute("select id from wording where text like %s", [like]).fetchone()[0]


def insert_reply(conn, case_id):
    conn.execute(
        "insert into outbox (kind, wording, account, case_id, until, link, sender, destination)"
        " values ('issued', %s, '0123456789', %s, now(), 'viettel', '8079', '84327000686')",
        [wording(conn, "%password%"), case_id],
    )


def test_that_a_key_is_lacking_is_told_once(scenario, conn, caplog):
    """However many replies wait for it, and whatever else goes out between them."""
    case = uuid.uuid4()
    conn.execute(
        "insert into reissue_case (account, id, phone, channel, key, version, length, alphabet, texts, opened_at,"
        " expires_at) values ('0123456789', %s, '+84327000686', 'sms', 'gone', 1, 6, '0123456789', 1, now(),"
        " now() + interval '1 day')",
        [case],
    )

    async def play(carrier):
        for number in range(3):
            insert_reply(conn, case)
            # Other words each time: the same ones might be taken for a redelivery of what may not be acknowledged yet.
            assert await carrier.deliver(f"BH {'abc'[number]}") == Status.ESME_ROK
            await carrier.replies(number + 1)
        await until(lambda: conn.execute("select count(*) from outbox where attempts = 0").fetchone() == (3,))

    scenario(play)
    assert caplog.text.count("lacks an issuing key") == 1


def test_a_reply_that_cannot_be_written_does_not_hold_up_the_others(scenario, conn):
    async def play(carrier):
        insert_reply(conn, uuid.uuid4())  # its case is gone
        await carrier.deliver(TEXT)
        await carrier.replies(1)
        await until(
            lambda: (
                conn.execute("select state from outbox order by id").fetchall() == [("failed",), ("sent",)]
            )
        )

    scenario(play)


def test_a_password_that_has_ended_is_not_sent_any_more(scenario, conn):
    case_id = uuid.uuid4()
    conn.execute(
        "insert into reissue_case (account, id, phone, channel, key, version, length, alphabet, texts, opened_at,"
        " expires_at) values ('0123456789', %s, '+84327000686', 'sms', %s, 1, 6, '0123456789', 1,"
        " now() - interval '2 days', now() - interval '1 day')",
        [case_id, settings.KEYRING.ring("issuing").active],
    )

    async def play(carrier):
        insert_reply(conn, case_id)
        await carrier.deliver(TEXT)
        await carrier.replies(1)
        await until(
            lambda: (
                conn.execute("select state from outbox order by id").fetchall() == [("expired",), ("sent",)]
            )
        )
        assert len(carrier.submitted) == 1

    scenario(play)
    assert outcomes(conn) == ["issued"]


def test_one_locked_account_does_not_hold_up_other_people(scenario, conn):
    conn.execute(
        "insert into account (code, phone, state) select '9' || lpad(n::text, 9, '0'),"
        " '+84328' || lpad(n::text, 6, '0'), 'approved' from generate_series(0, 9) n"
    )

    async def play(carrier):
        conn.execute("begin")
        locks.take(conn, [locks.account_key("0123456789")])
        try:
            answers = [await carrier.deliver(TEXT, wait=False)]
            answers += [
                await carrier.deliver(f"BH MK 9{n:09}", source=f"84328{n:06}", wait=False) for n in range(10)
            ]
            assert set(await asyncio.gather(*answers)) == {Status.ESME_ROK}
            await carrier.replies(10)
        finally:
            conn.execute("rollback")
        await carrier.replies(11)

    scenario(play)


def test_a_receipt_without_a_state_is_kept(scenario, conn):
    async def play(carrier):
        assert await carrier.deliver("id:77 sub:001", esm_class=4) == Status.ESME_ROK

    scenario(play)
    assert conn.execute("select message_ids[1], state from receipt").fetchall() == [("77", None)]


def test_a_message_that_our_own_code_fails_on_is_set_aside_and_the_others_go_on(scenario, conn):
    """What the code fails on is of the database's making here: a row that no carrier can deliver."""
    conn.execute("alter table reissue_case add constraint bad_luck check (account <> '0123456789')")
    conn.execute("insert into account (code, phone, state) values ('9000000000', '+84328000000', 'approved')")

    async def play(carrier):
        try:
            await carrier.deliver(TEXT)
            await carrier.deliver("BH MK 9000000000", source="84328000000")
            [reply] = await carrier.replies(1)
            assert "9000000000" in reply
            await until(
                lambda: (
                    conn.execute("select error from inbox order by id").fetchall()
                    == [("CheckViolation",), (None,)]
                )
            )
        finally:
            conn.execute("alter table reissue_case drop constraint bad_luck")
        assert [error for _, _, error in queues.list_parked(conn)] == ["CheckViolation"]
        assert queues.unpark(conn) == 1
        await carrier.replies(2)

    scenario(play)
