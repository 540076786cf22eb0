"""Each scenario of the SMSC over a real socket: what the ESME sees, and what the phone has in the end."""

import asyncio
import re
import ssl
import time

import pytest

from caplai.domain import msisdn
from caplai.simulator import Simulator, SimulatorConfig
from caplai.simulator.phones import State
from caplai.simulator.scenarios import CATALOGUE, NUMBERS, Scenarios, read
from caplai.smpp.pdu import Command, Status, Tag, find_tlv
from caplai.smpp.receipt import id_candidates, is_receipt, parse
from caplai.smpp.text import UDH_INDICATOR, Part, parse_udh
from tests.channels.test_tls import certificate  # noqa: F401
from tests.simulator.esme import Esme, in_loop, text_of
from tests.simulator.test_smsc import FAST, state_of

PHONE = "84327111686"
LONG = "BH MK 0123456789. " * 20


def simulator(*scenarios: str) -> Simulator:
    return Simulator(SimulatorConfig(rules=FAST, scenarios=scenarios))


def texts(sim: Simulator, phone: str = PHONE) -> list[str]:
    """What the phone received."""
    return [message.text for message in sim.phones.conversation(phone).messages if message.incoming]


# --- how they are written ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_has_a_usual_value_and_says_what_it_does(name):
    scenario = CATALOGUE[name]
    assert read(name).written == scenario.usual
    assert read(f"{name}={scenario.usual}" if scenario.usual else name).written == scenario.usual
    assert scenario.vi.endswith(".") and scenario.en.endswith(".")
    assert not scenario.vi.isascii()


@pytest.mark.parametrize(
    ("written", "value", "share"),
    [
        ("refuse=RTHROTTLED", 0x58, 100),
        ("refuse=esme_rthrottled 30%", 0x58, 30),
        ("refuse=30%,0x4FF", 0x4FF, 30),
        ("refuse=8", 8, 100),
        ("cut-submits=7", "", 7),
        ("cut-submits=100%", "", 100),
        ("slow=0.5", 0.5, 100),
        (" bad-length = 15 ", 15, 20),
    ],
)
def test_a_value_and_a_share_are_written_together(written, value, share):
    setting = read(written)
    assert (setting.value, setting.share) == (value, share)
    assert read(f"{setting.scenario.name}={setting.written}").written == setting.written


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("thunder", "There is no scenario 'thunder'. There are: bind-refused, outbind, "),
        ("outbind=1", "outbind takes no value."),
        ("throttle=0", "throttle takes segments a second, 1 to 100000."),
        ("throttle=many", "throttle takes segments a second, 1 to 100000."),
        ("throttle=5 20%", "throttle takes segments a second, 1 to 100000."),
        ("slow=nan", "slow takes seconds, up to 3600."),
        ("cut-submits=0", "cut-submits takes a share of 1% to 100%."),
        ("cut-submits=101%", "cut-submits takes a share of 1% to 100%."),
        ("refuse=ESME_ROK", "refuse takes a command_status: "),
        ("refuse=0x100000000", "refuse takes a command_status: "),
        ("bad-length=16", "bad-length takes octets: 0 to 15, or 70001 to 4294967295 and perhaps a share "),
        ("long-by=pigeon", "long-by takes sar or payload or udh16."),
        ("receipt-state=Delivered to the phone", "receipt-state takes a state, such as UNDELIV, "),
    ],
)
def test_what_cannot_be_understood_is_refused_with_what_could(written, says):
    with pytest.raises(ValueError, match="^" + re.escape(says)):
        read(written)


@pytest.mark.parametrize("phone", NUMBERS)
def test_every_number_is_a_phone_and_nobodys(phone):
    assert msisdn.from_address(phone, msisdn.TON_INTERNATIONAL) == f"+{phone}"
    assert phone.startswith("84500000")
    assert read(NUMBERS[phone])


def test_a_share_is_spread_evenly_and_hits_the_first():
    scenarios = Scenarios(["cut-submits=20%"])
    struck = [scenarios.strike("cut-submits", PHONE) is not None for _ in range(100)]
    assert [at for at, hit in enumerate(struck) if hit] == list(range(0, 100, 5))
    assert [Scenarios(["refuse=30%"]).strike("refuse", PHONE) is not None for _ in range(3)] == [True] * 3
    odd = Scenarios(["refuse=30%"])
    assert sum(odd.strike("refuse", PHONE) is not None for _ in range(100)) == 30


