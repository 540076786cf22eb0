"""The command line as people use it: real processes, a real embedded database, a running `caplai up`."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from caplai.cli import main
from caplai.processes import free_port, wait_for_port

GOOD = """code,phone,email,state
0123456789,0327 000 686,lan@example.vn,approved
0000000042,0169.700.0686,,approved
1111111111,+84 912 345 678,,pending
"""


class House:
    """A data folder, and the commands run on it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.port = free_port("127.0.0.1", 0)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")}
        self.environment = {**inherited, "CAPLAI_DATA_DIR": str(folder), "CAPLAI_PORT": str(self.port)}
        if "CAPLAI_PG_BIN" in os.environ:
            self.environment["CAPLAI_PG_BIN"] = os.environ["CAPLAI_PG_BIN"]

    def start(self, *arguments):
        command = [sys.executable, "-m", "caplai", *arguments]
        return subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments):
        command = [sys.executable, "-m", "caplai", *arguments]
        return subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=60
        )

    def psql(self, query):
        import psycopg

        from caplai.local_postgres import LocalPostgres

        server = LocalPostgres(self.folder / "postgres", pg_bin=self.environment.get("CAPLAI_PG_BIN"))
        try:
            with psycopg.connect(server.ensure_running().dsn) as conn:
                return conn.execute(query).fetchall()
        finally:
            server.stop()

    def processes(self):
        """The processes that name this folder: its server's, and those of caplai."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(self.folder).encode() in words:
                found.append(int(entry.name))
        return sorted(set(found) - {os.getpid()})


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A running `caplai up` without links."""
    house = House(tmp_path_factory.mktemp("house"))
    up = house.start("up")
    try:
        assert wait_for_port("127.0.0.1", house.port, 60), up.communicate(timeout=5)[0]
        yield house
    finally:
        up.send_signal(signal.SIGTERM)
        said, _ = up.communicate(timeout=30)
    assert up.returncode == 0, said
    assert "caplai is up" in said
    assert house.processes() == []


def test_help_of_every_command_is_worth_reading():
    def check(command, words):
        done = CliRunner().invoke(main, [*words, "--help"])
        assert done.exit_code == 0
        assert len(done.output) > 110, words
        for name, inner in getattr(command, "commands", {}).items():
            check(inner, [*words, name])

    check(main, [])


def test_the_pages_are_served(house):
    with urllib.request.urlopen(f"http://127.0.0.1:{house.port}/login/", timeout=10) as response:
        assert "Đăng nhập" in response.read().decode()


def test_import_takes_the_good_rows_and_names_the_bad(house, tmp_path):
    file = tmp_path / "accounts.csv"
    file.write_text(
        GOOD + "123,0327000687,,approved\n2222222222,12,,approved\n3333333333,0327000688,nobody,approved\n"
        "4444444444,0327000689,,new\n5555555555,0327000690\n0123456789,0327000691,,approved\n",
        "utf-8",
    )
    done = house.run("accounts", "import", str(file))
    assert done.returncode == 1
    assert "3 added, 0 changed, 0 unchanged, 6 refused" in done.stdout
    complaints = [line for line in done.stderr.splitlines() if line.startswith(str(file))]
    assert [line.removeprefix(str(file)).split(":")[1] for line in complaints] == [
        "10",
        "5",
        "6",
        "7",
        "8",
        "9",
    ] or [line.removeprefix(str(file)).split(":")[1] for line in complaints] == [
        "5",
        "6",
        "7",
        "8",
        "9",
        "10",
    ]
    for reason in ("ten digits", "SMS", "e-mail", "approved, closed, pending", "columns", "line 2"):
        assert reason in done.stderr
    assert house.psql("select code, phone, state from account where code < '2' order by code") == [
        ("0000000042", "+84397000686", "approved"),
        ("0123456789", "+84327000686", "approved"),
        ("1111111111", "+84912345678", "pending"),
    ]


def test_the_same_file_twice_changes_nothing(house, tmp_path):
    file = tmp_path / "accounts.csv"
    file.write_text(GOOD, "utf-8")
    house.run("accounts", "import", str(file))
    before = house.psql("select xmin::text, * from account order by code")
    done = house.run("accounts", "import", str(file))
    assert done.returncode == 0
    assert "0 added, 0 changed, 3 unchanged, 0 refused" in done.stdout
    assert house.psql("select xmin::text, * from account order by code") == before


