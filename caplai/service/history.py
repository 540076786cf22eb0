"""What happened to an account, for its owner: requests, re-issues, sign-ins and what was changed, the newest first.

Reads only, each source by its index, so that it costs the same however much there is of others. Each source tells how
far back it was read; a page ends there at the latest, and the next one goes on (a page may be shorter, nothing is left
out). Phones are masked.

What is not here: a stranger's text that names this account. It is found under the stranger's phone alone, it changed
nothing, anybody may send any number of them, and its sender's phone is nobody else's business.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.conf import settings

from caplai.domain import msisdn
from caplai.domain.grammar import Grammar, Reissue, understand
from caplai.domain.policy import GRANTED, Outcome
from caplai.service import addressbook, federation, passkeys, report
from caplai.service.arriving import SIGNED_IN
from caplai.service.changing import PASSWORD_CHANGED
from caplai.service.sittings import SIGNED_OUT, SIGNED_OUT_ELSEWHERE
from caplai.service.trace import written_forms
from caplai.service.using import PASSKEY_CHOSEN, PASSWORD_CHOSEN
from caplai.store import db
from caplai.store.models import Case, Login, Recovery

PAGE = 20
_TIES = 10
"""Beyond a page: what happened at the same moment as its last entry belongs to it."""
_MESSAGES = 200
"""Of each form of a phone's number, looked through for one page: a family's phone texts for others, too."""
_GUESSES = 1_000

CASE, OTP, WRONG_PASSWORDS = "case", "otp", "wrong_passwords"
AGAIN, REFUSED, CLOSED, LOCKED = "sent_again", "refused", "service_closed", "account_locked"
EVENTS = (
    SIGNED_IN,
    SIGNED_OUT,
    SIGNED_OUT_ELSEWHERE,
    PASSWORD_CHOSEN,
    PASSKEY_CHOSEN,
    PASSWORD_CHANGED,
    passkeys.ADDED,
    passkeys.REMOVED,
    addressbook.ADDED,
    addressbook.REMOVED,
    federation.SIGNED_IN_TO,
    federation.ENDED,
    report.REPORTED,
    report.LIFTED,
)
"""Kinds of events that an owner is shown."""
_OF_MESSAGES = {
    str(Outcome.JOINED): AGAIN,
    str(Outcome.OVER_LIMIT): REFUSED,
    str(Outcome.CLOSED): CLOSED,
    str(Outcome.HELD): LOCKED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that happened. What does not apply is empty."""

    at: datetime
    what: str
    """CASE, OTP, WRONG_PASSWORDS, AGAIN, REFUSED, CLOSED, LOCKED, or one of EVENTS."""
    channel: str = ""
    """By which door: as a case has it (`sms`, `web`, …)."""
    phone: str = ""
    """Masked."""
    client: str = ""
    """Program and system, coarsely (signin/client.py)."""
    how: str = ""
    """By what somebody signed in: `password`, `passkey`."""
    service: str = ""
    """The other service that somebody signed in to, or that was ended, by its name then."""
    count: int = 0
    """Of a case: texts with its password. Of an OTP: wrong tries. Else: wrong passwords."""
    state: str = ""
    """Of a case: `open`, or what it ended as (store/models.py). Of an OTP: `proved`, and else nothing; or how the
    re-issue refused it after that (domain/policy.py).
    """
    until: datetime | None = None
    """Of a case: when it ended, or will."""


@dataclass(frozen=True, slots=True)
class Page:
    """Entries, the newest first; `older`: what to ask with for those after them, None if there are none."""

    entries: list[Entry]
    older: datetime | None


_Read = tuple[list[Entry], datetime | None]
"""What a source has from `before` back, and the moment down to which that is all; None: all there is."""