# --- connections -------------------------------------------------------------------------------------------


@in_loop
async def test_a_bind_is_refused_until_the_scenario_is_off():
    async with simulator("bind-refused=ESME_RALYBND") as sim:
        async with Esme(sim.smpp_port) as esme:
            assert esme.bind_status == Status.ESME_RALYBND
        sim.scenarios.switch_off("bind-refused")
        async with Esme(sim.smpp_port) as esme:
            assert esme.bind_status == Status.ESME_ROK


@in_loop
async def test_an_outbind_comes_first():
    async with simulator("outbind") as sim, Esme(sim.smpp_port) as esme:
        assert await esme.ignored.get() == Command.OUTBIND
        assert esme.bind_status == Status.ESME_ROK


@in_loop
async def test_an_enquire_link_gets_no_answer_and_everything_else_does():
    async with simulator("silent-link") as sim, Esme(sim.smpp_port) as esme:
        esme.ask()
        esme.submit("Mat khau", to=PHONE)
        assert await esme.statuses(1) == [0]
        assert esme.ignored.empty()
        sim.scenarios.switch_off("silent-link")
        esme.ask()
        assert await esme.ignored.get() == Command.ENQUIRE_LINK_RESP


@in_loop
async def test_a_half_open_connection_stands_and_says_nothing_until_it_is_cut():
    async with simulator() as sim, Esme(sim.smpp_port) as esme:
        sim.scenarios.switch_on("half-open")
        message = await sim.send(PHONE, "BH MK")
        esme.submit("Mat khau", to=PHONE)
        late = await asyncio.open_connection("127.0.0.1", sim.smpp_port)
        await asyncio.sleep(0.2)
        assert not esme.closed and esme.responses.empty() and esme.delivered.empty() and not texts(sim)
        sim.scenarios.switch_off("half-open")
        await esme.ended()
        assert await late[0].read() == b""
        async with Esme(sim.smpp_port):
            await state_of(sim, message, State.SENT)


@in_loop
async def test_half_open_connections_that_pile_up_are_cut_oldest_first():
    async with simulator("half-open") as sim:
        piled = [await asyncio.open_connection("127.0.0.1", sim.smpp_port) for _ in range(55)]
        assert [await piled[at][0].read() for at in range(5)] == [b""] * 5
        assert not piled[5][0].at_eof()
        sim.scenarios.switch_all_off()


# --- to phones ---------------------------------------------------------------------------------------------


@in_loop
async def test_more_segments_a_second_than_allowed_are_refused():
    async with simulator("throttle=5") as sim, Esme(sim.smpp_port) as esme:
        for number in range(7):
            esme.submit(f"Mat khau {number}", to=PHONE)
        assert await esme.statuses(7) == [0] * 5 + [Status.ESME_RTHROTTLED] * 2
        assert len(texts(sim)) == 5
        await asyncio.sleep(0.25)
        esme.submit("Mat khau 12", to=PHONE)
        assert await esme.statuses(1) == [0]


@in_loop
async def test_a_throttle_counts_segments_and_not_messages():
    payload = [(Tag.MESSAGE_PAYLOAD, b"x" * 400)]
    async with simulator("throttle=4") as sim, Esme(sim.smpp_port) as esme:
        for _ in range(3):
            esme.submit("", to=PHONE, tlvs=payload)
        assert await esme.statuses(3) == [0, 0, Status.ESME_RTHROTTLED]  # 3 of 4, the next owes 2


@in_loop
async def test_a_full_queue_takes_nothing_for_a_while():
    async with simulator("queue-full=0.3") as sim, Esme(sim.smpp_port) as esme:
        esme.submit("Mat khau", to=PHONE)
        assert await esme.statuses(1) == [Status.ESME_RMSGQFUL]
        assert list(sim.scenarios.on()) == ["queue-full"]
        await asyncio.sleep(0.35)
        esme.submit("Mat khau", to=PHONE)
        assert await esme.statuses(1) == [0]
        assert sim.scenarios.on() == {}


