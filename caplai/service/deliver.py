"""What goes to phones: the text of a reply, made in memory only, and what becomes of it."""

from collections.abc import Sequence
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
    assert due.key and due.version and due.length and due.alphabet and due.account
    key = keyring.get(due.key)
    if key is None:
        return None
    password = derive(key, Inputs(due.version, due.case_id, due.account, due.length, due.alphabet))
    return fill(due.wording, code=due.account, password=password, until=due.until)


def expired(due: Due, now: datetime) -> bool:
    """Whether nobody is helped by this message any more: its password is dead."""
    return due.expires_at is not None and due.expires_at <= now


def settle(
    due: Due, verdict: Verdict, now: datetime, *, status: int | None = None, message_id: str | None = None
) -> Settled:
    """What becomes of a message: sent, due again after a pause that grows, or failed for good.

    Attempts are bounded in number and time; the pause is 2, 4, 8 … 300 seconds.
    """
    if verdict is Verdict.SENT:
        return Settled(due.id, sent=True, status=status, message_id=message_id)
    tired = due.attempts >= MAX_ATTEMPTS or now - due.created_at > GIVE_UP or expired(due, now)
    if tired or verdict is Verdict.NEVER:
        return Settled(due.id, sent=False, status=status)
    return Settled(due.id, sent=False, status=status, again_in=min(2.0 ** min(due.attempts, 9), 300.0))


def without_key(dues: Sequence[Due]) -> list[Settled]:
    """Messages whose key is not on this host: they wait for one that has it."""
    return [Settled(due.id, sent=False, again_in=KEY_RETRY) for due in dues]
