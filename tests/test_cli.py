"""The command line as people use it.

What a command says and returns is tried in this process, on the test's own database. Where processes are the
matter (starting, joining, being stopped, being killed) they are real, and so is the embedded database.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from caplai import processes
from caplai.cli import BUG, main
from caplai.local_postgres import LocalPostgres
from caplai.processes import wait_for_port
from caplai.store.db import conninfo
from caplai.store.keyring import KeyringFile
from tests.ports import free_port

# As libpq reads it, the host is the half of a password that holds an @.
MISREAD = "postgresql://u:a@sekretpw/b@127.0.0.1:1/db"

GOOD = """code,phone,email,state
0123456789,0327 000 686,lan@example.vn,approved
0000000042,0169.700.0686,,approved
1111111111,+84 912 345 678,,pending
"""


# --- in this process -------------------------------------------------------------------------------


@pytest.fixture
def caplai(transactional_db, monkeypatch, tmp_path):
    """Run `caplai WORDS…` here, on the test's database, with a keyring of its own."""
    monkeypatch.setenv("CAPLAI_DATABASE_URL", conninfo())
    monkeypatch.setenv("CAPLAI_KEYRING", str(tmp_path / "keyring.json"))
    KeyringFile(tmp_path / "keyring.json").create()
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])


def test_help_of_every_command_is_worth_reading():
    def check(command, words):
        done = CliRunner().invoke(main, [*words, "--help"])
        assert done.exit_code == 0
        assert len(done.output) > 110, words
        for name, inner in getattr(command, "commands", {}).items():
            check(inner, [*words, name])

    check(main, [])


def test_import_takes_the_good_rows_and_names_the_bad(caplai, conn, tmp_path):
    file = tmp_path / "accounts.csv"
    file.write_text(
        GOOD + "123,0327000687,,approved\n2222222222,12,,approved\n3333333333,0327000688,nobody,approved\n"
        "4444444444,0327000689,,new\n5555555555,0327000690\n0123456789,0327000691,,approved\n",
        "utf-8",
    )
    done = caplai("accounts", "import", file)
    assert done.exit_code == 1
    assert "3 added, 0 changed, 0 unchanged, 6 refused" in done.stdout
    complaints = dict(re.findall(rf"^{re.escape(str(file))}:(\d+): (.+)$", done.stderr, re.MULTILINE))
    assert sorted(complaints, key=int) == ["5", "6", "7", "8", "9", "10"]
    for line, reason in {
        "5": "ten digits",
        "6": "SMS",
        "7": "e-mail",
        "8": "approved, closed, pending",
        "9": "columns",
        "10": "line 2",
    }.items():
        assert reason in complaints[line]
    assert conn.execute("select code, phone, state from account order by code").fetchall() == [
        ("0000000042", "+84397000686", "approved"),
        ("0123456789", "+84327000686", "approved"),
        ("1111111111", "+84912345678", "pending"),
    ]


def test_the_same_file_twice_changes_nothing(caplai, conn, tmp_path):
    file = tmp_path / "accounts.csv"
    file.write_text(GOOD, "utf-8")
    caplai("accounts", "import", file)
    before = conn.execute("select xmin::text, * from account order by code").fetchall()
    done = caplai("accounts", "import", file)
    assert done.exit_code == 0
    assert "0 added, 0 changed, 3 unchanged, 0 refused" in done.stdout
    assert conn.execute("select xmin::text, * from account order by code").fetchall() == before


