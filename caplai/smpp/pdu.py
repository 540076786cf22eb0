"""The SMPP 3.4 codec: bytes to PDU objects and back. (§ numbers: "SMPP v3.4 Issue 1.2", 12-Oct-1999.)

A peer's mistake is an outcome, never an exception: `Decoder.feed` returns PDUs, `BadBody` (answer it, go on)
and at most one `FramingError` (the stream is lost). Only `encode` raises, for a caller's own mistake.

Strings on the wire are C-octet strings; here they are `str`, Latin-1, so that any octet survives. Longer
ones than the specification allows are accepted: refusing them would lose a message and help nobody.
No `repr` shows a text, an address or a password.
"""

import contextlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Final

RESPONSE_BIT: Final = 0x80000000
MAX_COMMAND_LENGTH: Final = 70_000
"""Default cap: a message_payload of 64 KiB and its fields."""
MAX_SHORT_MESSAGE: Final = 254
"""Octets that fit `short_message` (§5.2.22); more go into the message_payload TLV."""


class Command(IntEnum):
    """command_id values (§5.1.2.1) this codec understands; any other decodes to `Unknown`."""

    GENERIC_NACK = 0x80000000
    BIND_RECEIVER = 0x00000001
    BIND_RECEIVER_RESP = 0x80000001
    BIND_TRANSMITTER = 0x00000002
    BIND_TRANSMITTER_RESP = 0x80000002
    SUBMIT_SM = 0x00000004
    SUBMIT_SM_RESP = 0x80000004
    DELIVER_SM = 0x00000005
    DELIVER_SM_RESP = 0x80000005
    UNBIND = 0x00000006
    UNBIND_RESP = 0x80000006
    BIND_TRANSCEIVER = 0x00000009
    BIND_TRANSCEIVER_RESP = 0x80000009
    OUTBIND = 0x0000000B
    DATA_SM = 0x00000103
    DATA_SM_RESP = 0x80000103
    ENQUIRE_LINK = 0x00000015
    ENQUIRE_LINK_RESP = 0x80000015


class BindKind(Enum):
    """What an ESME asks to be; the value is the command_id of its bind."""

    RECEIVER = Command.BIND_RECEIVER
    TRANSMITTER = Command.BIND_TRANSMITTER
    TRANSCEIVER = Command.BIND_TRANSCEIVER


class Status(IntEnum):
    """command_status values (§5.1.3). A number that is not here stays a plain int."""

    ESME_ROK = 0x00
    ESME_RINVMSGLEN = 0x01
    ESME_RINVCMDLEN = 0x02
    ESME_RINVCMDID = 0x03
    ESME_RINVBNDSTS = 0x04
    ESME_RALYBND = 0x05
    ESME_RINVPRTFLG = 0x06
    ESME_RINVREGDLVFLG = 0x07
    ESME_RSYSERR = 0x08
    ESME_RINVSRCADR = 0x0A
    ESME_RINVDSTADR = 0x0B
    ESME_RINVMSGID = 0x0C
    ESME_RBINDFAIL = 0x0D
    ESME_RINVPASWD = 0x0E
    ESME_RINVSYSID = 0x0F
    ESME_RCANCELFAIL = 0x11
    ESME_RREPLACEFAIL = 0x13
    ESME_RMSGQFUL = 0x14
    ESME_RINVSERTYP = 0x15
    ESME_RINVNUMDESTS = 0x33
    ESME_RINVDLNAME = 0x34
    ESME_RINVDESTFLAG = 0x40
    ESME_RINVSUBREP = 0x42
    ESME_RINVESMCLASS = 0x43
    ESME_RCNTSUBDL = 0x44
    ESME_RSUBMITFAIL = 0x45
    ESME_RINVSRCTON = 0x48
    ESME_RINVSRCNPI = 0x49
    ESME_RINVDSTTON = 0x50
    ESME_RINVDSTNPI = 0x51
    ESME_RINVSYSTYP = 0x53
    ESME_RINVREPFLAG = 0x54
    ESME_RINVNUMMSGS = 0x55
    ESME_RTHROTTLED = 0x58
    ESME_RINVSCHED = 0x61
    ESME_RINVEXPIRY = 0x62
    ESME_RINVDFTMSGID = 0x63
    ESME_RX_T_APPN = 0x64
    ESME_RX_P_APPN = 0x65
    ESME_RX_R_APPN = 0x66
    ESME_RQUERYFAIL = 0x67
    ESME_RINVOPTPARSTREAM = 0xC0
    ESME_ROPTPARNOTALLWD = 0xC1
    ESME_RINVPARLEN = 0xC2
    ESME_RMISSINGOPTPARAM = 0xC3
    ESME_RINVOPTPARAMVAL = 0xC4
    ESME_RDELIVERYFAILURE = 0xFE
    ESME_RUNKNOWNERR = 0xFF


