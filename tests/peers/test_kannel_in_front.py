"""Debian's Kannel (1.4.5) as the aggregator: a carrier, bearerbox, smsbox, our door, and the reply at the phone."""

import asyncio
import re
from pathlib import Path

import pytest
from django.conf import settings

from caplai.channels.aggregators import Aggregator
from caplai.engine import Engine
from caplai.simulator import Simulator
from tests.channels.site import KANNEL, LAN, PHONE, SECRET, serve, web_process
from tests.peers.kannel import FAKESMSC, Fakesmsc, Kannel, free_ports, needs_kannel

__all__ = ["serve"]  # a fixture

pytestmark = [pytest.mark.peer, needs_kannel]

REPLY = f"Cap lai mat khau thanh cong. Tai khoan: {LAN}/Mat khau: "
PAGE = Path(__file__).parent.parent.parent / "docs" / "aggregators.md"


def service(port, *, post=False):
    """The lines of the group that asks us, as the integrator's page has them."""
    [documented] = re.findall(r"group = sms-service\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    lines = documented.strip().replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    lines = re.sub(r"secret=\w+", f"secret={SECRET}", lines)
    return lines.replace("get-url", "post-url").replace("&text=%b", "") if post else lines


@pytest.mark.skipif(not FAKESMSC.exists(), reason="needs fakesmsc: apt-get install kannel-extras")
def test_texts_are_answered_by_way_of_kannel(tmp_path, conn, lan):
    async def scenario():
        port, fake = free_ports(2)
        async with Kannel(tmp_path, fake, service=service(port), fake=True), Fakesmsc(fake) as carrier:
            # Our web server is not even there yet: smsbox asks again, with the same id.
            await carrier.send(f"+{PHONE} 8079 text BH MK {LAN}")
            await asyncio.sleep(0.5)
            with web_process(KANNEL, port=port):
                [reply] = await carrier.replies(1)
                assert reply.startswith(f"8079 +{PHONE} text {REPLY}")

                # Silence is silence; a long text arrives in parts, which bearerbox joins.
                await carrier.send(f"+{PHONE} 8079 text VIN 123")
                await carrier.send(f"+{PHONE} 8079 udh %05%00%03%11%02%02 %20{LAN[5:]}")
                await carrier.send(f"+{PHONE} 8079 udh %05%00%03%11%02%01 BH%20MK%20{LAN[:5]}")
                assert (await carrier.replies(2))[1] == reply

    asyncio.run(scenario())
    decided = conn.execute("select outcome, link, source, source_ton from inbox order by id").fetchall()
    assert [decided[0][0], *sorted(row[0] for row in decided[1:])] == ["issued", "joined", "other_agency"]
    assert {row[1:] for row in decided} == {("vnpt", PHONE, 1)}
    assert conn.execute("select distinct state from outbox").fetchall() == [("sent",)]


@pytest.mark.parametrize(
    "post", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["get-url", "post-url"]
)
def test_accents_and_parts_that_nobody_joined_arrive_whole(tmp_path, conn, lan, serve, post):
    port = serve(KANNEL).port
    long_text = "BH MK mã số bảo hiểm xã hội của tôi là {} nhé, " + "xin cảm ơn nhiều " * 8

    async def scenario():
        lines = {"service": service(port, post=post), "core": "sms-combine-concatenated-mo = false"}
        async with Simulator() as sim, Kannel(tmp_path, sim.smpp_port, **lines):
            for text in ("BH MK " + LAN, f"BH MK mã số {LAN}", long_text.format(LAN)):
                message = await sim.send("0327 000 686", text)
                reply = await sim.reply(PHONE, after=message)
                assert reply.text.startswith(REPLY), text
                assert reply.number == "8079"

    asyncio.run(scenario())
    texts = [text for (text,) in conn.execute("select text from inbox order by id").fetchall()]
    assert texts == ["BH MK " + LAN, f"BH MK mã số {LAN}", long_text.format(LAN)]
    assert conn.execute("select count(*) > 2 from segment where joined_at is not null").fetchone() == (True,)


@pytest.mark.parametrize("method", ["POST", pytest.param("GET", marks=pytest.mark.slow)])
def test_the_reply_goes_by_kannels_sendsms(tmp_path, conn, lan, serve, method):
    async def scenario():
        async with (
            Simulator() as sim,
            Kannel(tmp_path, sim.smpp_port, service=service(await start(sim), post=True)) as kannel,
        ):
            send = {"url": kannel.sendsms_url, "method": method, "username": "test", "secret": "test"}
            ours = Aggregator.model_validate(KANNEL | {"reply": "send", "send": send})
            engine = Engine(settings.CAPLAI.model_copy(update={"aggregators": [ours]}), settings.KEYRING)
            await engine.start()
            try:
                message = await sim.send("0327 000 686", "BH MK " + LAN)
                reply = await sim.reply(PHONE, after=message)
                assert reply.text.startswith(REPLY)
                assert kannel.complaints() == []
            finally:
                await engine.stop()

    async def start(sim):
        # The door needs only to know that replies are not its own.
        send = {"url": "http://127.0.0.1:1/", "username": "test", "secret": "test"}
        return serve(KANNEL | {"reply": "send", "send": send}).port

    asyncio.run(scenario())
    assert conn.execute("select state, status from outbox").fetchall() == [("sent", 202)]