@in_loop
async def test_a_share_of_submits_is_refused_with_a_status_of_no_name():
    async with simulator("refuse=0x4FF 25%") as sim, Esme(sim.smpp_port) as esme:
        for number in range(8):
            esme.submit(f"Mat khau {number}", to=PHONE)
        assert await esme.statuses(8) == [0x4FF, 0, 0, 0] * 2
        assert len(texts(sim)) == 6


@in_loop
async def test_a_slow_answer_comes_after_the_text():
    async with simulator("slow=0.3") as sim, Esme(sim.smpp_port) as esme:
        began = time.monotonic()
        esme.submit("Mat khau", to=PHONE)
        await sim.reply(PHONE)
        assert esme.responses.empty()
        assert await esme.statuses(1) == [0]
        assert time.monotonic() - began >= 0.29


@in_loop
async def test_a_slow_answer_to_a_session_that_has_ended_is_no_answer():
    async with simulator("slow=0.1") as sim, Esme(sim.smpp_port) as esme:
        esme.submit("Mat khau", to=PHONE)
        await sim.reply(PHONE)
        await esme.unbind()
        await asyncio.sleep(0.2)
        assert esme.responses.empty()


@in_loop
async def test_a_silent_submit_reaches_its_phone():
    async with simulator("silent-submits") as sim, Esme(sim.smpp_port) as esme:
        esme.submit("Mat khau", to=PHONE)
        assert (await sim.reply(PHONE)).text == "Mat khau"
        esme.ask()
        await esme.ignored.get()  # the connection lives
        assert esme.responses.empty()


@in_loop
async def test_a_connection_is_cut_instead_of_an_answer():
    async with simulator("cut-submits=50%") as sim:
        async with Esme(sim.smpp_port) as esme:
            esme.submit("Mat khau", to=PHONE)
            await esme.ended()
            assert esme.responses.empty() and texts(sim) == ["Mat khau"]
        async with Esme(sim.smpp_port) as esme:
            esme.submit("Mat khau", to=PHONE)
            assert await esme.statuses(1) == [0]


@in_loop
async def test_a_phone_of_another_ton_is_swallowed_without_an_error():
    async with simulator("swallow-ton=1") as sim, Esme(sim.smpp_port) as esme:
        esme.submit("to nowhere", to=PHONE, destination_ton=0, registered_delivery=1)
        esme.submit("Mat khau", to=PHONE, registered_delivery=1)
        assert await esme.statuses(2) == [0, 0]
        assert "text:Mat khau" in text_of(await esme.delivered.get())
        assert texts(sim) == ["Mat khau"] and esme.delivered.empty()


# --- from phones -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "seen", "ends"),
    [
        ("cut-deliveries=100%", 1, "peer gone"),
        ("cut-answers=100%", 1, "peer gone"),
        ("half-pdu=100%", 0, "peer gone"),
        ("bad-length=0 100%", 0, "framing error"),
        ("bad-length=15 100%", 0, "framing error"),
        ("bad-length=4294967295 100%", 0, "framing error"),
    ],
)
@in_loop
async def test_a_delivery_whose_connection_ends_comes_again_and_is_paid_once(scenario, seen, ends):
    async with simulator(scenario) as sim:
        async with Esme(sim.smpp_port) as esme:
            message = await sim.send(PHONE, "BH MK 0123456789")
            await esme.ended()
            assert esme.delivered.qsize() == seen and esme.closed.startswith(ends)
            assert message.state is State.SENDING
        async with Esme(sim.smpp_port) as esme:
            assert text_of(await esme.delivered.get()) == "BH MK 0123456789"
            await state_of(sim, message, State.SENT)
        assert sim.phones.conversation(PHONE).paid == 1000


@in_loop
async def test_answers_behind_the_one_that_was_cut_are_not_heard_and_lose_nothing():
    async with simulator("cut-answers=34%") as sim:
        sent = [await sim.send(PHONE, f"BH MK {number}") for number in range(3)]
        async with Esme(sim.smpp_port) as esme:  # which answers all three at once
            await esme.ended()
            assert esme.delivered.qsize() == 3
        assert {message.state for message in sent} == {State.SENDING}
        sim.scenarios.switch_all_off()
        async with Esme(sim.smpp_port):
            for message in sent:
                await state_of(sim, message, State.SENT)
        assert sim.phones.conversation(PHONE).paid == 3000


