"""The figures of a period (service.md, "Figures the agency asks for"), from the rollups and, where a day is not rolled
up yet, from the rows: so today is live.

What the words mean, where the agency's own do not say it:

- Messages are those that went out, by kind as they are found, and those that came.
- Re-issues are cases opened; a request that joined an open one is a message and no re-issue.
- People are the accounts that had a re-issue in the period. Accounts are kept for a time only (`[retention]`);
  over a longer period one may be counted twice.
- The months before a period are counted back from its first day: before 29/9 to 15/10 lie 29/8 to 28/9, 29/7 to 28/8
  and 29/6 to 28/7. So no day of the period is among them, none is left out in between, and before a calendar
  month lie calendar months. The growth is that of the whole period over the average one of these months: the agency
  compared 17 days with a month.
- Who came back: re-issues within 30 days after the same account's one before, as a share of all. It looks back,
  so the share of a past period never changes.
- The heaviest are phones, by their re-issues in one calendar month; of a month that the period covers in part, only
  its days in the period count.
- Times are quantiles of histograms, read at the upper boundary: a tenth too high at most, never too low.
"""

import calendar
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import accumulate

import psycopg
from django.utils import timezone

from caplai.domain import msisdn
from caplai.reports import rollups
from caplai.reports.rollups import RATIO
from caplai.store.models import FiguresHeavy

MONTHS = 3
HEAVIEST = FiguresHeavy.FOR_EVER
"""How many are told."""
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_BACK = 30
_DAY = timedelta(days=1)
_COUNTED_EACH_TIME = 128 * 2**20
"""Octets of the table of accounts, about a million rows, up to which they are counted for each report."""


@dataclass(frozen=True, slots=True)
class Heavy:
    """A phone (masked) and how often it was given a re-issue in a month (its first day), or the period's part of it."""

    phone: str
    month: date
    count: int


@dataclass(frozen=True, slots=True)
class Times:
    """How long something took, in seconds: quantiles by their names, and how many there were."""

    count: int
    quantiles: dict[str, float]


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a period, whose last day is included."""

    first: date
    last: date
    now: datetime
    """When they were read."""
    live: bool
    """Whether today is in the period."""
    approved_accounts: int
    """At the end of the period, or as near to it as they were counted."""
    counted_at: datetime
    sent: dict[str, int]
    """Messages that went out, by kind, raw; the most first."""
    unsent: dict[str, int]
    """Messages that did not, by their state, raw."""
    received: dict[str, int]
    """Messages that came, by outcome, raw."""
    reissues: int
    people: int
    returned: int
    """Re-issues within 30 days after the account's one before."""
    months: int
    """How many months before the period it is compared with."""
    months_from: date
    """Where they begin."""
    reissues_before: int
    """In these months together."""
    heaviest: tuple[Heavy, ...]
    heaviest_certain: bool
    """False: of some month of which the period covers a part only its heaviest phones are known any more, and another
    one may belong among them."""
    seconds_to_reply: dict[str, Times]
    """By link."""
    seconds_to_sign_in: dict[str, Times]

    @property
    def share_of_accounts(self) -> float | None:
        return self.reissues / self.approved_accounts if self.approved_accounts else None

    @property
    def months_to(self) -> date:
        return self.first - _DAY

    @property
    def month_before(self) -> float:
        """Re-issues in the average one of the months before."""
        return self.reissues_before / self.months

    @property
    def growth(self) -> float | None:
        """2.0 is three times as many. None where there is nothing to compare with."""
        return self.reissues / self.month_before - 1 if self.reissues_before else None

    @property
    def returned_share(self) -> float | None:
        return self.returned / self.reissues if self.reissues else None

    def as_json(self) -> dict[str, object]:
        """The names that the agency's systems read. Shares are parts of one; null where there is nothing to share.
        Times are those of the agency's zone.
        """

        def times(by_link: dict[str, Times]) -> dict[str, object]:
            return {link: {"count": took.count, **took.quantiles} for link, took in by_link.items()}

        def at(moment: datetime) -> str:
            return timezone.localtime(moment).isoformat(timespec="seconds")

        return {
            "from": self.first.isoformat(),
            "to": self.last.isoformat(),
            "at": at(self.now),
            "approved_accounts": self.approved_accounts,
            "approved_accounts_at": at(self.counted_at),
            "messages": {**self.sent, "received": sum(self.received.values())},
            "reissues": self.reissues,
            "reissues_share_of_accounts": self.share_of_accounts,
            "people": self.people,
            "growth_over_months_before": self.growth,
            "heaviest": [
                {"phone": heavy.phone, "count": heavy.count, "month": f"{heavy.month:%Y-%m}"}
                for heavy in self.heaviest
            ],
            "seconds_to_reply": times(self.seconds_to_reply),
            "seconds_to_sign_in": times(self.seconds_to_sign_in),
            "returned_within_30_days": self.returned_share,
        }


