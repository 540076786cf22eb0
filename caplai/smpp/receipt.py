"""Delivery receipts: what became of a message we submitted.

Sources: SMPP 3.4 §5.2.12 (esm_class), §5.2.28 (message_state), Appendix B (the text of a receipt). The text
is "vendor specific" there, so fields are taken in any order and case, and what is missing stays missing.
"""

import re
import string
from dataclasses import dataclass
from typing import Final

from caplai.smpp.pdu import ShortMessage, Tag, Tlvs, find_tlv

# §5.2.28, under the names that the text of a receipt uses (Appendix B).
_STATES: Final = {
    1: "ENROUTE",
    2: "DELIVRD",
    3: "EXPIRED",
    4: "DELETED",
    5: "UNDELIV",
    6: "ACCEPTD",
    7: "UNKNOWN",
    8: "REJECTD",
}

_FIELD: Final = re.compile(
    r"(?:^|(?<=\s))(id|sub|dlvrd|submit[ _]?date|done[ _]?date|stat|err|text):", re.IGNORECASE
)
_HEX: Final = frozenset(string.hexdigits)


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt, every value as the carrier wrote it; None where it wrote none.

    `state` is a name of Appendix B, such as "DELIVRD", or whatever else came, a number included.
    The dates are not interpreted: carriers differ in their form and time zone.
    """

    message_id: str | None
    state: str | None
    error: str | None
    submitted: str | None
    done: str | None


def is_receipt(pdu: ShortMessage) -> bool:
    """Whether a deliver_sm tells what became of a message of ours, rather than being one (§5.2.12).

    A delivery receipt or an intermediate notification, or what names a message of ours although its SMSC forgot
    the flag: no phone can write that parameter. Acknowledgements by the phone or its user are other types.
    """
    return pdu.esm_class & 0x3C in (0x04, 0x20) or find_tlv(pdu.tlvs, Tag.RECEIPTED_MESSAGE_ID) is not None


def parse(text: str, tlvs: Tlvs) -> Receipt:
    """Read a receipt from the decoded text of its deliver_sm and from its TLVs, which win. Never raises."""
    fields: dict[str, str] = {}
    found = list(_FIELD.finditer(text))
    for at, match in enumerate(found):
        name = match[1].lower().replace("_", "").replace(" ", "")
        end = found[at + 1].start() if at + 1 < len(found) else len(text)
        # The first wins: `text:` quotes the message, which may look like a field.
        fields.setdefault(name, text[match.end() : end].strip())

    def word(name: str) -> str | None:
        return next(iter(fields.get(name, "").split()), None)

    receipted = (find_tlv(tlvs, Tag.RECEIPTED_MESSAGE_ID) or b"").partition(b"\0")[0].decode("latin-1")
    state = word("stat")
    if number := find_tlv(tlvs, Tag.MESSAGE_STATE):
        value = int.from_bytes(number[:8], "big")
        state = _STATES.get(value, str(value))
    return Receipt(
        message_id=receipted or word("id"),
        state=state,
        error=word("err"),
        submitted=fields.get("submitdate") or None,
        done=fields.get("donedate") or None,
    )


def bare_id(message_id: str) -> str:
    """The message_id of a submit_sm_resp as it is kept for matching: the receipt may leave its zeros out."""
    return message_id.lstrip("0") or message_id[:1]


def id_candidates(message_id: str) -> list[str]:
    """The forms under which the message_id of submit_sm_resp may have been kept, the likeliest first.

    Carriers give it with and without leading zeros, and in decimal in one place and hex in the other.
    """
    if not message_id:
        return []
    bare = message_id.lstrip("0") or "0"
    forms = [message_id, bare]
    if len(bare) <= 64 and _HEX.issuperset(bare):  # §5.2.23 allows 64; int() refuses thousands of digits
        if bare.isdecimal():
            forms += [f"{int(bare):x}", f"{int(bare):X}"]
        forms += [str(int(bare, 16)), bare.lower(), bare.upper()]
    return list(dict.fromkeys(forms))
