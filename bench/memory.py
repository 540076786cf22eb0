"""Memory of engine and web under load for an hour: below 150 MB each, and flat.

The simulator's phones text at a steady rate, `caplai engine` answers, people sign in at `caplai web` with the
password that came, choose one of their own, and sign in with that. Every ten seconds the memory of each of the two is
read, its processes together: RSS, and PSS, which counts what two processes share once and is what is judged. It is
flat when a line through the second half, where everything is warm, rises by less than a tenth of the bar an hour
(or by what the half's own noise makes uncertain); that is judged from twenty minutes on.
"""

import argparse
import asyncio
import json
import math
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench._load import People, Phones
from bench._parts import Part
from bench._proc import Memory, Tree
from bench._site import Site
from caplai import processes
from caplai.simulator import Simulator

BAR = 150e6
FLAT = BAR / 10
"""Bytes an hour."""
_WARM = 20
"""Minutes of a run that tell growth from warming up."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench memory", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="for so long (60)")
    parser.add_argument("--rate", type=float, default=50, help="texts a second (50)")
    parser.add_argument("--people", type=float, default=10, help="people who sign in, a second (10)")
    parser.add_argument("--every", type=float, default=10, help="seconds between two looks (10)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="caplai-memory-") as folder:
        report, looks = asyncio.run(run(Path(folder), options))
    if options.json:
        print(json.dumps({**report, "looks": [look.row() for look in looks]}, indent=1))
    else:
        print("  second  engine RSS   PSS      web RSS   PSS   MB")
        for look in looks:
            print("{:8.0f}  {:10.1f} {:6.1f}  {:10.1f} {:6.1f}".format(*look.row()))
        for name, value in report.items():
            print(f"{name:<28} {value}")
    return 1 if report["broken"] else 0


@dataclass(frozen=True)
class Look:
    second: float
    engine: Memory
    web: Memory

    def row(self) -> list[float]:
        sizes = (self.engine.rss, self.engine.pss, self.web.rss, self.web.pss)
        return [round(self.second, 1), *(round(size / 1e6, 1) for size in sizes)]


async def run(folder: Path, options: argparse.Namespace) -> tuple[dict[str, object], list[Look]]:
    accounts = max(10_000, int(options.minutes * 60 * options.rate))
    async with Simulator() as simulator:
        link = {"name": "carrier", "host": "127.0.0.1", "port": simulator.smpp_port, "password": "secret"}
        site = Site(folder, accounts=accounts, logins=0, settings={"CAPLAI_LINKS": json.dumps([link])})
        await asyncio.to_thread(site.__enter__)
        engine = Part("engine", ["engine"], site.environment, folder)
        try:
            return await _under_load(simulator, site, Tree(engine.process.pid), accounts, options)
        finally:
            engine.stop()
            await asyncio.to_thread(site.__exit__)


async def _under_load(
    simulator: Simulator, site: Site, engine: Tree, accounts: int, options: argparse.Namespace
) -> tuple[dict[str, object], list[Look]]:
    draw = random.Random(1)
    phones = Phones(simulator, draw, citizens=accounts, rate=options.rate)
    people = People(phones, draw, [processes.url("127.0.0.1", site.port)], rate=options.people)
    stop, looks = asyncio.Event(), []
    load = [asyncio.create_task(phones.text(stop)), asyncio.create_task(people.come(stop))]
    began = time.monotonic()
    while time.monotonic() - began < options.minutes * 60:
        await asyncio.sleep(options.every)
        looks.append(Look(time.monotonic() - began, engine.memory(), site.web_tree.memory()))
    stop.set()
    await asyncio.gather(*load)
    report: dict[str, object] = {"minutes": options.minutes, "rate": options.rate}
    broken = list(people.broken)
    for name in ("engine", "web"):
        peak = max(getattr(look, name).pss for look in looks)
        slope, doubt = trend([(look.second, getattr(look, name).pss) for look in looks[len(looks) // 2 :]])
        report |= {
            f"{name}_peak_mb": round(peak / 1e6, 1),
            f"{name}_mb_an_hour": round(slope * 3600 / 1e6, 1),
            f"{name}_mb_an_hour_doubt": round(doubt * 3600 / 1e6, 1),
        }
        if peak >= BAR:
            broken.append(f"{name} takes more than {BAR / 1e6:.0f} MB")
        if options.minutes >= _WARM and slope * 3600 > FLAT and slope > doubt:
            broken.append(f"{name} grows")
    if people.signed_in == 0:
        broken.append("nobody signed in")
    return {**report, "texts": len(phones.sent), "sign_ins": people.signed_in, "broken": broken}, looks


def trend(points: list[tuple[float, float]]) -> tuple[float, float]:
    """The slope of the line of least squares, and twice its standard error."""
    if len(points) < 3:
        return 0.0, math.inf
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return slope, 2 * math.sqrt(rest / (len(points) - 2) / spread)