def figures(conn: psycopg.Connection, first: date, last: date, *, months: int = MONTHS) -> Figures:
    """The figures of the days from `first` to `last`, which is included, in the agency's time zone.

    Compared with the `months` before. Everything is of one moment. Quick from the rollups; days that are not rolled
    up cost as many rows as they have. Needs a connection in autocommit.
    """
    assert first <= last and months > 0
    with conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        [[now]] = conn.execute("select now()").fetchall()
        period = _Period(conn, first, last, now)
        counts: dict[str, Counter[str]] = {}
        for state, kind, count in period.rows(
            "select state, kind, sum(count)::bigint from ({}) r group by 1, 2 order by 3 desc, 2",
            "figures_messages",
        ):
            counts.setdefault(state, Counter())[kind] = count
        sent, received = counts.pop("sent", Counter()), counts.pop("received", Counter())
        [[reissues, people, returned]] = period.rows(
            "select coalesce(sum(count), 0)::bigint,"
            " coalesce(sum(count) filter (where previous_on < %(first)s), 0)::bigint,"
            " coalesce(sum(count) filter (where previous_on >= day - %(back)s::int), 0)::bigint from ({}) r",
            "figures_reissues",
            back=_BACK,
        )
        months_from = months_before(first, months)
        before = _Period(conn, months_from, first - _DAY, now)
        [[reissues_before]] = before.rows(
            "select coalesce(sum(count), 0)::bigint from ({}) r", "figures_reissues"
        )
        buckets: dict[str, dict[str, dict[int, int]]] = {"reply": {}, "sign_in": {}}
        for what, link, bucket, count in period.rows(
            "select what, link, bucket, sum(count)::bigint from ({}) r group by 1, 2, 3 order by 1, 2, 3",
            "figures_times",
        ):
            buckets[what].setdefault(link, {})[bucket] = count
        approved, counted_at = _approved(conn, last, now)
        heaviest, certain = _heaviest(conn, period)
        return Figures(
            first=first,
            last=last,
            now=now,
            live=first <= period.today <= last,
            approved_accounts=approved,
            counted_at=counted_at,
            sent=dict(sent),
            unsent={state: kinds.total() for state, kinds in counts.items()},
            received=dict(received),
            reissues=reissues,
            people=people,
            returned=returned,
            months=months,
            months_from=months_from,
            reissues_before=reissues_before,
            heaviest=heaviest,
            heaviest_certain=certain,
            seconds_to_reply={link: _times(found) for link, found in buckets["reply"].items()},
            seconds_to_sign_in={link: _times(found) for link, found in buckets["sign_in"].items()},
        )


def months_before(day: date, months: int) -> date:
    """The same day so many months before; of a shorter month its last."""
    year, month = divmod(day.year * 12 + day.month - 1 - months, 12)
    return date(year, month + 1, min(day.day, calendar.monthrange(year, month + 1)[1]))


def upper_bound(bucket: int) -> float:
    """The upper boundary of a histogram's bucket in seconds, rounded up to three digits."""
    seconds = RATIO**bucket
    digits = 2 - math.floor(math.log10(seconds))
    return round(math.ceil(seconds * 10**digits - 1e-9) / 10**digits, max(digits, 0))


def _times(buckets: dict[int, int]) -> Times:
    """`buckets` in rising order."""
    reached = list(accumulate(buckets.values()))
    quantiles = {
        name: upper_bound(
            next(bucket for bucket, sum_ in zip(buckets, reached, strict=True) if sum_ >= share * reached[-1])
        )
        for name, share in QUANTILES.items()
    }
    return Times(reached[-1], quantiles)


