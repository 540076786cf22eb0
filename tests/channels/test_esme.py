"""The SMS door against a carrier that does everything but behave."""

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise

import psycopg
import pytest
from django.conf import settings

from caplai.channels.links import Link
from caplai.engine import Engine
from caplai.service import reissue
from caplai.smpp import text
from caplai.smpp.pdu import Command, Status, Tag
from caplai.store import queues
from caplai.store.db import conninfo
from tests.channels.carrier import Carrier

TEXT = "BH MK 0123456789"


@asynccontextmanager
async def engine(carrier, **options):
    link = Link(name="viettel", host="127.0.0.1", port=carrier.port, password="secret", **options)
    running = Engine(settings.CAPLAI.model_copy(update={"links": [link]}), settings.KEYRING)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


@pytest.fixture
def scenario(conn, lan):
    """Run an async scenario(carrier) with an engine bound to a carrier; lan's account exists."""

    def run(play, *, carrier=None, **options):
        async def whole():
            async with Carrier(**(carrier or {})) as smsc, engine(smsc, **options) as smsc.engine:
                await play(smsc)

        asyncio.run(whole())

    return run


async def surely_read(carrier):
    """Wait until the engine knows that its answers were read: until then the same text again is a redelivery.

    The reply to a text may overtake its OK, and then it proves nothing: only what is asked later does.
    """
    inbound = carrier.engine.esmes[0]._inbound
    async with asyncio.timeout(10):
        while any(inbound._may_be_unread(twin) for twin in list(inbound._unread)):
            await asyncio.sleep(0.01)


def outcomes(conn):
    return [outcome for (outcome,) in conn.execute("select outcome from inbox order by id").fetchall()]


