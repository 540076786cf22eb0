"""What is asked and by which rules, as the verbs of this floor pass it on: requests, where their answers go, rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from caplai.domain.grammar import Command, Grammar
from caplai.domain.issuing import Keyring
from caplai.domain.policy import GRANTED, SILENT, Limits, Outcome
from caplai.store import queues

FREE = frozenset({"web", "app", "email"})
"""The channels that cost the citizen nothing: they have limits of their own beside those of all."""


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
    free_limits: Limits | None = None
    """The limits of the FREE channels; `limits` are those of all others."""

    def limits_of(self, channel: str) -> Limits:
        return self.free_limits if self.free_limits is not None and channel in FREE else self.limits

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
    """One request. `phone` is the proved phone (E.164), None where the sender is no phone of a person.

    A door with pages tells refusals there (`tells_refusals`), and perhaps grants, too (`tells_grants`: without a text);
    `wording` is what its text for a grant says, None: as the rules have it.
    """

    command: Command
    channel: str
    phone: str | None
    source: str
    reply_to: ReplyTo
    inbox: int | None = None
    wording: str | None = None
    tells_grants: bool = True
    tells_refusals: bool = True

    def is_told(self, outcome: Outcome) -> bool:
        """Whether a text tells this outcome."""
        return self.tells_grants if outcome in GRANTED else self.tells_refusals and outcome not in SILENT


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
