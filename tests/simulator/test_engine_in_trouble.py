"""People text while the carrier misbehaves, and our real engine bears it: each is answered, mostly exactly once.

The pauses of the engine are shortened, nothing else of it is changed.
"""

import asyncio
from collections import Counter
from types import SimpleNamespace

import pytest

from caplai.channels import esme, outbound
from caplai.simulator import Simulator, SimulatorConfig
from caplai.simulator.phones import State
from caplai.simulator.scenarios import CATALOGUE
from caplai.simulator.smsc import Rules
from tests.channels.test_esme import engine

PEOPLE = {f"0123{n:06}": f"8432700{n:04}" for n in range(8)}
QUICK = Rules(pause=0.05, longest_pause=0.2, response=1.0)

# The carrier loses no answer of its own here, so every reply arrives exactly once.
EXACTLY_ONCE = [
    "throttle=4",
    "queue-full=0.5",
    "refuse=ESME_RTHROTTLED 40%",
    "refuse=ESME_RSYSERR 40%",
    "refuse=0x4FF 40%",
    "slow=0.3",
    "swallow-ton=1",
    "outbind",
    "cut-deliveries=30%",
    "cut-answers=30%",
    "half-pdu=30%",
    "unknown-command=50%",
    "unknown-tlvs",
    "data-sm",
    "long-by=sar",
    "long-by=payload",
    "long-by=udh16",
    "last-part-first",
    "receipt-early",
    "receipt-late=0.3",
    "receipt-none",
    "receipt-twice",
    "receipt-unknown-id",
    "receipt-id=zeros",
    "receipt-id=hex",
    "receipt-state=ACCEPTD",
    "receipt-state=WHATEVER",
]
# An answer that is lost leaves its asker in doubt: the same again is the only safe thing to do. (After a bad
# length nothing can be read any more, answers neither.)
AT_LEAST_ONCE = [
    "cut-submits=30%",
    "silent-submits=40%",
    "silent-link",
    "duplicate=100%",
    "bad-length=0 30%",
    "bad-length=15 30%",
    "bad-length=4294967295 30%",
]
# Nobody is bound, or the carrier lets nothing through: tested below.
OTHERWISE = {"bind-refused", "half-open"}
IN_A_HURRY = {"refuse=0x4FF 40%", "cut-answers=30%", "cut-submits=30%"}


def scenarios(several):
    """The quick ones always, the rest among the slow tests."""
    return [one if one in IN_A_HURRY else pytest.param(one, marks=pytest.mark.slow) for one in several]


@pytest.fixture
def house(conn, monkeypatch):
    """Run an async play(sim) with our engine bound to a simulator in trouble, and eight citizens."""
    monkeypatch.setattr(esme, "BACKOFF", (0.05, 0.2))
    monkeypatch.setattr(outbound, "QUIET", (0.05, 0.2))
    monkeypatch.setattr(outbound, "POLL", 0.1)
    for code, phone in PEOPLE.items():
        conn.execute(
            "insert into account (code, phone, state) values (%s, %s, 'approved')", [code, f"+{phone}"]
        )

    def run(play, *troubles, **link):
        async def hurry():
            while True:
                conn.execute("update outbox set due_at = now() where state = 'ready' and due_at > now()")
                await asyncio.sleep(0.1)

        async def whole():
            async with Simulator(SimulatorConfig(rules=QUICK, scenarios=troubles)) as sim:
                options = {
                    "response_timeout": 1,
                    "submit_timeout": 1,
                    "enquire_link": 0.5,
                    "receipts": True,
                } | link
                async with engine(SimpleNamespace(port=sim.smpp_port), **options) as running:
                    hurrying = asyncio.create_task(hurry())
                    try:
                        async with asyncio.timeout(25):
                            await play(sim)
                    finally:
                        hurrying.cancel()
                    assert running.failure is None

        asyncio.run(whole())

    return run


async def everybody_texts(sim, *, long=False):
    """All of them text, all are acknowledged, and everybody's first reply has come."""
    sent = [
        await sim.send(f"+{phone}", f"BH MK {code}" + " ." * 100 * long) for code, phone in PEOPLE.items()
    ]
    for message in sent:
        await sim.phones.wait_for(
            message.phone, lambda m, message=message: m is message and m.state is State.SENT, timeout=20
        )
        await sim.reply(f"+{message.phone}", timeout=20)


