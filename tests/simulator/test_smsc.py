"""The SMSC over real sockets, against our session in the role of an ESME."""

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest

from caplai.simulator import Simulator, SimulatorConfig
from caplai.simulator.phones import Message, State
from caplai.simulator.smsc import Rules
from caplai.smpp.pdu import BindKind, Status
from caplai.smpp.receipt import is_receipt, parse
from caplai.smpp.text import UDH_INDICATOR, assemble, decode, parse_udh
from tests.simulator.esme import SILENCE, TAKE, Esme, in_loop, text_of

PHONE = "84327111686"
FAST = Rules(pause=0.05, longest_pause=0.2)


def simulator(rules: Rules = FAST) -> Simulator:
    return Simulator(SimulatorConfig(rules=rules))


async def state_of(sim: Simulator, message: Message, state: State) -> Message:
    return await sim.phones.wait_for(
        message.phone, lambda m: m is message and m.state is state, after=message.id - 1, timeout=5
    )


def first(*statuses: int | None):
    """Answer with these, one after another, and take everything after that."""
    rest = list(statuses)
    return lambda pdu: rest.pop(0) if rest else TAKE


@in_loop
async def test_only_who_knows_the_password_is_bound():
    async with simulator() as sim:
        async with Esme(sim.smpp_port, password="wrong") as esme:
            assert esme.bind_status == Status.ESME_RINVPASWD
        async with Esme(sim.smpp_port, system_id="another") as esme:
            assert esme.bind_status == Status.ESME_RINVSYSID
        assert sim.smsc.bound == 0
        async with Esme(sim.smpp_port) as esme:
            assert esme.bind_status == Status.ESME_ROK
            assert sim.smsc.bound == 1


@in_loop
async def test_a_text_reaches_the_esme_as_a_carrier_writes_it():
    async with simulator() as sim, Esme(sim.smpp_port) as esme:
        message = await sim.send("0327 111 686", "BH MK 0123456789")
        pdu = await esme.delivered.get()
        assert (pdu.source, pdu.source_ton, pdu.source_npi) == (PHONE, 1, 1)
        assert (pdu.destination, pdu.destination_ton, pdu.destination_npi) == ("8079", 0, 1)
        assert (pdu.esm_class, pdu.data_coding, pdu.short_message) == (0, 0, b"BH MK 0123456789")
        await state_of(sim, message, State.SENT)


@in_loop
async def test_what_is_sent_while_nobody_is_bound_arrives_after_the_bind_in_order():
    async with simulator() as sim:
        sent = [await sim.send(PHONE, f"BH MK {number:010d}") for number in range(20)]
        assert {message.state for message in sent} == {State.SENDING}
        async with Esme(sim.smpp_port) as esme:
            texts = [text_of(await esme.delivered.get()) for _ in sent]
            assert texts == [message.text for message in sent]
            await state_of(sim, sent[-1], State.SENT)
        assert sim.phones.conversation(PHONE).paid == 20_000


@pytest.mark.parametrize(
    "status", [Status.ESME_RSYSERR, Status.ESME_RMSGQFUL, Status.ESME_RTHROTTLED, Status.ESME_RX_T_APPN]
)
@in_loop
async def test_a_temporary_error_is_tried_again_and_costs_nothing(status: Status):
    async with simulator() as sim, Esme(sim.smpp_port, answer=first(status, status)) as esme:
        message = await sim.send(PHONE, "BH MK 0123456789")
        await esme.delivered.get()
        assert sim.phones.conversation(PHONE).paid == 0
        await state_of(sim, message, State.SENT)
        assert esme.delivered.qsize() == 2
        assert sim.phones.conversation(PHONE).paid == 1000


@in_loop
async def test_pauses_after_temporary_errors_grow():
    loop = asyncio.get_running_loop()
    at = []

    def answer(pdu):
        at.append(loop.time())
        return Status.ESME_RTHROTTLED if len(at) < 5 else TAKE

    async with simulator(Rules(pause=0.05, longest_pause=0.15)) as sim, Esme(sim.smpp_port, answer=answer):
        message = await sim.send(PHONE, "BH MK 0123456789")
        await state_of(sim, message, State.SENT)
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert all(gap >= least - 0.01 for gap, least in zip(gaps, [0.05, 0.1, 0.15, 0.15], strict=True)), gaps


@in_loop
async def test_a_permanent_error_fails_at_once_and_costs_nothing():
    answer = first(Status.ESME_RX_P_APPN)
    async with simulator() as sim, Esme(sim.smpp_port, answer=answer) as esme:
        message = await sim.send(PHONE, "BH MK 0123456789")
        await state_of(sim, message, State.FAILED)
        assert message.reason == "ESME_RX_P_APPN"
        assert esme.delivered.qsize() == 1
        assert sim.phones.conversation(PHONE).paid == 0


