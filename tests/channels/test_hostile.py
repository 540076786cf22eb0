"""A carrier that breaks every rule of SMPP, against our engine: nothing is lost, nothing is twice, and the bind
survives what the specification lets it survive.
"""

import asyncio
import socket
import time

import pytest

from caplai.channels import connection as connection_module
from caplai.channels import esme, inbound
from caplai.channels.connection import Connection
from caplai.channels.links import Link
from caplai.smpp.pdu import (
    Bind,
    BindKind,
    BindResp,
    Command,
    ShortMessageResp,
    Simple,
    Status,
    Tag,
    Unknown,
    encode,
)
from caplai.smpp.session import Bound
from tests.channels.carrier import delivery
from tests.channels.test_esme import TEXT, outcomes, scenario, surely_read  # noqa: F401 - one is a fixture


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Connect again at once: how the pauses grow is another test's."""
    monkeypatch.setattr(esme, "BACKOFF", (0.02, 0.02))


def whole(pdu, sequence):
    pdu.sequence = sequence
    return encode(pdu)


async def settled(conn, states, seconds=10.0, order="id"):
    """Wait until the outbox says this."""
    query = f"select state, attempts from outbox order by {order}"
    async with asyncio.timeout(seconds):
        while conn.execute(query).fetchall() != states:
            await asyncio.sleep(0.02)


HARMLESS = {
    "an unknown request": encode(Unknown(0x0000_0777, 0, 900, b"whatever")),
    "an unknown response": encode(Unknown(0x8000_0777, 0, 901, b"")),
    "a response to a sequence number never used": encode(
        ShortMessageResp(Command.SUBMIT_SM_RESP, 0, 902, "1")
    ),
    "a generic_nack to nothing": encode(Simple(Command.GENERIC_NACK, Status.ESME_RINVCMDID, 903)),
    "an outbind": encode(Bind(Command.OUTBIND, 0, 904, "smsc", "secret")),
    "a bind": encode(Bind(Command.BIND_TRANSCEIVER, 0, 905, "smsc", "secret")),
    "a submit_sm": encode(delivery(TEXT, command_id=Command.SUBMIT_SM, sequence=906)),
    "a deliver_sm without a body": encode(Unknown(Command.DELIVER_SM, 0, 907, b"")),
    "a deliver_sm whose text is longer than itself": encode(
        Unknown(Command.DELIVER_SM, 0, 908, b"\0\1\0011\0\0\0012\0\0\0\0\0\0\0\0\0\0\xffBH MK")
    ),
    "a bind response, again": encode(BindResp(Command.BIND_TRANSCEIVER_RESP, 0, 1, "smsc")),
    "an enquire_link with a body": b"\0\0\0\x12" + encode(Simple(Command.ENQUIRE_LINK, 0, 909))[4:] + b"ab",
}


def test_a_bind_survives_what_is_merely_wrong(scenario, conn, caplog):  # noqa: F811
    async def play(carrier):
        await carrier.bound()
        for data in HARMLESS.values():
            carrier.write(data * 50)
        assert await carrier.deliver(TEXT) == Status.ESME_ROK
        await carrier.replies(1)
        assert len(carrier.binds) == 1
        assert set(carrier.statuses_heard(Command.GENERIC_NACK)) == {Status.ESME_RINVCMDID}
        assert set(carrier.statuses_heard(Command.SUBMIT_SM_RESP)) == {Status.ESME_RINVBNDSTS}
        assert set(carrier.statuses_heard(Command.ENQUIRE_LINK_RESP)) == {Status.ESME_ROK}
        assert {pdu.status for pdu in carrier.heard if pdu.sequence in (907, 908)} == {
            Status.ESME_RINVCMDLEN,
            Status.ESME_RINVMSGLEN,
        }

    scenario(play)
    assert outcomes(conn) == ["issued"]
    assert len(caplog.records) < 30  # once for each sort, not for each of 550


def test_a_length_that_cannot_be_is_answered_and_the_link_bound_anew(scenario, conn):  # noqa: F811
    async def play(carrier):
        rest = encode(Simple(Command.ENQUIRE_LINK, 0, 900))[4:] + b"x" * 100_000
        for binds, length in enumerate([0, 15, 16 * 1024 * 1024, 0xFFFF_FFFF], 1):
            await carrier.bound()
            carrier.write(length.to_bytes(4, "big") + rest)
            await carrier.bound_again(binds)
            assert carrier.statuses_heard(Command.GENERIC_NACK) == [Status.ESME_RINVCMDLEN] * binds
        assert await carrier.deliver(TEXT) == Status.ESME_ROK
        await carrier.replies(1)

    scenario(play)
    assert outcomes(conn) == ["issued"]


