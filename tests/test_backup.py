"""Backup and restore, with PostgreSQL's own programs on real databases.

What lived when the backup was taken must not live after it: no case, no sign-in, no message to be answered.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from allauth.idp.oidc.models import Client, Token
from click.testing import CliRunner
from django.conf import settings
from django.contrib.sessions.models import Session
from django.utils import timezone
from psycopg.conninfo import make_conninfo

from caplai import backup, demo
from caplai.cli import main
from caplai.local_postgres import installed
from caplai.processes import wait_for_port
from caplai.service.deliver import compose
from caplai.service.reissue import reissue_inbox
from caplai.store import queues
from caplai.store.db import conninfo
from caplai.store.keyring import KeyringFile
from caplai.store.models import Account, Case, Device, Login, TakenOverPassword
from tests.ports import free_port
from tests.test_cli import House, until

SERVER = os.environ["CAPLAI_DATABASE_URL"]
LAN = "0123456789"
CHOSEN = "bà ngoại nấu phở"


@pytest.fixture
def target():
    """The URL of a database that is empty, on the tests' own server."""
    name = f"restored_{os.getpid()}"
    with psycopg.connect(SERVER, autocommit=True) as conn:
        conn.execute(f"drop database if exists {name} with (force)")
        conn.execute(f"create database {name}")
        yield SERVER.replace("/caplai?", f"/{name}?")
        conn.execute(f"drop database {name} with (force)")


def query(url, statement):
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute(statement).fetchall()


def tables(url):
    return query(url, "select count(*) from pg_tables where schemaname = 'public'")[0][0]


@pytest.fixture
def caplai(transactional_db, monkeypatch):
    """Run `caplai WORDS…` here, on the tests' database or on `url`, with the tests' keyring."""

    def run(*words, url=None, keyring=settings.CAPLAI.keyring_file):
        monkeypatch.setenv("CAPLAI_DATABASE_URL", url or conninfo())
        monkeypatch.setenv("CAPLAI_KEYRING", str(keyring))
        return CliRunner().invoke(main, [str(word) for word in words])

    return run


@pytest.fixture
def living(conn, rules, lan):
    """A moment with everything in it that a restore must end; returns the password of Lan's open case."""
    login = Login(username=LAN, account=lan)
    login.set_password(CHOSEN)
    login.save()
    Device.objects.create(login=login, token_hash=b"x" * 32)
    client = Client.objects.create(name="Phòng khám")
    Token.objects.create(type=Token.Type.REFRESH_TOKEN, hash="h", user=login, client=client)
    Session.objects.create(session_key="s", session_data="", expire_date=timezone.now() + timedelta(hours=1))
    for text in (f"BH MK {LAN}", "BH"):
        arrival = queues.Arrival("84327000686", 1, 1, "8079", 0, text)
        queues.accept(conn, "viettel", None, [arrival], None)
        while reissue_inbox(conn, rules, 10):
            pass
    first, _ = queues.claim_outbox(conn, "viettel", "e", 10, timedelta(seconds=90))
    queues.settle_outbox(conn, "e", [queues.Settled(first.id, "sent", 0)])
    for text in ("waits", "is parked"):
        queues.accept(conn, "viettel", None, [queues.Arrival("84327000686", 1, 1, "8079", 0, text)], None)
    [[last]] = conn.execute("select max(id) from inbox").fetchall()
    queues.park(conn, last, "ValueError")
    part = queues.Arrival("84327000686", 1, 1, "8079", 0, None, 7, 2, 1, b"BH MK")
    queues.accept(conn, "viettel", None, [part], lambda *given: "")
    conn.execute("update inbox set session = %s", [queues.open_session(conn, "viettel", "e")])
    old = Account.objects.create(code="0000000042", phone="+84327000687", state="approved")
    TakenOverPassword.objects.create(code=old.code, hash="of another system")
    form = {
        "phone": old.phone,
        "channel": "sms",
        "key": "k",
        "version": 1,
        "length": 6,
        "alphabet": "0123456789",
    }
    past = timezone.now() - timedelta(days=2)
    Case.objects.create(account=old.code, opened_at=past, expires_at=past + timedelta(days=1), **form)
    conn.execute("""
        insert into recovery (id, code, channel, network, prefix, secret_hash, key, version, created_at, expires_at,
            asked_at, ended_at, ended_as)
            select gen_random_uuid(), '0000000042', 'email', 'n', 'p', code::bytea, 'k', 1, now(),
                now() + interval '1 day', now(), case when ended is not null then now() end, ended
            from (values ('a', null), ('b', 'tried_out'), ('c', 'proved')) r (code, ended);
        insert into mail (name, kind, account, until, state, claimed_by, settled_at)
            select gen_random_uuid(), state, '0000000042', now() + interval '1 day', state, by, settled
            from (values ('ready', null, null), ('claimed', 'm', null), ('sent', null, now())) m (state, by, settled);
        insert into retention (name, mark, rows)
            values ('notices', jsonb_build_object('upto', now() - interval '5 hours'), 7)
    """)
    return compose(first, settings.KEYRING.ring("issuing")).split("Mat khau: ")[1].split(".")[0]


