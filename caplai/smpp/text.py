"""Alphabets and parts: octets of a short message to text and back, and long messages in several parts.

Sources: SMPP 3.4 §5.2.19 (data_coding); GSM 03.38 (3GPP TS 23.038) for the 7-bit alphabet and the data
coding groups; GSM 03.40 (3GPP TS 23.040) §9.2.3.24 for the user data header (UDH) of parts.
SMPP carries GSM-7 unpacked, one septet in one octet.
"""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from gsm0338 import Codec

from caplai.smpp.pdu import MAX_SHORT_MESSAGE

Alphabet = Literal["gsm0338", "latin1", "ascii", "utf-8"]
"""What data_coding 0 can mean on a link: it is the SMSC's default alphabet, agreed with the carrier."""

GSM_SINGLE, GSM_PART = 160, 153
UCS2_SINGLE, UCS2_PART = 70, 67
"""Septets and UTF-16 units that fit one message, and one part beside its 6-octet UDH."""

UDH_INDICATOR: Final = 0x40
"""The bit of esm_class that says the payload begins with a UDH (SMPP 3.4 §5.2.12)."""

DEFAULT_CODING: Final = 0x00
UCS2_CODING: Final = 0x08

_UDH_SIZE: Final = 6
_ESCAPE: Final = 0x1B
_ESCAPE_OCTET: Final = bytes([_ESCAPE])


def _gsm_tables() -> tuple[str, dict[int, str]]:
    """The 128 characters of the alphabet, as a charmap, and the characters reached by escape."""
    decode = Codec().decode
    basic = ["\ufffe" if octet == _ESCAPE else decode(bytes([octet]))[0] for octet in range(128)]
    extension = {}
    for octet in range(128):
        try:
            extension[octet] = decode(bytes([_ESCAPE, octet]))[0]
        except UnicodeDecodeError:
            continue
    return "".join(basic), extension


_GSM_BASIC, _GSM_EXTENSION = _gsm_tables()
_GSM_ENCODED: Final[dict[int, int | bytes]] = {
    **{ord(char): octet for octet, char in enumerate(_GSM_BASIC) if octet != _ESCAPE},
    **{ord(char): bytes([_ESCAPE, octet]) for octet, char in _GSM_EXTENSION.items()},
}
_NO_GSM: Final = 0xFF
_GSM_OF_ASCII: Final = bytes(
    octet if isinstance(octet := _GSM_ENCODED.get(char), int) else _NO_GSM for char in range(256)
)
"""For a text of ASCII alone, as nearly all are; a character that costs two octets is left to the general way."""
_GSM_CHARS: Final = frozenset(map(chr, _GSM_ENCODED))
_GSM_PAIRS: Final = frozenset(_GSM_EXTENSION.values())


# --- decoding ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decoded:
    """`lossless` is False when a character was unknown, replaced, dropped, or the alphabet was guessed."""

    text: str = field(repr=False)
    lossless: bool


def _decode_gsm(data: bytes) -> Decoded:
    if _ESCAPE not in data:
        try:
            return Decoded(codecs.charmap_decode(data, "strict", _GSM_BASIC)[0], True)
        except UnicodeDecodeError:
            return Decoded(codecs.charmap_decode(data, "replace", _GSM_BASIC)[0], False)
    head, *escaped = data.split(_ESCAPE_OCTET)
    first = _decode_gsm(head)
    text, lossless = [first.text], first.lossless
    for piece in escaped:
        char = _GSM_EXTENSION.get(piece[0]) if piece else " "
        if char is None:
            # 03.38 §6.2.1.1: an unknown escaped code shows as the character of the main table ...
            rest, char, lossless = _decode_gsm(piece), "", False
        else:
            # ... and an escape that leads nowhere as a space.
            rest, lossless = _decode_gsm(piece[1:]), lossless and bool(piece)
        text += [char, rest.text]
        lossless = lossless and rest.lossless
    return Decoded("".join(text), lossless)