def test_a_delivery_cut_at_every_byte_is_no_message_until_it_is_whole(scenario, conn):  # noqa: F811
    data = whole(delivery("BH"), 900)

    async def play(carrier):
        for cut in range(len(data)):
            await carrier.bound_again(cut)
            carrier.write(data[:cut])
            await carrier.receiver.writer.drain()
            carrier.drop()
        await carrier.bound_again(len(data))
        assert conn.execute("select count(*) from inbox").fetchone() == (0,)
        assert await carrier.deliver("BH") == Status.ESME_ROK
        await carrier.replies(1)

    scenario(play)
    assert outcomes(conn) == ["bad_syntax"]


@pytest.fixture
def unasked(monkeypatch):
    """The engine asks nothing by itself, which the carrier would answer in the middle of a PDU."""
    monkeypatch.setattr(connection_module, "ASK_AFTER", 60.0)


def test_a_delivery_whose_rest_comes_later_is_one_message(scenario, conn, unasked):  # noqa: F811
    """The texts are another agency's, so that nothing of ours is answered in the middle of a PDU."""
    size = len(whole(delivery("VIN", "84900000000"), 900))

    async def play(carrier):
        await carrier.bound()
        for cut in range(1, size):
            data = whole(delivery("VIN", f"84900000{cut:03}"), 900 + cut)
            carrier.write(data[:cut])
            await asyncio.sleep(0.002)
            carrier.write(data[cut:])
        await carrier.until(lambda: len(carrier.statuses_heard(Command.DELIVER_SM_RESP)) == size - 1)
        assert set(carrier.statuses_heard(Command.DELIVER_SM_RESP)) == {Status.ESME_ROK}
        assert len(carrier.binds) == 1
        while None in outcomes(conn):
            await asyncio.sleep(0.02)

    scenario(play)
    assert outcomes(conn) == ["other_agency"] * (size - 1)


RESPONSE = whole(ShortMessageResp(Command.SUBMIT_SM_RESP, 0, message_id="a-message"), 1)


def test_a_response_cut_at_every_byte_is_none_and_the_text_is_sent_again(scenario, conn):  # noqa: F811
    """A message is sent again for each response that was cut, and only for those."""
    cuts = range(len(RESPONSE) + 1)
    sources = [f"84900000{cut:03}" for cut in cuts]

    async def play(carrier):
        def answer(pdu):
            data = whole(ShortMessageResp(Command.SUBMIT_SM_RESP, 0, message_id="a-message"), pdu.sequence)
            if len(carrier.submitted) <= len(RESPONSE):
                carrier.write(data[: len(carrier.submitted) - 1])
                # The reply may come before the OK to its text, which is not to be lost here.
                delivered.add_done_callback(lambda _: carrier.drop())
            else:
                carrier.write(data)

        carrier.answer = answer
        for sent, source in enumerate(sources, 1):
            await carrier.bound()
            delivered = await carrier.deliver("BH", source, wait=False)
            assert await asyncio.wait_for(delivered, 10) == Status.ESME_ROK
            await carrier.replies(sent)
            if sent <= len(RESPONSE):
                await carrier.until(lambda: not carrier.connections)
                # So that what is tried again does not come between: not before all have had their turn.
                async with asyncio.timeout(10):
                    while not conn.execute(
                        "update outbox set due_at = 'infinity' where state = 'ready' and due_at < 'infinity'"
                    ).rowcount:
                        await asyncio.sleep(0.01)
        await settled(conn, [("ready", 1)] * len(RESPONSE) + [("sent", 1)])
        conn.execute("update outbox set due_at = now() where state = 'ready'")
        await settled(conn, [("sent", 2)] * len(RESPONSE) + [("sent", 1)])
        assert [pdu.destination for pdu in carrier.submitted] == sources + sources[:-1]
        assert len(set(carrier.texts())) == 1

    scenario(play)


def test_a_response_whose_rest_comes_later_is_one(scenario, conn, unasked):  # noqa: F811
    async def play(carrier):
        await carrier.bound()
        cuts = iter(range(1, len(RESPONSE)))

        def answer(pdu):
            cut = next(cuts)
            data = whole(ShortMessageResp(Command.SUBMIT_SM_RESP, 0, message_id="a-message"), pdu.sequence)
            carrier.write(data[:cut])
            asyncio.get_running_loop().call_later(0.002, carrier.write, data[cut:])

        carrier.answer = answer
        for n in range(1, len(RESPONSE)):
            await carrier.deliver("BH", f"84900000{n:03}")
            await carrier.replies(n)
            await asyncio.sleep(0.005)
        await settled(conn, [("sent", 1)] * (len(RESPONSE) - 1))

    scenario(play)


