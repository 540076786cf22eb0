"""The rollups: what a day came to, small enough to be kept for ever and added up for any period at once.

What can be added up is kept by day; the rest is kept as something that can:

- Distinct people cannot be added up. But a period's people are its re-issues whose account had none before in that
  period, so re-issues are counted by the day of the account's one before (`figures_reissues`). Who came back
  within so many days is in it, too.
- Quantiles cannot be added up; histograms with boundaries that never change can (`figures_times`).
- The heaviest phones of a period cannot be told from the heaviest of its days. So of each month the days of its
  500 heaviest are kept, masked (`figures_heavy`): no other phone had more in any part of the month than the last
  of them in all of it. What of that names somebody too clearly to be kept for ever, retention removes.

Days are deleted and built anew in one transaction, so that a rerun is safe anywhere (as GOV.UK Notify does it:
dao/fact_notification_status_dao.py). Things still happen to a day that is over: replies go out for a day, people sign
in with a password for three. So for five days it is built anew each day. Days are the agency's (Django's TIME_ZONE).
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, timedelta
from itertools import groupby
from zoneinfo import ZoneInfo

import psycopg
from django.conf import settings

from caplai.domain import msisdn
from caplai.store.db import named_lock

RATIO = 2 ** (1 / 8)
"""Of one boundary of a histogram to the next: 9 % more."""
HEAVY = 500
"""Phones of a month whose days are kept, the heaviest."""
NEVER = date.min
"""`figures_reissues.previous_on` of a re-issue without one before."""
_LOCK = named_lock(10, "figures")
_DAY = timedelta(days=1)
_CLOSES_AFTER = timedelta(minutes=15)
"""A transaction that began before midnight may be committed after it."""
_UNSETTLED = timedelta(days=5)
_LONG = "5min"
"""For a statement over a day of millions."""


class Busy(Exception):
    """Another process is building rollups: an engine does it once an hour. Try again in a minute."""


# --- what is counted -------------------------------------------------------------------------------

# Each gives the rows of a rollup, computed from the rows themselves, for days from %(begin)s to before %(end)s.

_SECONDS = "ceil(8 * ln(greatest(extract(epoch from {})::float8, 0.001)) / ln(2::float8))::smallint"

MESSAGES = """
select (received_at at time zone %(zone)s)::date as day, 'received' as state,
       coalesce(outcome, case when error is null then 'waiting' else 'parked' end) as kind, count(*) as count
from inbox where received_at >= %(begin)s and received_at < %(end)s group by 1, 2, 3
union all
select (created_at at time zone %(zone)s)::date, state, kind, count(*)
from outbox where created_at >= %(begin)s and created_at < %(end)s group by 1, 2, 3
"""

# Of a case that has lost its account, or whose account's one before has, retention has kept the day
# (caplai/service/retention.py).
REISSUES = """
select (c.opened_at at time zone %(zone)s)::date as day,
       coalesce(case when c.account <> '' then
           (select (max(p.opened_at) at time zone %(zone)s)::date from reissue_case p
            where p.account = c.account and (p.opened_at, p.id) < (c.opened_at, c.id)) end,
           c.previous_on, date '0001-01-01') as previous_on,
       count(*) as count
from reissue_case c where c.opened_at >= %(begin)s and c.opened_at < %(end)s group by 1, 2
"""

# By the link that the message came by. What answers no message (the free way) is by the link that it went out by, and
# counts from when it was asked for. A case is opened in one transaction with the text that carries its password, and
# has ended as used when its owner has signed in and chosen a password.
TIMES = f"""
select (o.created_at at time zone %(zone)s)::date as day, 'reply' as what, coalesce(i.link, o.link) as link,
       {_SECONDS.format("o.settled_at - coalesce(i.received_at, o.created_at)")} as bucket, count(*) as count
from outbox o left join inbox i on i.id = o.inbox_id
where o.created_at >= %(begin)s and o.created_at < %(end)s and o.state = 'sent' and o.settled_at is not null
group by 1, 2, 3, 4
union all
select (c.opened_at at time zone %(zone)s)::date, 'sign_in', coalesce(i.link, o.link, c.channel),
       {_SECONDS.format("c.ended_at - coalesce(i.received_at, c.opened_at)")}, count(*)
