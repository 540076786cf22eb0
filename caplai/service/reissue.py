"""The one verb behind every door: decide requests for a password, and re-issue.

`reissue` decides a batch of requests, whatever door they came by; `reissue_inbox` feeds it the messages that
wait. One transaction: lock the subjects, gather the facts in later statements, then in the order of arrival
ask the domain and fold each outcome into the facts of the next, and write everything set-based.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from caplai.domain import msisdn
from caplai.domain.grammar import BadCode, BadSyntax, Command, Grammar, OtherAgency, Reissue, understand
from caplai.domain.issuing import VERSION, Keyring, guessable, new_case_ids
from caplai.domain.policy import ERRORS, GRANTED, SILENT, Decision, Facts, Limits, OpenCase, Outcome, decide
from caplai.domain.replies import whole_minute
from caplai.service import keys, locks
from caplai.store import queues
from caplai.store.db import array, is_at_fault_itself
from caplai.store.keyring import KeyringError
from caplai.watch import metrics, tracing, trail

# The longest window of any limit: older cases are no facts.
_HISTORY = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Form:
    """What an issued password looks like."""

    length: int
    alphabet: str


@dataclass(frozen=True, slots=True, repr=False)
class Rules:
    """What the operator configured, as the re-issue needs it."""

    grammar: Grammar
    limits: Limits
    form: Form
    long_form: Form
    lifetime: timedelta
    guesses: int
    guess_window: timedelta
    keyring: Callable[[], Keyring]
    """The issuing keys as they are now."""
    wordings: Mapping[tuple[Outcome, str], str]
    """The wording that tells an outcome, for each short code. Its id is asked for in each transaction: a database
    that came back from a backup may have others, and this process may outlive that."""
    short_code: str
    """The short code that texts name when a message came to one that is not configured."""
    mt_links: frozenset[str]
    """The links that may send."""
    mt_link: str | None
    """The link of messages that answer none, or whose own link may not send."""

    def wording(self, outcome: Outcome, short_code: str) -> str:
        told = Outcome.ISSUED if outcome in GRANTED else outcome
        return self.wordings.get((told, short_code)) or self.wordings[told, self.short_code]


@dataclass(slots=True, repr=False)
class ReplyTo:
    """Where an answer goes: a link, the short code it comes from, and the phone as SMPP addresses it."""

    link: str
    sender: str
    destination: str
    ton: int | None = None
    npi: int | None = None
    at_once: bool = False
    """It goes in the answer to the request itself, so its row is written as sent."""


@dataclass(slots=True, repr=False)
class Request:
    """One request. `phone` is the proved phone (E.164), None where the sender is no phone of a person."""

    command: Command
    channel: str
    phone: str | None
    source: str
    reply_to: ReplyTo
    inbox: int | None = None


@dataclass(slots=True, repr=False)
class Handover:
    """Replies that the deciding engine sends by its own links at once: they are written as claimed by it, and no claim
    is needed. `room`: how many each link takes; `dues`: what was handed over, to be sent once it is committed.
    """

    engine: str
    lease: timedelta
    room: dict[str, int]
    dues: list[queues.Due] = field(default_factory=list)

    def takes(self, link: str) -> bool:
        """Whether the link takes one more, which is its from now on."""
        if not self.room.get(link):
            return False
        self.room[link] -= 1
        return True


@dataclass(slots=True, repr=False)
class _Case:
    """A case of an account, as stored or as opened in this batch."""

    id: UUID
    account: str
    phone: str
    opened_at: datetime
    living: OpenCase
    form: Form
    key: str
    """The id of its issuing key."""
    version: int
    opened: bool = False
    """In this batch."""
    joined: bool = False
    spent: bool = False
    """Strangers have used up its guesses: the owner's next request opens a long one instead."""


