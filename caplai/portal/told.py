"""How a person reads what happened to the account (service/history.py), for pages and app alike."""

from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from caplai.service.federation import SIGNED_IN_TO
from caplai.service.history import AGAIN, CASE, CLOSED, LOCKED, OTP, REFUSED, WRONG_PASSWORDS, Entry
from caplai.signin.client import name_of


@dataclass(frozen=True, slots=True)
class Told:
    """An entry in words: what it was, and what else there is to say about it."""

    at: datetime
    title: str
    details: list[str]


def tell(entry: Entry) -> Told:
    """The entry in the language that is active."""
    title = _asked(entry.channel) if entry.what == CASE else _title(entry)
    details = [detail for detail in (_sent(entry), _by(entry), _wrong(entry), _became(entry)) if detail]
    return Told(entry.at, title, details)


def moment(at: datetime) -> str:
    """A time as the texts write it: `14:05 23/11/2026`."""
    return timezone.localtime(at).strftime("%H:%M %d/%m/%Y")


def _asked(channel: str) -> str:
    return {
        "sms": _("A new password was asked for by SMS"),
        "web": _("A new password was asked for on this site"),
        "app": _("A new password was asked for in the app"),
        "email": _("A new password was asked for by email"),
        "counter": _("A new password was asked for at an office"),
    }.get(channel) or _("A new password was asked for")


def _title(entry: Entry) -> str:
    if entry.what == OTP and entry.channel == "email":
        return _("Somebody asked on this site for a code by email")
    if entry.service:
        return _service(entry)
    return {
        OTP: _("Somebody asked on this site for a code (OTP)"),
        AGAIN: _("The same password was sent again"),
        REFUSED: _("A request by SMS was refused: there were too many"),
        CLOSED: _("A request by SMS was refused: the service was closed"),
        LOCKED: _("A request by SMS was refused: the account is locked"),
        WRONG_PASSWORDS: _("Somebody typed a wrong password"),
        "signed_in": _("Signed in"),
        "signed_out": _("Signed out a device"),
        "signed_out_elsewhere": _("Signed out all other devices"),
        "password_chosen": _("A new password was set after the old one was forgotten"),
        "passkey_chosen": _("Fingerprint or face was chosen after the password was forgotten"),
        "password_changed": _("The password was changed"),
        "passkey_added": _("A fingerprint or face was added"),
        "passkey_removed": _("A fingerprint or face was removed"),
        "address_confirmed": _("An email address was added"),
        "address_removed": _("An email address was removed"),
        "reported": _("Somebody said: this was not me. The account was locked"),
        "hold_lifted": _("The agency opened the account again"),
    }[entry.what]


def _service(entry: Entry) -> str:
    name = {"name": entry.service}
    if entry.what == SIGNED_IN_TO:
        return _("Signed in to the service: %(name)s") % name
    return _("Ended the sign-in to the service: %(name)s") % name


def _sent(entry: Entry) -> str | None:
    if entry.what in (AGAIN, REFUSED, CLOSED, LOCKED) and entry.phone:
        return _("By the phone %(phone)s.") % {"phone": entry.phone}
    if entry.what == OTP and entry.channel != "email":
        if not entry.phone:
            return _("None was sent.")
        return _("It was sent to the phone %(phone)s.") % {"phone": entry.phone}
    if entry.what != CASE or not entry.phone or not entry.count:
        return None
    if entry.count == 1:
        return _("The password was sent to the phone %(phone)s.") % {"phone": entry.phone}
    return _("The password was sent to the phone %(phone)s %(count)s times.") % {
        "phone": entry.phone,
        "count": entry.count,
    }


def _by(entry: Entry) -> str | None:
    if not entry.client:
        return None
    name = name_of(entry.client)
    if entry.how == "passkey":
        return _("%(device)s, by fingerprint or face.") % {"device": name}
    return _("%(device)s, by password.") % {"device": name} if entry.how else f"{name}."


def _wrong(entry: Entry) -> str | None:
    if not entry.count or entry.what == CASE:
        return None
    if entry.what == OTP:
        return ngettext(
            "It was typed wrong %(count)s time.", "It was typed wrong %(count)s times.", entry.count
        ) % {"count": entry.count}
    if entry.what == WRONG_PASSWORDS:
        return _("On that day: %(count)s. Nobody got in with them.") % {"count": entry.count}
    return _("Wrong passwords before it: %(count)s.") % {"count": entry.count}


def _became(entry: Entry) -> str | None:
    if entry.what == OTP:
        return {
            "": _("It was not used."),
            "proved": _("It was typed right."),
            "linked": _("The link in the email was opened."),
            "over_limit": _("It was typed right, but there were too many requests."),
            "held": _("It was typed right, but the account is locked."),
        }.get(entry.state)
    if entry.what != CASE or entry.until is None:
        return None
    time = {"time": moment(entry.until)}
    return {
        "open": _("It can be used until %(time)s.") % time,
        "used": _("It was used at %(time)s.") % time,
        "expired": _("It was not used until %(time)s, and has ended.") % time,
        "guessed_out": _("It ended at %(time)s: somebody had tried too many wrong ones.") % time,
        "account_changed": _("It ended at %(time)s, because the registered phone or the account changed.")
        % time,
        "reported": _("It ended at %(time)s, because somebody said: this was not me.") % time,
    }.get(entry.state) or _("It ended at %(time)s.") % time
