"""Retention: what is too old is removed, and what figures need stays without a person in it.

The job works in small steps, each a short transaction that also moves its own mark, so it may be stopped or
killed anywhere and goes on from there. One runs at a time, whoever starts it (an advisory lock); where the flow
holds what it wants, it gives way and comes back.

What stays for ever: the rows of `inbox`, `outbox` and `reissue_case`, without text, phone and code. There is no
pseudonym that could be enumerated or that somebody's key could open. What the figures ask about a person's other
cases is written into the case in its stead, when its account goes:

- `nth`: which of its account's cases of that month it was. People with n re-issues in a month are the cases with
  `nth` = n, less those with `nth` = n + 1.
- `previous_on`: the day of the account's case before it. A period's distinct people are its cases whose previous
  one lies before the period (or nowhere); who came back within 30 days is in it, too. It is a day among
  thousands of cases, not a time that would name one.

While a case has its account both are read from the account's cases instead; `previous_on` is set already where
the one before has lost its account. Days and months are the agency's (Django's TIME_ZONE). A month's cases lose
their accounts together, each person's in one transaction, so the figures hold at any moment. They are exact for
every period that is no longer than accounts are kept.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from psycopg.types.json import Jsonb

from caplai.service import locks
from caplai.store.db import named_lock
from caplai.store.models import FiguresHeavy

log = logging.getLogger(__name__)

STEP = 500
"""Rows of one step: some tens of milliseconds."""
_LOCK = named_lock(9, "retention")
_PATIENCE = 10
"""How often a step gives way to the flow before its kind of data waits for the next run."""


@dataclass(frozen=True, slots=True)
class Keep:
    """How long each kind of data is kept, and how many rows a second are gone through at most."""

    texts: timedelta
    phones: timedelta
    accounts: timedelta
    events: timedelta
    links: timedelta
    guesses: timedelta
    rate: int
    zone: ZoneInfo

    def month(self, now: datetime, age: timedelta) -> datetime:
        """The begin of the month that is not yet over for `age`: everything before it is."""
        local = (now - age).astimezone(self.zone)
        return local.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


@dataclass(frozen=True, slots=True)
class Due:
    """What one kind of data would lose now."""

    name: str
    says: str
    before: datetime
    """What is older."""
    rows: int


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one kind of data in a run."""

    name: str
    says: str
    rows: int
    left: bool
    """Whether it gave way to the flow, or was stopped, before the end."""


# --- the kinds of work -----------------------------------------------------------------------------

# Each has `step(conn, keep, now, mark)`, one transaction's work, which returns the next mark, the rows changed and
# whether that was all; and `count(conn, keep, now, mark)`, how many rows the steps from this mark on would change.


@dataclass(frozen=True)
class _Walk:
    """Blanks columns of a table that is gone through once, in the order of its ids.

    It stops before a row that is still at work: what is not finished keeps what it needs.
    """

    name: str
    says: str
    table: str
    when: str
    kept: Callable[[Keep], timedelta]
    at_work: str
    change: str

    def before(self, keep: Keep, now: datetime) -> datetime:
        return now - self.kept(keep)

    def step(self, conn, keep, now, mark):
        rows = conn.execute(
            f"select id, {self.when} < %s and not ({self.at_work}) from {self.table} where id > %s"  # noqa: S608
            " order by id limit %s",
            [self.before(keep, now), mark.get("id", 0), STEP],
        ).fetchall()
        ids = [id_ for id_, _ in itertools.takewhile(lambda row: row[1], rows)]
        changed = conn.execute(
            f"update {self.table} set {self.change} where id = any(%s) and not ({self.at_work}) returning id",  # noqa: S608
            [ids],
        ).fetchall()
        # One that has come to work again meanwhile (a parked message) is left, and all behind it.
        there = {id_ for (id_,) in changed}
        ids = list(itertools.takewhile(there.__contains__, ids))
        return ({"id": ids[-1]} if ids else mark), len(changed), len(ids) < STEP

    def count(self, conn, keep, now, mark):
        [[rows]] = conn.execute(
            f"select count(*) from {self.table} where id > %s and {self.when} < %s and not ({self.at_work})",  # noqa: S608
            [mark.get("id", 0), self.before(keep, now)],
        ).fetchall()
        return rows


@dataclass(frozen=True)
class _Delete:
    """Removes rows. `some` finds a few (`%(before)s`, `%(count)s`) at a cost that does not grow with the table."""

    name: str
    says: str
    table: str
    key: str
    kept: Callable[[Keep], timedelta]
    some: str
    old: str

    def before(self, keep: Keep, now: datetime) -> datetime:
        return now - self.kept(keep)

    def step(self, conn, keep, now, mark):
        rows = conn.execute(
            f"delete from {self.table} where {self.key} in ({self.some}) and {self.old}",  # noqa: S608
            {"before": self.before(keep, now), "count": STEP},
        ).rowcount
        return mark, rows, rows == 0

    def count(self, conn, keep, now, mark):
        [[rows]] = conn.execute(
            f"select count(*) from {self.table} where {self.old}",  # noqa: S608
            {"before": self.before(keep, now)},
        ).fetchall()
        return rows


