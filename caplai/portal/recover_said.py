"""What pages and app say of a forgotten password: why no one-time code goes out, and what came of a right one."""

from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from caplai.domain.otp import Sending
from caplai.domain.policy import GRANTED, Outcome
from caplai.service.forgotten_came import Came


@dataclass(frozen=True)
class Said:
    """A page of words alone."""

    title: str
    text: str
    again: bool = False
    """Whether beginning anew is worth a button."""
    others: bool = True
    """Whether the text to the short code is offered."""
    by_email: bool = False
    """Whether a mail is offered; only after a proof, for it names the code."""
    signs_in: bool = False
    """Whether signing in is worth a button."""


def say_not_sent(sending: Sending, until: datetime | None = None) -> Said:
    """Why no OTP goes out: the same for every code. `until`: when to ask again, where it is known."""
    match sending:
        case Sending.TOO_MANY:
            return Said(
                _("Codes were asked for too often"),
                _(
                    "For this social insurance code, or from the network that you are on, one-time codes were"
                    " asked for too often in the last 24 hours. Try again after %(time)s, or choose another way."
                )
                % {"time": moment(until)},
            )
        case Sending.CLOSED:
            return Said(
                _("The service is closed for now"),
                _(
                    "We cannot issue new passwords at the moment. Try again later, or go to the nearest office."
                ),
                others=False,
            )
    return Said(
        _("Too many people are asking just now"),
        _("We cannot send one-time codes at the moment. Try again in an hour, or choose another way."),
    )


def say_over() -> Said:
    return Said(
        _("This one-time code can no longer be used"),
        _("It has expired, was used already, or was typed wrong too often. Begin again to get a new one."),
        again=True,
    )


def say_decided(came: Came) -> Said:
    """After the proof: what came of it."""
    if came.decided in GRANTED and came.chooses:
        return Said(
            _("Set a new password"),
            _(
                "Go on where you proved that it is you, and set a password of your own there. If you have set one,"
                " sign in with it. If you have not and that page is gone, begin again."
            ),
            again=True,
            others=False,
            signs_in=True,
        )
    if came.decided in GRANTED:
        return Said(
            _("Check your phone"),
            _(
                "A message with a new password comes to your registered phone within a minute. Sign in with it,"
                " then set a password of your own."
            ),
            others=False,
            signs_in=True,
        )
    if came.decided is Outcome.OVER_LIMIT:
        return _say_over_limit(came)
    if came.decided is Outcome.HELD:
        return Said(
            _("This account is locked"),
            _(
                "Somebody reported that it was not its owner who asked. To open it again, come to an office of the"
                " agency with your identity card."
            ),
            others=False,
        )
    if came.decided is Outcome.CLOSED:
        return say_not_sent(Sending.CLOSED)
    return Said(
        _("This did not work"),
        _("Your account or its phone number has just been changed. Go to the nearest office."),
        others=False,
    )


def _say_over_limit(came: Came) -> Said:
    """Only what would bring a password now is offered."""
    if came.until is None:
        return Said(
            _("You can ask again"),
            _("The time that you had to wait is over. Begin again to get a new password."),
            again=True,
            others=False,
        )
    if came.case_until is not None:
        return Said(
            _("Look for the last message"),
            _(
                "Your password was sent as often as it can be. The one in the last message works until %(time)s: sign"
                " in with it. If you no longer have the message, try again after that time."
            )
            % {"time": moment(came.case_until)},
            others=came.by_text,
            by_email=came.by_email,
            signs_in=True,
        )
    if came.by_text:
        title, text = (
            _("No more free ones for now"),
            _(
                "You have used up your free new passwords for now. You can get the next free one after %(time)s."
                " Until then, you can text for one. If you remember your password, it still works."
            ),
        )
    else:
        title, text = (
            _("No more new passwords for now"),
            _(
                "You have used up your new passwords for now. You can get the next one after %(time)s. If you"
                " cannot wait, go to the nearest office. If you remember your password, it still works."
            ),
        )
    return Said(
        title,
        text % {"time": moment(came.until)},
        others=came.by_text,
        by_email=came.by_email,
        signs_in=True,
    )


def moment(time: datetime | None) -> str:
    """As people read it."""
    return timezone.localtime(time).strftime("%H:%M %d/%m/%Y") if time else ""


def clock(time: datetime) -> str:
    """The time of day alone where it is today's."""
    local = timezone.localtime(time)
    return local.strftime("%H:%M") if local.date() == timezone.localdate() else moment(time)