@dataclass(slots=True, repr=False)
class _Ledger:
    """The facts of a batch, by subject; each outcome is folded in before the next is decided."""

    now: datetime
    open: bool
    long: bool
    key: str | None
    """The issuing key that is active now; None where no process has agreed on one yet."""
    wordings: dict[str, int]
    """The ids of the rules' wordings, of those that this database knows."""
    accounts: dict[str, str] = field(default_factory=dict)
    """Approved accounts only: code → registered phone."""
    cases: dict[str, _Case] = field(default_factory=dict)
    """The case of an account that has not been ended, living or past its time."""
    account_cases: dict[str, list[datetime]] = field(default_factory=dict)
    phone_cases: dict[str, list[datetime]] = field(default_factory=dict)
    phone_accounts: dict[str, int] = field(default_factory=dict)
    errors: dict[str, list[datetime]] = field(default_factory=dict)
    guessed: set[str] = field(default_factory=set)
    """Accounts whose guesses strangers have used up."""
    replaced: list[_Case] = field(default_factory=list)
    opened: list[_Case] = field(default_factory=list)
    ids: Iterator[UUID] = field(default_factory=new_case_ids)
    """Of the cases to be opened."""

    def facts(self, request: Request) -> Facts:
        facts = Facts(open=self.open, phone_errors=self.errors.get(request.source, ()))
        match request.command:
            case Reissue(code):
                case = self.cases.get(code)
                facts.proved = request.phone is not None and self.accounts.get(code) == request.phone
                facts.case = case.living if case and not case.spent else None
                facts.account_cases = self.account_cases.get(code, ())
                facts.phone_cases = self.phone_cases.get(request.phone or "", ())
                facts.phone_accounts = self.phone_accounts.get(request.phone or "", 1)
            case BadCode():
                facts.understood = Outcome.BAD_CODE
            case BadSyntax():
                facts.understood = Outcome.BAD_SYNTAX
            case OtherAgency():
                facts.understood = Outcome.OTHER_AGENCY
        return facts

    def fold(self, request: Request, decision: Decision, rules: Rules) -> _Case | None:
        """Take an outcome into the facts; returns the case whose password answers it."""
        if decision.outcome in ERRORS:
            self.errors.setdefault(request.source, []).append(self.now)
        if decision.outcome not in GRANTED:
            return None
        assert isinstance(request.command, Reissue)
        assert request.phone is not None
        code, phone = request.command.code, request.phone
        old = self.cases.get(code)
        if decision.outcome is Outcome.JOINED:
            assert old is not None
            old.living.texts += 1
            old.joined = True
            return old
        if old is not None:
            self.replaced.append(old)
        form = rules.long_form if self.long or code in self.guessed else rules.form
        living = OpenCase(expires_at=whole_minute(self.now + rules.lifetime), texts=1)
        key = self.key or rules.keyring().active
        case = _Case(next(self.ids), code, phone, self.now, living, form, key, VERSION, opened=True)
        self.cases[code] = case
        self.opened.append(case)
        self.account_cases.setdefault(code, []).append(self.now)
        self.phone_cases.setdefault(phone, []).append(self.now)
        return case


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
    ledger = _gather(conn, requests, rules)
    decisions: list[Decision] = []
    cases: list[_Case | None] = []
    for request in requests:
        decision = decide(ledger.facts(request), rules.limits, ledger.now)
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