from reissue_case c
left join (
    select distinct on (case_id) case_id, link, inbox_id from outbox
    where created_at >= %(begin)s - interval '10 minutes' and created_at < %(end)s and case_id is not null
    order by case_id, id
) o on o.case_id = c.id
left join inbox i on i.id = o.inbox_id
where c.opened_at >= %(begin)s and c.opened_at < %(end)s and c.ended_as = 'used'
group by 1, 2, 3, 4
"""  # noqa: S608

# The heaviest phones of a part of one month, with their days. The phone '' is what retention has left.
HEAVY_PHONES = """
with asked as materialized (
    select phone, (opened_at at time zone %(zone)s)::date as day, count(*) as count
    from reissue_case where opened_at >= %(begin)s and opened_at < %(end)s group by 1, 2
),
heavy as (
    select phone, row_number() over (order by total desc, phone) as number from (
        select phone, sum(count) as total from asked where phone <> '' group by phone
        order by total desc, phone limit %(phones)s
    ) most
)
select number::int, day, phone, count::int from heavy join asked using (phone) order by number, day
"""

ROLLUPS = {
    "figures_messages": ("day, state, kind, count", MESSAGES),
    "figures_reissues": ("day, previous_on, count", REISSUES),
    "figures_times": ("day, what, link, bucket, count", TIMES),
}
"""Table → its columns, and what they are computed from."""


# --- days ------------------------------------------------------------------------------------------


def zone() -> ZoneInfo:
    """The agency's."""
    return ZoneInfo(settings.TIME_ZONE)


def midnight(day: date) -> datetime:
    """The begin of a day of the agency's."""
    return datetime(day.year, day.month, day.day, tzinfo=zone())


def bounds(first: date, last: date) -> dict[str, object]:
    """What the queries above need for these days, the last one included."""
    return {"begin": midnight(first), "end": midnight(last + _DAY), "zone": settings.TIME_ZONE}


def days_between(first: date, last: date) -> Iterator[date]:
    """From the first to the last, which is included; none if that lies before the first."""
    for number in range((last - first).days + 1):
        yield first + number * _DAY


def ranges(days: Iterable[date]) -> list[tuple[date, date]]:
    """Rising days → the first and last of each run without a gap."""
    found: list[tuple[date, date]] = []
    for day in days:
        if found and day - found[-1][1] == _DAY:
            found[-1] = (found[-1][0], day)
        else:
            found.append((day, day))
    return found


def today(now: datetime) -> date:
    return now.astimezone(zone()).date()


def first_of_month(day: date) -> date:
    return day.replace(day=1)


def last_of_month(day: date) -> date:
    return first_of_month(first_of_month(day) + timedelta(days=31)) - _DAY


# --- building them ---------------------------------------------------------------------------------


def keep_built(conn: psycopg.Connection, stop: threading.Event) -> list[date] | None:
    """Build the days that are over and not built yet, or whose figures may have changed; returns them, or None if
    another process is at it, which does it for us.

    For an engine, once an hour: it gives the flow as much time as it takes itself, and ends soon after `stop`. Needs a
    connection in autocommit. Raises psycopg.Error when the database is away; the next call goes on.
    """
    try:
        with _alone(conn):
            days = list(_due(conn))
            if days:
                _count_accounts(conn)
            _build(conn, days, stop, lambda day: None, gently=True)
            return days
    except Busy:
        return None


def rebuild(
    conn: psycopg.Connection,
    first: date | None,
    last: date | None,
    report: Callable[[date], object] = lambda upto: None,
) -> int:
    """Build anew all days that are over, or those from `first` to `last`; returns how many.

    `report` hears up to which day it has come, a month at a time. May be stopped anywhere: what is built is built.
    Needs a connection in autocommit. Raises Busy.
    """
    with _alone(conn):
        closed, begun = _last_closed(_now(conn)), _first_day(conn)
        days = list(days_between(max(first or begun, begun), min(last or closed, closed))) if begun else []
        _count_accounts(conn)
        _build(conn, days, threading.Event(), report)
        return len(days)