@in_loop
async def test_a_delivery_whose_answer_was_lost_comes_again_with_another_sequence_number():
    async with simulator("duplicate=100%") as sim, Esme(sim.smpp_port) as esme:
        message = await sim.send(PHONE, "BH MK 0123456789")
        await state_of(sim, message, State.SENT)
        one, two = await esme.delivered.get(), await esme.delivered.get()
        assert one.short_message == two.short_message and one.sequence != two.sequence
        assert esme.delivered.empty() and sim.phones.conversation(PHONE).paid == 1000


@in_loop
async def test_an_unknown_command_comes_before_a_delivery():
    async with simulator("unknown-command=100%") as sim, Esme(sim.smpp_port) as esme:
        message = await sim.send(PHONE, "BH MK 0123456789")
        assert await esme.ignored.get() == 0x00BADBAD
        await state_of(sim, message, State.SENT)


@in_loop
async def test_parameters_that_nobody_knows_come_along():
    async with simulator("unknown-tlvs") as sim, Esme(sim.smpp_port) as esme:
        await sim.send(PHONE, "BH MK 0123456789")
        pdu = await esme.delivered.get()
        assert [tag for tag, _ in pdu.tlvs] == [0x1400, 0x1400, 0x3FFF]
        assert text_of(pdu) == "BH MK 0123456789"


@pytest.mark.parametrize("text", ["BH MK 0123456789", LONG])
@in_loop
async def test_texts_come_as_data_sm(text):
    async with simulator("data-sm", "unknown-tlvs") as sim, Esme(sim.smpp_port) as esme:
        message = await sim.send(PHONE, text)
        await state_of(sim, message, State.SENT)
        came = [esme.delivered.get_nowait() for _ in range(esme.delivered.qsize())]
        assert {pdu.command_id for pdu in came} == {Command.DATA_SM}
        assert "".join(map(text_of, came)) == text


@in_loop
async def test_long_texts_come_in_the_form_that_is_chosen():
    async with simulator("long-by=payload") as sim, Esme(sim.smpp_port) as esme:

        async def parts(scenario):
            sim.scenarios.switch_on(scenario)
            await state_of(sim, await sim.send(PHONE, LONG), State.SENT)
            return [esme.delivered.get_nowait() for _ in range(esme.delivered.qsize())]

        [whole] = await parts("long-by=payload")
        assert (whole.short_message, whole.payload) == (b"", LONG.encode())

        sar = await parts("long-by=sar")
        tags = (Tag.SAR_TOTAL_SEGMENTS, Tag.SAR_SEGMENT_SEQNUM)
        assert [tuple(find_tlv(pdu.tlvs, tag) for tag in tags) for pdu in sar] == [
            (b"\3", b"\1"),
            (b"\3", b"\2"),
            (b"\3", b"\3"),
        ]
        assert len({find_tlv(pdu.tlvs, Tag.SAR_MSG_REF_NUM) for pdu in sar}) == 1
        assert b"".join(pdu.short_message for pdu in sar) == LONG.encode()
        assert not any(pdu.esm_class & UDH_INDICATOR for pdu in sar)

        wide = [parse_udh(pdu.short_message) for pdu in await parts("long-by=udh16")]
        assert [part for part, _ in wide] == [Part(2, 3, number) for number in (1, 2, 3)]
        assert b"".join(body for _, body in wide) == LONG.encode()

        turned = [parse_udh(pdu.short_message)[0].number for pdu in await parts("last-part-first")]
        assert turned == [3, 2, 1]


# --- receipts ----------------------------------------------------------------------------------------------


async def submitted(sim, esme, **fields):
    """Submit a text that asks for a receipt: (the id of its answer, what the next delivery says)."""
    esme.submit("Mat khau: 220199", to=PHONE, registered_delivery=1, **fields)
    message_id = (await esme.responses.get()).message_id
    pdu = await esme.delivered.get()
    assert is_receipt(pdu)
    return message_id, parse(text_of(pdu), pdu.tlvs)