def test_a_phone_changes_only_when_that_is_wanted_and_ends_the_open_case(caplai, conn, tmp_path):
    file = tmp_path / "accounts.csv"
    file.write_text("code,phone,email,state\n7777777777,0327000700,,approved\n", "utf-8")
    assert caplai("accounts", "import", file).exit_code == 0
    conn.execute(
        "insert into reissue_case (account, id, phone, channel, key, version, length, alphabet, texts, opened_at,"
        " expires_at) values ('7777777777', gen_random_uuid(), '+84327000700', 'sms', 'k', 1, 6, '0123456789', 1,"
        " now(), now() + interval '1 day')"
    )
    file.write_text("code;phone;email;state\n7777777777;0327000701;new@example.vn;approved\n", "utf-8")
    done = caplai("accounts", "import", file)
    assert done.exit_code == 0
    assert "1 changed" in done.stdout
    assert "1 accounts have another phone" in done.stderr
    assert conn.execute("select phone, email from account").fetchall() == [("+84327000700", "new@example.vn")]
    assert conn.execute("select ended_as from reissue_case").fetchall() == [(None,)]
    assert caplai("accounts", "import", "--update-phones", file).exit_code == 0
    assert conn.execute("select phone from account").fetchall() == [("+84327000701",)]
    assert conn.execute("select ended_as from reissue_case").fetchall() == [("account_changed",)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "lacks the column code"),
        ("0123456789,0327000686,,approved\n", "lacks the column code"),
        ("code,phone,state\n", "lacks the column email"),
        ("code,phone,email,state,colour\n", "'colour'"),
    ],
)
def test_a_file_that_is_none_is_wrong_use(caplai, tmp_path, content, says):
    file = tmp_path / "accounts.csv"
    file.write_text(content, "utf-8")
    done = caplai("accounts", "import", file)
    assert done.exit_code == 2
    assert says in done.stderr
    assert caplai("accounts", "import", tmp_path / "none.csv").exit_code == 2


@pytest.mark.slow
def test_generated_accounts_are_imported_without_a_complaint(caplai, conn, tmp_path):
    file = tmp_path / "accounts.csv"
    made = caplai("accounts", "generate", 500, "--seed", 3, "--with-passwords", 0.4)
    assert made.exit_code == 0
    assert made.stdout == caplai("accounts", "generate", 500, "--seed", 3, "--with-passwords", 0.4).stdout
    file.write_text(made.stdout, "utf-8")
    done = caplai("accounts", "import", file)
    assert (done.exit_code, done.stdout) == (0, "500 added, 0 changed, 0 unchanged, 0 refused\n")
    [[passwords]] = conn.execute("select count(*) from taken_over_password").fetchall()
    assert 150 < passwords < 250
    assert caplai("accounts", "generate", 5, "--with-passwords", 2).exit_code == 2


@pytest.mark.slow
def test_an_import_that_is_killed_is_completed_by_the_next(caplai, conn, tmp_path):
    count = 100_000
    file = tmp_path / "accounts.csv"
    file.write_text(caplai("accounts", "generate", count, "--with-passwords", 1).stdout, "utf-8")
    importing = subprocess.Popen([sys.executable, "-m", "caplai", "accounts", "import", file])
    try:
        stored = "select count(*) from account"
        until(lambda: conn.execute(stored).fetchone()[0])
    finally:
        importing.kill()
        importing.wait()
    until(lambda: not conn.execute("select from pg_stat_activity where query ilike '%staged%' and pid <> "
                                   "pg_backend_pid()").fetchall())  # fmt: skip
    [[before]] = conn.execute(stored).fetchall()
    assert 0 < before < count
    of_both = "select count(*) from account a join taken_over_password using (code)"
    open_ones = "select count(*) from account where state <> 'closed'"
    assert conn.execute(of_both).fetchall() == conn.execute(open_ones).fetchall()
    done = caplai("accounts", "import", file)
    assert done.stdout == f"{count - before} added, 0 changed, {before} unchanged, 0 refused\n"
    assert conn.execute(of_both).fetchall() == conn.execute(open_ones).fetchall()
    assert conn.execute("select relname from pg_class where relpersistence = 't'").fetchall() == []


def test_keys_are_listed_by_id_and_rotated(caplai, tmp_path):
    before = caplai("keys", "list").stdout
    [old] = re.findall(r"issuing\s+(\S+)\s+active", before)
    done = caplai("keys", "rotate")
    assert done.exit_code == 0
    key = re.search(r"issuing key (\S+) becomes active at [\d:]{8} or later", done.stdout)[1]
    after = caplai("keys", "list").stdout
    assert re.search(rf"issuing\s+{re.escape(key)}\s+waiting\s+not before 20", after)
    assert re.search(rf"issuing\s+{re.escape(old)}\s+active", after)
    assert len(after.splitlines()) == len(before.splitlines()) + 1
    done = caplai("keys", "rotate", "--now")
    assert done.exit_code == 0
    assert re.search(rf"issuing\s+{re.escape(old)}\s+retired", caplai("keys", "list").stdout)
    assert (tmp_path / "keyring.json").stat().st_mode & 0o777 == 0o600