LEFT = {
    "select account, ended_as, ended_at is null from reissue_case order by account": [
        ("0000000042", "expired", False),
        (LAN, "restored", False),
    ],
    "select outcome, decided_at is null, error from inbox order by id": [
        ("issued", False, None),
        ("bad_syntax", False, None),
        ("restored", False, None),
        ("restored", False, "ValueError"),
    ],
    "select state, claimed_by, settled_at is null from outbox order by id": [
        ("sent", None, False),
        ("expired", None, False),
    ],
    "select ended_as, ended_at is null from recovery order by ended_as": [
        ("proved", False),
        ("restored", False),
        ("restored", False),
    ],
    "select state, error, claimed_by, settled_at is null from mail order by kind": [
        ("failed", "restored", None, False),
        ("failed", "restored", None, False),
        ("sent", None, None, False),
    ],
    "select (mark->>'upto')::timestamptz > now() - interval '1 hour', rows from retention where name = 'notices'": [
        (True, 7)
    ],
    "select count(*) from django_session": [(0,)],
    "select count(*) from device": [(0,)],
    "select count(*) from allauth_idp_oidc_token": [(0,)],
    "select name from allauth_idp_oidc_client": [("Phòng khám",)],
    "select count(*) from segment": [(0,)],
    "select count(*) from link_session where ended_at is null": [(0,)],
    "select split_part(password, '$', 1) from login": [("argon2p",)],
    "select code, hash from taken_over_password": [("0000000042", "of another system")],
    "select to_regnamespace('caplai_restore')": [(None,)],
}


def assert_ended(url):
    for statement, rows in LEFT.items():
        assert query(url, statement) == rows, statement


def assert_the_same_text_is_a_new_message(url):
    """What was open is closed, so a text is no redelivery of it, even if the restore was quick."""
    arrival = queues.Arrival("84327000686", 1, 1, "8079", 0, "waits", suspect=queues.Suspect.UNCONFIRMED)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("update inbox set received_at = now() - interval '5 s'")
        session = queues.open_session(conn, "viettel", "new")
        assert len(queues.accept(conn, "viettel", session, [arrival], None).ids) == 1


# --- there and back --------------------------------------------------------------------------------


def test_what_lived_at_the_backup_does_not_live_after_the_restore(caplai, living, target, tmp_path):
    done = caplai("backup", tmp_path / "monday")
    assert done.exit_code == 0, done.output
    assert "2 accounts" in done.stdout and "The keyring is not in it" in done.stderr
    done = caplai("restore", tmp_path / "monday", url=target)
    assert done.exit_code == 0, done.output
    assert "Ended: 1 open cases, 0 sign-ins, 1 remembered devices." in done.stdout.replace(
        "Ended: 2", "Ended: 1"
    )
    assert "Closed without an answer: 2 messages, 1 replies, 0 parts." in done.stdout
    assert_ended(target)
    assert_the_same_text_is_a_new_message(target)
    # It is a database like any other now: the sequences go on.
    inserted = "insert into inbox (link, source, destination, text) values ('v', 's', 'd', 't') returning id"
    assert query(target, inserted)[0][0] > query(target, "select min(id) from inbox")[0][0]