def _decode_codec(data: bytes, codec: str) -> Decoded:
    try:
        return Decoded(data.decode(codec), True)
    except UnicodeDecodeError:
        return Decoded(data.decode(codec, "replace"), False)


def _decode_ascii(data: bytes) -> Decoded:
    """IA5. Octets past 127 are read as Latin-1: who sends them under this name means that."""
    return Decoded(data.decode("latin-1"), data.isascii())


def _decode_ucs2(data: bytes) -> Decoded:
    """As UTF-16, because phones put emoji into "UCS2". An odd last octet is half a character: dropped."""
    if len(data) % 2:
        return Decoded(_decode_codec(data[:-1], "utf-16-be").text, False)
    return _decode_codec(data, "utf-16-be")


def _decode_guess(data: bytes) -> Decoded:
    """An alphabet we do not know, or binary data: readable if it happens to be near ASCII, never sure."""
    return Decoded(data.decode("latin-1"), False)


def _alphabet_of(data_coding: int) -> str:
    """What a data_coding other than 0 says, "" when it says nothing that we know."""
    group = data_coding & 0xF0
    if group == 0x00:
        return {1: "ascii", 3: "latin1", 6: "iso8859-5", 7: "iso8859-8", 8: "ucs2"}.get(data_coding, "")
    if group == 0xF0:  # message class: bit 2 chooses between 7-bit and 8-bit data
        return "" if data_coding & 0x04 else "gsm0338"
    if group in (0xC0, 0xD0):  # message waiting
        return "gsm0338"
    if group == 0xE0:
        return "ucs2"
    if group == 0x10:  # general data coding with a message class; 0x20 and 0x30 are compressed
        return {0x00: "gsm0338", 0x08: "ucs2"}.get(data_coding & 0x0C, "")
    return ""


def decode(data_coding: int, data: bytes, *, default: Alphabet = "gsm0338") -> Decoded:
    """The text of a payload from which the UDH was taken. `default` is what data_coding 0 means on the link.

    Never raises: what cannot be read is U+FFFD, or the best guess, and `lossless` is False.
    """
    match default if data_coding == DEFAULT_CODING else _alphabet_of(data_coding):
        case "gsm0338":
            return _decode_gsm(data)
        case "ucs2":
            return _decode_ucs2(data)
        case "ascii":
            return _decode_ascii(data)
        case "latin1":
            return _decode_codec(data, "latin-1")
        case "":
            return _decode_guess(data)
        case codec:
            return _decode_codec(data, codec)


# --- encoding ---------------------------------------------------------------------------------------------


def is_gsm(text: str) -> bool:
    """Whether every character is in the GSM 7-bit alphabet or its extension."""
    return _GSM_CHARS.issuperset(text)


def septets(text: str) -> int:
    """The length of a GSM text; `^{}\\[~]|€` and form feed count two. ValueError when it is not one."""
    if not is_gsm(text):
        raise ValueError("the text has a character outside the GSM alphabet")
    return len(text) + sum(map(text.count, _GSM_PAIRS))


def _encode_default(text: str, default: Alphabet) -> bytes | None:
    try:
        if default == "gsm0338":
            if text.isascii() and _NO_GSM not in (data := text.encode("ascii").translate(_GSM_OF_ASCII)):
                return data
            return codecs.charmap_encode(text, "strict", _GSM_ENCODED)[0]
        return text.encode(default)
    except UnicodeEncodeError:
        return None


def _encode_ucs2(text: str) -> bytes:
    return text.encode("utf-16-be", "replace")


def encode(text: str, *, default: Alphabet = "gsm0338") -> tuple[int, bytes]:
    """(data_coding, octets): 0 and the link's default alphabet when the text fits it, else 8 and UCS2.

    Never raises: half a surrogate pair becomes a question mark.
    """
    data = _encode_default(text, default)
    if data is not None:
        return DEFAULT_CODING, data
    return UCS2_CODING, _encode_ucs2(text)


# --- parts ------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Which part of which long message: number 1 to total, of the message with this reference."""

    reference: int
    total: int
    number: int


