"""A nation's phones in a process of their own: an open load of texts by a simulated carrier, and what came back.

`python -m bench._crowd OPTIONS` (JSON) listens for SMPP, prints a line of JSON when it does, texts once it reads a
line from stdin, and prints what it saw as a line of JSON at the end. The SMSC is the simulator's own (real SMPP on
a socket); only the phones are leaner: they remember nothing but when they asked.
"""

import array
import asyncio
import json
import random
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from caplai.simulator.phones import Message, Phones, State
from caplai.simulator.smsc import Rules, Smsc

PASSWORD = re.compile(r"Tai khoan: (\d{10})/Mat khau: (\S+)\. Dung")
_TICK = 0.002
"""Seconds between looks at the clock; each text still counts from the moment when it was due."""
_QUIET = 5.0
"""Seconds without a reply after which nobody waits for another."""
_AT_ONCE = 4_000
"""With rate 0 ("max"): unanswered texts that are kept on their way."""
_WHILE = 20_000
"""So many others ask before somebody asks again."""
_SAMPLE = 1_000
"""One password of so many is kept, to be tried."""


@dataclass(frozen=True)
class Mix:
    """What people text. The rest are owners who ask once, rightly."""

    malformed: float = 0.05
    wrong_phone: float = 0.03
    again: float = 0.04
    """Texts of those who asked before: nine in ten of them a while ago, the tenth is of one in a thousand citizens,
    who ask again and again. (Their words differ, or the engine would take two at once for a redelivery.)
    """


REFUSALS = Mix(malformed=0.0, wrong_phone=1.0, again=0.0)


@dataclass(frozen=True)
class Options:
    accounts: int
    rate: float
    """Texts a second; 0: as many as are answered."""
    seconds: float
    seed: int
    malformed: float
    wrong_phone: float
    again: float


@dataclass
class Seen:
    """What the phones saw. Times in seconds; `late` is how far behind its schedule the load ever was."""

    texts: int = 0
    taken: int = 0
    failed: int = 0
    replies: int = 0
    replies_in_time: int = 0
    """While texts were still being sent."""
    passwords: int = 0
    seconds: float = 0.0
    late: float = 0.0
    waits: tuple[float, ...] = ()
    """From a text to its reply: the median, p90, p99 and the longest."""


def phone_of(citizen: int) -> str:
    """Digits; two citizens share each phone."""
    return f"849{citizen // 2:08}"


class _Phones(Phones):
    """Phones that forget what they are not asked for."""

    def __init__(self, heard: Callable[[str, str], None], seen: Seen) -> None:
        super().__init__()
        self._heard = heard
        self._seen = seen

    def compose(self, msisdn: str, number: str, text: str) -> Message:
        return Message(0, msisdn, number, text, 0.0, State.SENDING)

    def sent(self, message: Message) -> None:
        message.state = State.SENT
        self._seen.taken += 1

    def failed(self, message: Message, reason: str) -> None:
        message.state = State.FAILED
        self._seen.failed += 1

    def receive(self, msisdn: str, number: str, text: str) -> Message:
        self._heard(msisdn, text)
        return _NOTHING


_NOTHING = Message(0, "", "", "", 0.0, State.RECEIVED)