@pytest.mark.slow
def test_a_backup_taken_while_messages_come_in_is_of_one_moment(caplai, conn, target, tmp_path, monkeypatch):
    """Rows are counted by the dump's own snapshot, or the restore would not believe them."""
    count = backup._count

    def and_one_comes_in(own, table):
        queues.accept(conn, "v", None, [queues.Arrival("84327000686", 1, 1, "8079", 0, table)], None)
        return count(own, table)

    monkeypatch.setattr(backup, "_count", and_one_comes_in)
    assert caplai("backup", tmp_path / "b").exit_code == 0
    assert conn.execute("select count(*) > 10 from inbox").fetchall() == [(True,)]
    assert caplai("restore", tmp_path / "b", url=target).exit_code == 0
    assert query(target, "select count(*) from inbox") == [(0,)]


def test_the_backup_holds_nothing_that_opens_an_account(caplai, conn, lan, rules, tmp_path):
    """The issued password is of the long form, so that it can be searched for."""
    conn.execute(
        "insert into guess (account, network, at) select %s, 'n', now() from generate_series(1, 20)", [LAN]
    )
    arrival = queues.Arrival("84327000686", 1, 1, "8079", 0, f"BH MK {LAN}")
    queues.accept(conn, "v", None, [arrival], None)
    assert reissue_inbox(conn, rules, 10)
    [due] = queues.claim_outbox(conn, "v", "e", 1, timedelta(seconds=90))
    issued = compose(due, settings.KEYRING.ring("issuing")).split("Mat khau: ")[1].split(".")[0]
    assert len(issued) == 10
    Session.objects.create(session_key="planted", session_data="", expire_date=timezone.now())
    assert caplai("backup", tmp_path / "b").exit_code == 0
    version = json.loads((tmp_path / "b" / "manifest.json").read_text())["pg_dump"]
    folder, _ = backup._programs(None, version, version)
    dump = subprocess.run(
        [folder / "pg_restore", "--file=-", tmp_path / "b" / "database.dump"], capture_output=True, check=True
    ).stdout.decode()
    held = dump + (tmp_path / "b" / "manifest.json").read_text()
    assert LAN in held and str(due.case_id) in held  # the search looks where it should
    peppers = json.loads(settings.KEYRING.path.read_text())["pepper"]["keys"].values()
    for planted in (issued, "planted", *peppers):
        assert planted not in held
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "b", *(tmp_path / "b").iterdir())}
    assert modes == {"b": 0o700, "database.dump": 0o600, "manifest.json": 0o600}


@pytest.mark.slow
def test_a_database_that_came_back_by_other_means(caplai, living, target, tmp_path, conn):
    conn.close()
    done = caplai("restore", "--after-the-fact")
    assert done.exit_code == 1 and "other connections use this database" in done.stderr
    # A snapshot, so to say: everything is there, and nobody is connected.
    assert caplai("backup", tmp_path / "b").exit_code == 0
    assert caplai("restore", tmp_path / "b", url=target).exit_code == 0
    with psycopg.connect(target) as back:
        back.execute("update reissue_case set ended_at = null, ended_as = null where account = %s", [LAN])
        back.execute("update inbox set outcome = null where outcome = 'restored'")
        back.execute("update outbox set state = 'claimed', claimed_by = 'e' where state = 'expired'")
        back.execute("insert into django_session values ('s', '', now())")
    done = caplai("restore", "--after-the-fact", url=target)
    assert done.exit_code == 0, done.output
    assert "Ended: 1 open cases, 1 sign-ins" in done.stdout
    assert_ended(target)


def test_nothing_starts_on_a_database_with_an_unfinished_restore(caplai, conn):
    conn.execute("create schema caplai_restore")
    try:
        for words in (["migrate"], ["engine"], ["web"], ["service", "status"], ["message", "1"]):
            done = caplai(*words)
            assert done.exit_code == 1 and "has begun and was not finished" in done.stderr, words
    finally:
        conn.execute("drop schema caplai_restore")


# --- what must not be done -------------------------------------------------------------------------


@pytest.fixture
def taken(caplai, living, tmp_path):
    """A whole backup."""
    assert caplai("backup", tmp_path / "b").exit_code == 0
    return tmp_path / "b"


def change(source, **values):
    manifest = json.loads((source / "manifest.json").read_text())
    (source / "manifest.json").write_text(json.dumps({**manifest, **values}))


