"""What the verbs of a forgotten password (forgotten.py) go by: the rules, who asks, a request as it is stored, and the
facts of one code and one asker, gathered under the locks of all that they are about.
"""

import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from django.db import connection, transaction

from caplai.domain import otp
from caplai.domain.otp import Budget, Budgets, Channel, Spent
from caplai.service import credentials, keys, locks, mail, requests
from caplai.store.db import named_lock
from caplai.store.keyring import KeyringError

SITE = named_lock(11, "otp")
"""The lock of what the whole site sends by SMS: the last of all, and the only one that strangers wait at together."""
PROVED, LINKED = "proved", "linked"
"""How a request ended well: in the browser that asked, or by the link of its e-mail in another one."""
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True, slots=True, repr=False)
class Rules:
    """What the operator configured, as these verbs need it."""

    reissue: requests.Rules
    signin: credentials.Rules
    budgets: Budgets
    lifetime: timedelta
    mail_lifetime: timedelta
    wording: str
    """Of the OTP's text."""
    granted: str
    granted_family: str
    """Wordings of the new password's text; `family` for a phone of several accounts."""
    sender: str
    choose_at_once: bool

    def can_send(self, channel: Channel) -> bool:
        """Whether any link takes messages that answer none; whether there is a mail server."""
        return mail.is_on() if channel is Channel.EMAIL else self.reissue.mt_link is not None

    def chooses(self, channel: Channel) -> bool:
        """Whether the proof leads to choosing a password on the spot, and none is sent to the phone."""
        return self.choose_at_once or channel is Channel.EMAIL

    def lasts(self, channel: Channel) -> timedelta:
        return self.mail_lifetime if channel is Channel.EMAIL else self.lifetime


@dataclass(frozen=True, slots=True, repr=False)
class Asker:
    """Who asks: a network as the doors name it, and the token that the device brought, if any."""

    network: str
    device: str | None = None

    @property
    def prefix(self) -> str:
        """The neighbourhood: an IPv4 /24, an IPv6 /48."""
        try:
            found = ipaddress.ip_network(self.network, strict=False)
        except ValueError:
            return self.network
        return str(found.supernet(new_prefix=24 if found.version == 4 else 48))


_RECOVERY = (
    "id, code, channel, phone, addresses, network, key, version, created_at, expires_at, tries, asks, asked_at,"
    " ended_at, ended_as, proved_at, outcome, until, by_text, secret_hash"
)


@dataclass(slots=True, repr=False)
class Row:
    """A row of `recovery`, as _RECOVERY names its columns."""

    id: UUID
    code: str
    channel: Channel
    phone: str | None
    addresses: bytes | None
    network: str
    key: str
    version: int
    created_at: datetime
    expires_at: datetime
    tries: int
    asks: int
    asked_at: datetime
    ended_at: datetime | None
    ended_as: str | None
    proved_at: datetime | None
    outcome: str | None
    until: datetime | None
    by_text: bool | None
    secret_hash: bytes

    def seems_alive(self, now: datetime) -> bool:
        """Whether it has not ended as far as the browser knows that asked, which hears nothing of LINKED."""
        open_ = self.ended_at is None or (self.ended_as == LINKED and self.tries < otp.TRIES)
        return open_ and self.expires_at > now


@dataclass(frozen=True, slots=True, repr=False)
class Facts:
    """What the store knows about one code and one asker, at one moment under the locks."""

    now: datetime
    open: bool
    key: str | None
    """The active issuing key."""
    account: str | None
    phone: str | None
    approved: bool
    device: int | None
    """As credentials.KNOWN_DEVICE has it."""
    guesses: int
    """Wrong ones that count: of this device if it is known, else of all unknown devices together."""
    site_failures: int
    failures: list[datetime]
    spent: Spent

    def is_reachable(self, rules: Rules) -> bool:
        """Whether an OTP could open anything."""
        return self.approved and self.guesses < rules.signin.guesses

    def is_told(self, rules: Rules, channel: Channel) -> bool:
        """Whether a message goes out: by SMS digits alone, in a mail there is a link, which guesses do not close."""
        open_ = self.approved if channel is Channel.EMAIL else self.is_reachable(rules)
        return open_ and not otp.silenced(self.spent, rules.budgets, channel)


