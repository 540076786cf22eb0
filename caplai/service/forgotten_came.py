"""What came of a right proof (forgotten.py), and beyond a limit which ways would bring a password now."""

from dataclasses import dataclass
from datetime import datetime

import psycopg

from caplai.domain import msisdn
from caplai.domain.grammar import Reissue
from caplai.domain.otp import Channel
from caplai.domain.policy import GRANTED, Decision, Outcome, decide
from caplai.domain.replies import whole_minute
from caplai.service import forgotten_mail
from caplai.service.forgotten_facts import Rules
from caplai.service.ledger import gather
from caplai.service.requests import ReplyTo, Request

_OPENS_AS = {Channel.SMS: "web", Channel.EMAIL: "email"}
"""The channel of the cases that are opened here, by the way that the OTP went."""


@dataclass(frozen=True, slots=True, repr=False)
class Came:
    """What came of a right proof, for who gave it, and nobody else."""

    decided: Outcome
    code: str
    """The account's."""
    chooses: bool
    """With a grant: a password is chosen on the spot, and none goes to the phone."""
    until: datetime | None = None
    """With OVER_LIMIT: from when on this way brings a password again; None where that time has come."""
    by_text: bool = False
    """With OVER_LIMIT: whether a text to the short code would be answered now, or a mail be of use."""
    by_email: bool = False
    case_until: datetime | None = None
    """With OVER_LIMIT: there is an open case whose password was sent as often as may be, and it works until then."""


def request_for(code: str, channel: Channel, phone: str, rules: Rules, wording: str | None = None) -> Request:
    """What is asked of the re-issue after a proof by this channel. Its page tells what becomes of it; a text, or
    the page that chooses a password, a grant.
    """
    return Request(
        command=Reissue(code),
        channel=_OPENS_AS[channel],
        phone=phone,
        source="",
        reply_to=ReplyTo(rules.reissue.mt_link or "", rules.sender, msisdn.digits(phone)),
        wording=wording,
        tells_grants=not rules.chooses(channel),
        tells_refusals=False,
    )


def came_of(
    conn: psycopg.Connection, decided: Outcome, code: str, channel: Channel, phone: str | None, rules: Rules
) -> Came:
    """What to tell who proved it by this channel, as things stand now. `phone`: the account's, if it has not gone."""
    chooses = rules.chooses(channel)
    if decided is not Outcome.OVER_LIMIT or phone is None:
        return Came(decided, code, chooses)
    here = request_for(code, channel, phone, rules)
    text = Request(Reissue(code), "sms", phone, phone, here.reply_to)
    mail = request_for(code, Channel.EMAIL, phone, rules)
    ledger = gather(conn, [here, text, mail], rules.reissue)

    def decides(request: Request) -> Decision:
        return decide(ledger.facts(request), rules.reissue.limits_of(request.channel), ledger.now)

    now = decides(here)
    case = ledger.facts(here).case
    has_mail = channel is not Channel.EMAIL and rules.can_send(Channel.EMAIL)
    return Came(
        decided,
        code,
        chooses,
        until=now.until and whole_minute(now.until),
        by_text=decides(text).outcome in GRANTED,
        by_email=has_mail and decides(mail).outcome in GRANTED and bool(forgotten_mail.reached(code)),
        case_until=case.expires_at if case is not None and case.expires_at > ledger.now else None,
    )