def test_a_backup_that_is_not_whole_is_refused(caplai, taken, target):
    dump = taken / "database.dump"
    whole = dump.read_bytes()
    for content, says in (
        (whole[:-1], "is damaged"),
        (whole[:-1] + b"x", "is damaged"),
        (None, "No such file"),
    ):
        dump.unlink()
        if content is not None:
            dump.write_bytes(content)
        done = caplai("restore", taken, url=target)
        assert done.exit_code == 1 and says in done.stderr
        dump.touch()
    dump.write_bytes(whole)
    change(taken, format=2, caplai="9.1")
    assert "another version of caplai (9.1)" in caplai("restore", taken, url=target).stderr
    change(taken, format=1, rows={"account; drop table account": 1})
    assert "is no whole backup" in caplai("restore", taken, url=target).stderr
    (taken / "manifest.json").unlink()
    assert "is no whole backup" in caplai("restore", taken, url=target).stderr
    assert tables(target) == 0


def test_a_restore_that_fails_midway_changes_nothing_and_is_found(caplai, taken, target):
    rows = json.loads((taken / "manifest.json").read_text())["rows"]
    change(taken, rows={**rows, "account": 3})
    done = caplai("restore", taken, url=target)
    assert done.exit_code == 1 and "nothing was changed" in done.stderr and "XX001" in done.stderr
    assert tables(target) == 0
    assert query(target, "select to_regnamespace('caplai_restore') is not null") == [(True,)]
    change(taken, rows=rows)
    assert caplai("restore", taken, url=target).exit_code == 0
    assert_ended(target)


def test_a_damaged_archive_is_never_half_loaded(caplai, taken, target):
    """The checksum fits, yet pg_restore fails in the midst of it: the script must not end in a commit."""
    dump = taken / "database.dump"
    dump.write_bytes(dump.read_bytes()[:-3000])
    change(taken, sha256=backup._checksum(dump))
    done = caplai("restore", taken, url=target)
    assert done.exit_code == 1 and "pg_restore failed" in done.stderr
    assert tables(target) == 0
    assert LAN not in done.output


def test_a_database_that_holds_something_is_kept_unless_it_is_to_be_replaced(caplai, taken, target):
    with psycopg.connect(target, autocommit=True) as conn:
        conn.execute("create table other (id int)")
        refused = caplai("restore", taken, url=target)
        assert refused.exit_code == 1 and "is not empty" in refused.stderr
        used = caplai("restore", taken, "--replace", url=target)
        assert used.exit_code == 1 and "1 other connections use this database" in used.stderr
    assert tables(target) == 1
    assert query(target, "select to_regnamespace('caplai_restore')") == [(None,)]
    done = caplai("restore", taken, "--replace", url=target)
    assert done.exit_code == 0, done.output
    assert query(target, "select to_regclass('other')") == [(None,)]
    assert_ended(target)


@pytest.mark.slow
def test_a_server_older_than_the_backups_is_refused(caplai, taken, target):
    change(taken, postgresql=99)
    done = caplai("restore", taken, url=target)
    assert done.exit_code == 1 and "The backup is of PostgreSQL 99" in done.stderr
    change(taken, postgresql=15, pg_dump=99)
    done = caplai("restore", taken, url=target)
    assert done.exit_code == 1 and "postgresql-client-99" in done.stderr


def test_wrong_use_is_a_sentence(caplai, tmp_path, target, lan):
    assert caplai("restore").exit_code == 2
    assert caplai("restore", tmp_path, "--after-the-fact").exit_code == 2
    done = caplai("backup", tmp_path)
    assert done.exit_code == 1 and "exists" in done.stderr
    done = caplai("backup", tmp_path / "none" / "b")
    assert done.exit_code == 1 and "No such file" in done.stderr
    done = caplai("backup", tmp_path / "b", url=target)
    assert done.exit_code == 1 and "no tables of caplai's" in done.stderr
    done = caplai("restore", "--after-the-fact", url=target)
    assert done.exit_code == 1 and "no tables of caplai's" in done.stderr
    assert list(tmp_path.iterdir()) == []


def fill(folder):
    (folder / "fill").write_bytes(b"x" * shutil.disk_usage(folder).free)