_GATHER = f"""
select t.now, coalesce((select (value->>'open')::bool from switch where name = 'service'), true),
       (select id from key where kind = 'issuing' and state = 'active'),
       a.code, a.phone,
       -- A hold switches the login off, too; its owner is told of it after the proof.
       coalesce(a.state = 'approved', false) and (coalesce(l.is_active, true) or exists (
           select from hold h where h.account = a.code and h.lifted_at is null and h.switched_off)), d.id,
       (select count(*) from guess g where g.account = a.code and not g.cleared
           and g.at > t.now - %(guess_window)s and g.device is not distinct from d.id),
       (select count(*) from (select from guess g where g.at > t.now - interval '1 minute' limit %(minute)s) x),
       array(select g.at from guess g where g.network = %(network)s and g.at > t.now - %(network_window)s
           order by g.at desc limit %(network_failures)s),
       (select coalesce(sum(asks), 0)::int from recovery where code = %(code)s and created_at > t.now - %(day)s
           and channel = %(channel)s and (network = %(network)s or secret_hash = any(%(kept)s::bytea[]))),
       (select coalesce(sum(sends), 0)::int from recovery where code = %(code)s and created_at > t.now - %(day)s
           and channel = %(channel)s),
       (select coalesce(sum(sends), 0)::int from recovery where phone = a.phone and created_at > t.now - %(day)s),
       (select coalesce(sum(asks), 0)::int from recovery where network = %(network)s and created_at > t.now - %(day)s),
       (select coalesce(sum(asks), 0)::int from recovery where prefix = %(prefix)s and created_at > t.now - %(hour)s)
from (select clock_timestamp() as now) t
left join account a on a.code = %(code)s
left join login l on l.username = %(code)s
{credentials.KNOWN_DEVICE}
"""  # noqa: S608 - a constant

SENT_BY_SITE = """
select coalesce(sum(sends), 0)::int, count(*) filter (where expires_at <= %(now)s)::int,
       count(*) filter (where expires_at <= %(now)s and proved_at is null)::int
from recovery where created_at > %(now)s - %(hour)s and channel = 'sms' and sends > 0
"""
"""Only what was sent, which `site_hour` bounds: of wishes for unknown codes there may be any number."""


def gather_facts(
    conn: psycopg.Connection,
    code: str,
    asker: Asker,
    rules: Rules,
    channel: Channel,
    kept: Iterable[str] = (),
) -> Facts:
    """All but what the site spent (gather_site). `kept`: the secrets of this browser's requests."""
    signin = rules.signin
    keys.begin_opening(conn)
    row = conn.execute(
        _GATHER,
        {
            "code": code,
            "channel": channel.value,
            "device": hash_of(asker.device) if asker.device else None,
            "network": asker.network,
            "kept": [hash_of(secret) for secret in kept],
            "prefix": asker.prefix,
            "guess_window": signin.guess_window,
            "guesses": signin.guesses,
            "network_window": signin.network_window,
            "network_failures": signin.network_failures,
            "minute": signin.site_failures_minute,
            "hour": _HOUR,
            "day": _DAY,
        },
    ).fetchone()
    assert row is not None
    return Facts(*row[:-5], Spent(*row[-5:]))  # type: ignore[call-arg]


_TAKEN = """
select count(*)::int, count(*) filter (where r.proved_at is null)::int
from recovery r
where r.created_at > %(now)s - %(hour)s and r.channel = 'sms' and r.sends > 0 and r.expires_at <= %(now)s
and exists (select from outbox o where o.recovery_id = r.id and o.state = 'sent')
"""
"""Of those, what a carrier took: while it takes nothing nobody can type anything, and that is no pumping."""


def gather_site(conn: psycopg.Connection, facts: Facts, rules: Rules) -> Spent:
    """What was spent, with the site's part of it, under the site's lock from here on."""
    locks.take(conn, [SITE])
    since = {"now": facts.now, "hour": _HOUR}
    row = conn.execute(SENT_BY_SITE, since).fetchone()
    assert row is not None
    spent = replace(facts.spent, site=row[0], settled=row[1], unverified=row[2])
    if otp.exhausted(spent, rules.budgets) is Budget.UNVERIFIED:  # so it costs little where all is well
        taken = conn.execute(_TAKEN, since).fetchone()
        assert taken is not None
        spent = replace(spent, settled=taken[0], unverified=taken[1])
    return spent


_FREE_AGAIN = """
select date_trunc('hour', coalesce(greatest(
    (select created_at from (
        select created_at, sum(asks) over (order by created_at desc, id) as newer from recovery
        where code = %(code)s and channel = %(channel)s and created_at > %(now)s - %(day)s
            and (network = %(network)s or secret_hash = any(%(kept)s::bytea[]))) x
     where newer >= %(code_day)s order by created_at desc limit 1),
    (select created_at from (
        select created_at, sum(asks) over (order by created_at desc, id) as newer from recovery
        where network = %(network)s and created_at > %(now)s - %(day)s) x
     where newer >= %(network_day)s order by created_at desc limit 1)), %(now)s) + %(day)s) + interval '1 hour'
"""


