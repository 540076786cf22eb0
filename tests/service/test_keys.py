"""The life of keys: several hosts with keyrings of their own, on one database."""

import dataclasses
import gc
import json
import os
import resource
import shutil
import threading
import time
from datetime import timedelta

import pytest
from django.contrib.auth.hashers import make_password

from caplai.domain.grammar import Reissue
from caplai.domain.policy import Outcome
from caplai.service import keys
from caplai.service.presence import Presence
from caplai.service.reissue import reissue
from caplai.service.requests import ReplyTo, Request
from caplai.store.db import connect
from caplai.store.keyring import KeyringError, KeyringFile
from caplai.store.models import Case, Event, Login

SILENCE = timedelta(seconds=45)
NOW, LATER = timedelta(), timedelta(minutes=5)
SESSION = timedelta(hours=12)


class Host:
    """A process on a host whose keyring is a copy of `like`'s, or a new one."""

    def __init__(self, conn, folder, name, like=None):
        self.conn, self.name = conn, name
        self.path = folder / name / "keyring.json"
        self.keys = KeyringFile(self.path)
        if like:
            self.path.parent.mkdir()
            self.copy(like)
        self.keys.create()

    def copy(self, host):
        new = self.path.with_name("copy")
        shutil.copy2(host.path, new)
        new.replace(self.path)

    def beat(self, lead=NOW):
        """Say what it can read, and do what is due."""
        readable = self.keys.readable()
        overview = keys.say(self.conn, self.name, "engine", "1", readable, SILENCE)
        if keys.is_due(overview, readable, activate=True):
            overview = keys.agree(self.conn, self.keys, lead, SILENCE)
        self.keys.obey(overview.agreed())

    def active(self, kind="issuing"):
        return self.keys.ring(kind).active

    def rotate(self, kind="issuing", lead=NOW, now=False):
        return keys.rotate(self.conn, self.keys, kind, lead, SILENCE, now=now)


@pytest.fixture
def hosts(conn, tmp_path):
    """Two hosts with the same keyring, both living."""
    one = Host(conn, tmp_path, "one")
    two = Host(conn, tmp_path, "two", like=one)
    one.beat()
    two.beat()
    return one, two


def states(conn, kind="issuing"):
    return dict(conn.execute("select id, state from key where kind = %s", [kind]).fetchall())


def test_what_the_keyring_starts_with_is_active_everywhere(hosts, conn):
    one, two = hosts
    assert states(conn) == {one.keys.first("issuing"): "active"}
    assert one.active() == two.active() == one.keys.first("issuing")
    assert not one.keys.missing() and not two.keys.missing()


def test_a_new_key_becomes_active_when_everybody_can_read_it_and_not_before(hosts, conn):
    one, two = hosts
    old, new = one.active(), one.rotate().id
    for _ in range(2):
        one.beat()
        two.beat()
    assert (one.active(), two.active()) == (old, old)
    two.copy(one)
    two.beat()  # it notices by itself that it was the last
    assert two.active() == new
    one.beat()
    assert one.active() == new
    assert states(conn) == {old: "retired", new: "active"}
    assert one.keys.ring("issuing").get(old) and two.keys.ring("issuing").get(old)


def test_a_new_key_waits_for_its_time_even_when_everybody_has_it(hosts, conn):
    one, two = hosts
    old, new = one.active(), one.rotate(lead=LATER).id
    two.copy(one)
    two.beat()
    one.beat()
    assert states(conn) == {old: "active", new: "waiting"}
    conn.execute("update key set not_before = clock_timestamp()")
    one.beat()
    assert states(conn) == {old: "retired", new: "active"}


def test_a_key_that_just_appears_in_the_keyring_is_taken_up(hosts, conn):
    """As in a folder that a secret store fills."""
    one, two = hosts
    old, new = one.active(), one.keys.add("issuing")
    one.beat(lead=LATER)
    assert states(conn) == {old: "active", new: "waiting"}
    assert conn.execute(
        "select not_before > now() + interval '4 min' from key where id = %s", [new]
    ).fetchone()[0]
    two.copy(one)
    two.beat(lead=NOW)
    assert states(conn)[new] == "waiting"


