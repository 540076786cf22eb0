"""Delivery receipts as carriers write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caplai.smpp.pdu import Command, ShortMessage, Tag
from caplai.smpp.receipt import Receipt, bare_id, id_candidates, is_receipt, parse

APPENDIX_B = (
    "id:0123456789 sub:001 dlvrd:001 submit date:2611221405 done date:2611221406 "
    "stat:DELIVRD err:000 text:Cap lai mat khau tha"
)


def test_the_text_of_appendix_b():
    assert parse(APPENDIX_B, []) == Receipt("0123456789", "DELIVRD", "000", "2611221405", "2611221406")


@pytest.mark.parametrize(
    ("text", "receipt"),
    [
        ("", Receipt(None, None, None, None, None)),
        ("hello", Receipt(None, None, None, None, None)),
        ("ID:7 STAT:UNDELIV ERR:069", Receipt("7", "UNDELIV", "069", None, None)),
        ("stat:DELIVRD id:7", Receipt("7", "DELIVRD", None, None, None)),
        ("id:7\nstat:EXPIRED\r\nerr:1", Receipt("7", "EXPIRED", "1", None, None)),
        ("id:7 stat:SOMETHING_NEW", Receipt("7", "SOMETHING_NEW", None, None, None)),
        ("id:7 stat:delivrd", Receipt("7", "delivrd", None, None, None)),  # raw
        ("id: 7  stat: DELIVRD ", Receipt("7", "DELIVRD", None, None, None)),
        ("id: stat: err:", Receipt(None, None, None, None, None)),
        ("id:7 stat:DELIVRD vendor:x err:000", Receipt("7", "DELIVRD", "000", None, None)),
        (
            "id:7 submit_date:2026-11-22 14:05 donedate:2611221406",
            Receipt("7", None, None, "2026-11-22 14:05", "2611221406"),
        ),
        # What the message said is no field of the receipt, wherever it stands.
        ("id:7 stat:DELIVRD text:see stat:UNDELIV id:8", Receipt("7", "DELIVRD", None, None, None)),
        ("text:stat:UNDELIV id:7 stat:DELIVRD", Receipt("7", "DELIVRD", None, None, None)),
        ("msgid:9 id:7", Receipt("7", None, None, None, None)),
    ],
)
def test_texts_in_any_order_and_case(text, receipt):
    assert parse(text, []) == receipt


@given(st.permutations(APPENDIX_B.partition(" text:")[0].replace("t d", "t_d").replace("e d", "e_d").split()))
def test_any_order(fields):
    assert parse(" ".join(fields), []) == parse(APPENDIX_B, [])


def test_tlvs_win_over_the_text():
    tlvs = [(0x1401, b"x"), (Tag.RECEIPTED_MESSAGE_ID, b"abcd\0"), (Tag.MESSAGE_STATE, b"\x05")]
    receipt = parse(APPENDIX_B, tlvs)
    assert (receipt.message_id, receipt.state, receipt.error) == ("abcd", "UNDELIV", "000")
    assert parse("", tlvs) == Receipt("abcd", "UNDELIV", None, None, None)


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (b"\x01", "ENROUTE"),
        (b"\x02", "DELIVRD"),
        (b"\x03", "EXPIRED"),
        (b"\x04", "DELETED"),
        (b"\x05", "UNDELIV"),
        (b"\x06", "ACCEPTD"),
        (b"\x07", "UNKNOWN"),
        (b"\x08", "REJECTD"),
        (b"\x09", "9"),
        (b"\x00", "0"),
        (b"\xff", "255"),
        (b"", "from the text"),
        (b"\x00\x02", "DELIVRD"),
    ],
)
def test_message_state(value, state):
    assert parse("stat:" + state.replace(" ", "_"), [(Tag.MESSAGE_STATE, value)]).state == state.replace(
        " ", "_"
    )
    if value:
        assert parse("stat:OTHER", [(Tag.MESSAGE_STATE, value)]).state == state


@pytest.mark.parametrize("value", [b"", b"\0", b"\0junk"])
def test_an_empty_receipted_message_id_leaves_the_text_s(value):
    assert parse("id:7", [(Tag.RECEIPTED_MESSAGE_ID, value)]).message_id == "7"


@pytest.mark.parametrize(("value", "found"), [(b"7", "7"), (b"7\0", "7"), (b"\xe9\0", "é")])
def test_receipted_message_id(value, found):
    assert parse("id:8", [(Tag.RECEIPTED_MESSAGE_ID, value)]).message_id == found


@given(st.text(), st.lists(st.tuples(st.sampled_from([0x1E, 0x427, 1]), st.binary(max_size=300)), max_size=4))
def test_parsing_never_raises(text, tlvs):
    parse(text, tlvs)
    parse("id:" + text + " stat:" + text, tlvs)


@pytest.mark.parametrize(
    ("esm_class", "receipt"),
    [
        (0x00, False),
        (0x04, True),
        (0x44, True),  # with a UDH
        (0x07, True),  # the mode bits mean nothing here
        (0x08, False),  # acknowledgement by the phone
        (0x10, False),  # by the user
        (0x20, True),  # intermediate notification
        (0x0C, False),
        (0x24, False),
    ],
)
def test_is_receipt(esm_class, receipt):
    assert is_receipt(ShortMessage(Command.DELIVER_SM, esm_class=esm_class)) is receipt


def test_what_names_a_message_of_ours_is_a_receipt_whatever_its_flags():
    pdu = ShortMessage(Command.DELIVER_SM, tlvs=[(Tag.RECEIPTED_MESSAGE_ID, b"1\0")])
    assert is_receipt(pdu)
    assert not is_receipt(ShortMessage(Command.DELIVER_SM, tlvs=[(Tag.MESSAGE_STATE, b"\2")]))


@pytest.mark.parametrize(
    ("answered", "receipted"),
    [
        ("7B", "123"),  # hex in the response, decimal in the receipt
        ("7b", "123"),
        ("123", "7B"),
        ("123", "7b"),
        ("0000000123", "123"),
        ("123", "0000000123"),
        ("0000007B", "123"),
        ("7B", "0000000123"),
        ("abc", "ABC"),
        ("same-uuid", "same-uuid"),
        ("0", "0000"),
    ],
)
def test_the_two_forms_of_an_id_meet(answered, receipted):
    assert bare_id(answered) in id_candidates(receipted)


def test_candidates_begin_with_the_id_itself_and_repeat_none():
    assert id_candidates("0010") == ["0010", "10", "a", "A", "16"]
    assert id_candidates("x-1") == ["x-1"]
    assert id_candidates("") == []
    assert id_candidates("²") == ["²"]
    assert id_candidates("9" * 5000) == ["9" * 5000]  # more digits than int() converts


@given(st.text(max_size=80) | st.text("0123456789abcdef", min_size=60, max_size=5000))
def test_candidates_never_raise(message_id):
    found = id_candidates(message_id)
    assert found[:1] == ([message_id] if message_id else [])
    assert len(set(found)) == len(found)
