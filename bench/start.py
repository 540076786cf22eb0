"""`caplai up`, warm: seconds until the web port answers /readyz and the engine is ready; five at most.

The data folder exists and its tables are up to date; the embedded server is started, too. Five times.
"""

import argparse
import json
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

from bench._parts import Part, plain_environment
from caplai import processes

BAR = 5.0
_GIVEN_UP = 60.0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench start", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="how often (5)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="caplai-start-") as folder:
        _start(Path(folder))  # makes the database, the tables, the keys and the bytecode
        runs = [_start(Path(folder)) for _ in range(options.runs)]
    report = {
        "seconds": [round(max(run), 2) for run in runs],
        "web_seconds": [round(web, 2) for web, _ in runs],
        "engine_seconds": [round(engine, 2) for _, engine in runs],
        "median_seconds": round(median(map(max, runs)), 2),
        "worst_seconds": round(max(map(max, runs)), 2),
        "bar": BAR,
    }
    broken = [] if median(map(max, runs)) <= BAR else [f"the median start takes more than {BAR} s"]
    report["broken"] = broken
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        for name, value in report.items():
            print(f"{name:<16} {value}")
    return 1 if broken else 0


def _start(folder: Path) -> tuple[float, float]:
    """Start and stop it; the seconds until the web server and until the engine was ready."""
    web, engine = (processes.free_port("127.0.0.1", 0) for _ in range(2))
    environment = {
        **plain_environment(),
        "CAPLAI_DATA_DIR": str(folder),
        "CAPLAI_PORT": str(web),
        "CAPLAI_WATCH__ENGINE_PORT": str(engine),
        "CAPLAI_WATCH__WEB_PORT": "0",
    }
    began = time.monotonic()
    part = Part("up", ["up"], environment, folder)
    ready: dict[int, float] = {}
    try:
        while len(ready) < 2:
            for port in {web, engine} - ready.keys():
                if _is_ready(port):
                    ready[port] = time.monotonic() - began
            if not part.alive or time.monotonic() - began > _GIVEN_UP:
                raise RuntimeError(f"it does not come up:\n{part.says()}")
            time.sleep(0.02)
    finally:
        part.stop()
    return ready[web], ready[engine]


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return answer.status == 200
    except OSError:  # and what urllib makes of it
        return False