class Tag(IntEnum):
    """Tags of optional parameters, TLVs (§5.3.2), that somebody here reads or writes by name."""

    RECEIPTED_MESSAGE_ID = 0x001E
    USER_MESSAGE_REFERENCE = 0x0204
    SOURCE_PORT = 0x020A
    DESTINATION_PORT = 0x020B
    SAR_MSG_REF_NUM = 0x020C
    SAR_TOTAL_SEGMENTS = 0x020E
    SAR_SEGMENT_SEQNUM = 0x020F
    SC_INTERFACE_VERSION = 0x0210
    NETWORK_ERROR_CODE = 0x0423
    MESSAGE_PAYLOAD = 0x0424
    MESSAGE_STATE = 0x0427


Tlvs = list[tuple[int, bytes]]
"""Optional parameters in the order of the wire, unknown and repeated ones included."""

_COMMANDS: dict[int, Command] = {command.value: command for command in Command}
_STATUSES: dict[int, Status] = {status.value: status for status in Status}


def command_name(command_id: int) -> str:
    """`deliver_sm`, or the number in hex when it is none of ours. For logs."""
    command = _COMMANDS.get(command_id)
    return f"0x{command_id:08x}" if command is None else command.name.lower()


def status_name(status: int) -> str:
    """`ESME_RTHROTTLED`, or the number in hex when the specification has no name for it. For logs."""
    known = _STATUSES.get(status)
    return f"0x{status:08x}" if known is None else known.name


def parse_status(text: str | int) -> int:
    """The inverse of `status_name`: a name of the specification in any case, or a number (`88`, `0x58`).

    ValueError says what is expected.
    """
    if isinstance(text, str):
        name = text.strip().upper()
        if name in Status.__members__:
            return Status[name]
        try:
            text = int(name, 0)
        except ValueError:
            raise ValueError(
                f"{text!r} is no command_status: name one as SMPP 3.4 does (ESME_RTHROTTLED), or by its number (0x58)"
            ) from None
    if not 0 <= text <= 0xFFFFFFFF:
        raise ValueError("a command_status has 32 bits")
    return _STATUSES.get(text, text)


def find_tlv(tlvs: Tlvs, tag: int) -> bytes | None:
    """The value of the first TLV with this tag; None when there is none."""
    for found, value in tlvs:
        if found == tag:
            return value
    return None


def _header_repr(command_id: int, status: int, sequence: int, rest: str = "") -> str:
    return f"<{command_name(command_id)} sequence={sequence} status={status_name(status)}{rest}>"


@dataclass(slots=True, repr=False)
class Bind:
    """bind_transmitter, bind_receiver, bind_transceiver (§4.1) and outbind, which has only the first two."""

    command_id: int
    status: int = 0
    sequence: int = 0
    system_id: str = ""
    password: str = ""
    system_type: str = ""
    interface_version: int = 0x34
    addr_ton: int = 0
    addr_npi: int = 0
    address_range: str = ""

    @property
    def kind(self) -> BindKind:
        """What the bind asks for. ValueError for an outbind."""
        return BindKind(self.command_id)

    def __repr__(self) -> str:
        return _header_repr(
            self.command_id, self.status, self.sequence, f" interface_version=0x{self.interface_version:02x}"
        )


@dataclass(slots=True, repr=False)
class BindResp:
    """The answer to a bind (§4.1.2); `tlvs` may hold sc_interface_version."""

    command_id: int
    status: int = 0
    sequence: int = 0
    system_id: str = ""
    tlvs: Tlvs = field(default_factory=list)

    def __repr__(self) -> str:
        return _header_repr(self.command_id, self.status, self.sequence, f" tlvs={len(self.tlvs)}")