def _gather(conn: psycopg.Connection, requests: Sequence[Request], rules: Rules) -> _Ledger:
    codes = sorted({request.command.code for request in requests if isinstance(request.command, Reissue)})
    phones = sorted({request.phone for request in requests if request.phone is not None})
    often: Counter[str | None] = Counter(request.phone for request in requests)
    often.update(request.command.code for request in requests if isinstance(request.command, Reissue))
    texts = list(set(rules.wordings.values()))
    row = conn.execute(
        "select clock_timestamp(),"
        " coalesce((select (value->>'open')::bool from switch where name = 'service'), true),"
        " coalesce((select (value->>'until')::timestamptz > now() from switch where name = 'guess_alarm'), false),"
        " (select id from key where kind = 'issuing' and state = 'active'),"
        " array(select w.id from unnest(%s::text[]) with ordinality as r (text, nth) left join wording w using (text)"
        " order by nth)",
        [array(texts)],
    ).fetchone()
    assert row is not None
    now, is_open, long, key, ids = row
    wordings = {text: id_ for text, id_ in zip(texts, ids, strict=True) if id_ is not None}
    ledger = _Ledger(now, is_open, long, key, wordings)
    since = ledger.now - _HISTORY
    these_codes, these_phones = array(codes), array(phones)
    if codes:
        ledger.accounts = dict(
            conn.execute(
                "select code, phone from account where code = any(%s::text[]) and state = 'approved'",
                [these_codes],
            ).fetchall()
        )
        ledger.guessed = {
            account
            for (account,) in conn.execute(
                "select account from guess where account = any(%s::text[]) and device is null and not cleared"
                " and at > %s group by account having count(*) >= %s",
                [these_codes, ledger.now - rules.guess_window, rules.guesses],
            ).fetchall()
        }
        rows = conn.execute(
            "select account, id, phone, opened_at, expires_at, ended_at, texts, length, alphabet, key, version"
            " from reissue_case where account = any(%s::text[]) and (opened_at > %s or ended_at is null)"
            " order by opened_at",
            [these_codes, since],
        ).fetchall()
        for (
            account,
            id_,
            phone,
            opened_at,
            expires_at,
            ended_at,
            told,
            length,
            alphabet,
            made_by,
            version,
        ) in rows:
            ledger.account_cases.setdefault(account, []).append(opened_at)
            if ended_at is None:
                living, form = OpenCase(expires_at, told), Form(length, alphabet)
                case = _Case(id_, account, phone, opened_at, living, form, made_by, version)
                case.spent = account in ledger.guessed and guessable(length, alphabet)
                ledger.cases[account] = case
    if codes and phones:
        for phone, opened_at in conn.execute(
            "select phone, opened_at from reissue_case where phone = any(%s::text[]) and opened_at > %s"
            " order by opened_at",
            [these_phones, since],
        ).fetchall():
            ledger.phone_cases.setdefault(phone, []).append(opened_at)
        # Who asks once and has asked nothing lately is far from any limit, which these are multiplied with.
        limited = [phone for phone in phones if phone in ledger.phone_cases or often[phone] > 1]
        if limited:
            ledger.phone_accounts = dict(
                conn.execute(
                    "select phone, count(*) from account where phone = any(%s::text[]) group by phone",
                    [array(limited)],
                ).fetchall()
            )
    sources = {request.source for request in requests if not _is_plain(request, ledger, often)}
    if not sources:
        return ledger
    for source, decided_at in conn.execute(
        "select source, decided_at from inbox where source = any(%s::text[]) and received_at > %s"
        " and outcome = any(%s::text[]) and decided_at > %s order by decided_at",
        [
            array(sorted(sources)),
            ledger.now - timedelta(days=1),
            [str(outcome) for outcome in ERRORS],
            ledger.now - rules.limits.errors.window,
        ],
    ).fetchall():
        ledger.errors.setdefault(source, []).append(decided_at)
    return ledger


def _is_plain(request: Request, ledger: _Ledger, often: Counter[str | None]) -> bool:
    """Whether it is surely granted: an owner who asks once, and has asked for nothing lately. So nobody needs to know
    how many errors this sender was told of.
    """
    match request.command:
        case Reissue(code):
            return (
                ledger.open
                and request.phone is not None
                and ledger.accounts.get(code) == request.phone
                and code not in ledger.account_cases
                and request.phone not in ledger.phone_cases
                and often[code] == often[request.phone] == 1
            )
    return False


def _write(
    conn: psycopg.Connection,
    ledger: _Ledger,
    requests: Sequence[Request],
    decisions: Sequence[Decision],
    cases: Sequence[_Case | None],
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
    ledger: _Ledger,
    requests: Sequence[Request],
    cases: Sequence[_Case | None],
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
    ledger: _Ledger,
    requests: Sequence[Request],
    decisions: Sequence[Decision],
    cases: Sequence[_Case | None],
    rules: Rules,
    handover: Handover | None,
) -> None:
    ids = ledger.wordings
    if unknown := set(rules.wordings.values()) - ids.keys():
        # Whoever adds the same ones at this moment has all its locks already, so nobody waits for long.
        ids |= queues.intern(conn, unknown)
    rows: list[tuple[Any, ...]] = []
    handed: dict[int, queues.Due] = {}
    for request, decision, case in zip(requests, decisions, cases, strict=True):
        if decision.outcome in SILENT:
            continue
        to = request.reply_to
        wording = rules.wording(decision.outcome, to.sender)
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
    case: _Case | None,
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
