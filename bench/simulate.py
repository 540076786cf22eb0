"""Simulate the SMS door by thousands of seeds (tests/simulation/), and repeat any of them.

Each seed is a run of the real code of `caplai/channels/` in virtual time, against a hostile carrier, a bad network and
a store that goes away, until all is well again. A seed that breaks something is printed with how to see it again.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator

from tests.simulation import clock
from tests.simulation.planted import PLANTED
from tests.simulation.world import Result, run


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench simulate", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3000, help="how many (3000)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them (0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (one for each core)")
    parser.add_argument("--plant", choices=PLANTED, metavar="BUG", help=f"one of: {'; '.join(PLANTED)}")
    parser.add_argument("--trace", action="store_true", help="print all that happens in each run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.seeds)
    shares = [(seeds[n :: options.jobs], options.plant, options.trace) for n in range(options.jobs)]
    began = time.monotonic()
    counts: Counter[str] = Counter()
    broken: list[Result] = []
    with multiprocessing.Pool(options.jobs) as pool:
        for results in pool.imap_unordered(_share, shares):
            for result in results:
                counts += result.counts
                if result.broken:
                    broken.append(result)
                if options.trace:
                    print("\n".join([f"seed {result.seed}", *result.trace]))
    seconds = time.monotonic() - began
    broken.sort(key=lambda result: result.seed)
    report = {
        "seeds": len(seeds),
        "seconds": round(seconds, 1),
        "seeds_a_second": round(len(seeds) / seconds, 1),
        "jobs": options.jobs,
        "what_happened": dict(sorted(counts.items())),
        "broken": {result.seed: result.broken for result in broken},
    }
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        for name, value in report.items():
            print(f"{name:<16} {value}")
        for result in broken[:1]:
            plant = f" --plant {options.plant!r}" if options.plant else ""
            print(f"see it: python -m bench simulate --seeds 1 --from {result.seed} --trace{plant}")
    return 1 if broken else 0


def _share(task: tuple[range, str | None, bool]) -> list[Result]:
    return list(_runs(*task))


def _runs(seeds: range, plant: str | None, trace: bool) -> Iterator[Result]:
    with clock.virtual_time() as jitter:
        for seed in seeds:
            if plant:
                with PLANTED[plant]():
                    result = run(seed, jitter)
            else:
                result = run(seed, jitter)
            if not trace:
                result.trace = []
            yield result