def test_a_delivery_is_answered_and_the_reply_submitted_to_its_sender(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        assert await carrier.deliver(TEXT) == Status.ESME_ROK
        [reply] = await carrier.replies(1)
        assert reply.startswith("Cap lai mat khau thanh cong. Tai khoan: 0123456789/Mat khau: ")
        [pdu] = carrier.submitted
        assert (pdu.destination, pdu.destination_ton, pdu.destination_npi) == ("84327000686", 1, 1)
        assert (pdu.source, pdu.esm_class, pdu.data_coding, pdu.registered_delivery) == ("8079", 0, 0, 0)

    scenario(play)
    assert outcomes(conn) == ["issued"]
    assert conn.execute("select state, attempts from outbox").fetchall() == [("sent", 1)]


def test_nothing_is_acknowledged_before_it_is_stored(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        conn.execute("begin")
        conn.execute("lock table inbox in access exclusive mode")
        answer = await carrier.deliver(TEXT, wait=False)
        await asyncio.sleep(0.5)
        assert not answer.done()
        conn.execute("rollback")
        assert await asyncio.wait_for(answer, 5) == Status.ESME_ROK

    scenario(play)
    assert outcomes(conn) == ["issued"]


def test_a_store_that_does_not_answer_is_a_temporary_error_and_the_redelivery_is_the_same_message(
    scenario, conn
):
    async def play(carrier):
        await carrier.bound()
        conn.execute("begin")
        conn.execute("lock table inbox in access exclusive mode")
        assert await asyncio.wait_for(await carrier.deliver(TEXT, wait=False), 4.9) == Status.ESME_RSYSERR
        conn.execute("rollback")
        assert await carrier.deliver(TEXT) == Status.ESME_ROK
        await carrier.replies(1)

    scenario(play)
    assert outcomes(conn) == ["issued"]


def test_what_was_stored_too_late_to_be_acknowledged_is_the_same_message(scenario, conn):
    """Each statement is quick enough, all together are not: the answer is an error, yet it was stored."""
    conn.execute(
        "create function sleepy() returns trigger language plpgsql as"
        " 'begin perform pg_sleep(1.9); return new; end'"
    )
    conn.execute("create trigger slow before insert on inbox for each row execute function sleepy()")
    conn.execute(
        "create constraint trigger slower after insert on inbox deferrable initially deferred"
        " for each row execute function sleepy()"
    )

    async def play(carrier):
        await carrier.bound()
        assert await carrier.deliver(TEXT) == Status.ESME_RSYSERR
        conn.execute("drop function sleepy cascade")
        await carrier.replies(1)
        assert await carrier.deliver(TEXT) == Status.ESME_ROK

    try:
        scenario(play)
    finally:
        conn.execute("drop function if exists sleepy cascade")
    assert outcomes(conn) == ["issued"]


def test_the_same_text_again_is_a_new_message_that_joins(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        for n in range(2):
            assert await carrier.deliver(TEXT) == Status.ESME_ROK
            await carrier.replies(n + 1)
            await surely_read(carrier)
        assert len(set(carrier.texts())) == 1

    scenario(play)
    assert outcomes(conn) == ["issued", "joined"]


def test_a_delivery_repeated_before_its_answer_is_the_same_message(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        answers = [await carrier.deliver(TEXT, wait=False) for _ in range(3)]
        assert [await answer for answer in answers] == [Status.ESME_ROK] * 3
        await carrier.replies(1)

    scenario(play)
    assert outcomes(conn) == ["issued"]


@pytest.mark.slow
def test_a_redelivery_on_the_same_connection_is_the_same_message_until_our_answer_was_surely_read(
    scenario, conn
):
    async def play(carrier):
        await carrier.bound()
        carrier.answer_submits = False  # so nothing proves that the acknowledgement arrived
        for _ in range(2):
            assert await carrier.deliver(TEXT) == Status.ESME_ROK
        await carrier.replies(1)
        carrier.answer_submits = True
        assert await carrier.deliver("BH MK 0123456789 cam on") == Status.ESME_ROK
        await carrier.replies(2)  # and their answer proves it of all that came before
        await surely_read(carrier)
        assert await carrier.deliver("BH MK 0123456789 cam on") == Status.ESME_ROK
        await carrier.replies(3)

    scenario(play)
    assert outcomes(conn) == ["issued", "joined", "joined"]


def test_on_a_receivers_bind_the_same_text_is_a_new_message_once_a_sign_of_life_came(
    scenario, conn, monkeypatch
):
    monkeypatch.setattr("caplai.channels.connection.ASK_AFTER", 60.0)
    monkeypatch.setattr("caplai.channels.esme.HEARTBEAT", 0.2)

    async def play(carrier):
        await carrier.bound(2)
        for _ in range(2):  # the carrier's patience ends: nothing has told us that it read our answer
            assert await carrier.deliver(TEXT) == Status.ESME_ROK
        await carrier.replies(1)
        monkeypatch.setattr("caplai.channels.connection.ASK_AFTER", 0.0)
        for n in range(2):  # however long the first one, asked for twice, may come once more
            await surely_read(carrier)  # it answers our enquire_link
            assert await carrier.deliver("BH MK 0123456789 a") == Status.ESME_ROK
            await carrier.replies(2 + n)

    scenario(play, bind="pair")
    assert outcomes(conn) == ["issued", "joined", "joined"]


def test_a_redelivery_after_a_lost_connection_is_the_same_message(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        carrier.answer_submits = False  # so nothing proves that the acknowledgement arrived
        assert await carrier.deliver(TEXT) == Status.ESME_ROK
        await carrier.replies(1)
        carrier.drop()
        carrier.answer_submits = True
        await carrier.until(lambda: len(carrier.binds) == 2)
        await carrier.bound()
        assert await carrier.deliver(TEXT) == Status.ESME_ROK  # with another sequence number, surely
        await carrier.replies(2)  # the first reply was never answered: the identical text again
        assert len(set(carrier.texts())) == 1

    scenario(play)
    assert outcomes(conn) == ["issued"]


def test_what_was_surely_acknowledged_is_a_new_message_after_a_lost_connection(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        assert await carrier.deliver(TEXT) == Status.ESME_ROK
        await carrier.replies(1)
        # The carrier answered our submit, which we sent after the acknowledgement: so that one has arrived.
        while conn.execute("select confirmed_at is null from link_session").fetchone()[0]:
            await asyncio.sleep(0.05)
        carrier.drop()
        await carrier.until(lambda: len(carrier.binds) == 2)
        await carrier.bound()
        assert await carrier.deliver(TEXT) == Status.ESME_ROK
        await carrier.replies(2)

    scenario(play)
    assert outcomes(conn) == ["issued", "joined"]


def test_a_submit_without_answer_is_sent_again_with_the_identical_text(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        carrier.answer_submits = False
        await carrier.deliver(TEXT)
        await carrier.replies(1)
        carrier.answer_submits = True
        first, second = await carrier.replies(2, seconds=15)
        assert first == second

    scenario(play, submit_timeout=1.0)
    assert conn.execute("select state, attempts from outbox").fetchall() == [("sent", 2)]


@pytest.mark.parametrize("status", [Status.ESME_RTHROTTLED, Status.ESME_RMSGQFUL, 0x0000_0444])
def test_a_refusal_that_may_pass_is_tried_again(scenario, conn, status):
    async def play(carrier):
        await carrier.bound()
        carrier.statuses = [status]
        await carrier.deliver(TEXT)
        first, second = await carrier.replies(2)
        assert first == second

    scenario(play)
    assert conn.execute("select state, attempts, status from outbox").fetchall() == [("sent", 2, 0)]


@pytest.mark.slow
def test_a_carrier_that_throttles_is_left_alone_for_longer_each_time(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        carrier.statuses = [Status.ESME_RTHROTTLED] * 3
        for n in range(6):
            await carrier.deliver("BH", f"8491234567{n}")
        await carrier.until(lambda: len(carrier.submitted) == 9, 20)
        times = carrier.submitted_at
        pauses = [later - earlier for earlier, later in pairwise(times[:4])]
        assert [pause > least for pause, least in zip(pauses, (0.4, 0.9, 1.9), strict=True)] == [True] * 3

    scenario(play, window=1)
    assert conn.execute("select state, count(*) from outbox group by 1").fetchall() == [("sent", 6)]


def test_a_refusal_for_good_is_kept_with_its_status(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        carrier.statuses = [Status.ESME_RINVDSTADR]
        await carrier.deliver(TEXT)
        await carrier.replies(1)

    scenario(play)
    assert conn.execute("select state, attempts, status from outbox").fetchall() == [
        ("failed", 1, Status.ESME_RINVDSTADR)
    ]


def ucs2(words):
    return words.encode("utf-16-be")


@pytest.mark.parametrize(
    "fields",
    [
        {"text": b"BH MK 0123456789", "data_coding": 1},
        {"text": b"BH MK 0123456789", "data_coding": 3},
        {"text": ucs2("BH MK mã số 0123456789"), "data_coding": 8},
        {"text": ucs2("BH MK mã số 0123456789") + b"\0", "data_coding": 8},  # an odd length
        {"text": b"", "data_coding": 8, "tlvs": [(Tag.MESSAGE_PAYLOAD, ucs2("BH MK 0123456789"))]},
        {"text": b"BH MK 0123456789", "tlvs": [(0x1401, b"a carrier's own"), (0x1401, b"")]},
        {"text": b"BH MK 0123456789", "data_coding": 0x44},  # unknown: read as it seems, kept raw
        {"text": b"BH\0MK 0123456789", "data_coding": 3},  # a NUL, which PostgreSQL cannot hold
    ],
)
def test_every_way_of_writing_the_same_text(scenario, conn, fields):
    async def play(carrier):
        await carrier.bound()
        assert await carrier.deliver(fields.pop("text"), **fields) == Status.ESME_ROK
        await carrier.replies(1)

    scenario(play)
    assert outcomes(conn) == ["issued"]


LONG = "BH MK " + "xin cho toi lai mat khau " * 8 + " 0123456789"


def parts(words, reference=7):
    return [{"text": part, "esm_class": text.UDH_INDICATOR} for part in text.split(words, reference)]


@pytest.mark.parametrize("order", [[0, 1], [1, 0], [1, 0, 1]])
def test_parts_are_put_together_whatever_their_order(scenario, conn, order):
    async def play(carrier):
        await carrier.bound()
        for number in order:
            part = parts(LONG)[number]
            assert await carrier.deliver(part.pop("text"), **part) == Status.ESME_ROK
        await carrier.replies(1)

    scenario(play)
    assert conn.execute("select text from inbox").fetchall() == [(LONG,)]
    assert outcomes(conn) == ["issued"]


def test_parts_by_sar_parameters(scenario, conn):
    def sar(number, words):
        tlvs = [(0x020C, b"\x01\x02"), (0x020E, b"\x02"), (0x020F, bytes([number]))]
        return {"text": words.encode(), "tlvs": tlvs}

    async def play(carrier):
        await carrier.bound()
        for part in (sar(2, LONG[100:]), sar(1, LONG[:100])):
            assert await carrier.deliver(part.pop("text"), **part) == Status.ESME_ROK
        await carrier.replies(1)

    scenario(play)
    assert conn.execute("select text from inbox").fetchall() == [(LONG,)]


def test_a_message_by_data_sm(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        tlvs = [(Tag.MESSAGE_PAYLOAD, TEXT.encode())]
        assert await carrier.deliver(b"", command_id=Command.DATA_SM, tlvs=tlvs) == Status.ESME_ROK
        await carrier.replies(1)

    scenario(play)
    assert outcomes(conn) == ["issued"]


def test_parts_of_two_senders_with_one_reference_are_kept_apart(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        for number in (0, 1):
            for source in ("84327000686", "84327000687"):
                part = parts(LONG)[number]
                await carrier.deliver(part.pop("text"), source, **part)
        await carrier.replies(2)

    scenario(play)
    assert outcomes(conn) == ["issued", "mismatch"]


def test_parts_that_wait_too_long_are_read_without_the_others(conn, lan, rules):
    def join(coding, found, total):
        return " … ".join(found[number].decode() for number in sorted(found))

    arrival = queues.Arrival("84327000686", 1, 1, "8079", 0, None, 9, 3, 2, b"BH MK 01234")
    queues.accept(conn, "viettel", None, [arrival], join)
    queues.sweep_segments(conn, "viettel", join, timedelta(minutes=1))
    assert outcomes(conn) == []
    conn.execute("update segment set received_at = received_at - interval '61 seconds'")
    queues.sweep_segments(conn, "viettel", join, timedelta(minutes=1))
    reissue.reissue_inbox(conn, rules, 10)
    assert outcomes(conn) == ["bad_code"]


def test_a_receipt_is_stored_and_matched_and_an_unknown_one_kept(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        await carrier.deliver(TEXT)
        await carrier.replies(1)
        while conn.execute("select state from outbox").fetchone()[0] != "sent":
            await asyncio.sleep(0.02)
        for body in (b"id:0000001 sub:001 dlvrd:001 stat:DELIVRD err:000 text:", b"id:99 stat:ODD"):
            assert await carrier.deliver(body, esm_class=0x04) == Status.ESME_ROK

    scenario(play, receipts=True)
    assert conn.execute(
        "select registered, receipt from (select receipt, 1 registered from outbox) o"
    ).fetchall() == [(1, "DELIVRD")]
    assert conn.execute("select state, outbox_id is null from receipt order by id").fetchall() == [
        ("DELIVRD", False),
        ("ODD", True),
    ]
    assert outcomes(conn) == ["issued"]


def test_a_receipt_that_comes_before_the_answer_is_matched(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        carrier.answer_submits = False
        await carrier.deliver(TEXT)
        await carrier.replies(1)
        await carrier.deliver(b"id:42 stat:DELIVRD", esm_class=0x04)
        connection = carrier.receiver
        connection.session.respond(carrier.submitted[0], message_id="42", now=time.monotonic())
        connection.flush()
        while conn.execute("select receipt from outbox").fetchone()[0] is None:
            await asyncio.sleep(0.02)

    scenario(play, receipts=True)
    assert conn.execute("select receipt from outbox").fetchall() == [("DELIVRD",)]


def test_a_pair_of_binds(scenario, conn):
    async def play(carrier):
        await carrier.bound(2)
        assert {connection.bound for connection in carrier.connections} == {
            "BIND_RECEIVER",
            "BIND_TRANSMITTER",
        }
        assert await carrier.deliver(TEXT) == Status.ESME_ROK
        await carrier.replies(1)

    scenario(play, bind="pair")
    assert outcomes(conn) == ["issued"]


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({}, (0, 1, "8079")),
        ({"sender": "BHXH VN"}, (5, 0, "BHXH VN")),
        ({"sender": "BHXH", "sender_ton": 2, "sender_npi": 8}, (2, 8, "BHXH")),
    ],
)
def test_the_sender_is_the_short_code_or_a_brandname(scenario, options, address):
    async def play(carrier):
        await carrier.bound()
        await carrier.deliver(TEXT)
        await carrier.replies(1)
        [pdu] = carrier.submitted
        assert (pdu.source_ton, pdu.source_npi, pdu.source) == address

    scenario(play, **options)


@pytest.mark.slow
def test_a_refused_bind_is_tried_again_with_growing_pauses(scenario, conn):
    async def play(carrier):
        await carrier.until(lambda: len(carrier.binds) >= 3)
        carrier.password = "secret"
        await carrier.bound()
        assert await carrier.deliver(TEXT) == Status.ESME_ROK

    scenario(play, carrier={"password": "another"})


def test_a_connection_that_is_made_while_the_link_stops_is_closed(conn, monkeypatch):
    async def play():
        async with Carrier() as carrier, engine(carrier) as running:
            loop = asyncio.get_running_loop()
            connect, asked, may = loop.create_connection, asyncio.Event(), asyncio.Event()

            async def connect_slowly(*arguments, **options):
                asked.set()
                await may.wait()
                return await connect(*arguments, **options)

            await carrier.bound()
            monkeypatch.setattr(loop, "create_connection", connect_slowly)
            carrier.drop()
            await asked.wait()
            binds = len(carrier.binds)
            await running.ways[0].stop()
            may.set()
            await carrier.until(lambda: len(carrier.binds) > binds and not carrier.connections, 3.0)

    asyncio.run(play())


def test_the_window_is_kept(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        carrier.answer_submits = False
        for n in range(10):
            await carrier.deliver("BH", source=f"8491234567{n}")
        await carrier.replies(3)
        await asyncio.sleep(0.3)
        assert len(carrier.submitted) == 3
        carrier.drop()  # else the engine waits for the answers before it stops

    scenario(play, window=3)


def test_tps_is_kept(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        answers = [await carrier.deliver("BH", f"849123456{n:02}", wait=False) for n in range(10)]
        await asyncio.gather(*answers)
        await carrier.replies(10)
        first, *_, last = carrier.submitted_at
        assert last - first > 8 / 10

    scenario(play, tps=10)


def test_messages_stay_with_the_carrier_while_the_database_is_away_and_it_heals_alone(scenario, conn):
    async def play(carrier):
        await carrier.bound()
        database = conn.info.dbname
        with psycopg.connect(conninfo(), dbname="postgres", autocommit=True) as other:
            other.execute(f"alter database {database} with allow_connections false")
            other.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = %s and application_name = 'caplai' and pid <> %s",
                [database, conn.info.backend_pid],
            )
            try:
                assert await carrier.deliver(TEXT) == Status.ESME_RSYSERR
            finally:
                other.execute(f"alter database {database} with allow_connections true")
        assert await carrier.deliver(TEXT) == Status.ESME_ROK
        await carrier.replies(1)

    scenario(play)


def test_logs_hold_no_phone_no_code_and_no_password(scenario, conn, caplog):
    passwords = []

    async def play(carrier):
        await carrier.bound()
        carrier.statuses = [Status.ESME_RTHROTTLED]
        await carrier.deliver(TEXT)
        passwords.extend(reply.split("Mat khau: ")[1][:6] for reply in await carrier.replies(2))
        await carrier.deliver(b"\xff\xfe", data_coding=0x99)
        carrier.drop()
        await carrier.until(lambda: len(carrier.binds) == 2)

    scenario(play)
    assert passwords
    for secret in ("327000686", "0123456789", *passwords):
        assert secret not in caplog.text
