"""Alphabets, segments and parts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caplai.smpp.text import (
    Part,
    assemble,
    decode,
    encode,
    is_gsm,
    parse_udh,
    segments,
    septets,
    split,
)

# GSM 03.38 §6.2.1 and §6.2.1.1, written down here independently of the table in use.
BASIC = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
EXTENSION = {0x0A: "\f", 0x14: "^", 0x28: "{", 0x29: "}", 0x2F: "\\", 0x3C: "[", 0x3D: "~", 0x3E: "]"}
EXTENSION |= {0x40: "|", 0x65: "€"}
GSM = BASIC.replace("\x1b", "") + "".join(EXTENSION.values())

gsm_text = st.text(GSM, max_size=500)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
long_text = st.builds(
    lambda text, at: text[:at] + "x" * 161 + text[at:], st.text(GSM) | any_text, st.integers(0, 50)
)


# --- decode -----------------------------------------------------------------------------------------------


def test_every_code_of_the_gsm_alphabet():
    for octet, char in enumerate(BASIC):
        if char != "\x1b":
            assert decode(0, bytes([octet])).text == char
            assert encode(char) == (0, bytes([octet]))
    for octet, char in EXTENSION.items():
        assert decode(0, bytes([0x1B, octet])).text == char
        assert encode(char) == (0, bytes([0x1B, octet]))
    assert not is_gsm("\x1b")


@pytest.mark.parametrize(
    ("octets", "text", "lossless"),
    [
        (b"", "", True),
        (b"BH MK\x00", "BH MK@", True),
        (b"a\x1be\x1b<b", "a€[b", True),
        (b"a\xe9", "a\ufffd", False),  # not a septet
        (b"a\x1b\xe9\x1be", "a\ufffd€", False),
        (b"\xe9\x1be", "\ufffd€", False),
        (b"a\x1bA", "aA", False),  # unknown escape: the character of the main table
        (b"a\x1b", "a ", False),  # nothing follows: a space
        (b"\x1b\x1be", " €", False),
    ],
)
def test_gsm(octets, text, lossless):
    result = decode(0, octets)
    assert (result.text, result.lossless) == (text, lossless)


@pytest.mark.parametrize(
    ("octets", "text", "lossless"),
    [
        (b"\x1e\xa5", "ấ", True),
        ("BH MK 0123456789".encode("utf-16-be"), "BH MK 0123456789", True),
        ("😀".encode("utf-16-be"), "😀", True),
        ("BH".encode("utf-16-be") + b"\x00", "BH", False),  # odd
        (b"\x00", "", False),
        (b"\xd8\x3d\x00A", "\ufffdA", False),  # half a pair, in the middle
        (b"\x00A\xd8\x3d", "A\ufffd", False),  # and at the end
        (b"\x00A\xde\x00", "A\ufffd", False),
        (b"\x00A\xd8\x3d\x00", "A\ufffd", False),
    ],
)
def test_ucs2(octets, text, lossless):
    result = decode(8, octets)
    assert (result.text, result.lossless) == (text, lossless)


@pytest.mark.parametrize(
    ("coding", "octets", "text", "lossless"),
    [
        (1, b"a@b", "a@b", True),
        (1, b"a\xe9", "aé", False),
        (3, b"\xe9@", "é@", True),
        (6, "Ж".encode("iso8859-5"), "Ж", True),
        (7, b"\xe0\xa1", "א\ufffd", False),
        (2, b"abc", "abc", False),  # 8-bit binary
        (4, b"abc\xff", "abcÿ", False),
        (5, b"abc", "abc", False),  # JIS: not known here
        (0xF0, b"\x00", "@", True),  # class 0, 7-bit
        (0xF1, b"\x1be", "€", True),
        (0xF5, b"a", "a", False),  # class 1, 8-bit
        (0x11, b"\x00", "@", True),  # general data coding, class 1
        (0x15, b"a", "a", False),
        (0x19, b"\x1e\xa5", "ấ", True),
        (0x21, b"a", "a", False),  # compressed
        (0xC8, b"\x00", "@", True),  # message waiting, discard
        (0xD8, b"\x00", "@", True),  # message waiting, store
        (0xE8, b"\x1e\xa5", "ấ", True),  # message waiting, UCS2
        (0x80, b"a", "a", False),
        (0x1F, b"a", "a", False),
    ],
)
def test_data_codings(coding, octets, text, lossless):
    result = decode(coding, octets)
    assert (result.text, result.lossless) == (text, lossless)


@pytest.mark.parametrize(
    ("default", "octets", "text", "lossless"),
    [
        ("gsm0338", b"\x00", "@", True),
        ("latin1", b"@\xe9", "@é", True),
        ("ascii", b"@", "@", True),
        ("ascii", b"\xe9", "é", False),
        ("utf-8", "mật".encode(), "mật", True),
        ("utf-8", b"m\xff", "m\ufffd", False),
    ],
)
def test_coding_0_is_what_the_link_says(default, octets, text, lossless):
    result = decode(0, octets, default=default)
    assert (result.text, result.lossless) == (text, lossless)
    assert decode(8, b"\x00A", default=default).text == "A"  # the others are not
    assert decode(0xF0, b"\x00", default=default).text == "@"


@given(st.integers(0, 255), st.binary(max_size=300), st.sampled_from(["gsm0338", "latin1", "ascii", "utf-8"]))
def test_decoding_never_raises(coding, octets, default):
    assert isinstance(decode(coding, octets, default=default).text, str)


def test_a_decoded_text_is_not_shown():
    assert "0123456789" not in repr(decode(0, b"BH MK 0123456789"))


# --- encode -----------------------------------------------------------------------------------------------


@given(gsm_text)
def test_gsm_texts_round_trip_in_the_default_coding(text):
    coding, octets = encode(text)
    assert coding == 0
    assert len(octets) == septets(text)
    result = decode(coding, octets)
    assert (result.text, result.lossless) == (text, True)


@given(any_text, st.sampled_from(["gsm0338", "latin1", "ascii", "utf-8"]))
def test_every_text_round_trips_on_every_link(text, default):
    coding, octets = encode(text, default=default)
    result = decode(coding, octets, default=default)
    assert (result.text, result.lossless) == (text, True)


@given(any_text)
def test_a_text_is_gsm_exactly_when_each_character_is(text):
    assert is_gsm(text) == all(char in GSM for char in text)
    assert encode(text)[0] == (0 if is_gsm(text) else 8)


def test_the_default_alphabet_of_the_link_decides_the_coding():
    assert encode("é", default="gsm0338") == (0, b"\x05")
    assert encode("é", default="latin1") == (0, b"\xe9")
    assert encode("é", default="ascii") == (8, b"\x00\xe9")
    assert encode("ậ", default="utf-8") == (0, "ậ".encode())
    assert encode("\ud83d") == (8, b"\x00?")


def test_septets():
    assert septets("") == 0
    assert septets("a€") == 3
    assert septets("^{}\\[~]|€\f") == 20
    with pytest.raises(ValueError, match="outside the GSM alphabet") as refusal:
        septets("mật khẩu")
    assert "mật" not in str(refusal.value)


# --- segments and parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 1),
        ("a" * 160, 1),
        ("a" * 161, 2),
        ("a" * 306, 2),
        ("a" * 307, 3),
        ("€" * 80, 1),
        ("€" * 80 + "a", 2),
        ("a" * 158 + "€", 1),
        ("a" * 159 + "€", 2),
        ("€" * 152, 2),  # 76 pairs of 153 septets: one septet stays empty in each part
        ("€" * 153, 3),
        ("ậ" * 70, 1),
        ("ậ" * 71, 2),
        ("ậ" * 134, 2),
        ("ậ" * 135, 3),
        ("ậ" + "a" * 69, 1),
        ("ậ" + "a" * 70, 2),
        ("😀" * 35, 1),
        ("😀" * 36, 2),
        ("😀" * 66, 2),
        ("😀" * 67, 3),
    ],
)
def test_segments(text, count):
    assert segments(text) == len(split(text, 1)) == count


def test_one_part_has_no_header_and_several_have():
    assert split("hello", 9) == [b"hello"]
    first, second = split("a" * 153 + "b" * 8, 0x1FF)
    assert first == bytes([5, 0, 3, 0xFF, 2, 1]) + b"a" * 153
    assert second == bytes([5, 0, 3, 0xFF, 2, 2]) + b"b" * 8


def test_no_pair_is_cut_in_two():
    first, second = split("a" * 152 + "€" + "a" * 100, 1)
    assert first[6:] == b"a" * 152
    assert second[6:8] == b"\x1be"
    first, second = split("ậ" * 66 + "😀" + "ậ" * 10, 1)
    assert first[6:] == "ậ".encode("utf-16-be") * 66
    assert second[6:10] == "😀".encode("utf-16-be")


def test_a_ucs2_message_is_ucs2_in_each_part():
    first, second = split("a" * 67 + "b" * 3 + "ậ", 1)
    assert first[6:] == "a".encode("utf-16-be") * 67
    assert second[6:] == "bbbậ".encode("utf-16-be")


def test_parts_are_cut_as_the_phone_receives_them_whatever_the_link_speaks():
    first, second = split("é" * 200, 1, default="latin1")
    assert first[6:] == b"\xe9" * 153
    assert second[6:] == b"\xe9" * 47
    # A GSM text that the link cannot carry as such reaches the phone as UCS2.
    assert segments("Γ" + "a" * 70, default="gsm0338") == 1
    assert segments("Γ" + "a" * 70, default="latin1") == 2
    assert [len(part) for part in split("Γ" + "a" * 70, 1, default="latin1")] == [6 + 134, 6 + 8]


def test_a_utf_8_link_carries_254_octets_at_a_time():
    assert split("é" * 127, 1, default="utf-8") == ["é".encode() * 127]
    first, second = split("é" * 128, 1, default="utf-8")
    assert first[6:] == "é".encode() * 124
    assert second[6:] == "é".encode() * 4


def test_too_many_parts():
    assert len(split("a" * 153 * 255, 1)) == 255
    with pytest.raises(ValueError, match="255"):
        split("a" * (153 * 255 + 1), 1)


@given(long_text, st.integers(0, 0xFFFF), st.randoms(), st.sampled_from(["gsm0338", "latin1", "utf-8"]))
def test_parts_in_any_order_give_the_text(text, reference, random, default):
    payloads = split(text, reference, default=default)
    assert len(payloads) == segments(text, default=default)
    assert len(payloads) > 1
    random.shuffle(payloads)
    found = {}
    for payload in payloads:
        part, rest = parse_udh(payload)
        assert (part.reference, part.total) == (reference & 0xFF, len(payloads))
        assert len(payload) <= (254 if encode(text, default=default)[0] == 0 else 140)
        found[part.number] = rest
    coding, _ = encode(text, default=default)
    result = decode(coding, assemble(found), default=default)
    assert (result.text, result.lossless) == (text, True)


def test_parts_join_by_number_and_not_as_words():
    assert assemble({number: b"%d," % number for number in (10, 9, 2, 1, 11)}) == b"1,2,9,10,11,"


def test_a_character_cut_in_two_by_the_sender_is_whole_again():
    octets = "a😀".encode("utf-16-be")
    assert decode(8, assemble({2: octets[4:], 1: octets[:4]})).text == "a😀"
    assert decode(0, assemble({2: b"e", 1: b"a\x1b"})).text == "a€"


@pytest.mark.parametrize(
    ("udh", "part"),
    [
        ("05 00 03 2a 03 01", Part(42, 3, 1)),
        ("06 08 04 012a 03 02", Part(298, 3, 2)),
        ("00", None),
        ("06 05 04 0b84 0000", None),  # ports: not a part
        ("0b 05 04 0b84 0000 00 03 2a 03 01", Part(42, 3, 1)),  # behind another element
        ("0b 00 03 2a 03 01 05 04 0b84 0000", Part(42, 3, 1)),  # and before one
        ("0a 00 03 01 02 01 00 03 2a 03 01", Part(42, 3, 1)),  # said twice: the last counts
        ("05 00 03 2a 00 00", None),  # no parts at all: ignored
        ("05 00 03 2a 03 00", None),
        ("05 00 03 2a 03 04", None),
        ("04 00 02 2a 03", None),  # an element too short to be one
        ("05 08 03 2a 03 01", None),
        ("05 00 03 2a ff ff", Part(42, 255, 255)),
    ],
)
def test_udh(udh, part):
    assert parse_udh(bytes.fromhex(udh) + b"rest") == (part, b"rest")


@pytest.mark.parametrize(
    "udh", ["", "05", "05 00 03 2a 03", "ff 00", "05 00 04 2a 03 01", "06 00 03 2a 03 01 00", "01 00"]
)
def test_a_udh_that_cannot_be_read_stays_where_it_is(udh):
    data = bytes.fromhex(udh)
    assert parse_udh(data) == (None, data)


@given(st.binary(max_size=160))
def test_any_udh(data):
    part, rest = parse_udh(data)
    assert data.endswith(rest)
    if part:
        assert 1 <= part.number <= part.total <= 255
    if len(rest) == len(data):
        assert part is None
    else:
        assert len(rest) == len(data) - 1 - data[0]
