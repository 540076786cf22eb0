"""The processes of one host: the embedded database server, migrations, and the children of `up` and `demo`."""

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from caplai.config import Config
from caplai.local_postgres import LocalPostgres

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # prctl(2)


@contextlib.contextmanager
def database(config: Config, *, adopt: bool = False) -> Iterator[str]:
    """The conninfo of the database, with the embedded server running where none is configured.

    Sets CAPLAI_DATABASE_URL for Django and for child processes. A server that another command started is
    joined and left running; `adopt` takes over one whose command was killed.
    """
    if config.database_url is not None:
        yield config.database_url.get_secret_value()
        return
    server = LocalPostgres(config.data_dir / "postgres", pg_bin=str(config.pg_bin) if config.pg_bin else None)
    try:
        dsn = server.ensure_running(adopt=adopt).dsn
        os.environ["CAPLAI_DATABASE_URL"] = dsn
        yield dsn
    finally:
        server.stop()


def setup_django() -> None:
    """Load Django with its settings; the database must be known by now."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "caplai.settings")
    import django

    django.setup()


def pending_migrations() -> list[str]:
    """The migrations that the database lacks. Needs setup_django()."""
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return [f"{migration.app_label}.{migration.name}" for migration, _ in plan]


def migrate() -> None:
    """Bring the database's tables up to date; one process at a time, others wait for it and find it done."""
    from django.core.management import call_command
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("select pg_advisory_lock(%s)", [_MIGRATION_LOCK])
        try:
            if pending_migrations():
                call_command("migrate", interactive=False, verbosity=0)
        finally:
            cursor.execute("select pg_advisory_unlock(%s)", [_MIGRATION_LOCK])
    connection.close()


_MIGRATION_LOCK = 0x6361706C6169  # "caplai"


def free_port(address: str, port: int) -> int:
    """`port`, or a free one for 0. Raises OSError when it is taken."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        return probe.getsockname()[1]


def wait_for_port(address: str, port: int, seconds: float) -> bool:
    """Whether something listens there within that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((address, port), 1.0):
            return True
        time.sleep(0.05)  # nothing tells us when another process listens
    return False


@dataclass
class _Child:
    name: str
    command: list[str]
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes]
    started_at: float
    pause: float = 1.0


@dataclass
class Children:
    """Child processes of ours: started anew when they end by themselves, ended in the reverse order.

    They have sessions of their own, so that Ctrl-C reaches only us and we end them in order; and the kernel
    ends them when we are killed.
    """

    children: list[_Child] = field(default_factory=list)

    def start(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Start `caplai NAME ARGUMENTS…` with these variables over our own."""
        command = [sys.executable, "-m", "caplai", name, *arguments]
        values = {**os.environ, **(environment or {})}
        process = self._spawn(command, values)
        self.children.append(_Child(name, command, values, process, time.monotonic()))

    def tend(self) -> None:
        """Start those anew that have ended, each with a pause that grows while it keeps on ending."""
        for child in self.children:
            code = child.process.poll()
            if code is None:
                continue
            if time.monotonic() - child.started_at > 60:
                child.pause = 1.0
            if time.monotonic() - child.started_at < child.pause:
                continue
            log.error("%s ended with status %d; starting it again", child.name, code)
            child.pause = min(child.pause * 2, 30.0)
            child.process = self._spawn(child.command, child.environment)
            child.started_at = time.monotonic()

    def stop(self, seconds: float = 15.0) -> None:
        """End them all, the last first; who does not go within the time is killed."""
        for child in reversed(self.children):
            if child.process.poll() is None:
                child.process.terminate()
            try:
                child.process.wait(seconds)
            except subprocess.TimeoutExpired:
                log.error("%s did not stop within %.0f s; killing it", child.name, seconds)
                child.process.kill()
                child.process.wait()
        self.children.clear()

    @staticmethod
    def _spawn(command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        libc = ctypes.CDLL(None)
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
        )


class Stopped(Exception):
    """Somebody asked us to stop (Ctrl-C or SIGTERM)."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM raise Stopped inside; further ones while stopping are ignored."""

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tend_until_stopped(children: Children) -> None:
    """Keep the children alive until Stopped is raised here."""
    while True:
        children.tend()
        time.sleep(0.5)  # Stopped interrupts it
