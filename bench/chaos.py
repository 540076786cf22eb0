"""Kill, stop, pause and cut at random under load, then check the ledger (bar.md, "Nothing lost, nothing twice").

A simulated carrier with its phones (never killed) offers an open load of texts to two `caplai engine` processes
on one PostgreSQL with fsync on; people take the password that came, sign in at `caplai web`, choose one of their
own and sign in with that, and try again like people do. At moments drawn from a seed an engine or the web server
is killed (SIGKILL) or stopped (SIGTERM), an engine hangs for a while (SIGSTOP, SIGCONT) and comes back to what
others took over, the database server is killed, or the carrier cuts every connection and delivers what it had no
answer for again, in another order. In the end everything is brought back, and the ledger is checked
(bench/_ledger.py); everybody who chose a password signs in with it.

The seed repeats the plan of faults; what they meet depends on the machine.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench import _apart, _ledger, _measure
from bench._load import People, Phones, add_accounts, until
from bench._parts import Part, plain_environment
from caplai import processes
from caplai.local_postgres import LocalPostgres
from caplai.simulator import Simulator, SimulatorConfig
from caplai.simulator.smsc import Rules
from caplai.store.keyring import KeyringFile

ENGINES = 2
_FAULTS = {
    "engine killed": 5,
    "engine stopped": 2,
    "engine hung": 2,
    "web killed": 3,
    "web stopped": 1,
    "database killed": 3,
    "links cut": 4,
}
"""What happens, and how often beside the others."""
_LONGEST_PAUSE = 4.0
"""Seconds that the next fault waits for a sign of life."""


@dataclass(frozen=True)
class Fault:
    """What happens `after` so many seconds, to which engine, and for how long if it hangs."""

    after: float
    what: str
    engine: int
    lasts: float


def plan(seed: int, faults: int, pause: float) -> list[Fault]:
    """The same faults for the same arguments."""
    draw = random.Random(f"{seed}/faults")
    return [
        Fault(
            draw.expovariate(1 / pause),
            draw.choices(list(_FAULTS), list(_FAULTS.values()))[0],
            draw.randrange(ENGINES),
            draw.choice([0.5, 3.0, 12.0]),
        )
        for _ in range(faults)
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="faults, all together (200)")
    parser.add_argument("--rate", type=int, default=60, help="texts a second (60)")
    parser.add_argument("--citizens", type=int, default=10_000, help="who text (10,000)")
    parser.add_argument("--people", type=float, default=3, help="people who sign in, a second (3)")
    parser.add_argument(
        "--pause", type=float, default=0.7, help="seconds between faults, on average, at least (0.7)"
    )
    parser.add_argument("--seed", type=int, default=None, help="repeat the plan of a run")
    parser.add_argument("--keep", type=Path, default=None, help="keep logs and database in this new folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        status = _apart.go_apart("bench", ["chaos", *arguments])
    except OSError as error:
        parser.exit(1, f"chaos kills processes, so it runs in namespaces of its own: {error}\n")
    if status is not None:
        return status
    if options.seed is None:
        options.seed = random.randrange(10**6)
    with contextlib.ExitStack() as stack:
        if options.keep:
            options.keep.mkdir(parents=True)
        folder = options.keep or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="caplai-chaos-"))
        )
        report = asyncio.run(_Run(folder, options).play())
    _measure.show(report, as_json=options.json)
    return 1 if report["broken"] else 0


class _Run:
    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        self.server = LocalPostgres(folder / "postgres")
        self.killed: Counter[str] = Counter()
        self.broken: list[str] = []
        self.parts: list[Part] = []
        self._hung: set[asyncio.Task[None]] = set()

    async def play(self) -> dict[str, object]:
        dsn = await asyncio.to_thread(self._prepare)
        seed = self.options.seed
        rules = Rules(retries=10_000, pause=0.3, longest_pause=2.0, enquire_link=5.0, response=4.0)
        async with Simulator(SimulatorConfig(rules=rules)) as simulator:
            phones = Phones(
                simulator,
                random.Random(f"{seed}/texts"),
                citizens=self.options.citizens,
                rate=self.options.rate,
            )
            port = processes.free_port("127.0.0.1", 0)
            url = processes.url("127.0.0.1", port)
            people = People(phones, random.Random(f"{seed}/people"), [url], rate=self.options.people)
            link = {"name": "carrier", "host": "127.0.0.1", "port": simulator.smpp_port, "password": "secret"}
            environment = {
                **plain_environment(),
                "CAPLAI_DATABASE_URL": dsn,
                "CAPLAI_DATA_DIR": str(self.folder),
                "CAPLAI_LINKS": json.dumps([link | {"submit_timeout": 3}]),
                "CAPLAI_PORT": str(port),
                # All people come from one address here.
                "CAPLAI_SIGNIN__NETWORK_FAILURES": "1000000",
            }
            stop = asyncio.Event()
            try:
                self.parts += [
                    Part(f"engine-{n}", ["engine"], environment, self.folder) for n in range(ENGINES)
                ]
                self.parts.append(Part("web", ["web"], environment, self.folder))
                began = time.monotonic()
                texting = asyncio.create_task(phones.text(stop))
                signing_in = asyncio.create_task(people.come(stop))
                await self._strike(simulator, phones, people)
                stop.set()
                seconds = time.monotonic() - began
                await asyncio.gather(texting, *self._hung)
                await asyncio.to_thread(self.server.ensure_running)
                began = time.monotonic()
                # What the carrier still holds at the wave's rate takes minutes, at a thousand a second.
                patience = 120 + len(phones.sent) / 1_000
                settled = await _ledger.settle(dsn, simulator, patience, meanwhile=self._tend)
                if not settled:
                    self.broken.append(
                        f"messages or replies still wait, {patience:.0f} s after the last fault"
                    )
                healed = time.monotonic() - began
                await signing_in
                keyring = KeyringFile(self.folder / "keyring.json").ring("issuing")
                self.broken += people.broken
                self.broken += await asyncio.to_thread(_ledger.check, dsn, phones, keyring)
                chose = await people.check_all()
                if chose < len(people.chosen):
                    self.broken.append(f"{len(people.chosen) - chose} chosen passwords do not sign in")
                good, broken = await asyncio.to_thread(
                    _ledger.check_sample, phones, random.Random(f"{seed}/sample")
                )
                self.broken += broken
                late = await asyncio.to_thread(_ledger.stored_again, dsn)
            finally:
                for part in self.parts:
                    part.kill()
                self.server.stop()
        return {
            "seed": seed,
            "seconds": round(seconds, 1),
            "seconds_to_heal": round(healed, 1),
            "faults": dict(self.killed),
            "texts": len(phones.sent),
            "acknowledged": sum(text.acknowledged for text in phones.sent),
            "stored_again_after_60_s": late,
            "replies_at_phones": sum(map(len, phones.got.values())),
            "sign_ins": people.signed_in,
            "sign_in_retries": people.retries,
            "chosen_that_sign_in": chose,
            "issued_that_sign_in": good,
            "broken": self.broken,
        }

    def _prepare(self) -> str:
        dsn = self.server.ensure_running().dsn
        os.environ |= {
            "CAPLAI_DATABASE_URL": dsn,
            "CAPLAI_DATA_DIR": str(self.folder),
            "CAPLAI_SIGNIN__NETWORK_FAILURES": "1000000",
        }
        processes.setup_django()
        processes.migrate()
        add_accounts(dsn, self.options.citizens)
        return dsn

    async def _strike(self, simulator: Simulator, phones: Phones, people: People) -> None:
        """Strike what works: the next fault waits a while for the service to have got over the one before."""
        if not await until(lambda: people.signed_in, 90):
            self.broken.append("nobody could sign in before the first fault")
        order = random.Random(f"{self.options.seed}/order")
        for fault in plan(self.options.seed, self.options.kills, self.options.pause):
            struck = time.monotonic()
            await asyncio.sleep(fault.after)
            await until(lambda struck=struck: phones.newest_taken > struck, _LONGEST_PAUSE)
            self.killed[fault.what] += 1
            part = self.parts[fault.engine if fault.what.startswith("engine") else -1]
            match fault.what.split():
                case ["links", _]:
                    simulator.smsc.cut()
                    await asyncio.sleep(0)  # what had no answer is back in the queue
                    simulator.smsc.shuffle(order)
                case ["database", _]:
                    await asyncio.to_thread(self._kill_database)
                case [_, "killed"]:
                    await asyncio.to_thread(part.kill)
                    part.start()
                case [_, "stopped"]:
                    part.resume(part.process)  # if it hangs
                    if await asyncio.to_thread(part.stop) is None:
                        self.broken.append(f"{part.name} did not stop within 30 s of SIGTERM")
                    part.start()
                case [_, "hung"]:
                    task = asyncio.create_task(self._hang(part, fault.lasts))
                    self._hung.add(task)
            self._tend()

    async def _hang(self, part: Part, seconds: float) -> None:
        hung = part.pause()
        await asyncio.sleep(seconds)
        part.resume(hung)  # a part that was killed meanwhile does not mind

    def _kill_database(self) -> None:
        status = self.server.status()
        if status.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(status.pid, signal.SIGKILL)
        time.sleep(random.random())
        self.server.ensure_running()

    def _tend(self) -> None:
        """Start anew what gave up by itself, as a part may when its start met no database."""
        for part in self.parts:
            if not part.alive:
                self.killed[f"{part.name.partition('-')[0]}, by itself"] += 1
                part.start()
