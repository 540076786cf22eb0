"""A link tried out against its real SMSC, at onboarding: who it is, how quick, and what its statuses mean to it.

It binds as the engine would and stores nothing. While it runs, messages and receipts of other people are refused
"for now" (`try_again_status`), so that they stay with the SMSC: it is for a maintenance window.
"""

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import TypeVar

from caplai.channels.connection import Connection
from caplai.channels.links import Link
from caplai.service.deliver import Verdict
from caplai.smpp import receipt, text
from caplai.smpp.pdu import Command, ShortMessage, Status, status_name
from caplai.smpp.session import Alive, BindRefused, Bound, Closed, Event, Request, RequestLost, Response

T = TypeVar("T")

CANDIDATES = (
    Status.ESME_RSYSERR,
    Status.ESME_RX_T_APPN,
    Status.ESME_RMSGQFUL,
    Status.ESME_RTHROTTLED,
)
"""What an SMSC may take as "try again" (SMPP 3.4, 5.1.3 names none of them so for a deliver_sm)."""
EXPIRES_SOON = 30
"""Days that a certificate should hold at least."""

Say = Callable[[str, bool | None, str, str], None]
"""Told what was looked at, whether it is well (None: it asks for something), what was seen, how to mend it."""

_AFTER_REFUSAL = {
    Status.ESME_RINVPASWD: "Is the password of the link right?",
    Status.ESME_RINVSYSID: "Is its system_id right?",
    Status.ESME_RALYBND: "Somebody is bound with this system_id: an engine of another installation?",
    Status.ESME_RBINDFAIL: "Ask the carrier: it may allow another kind of bind (`bind`), or not this host.",
}


class TrialOver(Exception):
    """Nothing more can be tried; what there is to say about it has been said."""