def _oldest(table: str, old: str) -> str:
    """The old ones among the first rows of a table whose ids rise with time."""
    return f"select id from (select * from {table} order by id limit %(count)s) _ where {old}"  # noqa: S608


_PHONES = "opened_at < %(phones)s and phone <> ''"
_ACCOUNTS = "opened_at < %(accounts)s and account <> ''"

# Cases that nobody's next request has ended yet. Nothing lives for months.
_UNENDED = """
select account from reissue_case where account > %(after)s and account <= %(upto)s and opened_at < %(accounts)s
and ended_at is null
"""

# All cases of these accounts are looked at: the first one that keeps its account is told of the one before it.
_BLANK_ACCOUNTS = """
with person as (
    select account, id, opened_at,
           row_number() over (partition by account, date_trunc('month', opened_at at time zone %(zone)s)
                              order by opened_at, id) as nth,
           lag(opened_at) over (partition by account order by opened_at, id) as earlier
    from reissue_case where account > %(after)s and account <= %(upto)s
)
update reissue_case c set
    previous_on = coalesce((p.earlier at time zone %(zone)s)::date, c.previous_on),
    nth = case when p.opened_at < %(accounts)s then p.nth end,
    account = case when p.opened_at < %(accounts)s then '' else c.account end,
    phone = case when p.opened_at < %(accounts)s then '' else c.phone end,
    ended_at = case when p.opened_at < %(accounts)s then coalesce(c.ended_at, c.expires_at) else c.ended_at end,
    ended_as = case when p.opened_at < %(accounts)s then coalesce(c.ended_as, 'expired') else c.ended_as end
from person p where c.account = p.account and c.id = p.id
and (p.opened_at < %(accounts)s or p.earlier < %(accounts)s)
returning c.account = ''
"""


class _Cases:
    """Takes the phone, and later the account, from the cases of months that are over for long enough.

    Gone through once a month by account, for there is no index by time: that would cost each re-issue something.
    """

    name = "cases"
    says = "phones and accounts of cases"

    def before(self, keep: Keep, now: datetime) -> datetime:
        return keep.month(now, keep.phones)

    def step(self, conn, keep, now, mark):
        values = self._values(keep, now)
        cut = f"{values['phones']:%F} {values['accounts']:%F}"
        if mark.get("done") == cut:
            return mark, 0, True
        after = mark.get("after", "") if mark.get("cut") == cut else ""
        [[upto]] = conn.execute(
            "select max(account) from (select account from reissue_case where account > %s"
            " order by account limit %s) _",
            [after, STEP],
        ).fetchall()
        if upto is None:
            return {"done": cut}, 0, True
        values |= {"after": after, "upto": upto}
        unended = conn.execute(_UNENDED, values).fetchall()
        locks.take(conn, (locks.account_key(account) for (account,) in unended))
        # The window's range, and not a list of accounts: a person's cases are taken together.
        rows = conn.execute(
            "update reissue_case set phone = ''"  # noqa: S608
            f" where account > %(after)s and account <= %(upto)s and {_PHONES} and not ({_ACCOUNTS})",
            values,
        ).rowcount
        rows += sum(blanked for (blanked,) in conn.execute(_BLANK_ACCOUNTS, values).fetchall())
        return {"after": upto, "cut": cut}, rows, False

    def count(self, conn, keep, now, mark):
        [[rows]] = conn.execute(
            f"select count(*) from reissue_case where {_PHONES} or {_ACCOUNTS}",  # noqa: S608
            self._values(keep, now),
        ).fetchall()
        return rows

    def _values(self, keep: Keep, now: datetime) -> dict[str, Any]:
        return {
            "phones": keep.month(now, keep.phones),
            "accounts": keep.month(now, keep.accounts),
            "zone": str(keep.zone),
        }


# A message that is neither decided nor parked, or a reply that somebody holds right now.
_UNDECIDED = "outcome is null and error is null"
_HELD = "state = 'claimed' and due_at > now()"

