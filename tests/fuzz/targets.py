"""What is fuzzed: a function of bytes for each room that reads what strangers wrote, and bytes to begin with."""

import io
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch
from uuid import UUID

from caplai.config import ConfigError, load
from caplai.domain import msisdn
from caplai.domain.grammar import CODE_LENGTH, Grammar, Reissue, understand
from caplai.domain.issuing import VERSION, Inputs, derive
from caplai.service import accounts_file
from caplai.smpp import receipt, text
from caplai.smpp.pdu import (
    BadBody,
    Bind,
    BindKind,
    BindResp,
    Command,
    Decoder,
    FramingError,
    ShortMessage,
    ShortMessageResp,
    Simple,
    Tag,
    Unknown,
    encode,
)
from caplai.smpp.session import BindRequested, Closed, Request, RequestLost, Response, Role, Session, Timers

ALPHABETS: tuple[text.Alphabet, ...] = ("gsm0338", "latin1", "ascii", "utf-8")


def pdu(data: bytes) -> None:
    """A stream is read the same however it is cut; what was understood is written and read again unchanged."""
    cut = data[0] % (len(data) or 1) if data else 0
    whole, pieces = Decoder(), Decoder()
    found = whole.feed(data)
    assert repr(found) == repr(pieces.feed(data[:cut]) + pieces.feed(data[cut:]))
    for each in found:
        if isinstance(each, BadBody | FramingError):
            continue
        if isinstance(each, ShortMessage) and len(each.short_message) > 254:
            continue  # 255 octets are read, and not written
        again = Decoder().feed(encode(each))
        assert again == [each], (each, again)


def _bound(role: Role) -> Session:
    session = Session(role, window=3, timers=Timers(), now=0.0)
    if role is Role.ESME:
        session.bind(BindKind.TRANSCEIVER, system_id="caplai", password="s", now=0.0)
        session.receive(encode(BindResp(Command.BIND_TRANSCEIVER_RESP, 0, 1, "smsc")), 0.0)
        for n in range(3):
            session.request(ShortMessage(Command.SUBMIT_SM, destination="849"), 0.0, n)
    else:
        session.receive(encode(Bind(Command.BIND_TRANSCEIVER, 0, 1, "caplai", "s")), 0.0)
        session.accept_bind(Bind(Command.BIND_TRANSCEIVER, 0, 1), "smsc", 0.0)
        for n in range(3):
            session.request(ShortMessage(Command.DELIVER_SM, destination="8079"), 0.0, n)
    return session


def session(data: bytes) -> None:
    """Nothing a peer sends raises; each request of ours gets one answer or is lost; the end is the end."""
    for role in Role:
        ours = _bound(role)
        events = []
        for at in range(0, len(data), 40):
            events += ours.receive(data[at : at + 40], 1.0 + at)
            for event in events:
                if isinstance(event, Request) and not ours.closed:
                    ours.respond(event, now=1.0 + at)
                elif isinstance(event, BindRequested) and not ours.closed and ours.state.name == "BINDING":
                    ours.accept_bind(event.pdu, "smsc", 1.0 + at)
        events += ours.tick(10_000.0) + ours.closed_by_peer(10_001.0)
        answered = [e.context for e in events if isinstance(e, Response | RequestLost)]
        assert sorted(answered) == [0, 1, 2]  # type: ignore[type-var]
        assert [type(e) for e in events].count(Closed) == 1
        assert isinstance(events[-1], Closed)
        assert ours.next_deadline() is None
        for written in Decoder().feed(ours.data_to_send()):
            assert not isinstance(written, BadBody | FramingError | Unknown)


