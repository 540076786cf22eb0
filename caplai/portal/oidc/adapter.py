"""What allauth asks about people, keys and tokens: by what name, which claims, what signs, what still holds."""

import base64
import secrets
from collections.abc import Iterable
from typing import Any

from allauth.idp.oidc.adapter import DefaultOIDCAdapter
from allauth.idp.oidc.models import Client, PrivateKey, Token
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from django.conf import settings
from django.utils.translation import gettext_lazy as _

from caplai.portal.oidc import grants
from caplai.service import addresses, federation
from caplai.store.keyring import SIGNING
from caplai.store.models import Login

SCOPES = {
    "openid": _("who you are, by a number that is used for this service alone"),
    "email": _("your confirmed email address"),
    "phone": _("your registered phone number"),
    "bhxh_code": _("your social insurance code"),
}
"""What a client may ask for, as the page of consent says it. There is no `profile`: an account has no name."""


class OidcAdapter(DefaultOIDCAdapter):
    scope_display = SCOPES

    def generate_client_secret(self) -> str:
        """256 random bits, of letters that no shell, URL or header reads in another way."""
        return secrets.token_hex(32)

    def get_issuer(self) -> str:
        return issuer(self.request)

    def get_user_sub(self, client: Client, user: Login) -> str:
        return federation.subject(user, (client.data or {}).get("sector") or client.id)

    def get_user_by_sub(self, client: Client, sub: str) -> None:
        """Nobody: allauth would ask it for codes, which we look up ourselves (grants.py)."""

    def get_claims(
        self,
        purpose: str,
        user: Login,
        client: Client,
        scopes: Iterable[str],
        email: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The ID token says who, and no more: clients send it about as a hint, in URLs. The rest is userinfo's."""
        claims: dict[str, Any] = {"sub": self.get_user_sub(client, user)}
        if purpose == "id_token" or user.account is None:
            return claims
        if "email" in scopes and (address := _confirmed(user.account.code)):
            claims |= {"email": address, "email_verified": True}
        if "phone" in scopes:
            claims |= {"phone_number": user.account.phone, "phone_number_verified": True}
        if "bhxh_code" in scopes:
            claims["bhxh_code"] = user.account.code
        return claims

    def list_private_keys(self, **wanted: Any) -> list[PrivateKey]:
        """All that this host can read: clients learn a waiting key before it signs, and keep a retired one."""
        return [PrivateKey(pem=_pem(key)) for key in settings.KEYRING.read().get(SIGNING, {}).values()]

    def get_signing_key(self) -> PrivateKey:
        ring = settings.KEYRING.ring(SIGNING)
        return PrivateKey(pem=_pem(ring.keys[ring.active]))

    def is_introspection_allowed(self, token: Token, *, caller_client: Client) -> bool:
        """Of its own tokens every client may ask, of others' only whom the agency lets (a server of records, say)."""
        mine = token.client_id == caller_client.pk or (caller_client.data or {}).get("introspects") is True
        return mine and grants.holder(token) is not None

    def populate_introspection_response(self, *, response: dict[str, Any], token: Token) -> None:
        response["scope"] = " ".join(grants.scopes(token))


def load_key(pem: str) -> rsa.RSAPrivateKey:
    """One of our own keys. Without the tests for primes, which cost a tenth of a second of a core each time: a stranger
    who asks for the published keys would buy much with little. (OpenSSL checks what it signs.)
    """
    key = load_pem_private_key(pem.encode(), None, unsafe_skip_rsa_key_validation=True)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def issuer(request) -> str:
    """Our name to clients: the public URL, else the address that was called."""
    return settings.CAPLAI.public_url or request.build_absolute_uri("/").rstrip("/")


def _confirmed(code: str) -> str | None:
    """The address that the person has confirmed, the first of several. The agency's registry may have a typo, and a
    client may take whoever reads a mailbox for the person.
    """
    return next((address.email for address in addresses.confirmed(code) if address.id is not None), None)


def _pem(key: bytes) -> str:
    """PKCS #8 as text (RFC 7468)."""
    text = base64.b64encode(key).decode()
    lines = "\n".join(text[start : start + 64] for start in range(0, len(text), 64))
    return f"-----BEGIN PRIVATE KEY-----\n{lines}\n-----END PRIVATE KEY-----\n"