@in_loop
async def test_a_message_without_a_response_is_sent_again_so_often_and_then_fails():
    async with simulator(replace(FAST, response=0.4, retries=2)) as sim:
        async with Esme(sim.smpp_port, answer=first(SILENCE, SILENCE)) as esme:
            message = await sim.send(PHONE, "BH MK 1")
            await state_of(sim, message, State.SENT)
            assert esme.delivered.qsize() == 3
        async with Esme(sim.smpp_port, answer=first(*[SILENCE] * 9)) as esme:
            message = await sim.send(PHONE, "BH MK 2")
            await state_of(sim, message, State.FAILED)
            assert (message.reason, esme.delivered.qsize()) == ("no response", 3)
        assert sim.phones.conversation(PHONE).paid == 1000


@in_loop
async def test_messages_whose_connection_dropped_are_delivered_again_in_order():
    # More drops than retries are allowed for unanswered messages: a lost link is not the message's fault.
    async with simulator(replace(FAST, retries=1)) as sim:
        sent = [await sim.send(PHONE, f"BH MK {number}") for number in range(5)]
        for _ in range(4):
            async with Esme(sim.smpp_port, answer=lambda pdu: SILENCE) as esme:
                assert [text_of(await esme.delivered.get()) for _ in sent] == [m.text for m in sent]
                esme.drop()
        async with Esme(sim.smpp_port) as esme:
            assert [text_of(await esme.delivered.get()) for _ in sent] == [m.text for m in sent]
            await state_of(sim, sent[-1], State.SENT)
        assert sim.phones.conversation(PHONE).paid == 5000


@in_loop
async def test_an_unbind_gives_unanswered_messages_back_too():
    async with simulator(FAST) as sim:
        async with Esme(sim.smpp_port, answer=lambda pdu: SILENCE) as esme:
            message = await sim.send(PHONE, "BH MK 0123456789")
            await esme.delivered.get()
            await esme.unbind()
            assert esme.closed == "unbound"
        async with Esme(sim.smpp_port):
            await state_of(sim, message, State.SENT)


@in_loop
async def test_what_nobody_took_expires():
    async with simulator(replace(FAST, validity=0.1)) as sim:
        message = await sim.send(PHONE, "BH MK 0123456789")
        await state_of(sim, message, State.FAILED)
        assert message.reason == "expired"
        async with Esme(sim.smpp_port, answer=lambda pdu: Status.ESME_RSYSERR):
            message = await sim.send(PHONE, "BH MK 0123456789")
            await state_of(sim, message, State.FAILED)
            assert message.reason == "expired"
        assert sim.smsc.waiting == 0


@in_loop
async def test_a_long_accented_text_comes_in_ucs2_parts_and_is_one_message():
    text = "BH MK mã số BHXH 0123456789 gửi 8079. " * 5
    async with simulator() as sim, Esme(sim.smpp_port) as esme:
        message = await sim.send(PHONE, text)
        await state_of(sim, message, State.SENT)
        parts = {}
        while not esme.delivered.empty():
            pdu = esme.delivered.get_nowait()
            assert pdu.data_coding == 8
            assert pdu.esm_class & UDH_INDICATOR
            assert len(pdu.short_message) <= 140
            part, payload = parse_udh(pdu.payload)
            parts[part.number] = payload
            assert part.total == 3
        assert decode(8, assemble(parts)).text == text
        assert sim.phones.conversation(PHONE).paid == 1000


@in_loop
async def test_a_long_text_is_not_paid_when_one_part_was_refused():
    async with simulator() as sim, Esme(sim.smpp_port, answer=first(TAKE, Status.ESME_RX_R_APPN)):
        message = await sim.send(PHONE, "BH MK " + "0123456789 " * 40)
        await state_of(sim, message, State.FAILED)
        later = await sim.send(PHONE, "BH MK")
        await state_of(sim, later, State.SENT)
        assert message.state is State.FAILED
        assert sim.phones.conversation(PHONE).paid == 1000


@in_loop
async def test_the_rest_of_a_refused_text_is_not_sent():
    rules = replace(FAST, window=1)
    async with simulator(rules) as sim, Esme(sim.smpp_port, answer=first(Status.ESME_RX_R_APPN)) as esme:
        await sim.send(PHONE, "BH MK " + "0123456789 " * 40)
        later = await sim.send(PHONE, "BH MK")
        await state_of(sim, later, State.SENT)
        assert esme.delivered.qsize() == 2


