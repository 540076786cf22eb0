"""Phone numbers: every written form → E.164 with its plus, and back to what people and links are shown.

Numbers are portable, so nothing here says which carrier a number is with.
"""

import re
import unicodedata

TON_INTERNATIONAL, TON_ALPHANUMERIC = 1, 5
"""SMPP 3.4, 5.2.5: type of number."""
_TON_NATIONAL = 2

# The eleven-digit mobile prefixes that ended in November 2018 (plan 798/QĐ-BTTTT of 2018), without their 0.
_NEW_PREFIX = {
    "120": "70", "121": "79", "122": "77", "126": "76", "128": "78",
    "123": "83", "124": "84", "125": "85", "127": "81", "129": "82",
    "162": "32", "163": "33", "164": "34", "165": "35", "166": "36", "167": "37", "168": "38", "169": "39",
    "186": "56", "188": "58", "199": "59",
}  # fmt: skip

_DECORATION = str.maketrans("", "", " \t\r\n.·-‐‒–—−()[]")
_VIETNAMESE = re.compile(r"(?:\+84|0084|84)0?([1-9][0-9]{8,9})|0([1-9][0-9]{8,9})", re.ASCII)
_FOREIGN = re.compile(r"(?:\+|00)([1-9][0-9]{7,14})", re.ASCII)
_E164 = re.compile(r"\+[1-9][0-9]{7,14}", re.ASCII)


def parse(text: str) -> str | None:
    """A written phone number → E.164 (`+84327654686`), or None if it is none that can get a reply.

    Vietnamese mobiles in every form of service.md (`09…`, `849…`, `+849…`, `00849…`, the eleven digits of
    before November 2018), with spaces, dots, dashes and brackets; numbers of other countries with their `+`
    or `00`. Vietnamese landlines are None (no SMS reaches them), and so are numbers that lost their first 0.
    """
    if not text.isascii():
        # Full-width digits, no-break spaces, and the invisible marks that phones' address books copy along.
        wide = unicodedata.normalize("NFKC", text)
        text = "".join(char for char in wide if unicodedata.category(char) != "Cf")
    text = text.translate(_DECORATION)
    if vietnamese := _VIETNAMESE.fullmatch(text):
        return _mobile(vietnamese[1] or vietnamese[2])
    foreign = _FOREIGN.fullmatch(text)
    if foreign is None or foreign[1].startswith("84"):
        return None
    return f"+{foreign[1]}"


def _mobile(national: str) -> str | None:
    """A national number without its 0 → E.164 if it is a mobile's."""
    if len(national) == 10:
        new = _NEW_PREFIX.get(national[:3])
        return f"+84{new}{national[3:]}" if new else None
    return f"+84{national}" if national[0] in "35789" else None


def from_address(digits: str, ton: int) -> str | None:
    """The source address of an SMPP message → E.164, or None if it is no phone (short code, sender name).

    TON 1 has the country code and no plus; 2 (national) may lack the 0, as E.164 defines the national number;
    0 and the rest are read as written. A leading 0 overrules TON 1: no country code begins with it.
    """
    if ton == TON_ALPHANUMERIC:
        return None
    if ton == TON_INTERNATIONAL and digits[:1] not in ("0", "+"):
        return parse(f"+{digits}")
    if ton == _TON_NATIONAL and len(digits) == 9 and digits[:1] != "0":
        return parse(f"0{digits}")
    return parse(digits)


def digits(e164: str) -> str:
    """The destination address for SMPP (TON 1, NPI 1): E.164 without its plus."""
    return e164.removeprefix("+")


def mask(e164: str) -> str:
    """For operators and reports, as the press did: `+84327654686` → `0327xxx686`.

    Four characters and the last three digits stay, and at least three are hidden; of anything that is not
    E.164 nothing is shown.
    """
    if not _E164.fullmatch(e164):
        return "xxx"
    shown = f"0{e164[3:]}" if e164.startswith("+84") else e164
    head = min(4, len(shown) - 6)
    return f"{shown[:head]}{'x' * (len(shown) - head - 3)}{shown[-3:]}"