def test_binds_that_are_refused_for_known_and_unknown_reasons_are_tried_until_one_is_taken(
    scenario,  # noqa: F811
    conn,
):
    async def play(carrier):
        carrier.bind_statuses = [Status.ESME_RALYBND, 0x0000_0999, Status.ESME_RSYSERR, 0xFFFF_FFFF]
        carrier.drop()
        await carrier.bound_again(4)
        assert await carrier.deliver(TEXT) == Status.ESME_ROK
        await carrier.replies(1)

    scenario(play)
    assert outcomes(conn) == ["issued"]


def test_a_message_before_the_bind_response_is_a_message(scenario, conn):  # noqa: F811
    async def play(carrier):
        carrier.before_bind_response = whole(delivery(TEXT), 700) + encode(
            Simple(Command.ENQUIRE_LINK, 0, 701)
        )
        carrier.drop()
        await carrier.replies(1)
        assert carrier.statuses_heard(Command.DELIVER_SM_RESP)[-1] == Status.ESME_ROK

    scenario(play)
    assert set(outcomes(conn)) == {"issued"}


def test_sequence_numbers_identify_nothing_across_connections(scenario, conn):  # noqa: F811
    """The same number for another message, and other numbers for the same message."""

    async def play(carrier):
        await carrier.bound()
        carrier.answer_submits = False  # so nothing proves that an acknowledgement arrived
        for binds, (text, source) in enumerate(
            [("BH", "84900000001"), ("BH", "84900000002"), ("BH", "84900000001"), ("BH", "84900000002")]
        ):
            await carrier.bound_again(binds)
            if binds == 3:
                carrier.receiver.session._sequence = 7000
            assert await carrier.deliver(text, source) == Status.ESME_ROK
            carrier.drop()

    scenario(play)
    assert outcomes(conn) == ["bad_syntax", "bad_syntax"]


@pytest.mark.slow
def test_an_unbind_in_mid_window_costs_no_message(scenario, conn):  # noqa: F811
    async def play(carrier):
        await carrier.bound()
        carrier.answer_submits = False
        for n in range(5):
            await carrier.deliver("BH", f"8490000000{n}")
        await carrier.replies(5)
        # Two deciders share the messages, so the third need not be the third to be answered, nor in the outbox.
        [third] = [pdu for pdu in carrier.submitted if pdu.destination == "84900000002"]
        carrier.respond(third, message_id="x")
        carrier.answer_submits = True
        late = await carrier.deliver("BH", "84900000009", wait=False)
        connection = carrier.receiver
        connection.session.unbind(time.monotonic())
        connection.flush()
        await carrier.bound_again(1)
        if late.cancelled() or not late.done():  # stored, perhaps, but the answer had no way
            assert await carrier.deliver("BH", "84900000009") == Status.ESME_ROK
        await settled(conn, [("sent", n) for n in (2, 2, 1, 2, 2, 1)], order="destination")
        assert carrier.statuses_heard(Command.UNBIND_RESP) == [Status.ESME_ROK]

    scenario(play)
    assert outcomes(conn) == ["bad_syntax"] * 6


def test_deliveries_cut_off_in_mid_window_are_stored_once(scenario, conn):  # noqa: F811
    async def play(carrier):
        await carrier.bound()
        carrier.answer_submits = False
        sources = [f"849000000{n:02}" for n in range(50)]
        answers = [await carrier.deliver("BH", source, wait=False) for source in sources]
        await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        carrier.drop()
        carrier.answer_submits = True
        await carrier.bound_again(1)
        again = [await carrier.deliver("BH", source, wait=False) for source in reversed(sources)]
        assert set(await asyncio.gather(*again)) == {Status.ESME_ROK}
        await carrier.until(lambda: {pdu.destination for pdu in carrier.submitted} == set(sources))

    scenario(play)
    assert conn.execute("select count(*), count(distinct source) from inbox").fetchall() == [(50, 50)]


def test_a_peer_that_is_silent_is_left_and_found_again(scenario, conn):  # noqa: F811
    """Half-open: the connection stands and nobody is there."""

    async def play(carrier):
        await carrier.bound()
        carrier.deaf = True
        for _ in range(3):
            await carrier.deliver("BH", wait=False)
        await carrier.until(lambda: not carrier.connections)
        carrier.deaf = False
        await carrier.bound_again(1)
        assert await carrier.deliver(TEXT) == Status.ESME_ROK
        await carrier.until(lambda: "84327000686" in [pdu.destination for pdu in carrier.submitted])

    scenario(play, enquire_link=0.3, response_timeout=1.0)


