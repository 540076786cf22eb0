"""The npm package `smpp` (0.5.1) as the SMSC of our engine, and as an ESME of our simulator."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta, timezone
from typing import Any

import pytest
from django.conf import settings

from caplai.channels.esme import BACKOFF
from caplai.channels.links import Link
from caplai.doctor import Finding, try_link
from caplai.domain.issuing import Inputs, derive
from caplai.engine import Engine
from caplai.simulator import Simulator
from caplai.simulator.phones import Message, State
from caplai.smpp.pdu import Status
from caplai.store.models import Case, Inbox, LinkSession, Outbox, Receipt
from tests.peers.node import Node, needs_npm, text_of

pytestmark = [pytest.mark.peer, needs_npm]

PHONE = "84327000686"
FROM_PHONE = {
    "source_addr": PHONE,
    "source_addr_ton": 1,
    "source_addr_npi": 1,
    "destination_addr": "8079",
    "dest_addr_npi": 1,
}
UDH_INDICATOR = 0x40
RECEIPT = 0x04
DELIVERED, UNDELIVERABLE = 2, 5  # message_state, SMPP 3.4, 5.2.28


@asynccontextmanager
async def engine(port: int, **link: Any) -> AsyncIterator[Engine]:
    """Our engine with one link to the SMSC on `port`; leaving it stops it in good order."""
    carrier = Link(**{"name": "npm", "host": "127.0.0.1", "port": port, "password": "secret", **link})
    running = Engine(settings.CAPLAI.model_copy(update={"links": [carrier]}), settings.KEYRING)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


def parts(text: str, size: int) -> list[dict[str, Any]]:
    """The short_message of each part of a long text, as npm takes it (3GPP TS 23.040, 9.2.3.24.1)."""
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    return [
        {"udh": {"hex": f"050003a7{len(pieces):02x}{number:02x}"}, "message": piece}
        for number, piece in enumerate(pieces, 1)
    ]


async def until(happened: Callable[[], object], timeout: float = 10.0) -> None:
    """Wait for what the store does not announce."""
    async with asyncio.timeout(timeout):
        while not happened():
            await asyncio.sleep(0.02)


def password_of(case: Case) -> str:
    key = settings.KEYRING.ring("issuing").get(case.key)
    return derive(key, Inputs(case.version, case.id, case.account, case.length, case.alphabet))


LONG = "BH MK " + "xin cap lai mat khau, " * 12 + "0123456789"
LONG_UCS2 = "BH MK " + "xin cấp lại mật khẩu, " * 6 + "0123456789"


@pytest.mark.parametrize(
    ("bodies", "coding", "stored"),
    [
        ([{"short_message": "BH MK 0123456789"}], 1, "BH MK 0123456789"),
        # npm says ASCII and writes GSM 03.38, where a brace is two octets; as ASCII it has an escape more.
        ([{"short_message": "BH MK {0123456789}"}], 1, "BH MK \x1b(0123456789\x1b)"),
        ([{"message_payload": "BH MK mã số 0123456789 gửi 8079"}], 8, "BH MK mã số 0123456789 gửi 8079"),
        ([{"short_message": part} for part in parts(LONG, 152)], 1, LONG),
        ([{"short_message": part} for part in parts(LONG_UCS2, 66)], 8, LONG_UCS2),
    ],
    ids=["plain", "braces", "ucs2-in-payload", "long", "long-ucs2"],
)
def test_a_text_brings_the_password_of_its_case(lan, bodies, coding, stored):
    async def scenario() -> dict[str, Any]:
        async with Node() as node, engine(await node.listen()):
            session = (await node.request("bind_transceiver"))["session"]
            for body in reversed(bodies):  # a part may overtake those before it
                esm_class = UDH_INDICATOR if len(bodies) > 1 else 0
                sent = await node.send(session, "deliver_sm", **FROM_PHONE, **body, esm_class=esm_class)
                assert sent["data_coding"] == coding
                answer = await node.event("response", sequence_number=sent["sequence_number"])
                assert answer["pdu"]["command"] == "deliver_sm_resp"
                assert answer["pdu"]["command_status"] == Status.ESME_ROK
            return (await node.request("submit_sm"))["pdu"]

    reply = asyncio.run(scenario())
    message, case, sent = Inbox.objects.get(), Case.objects.get(), Outbox.objects.get()
    assert (message.text, message.outcome) == (stored, "issued")
    until = case.expires_at.astimezone(timezone(timedelta(hours=7)))
    assert text_of(reply) == (
        f"Cap lai mat khau thanh cong. Tai khoan: 0123456789/Mat khau: {password_of(case)}. "
        f"Dung truoc {until:%H:%M %d/%m/%Y}."
    )
    assert (reply["source_addr"], reply["destination_addr"]) == ("8079", PHONE)
    assert (reply["dest_addr_ton"], reply["dest_addr_npi"]) == (1, 1)
    assert (reply["esm_class"], reply["registered_delivery"], reply["data_coding"]) == (0, 0, 0)
    assert (sent.state, sent.status, sent.attempts) == ("sent", 0, 1)


async def text_and_reply(node: Node, session: int, text: str = "BH MK 0123456789") -> dict[str, Any]:
    """The phone texts; returns what our engine submits."""
    taken = await node.ask(session, "deliver_sm", **FROM_PHONE, short_message=text)
    assert taken["command_status"] == Status.ESME_ROK
    return await node.request("submit_sm")


@pytest.mark.parametrize(
    ("wording", "tlvs", "state"),
    [
        ("", {"receipted_message_id": "1000001", "message_state": DELIVERED}, "DELIVRD"),
        ("id:00000F4241 sub:001 dlvrd:000 stat:UNDELIV err:011 text:Cap lai", {}, "UNDELIV"),
        (
            "id:nonsense stat:DELIVRD err:000",
            {"receipted_message_id": "1000001", "message_state": UNDELIVERABLE},
            "UNDELIV",
        ),
    ],
    ids=["tlvs-alone", "text-alone-id-in-hex", "tlvs-win"],
)
def test_a_receipt_finds_its_reply(lan, conn, wording, tlvs, state):
    async def scenario() -> None:
        async with Node() as node, engine(await node.listen(), receipts=True):
            session = (await node.request("bind_transceiver"))["session"]
            reply = await text_and_reply(node, session)
            assert reply["pdu"]["registered_delivery"] == 1
            await until(lambda: conn.execute("select id from outbox where message_id = '1000001'").fetchone())
            taken = await node.ask(
                session, "deliver_sm", **FROM_PHONE, esm_class=RECEIPT, short_message=wording, **tlvs
            )
            assert (taken["command"], taken["command_status"]) == ("deliver_sm_resp", Status.ESME_ROK)

    asyncio.run(scenario())
    sent, receipt = Outbox.objects.get(), Receipt.objects.get()
    assert (sent.message_id, sent.receipt) == ("1000001", state)
    assert (receipt.outbox_id, receipt.state, receipt.link) == (sent.id, state, "npm")
    assert Inbox.objects.count() == 1  # a receipt is no message


def test_a_throttled_reply_is_sent_again_with_the_identical_text(lan):
    async def scenario() -> list[dict[str, Any]]:
        async with Node() as node, engine(await node.listen()):
            node.do("answer", statuses=[Status.ESME_RTHROTTLED])
            session = (await node.request("bind_transceiver"))["session"]
            first = await text_and_reply(node, session)
            again = await node.request("submit_sm")
            return [first["pdu"], again["pdu"]]

    first, again = asyncio.run(scenario())
    assert password_of(Case.objects.get()) in text_of(first)
    changed = {name for name in first if first[name] != again[name]}
    assert changed == {"sequence_number"}
    sent = Outbox.objects.get()
    assert (sent.state, sent.status, sent.attempts) == ("sent", 0, 2)


def test_both_sides_ask_whether_the_other_is_there_and_the_engine_unbinds(lan):
    async def scenario() -> None:
        async with Node() as node:
            async with engine(await node.listen(), enquire_link=0.2) as running:
                bind = await node.request("bind_transceiver")
                assert (bind["pdu"]["interface_version"], bind["pdu"]["system_id"]) == (0x34, "caplai")
                for _ in range(2):  # the second only if npm's answer to the first was understood
                    await node.request("enquire_link")
                answer = await node.ask(bind["session"], "enquire_link")
                assert (answer["command"], answer["command_status"]) == ("enquire_link_resp", 0)
                # What an SMSC has no business to ask is refused, and the bind is kept.
                answer = await node.ask(bind["session"], "query_sm", message_id="1", source_addr=PHONE)
                assert answer["command_status"] != Status.ESME_ROK
                reply = await text_and_reply(node, bind["session"])
                assert "Mat khau: " in text_of(reply["pdu"])
                assert running.esmes[0].state == "bound as transceiver"
            await node.request("unbind")
            # npm answers and leaves the hanging up to us.
            await node.event("close", session=bind["session"])

    asyncio.run(scenario())
    assert LinkSession.objects.count() == 1


def test_a_pair_listens_by_one_bind_and_answers_by_the_other(lan):
    async def scenario() -> None:
        async with Node() as node:
            async with engine(await node.listen(), bind="pair"):
                receiver = (await node.request("bind_receiver"))["session"]
                transmitter = (await node.request("bind_transmitter"))["session"]
                reply = await text_and_reply(node, receiver)
                assert reply["session"] == transmitter != receiver
            for _ in range(2):
                await node.request("unbind")
            for session in (receiver, transmitter):
                await node.event("close", session=session)

    asyncio.run(scenario())
    assert Outbox.objects.get().state == "sent"


@pytest.mark.slow
def test_a_refused_bind_is_tried_again_ever_more_slowly_until_it_is_accepted(lan):
    async def scenario() -> None:
        async with Node() as node:
            port = await node.listen()
            node.do("password", value="another")
            async with engine(port) as running:
                attempts = [await node.request("bind_transceiver") for _ in range(3)]
                assert running.esmes[0].state == "bind refused: ESME_RINVPASWD"
                node.do("password", value="secret")
                attempts.append(await node.request("bind_transceiver"))
                assert [attempt["pdu"]["password"] for attempt in attempts] == ["secret"] * 4
                # At least half of 0.5 + 1 + 2 s; without backing off it would be 1.5 s at most.
                least = sum(BACKOFF[0] * 2**n / 2 for n in range(3))
                assert attempts[-1]["at"] - attempts[0]["at"] > least - 0.1
                session = attempts[-1]["session"]
                reply = await text_and_reply(node, session)
                assert "Mat khau: " in text_of(reply["pdu"])

    asyncio.run(scenario())


# --- the other way round: npm as the ESME, our simulator as the SMSC ---


def test_the_simulator_refuses_npm_with_a_wrong_password():
    async def scenario() -> None:
        async with Simulator() as sim, Node() as node:
            session = await node.connect(sim.smpp_port)
            answer = await node.ask(session, "bind_transceiver", system_id="caplai", password="wrong")
            assert answer["command_status"] == Status.ESME_RINVPASWD
            assert sim.smsc.bound == 0

    asyncio.run(scenario())


async def shown_as_sent(sim: Simulator, message: Message) -> None:
    await sim.phones.wait_for(PHONE, lambda m: m is message and m.state is State.SENT, timeout=10)


def test_npm_talks_with_a_phone_of_the_simulator():
    long_text = "Mot hai ba bon nam sau bay tam chin muoi. " * 8

    async def scenario() -> None:
        async with Simulator() as sim, Node() as node:
            session = await node.connect(sim.smpp_port)
            answer = await node.ask(session, "bind_transceiver", system_id="caplai", password="secret")
            assert (answer["command_status"], answer["system_id"]) == (Status.ESME_ROK, "simulator")

            for text in ("BH MK {0123456789}", "BH MK mã số BHXH 0123456789"):
                sent = await sim.send("0327 000 686", text)
                pdu = (await node.request("deliver_sm"))["pdu"]
                assert text_of(pdu) == text
                assert (pdu["source_addr"], pdu["destination_addr"]) == (PHONE, "8079")
                await shown_as_sent(sim, sent)

            sent = await sim.send("0327 000 686", long_text)
            pieces = [(await node.request("deliver_sm"))["pdu"] for _ in parts(long_text, 153)]
            assert "".join(map(text_of, pieces)) == long_text
            assert all(pdu["esm_class"] & UDH_INDICATOR for pdu in pieces)

            to_phone = {"source_addr": "8079", "destination_addr": PHONE, "dest_addr_ton": 1}
            answer = await node.ask(
                session, "submit_sm", **to_phone, short_message="Mật khẩu: 220199", registered_delivery=1
            )
            assert answer["command_status"] == Status.ESME_ROK
            assert (await sim.reply(PHONE, after=sent)).text == "Mật khẩu: 220199"
            receipt = (await node.request("deliver_sm"))["pdu"]
            assert (receipt["esm_class"], receipt["message_state"]) == (RECEIPT, DELIVERED)
            assert receipt["receipted_message_id"] == answer["message_id"] != ""
            assert text_of(receipt).startswith(f"id:{answer['message_id']} ")
            assert " stat:DELIVRD " in text_of(receipt)

            last = sim.phones.conversation(PHONE).messages[-1]
            for part in parts(long_text, 150):
                await node.ask(session, "submit_sm", **to_phone, short_message=part, esm_class=UDH_INDICATOR)
            assert (await sim.reply(PHONE, after=last)).text == long_text

            assert (await node.ask(session, "enquire_link"))["command"] == "enquire_link_resp"
            assert (await node.ask(session, "unbind"))["command"] == "unbind_resp"
            await node.event("close", session=session)
            assert sim.smsc.bound == 0

    asyncio.run(scenario())


def test_a_link_is_tried_out_at_onboarding(transactional_db: None) -> None:
    """`caplai doctor --link`: npm never delivers again by itself, so each status counts as given up."""

    async def scenario() -> list[Finding]:
        findings: list[Finding] = []
        async with Node() as node:
            link = Link(name="npm", host="127.0.0.1", port=await node.listen(), password="secret")
            trial = asyncio.create_task(
                try_link(
                    link,
                    "BH",
                    findings.append,
                    timeout=1.5,
                    word="BH THU 77",
                    statuses=[Status.ESME_RX_T_APPN],
                    send_to=PHONE,
                    deliveries=True,
                )
            )
            session = (await node.event("session"))["session"]
            assert [text_of((await node.request("submit_sm"))["pdu"]) for _ in "12"] == [
                "BH THU 77 1/2",
                "BH THU 77 2/2",
            ]
            other = await node.ask(session, "deliver_sm", **FROM_PHONE, short_message="BH MK 0123456789")
            await until(lambda: any('text "BH THU 771"' in finding.says for finding in findings))
            asked = await node.ask(session, "deliver_sm", **FROM_PHONE, short_message="bh thu 77 1")
            assert other["command_status"] == Status.ESME_RSYSERR
            assert asked["command_status"] == Status.ESME_RX_T_APPN
            await trial
            await node.event("close", session=session)
        return findings

    told = {finding.what.removeprefix("link npm: "): finding for finding in asyncio.run(scenario())}
    assert "calls itself 'npm-smpp' and speaks SMPP 3.4" in told["bind as transceiver"].says
    assert told["sending"].says == "ESME_ROK; the message_ids are decimal"
    assert told["receipts"].well is False
    assert "it gives up after: ESME_RX_T_APPN" in told["try_again_status"].says
    assert Inbox.objects.count() == 0
