"""The one verb behind every door: decide requests for a password, and re-issue.

`reissue` decides a batch of requests, whatever door they came by; `reissue_inbox` feeds it the messages that
wait. One transaction: lock the subjects, gather the facts in later statements, then in the order of arrival
ask the domain and fold each outcome into the facts of the next, and write everything set-based.
"""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from caplai.domain import msisdn
from caplai.domain.grammar import Reissue, understand
from caplai.domain.policy import GRANTED, Decision, decide
from caplai.domain.replies import whole_minute
from caplai.service import keys, locks
from caplai.service.ledger import Case, Ledger, gather
from caplai.service.requests import Handover, ReplyTo, Request, Rules
from caplai.store import queues
from caplai.store.db import array, is_at_fault_itself
from caplai.store.keyring import KeyringError
from caplai.watch import metrics, tracing, trail


def reissue_inbox(
    conn: psycopg.Connection, rules: Rules, count: int, handover: Handover | None = None
) -> int:
    """Decide up to `count` waiting messages in one transaction; returns how many there were.

    An error leaves all of them waiting, and then nothing is handed over (or nobody knows whether it was).
    """
    with conn.transaction():
        waiting = queues.claim_inbox(conn, count)
        claimed = time.monotonic()
        if waiting:
            requests = [request_of(message, rules) for message in waiting]
            decisions = reissue(conn, requests, rules, handover)
    if waiting:
        took = time.monotonic() - claimed
        tell(waiting, decisions, took)
        if handover and handover.dues:
            waited = {message.id: message.waited for message in waiting}
            for due in handover.dues:
                due.age = waited[due.inbox_id] + took  # type: ignore[index]
    return len(waiting)


def tell(waiting: Sequence[queues.Waiting], decisions: Sequence[Decision], took: float) -> None:
    """Let it be seen what was decided, once it is committed: `took` seconds after the claim."""
    for outcome, count in Counter(decision.outcome for decision in decisions).items():
        metrics.decisions.labels(str(outcome)).inc(count)
    metrics.decided_seconds.observe([message.waited + took for message in waiting])
    trail.DECIDED.write(
        (message.id, str(decision.outcome), message.waited + took)
        for message, decision in zip(waiting, decisions, strict=True)
    )
    tracing.record("decide", took, (message.id for message in waiting))


def reissue_one_by_one(conn: psycopg.Connection, rules: Rules, count: int) -> int:
    """Decide waiting messages each in a transaction of its own; returns how many were parked.

    For when a batch cannot be decided. A message that our own code fails on is parked; one whose subject
    is locked for longer stays waiting; anything else is raised, for it is no message's fault.
    """
    parked = last = 0
    for _ in range(count):
        message = None
        try:
            with conn.transaction():
                conn.execute("set local lock_timeout = '200ms'")
                for message in queues.claim_inbox(conn, 1, after=last):
                    last, claimed = message.id, time.monotonic()
                    decided = reissue(conn, [request_of(message, rules)], rules)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
            if message is None:  # not a subject: the inbox itself cannot be read
                raise
            continue
        except Exception as error:
            if message is None or not is_at_fault_itself(error):
                raise
            queues.park(conn, message.id, type(error).__name__)
            metrics.parked.inc()
            trail.PARKED.write([(message.id, type(error).__name__)])
            parked += 1
            continue
        if message is None:
            break
        tell([message], decided, time.monotonic() - claimed)
    return parked


def reissue(
    conn: psycopg.Connection, requests: Sequence[Request], rules: Rules, handover: Handover | None = None
) -> list[Decision]:
    """Decide these requests in their order, and write cases, replies and outcomes. Needs a transaction.

    With a `handover` each request has an inbox row.
    """
    locks.take(conn, _subjects(requests))
    keys.begin_opening(conn)
    ledger = gather(conn, requests, rules)
    decisions: list[Decision] = []
    cases: list[Case | None] = []
    for request in requests:
        decision = decide(ledger.facts(request), rules.limits_of(request.channel), ledger.now)
        decisions.append(decision)
        cases.append(ledger.fold(request, decision, rules))
    _write(conn, ledger, requests, decisions, cases, rules, handover)
    return decisions


