"""What happened to an account is told to its confirmed addresses: that it happened, when, and what to do if it was not
its owner. A notice never holds a password, a code or a phone.
"""

from collections.abc import Callable, Collection
from datetime import timedelta

from django.utils import timezone
from django.utils.translation import gettext as _

from caplai.domain import capability
from caplai.domain.letters import Block, Link, Part
from caplai.service import mail
from caplai.service.addresses import confirmed
from caplai.service.mail import Site
from caplai.store.mails import Due

LABEL = "report"
"""What the token of a notice's link is good for (domain/capability.py)."""
YOUNG = timedelta(days=7)
"""An address that was confirmed so lately cannot report: it may be that of whom there is to report."""

WHAT: dict[str, Callable[[], tuple[str, str]]] = {
    "reported": lambda: (
        _("The account is locked"),
        _("somebody reported that it was not them. Everything that opened the account has ended."),
    ),
    "hold_lifted": lambda: (
        _("The account is open again"),
        _("the office of the agency has unlocked it. Text for a new password from the registered phone."),
    ),
    "password_chosen": lambda: (
        _("A new password was chosen"),
        _("a new password was chosen after a re-issue; the old one, and all other sign-ins, have ended."),
    ),
    "password_changed": lambda: (_("The password was changed"), _("the password was changed.")),
    "passkey_added": lambda: (
        _("A fingerprint or face was added"),
        _("a sign-in by fingerprint or face was added."),
    ),
    "passkey_removed": lambda: (
        _("A fingerprint or face was removed"),
        _("a sign-in by fingerprint or face was removed."),
    ),
    "address_added": lambda: (
        _("An email address was added"),
        _("another email address was added and confirmed."),
    ),
    "address_removed": lambda: (_("An email address was removed"), _("an email address was removed.")),
}
"""Kind → what it is called, and the end of the sentence that tells it."""


def tell(code: str, kind: str, except_: Collection[int | None] = ()) -> int:
    """Queue a notice of this kind (WHAT) to each confirmed address of the account; returns to how many.

    Within the transaction of what it tells of. `except_`: ids of addresses that need not hear it; None is the agency's.
    """
    assert kind in WHAT, f"no notice is called {kind}"
    told = 0
    for address in confirmed(code) if mail.is_on() else ():
        if address.id not in except_:
            mail.post(kind, code, address.id)
            told += 1
    return told


def _write(due: Due, site: Site) -> Part:
    title, says = WHAT[due.kind]()
    blocks: list[Block] = [
        _("At %(time)s, for the public service account that ends in %(end)s: %(says)s")
        % {
            "time": timezone.localtime(due.created_at).strftime("%H:%M %d/%m/%Y"),
            "end": due.account[-4:],
            "says": says,
        }
    ]
    return Part(title, [*blocks, *(_ENDINGS.get(due.kind) or _not_me)(due, site)])


def _not_me(due: Due, site: Site) -> list[Block]:
    blocks: list[Block] = [_("If it was you, there is nothing to do.")]
    if due.since is None or due.created_at - due.since < YOUNG:
        return [
            *blocks,
            _("If it was not you, go to the nearest office of the agency with your identity card."),
        ]
    ring = site.keys.ring("pepper")
    token = capability.token(ring.keys[ring.active], LABEL, due.name)
    return [
        *blocks,
        _(
            "If it was not you, say so on this page. Then everything that opens the account ends, and it stays locked"
            " until you have been at an office of the agency."
        ),
        Link(_("This was not me"), f"{site.url}/report/{token}/"),
    ]


def _to_the_office(due: Due, site: Site) -> list[Block]:
    return [_("To open it again, go to the nearest office of the agency with your identity card.")]


_ENDINGS: dict[str, Callable[[Due, Site], list[Block]]] = {"reported": _to_the_office}
"""What a notice says below what happened, where that is not the way to say "this was not me"."""

for _kind in WHAT:
    mail.kind(_kind)(_write)
