"""What an integrator would build instead, beside ours: Kannel from Debian, and a Django service behind it.

The same phones text by the same simulated carrier over real SMPP, on the same PostgreSQL (fsync on), each citizen
once. First to Kannel: bearerbox and smsbox, which asks bench/_peer_app.py over HTTP for each text; that one looks the
account up and calls `set_password`, with the Argon2id that ours spends on the password which people choose. Offered
is more and more, until less is answered than asked: the highest rate that it answered is its rate, and its best
p99 of all these runs is its p99. Then to `caplai engine`, which is offered 31 times that rate (its p99), and as much as
it answers (its rate).

How Kannel and the service are tuned: warnings alone are logged, 1,000 unacknowledged submits and 1,000 requests at a
time are allowed, nothing is stored twice (no store file, no delivery reports); granian with a process for each core,
four threads in each, persistent connections, no middleware, the look-up by primary key.

The rates are judged. Beside them stands the ratio of processor time, which others on the machine disturb less.

Needs Kannel (`apt-get install kannel`).
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from bench import _measure, wave
from bench._crowd import Mix, Options
from bench._proc import Tree
from caplai import processes

BAR = 30
_OFFERED = 31
"""Times the peer's rate, to ours."""
_FIRST, _STEP = 20.0, 1.25
_FOLLOWS = 0.97
_MIX = Mix(again=0.0)  # a sample of the passwords is tried, and another text would have changed it
_PATH = os.environ.get("PATH", "") + ":/usr/sbin"  # where Debian puts Kannel

# Not by `-m`: its settings name it.
_SERVICE = (sys.executable, "-c", "import sys; from bench import _peer_app; _peer_app.main(sys.argv[1:])")

_KANNEL = """
group = core
admin-port = {admin}
admin-interface = 127.0.0.1
admin-password = bench
smsbox-port = {boxes}
smsbox-interface = 127.0.0.1
box-allow-ip = 127.0.0.1
log-level = 2
sms-incoming-queue-limit = 1000000
sms-outgoing-queue-limit = 1000000

group = smsc
smsc = smpp
smsc-id = carrier
host = 127.0.0.1
port = {smsc}
transceiver-mode = true
smsc-username = caplai
smsc-password = secret
system-type = ""
max-pending-submits = 1000
enquire-link-interval = 30

group = smsbox
bearerbox-host = 127.0.0.1
sendsms-port = {sendsms}
sendsms-interface = 127.0.0.1
max-pending-requests = 1000
log-level = 2

group = sms-service
keyword = bh
catch-all = true
get-url = "http://127.0.0.1:{service}/?from=%p&text=%a"
max-messages = 1
omit-empty = true
"""


def main(arguments: list[str]) -> int:
    parser = wave.parser_of("peer", __doc__)
    parser.set_defaults(accounts=200_000, seconds=20.0)
    options = parser.parse_args(arguments)
    if not all(shutil.which(box, path=_PATH) for box in ("bearerbox", "smsbox")):
        parser.exit(2, "the peer is Kannel: apt-get install kannel\n")
    with wave.world(options, "peer") as it:
        report = run(it, options)
    _measure.show(report, as_json=options.json)
    return 1 if report["broken"] else 0


def run(it: wave.World, options: argparse.Namespace) -> dict[str, Any]:
    os.environ["PEER_DSN"] = it.dsn
    _in_a_process_of_its_own("prepare")
    runs: list[dict[str, Any]] = []
    rate = _FIRST
    while not runs or runs[-1]["completed_per_second"] >= _FOLLOWS * runs[-1]["offered_per_second"]:
        runs.append(_peer(it, wave.texts(options, _MIX, rate)))
        rate *= _STEP
    theirs = max(each["completed_per_second"] for each in runs)
    best = min(runs, key=lambda each: each["p99_ms"])
    steady = it.wave(wave.texts(options, _MIX, _OFFERED * theirs))
    ours = it.wave(wave.texts(options, _MIX, 0.0))
    ratio = max(steady["completed_per_second"], ours["completed_per_second"]) / theirs
    broken = [each for one in (*runs, steady, ours) for each in one["broken"]]
    if ratio < BAR:
        broken.append(f"ours is {ratio:.1f} times as fast as the peer, not {BAR}")
    if steady["p99_ms"] >= best["p99_ms"]:
        broken.append(f"ours has a p99 of {steady['p99_ms']} ms, the peer {best['p99_ms']} ms")
    return {
        "peer_per_second": theirs,
        "peer_p50_ms": best["p50_ms"],
        "peer_p99_ms": best["p99_ms"],
        "peer_p99_at_per_second": best["offered_per_second"],
        "peer_runs": [f"{each['offered_per_second']} offered, {each['completed_per_second']} answered, p99"
                      f" {each['p99_ms']} ms, CPU ms {each['cpu_ms_per_reply']}" for each in runs],
        "ours_per_second": ours["completed_per_second"],
        "ours_p50_ms": steady["p50_ms"],
        "ours_p99_ms": steady["p99_ms"],
        "ours_p99_at_per_second": steady["offered_per_second"],
        "ours_cpu_us_per_reply": ours["cpu_us_per_reply"],
        "ratio": round(ratio, 1),
        "ratio_of_processor_time": round(1000 * _without_phones(best) / _without_phones(ours), 1),
        "bar": BAR,
        "machine": ours["machine"],
        "broken": broken,
    }  # fmt: skip


