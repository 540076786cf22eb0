"""What goes to phones: the text of a reply, made in memory only, and what becomes of it."""

from datetime import datetime, timedelta
from enum import Enum

from caplai.domain.issuing import Inputs, Keyring, derive
from caplai.domain.replies import fill
from caplai.store.queues import Due, Settled

GIVE_UP = timedelta(hours=24)
"""A message is tried no longer than this (most cases have expired by then)."""
MAX_ATTEMPTS = 40
"""A message is tried no more often than this."""
KEY_RETRY = 30.0
"""Seconds until a message is tried again whose issuing key this host does not have."""


class Verdict(Enum):
    """What a carrier's answer means for a message."""

    SENT = "sent"
    AGAIN = "again"
    """Refused for now, or never answered (and so perhaps sent): once more, with the identical text."""
    NEVER = "never"


def compose(due: Due, keyring: Keyring) -> str | None:
    """The text of an outbox row, or None when this host lacks the key of its case."""
    if due.case_id is None:
        return fill(due.wording, until=due.until)
    if due.key is None:
        raise LookupError("a reply's case is gone")
    assert due.version and due.length and due.alphabet and due.account
    key = keyring.get(due.key)
    if key is None:
        return None
    password = derive(key, Inputs(due.version, due.case_id, due.account, due.length, due.alphabet))
    return fill(due.wording, code=due.account, password=password, until=due.until)


def settle(
    due: Due, verdict: Verdict, now: datetime, *, status: int | None = None, message_id: str | None = None
) -> Settled:
    """What becomes of a message: sent, due again after a pause that grows, or failed for good.

    Attempts are bounded in number and time; the pause is 2, 4, 8 … 300 seconds.
    """
    if verdict is Verdict.SENT:
        return Settled(due.id, "sent", status, message_id)
    tired = due.attempts >= MAX_ATTEMPTS or now - due.created_at > GIVE_UP
    if tired or verdict is Verdict.NEVER:
        return Settled(due.id, "failed", status)
    return Settled(due.id, "ready", status, again_in=min(2.0 ** min(due.attempts, 9), 300.0))


def postpone(due: Due, seconds: float) -> Settled:
    """A message that could not even be tried: due again, and no attempt is counted."""
    return Settled(due.id, "ready", again_in=seconds, tried=False)


def drop_dead(due: Due) -> Settled | None:
    """A reply whose password has ended meanwhile is not sent: only the one that works goes out."""
    return Settled(due.id, "expired", tried=False) if due.dead else None
