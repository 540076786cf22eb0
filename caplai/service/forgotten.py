"""A forgotten password, by page and app: ask for a one-time code (OTP), have it sent again, prove it.

The proof ends in the one `reissue` behind every door, with the limits of the channel `web`. Before it nobody learns
anything about an account: for a code that nobody has, and for one that no OTP can be sent for, each verb runs the same
statements in the same order, writes the same rows but for the message, and returns the same.

Each verb is one transaction of Django's connection. Subjects are locked before anything is counted (locks.py): the
code, the phone, the network and its neighbourhood, and the site for what it may send in an hour. The OTP itself is in
no table (domain/otp.py).
"""

import hashlib
import ipaddress
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any
from uuid import UUID

import psycopg
from django.db import connection, transaction

from caplai.domain import msisdn, otp
from caplai.domain.grammar import Reissue
from caplai.domain.issuing import new_case_ids
from caplai.domain.otp import Budget, Budgets, Channel, Sending, Spent
from caplai.domain.policy import GRANTED, Outcome
from caplai.domain.policy import decide as decide_reissue
from caplai.service import credentials, forgotten_mail, keys, locks, mail
from caplai.service import requests as reissues
from caplai.service.addresses import Confirmed
from caplai.service.ledger import gather
from caplai.service.reissue import reissue
from caplai.service.requests import ReplyTo, Request
from caplai.store import queues
from caplai.store.db import named_lock
from caplai.store.keyring import KeyringError
from caplai.store.models import Login
from caplai.watch import metrics

log = logging.getLogger(__name__)

_OPENS_AS = {Channel.SMS: "web", Channel.EMAIL: "email"}
"""The channel of the cases that are opened here, by the way that the OTP went."""
ALARM = "otp_alarm"
"""The switch that says which budget was used up, until when it is not told again."""
_ALARM_LASTS = timedelta(hours=1)
_SITE = named_lock(11, "otp")
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)

for _each in (*Sending, *(f"{Sending.BUSY}_{budget}" for budget in otp.ALARMING)):
    metrics.otps.labels(str(_each))


class Proof(Enum):
    """What `prove` found."""

    DONE = "done"
    """The OTP was right; `decided` says what came of it."""
    WRONG = "wrong"
    """Not the OTP, for whatever reason; `tries` are left."""
    OVER = "over"
    """The request has ended: too late, too many tries, proved before, or another one stands in its place."""
    THROTTLED = "throttled"
    """Nothing was looked at and nothing counted; `retry_at` says when it will be."""
    TRY_AGAIN = "try_again"
    """This host lacks a key; nothing was counted."""


@dataclass(frozen=True, slots=True, repr=False)
class Rules:
    """What the operator configured, as these verbs need it."""

    reissue: reissues.Rules
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


@dataclass(frozen=True, slots=True, repr=False)
class Asked:
    """What came of asking. `secret`: to be kept by the browser (None: as it was, or there is none);
    `again_at`: when the same OTP may be sent again.
    """

    sending: Sending | None
    """None: there is no request that could be sent again."""
    secret: str | None = None
    again_at: datetime | None = None
    sent: bool = False
    """Whether this very call had it sent, if there is a phone for it."""


@dataclass(frozen=True, slots=True, repr=False)
class Standing:
    """How a request stands, for the browser that made it. It is the same for codes known and unknown."""

    channel: Channel
    expires_at: datetime
    again_at: datetime | None
    """When the OTP may be sent again; None: no more."""
    tries: int
    """How many are left."""
    over: bool
    decided: Outcome | None
    """After the proof: what the re-issue said."""
    until: datetime | None
    by_text: bool


@dataclass(frozen=True, slots=True, repr=False)
class Proved:
    """An outcome with what belongs to it. `login` and `case_id`: to choose a password on the spot."""

    proof: Proof
    decided: Outcome | None = None
    tries: int = 0
    retry_at: datetime | None = None
    login: Login | None = None
    case_id: UUID | None = None
    until: datetime | None = None
    """With OVER_LIMIT: until when; and whether a text would be answered now."""
    by_text: bool = False