def request_of(message: queues.Waiting, rules: Rules) -> Request:
    """What a message asks, and where its answer goes."""
    phone = msisdn.from_address(message.source, message.source_ton)
    link = message.link if message.link in rules.mt_links else rules.mt_link or message.link
    if phone is None:  # no number of a person: the answer goes back to just what it came from
        reply_to = ReplyTo(link, message.destination, message.source, message.source_ton, message.source_npi)
    else:
        reply_to = ReplyTo(link, message.destination, msisdn.digits(phone))
    command = understand(message.text, rules.grammar)
    return Request(command, "sms", phone, message.source, reply_to, message.id)


def _subjects(requests: Sequence[Request]) -> list[int]:
    codes = {request.command.code for request in requests if isinstance(request.command, Reissue)}
    senders = {request.phone or request.source for request in requests}
    return [locks.account_key(code) for code in codes] + [locks.phone_key(sender) for sender in senders]


def _write(
    conn: psycopg.Connection,
    ledger: Ledger,
    requests: Sequence[Request],
    decisions: Sequence[Decision],
    cases: Sequence[Case | None],
    rules: Rules,
    handover: Handover | None,
) -> None:
    if ledger.replaced:
        conn.execute(
            "update reissue_case c set ended_at = least(c.expires_at, %s),"
            " ended_as = case when c.expires_at <= %s then 'expired' else 'guessed_out' end"
            " from unnest(%s::text[], %s::uuid[]) as e (account, id) where c.account = e.account and c.id = e.id",
            [ledger.now, ledger.now, *_columns([(case.account, case.id) for case in ledger.replaced])],
        )
    if ledger.opened:
        _open_cases(conn, ledger, requests, cases, rules)
    joined = {case.id: case for case in cases if case is not None and case.joined and not case.opened}
    if joined:
        conn.execute(
            "update reissue_case c set texts = j.texts from unnest(%s::text[], %s::uuid[], %s::smallint[])"
            " as j (account, id, texts) where c.account = j.account and c.id = j.id",
            _columns([(case.account, case.id, case.living.texts) for case in joined.values()]),
        )
    _write_replies(conn, ledger, requests, decisions, cases, rules, handover)
    decided = [
        (request.inbox, str(decision.outcome), case.id if case else None)
        for request, decision, case in zip(requests, decisions, cases, strict=True)
        if request.inbox is not None
    ]
    if decided:
        conn.execute(
            "update inbox i set outcome = d.outcome, case_id = d.id, decided_at = clock_timestamp()"
            " from unnest(%s::bigint[], %s::text[], %s::uuid[]) as d (inbox, outcome, id) where i.id = d.inbox",
            _columns(decided),
        )


def _open_cases(
    conn: psycopg.Connection,
    ledger: Ledger,
    requests: Sequence[Request],
    cases: Sequence[Case | None],
    rules: Rules,
) -> None:
    ring = rules.keyring()
    for key in {case.key for case in ledger.opened}:
        if ring.get(key) is None:
            raise KeyringError(f"this host lacks the active issuing key {key}")
    channel: dict[UUID, str] = {}
    for request, case in zip(requests, cases, strict=True):
        if case is not None:
            channel.setdefault(case.id, request.channel)
    rows = [
        (
            c.account,
            c.id,
            c.phone,
            channel[c.id],
            c.key,
            c.version,
            c.form.length,
            c.form.alphabet,
            c.living.texts,
            c.opened_at,
            c.living.expires_at,
        )
        for c in ledger.opened
    ]
    conn.execute(
        "insert into reissue_case (account, id, phone, channel, key, version, length, alphabet, texts,"
        " opened_at, expires_at) select * from unnest(%s::text[], %s::uuid[], %s::text[], %s::text[], %s::text[],"
        " %s::smallint[], %s::smallint[], %s::text[], %s::smallint[], %s::timestamptz[], %s::timestamptz[])",
        _columns(rows),
    )