_OLD_EVENT = "at < %(before)s"
_NEVER_USED = "taken_at < %(before)s"
_OLD_MAIL = "created_at < %(before)s"
_GONE_ADDRESS = "coalesce(removed_at, case when confirmed_at is null then added_at end) < %(before)s"
# By an index each: most addresses stay.
_SOME_GONE_ADDRESSES = """
select id from (
    (select id from address where removed_at < %(before)s order by removed_at limit %(count)s)
    union all
    (select id from address where confirmed_at is null and removed_at is null and added_at < %(before)s
     order by added_at limit %(count)s)) _ limit %(count)s
"""
_LIFTED = "lifted_at < %(before)s"
_OLD_RECEIPT = "received_at < %(before)s"
_LESS_HEAVY = f"number > {FiguresHeavy.FOR_EVER} and month < %(before)s - interval '31 days'"
_OLD_SESSION = "coalesce(ended_at, seen_at) < %(before)s"
_NO_SESSION = "not exists (select from django_session where session_key = row_key)"

_Job = _Walk | _Delete | _Cases

JOBS: tuple[_Job, ...] = (
    # A parked message is given up together with its text: an answer after so long would puzzle its sender.
    _Walk(
        "texts",
        "texts of messages",
        "inbox",
        "received_at",
        lambda keep: keep.texts,
        _UNDECIDED,
        "text = '', outcome = coalesce(outcome, 'given_up'), decided_at = coalesce(decided_at, now())",
    ),
    _Walk(
        "messages",
        "phones of messages",
        "inbox",
        "received_at",
        lambda keep: keep.phones,
        "outcome is null",  # a parked one has been given up before, or is not passed by
        "source = '', request_id = null",
    ),
    # A reply that is still unsent after so long has no link any more: its case has ended in any case.
    _Walk(
        "replies",
        "phones and codes of replies",
        "outbox",
        "created_at",
        lambda keep: keep.phones,
        _HELD,
        "destination = '', account = null, message_id = null, claimed_by = null,"
        " state = case when state in ('ready', 'claimed') then 'expired' else state end,"
        " settled_at = coalesce(settled_at, now())",
    ),
    # Before the cases, which an event would otherwise still tie to a login.
    _Delete(
        "events", "events", "event", "id", lambda keep: keep.events, _oldest("event", _OLD_EVENT), _OLD_EVENT
    ),
    _Cases(),
    # Whoever has not used it by then texts for a new one; it is not protected by a pepper of ours.
    _Delete(
        "old-passwords",
        "passwords taken over and never used",
        "taken_over_password",
        "code",
        lambda keep: keep.accounts,
        f"select code from taken_over_password where {_NEVER_USED} limit %(count)s",  # noqa: S608
        _NEVER_USED,
    ),
    _Delete(
        "receipts",
        "delivery receipts as they came",
        "receipt",
        "id",
        lambda keep: keep.links,
        _oldest("receipt", _OLD_RECEIPT),
        _OLD_RECEIPT,
    ),
    _Delete(
        "mails",
        "e-mails that have been sent",
        "mail",
        "id",
        lambda keep: keep.links,
        _oldest("mail", _OLD_MAIL),
        _OLD_MAIL,
    ),
    _Delete(
        "addresses",
        "addresses that were removed, or never confirmed",
        "address",
        "id",
        lambda keep: keep.links,
        _SOME_GONE_ADDRESSES,
        _GONE_ADDRESS,
    ),
    _Delete(
        "holds",
        "holds of accounts that were lifted",
        "hold",
        "id",
        lambda keep: keep.events,
        f"select id from hold where {_LIFTED} limit %(count)s",  # noqa: S608
        _LIFTED,
    ),
    _Delete(
        "binds",
        "binds to carriers that have ended",
        "link_session",
        "id",
        lambda keep: keep.links,
        _oldest("link_session", _OLD_SESSION),
        _OLD_SESSION,
    ),
    _Delete(
        "processes",
        "engines and web servers that have ended",
        "process",
        "name",
        lambda keep: keep.links,
        "select name from process where seen_at < %(before)s limit %(count)s",
        "seen_at < %(before)s",
    ),
    # Masked, and with the days that they asked on, many would stand out; the heaviest of a month do in any case.
    _Delete(
        "figures",
        f"masked phones of figures beyond the {FiguresHeavy.FOR_EVER} heaviest of a month",
        "figures_heavy",
        "(month, number, day)",
        lambda keep: keep.phones,
        f"select month, number, day from figures_heavy where {_LESS_HEAVY} order by number desc limit %(count)s",  # noqa: S608
        _LESS_HEAVY,
    ),
    # Of a link that is configured the engine itself joins and removes them (store/queues.py).
    _Delete(
        "parts",
        "parts of long messages that nobody joined",
        "segment",
        "id",
        lambda keep: keep.texts,
        "select id from segment where received_at < %(before)s order by received_at limit %(count)s",
        "received_at < %(before)s",
    ),
    _Delete(
        "guesses",
        "failed sign-ins",
        "guess",
        "id",
        lambda keep: keep.guesses,
        "select id from guess where at < %(before)s order by at limit %(count)s",
        "at < %(before)s",
    ),
    _Delete(
        "recoveries",
        "requests of people who forgot a password",
        "recovery",
        "id",
        lambda keep: max(keep.guesses, timedelta(days=2)),  # budgets look at a day
        "select id from recovery where created_at < %(before)s order by created_at limit %(count)s",
        "created_at < %(before)s",
    ),
    _Delete(
        "tokens",
        "codes and tokens of clients that have expired",
        "allauth_idp_oidc_token",
        "id",
        lambda keep: timedelta(0),
        "select id from allauth_idp_oidc_token where expires_at < %(before)s order by expires_at limit %(count)s",
        "expires_at < %(before)s",
    ),
    _Delete(
        "sign-ins",
        "sessions that have expired",
        "django_session",
        "session_key",
        lambda keep: timedelta(0),
        "select session_key from django_session where expire_date < %(before)s order by expire_date limit %(count)s",
        "expire_date < %(before)s",
    ),
    # Of sessions that expired, or were ended by what knows of no sittings.
    _Delete(
        "sittings",
        "who was signed in where, once the session is gone",
        "sitting",
        "id",
        lambda keep: timedelta(0),
        _oldest("sitting", _NO_SESSION),
        _NO_SESSION,
    ),
)