_RECOVERY = (
    "id, code, channel, phone, addresses, network, key, version, created_at, expires_at, tries, asks, asked_at,"
    " ended_at, ended_as, proved_at, outcome, until, by_text"
)


@dataclass(slots=True, repr=False)
class _Row:
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

    def lives(self, now: datetime) -> bool:
        return self.ended_at is None and self.expires_at > now


def ask(
    code: str, asker: Asker, *, secret: str | None, rules: Rules, channel: Channel = Channel.SMS
) -> Asked:
    """Begin a request for this code (ten digits) and send its OTP to the registered phone, or to the confirmed e-mail
    addresses, if there are any.

    `secret`: what this browser keeps of a request before. While that lives and is for the same, this sends its OTP
    again, or after less than the pause nothing (an impatient second click); else it ends.
    """
    _insist_on_keys(rules)
    with _transaction() as conn:
        old = _find(conn, secret)
        now, phone = _look_up(conn, code)
        _lock(conn, code, phone, asker)
        old = _find(conn, secret)  # as it is under the locks
        if old is not None and old.lives(now) and (old.code, old.channel) == (code, channel):
            return _again(conn, old, asker, rules)
        if old is not None:
            conn.execute(
                "update recovery set ended_at = clock_timestamp(), ended_as = 'replaced'"
                " where id = %s and ended_at is null",
                [old.id],
            )
        facts = _gather(conn, code, asker, rules, channel)
        sending = _decide(conn, facts, rules, channel)
        if sending is not Sending.SENT:
            return Asked(sending)
        secret = secrets.token_urlsafe(32)
        id_ = next(new_case_ids())
        phone, addresses = _recipients(facts, code, rules, channel)
        conn.execute(
            "insert into recovery (id, code, channel, phone, addresses, network, prefix, secret_hash, key, version,"
            " created_at, expires_at, asked_at, sends)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                id_,
                code,
                channel.value,
                phone,
                forgotten_mail.fingerprint(addresses),
                asker.network,
                asker.prefix,
                _hash(secret),
                facts.key or rules.reissue.keyring().active,
                otp.VERSION,
                facts.now,
                facts.now + rules.lasts(channel),
                facts.now,
                int(bool(phone or addresses)),
            ],
        )
        if channel is Channel.EMAIL:
            forgotten_mail.send(id_, code, addresses, rules.lasts(channel))
        else:
            _send(conn, id_, phone, facts.now + rules.lasts(channel), rules)
        return Asked(sending, secret, facts.now + rules.budgets.pause, sent=True)


def again(secret: str | None, asker: Asker, *, rules: Rules) -> Asked:
    """Send the OTP of this browser's request again: the same one. Nothing before the pause is over, or beyond what one
    request may; `sending` None: there is no such request, or it is over.
    """
    _insist_on_keys(rules)
    with _transaction() as conn:
        row = _find(conn, secret)
        if row is None:
            return Asked(None)
        now, phone = _look_up(conn, row.code)
        _lock(conn, row.code, phone, asker)
        row = _find(conn, secret)
        if row is None or not row.lives(now):
            return Asked(None)
        return _again(conn, row, asker, rules)


def look(secret: str | None, *, rules: Rules) -> Standing | None:
    """How this browser's request stands; None if it has none."""
    with _transaction() as conn:
        row = _find(conn, secret)
        if row is None:
            return None
        now = _now(conn)
    may_again = row.asks < rules.budgets.sends and row.lives(now)
    return Standing(
        channel=row.channel,
        expires_at=row.expires_at,
        again_at=row.asked_at + rules.budgets.pause if may_again else None,
        tries=otp.TRIES - row.tries,
        over=not row.lives(now),
        decided=Outcome(row.outcome) if row.outcome else None,
        until=row.until,
        by_text=bool(row.by_text),
    )


