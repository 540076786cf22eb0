"""The codec against the specification's field tables, and against itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caplai.smpp.pdu import (
    BadBody,
    Bind,
    BindKind,
    BindResp,
    Command,
    Decoder,
    EncodeError,
    FramingError,
    ShortMessage,
    ShortMessageResp,
    Simple,
    Status,
    Tag,
    Unknown,
    command_name,
    encode,
    find_tlv,
    parse_status,
    status_name,
)


def octets(hex_lines: str) -> bytes:
    """Hex, a field or so a line; `#` begins a comment."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in hex_lines.splitlines()))


def decode(data: bytes) -> list[object]:
    return list(Decoder().feed(data))


# Every header is: command_length, command_id, command_status, sequence_number (§3.2). The tables named are
# those of SMPP v3.4 Issue 1.2, section 4.

BIND_BODY = """
    63 61 70 6c 61 69 00                        # system_id "caplai"
    73 33 63 72 33 74 00                        # password "s3cr3t"
    56 4d 41 00                                 # system_type "VMA"
    34                                          # interface_version
    01 01                                       # addr_ton, addr_npi
    38 30 37 39 00                              # address_range "8079"
"""
BIND_FIELDS = ("caplai", "s3cr3t", "VMA", 0x34, 1, 1, "8079")
BIND_RESP_BODY = """
    53 4d 53 43 00                              # system_id "SMSC"
    0210 0001 34                                # TLV sc_interface_version
"""

