"""What a carrier answers to our messages: throttling, queues that are full, refusals of every sort, parts of long
texts. No message is lost, and none is sent twice that was answered.
"""

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from caplai.channels import outbound
from caplai.channels.links import Link
from caplai.service.deliver import GIVE_UP, MAX_ATTEMPTS, Verdict, settle
from caplai.smpp import text
from caplai.smpp.pdu import Status
from caplai.store import queues
from tests.channels.test_esme import TEXT, outcomes, scenario  # noqa: F401 - a fixture
from tests.channels.test_hostile import settled

LONG = "Tài khoản của ông bà đã được cấp lại mật khẩu. " * 4
"""188 characters that GSM-7 lacks: three parts."""


def due(attempts=1, age=timedelta(0)):
    return queues.Due(
        id=1, inbox_id=1, kind="issued", link="viettel", sender="8079", destination="84327000686", destination_ton=1,
        destination_npi=1, attempts=attempts, created_at=datetime.now(UTC) - age, wording="", until=None,
        account=None, case_id=None, key=None, version=None, length=None, alphabet=None, dead=False,
        age=age.total_seconds(),
    )  # fmt: skip


def insert(conn, words, count=1):
    """Messages that answer nobody, due one after another, all by now."""
    wording = queues.intern(conn, [words])[words]
    conn.execute(
        "insert into outbox (kind, wording, link, sender, destination, due_at)"
        " select 'notice', %(wording)s, 'viettel', '8079', '8490' || lpad(n::text, 7, '0'),"
        " now() - (%(count)s - n) * interval '1 ms' from generate_series(1, %(count)s) n",
        {"wording": wording, "count": count},
    )
    conn.execute(f"notify {queues.OUTBOX_CHANNEL}")


# --- what a status means ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (0, Verdict.SENT),
        (Status.ESME_RTHROTTLED, Verdict.WAIT),
        (Status.ESME_RMSGQFUL, Verdict.WAIT),
        (Status.ESME_RSYSERR, Verdict.AGAIN),
        (0x444, Verdict.AGAIN),
        (0xFFFFFFFF, Verdict.AGAIN),
        (Status.ESME_RINVDSTADR, Verdict.NEVER),
        (Status.ESME_RINVSRCADR, Verdict.AGAIN),
        (0x400, Verdict.NEVER),
        (Status.ESME_RSUBMITFAIL, Verdict.NEVER),
    ],
)
def test_a_status_means_what_the_link_says(status, verdict):
    link = Link(
        name="viettel",
        host="127.0.0.1",
        temporary_statuses=["ESME_RINVSRCADR"],
        permanent_statuses=["0x400", "esme_rsubmitfail"],
    )
    assert link.verdict(status) is verdict


@pytest.mark.parametrize(
    "wrong",
    [
        {"try_again_status": "ESME_ROK"},
        {"try_again_status": "ESME_RTROTTLED"},
        {"try_again_status": None},
        {"temporary_statuses": [0]},
        {"temporary_statuses": ["0x400"], "permanent_statuses": [1024]},
    ],
)
def test_statuses_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"ESME_ROK|command_status|0x00000400"):
        Link(name="viettel", host="127.0.0.1", **wrong)


def test_a_delivery_is_refused_with_the_status_that_the_link_names(scenario, conn):  # noqa: F811
    async def play(carrier):
        await carrier.bound()
        conn.execute("alter table inbox rename to elsewhere")
        try:
            assert await carrier.deliver(TEXT) == 0x64
        finally:
            conn.execute("alter table elsewhere rename to inbox")
        assert await carrier.deliver(TEXT) == Status.ESME_ROK
        await carrier.replies(1)

    scenario(play, try_again_status="ESME_RX_T_APPN")
    assert outcomes(conn) == ["issued"]


def test_attempts_end_in_number_and_in_time_and_waits_in_time():
    now = datetime.now(UTC)
    hours = timedelta(hours=3)
    assert settle(due(MAX_ATTEMPTS - 1, hours), Verdict.AGAIN, now).state == "ready"
    assert settle(due(MAX_ATTEMPTS, hours), Verdict.AGAIN, now, status=8).state == "failed"
    assert settle(due(1, GIVE_UP + hours), Verdict.AGAIN, now).state == "failed"
    assert settle(due(4000, hours), Verdict.WAIT, now).state == "ready"
    assert settle(due(4000, GIVE_UP + hours), Verdict.WAIT, now).state == "failed"
    # An hour of waits is no reason to give up at the first answer that is lost.
    assert settle(due(200, timedelta(hours=1)), Verdict.AGAIN, now).state == "ready"
    pauses = [settle(due(n), Verdict.AGAIN, now).again_in for n in range(1, 12)]
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert [settle(due(n), Verdict.WAIT, now).again_in for n in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 20, 20]