@in_loop
async def test_several_binds_share_the_work_and_a_transmitter_gets_none():
    async with (
        simulator() as sim,
        Esme(sim.smpp_port, BindKind.RECEIVER) as one,
        Esme(sim.smpp_port, BindKind.TRANSCEIVER) as two,
        Esme(sim.smpp_port, BindKind.TRANSMITTER) as three,
    ):
        for number in range(10):
            last = await sim.send(PHONE, f"BH MK {number}")
        await state_of(sim, last, State.SENT)
        assert (one.delivered.qsize(), two.delivered.qsize(), three.delivered.qsize()) == (5, 5, 0)


@in_loop
async def test_more_messages_than_the_window_holds_all_arrive():
    async with simulator(replace(FAST, window=3)) as sim, Esme(sim.smpp_port) as esme:
        sent = [await sim.send(PHONE, f"BH MK {number}") for number in range(100)]
        await state_of(sim, sent[-1], State.SENT)
        assert {message.state for message in sent} == {State.SENT}
        assert esme.delivered.qsize() == 100


@in_loop
async def test_a_submit_reaches_its_phone_and_gets_an_id():
    async with simulator() as sim, Esme(sim.smpp_port, BindKind.TRANSMITTER) as esme:
        esme.submit("Mat khau: 220199. ~[]€", to=PHONE)
        reply = await sim.reply("0327111686")
        assert (reply.text, reply.number) == ("Mat khau: 220199. ~[]€", "8079")
        answer = await esme.responses.get()
        assert (answer.status, answer.message_id) == (0, "1")


@in_loop
async def test_a_submit_in_parts_is_one_text_whatever_their_order():
    text = "Mật khẩu mới của quý vị là một dãy số. " * 6
    async with simulator() as sim, Esme(sim.smpp_port) as esme:
        esme.submit(text, to=PHONE, order=reversed)
        assert (await sim.reply(PHONE)).text == text
        assert len(sim.phones.conversation(PHONE).messages) == 1


@in_loop
async def test_a_submit_to_what_is_no_phone_is_refused():
    async with simulator() as sim, Esme(sim.smpp_port) as esme:
        esme.submit("Mat khau: 220199", to="8079")
        assert (await esme.responses.get()).status == Status.ESME_RINVDSTADR


@in_loop
async def test_a_receipt_follows_when_it_was_asked_for():
    rules = replace(FAST, message_id=lambda number: f"{number:010d}")
    async with simulator(rules) as sim, Esme(sim.smpp_port) as esme:
        esme.submit("no receipt", to=PHONE)
        esme.submit("only when it fails", to=PHONE, registered_delivery=2)
        esme.submit("Mat khau: 220199", to=PHONE, registered_delivery=1)
        pdu = await esme.delivered.get()
        ids = [(await esme.responses.get()).message_id for _ in range(3)]
        assert is_receipt(pdu)
        assert (pdu.source, pdu.destination) == (PHONE, "8079")
        for tlvs in (pdu.tlvs, []):  # the TLVs and the text say the same
            receipt = parse(text_of(pdu), tlvs)
            assert (receipt.message_id, receipt.state) == (ids[2], "DELIVRD")
        assert esme.delivered.empty()


@in_loop
async def test_a_receipt_waits_for_a_receiver():
    async with simulator() as sim:
        async with Esme(sim.smpp_port, BindKind.TRANSMITTER) as esme:
            esme.submit("Mat khau: 220199", to=PHONE, registered_delivery=1)
            await esme.responses.get()
        async with Esme(sim.smpp_port, BindKind.RECEIVER) as esme:
            assert is_receipt(await esme.delivered.get())


@in_loop
async def test_garbage_ends_its_connection_and_nobody_elses():
    async with simulator() as sim, Esme(sim.smpp_port) as esme:
        reader, writer = await asyncio.open_connection("127.0.0.1", sim.smpp_port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert (await reader.read())[4:8] == b"\x80\x00\x00\x00"  # generic_nack, then the end
        writer.close()
        await state_of(sim, await sim.send(PHONE, "BH MK"), State.SENT)
        assert esme.closed == ""


@in_loop
async def test_stopping_hangs_up_on_who_does_not_answer_the_unbind():
    async with simulator(replace(FAST, response=60.0)) as sim, Esme(sim.smpp_port) as esme:
        esme.turn_deaf()
        await sim.smsc.stop(patience=0.05)
        assert sim.smsc.bound == 0


@in_loop
async def test_stopping_unbinds_who_is_bound_and_hangs_up_on_who_is_not():
    async with simulator() as sim:
        mute, _ = await asyncio.open_connection("127.0.0.1", sim.smpp_port)
        async with Esme(sim.smpp_port) as esme:
            await sim.smsc.stop()
            await esme.ended()
            assert esme.closed == "unbound by the peer"
            assert await mute.read() == b""
        with pytest.raises(OSError, match=r"refused|Connect"):
            await asyncio.open_connection("127.0.0.1", sim.smpp_port)