GOLDEN = {
    "data_sm, table 4-16": (
        "00000031 00000103 00000000 0000002a"
        "00"  # service_type
        "01 01 3834333237303030363836 00"  # source: international, E.164, 84327000686
        "00 01 38303739 00"  # destination: 8079
        "00 01 08"  # esm_class, registered_delivery, data_coding
        "0424 0004 00410042",  # message_payload: AB in UCS2
        ShortMessage(
            0x00000103,
            0,
            42,
            source_ton=1,
            source_npi=1,
            source="84327000686",
            destination_npi=1,
            destination="8079",
            registered_delivery=1,
            data_coding=8,
            tlvs=[(0x0424, b"\0A\0B")],
        ),
    ),
    "data_sm_resp, table 4-17": (
        "00000015 80000103 00000000 0000002a 31323334 00",
        ShortMessageResp(0x80000103, 0, 42, "1234"),
    ),
    "bind_transmitter, table 4-1": (
        "0000002a 00000002 00000000 00000001" + BIND_BODY,
        Bind(0x00000002, 0, 1, *BIND_FIELDS),
    ),
    "bind_transmitter_resp, table 4-2": (
        "0000001a 80000002 00000000 00000001" + BIND_RESP_BODY,
        BindResp(0x80000002, 0, 1, "SMSC", [(0x0210, b"\x34")]),
    ),
    "bind_receiver, table 4-3": (
        "0000002a 00000001 00000000 00000002" + BIND_BODY,
        Bind(0x00000001, 0, 2, *BIND_FIELDS),
    ),
    "bind_receiver_resp, table 4-4": (
        "0000001a 80000001 00000000 00000002" + BIND_RESP_BODY,
        BindResp(0x80000001, 0, 2, "SMSC", [(0x0210, b"\x34")]),
    ),
    "bind_transceiver, table 4-5": (
        "0000002a 00000009 00000000 00000003" + BIND_BODY,
        Bind(0x00000009, 0, 3, *BIND_FIELDS),
    ),
    "bind_transceiver_resp, table 4-6": (
        "00000015 80000009 00000000 00000003 53 4d 53 43 00",
        BindResp(0x80000009, 0, 3, "SMSC"),
    ),
    "bind_transceiver_resp refused, without a body (§4.1.2)": (
        "00000010 80000009 0000000e 00000003",
        BindResp(0x80000009, Status.ESME_RINVPASWD, 3),
    ),
    "outbind, table 4-7": (
        """
        0000001a 0000000b 00000000 00000004
        53 4d 53 43 00                          # system_id "SMSC"
        70 77 64 31 00                          # password "pwd1"
        """,
        Bind(0x0000000B, 0, 4, "SMSC", "pwd1"),
    ),
    "unbind, table 4-8": ("00000010 00000006 00000000 00000005", Simple(0x00000006, 0, 5)),
    "unbind_resp, table 4-9": ("00000010 80000006 00000000 00000005", Simple(0x80000006, 0, 5)),
    "generic_nack, table 4-9a": (
        "00000010 80000000 00000003 00000006",
        Simple(0x80000000, Status.ESME_RINVCMDID, 6),
    ),
    "submit_sm, table 4-10": (
        """
        0000005a 00000004 00000000 00000007
        00                                      # service_type
        05 00 42 48 58 48 00                    # source: alphanumeric "BHXH"
        01 01 38 34 33 32 37 30 30 30 36 38 36 00   # destination: international, E.164 "84327000686"
        00 00 01                                # esm_class, protocol_id, priority_flag
        30 30 30 30 30 30 30 30 30 35 30 30 30 30 30 52 00   # schedule_delivery_time "000000000500000R"
        30 30 30 30 30 32 30 30 30 30 30 30 30 30 30 52 00   # validity_period "000002000000000R"
        01 00 08 00                             # registered_delivery, replace, data_coding, default msg
        04 0043 1ea5                            # sm_length, short_message: UCS2 "Cấ"
        0204 0002 1234                          # TLV user_message_reference
        """,
        ShortMessage(
            0x00000004,
            sequence=7,
            source_ton=5,
            source="BHXH",
            destination_ton=1,
            destination_npi=1,
            destination="84327000686",
            priority=1,
            schedule_delivery_time="000000000500000R",
            validity_period="000002000000000R",
            registered_delivery=1,
            data_coding=8,
            short_message=b"\x00\x43\x1e\xa5",
            tlvs=[(0x0204, b"\x12\x34")],
        ),
    ),
    "submit_sm_resp, table 4-11": (
        "00000019 80000004 00000000 00000007 31 32 33 34 61 62 63 64 00",
        ShortMessageResp(0x80000004, 0, 7, "1234abcd"),
    ),
    "submit_sm_resp with an error, without a body (§4.4.2)": (
        "00000010 80000004 00000058 00000007",
        ShortMessageResp(0x80000004, Status.ESME_RTHROTTLED, 7),
    ),
    "deliver_sm, table 4-14": (
        """
        00000043 00000005 00000000 00000008
        43 4d 54 00                             # service_type "CMT"
        01 01 38 34 33 32 37 30 30 30 36 38 36 00   # source: international, E.164 "84327000686"
        03 09 38 30 37 39 00                    # destination: network specific, private "8079"
        00 7f 02                                # esm_class, protocol_id, priority_flag
        00 00                                   # schedule_delivery_time, validity_period
        00 00 01 00                             # registered_delivery, replace, data_coding, default msg
        10 42 48 20 4d 4b 20 30 31 32 33 34 35 36 37 38 39   # "BH MK 0123456789"
        """,
        ShortMessage(
            0x00000005,
            sequence=8,
            service_type="CMT",
            source_ton=1,
            source_npi=1,
            source="84327000686",
            destination_ton=3,
            destination_npi=9,
            destination="8079",
            protocol_id=0x7F,
            priority=2,
            data_coding=1,
            short_message=b"BH MK 0123456789",
        ),
    ),
    "deliver_sm, a receipt with its text in message_payload": (
        """
        00000042 00000005 00000000 00000009
        00  00 00 38 00  00 00 39 00            # service_type, source "8", destination "9"
        04 00 00  00  00  00 00 00 00           # esm_class: SMSC delivery receipt
        00                                      # sm_length
        001e 0005 61 62 63 64 00                # TLV receipted_message_id "abcd"
        0427 0001 02                            # TLV message_state DELIVERED
        1401 0000                               # TLV of a vendor, empty
        1401 0001 ff                            # and once more
        0424 0004 69 64 3a 31                   # TLV message_payload "id:1"
        """,
        ShortMessage(
            0x00000005,
            sequence=9,
            source="8",
            destination="9",
            esm_class=4,
            tlvs=[(0x1E, b"abcd\0"), (0x427, b"\x02"), (0x1401, b""), (0x1401, b"\xff"), (0x424, b"id:1")],
        ),
    ),
    "deliver_sm_resp, table 4-15": (
        "00000011 80000005 00000000 00000008 00",
        ShortMessageResp(0x80000005, 0, 8),
    ),
    "deliver_sm_resp with an error keeps its empty message_id": (
        "00000011 80000005 00000008 00000008 00",
        ShortMessageResp(0x80000005, Status.ESME_RSYSERR, 8),
    ),
    "enquire_link, table 4-24": ("00000010 00000015 00000000 7fffffff", Simple(0x15, 0, 0x7FFFFFFF)),
    "enquire_link_resp, table 4-25": ("00000010 80000015 00000000 0000000a", Simple(0x80000015, 0, 10)),
    "query_sm is none of ours": ("00000013 00000003 00000000 0000000b 31 00 00", Unknown(3, 0, 11, b"1\0\0")),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    hex_lines, pdu = GOLDEN[name]
    assert decode(octets(hex_lines)) == [pdu]
    assert encode(pdu) == octets(hex_lines)


def test_every_command_has_a_golden_pdu():
    assert {pdu.command_id for _, pdu in GOLDEN.values()} >= set(Command)


@pytest.mark.parametrize(
    ("hex_lines", "pdu"),
    [
        ("00000010 80000004 00000000 00000001", ShortMessageResp(0x80000004, 0, 1)),
        ("00000010 80000005 00000000 00000001", ShortMessageResp(0x80000005, 0, 1)),
        ("00000010 80000009 00000000 00000001", BindResp(0x80000009, 0, 1)),
        ("00000012 80000004 00000000 00000001 3132", ShortMessageResp(0x80000004, 0, 1, "12")),  # no NUL
        ("00000014 80000004 00000000 00000001 31 00 0424", ShortMessageResp(0x80000004, 0, 1, "1")),
        ("00000013 80000004 00000045 00000001 313200", ShortMessageResp(0x80000004, 0x45, 1, "12")),
        ("00000010 80000004 00000500 00000001", ShortMessageResp(0x80000004, 0x500, 1)),  # a vendor's status
        ("00000011 00000015 00000000 00000001 00", Simple(0x15, 0, 1)),
    ],
)
def test_responses_and_header_only_pdus_are_read_as_far_as_they_go(hex_lines, pdu):
    assert decode(octets(hex_lines)) == [pdu]


def test_a_known_status_has_its_name_and_an_unknown_one_its_number():
    known, unknown = decode(
        encode(Simple(Command.GENERIC_NACK, 0x58, 1)) + encode(Simple(Command.GENERIC_NACK, 0x500, 1))
    )
    assert known.status is Status.ESME_RTHROTTLED
    assert status_name(known.status) == "ESME_RTHROTTLED"
    assert type(unknown.status) is int
    assert status_name(unknown.status) == "0x00000500"
    assert command_name(5) == "deliver_sm"
    assert command_name(0x104) == "0x00000104"


def test_strings_longer_than_the_specification_allows_are_accepted():
    pdu = ShortMessage(Command.DELIVER_SM, source="9" * 300, service_type="longer than six")
    assert decode(encode(pdu)) == [pdu]


DELIVER_HEADER = "00000005 00000000 00000021"
DELIVER_BODY = "00 0000 3100 0000 3200 000000 00 00 00000000"  # up to, not including, sm_length


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("", Status.ESME_RINVCMDLEN),
        ("61 62", Status.ESME_RINVCMDLEN),  # no NUL at all
        ("00 0101 31", Status.ESME_RINVCMDLEN),  # no NUL behind the source
        ("00 01", Status.ESME_RINVCMDLEN),  # ends between source TON and NPI
        ("00 0000 3100 0000 3200 000000 00 00 000000", Status.ESME_RINVCMDLEN),  # ends before data_coding
        (DELIVER_BODY, Status.ESME_RINVCMDLEN),  # no sm_length
        (DELIVER_BODY + "05 41424344", Status.ESME_RINVMSGLEN),
        (DELIVER_BODY + "00 0424 0002 41", Status.ESME_RINVOPTPARSTREAM),  # TLV longer than the PDU
        (DELIVER_BODY + "00 0424", Status.ESME_RINVOPTPARSTREAM),  # TLV without a length
        (DELIVER_BODY + "00 00", Status.ESME_RINVOPTPARSTREAM),
    ],
)
def test_a_bad_body_is_reported_and_the_next_pdu_is_read(body, error):
    payload = octets(body)
    bad = (16 + len(payload)).to_bytes(4, "big") + octets(DELIVER_HEADER) + payload
    after = ShortMessage(Command.DELIVER_SM, sequence=34, source="1", destination="2", short_message=b"OK")
    assert decode(bad + encode(after)) == [BadBody(5, 0, 0x21, error), after]
    assert decode(bad) == [BadBody(5, 0, 0x21, error)]  # the same at the end of the buffer


