"""Being stopped, and keeping children and the embedded database alive: real signals, real processes."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest
from django.core.management import call_command

from caplai import processes
from caplai.local_postgres import LocalPostgres, LocalPostgresError, Status
from caplai.processes import ChildFailed, Children, Database, Stopped, stoppable, trouble
from caplai.store.db import connect
from tests.ports import free_port


def until(condition, seconds=20.0):
    """What the condition said once it said something; fails if it never does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def lives(pid):
    """Whether it runs: a zombie, whoever has to reap it, does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextlib.contextmanager
def in_a_thread(function):
    """Runs it beside what is inside."""
    thread = threading.Thread(target=function)
    thread.start()
    yield
    thread.join()


# --- being stopped ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_no_error_that_somebody_could_swallow(number, status):
    before = signal.getsignal(number)

    def go_on_whatever_happens():  # as logging does, and many a loop
        with contextlib.suppress(Exception):
            signal.raise_signal(number)

    with stoppable(), pytest.raises(Stopped) as stopped:
        go_on_whatever_happens()
    assert stopped.value.status == status
    assert isinstance(stopped.value, KeyboardInterrupt)  # what psycopg gives way to
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_is_heard_and_a_third_is_the_kernels():
    with stoppable():
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # a supervisor is patient, and must not make us less so
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_ctrl_c_cancels_the_query_that_is_waited_for(conn):
    def press():
        with psycopg.connect(conn.info.dsn, autocommit=True) as other:
            sleeping = "select 1 from pg_stat_activity where wait_event = 'PgSleep' and pid = %s"
            until(lambda: other.execute(sleeping, [conn.info.backend_pid]).fetchone())
        os.kill(os.getpid(), signal.SIGINT)

    with stoppable(), in_a_thread(press), pytest.raises(Stopped):
        conn.execute("select pg_sleep(60)")
    assert conn.execute("select 'at once'").fetchone() == ("at once",)


# --- children --------------------------------------------------------------------------------------


@pytest.fixture
def children(tmp_path):
    """Children whose program is `sh -c`, so that a test says in a line what a child does."""
    children = Children(program=("/bin/sh", "-c"))
    yield children
    children.stop(5)


def test_a_child_that_cannot_start_is_a_failure(children):
    children.start("exit 2")
    with pytest.raises(ChildFailed, match="did not start"):
        until(children.tend)


def test_a_child_whose_port_never_opens_is_a_failure(children):
    children.start("sleep 60")
    with pytest.raises(ChildFailed, match="nothing listens"):
        children.wait_for_port("127.0.0.1", free_port(), 0.2)


def test_a_child_that_cannot_start_is_not_waited_for(children):
    children.start("exit 2")
    with pytest.raises(ChildFailed, match="did not start"):
        children.wait_for_port("127.0.0.1", free_port(), 60)


@pytest.mark.parametrize("ends", ["kill -9 $$", "exit 0"])
def test_a_child_that_ends_later_is_started_again(children, tmp_path, ends):
    children.start(f"echo >>{tmp_path}/runs; {ends}", environment={"TEST": "it"})

    def ran_twice():
        children.tend()
        return (tmp_path / "runs").exists() and len((tmp_path / "runs").read_text()) >= 2

    until(ran_twice)


def test_nothing_of_a_killed_child_is_left_when_it_starts_again(children, tmp_path):
    """As a web server's worker, which goes on holding the port."""
    worker = "trap '' TERM; while :; do sleep 0.1; done"
    children.start(f"({worker}) & echo $$ $! >>{tmp_path}/pids; wait")
    pids = tmp_path / "pids"
    child, worker = map(int, until(lambda: pids.exists() and pids.read_text().split()))
    os.kill(child, signal.SIGKILL)

    def again():
        children.tend()
        return len(pids.read_text().splitlines()) == 2

    until(again)
    until(lambda: not lives(worker), 5)


def test_a_child_that_does_not_go_is_killed_with_all_that_is_its_own(children, tmp_path):
    deaf = "trap '' TERM; while :; do sleep 0.1; done"
    children.start(f"({deaf}) & echo $$ $! >{tmp_path}/pids; {deaf}")
    pids = tmp_path / "pids"
    pair = [int(pid) for pid in until(lambda: pids.exists() and pids.read_text().split())]
    children.stop(0.1)
    until(lambda: not any(map(lives, pair)), 5)


