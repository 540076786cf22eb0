"""A pytest plugin, loaded before Django's settings: one embedded PostgreSQL for each test process.

CAPLAI_PG_BIN chooses the server's programs (CI runs the suite once with Debian's PostgreSQL 15).
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

from caplai.local_postgres import LocalPostgres, LocalPostgresError

_PREFIX = "caplai-test-"
_PG_BIN = os.environ.get("CAPLAI_PG_BIN")

for _name in [name for name in os.environ if name.startswith("CAPLAI_") and name != "CAPLAI_PG_BIN"]:
    del os.environ[_name]  # a developer's own settings are no part of the tests


def _hold(file: Path) -> IO[str] | None:
    """The lock on a file, which lives as long as the process that holds it; None if another one has it."""
    lock = file.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _clean_up_after_the_killed() -> None:
    """A test process that was killed leaves its server and its folder behind."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if (left / "alive").exists() and (lock := _hold(left / "alive")):
            with lock:
                server = LocalPostgres(left / "postgres", pg_bin=_PG_BIN)
                with contextlib.suppress(LocalPostgresError):  # it was killed while it made its data folder
                    if server.status().pid is not None:
                        server.ensure_running(adopt=True)
                        server.stop()
                shutil.rmtree(left, ignore_errors=True)


_clean_up_after_the_killed()
folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
_lock = _hold(folder / "new")  # held before it has its name, so that nobody finds it free
(folder / "new").rename(folder / "alive")
_server = LocalPostgres(folder / "postgres", pg_bin=_PG_BIN, fast=True)
os.environ["CAPLAI_DATABASE_URL"] = _server.ensure_running().dsn
os.environ["CAPLAI_DATA_DIR"] = str(folder)
os.environ["CAPLAI_CONFIG"] = str(folder / "caplai.toml")
(folder / "caplai.toml").write_text("")


def pytest_unconfigure() -> None:
    _server.stop()
    shutil.rmtree(folder, ignore_errors=True)