def test_a_key_is_destroyed_once_nothing_needs_it(caplai, conn, tmp_path):
    def state(key):
        found = re.search(rf"{re.escape(key)}\s+(\w+)", caplai("keys", "list").stdout)
        return found and found[1]

    old = json.loads((tmp_path / "keyring.json").read_text())["issuing"]["active"]
    assert caplai("keys", "destroy", old).exit_code == 1
    assert caplai("keys", "destroy", "--end-cases").exit_code == 2
    caplai("keys", "rotate", "--now")
    conn.execute(
        "insert into reissue_case (account, id, phone, channel, key, version, length, alphabet, texts, opened_at,"
        " expires_at) values ('7777777777', gen_random_uuid(), '+84327000700', 'sms', %s, 1, 6, '0123456789', 1,"
        " now(), now() + interval '1 day')",
        [old],
    )
    done = caplai("keys", "destroy", old)
    assert (done.exit_code, done.stdout) == (1, f"issuing {old} is still needed by 1 open cases.\n")
    assert state(old) == "retired"
    done = caplai("keys", "destroy", old, "--end-cases")
    assert done.exit_code == 0, done.output
    assert conn.execute("select ended_as from reissue_case").fetchone() == ("key_destroyed",)
    assert state(old) is None
    assert old not in (tmp_path / "keyring.json").read_text()


def test_doctor_says_which_host_lacks_which_key(caplai, conn, tmp_path):
    caplai("keys", "rotate", "--now")
    conn.execute("insert into process (name, kind, version, keys) values ('b:1:x', 'web', '1', '{}')")
    said = caplai("doctor").stdout
    assert re.search(
        r"BAD  keys in use: the issuing key \S+ is active, and lacked by b:1:x\n     Bring ", said
    )
    conn.execute("delete from process")
    assert "ok   keys in use: readable here, and by all 0" in caplai("doctor").stdout
    (tmp_path / "keyring.json").unlink()
    KeyringFile(tmp_path / "keyring.json").create()
    assert "BAD  keys in use: this host lacks the issuing key" in caplai("doctor").stdout


def test_the_service_is_closed_and_opened(caplai):
    assert caplai("service", "status").stdout == "open\n"
    assert caplai("service", "close").exit_code == 0
    assert caplai("service", "status").stdout.startswith("closed since ")
    assert caplai("service", "open").exit_code == 0
    assert caplai("service", "status").stdout == "open\n"


def test_doctor_says_what_is_wrong_and_how_to_mend_it(caplai, monkeypatch):
    done = caplai("doctor")
    assert done.exit_code == 1
    assert "BAD  links: none is configured" in done.stdout
    for well in ("configuration", "data folder", "keys", "database", "tables", "inbox"):
        assert f"ok   {well}" in done.stdout
    closed = free_port()
    links = [
        {"name": "viettel", "host": "127.0.0.1", "port": closed},
        {"name": "mobi", "host": f"{'x' * 64}.vn"},  # no label of a name is that long
    ]
    monkeypatch.setenv("CAPLAI_LINKS", json.dumps(links))
    said = caplai("doctor").stdout
    assert f"BAD  link viettel: 127.0.0.1:{closed}: Connection refused" in said
    assert "BAD  link mobi: " in said


