"""The web server's first process: it holds the port and tends the worker, which loads the pages (caplai/wsgi.py).

It imports next to nothing, for it stays all the while. `caplai web` becomes it once the tables have been looked at;
only where it may have to stop an embedded server in the end does it serve as it is.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C within the next moments needs no traceback

import dataclasses
import gc
import json
import logging.config
import os
import sys
from typing import Literal, NoReturn

from granian import Granian
from granian.constants import Interfaces
from granian.log import LogLevels

from caplai import prctl
from caplai.watch import logs

STOP_WITHIN = 10
"""Seconds that the worker has for the requests under way when it is told to stop."""


@dataclasses.dataclass(frozen=True)
class Serving:
    """What this process needs to know of the configuration; the worker reads all of it."""

    address: str
    port: int
    threads: int
    debuggable: bool
    log_form: Literal["auto", "plain", "json"]
    log_level: str
    log_messages: bool


def become(serving: Serving) -> NoReturn:
    """Go on as nothing but this module: what the process has loaded until now is gone."""
    ours = json.dumps(dataclasses.asdict(serving))
    # With the name by which people look for it among the processes.
    words = [sys.executable, "-m", "caplai.webserver", "caplai", "web", ours]
    os.execv(sys.executable, words)  # noqa: S606 - no shell is wanted


def serve(serving: Serving) -> None:
    """Until SIGINT or SIGTERM."""
    if not serving.debuggable:
        prctl.keep_memory_private()
    said = logs.configuration(serving.log_form, serving.log_level, messages=serving.log_messages)
    logging.config.dictConfig(said)
    logs.tell_of_failed_threads()
    os.register_at_fork(after_in_child=_be_stoppable)
    gc.collect()
    gc.freeze()  # a collector would write to what the worker, a fork of us, shares with us, and so it would be copied
    Granian(
        "caplai.wsgi:application",
        address=serving.address,
        port=serving.port,
        interface=Interfaces.WSGI,
        workers=1,
        blocking_threads=serving.threads,
        websockets=False,
        log_level=LogLevels.error,
        log_dictconfig={"loggers": {"_granian": {}}},  # with no handler of its own: by ours
        respawn_failed_workers=True,
        # One that does not heed being told to stop would serve for ever.
        workers_kill_timeout=STOP_WITHIN,
    ).serve()


def _be_stoppable() -> None:
    """In the worker. Until one of granian 2.8 listens for signals, which is when it has loaded the pages, it has our
    handlers, and they would swallow what it is told. And it is told by us alone: of a Ctrl-C that reaches it as well
    as us it would hang.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setpgid(0, 0)


if __name__ == "__main__":
    serve(Serving(**json.loads(sys.argv[-1])))