class Crowd:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.seen = Seen()
        self.sample: dict[str, str] = {}
        """The passwords of some accounts."""
        self._asked: dict[str, float | list[float]] = {}
        self._waits = array.array("d")
        self._unanswered = 0
        self._last_reply = 0.0
        self._ended = 0.0
        self.smsc = Smsc(
            _Phones(self._hear, self.seen), rules=Rules(window=1000, response=10.0, retries=10_000)
        )

    async def text(self) -> None:
        """Text as the options say, then wait until nothing more comes."""
        options, seen = self.options, self.seen
        texts = self._texts()
        loop = asyncio.get_running_loop()
        began = now = loop.time()
        end = began + options.seconds
        due = began
        gap = random.Random(f"{options.seed}/gaps").expovariate
        while now < end:
            if options.rate:
                seen.late = max(seen.late, now - due)
                while due <= now:
                    self._text(next(texts), due)
                    due += gap(options.rate)
            else:
                while self._unanswered < _AT_ONCE:
                    self._text(next(texts), now)
            await asyncio.sleep(_TICK)
            now = loop.time()
        self._ended = end
        seen.seconds = now - began
        seen.replies_in_time = seen.replies
        self._last_reply = max(self._last_reply, now)
        while self._unanswered and loop.time() - self._last_reply < _QUIET:
            await asyncio.sleep(0.05)
        waits = sorted(self._waits)
        if waits:
            seen.waits = tuple(
                waits[min(len(waits) - 1, int(share * len(waits)))] for share in (0.5, 0.9, 0.99, 1.0)
            )

    def _text(self, text: tuple[str, str, bool], due: float) -> None:
        phone, words, once = text
        self.seen.texts += 1
        if once:  # whoever asks again may get silence
            self._unanswered += 1
            known = self._asked.get(phone)
            if known is None:
                self._asked[phone] = due
            elif isinstance(known, list):
                known.append(due)
            else:
                self._asked[phone] = [known, due]
        self.smsc.send_mo(phone, "8079", words)

    def _texts(self) -> Iterator[tuple[str, str, bool]]:
        """(phone, words, whether its answer is waited for), without end."""
        options = self.options
        draw = random.Random(f"{options.seed}/texts")
        uniform = draw.random
        many = options.accounts
        heavy = max(1, many // 1_000)
        lately: deque[int] = deque(maxlen=100_000)
        malformed, wrong = options.malformed, options.malformed + options.wrong_phone
        again = wrong + options.again
        # Each citizen once, in no order: multiples of a number that has no divisor in common with `many`.
        step = int(many * 0.6180339887) | 1
        while _divisor(many, step) > 1:
            step += 1
        citizen, careless = draw.randrange(many), draw.randrange(many)
        count = 0
        while True:
            kind = uniform()
            count += 1
            if kind < malformed:
                careless = (careless + step) % many
                yield phone_of(careless), f"BH MK {careless % 10**9:09}", False
            elif kind < wrong:
                yield f"848{count:08}", f"BH MK {int(uniform() * many):010}", True
            elif kind < again and len(lately) > _WHILE:
                often = uniform() < 0.1
                other = (
                    many - 1 - int(uniform() * heavy)
                    if often
                    else lately[int(uniform() * (len(lately) - _WHILE))]
                )
                yield phone_of(other), f"BH MK {other:010} lan {count % 10_000}", False
            else:
                citizen = (citizen + step) % many
                lately.append(citizen)
                yield phone_of(citizen), _FORMS[int(uniform() * len(_FORMS))] % citizen, True

    def _hear(self, phone: str, text: str) -> None:
        seen = self.seen
        seen.replies += 1
        now = self._last_reply = asyncio.get_running_loop().time()
        known = self._asked.pop(phone, None)
        if known is not None:
            if isinstance(known, list):
                self._waits.append(now - known.pop(0))
                self._asked[phone] = known if len(known) > 1 else known[0]
            else:
                self._waits.append(now - known)
            self._unanswered -= 1
        if "Mat khau: " in text:
            seen.passwords += 1
            if seen.passwords % _SAMPLE == 0 and (match := PASSWORD.search(text)):
                self.sample[match[1]] = match[2]


_FORMS = ("BH MK %010d", "BH MK %010d", "BH MK %010d", "bh mk %010d", "BH MK {%010d}", "BHMK%010d")


def _divisor(one: int, other: int) -> int:
    while other:
        one, other = other, one % other
    return one


async def _run(options: Options) -> None:
    crowd = Crowd(options)
    port = await crowd.smsc.start("127.0.0.1", 0)
    print(json.dumps({"port": port}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    began = time.process_time()
    await crowd.text()
    used = time.process_time() - began
    print(json.dumps({**asdict(crowd.seen), "cpu": used, "sample": crowd.sample}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)  # the engine unbinds in peace
    await crowd.smsc.stop()


if __name__ == "__main__":
    asyncio.run(_run(Options(**json.loads(sys.argv[1]))))
