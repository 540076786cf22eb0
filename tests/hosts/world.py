"""What the stories have in common: a database, a carrier with its phones, people, and parts of the service."""

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg

from bench import _ledger
from bench._load import People, Phones, add_accounts, until
from bench._parts import Part, plain_environment
from caplai import processes
from caplai.simulator import Simulator, SimulatorConfig
from caplai.simulator.smsc import Rules
from caplai.store.keyring import KeyringFile
from tests.ports import free_port

CITIZENS = 10_000
# A carrier that keeps what nobody takes, tries again soon, and notices a peer that is gone.
RULES = Rules(retries=10_000, pause=0.3, longest_pause=2.0, enquire_link=5.0, response=4.0)


class World:
    """`async with World(folder)`: parts that it started are gone after it. `dsn` is for us, `url` for the parts."""

    def __init__(self, folder, *, data=None, rate=40, sign_ins=2.0):
        self.folder = folder
        self.data = data or folder
        self.rate, self.sign_ins = rate, sign_ins
        self.parts = []
        self.urls = []
        self.stop = asyncio.Event()
        self.draw = random.Random()

    async def __aenter__(self):
        self._stack = contextlib.AsyncExitStack()
        self._stack.callback(self._kill_parts)
        return self

    async def __aexit__(self, *error):
        if error[0] is not None:
            for part in self.parts:
                print(f"--- {part.name}\n{part.says()[-1500:]}")
        await self._stack.aclose()

    def _kill_parts(self):
        for part in self.parts:
            part.kill()

    async def carrier(self, host=None):
        """Start the carrier, on that host."""
        address = host.address if host else "127.0.0.1"
        self.simulator = Simulator(SimulatorConfig(smpp_host=address, http_host=address, rules=RULES))
        with host.inside() if host else contextlib.nullcontext():
            await self._stack.enter_async_context(self.simulator)
        self.phones = Phones(self.simulator, self.draw, citizens=CITIZENS, rate=self.rate)
        self.people = People(self.phones, self.draw, self.urls, rate=self.sign_ins)
        self.link = {
            "name": "carrier",
            "host": address,
            "port": self.simulator.smpp_port,
            "password": "secret",
            "enquire_link": 5,
            "response_timeout": 3,
            "submit_timeout": 3,
        }

    def use(self, dsn, url):
        """Our own Django works on that database: its tables are made here, and accounts."""
        self.dsn = dsn
        self.environment = {
            **plain_environment(),
            "CAPLAI_DATABASE_URL": url,
            "CAPLAI_DATA_DIR": str(self.data),
            "CAPLAI_SIGNIN__NETWORK_FAILURES": "1000000",  # all people come from one address here
            "CAPLAI_LINKS": json.dumps([self.link]),
        }
        os.environ |= {**self.environment, "CAPLAI_DATABASE_URL": dsn}
        processes.setup_django()

    def fill(self):
        add_accounts(self.dsn, CITIZENS)

    def command(self, *arguments, tree=None):
        """`caplai ARGUMENTS` to its end: its status, and what it said."""
        tree = tree or Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-m", "caplai", *arguments],
            cwd=tree,
            env={**self.environment, "PYTHONPATH": str(tree)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout

    def engine(self, name, host=None, tree=None):
        return self._part(name, ["engine"], {}, host, tree)

    def web(self, name, host=None, tree=None):
        address = host.address if host else "127.0.0.1"
        port = 8000 if host else free_port()
        self.urls.append(processes.url(address, port))
        return self._part(name, ["web"], {"CAPLAI_ADDRESS": address, "CAPLAI_PORT": str(port)}, host, tree)

    def up(self):
        """`caplai up`, with the embedded database in the data folder."""
        port = free_port()
        self.urls.append(processes.url("127.0.0.1", port))
        del self.environment["CAPLAI_DATABASE_URL"]
        return self._part("up", ["up"], {"CAPLAI_PORT": str(port)}, None, None)

    def _part(self, name, arguments, settings, host, tree):
        before = host.before if host else ()
        part = Part(name, arguments, self.environment | settings, self.folder, before=before, tree=tree)
        self.parts.append(part)
        return part

    def begin(self):
        """People begin to text and to sign in."""
        self._load = [
            asyncio.create_task(self.phones.text(self.stop)),
            asyncio.create_task(self.people.come(self.stop)),
        ]

    async def texts_are_taken(self, since, seconds):
        """Seconds from `since` until a text that was sent after it was taken."""
        assert await until(lambda: self.phones.first_taken(since), seconds), "no text is taken"
        return self.phones.first_taken(since) - since

    def holder(self):
        """The part that holds the link."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            [(engine,)] = conn.execute("select engine from link_session order by id desc limit 1").fetchall()
        pid = int(engine.split(":")[1])
        return next(part for part in self.parts if part.process.pid == pid)

    def serves(self, part):
        """Whether that engine or web server has started: it has said so to the others."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            names = conn.execute("select name from process").fetchall()
        return any(int(name.split(":")[1]) == part.process.pid for (name,) in names)

    async def end_well(self):
        """Load ends, everything settles, and the ledger is right."""
        self.stop.set()
        await self._load[0]
        assert await _ledger.settle(self.dsn, self.simulator), "messages or replies still wait"
        await self._load[1]
        keyring = KeyringFile(self.data / "keyring.json").ring("issuing")
        broken = [*self.people.broken, *_ledger.check(self.dsn, self.phones, keyring)]
        good, more = await asyncio.to_thread(_ledger.check_sample, self.phones, self.draw)
        assert broken + more == []
        assert all(text.acknowledged for text in self.phones.sent)
        assert await self.people.check_all() == len(self.people.chosen)
        return {
            "texts": len(self.phones.sent),
            "replies": sum(map(len, self.phones.got.values())),
            "signed in": self.people.signed_in,
            "issued passwords that sign in": good,
            "longest wait of a text": round(self.phones.longest_wait(), 1),
        }


def run(story):
    """Run the coroutine function with a folder of its own, and say what it measured."""
    with tempfile.TemporaryDirectory(prefix="caplai-hosts-") as folder:
        for name, value in asyncio.run(story(Path(folder))).items():
            print(f"{name:<44} {value}")
