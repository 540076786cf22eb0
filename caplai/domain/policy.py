"""What becomes of a request: `decide(facts, limits, now)`, a table of ordered rules.

The rules are those of service.md, "`BH MK <code>` to 8079" and "Limits". The first rule that speaks
decides. Refusals are outcomes; nothing here raises.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum


class Outcome(StrEnum):
    """What became of a message. Every message has exactly one."""

    ISSUED = "issued"
    JOINED = "joined"
    MISMATCH = "mismatch"
    BAD_CODE = "bad_code"
    BAD_SYNTAX = "bad_syntax"
    OVER_LIMIT = "over_limit"
    HELD = "held"
    CLOSED = "closed"
    OTHER_AGENCY = "other_agency"
    SILENCED = "silenced"


GRANTED = frozenset({Outcome.ISSUED, Outcome.JOINED})
SILENT = frozenset({Outcome.OTHER_AGENCY, Outcome.SILENCED})
ERRORS = frozenset(Outcome) - GRANTED - SILENT


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `count` within the `window` that ends now (a sliding window)."""

    count: int
    window: timedelta

    def free_at(self, times: Sequence[datetime], now: datetime, factor: int = 1) -> datetime | None:
        """When one more is allowed, or None if it is allowed now. `times` are in rising order."""
        count = self.count * factor
        if len(times) < count:
            return None
        recent = [time for time in times if time > now - self.window]
        return recent[-count] + self.window if len(recent) >= count else None


@dataclass(frozen=True, slots=True)
class Limits:
    """The agency's limits for one channel (service.md, Limits)."""

    account: Sequence[Limit] = (Limit(3, timedelta(days=1)), Limit(10, timedelta(days=30)))
    phone: Sequence[Limit] = (Limit(5, timedelta(days=1)), Limit(20, timedelta(days=30)))
    free_account: Sequence[Limit] = ()
    """Of a channel that costs the citizen nothing, beside those of all cases: how many may be opened for nothing."""
    free_phone: Sequence[Limit] = ()
    errors: Limit = Limit(5, timedelta(hours=1))
    texts_per_case: int = 5


@dataclass(slots=True)
class OpenCase:
    """The living case of an account: when it ends by itself, and how many texts carried its password."""

    expires_at: datetime
    texts: int


@dataclass(slots=True, repr=False)
class Facts:
    """All that a decision looks at. Times are aware, in rising order, and of the last 30 days at least."""

    understood: Outcome | None = None
    """What the grammar refused the text with; None when it found a code."""
    open: bool = True
    """Whether the operator has the service open."""
    proved: bool = False
    """Whether the account exists, is approved, and the phone is the registered one."""
    held: bool = False
    """Whether the account was reported ("this was not me"), and nobody has lifted that at the counter."""
    case: OpenCase | None = None
    by_text: bool = True
    """Whether a grant is told by a text with the password: a case bears few of them."""
    account_cases: Sequence[datetime] = ()
    phone_cases: Sequence[datetime] = ()
    free_account_cases: Sequence[datetime] = ()
    """Those of the cases above that were opened for nothing; only for a request by such a channel."""
    free_phone_cases: Sequence[datetime] = ()
    phone_accounts: int = 1
    """How many accounts the phone serves: its limits are multiplied by it."""
    phone_errors: Sequence[datetime] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """An outcome; with OVER_LIMIT, when to try again."""

    outcome: Outcome
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Rule:
    says: str
    decide: Callable[[Facts, Limits, datetime], Decision | None] = field(repr=False)


def _other_agency(facts: Facts, limits: Limits, now: datetime) -> Decision | None:
    return Decision(Outcome.OTHER_AGENCY) if facts.understood is Outcome.OTHER_AGENCY else None


def _closed(facts: Facts, limits: Limits, now: datetime) -> Decision | None:
    return None if facts.open else Decision(Outcome.CLOSED)


def _not_understood(facts: Facts, limits: Limits, now: datetime) -> Decision | None:
    return Decision(facts.understood) if facts.understood is not None else None


def _not_proved(facts: Facts, limits: Limits, now: datetime) -> Decision | None:
    return None if facts.proved else Decision(Outcome.MISMATCH)


def _held(facts: Facts, limits: Limits, now: datetime) -> Decision | None:
    return Decision(Outcome.HELD) if facts.held else None


def _joins(facts: Facts, limits: Limits, now: datetime) -> Decision | None:
    if facts.case is None or facts.case.expires_at <= now:
        return None
    if facts.case.texts < limits.texts_per_case or not facts.by_text:
        return Decision(Outcome.JOINED)
    return Decision(Outcome.OVER_LIMIT, facts.case.expires_at)


def _over_limit(facts: Facts, limits: Limits, now: datetime) -> Decision | None:
    if not facts.account_cases and not facts.phone_cases:
        return None
    several = max(1, facts.phone_accounts)
    waits = [limit.free_at(facts.account_cases, now) for limit in limits.account]
    waits += [limit.free_at(facts.phone_cases, now, several) for limit in limits.phone]
    waits += [limit.free_at(facts.free_account_cases, now) for limit in limits.free_account]
    waits += [limit.free_at(facts.free_phone_cases, now, several) for limit in limits.free_phone]
    until = max((wait for wait in waits if wait is not None), default=None)
    return None if until is None else Decision(Outcome.OVER_LIMIT, until)


def _issues(facts: Facts, limits: Limits, now: datetime) -> Decision | None:
    return Decision(Outcome.ISSUED)


RULES = (
    _Rule("a message for another agency gets silence", _other_agency),
    _Rule("a closed service says where to go instead", _closed),
    _Rule("what was not understood says how to write it", _not_understood),
    _Rule("code and phone must belong together; one answer for every way they do not", _not_proved),
    _Rule("an account that was reported waits for the counter; only its own phone hears so", _held),
    _Rule("a living case is joined, a few texts at most", _joins),
    _Rule("beyond a limit: when to try again", _over_limit),
    _Rule("a new case", _issues),
)


def decide(facts: Facts, limits: Limits, now: datetime) -> Decision:
    """What becomes of the request with these facts.

    An error beyond the hourly number gets silence, so that two machines never answer each other for
    ever; what would succeed is never met with silence.
    """
    for rule in RULES:
        decision = rule.decide(facts, limits, now)
        if decision is not None:
            break
    assert decision is not None  # the last rule always speaks
    if decision.outcome in ERRORS and limits.errors.free_at(facts.phone_errors, now) is not None:
        return Decision(Outcome.SILENCED)
    return decision