@dataclass(slots=True, repr=False)
class ShortMessage:
    """submit_sm (§4.4.1) and deliver_sm (§4.6.1): the same fields, in the order of the wire. And data_sm
    (§4.7.1), which has some of them and carries its text in message_payload.

    `command_id` says which of the three; `sequence` is set by the session that sends it.
    """

    command_id: int
    status: int = 0
    sequence: int = 0
    service_type: str = ""
    source_ton: int = 0
    source_npi: int = 0
    source: str = ""
    destination_ton: int = 0
    destination_npi: int = 0
    destination: str = ""
    esm_class: int = 0
    protocol_id: int = 0
    priority: int = 0
    schedule_delivery_time: str = ""
    validity_period: str = ""
    registered_delivery: int = 0
    replace_if_present: int = 0
    data_coding: int = 0
    sm_default_msg_id: int = 0
    short_message: bytes = b""
    tlvs: Tlvs = field(default_factory=list)

    @property
    def payload(self) -> bytes:
        """The octets of the message, user data header included, wherever they travelled (§5.3.2.32)."""
        if self.short_message or not self.tlvs:
            return self.short_message
        return find_tlv(self.tlvs, Tag.MESSAGE_PAYLOAD) or b""

    def __repr__(self) -> str:
        return _header_repr(
            self.command_id,
            self.status,
            self.sequence,
            f" esm_class=0x{self.esm_class:02x} data_coding=0x{self.data_coding:02x}"
            f" octets={len(self.payload)} tlvs={len(self.tlvs)}",
        )


@dataclass(slots=True, repr=False)
class ShortMessageResp:
    """submit_sm_resp (§4.4.2), data_sm_resp (§4.7.2), and deliver_sm_resp (§4.6.2), whose `message_id` is unused."""

    command_id: int
    status: int = 0
    sequence: int = 0
    message_id: str = ""
    tlvs: Tlvs = field(default_factory=list)

    def __repr__(self) -> str:
        return _header_repr(self.command_id, self.status, self.sequence, f" message_id={self.message_id!r}")


@dataclass(slots=True, repr=False)
class Simple:
    """The PDUs that are only a header: enquire_link, unbind, their responses, and generic_nack."""

    command_id: int
    status: int = 0
    sequence: int = 0

    def __repr__(self) -> str:
        return _header_repr(self.command_id, self.status, self.sequence)


@dataclass(slots=True)
class Unknown:
    """A well-framed PDU whose command_id is none of `Command`."""

    command_id: int
    status: int
    sequence: int
    body: bytes = field(repr=False)


@dataclass(slots=True)
class BadBody:
    """A well-framed request whose body cannot be read. The stream goes on after it.

    `status` is the one of its header; `error_status` is what to answer it with.
    """

    command_id: int
    status: int
    sequence: int
    error_status: Status


@dataclass(slots=True)
class FramingError:
    """A command_length that cannot be right: where the next PDU begins is unknown, so this is the end."""

    length: int
    reason: str


Pdu = Bind | BindResp | ShortMessage | ShortMessageResp | Simple | Unknown
Decoded = Pdu | BadBody | FramingError


class EncodeError(ValueError):
    """A field does not fit its form on the wire. Names the command, never a value."""


_HEADER = struct.Struct(">4I")
_LENGTH = struct.Struct(">I")
_TLV = struct.Struct(">HH")
_BYTES3 = struct.Struct("3B")
_BYTES5 = struct.Struct("5B")
_HEADER_SIZE: Final = 16
_SUBMIT_SM_RESP: Final = 0x80000004  # a plain int: looking a member up in its enum costs more than packing


# --- decoding ---------------------------------------------------------------------------------------------


class _BodyError(Exception):
    """Leaves a body decoder with the status to answer; never leaves this module."""

    def __init__(self, status: Status) -> None:
        self.status = status


def _read_tlvs(data: bytes, at: int, end: int, tlvs: Tlvs) -> None:
    """Append them to `tlvs`, before a _BodyError those that could be read."""
    while at < end:
        start = at + 4
        if start > end:
            raise _BodyError(Status.ESME_RINVOPTPARSTREAM)
        tag, length = _TLV.unpack_from(data, at)
        at = start + length
        if at > end:
            raise _BodyError(Status.ESME_RINVOPTPARSTREAM)
        tlvs.append((tag, data[start:at]))


# The body decoders take (command_id, status, sequence, data, start, end). `bytes.index(0, start, end)` is
# both the scan for the NUL and the bounds check: past `end` it raises ValueError, so that an octet read
# beyond the body is always followed by a refusal.


