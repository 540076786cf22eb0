"""Speaking for people at clients (OpenID Connect): for whom, and by what name. What is spoken is in portal/oidc/.

Whatever was granted carries the stamp of the login at that moment. Everything that ends sessions changes the stamp (a
case that is used, another password, a report, a closed account, an import), so it ends all grants with them, and nobody
has to look for them.
"""

import hashlib
import hmac
import secrets

from django.db.models import Q

from caplai.store.models import Account, Login


def holder(login_id: int, stamp: str) -> Login | None:
    """Who a grant that was made under `stamp` may still be used for; None: nobody, it has ended.

    Citizens only: an operator signs in here and nowhere else.
    """
    may = Q(is_active=True, account__state=Account.State.APPROVED)
    return Login.objects.select_related("account").filter(may, pk=login_id, stamp=stamp).first()


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
