"""At which e-mail addresses the owner of an account is surely reached. (addressbook.py lets the owner change them.)"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from caplai.store.models import Account, Address

YOUNG = timedelta(days=7)
"""An address that was confirmed so lately cannot report, and is no way back after a re-issue: it may be that of whom
there is to report.
"""


@dataclass(frozen=True, slots=True, repr=False)
class Confirmed:
    """An address at which the owner is surely reached. `id` None: the one in the agency's registry."""

    id: int | None
    email: str
    since: datetime | None
    """None: as old as can be."""

    def was_young(self, at: datetime) -> bool:
        """Whether it was there at this moment, and had not been for long."""
        return self.since is not None and at - YOUNG < self.since <= at


def confirmed(code: str) -> list[Confirmed]:
    """The confirmed addresses of the account, each once: the agency's first, then by age."""
    found = [
        Confirmed(None, account.email, account.email_since)
        for account in Account.objects.filter(code=code).exclude(email="")
    ]
    added = Address.objects.filter(account=code, confirmed_at__isnull=False, removed_at__isnull=True)
    for address in added.order_by("confirmed_at", "id"):
        if not any(same(address.email, other.email) for other in found):
            assert address.confirmed_at is not None
            found.append(Confirmed(address.id, address.email, address.confirmed_at))
    return found


def same(one: str, other: str) -> bool:
    """Whether two addresses are one. (Nobody tells two mailboxes apart by case, whatever RFC 5321, 2.4 allows.)"""
    return one.casefold() == other.casefold()