def _chunks(text: str, data_coding: int, default: Alphabet) -> list[str]:
    """The text cut as the phone will receive it, by septets or UTF-16 units, and as SMPP can carry it."""
    gsm = data_coding == DEFAULT_CODING and is_gsm(text)
    single, most = (GSM_SINGLE, GSM_PART) if gsm else (UCS2_SINGLE, UCS2_PART)
    sizes = [2 if (char in _GSM_PAIRS if gsm else char > "\uffff") else 1 for char in text]
    # Only UTF-8 can be longer on the wire than short_message allows and yet short enough for a phone.
    wire = [0] * len(text)
    if data_coding == DEFAULT_CODING and default == "utf-8":
        wire = [len(char.encode()) for char in text]
    if sum(sizes) <= single and sum(wire) <= MAX_SHORT_MESSAGE:
        return [text]
    chunks, start, used, octets = [], 0, 0, _UDH_SIZE
    for at, (size, length) in enumerate(zip(sizes, wire, strict=True)):
        if used + size > most or octets + length > MAX_SHORT_MESSAGE:
            chunks.append(text[start:at])
            start, used, octets = at, 0, _UDH_SIZE
        used += size
        octets += length
    chunks.append(text[start:])
    return chunks


def segments(text: str, *, default: Alphabet = "gsm0338") -> int:
    """How many messages the text costs: 160 septets or 70 UTF-16 units in one, else 153 or 67 in each.

    A link whose default alphabet lacks a character of the text sends it as UCS2, which may cost more.
    """
    return len(_chunks(text, encode(text, default=default)[0], default))


def split(text: str, reference: int, *, default: Alphabet = "gsm0338") -> list[bytes]:
    """The payloads that carry the text, in the data_coding that `encode(text)` gives; 254 octets at most.

    One payload has no UDH; several begin with one (8-bit reference) and need UDH_INDICATOR in esm_class.
    No escape pair and no surrogate pair is cut in two. ValueError past 255 parts.
    """
    data_coding, whole = encode(text, default=default)
    if data_coding == DEFAULT_CODING and default == "gsm0338" and len(whole) <= GSM_SINGLE:
        return [whole]  # an octet for each septet: nearly every reply
    chunks = _chunks(text, data_coding, default)
    if len(chunks) == 1:
        return [whole]
    if len(chunks) > 255:
        raise ValueError("a message has 255 parts at most")
    payloads = []
    for number, chunk in enumerate(chunks, 1):
        udh = bytes([5, 0x00, 3, reference & 0xFF, len(chunks), number])
        # Not encode(chunk): one part of a UCS2 message may fit the default alphabet.
        octets = _encode_default(chunk, default) if data_coding == DEFAULT_CODING else None
        payloads.append(udh + (_encode_ucs2(chunk) if octets is None else octets))
    return payloads


def parse_udh(data: bytes) -> tuple[Part | None, bytes]:
    """Take the UDH off a payload whose esm_class has UDH_INDICATOR: (which part it is, the rest).

    The part is None when the message is no part of another. A UDH that cannot be read is left where it is:
    then, and only then, the rest is as long as the data.
    """
    end = data[0] + 1 if data else 1
    if end > len(data):
        return None, data
    part = None
    at = 1
    while at < end:
        start = at + 2
        stop = start + data[at + 1] if start <= end else end + 1
        if stop > end:
            return None, data
        element, value = data[at], data[start:stop]
        if (element, len(value)) in ((0x00, 3), (0x08, 4)):
            *high, total, number = value
            # 23.040 §9.2.3.24.1: with such numbers the element is ignored. A later element replaces it.
            if 1 <= number <= total:
                part = Part(int.from_bytes(high, "big"), total, number)
        at = stop
    return part, data[end:]


def assemble(parts: Mapping[int, bytes]) -> bytes:
    """The payload of a long message from those of its parts, UDHs taken off, by part number.

    Join first and decode then: a sender may cut a character in two.
    """
    return b"".join([parts[number] for number in sorted(parts)])