def prove(secret: str | None, typed: str, asker: Asker, *, rules: Rules) -> Proved:
    """Try an OTP. The right one re-issues, in this transaction; a wrong one counts against request, account, network.

    Once the guesses at an account are used up no six digits open it, neither a password's nor an OTP's
    (service.md, Guesses): then this says WRONG, and only the short code helps.
    """
    _insist_on_keys(rules)
    with _transaction() as conn:
        row = _find(conn, secret)
        if row is None:
            return Proved(Proof.OVER)
        _, phone = _look_up(conn, row.code)
        # reissue() takes those of account and phone again: all of them before the network's, as everybody does.
        _lock(conn, row.code, phone, asker, site=False)
        row = _find(conn, secret)
        assert row is not None
        facts = _gather(conn, row.code, asker, rules, row.channel)
        if not row.lives(facts.now):
            return Proved(Proof.OVER)
        if until := _throttled_until(facts, rules):
            return Proved(Proof.THROTTLED, retry_at=until)
        key = rules.signin.issuing.get(row.key)
        if key is None:
            return Proved(Proof.TRY_AGAIN)
        right = otp.matches(key, otp.Inputs(row.version, row.id, row.code), typed)
        if not (_is_theirs(row, facts) and facts.is_reachable(rules) and right):
            return _count_wrong(conn, row, facts, asker)
        return _reissue(conn, row, facts, rules)


def prove_link(token: str, asker: Asker, *, rules: Rules) -> Proved:
    """Open the link of an e-mail, in whatever browser. It may be opened again until a password is chosen, for the first
    time may have been a mail program's.

    Its 128 bits need no count of tries, and used-up guesses do not close it. OVER for anything that does not open.
    """
    _insist_on_keys(rules)
    name = forgotten_mail.named_by(token, rules.signin.issuing.keys.values())
    if name is None:
        return Proved(Proof.OVER)
    with _transaction() as conn:
        row = _named(conn, name)
        if row is None:
            return Proved(Proof.OVER)
        _, phone = _look_up(conn, row.code)
        _lock(conn, row.code, phone, asker, site=False)
        row = _named(conn, name)
        assert row is not None
        facts = _gather(conn, row.code, asker, rules, row.channel)
        if not (_is_open_to_its_link(conn, row, facts) and _is_theirs(row, facts) and facts.approved):
            return Proved(Proof.OVER)
        return _reissue(conn, row, facts, rules)


# --- asking ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class _Facts:
    """What the store knows about one code and one asker, at one moment under the locks."""

    now: datetime
    open: bool
    key: str | None
    """The active issuing key."""
    account: str | None
    phone: str | None
    approved: bool
    device: int | None
    guesses: int
    """Wrong ones that count: of this device if it is known, else of all unknown devices together."""
    site_failures: int
    failures: list[datetime]
    spent: Spent

    def is_reachable(self, rules: Rules) -> bool:
        """Whether an OTP could open anything."""
        return self.approved and self.guesses < rules.signin.guesses

    def is_told(self, rules: Rules) -> bool:
        return self.is_reachable(rules) and not otp.silenced(self.spent, rules.budgets)


_GATHER = """
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
           and channel = %(channel)s),
       (select coalesce(sum(sends), 0)::int from recovery where phone = a.phone and created_at > t.now - %(day)s),
       (select coalesce(sum(asks), 0)::int from recovery where network = %(network)s and created_at > t.now - %(day)s),
       (select coalesce(sum(asks), 0)::int from recovery where prefix = %(prefix)s and created_at > t.now - %(hour)s),
       s.sent, s.settled, s.unverified
from (select clock_timestamp() as now) t
left join account a on a.code = %(code)s
left join login l on l.username = %(code)s
left join device d on d.login_id = l.id and d.token_hash = %(device)s
cross join lateral (
    select coalesce(sum(sends), 0)::int as sent,
           count(*) filter (where sends > 0 and expires_at <= t.now)::int as settled,
           count(*) filter (where sends > 0 and expires_at <= t.now and proved_at is null)::int as unverified
    from recovery where created_at > t.now - %(hour)s and channel = 'sms' and %(channel)s = 'sms') s
"""