def _read_short_message(
    command_id: int, status: int, sequence: int, data: bytes, at: int, end: int
) -> ShortMessage:
    index = data.index
    nul = index(0, at, end)
    service_type = data[at:nul].decode("latin-1")
    source_ton = data[nul + 1]
    source_npi = data[nul + 2]
    at = nul + 3
    nul = index(0, at, end)
    source = data[at:nul].decode("latin-1")
    destination_ton = data[nul + 1]
    destination_npi = data[nul + 2]
    at = nul + 3
    nul = index(0, at, end)
    destination = data[at:nul].decode("latin-1")
    esm_class, protocol_id, priority = _BYTES3.unpack_from(data, nul + 1)
    at = nul + 4
    nul = index(0, at, end)
    schedule = data[at:nul].decode("latin-1")
    at = nul + 1
    nul = index(0, at, end)
    validity = data[at:nul].decode("latin-1")
    registered, replace, data_coding, default_id, length = _BYTES5.unpack_from(data, nul + 1)
    at = nul + 6
    if at > end:
        raise _BodyError(Status.ESME_RINVCMDLEN)
    stop = at + length
    if stop > end:
        raise _BodyError(Status.ESME_RINVMSGLEN)
    tlvs: Tlvs = []
    if stop < end:
        try:
            _read_tlvs(data, stop, end, tlvs)
        except _BodyError:
            # The text itself is there: refusing a person's message for what some SMSC appends helps nobody.
            if not length:
                raise
    # fmt: off
    return ShortMessage(
        command_id, status, sequence, service_type, source_ton, source_npi, source,
        destination_ton, destination_npi, destination, esm_class, protocol_id, priority, schedule, validity,
        registered, replace, data_coding, default_id, data[at:stop], tlvs,
    )
    # fmt: on


def _read_data_sm(
    command_id: int, status: int, sequence: int, data: bytes, at: int, end: int
) -> ShortMessage:
    nul = data.index(0, at, end)
    pdu = ShortMessage(command_id, status, sequence, data[at:nul].decode("latin-1"))
    pdu.source_ton, pdu.source_npi = data[nul + 1], data[nul + 2]
    at = nul + 3
    nul = data.index(0, at, end)
    pdu.source = data[at:nul].decode("latin-1")
    pdu.destination_ton, pdu.destination_npi = data[nul + 1], data[nul + 2]
    at = nul + 3
    nul = data.index(0, at, end)
    pdu.destination = data[at:nul].decode("latin-1")
    pdu.esm_class, pdu.registered_delivery, pdu.data_coding = _BYTES3.unpack_from(data, nul + 1)
    at = nul + 4
    if at > end:
        raise _BodyError(Status.ESME_RINVCMDLEN)
    _read_tlvs(data, at, end, pdu.tlvs)
    return pdu


def _read_bind(command_id: int, status: int, sequence: int, data: bytes, at: int, end: int) -> Bind:
    nul = data.index(0, at, end)
    system_id = data[at:nul].decode("latin-1")
    at = nul + 1
    nul = data.index(0, at, end)
    password = data[at:nul].decode("latin-1")
    if command_id == Command.OUTBIND:
        return Bind(command_id, status, sequence, system_id, password)
    at = nul + 1
    nul = data.index(0, at, end)
    system_type = data[at:nul].decode("latin-1")
    version, ton, npi = _BYTES3.unpack_from(data, nul + 1)
    at = nul + 4
    nul = data.index(0, at, end)
    address_range = data[at:nul].decode("latin-1")
    return Bind(
        command_id, status, sequence, system_id, password, system_type, version, ton, npi, address_range
    )


def _read_response_body(data: bytes, at: int, end: int) -> tuple[str, Tlvs]:
    """One C-octet string and TLVs, read as far as they go.

    The header of a response already settles its request, so a response is never refused for its body:
    with an error many peers send none at all, and calling an accepted message unanswered would send it twice.
    """
    if at == end:
        return "", []
    nul = data.find(0, at, end)
    if nul < 0:
        return data[at:end].decode("latin-1"), []
    tlvs: Tlvs = []
    with contextlib.suppress(_BodyError):
        _read_tlvs(data, nul + 1, end, tlvs)
    return data[at:nul].decode("latin-1"), tlvs


def _read_short_message_resp(
    command_id: int, status: int, sequence: int, data: bytes, at: int, end: int
) -> ShortMessageResp:
    message_id, tlvs = _read_response_body(data, at, end)
    return ShortMessageResp(command_id, status, sequence, message_id, tlvs)


