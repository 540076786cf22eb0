"""An open load: phones that text, whether or not anybody answers, and people who sign in with what comes back."""

import asyncio
import json
import random
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
import psycopg

from caplai.simulator import Simulator
from caplai.simulator.phones import Message, State

_AT_ONCE = 20
"""People at a time: behind a site that is down they would pile up, and then nobody's hash would be done in time."""
_PATIENCE = 240
_LETTERS = str.maketrans("0123456789", "bcdfgjkmnp")
PASSWORD = re.compile(r"Tai khoan: (\d{10})/Mat khau: (\S+)\. Dung")


def add_accounts(dsn: str, citizens: int) -> None:
    """Approved accounts 0000000000, 0000000001, …: two of them on each phone (`phone_of`)."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "insert into account (code, phone, state) select lpad(n::text, 10, '0'),"
            " '+8490' || lpad((n / 2)::text, 7, '0'), 'approved' from generate_series(0, %s) n"
            % (citizens - 1)
        )


def phone_of(code: str) -> str:
    """The phone of an account that add_accounts() made, in digits."""
    return f"8490{int(code) // 2:07}"


@dataclass(slots=True)
class Text:
    """A text that a phone sent; its words are sent only once. `taken_at`: when the carrier was told OK for it."""

    phone: str
    words: str
    message: Message
    sent_at: float = field(default_factory=time.monotonic)
    taken_at: float | None = None

    @property
    def acknowledged(self) -> bool:
        return self.message.state is State.SENT


class Phones:
    """Phones that text at a steady rate: most as they should, some malformed, some from another phone."""

    def __init__(self, simulator: Simulator, draw: random.Random, *, citizens: int, rate: float) -> None:
        self.sent: list[Text] = []
        self.got: dict[str, list[str]] = defaultdict(list)
        """What each phone received, in its order."""
        self.passwords: dict[str, list[str]] = defaultdict(list)
        """The passwords that came for each account, each once, the newest last."""
        self.news: deque[str] = deque()
        """Accounts for which a password has come."""
        self.newest_taken = 0.0
        """When the newest of the texts that were acknowledged was sent."""
        self._simulator = simulator
        self._draw = draw
        self._citizens = citizens
        self._rate = rate
        self._by_message: dict[int, Text] = {}
        simulator.phones.subscribe(self._hear)

    async def text(self, stop: asyncio.Event) -> None:
        """Text until `stop`."""
        began, count = time.monotonic(), 0
        while not stop.is_set():
            while count < (time.monotonic() - began) * self._rate:
                count += 1
                self._text(count)
            await asyncio.sleep(0.02)

    def longest_wait(self, since: float = 0.0) -> float:
        """The longest time, in seconds, that a text sent after `since` has waited for its acknowledgement."""
        now = time.monotonic()
        return max(
            ((text.taken_at or now) - text.sent_at for text in self.sent if text.sent_at >= since),
            default=0.0,
        )

    def first_taken(self, since: float) -> float | None:
        """When the first of the texts sent after `since` was acknowledged."""
        taken = [text.taken_at for text in self.sent if text.taken_at is not None and text.sent_at >= since]
        return min(taken, default=None)

    def _text(self, count: int) -> None:
        code = f"{self._draw.randrange(self._citizens):010}"
        # Words that nobody sends twice; digits would be taken for a part of the code.
        nth = str(count).translate(_LETTERS)
        phone, words = phone_of(code), f"BH MK {code} lan {nth}"
        kind = self._draw.random()
        if kind < 0.05:
            words = f"BH MK {code[1:]} lan {nth}"
        elif kind < 0.08:
            phone = f"8491{count:07}"
        text = Text(phone, words, self._simulator.smsc.send_mo(phone, "8079", words))
        self._by_message[text.message.id] = text
        self.sent.append(text)

    def _hear(self, message: Message) -> None:
        if message.incoming:
            self.got[message.phone].append(message.text)
            if match := PASSWORD.search(message.text):
                code, password = match.groups()
                if password not in self.passwords[code]:
                    self.passwords[code].append(password)
                    self.news.append(code)
        elif message.state is State.SENT and (text := self._by_message.get(message.id)):
            text.taken_at = time.monotonic()
            self.newest_taken = max(self.newest_taken, text.sent_at)


class People:
    """People who take the password that came, choose one of their own, and sign in with it, by the app's API.

    Who gets no answer, or "try again", tries again, at another web server where there are several.
    """

    def __init__(self, phones: Phones, draw: random.Random, urls: Sequence[str], *, rate: float) -> None:
        self.chosen: dict[str, str] = {}
        """The password that each account's owner chose last, and was told is theirs."""
        self.signed_in = 0
        self.retries = 0
        self.broken: list[str] = []
        self._phones = phones
        self._draw = draw
        self._urls = urls
        self._rate = rate
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def come(self, stop: asyncio.Event) -> None:
        """Come at a steady rate until `stop`; returns when the last one has done."""
        began, count = time.monotonic(), 0
        timeout = aiohttp.ClientTimeout(total=10)
        connector = aiohttp.TCPConnector(force_close=True)  # each person has a device of their own
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as self._http:
            while not stop.is_set():
                await asyncio.sleep(0.05)
                due = (time.monotonic() - began) * self._rate
                while count < due and self._phones.news and len(self._tasks) < _AT_ONCE:
                    count += 1
                    code = self._phones.news.popleft()
                    if code not in self._busy:
                        self._busy.add(code)
                        task = asyncio.create_task(self._person(code, f"mot mat khau rieng {count}"))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
            await asyncio.gather(*self._tasks)

    async def check_all(self) -> int:
        """Sign every one of them in with the chosen password; returns for how many that worked."""
        patience = asyncio.Semaphore(4)

        async def one(code: str, password: str) -> bool:
            async with patience:
                return (await self._post("login", {"username": code, "password": password}))[0] == 200

        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=timeout) as self._http:
            return sum(await asyncio.gather(*(one(*pair) for pair in self.chosen.items())))

    async def _person(self, code: str, chosen: str) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                while not await self._choose(code, chosen):
                    await asyncio.sleep(1)
                status, _ = await self._post("login", {"username": code, "password": chosen})
        except TimeoutError:
            self.chosen.pop(code, None)  # which one is stored, nobody knows
            self.broken.append(f"somebody could not sign in with the password that came, for {_PATIENCE} s")
        else:
            if status == 200:
                self.signed_in += 1
            else:
                self.broken.append(f"a chosen password does not sign in: {status}")
        finally:
            self._busy.discard(code)

    async def _choose(self, code: str, chosen: str) -> bool:
        """One attempt with each password that came, the newest first; whether the chosen one is theirs now."""
        for password in reversed(self._phones.passwords[code]):
            status, answer = await self._post("login", {"username": code, "password": password})
            if status == 401 and (token := answer.get("meta", {}).get("session_token")):
                status, answer = await self._post(
                    "choose_password", {"new_password": chosen}, token, once=True
                )
                if status == 200:
                    self.chosen[code] = chosen
                    return True
                break
        # Was it stored, and only the answer lost?
        status, answer = await self._post("login", {"username": code, "password": chosen})
        if status == 200:
            self.chosen[code] = chosen
        return status == 200

    async def _post(
        self, path: str, body: dict[str, str], token: str | None = None, *, once: bool = False
    ) -> tuple[int, dict]:
        """Status and answer; tried again while there is none or it says so. `once`: (0, {}) instead."""
        headers = {"X-Session-Token": token} if token else {}
        while True:
            url = f"{self._draw.choice(self._urls)}_allauth/app/v1/auth/{path}"
            try:
                async with self._http.post(url, json=body, headers=headers) as response:
                    said = await response.text()
                    if response.status not in (429, 500, 502, 503, 504):
                        return response.status, json.loads(said)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                pass
            self.retries += 1
            if once:
                return 0, {}
            await asyncio.sleep(0.5)


async def until(condition: Callable[[], object], seconds: float) -> bool:
    """Whether the condition came to hold within that time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.05)
    return True