def page(login: Login, grammar: Grammar, before: datetime | None = None) -> Page:
    """A page of what happened to this login's account, from the moment `before` (exclusive) back."""
    before = before or datetime.now(UTC) + timedelta(days=1)
    sources: tuple[Callable[[], _Read], ...] = (
        lambda: _cases(login, before),
        lambda: _recoveries(login, before),
        lambda: _messages(login, grammar, before),
        lambda: _events(login, before),
        lambda: _guesses(login, before),
    )
    read = [source() for source in sources]
    ends = [end for _entries, end in read if end is not None]
    found = sorted(
        (entry for entries, _end in read for entry in entries), key=lambda entry: entry.at, reverse=True
    )
    end = max(ends, default=None)
    whole = [entry for entry in found if end is None or entry.at >= end]
    shown = whole[:PAGE]
    shown += [entry for entry in whole[PAGE:] if entry.at == shown[-1].at]
    if len(shown) < len(whole):
        return Page(shown, shown[-1].at)
    return Page(shown, end)


def latest_sign_ins(login: Login, count: int) -> list[Entry]:
    """The last completed sign-ins, the newest first."""
    return _of_events(
        db.execute(
            "select at, kind, data from event where login_id = %s and kind = %s order by at desc limit %s",
            [login.pk, SIGNED_IN, count],
        ).fetchall()
    )


_UNASKED = """
select c.opened_at, c.channel, c.phone, c.texts, c.expires_at, c.ended_at, c.ended_as, clock_timestamp()
from reissue_case c
where c.account = %(account)s and coalesce(c.ended_as, '') <> all(%(known)s) and c.opened_at > greatest(
  clock_timestamp() - %(days)s, %(after)s, (
    select e.at from event e where e.login_id = %(login)s and e.kind = %(kind)s and e.at < (
      select created_at - %(moment)s from sitting where row_key = %(here)s)
    order by e.at desc limit 1))
order by c.opened_at desc limit %(most)s
"""
_UNASKED_DAYS = timedelta(days=30)
_UNASKED_MOST = 5
_MOMENT = timedelta(seconds=1)
"""A sign-in's event and its sitting are written by one statement, either of them first."""


def unasked_reissues(login: Login, here: str, after: datetime | None = None) -> list[Entry]:
    """The re-issues that this session is told of, the newest first: those of the last 30 days that were opened since
    the sign-in before this session's, and that nobody has used. (Who uses one ends all other sessions, and is told for
    a day what was there before, see cooling.py. One that was reported is known.)

    `here`: the key of the session's row. `after`: what was opened until then was read.
    """
    values = {
        "account": login.account_id,
        "login": login.pk,
        "here": here,
        "after": after,
        "known": [str(Case.End.USED), str(Case.End.REPORTED)],
        "days": _UNASKED_DAYS,
        "kind": SIGNED_IN,
        "moment": _MOMENT,
        "most": _UNASKED_MOST,
    }
    return _of_cases(db.execute(_UNASKED, values).fetchall())


def password_set_at(login: Login) -> datetime | None:
    """When the password was last chosen or changed, as far as it was written down."""
    found = db.execute(
        "select at from event where login_id = %s and kind = any(%s) order by at desc limit 1",
        [login.pk, [PASSWORD_CHOSEN, PASSWORD_CHANGED]],
    ).fetchone()
    return found and found[0]


def _cases(login: Login, before: datetime) -> _Read:
    rows = db.execute(
        "select opened_at, channel, phone, texts, expires_at, ended_at, ended_as, clock_timestamp()"
        " from reissue_case where account = %s and opened_at < %s order by opened_at desc limit %s",
        [login.account_id, before, PAGE + _TIES],
    ).fetchall()
    return _to_the_end(_of_cases(rows), PAGE + _TIES)


def _of_cases(rows: Iterable[tuple]) -> list[Entry]:
    return [
        Entry(
            at=at,
            what=CASE,
            channel=channel,
            phone=msisdn.mask(phone) if phone else "",
            count=texts,
            state=ended_as or ("open" if expires_at > now else "expired"),
            until=ended_at or expires_at,
        )
        for at, channel, phone, texts, expires_at, ended_at, ended_as, now in rows
    ]