def _read_bind_resp(command_id: int, status: int, sequence: int, data: bytes, at: int, end: int) -> BindResp:
    system_id, tlvs = _read_response_body(data, at, end)
    return BindResp(command_id, status, sequence, system_id, tlvs)


def _read_simple(command_id: int, status: int, sequence: int, data: bytes, at: int, end: int) -> Simple:
    return Simple(command_id, status, sequence)


def _read_unknown(command_id: int, status: int, sequence: int, data: bytes, at: int, end: int) -> Unknown:
    return Unknown(command_id, status, sequence, data[at:end])


_READERS: dict[int, Callable[[int, int, int, bytes, int, int], Pdu]] = {
    Command.GENERIC_NACK: _read_simple,
    Command.BIND_RECEIVER: _read_bind,
    Command.BIND_RECEIVER_RESP: _read_bind_resp,
    Command.BIND_TRANSMITTER: _read_bind,
    Command.BIND_TRANSMITTER_RESP: _read_bind_resp,
    Command.SUBMIT_SM: _read_short_message,
    Command.SUBMIT_SM_RESP: _read_short_message_resp,
    Command.DELIVER_SM: _read_short_message,
    Command.DELIVER_SM_RESP: _read_short_message_resp,
    Command.UNBIND: _read_simple,
    Command.UNBIND_RESP: _read_simple,
    Command.BIND_TRANSCEIVER: _read_bind,
    Command.BIND_TRANSCEIVER_RESP: _read_bind_resp,
    Command.OUTBIND: _read_bind,
    Command.DATA_SM: _read_data_sm,
    Command.DATA_SM_RESP: _read_short_message_resp,
    Command.ENQUIRE_LINK: _read_simple,
    Command.ENQUIRE_LINK_RESP: _read_simple,
}


class Decoder:
    """Cuts a byte stream into PDUs, however it was cut into pieces, in time linear in its length.

    max_command_length: octets; a longer PDU, like one under 16, is a `FramingError`, after which `feed`
    returns nothing more.
    """

    __slots__ = ("_held", "_limit", "_lost", "_needed")

    def __init__(self, max_command_length: int = MAX_COMMAND_LENGTH) -> None:
        self._limit = max_command_length
        self._held = bytearray()
        self._needed = 4
        self._lost = False

    def feed(self, data: bytes) -> list[Decoded]:
        """The PDUs that these bytes complete, in order. Never raises."""
        if self._lost:
            return []
        held = self._held
        if held:
            held += data
            if len(held) < self._needed:
                return []
            data = bytes(held)
            held.clear()
        elif type(data) is not bytes:
            data = bytes(data)
        decoded: list[Decoded] = []
        at = 0
        size = len(data)
        self._needed = 4
        while size - at >= 4:
            (length,) = _LENGTH.unpack_from(data, at)
            if not _HEADER_SIZE <= length <= self._limit:
                decoded.append(self._give_up(length))
                return decoded
            end = at + length
            if end > size:
                self._needed = length
                break
            _, command_id, status, sequence = _HEADER.unpack_from(data, at)
            status = _STATUSES.get(status, status)
            reader = _READERS.get(command_id, _read_unknown)
            try:
                decoded.append(reader(command_id, status, sequence, data, at + _HEADER_SIZE, end))
            except _BodyError as bad:
                decoded.append(BadBody(command_id, status, sequence, bad.status))
            except (ValueError, IndexError, struct.error):
                decoded.append(BadBody(command_id, status, sequence, Status.ESME_RINVCMDLEN))
            at = end
        if at < size:
            held += data[at:]
        return decoded

    def _give_up(self, length: int) -> FramingError:
        self._lost = True
        bound = f"under {_HEADER_SIZE}" if length < _HEADER_SIZE else f"over {self._limit}"
        return FramingError(length, f"command_length {length} is {bound}")


# --- encoding ---------------------------------------------------------------------------------------------


def _write_tlvs(tlvs: Tlvs) -> bytes:
    return b"".join([_TLV.pack(tag, len(value)) + value for tag, value in tlvs])


def _frame(command_id: int, status: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER_SIZE + len(body), command_id, status, sequence) + body


def _latin1(*strings: str) -> bytes:
    """Each string and its NUL. ValueError when one holds a NUL of its own or does not fit Latin-1."""
    joined = "\0".join(strings)
    if joined.count("\0") != len(strings) - 1:
        raise ValueError
    return joined.encode("latin-1") + b"\0"


