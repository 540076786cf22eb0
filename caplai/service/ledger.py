"""What a batch of requests is decided by: the facts in the store, and what the batch itself adds to them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import psycopg

from caplai.domain.grammar import BadCode, BadSyntax, OtherAgency, Reissue
from caplai.domain.issuing import VERSION, guessable, new_case_ids
from caplai.domain.policy import ERRORS, GRANTED, Decision, Facts, OpenCase, Outcome
from caplai.domain.replies import whole_minute
from caplai.service.requests import FREE, Form, Request, Rules
from caplai.store.db import array

# The longest window of any limit: older cases are no facts.
_HISTORY = timedelta(days=30)


@dataclass(slots=True, repr=False)
class Case:
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
class Ledger:
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
    held: set[str] = field(default_factory=set)
    """Those of them that were reported."""
    cases: dict[str, Case] = field(default_factory=dict)
    """The case of an account that has not been ended, living or past its time."""
    account_cases: dict[str, list[datetime]] = field(default_factory=dict)
    phone_cases: dict[str, list[datetime]] = field(default_factory=dict)
    free_account_cases: dict[str, list[datetime]] = field(default_factory=dict)
    """Those that were opened for nothing."""
    free_phone_cases: dict[str, list[datetime]] = field(default_factory=dict)
    phone_accounts: dict[str, int] = field(default_factory=dict)
    errors: dict[str, list[datetime]] = field(default_factory=dict)
    guessed: set[str] = field(default_factory=set)
    """Accounts whose guesses strangers have used up."""
    replaced: list[Case] = field(default_factory=list)
    opened: list[Case] = field(default_factory=list)
    ids: Iterator[UUID] = field(default_factory=new_case_ids)
    """Of the cases to be opened."""

    def facts(self, request: Request) -> Facts:
        facts = Facts(open=self.open, phone_errors=self.errors.get(request.source, ()))
        match request.command:
            case Reissue(code):
                facts.held = code in self.held
                case = self.cases.get(code)
                facts.proved = request.phone is not None and self.accounts.get(code) == request.phone
                facts.case = case.living if case and not case.spent else None
                facts.by_text = request.tells_grants
                facts.account_cases = self.account_cases.get(code, ())
                facts.phone_cases = self.phone_cases.get(request.phone or "", ())
                if request.channel in FREE:
                    facts.free_account_cases = self.free_account_cases.get(code, ())
                    facts.free_phone_cases = self.free_phone_cases.get(request.phone or "", ())
                facts.phone_accounts = self.phone_accounts.get(request.phone or "", 1)
            case BadCode():
                facts.understood = Outcome.BAD_CODE
            case BadSyntax():
                facts.understood = Outcome.BAD_SYNTAX
            case OtherAgency():
                facts.understood = Outcome.OTHER_AGENCY
        return facts

    def fold(self, request: Request, decision: Decision, rules: Rules) -> Case | None:
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
            old.living.texts += request.tells_grants
            old.joined = True
            return old
        if old is not None:
            self.replaced.append(old)
        form = rules.long_form if self.long or code in self.guessed else rules.form
        living = OpenCase(expires_at=whole_minute(self.now + rules.lifetime), texts=int(request.tells_grants))
        key = self.key or rules.keyring().active
        case = Case(next(self.ids), code, phone, self.now, living, form, key, VERSION, opened=True)
        self.cases[code] = case
        self.opened.append(case)
        self.account_cases.setdefault(code, []).append(self.now)
        self.phone_cases.setdefault(phone, []).append(self.now)
        if request.channel in FREE:
            self.free_account_cases.setdefault(code, []).append(self.now)
            self.free_phone_cases.setdefault(phone, []).append(self.now)
        return case


def gather(conn: psycopg.Connection, requests: Sequence[Request], rules: Rules) -> Ledger:
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
    ledger = Ledger(now, is_open, long, key, wordings)
    since = ledger.now - _HISTORY
    these_codes, these_phones = array(codes), array(phones)
    if codes:
        for code, registered, held in conn.execute(
            "select code, phone, exists (select from hold h where h.account = code and h.lifted_at is null)"
            " from account where code = any(%s::text[]) and state = 'approved'",
            [these_codes],
        ).fetchall():
            ledger.accounts[code] = registered
            if held:
                ledger.held.add(code)
        ledger.guessed = {
            account
            for (account,) in conn.execute(
                "select account from guess where account = any(%s::text[]) and device is null and not cleared"
                " and at > %s group by account having count(*) >= %s",
                [these_codes, ledger.now - rules.guess_window, rules.guesses],
            ).fetchall()
        }
        rows = conn.execute(
            "select account, id, phone, opened_at, expires_at, ended_at, texts, length, alphabet, key, version, channel"
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
            channel,
        ) in rows:
            ledger.account_cases.setdefault(account, []).append(opened_at)
            if channel in FREE:
                ledger.free_account_cases.setdefault(account, []).append(opened_at)
            if ended_at is None:
                living, form = OpenCase(expires_at, told), Form(length, alphabet)
                case = Case(id_, account, phone, opened_at, living, form, made_by, version)
                case.spent = account in ledger.guessed and guessable(length, alphabet)
                ledger.cases[account] = case
    if codes and phones:
        for phone, opened_at, channel in conn.execute(
            "select phone, opened_at, channel from reissue_case where phone = any(%s::text[]) and opened_at > %s"
            " order by opened_at",
            [these_phones, since],
        ).fetchall():
            ledger.phone_cases.setdefault(phone, []).append(opened_at)
            if channel in FREE:
                ledger.free_phone_cases.setdefault(phone, []).append(opened_at)
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


def _is_plain(request: Request, ledger: Ledger, often: Counter[str | None]) -> bool:
    """Whether it is surely granted: an owner who asks once, and has asked for nothing lately. So nobody needs to know
    how many errors this sender was told of.
    """
    match request.command:
        case Reissue(code):
            return (
                ledger.open
                and request.phone is not None
                and ledger.accounts.get(code) == request.phone
                and code not in ledger.held
                and code not in ledger.account_cases
                and request.phone not in ledger.phone_cases
                and often[code] == often[request.phone] == 1
            )
    return False