@pytest.mark.parametrize("junk", ["0424 0002 41", "0424", "00"])
def test_a_text_is_taken_whatever_follows_it(junk):
    """Some SMSCs append an octet, or cut a parameter; a person's message must not be refused for it."""
    payload = octets(DELIVER_BODY + "02 4f4b" + "020c 0002 0007" + junk)
    [pdu] = decode((16 + len(payload)).to_bytes(4, "big") + octets(DELIVER_HEADER) + payload)
    assert (pdu.short_message, pdu.tlvs) == (b"OK", [(Tag.SAR_MSG_REF_NUM, b"\0\x07")])


@pytest.mark.parametrize(
    ("written", "status"),
    [
        ("ESME_RTHROTTLED", 0x58),
        (" esme_rmsgqful ", 0x14),
        ("0x58", 0x58),
        ("88", 88),
        (0x444, 0x444),
        ("0xFFFFFFFF", 0xFFFFFFFF),
    ],
)
def test_a_status_is_written_by_name_or_number(written, status):
    assert parse_status(written) == status


@pytest.mark.parametrize("written", ["ESME_RTROTTLED", "", "-1", -1, "0x100000000", "12 monkeys"])
def test_what_is_no_status_is_refused(written):
    with pytest.raises(ValueError, match="command_status"):
        parse_status(written)