def test_who_presses_ctrl_c_again_does_not_wait_for_the_children(children, tmp_path):
    children.start(
        f"trap 'echo >{tmp_path}/asked' TERM; echo $$ >{tmp_path}/pid; while :; do sleep 0.1; done"
    )
    pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))

    def press():
        until((tmp_path / "asked").exists)
        os.kill(os.getpid(), signal.SIGINT)

    with stoppable(), in_a_thread(press), pytest.raises(Stopped):
        children.stop(60)
    assert not lives(pid)


def test_children_end_with_us_however_we_end(tmp_path):
    us = f"""
import time
from caplai.processes import Children
Children(program=("/bin/sh", "-c")).start("echo $$ >{tmp_path}/pid; exec sleep 60")
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", us])
    try:
        pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not lives(pid), 5)


# --- the database ----------------------------------------------------------------------------------


def test_a_killed_embedded_server_is_started_again(tmp_path):
    server = LocalPostgres(tmp_path / "postgres", pg_bin=os.environ.get("CAPLAI_PG_BIN"), fast=True)
    first = server.ensure_running()
    try:
        database = Database(first.dsn, server)
        database.tend()
        assert server.status().pid == first.pid
        os.kill(first.pid, signal.SIGKILL)
        until(lambda: server.status().pid is None)
        database.tend()
        with psycopg.connect(database.conninfo) as conn:
            assert conn.execute("select 1").fetchone() == (1,)
    finally:
        server.stop()


def test_a_server_that_cannot_start_now_is_tried_again_later_and_said_once(caplog, monkeypatch):
    class OnAFullDisk:
        room = False
        running = None

        def status(self):
            return Status(version=18, pid=self.running, ready=True, log=Path("postgres.log"))

        def ensure_running(self):
            if not self.room:
                raise LocalPostgresError("The disk is full.")
            self.running = 4711

    server, now = OnAFullDisk(), time.monotonic()
    database = Database("", server)
    caplog.set_level("ERROR")
    for second in range(300):
        server.room = second >= 200
        monkeypatch.setattr("caplai.processes.time.monotonic", lambda then=now + second: then)
        database.tend()
    assert server.running
    assert [record.message for record in caplog.records].count("The disk is full.") == 1


@pytest.mark.parametrize(
    "conninfo",
    [
        "postgresql://caplai:sekret@127.0.0.1:{closed}/db",
        "postgresql://caplai:a@sekret@127.0.0.1/db",
        "postgresql://caplai:se@kret/sekret@127.0.0.1/db",
        "postgresql://sekret/a@127.0.0.1/db",
        "host=/sekret dbname=db",
        "host=127.0.0.1 port=sekret",
    ],
)
def test_what_is_told_of_the_database_s_trouble_holds_no_piece_of_its_address(conninfo):
    with pytest.raises(psycopg.OperationalError) as error:
        psycopg.connect(conninfo.format(closed=free_port()), connect_timeout=2)
    said = trouble(error.value)
    assert said
    assert "sekret" not in said and "kret" not in said


def test_only_what_an_operator_can_mend_is_told_as_trouble(conn):
    with pytest.raises(psycopg.Error) as error:
        conn.execute("select 1 / 0")
    assert trouble(error.value) is None
    assert trouble(ValueError("no database")) is None
    conn.execute("set role pg_read_all_stats")
    with pytest.raises(psycopg.Error) as error:
        conn.execute("create table mine ()")
    assert trouble(error.value) == "permission denied for schema public"


# --- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("debuggable", "readable"), [(True, True), (False, False)])
def test_memory_that_holds_keys_is_written_nowhere_and_shown_to_nobody(debuggable, readable):
    """As another process of the same user would have it: a debugger, or the kernel when it dumps a core."""
    program = f"""
import ctypes
from caplai.config import Config
from caplai.processes import keep_memory_private
keep_memory_private(Config(debuggable={debuggable}))
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert bool(int(done.stdout)) is readable


# --- the tables ------------------------------------------------------------------------------------


@pytest.fixture
def old_schema(conn):
    """The database as it was before the migrations that came after the first."""
    call_command("migrate", "store", "0001_initial", verbosity=0)
    yield conn
    conn.rollback()
    call_command("migrate", verbosity=0)