def _gather(conn: psycopg.Connection, code: str, asker: Asker, rules: Rules, channel: Channel) -> _Facts:
    signin = rules.signin
    keys.begin_opening(conn)
    row = conn.execute(
        _GATHER,
        {
            "code": code,
            "channel": channel.value,
            "device": _hash(asker.device) if asker.device else None,
            "network": asker.network,
            "prefix": asker.prefix,
            "guess_window": signin.guess_window,
            "network_window": signin.network_window,
            "network_failures": signin.network_failures,
            "minute": signin.site_failures_minute,
            "hour": _HOUR,
            "day": _DAY,
        },
    ).fetchone()
    assert row is not None
    return _Facts(*row[:-7], Spent(*row[-7:]))  # type: ignore[call-arg]


def _decide(conn: psycopg.Connection, facts: _Facts, rules: Rules, channel: Channel) -> Sending:
    """What is said to everybody who asks so; the alarm is raised where it must be."""
    budget = otp.exhausted(facts.spent, rules.budgets)
    if not facts.open:
        sending = Sending.CLOSED
    elif budget in (Budget.CODE, Budget.NETWORK):
        sending = Sending.TOO_MANY
    elif budget is not None or not rules.can_send(channel):
        sending = Sending.BUSY
    else:
        sending = Sending.SENT
    metrics.otps.labels(f"{sending}_{budget}" if budget and sending is Sending.BUSY else str(sending)).inc()
    if budget in otp.ALARMING:
        _raise_alarm(conn, budget)
    return sending


def _again(conn: psycopg.Connection, row: _Row, asker: Asker, rules: Rules) -> Asked:
    facts = _gather(conn, row.code, asker, rules, row.channel)
    again_at = row.asked_at + rules.budgets.pause
    if row.asks >= rules.budgets.sends:
        return Asked(Sending.SENT)
    if again_at > facts.now:
        return Asked(Sending.SENT, again_at=again_at)
    sending = _decide(conn, facts, rules, row.channel)
    if sending is not Sending.SENT:
        return Asked(sending)
    # To those of the first one, or to nobody: what is proved by it is them.
    phone, addresses = _recipients(facts, row.code, rules, row.channel)
    if phone != row.phone or forgotten_mail.fingerprint(addresses) != row.addresses:
        phone, addresses = None, []
    conn.execute(
        "update recovery set asks = asks + 1, sends = sends + %s, asked_at = %s where id = %s",
        [int(bool(phone or addresses)), facts.now, row.id],
    )
    if row.channel is Channel.EMAIL:
        forgotten_mail.send(row.id, row.code, addresses, row.expires_at - facts.now)
    else:
        _send(conn, row.id, phone, row.expires_at, rules)
    return Asked(sending, again_at=facts.now + rules.budgets.pause, sent=True)


def _recipients(
    facts: _Facts, code: str, rules: Rules, channel: Channel
) -> tuple[str | None, list[Confirmed]]:
    """Whom the OTP goes to: a phone, or addresses; for others nobody."""
    if channel is Channel.EMAIL:
        addresses = forgotten_mail.reached(code)
        return None, addresses if facts.approved else []
    return facts.phone if facts.is_told(rules) else None, []


_WORDING = """
with known as (select id from wording where text = %(text)s),
added as (insert into wording (text) select %(text)s where not exists (select from known)
    on conflict (text) do update set text = excluded.text returning id)
select id from known union all select id from added
"""

_SEND = """
with message as (
    insert into outbox (kind, wording, recovery_id, until, link, sender, destination)
    select %(kind)s, %(wording)s, %(recovery)s, %(until)s, %(link)s, %(sender)s, %(destination)s
    where %(destination)s::text is not null
    returning id)
select pg_notify(%(channel)s, '') from message
"""