def _without_phones(one: dict[str, Any]) -> float:
    """Processor time of a reply, in ms of the peer's and in µs of ours."""
    used = one.get("cpu_ms_per_reply") or one["cpu_us_per_reply"]
    return sum(value for name, value in used.items() if name not in ("phones", "all"))


def _peer(it: wave.World, options: Options) -> dict[str, Any]:
    """One run of the peer, from its start to its end."""
    with psycopg.connect(it.dsn, autocommit=True) as conn:
        conn.execute("checkpoint")
    with wave._crowd(options) as (crowd, port), _stack(it.folder, port) as pids:
        pids |= {"phones": crowd.pid, "database": it.server.status().pid}
        used = {name: Tree(pid).seconds() for name, pid in pids.items()}
        wave._say(crowd)
        seen = json.loads(wave._line(crowd))
        used = {name: Tree(pid).seconds() - used[name] for name, pid in pids.items()}
        wave._say(crowd)
    replies = max(1, seen["replies"])
    lost = seen["texts"] - seen["replies"]
    sample = seen["sample"]
    good = int(_in_a_process_of_its_own("check", json.dumps(sample))) if sample else 0
    broken = [] if good == len(sample) else [f"{len(sample) - good} of the peer's passwords are not stored"]
    followed = seen["replies_in_time"] >= _FOLLOWS * seen["texts"]
    if followed and lost > 0:
        broken.append(f"the peer lost {lost} texts")
    milliseconds = [round(1000 * wait) for wait in seen["waits"]] or [0] * 4
    return {
        "offered_per_second": round(seen["texts"] / seen["seconds"], 1),
        "completed_per_second": round(seen["replies_in_time"] / seen["seconds"], 1),
        "p50_ms": milliseconds[0],
        "p99_ms": milliseconds[2],
        "cpu_ms_per_reply": {name: round(1000 * value / replies, 1) for name, value in used.items()},
        "broken": broken,
    }


@contextlib.contextmanager
def _stack(folder: Path, smsc: int) -> Iterator[dict[str, Any]]:
    """The service and both boxes of Kannel, bound to the SMSC; their process ids."""
    admin, boxes, sendsms, service = (processes.free_port("127.0.0.1", 0) for _ in range(4))
    configuration = folder / "kannel.conf"
    configuration.write_text(
        _KANNEL.format(admin=admin, boxes=boxes, sendsms=sendsms, service=service, smsc=smsc)
    )
    commands = {
        "service": (service, [*_SERVICE, "serve", str(service)]),
        "bearerbox": (boxes, [shutil.which("bearerbox", path=_PATH), "-v", "2", str(configuration)]),
        "smsbox": (sendsms, [shutil.which("smsbox", path=_PATH), "-v", "2", str(configuration)]),
    }
    started: dict[str, subprocess.Popen[bytes]] = {}
    with (folder / "peer.log").open("ab") as log:
        try:
            for name, (port, command) in commands.items():
                started[name] = subprocess.Popen(
                    command, cwd=Path(__file__).parent.parent, stdout=log, stderr=log, start_new_session=True
                )
                if not processes.wait_for_port("127.0.0.1", port, 30):
                    raise SystemExit(f"{name} does not come up; see {log.name}")
            time.sleep(2)  # bearerbox has bound by then
            yield {name: process.pid for name, process in started.items()}
        finally:
            for process in reversed(started.values()):
                process.terminate()
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _in_a_process_of_its_own(*what: str) -> str:
    """`prepare`, or `check` with passwords as JSON: there is one Django with settings in a process, and here ours."""
    folder = Path(__file__).parent.parent
    return subprocess.run(
        [*_SERVICE, *what], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
