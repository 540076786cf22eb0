"""Debian's Kannel (1.4.5) as an ESME of our simulator: its codec, its timers, its receipts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import unquote_plus

import pytest
from aiohttp import web

from caplai.simulator import Simulator, SimulatorConfig
from caplai.simulator.phones import Message, State
from caplai.simulator.smsc import Rules
from tests.peers.kannel import Kannel, needs_kannel
from tests.ports import free_port

pytestmark = [pytest.mark.peer, needs_kannel]

PHONE = "84327000686"


async def arrived(sim: Simulator, message: Message) -> None:
    """Kannel took it: the phone shows it as sent."""
    await sim.phones.wait_for(PHONE, lambda m: m is message and m.state is not State.SENDING, timeout=10)
    assert message.state is State.SENT


@pytest.mark.parametrize("pair", [False, True], ids=["transceiver", "pair"])
def test_kannel_answers_a_phone_of_the_simulator(tmp_path, pair):
    long_text = "BH MK " + "mot hai ba bon nam sau bay tam chin muoi " * 6

    async def scenario() -> None:
        # Our own interval is as short as Kannel's, so that both ask.
        rules = Rules(enquire_link=1.0)
        async with (
            Simulator(SimulatorConfig(rules=rules)) as sim,
            Kannel(tmp_path, sim.smpp_port, reply="Da nhan: %a", pair=pair) as kannel,
        ):
            message = await sim.send("0327 000 686", "BH MK 0123456789")
            reply = await sim.reply(PHONE, after=message)
            assert (reply.number, unquote_plus(reply.text)) == ("8079", "Da nhan: BH MK 0123456789")
            await arrived(sim, message)
            assert sim.phones.conversation(PHONE).paid == 1000

            # Longer than one message: in parts to Kannel, which joins them, and in parts back.
            message = await sim.send("0327 000 686", long_text)
            reply = await sim.reply(PHONE, after=message)
            assert unquote_plus(reply.text) == "Da nhan: " + long_text.strip()
            await arrived(sim, message)

            for asks, hears in (("Sending", "Got"), ("Got", "Sending")):
                await kannel.exchanged(asks, "enquire_link")
                await kannel.exchanged(hears, "enquire_link_resp")
            assert sim.smsc.bound == 1
            assert kannel.complaints() == []
        await kannel.exchanged("Sending", "unbind")
        await kannel.exchanged("Got", "unbind_resp")
        assert kannel.complaints() == []

    asyncio.run(scenario())


@asynccontextmanager
async def status_page() -> AsyncIterator[tuple[str, asyncio.Queue[str]]]:
    """An address for Kannel's delivery reports, and the queue of the statuses that come there."""
    statuses: asyncio.Queue[str] = asyncio.Queue()

    async def put(request: web.Request) -> web.Response:
        statuses.put_nowait(request.query["status"])
        return web.Response()

    application = web.Application()
    application.router.add_get("/", put)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/?status=%d", statuses
    finally:
        await runner.cleanup()


def test_kannel_understands_the_simulators_receipts(tmp_path):
    async def scenario() -> None:
        async with (
            Simulator() as sim,
            Kannel(tmp_path, sim.smpp_port) as kannel,
            status_page() as (url, statuses),
        ):
            delivered_or_failed, text = 1 | 2, "Mật khẩu mới: 279419"
            await kannel.send(
                f"+{PHONE}",
                text,
                **{"from": "8079", "charset": "utf-8", "coding": 2},
                **{"dlr-mask": delivered_or_failed, "dlr-url": url},
            )
            assert (await sim.reply(PHONE)).text == text
            assert await asyncio.wait_for(statuses.get(), 10) == "1"  # delivered to the phone
            assert kannel.complaints() == []

    asyncio.run(scenario())


@pytest.mark.slow
def test_the_simulator_refuses_kannel_with_a_wrong_password(tmp_path):
    async def scenario() -> None:
        # Kannel first, and the SMSC when it tries again: refused before its start is over, bearerbox panics
        # (gwlist_remove_producer).
        config = SimulatorConfig(smpp_port=free_port())
        async with Kannel(tmp_path, config.smpp_port, password="wrong") as kannel, Simulator(config) as sim:
            await kannel.said("SMPP[simulator]", "SMSC rejected login")
            assert sim.smsc.bound == 0

    asyncio.run(scenario())