def free_again(
    conn: psycopg.Connection,
    code: str,
    asker: Asker,
    channel: Channel,
    facts: Facts,
    budgets: Budgets,
    kept: Iterable[str] = (),
) -> datetime:
    """When the budgets of this asker for this code, and of the network, one of which is used up, let one more wish pass
    if there is none until then. The next whole hour: nobody needs to learn to the minute when a neighbour asked.
    """
    row = conn.execute(
        _FREE_AGAIN,
        {
            "code": code,
            "channel": channel.value,
            "network": asker.network,
            "kept": [hash_of(secret) for secret in kept],
            "now": facts.now,
            "day": _DAY,
            "code_day": budgets.code_day,
            "network_day": budgets.network_day,
        },
    ).fetchone()
    assert row is not None
    return row[0]


def find(conn: psycopg.Connection, secret: str | None) -> Row | None:
    found = conn.execute(
        f"select {_RECOVERY} from recovery where secret_hash = %s",  # noqa: S608 - names of columns
        [hash_of(secret or "")],
    ).fetchone()
    return _row(found)


def find_all(conn: psycopg.Connection, secrets: Iterable[str]) -> dict[str, Row]:
    """The requests of these secrets, in their order, by the secret; those that there are."""
    by_hash = {hash_of(secret): secret for secret in secrets}
    rows = conn.execute(
        f"select {_RECOVERY} from recovery where secret_hash = any(%s::bytea[])",  # noqa: S608 - names of columns
        [list(by_hash)],
    ).fetchall()
    found = {bytes(row.secret_hash): row for row in map(_row, rows) if row is not None}
    return {secret: found[hash_] for hash_, secret in by_hash.items() if hash_ in found}


def named(conn: psycopg.Connection, id_: UUID) -> Row | None:
    return _row(conn.execute(f"select {_RECOVERY} from recovery where id = %s", [id_]).fetchone())  # noqa: S608


def _row(found: tuple[Any, ...] | None) -> Row | None:
    if found is None:
        return None
    row = Row(*found)
    row.channel = Channel(row.channel)
    return row


def look_up(conn: psycopg.Connection, code: str) -> tuple[datetime, str | None]:
    """The time, and which phone has to be locked; it is read again under the lock."""
    row = conn.execute(
        "select clock_timestamp(), (select phone from account where code = %s)", [code]
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def lock(conn: psycopg.Connection, code: str, phone: str | None, asker: Asker) -> None:
    """Lock all subjects but the site. A code that nobody has has a phone that nobody has.

    Whoever has to wait for longer than two seconds at any of them, or later at the site's, is told to try again (503):
    else every thread of a web server could come to stand here, and nobody could sign in.
    """
    conn.execute("set local lock_timeout = '2s'")
    wanted = [
        locks.account_key(code),
        locks.phone_key(phone or f"none/{code}"),
        locks.network_key(asker.network),
        locks.network_key(asker.prefix),
    ]
    locks.take(conn, wanted)


class Locked(NamedTuple):
    """A request as it is under its locks.

    `phone`: the one that was locked. The account's may have changed just before. reissue() takes the locks of account
    and phone again, and everybody takes those before the network's: so the new phone is not locked now, but at the
    next try.
    """

    row: Row
    phone: str | None
    now: datetime
    """When the account was looked up."""


def lock_request(conn: psycopg.Connection, find_it: Callable[[], Row | None], asker: Asker) -> Locked | None:
    """The request, if there is one, under the locks of all that it is about."""
    row = find_it()
    if row is None:
        return None
    now, phone = look_up(conn, row.code)
    lock(conn, row.code, phone, asker)
    row = find_it()
    return None if row is None else Locked(row, phone, now)


def insist_on_keys(rules: Rules) -> None:
    """KeyringError for all alike: else a stranger could tell whose request needs the key."""
    if rules.signin.lacks_keys:
        raise KeyringError("this host lacks a key that is in use")


@contextmanager
def one_transaction() -> Iterator[psycopg.Connection[Any]]:
    """A verb's, on Django's connection."""
    with transaction.atomic(), connection.wrap_database_errors:
        yield connection.connection


def hash_of(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