def _send(conn: psycopg.Connection, id_: UUID, phone: str | None, until: datetime, rules: Rules) -> None:
    """Write the message, to nobody where there is no phone: the same statements take the same time."""
    found = conn.execute(_WORDING, {"text": rules.wording}).fetchone()
    assert found is not None
    conn.execute(
        _SEND,
        {
            "kind": queues.OTP,
            "wording": found[0],
            "recovery": id_,
            "until": until,
            "link": rules.reissue.mt_link,
            "sender": rules.sender,
            "destination": phone and msisdn.digits(phone),
            "channel": queues.OUTBOX_CHANNEL,
        },
    )


def _raise_alarm(conn: psycopg.Connection, budget: Budget) -> None:
    raised = conn.execute(
        "insert into switch (name, value, changed_at)"
        " select %(name)s, jsonb_build_object('until', clock_timestamp() + %(lasts)s, 'budget', %(budget)s::text),"
        " clock_timestamp()"
        " on conflict (name) do update set value = excluded.value, changed_at = excluded.changed_at"
        " where coalesce((switch.value->>'until')::timestamptz <= clock_timestamp(), true)",
        {"name": ALARM, "lasts": _ALARM_LASTS, "budget": budget.value},
    ).rowcount
    if raised:
        conn.execute(
            "insert into event (kind, data) values ('otp_budget', jsonb_build_object('budget', %s::text))",
            [budget.value],
        )
        log.warning(
            "one-time codes: the budget %r is used up, so none are sent for now (docs/operations.md)",
            budget.value,
        )


# --- proving ---------------------------------------------------------------------------------------


def _throttled_until(facts: _Facts, rules: Rules) -> datetime | None:
    """As at the sign-in: a known device does not pay for its network's strangers."""
    signin = rules.signin
    if facts.device is not None and facts.guesses < signin.guesses:
        return None
    if facts.site_failures >= signin.site_failures_minute:
        return facts.now + timedelta(minutes=1)
    limit = signin.network_failures
    return facts.failures[limit - 1] + signin.network_window if len(facts.failures) >= limit else None


def _is_theirs(row: _Row, facts: _Facts) -> bool:
    """Whether it was sent at all, and those that it was sent to are still the owner's."""
    if row.channel is Channel.EMAIL:
        addresses = forgotten_mail.fingerprint(forgotten_mail.reached(row.code))
        return row.addresses is not None and bytes(row.addresses) == addresses
    return row.phone is not None and row.phone == facts.phone


def _is_open_to_its_link(conn: psycopg.Connection, row: _Row, facts: _Facts) -> bool:
    if row.channel is not Channel.EMAIL or row.expires_at <= facts.now:
        return False
    if row.ended_as == "proved":
        found = conn.execute(
            "select exists (select from reissue_case where account = %s and ended_at is null"
            " and expires_at > %s and opened_at <= %s)",
            [row.code, facts.now, row.proved_at],
        ).fetchone()
        return bool(found and found[0])
    return row.ended_as in (None, "tried_out")


def _count_wrong(conn: psycopg.Connection, row: _Row, facts: _Facts, asker: Asker) -> Proved:
    conn.execute(
        "insert into guess (account, device, network) values (%s, %s, %s)",
        [facts.account, facts.device, asker.network],
    )
    left = otp.TRIES - row.tries - 1
    conn.execute(
        "update recovery set tries = tries + 1, ended_at = case when %(out)s then %(now)s end,"
        " ended_as = case when %(out)s then 'tried_out' end where id = %(id)s",
        {"out": left <= 0, "now": facts.now, "id": row.id},
    )
    return Proved(Proof.WRONG, tries=max(0, left))


