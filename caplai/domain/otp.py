"""The one-time code (OTP) of a forgotten password, which is in no table either, and when one may be sent.

    seed = HMAC-SHA-256(key, counter ‖ message), counter = 1 (4 bytes, big-endian)
    message = 0 (1 byte), "otp" and a version (1 byte), request id (16 bytes), the code as asked (UTF-8)
    OTP = the seed as one big-endian number, modulo 10**6, as six digits

It is derived as issued passwords are (`issuing.py`), with the same keys. There a message begins with the derivation's
version, which is never 0: so no OTP is ever computed from what a case's password is computed from.
"""

import hmac
import unicodedata
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from uuid import UUID

VERSION = 1
"""Of the derivation, of the digits' number too. A request keeps the version that it began with."""
DIGITS = 6
TRIES = 3
"""Wrong ones that a request bears: with 10**6 of them a stranger's chance is three in a million."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a request freezes when it begins; the same inputs and key are the same OTP for ever.

    `version` is VERSION, anything else is a ValueError. `code` is the account's as it was asked for, known or not.
    """

    version: int
    request: UUID
    code: str = field(repr=False)

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"OTP version {self.version} is not known here, only {VERSION}")


def derive(key: bytes, inputs: Inputs) -> str:
    """The OTP of a request: six digits."""
    message = b"\0otp" + bytes((inputs.version,)) + inputs.request.bytes + inputs.code.encode()
    seed = hmac.digest(key, (1).to_bytes(4, "big") + message, "sha256")
    return f"{int.from_bytes(seed, 'big') % 10**DIGITS:0{DIGITS}}"


def matches(key: bytes, inputs: Inputs, typed: str) -> bool:
    """Whether `typed` is the request's OTP; constant time in its characters."""
    return hmac.compare_digest(derive(key, inputs).encode(), normal(typed).encode("utf-8", "surrogatepass"))


def normal(typed: str) -> str:
    """An OTP as people type or copy it, without spaces and dashes, in ASCII digits where it was in others."""
    plain = unicodedata.normalize("NFKC", typed)
    return "".join(char for char in plain if not char.isspace() and unicodedata.category(char) != "Pd")


class Channel(StrEnum):
    """How an OTP goes out."""

    SMS = "sms"
    EMAIL = "email"


class Sending(StrEnum):
    """What becomes of somebody's wish for an OTP. It is the same for every code, known or not."""

    SENT = "sent"
    """On its way, if the code belongs to an account that can be told one."""
    TOO_MANY = "too_many"
    """This code, or this network, has asked often enough for a day."""
    BUSY = "busy"
    """A budget of the site or of the network's neighbourhood is used up: nobody of them is sent one."""
    CLOSED = "closed"
    """The operator has closed the service."""


class Budget(StrEnum):
    """Which budget was used up. Those of one code and of one network are everyday; others raise the alarm."""

    CODE = "code"
    NETWORK = "network"
    PREFIX = "prefix"
    SITE = "site"
    UNVERIFIED = "unverified"


ALARMING = frozenset({Budget.PREFIX, Budget.SITE, Budget.UNVERIFIED})


@dataclass(frozen=True, slots=True)
class Budgets:
    """What the agency lets be sent (settings, `[recover]`). None of it ever closes the short code."""

    code_day: int = 5
    phone_day: int = 10
    network_day: int = 300
    prefix_hour: int = 1000
    site_hour: int = 20_000
    unverified_least: int = 500
    unverified_percent: int = 80
    pause: timedelta = timedelta(seconds=60)
    sends: int = 3


@dataclass(frozen=True, slots=True, repr=False)
class Spent:
    """What was asked for, or sent, before. `asked` (this code, by this asker), `network` (a day) and `prefix` (an hour)
    count wishes, whether the code is known or not: else whoever meets the end of a budget could count known codes by
    it. `code`, `phone` (a day), `site` (an hour) and `unverified` of `settled` count messages, whoever asked for them.
    """

    asked: int = 0
    code: int = 0
    phone: int = 0
    network: int = 0
    prefix: int = 0
    site: int = 0
    settled: int = 0
    """Messages of the last hour that a carrier took, and whose OTP has had its time."""
    unverified: int = 0
    """Those of them whose OTP nobody ever typed."""


def exhausted(spent: Spent, budgets: Budgets) -> Budget | None:
    """The budget that forbids one more wish, or None. What others asked for is not among them, nor a phone's, which is
    known only where the code is: these silence the message and change no word (`silenced`).
    """
    if spent.site >= budgets.site_hour:
        return Budget.SITE
    many = spent.settled >= budgets.unverified_least
    if many and 100 * spent.unverified >= budgets.unverified_percent * spent.settled:
        return Budget.UNVERIFIED
    if spent.prefix >= budgets.prefix_hour:
        return Budget.PREFIX
    if spent.network >= budgets.network_day:
        return Budget.NETWORK
    return Budget.CODE if spent.asked >= budgets.code_day else None


def silenced(spent: Spent, budgets: Budgets, channel: Channel) -> bool:
    """Whether the account, or its phone, has been sent enough for a day: nothing goes to it, and nobody is told."""
    enough = channel is Channel.SMS and spent.phone >= budgets.phone_day
    return enough or spent.code >= budgets.code_day