def test_messages_that_were_given_up_are_listed_and_doctor_tells_of_them(
    caplai, transactional_db, monkeypatch
):
    assert "ok   replies" in caplai("doctor").stdout
    with psycopg.connect(conninfo(), autocommit=True) as conn:
        conn.execute("insert into wording (id, text) overriding system value values (9999, 'Xin chao')")
        conn.execute(
            "insert into outbox (kind, wording, link, sender, destination, state, status, attempts, settled_at)"
            " values ('issued', 9999, 'viettel', '8079', '84327000686', 'failed', 11, 1, now()),"
            " ('issued', 9999, 'mobi', '8079', '84327000686', 'failed', null, 40, now()),"
            " ('issued', 9999, 'mobi', '8079', '84327000686', 'sent', 0, 1, now()),"
            " ('issued', 9999, 'agg', '8079', '84327000686', 'failed', 100, 1, now())"
        )
    send = {"url": "http://127.0.0.1:1/", "secret": "s" * 32}
    aggregator = {"name": "agg", "format": "json", "secrets": ["k" * 32], "send": send}
    monkeypatch.setenv("CAPLAI_AGGREGATORS", json.dumps([aggregator]))
    lines = caplai("message", "--failed").stdout.splitlines()
    assert [re.split(r"  +", line)[-4:] for line in lines] == [
        ["agg", "0327xxx686", "issued", "failed (HTTP 100)"],
        ["mobi", "0327xxx686", "issued", "failed (no answer)"],
        ["viettel", "0327xxx686", "issued", "failed (ESME_RINVDSTADR)"],
    ]
    assert "84327000686" not in "".join(lines)
    assert re.search(r"BAD  replies: .*viettel ESME_RINVDSTADR 1", said := caplai("doctor").stdout)
    assert "agg HTTP 100 1" in said


def test_wrong_configuration_is_wrong_use(caplai, monkeypatch):
    monkeypatch.setenv("CAPLAI_COLOUR", "red")
    done = caplai("keys", "list")
    assert done.exit_code == 2
    assert "CAPLAI_COLOUR" in done.stderr


@pytest.mark.parametrize(
    ("command", "url"),
    [
        ("migrate", "postgres//u:sekretpw@h/db"),
        ("doctor", "postgres//u:sekretpw@h/db"),
        ("demo", "postgres//u:sekretpw@h/db"),
        ("doctor", MISREAD),
    ],
)
def test_no_command_shows_the_password_of_the_database(caplai, monkeypatch, command, url):
    monkeypatch.setenv("CAPLAI_DATABASE_URL", url)
    done = caplai(command)
    assert done.exit_code in (1, 2)
    assert "sekretpw" not in done.output
    assert "Where it happened" not in done.stderr


def test_a_bug_is_told_by_its_place_and_without_its_text(caplai, monkeypatch):
    phone = "+84" + "327000686"

    def broken(*arguments, **options):
        raise ValueError(phone)

    monkeypatch.setattr("caplai.service.keys.rotate", broken)
    done = caplai("keys", "rotate")
    assert done.exit_code == BUG
    assert "builtins.ValueError" in done.stderr and "in broken" in done.stderr
    assert "327000686" not in done.output