def words(data: bytes) -> None:
    """Any octets in any coding become a text; a text becomes parts that are the text again."""
    coding, alphabet = (data[0], ALPHABETS[data[1] % 4]) if len(data) > 1 else (0, ALPHABETS[0])
    body = data[2:]
    part, rest = text.parse_udh(body)
    assert body.endswith(rest)
    assert part is None or 1 <= part.number <= part.total <= 255
    decoded = text.decode(coding, rest, default=alphabet)
    code, octets = text.encode(decoded.text, default=alphabet)
    pieces = (
        text.split(decoded.text, 7, default=alphabet)
        if text.segments(decoded.text, default=alphabet) < 256
        else []
    )
    parts = {}
    for number, piece in enumerate(pieces, 1):
        assert len(piece) <= 254 or len(pieces) == 1
        found, payload = text.parse_udh(piece) if len(pieces) > 1 else (None, piece)
        assert len(pieces) == 1 or found == text.Part(7, len(pieces), number)
        parts[number] = payload
    if pieces:
        assert text.assemble(parts) == octets
        again = text.decode(code, octets, default=alphabet).text
        assert (
            again == decoded.text
            or "\ufffd" in again + decoded.text
            or "?" in again
            or "\x1b" in decoded.text
        )


def receipts(data: bytes) -> None:
    """A receipt keeps what it was given; the forms of an id are few, and the id itself is the first."""
    head, _, tail = data.partition(b"\0")
    tlvs = [(Tag.RECEIPTED_MESSAGE_ID, tail[:70]), (Tag.MESSAGE_STATE, tail[70:])] if tail else []
    found = receipt.parse(head.decode("latin-1"), tlvs)
    if found.message_id:
        forms = receipt.id_candidates(found.message_id)
        assert forms[0] == found.message_id
        assert len(forms) == len(set(forms)) <= 8
    assert found.state is None or found.state


def grammar(data: bytes) -> None:
    """A code is ten of the digits that were typed, and never one that was not."""
    typed = data.decode("utf-8", "replace")
    meant = understand(typed, Grammar())
    if isinstance(meant, Reissue):
        assert len(meant.code) == CODE_LENGTH and meant.code.isascii() and meant.code.isdigit()
    phone = msisdn.parse(typed)
    assert phone is None or (phone.startswith("+") and phone[1:].isascii() and phone[1:].isdigit())
    for ton in (0, 1, 2, 5):
        msisdn.from_address(typed, ton)


def csv(data: bytes) -> None:
    """Every line of a file is an account, or refused with its number and a reason that quotes nothing, or blank."""
    told: list[int] = []
    lines = accounts_file.read_lines(io.BytesIO(data), told.append)
    refused: list[tuple[int, str]] = []
    try:
        layout = accounts_file.read_header(next(lines, ""))
    except accounts_file.WrongFile:
        return
    copied = list(
        accounts_file.read_rows(lines, layout, lambda line, reason: refused.append((line, reason)), 2)
    )
    assert all(row.endswith("\n") and row.count("\n") == 1 for _, row in copied)
    rows = [row[:-1].replace("\\\\", "\\").split("\t") for _, row in copied]
    assert sum(told) == len(data)
    numbers = [int(row[0]) for row in rows] + [line for line, _ in refused]
    assert len(numbers) == len(set(numbers))
    for _, code, phone, email, state, hash_ in rows:
        assert len(code) == 10 and code.isascii() and code.isdigit()
        assert phone.startswith("+") and state in accounts_file.STATES
        (code + phone + email).encode("utf-8")  # PostgreSQL takes neither surrogates nor NUL
        assert "\0" not in email
        assert not hash_ or (hash_.isascii() and hash_.isprintable())
    for _, reason in refused:
        assert reason.isascii() and reason.isprintable()


_FOLDER = tempfile.TemporaryDirectory(prefix="caplai-fuzz-")


def config(data: bytes) -> None:
    """A configuration is used, or refused with a sentence; what is used works."""
    file = Path(_FOLDER.name, "caplai.toml")
    file.write_bytes(data)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")}
    with patch.dict(os.environ, kept, clear=True):
        try:
            found = load(file)
        except ConfigError:
            return
    for part in (found.grammar, found.policy_limits, found.reply_texts, found.keyring_file):
        assert part is not None
    for length, alphabet in [
        (found.password.length, found.password.alphabet),
        (found.password.long_length, found.password.long_alphabet),
    ]:
        derive(b"k" * 32, Inputs(VERSION, UUID(int=1), "0" * 10, length, alphabet))
    for window in (found.signin.guess_window, found.signin.network_window, found.signin.session_age):
        assert datetime.now(UTC) - window < datetime.now(UTC)