@pytest.fixture
def full(tmp_path):
    """A folder on a disk that has no room left."""
    folder = tmp_path / "full"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False).returncode:
        pytest.skip("only root may mount a disk")
    fill(folder)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_a_sentence(caplai, lan, tmp_path, full, monkeypatch):
    done = caplai("backup", tmp_path / "b", "--keyring", full / "keyring.json")
    assert (done.exit_code, done.stderr) == (1, f"Error: {full}: No space left on device.\n")
    assert not (tmp_path / "b").exists()

    copy = tmp_path / "safe" / "keyring.json"
    copy.parent.mkdir()
    done = caplai("backup", full / "b", "--keyring", copy)
    assert done.exit_code == 1 and "pg_dump: error: could not write" in done.stderr
    assert not copy.exists()  # so the same command can be given again

    (full / "fill").unlink()
    monkeypatch.setattr(backup, "_checksum", lambda dump: fill(full))  # no room for the manifest
    done = caplai("backup", full / "b")
    assert (done.exit_code, done.stderr) == (1, f"Error: {full}: No space left on device.\n")
    assert [path.name for path in full.iterdir()] == ["fill"]


def test_time_limits_of_the_database_hold_up_no_backup(caplai, lan, tmp_path, target, monkeypatch):
    finish = backup._finish
    monkeypatch.setattr(backup, "_finish", lambda *given: (time.sleep(0.3), finish(*given)))
    limits = {"idle_in_transaction_session_timeout": "100", "statement_timeout": "100"}
    options = " ".join(f"-c {name}={limit}" for name, limit in limits.items())
    done = caplai("backup", tmp_path / "b", url=make_conninfo(conninfo(), options=options))
    assert done.exit_code == 0, done.output


# --- keys ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_keyring_is_kept_apart(caplai, living, tmp_path, target):
    (tmp_path / "safe").mkdir()
    beside = caplai("backup", tmp_path / "b", "--keyring", tmp_path / "keyring.json")
    assert beside.exit_code == 1 and "must not lie beside" in beside.stderr
    assert not (tmp_path / "b").exists()
    copy = tmp_path / "safe" / "keyring.json"
    assert caplai("backup", tmp_path / "b", "--keyring", copy).exit_code == 0
    assert copy.read_bytes() == settings.KEYRING.path.read_bytes()
    assert copy.stat().st_mode & 0o777 == 0o600
    again = caplai("backup", tmp_path / "c", "--keyring", copy)
    assert again.exit_code == 1 and "exists" in again.stderr

    # On a new host: the copy goes where the keyring belongs.
    new = tmp_path / "host" / "keyring.json"
    done = caplai("restore", tmp_path / "b", url=target, keyring=new)
    assert done.exit_code == 1 and "which 1 chosen passwords need" in done.stderr
    done = caplai("restore", tmp_path / "b", "--keyring", copy, url=target, keyring=new)
    assert done.exit_code == 0, done.output
    assert new.read_bytes() == copy.read_bytes() and new.stat().st_mode & 0o777 == 0o600
    # The same command again finds it there; another keyring is never overwritten.
    again = caplai("restore", tmp_path / "b", "--keyring", copy, "--replace", url=target, keyring=new)
    assert again.exit_code == 0, again.output
    new.write_text("{}")
    done = caplai("restore", tmp_path / "b", "--keyring", copy, url=target, keyring=new)
    assert done.exit_code == 1 and "is there already" in done.stderr


@pytest.mark.slow
def test_with_the_keyring_lost_people_text_for_another_password(caplai, taken, tmp_path, target):
    KeyringFile(tmp_path / "other.json").create()
    pepper = next(iter(settings.KEYRING.ring("pepper").keys))
    content = json.loads((tmp_path / "other.json").read_text())
    content["pepper"] = {
        "active": "another",
        "keys": {"another": next(iter(content["pepper"]["keys"].values()))},
    }
    (tmp_path / "other.json").write_text(json.dumps(content))
    done = caplai("restore", taken, url=target, keyring=tmp_path / "other.json")
    assert done.exit_code == 1 and f"lacks {pepper}" in done.stderr
    done = caplai("restore", taken, "--without-keys", url=target, keyring=tmp_path / "other.json")
    assert done.exit_code == 0, done.output
    [[password]] = query(target, "select password from login")
    assert password.startswith("!") and len(password) > 30


