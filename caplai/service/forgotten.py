"""A forgotten password, by page and app: ask for a one-time code (OTP), have it sent again, look how it stands.

The proof (forgotten_proof.py) ends in the one `reissue` behind every door, with the limits of the channel `web`. Before
it nobody learns anything about an account: for a code that nobody has, and for one that no OTP can be sent for, each
verb runs the same statements in the same order, writes the same rows but for the message, and returns the same.

Each verb is one transaction of Django's connection. Subjects are locked before anything is counted (locks.py): the
code, the phone, the network and its neighbourhood; and last, where a text would go out, the site for what it may send
in an hour (forgotten_facts.py). The OTP itself is in no table (domain/otp.py).
"""

import logging
import secrets
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import psycopg

from caplai.domain import msisdn, otp
from caplai.domain.issuing import new_case_ids
from caplai.domain.otp import Budget, Channel, Sending
from caplai.domain.policy import Outcome
from caplai.service import forgotten_mail
from caplai.service.addresses import Confirmed
from caplai.service.forgotten_came import Came, came_of
from caplai.service.forgotten_facts import (
    LINKED,
    PROVED,
    Asker,
    Facts,
    Row,
    Rules,
    find,
    find_all,
    free_again,
    gather_facts,
    gather_site,
    hash_of,
    insist_on_keys,
    lock,
    lock_request,
    look_up,
    named,
    one_transaction,
)
from caplai.store import queues
from caplai.watch import metrics

log = logging.getLogger(__name__)

ALARM = "otp_alarm"
"""The switch that says which budget was used up, until when it is not told again."""
_ALARM_LASTS = timedelta(hours=1)

for _each in (*Sending, *(f"{Sending.BUSY}_{budget}" for budget in otp.ALARMING)):
    metrics.otps.labels(str(_each))


@dataclass(frozen=True, slots=True, repr=False)
class Asked:
    """What came of asking. `secret`: the request's, to be kept by the browser (None: it is not told, or there is none);
    `again_at`: when the same OTP may be sent again.
    """

    sending: Sending | None
    """None: there is no request that could be sent again."""
    secret: str | None = None
    again_at: datetime | None = None
    sent: bool = False
    """Whether this very call had it sent, if there is a phone for it."""
    retry_at: datetime | None = None
    """With TOO_MANY: when to ask again."""


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
    came: Came | None
    """None until it is proved here."""


def ask(
    code: str,
    asker: Asker,
    *,
    secret: str | None,
    rules: Rules,
    channel: Channel = Channel.SMS,
    others: Collection[str] = (),
) -> Asked:
    """Begin a request for this code (ten digits) and send its OTP to the registered phone, or to the confirmed e-mail
    addresses, if there are any.

    `secret`, `others`: what this browser keeps of requests before. While one for the same code and channel lives, this
    sends its OTP again, or after less than the pause nothing (an impatient second click). The others go on.
    A `secret` that no request has had yet becomes the new one's: so of a form that was sent twice at once, both find
    the same request.
    """
    insist_on_keys(rules)
    with one_transaction() as conn:
        now, phone = look_up(conn, code)
        lock(conn, code, phone, asker)
        mine = [each for each in (secret, *others) if each is not None]
        kept = find_all(conn, mine)
        for each, old in kept.items():
            if old.seems_alive(now) and (old.code, old.channel) == (code, channel):
                return replace(_again(conn, old, asker, rules), secret=each)
        if secret in kept:
            secret = None  # it is another request's
        facts = gather_facts(conn, code, asker, rules, channel, mine)
        sending = _decide(conn, facts, rules, channel)
        if sending is not Sending.SENT:
            return _not_sent(conn, sending, code, channel, facts, asker, rules, mine)
        secret = secret or new_secret()
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
                hash_of(secret),
                facts.key or rules.reissue.keyring().active,
                otp.VERSION,
                facts.now,
                facts.now + rules.lasts(channel),
                facts.now,
                int(bool(phone or addresses)),
            ],
        )
        if channel is Channel.EMAIL:
            forgotten_mail.send(id_, code, addresses, rules.lasts(channel), digits=facts.is_reachable(rules))
        else:
            _send(conn, id_, phone, facts.now + rules.lasts(channel), rules)
        return Asked(sending, secret, facts.now + rules.budgets.pause, sent=True)


def new_secret() -> str:
    """256 random bits that bind a request to a browser; the database has a hash of them."""
    return secrets.token_urlsafe(32)


def again(secret: str | None, asker: Asker, *, rules: Rules) -> Asked:
    """Send the OTP of this browser's request again: the same one. Nothing before the pause is over, or beyond what one
    request may; `sending` None: there is no such request, or it is over.
    """
    insist_on_keys(rules)
    with one_transaction() as conn:
        locked = lock_request(conn, lambda: find(conn, secret), asker)
        if locked is None or not locked.row.seems_alive(locked.now):
            return Asked(None)
        return _again(conn, locked.row, asker, rules)


