"""The agency's decisions about clients: who may ask, where people are sent back to, and what may be told of them."""

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from allauth.idp.oidc.adapter import get_adapter
from allauth.idp.oidc.models import Client
from django.contrib.auth.hashers import make_password
from django.db import transaction

from caplai.portal.oidc.adapter import SCOPES
from caplai.portal.oidc.views import GRANTS
from caplai.signin.hashers import RandomSecret

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_SCHEME = re.compile(r"[a-z][a-z0-9+-]*(\.[a-z0-9+-]+)+")
"""An app's own scheme is a domain name turned round (RFC 8252, 7.1): others could be anybody's."""
_NO_URI = re.compile(r"[\s\x00-\x20\x7f;,'\"*]")


class Refused(ValueError):
    """What was asked for cannot be; the text says why."""


def add(
    name: str,
    redirect_uris: Sequence[str],
    scopes: Sequence[str],
    *,
    post_logout_uris: Sequence[str] = (),
    public: bool = False,
    trusted: bool = False,
    introspects: bool = False,
    sector: str | None = None,
) -> tuple[Client, str | None]:
    """A new client, and the secret that nobody sees again (a public one has none). Raises Refused.

    `scopes`: what it may ask for beside `openid`. `post_logout_uris`: where people may be sent back to when they have
    signed out there, and here if they like. `trusted`: people are not asked. `introspects`: it may ask about
    others' tokens, too. `sector`: clients of one sector know a person by the same `sub`; else each by one of its own.
    """
    client = Client(
        type=Client.Type.PUBLIC if public else Client.Type.CONFIDENTIAL,
        skip_consent=trusted,
        data={
            **({"introspects": True} if introspects else {}),
            **({"sector": _sector(sector)} if sector else {}),
        },
    )
    if public and introspects:
        raise Refused("A public client cannot prove who it is, so it cannot ask about others' tokens.")
    _describe(client, name, redirect_uris, scopes, post_logout_uris)
    client.set_grant_types(GRANTS)
    client.set_response_types([Client.ResponseType.CODE])
    secret = _new_secret(client)
    client.save(force_insert=True)
    return client, None if public else secret


def change(
    client_id: str,
    *,
    name: str | None = None,
    redirect_uris: Sequence[str] = (),
    scopes: Sequence[str] = (),
    post_logout_uris: Sequence[str] = (),
    sector: str | None = None,
) -> Client:
    """Replace what is given; the client as it is then. An empty `post_logout_uris` is one "". Raises Refused.

    Id and secret stay, and with the sector every `sub`: whether a client has stored one nobody here can know, so the
    sector is for ever. Tokens and agreements have from now on what they have of the scopes that are left (grants.py).
    """
    with transaction.atomic():
        client = _find(client_id)
        if sector is not None and _sector(sector) != (client.data or {}).get("sector"):
            raise Refused(
                "With another sector the client would know nobody again: each `sub` that it has stored would be another"
                " person's to it. Register a new client with the sector instead."
            )
        _describe(
            client,
            client.name if name is None else name,
            redirect_uris or client.get_redirect_uris(),
            scopes or client.get_scopes(),
            [uri for uri in post_logout_uris if uri]
            if post_logout_uris
            else client.get_post_logout_redirect_uris(),
        )
        client.save(update_fields=["name", "redirect_uris", "scopes", "data"])
    return client


def every() -> list[Client]:
    return list(Client.objects.order_by("created_at", "id"))


def rotate_secret(client_id: str) -> str:
    """A new secret; the old one ends at once. Raises Refused."""
    with transaction.atomic():
        client = _find(client_id)
        if client.type == Client.Type.PUBLIC:
            raise Refused("A public client has no secret.")
        secret = _new_secret(client)
        client.save(update_fields=["secret"])
    return secret


def remove(client_id: str) -> str:
    """End a client, with every code and token that it has; its name. Raises Refused."""
    with transaction.atomic():
        client = _find(client_id)
        client.delete()
    return client.name


def what_is_wrong(uri: str) -> str | None:
    """Why this cannot be a redirect URI (RFC 6749, 3.1.2; RFC 8252, 7), in words; None: it can."""
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return "it is no URI"
    if _NO_URI.search(uri) or parts.fragment or "#" in uri:
        return "it must have no fragment, and no spaces, quotes, commas, semicolons or asterisks"
    if parts.scheme in ("http", "https"):
        if not parts.hostname or parts.username is not None or port == 0:
            return "it must name a host, and nobody"
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            return "it must be https (http only to the very same machine)"
        return None
    if not _SCHEME.fullmatch(parts.scheme):
        return "an app's own scheme must be its domain name turned round, as vn.gov.example.app:/back"
    return None


def _find(client_id: str) -> Client:
    client = Client.objects.select_for_update().filter(id=client_id).first()
    if client is None:
        raise Refused(f"There is no client {client_id}; see: caplai clients list")
    return client


def _describe(
    client: Client,
    name: str,
    redirect_uris: Sequence[str],
    scopes: Sequence[str],
    post_logout_uris: Sequence[str],
) -> None:
    """Write it into the client, whose type and trust are known. Raises Refused."""
    for uri in [*redirect_uris, *post_logout_uris]:
        if problem := what_is_wrong(uri):
            raise Refused(f"{uri}: {problem}")
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise Refused(f"There is no scope {', '.join(unknown)}; there are {', '.join(SCOPES)}.")
    if not name.strip() or len(name) > 60:
        raise Refused("The name is what people read when they are asked: 1 to 60 characters.")
    is_public = client.type == Client.Type.PUBLIC
    if is_public and client.skip_consent and not all(uri.startswith("https://") for uri in redirect_uris):
        raise Refused(
            "Any app on a phone may claim such an address, and nobody would be asked: use https, or leave"
            " --trusted out."
        )
    client.name = name.strip()
    client.set_redirect_uris(list(redirect_uris))
    client.set_scopes([scope for scope in SCOPES if scope == "openid" or scope in scopes])
    client.set_post_logout_redirect_uris(list(post_logout_uris))


def _sector(name: str) -> str:
    """As it stands in a client's data: no client's id is like it."""
    return f"sector:{name}"


def _new_secret(client: Client) -> str:
    """Also of a public client, which is not told: without one allauth would spend a slow hash on whoever tries."""
    secret = get_adapter().generate_client_secret()
    client.secret = make_password(secret, hasher=RandomSecret.algorithm)
    return secret