def test_a_phone_changes_only_when_that_is_wanted_and_ends_the_open_case(house, tmp_path):
    file = tmp_path / "accounts.csv"
    file.write_text("code,phone,email,state\n7777777777,0327000700,,approved\n", "utf-8")
    assert house.run("accounts", "import", str(file)).returncode == 0
    house.psql(
        "insert into reissue_case (account, id, phone, channel, key, version, length, alphabet, texts, opened_at,"
        " expires_at) values ('7777777777', gen_random_uuid(), '+84327000700', 'sms', 'k', 1, 6, '0123456789', 1,"
        " now(), now() + interval '1 day') returning 1"
    )
    file.write_text("code;phone;email;state\n7777777777;0327000701;new@example.vn;approved\n", "utf-8")
    done = house.run("accounts", "import", str(file))
    assert done.returncode == 0
    assert "1 changed" in done.stdout
    assert "1 accounts have another phone" in done.stderr
    assert house.psql("select phone, email from account where code = '7777777777'") == [
        ("+84327000700", "new@example.vn")
    ]
    assert house.psql("select ended_as from reissue_case where account = '7777777777'") == [(None,)]
    assert house.run("accounts", "import", "--update-phones", str(file)).returncode == 0
    assert house.psql("select phone from account where code = '7777777777'") == [("+84327000701",)]
    assert house.psql("select ended_as from reissue_case where account = '7777777777'") == [
        ("account_changed",)
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "lacks the column code"),
        ("0123456789,0327000686,,approved\n", "lacks the column code"),
        ("code,phone,state\n", "lacks the column email"),
        ("code,phone,email,state,colour\n", "'colour'"),
    ],
)
def test_a_file_that_is_none_is_wrong_use(house, tmp_path, content, says):
    file = tmp_path / "accounts.csv"
    file.write_text(content, "utf-8")
    done = house.run("accounts", "import", str(file))
    assert done.returncode == 2
    assert says in done.stderr
    assert house.run("accounts", "import", str(tmp_path / "none.csv")).returncode == 2


def test_doctor_says_what_is_wrong_and_how_to_mend_it(house):
    done = house.run("doctor")
    assert done.returncode == 1
    assert "BAD  links: none is configured" in done.stdout
    for line in (
        "ok   configuration",
        "ok   data folder",
        "ok   keys",
        "ok   database",
        "ok   tables",
        "ok   inbox",
    ):
        assert line in done.stdout
    environment = dict(house.environment)
    closed = free_port("127.0.0.1", 0)
    house.environment["CAPLAI_LINKS"] = f'[{{"name": "viettel", "host": "127.0.0.1", "port": {closed}}}]'
    assert f"BAD  link viettel: 127.0.0.1:{closed}: Connection refused" in house.run("doctor").stdout
    house.environment = environment


def test_keys_are_listed_by_id_and_rotated(house):
    before = house.run("keys", "list").stdout
    done = house.run("keys", "rotate")
    assert done.returncode == 0
    key = re.search(r"is now (\S+)\.", done.stdout)[1]
    after = house.run("keys", "list").stdout
    assert re.search(rf"issuing\s+{re.escape(key)}\s+active", after)
    assert len(after.splitlines()) == len(before.splitlines()) + 1
    assert (house.folder / "keyring.json").stat().st_mode & 0o777 == 0o600


def test_the_service_is_closed_and_opened(house):
    assert house.run("service", "status").stdout == "open\n"
    assert house.run("service", "close").returncode == 0
    assert house.run("service", "status").stdout.startswith("closed since ")
    assert house.run("service", "open").returncode == 0
    assert house.run("service", "status").stdout == "open\n"


def test_wrong_configuration_is_wrong_use(house):
    house.environment["CAPLAI_COLOUR"] = "red"
    done = house.run("accounts", "import", "x.csv")
    del house.environment["CAPLAI_COLOUR"]
    assert done.returncode == 2


def test_a_taken_port_is_said_at_once(house):
    done = house.run("up")
    assert done.returncode == 1
    assert "CAPLAI_PORT" in done.stderr


def test_a_killed_up_leaves_a_server_that_the_next_one_takes_over(tmp_path):
    house = House(tmp_path)
    up = house.start("up")
    assert wait_for_port("127.0.0.1", house.port, 60)
    up.kill()
    up.wait()
    end = time.monotonic() + 15
    while time.monotonic() < end and wait_for_port("127.0.0.1", house.port, 0.1):
        time.sleep(0.1)
    again = house.start("up")
    assert wait_for_port("127.0.0.1", house.port, 60)
    again.send_signal(signal.SIGINT)
    said, _ = again.communicate(timeout=30)
    assert again.returncode == 0, said
    assert house.processes() == []


def test_the_demo_refuses_a_database_that_holds_anything_else(house, tmp_path):
    import psycopg

    from caplai.local_postgres import LocalPostgres

    server = LocalPostgres(house.folder / "postgres", pg_bin=house.environment.get("CAPLAI_PG_BIN"))
    dsn = server.ensure_running().dsn
    try:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("create database other")
        other = (
            dsn.replace("/caplai?", "/other?")
            if "/caplai?" in dsn
            else dsn.replace("dbname=caplai", "dbname=other")
        )
        assert other != dsn
        with psycopg.connect(other, autocommit=True) as conn:
            conn.execute("create table somebodys (id int)")
        environment = dict(house.environment)
        house.environment |= {"CAPLAI_DATABASE_URL": other, "CAPLAI_PORT": "0"}
        done = house.run("demo", "--script")
        house.environment = environment
        assert done.returncode == 2
        assert "holds something else" in done.stderr
        with psycopg.connect(other) as conn:
            assert conn.execute("select tablename from pg_tables where schemaname = 'public'").fetchall() == [
                ("somebodys",)
            ]
    finally:
        server.stop()