def _reissue(conn: psycopg.Connection, row: _Row, facts: _Facts, rules: Rules) -> Proved:
    assert facts.phone is not None
    phone, chooses = facts.phone, rules.choose_at_once or row.channel is Channel.EMAIL
    family = conn.execute("select count(*) from account where phone = %s", [phone]).fetchone()
    assert family is not None
    request = Request(
        command=Reissue(row.code),
        channel=_OPENS_AS[row.channel],
        phone=phone,
        source="",
        reply_to=ReplyTo(rules.reissue.mt_link or "", rules.sender, msisdn.digits(phone)),
        wording=rules.granted_family if family[0] > 1 else rules.granted,
        tells_grants=not chooses,
        tells_refusals=False,
    )
    [decision] = reissue(conn, [request], rules.reissue)
    by_text = decision.outcome is Outcome.OVER_LIMIT and _would_be_granted(conn, row.code, phone, rules)
    conn.execute(
        "update recovery set proved_at = clock_timestamp(), ended_at = clock_timestamp(), ended_as = 'proved',"
        " outcome = %(outcome)s, until = %(until)s, by_text = %(by_text)s where id = %(id)s",
        {
            "outcome": str(decision.outcome),
            "until": decision.until,
            "by_text": by_text,
            "id": row.id,
        },
    )
    metrics.decisions.labels(str(decision.outcome)).inc()
    login = case_id = None
    if chooses and decision.outcome in GRANTED:
        login = credentials.login_of(row.code)
        found = conn.execute(
            "select id from reissue_case where account = %s and ended_at is null", [row.code]
        ).fetchone()
        assert found is not None
        case_id = found[0]
    return Proved(
        Proof.DONE, decision.outcome, login=login, case_id=case_id, until=decision.until, by_text=by_text
    )


def _would_be_granted(conn: psycopg.Connection, code: str, phone: str, rules: Rules) -> bool:
    """Whether a text to the short code would bring a password now, where the free way does not."""
    text = Request(Reissue(code), "sms", phone, phone, ReplyTo("", "", ""))
    ledger = gather(conn, [text], rules.reissue)
    return decide_reissue(ledger.facts(text), rules.reissue.limits, ledger.now).outcome in GRANTED


# --- what all of them need -------------------------------------------------------------------------


def _insist_on_keys(rules: Rules) -> None:
    """For all alike: else a stranger could tell whose request needs the key."""
    if rules.signin.lacks_keys:
        raise KeyringError("this host lacks a key that is in use")


@contextmanager
def _transaction() -> Iterator[psycopg.Connection[Any]]:
    with transaction.atomic(), connection.wrap_database_errors:
        yield connection.connection


def _find(conn: psycopg.Connection, secret: str | None) -> _Row | None:
    found = conn.execute(
        f"select {_RECOVERY} from recovery where secret_hash = %s",  # noqa: S608 - names of columns
        [_hash(secret or "")],
    ).fetchone()
    return _row(found)


def _named(conn: psycopg.Connection, id_: UUID) -> _Row | None:
    return _row(conn.execute(f"select {_RECOVERY} from recovery where id = %s", [id_]).fetchone())  # noqa: S608


def _row(found: tuple[Any, ...] | None) -> _Row | None:
    if found is None:
        return None
    row = _Row(*found)
    row.channel = Channel(row.channel)
    return row


def _look_up(conn: psycopg.Connection, code: str) -> tuple[datetime, str | None]:
    """The time, and which phone has to be locked; it is read again under the lock."""
    row = conn.execute(
        "select clock_timestamp(), (select phone from account where code = %s)", [code]
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def _lock(conn: psycopg.Connection, code: str, phone: str | None, asker: Asker, *, site: bool = True) -> None:
    """Lock all subjects. A code that nobody has has a phone that nobody has."""
    wanted = [
        locks.account_key(code),
        locks.phone_key(phone or f"none/{code}"),
        locks.network_key(asker.network),
        locks.network_key(asker.prefix),
    ]
    locks.take(conn, [*wanted, _SITE] if site else wanted)


def _now(conn: psycopg.Connection) -> datetime:
    row = conn.execute("select clock_timestamp()").fetchone()
    assert row is not None
    return row[0]


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