class Trial:
    """One trial of one link. `run()` says what it finds; only once, and while nobody else holds the link.

    timeout: seconds to wait for each text, for each delivery of it again, and for receipts. word: what somebody
    is asked to text; each round adds its number.
    """

    def __init__(
        self,
        link: Link,
        say: Say,
        *,
        timeout: float,
        word: str,
        statuses: Sequence[int] = (),
        send_to: str | None = None,
        deliveries: bool = True,
    ) -> None:
        self._link = link
        self._say = say
        self._timeout = timeout
        self._word = word
        self._statuses = list(dict.fromkeys(statuses or (link.try_again_status, *CANDIDATES)))
        self._send_to = send_to
        self._deliveries = deliveries and "mo" in link.use
        self._connections: list[Connection] = []
        self._bound: asyncio.Queue[Bound | BindRefused | Closed] = asyncio.Queue()
        self._alive: asyncio.Queue[float] = asyncio.Queue()
        self._answers: asyncio.Queue[Response | RequestLost] = asyncio.Queue()
        # The deliveries of our own texts: (round, connection, PDU).
        self._texts: asyncio.Queue[tuple[int, Connection, ShortMessage]] = asyncio.Queue()
        self._receipts: dict[str, receipt.Receipt] = {}
        self._receipt_came = asyncio.Event()
        self._sent_ids: list[str] = []
        self._refused_others = 0
        self._closed: str | None = None
        self._rounds = 0

    async def run(self) -> None:
        """Try it all out, saying what is found."""
        try:
            for kind in self._link.bind_kinds:
                await self._bind(Connection(self._link, kind, self._on_event))
            await self._round_trip()
            if self._send_to is not None:
                await self._try_sending(self._send_to)
            if self._deliveries:
                await self._try_statuses()
        except TrialOver:
            pass
        finally:
            await self._leave()

    # --- the bind ---

    async def _bind(self, connection: Connection) -> None:
        link, what = self._link, f"bind as {connection.kind.name.lower()}"
        began = time.monotonic()
        try:
            async with asyncio.timeout(10):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection, link.host, link.port, ssl=link.tls_context()
                )
        except ssl.SSLCertVerificationError as error:
            mend = (
                "Set tls.ca_file to the certificate of the carrier's authority, and host to the name in it."
            )
            self._say("TLS", False, error.verify_message, mend)
            raise TrialOver from None
        except (OSError, UnicodeError) as error:  # the latter: no name that DNS could know
            says = f"{link.host}:{link.port}: {_reason(error)}"
            self._say(
                what, False, says, "Is the address right, does the carrier let this host in, is `tls` right?"
            )
            raise TrialOver from None
        self._connections.append(connection)
        self._tell_certificate(connection)
        match await self._next(self._bound, link.response_timeout + 1):
            case Bound() as bound:
                version = bound.interface_version
                peer = (
                    f"the SMSC calls itself {bound.peer_system_id!r}"
                    if bound.peer_system_id
                    else "it has no name"
                )
                speaks = (
                    "names no version" if version is None else f"speaks SMPP {version >> 4}.{version & 15}"
                )
                self._say(what, True, f"{(time.monotonic() - began) * 1000:.0f} ms; {peer} and {speaks}", "")
            case BindRefused(status):
                mend = _AFTER_REFUSAL.get(Status(status), "") if status in set(Status) else ""
                self._say(what, False, status_name(status), mend or "Ask the carrier why.")
                raise TrialOver
            case Closed(reason):
                self._say(what, False, f"the connection ended: {reason}", "Is it SMPP that listens there?")
                raise TrialOver
            case None:
                self._say(what, False, "no answer", "Is it SMPP that listens there?")
                raise TrialOver

    def _tell_certificate(self, connection: Connection) -> None:
        certificate = connection.certificate()
        if certificate is None:
            return
        if not certificate:
            self._say(
                "TLS", False, "encrypted, and the certificate was not checked", "Set tls.verify = true."
            )
            return
        until = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
        days = (until - datetime.now(UTC)).days
        mend = (
            "" if days >= EXPIRES_SOON else "Ask the carrier when it is renewed: the link goes down with it."
        )
        self._say(
            "TLS",
            days >= EXPIRES_SOON,
            f"the certificate is trusted and holds until {until:%F} ({days} days)",
            mend,
        )

    async def _round_trip(self) -> None:
        times = []
        for _ in range(5):
            for connection in self._connections:
                connection.session.enquire(time.monotonic())
                connection.flush()
                took = await self._next(self._alive, self._link.response_timeout)
                if took is None:
                    self._say(
                        "enquire_link",
                        False,
                        self._closed or "no answer",
                        "Ask the carrier whether it is on.",
                    )
                    raise TrialOver
                times.append(took * 1000)
        says = f"{median(times):.1f} ms there and back, {max(times):.1f} at the most of {len(times)}"
        self._say("enquire_link", True, says, "")

    # --- what we send ---

    async def _try_sending(self, phone: str) -> None:
        """Two texts, because one message_id does not show whether all are the same."""
        connection = next((each for each in self._connections if each.session.free), None)
        if connection is None:
            self._say("sending", False, "the link may not send (`use`)", "")
            return
        link = self._link
        ton, npi, sender = link.sender_address(link.short_codes[0])
        for number in (1, 2):
            coding, octets = text.encode(f"{self._word} {number}/2", default=link.default_alphabet)
            pdu = ShortMessage(
                Command.SUBMIT_SM,
                source_ton=ton,
                source_npi=npi,
                source=sender,
                destination_ton=link.phone_ton,
                destination_npi=link.phone_npi,
                destination=phone,
                registered_delivery=1,
                data_coding=coding,
                short_message=octets,
            )
            connection.session.request(pdu, time.monotonic())
            connection.flush()
            answer = await self._next(self._answers, link.submit_timeout + 1)
            if not isinstance(answer, Response):
                mend = "Ask the carrier. The engine would send it again, perhaps a second time."
                self._say("sending", False, "no answer to submit_sm", mend)
                return
            status = answer.pdu.status
            if not answer.accepted:
                told = link.verdict(status or Status.ESME_RUNKNOWNERR)
                says = f"{status_name(status)}, which the engine takes as {_meaning(told)}"
                mend = "If the carrier means otherwise: temporary_statuses, permanent_statuses of the link."
                self._say("sending", False, says, mend)
                return
        self._say("sending", True, f"ESME_ROK; the message_ids are {id_form(self._sent_ids)}", "")
        await self._await_receipts()

    async def _await_receipts(self) -> None:
        end = time.monotonic() + self._timeout
        self._say("receipts", None, f"waiting {self._timeout:.0f} s at most for two", "")
        while len(self._matched()) < 2 and not self._closed and (left := end - time.monotonic()) > 0:
            self._receipt_came.clear()
            try:
                await asyncio.wait_for(self._receipt_came.wait(), left)
            except TimeoutError:
                break
        matched = self._matched()
        if len(matched) == 2:
            same = all(given in self._receipts for given in self._sent_ids)
            form = (
                "as in the answer"
                if same
                else "in another form than in the answer, which the engine can read"
            )
            states = ", ".join(sorted({found.state or "no state" for found in matched.values()}))
            self._say("receipts", True, f"two came ({states}), their ids {form}", "")
        elif self._receipts:
            says = f"{len(self._receipts)} came, of which {len(matched)} name a message that was sent"
            self._say(
                "receipts", False, says, "The ids cannot be matched: leave `receipts` off on this link."
            )
        else:
            says = f"none came within {self._timeout:.0f} s"
            self._say(
                "receipts", False, says, "Wait longer (--timeout), or leave `receipts` off on this link."
            )

    def _is_ours(self, given: str) -> bool:
        """Whether a receipt with this id tells of what was sent here. A constant id says nothing."""
        if len(set(self._sent_ids)) < len(self._sent_ids):
            return False
        kept = {receipt.bare_id(sent) for sent in self._sent_ids}
        return not kept.isdisjoint(receipt.id_candidates(given))

    def _matched(self) -> dict[str, receipt.Receipt]:
        """The receipts of what was sent here, by the id that they give."""
        return {given: found for given, found in self._receipts.items() if self._is_ours(given)}

    # --- what is delivered ---

    async def _try_statuses(self) -> None:
        link = self._link
        self._say(
            "deliveries",
            None,
            f"messages of other people get {status_name(link.try_again_status)} and stay with the SMSC until an"
            " engine binds",
            "",
        )
        tried: dict[int, float | None] = {}
        at: dict[int, tuple[int, float]] = {}
        """In which round what status was the last answer, and when."""
        waiting: tuple[int, Connection, ShortMessage] | None = None
        for status in self._statuses:
            if waiting is None and (waiting := await self._ask_for_text(tried, at)) is None:
                break
            number, connection, pdu = waiting
            self._answer(connection, pdu, status)
            at[number] = status, time.monotonic()
            self._say("deliveries", None, f"answered {status_name(status)}; waiting for it to come again", "")
            waiting = await self._next_text(number, tried, at)
            tried.setdefault(status, None)
            if waiting is None:
                self._say("deliveries", None, f"{status_name(status)}: not within {self._timeout:.0f} s", "")
        if waiting is not None:
            self._answer(waiting[1], waiting[2], Status.ESME_ROK)
        self._conclude(tried)

    async def _ask_for_text(
        self, tried: dict[int, float | None], at: dict[int, tuple[int, float]]
    ) -> tuple[int, Connection, ShortMessage] | None:
        self._rounds += 1
        words = f"{self._word}{self._rounds}"
        codes = " or ".join(self._link.short_codes)
        self._say(
            "deliveries", None, f'text "{words}" from a phone to {codes} now ({self._timeout:.0f} s)', ""
        )
        found = await self._next_text(self._rounds, tried, at)
        if found is None:
            mend = (
                "Does this carrier route the short code and its keyword to this link? Try --timeout, --word."
            )
            self._say("deliveries", False, self._closed or "the text did not come", mend)
        return found

    async def _next_text(
        self, number: int, tried: dict[int, float | None], at: dict[int, tuple[int, float]]
    ) -> tuple[int, Connection, ShortMessage] | None:
        """The next delivery of this round's text. One of an earlier round came after we had given it up."""
        end = time.monotonic() + self._timeout
        while (found := await self._next(self._texts, end - time.monotonic())) is not None:
            if found[0] in at:
                status, answered = at[found[0]]
                seconds = tried[status] = time.monotonic() - answered
                says = f"{status_name(status)}: it came again after {seconds:.1f} s"
                self._say("deliveries", True, says, "")
            if found[0] == number:
                return found
            self._answer(found[1], found[2], Status.ESME_ROK)
        return None

    def _conclude(self, tried: dict[int, float | None]) -> None:
        if not tried:
            return
        again = [status for status, seconds in tried.items() if seconds is not None]
        configured = self._link.try_again_status
        names = ", ".join(map(status_name, again)) or "none"
        never = ", ".join(status_name(status) for status in tried if tried[status] is None) or "none"
        says = f"it delivers again after: {names}; it gives up after: {never}"
        if configured in again:
            self._say("try_again_status", True, f"{says}. As it is now: {_toml(configured)}", "")
        elif again:
            mend = f"In caplai.toml, in the table [[links]] of {self._link.name}:\n{_toml(again[0])}"
            self._say("try_again_status", False, says, mend)
        else:
            mend = "Ask the carrier which status of a deliver_sm_resp makes it deliver again, and try it (--status)."
            self._say("try_again_status", False, says, mend)

    # --- events ---

    def _on_event(self, connection: Connection, event: Event) -> None:
        match event:
            case Bound():
                connection.bound_at = time.monotonic()
                self._bound.put_nowait(event)
            case BindRefused():
                self._bound.put_nowait(event)
            case Closed(reason):
                self._closed = f"the SMSC ended the connection: {reason}"
                self._bound.put_nowait(event)
            case Alive(sent_at):
                self._alive.put_nowait(time.monotonic() - sent_at)
            case Response() | RequestLost():
                if isinstance(event, Response) and event.accepted:  # at once: its receipt may be the next PDU
                    self._sent_ids.append(getattr(event.pdu, "message_id", ""))
                self._answers.put_nowait(event)
            case Request(pdu):
                self._delivered(connection, pdu)

    def _delivered(self, connection: Connection, pdu: ShortMessage) -> None:
        words = text.decode(pdu.data_coding, pdu.payload, default=self._link.default_alphabet).text
        if receipt.is_receipt(pdu):
            found = receipt.parse(words, pdu.tlvs)
            if found.message_id:
                self._receipts[found.message_id] = found
                if self._is_ours(found.message_id):
                    self._answer(connection, pdu, Status.ESME_ROK)
                    self._receipt_came.set()
                    return
        else:
            squeezed = _squeeze(words)
            for number in range(self._rounds, 0, -1):
                if squeezed == _squeeze(f"{self._word}{number}"):
                    self._texts.put_nowait((number, connection, pdu))
                    return
        self._refused_others += 1
        self._answer(connection, pdu, self._link.try_again_status)

    def _answer(self, connection: Connection, pdu: ShortMessage, status: int) -> None:
        connection.session.respond(pdu, status, now=time.monotonic())
        connection.flush_soon()

    async def _next(self, queue: "asyncio.Queue[T]", seconds: float) -> T | None:
        """What comes next, None when nothing comes in time or the connection has ended."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                return await asyncio.wait_for(queue.get(), min(left, 0.2))
            except TimeoutError:
                if self._closed and queue.empty():
                    return None
        return None

    async def _leave(self) -> None:
        for connection in self._connections:
            connection.unbind()
        for connection in self._connections:
            try:
                await asyncio.wait_for(connection.ended.wait(), 2.0)
            except TimeoutError:
                connection.close()
        if self._refused_others:
            status = status_name(self._link.try_again_status)
            says = f"{self._refused_others} deliveries and receipts of others were answered {status}"
            self._say("others", None, says, "")


def id_form(ids: Sequence[str]) -> str:
    """How these message_ids of one SMSC are written, in words."""
    if not all(ids):
        return "empty: receipts cannot be matched"
    if len(ids) > 1 and len(set(ids)) == 1:
        return "always the same: receipts cannot be matched"
    if all(each.isdecimal() for each in ids):
        return "decimal, with leading zeros" if any(each.startswith("0") for each in ids) else "decimal"
    try:
        for each in ids:
            int(each, 16)
    except ValueError:
        return "neither decimal nor hexadecimal"
    return "hexadecimal"


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)  # asyncio writes its own words into strerror
    if isinstance(error, TimeoutError):
        return "no answer"
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__


def _meaning(verdict: Verdict) -> str:
    return {
        Verdict.NEVER: "final",
        Verdict.AGAIN: "temporary",
        Verdict.WAIT: "a wish to be sent less",
    }[verdict]


def _squeeze(words: str) -> str:
    return "".join(words.split()).casefold()


def _toml(status: int) -> str:
    return f'try_again_status = "{status_name(status)}"'
