"""What goes to phones: the text of a reply, made in memory only, and what becomes of it."""

from datetime import datetime, timedelta
from enum import Enum

from caplai.domain import otp
from caplai.domain.issuing import Inputs, Keyring, derive
from caplai.domain.replies import fill
from caplai.store.queues import Due, Settled

GIVE_UP = timedelta(hours=24)
"""A message is tried no longer than this (most cases have expired by then)."""
MAX_ATTEMPTS = 40
"""A message is tried no more often than this, unless it was told to wait."""
TRIES_TAKE = timedelta(hours=2)
"""Until it is this old, attempts are not held against a message: without waits that many take longer."""
LONGEST_PAUSE = 300.0
LONGEST_WAIT = 20.0
"""Seconds between tries at the most: of a message that was refused, and of one that was told to wait."""
KEY_RETRY = 30.0
"""Seconds until a message is tried again whose issuing key this host does not have."""


class Verdict(Enum):
    """What a carrier's answer means for a message."""

    SENT = "sent"
    AGAIN = "again"
    """Refused for now, or never answered (and so perhaps sent): once more, with the identical text."""
    WAIT = "wait"
    """The carrier throttles, or its queue is full: nothing was wrong with the message."""
    NEVER = "never"


def compose(due: Due, keyring: Keyring | None) -> str | None:
    """The text of an outbox row, or None when this host lacks the key of its case (or all keys)."""
    if due.case_id is None:
        if due.recovery_id is not None:
            return _with_otp(due, keyring)
        return fill(due.wording, until=due.until)
    if due.key is None:
        raise LookupError("a reply's case is gone")
    assert due.version and due.length and due.alphabet and due.account
    key = keyring.get(due.key) if keyring else None
    if key is None:
        return None
    password = derive(key, Inputs(due.version, due.case_id, due.account, due.length, due.alphabet))
    return fill(due.wording, code=due.account, password=password, until=due.until)


def _with_otp(due: Due, keyring: Keyring | None) -> str | None:
    assert due.recovery_id and due.key and due.version and due.account
    key = keyring.get(due.key) if keyring else None
    if key is None:
        return None
    inputs = otp.Inputs(due.version, due.recovery_id, due.account)
    return fill(due.wording, otp=otp.derive(key, inputs), until=due.until)


def settle(
    due: Due, verdict: Verdict, now: datetime, *, status: int | None = None, message_id: str | None = None
) -> Settled:
    """What becomes of a message: sent, due again after a pause that grows, or failed for good.

    Attempts are bounded in number and time; the pause is 2, 4, 8 … 300 seconds. To wait is bounded in time only,
    and its pause is 0.5, 1, 2 … 20 seconds: a carrier that throttles for hours must not cost a reply, nor make
    those that it refused first come last.
    """
    if verdict is Verdict.SENT:
        return Settled(due.id, "sent", status, message_id)
    wait, age = verdict is Verdict.WAIT, now - due.created_at
    tired = (due.attempts >= MAX_ATTEMPTS and age > TRIES_TAKE and not wait) or age > GIVE_UP
    if tired or verdict is Verdict.NEVER:
        return Settled(due.id, "failed", status)
    doubled = 2.0 ** min(due.attempts, 9)
    return Settled(
        due.id,
        "ready",
        status,
        again_in=min(doubled / 4, LONGEST_WAIT) if wait else min(doubled, LONGEST_PAUSE),
    )


def postpone(due: Due, seconds: float) -> Settled:
    """A message that could not even be tried: due again, and no attempt is counted."""
    return Settled(due.id, "ready", again_in=seconds, tried=False)


def drop_dead(due: Due) -> Settled | None:
    """A reply whose password has ended meanwhile is not sent: only the one that works goes out."""
    return Settled(due.id, "expired", tried=False) if due.dead else None
