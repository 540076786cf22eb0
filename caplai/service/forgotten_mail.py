"""The e-mail of a forgotten password: six digits for the page that asked, and a link that needs none of it.

Both are derived with the request's issuing key when the mail is written, and stand in no table. It goes to the
confirmed addresses of the account (`reached`), and to nothing else; no password is ever mailed.
"""

import hashlib
from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

from django.db.models.functions import Now
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from caplai.domain import capability, otp
from caplai.domain.letters import Code, Link, Part
from caplai.service import mail
from caplai.service.addresses import YOUNG, Confirmed, confirmed
from caplai.service.mail import Site
from caplai.store.keyring import KeyringError
from caplai.store.mails import Due
from caplai.store.models import Case

KIND, LINK_ALONE = "recover", "recover_link"
"""The mail with digits and a link; and the one for where digits would be refused (used-up guesses)."""
LABEL = "recover"
"""What the token of the link is good for (domain/capability.py)."""
PAGE = "/recover/link/"


def reached(code: str) -> list[Confirmed]:
    """Whom a mail for this code goes to; the same statements for a code that nobody has.

    An address that was young when a case was used is passed over for as long as that is from then on. Somebody who had
    the phone for five minutes may have added it, and the owner, who has just got back in, may not remove it for a day
    (cooling.py): it must not open the account before.
    """
    used = Case.objects.filter(account=code, ended_as=Case.End.USED, ended_at__gt=Now() - YOUNG)
    moments = list(used.values_list("ended_at", flat=True))
    return [address for address in confirmed(code) if not any(map(address.was_young, moments))]


def fingerprint(addresses: Iterable[Confirmed]) -> bytes | None:
    """What is remembered of the addresses that a mail went to: who has one that was taken away since proves nothing."""
    found = sorted(address.email.casefold() for address in addresses)
    return hashlib.sha256("\n".join(found).encode()).digest() if found else None


def send(
    recovery: UUID, code: str, addresses: Iterable[Confirmed], lasting: timedelta, *, digits: bool
) -> None:
    """Queue the mail to each of them, in the caller's transaction. `digits`: whether they would be taken."""
    kind = KIND if digits else LINK_ALONE
    mail.post_to_each(kind, code, [each.id for each in addresses], about=recovery, lasting=lasting)


def named_by(token: str, keys: Iterable[bytes]) -> UUID | None:
    """The request that a link's token was made for."""
    return capability.name_of(keys, LABEL, token)


@mail.kind(KIND)
@mail.kind(LINK_ALONE)
def _write(due: Due, site: Site) -> Part | None:
    assert site.conn is not None and due.about is not None
    row = site.conn.execute(
        "select key, version, code, ceil(extract(epoch from expires_at - clock_timestamp()) / 60)::int from recovery"
        " where id = %s and (ended_at is null or ended_as = 'tried_out') and expires_at > clock_timestamp()",
        [due.about],
    ).fetchone()
    if row is None:
        return None
    name, version, code, minutes = row
    key = site.keys.ring("issuing").get(name)
    if key is None:
        raise KeyringError("this host lacks an issuing key")
    both = [
        _("Or type these digits on the page where you asked for this email:"),
        Code(otp.derive(key, otp.Inputs(version, due.about, code))),
        _("Both can be used for %(time)s, and only once. Give them to nobody.") % {"time": _length(minutes)},
    ]
    alone = [_("It can be used for %(time)s, and only once. Give it to nobody.") % {"time": _length(minutes)}]
    token = capability.token(key, LABEL, due.about)
    return Part(
        _("Set a new password"),
        [
            _("Somebody, probably you, forgot the password of the account that ends in %(end)s (%(site)s).")
            % {"end": code[-4:], "site": mail.site_name()},
            _("Open this link to set a new one:"),
            Link(_("Set a new password"), f"{site.url}{PAGE}#{token}"),
            *(alone if due.kind == LINK_ALONE else both),
            _("If it was not you, there is nothing to do: nothing has changed."),
        ],
    )


def _length(minutes: int) -> str:
    """What is left, of which a minute just begun is whole; from three hours on in whole hours, rounded down."""
    if minutes < 180 and minutes % 60:
        return ngettext("%(count)s minute", "%(count)s minutes", minutes) % {"count": minutes}
    hours = minutes // 60
    return ngettext("%(count)s hour", "%(count)s hours", hours) % {"count": hours}