def test_a_peer_that_never_answers_the_bind_is_left(scenario, conn):  # noqa: F811
    async def play(carrier):
        await carrier.bound()
        carrier.deaf = True
        carrier.drop()
        await carrier.until(lambda: not carrier.connections)
        await carrier.until(lambda: carrier.connections)
        await carrier.until(lambda: not carrier.connections)
        carrier.deaf = False
        await carrier.bound_again(1)

    scenario(play, response_timeout=0.3)


@pytest.mark.slow
def test_a_slow_peer_gets_each_message_once(scenario, conn):  # noqa: F811
    """Answers that take longer than enquire_link's time-out are no loss."""

    async def play(carrier):
        await carrier.bound()
        loop = asyncio.get_running_loop()
        carrier.answer = lambda pdu: loop.call_later(0.9, carrier.respond, pdu)
        for n in range(3):
            await carrier.deliver("BH", f"8490000000{n}")
        await settled(conn, [("sent", 1)] * 3)
        assert len(carrier.submitted) == 3

    scenario(play, response_timeout=0.3, enquire_link=5)


SOURCES = [
    ("84327000686", {"source_ton": 1}, "84327000686"),
    ("0327000686", {"source_ton": 0, "source_npi": 0}, "84327000686"),
    ("327000686", {"source_ton": 2}, "84327000686"),
    ("01627000686", {"source_ton": 3, "source_npi": 255}, "84327000686"),
    ("+84327000686", {"source_ton": 255}, "84327000686"),
    ("VIETTEL", {"source_ton": 5, "source_npi": 0}, "VIETTEL"),
    ("Bảo".encode().decode("latin-1"), {"source_ton": 5}, "Bảo".encode().decode("latin-1")),
    ("191", {"source_ton": 6}, "191"),
]


def test_every_sort_of_source_is_answered_where_it_can_be(scenario, conn):  # noqa: F811
    """One person's number in five forms is one person; what is no phone gets no password."""

    async def play(carrier):
        await carrier.bound()
        for n, (source, fields, destination) in enumerate(SOURCES, 1):
            assert await carrier.deliver(TEXT, source, **fields) == Status.ESME_ROK
            await carrier.replies(n)
            assert carrier.submitted[-1].destination == destination
        assert await carrier.deliver(TEXT, "", source_ton=0) == Status.ESME_ROK
        too_long = "9" * 256
        assert await carrier.deliver(TEXT, too_long) == Status.ESME_RINVSRCADR
        assert await carrier.deliver(TEXT, destination=too_long) == Status.ESME_RINVDSTADR
        await settled(conn, [("sent", 1)] * len(SOURCES) + [("failed", 1)])

    scenario(play)
    assert outcomes(conn) == ["issued"] + ["joined"] * 4 + ["mismatch"] * 4
    assert [source for (source,) in conn.execute("select source from inbox order by id").fetchall()] == [
        *[source for source, _, _ in SOURCES],
        "",
    ]


def test_parameters_unknown_and_malformed_cost_no_message(scenario, conn):  # noqa: F811
    async def play(carrier):
        await carrier.bound()
        unknown = [
            (0x1401, b"x" * 300),
            (0x3FFF, b""),
            (Tag.SAR_TOTAL_SEGMENTS, b"\0"),
            (Tag.SOURCE_PORT, b""),
        ]
        assert await carrier.deliver(TEXT, tlvs=unknown) == Status.ESME_ROK
        for sequence, junk in enumerate([b"\0", b"\x04\x24", b"\x04\x24\xff\xff1"], 500):
            await carrier.replies(sequence - 499)
            await surely_read(carrier)  # or it would be a redelivery
            body = whole(delivery(TEXT, source="84327000686"), sequence)[16:] + junk
            carrier.write(encode(Unknown(Command.DELIVER_SM, 0, sequence, body)))
            await carrier.until(lambda sequence=sequence: sequence in [pdu.sequence for pdu in carrier.heard])
        await carrier.replies(4)
        assert carrier.statuses_heard(Command.DELIVER_SM_RESP) == [Status.ESME_ROK] * 4

    scenario(play)
    assert outcomes(conn) == ["issued"] + ["joined"] * 3


