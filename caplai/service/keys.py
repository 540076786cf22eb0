"""The life of keys: which is the active one, when a new one may become it, when an old one is destroyed.

The keys themselves are in the keyring of each host (store/keyring.py). The table `key` says what all agree on,
`process` who runs and which keys each can read. A new key becomes active once its time has come *and* every
process that lives has said that it can read it. Whoever looks may notice that first; the rest obey.

Why it holds:
- A process says what it can read and hears what is active in one transaction with the lock AGREE shared; a
  key is made active with it exclusive. So whoever makes one active has seen every process that came before,
  and whoever comes after has heard of it.
- All times are the database's. Whoever notices that its clock steps, or that it was away, waits for the others
  to speak up before it counts them as ended (Presence in presence.py).
- A case takes the key that is active in its own transaction, with the lock OPENING shared (reissue.py). A
  retired key never becomes active again; so who has held OPENING exclusively after it retired knows that no
  further case will take it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Json

from caplai.service import locks
from caplai.store.db import named_lock
from caplai.store.keyring import ALL_KINDS, SIGNING, Agreed, KeyringError, Keys, Token

CHANNEL = "caplai_keys"
"""Notified when something about keys has changed, so that nobody waits for its next look."""

_LOCK = 6  # the kind of lock, see named_lock
AGREE, OPENING = named_lock(_LOCK, "agree"), named_lock(_LOCK, "opening")

STALE = timedelta(hours=1)
"""Longer than anybody works on with a pepper or web key that was active when it began."""
_REST = {"issuing": STALE, "web": STALE, "pepper": timedelta(days=30), SIGNING: timedelta(days=1)}
"""How long a key has been retired before it is destroyed without being asked for. A database that was started on
this keyring by mistake sees no need for any key; that must not cost a nation its passwords before it is noticed.
"""
_LOOK_EVERY = timedelta(hours=1)
_SLICE = 500


@dataclass(frozen=True, slots=True)
class Known:
    """A row of `key`."""

    number: int
    kind: str
    id: str
    fingerprint: str
    state: str
    added_at: datetime
    not_before: datetime
    activated_at: datetime | None
    retired_at: datetime | None
    looked_at: datetime | None
    destroyed_at: datetime | None

    @property
    def token(self) -> Token:
        return Token(self.kind, self.id, self.fingerprint)


# By name: this version must run on the tables of a later one.
_COLUMNS = ", ".join(f"key.{field.name}" for field in fields(Known))


@dataclass(frozen=True, slots=True)
class Process:
    """An engine or web server that lives, and the keys (Token, as text) that it can read."""

    name: str
    kind: str
    version: str
    keys: frozenset[str]
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class Overview:
    """All that is known, at one moment of the database's clock."""

    now: datetime
    keys: list[Known]
    living: list[Process]

    def agreed(self) -> Agreed:
        active = {key.kind: key.id for key in self.keys if key.state == "active"}
        used = frozenset(key.token for key in self.keys if key.state in ("active", "retired"))
        return Agreed(active, used)

    def lack(self, token: Token) -> list[Process]:
        """Who lives and cannot read this key."""
        return [process for process in self.living if str(token) not in process.keys]

    def is_lost(self, token: Token) -> bool:
        """Whether there are processes, and none of them can read this key."""
        return bool(self.living) and len(self.lack(token)) == len(self.living)


def look(conn: psycopg.Connection, silence: timedelta) -> Overview:
    """What is known now. Who has said nothing for `silence` has ended."""
    row = conn.execute("select clock_timestamp()").fetchone()
    assert row is not None
    with conn.cursor(row_factory=class_row(Known)) as cursor:
        keys = cursor.execute(f"select {_COLUMNS} from key order by number").fetchall()  # noqa: S608
    living = conn.execute(
        "select name, kind, version, keys, seen_at from process where seen_at > clock_timestamp() - %s order by name",
        [silence],
    ).fetchall()
    return Overview(row[0], keys, [Process(n, k, v, frozenset(keys), s) for n, k, v, keys, s in living])


def say(
    conn: psycopg.Connection,
    name: str,
    kind: str,
    version: str,
    readable: Iterable[Token],
    silence: timedelta,
) -> Overview:
    """Say that this process lives and what it can read; hear what is known. One short transaction."""
    with conn.transaction():
        conn.execute("select pg_advisory_xact_lock_shared(%s)", [AGREE])
        conn.execute(
            "insert into process (name, kind, version, keys, seen_at) values (%s, %s, %s, %s, clock_timestamp())"
            " on conflict (name) do update set keys = excluded.keys, seen_at = excluded.seen_at",
            [name, kind, version, sorted(map(str, readable))],
        )
        return look(conn, silence)


