"""An authenticator in software: it makes and shows passkeys as a phone does, or wrongly where a test wants it."""

import hashlib
import json
import os
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from django.test import Client
from fido2.cose import ES256
from fido2.utils import websafe_decode, websafe_encode
from fido2.webauthn import (
    AttestationObject,
    AttestedCredentialData,
    AuthenticatorData,
    CollectedClientData,
)

from caplai.signin import webauthn
from caplai.store.models import Login

FLAG = AuthenticatorData.FLAG
ORIGIN = "http://localhost"
HERE = {"HTTP_HOST": "localhost"}
"""What a test's browser needs, to be at ORIGIN."""


class Ceremony:
    """As much of a request as a ceremony wants."""

    def __init__(self, user: Login) -> None:
        self.user, self.session, self.scheme, self.headers, self.META = user, {}, "http", {}, {}

    def get_host(self) -> str:
        return "localhost"


def asked(client: Client, path: str = "/login/passkey/") -> dict:
    """What the form at this path would ask the browser for."""
    answer = client.post(f"{path}options/")
    assert answer.status_code == 200
    return answer.json()


def send(client: Client, credential: object, path: str = "/login/passkey/"):
    """Post the form with it, as it is with the box ticked."""
    return client.post(path, {"credential": json.dumps(credential), "remember": "on"}, follow=True)


@dataclass
class SoftKey:
    """`make` and `show` take what the site asks and give what its JSON wants. One key for one login."""

    origin: str = ORIGIN
    verified: bool = True
    id: bytes = field(default_factory=lambda: os.urandom(16))
    private: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    handle: str = ""

    @classmethod
    def of(cls, login: Login, name: str, origin: str = ORIGIN) -> "SoftKey":
        """One that this login has."""
        key, request = cls(origin), Ceremony(login)
        credential = webauthn.made(request, login, key.make(webauthn.creation_options(request, login)))
        assert credential is not None
        webauthn.store(login, credential, name)
        return key

    def make(self, options: dict) -> dict:
        asked = options["publicKey"]
        self.handle = asked["user"]["id"]
        public = AttestedCredentialData.create(
            bytes(16), self.id, ES256.from_cryptography_key(self.private.public_key())
        )
        data = AuthenticatorData.create(self._host(asked["rp"]["id"]), self._flags() | FLAG.AT, 0, public)
        return self._answer(
            clientDataJSON=self._client("webauthn.create", asked),
            attestationObject=AttestationObject.create("none", data, {}),
        )

    def show(self, options: dict) -> dict:
        asked = options["publicKey"]
        client = self._client("webauthn.get", asked)
        data = AuthenticatorData.create(self._host(asked["rpId"]), self._flags(), 0)
        signature = self.private.sign(data + client.hash, ec.ECDSA(SHA256()))
        answer = self._answer(clientDataJSON=client, authenticatorData=data, signature=signature)
        answer["response"]["userHandle"] = self.handle
        return answer

    def _answer(self, **parts: bytes) -> dict:
        name = websafe_encode(self.id)
        response = {part: websafe_encode(content) for part, content in parts.items()}
        return {"id": name, "rawId": name, "type": "public-key", "response": response}

    def _client(self, kind: str, asked: dict) -> CollectedClientData:
        return CollectedClientData.create(kind, websafe_decode(asked["challenge"]), self.origin)

    def _flags(self) -> AuthenticatorData.FLAG:
        return FLAG.UP | FLAG.UV if self.verified else FLAG.UP

    def _host(self, host: str) -> bytes:
        return hashlib.sha256(host.encode()).digest()