@in_loop
async def test_an_early_receipt_overtakes_the_answer():
    async with simulator("receipt-early") as sim, Esme(sim.smpp_port) as esme:
        esme.submit("Mat khau", to=PHONE, registered_delivery=1)
        early = await esme.delivered.get()
        assert esme.responses.empty()
        answer = await esme.responses.get()
        assert parse(text_of(early), early.tlvs).message_id == answer.message_id


@in_loop
async def test_a_late_receipt():
    async with simulator("receipt-late=0.3") as sim, Esme(sim.smpp_port) as esme:
        began = time.monotonic()
        message_id, receipt = await submitted(sim, esme)
        assert receipt.message_id == message_id
        assert time.monotonic() - began >= 0.29


@in_loop
async def test_receipts_that_never_come_or_twice():
    async with simulator("receipt-none") as sim, Esme(sim.smpp_port) as esme:
        esme.submit("no receipt", to=PHONE, registered_delivery=1)
        await esme.responses.get()
        sim.scenarios.switch_all_off()
        sim.scenarios.switch_on("receipt-twice")
        message_id, one = await submitted(sim, esme)
        two = await esme.delivered.get()
        assert one.message_id == parse(text_of(two), two.tlvs).message_id == message_id


@pytest.mark.parametrize(
    ("scenario", "found"),
    [("receipt-unknown-id", False), ("receipt-id=zeros", True), ("receipt-id=hex", True)],
)
@in_loop
async def test_a_receipt_whose_id_is_not_the_one_of_the_answer(scenario, found):
    async with simulator(scenario) as sim, Esme(sim.smpp_port) as esme:
        for _ in range(12):  # so that decimal and hex differ
            message_id, receipt = await submitted(sim, esme)
        assert receipt.message_id != message_id
        assert (message_id in id_candidates(receipt.message_id)) is found


@pytest.mark.parametrize(
    ("state", "reaches"),
    [("UNDELIV", False), ("EXPIRED", False), ("REJECTD", False), ("ACCEPTD", True), ("WHATEVER", True)],
)
@in_loop
async def test_a_receipt_says_the_state_and_a_failed_text_reaches_nobody(state, reaches):
    async with simulator(f"receipt-state={state}") as sim, Esme(sim.smpp_port) as esme:
        _, receipt = await submitted(sim, esme)
        assert receipt.state == state
        assert bool(texts(sim)) is reaches
        esme.submit("only if it fails", to=PHONE, registered_delivery=2)
        await esme.responses.get()
        await asyncio.sleep(0.05)
        assert esme.delivered.empty() is reaches


# --- numbers, TLS ------------------------------------------------------------------------------------------


@in_loop
async def test_a_number_has_its_trouble_alone():
    throttled, refused = "84500000201", "84500000206"
    async with simulator() as sim, Esme(sim.smpp_port) as esme:
        for to in (throttled, PHONE, throttled, refused, refused):
            esme.submit("Mat khau", to=to)
        bad = Status.ESME_RINVDSTADR
        assert await esme.statuses(5) == [Status.ESME_RTHROTTLED, 0, 0, bad, bad]
        assert [len(texts(sim, phone)) for phone in (PHONE, throttled, refused)] == [1, 1, 0]
        sim.phones.conversation(PHONE).messages.clear()
        doubled = await sim.send("0500 000 104", "BH MK")
        alone = await sim.send(PHONE, "BH MK")
        await state_of(sim, doubled, State.SENT)
        await state_of(sim, alone, State.SENT)
        assert esme.delivered.qsize() == 3
        assert sim.scenarios.on() == {}


@in_loop
async def test_esmes_come_by_tls(tmp_path, certificate):  # noqa: F811
    pem, _ = certificate
    trusting = ssl.create_default_context(cafile=str(pem))
    config = SimulatorConfig(
        rules=FAST, scenarios=["half-pdu=100%"], tls_cert=pem, tls_key=tmp_path / "key.pem"
    )
    async with Simulator(config) as sim:
        message = await sim.send(PHONE, "BH MK 0123456789")
        async with Esme(sim.smpp_port, tls=trusting) as esme:
            await esme.ended()
        async with Esme(sim.smpp_port, tls=trusting):
            await state_of(sim, message, State.SENT)
        with pytest.raises(ValueError, match=r"carrier\.pem: not a certificate in PEM, or not with its key"):
            await Simulator(SimulatorConfig(tls_cert=pem)).__aenter__()