def _write_short_message(pdu: ShortMessage) -> bytes:
    text = pdu.short_message
    if len(text) > MAX_SHORT_MESSAGE:
        raise EncodeError(f"{command_name(pdu.command_id)}: short_message over {MAX_SHORT_MESSAGE} octets")
    strings = (pdu.service_type, pdu.source, pdu.destination, pdu.schedule_delivery_time, pdu.validity_period)
    if "\0" in "".join(strings):
        raise ValueError
    service_type, source, destination, schedule, validity = strings
    # chr() of an octet is its Latin-1 character, so one encode() writes strings and numbers alike.
    body = (
        f"{service_type}\0{chr(pdu.source_ton)}{chr(pdu.source_npi)}{source}\0"
        f"{chr(pdu.destination_ton)}{chr(pdu.destination_npi)}{destination}\0"
        f"{chr(pdu.esm_class)}{chr(pdu.protocol_id)}{chr(pdu.priority)}{schedule}\0{validity}\0"
    ).encode("latin-1")
    body += _BYTES5.pack(
        pdu.registered_delivery, pdu.replace_if_present, pdu.data_coding, pdu.sm_default_msg_id, len(text)
    )
    body += text
    if pdu.tlvs:
        body += _write_tlvs(pdu.tlvs)
    return _frame(pdu.command_id, pdu.status, pdu.sequence, body)


def _write_data_sm(pdu: ShortMessage) -> bytes:
    if pdu.short_message:
        raise EncodeError("data_sm: the text goes into message_payload")
    body = _latin1(pdu.service_type) + bytes((pdu.source_ton, pdu.source_npi)) + _latin1(pdu.source)
    body += bytes((pdu.destination_ton, pdu.destination_npi)) + _latin1(pdu.destination)
    body += _BYTES3.pack(pdu.esm_class, pdu.registered_delivery, pdu.data_coding) + _write_tlvs(pdu.tlvs)
    return _frame(pdu.command_id, pdu.status, pdu.sequence, body)


def _write_short_message_resp(pdu: ShortMessageResp) -> bytes:
    if pdu.message_id or pdu.tlvs:
        body = _latin1(pdu.message_id) + _write_tlvs(pdu.tlvs)
    elif pdu.status and pdu.command_id == _SUBMIT_SM_RESP:
        body = b""  # §4.4.2: no body with an error; a deliver_sm_resp has its one NUL always
    else:
        body = b"\0"
    return _HEADER.pack(_HEADER_SIZE + len(body), pdu.command_id, pdu.status, pdu.sequence) + body


def _write_bind(pdu: Bind) -> bytes:
    body = _latin1(pdu.system_id, pdu.password)
    if pdu.command_id != Command.OUTBIND:
        numbers = _BYTES3.pack(pdu.interface_version, pdu.addr_ton, pdu.addr_npi)
        body += _latin1(pdu.system_type) + numbers + _latin1(pdu.address_range)
    return _frame(pdu.command_id, pdu.status, pdu.sequence, body)


def _write_bind_resp(pdu: BindResp) -> bytes:
    body = b""  # §4.1.2: no body with an error
    if not pdu.status or pdu.system_id or pdu.tlvs:
        body = _latin1(pdu.system_id) + _write_tlvs(pdu.tlvs)
    return _frame(pdu.command_id, pdu.status, pdu.sequence, body)


def encode(pdu: Pdu) -> bytes:
    """The octets of a PDU, header included.

    Raises EncodeError when a number or length is out of range, a string holds NUL or does not fit Latin-1.
    Longer strings than the specification allows are written: refusing them is the peer's right.
    """
    try:
        match pdu:
            case ShortMessage(command_id=Command.DATA_SM):
                return _write_data_sm(pdu)
            case ShortMessage():
                return _write_short_message(pdu)
            case ShortMessageResp():
                return _write_short_message_resp(pdu)
            case Simple():
                return _frame(pdu.command_id, pdu.status, pdu.sequence, b"")
            case Bind():
                return _write_bind(pdu)
            case BindResp():
                return _write_bind_resp(pdu)
            case Unknown():
                return _frame(pdu.command_id, pdu.status, pdu.sequence, pdu.body)
    except EncodeError:
        raise
    except (ValueError, OverflowError, struct.error):
        pass
    # Raised here, outside `except`, because a UnicodeEncodeError carries the whole string it choked on.
    raise EncodeError(f"{command_name(pdu.command_id)}: a number is out of range or a string not Latin-1")
