"""A nation that does not exist: accounts as a CSV file for `caplai accounts import`, as many as are asked for.

For tests, demos and benchmarks. A seed repeats the file to the byte, and the file of fewer accounts is the beginning
of the file of more. Nothing is remembered of the rows that were made, so memory does not grow with them.
"""

import base64
import hashlib
import random
from collections.abc import Iterator, Sequence

_HALF = 100_000  # a code is two halves of five digits
CODES = _HALF * _HALF
_BLOCK = 5_000

# The mobile prefixes of today, and a carrier's rough weight.
_PREFIXES = (
    *("032", "033", "034", "035", "036", "037", "038", "039", "086", "096", "097", "098") * 3,
    *("081", "082", "083", "084", "085", "088", "091", "094") * 2,
    *("070", "076", "077", "078", "079", "089", "090", "093") * 2,
    *("052", "056", "058", "059", "092", "099"),
)
_OF_BEFORE_2018 = {"032": "0162", "037": "0167", "070": "0120", "079": "0121", "083": "0123", "081": "0127"}
_FAMILIES = (*(1,) * 70, *(2,) * 15, *(3,) * 9, *(4,) * 4, *(5,) * 2)  # how many accounts share a phone
_NAMES = (
    *(
        "an",
        "anh",
        "binh",
        "chi",
        "cuong",
        "dung",
        "duc",
        "giang",
        "ha",
        "hai",
        "hanh",
        "hieu",
        "hoa",
        "hong",
    ),
    *(
        "hung",
        "huong",
        "khanh",
        "lan",
        "linh",
        "long",
        "mai",
        "minh",
        "nam",
        "nga",
        "ngoc",
        "nhung",
        "phuong",
    ),
    *("quan", "quang", "son", "tam", "thanh", "thao", "thu", "thuy", "trang", "trung", "tuan", "van", "yen"),
)
_SURNAMES = (
    "nguyen",
    "tran",
    "le",
    "pham",
    "hoang",
    "phan",
    "vu",
    "vo",
    "dang",
    "bui",
    "do",
    "ho",
    "ngo",
    "duong",
)
_DOMAINS = ("example.vn", "example.com", "mail.example.vn", "example.org")


class Codes:
    """Every code of ten digits once, in an order that the seed decides and nobody would guess.

    A Feistel network over the two halves of a counter, adding from a table in each round: adding is undone by
    subtracting, so no two counters meet in one code, and no set of the codes given out is needed.
    """

    def __init__(self, seed: int) -> None:
        draw = random.Random(f"{seed}/codes")  # noqa: S311
        self._rounds = [draw.choices(range(_HALF), k=_HALF) for _ in range(3)]

    def __getitem__(self, counter: int) -> int:
        """The code of a counter, both from 0 to CODES - 1."""
        first, second, third = self._rounds
        high, low = divmod(counter, _HALF)
        high = (high + first[low]) % _HALF
        low = (low + second[high]) % _HALF
        return (high + third[low]) % _HALF * _HALF + low


def password_of(code: str) -> str:
    """The password of an account that was given one: its last two digits decide."""
    return f"con meo {code[-2:]}"


def accounts(count: int, seed: int = 0, with_passwords: float = 0.0) -> Iterator[bytes]:
    """The file in blocks of some thousand lines, its header first; at most CODES accounts.

    Families share a phone, some people have an e-mail address, a few are pending or closed, and phones are written as
    people write them. `with_passwords`: the share of accounts (0 to 1) with a hash of `password_of`, in the forms that
    an import takes and at the least cost that it takes; then the file has the column for it.
    """
    if not 0 <= count <= CODES:
        raise ValueError(f"from 0 to {CODES} accounts")
    codes = Codes(seed)
    draw = random.Random(f"{seed}/people")  # noqa: S311
    chance, choose = draw.random, draw.choice
    hashes = _hashes(seed) if with_passwords else []
    yield b"code,phone,email,state,password_hash\n" if hashes else b"code,phone,email,state\n"
    lines: list[str] = []
    family, phone = 0, ""
    for counter in range(count):
        if not family:
            family = choose(_FAMILIES)
            phone = f"{choose(_PREFIXES)}{int(chance() * 10_000_000):07}"
        family -= 1
        code = codes[counter]
        how = chance()
        written = phone if how < 0.9 else _written(phone, how)
        email = _email(draw) if chance() < 0.12 else ""
        lot = chance()
        state = "approved" if lot < 0.97 else "pending" if lot < 0.99 else "closed"
        # Drawn whether or not it is used: the people are the same with passwords and without.
        password = chance() < with_passwords
        if hashes:
            state = f"{state},{hashes[code % 100]}" if password else f"{state},"
        lines.append(f"{code:010},{written},{email},{state}\n")
        if len(lines) == _BLOCK:
            yield "".join(lines).encode()
            lines.clear()
    yield "".join(lines).encode()


def _written(phone: str, how: float) -> str:
    """`how`: from 0.9 to 1, which of the forms."""
    if how < 0.95:
        return f"+84{phone[1:]}"
    if how < 0.97:
        return f"{phone[:4]} {phone[4:7]} {phone[7:]}"
    if how < 0.98:
        return f"{phone[:4]}.{phone[4:7]}.{phone[7:]}"
    return f"{_OF_BEFORE_2018[phone[:3]]}{phone[3:]}" if phone[:3] in _OF_BEFORE_2018 else f"84{phone[1:]}"


def _email(draw: random.Random) -> str:
    choose = draw.choice
    return f"{choose(_SURNAMES)}.{choose(_NAMES)}{int(draw.random() * 10_000)}@{choose(_DOMAINS)}"


def _hashes(seed: int) -> Sequence[str]:
    """A hash of the password of each two last digits: most as Django makes them, some as others do.

    A hundred for all: a real one for each account would take days.
    """
    import bcrypt
    from argon2 import low_level

    draw = random.Random(f"{seed}/hashes")  # noqa: S311
    made = []
    for digits in range(100):
        password, salt = password_of(f"{digits:02}").encode(), draw.randbytes(16)
        if digits % 10 < 6:
            letters = salt.hex()[:22]
            key = base64.b64encode(hashlib.pbkdf2_hmac("sha256", password, letters.encode(), 10_000)).decode()
            made.append(f"pbkdf2_sha256$10000${letters}${key}")
        elif digits % 10 < 9:
            argon2 = low_level.hash_secret(password, salt, 2, 19_456, 1, 32, low_level.Type.ID).decode()
            made.append(argon2 if digits % 10 == 6 else f"argon2{argon2}")
        else:
            # bcrypt's base64 has letters of its own; of the last one only two bits count.
            letters = "".join(
                draw.choices("./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", k=21)
            )
            salted = f"$2{'aby'[digits // 10 % 3]}$10${letters}{draw.choice('.Oeu')}"
            made.append(bcrypt.hashpw(password, salted.encode()).decode())
    return [f'"{one}"' if "," in one else one for one in made]
