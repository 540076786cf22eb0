"""The password that is in no table: derived from a secret key and the frozen inputs of its case.

    seed     = HMAC-SHA-256(key, counter ‖ message), for as many counters as the mapping below needs
    message  = version (1 byte), then each with its length (2 bytes, big-endian): case id (16 bytes),
               account (UTF-8), password length (1 byte), alphabet (UTF-8)
    password = the seed as one big-endian number, modulo alphabet ** length, written in base `alphabet`

The keyed hash is HMAC as in HOTP (RFC 4226, 5.2) with SHA-256; the counter (4 bytes, big-endian, from 1)
makes it longer where needed, as NIST SP 800-108r1, 4.1 does. Lengths before the fields keep two cases from
ever having one message.

How even it is: the seed has at least 128 bits more than there are passwords. Of n passwords and 2**b seeds,
each password has floor(2**b / n) seeds or one more, so its probability is off by less than 2**-b, the whole
distribution by less than n / 2**b <= 2**-128. Nobody can see that, however many passwords they collect.
"""

import hmac
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from uuid import UUID

VERSION = 1
"""Of the derivation. A case keeps the version it was opened with; a change of anything here is a new one."""

DIGITS = "0123456789"

LETTERS = "34679CFHJKMNPRTVX"
"""For the long form: ten of these are 2.0e12 passwords (40.9 bits).

No look-alikes: no 0 O D Q, 1 I L, 2 Z, 5 S, 6's G, 8 B, V's U and W. No vowels and no D or W, out of which
the Vietnamese typing methods make accents while one types (`aa`, `dd`, `w`; Telex, VNI); so it spells nothing
either. One case, so that it may be typed in the other.
"""

_MARGIN_BITS = 128
_BLOCK_BITS = 256  # of HMAC-SHA-256
_LEAST_KEY_BYTES = 32  # as long as the hash, RFC 2104, 3


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a case freezes when it opens; the same inputs and key are the same password for ever.

    `version` is VERSION; `account` the code; `length` 6 to 32 characters; `alphabet` at least ten different
    printable characters. Anything else is a ValueError (which tells no account).
    """

    version: int
    case_id: UUID
    account: str = field(repr=False)
    length: int
    alphabet: str

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"derivation version {self.version} is not known here, only {VERSION}")
        if not self.account:
            raise ValueError("the account is empty")
        if not 6 <= self.length <= 32:
            raise ValueError(f"a password of {self.length} characters: use 6 to 32")
        _check_alphabet(self.alphabet)


@lru_cache(64)
def _check_alphabet(alphabet: str) -> None:
    if len(alphabet) < 10 or len(set(alphabet)) != len(alphabet):
        raise ValueError("the alphabet must have at least ten characters, each once")
    if not alphabet.isprintable() or " " in alphabet:
        raise ValueError("the alphabet must have no spaces or invisible characters")


def new_case_ids() -> Iterator[UUID]:
    """Ids for cases, without end: 128 random bits each, all of them (a version 4 UUID has 122).

    Drawn by the block: each call of the system lets another thread go on, and a batch that gives way for each of its
    cases comes last.
    """
    while True:
        block = secrets.token_bytes(16 * 256)
        for at in range(0, len(block), 16):
            yield UUID(bytes=block[at : at + 16])


def guessable(length: int, alphabet: str) -> bool:
    """Whether strangers' guesses count against such a password: there are fewer than 2**38 of it.

    Twenty guesses in 72 hours at a million passwords are the budget of service.md; against 2**38, a hundred
    thousand guesses an hour for three days succeed with a chance of 1 in 38,000.
    """
    count: int = len(alphabet) ** length
    return count < 2**38


def derive(key: bytes, inputs: Inputs) -> str:
    """The password of a case. `key` has at least 32 bytes, else ValueError."""
    _check_key(key)
    account, alphabet = inputs.account.encode(), inputs.alphabet.encode()
    message = (
        bytes((inputs.version, 0, 16))
        + inputs.case_id.bytes
        + len(account).to_bytes(2, "big")
        + account
        + bytes((0, 1, inputs.length))
        + len(alphabet).to_bytes(2, "big")
        + alphabet
    )
    base = len(inputs.alphabet)
    bits = (base**inputs.length).bit_length() + _MARGIN_BITS
    keyed = _keyed(key)
    seed = b""
    for block in range(1, -(-bits // _BLOCK_BITS) + 1):
        # (hmac.digest() would let another thread go on for each password, and wait for its own turn again.)
        one = keyed.copy()
        one.update(block.to_bytes(4, "big") + message)
        seed += one.digest()
    number = int.from_bytes(seed, "big") % base**inputs.length
    characters = []
    for _ in range(inputs.length):
        number, index = divmod(number, base)
        characters.append(inputs.alphabet[index])
    return "".join(reversed(characters))


@lru_cache(4)
def _keyed(key: bytes) -> hmac.HMAC:
    """To be copied, never used itself."""
    return hmac.new(key, digestmod="sha256")


def matches(key: bytes, inputs: Inputs, candidate: str) -> bool:
    """Whether `candidate` is the case's password; constant time in its characters.

    White space anywhere is forgiven, and the case of letters where the alphabet has only one.
    """
    typed = "".join(candidate.split())
    if inputs.alphabet == inputs.alphabet.upper():
        typed = typed.upper()
    elif inputs.alphabet == inputs.alphabet.lower():
        typed = typed.lower()
    # A candidate may be any str, half a surrogate pair too.
    return hmac.compare_digest(derive(key, inputs).encode(), typed.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True, eq=False, repr=False)
class Keyring:
    """The issuing keys by id, and the id of the one that new cases use. Its repr shows ids only.

    ValueError if the active key is not among them or one has fewer than 32 bytes.
    """

    keys: Mapping[str, bytes]
    active: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", MappingProxyType(dict(self.keys)))
        _keyed.cache_clear()  # a ring that is read anew may lack a key, which is to be forgotten
        if self.active not in self.keys:
            raise ValueError(f"the active issuing key {self.active!r} is not in the keyring")
        for key_id, key in self.keys.items():
            _check_key(key, f" {key_id!r}")

    def get(self, key_id: str) -> bytes | None:
        """The key, or None where this host lacks it (then nobody's guess is counted: service.md)."""
        return self.keys.get(key_id)

    def __repr__(self) -> str:
        return f"Keyring(ids={sorted(self.keys)}, active={self.active!r})"


def _check_key(key: bytes, name: str = "") -> None:
    if len(key) < _LEAST_KEY_BYTES:
        raise ValueError(f"the issuing key{name} is too short: use at least {_LEAST_KEY_BYTES} random bytes")