def _write_replies(
    conn: psycopg.Connection,
    ledger: Ledger,
    requests: Sequence[Request],
    decisions: Sequence[Decision],
    cases: Sequence[Case | None],
    rules: Rules,
    handover: Handover | None,
) -> None:
    ids = ledger.wordings
    wanted = {*rules.wordings.values(), *(request.wording for request in requests if request.wording)}
    if unknown := wanted - ids.keys():
        # Whoever adds the same ones at this moment has all its locks already, so nobody waits for long.
        ids |= queues.intern(conn, unknown)
    rows: list[tuple[Any, ...]] = []
    handed: dict[int, queues.Due] = {}
    for request, decision, case in zip(requests, decisions, cases, strict=True):
        if not request.is_told(decision.outcome):
            continue
        to = request.reply_to
        granted = decision.outcome in GRANTED
        wording = (granted and request.wording) or rules.wording(decision.outcome, to.sender)
        until = case.living.expires_at if case else decision.until and whole_minute(decision.until)
        hand = handover is not None and request.inbox is not None and handover.takes(to.link)
        rows.append(
            (
                request.inbox,
                str(decision.outcome),
                ids[wording],
                case.account if case else None,
                case.id if case else None,
                until,
                to.link,
                to.sender,
                to.destination,
                to.ton,
                to.npi,
                queues.answer_name(request.inbox) if to.at_once and request.inbox else None,
                hand,
            )
        )
        if hand and request.inbox is not None:
            handed[request.inbox] = _due(request, decision, case, wording, until, ledger.now)
    if not rows:
        return
    written = conn.execute(
        "insert into outbox (inbox_id, kind, wording, account, case_id, until, link, sender, destination,"
        " destination_ton, destination_npi, message_id, state, attempts, settled_at, claimed_by, due_at)"
        " select inbox_id, kind, wording, account, case_id, until, link, sender, destination, ton, npi, answer,"
        " case when answer is not null then 'sent' when handed then 'claimed' else 'ready' end,"
        " (answer is not null or handed)::int, case when answer is not null then clock_timestamp() end,"
        " case when handed then %s end, case when handed then now() + %s else now() end"
        " from unnest(%s::bigint[], %s::text[], %s::int[], %s::text[], %s::uuid[], %s::timestamptz[], %s::text[],"
        " %s::text[], %s::text[], %s::smallint[], %s::smallint[], %s::text[], %s::bool[]) as r (inbox_id, kind,"
        " wording, account, case_id, until, link, sender, destination, ton, npi, answer, handed)"
        " returning id, inbox_id",
        [
            handover.engine if handover else None,
            handover.lease if handover else timedelta(0),
            *_columns(rows),
        ],
    )
    if handover and handed:
        for id_, inbox in written.fetchall():
            if due := handed.get(inbox):
                due.id = id_
        handover.dues += handed.values()
    if any(row[-2] is None and not row[-1] for row in rows):
        conn.execute(f"notify {queues.OUTBOX_CHANNEL}")


def _due(
    request: Request,
    decision: Decision,
    case: Case | None,
    wording: str,
    until: datetime | None,
    now: datetime,
) -> queues.Due:
    """The reply as a claim would return it; its row's id and its age come later."""
    to = request.reply_to
    return queues.Due(
        id=0,
        inbox_id=request.inbox,
        kind=str(decision.outcome),
        link=to.link,
        sender=to.sender,
        destination=to.destination,
        destination_ton=to.ton,
        destination_npi=to.npi,
        attempts=1,
        created_at=now,
        wording=wording,
        until=until,
        account=case.account if case else None,
        case_id=case.id if case else None,
        key=case.key if case else None,
        version=case.version if case else None,
        length=case.form.length if case else None,
        alphabet=case.form.alphabet if case else None,
        dead=False,
        age=0.0,
    )


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[str]:
    """Rows, at least one, as the columns that unnest() takes."""
    return [array(column) for column in zip(*rows, strict=True)]
