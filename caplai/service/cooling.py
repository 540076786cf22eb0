"""The day after a re-issue, in which what can bring its owner back stays (service.md, "one case per need").

Whoever got hold of the registered phone could re-issue, and then throw the owner's passkeys and addresses out. So for
24 hours after a case was used, those that were there before can be used and not removed.
"""

from datetime import datetime, timedelta

from django.db.models import Max
from django.db.models.functions import Now

from caplai.store.models import Case

COOLING = timedelta(hours=24)


def cooling_until(code: str) -> datetime | None:
    """When the 24 hours since this account's latest case was *used* end; None if they are over, or it never was.

    `code`: the account's. What was there before is what is older than this moment less COOLING.
    """
    used = Case.objects.filter(account=code, ended_as=Case.End.USED, ended_at__gt=Now() - COOLING).aggregate(
        latest=Max("ended_at")
    )["latest"]
    return used and used + COOLING


def is_kept(since: datetime | None, until: datetime | None) -> bool:
    """Whether a passkey or an address that is there since then stays, for the 24 hours that end at `until`
    (`cooling_until`). `since` None: it is as old as can be.
    """
    return until is not None and (since is None or since <= until - COOLING)