def look(secret: str | None, *, rules: Rules) -> Standing | None:
    """How this browser's request stands; None if it has none.

    What was decided is told of a proof in this browser only. Of one by the link of an e-mail in another browser nothing
    shows: whoever asks with somebody else's code would learn that the account exists, and what became of it.
    """
    with one_transaction() as conn:
        row = find(conn, secret)
        if row is None:
            return None
        now, phone = look_up(conn, row.code)
        came = None
        if row.ended_as == PROVED and row.outcome is not None:
            came = came_of(conn, Outcome(row.outcome), row.code, row.channel, phone, rules)
    alive = row.seems_alive(now)
    may_again = row.asks < rules.budgets.sends and alive
    return Standing(
        channel=row.channel,
        expires_at=row.expires_at,
        again_at=row.asked_at + rules.budgets.pause if may_again else None,
        tries=otp.TRIES - row.tries,
        over=not alive,
        came=came,
    )


def _decide(conn: psycopg.Connection, facts: Facts, rules: Rules, channel: Channel) -> Sending:
    """What is said to everybody who asks so; the alarm is raised where it must be."""
    budget = otp.exhausted(facts.spent, rules.budgets)
    if facts.open and budget is None and channel is Channel.SMS and rules.can_send(channel):
        budget = otp.exhausted(gather_site(conn, facts, rules), rules.budgets)
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


def _not_sent(
    conn: psycopg.Connection,
    sending: Sending,
    code: str,
    channel: Channel,
    facts: Facts,
    asker: Asker,
    rules: Rules,
    kept: Collection[str] = (),
) -> Asked:
    if sending is not Sending.TOO_MANY:
        return Asked(sending)
    return Asked(sending, retry_at=free_again(conn, code, asker, channel, facts, rules.budgets, kept))


def _again(conn: psycopg.Connection, row: Row, asker: Asker, rules: Rules) -> Asked:
    facts = gather_facts(conn, row.code, asker, rules, row.channel)
    again_at = row.asked_at + rules.budgets.pause
    if row.asks >= rules.budgets.sends:
        return Asked(Sending.SENT)
    if again_at > facts.now:
        return Asked(Sending.SENT, again_at=again_at)
    sending = _decide(conn, facts, rules, row.channel)
    if sending is not Sending.SENT:
        return _not_sent(conn, sending, row.code, row.channel, facts, asker, rules)
    if row.ended_as == LINKED:
        row = _renew(conn, row)
    # To those of the first one, or to nobody: what is proved by it is them.
    phone, addresses = _recipients(facts, row.code, rules, row.channel)
    if phone != row.phone or forgotten_mail.fingerprint(addresses) != row.addresses:
        phone, addresses = None, []
    conn.execute(
        "update recovery set asks = asks + 1, sends = sends + %s, asked_at = %s where id = %s",
        [int(bool(phone or addresses)), facts.now, row.id],
    )
    if row.channel is Channel.EMAIL:
        lasting = row.expires_at - facts.now
        forgotten_mail.send(row.id, row.code, addresses, lasting, digits=facts.is_reachable(rules))
    else:
        _send(conn, row.id, phone, row.expires_at, rules)
    return Asked(sending, again_at=facts.now + rules.budgets.pause, sent=True)


def _renew(conn: psycopg.Connection, row: Row) -> Row:
    """Put a new request in the place of one that was used up by its link: it looks the same to the browser that asked,
    and what is mailed now is good again. What was asked counts once.
    """
    id_ = next(new_case_ids())
    conn.execute(
        "update recovery set secret_hash = %s, asks = 0 where id = %s", [secrets.token_bytes(32), row.id]
    )
    conn.execute(
        "insert into recovery (id, code, channel, addresses, network, prefix, secret_hash, key, version, created_at,"
        " expires_at, tries, asks, asked_at)"
        " select %s, code, channel, addresses, network, prefix, %s, key, version, created_at, expires_at, tries, %s,"
        " asked_at from recovery where id = %s",
        [id_, row.secret_hash, row.asks, row.id],
    )
    found = named(conn, id_)
    assert found is not None
    return found


def _recipients(
    facts: Facts, code: str, rules: Rules, channel: Channel
) -> tuple[str | None, list[Confirmed]]:
    """Whom the OTP goes to: a phone, or addresses; for others nobody."""
    if channel is Channel.EMAIL:
        addresses = forgotten_mail.reached(code)
        return None, addresses if facts.is_told(rules, channel) else []
    return facts.phone if facts.is_told(rules, channel) else None, []


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