@contextlib.contextmanager
def _alone(conn: psycopg.Connection) -> Iterator[None]:
    """Inside, nobody else builds. Raises Busy if somebody does."""
    assert conn.autocommit, "each month is a transaction of its own"
    [[alone]] = conn.execute("select pg_try_advisory_lock(%s)", [_LOCK]).fetchall()
    if not alone:
        raise Busy
    try:
        yield
    finally:
        if not conn.closed and not conn.broken:
            conn.execute("select pg_advisory_unlock(%s)", [_LOCK])


def _build(
    conn: psycopg.Connection,
    days: Iterable[date],
    stop: threading.Event,
    report: Callable[[date], object],
    *,
    gently: bool = False,
) -> None:
    for month, of_month in groupby(days, key=first_of_month):
        for first, last in ranges(of_month):
            if stop.is_set():
                return
            begun = time.monotonic()
            with _at_length(conn):
                for table, (columns, query) in ROLLUPS.items():
                    conn.execute(f"delete from {table} where day between %s and %s", [first, last])  # noqa: S608
                    conn.execute(f"insert into {table} ({columns}) {query}", bounds(first, last))
                _build_heavy(conn, month)
                conn.execute(
                    "insert into figures_day (day, built_at)"
                    " select day, clock_timestamp() from generate_series(%s::date, %s::date, '1 day') day"
                    " on conflict (day) do update set built_at = excluded.built_at",
                    [first, last],
                )
            report(last)
            if gently:  # the flow comes first
                stop.wait(time.monotonic() - begun)


@contextlib.contextmanager
def _at_length(conn: psycopg.Connection) -> Iterator[None]:
    """A transaction whose statements may take longer than this connection's others."""
    with conn.transaction():
        # What a power failure undoes is built again, so nothing needs to wait for the disk.
        conn.execute(f"set local statement_timeout = '{_LONG}'; set local synchronous_commit = off")
        yield


def _build_heavy(conn: psycopg.Connection, month: date) -> None:
    last = min(last_of_month(month), _last_closed(_now(conn)))
    rows = conn.execute(HEAVY_PHONES, {**bounds(month, last), "phones": HEAVY}).fetchall()
    if phones_are_gone(conn, month, last):  # what was kept before is all there will ever be
        return
    conn.execute("delete from figures_heavy where month = %s", [month])
    with conn.cursor().copy("copy figures_heavy (month, number, day, phone, count) from stdin") as copy:
        for number, day, phone, count in rows:
            copy.write_row((month, number, day, msisdn.mask(phone), count))


def phones_are_gone(conn: psycopg.Connection, first: date, last: date) -> bool:
    """Whether retention has removed phones of these days (or has begun to)."""
    [[gone]] = conn.execute(
        "select exists (select from reissue_case where opened_at >= %(begin)s and opened_at < %(end)s and phone = '')",
        bounds(first, last),
    ).fetchall()
    return gone


def _count_accounts(conn: psycopg.Connection) -> None:
    with _at_length(conn):
        conn.execute(
            "insert into figures_accounts (day, counted_at, approved)"
            " select (clock_timestamp() at time zone %s)::date, clock_timestamp(),"
            " (select count(*) from account where state = 'approved')"
            " on conflict (day) do update set counted_at = excluded.counted_at, approved = excluded.approved",
            [settings.TIME_ZONE],
        )


def _due(conn: psycopg.Connection) -> Iterator[date]:
    now = _now(conn)
    built: dict[date, datetime] = dict(conn.execute("select day, built_at from figures_day").fetchall())
    first = _first_day(conn)
    for day in days_between(first, _last_closed(now)) if first else ():
        # A day that has settled was built when it had, or later.
        settles = midnight(day + _DAY) + _UNSETTLED
        if day not in built or (built[day] < settles and built[day] < midnight(today(now))):
            yield day


def _first_day(conn: psycopg.Connection) -> date | None:
    """Of the first message or re-issue; None before there is any."""
    [[first]] = conn.execute(
        "select coalesce(least((select received_at from inbox order by id limit 1),"
        " (select created_at from outbox order by id limit 1)), (select min(opened_at) from reissue_case))"
    ).fetchall()
    return today(first) if first else None


def _last_closed(now: datetime) -> date:
    return today(now - _CLOSES_AFTER) - _DAY


def _now(conn: psycopg.Connection) -> datetime:
    [[now]] = conn.execute("select clock_timestamp()").fetchall()
    return now