# --- interrupted -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_backup_leaves_nothing_that_looks_whole(caplai, conn, lan, tmp_path, number):
    house = House(tmp_path, CAPLAI_DATABASE_URL=conninfo(), CAPLAI_KEYRING=str(settings.KEYRING.path))
    with conn.transaction():
        conn.execute("lock table switch in access exclusive mode")  # so pg_dump waits in the midst of it
        waits = "select 1 from pg_locks where not granted and relation = 'switch'::regclass"
        with house.running("backup", str(tmp_path / "b")) as taking:
            until(lambda: conn.execute(waits).fetchone() or taking.poll() is not None)
            assert taking.poll() is None, taking.communicate()
            taking.send_signal(number)
            said, _ = taking.communicate(timeout=20)
        assert taking.returncode in (143, -9), said
        until(lambda: house.processes() == {})  # pg_dump has gone with it
    left = list(tmp_path.iterdir())
    if number == signal.SIGTERM:
        assert left == []
    else:
        assert [path.name.startswith(".b.partial-") for path in left] == [True]
        done = caplai("restore", left[0])
        assert done.exit_code == 1 and "is no whole backup" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_restore_has_changed_nothing_and_is_found(caplai, taken, target, tmp_path, number):
    house = House(tmp_path, CAPLAI_DATABASE_URL=target, CAPLAI_KEYRING=str(settings.KEYRING.path))
    with psycopg.connect(target, autocommit=True) as conn:
        conn.execute(
            "create schema test; create function test.wait() returns event_trigger language plpgsql as"
            " $$ begin perform pg_sleep(30); end $$;"
            "create event trigger midway on ddl_command_end when tag in ('CREATE INDEX')"
            " execute function test.wait()"
        )
    database = target.split("/")[3].split("?")[0]
    with psycopg.connect(SERVER, autocommit=True) as other:
        waits = f"select 1 from pg_stat_activity where datname = '{database}' and wait_event = 'PgSleep'"
        connected = f"select 1 from pg_stat_activity where datname = '{database}'"
        until(lambda: not other.execute(connected).fetchone())
        with house.running("restore", str(taken)) as restoring:
            until(lambda: other.execute(waits).fetchone())
            restoring.send_signal(number)
            said, _ = restoring.communicate(timeout=20)
            assert restoring.returncode in (143, -9), said
        # A backend notices that its client has gone when it next talks to it; we do not wait for that.
        other.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database}'")
        until(lambda: not other.execute(connected).fetchone())
    with psycopg.connect(target, autocommit=True) as conn:
        conn.execute("drop event trigger midway")
    assert tables(target) == 0
    refused = house.run("up")
    assert refused.returncode == 1 and "has begun and was not finished" in refused.stderr
    assert caplai("restore", taken, url=target).exit_code == 0
    assert_ended(target)


# --- for real --------------------------------------------------------------------------------------


class Carrier:
    """The simulator's SMSC with its virtual phones, as a process beside the service."""

    def __init__(self, house):
        self.smpp, self.http = free_port(), free_port()
        self.process = house.start("simulator", "--smpp-port", str(self.smpp), "--http-port", str(self.http))

    def __enter__(self):
        assert wait_for_port("127.0.0.1", self.http, 30)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.communicate(timeout=20)

    def environment(self):
        link = {"name": "v", "host": "127.0.0.1", "port": self.smpp, "password": "secret"}
        return {"CAPLAI_LINKS": json.dumps([link])}

    def password(self, phone, text):
        """What comes back to a phone that texts this."""
        phones = f"http://127.0.0.1:{self.http}/"
        # A message waits at the carrier until the engine has bound.
        reply = until(lambda: _reply(phones, phone, text))
        return reply.split("Mat khau: ")[1].split(".")[0]


def _reply(phones, phone, text):
    with contextlib.suppress(demo._Failed):
        return demo._text(phones, phone, "8079", text)


def post(house, path, body, token=None):
    return demo._post(f"http://127.0.0.1:{house.port}/_allauth/app/v1/auth/{path}", body, token)


def sign_in(house, password):
    """What a password leads to: "in", "choose" (it is an issued one), or None."""
    status, answer = post(house, "login", {"username": LAN, "password": password})
    pending = [flow["id"] for flow in answer.get("data", {}).get("flows", []) if flow.get("is_pending")]
    return "in" if status == 200 else "choose" if pending == ["choose_password"] else None


