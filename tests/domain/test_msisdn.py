"""Phone numbers: every form people and links write → one form in the store, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caplai.domain import msisdn

PHONE = "+84327654686"


@pytest.mark.parametrize(
    "text",
    [
        "0327654686",
        "84327654686",
        "+84327654686",
        "0084327654686",
        "0327 654 686",
        "0327.654.686",
        "0327-654-686",
        "(0327) 654686",
        "(+84) 327 654 686",
        "+84 (0)327 654 686",
        " 0327654686\r\n",
        "0327\u00a0654\u2013686",
        "０３２７６５４６８６",
        "\u202a+84 327 654 686\u202c",  # as copied from a phone's address book
        # before November 2018
        "01627654686",
        "841627654686",
        "+841627654686",
        "00841627654686",
        "0162.765.4686",
    ],
)
def test_every_form_is_the_same_phone(text: str) -> None:
    assert msisdn.parse(text) == PHONE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0120", "070"),
        ("0121", "079"),
        ("0122", "077"),
        ("0123", "083"),
        ("0124", "084"),
        ("0125", "085"),
        ("0126", "076"),
        ("0127", "081"),
        ("0128", "078"),
        ("0129", "082"),
        ("0162", "032"),
        ("0163", "033"),
        ("0164", "034"),
        ("0165", "035"),
        ("0166", "036"),
        ("0167", "037"),
        ("0168", "038"),
        ("0169", "039"),
        ("0186", "056"),
        ("0188", "058"),
        ("0199", "059"),
    ],
)
def test_the_eleven_digits_of_before_november_2018(old: str, new: str) -> None:
    assert msisdn.parse(f"{old}1234567") == msisdn.parse(f"{new}1234567") == f"+84{new[1:]}1234567"


@pytest.mark.parametrize("first", "35789")
def test_mobiles_of_every_range(first: str) -> None:
    assert msisdn.parse(f"0{first}12345678") == f"+84{first}12345678"
    assert msisdn.parse(f"84{first}12345678") == f"+84{first}12345678"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "8079",
        "19001234",
        "327654686",  # lost its 0
        "032765468",
        "03276546860",
        "+8432765468",
        "+843276546860",
        "0612345678",  # no mobiles there
        "0432765468",
        "02439344444",  # a landline in Hà Nội
        "+842439344444",
        "01617654686",  # never a prefix
        "01987654686",
        "+0327654686",
        "++84327654686",
        "0327654686x",
        "0327654686, 0327654687",
        "Viettel",
        "٠٣٢٧٦٥٤٦٨٦x",
        "4915112345678",  # another country's needs its plus
        "+1234567",
        "+1234567890123456",
    ],
)
def test_what_is_no_phone_that_gets_a_reply(text: str) -> None:
    assert msisdn.parse(text) is None


@pytest.mark.parametrize("text", ["+85620123456", "0085620123456", "+856 20 123 456"])
def test_other_countries_are_taken_as_they_are(text: str) -> None:
    assert msisdn.parse(text) == "+85620123456"


@pytest.mark.parametrize(
    ("digits", "ton", "expected"),
    [
        ("84327654686", 1, PHONE),
        ("+84327654686", 1, PHONE),
        ("841627654686", 1, PHONE),
        ("85620123456", 1, "+85620123456"),
        ("0327654686", 1, PHONE),  # a link that says "international" of everything
        ("0084327654686", 1, PHONE),
        ("0327654686", 2, PHONE),
        ("327654686", 2, PHONE),
        ("84327654686", 2, PHONE),
        ("0327654686", 0, PHONE),
        ("84327654686", 0, PHONE),
        ("+84327654686", 0, PHONE),
        ("327654686", 0, None),
        ("85620123456", 0, None),
        ("8079", 0, None),
        ("8079", 1, None),
        ("8079", 3, None),
        ("Viettel", 5, None),
        ("0327654686", 5, None),
        ("", 0, None),
        ("", 1, None),
    ],
)
def test_the_source_of_an_smpp_message(digits: str, ton: int, expected: str | None) -> None:
    assert msisdn.from_address(digits, ton) == expected


@pytest.mark.parametrize(
    ("phone", "shown"),
    [
        (PHONE, "0327xxx686"),
        ("+85620123456", "+856xxxxx456"),
        ("+12345678", "+12xxx678"),
        ("+123456789012345", "+123xxxxxxxxx345"),
        ("Viettel", "xxx"),
        ("0327654686", "xxx"),
        ("", "xxx"),
    ],
)
def test_masked_as_the_press_did(phone: str, shown: str) -> None:
    assert msisdn.mask(phone) == shown


@given(st.from_regex(r"\+[1-9][0-9]{7,14}", fullmatch=True))
def test_a_mask_always_hides_three_digits(phone: str) -> None:
    assert msisdn.mask(phone).count("x") >= 3


def test_the_destination_of_an_smpp_message() -> None:
    assert msisdn.digits(PHONE) == "84327654686"


@given(st.text("0123456789+84 .-()", max_size=18) | st.text(st.characters(exclude_categories=())))
def test_any_text_is_a_phone_or_none(text: str) -> None:
    phone = msisdn.parse(text)
    if phone is not None:
        assert phone[0] == "+"
        assert 8 <= len(phone[1:]) <= 15
        assert msisdn.parse(phone) == phone
        assert msisdn.from_address(msisdn.digits(phone), 1) == phone