def _recoveries(login: Login, before: datetime) -> _Read:
    rows = db.execute(
        "select created_at, channel, phone, tries, proved_at is not null, outcome,"
        " case when ended_as = 'linked' then 'linked' else 'proved' end from recovery"
        " where code = %s and created_at < %s order by created_at desc limit %s",
        [login.username, before, PAGE + _TIES],
    ).fetchall()
    entries = [
        Entry(
            at=at,
            what=OTP,
            channel="web" if channel == Recovery.Channel.SMS else channel,
            phone=msisdn.mask(phone) if phone else "",
            count=tries,
            state="" if not proved else how if outcome in GRANTED else outcome or "proved",
        )
        for at, channel, phone, tries, proved, outcome, how in rows
    ]
    return _to_the_end(entries, PAGE + _TIES)


_BY_PHONE = """
select m.received_at, f.phone, m.outcome, m.case_id, m.text
from unnest(%(sources)s::text[], %(phones)s::text[]) as f (source, phone), lateral (
  select received_at, outcome, case_id, text from inbox i
  where i.source = f.source and i.received_at < %(before)s order by i.received_at desc limit %(most)s) m
order by m.received_at desc limit %(most)s
"""


def _messages(login: Login, grammar: Grammar, before: datetime) -> _Read:
    """Texts of the account's phone, now or at a case, that concern this account; what opened a case is the case."""
    cases = db.execute("select id, phone from reissue_case where account = %s", [login.account_id]).fetchall()
    ours = {id_ for id_, _phone in cases}
    assert login.account is not None
    phones = {login.account.phone, *(phone for _id, phone in cases if phone)}
    forms = [(form, phone) for phone in sorted(phones) for form in written_forms(phone)]
    rows = db.execute(
        _BY_PHONE,
        {
            "sources": [form for form, _phone in forms],
            "phones": [phone for _form, phone in forms],
            "before": before,
            "most": _MESSAGES,
        },
    ).fetchall()
    entries = [
        Entry(at=at, what=_OF_MESSAGES[outcome], channel="sms", phone=msisdn.mask(phone))
        for at, phone, outcome, case, text in rows
        if outcome in _OF_MESSAGES
        and (case in ours if case is not None else understand(text, grammar) == Reissue(login.username))
    ]
    return entries, rows[-1][0] if len(rows) == _MESSAGES else None


def _events(login: Login, before: datetime) -> _Read:
    rows = db.execute(
        "select at, kind, data from event where login_id = %s and at < %s and kind = any(%s)"
        " order by at desc limit %s",
        [login.pk, before, list(EVENTS), PAGE + _TIES],
    ).fetchall()
    return _to_the_end(_of_events(rows), PAGE + _TIES)


def _of_events(rows: Iterable[tuple]) -> list[Entry]:
    entries = []
    for at, kind, data in rows:
        said = json.loads(data)  # Django has its connections leave it as text
        entries.append(
            Entry(
                at=at,
                what=kind,
                client=said.get("client", ""),
                how=said.get("how", ""),
                service=said.get("service", ""),
                count=said.get("wrong", 0),
            )
        )
    return entries


def _guesses(login: Login, before: datetime) -> _Read:
    """Wrong passwords that no sign-in has followed yet, a day's together. (Those before one stand with it.)"""
    rows = db.execute(
        "select max(at), count(*) from (select at from guess where account = %s and not cleared"
        " order by at desc limit %s) g group by date_trunc('day', at at time zone %s)",
        [login.account_id, _GUESSES, settings.TIME_ZONE],
    ).fetchall()
    return [Entry(at=at, what=WRONG_PASSWORDS, count=count) for at, count in rows if at < before], None


def _to_the_end(entries: list[Entry], limit: int) -> _Read:
    return entries, entries[-1].at if len(entries) == limit else None
