"""What a browser keeps of a forgotten password: the code that was typed, and the secrets of its requests.

All of it is in one cookie that nobody can read but us: encrypted with a key of its own that is derived from the web
keys. So pages can be gone back to and loaded again although the code is in no address, and it is in no session either.
"""

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.http import HttpRequest, HttpResponse

from caplai.store.keyring import KeyringError

COOKIE = settings.KEPT_COOKIE_NAME
_CODE_LASTS = timedelta(minutes=30)
"""How long the code, and what was said of it, is there for who comes back: not for who sits down here after her."""
_LASTS = timedelta(hours=24)
"""As long as any request may (`recover.mail_lifetime`)."""
_REQUESTS = 4
_LABEL = b"caplai kept by browsers 1"


@dataclass
class Kept:
    """`Kept.of(request)`, then `put` it into the response."""

    code: str = ""
    """Ten digits, or nothing."""
    used_at: float = 0.0
    """When something was last typed or said, in seconds since 1970."""
    fresh: str = ""
    """What the secret of the next request is made from: of two clicks both bring the same."""
    requests: list[str] = field(default_factory=list)
    """Their secrets, the newest last."""
    refused: dict[str, Any] = field(default_factory=dict)
    """What the page that comes next has to say of what was typed, once; `page` says which page."""
    said: list[Any] = field(default_factory=list)
    """What the page of words says."""
    _was: str = field(default="", repr=False)

    @classmethod
    def of(cls, request: HttpRequest) -> "Kept":
        """What this browser brought; nothing of what is too old, not ours, or cannot be opened here."""
        try:
            plain = _box().decrypt(request.COOKIES.get(COOKIE, ""), ttl=int(_LASTS.total_seconds()))
            kept = cls(**json.loads(plain))
        except (InvalidToken, KeyringError, TypeError, ValueError):
            return cls()
        if time.time() - kept.used_at > _CODE_LASTS.total_seconds():
            kept.code, kept.said = "", []
        kept._was = kept._content()
        return kept

    def put(self, response: HttpResponse) -> HttpResponse:
        """The response, with the cookie where it has changed. Raises KeyringError."""
        if self._content() != self._was:
            response.set_cookie(
                COOKIE,
                _box().encrypt(self._content().encode()).decode(),
                max_age=_LASTS,
                httponly=True,
                secure=settings.SESSION_COOKIE_SECURE,
                samesite="Lax",
            )
        return response

    def type(self, code: str) -> None:
        """Keep this code."""
        self.code, self.used_at = code, time.time()
        self.fresh = self.fresh or secrets.token_urlsafe()

    def say(self, *what: Any) -> None:
        """Keep this for the page of words."""
        self.said, self.used_at = list(what), time.time()

    def secret_for(self, code: str, channel: str) -> str | None:
        """The secret that the next request for this code by this channel is to have, in whichever tab; None: any."""
        digest = hmac.digest(self.fresh.encode(), f"{code} {channel}".encode(), "sha256")
        return base64.urlsafe_b64encode(digest).decode() if self.fresh else None

    def add(self, secret: str) -> None:
        """Keep this request's, as the newest."""
        self.requests = remember(self.requests, secret)
        self.fresh = secrets.token_urlsafe()

    def refusal(self, page: str) -> dict[str, Any] | None:
        """What is to be said on this page of what was typed there; once."""
        if self.refused.get("page") != page:
            return None
        refused, self.refused = self.refused, {}
        return refused

    def _content(self) -> str:
        content = asdict(self)
        del content["_was"]
        return json.dumps(content, ensure_ascii=False)


def forget(response: HttpResponse) -> None:
    """Whoever sits down here next finds nothing."""
    response.delete_cookie(COOKIE, samesite="Lax")


def remember(requests: list[str], secret: str) -> list[str]:
    """The secrets of a browser's or an app's last requests, with this one as the newest."""
    return [*(each for each in requests if each != secret), secret][-_REQUESTS:]


def handle(secret: str) -> str:
    """What names a request in an address or a form, to who has its secret: nobody else can do anything with it."""
    return base64.urlsafe_b64encode(hashlib.sha256(f"handle {secret}".encode()).digest()[:6]).decode()


def find(requests: list[str], name: str) -> str | None:
    """The secret of the request of this name; of the newest where none is named."""
    found = [each for each in requests if not name or handle(each) == name]
    return found[-1] if found else None


def _box() -> MultiFernet:
    ring = settings.KEYRING.ring("web")
    keys = [ring.keys[ring.active], *(key for name, key in ring.keys.items() if name != ring.active)]
    return MultiFernet([Fernet(base64.urlsafe_b64encode(hmac.digest(key, _LABEL, "sha256"))) for key in keys])
