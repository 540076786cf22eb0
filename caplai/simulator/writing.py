"""How this carrier writes what it delivers: the texts of phones, and receipts. (§ numbers: SMPP 3.4.)"""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from caplai.simulator.scenarios import Scenarios
from caplai.smpp.pdu import Command, ShortMessage, Tag, Tlvs
from caplai.smpp.text import DEFAULT_CODING, GSM_SINGLE, UDH_INDICATOR, encode, is_gsm, split

_TON_UNKNOWN, _TON_INTERNATIONAL, _NPI_E164 = 0, 1, 1  # §5.2.5, §5.2.6
_UCS2_SINGLE_OCTETS = 140
_RECEIPT = 0x04  # esm_class of an SMSC delivery receipt (§5.2.12)
_HANOI_OFFSET = 7 * 3600
_UDH_OCTETS = 6  # what split() puts before each part
# message_state (§5.2.28); a word that is not here has no number.
_STATES: Final = {
    "ENROUTE": 1, "DELIVRD": 2, "EXPIRED": 3, "DELETED": 4, "UNDELIV": 5, "ACCEPTD": 6, "UNKNOWN": 7, "REJECTD": 8,
}  # fmt: skip
# Of the range for SMSC vendors (§5.3.2): a text, the same tag with nothing, and a long one.
_UNKNOWN_TLVS: Final[Tlvs] = [(0x1400, b"simulator\0"), (0x1400, b""), (0x3FFF, bytes(200))]


def deliveries(
    scenarios: Scenarios, phone: str, number: str, text: str, references: Iterator[int]
) -> list[ShortMessage]:
    """The PDUs that carry the text of a phone (international digits) to a number, in the order to send them.

    Raises ValueError for a text of more than 255 parts.
    """
    coding, octets = encode(text)
    long = len(octets) > (GSM_SINGLE if coding == DEFAULT_CODING else _UCS2_SINGLE_OCTETS)
    calm = scenarios.calm(phone)
    by = None if calm else scenarios.find("long-by", phone)
    bodies: list[tuple[int, bytes, Tlvs]]
    if not long:
        bodies = [(0, octets, [])]
    elif by and by.value == "payload":
        bodies = [(0, b"", [(Tag.MESSAGE_PAYLOAD.value, octets)])]
    else:
        reference = next(references)
        parts = split(text, reference)
        bodies = [_part(str(by.value) if by else "udh", reference, part) for part in parts]
    if not calm:
        if scenarios.find("data-sm", phone):  # which has no short_message (§4.7.1)
            bodies = [
                (esm, b"", [*tlvs, (Tag.MESSAGE_PAYLOAD.value, body)] if body else tlvs)
                for esm, body, tlvs in bodies
            ]
        if scenarios.find("unknown-tlvs", phone):
            bodies = [(esm, body, [*_UNKNOWN_TLVS, *tlvs]) for esm, body, tlvs in bodies]
        if scenarios.find("last-part-first", phone):
            bodies.reverse()
    command = Command.DELIVER_SM if calm or not scenarios.find("data-sm", phone) else Command.DATA_SM
    # A subscriber is an E.164 number without plus: TON international, NPI ISDN. A short code means
    # something only inside its own network: TON unknown, the same numbering plan.
    return [
        ShortMessage(
            command.value,
            source_ton=_TON_INTERNATIONAL,
            source_npi=_NPI_E164,
            source=phone,
            destination_ton=_TON_UNKNOWN,
            destination_npi=_NPI_E164,
            destination=number,
            esm_class=esm,
            data_coding=coding,
            short_message=body,
            tlvs=list(tlvs),
        )
        for esm, body, tlvs in bodies
    ]


def _part(by: str, reference: int, payload: bytes) -> tuple[int, bytes, Tlvs]:
    """A part as split() made it → (esm_class, short_message, TLVs) in the form that is wanted."""
    total, number, body = payload[4], payload[5], payload[_UDH_OCTETS:]
    wide = (reference & 0xFFFF).to_bytes(2, "big")
    if by == "sar":  # §5.3.2.22 to 24
        tags = (Tag.SAR_MSG_REF_NUM, Tag.SAR_TOTAL_SEGMENTS, Tag.SAR_SEGMENT_SEQNUM)
        values = (wide, bytes([total]), bytes([number]))
        return 0, body, [(tag.value, value) for tag, value in zip(tags, values, strict=True)]
    if by == "udh16":  # 3GPP TS 23.040 §9.2.3.24.8
        return UDH_INDICATOR, bytes([6, 0x08, 4, *wide, total, number]) + body, []
    return UDH_INDICATOR, payload, []


def receipts(
    scenarios: Scenarios, submit: ShortMessage, phone: str, message_id: str, text: str, state: str
) -> tuple[float, list[ShortMessage]]:
    """The receipts of a submit whose `text` came to `state`, and the seconds after which they come."""
    late = scenarios.find("receipt-late", phone)
    written = scenarios.find("receipt-id", phone)
    if scenarios.find("receipt-unknown-id", phone):
        message_id = f"unknown-{message_id}"
    elif written and written.value == "zeros":
        message_id = message_id.rjust(10, "0")
    elif written and message_id.isdecimal():
        message_id = f"{int(message_id):X}"
    receipt = _receipt(submit, message_id, text, state)
    twice = scenarios.find("receipt-twice", phone) is not None
    return late.number if late else 0.0, [replace(receipt) for _ in range(1 + twice)]


def _receipt(pdu: ShortMessage, message_id: str, text: str, state: str) -> ShortMessage:
    """A receipt: text of Appendix B, TLVs of §4.6.1, the addresses turned round."""
    at = time.strftime("%y%m%d%H%M", time.gmtime(time.time() + _HANOI_OFFSET))
    excerpt = text[:20] if is_gsm(text[:20]) else ""
    reached = state == "DELIVRD"
    coding, octets = encode(
        f"id:{message_id} sub:001 dlvrd:{'001' if reached else '000'} submit date:{at} done date:{at} "
        f"stat:{state} err:{'000' if reached else '001'} text:{excerpt}"
    )
    tlvs: Tlvs = [(Tag.RECEIPTED_MESSAGE_ID.value, message_id.encode() + b"\0")]
    if state in _STATES:
        tlvs.append((Tag.MESSAGE_STATE.value, bytes([_STATES[state]])))
    return ShortMessage(
        Command.DELIVER_SM.value,
        source_ton=pdu.destination_ton,
        source_npi=pdu.destination_npi,
        source=pdu.destination,
        destination_ton=pdu.source_ton,
        destination_npi=pdu.source_npi,
        destination=pdu.source,
        esm_class=_RECEIPT,
        data_coding=coding,
        short_message=octets,
        tlvs=tlvs,
    )