@pytest.fixture
def migrating(monkeypatch):
    """processes.migrate in a thread of its own, with little patience for locks; returns what it raised."""
    monkeypatch.setattr(processes, "LOCK_PATIENCE", 0.3)

    def start(patience):
        def run():
            try:
                processes.migrate(patience=patience)
            except processes.Blocked as blocked:
                said.append(str(blocked))

        said = []
        thread = threading.Thread(target=run)
        thread.start()
        return thread, said

    return start


def insert(conn):
    conn.execute("insert into inbox (link, source, destination, text) values ('x', '1', '8079', 'BH')")


def test_migrations_wait_for_a_lock_by_pieces_and_say_who_holds_it(old_schema, migrating, caplog):
    holder = old_schema
    holder.execute("begin; select from inbox limit 1")
    with connect() as service:
        thread, said = migrating(60)
        until(lambda: "trying again" in caplog.text)
        for _ in range(10):  # the service goes on between the attempts
            service.execute("set lock_timeout = '1s'")
            insert(service)
            time.sleep(0.1)
        until(lambda: "wait for a lock" in caplog.text)
    assert f"process {holder.info.backend_pid} (caplai, idle in transaction, for " in caplog.text
    assert "select" not in caplog.text
    holder.execute("rollback")
    thread.join(30)
    assert said == []
    assert processes.pending_migrations() == []
    assert caplog.text.count("wait for a lock") == 1


def test_migrations_that_cannot_have_a_lock_leave_nothing_half_done(old_schema, migrating):
    before = processes.pending_migrations()
    old_schema.execute("begin; select from inbox limit 1")
    thread, said = migrating(2)
    thread.join(30)
    old_schema.execute("rollback")
    [blocked] = said
    assert blocked.startswith("The migration store.0002_requests_and_processes cannot have a lock")
    assert f"process {old_schema.info.backend_pid} (caplai, " in blocked
    assert processes.pending_migrations() == before
    assert old_schema.execute("select to_regclass('process')").fetchone() == (None,)


def test_a_statement_that_takes_long_under_a_lock_is_stopped(old_schema, migrating, monkeypatch):
    monkeypatch.setattr(processes, "STATEMENT_PATIENCE", 0.3)
    old_schema.execute(
        "create function sleepy() returns event_trigger language plpgsql as 'begin perform pg_sleep(3); end';"
        "create event trigger slow on ddl_command_end when tag in ('ALTER TABLE') execute function sleepy()"
    )
    try:
        thread, said = migrating(30)
        thread.join(30)
    finally:
        old_schema.execute("drop function sleepy cascade")
    assert "took longer than" in said[0]
    assert old_schema.execute("select to_regclass('process')").fetchone() == (None,)


def test_an_index_that_is_built_beside_the_service_may_take_its_time(old_schema, migrating, monkeypatch):
    monkeypatch.setattr(processes, "STATEMENT_PATIENCE", 1.0)
    call_command("migrate", "store", "0002", verbosity=0)
    # Whoever builds one waits for every transaction that is older.
    old_schema.execute("begin isolation level repeatable read; select from account limit 1")
    thread, said = migrating(30)
    with connect() as other:
        building = "select from pg_stat_activity where query ilike 'create%%index concurrently%%' and state = 'active'"
        building += " and clock_timestamp() - query_start > interval '1.3 s'"
        until(lambda: other.execute(building, []).fetchone() is not None)
    assert thread.is_alive()
    old_schema.execute("rollback")
    thread.join(30)
    assert said == []
    assert old_schema.execute(
        "select indisvalid from pg_index where indexrelid = 'inbox_once_per_request'::regclass"
    ).fetchone() == (True,)


def test_an_older_version_runs_on_a_newer_schema(conn):
    conn.execute(
        "insert into django_migrations (app, name, applied) values ('store', '9999_of_a_newer_version', now())"
    )
    try:
        assert processes.pending_migrations() == []
        processes.migrate()
    finally:
        conn.execute("delete from django_migrations where name = '9999_of_a_newer_version'")


def test_what_tends_the_web_servers_worker_carries_nothing_of_the_pages():
    found = subprocess.run(
        [sys.executable, "-c", "import sys, caplai.webserver; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not {"django", "pydantic", "psycopg", "caplai.config"} & set(found.stdout.split())