@pytest.mark.parametrize("command", [Command.BIND_TRANSCEIVER, Command.OUTBIND])
def test_a_bad_bind_is_reported(command):
    data = encode(Simple(command, 0, 3))[:3] + b"\x12" + encode(Simple(command, 0, 3))[4:] + b"ab"
    assert decode(data) == [BadBody(command, 0, 3, Status.ESME_RINVCMDLEN)]


@pytest.mark.parametrize("length", [0, 1, 15, 101, 0xFFFFFFFF])
def test_a_length_that_cannot_be_right_ends_the_stream(length):
    good = Simple(Command.ENQUIRE_LINK, 0, 1)
    decoder = Decoder(max_command_length=100)
    # Four octets are enough to know, and the good PDUs before it are not lost.
    first, error = decoder.feed(encode(good) + length.to_bytes(4, "big"))
    assert first == good
    assert isinstance(error, FramingError)
    assert error.length == length
    assert decoder.feed(encode(good)) == []


def test_the_cap_itself_is_allowed():
    pdu = Unknown(0x104, 0, 1, b"x" * 84)
    assert Decoder(max_command_length=100).feed(encode(pdu)) == [pdu]


def test_payload_is_found_wherever_it_travels():
    short = ShortMessage(Command.DELIVER_SM, short_message=b"a", tlvs=[(Tag.MESSAGE_PAYLOAD, b"b")])
    long = ShortMessage(Command.DELIVER_SM, tlvs=[(0x1401, b"x"), (Tag.MESSAGE_PAYLOAD, b"b")])
    assert short.payload == b"a"
    assert long.payload == b"b"
    assert ShortMessage(Command.DELIVER_SM).payload == b""
    assert ShortMessage(Command.DELIVER_SM, tlvs=[(0x1401, b"x")]).payload == b""
    assert find_tlv([(1, b"a"), (1, b"b")], 1) == b"a"
    assert find_tlv([], 1) is None


