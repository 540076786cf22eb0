"""Virtual phones: what each phone sent and received, and what that cost its owner."""

import asyncio
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

Listener = Callable[["Message"], None]


class State(StrEnum):
    """What a phone shows beside a message."""

    SENDING = "sending"
    SENT = "sent"
    FAILED = "failed"
    RECEIVED = "received"


@dataclass(slots=True, eq=False)
class Message:
    """One bubble. `number` is the other end (a short code or a sender's name); `at` is in Unix seconds."""

    id: int
    phone: str = field(repr=False)
    number: str
    text: str = field(repr=False)
    at: float
    state: State
    reason: str = ""

    @property
    def incoming(self) -> bool:
        return self.state is State.RECEIVED


@dataclass(slots=True, eq=False)
class Conversation:
    """What one phone remembers. `paid` is in đồng and counts only messages that arrived."""

    messages: deque[Message]
    paid: int = 0


_SEPARATORS = re.compile(r"[\s.\-()]+")
_INTERNATIONAL = re.compile(r"[1-9][0-9]{7,14}")


def read_number(written: str, country: str = "84") -> str | None:
    """`0327 111 686`, `+84327111686` or `84327111686` → `84327111686`; None if it is no phone number.

    E.164 allows at most fifteen digits; a leading zero is the national prefix of `country`.
    """
    digits = _SEPARATORS.sub("", written)
    if digits.startswith("+"):
        digits = digits[1:]
    elif digits.startswith("0"):
        digits = country + digits[1:]
    return digits if _INTERNATIONAL.fullmatch(digits) else None


def show_number(msisdn: str, country: str = "84") -> str:
    """`84327111686` → `0327 111 686`, as a person at home writes it; a foreign number keeps its plus."""
    if not msisdn.startswith(country):
        return "+" + msisdn
    national = "0" + msisdn[len(country) :]
    return f"{national[:4]} {national[4:7]} {national[7:]}" if len(national) == 10 else national


class Phones:
    """All phones, by MSISDN (international digits without plus). Made when first used.

    Memory is bounded, so that a load run stays flat: a phone keeps its last `keep` messages, and beyond
    `most` phones the one that was quiet longest is forgotten with what it paid.
    """

    def __init__(
        self,
        price: int = 1000,
        *,
        keep: int = 500,
        most: int = 20_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._price = price
        self._keep = keep
        self._most = most
        self._clock = clock
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()
        self._listeners: dict[str | None, list[Listener]] = {}
        self._last_id = 0

    def conversation(self, msisdn: str) -> Conversation:
        """What the phone remembers; empty for a phone that did nothing yet (and nothing is kept for it)."""
        return self._conversations.get(msisdn) or Conversation(deque())

    def compose(self, msisdn: str, number: str, text: str) -> Message:
        """The phone sends `text` to `number`: a new bubble in state `sending`."""
        return self._add(msisdn, number, text, State.SENDING)

    def receive(self, msisdn: str, number: str, text: str) -> Message:
        """A text from `number` arrives at the phone."""
        return self._add(msisdn, number, text, State.RECEIVED)

    def sent(self, message: Message) -> None:
        """The other end took the message: now, and only now, its sender has paid for it."""
        message.state = State.SENT
        if conversation := self._conversations.get(message.phone):
            conversation.paid += self._price
        self._tell(message)

    def failed(self, message: Message, reason: str) -> None:
        """The network gave the message up; `reason` is for people (an SMPP status or `expired`)."""
        message.state = State.FAILED
        message.reason = reason
        self._tell(message)

    def subscribe(self, listener: Listener, msisdn: str | None = None) -> Callable[[], None]:
        """Call `listener` with each new or changed message of one phone (None: of all), until the returned
        function is called. It runs inside the SMSC's loop: it must be short and must not raise."""
        listeners = self._listeners.setdefault(msisdn, [])
        listeners.append(listener)

        def unsubscribe() -> None:
            listeners.remove(listener)
            if not listeners:
                del self._listeners[msisdn]

        return unsubscribe

    async def wait_for(
        self, msisdn: str, wanted: Callable[[Message], bool], *, after: int = 0, timeout: float = 10.0
    ) -> Message:
        """The oldest message of the phone past the id `after` that is `wanted`, waiting for it if need be.

        Raises TimeoutError after `timeout` seconds.
        """
        for message in self.conversation(msisdn).messages:
            if message.id > after and wanted(message):
                return message
        found: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def look(message: Message) -> None:
            if message.id > after and not found.done() and wanted(message):
                found.set_result(message)

        unsubscribe = self.subscribe(look, msisdn)
        try:
            async with asyncio.timeout(timeout):
                return await found
        finally:
            unsubscribe()

    async def wait_for_reply(self, msisdn: str, *, after: int = 0, timeout: float = 10.0) -> Message:
        """The first text the phone received after the message with the id `after` (0: the first of all).

        Raises TimeoutError after `timeout` seconds.
        """
        return await self.wait_for(msisdn, lambda message: message.incoming, after=after, timeout=timeout)

    def _add(self, msisdn: str, number: str, text: str, state: State) -> Message:
        conversation = self._conversations.get(msisdn)
        if conversation is None:
            conversation = self._conversations[msisdn] = Conversation(deque(maxlen=self._keep))
            if len(self._conversations) > self._most:
                self._conversations.popitem(last=False)
        else:
            self._conversations.move_to_end(msisdn)
        self._last_id += 1
        message = Message(self._last_id, msisdn, number, text, self._clock(), state)
        conversation.messages.append(message)
        self._tell(message)
        return message

    def _tell(self, message: Message) -> None:
        if not self._listeners:
            return
        for key in (message.phone, None):
            for listener in tuple(self._listeners.get(key, ())):
                listener(message)
