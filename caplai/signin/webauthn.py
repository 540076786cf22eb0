"""Passkeys: the two ceremonies of WebAuthn (W3C, level 3), for pages and app alike.

Kept in allauth's table (`allauth.mfa`), in its form. Ours is what is believed: a challenge that was given for this
purpose, within the hour, and was not answered yet; the exact origin of `public_url`, or that of a configured app; a
user who was verified (fingerprint, face, screen lock). Every passkey is discoverable, so nobody has to type a code.

What a passkey is made for lies in the session of whom it is made for. What one signs in with is signed instead, and
nothing of it is kept: every browser that opens the sign-in page asks for one, and so may any stranger.
"""

import ipaddress
import json
import secrets
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from allauth.core.internal.httpkit import is_headless_request
from allauth.mfa.models import Authenticator
from cryptography.exceptions import UnsupportedAlgorithm
from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.core.signing import BadSignature, Signer
from django.db.models import F, Func, JSONField, Q, QuerySet, TextField, Value
from django.db.models.functions import Now
from django.http import HttpRequest
from fido2.cose import CoseKey
from fido2.server import Fido2Server
from fido2.utils import websafe_encode
from fido2.webauthn import (
    AttestationObject,
    AuthenticationResponse,
    AuthenticatorAttachment,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialUserEntity,
    RegistrationResponse,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from caplai.service.passkeys import MOST
from caplai.signin.backend import PasswordBackend
from caplai.signin.client import client_of, name_of
from caplai.signin.context import site_name
from caplai.store.models import Login

MOST_OCTETS = 65_536
"""Of what an authenticator sends, as JSON; real ones send three thousand."""
NAME_LENGTH = 60
_CHALLENGES = "passkey_challenges"
"""In a session: what a passkey is to be made with, each [the library's state, for which login, when]."""
_PENDING = 4
"""The latest of them, for as many tabs."""
_GOOD_FOR = 3600.0
"""Seconds. The offer in a field's suggestions stands as long as its page is open."""
_ANSWERED = "answered"
"""In a passkey's data: when the challenge was given that it signed in with last, in microseconds since 1970."""
_PATIENCE = 300_000
"""Milliseconds that a browser waits for the finger."""
_PORTS = {"http": 80, "https": 443}
"""Which an origin does not name (RFC 6454, 6.2)."""
_VERIFIED = UserVerificationRequirement.REQUIRED
# What the library raises for what is no answer of an authenticator, besides what it says itself (ValueError).
_NONSENSE = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, NotImplementedError,
    struct.error, UnsupportedAlgorithm, AssertionError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Site:
    """Whom passkeys are made for: the name of a host (the relying party's id), and the origins that may ask."""

    host: str
    origins: frozenset[str]


def site(request: HttpRequest) -> Site | None:
    """As `public_url` says, which must be https and a name, or localhost, for browsers have no passkeys elsewhere.
    Without it only where somebody tries it on localhost: any other host might be a name that we do not have tomorrow.
    """
    origin = settings.CAPLAI.public_url or f"{request.scheme}://{request.get_host()}"
    url = urlsplit(origin)
    host = url.hostname or ""
    local = host == "localhost" or host.endswith(".localhost")
    if not local and (settings.CAPLAI.public_url is None or url.scheme != "https" or _is_address(host)):
        return None
    port = "" if url.port in (None, _PORTS.get(url.scheme)) else f":{url.port}"
    return Site(host, frozenset({f"{url.scheme}://{host}{port}", *settings.CAPLAI.signin.app_origins}))


def passkeys(login: Login) -> QuerySet[Authenticator]:
    """A login's, the oldest first."""
    return Authenticator.objects.filter(user=login, type=Authenticator.Type.WEBAUTHN).order_by(
        "created_at", "pk"
    )


def is_full(login: Login) -> bool:
    """Whether it has as many passkeys as it may."""
    return passkeys(login).count() >= MOST


def creation_options(request: HttpRequest, login: Login, *, here: bool = False) -> dict | None:
    """What a browser needs to make a passkey; None where there are none, or enough. `here`: of this very device."""
    server = _server(request)
    if server is None or is_full(login):
        return None
    options, state = server.register_begin(
        user=PublicKeyCredentialUserEntity(
            id=str(login.pk).encode(), name=login.username, display_name=login.username
        ),
        credentials=_credentials(login),
        resident_key_requirement=ResidentKeyRequirement.REQUIRED,
        user_verification=_VERIFIED,
        authenticator_attachment=AuthenticatorAttachment.PLATFORM if here else None,
        extensions={"credProps": True},
    )
    pending = request.session.get(_CHALLENGES, [])
    request.session[_CHALLENGES] = [*pending, [state, login.pk, int(time.time())]][-_PENDING:]
    return dict(options)


def request_options(request: HttpRequest) -> dict | None:
    """What a browser needs to ask for a passkey of this site; None where there are none."""
    server = _server(request)
    if server is None:
        return None
    challenge = _signer(request).sign(f"{secrets.token_urlsafe(16)}.{time.time_ns() // 1000}").encode()
    options, _state = server.authenticate_begin(user_verification=_VERIFIED, challenge=challenge)
    return dict(options)


def parsed(text: str) -> Mapping[str, Any] | None:
    """An authenticator's answer as a form brings it, or None."""
    try:
        answer = json.loads(text) if len(text) <= MOST_OCTETS else None
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def made(request: HttpRequest, login: Login, answer: Mapping[str, Any] | None) -> dict | None:
    """The new passkey, to be kept by `store`; None if it is not to be believed. Its challenge is spent either way."""
    server = _server(request)
    try:
        registration = RegistrationResponse.from_dict(answer or {})
        client, attestation = registration.response.client_data, registration.response.attestation_object
        state = _take(request, client.challenge, login)
        if server is None or state is None:
            return None
        server.register_complete(state, registration)
        data = attestation.auth_data.credential_data
        if data is None or data.public_key.get(3) not in CoseKey.supported_algorithms():
            return None
        kept = RegistrationResponse(
            raw_id=data.credential_id,
            response=type(registration.response)(
                client_data=client,
                # Who made the device is nobody's business (attestation: none); some say it unasked.
                attestation_object=AttestationObject.create("none", attestation.auth_data, {}),
            ),
        )
    except _NONSENSE:
        return None
    return {**json.loads(json.dumps(dict(kept))), "clientExtensionResults": {"credProps": {"rk": True}}}


def store(login: Login, credential: dict, name: str) -> None:
    """Keep a passkey."""
    Authenticator.objects.create(
        user=login,
        type=Authenticator.Type.WEBAUTHN,
        data={"name": name[:NAME_LENGTH], "credential": credential},
        created_at=Now(),  # the database's clock, which the end of a case is compared with
    )


def shown(request: HttpRequest, answer: Mapping[str, Any] | None) -> Authenticator | None:
    """The passkey that was shown, with its login (`user`), who may sign in. That it was used is written down.

    None if it is not to be believed, was removed, or its login may not sign in. Once a passkey has answered a challenge
    it can answer neither that one again nor one that was given before it.
    """
    server = _server(request)
    try:
        assertion = AuthenticationResponse.from_dict(answer or {})
        challenge = assertion.response.client_data.challenge
        given = _given(request, challenge)
        whose = _login(assertion.response.user_handle)
        if server is None or given is None or whose is None:
            return None
        _options, state = server.authenticate_begin(user_verification=_VERIFIED, challenge=challenge)
        kept = {_credential(passkey).credential_id: passkey for passkey in passkeys(whose)}
        credentials = [_credential(passkey) for passkey in kept.values()]
        found = server.authenticate_complete(state, credentials, assertion)
    except _NONSENSE:
        return None
    passkey = kept[found.credential_id]
    new = Q(**{f"data__{_ANSWERED}__isnull": True}) | Q(**{f"data__{_ANSWERED}__lt": given})
    used = passkeys(whose).filter(new, pk=passkey.pk)
    if not used.update(last_used_at=Now(), data=_with(_ANSWERED, given)):
        return None  # by this very answer, or the passkey was removed at this moment
    passkey.user = whose
    return passkey


def rename(login: Login, passkey: int, name: str) -> bool:
    """Call this login's passkey so; False if there is none (any more)."""
    return bool(passkeys(login).filter(pk=passkey).update(data=_with("name", name[:NAME_LENGTH])))


def name_for(request: HttpRequest) -> str:
    """What a new passkey is called until its owner says better: where it was made ("Chrome on Android")."""
    return name_of(
        client_of(request.headers.get("User-Agent", ""), app=is_headless_request(request) is not None)
    )


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def _with(name: str, value: object) -> Func:
    """The passkey's data with this in it, whatever is written to the rest of it at this moment."""
    return Func(
        F("data"), Value([name], ArrayField(TextField())), Value(value, JSONField()), function="jsonb_set"
    )


def _server(request: HttpRequest) -> Fido2Server | None:
    where = site(request)
    if where is None:
        return None
    server = Fido2Server(
        PublicKeyCredentialRpEntity(id=where.host, name=site_name()),
        verify_origin=lambda origin: origin in where.origins,
    )
    server.timeout = _PATIENCE  # type: ignore[assignment]
    return server


def _credentials(login: Login) -> list:
    return [_credential(passkey) for passkey in passkeys(login)]


def _credential(passkey: Authenticator):
    return passkey.wrap().authenticator_data.credential_data


def _login(handle: bytes | None) -> Login | None:
    number = (handle or b"").decode("ascii", "replace")
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        return None
    return PasswordBackend().get_user(int(number))


def _take(request: HttpRequest, challenge: bytes, login: Login) -> dict | None:
    """The library's state of a challenge that this session was given to make this login a passkey; it is spent."""
    pending = request.session.get(_CHALLENGES, [])
    name = websafe_encode(challenge)
    found = [one for one in pending if one[0]["challenge"] == name]
    if found:
        request.session[_CHALLENGES] = [one for one in pending if one not in found]
    good = [one[0] for one in found if one[1] == login.pk and time.time() - one[2] < _GOOD_FOR]
    return good[0] if good else None


def _signer(request: HttpRequest) -> Signer:
    """Signs what this browser is to sign in with, which is known by the cookie of its forms. (An app has none.)"""
    return Signer(salt=f"caplai.signin.passkey:{request.META.get('CSRF_COOKIE', '')}")


def _given(request: HttpRequest, challenge: bytes) -> int | None:
    """When this browser was given that challenge to sign in with, in microseconds; None if not, or too long ago."""
    try:
        text = _signer(request).unsign(challenge.decode("ascii"))
    except (BadSignature, UnicodeDecodeError):
        return None
    given = int(text.partition(".")[2])
    return given if time.time() - given / 1e6 < _GOOD_FOR else None