@pytest.mark.parametrize(
    "pdu",
    [
        ShortMessage(Command.SUBMIT_SM, short_message=b"x" * 255),
        ShortMessage(Command.SUBMIT_SM, source="secret\0"),
        ShortMessage(Command.SUBMIT_SM, destination="secretế"),
        ShortMessage(Command.SUBMIT_SM, source="secret", source_ton=256),
        ShortMessage(Command.SUBMIT_SM, source="secret", esm_class=-1),
        ShortMessage(Command.SUBMIT_SM, source="secret", data_coding=256),
        ShortMessage(Command.SUBMIT_SM, tlvs=[(1, b"secret" * 20_000)]),
        ShortMessageResp(Command.SUBMIT_SM_RESP, message_id="secret\0"),
        Bind(Command.BIND_RECEIVER, system_id="a", password="secretế"),
        Bind(Command.BIND_RECEIVER, system_id="a", interface_version=-1),
        BindResp(Command.BIND_RECEIVER_RESP, system_id="\0"),
        Simple(Command.UNBIND, 0, -1),
    ],
    ids=lambda pdu: type(pdu).__name__,
)
def test_what_does_not_fit_the_wire_is_refused_without_telling_it(pdu):
    with pytest.raises(EncodeError) as refusal:
        encode(pdu)
    assert "secret" not in str(refusal.value)
    assert refusal.value.__context__ is None  # nor through the exception behind it


def test_no_repr_shows_a_text_an_address_or_a_password():
    secrets = ["84327000686", "8079", "BH MK 012", "s3cr3t", "caplai"]
    pdus = [
        ShortMessage(5, 0, 1, source="84327000686", destination="8079", short_message=b"BH MK 012"),
        ShortMessage(5, 0, 1, tlvs=[(Tag.MESSAGE_PAYLOAD, b"BH MK 012")]),
        Bind(9, 0, 1, "caplai", "s3cr3t", address_range="8079"),
        Bind(11, 0, 1, "caplai", "s3cr3t"),
        BindResp(0x80000009, 0, 1, "caplai", [(1, b"8079")]),
        Unknown(3, 0, 1, b"84327000686"),
    ]
    for pdu in pdus:
        assert not [secret for secret in secrets if secret in repr(pdu)], repr(pdu)
    assert repr(pdus[1]) == (
        "<deliver_sm sequence=1 status=ESME_ROK esm_class=0x00 data_coding=0x00 octets=9 tlvs=1>"
    )
    assert repr(Simple(0x15, 0, 3)) == "<enquire_link sequence=3 status=ESME_ROK>"
    assert repr(ShortMessageResp(0x80000004, 0x500, 3, "7")) == (
        "<submit_sm_resp sequence=3 status=0x00000500 message_id='7'>"
    )


def test_kind_of_a_bind():
    assert Bind(Command.BIND_RECEIVER).kind is BindKind.RECEIVER
    with pytest.raises(ValueError, match="OUTBIND"):
        _ = Bind(Command.OUTBIND).kind


# --- properties -------------------------------------------------------------------------------------------

octet = st.integers(0, 255)
number = st.integers(0, 0xFFFFFFFF)
string = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=30)
tlvs = st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=300)), max_size=4)
header = {"status": number, "sequence": number}

binds = st.sampled_from([Command.BIND_RECEIVER, Command.BIND_TRANSMITTER, Command.BIND_TRANSCEIVER])
bind_resps = binds.map(lambda command: command | 0x80000000)
known = frozenset(Command)