def test_a_folder_that_is_a_file_is_a_sentence(caplai, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CAPLAI_DATA_DIR", str(tmp_path / "file"))
    done = caplai("demo")
    assert done.exit_code == 1
    assert f"Error: {tmp_path}/file" in done.stderr


def test_an_address_that_is_not_ours_is_a_sentence(caplai, monkeypatch):
    monkeypatch.setenv("CAPLAI_ADDRESS", "192.0.2.1")  # TEST-NET-1 (RFC 5737)
    for command, status in {"demo": 2, "up": 1, "web": 1}.items():
        done = caplai(command)
        assert done.exit_code == status
        assert "Cannot listen on 192.0.2.1" in done.stderr


# --- real processes --------------------------------------------------------------------------------


class House:
    """A data folder, and the commands run on it; `settings` are environment variables over ours."""

    def __init__(self, folder: Path, **settings: str):
        self.folder = folder
        self.port = free_port()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")}
        self.environment = {**inherited, "CAPLAI_DATA_DIR": str(folder), "CAPLAI_PORT": str(self.port)}
        self.environment["CAPLAI_DEBUGGABLE"] = "1"  # processes() reads their environments, also as no root
        if "CAPLAI_PG_BIN" in os.environ:
            self.environment["CAPLAI_PG_BIN"] = os.environ["CAPLAI_PG_BIN"]
        self.environment |= settings

    def start(self, *arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "caplai", *arguments],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @contextlib.contextmanager
    def running(self, *arguments):
        """A started command, which does not outlive the test that fails."""
        process = self.start(*arguments)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=30)

    def run(self, *arguments):
        command = [sys.executable, "-m", "caplai", *arguments]
        return subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=60
        )

    def psql(self, query):
        server = LocalPostgres(self.folder / "postgres", pg_bin=self.environment.get("CAPLAI_PG_BIN"))
        try:
            with psycopg.connect(server.ensure_running().dsn) as conn:
                return conn.execute(query).fetchall()
        finally:
            server.stop()

    def server(self):
        """The pid of the embedded server, once it is ready."""
        status = LocalPostgres(self.folder / "postgres").status()
        return status.pid if status.ready else None

    def processes(self):
        """The processes that name this folder (its server's, and those of caplai): pid → command."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if str(self.folder).encode() in command + (entry / "environ").read_bytes():
                    found[int(entry.name)] = command.decode().replace("\0", " ").strip()
        found.pop(os.getpid(), None)
        return found

    def child(self, command, parent):
        """The pid of the child of that process that runs `caplai COMMAND`."""
        for pid, words in self.processes().items():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                if f"caplai {command}" in words and int(status[1]) == parent and status[0] != "Z":
                    return pid
        return None

    def page(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/login/", timeout=10) as response:
            return response.read().decode()


def until(condition, seconds=30.0):
    """What the condition said once it said something; fails if it never does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come to that")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A house whose first command, which started the server, got SIGTERM; (house, command, what it said)."""
    house = House(tmp_path_factory.mktemp("house"))
    with house.running("migrate") as migrate:
        until(house.server)
        migrate.terminate()
        said, _ = migrate.communicate(timeout=30)
    left = house.processes()
    return house, migrate.returncode, said, left


@pytest.fixture(scope="module")
def house(stopped):
    """That house with a running `caplai up` without links."""
    house = stopped[0]
    up = house.start("up")
    house.up = up.pid
    try:
        assert wait_for_port("127.0.0.1", house.port, 60), up.communicate(timeout=5)[0]
        yield house
    finally:
        up.send_signal(signal.SIGTERM)
        said, _ = up.communicate(timeout=30)
    assert up.returncode == 0, said
    assert "caplai is up" in said
    assert "Traceback" not in said
    assert house.processes() == {}


@pytest.fixture
def empty_database():
    """The URL of a database that is empty, on the tests' own server."""
    name = f"empty_{os.getpid()}"
    server = os.environ["CAPLAI_DATABASE_URL"]
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(f"create database {name}")
        yield server.replace("/caplai?", f"/{name}?")
        conn.execute(f"drop database {name} with (force)")


def test_a_stopped_command_stops_the_server_that_it_started(stopped):
    _, status, said, left = stopped
    assert status == 143, said
    assert said == ""
    assert left == {}


def test_the_pages_are_served(house):
    assert "Đăng nhập" in house.page()


def test_a_command_beside_a_running_up_joins_its_database_and_leaves_it_running(house):
    server = house.server()
    assert house.run("service", "close").returncode == 0
    assert house.server() == server
    assert house.psql("select value from switch where name = 'service'") == [({"open": False},)]
    assert "Đăng nhập" in house.page()


def test_a_taken_port_is_said_at_once(house):
    done = house.run("up")
    assert done.returncode == 1
    assert "CAPLAI_PORT" in done.stderr


def test_the_demo_keeps_off_a_data_folder_that_is_in_use_for_more(house, tmp_path):
    (tmp_path / "demo").symlink_to(house.folder)
    done = House(tmp_path).run("demo", "--script")
    assert done.returncode == 2
    assert "holds something else" in done.stderr
    assert "CAPLAI_DATA_DIR" in done.stderr and "CAPLAI_DATABASE_URL" not in done.stderr
    assert house.psql("select count(*) from account") == [(0,)]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["web", "engine", "database"])
