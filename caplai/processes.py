"""The processes of one host: the embedded database server, migrations, and the children of `up` and `demo`."""

import contextlib
import itertools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import psycopg

from caplai import prctl
from caplai.config import Config
from caplai.local_postgres import LocalPostgres, LocalPostgresError

log = logging.getLogger(__name__)


# --- being stopped ---------------------------------------------------------------------------------


class Stopped(KeyboardInterrupt):
    """Somebody asked us to stop: Ctrl-C or SIGTERM. `status` is the exit status that shells expect of it.

    It is a KeyboardInterrupt because libraries give way to that: psycopg cancels its query for nothing else,
    logging and many a retry swallow what is an Exception.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM raise Stopped inside. A second SIGINT raises it again, so that who is waiting for an
    orderly end waits no longer; a third is the kernel's and ends us wherever we are. A second SIGTERM changes
    nothing: supervisors send several.
    """
    asked = 0

    def stop(number: int, frame: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGTERM:
            return
        asked += 1
        if asked == 2:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_memory_private(config: Config) -> None:
    """Keep it (prctl.keep_memory_private), unless the configuration has it otherwise."""
    if not config.debuggable:
        prctl.keep_memory_private()


# --- the database ----------------------------------------------------------------------------------


class Database:
    """The database in use: its `conninfo` (may hold a password), and the embedded server behind it, if any."""

    def __init__(self, conninfo: str, server: LocalPostgres | None = None) -> None:
        self.conninfo = conninfo
        self._server = server
        self._pause = 1.0
        self._not_before = 0.0
        self._said = ""

    @property
    def embedded(self) -> bool:
        """Whether it is the embedded server."""
        return self._server is not None

    def tend(self) -> None:
        """Start the embedded server anew if it was killed. Cheap while it lives; never raises for its trouble,
        which may pass (a full disk), but says it and tries again later.
        """
        if self._server is None or time.monotonic() < self._not_before:
            return
        try:
            if self._server.status().pid is None:
                log.error("the embedded database has ended; starting it again")
                self._server.ensure_running()
                log.info("the embedded database is back")
            self._pause, self._said = 1.0, ""
        except LocalPostgresError as error:
            if str(error) != self._said:
                log.error("%s", error)
            self._said = str(error)
            self._not_before = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, 30.0)


@contextlib.contextmanager
def database(config: Config, *, adopt: bool = False) -> Iterator[Database]:
    """The configured database, with the embedded server running where none is configured. Inside, SIGINT and
    SIGTERM raise Stopped: who may have started a server lives to stop it.

    Sets CAPLAI_DATABASE_URL for Django and for child processes. A server that another command started is
    joined and left running; `adopt` takes over one whose command was killed. Raises LocalPostgresError.
    """
    with stoppable():
        if config.database_url is not None:
            yield Database(config.database_url.get_secret_value())
            return
        pg_bin = str(config.pg_bin) if config.pg_bin else None
        server = LocalPostgres(config.data_dir / "postgres", pg_bin=pg_bin)
        try:
            dsn = server.ensure_running(adopt=adopt).dsn
            os.environ["CAPLAI_DATABASE_URL"] = dsn
            yield Database(dsn, server)
        finally:
            server.stop()


def trouble(error: BaseException) -> str | None:
    """Why the database cannot be used, where that is the operator's to mend; None for any other error.

    What the server or libpq put in quotes is left out: of an address that libpq took apart in another way than
    was meant (a password with @ or / in it) it may be a piece of the password.
    """
    from django.db.utils import Error

    cause: BaseException | None = error
    while isinstance(cause, psycopg.Error | Error):  # Django's own has psycopg's behind it
        if isinstance(cause, psycopg.OperationalError | psycopg.errors.InsufficientPrivilege):
            first = str(cause).strip().partition("\n")[0].rstrip(".")
            return re.sub(r"""(["']).*?\1""", "…", first) or type(cause).__name__
        cause = cause.__cause__ or cause.__context__
    return None


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