def is_in(house, token):
    request = urllib.request.Request(
        f"http://127.0.0.1:{house.port}/_allauth/app/v1/auth/session", headers={"X-Session-Token": token}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status == 200
    except urllib.error.HTTPError:
        return False


@contextlib.contextmanager
def service(folder, **settings):
    house = House(folder, **settings)
    with house.running("up") as up:
        assert wait_for_port("127.0.0.1", house.port, 90), up.communicate(timeout=5)[0]
        yield house


def with_lan(house):
    (house.folder / "accounts.csv").write_text(f"code,phone,email,state\n{LAN},0327000686,,approved\n")
    done = house.run("accounts", "import", "accounts.csv")
    assert done.returncode == 0, done.stderr


def choose(house, issued, password):
    """Sign in with the issued password and choose one's own; returns the session's token."""
    _, answer = post(house, "login", {"username": LAN, "password": issued})
    status, answer = post(
        house, "choose_password", {"new_password": password}, answer["meta"]["session_token"]
    )
    assert status == 200, answer
    return answer["meta"]["session_token"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_service_comes_back_from_its_backup(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    # A reply may overtake our answer to its text: the same text once more could be taken for a redelivery.
    texts = (f"{words} {LAN}" for words in ("BH MK", "Bh Mk", "bh mk"))
    with Carrier(House(tmp_path)) as carrier:
        with service(old, **carrier.environment()) as house:
            with_lan(house)
            session = choose(house, carrier.password("0327000686", next(texts)), CHOSEN)
            assert is_in(house, session)
            issued = carrier.password("0327000686", next(texts))
            assert sign_in(house, issued) == "choose"
            done = house.run("backup", str(tmp_path / "b"), "--keyring", str(new / "keyring.json"))
            assert done.returncode == 0, done.stderr

            # More happens: she chooses another password, which the backup does not know.
            choose(house, issued, "mưa rơi trên mái tôn")
            assert sign_in(house, CHOSEN) is None
            in_use = house.run("restore", str(tmp_path / "b"), "--replace")
            assert in_use.returncode == 1 and "other connections use this database" in in_use.stderr
            assert sign_in(house, "mưa rơi trên mái tôn") == "in"

        lost = House(new, **carrier.environment())
        done = lost.run("restore", str(tmp_path / "b"))
        assert done.returncode == 0, done.stderr
        assert "1 accounts" in done.stdout and "Ended: 1 open cases" in done.stdout

        with service(new, **carrier.environment()) as house:
            # The password that was issued before the backup, and used after it, does not live again.
            assert sign_in(house, issued) is None
            assert sign_in(house, CHOSEN) == "in"
            assert not is_in(house, session)
            fresh = carrier.password("0327000686", next(texts))
            assert fresh != issued
            assert sign_in(house, fresh) == "choose"


DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.timeout(300)
@pytest.mark.skipif(not DEBIAN_15.exists(), reason="needs Debian's postgresql-15")
@pytest.mark.skipif("CAPLAI_PG_BIN" in os.environ, reason="the other version is what is tried here")
def test_from_one_major_version_of_postgresql_to_the_next(tmp_path):
    old = House(tmp_path / "old", CAPLAI_PG_BIN=str(DEBIAN_15), CAPLAI_KEYRING=str(tmp_path / "keyring.json"))
    old.folder.mkdir()
    with_lan(old)
    assert old.psql("select current_setting('server_version_num')::int / 10000") == [(15,)]

    # The new programs alone do not serve the old folder, and say what to do.
    wheel = next(installed())
    stuck = House(old.folder, CAPLAI_PG_BIN=str(wheel)).run("migrate")
    assert stuck.returncode == 1
    assert "made by PostgreSQL 15" in stuck.stderr and "caplai backup" in stuck.stderr

    done = old.run("backup", str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["pg_dump"] == 15
    new = House(tmp_path / "new", CAPLAI_KEYRING=str(tmp_path / "keyring.json"))
    new.folder.mkdir()
    done = new.run("restore", str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr
    version = "select current_setting('server_version_num')::int / 10000, (select code from account)"
    assert new.psql(version) == [(18, LAN)]
    # And not back again.
    back = House(
        tmp_path / "back", CAPLAI_PG_BIN=str(DEBIAN_15), CAPLAI_KEYRING=str(tmp_path / "keyring.json")
    )
    back.folder.mkdir()
    assert new.run("backup", str(tmp_path / "b18")).returncode == 0
    done = back.run("restore", str(tmp_path / "b18"))
    assert done.returncode == 1 and "The backup is of PostgreSQL 18, this server is 15" in done.stderr