@pytest.mark.slow
def test_a_flood_is_refused_beyond_what_is_bounded_and_comes_again(scenario, conn, monkeypatch):  # noqa: F811
    """While the store is stuck, what exceeds the bound is refused at once and not after the carrier's patience."""
    monkeypatch.setattr(inbound, "MOST_WAITING", 100)

    async def play(carrier):
        await carrier.bound()
        assert await carrier.deliver("BH", "84900009999") == Status.ESME_ROK
        connection = carrier.receiver
        connection.session.window = 10_000
        conn.execute("begin")
        conn.execute("lock table inbox in access exclusive mode")
        sources = [f"8490000{n:04}" for n in range(400)]
        answers = {source: await carrier.deliver("BH", source, wait=False) for source in sources}
        await carrier.until(lambda: len(carrier.statuses_heard(Command.DELIVER_SM_RESP)) == 301, 3)
        assert set(carrier.statuses_heard(Command.DELIVER_SM_RESP)[1:]) == {Status.ESME_RTHROTTLED}
        conn.execute("rollback")
        statuses = dict(zip(sources, await asyncio.gather(*answers.values()), strict=True))
        assert sorted(statuses.values()) == [0] * 100 + [Status.ESME_RTHROTTLED] * 300
        for source in [source for source, status in statuses.items() if status][:200]:
            while await carrier.deliver("BH", source):
                await asyncio.sleep(0.05)

    scenario(play, try_again_status="ESME_RTHROTTLED")
    assert conn.execute("select count(*), count(distinct source) from inbox").fetchall() == [(301, 301)]


def test_a_flood_of_long_messages_is_bounded_by_their_length(scenario, conn, monkeypatch):  # noqa: F811
    monkeypatch.setattr(inbound, "MOST_WAITING", 100)

    async def play(carrier):
        await carrier.bound()
        conn.execute("begin")
        conn.execute("lock table inbox in access exclusive mode")
        long = [(Tag.MESSAGE_PAYLOAD, b"x" * 30_000)]
        first, second = [await carrier.deliver("", f"8490000000{n}", tlvs=long, wait=False) for n in range(2)]
        assert await asyncio.wait_for(second, 2) == Status.ESME_RSYSERR
        conn.execute("rollback")
        assert await first == Status.ESME_ROK

    scenario(play)
    assert conn.execute("select source, length(text) from inbox").fetchall() == [("84900000000", 30_000)]


def test_a_peer_that_reads_nothing_holds_no_memory_and_is_given_up(monkeypatch):
    """It asks and asks and takes no answer: we stop reading, and then leave although our answers are unwritten."""
    monkeypatch.setattr(connection_module, "LINGER", 0.2)

    async def play():
        ours, theirs = socket.socketpair()
        for each, option in ((ours, socket.SO_SNDBUF), (theirs, socket.SO_RCVBUF)):
            each.setsockopt(socket.SOL_SOCKET, option, 4096)
        theirs.setblocking(False)
        events = []
        link = Link(name="viettel", host="unused", enquire_link=0.5, response_timeout=0.5)
        connection = Connection(link, BindKind.TRANSCEIVER, lambda _, event: events.append(event))
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: connection, sock=ours)
        await loop.sock_recv(theirs, 4096)
        await loop.sock_sendall(theirs, encode(BindResp(Command.BIND_TRANSCEIVER_RESP, 0, 1, "smsc")))
        question = encode(Simple(Command.ENQUIRE_LINK, 0, 900)) * 1000
        asked = 0

        async def ask():
            nonlocal asked
            while True:
                await loop.sock_sendall(theirs, question)
                asked += len(question)

        asking = asyncio.create_task(ask())
        most = 0
        async with asyncio.timeout(5):
            while not connection.ended.is_set():
                most = max(most, transport.get_write_buffer_size())
                await asyncio.sleep(0.005)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        theirs.close()
        assert isinstance(events[0], Bound)
        assert connection.choked
        assert 64 * 1024 < most < 512 * 1024
        assert asked < 2 * 1024 * 1024  # we stopped reading: it could not even ask more

    asyncio.run(play())


def test_one_link_with_an_impossible_host_name_harms_no_other(conn, lan):
    from django.conf import settings

    from caplai.engine import Engine
    from tests.channels.carrier import Carrier

    async def play():
        async with Carrier() as carrier:
            links = [
                Link(name="typo", host="smsc." + "x" * 64 + ".vn"),
                Link(name="viettel", host="127.0.0.1", port=carrier.port, password="secret"),
            ]
            running = Engine(settings.CAPLAI.model_copy(update={"links": links}), settings.KEYRING)
            await running.start()
            try:
                await carrier.bound()
                assert await carrier.deliver(TEXT) == Status.ESME_ROK
                await carrier.replies(1)
                assert running.failure is None
                async with asyncio.timeout(10):
                    while not running.esmes[0].state.startswith("cannot connect"):
                        await asyncio.sleep(0.05)
            finally:
                await running.stop()

    asyncio.run(play())