def restore_is_unfinished() -> bool:
    """Whether a restore into this database has begun and not come to its end. Needs setup_django()."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("select to_regnamespace(%s) is not null", [RESTORE_MARK])
        return cursor.fetchone()[0]


RESTORE_MARK = "caplai_restore"
"""A schema of this name stands in a database while a restore goes on (backup.py)."""


LOCK_PATIENCE = 2.0
"""Seconds that a migration waits for a lock: whoever comes after it to the same table waits as long."""
STATEMENT_PATIENCE = 10.0
"""Seconds that one of its statements may take, with the locks it holds; not one that works beside the service."""
# What takes long, and holds up nobody meanwhile.
_BESIDE = re.compile(r"\bconcurrently\b|\bvalidate constraint\b", re.IGNORECASE)


class Blocked(Exception):
    """The tables could not be brought up to date; the text says why. The next run goes on from there."""


def migrate(*, patience: float = 300.0) -> None:
    """Bring the database's tables up to date, beside a running service (docs/migrations.md).

    One process at a time; others wait for it and find it done. A migration that cannot have a lock is rolled
    back and tried again, with pauses that grow, for `patience` seconds; meanwhile the log says who holds it.
    Needs setup_django(). Raises Blocked.
    """
    from django.db import connection

    try:
        with connection.cursor() as cursor:
            cursor.execute("select pg_try_advisory_lock(%s), pg_backend_pid()", [MIGRATION_LOCK])
            ours, pid = cursor.fetchone()
            if ours and not pending_migrations():
                return
            with _Watch(pid) as watch:
                if not ours:
                    cursor.execute("select pg_advisory_lock(%s)", [MIGRATION_LOCK])
                _migrate(watch, patience)
    finally:
        connection.close()  # and so the lock is free, whatever state an error has left the connection in


MIGRATION_LOCK = 0x6361706C6169
"""The advisory lock of whoever makes or changes the tables ("caplai")."""


def _migrate(watch: "_Watch", patience: float) -> None:
    from django.core.management import call_command
    from django.db import OperationalError, connection

    end, pause = time.monotonic() + patience, 1.0

    def timed(
        execute: Callable[..., object], sql: str, params: object, many: bool, context: object
    ) -> object:
        beside = _BESIDE.search(str(sql)) is not None
        left = max(1.0, end - time.monotonic())
        _set_timeouts(left if beside else LOCK_PATIENCE, 0 if beside else STATEMENT_PATIENCE)
        return execute(sql, params, many, context)

    while names := pending_migrations():
        try:
            with connection.execute_wrapper(timed):
                call_command("migrate", interactive=False, verbosity=0)
        except OperationalError as error:
            left = pending_migrations()
            if left != names:
                pause = 1.0
            if isinstance(error.__cause__, psycopg.errors.QueryCanceled):
                raise Blocked(
                    f"The migration {left[0]} was stopped: one of its statements took longer than"
                    f" {STATEMENT_PATIENCE:.0f} s. What it did is undone, or mended by the next run."
                    " Is the server busy? Run it again later."
                ) from None
            if not isinstance(
                error.__cause__, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected
            ):
                raise
            if time.monotonic() + pause > end:
                raise Blocked(
                    f"The migration {left[0]} cannot have a lock that it needs: {watch.holders or 'unknown holder'}."
                    " What it did is undone, or mended by the next run."
                    " End what holds it (select pg_terminate_backend(PID)), or run it again."
                ) from None
            log.warning("migration %s: no lock; trying again in %.0f s", left[0], pause)
            time.sleep(pause)
            pause = min(pause * 2, 30.0)


def _set_timeouts(lock: float, statement: float) -> None:
    from django.db import connection

    assert connection.connection is not None
    connection.connection.execute(
        "select set_config('lock_timeout', %s, false), set_config('statement_timeout', %s, false)",
        [str(int(lock * 1000)), str(int(statement * 1000))],
    )


class _Watch:
    """Looks, beside a session of ours that may have to wait, at who it waits for, and logs each of them once."""

    def __init__(self, pid: int) -> None:
        self.holders = ""
        """Who was waited for last: process id, application and for how long, never what it runs."""
        self._pid = pid
        self._said: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        from caplai.store.db import connect

        with contextlib.suppress(psycopg.Error), connect(statement_timeout=3.0) as conn:
            while not self._stop.wait(0.2):
                found = conn.execute(
                    "select pid, coalesce(nullif(application_name, ''), 'unnamed'), coalesce(state, 'unknown'),"
                    " extract(epoch from clock_timestamp() - coalesce(xact_start, backend_start))::int"
                    " from pg_stat_activity where pid = any(pg_blocking_pids(%s)) and pid <> pg_backend_pid()"
                    " order by 4 desc",
                    [self._pid],
                ).fetchall()
                if not found:
                    continue
                said = [
                    f"process {pid} ({name}, {state}, for {seconds} s)" for pid, name, state, seconds in found
                ]
                self.holders = "held by " + ", ".join(said)
                if not {row[0] for row in found} <= self._said:
                    self._said |= {row[0] for row in found}
                    log.warning("migrations wait for a lock: %s", self.holders)


# --- ports and children ----------------------------------------------------------------------------


def url(address: str, port: int) -> str:
    """The address of a web server, as a browser takes it."""
    return f"http://{f'[{address}]' if ':' in address else address}:{port}/"


def free_port(address: str, port: int) -> int:
    """`port`, or a free one for 0. Raises OSError when it is taken."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        return probe.getsockname()[1]