_SMS = ShortMessage(
    Command.DELIVER_SM, 0, 7, source="84327000686", destination="8079", short_message=b"BH MK 0123456789"
)
_PDUS = [
    _SMS,
    ShortMessage(Command.SUBMIT_SM, 0, 2, source="8079", destination="84327000686", short_message=b"x" * 160),
    ShortMessage(Command.DATA_SM, 0, 3, source="1", tlvs=[(Tag.MESSAGE_PAYLOAD, b"BH"), (0x1400, b"")]),
    ShortMessageResp(Command.SUBMIT_SM_RESP, 0, 2, "0a1b"),
    ShortMessageResp(Command.DELIVER_SM_RESP, 8, 2),
    Bind(Command.BIND_TRANSCEIVER, 0, 1, "caplai", "secret"),
    Bind(Command.OUTBIND, 0, 1, "smsc", "secret"),
    BindResp(Command.BIND_TRANSCEIVER_RESP, 0, 1, "smsc", [(Tag.SC_INTERFACE_VERSION, b"\x34")]),
    Simple(Command.ENQUIRE_LINK, 0, 9),
    Simple(Command.UNBIND, 0, 9),
    Simple(Command.GENERIC_NACK, 3, 2),
    Unknown(0x777, 0, 8, b"abc"),
]
_WIRE = [encode(each) for each in _PDUS]
_RECEIPT = (
    b"id:00a1 sub:001 dlvrd:001 submit date:2611231405 done date:2611231406 stat:DELIVRD err:000 text:BH"
)

TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "pdu": (pdu, [*_WIRE, b"".join(_WIRE)]),
    "session": (session, [*_WIRE, b"".join(_WIRE)]),
    "text": (
        words,
        [
            b"\0\0BH MK 0123456789",
            b"\x08\0" + "BH MK mã số".encode("utf-16-be"),
            b"\0\0\x05\0\x03\x07\x02\x01BH",
            b"\0\x03\xe1\xba\xa1" * 9,
            b"\0\0" + b"\x1be" * 90,
        ],
    ),
    "receipts": (receipts, [_RECEIPT, _RECEIPT + b"\x00" + b"a1b2" + b"\0" * 66 + b"\x02"]),
    "grammar": (
        grammar,
        [
            b"BH MK 0123456789",
            "BH MK mã số BHXH ０１２３４５６７８９ gửi 8079".encode(),
            b"BHMK{DN4010123456789}",
            b"VIN 1",
            b"bh mk O12 345.678-9",
            b"+84 327 000 686",
            b"0162 700 0686",
        ],
    ),
    "csv": (
        csv,
        [
            b"code,phone,email,state\n0123456789,0327000686,lan@example.vn,approved\n",
            b"\xef\xbb\xbfcode;phone;email;state\r\n\"0123456789\";'+84 327 000 686';;pending\r\n",
            b"code,phone,email,state\r0123456789,0327000686,,approved\r",
            b"code,phone,email,state,password_hash\n0123456789,0327000686,,approved,pbkdf2_sha256$600000$salt$"
            b"ZGvAwIr7zeNvPuAJTFMt95kRDxmSbCjTXZJ6pMBEXnE=\n",
            "code,phone,email,state\n".encode("utf-16"),
            b'code,phone,email,state\n"0123456789","03270006""86",\x00,\xff\n' + b"x" * 5000,
        ],
    ),
    "config": (
        config,
        [
            b'port = 8000\n[service]\nkeyword = "BH"\n[[links]]\nname = "viettel"\nhost = "h"\nwindow = 5\n',
            b'[password]\nlength = 6\nalphabet = "0123456789"\nlifetime = "PT24H"\n[limits]\naccount_day = 3\n',
            b'[texts]\nissued = "{code} {password} {until}"\n[signin]\nguess_window = 259200\n',
            b'[service]\nshort_codes = ["8079"]\nother_keywords = ["VIN"]\nmt_link = "x"\n'
            b'[[links]]\nname = "x"\nhost = "h"\n',
        ],
    ),
}