any_pdu = st.one_of(
    st.builds(
        ShortMessage,
        st.sampled_from([Command.SUBMIT_SM, Command.DELIVER_SM]),
        **header,
        service_type=string,
        source_ton=octet,
        source_npi=octet,
        source=string,
        destination_ton=octet,
        destination_npi=octet,
        destination=string,
        esm_class=octet,
        protocol_id=octet,
        priority=octet,
        schedule_delivery_time=string,
        validity_period=string,
        registered_delivery=octet,
        replace_if_present=octet,
        data_coding=octet,
        sm_default_msg_id=octet,
        short_message=st.binary(max_size=254),
        tlvs=tlvs,
    ),
    st.builds(
        ShortMessageResp,
        st.sampled_from([Command.SUBMIT_SM_RESP, Command.DELIVER_SM_RESP]),
        **header,
        message_id=string,
        tlvs=tlvs,
    ),
    st.builds(
        Bind,
        binds,
        **header,
        system_id=string,
        password=string,
        system_type=string,
        interface_version=octet,
        addr_ton=octet,
        addr_npi=octet,
        address_range=string,
    ),
    st.builds(Bind, st.just(Command.OUTBIND), **header, system_id=string, password=string),
    st.builds(BindResp, bind_resps, **header, system_id=string, tlvs=tlvs),
    st.builds(
        Simple,
        st.sampled_from(
            [
                Command.GENERIC_NACK,
                Command.UNBIND,
                Command.UNBIND_RESP,
                Command.ENQUIRE_LINK,
                Command.ENQUIRE_LINK_RESP,
            ]
        ),
        **header,
    ),
    st.builds(Unknown, number.filter(lambda n: n not in known), **header, body=st.binary(max_size=300)),
)


@given(any_pdu)
def test_what_is_written_is_read_back(pdu):
    assert decode(encode(pdu)) == [pdu]


@given(st.lists(any_pdu, max_size=5), st.data())
def test_any_cut_of_the_stream_gives_the_same_pdus(pdus, data):
    stream = b"".join(encode(pdu) for pdu in pdus)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder = Decoder()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += decoder.feed(stream[start:end])
    assert found == pdus


@given(st.lists(any_pdu, min_size=1, max_size=2))
def test_octet_by_octet(pdus):
    decoder = Decoder()
    found = []
    for value in b"".join(encode(pdu) for pdu in pdus):
        found += decoder.feed(bytes([value]))
    assert found == pdus


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_random_octets_never_raise(pieces):
    decoder = Decoder(max_command_length=500)
    for piece in pieces:
        decoder.feed(piece)


@given(st.sampled_from(sorted(Command)), st.lists(st.binary(max_size=60) | st.just(b"\0"), max_size=12))
def test_any_body_under_any_command_is_one_outcome_and_leaves_the_next_pdu_alone(command, pieces):
    body = b"".join(pieces)
    header = b"".join(n.to_bytes(4, "big") for n in (16 + len(body), command, 0, 77))
    after = Simple(Command.ENQUIRE_LINK, 0, 78)
    first, second = decode(header + body + encode(after))
    assert (first.command_id, first.sequence) == (command, 77)
    assert second == after
    if isinstance(first, BadBody):
        assert command & 0x80000000 == 0  # a response is never refused for its body


@given(any_pdu, st.data())
def test_a_damaged_pdu_never_raises(pdu, data):
    stream = bytearray(encode(pdu))
    for at in data.draw(st.lists(st.integers(0, len(stream) - 1), max_size=5)):
        stream[at] = data.draw(octet)
    decode(bytes(stream))


def test_feeding_a_long_pdu_in_small_pieces_copies_no_more_than_a_few_times():
    """Linear, not quadratic: the work is counted in octets that the decoder takes in, not in seconds."""

    class Counted(bytearray):
        taken = 0

        def __iadd__(self, data):
            Counted.taken += len(data)
            return super().__iadd__(data)

        def __bytes__(self):
            Counted.taken += len(self)
            return bytes(memoryview(self))

    pdu = Unknown(0x104, 0, 1, b"x" * 69_000)
    stream = encode(pdu)
    decoder = Decoder()
    decoder._held = Counted()
    found = []
    for at in range(0, len(stream), 7):
        found += decoder.feed(stream[at : at + 7])
    assert found == [pdu]
    assert Counted.taken < 3 * len(stream)