def wait_for_port(
    address: str, port: int, seconds: float, meanwhile: Callable[[], None] = lambda: None
) -> bool:
    """Whether something listens there within that time; `meanwhile` is called at each look."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        meanwhile()
        with contextlib.suppress(OSError), socket.create_connection((address, port), 1.0):
            return True
        time.sleep(0.05)  # nothing tells us when another process listens
    return False


class ChildFailed(Exception):
    """A child process did not come up; the text says which. Its own error stands above, on stderr."""


_COMING_UP = 20.0
"""Seconds within which a child that ends with an error status has not come up."""


@dataclass
class _Child:
    name: str
    command: list[str]
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes]
    started_at: float
    status: int | None = None
    runs: int = 1
    pause: float = 1.0


@dataclass
class Children:
    """Child processes of ours: started anew when they end by themselves, ended in the reverse order.

    They have sessions of their own, so that Ctrl-C reaches only us and we end them in order; and the kernel
    ends them when we are killed. Nothing of a child outlives it: what is left of its process group is killed.
    """

    program: tuple[str, ...] = (sys.executable, "-m", "caplai")
    children: list[_Child] = field(default_factory=list)

    def start(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Start `caplai NAME ARGUMENTS…` with these variables over our own."""
        command = [*self.program, name, *arguments]
        values = {**os.environ, **(environment or {})}
        self.children.append(_Child(name, command, values, _spawn(command, values), time.monotonic()))

    def tend(self) -> None:
        """Start those anew that have ended, each with a pause that grows while it keeps on ending.

        Raises ChildFailed for one that ends with an error status (not by a signal) soon after its first start:
        a wrong configuration or a taken port does not get better by trying again.
        """
        for child in self.children:
            lived = time.monotonic() - child.started_at
            if child.status is None:
                if not _has_ended(child.process):
                    continue
                child.status = _bury(child.process)
                if child.runs == 1 and 0 < child.status < 128 and lived < _COMING_UP:
                    raise ChildFailed(f"{child.name} did not start; its error stands above.")
                log.error("%s ended with status %d; starting it again", child.name, child.status)
                if lived > 60:
                    child.pause = 1.0
            if lived < child.pause:
                continue
            child.pause = min(child.pause * 2, 30.0)
            child.process = _spawn(child.command, child.environment)
            child.started_at, child.status, child.runs = time.monotonic(), None, child.runs + 1

    def wait_for_port(self, address: str, port: int, seconds: float) -> None:
        """Tend them until the newest listens there. Raises ChildFailed."""
        if not wait_for_port(address, port, seconds, self.tend):
            name = self.children[-1].name
            raise ChildFailed(f"{name} did not start: nothing listens on {address}:{port}.")

    def stop(self, seconds: float = 15.0) -> None:
        """End them all, the last first, those of one name together. Who does not go within the time is killed, and so
        are all when Stopped is raised here.
        """
        try:
            for name, alike in itertools.groupby(reversed(self.children), key=lambda child: child.name):
                left = [child for child in alike if child.status is None and not _has_ended(child.process)]
                for child in left:
                    child.process.terminate()
                end = time.monotonic() + seconds
                for child in left:
                    _wait(child.process, end - time.monotonic())
                    if not _has_ended(child.process):
                        log.error("%s did not stop within %.0f s; killing it", name, seconds)
        finally:
            for child in reversed(self.children):
                if child.status is None:
                    _bury(child.process)
            self.children.clear()


def _spawn(command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    us = os.getpid()
    return subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: prctl.end_with(us),
    )


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended, without reaping it: until then its number, and its group's, is nobody else's."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # Stopped came between its reaping and our noting it
        return True


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not _has_ended(process) and time.monotonic() < end:
        time.sleep(0.02)  # a wait with a time limit would reap it


def _bury(process: subprocess.Popen[bytes]) -> int:
    """Kill it and what is left of its group, reap it; returns its status."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def tend_until_stopped(children: Children, database: Database) -> None:
    """Keep the children and the embedded database alive until Stopped is raised here."""
    while True:
        database.tend()
        children.tend()
        time.sleep(0.5)  # Stopped interrupts it