class _Period:
    """Days, and which of them are rolled up; the others up to today are read from the rows."""

    def __init__(self, conn: psycopg.Connection, first: date, last: date, now: datetime) -> None:
        self.conn = conn
        self.first, self.last = first, last
        self.today = rollups.today(now)
        self.built = {
            day
            for (day,) in conn.execute(
                "select day from figures_day where day between %s and %s", [first, last]
            ).fetchall()
        }
        happened = rollups.days_between(first, min(last, self.today))
        self.live = rollups.ranges(day for day in happened if day not in self.built)

    def rows(self, query: str, table: str, **values: object) -> list[tuple]:
        """What `query` makes of the rows of this rollup, which stand for its `{}`."""
        columns, live = rollups.ROLLUPS[table]
        parts = [
            f"select {columns} from {table} where day between %(first)s and %(last)s"  # noqa: S608
        ]
        values |= {"first": self.first, "last": self.last}
        for number, (first, last) in enumerate(self.live):
            bounds = rollups.bounds(first, last)
            values |= {f"{name}{number}": value for name, value in bounds.items()}
            part = live
            for name in bounds:
                part = part.replace(f"%({name})s", f"%({name}{number})s")
            parts.append(f"select {columns} from ({part}) live")  # noqa: S608
        return self.conn.execute(query.format(" union all ".join(parts)), values).fetchall()


def _approved(conn: psycopg.Connection, last: date, now: datetime) -> tuple[int, datetime]:
    """Approved accounts at the end of the period or, if that is yet to come, now; and when they were counted.

    There is no history of accounts' states: of the counts that building the rollups left, the nearest is told. Counting
    a nation takes seconds, so even now its last count must do.
    """
    end = min(rollups.midnight(last + _DAY), now)
    nearest = conn.execute(
        "select approved, counted_at, pg_table_size('account') <= %s from figures_accounts"
        " order by abs(extract(epoch from counted_at - %s)) limit 1",
        [_COUNTED_EACH_TIME, end],
    ).fetchone()
    if nearest is None or (end == now and nearest[2]):
        [[approved]] = conn.execute("select count(*) from account where state = 'approved'").fetchall()
        return approved, now
    return nearest[0], nearest[1]


def _heaviest(conn: psycopg.Connection, period: _Period) -> tuple[tuple[Heavy, ...], bool]:
    """The heaviest phones of the period's months, and whether that is certain (Figures.heaviest_certain)."""
    found: list[Heavy] = []
    certain = True
    for month, first, last in _months(period.first, min(period.last, period.today)):
        kept, proven = _kept(conn, month, first, last)
        built = last in period.built  # and with it the month's heaviest phones up to that day
        if not (built and proven):
            counted = _counted(conn, month, first, last)
            gone = rollups.phones_are_gone(conn, first, last)
            # Where retention has been, what was kept of days that were built is the better half.
            kept = kept if gone and built else counted
            certain = certain and not gone
        found += kept
    found.sort(key=lambda heavy: (-heavy.count, heavy.month, heavy.phone))
    return tuple(found[:HEAVIEST]), certain


def _months(first: date, last: date) -> Iterator[tuple[date, date, date]]:
    """Each calendar month of the period, with its first and last day in the period."""
    month = rollups.first_of_month(first)
    while month <= last:
        end = rollups.last_of_month(month)
        yield month, max(month, first), min(end, last)
        month = end + _DAY


def _kept(conn: psycopg.Connection, month: date, first: date, last: date) -> tuple[list[Heavy], bool]:
    """The heaviest of these days as kept, and whether no other phone can belong among them."""
    rows = conn.execute(
        "select phone, coalesce(sum(count) filter (where day between %s and %s), 0)::int, sum(count)::int"
        " from figures_heavy where month = %s group by number, phone order by 2 desc, number",
        [first, last, month],
    ).fetchall()
    # What is not kept had no more in the whole month than what is.
    bound = min((total for _, _, total in rows), default=0)
    heaviest = [Heavy(phone, month, count) for phone, count, _ in rows if count][:HEAVIEST]
    whole = first == month and last == rollups.last_of_month(month)
    proven = whole or (len(heaviest) == HEAVIEST and heaviest[-1].count >= bound)
    return heaviest, bool(rows) and proven


def _counted(conn: psycopg.Connection, month: date, first: date, last: date) -> list[Heavy]:
    """The heaviest of these days from the rows."""
    counts: Counter[str] = Counter()
    for _, _, phone, count in conn.execute(
        rollups.HEAVY_PHONES, {**rollups.bounds(first, last), "phones": HEAVIEST}
    ).fetchall():
        counts[phone] += count
    return [Heavy(msisdn.mask(phone), month, count) for phone, count in counts.items()]
