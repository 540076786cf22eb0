"""How a chosen password is stored: Argon2id over a peppered password.

    argon2p$<pepper id>$argon2id$v=19$m=19456,t=2,p=1$<salt>$<hash>

The pepper (HMAC-SHA-256) lies in the keyring, outside the database, so a stolen database alone cannot be
cracked. Parameters: OWASP Password Storage Cheat Sheet, Argon2id with 19 MiB, two passes, one lane.
"""

import functools
import hmac
import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor

from django.conf import settings
from django.contrib.auth.hashers import Argon2PasswordHasher, must_update_salt

from caplai.domain.issuing import Keyring


class PepperedArgon2(Argon2PasswordHasher):
    """Django's hasher, peppered. A password is the same however its accents were typed (NFC)."""

    algorithm = "argon2p"
    time_cost = 2
    memory_cost = 19456
    parallelism = 1

    def encode(self, password: str, salt: str) -> str:
        peppers = _peppers()
        peppered = _pepper(password, peppers.keys[peppers.active])
        argon2 = _cores().submit(super().encode, peppered, salt).result()
        return f"{self.algorithm}${peppers.active}{argon2.removeprefix(self.algorithm)}"

    def decode(self, encoded: str) -> dict:
        pepper, plain = self._split(encoded)
        return {**super().decode(plain), "pepper": pepper}

    def verify(self, password: str, encoded: str) -> bool:
        """Whether it is this password. A pepper that this host lacks is a KeyError: ask before."""
        pepper, plain = self._split(encoded)
        peppered = _pepper(password, _peppers().keys[pepper])
        return _cores().submit(super().verify, peppered, plain).result()

    def must_update(self, encoded: str) -> bool:
        """Whether it was made with another pepper than the active one, or with other parameters."""
        decoded = self.decode(encoded)
        wanted = self.params()
        wanted.salt_len = decoded["params"].salt_len
        return (
            decoded["pepper"] != _peppers().active
            or decoded["params"] != wanted
            or must_update_salt(decoded["salt"], self.salt_entropy)
        )

    def _split(self, encoded: str) -> tuple[str, str]:
        """The pepper's id, and the encoded form without it as Django's hasher reads it."""
        algorithm, pepper, rest = encoded.split("$", 2)
        return pepper, f"{algorithm}${rest}"


@functools.cache
def _cores() -> ThreadPoolExecutor:
    """The threads that hash, one for each core: more at a time would only take each other's cache, and each keeps
    the 19 MiB that it hashes in, for glibc has an arena for each thread.
    """
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="argon2")


def _peppers() -> Keyring:
    return settings.KEYRING.ring("pepper")


def _pepper(password: str, key: bytes) -> str:
    # Whatever a client may send as JSON, half a surrogate pair too.
    plain = unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
    return hmac.digest(key, plain, "sha256").hex()
