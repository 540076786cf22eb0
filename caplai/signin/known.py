"""Passwords that a stranger would try first: the commonest ones, the service's name, the account's own numbers.

A list and nothing else (NIST SP 800-63B-4, 3.1.1.2): there is no rule of composition, so a phrase of one's own is
always good, however it is written.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from django.contrib.auth.password_validation import CommonPasswordValidator

_LIST = Path(__file__).with_name("known_passwords.txt")
_MOST_DIGITS = 6
"""That are cut from the end of a password before it is looked up in our own list: a run, a year, a birthday."""
_PART = 6
"""As many digits of a number, one after the other, are a part of it."""
_MOST_LETTERS = 2
"""Beside a word or a part of a number, and any digits."""


def is_common(password: str) -> bool:
    """Whether it is among the commonest, as it is typed or folded."""
    plain = fold(password)
    everywhere, here = _everywhere(), _here()
    if not everywhere.isdisjoint((password.casefold().strip(), plain)) or plain in here:
        return True
    digits = len(plain) - len(plain.rstrip("0123456789"))
    return any(plain[:-cut] in here for cut in range(1, min(digits, _MOST_DIGITS) + 1))


def is_made_of(password: str, words: Iterable[str]) -> bool:
    """Whether it is made of these words, with nothing but digits or two letters beside them (ASVS 5.0, 6.2.11)."""
    plain = rest = fold(password)
    for word in sorted(map(fold, words), key=len, reverse=True):
        rest = rest.replace(word, "") if word else rest
    return rest != plain and _is_little(rest)


def is_made_of_number(password: str, number: str) -> bool:
    """Whether it is made of six digits or more that follow each other in this number, with no more beside them."""
    plain = fold(password)
    for length in range(min(len(number), len(plain)), _PART - 1, -1):
        for part in {number[start : start + length] for start in range(len(number) - length + 1)}:
            if part in plain:
                return _is_little(plain.replace(part, "", 1))
    return False


def fold(text: str) -> str:
    """Its letters and digits alone, without accents and in lower case."""
    letters = unicodedata.normalize("NFKD", text.casefold().replace("đ", "d"))
    return "".join(letter for letter in letters if letter.isalnum())


def _is_little(rest: str) -> bool:
    return sum(not letter.isdigit() for letter in rest) <= _MOST_LETTERS


@functools.cache
def _everywhere() -> frozenset[str]:
    """Django's 20,000. Read once: to unpack them costs more than to hash."""
    return frozenset(CommonPasswordValidator().passwords) - {""}


@functools.cache
def _here() -> frozenset[str]:
    """Our own list."""
    return frozenset(re.sub(r"(?m)^#.*$", "", _LIST.read_text("utf-8")).split())
