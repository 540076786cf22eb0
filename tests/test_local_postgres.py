"""The launcher of the embedded PostgreSQL, with real servers, real kills and several processes."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from caplai.local_postgres import LocalPostgres, LocalPostgresError, find_binaries

PHONE = "0912345678"
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
WHERE_CAPLAI_IS = str(Path(__file__).parents[1])
debian_15 = pytest.mark.skipif(not DEBIAN_15.exists(), reason="needs Debian's postgresql-15")

# A command of ours: joins or starts, says so, leaves when its stdin closes, says whether the server ended.
COMMAND = """
import sys
from pathlib import Path
from caplai.local_postgres import LocalPostgres
server = LocalPostgres(Path(sys.argv[1]), fast=True)
running = server.ensure_running(adopt=sys.argv[2] == "adopt")
print(running.started_by_us, running.pid, running.dsn, flush=True)
sys.stdin.read()
print(server.stop(), flush=True)
"""


class Command:
    """A process of its own that uses the server of `folder`."""

    def __init__(self, folder: Path, adopt: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(folder), adopt],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=WHERE_CAPLAI_IS,
        )

    def joined(self) -> tuple[bool, int, str]:
        assert self.process.stdout
        started, pid, dsn = self.process.stdout.readline().split()
        return started == "True", int(pid), dsn

    def leave(self) -> bool:
        said, _ = self.process.communicate()
        return said.strip() == "True"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def kill_and_wait(pid: int, sent: signal.Signals = signal.SIGKILL) -> None:
    handle = os.pidfd_open(pid)
    signal.pidfd_send_signal(handle, sent)
    assert select.select([handle], [], [], 20)[0], "it did not end"
    os.close(handle)


def end(folder: Path) -> None:
    pid = LocalPostgres(folder).status().pid
    if pid is not None:
        kill_and_wait(pid, signal.SIGQUIT)


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "pg"
    end(tmp_path / "pg")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised folder, to be copied: quicker than initdb."""
    folder = tmp_path_factory.mktemp("template") / "pg"
    server = LocalPostgres(folder, fast=True)
    server.ensure_running()
    assert server.stop()
    return folder


@pytest.fixture
def folder(template: Path, empty: Path) -> Path:
    subprocess.run(["cp", "-a", "--reflink=auto", str(template), str(empty)], check=True)
    return empty