def test_whoever_has_ended_is_not_waited_for(hosts, conn):
    one, two = hosts
    new = one.rotate().id
    one.beat()
    assert states(conn)[new] == "waiting"
    conn.execute("update process set seen_at = seen_at - interval '46 s' where name = 'two'")
    one.beat()
    assert states(conn)[new] == "active"
    two.beat()  # it was only cut off
    assert {one.id for one in two.keys.missing()} == {new}


def test_the_newest_of_two_rotations_wins_and_the_other_is_never_used(hosts, conn):
    one, two = hosts
    old, first, second = one.active(), one.rotate().id, one.rotate().id
    two.copy(one)
    one.beat()
    two.beat()
    one.beat()
    assert states(conn) == {old: "retired", first: "destroyed", second: "active"}
    assert one.active() == two.active() == second


def test_the_first_key_of_a_later_kind_waits_for_hosts_that_may_not_know_the_kind(hosts, conn):
    one, two = hosts
    first = one.rotate("oidc").id
    assert states(conn, "oidc") == {first: "waiting"}
    assert not two.keys.missing()  # it goes on serving
    with pytest.raises(KeyringError):
        one.active("oidc")
    two.copy(one)
    for host in (two, one, two):
        host.beat()
    assert (one.active("oidc"), two.active("oidc")) == (first, first)
    second = one.rotate("oidc", now=True)
    one.beat()
    assert one.active("oidc") == second.id
    assert unneeded(conn, "23 h") == set()
    assert unneeded(conn, "2 h") == {first}


def test_two_hosts_that_rotate_their_own_keyrings_agree_on_neither(hosts, conn):
    one, two = hosts
    old, mine, yours = one.active(), one.rotate().id, two.rotate().id
    one.beat()
    two.beat()
    assert states(conn) == {old: "active", mine: "waiting", yours: "waiting"}
    one.copy(two)
    one.beat()
    two.beat()
    assert one.active() == two.active() == yours


def test_a_host_with_a_keyring_of_its_own_lacks_all_and_adds_nothing(hosts, conn, tmp_path):
    before = conn.execute("select id from key order by number").fetchall()
    stranger = Host(conn, tmp_path, "stranger")
    stranger.beat()
    assert {one.kind for one in stranger.keys.missing()} == {"issuing", "pepper", "web"}
    assert conn.execute("select id from key order by number").fetchall() == before
    keyring = stranger.path.read_bytes()
    with pytest.raises(KeyringError, match="Copy the keyring"):
        stranger.rotate(now=True)
    assert stranger.path.read_bytes() == keyring
    stranger.copy(hosts[0])
    stranger.beat()
    assert not stranger.keys.missing()


def test_two_keys_with_one_id_are_two(hosts, conn):
    """Were they one, each host would send passwords that the other refuses."""
    one, two = hosts
    new = one.rotate().id
    text = one.path.read_text()
    two.copy(one)
    key = one.path.read_text().split(f'"{new}": "')[1][:44]
    two.path.write_text(text.replace(key, f"{key[5:43]}{key[:5]}="))
    assert two.keys.readable() != one.keys.readable()
    two.beat()
    one.beat()
    assert states(conn)[new] == "waiting"


def test_a_key_that_nobody_has_any_more_is_replaced(hosts, conn):
    one, two = hosts
    old = one.rotate(now=True).id
    two.beat()
    one.copy(two)  # from before
    one.beat()
    assert {key.id for key in one.keys.missing()} == {old}
    with pytest.raises(KeyringError):
        one.rotate()
    new = one.rotate(now=True).id
    assert states(conn)[new] == "active"
    [lost] = [key for key in keys.look(conn, SILENCE).keys if key.id == old]
    assert keys.still_needed(conn, lost, SESSION) is None and keys.end(conn, lost)
    one.beat()
    assert not one.keys.missing()
    assert one.active() == new


def test_rotating_now_waits_for_nobody(hosts, conn):
    one, two = hosts
    old, new = one.active(), one.rotate(lead=LATER, now=True).id
    assert states(conn) == {old: "retired", new: "active"}
    one.beat()
    two.beat()
    assert one.active() == new
    assert {one.id for one in two.keys.missing()} == {new}


