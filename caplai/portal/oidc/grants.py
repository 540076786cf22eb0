"""Codes and tokens: rows of allauth's table, of which only hashes are kept, each bound to what it was granted under.

`data` of a row:

- `stamp`: the login's at the sign-in. Another one now, and the row is worth nothing (service/federation.py).
- `family`: all that came of one authorization. It ends as a whole when something of it is used a second time (RFC 9700,
  4.14.2), for then two have it.
- `ends`: when the family ends in any case, in seconds since 1970; rotation prolongs nothing.
- `auth_time`: when the person signed in, likewise.
- `sitting`, `device`: where it was granted (service/sittings.py). It ends when the owner signs that one out from
  elsewhere; not when somebody signs out there, who leaves the browser and not the service.
- `used`: this code or refresh token has been exchanged; it stays to be recognised.
- of a code: `redirect_uri`, `nonce`, `challenge`.

allauth would keep codes in Django's cache, which the workers of a site do not share.

Whatever writes or ends rows of a person holds the lock of the account: a token that is renewed all the time would slip
past what ends it (a DELETE does not see what another transaction has put in a row's place meanwhile).
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from allauth.idp.oidc.models import Client, Token
from django.db import transaction
from django.db.models import Q, QuerySet

from caplai.service import federation
from caplai.service.credentials import lock
from caplai.service.sittings import Place
from caplai.store.models import Login


def holder(token: Token) -> Login | None:
    """Who this code or token speaks for; None if it has ended. (Whether it has expired is in the query.)"""
    data = token.data if isinstance(token.data, dict) else {}
    if data.get("used") or token.user_id is None:
        return None
    return federation.holder(token.user_id, str(data.get("stamp")))


def scopes(token: Token) -> list[str]:
    """What it opens: what was granted, as far as the agency lets its client have it now."""
    assert token.client is not None
    allowed = token.client.get_scopes()
    return [scope for scope in token.get_scopes() if scope in allowed]


def find(client_id: str | None, kind: Token.Type, value: str) -> Token | None:
    """The client's unexpired code or token, locked until the transaction ends: of two who bring it one is first."""
    rows = Token.objects.valid().by_value(value).filter(client_id=client_id, type=kind)
    code = rows.values_list("user__account", flat=True).first()
    if code is None:
        return None
    lock(code)
    return rows.select_related("client").select_for_update(of=("self",), no_key=True).first()


def bound(token: Token, like: Token) -> Token:
    """Make `token` one of the family of `like`, which it does not outlive."""
    assert isinstance(like.data, dict)
    token.data = {name: like.data[name] for name in _OF_A_FAMILY if name in like.data}
    ends = datetime.fromtimestamp(like.data["ends"], UTC)
    token.expires_at = min(token.expires_at or ends, ends)
    return token


_OF_A_FAMILY = ("stamp", "family", "ends", "auth_time", "sitting", "device")


def use(token: Token) -> None:
    """It has been exchanged."""
    token.data = {**(token.data or {}), "used": True}
    token.save(update_fields=["data"])


def end_family(token: Token) -> None:
    """End all that came of the same authorization."""
    family = (token.data or {}).get("family")
    Token.objects.filter(user_id=token.user_id, client_id=token.client_id, data__family=family).delete()


def end_granted_from(login: Login, place: Place) -> None:
    """End all that this person granted from there. Under the account's lock, as `sittings.end` asks for it."""
    there = Q()
    if place.sitting is not None:
        there |= Q(data__sitting=place.sitting)
    if place.device is not None:
        there |= Q(data__device=place.device)
    if there:
        Token.objects.filter(there, user=login).delete()


def is_first(login: Login, client: Client, code: Token) -> bool:
    """Whether the client gets its first tokens from this session of the person's. (One that sends people here silently,
    or at each visit, would fill the account's history.)
    """
    sitting = (code.data or {}).get("sitting")
    given = Token.objects.filter(user=login, client=client, data__sitting=sitting)
    return sitting is None or not given.exclude(type=Token.Type.AUTHORIZATION_CODE).exists()


def _living(login: Login) -> QuerySet[Token]:
    """What still opens something: a client that renews every ten minutes leaves thousands that were used."""
    return Token.objects.valid().filter(~Q(data__has_key="used"), user=login, data__stamp=login.stamp)


def has_granted(login: Login, client: Client, scopes: set[str]) -> bool:
    """Whether this person has let this client have all these scopes, by a grant that still lives."""
    rows = _living(login).filter(client=client)
    granted = {scope for row in rows for scope in row.get_scopes()}
    return scopes <= granted


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a client has of a person now, by all sign-ins together."""

    client: Client
    scopes: list[str]
    since: datetime


def agreements(login: Login) -> list[Agreement]:
    """Which clients hold tokens of this person that still live, by name."""
    found: dict[str, Agreement] = {}
    rows = _living(login).select_related("client")
    for row in rows.order_by("created_at"):
        if row.type == Token.Type.AUTHORIZATION_CODE or row.client is None:
            continue
        before = found.get(row.client.id, Agreement(row.client, [], row.created_at))
        more = [scope for scope in scopes(row) if scope not in before.scopes]
        found[row.client.id] = Agreement(row.client, before.scopes + more, before.since)
    return sorted(found.values(), key=lambda agreement: agreement.client.name)


def end_agreement(login: Login, client_id: str) -> str | None:
    """End all that a client has of this person; the client's name, or None if it had nothing."""
    if login.account_id is None:
        return None
    rows = Token.objects.filter(user=login, client_id=client_id.replace("\0", "")).select_related("client")
    with transaction.atomic():
        lock(login.account_id)
        row = rows.first()
        if row is not None and row.client is not None and _living(login).filter(client=row.client).exists():
            federation.tell_end(login, row.client.name)
        rows.delete()
    return row.client.name if row is not None and row.client is not None else None