async def settled(conn):
    """Nothing is under way to a phone any more."""
    while conn.execute("select count(*) from outbox where state not in ('sent', 'failed')").fetchone()[0]:
        await asyncio.sleep(0.05)


def replies(sim):
    """What each phone received."""
    return {
        phone: [message.text for message in sim.phones.conversation(phone).messages if message.incoming]
        for phone in PEOPLE.values()
    }


@pytest.mark.parametrize("trouble", scenarios(EXACTLY_ONCE))
def test_everybody_is_answered_exactly_once(house, conn, trouble):
    long = trouble.startswith(("long-by", "last-part"))

    async def play(sim):
        await everybody_texts(sim, long=long)
        await settled(conn)
        await asyncio.sleep(0.2)
        for code, phone in PEOPLE.items():
            [reply] = replies(sim)[phone]
            assert reply.startswith(f"Cap lai mat khau thanh cong. Tai khoan: {code}/")
            assert sim.phones.conversation(phone).paid == 1000

    house(play, trouble)
    rows = conn.execute("select outcome, count(*) from inbox group by outcome").fetchall()
    assert rows == [("issued", len(PEOPLE))]
    assert conn.execute("select distinct state from outbox").fetchall() == [("sent",)]


@pytest.mark.parametrize("trouble", scenarios(AT_LEAST_ONCE))
def test_where_answers_are_lost_everybody_hears_the_same_at_least_once(house, conn, trouble):
    async def play(sim):
        await everybody_texts(sim)
        await settled(conn)
        for code, phone in PEOPLE.items():
            [reply] = set(replies(sim)[phone])
            assert f"Tai khoan: {code}/" in reply

    house(play, trouble)
    outcomes = Counter(dict(conn.execute("select outcome, count(*) from inbox group by outcome").fetchall()))
    assert outcomes["issued"] == len(PEOPLE) and set(outcomes) <= {"issued", "joined"}
    assert conn.execute("select count(*) from reissue_case").fetchone() == (len(PEOPLE),)


def test_every_scenario_is_borne_by_the_engine_somewhere_here():
    tried = {one.partition("=")[0] for one in EXACTLY_ONCE + AT_LEAST_ONCE} | OTHERWISE
    assert tried == set(CATALOGUE)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["bind-refused", "half-open"])
def test_once_the_carrier_is_back_everybody_is_answered(house, conn, trouble):
    async def play(sim):
        while not sim.smsc.bound:
            await asyncio.sleep(0.02)
        sim.scenarios.switch_on(trouble)
        sim.smsc.cut() if trouble == "bind-refused" else None
        texting = asyncio.create_task(everybody_texts(sim))
        await asyncio.sleep(1.5)
        assert not any(replies(sim).values())
        sim.scenarios.switch_off(trouble)
        await texting
        assert {len(texts) for texts in replies(sim).values()} == {1}

    house(play)


@pytest.mark.slow
def test_what_the_carrier_refuses_for_good_is_seen_as_failed(house, conn):
    async def play(sim):
        await sim.send(f"+{next(iter(PEOPLE.values()))}", f"BH MK {next(iter(PEOPLE))}")
        while conn.execute("select state from outbox").fetchall() != [("failed",)]:
            await asyncio.sleep(0.05)
        assert not any(replies(sim).values())

    house(play, "refuse=ESME_RINVDSTADR")


@pytest.mark.slow
def test_all_of_it_at_once(house, conn):
    async def play(sim):
        await everybody_texts(sim)
        await settled(conn)
        for code, phone in PEOPLE.items():
            [reply] = set(replies(sim)[phone])
            assert f"Tai khoan: {code}/" in reply

    several = [
        "outbind",
        "unknown-tlvs",
        "unknown-command=30%",
        "half-pdu=13%",
        "cut-answers=13%",
        "duplicate=30%",
        "bad-length=15 13%",
        "refuse=0x4FF 30%",
        "cut-submits=13%",
        "silent-submits=13%",
        "throttle=20",
    ]
    # No receipts: each would be one more delivery that ends the connection, and each text sent again has one more.
    house(play, *several, receipts=False)