def test_what_is_killed_under_a_running_up_is_started_again(house, part):
    def find():
        return house.server() if part == "database" else house.child(part, house.up)

    def works():
        with contextlib.suppress(OSError):  # not yet, or the answer was cut off
            return "Đăng nhập" in house.page()

    killed = until(find)
    of_it = {pid for pid, command in house.processes().items() if f"caplai {part}" in command}
    os.kill(killed, signal.SIGKILL)
    assert until(lambda: (found := find()) and found != killed)
    assert until(lambda: not of_it & house.processes().keys())
    assert until(works)
    assert house.run("service", "open").returncode == 0


@pytest.mark.slow
def test_a_web_server_that_is_killed_takes_its_worker_with_it(caplai, tmp_path):
    house = House(tmp_path, CAPLAI_DATABASE_URL=conninfo())
    with house.running("web") as web:
        until(lambda: house.child("web", web.pid) and wait_for_port("127.0.0.1", house.port, 0.1))
        assert house.page()
        web.kill()
        web.wait()
        until(lambda: not house.processes())
        assert processes.free_port("127.0.0.1", house.port) == house.port


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_the_web_server_and_not_its_worker(caplai, tmp_path):
    """Of being told twice the worker would hang now and then; it is told by the server, and stops at once."""
    house = House(tmp_path, CAPLAI_DATABASE_URL=conninfo())
    with house.running("web") as web:
        until(lambda: wait_for_port("127.0.0.1", house.port, 0.1))
        worker = until(lambda: house.child("web", web.pid))
        assert house.page()
        assert os.getpgid(worker) == worker
        web.send_signal(signal.SIGINT)
        web.communicate(timeout=9)  # one that hung would be killed after ten
    assert web.returncode == 0
    assert not house.processes()


@pytest.mark.slow
def test_up_ends_when_a_part_of_it_cannot_start(empty_database, tmp_path):
    # Read by Python before anything of ours: the engine ends with an error of its own.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'engine' in sys.orig_argv:\n"
        "    os.write(2, b'no engine today\\n')\n"
        "    os._exit(2)\n"
    )
    house = House(tmp_path, CAPLAI_DATABASE_URL=empty_database, PYTHONPATH=str(tmp_path))
    done = house.run("up")
    assert done.returncode == 1
    assert "no engine today" in done.stderr
    assert "engine did not start" in done.stderr
    assert house.processes() == {}


def _is_free(port):
    with contextlib.suppress(OSError):
        return processes.free_port("127.0.0.1", port) == port
    return False


@pytest.mark.slow
def test_up_runs_as_many_engines_as_the_machine_is_to_give(empty_database, tmp_path):
    port = next(port for port in range(20_000, 30_000, 100) if _is_free(port) and _is_free(port + 10))
    settings = {"CAPLAI_ENGINES": "2", "CAPLAI_WATCH__ENGINE_PORT": str(port), "CAPLAI_WATCH__WEB_PORT": "0"}
    house = House(tmp_path, CAPLAI_DATABASE_URL=empty_database, **settings)
    with house.running("up") as up:
        assert wait_for_port("127.0.0.1", house.port, 60)
        for probes in port, port + 10:
            assert wait_for_port("127.0.0.1", probes, 40)
            with urllib.request.urlopen(f"http://127.0.0.1:{probes}/healthz", timeout=10) as answer:
                assert answer.status == 200
        with psycopg.connect(empty_database) as conn:
            engines = "select count(*) from process where kind = 'engine'"
            assert until(lambda: conn.execute(engines).fetchone() == (2,), 40)
        up.send_signal(signal.SIGTERM)
        said, _ = up.communicate(timeout=30)
    assert up.returncode == 0, said
    assert house.processes() == {}


@pytest.mark.slow
def test_a_killed_up_leaves_a_server_that_the_next_one_takes_over(tmp_path):
    house = House(tmp_path)
    with house.running("up") as up:
        assert wait_for_port("127.0.0.1", house.port, 60)
        up.kill()
        up.wait()
    until(lambda: set(house.processes().values()) and not wait_for_port("127.0.0.1", house.port, 0.05))
    with house.running("up") as again:
        assert wait_for_port("127.0.0.1", house.port, 60)
        again.send_signal(signal.SIGINT)
        said, _ = again.communicate(timeout=30)
    assert again.returncode == 0, said
    assert house.processes() == {}