# --- running them ----------------------------------------------------------------------------------


def run(
    conn: psycopg.Connection,
    keep: Keep,
    stop: threading.Event,
    report: Callable[[Done], object] = lambda done: None,
) -> bool:
    """Remove what is too old, until nothing is or `stop` is set; `report` hears of each kind of data.

    False: another run is at it, and nothing was done. Needs a connection in autocommit, for each step is a
    transaction of its own. Raises psycopg.Error when the database is away; the next run goes on.
    """
    assert conn.autocommit, "each step needs a transaction of its own"
    [[alone]] = conn.execute("select pg_try_advisory_lock(%s)", [_LOCK]).fetchall()
    if not alone:
        return False
    try:
        for job in JOBS:
            if stop.is_set():
                break
            report(_run_job(conn, job, keep, stop))
    finally:
        if not conn.closed and not conn.broken:
            conn.execute("select pg_advisory_unlock(%s)", [_LOCK])
    return True


def _run_job(conn: psycopg.Connection, job: _Job, keep: Keep, stop: threading.Event) -> Done:
    total, gave_way, finished = 0, 0, False
    while not finished and not stop.is_set() and gave_way < _PATIENCE:
        begun = time.monotonic()
        try:
            rows, finished = _step(conn, job, keep)
        except (
            psycopg.errors.LockNotAvailable,
            psycopg.errors.QueryCanceled,
            psycopg.errors.DeadlockDetected,
        ):
            gave_way += 1
            stop.wait(1.0)
            continue
        total += rows
        # The flow comes first: as long as a step took, and what the rate asks for.
        pause = max(rows / keep.rate, time.monotonic() - begun)
        if not finished:
            stop.wait(pause)
    return Done(job.name, job.says, total, not finished)


def _step(conn: psycopg.Connection, job: _Job, keep: Keep) -> tuple[int, bool]:
    with conn.transaction():
        # A step that a power failure undoes is done again, so none needs to wait for the disk.
        conn.execute(
            "set local lock_timeout = '200ms'; set local statement_timeout = '5s'; set local synchronous_commit = off"
        )
        conn.execute(
            "insert into retention (name, mark, rows) values (%s, '{}', 0) on conflict do nothing", [job.name]
        )
        [[mark, now]] = conn.execute(
            "select mark, clock_timestamp() from retention where name = %s for update", [job.name]
        ).fetchall()
        mark, rows, finished = job.step(conn, keep, now, mark)
        conn.execute(
            "update retention set mark = %s, rows = rows + %s,"
            " finished_at = case when %s then clock_timestamp() else finished_at end where name = %s",
            [Jsonb(mark), rows, finished, job.name],
        )
    return rows, finished


def due(conn: psycopg.Connection, keep: Keep) -> Iterator[Due]:
    """What a run would remove now, counted row by row; changes nothing."""
    for job in JOBS:
        found = conn.execute(
            "select clock_timestamp(), (select mark from retention where name = %s)", [job.name]
        ).fetchall()
        [[now, mark]] = found
        yield Due(job.name, job.says, job.before(keep, now), job.count(conn, keep, now, mark or {}))


def status(conn: psycopg.Connection, keep: Keep) -> Iterator[tuple[str, str, datetime, datetime | None, int]]:
    """For each kind of data: name, what it is, what is older goes, when all of it had last gone, rows ever."""
    known = {
        name: (finished_at, rows)
        for name, finished_at, rows in conn.execute(
            "select name, finished_at, rows from retention"
        ).fetchall()
    }
    [[now]] = conn.execute("select clock_timestamp()").fetchall()
    for job in JOBS:
        finished_at, rows = known.get(job.name, (None, 0))
        yield job.name, job.says, job.before(keep, now), finished_at, rows
