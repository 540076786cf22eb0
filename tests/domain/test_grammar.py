"""The grammar as a table that reads like service.md, and the promise behind it: no digit is ever guessed."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from caplai.domain.grammar import (
    BadCode,
    BadSyntax,
    Command,
    Grammar,
    OtherAgency,
    Reissue,
    code_of,
    understand,
)

CODE = "0123456789"
OK = Reissue(CODE)
NINE, ELEVEN, OTHER = "012345678", "01234567890", "9876543210"

TABLE: list[tuple[str, Command]] = [
    # --- every form of service.md
    ("BH MK 0123456789", OK),
    ("BH MK {0123456789}", OK),
    ("BHMK0123456789", OK),
    ("BH MK mã số BHXH 0123456789 gửi 8079", OK),
    ("BH MK DN4010123456789", OK),
    ("BH MK O123456789", OK),
    ("BH MK 0123 456 789", OK),
    ("ＢＨ　ＭＫ　０１２３４５６７８９", OK),
    ("BH MK 9999999990", Reissue("9999999990")),
    # --- case, spaces, punctuation
    ("bh mk 0123456789", OK),
    ("Bh Mk0123456789", OK),
    ("  BH   MK   0123456789  ", OK),
    ("BH\nMK\r\n0123456789\n", OK),
    ("bhmk 0123456789.", OK),
    ("B.H.M.K. 0123456789", OK),
    ("B H M K 0123456789", OK),
    ("BH-MK-0123456789", OK),
    ("BH_MK_0123456789", OK),
    ('"BH MK 0123456789"', OK),
    ("{BH MK 0123456789}", OK),
    ("BH MK <0123456789>", OK),
    ("BH MK: 0123456789!", OK),
    ("B\u200bH MK\u00a001234\u200b56789\ufeff", OK),
    ("BH\x00 MK\x07 0123456789\x1a", OK),
    # --- digits in groups
    ("BH MK 01 23 45 67 89", OK),
    ("BH MK 0 1 2 3 4 5 6 7 8 9", OK),
    ("BH MK 01234.56789", OK),
    ("BH MK 0123-456-789 gui 8079", OK),
    ("BH MK 012 345\n6789", OK),
    # --- digits of other scripts
    ("BH MK ٠١٢٣٤٥٦٧٨٩", OK),
    ("BH MK 𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗", OK),
    ("BH MK 0️⃣1️⃣2️⃣3️⃣4️⃣5️⃣6️⃣7️⃣8️⃣9️⃣", OK),
    # --- words and accents
    ("Soạn: BH MK 0123456789", OK),
    ("Soạn tin nhắn: BH MK 0123456789 gửi 8079", OK),
    ("soan BHMK0123456789", OK),
    ("BH MK ma so 0123456789", OK),
    ("BH MK MASO0123456789", OK),
    ("BH MK mã-số:0123456789", OK),
    ("BHMKMASO0123456789", OK),
    ("BH MKmasoBHXH0123456789", OK),
    ("BHMKMSBHXH0123456789", OK),
    ("BHMKLA0123456789", OK),
    ("BH MK MS0123456789", OK),
    ("BHMKMS0123456789", OK),
    ("BH MK tk 0123456789", OK),
    ("BH MK của tôi là 0123456789 ạ", OK),
    ("BH MK bh mk 0123456789", OK),
    ("BH MK Nguyễn Thị Ôn 0123456789", OK),
    (unicodedata.normalize("NFD", "BH MK mã số BHXH 0123456789 gửi 8079"), OK),
    ("BH MK thẻ BHYT số: 0123456789. Xin cảm ơn", OK),
    # --- the short code, copied with the rest
    ("BH MK 0123456789 8079", OK),
    ("BH MK 0123 456 789 8079", OK),
    ("BH MK 0123456789gửi8079", OK),
    ("BH MK 0123456789 gui den so 8079", OK),
    ("BH MK 0123456789, 8079, 8079", OK),
    ("BH MK gui 8079: 0123456789", BadCode()),
    ("BH MK gui 8079 ma so 0123456789", OK),
    ("BH MK 8079", BadCode()),
    ("BH MK 012345678 8079", BadCode()),
    ("BH MK 01234567898079", BadCode()),
    ("BH MK 012345 8079", Reissue("0123458079")),
    # --- the same code twice is one code; two are a doubt
    ("BH MK 0123456789 0123456789", OK),
    ("BH MK 0123456789 nhac lai 0123 456 789", OK),
    ("BH MK 0123456789 9876543210", BadCode()),
    ("BH MK 0123456789 hoac 9876543210", BadCode()),
    ("BH MK 01234567890123456789", BadCode()),
    # --- the letter O for a zero, among digits only
    ("BH MK o123456789", OK),
    ("BHMKO123456789", OK),
    ("BH MK O\ufe0f123456789", OK),  # an invisible mark is no accent
    ("BH MK OO12345678", Reissue("0012345678")),
    ("BH MK 1O2O3O4O5O", Reissue("1020304050")),
    ("BH MK 123 456 789O", Reissue("1234567890")),
    ("BH MK 123456789OGUI8079", Reissue("1234567890")),
    ("BH MK 0123456789 o Ha Noi", OK),
    ("BH MK 0123456789OK", OK),
    ("BH MK O 123456789", BadCode()),
    ("BH MK OOOOOOOOOO", BadCode()),
    ("BH MK 0123456789O", BadCode()),
    ("BH MK SO123456789", BadCode()),
    ("BHMKSO123456789", BadCode()),
    ("BH MK theo123456789", BadCode()),
    ("BH MK NO123456789", BadCode()),
    ("BH MK ô123456789", BadCode()),  # Telex makes ô of oo, VNI ó of o1: keystrokes are missing
    ("BH MK o\u0302123456789", BadCode()),
    ("BH MK Ø123456789", BadCode()),
    ("BH MK l123456789", BadCode()),
    ("BH MK 0I23456789", BadCode()),
    # --- health cards
    ("BHMKDN4010123456789", OK),
    ("BH MK DN 4 01 0123456789", OK),
    ("BH MK DN401 0123 456 789", OK),
    ("BH MK dn-4-01-01-234-56789", OK),
    ("BH MK DN40 1012 3456 789", OK),
    ("BH MK ĐN4010123456789", OK),
    ("BH MK số thẻ DN4010123456789 gửi 8079", OK),
    ("BH MK THEDN4010123456789", OK),
    ("BH MK DN4O1O123456789", OK),
    ("BH MK NO4010123456789", OK),
    ("BHMKNO4010123456789", OK),
    ("BH MK CS 401 0123456789 8079", OK),
    ("BH MK MS4010123456789", OK),
    ("BHMKMS4010123456789", OK),
    ("BH MK TK4010123456789", OK),
    ("BH MK DN4010123456789 0123456789", OK),
    ("BH MK DN 401 0123456789 0123 456 789", OK),
    ("BH MK 0123456789 (the DN4010123456789)", OK),
    ("BH MK DN4010123456789 9876543210", BadCode()),
    ("BH MK DN4010123456789 HS4019876543210", BadCode()),
    ("BH MK 4010123456789", BadCode()),
    ("BH MK MA4010123456789", BadCode()),
    ("BH MK SO 4010123456789", BadCode()),
    ("BH MK XDN4010123456789", BadCode()),
    ("BH MK DN401012345678", BadCode()),
    ("BHMKDN401012345678", BadCode()),
    ("BH MK DN40101234567890", BadCode()),
    # two letters that are a word, before numbers that happen to sum up to thirteen digits
    ("BH MK id 0123456789 123", BadCode()),
    ("BH MK id 012345678 8079", BadCode()),
    ("BH MK an 12 01234567890", BadCode()),
    ("BH MK ap 2021 012345678", BadCode()),
    ("BH MK id 0123456789", OK),
    ("BH MK id 0123456789 0123456789", OK),
    # --- short numbers beside the code are noise, long ones a doubt
    ("BH MK 0123456789 lan 2", OK),
    ("BH MK 0123456789 sinh nam 1950", OK),
    ("BH MK lan thu 2 ma 0123456789", OK),
    ("BH MK 0123456789 lan 2 nam 2021 gui 8079", OK),
    ("BH MK 0123456789 sinh 12/05/1950", BadCode()),
    ("BH MK 0123456789 hop thu 12345", BadCode()),
    ("BH MK 0123456789 sdt 0327654686", BadCode()),
    ("BH MK 0123456789 sdt 84327654686", BadCode()),
    ("BH MK 0123456789 2", BadCode()),
    ("BH MK lan 2 0123456789", BadCode()),
    ("BH MK lan 2: 012345678", BadCode()),
    ("BH MK lan 2: 0123 45678 gui 8079", BadCode()),
    ("BH MK ma so 0 123456789", OK),
    ("BH MK cua ba 0 123456789", OK),
    ("BH MK cua ba 9 8 7 6 5 4 3 2 1 0", Reissue(OTHER)),
    ("BH MK cua ba 9 876543210", BadCode()),
    ("BH MK 9 876543210", Reissue(OTHER)),
    # --- not exactly one ten-digit code
    ("BH MK", BadCode()),
    ("bhmk.", BadCode()),
    ("BH MK <ma so BHXH> gui 8079", BadCode()),
    ("BH MK xin chao", BadCode()),
    (f"BH MK {NINE}", BadCode()),
    (f"BH MK {ELEVEN}", BadCode()),
    ("BH MK 0123a456789", BadCode()),
    ("BH MK 01234 va 56789", BadCode()),
    ("BH MK +84327654686", BadCode()),
    # --- any other
    ("", BadSyntax()),
    (" .,!?", BadSyntax()),
    ("BH", BadSyntax()),
    ("BH 0123456789", BadSyntax()),
    ("MK 0123456789", BadSyntax()),
    ("BH THE 0123456789", BadSyntax()),
    ("BH MKX 0123456789", BadSyntax()),
    ("BH MKH 0123456789", BadSyntax()),
    ("BHMKAB 0123456789", BadSyntax()),
    ("BH MKMAX0123456789", BadSyntax()),
    ("BHX MK 0123456789", BadSyntax()),
    ("0123456789", BadSyntax()),
    ("xin chao BH MK 0123456789", BadSyntax()),
    ("Soạn", BadSyntax()),
    ("ВН МК 0123456789", BadSyntax()),  # Cyrillic
    ("\ud800 BH", BadSyntax()),  # half a surrogate pair
    # --- other agencies
    ("VIN 123", OtherAgency("VIN")),
    ("vin", OtherAgency("VIN")),
    (" {Vin123}", OtherAgency("VIN")),
    ("V\u200bI\u00adN 123", OtherAgency("VIN")),
    ("Soạn VIN 123 gửi 8079", OtherAgency("VIN")),
    ("MKH 0123456789", OtherAgency("MKH")),
    ("MKH BH MK 0123456789", OtherAgency("MKH")),
    ("VINAPHONE", BadSyntax()),
    ("VI N", BadSyntax()),
    ("BH VIN", BadSyntax()),
]


@pytest.mark.parametrize(("text", "expected"), TABLE, ids=[ascii(text) for text, _ in TABLE])
def test_what_a_text_means(text: str, expected: Command) -> None:
    assert understand(text, Grammar()) == expected


def test_the_agency_chooses_its_words() -> None:
    grammar = Grammar(keyword="so", command="tk", short_codes=("1900", "19001234"), other_keywords=("bh",))
    assert understand("Sổ TK 0123456789 gui 1900", grammar) == OK
    assert understand("sotk 0123456789 gui 19001234", grammar) == OK
    assert understand("SO TK 0123456789 19001234", grammar) == OK
    assert understand("BH MK 0123456789", grammar) == OtherAgency("BH")
    assert understand("SO TK 0123456789 gui 19001235", grammar) == BadCode()


@pytest.mark.parametrize(
    "words",
    [
        {"keyword": ""},
        {"keyword": "B1"},
        {"command": "M K"},
        {"command": "MẬT"},
        {"other_keywords": ("VIN", "")},
        {"short_codes": ("80 79",)},
        {"short_codes": ("",)},
        {"other_keywords": ("bh",)},
        {"other_keywords": ("BHMK",)},
    ],
)
def test_words_that_no_text_could_match_are_refused(words: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"keyword|short code"):
        Grammar(**words)  # type: ignore[arg-type]


def test_a_log_never_shows_the_code() -> None:
    understood = understand(f"BH MK {CODE}", Grammar())
    assert understood == OK
    assert CODE not in repr(understood)


# --- properties ---------------------------------------------------------------------------------------

HEADS = [
    "BH MK ",
    "BHMK ",
    "bh.mk:",
    "B.H.M.K ",
    "{BH MK ",
    "Soạn: BH MK ",
    "BH\nMK\n",
    "BH MK mã số ",
    "bhmkMASO ",
]
BEFORE = ["", "", "mã số BHXH ", "Ma so: ", "của mẹ ", "thẻ ", "id ", "ông Ba "]
AFTER = [
    "",
    "",
    " gửi 8079",
    " gui den so 8079",
    " 8079",
    "gửi8079",
    " lan 2",
    " nhé, xin cảm ơn",
    "}",
    " năm 2021",
]
SEPARATORS = ["", " ", ".", "-", " - ", "\n", "\u00a0", "\u200b", "/", "_"]
CASES = [str.upper, str.lower, str.title, str.swapcase, str]
WIDE = {**{n: n + 0xFEE0 for n in range(0x21, 0x7F)}, 0x20: 0x3000}


@st.composite
def decorated(draw: st.DrawFn, digits: str) -> str:
    """Digits as somebody might text them: grouped, O for zero here and there, between words, wide."""
    groups, start = [], 0
    for cut in [*sorted(draw(st.sets(st.integers(2, len(digits) - 1), max_size=5))), len(digits)]:
        group, start = digits[start:cut], cut
        lettered = "".join(
            draw(st.sampled_from("0Oo")) if digit == "0" and draw(st.booleans()) else digit for digit in group
        )
        groups.append(lettered if any(char.isdigit() for char in lettered) else group)
    number = draw(st.sampled_from(SEPARATORS)).join(groups)
    text = (
        draw(st.sampled_from(HEADS)) + draw(st.sampled_from(BEFORE)) + number + draw(st.sampled_from(AFTER))
    )
    text = draw(st.sampled_from(CASES))(text)
    return text.translate(WIDE) if draw(st.booleans()) else text


def numbers(length: int) -> st.SearchStrategy[str]:
    return st.text("0123456789", min_size=length, max_size=length)


@given(st.data(), numbers(10))
def test_ten_digits_are_understood_however_they_are_dressed(data: st.DataObject, code: str) -> None:
    text = data.draw(decorated(code))
    assert understand(text, Grammar()) == Reissue(code), ascii(text)


@given(st.data(), numbers(13), st.sampled_from(["DN", "NO", "CS", "MS", "TK", "hx", "Đt"]))
def test_a_card_is_understood_however_it_is_dressed(data: st.DataObject, digits: str, letters: str) -> None:
    parts = [letters, digits[0], digits[1:3], digits[3:]]
    separator = data.draw(st.sampled_from(SEPARATORS))
    text = f"BH MK {separator.join(parts)}{data.draw(st.sampled_from(AFTER))}"
    assert understand(text, Grammar()) == Reissue(digits[3:]), ascii(text)


@given(st.data(), numbers(9) | numbers(11) | numbers(8) | numbers(12))
def test_nine_or_eleven_digits_are_never_accepted(data: st.DataObject, digits: str) -> None:
    text = data.draw(decorated(digits))
    assert understand(text, Grammar()) == BadCode(), ascii(text)
    numbered = text.replace(digits, f"lần 2, {digits}")
    assert understand(numbered, Grammar()) == BadCode(), ascii(numbered)


PIECES = st.sampled_from(
    [
        *"0189OoôXlº²½ .-\n",
        CODE,
        OTHER,
        NINE,
        ELEVEN,
        "401",
        "8079",
        "DN",
        "NO",
        "MS",
        "MA",
        "SO",
        "gửi",
        "theo",
        "١",
        "o\u0302",
    ]
)
ANYTHING = st.text(st.characters(exclude_categories=()), max_size=60)


@given(ANYTHING | st.tuples(st.sampled_from(HEADS), st.lists(PIECES, max_size=12).map("".join)).map("".join))
@example("\ufdfa" * 100)
def test_anything_is_answered_and_no_digit_invented(text: str) -> None:
    understood = understand(text, Grammar())
    assert isinstance(understood, Command)
    if isinstance(understood, Reissue):
        readable = "".join(
            "0" if char in "oO" else str(unicodedata.decimal(char, ""))
            for char in unicodedata.normalize("NFKD", text)
        )
        assert len(understood.code) == 10
        assert understood.code in readable, ascii(text)


@pytest.mark.parametrize(
    "unit",
    [
        "O",
        "1O",
        "SO",
        "8079 ",
        "1 ",
        "1 A ",
        ". ",
        "o\u0301\u0316",
        "\u0301\u0316",
        "0123456789 ",
        "DN401 ",
        "BHXHBH",
        "1OX",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("head", ["", "BH MK ", "BHMK", "B", "Soạn "])
@pytest.mark.timeout(20)
def test_long_texts_cost_no_more_than_their_length(head: str, unit: str) -> None:
    """A quadratic reading of these would outlast the time limit by far."""
    understood = understand(head + unit * 40_000, Grammar())
    assert understood in (BadSyntax(), BadCode(), OK)


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        (CODE, CODE),
        (" {0123 456-789} ", CODE),
        ("O123456789", CODE),
        ("DN4010123456789", CODE),
        ("dn 4 01 01234 56789", CODE),
        ("０１２３４５６７８９", CODE),
        (NINE, None),
        (ELEVEN, None),
        ("4010123456789", None),
        ("DN401012345678", None),
        ("DN40101234567890", None),
        ("DNA010123456789", None),
        ("D4010123456789", None),
        ("Ô123456789", None),
        (f"{CODE} {OTHER}", None),
        ("thu.ha", None),
        ("", None),
    ],
)
def test_code_of_a_field(typed, code):
    assert code_of(typed) == code


@given(st.text() | st.text("DN0123456789O .-", max_size=18))
def test_code_of_anything(typed):
    code = code_of(typed)
    assert code is None or (len(code) == 10 and code.isascii() and code.isdigit())
