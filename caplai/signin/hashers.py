"""How passwords are checked: those chosen here, and those that came with an import from another system.

A chosen password is stored as Argon2id over a peppered password:

    argon2p$<pepper id>$argon2id$v=19$m=19456,t=2,p=1$<salt>$<hash>

The pepper (HMAC-SHA-256) lies in the keyring, outside the database, so a stolen database alone cannot be
cracked. Parameters: OWASP Password Storage Cheat Sheet, Argon2id with 19 MiB, two passes, one lane.
"""

import ctypes
import functools
import hashlib
import hmac
import mmap
import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor

from django.conf import settings
from django.contrib.auth.hashers import (
    Argon2PasswordHasher,
    BasePasswordHasher,
    BCryptPasswordHasher,
    BCryptSHA256PasswordHasher,
    PBKDF2PasswordHasher,
    must_update_salt,
)

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


class RandomSecret(BasePasswordHasher):
    """The hash of a client's secret, which we made of 256 random bits: to guess it a slow hash would add nothing, and
    whoever knows a client's id could keep the cores busy that the sign-in needs.
    """

    algorithm = "random-sha256"

    def encode(self, password: str, salt: str) -> str:
        return f"{self.algorithm}${hashlib.sha256(password.encode('utf-8', 'surrogatepass')).hexdigest()}"

    def verify(self, password: str, encoded: str) -> bool:
        return hmac.compare_digest(encoded, self.encode(password, ""))


@functools.cache
def _cores() -> ThreadPoolExecutor:
    """The threads that hash, one for each core: more at a time would only take each other's cache, and each keeps
    the 19 MiB that it hashes in, for glibc has an arena for each thread.
    """
    cores = len(os.sched_getaffinity(0))
    return ThreadPoolExecutor(cores, thread_name_prefix="argon2", initializer=_take_huge_pages)


def _take_huge_pages() -> None:
    """Ask for pages of 2 MiB (madvise(2)) where this thread will hash, which jumps all over its 19 MiB.

    glibc maps a block of this size anew the first time, and from then on keeps it in the thread's arena, where the
    next one of the size comes to lie, too. Another allocator may do otherwise: then nothing is gained or lost.
    """
    size = PepperedArgon2.memory_cost * 1024
    _libc.free(_libc.malloc(size))
    block = _libc.malloc(size)
    if block:
        first = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        _libc.madvise(first, (block + size - first) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
        _libc.free(block)


_libc = ctypes.CDLL(None)
_libc.malloc.restype, _libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
_libc.free.restype, _libc.free.argtypes = None, [ctypes.c_void_p]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _peppers() -> Keyring:
    return settings.KEYRING.ring("pepper")


def _pepper(password: str, key: bytes) -> str:
    # Whatever a client may send as JSON, half a surrogate pair too.
    plain = unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
    return hmac.digest(key, plain, "sha256").hex()


class _TakenOver:
    """Only checks; what it lets in is hashed anew (credentials.py), so what it checks is what domain/foreign_hash.py
    lets pass. The password is taken as it was typed, for no other system is known to have changed accents.
    """

    def verify(self, password: str, encoded: str) -> bool:
        # Whatever a client may send as JSON, half a surrogate pair too.
        return super().verify(password.encode("utf-8", "replace").decode(), encoded)  # type: ignore[misc]


class TakenOverPBKDF2(_TakenOver, PBKDF2PasswordHasher):
    """Django's default form."""


class TakenOverArgon2(_TakenOver, Argon2PasswordHasher):
    """Argon2id without a pepper, with whatever parameters the hash has."""


class TakenOverBCryptSHA256(_TakenOver, BCryptSHA256PasswordHasher):
    """Django's bcrypt over SHA-256 in hexadecimal."""


class TakenOverBCrypt(_TakenOver, BCryptPasswordHasher):
    """bcrypt as everybody has it: 72 octets count."""

    def encode(self, password: str, salt: bytes) -> str:
        # As other systems did by themselves; the library refuses what is longer.
        octets = password.encode()[:72]
        return f"{self.algorithm}${self._load_library().hashpw(octets, salt).decode('ascii')}"