# --- throttling --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status", [Status.ESME_RTHROTTLED, pytest.param(Status.ESME_RMSGQFUL, marks=pytest.mark.slow)]
)
def test_a_carrier_that_takes_some_and_throttles_others_gets_each_once(scenario, conn, status):  # noqa: F811
    """It takes five at a time; nothing is lost, nothing taken twice, and receipts still find their message."""
    taken = {}

    async def play(carrier):
        await carrier.bound()
        began = time.monotonic()

        def answer(pdu):
            if len(taken) < 5 * (1 + (time.monotonic() - began) // 0.3):
                assert pdu.destination not in taken
                taken[pdu.destination] = f"{len(taken) + 1000}"
                carrier.respond(pdu, message_id=taken[pdu.destination])
            else:
                carrier.respond(pdu, status)

        carrier.answer = answer
        insert(conn, "Xin chao", 20)
        await carrier.until(lambda: len(taken) == 20, 20)
        for message_id in taken.values():
            receipt = f"id:{message_id} sub:001 dlvrd:001 stat:DELIVRD err:{message_id}"
            assert await carrier.deliver(receipt, esm_class=4) == Status.ESME_ROK

    scenario(play, window=10, receipts=True)
    rows = conn.execute("select destination, state, status, message_id, receipt from outbox").fetchall()
    assert sorted(rows) == sorted((to, "sent", 0, message_id, "DELIVRD") for to, message_id in taken.items())
    assert conn.execute("select count(*) from receipt where outbox_id is null").fetchone() == (0,)


def test_after_throttling_one_message_asks_whether_it_is_over_and_the_first_go_first(
    scenario,  # noqa: F811
    conn,
):
    async def play(carrier):
        await carrier.bound()
        alone = []

        def answer(pdu):
            count = len(carrier.submitted)
            if count <= 4:
                carrier.respond(pdu, Status.ESME_RTHROTTLED)
            elif count <= 6:
                asyncio.get_running_loop().call_later(0.2, ask, pdu, count)
            else:
                carrier.respond(pdu)

        def ask(pdu, count):
            alone.append(len(carrier.submitted) == count)
            carrier.respond(pdu, Status.ESME_RTHROTTLED if count == 5 else 0)

        carrier.answer = answer
        insert(conn, "Xin chao", 12)
        await settled(conn, [("sent", 2)] * 5 + [("sent", 1)] * 7)
        sent = [pdu.destination for pdu in carrier.submitted]
        assert sent[:6] == [
            f"8490000000{n}" for n in range(1, 7)
        ]  # a window is refused, then one, then one is taken
        assert alone == [True, True]

    scenario(play, window=4)


@pytest.mark.parametrize("status", [Status.ESME_RSYSERR, pytest.param(0x444, marks=pytest.mark.slow)])
def test_a_carrier_that_refuses_whatever_comes_is_not_stormed(scenario, conn, status, monkeypatch):  # noqa: F811
    monkeypatch.setattr(outbound, "QUIET", (0.5, 0.5))

    async def play(carrier):
        await carrier.bound()
        insert(conn, "Xin chao", 200)
        carrier.answer = lambda pdu: carrier.respond(pdu, status)
        await asyncio.sleep(2)
        assert 10 <= len(carrier.submitted) <= 10 + 4 + 1  # ten in a row, then one in each pause
        assert set(Counter(pdu.destination for pdu in carrier.submitted).values()) == {1}
        carrier.answer = None
        await carrier.until(lambda: len(carrier.submitted) >= 200, 10)

    scenario(play, window=10)


def test_a_message_that_is_refused_for_a_day_ends_as_failed_with_its_status(scenario, conn):  # noqa: F811
    async def play(carrier):
        await carrier.bound()
        carrier.statuses = [Status.ESME_RMSGQFUL] * 2
        insert(conn, "Xin chao")
        await carrier.replies(1)
        conn.execute("update outbox set created_at = now() - interval '25 hours'")
        await settled(conn, [("failed", 2)])

    scenario(play)
    assert conn.execute("select state, status from outbox").fetchall() == [("failed", Status.ESME_RMSGQFUL)]


def test_answers_in_any_order_settle_their_own_message(scenario, conn):  # noqa: F811
    async def play(carrier):
        await carrier.bound()
        carrier.answer_submits = False
        insert(conn, "Xin chao", 20)
        await carrier.replies(20)
        for pdu in reversed(carrier.submitted):
            carrier.respond(pdu, message_id=f"for-{pdu.destination}")
        for pdu in carrier.submitted:  # and once more: which answers nothing
            carrier.respond(pdu, Status.ESME_RSYSERR)
        await settled(conn, [("sent", 1)] * 20)
        assert len(carrier.submitted) == 20

    scenario(play, receipts=True)
    assert conn.execute(
        "select count(*) from outbox where message_id = 'for-' || destination"
    ).fetchone() == (20,)


def test_a_message_id_of_any_length_does_not_stop_the_others(scenario, conn):  # noqa: F811
    """Its index would hold no more than some thousand octets."""
    import random

    long = "".join(random.Random(1).choices("0123456789abcdefghijklmnopqrstuvwxyz", k=20_000))

    async def play(carrier):
        await carrier.bound()
        carrier.message_id = lambda n: long if n == 1 else str(n)
        insert(conn, "Xin chao", 3)
        await settled(conn, [("sent", 1)] * 3)

    scenario(play, receipts=True)
    assert conn.execute("select message_id from outbox order by id").fetchall() == [(None,), ("2",), ("3",)]


# --- parts -----------------------------------------------------------------------------------------


def joined(pdus):
    """The text of the parts, whatever their order, and their reference."""
    found = [text.parse_udh(pdu.short_message) for pdu in pdus]
    [(reference, total)] = {(part.reference, part.total) for part, _ in found}
    assert total == len(pdus)
    octets = text.assemble({part.number: body for part, body in found})
    return text.decode(pdus[0].data_coding, octets).text, reference


@pytest.mark.parametrize("window", [1, 50])
def test_a_text_of_several_segments_goes_out_in_parts(scenario, conn, window):  # noqa: F811
    async def play(carrier):
        await carrier.bound()
        insert(conn, LONG)
        await carrier.until(lambda: len(carrier.submitted) == 3)
        assert joined(carrier.submitted)[0] == LONG
        assert {(pdu.esm_class, pdu.data_coding) for pdu in carrier.submitted} == {(text.UDH_INDICATOR, 8)}
        assert [pdu.registered_delivery for pdu in carrier.submitted] == [0, 0, 1]
        await settled(conn, [("sent", 1)])

    scenario(play, window=window, receipts=True)
    assert conn.execute("select message_id from outbox").fetchall() == [("3",)]


@pytest.mark.parametrize(
    "refusal",
    [
        Status.ESME_RTHROTTLED,
        pytest.param(Status.ESME_RSYSERR, marks=pytest.mark.slow),
        pytest.param(None, marks=pytest.mark.slow),
    ],
)
def test_only_the_part_that_was_not_taken_is_sent_again(scenario, conn, refusal):  # noqa: F811
    async def play(carrier):
        await carrier.bound()

        def answer(pdu):
            if len(carrier.submitted) != 2:
                carrier.respond(pdu, message_id=str(len(carrier.submitted)))
            elif refusal is not None:
                carrier.respond(pdu, refusal)

        carrier.answer = answer
        insert(conn, LONG)
        await carrier.until(lambda: len(carrier.submitted) == 4)
        first, refused, last, again = carrier.submitted
        assert again.short_message == refused.short_message
        assert joined([first, again, last])[0] == LONG
        await settled(conn, [("sent", 2)])

    scenario(play, submit_timeout=2.0, receipts=True)
    assert conn.execute("select status, message_id from outbox").fetchall() == [(0, "3")]


def test_a_part_refused_for_good_ends_the_message(scenario, conn):  # noqa: F811
    async def play(carrier):
        await carrier.bound()
        carrier.statuses = [0, Status.ESME_RINVDSTADR]
        insert(conn, LONG)
        await settled(conn, [("failed", 1)])
        assert len(carrier.submitted) <= 3

    scenario(play, window=2)
    assert conn.execute("select status from outbox").fetchall() == [(Status.ESME_RINVDSTADR,)]


@pytest.mark.slow
def test_parts_cut_off_by_a_lost_connection_are_sent_again(scenario, conn):  # noqa: F811
    async def play(carrier):
        await carrier.bound()

        def answer(pdu):
            if len(carrier.submitted) == 1:
                carrier.respond(pdu)
                asyncio.get_running_loop().call_later(0.05, carrier.drop)
            elif len(carrier.binds) == 2:
                carrier.respond(pdu)

        carrier.answer = answer
        insert(conn, LONG)
        await settled(conn, [("sent", 2)])
        assert len(carrier.submitted) == 5  # all three, then the two that were not answered
        assert joined([carrier.submitted[0], *carrier.submitted[3:]])[0] == LONG

    scenario(play)


@pytest.mark.slow
def test_tps_counts_parts(scenario, conn):  # noqa: F811
    async def play(carrier):
        await carrier.bound()
        insert(conn, LONG, 5)
        await settled(conn, [("sent", 1)] * 5)
        times = carrier.submitted_at
        assert len(times) == 15
        for start in range(len(times) - 10):  # ten a second, and a tenth of a second's worth at once
            assert times[start + 10] - times[start] > 0.75

    scenario(play, tps=10)


def test_what_is_due_again_before_we_know_it_does_not_wait_for_its_lease(scenario, conn, monkeypatch):  # noqa: F811
    """Its result is written, and claimed again, and only then the answer to the writing comes."""
    settle_outbox, settled_at = queues.settle_outbox, []

    def late(connection, engine, batch):
        count = settle_outbox(connection, engine, batch)
        settled_at.append(time.monotonic())
        if len(settled_at) == 1:
            time.sleep(2)  # committed, and the answer takes its time
        return count

    monkeypatch.setattr(queues, "settle_outbox", late)

    async def play(carrier):
        await carrier.bound()
        carrier.statuses = [Status.ESME_RTHROTTLED]
        insert(conn, "Xin chao.")
        await carrier.replies(2)
        await settled(conn, [("sent", 2)])
        assert len(carrier.submitted) == 2

    scenario(play)
