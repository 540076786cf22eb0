"""What a mail carries that must be in no table: codes to be typed and tokens of links, derived when they are needed.

    seed  = HMAC-SHA-256(key, label (UTF-8) ‖ 0 ‖ name (16 octets))
    code  = the seed as one big-endian number, modulo 10**6: off from even by less than 2**-236
    token = name ‖ the first 16 octets of the seed, in URL-safe base64: 43 characters

`label` says what it is good for, so that what proves one thing never proves another; `name` is random, of the row that
it belongs to. Who reads the tables has the name and lacks the key; who guesses has 128 bits before them.
"""

import base64
import binascii
import hmac
from collections.abc import Iterable
from uuid import UUID

_OCTETS = 16


def code(key: bytes, label: str, name: UUID) -> str:
    """Six digits."""
    return f"{int.from_bytes(_seed(key, label, name), 'big') % 10**6:06}"


def code_matches(keys: Iterable[bytes], label: str, name: UUID, typed: str) -> bool:
    """Whether these are the digits under any of the keys, spaces forgiven; constant time in its characters."""
    given = "".join(typed.split()).encode("utf-8", "surrogatepass")
    return any(hmac.compare_digest(code(key, label, name).encode(), given) for key in keys)


def token(key: bytes, label: str, name: UUID) -> str:
    """For a link."""
    return base64.urlsafe_b64encode(name.bytes + _seed(key, label, name)[:_OCTETS]).decode().rstrip("=")


def name_of(keys: Iterable[bytes], label: str, token: str) -> UUID | None:
    """The name that a token was made for under any of the keys; None for anything else."""
    try:
        octets = base64.b64decode(token + "=", altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        return None
    if len(octets) != 2 * _OCTETS:
        return None
    name = UUID(bytes=octets[:_OCTETS])
    right = any(hmac.compare_digest(_seed(key, label, name)[:_OCTETS], octets[_OCTETS:]) for key in keys)
    return name if right else None


def _seed(key: bytes, label: str, name: UUID) -> bytes:
    return hmac.digest(key, label.encode() + b"\0" + name.bytes, "sha256")