def test_doctor_goes_on_when_the_keys_are_bad(caplai, tmp_path):
    (tmp_path / "keyring.json").write_text("{}")
    done = House(tmp_path, CAPLAI_DATABASE_URL=conninfo(), CAPLAI_KEYRING=str(tmp_path / "keyring.json")).run(
        "doctor"
    )
    assert done.returncode == 1
    assert f"BAD  keys: {tmp_path}/keyring.json is no keyring" in done.stdout
    assert "ok   database" in done.stdout
    assert "BAD  tables: cannot be looked at without keys" in done.stdout
    assert "BAD  links" in done.stdout
    assert done.stderr == ""


# --- the demo --------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["other.somebodys", "switch"])
def test_the_demo_refuses_a_database_that_holds_anything_else(empty_database, tmp_path, table):
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute("create schema other")
        conn.execute(f"create table {table} (id int)")
        done = House(tmp_path, CAPLAI_DATABASE_URL=empty_database).run("demo", "--script")
        assert done.returncode == 2
        assert "holds something else" in done.stderr and "CAPLAI_DATABASE_URL" in done.stderr
        tables = "select tablename from pg_tables where schemaname in ('public', 'other')"
        assert conn.execute(tables).fetchall() == [(table.removeprefix("other."),)]


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("demo", {"CAPLAI_DATABASE_URL": MISREAD}),
        ("demo", {"CAPLAI_PG_BIN": "/nowhere"}),
        ("migrate", {"CAPLAI_DATABASE_URL": MISREAD}),
    ],
)
def test_a_command_without_a_database_says_so(tmp_path, command, settings):
    done = House(tmp_path, **settings).run(command)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "Where it happened" not in done.stderr and "sekretpw" not in done.stderr


# What citizens text is the agency's, in the demo too; replies, keys, addresses and the carrier are its own.
AGENCYS = """
public_url = "https://baohiem.example.vn"
keyring = "/nowhere/keyring.json"
[service]
keyword = "XH"
command = "LAI"
short_codes = ["8179", "8279"]
mt_link = "viettel"
[texts]
issued = "({keyword}) {code} co mat khau moi: {password} (den {until})"
[[links]]
name = "viettel"
host = "smsc.example.vn"
short_codes = ["8179"]
"""


@pytest.mark.slow
def test_a_first_demo_that_was_stopped_halfway_is_finished_by_the_next(empty_database, tmp_path):
    (tmp_path / "caplai.toml").write_text(AGENCYS)
    house = House(tmp_path, CAPLAI_DATABASE_URL=empty_database)
    with psycopg.connect(empty_database, autocommit=True) as conn:
        # The migration waits, in the midst of its tables, for a lock that we hold.
        conn.execute("select pg_advisory_lock(1)")
        conn.execute(
            "create function wait() returns event_trigger language plpgsql as"
            " $$ begin perform pg_advisory_lock(1); end $$;"
            "create event trigger halfway on ddl_command_end when tag in ('CREATE INDEX') execute function wait()"
        )
        waits = (
            "select 1 from pg_stat_activity where wait_event = 'advisory' and datname = current_database()"
        )
        with house.running("demo", "--script") as demo:
            until(lambda: conn.execute(waits).fetchone())
            demo.send_signal(signal.SIGINT)
            said, _ = demo.communicate(timeout=30)
        assert demo.returncode == 130, said
        assert "demo: stopped" in said and "Traceback" not in said
        conn.execute("drop event trigger halfway; drop function wait; select pg_advisory_unlock(1)")

    done = house.run("demo", "--script")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"phone -> 8179   XH LAI \d{10}", done.stdout)
    assert re.search(r"8179 -> phone   Cap lai mat khau thanh cong\.", done.stdout)
    assert "All of it happened." in done.stdout
    assert house.processes() == {}