def goodbye(conn: psycopg.Connection, name: str) -> None:
    """This process ends: nobody needs to wait for it. Forgets those, too, that ended without a word."""
    conn.execute(
        "delete from process where name = %s or seen_at < clock_timestamp() - interval '1 day'", [name]
    )
    conn.execute(f"notify {CHANNEL}")


def is_due(overview: Overview, readable: frozenset[Token], *, activate: bool) -> bool:
    """Whether `agree` has something to do."""
    return bool(_strange(overview, readable)) or (
        activate
        and any(
            key.state == "waiting" and (_is_ready(key, overview) or _is_lost(key, overview))
            for key in overview.keys
        )
    )


def agree(
    conn: psycopg.Connection, keys: Keys, lead: timedelta, silence: timedelta, *, activate: bool = True
) -> Overview:
    """Take up what is new: keys that nobody has heard of, and a waiting key whose time has come.

    A key that is new in the keyring waits `lead` at least. With `activate` False only the former: the caller
    has not listened for long enough to know who lives.
    """
    with conn.transaction():
        conn.execute("set local lock_timeout = '2s'")
        conn.execute("select pg_advisory_xact_lock(%s)", [AGREE])
        overview = look(conn, silence)
        _register(conn, keys, overview, lead)
        if activate:
            for kind in ALL_KINDS:
                waiting = [key for key in overview.keys if key.kind == kind and key.state == "waiting"]
                ready = [key for key in waiting if _is_ready(key, overview)]
                if ready:
                    _activate(conn, ready[-1])
                for key in waiting:
                    if _is_lost(key, overview):
                        conn.execute("delete from key where number = %s and state = 'waiting'", [key.number])
        overview = look(conn, silence)
        conn.execute(f"notify {CHANNEL}")
    return overview


def rotate(
    conn: psycopg.Connection, keys: Keys, kind: str, lead: timedelta, silence: timedelta, *, now: bool = False
) -> Known:
    """Add a key of this kind to the keyring, to become active after `lead` when everybody can read it; or `now`.

    `now` waits for nobody: who cannot read it has to answer "try again" until it can. Where caplai only reads
    the keyring, `now` takes the newest key that waits there. Raises KeyringError, such as on a host that lacks keys
    in use: its keyring is another one. Keys that no host has any more do not count for `now`.
    """
    before = agree(conn, keys, lead, silence, activate=False)  # what was there before is older
    missing = before.agreed().needed - keys.readable()
    if missing and not (now and all(before.is_lost(one) for one in missing)):
        raise KeyringError(
            f"{keys.place} lacks keys that are in use (caplai keys list), so no key of it becomes active."
            " Copy the keyring from a host that has them first."
        )
    added = keys.add(kind) if keys.writable or not now else None
    with conn.transaction():
        conn.execute("select pg_advisory_xact_lock(%s)", [AGREE])
        _register(conn, keys, look(conn, silence), lead, although_missing=bool(missing))
        readable = keys.readable()
        mine = [
            key
            for key in look(conn, silence).keys
            if key.kind == kind
            and key.token in readable
            and (
                key.state == "waiting" if added is None else key.id == added
            )  # an engine may have been quick
        ]
        if not mine:
            raise KeyringError(f"There is no new {kind} key in {keys.place} that could become active.")
        if now and mine[-1].state == "waiting":
            _activate(conn, mine[-1])
        conn.execute(f"notify {CHANNEL}")
    return mine[-1]


def begin_opening(conn: psycopg.Connection) -> None:
    """For who is about to open cases, before it reads which issuing key is active; until the transaction ends."""
    conn.execute("select pg_advisory_xact_lock_shared(%s)", [OPENING])