def test_many_who_look_at_once_agree(hosts, conn):
    one, two = hosts
    new = one.rotate(lead=LATER).id
    two.copy(one)
    one.beat()
    two.beat()
    conn.execute("update key set not_before = now()")

    def beat():
        with connect() as other:
            Host(other, one.path.parent.parent, "one").beat()

    threads = [threading.Thread(target=beat) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    two.beat()
    one.beat()
    assert one.active() == two.active() == new
    assert Event.objects.filter(kind="key_activated").count() == 1


def test_who_starts_while_a_key_becomes_active_is_seen_or_hears_of_it(hosts, conn):
    """Else it would take itself for ready, and the others would not have waited for it."""
    one, two = hosts
    conn.execute("delete from process where name = 'two'")
    new = one.rotate(lead=LATER).id
    one.beat()
    conn.execute("update key set not_before = now()")
    with connect() as other, connect() as starting:
        two.conn = starting
        with other.transaction():  # as `agree` does, stopped before its commit
            other.execute("select pg_advisory_xact_lock(%s)", [keys.AGREE])
            overview = keys.look(other, SILENCE)
            assert [process.name for process in overview.living] == ["one"]
            start = threading.Thread(target=two.beat)
            start.start()
            time.sleep(0.3)
            assert start.is_alive()
            keys._activate(other, next(key for key in overview.keys if key.id == new))
        start.join()
    assert {one.id for one in two.keys.missing()} == {new}


# --- deciding with it ------------------------------------------------------------------------------


@pytest.fixture
def engine(hosts, rules):
    """Decide a request for an account on a host: what an engine there does."""

    def decide(host, code="0123456789"):
        theirs = dataclasses.replace(rules, keyring=lambda: host.keys.ring("issuing"))
        request = Request(
            Reissue(code), "sms", "+84327000686", "84327000686", ReplyTo("v", "8079", "84327000686")
        )
        with host.conn.transaction():
            return reissue(host.conn, [request], theirs)[0].outcome

    return decide


def test_a_case_takes_the_key_that_all_agreed_on_however_stale_the_engine(hosts, engine, conn, lan):
    one, two = hosts
    new = one.rotate().id
    one.beat()
    two.copy(one)
    two.beat()
    assert one.active() != new  # it has not heard yet
    assert engine(one) is Outcome.ISSUED
    assert Case.objects.get().key == new


def test_an_engine_that_lacks_the_active_key_decides_nothing(hosts, engine, conn, lan):
    one, two = hosts
    one.rotate(now=True)
    with pytest.raises(KeyringError):
        engine(two)
    assert not Case.objects.exists()
    assert engine(one) is Outcome.ISSUED


# --- destruction -----------------------------------------------------------------------------------


def unneeded(conn, after="0 s"):
    """What is destroyed, if all that retired had done so that much earlier."""
    conn.execute(
        "update key set looked_at = null, retired_at = retired_at - %s::interval where state = 'retired'",
        [after],
    )
    return {one.id for one in keys.end_unneeded(conn, SESSION)}


def test_an_issuing_key_ends_with_its_last_case(hosts, engine, conn, lan):
    one, _ = hosts
    old = one.active()
    assert engine(one) is Outcome.ISSUED
    assert unneeded(conn) == set()  # the active one, whether or not there are cases
    one.rotate(now=True)
    assert unneeded(conn, "2 h") == set()
    conn.execute("update reissue_case set expires_at = now()")
    assert unneeded(conn) == {old}
    assert states(conn)[old] == "destroyed"


def test_a_key_rests_before_it_is_destroyed(hosts, conn):
    one, _ = hosts
    old = one.active()
    one.rotate(now=True)
    assert unneeded(conn, "59 min") == set()
    assert unneeded(conn, "2 min") == {old}


def test_a_database_started_on_this_keyring_by_mistake_destroys_nothing(hosts, conn):
    one, _ = hosts
    one.rotate(now=True)
    one.rotate("pepper", now=True)
    content = json.loads(one.path.read_text())
    for ring in content.values():  # as a keyring from before there was the table
        ring["active"] = list(ring["keys"])[-1]
    one.path.write_text(json.dumps(content))
    keys.forget(conn)
    one.beat()
    assert sorted(states(conn).values()) == sorted(states(conn, "pepper").values()) == ["active", "retired"]
    assert unneeded(conn, "100 days") == set()


def test_a_key_that_waits_is_not_destroyed(hosts, conn):
    one, _ = hosts
    one.rotate(lead=LATER)
    assert unneeded(conn) == set()


def test_a_case_that_is_just_being_opened_keeps_its_key(hosts, engine, conn, lan):
    """Its transaction read which key is active, then others made a new one active and look for the old one."""
    one, _ = hosts
    old = one.active()
    ended = []
    with connect() as opener, connect() as other:
        deciding = Host(opener, one.path.parent.parent, "one")
        deciding.keys.obey(keys.look(conn, SILENCE).agreed())
        with opener.transaction():
            engine(deciding)
            keys.rotate(other, one.keys, "issuing", NOW, SILENCE, now=True)
            other.execute("update key set retired_at = retired_at - interval '2 h'")
            looking = threading.Thread(target=lambda: ended.extend(keys.end_unneeded(other, SESSION)))
            looking.start()
            time.sleep(0.3)
            assert looking.is_alive()
        looking.join()
    assert ended == []
    assert states(conn)[old] == "retired"
    assert Case.objects.get().key == old


def test_a_pepper_ends_with_the_last_hash_that_names_it(hosts, conn):
    one, _ = hosts
    old = one.active("pepper")
    tail = make_password("bảy con cò trắng").split("$", 2)[2]
    login = Login.objects.create(username="thu.ha", password=f"argon2p${old}${tail}")
    one.rotate("pepper", now=True)
    assert unneeded(conn, "31 days") == set()
    login.delete()
    assert unneeded(conn, "-30 days") == set()
    assert unneeded(conn, "30 days") == {old}


def test_a_pepper_that_somebody_may_be_hashing_with_is_not_destroyed_on_demand_either(hosts, conn):
    one, _ = hosts
    one.rotate("pepper", now=True)

    def needed():
        [old] = [key for key in keys.look(conn, SILENCE).keys if key.state == "retired"]
        return keys.still_needed(conn, old, SESSION)

    assert "sign-ins under way" in needed()
    conn.execute("update key set retired_at = retired_at - interval '61 min' where state = 'retired'")
    assert needed() is None


def test_a_web_key_ends_after_the_longest_session(hosts, conn):
    one, _ = hosts
    old = one.active("web")
    one.rotate("web", now=True)
    assert unneeded(conn, "12 h 59 min") == set()
    assert unneeded(conn, "2 min") == {old}


def test_the_cases_of_a_known_key_are_ended_on_demand(hosts, engine, conn, lan):
    one, _ = hosts
    old = one.active()
    engine(one)
    one.rotate(now=True)
    assert keys.end_cases(conn, old) == 1
    assert Case.objects.get().ended_as == "key_destroyed"
    assert unneeded(conn, "2 h") == {old}
    assert engine(one) is Outcome.ISSUED


def test_after_a_restore_the_keyring_says_what_is_active(hosts, engine, conn, lan):
    """The database is as old as its backup: its active key may be destroyed, the keyring's unknown to it."""
    one, _ = hosts
    backup = conn.execute("select kind, id, fingerprint, state from key").fetchall()
    old, new = one.active(), one.rotate(now=True).id
    assert unneeded(conn, "2 h") == {old}
    one.beat()
    one.keys.remove({key.token for key in keys.look(conn, SILENCE).keys if key.state == "destroyed"})
    assert list(one.keys.ring("issuing").keys) == [new]
    conn.execute("delete from key")
    for row in backup:
        conn.execute("insert into key (kind, id, fingerprint, state) values (%s, %s, %s, %s)", row)
    one.beat()
    assert {one.id for one in one.keys.missing()} == {old}
    keys.forget(conn)
    one.beat()
    assert not one.keys.missing()
    assert one.active() == new
    assert engine(one) is Outcome.ISSUED


# --- a process -------------------------------------------------------------------------------------


class Living:
    """A host's Presence, quick enough for a test."""

    def __init__(self, host, **more):
        self.host = host
        host.conn.execute("delete from process")
        more = {"lead": NOW, "silence": timedelta(seconds=1), **more}
        self.presence = Presence("engine", "1", host.keys, **more)

    def __enter__(self):
        self.presence.start()
        return self.host

    def __exit__(self, *_):
        self.presence.stop()


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def test_a_process_takes_up_a_rotation_by_itself_and_says_goodbye(hosts, conn):
    one, _ = hosts
    with Living(one):
        assert conn.execute("select kind, version from process").fetchall() == [("engine", "1")]
        new = one.rotate().id
        until(lambda: one.active() == new)
        until(
            lambda: KeyringFile(one.path).first("issuing") == new
        )  # it starts with it where nothing is known
    assert conn.execute("select count(*) from process").fetchone() == (0,)


def test_of_a_process_that_ended_nothing_stays_open(hosts, conn):
    gc.collect()
    before = {*os.listdir("/proc/self/fd")}
    with (process := Living(hosts[0])):
        pass
    assert {*os.listdir("/proc/self/fd")} <= before, process


def test_a_process_with_a_thousand_connections_goes_on_hearing(hosts, conn):
    """A web server whose database comes back speaks to it by a high descriptor, beyond what select() takes."""
    one, _ = hosts
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    connections = [os.dup(0) for _ in range(1100)]
    try:
        with Living(one):
            new = one.rotate().id
            until(lambda: one.active() == new)
    finally:
        for descriptor in connections:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_process_removes_what_is_destroyed_from_its_keyring(hosts, conn):
    """And the engine's decides it."""
    one, _ = hosts
    old = one.active()
    text = one.path.read_text().split(f'"{old}": "')[1][:44]
    one.rotate(now=True)
    conn.execute("update key set retired_at = retired_at - interval '2 h'")
    with Living(one, session_age=SESSION):
        until(lambda: old not in one.keys.ring("issuing").keys)
    assert text not in one.path.read_text()
    assert Event.objects.filter(kind="key_destroyed", data__id=old).count() == 1
    assert not one.keys.missing()


def test_what_a_process_lacks_is_said_once_and_when_it_has_it(hosts, conn, caplog):
    caplog.set_level("INFO")
    one, two = hosts
    new = one.rotate(now=True).id
    with Living(two):
        until(lambda: two.keys.missing())
        time.sleep(0.7)
        two.copy(one)
        until(lambda: not two.keys.missing())
        until(lambda: "all is well again" in caplog.text)
    assert caplog.text.count(f"lacks the issuing key {new}") == 1


def test_a_web_server_with_a_keyring_of_its_own_lives_and_says_what_it_lacks(hosts, conn, tmp_path, caplog):
    stranger = Host(conn, tmp_path, "stranger")
    with Living(stranger, heed=lambda: stranger.keys.ring("web")):
        assert caplog.text.count("this host lacks the") == 3
        stranger.copy(hosts[0])
        until(lambda: not stranger.keys.missing())
    assert "the beat failed" not in caplog.text


def test_while_the_database_is_away_the_last_word_holds(hosts, conn):
    one, _ = hosts
    with Living(one):
        before = one.active()
        conn.execute("alter table process rename to process_away")
        try:
            new = one.keys.add("issuing")
            time.sleep(1.0)
            assert one.active() == before
            assert not one.keys.missing()
        finally:
            conn.execute("alter table process_away rename to process")
        until(lambda: states(conn).get(new) == "active")


@pytest.mark.slow
def test_nobody_is_counted_out_because_the_database_was_away(hosts, conn):
    """It comes back, every row looks old, and whoever speaks first must not take itself for the only one."""
    one, two = hosts
    with Living(one, silence=timedelta(seconds=2)):
        two.beat()
        new = one.rotate().id
        conn.execute("alter table process rename to process_away")
        time.sleep(2.5)
        conn.execute("alter table process_away rename to process")
        until(lambda: conn.execute(SPOKE).fetchone()[0])
        time.sleep(0.3)
        assert states(conn)[new] == "waiting"
        spoke = time.monotonic()
        two.beat()
        until(lambda: states(conn)[new] == "active")  # once it has been silent, by itself
        assert time.monotonic() - spoke > 2


SPOKE = "select seen_at > clock_timestamp() - interval '1 s' from process where name <> 'two'"
