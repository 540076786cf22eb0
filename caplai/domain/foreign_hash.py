"""Password hashes that other systems made: which are taken over by an import, and in what form they are kept.

Taken over are Django's own forms (`pbkdf2_sha256$…`, `argon2$argon2id$…`, `bcrypt$…`, `bcrypt_sha256$…`), bare bcrypt
(`$2a$`, `$2b$`, `$2y$`) and bare Argon2id in the PHC string format (`$argon2id$…`); what is bare gets Django's name in
front. Refused is what could never match, and what costs too much or too little to check:

- too much: a stranger's wrong guess costs as much as its owner's sign-in. The bounds are half a second of a core of
  2020 and 128 MiB, above what Django 5 and 6 make (1,200,000 iterations, twelve rounds, 100 MiB with two passes);
- too little: whoever steals the table would try them out by the thousand million. The least is NIST's of 2017 for
  PBKDF2 (SP 800-63B, 5.1.1.2: 10,000 iterations) and OWASP's for bcrypt (ten rounds) and Argon2id (35 MiB passed over
  once).
"""

import base64
import re

FORMS = "pbkdf2_sha256, argon2id, bcrypt, bcrypt_sha256"
ITERATIONS = range(10_000, 1_500_001)
ROUNDS = range(10, 14)  # of bcrypt: their number is two to the power of it
MEMORY = 131_072  # KiB
PASSED_OVER = range(35 * 1024, 400_001)  # KiB, all passes together
LANES = 16  # each is a thread

_PBKDF2 = re.compile(
    r"pbkdf2_sha256\$(?P<iterations>[1-9][0-9]{0,9})\$[!-#%-~]{1,128}\$(?P<key>[A-Za-z0-9+/]{43}=)"
)
# Of the 22 letters of a salt the last holds two bits, of the 31 of a hash the last holds four.
_BCRYPT = re.compile(
    r"(?P<name>bcrypt(?:_sha256)?\$)?\$2[aby]\$(?P<rounds>[0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}"
)
_ARGON2 = re.compile(
    r"(?P<name>argon2)?\$argon2id\$v=19\$m=(?P<memory>[1-9][0-9]{0,9}),t=(?P<passes>[1-9][0-9]{0,9}),"
    r"p=(?P<lanes>[1-9][0-9]{0,9})\$(?P<salt>[A-Za-z0-9+/]{11,86})\$(?P<key>[A-Za-z0-9+/]{22,86})"
)

_UNKNOWN = f"none that can be checked (known are {FORMS})"
_COSTLY = "too costly to check at each sign-in; leave it empty, its owner texts for a new password"
_CHEAP = "too quickly tried out; leave it empty, its owner texts for a new password"


def read(text: str) -> tuple[str, str]:
    """A hash as another system has it → how it is kept, and why not; one of the two is empty.

    The reason quotes nothing of it.
    """
    if match := _PBKDF2.fullmatch(text):
        if not _is_base64(match["key"]):
            return "", _UNKNOWN
        return _within(text, int(match["iterations"]), ITERATIONS)
    if match := _BCRYPT.fullmatch(text):
        return _within(text if match["name"] else f"bcrypt${text}", int(match["rounds"]), ROUNDS)
    if match := _ARGON2.fullmatch(text):
        memory, passes, lanes = int(match["memory"]), int(match["passes"]), int(match["lanes"])
        if memory < 8 * lanes or not (_is_base64(match["salt"]) and _is_base64(match["key"])):
            return "", _UNKNOWN
        if memory > MEMORY or lanes > LANES:
            return "", _COSTLY
        return _within(text if match["name"] else f"argon2{text}", memory * passes, PASSED_OVER)
    return "", _UNKNOWN


def _within(text: str, cost: int, bounds: range) -> tuple[str, str]:
    if cost in bounds:
        return text, ""
    return "", _COSTLY if cost >= bounds.stop else _CHEAP


def _is_base64(text: str) -> bool:
    """Whether it is the one way to write those bytes: what compares it with its own writing never matches another."""
    bare = text.rstrip("=")
    if len(bare) % 4 == 1:
        return False
    return base64.b64encode(base64.b64decode(bare + "=" * (-len(bare) % 4))).decode().rstrip("=") == bare