def still_needed(conn: psycopg.Connection, key: Known, session_age: timedelta) -> str | None:
    """What still needs a retired key, in words; None: nothing, and nothing ever will.

    Slow for issuing keys and peppers: it reads all open cases, or all logins.
    """
    if key.kind == "issuing":
        _wait_for_openers(conn)
        # A reply that waits for its key belongs to an open case, or is dropped (deliver.drop_dead).
        count = _count(
            conn,
            "select count(*) from reissue_case where key = %s and ended_at is null and expires_at > clock_timestamp()",
            key.id,
        )
        if count:
            return f"{count} open cases"
        count = _count(
            conn,
            "select count(*) from recovery where key = %s and ended_at is null and expires_at > clock_timestamp()",
            key.id,
        )
        return f"{count} one-time codes" if count else None
    assert key.retired_at is not None
    until = key.retired_at + STALE + (session_age if key.kind == "web" else timedelta())
    row = conn.execute("select clock_timestamp() < %s", [until]).fetchone()
    if row is None or row[0]:
        return (
            f"{'sessions' if key.kind == 'web' else 'sign-ins under way'}, until {until.astimezone():%F %R}"
        )
    if key.kind in ("web", SIGNING):  # an ID token is checked within minutes of its sign-in
        return None
    count = _count(conn, "select count(*) from login where split_part(password, '$', 2) = %s", key.id)
    return f"{count} chosen passwords" if count else None


def in_use(conn: psycopg.Connection) -> dict[tuple[str, str], str]:
    """What needs each key now, in words: (kind, id) → "12 open cases"."""
    used = {
        ("issuing", key): f"{count} open cases"
        for key, count in conn.execute(
            "select key, count(*) from reissue_case where ended_at is null and expires_at > now() group by key"
        ).fetchall()
    }
    for key, count in conn.execute(
        "select key, count(*) from recovery where ended_at is null and expires_at > now() group by key"
    ).fetchall():
        used["issuing", key] = ", ".join(
            filter(None, [used.get(("issuing", key)), f"{count} one-time codes"])
        )
    return used | {
        ("pepper", key): f"{count} chosen passwords"
        for key, count in conn.execute(
            "select split_part(password, '$', 2), count(*) from login where password like 'argon2p$%' group by 1"
        ).fetchall()
    }


_CLAIM_LOOK = f"""
update key set looked_at = clock_timestamp() from unnest(%s::text[], %s::interval[]) as r (kind, rest)
where key.kind = r.kind and state = 'retired' and activated_at is not null
and retired_at < clock_timestamp() - rest and coalesce(looked_at < clock_timestamp() - %s, true)
returning {_COLUMNS}
"""  # noqa: S608


def end_unneeded(conn: psycopg.Connection, session_age: timedelta) -> list[Token]:
    """Decide that keys which have retired for a while and which nothing needs are destroyed; returns those.

    Each host then removes them from its keyring (Presence). Keys that were never active by this database's
    word are not its to destroy. Looks at each key once an hour at most, whoever asks, for the looking is slow.
    """
    with conn.cursor(row_factory=class_row(Known)) as cursor:
        due = cursor.execute(_CLAIM_LOOK, [list(_REST), list(_REST.values()), _LOOK_EVERY]).fetchall()
    ended = []
    for key in due:
        try:
            if still_needed(conn, key, session_age) is None and end(conn, key):
                ended.append(key.token)
        except psycopg.errors.LockNotAvailable:
            conn.execute("update key set looked_at = null where number = %s", [key.number])
    return ended


def end(conn: psycopg.Connection, key: Known) -> bool:
    """Decide that this retired key is destroyed. The caller has asked `still_needed`."""
    with conn.transaction():
        done = conn.execute(
            "update key set state = 'destroyed', destroyed_at = clock_timestamp()"
            " where number = %s and state = 'retired'",
            [key.number],
        ).rowcount
        if done:
            _tell(conn, "key_destroyed", key.kind, key.id)
            conn.execute(f"notify {CHANNEL}")
    return bool(done)


def end_cases(conn: psycopg.Connection, key_id: str) -> int:
    """End every open case of this issuing key: its passwords sign in no more; returns how many there were.

    For a key that is lost or known to others. The next text of each person opens a new case.
    """
    ended, after = 0, ""
    while True:
        accounts = [
            account
            for (account,) in conn.execute(
                "select account from reissue_case where key = %s and ended_at is null"
                " and expires_at > clock_timestamp() and account > %s order by account limit %s",
                [key_id, after, _SLICE],
            ).fetchall()
        ]
        if not accounts:
            return ended
        after = accounts[-1]
        with conn.transaction():
            locks.take(conn, map(locks.account_key, accounts))
            ended += conn.execute(
                "update reissue_case set ended_at = clock_timestamp(), ended_as = 'key_destroyed'"
                " where account = any(%s::text[]) and key = %s and ended_at is null",
                [accounts, key_id],
            ).rowcount


