"""Speaking for people at clients (OpenID Connect): for whom, and by what name. What is spoken is in portal/oidc/.

Whatever was granted carries the stamp of the login at that moment. Everything that ends sessions changes the stamp (a
case that is used, another password, a report, a closed account, an import), so it ends all grants with them, and nobody
has to look for them.

Its owner hears of it (history.py): when somebody signs in to a service with the account, and when that is ended.
"""

import hashlib
import hmac
import secrets

from django.db.models import Q

from caplai.store.models import Account, Event, Login, Sitting

SIGNED_IN_TO, ENDED = "service_signed_in", "service_ended"
"""Kinds of events; their data has the name of the service as it was then, and nothing that opens anything."""


def holder(login_id: int, stamp: str) -> Login | None:
    """Who a grant that was made under `stamp` may still be used for; None: nobody, it has ended.

    Citizens only: an operator signs in here and nowhere else.
    """
    may = Q(is_active=True, account__state=Account.State.APPROVED)
    return Login.objects.select_related("account").filter(may, pk=login_id, stamp=stamp).first()


def tell_sign_in(login: Login, service: str, sitting: int | None) -> None:
    """Write down that somebody signed in to this service with the account, and with what; in their transaction."""
    client = Sitting.objects.filter(pk=sitting, login_id=login.pk).values_list("client", flat=True).first()
    data = {"service": service, "client": client or ""}
    Event.objects.create(kind=SIGNED_IN_TO, login_id=login.pk, data=data)


def tell_end(login: Login, service: str) -> None:
    """Write down that its owner ended what this service had; in their transaction."""
    Event.objects.create(kind=ENDED, login_id=login.pk, data={"service": service})


def subject(login: Login, sector: str) -> str:
    """The name of a person at the clients of one sector: always the same there, and unlike that at any other.

    Pairwise (OpenID Connect Core 1.0, section 8.1): an HMAC-SHA-256 of the sector under the login's own random seed, in
    hexadecimal digits. Neither the code nor a number that could be counted is in it.
    """
    if login.subject_seed is None:
        # Whoever is first: two clients may ask at the same time.
        Login.objects.filter(pk=login.pk, subject_seed=None).update(subject_seed=secrets.token_hex(16))
        login.refresh_from_db(fields=["subject_seed"])
    return hmac.digest(
        bytes.fromhex(str(login.subject_seed)), b"caplai sub 1/" + sector.encode(), hashlib.sha256
    ).hex()
