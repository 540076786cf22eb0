"""Which hashes of other systems are taken over, and in what form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caplai.domain.foreign_hash import read

KEY = "iQ8rXrVJ+KMOOkEZbmyGplVTee8jgZujc7NHAQvgj/Q"
SALTED = "Dvc873/ucSdaakgxzOh5aOeVYsD3JuXBWFBbJ1HZayeiW9r5hnRJO"  # bcrypt's salt and hash


def pbkdf2(iterations="600000", salt="muoi", key=f"{KEY}="):
    return f"pbkdf2_sha256${iterations}${salt}${key}"


def argon2(memory=102400, passes=2, lanes=8, salt="c2FsdHNhbHRzYWx0", key=KEY, version=19, kind="id"):
    return f"$argon2{kind}$v={version}$m={memory},t={passes},p={lanes}${salt}${key}"


TAKEN = {
    pbkdf2(): pbkdf2(),
    pbkdf2("10000"): pbkdf2("10000"),
    pbkdf2("1500000", salt="a,b\\ c'"[:4]): pbkdf2("1500000", salt="a,b\\"),
    argon2(): "argon2" + argon2(),
    "argon2" + argon2(): "argon2" + argon2(),
    argon2(19_456, 2, 1): "argon2" + argon2(19_456, 2, 1),
    argon2(7_168, 5, 1): "argon2" + argon2(7_168, 5, 1),
    argon2(131_072, 3, 16): "argon2" + argon2(131_072, 3, 16),
    f"$2b$12${SALTED}": f"bcrypt$$2b$12${SALTED}",
    f"$2a$10${SALTED}": f"bcrypt$$2a$10${SALTED}",
    f"$2y$13${SALTED}": f"bcrypt$$2y$13${SALTED}",
    f"bcrypt$$2b$12${SALTED}": f"bcrypt$$2b$12${SALTED}",
    f"bcrypt_sha256$$2b$12${SALTED}": f"bcrypt_sha256$$2b$12${SALTED}",
}
COSTLY = [
    pbkdf2("1500001"),
    pbkdf2("9999999999"),
    f"$2b$14${SALTED}",
    f"bcrypt_sha256$$2b$31${SALTED}",
    argon2(131_073),
    argon2(9_999_999_999, 1),
    argon2(131_072, 4),
    argon2(65_536, 9_999_999_999),
    argon2(lanes=17),
]
CHEAP = [
    pbkdf2("9999"),
    pbkdf2("1"),
    f"$2b$09${SALTED}",
    f"$2b$00${SALTED}",
    argon2(35_839, 1),
    argon2(1024, 2),
]
UNKNOWN = [
    "x",
    "!",
    "secret123",
    "5f4dcc3b5aa765d61d8327deb882cf99",
    pbkdf2("010000"),
    pbkdf2("-1"),
    pbkdf2("10000000000"),
    pbkdf2(salt=""),
    pbkdf2(salt="x" * 129),
    pbkdf2(salt="a b"),
    pbkdf2(key=KEY),
    pbkdf2(key=KEY[:-1] + "R="),  # four bits that no writer sets
    pbkdf2() + "\n",
    pbkdf2().replace("256", "1"),
    pbkdf2("６０００００"),
    f"$2x$12${SALTED}",
    f"$2b$12${SALTED[:-1]}",
    f"$2b$12${SALTED[:21]}A{SALTED[22:]}",
    f"$2b$12${SALTED}\0",
    f"bcrypt_sha512$$2b$12${SALTED}",
    argon2(kind="i"),
    argon2(kind="d"),
    argon2(version=16),
    argon2(salt="YWJj"),
    argon2(salt="c2FsdHNhbHRzYWx0c"),  # no number of octets
    argon2(key=KEY[:-1] + "R"),
    argon2(63, 600, 8),  # RFC 9106, 3.1: eight KiB a lane
    argon2() + "=",
    "scrypt$16384$salt$8$5$" + KEY,
    "argon2p$p1" + argon2(),  # one of ours has a pepper
]


@pytest.mark.parametrize(("text", "kept"), TAKEN.items())
def test_taken(text, kept):
    assert read(text) == (kept, "")


@pytest.mark.parametrize(
    ("text", "says"),
    [(text, "costly") for text in COSTLY]
    + [(text, "tried out") for text in CHEAP]
    + [(text, "none that can") for text in UNKNOWN],
)
def test_refused_with_a_reason_that_quotes_nothing(text, says):
    kept, reason = read(text)
    assert kept == ""
    assert says in reason
    assert KEY[:8] not in reason and SALTED[:8] not in reason


@given(st.text() | st.sampled_from([*TAKEN, *COSTLY, *UNKNOWN]).flatmap(lambda text: st.integers(0, len(text))
       .map(lambda at: text[:at] + text[at + 1 :])))  # fmt: skip
def test_any_text_is_taken_or_refused(text):
    kept, reason = read(text)
    assert bool(kept) != bool(reason)