def value(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
        return row[0] if row else None


@pytest.mark.parametrize(
    "pg_bin",
    [
        pytest.param(None, id="wheel"),
        pytest.param(str(DEBIAN_15), id="debian15", marks=[debian_15, pytest.mark.peer]),
    ],
)
def test_an_empty_folder_becomes_a_server_and_rests_again(empty: Path, pg_bin: str | None) -> None:
    server = LocalPostgres(empty, pg_bin=pg_bin)
    running = server.ensure_running()
    assert running.started_by_us
    assert server.status().pid == running.pid
    assert server.status().ready
    assert conninfo_to_dict(running.dsn) == {
        "user": "caplai",
        "dbname": "caplai",
        "host": str(empty),
        "port": "5432",
    }
    with psycopg.connect(running.dsn) as connection:
        names = ("fsync", "data_checksums", "server_encoding", "timezone", "listen_addresses", "jit")
        shown = [connection.execute("SELECT current_setting(%s)", [name]).fetchone() for name in names]
        major = connection.info.server_version // 10000
    assert shown == [("on",), ("on",), ("UTF8",), ("UTC",), ("",), ("off",)]
    assert server.status().version == major == (15 if pg_bin else 18)
    assert empty.stat().st_mode & 0o777 == 0o700
    assert os.getsid(running.pid) == running.pid, "Ctrl-C in our terminal would reach it"
    assert server.stop()
    assert server.status().pid is None
    assert not server.stop(), "it is left only once"


def test_a_second_command_joins_and_leaves_it_running(folder: Path) -> None:
    server = LocalPostgres(folder, fast=True)
    pid = server.ensure_running().pid
    beside = Command(folder)
    started, joined, dsn = beside.joined()
    assert (started, joined) == (False, pid)
    assert not beside.leave()
    assert value(dsn, "SELECT 1") == 1
    assert server.stop()


def test_when_the_starter_leaves_first_the_last_one_stops_it(folder: Path) -> None:
    starter = Command(folder)
    starter.joined()
    server = LocalPostgres(folder, fast=True)
    running = server.ensure_running()
    assert not running.started_by_us
    assert not starter.leave(), "somebody else uses it"
    assert value(running.dsn, "SELECT 1") == 1
    assert server.stop()
    assert server.status().pid is None


def test_a_killed_starter_leaves_a_server_that_others_join_and_one_adopts(folder: Path) -> None:
    starter = Command(folder, "adopt")
    _, pid, dsn = starter.joined()
    starter.kill()
    assert value(dsn, "SELECT 1") == 1

    doctor = LocalPostgres(folder)
    assert doctor.ensure_running().pid == pid
    assert not doctor.stop(), "it neither started nor adopted it"
    assert value(dsn, "SELECT 1") == 1

    up = LocalPostgres(folder, fast=True)
    running = up.ensure_running(adopt=True)
    assert (running.started_by_us, running.pid) == (False, pid)
    assert up.stop()
    assert up.status().pid is None


def test_a_killed_server_recovers_with_what_was_committed(folder: Path) -> None:
    server = LocalPostgres(folder)  # with fsync: what is committed is promised
    running = server.ensure_running()
    with psycopg.connect(running.dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
    # A backend that is busy does not notice that its postmaster is gone, and holds the shared memory.
    busy = psycopg.connect(running.dsn, autocommit=True)
    busy.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b")
    kill_and_wait(running.pid)
    again = server.ensure_running()
    busy.close()
    assert again.started_by_us
    assert again.pid != running.pid
    assert value(again.dsn, "SELECT sum(n) FROM kept") == 500500
    assert server.stop()


def test_a_stale_pid_that_is_now_another_programs_is_no_obstacle(folder: Path) -> None:
    server = LocalPostgres(folder, fast=True)
    kill_and_wait(server.ensure_running().pid)
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        for name in ("pgdata/postmaster.pid", ".s.PGSQL.5432.lock"):
            _, rest = (folder / name).read_text().split("\n", 1)
            (folder / name).write_text(f"{stranger.pid}\n{rest}")
        assert server.status().pid is None
        assert server.ensure_running().started_by_us
        assert stranger.poll() is None, "it was none of ours to end"
    finally:
        stranger.kill()
        stranger.wait()
    assert server.stop()


@pytest.mark.slow
def test_two_commands_at_the_same_moment_initialise_and_start_once(empty: Path) -> None:
    both = [Command(empty), Command(empty)]
    joined = [command.joined() for command in both]
    assert sorted(started for started, _, _ in joined) == [False, True]
    assert len({pid for _, pid, _ in joined}) == 1
    assert (empty / "postgres.log").read_text().count("starting PostgreSQL") == 1
    assert sorted(command.leave() for command in both) == [False, True]


def test_a_killed_initdb_is_begun_again(empty: Path) -> None:
    command = Command(empty)
    while not (empty / "pgdata.new").exists():  # no event tells of it
        assert command.process.poll() is None
        time.sleep(0.002)
    command.kill()
    assert not (empty / "pgdata").exists(), "the kill came too late to prove anything"
    server = LocalPostgres(empty, fast=True)
    assert server.ensure_running().started_by_us
    assert not (empty / "pgdata.new").exists()
    assert server.stop()


def test_a_long_path_has_its_socket_in_a_private_directory(template: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("d" * 60) / "pg"
    deep.parent.mkdir(parents=True)
    subprocess.run(["cp", "-a", "--reflink=auto", str(template), str(deep)], check=True)
    server = LocalPostgres(deep, fast=True)
    try:
        running = server.ensure_running()
        place = Path(str(conninfo_to_dict(running.dsn)["host"]))
        assert place.parent == Path(tempfile.gettempdir())
        assert place.stat().st_mode & 0o777 == 0o700
        assert value(running.dsn, "SELECT 1") == 1
        beside = Command(deep)
        assert beside.joined() == (False, running.pid, running.dsn)
        beside.leave()
        assert server.stop()
        assert not place.exists()

        place.symlink_to(tmp_path)  # somebody was there first
        try:
            with pytest.raises(LocalPostgresError, match="somebody else's"):
                server.ensure_running()
        finally:
            place.unlink()
        if os.geteuid() == 0:
            place.mkdir(mode=0o700)
            os.chown(place, 65534, 65534)
            try:
                with pytest.raises(LocalPostgresError, match="somebody else's"):
                    server.ensure_running()
            finally:
                place.rmdir()
    finally:
        end(deep)


def test_the_log_tells_nothing_of_what_statements_said(folder: Path) -> None:
    server = LocalPostgres(folder, fast=True)
    running = server.ensure_running()
    with psycopg.connect(running.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE account (phone text PRIMARY KEY)")
        connection.execute("INSERT INTO account VALUES (%s)", [PHONE])
        with pytest.raises(psycopg.errors.UniqueViolation, match=PHONE):  # the client is told, the log is not
            connection.execute("INSERT INTO account VALUES (%s)", [PHONE])
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            connection.execute("SELECT %s::text::boolean", [PHONE])
        with pytest.raises(psycopg.errors.SyntaxError):
            connection.execute(f"SELEC '{PHONE}'")
    # The server's word on a backend that crashed names the statement it was at.
    victim = psycopg.connect(running.dsn, autocommit=True)
    victim.pgconn.send_query(f"SELECT '{PHONE}', pg_sleep(60)".encode())
    other = psycopg.connect(running.dsn, autocommit=True)
    at_it = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
    while other.execute(at_it, [victim.info.backend_pid]).fetchone() is None:
        pass
    os.kill(victim.info.backend_pid, signal.SIGKILL)
    assert select.select([other.pgconn.socket], [], [], 20)[0], "the server ends all others, and restarts"
    for connection in (victim, other):
        connection.close()
    assert value(server.ensure_running().dsn, "SELECT count(*) FROM account") == 1, "it restarted by itself"
    assert server.stop()
    log = (folder / "postgres.log").read_text()
    assert "was terminated by signal 9" in log
    assert PHONE not in log


def test_a_server_that_cannot_start_says_why_and_blocks_nothing(folder: Path) -> None:
    with pytest.raises(LocalPostgresError, match='invalid value for parameter "shared_buffers"'):
        LocalPostgres(folder, settings={"shared_buffers": "plenty"}).ensure_running()
    server = LocalPostgres(
        folder, fast=True, settings={"shared_buffers": "32MB", "cluster_name": "it's \\ ours"}
    )
    dsn = server.ensure_running().dsn
    assert value(dsn, "SHOW shared_buffers") == "32MB"
    assert value(dsn, "SHOW cluster_name") == "it's \\ ours"
    assert server.stop()


def test_a_folder_of_another_version_is_served_by_it_or_refused_with_advice(folder: Path) -> None:
    (folder / "pgdata" / "PG_VERSION").write_text("14\n")
    with pytest.raises(LocalPostgresError, match=r"made by PostgreSQL 14.*apt install postgresql-14"):
        LocalPostgres(folder).ensure_running()


def test_a_folder_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pgdata").mkdir()
    with pytest.raises(LocalPostgresError, match="no PostgreSQL data folder"):
        LocalPostgres(tmp_path).ensure_running()


@debian_15
@pytest.mark.peer
def test_debians_binaries_serve_debians_folder() -> None:
    assert find_binaries(None).version == 18
    assert find_binaries(None, data_version=15).bin_dir == DEBIAN_15
    assert find_binaries(str(DEBIAN_15)).version == 15


def test_a_wrong_caplai_pg_bin_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalPostgresError, match=f"CAPLAI_PG_BIN={tmp_path}"):
        find_binaries(str(tmp_path))


def test_a_full_disk_is_called_one(tmp_path: Path) -> None:
    """On a file system of 8 MB, in a mount namespace of our own."""
    inside = 'mount -t tmpfs -o size=8m none "$1" && exec "$2" -c "$3" "$1/pg" ""'
    names = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*names, "true"], check=False).returncode != 0:
        pytest.skip("the host forbids namespaces")
    done = subprocess.run(
        [*names, "sh", "-c", inside, "sh", str(tmp_path), sys.executable, COMMAND],
        capture_output=True,
        text=True,
        cwd=WHERE_CAPLAI_IS,
        check=False,
    )
    assert "is full: free some space" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
class TestWithoutNamespaces:
    """As root where `unshare` fails: as an existing unprivileged user, if the folder can be reached."""

    @pytest.fixture(autouse=True)
    def no_namespaces(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        refusing = tmp_path / "refusing" / "unshare"
        refusing.parent.mkdir()
        refusing.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2; exit 1\n")
        refusing.chmod(0o755)
        monkeypatch.setenv("PATH", str(refusing.parent), prepend=os.pathsep)

    def test_another_user_serves_a_folder_it_can_reach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        above = Path(tempfile.mkdtemp(prefix="caplai-test-"))
        above.chmod(0o755)
        server = LocalPostgres(above / "pg", fast=True)
        try:
            running = server.ensure_running()
            assert Path(f"/proc/{running.pid}").stat().st_uid != 0
            assert value(running.dsn, "SELECT current_user") == "caplai"
            assert server.stop()
            monkeypatch.undo()  # and when namespaces are allowed again
            running = server.ensure_running()
            assert Path(f"/proc/{running.pid}").stat().st_uid == 0
            assert value(running.dsn, "SELECT current_user") == "caplai"
            assert server.stop()
        finally:
            end(above / "pg")
            shutil.rmtree(above)

    def test_a_folder_it_cannot_reach_is_said(self, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        with pytest.raises(
            LocalPostgresError, match=r"Operation not permitted.*cannot reach.*CAPLAI_DATA_DIR"
        ):
            LocalPostgres(closed / "pg").ensure_running()
