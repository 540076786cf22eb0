"""What becomes of one submit_sm: whether the carrier takes it, answers it, and lets it reach its phone."""

from dataclasses import dataclass
from typing import Final

from caplai.simulator.scenarios import Scenarios, Setting
from caplai.smpp.pdu import ShortMessage, Status
from caplai.smpp.text import UDH_INDICATOR, decode, segments

FAILED: Final = frozenset({"EXPIRED", "DELETED", "UNDELIV", "REJECTD"})
"""The final states of a receipt (SMPP 3.4, Appendix B) that mean: it did not reach its phone."""
RECEIPT_ALWAYS, RECEIPT_ON_FAILURE = 0x01, 0x02
"""registered_delivery, bits 1-0 (§5.2.17)."""
EARLY = 0.2
"""Seconds that the answer waits for a receipt which is to come before it."""


@dataclass(frozen=True, slots=True)
class Fate:
    """`status` answers it after `after` seconds (None: never). `cut`: then the connection ends. `state`: the
    receipt's.
    """

    status: int = Status.ESME_ROK
    after: float | None = 0.0
    reaches: bool = True
    cut: bool = False
    state: str = "DELIVRD"
    receipt: bool = False


def fate(scenarios: Scenarios, pdu: ShortMessage, phone: str, now: float) -> Fate:
    """What becomes of a submit to this phone. `now`: monotonic seconds."""
    wanted = pdu.registered_delivery & 0x03
    if scenarios.calm(phone):
        return Fate(receipt=wanted == RECEIPT_ALWAYS)
    slow = scenarios.find("slow", phone)
    after: float | None = slow.number if slow else 0.0
    if status := _refusal(scenarios, pdu, phone, now):
        return Fate(status, after)
    state = scenarios.find("receipt-state", phone)
    said = str(state.value) if state else "DELIVRD"
    receipt = wanted == RECEIPT_ALWAYS or (wanted == RECEIPT_ON_FAILURE and said in FAILED)
    if receipt and scenarios.find("receipt-early", phone):
        after = max(after or 0.0, EARLY)
    cut = scenarios.strike("cut-submits", phone) is not None
    if cut or scenarios.strike("silent-submits", phone):
        after = None
    ton = scenarios.find("swallow-ton", phone)
    swallowed = ton is not None and pdu.destination_ton != ton.number
    return Fate(
        after=after,
        reaches=said not in FAILED and not swallowed,
        cut=cut,
        state=said,
        receipt=receipt and not swallowed and not scenarios.find("receipt-none", phone),
    )


def _refusal(scenarios: Scenarios, pdu: ShortMessage, phone: str, now: float) -> int:
    throttle = scenarios.find("throttle", phone)
    if throttle is not None and not _allowed(throttle, pdu, now):
        return Status.ESME_RTHROTTLED
    if scenarios.find("queue-full", phone):
        return Status.ESME_RMSGQFUL
    refuse = scenarios.strike("refuse", phone)
    return int(refuse.number) if refuse else Status.ESME_ROK


def _allowed(throttle: Setting, pdu: ShortMessage, now: float) -> bool:
    """A bucket that holds one second's segments. A text of more is let through by a full one, and owes the rest."""
    most = throttle.number
    throttle.allowance = min(most, throttle.allowance + (now - throttle.allowance_at) * most)
    throttle.allowance_at = now
    if throttle.allowance < 1:
        return False
    one = pdu.esm_class & UDH_INDICATOR
    throttle.allowance -= 1 if one else segments(decode(pdu.data_coding, pdu.payload).text)
    return True