def forget(conn: psycopg.Connection) -> None:
    """Agree on the keys anew, from what the keyrings hold. For a database that came back from a backup, once
    all its open cases are ended: what it says of keys is as old as the backup, and so may be its active one.
    """
    with conn.transaction():
        conn.execute("select pg_advisory_xact_lock(%s)", [AGREE])
        conn.execute("delete from key")
        conn.execute("delete from process")
        conn.execute(f"notify {CHANNEL}")


def _is_ready(key: Known, overview: Overview) -> bool:
    return key.not_before <= overview.now and bool(overview.living) and not overview.lack(key.token)


def _is_lost(key: Known, overview: Overview) -> bool:
    """It was added and taken away again: nobody has it."""
    return key.not_before < overview.now - STALE and overview.is_lost(key.token)


def _strange(
    overview: Overview, readable: frozenset[Token], although_missing: bool = False
) -> frozenset[Token]:
    """Readable keys to take up. None of a host that lacks what is in use: its keyring is another one."""
    if overview.agreed().needed - readable and not although_missing:
        return frozenset()
    known = {(key.kind, key.id) for key in overview.keys}
    return frozenset(token for token in readable if (token.kind, token.id) not in known)


def _register(
    conn: psycopg.Connection,
    keys: Keys,
    overview: Overview,
    lead: timedelta,
    *,
    although_missing: bool = False,
) -> None:
    content, strange = keys.read(), _strange(overview, keys.readable(), although_missing)
    if not strange:
        return
    for kind in ALL_KINDS:
        order = list(content.get(kind, {}))
        tokens = sorted((one for one in strange if one.kind == kind), key=lambda one: order.index(one.id))
        if not tokens:
            continue
        # The first of a kind that came later than the others waits for all hosts, too: some may run an older version.
        if any(key.state == "active" and key.kind in (kind, "web") for key in overview.keys):
            for one in tokens:
                _insert(conn, one, "waiting", lead)
                _tell(conn, "key_added", kind, one.id)
            continue
        first = keys.first(kind)
        for one in tokens:  # a new installation, or one from before there was this table
            place = order.index(one.id) - order.index(first)
            _insert(conn, one, "active" if not place else "waiting" if place > 0 else "retired", lead)


def _insert(conn: psycopg.Connection, one: Token, state: str, lead: timedelta) -> None:
    conn.execute(
        "insert into key (kind, id, fingerprint, state, not_before, activated_at, retired_at)"
        " select %(kind)s, %(id)s, %(fingerprint)s, %(state)s, now + %(lead)s,"
        " case when %(state)s = 'active' then now end, case when %(state)s = 'retired' then now end"
        " from clock_timestamp() as now",
        {"kind": one.kind, "id": one.id, "fingerprint": one.fingerprint, "state": state, "lead": lead},
    )


def _activate(conn: psycopg.Connection, key: Known) -> None:
    conn.execute(
        "update key set state = 'retired', retired_at = clock_timestamp() where kind = %s and state = 'active'",
        [key.kind],
    )
    # One that waited longer is passed over: nothing was ever made with it.
    conn.execute(
        "update key set state = 'destroyed', destroyed_at = clock_timestamp()"
        " where kind = %s and state = 'waiting' and number < %s",
        [key.kind, key.number],
    )
    conn.execute(
        "update key set state = 'active', activated_at = clock_timestamp() where number = %s", [key.number]
    )
    _tell(conn, "key_activated", key.kind, key.id)


def _wait_for_openers(conn: psycopg.Connection) -> None:
    """Return when whoever might have read an older active key has ended.

    Meanwhile nobody new can open a case, so it raises LockNotAvailable after a second.
    """
    with conn.transaction():
        conn.execute("set local lock_timeout = '1s'")
        conn.execute("select pg_advisory_xact_lock(%s)", [OPENING])


def _count(conn: psycopg.Connection, query: str, key_id: str) -> int:
    row = conn.execute(query, [key_id]).fetchone()
    assert row is not None
    return row[0]


def _tell(conn: psycopg.Connection, event: str, kind: str, key_id: str) -> None:
    data: Mapping[str, str] = {"kind": kind, "id": key_id}
    conn.execute("insert into event (kind, data) values (%s, %s)", [event, Json(data)])
