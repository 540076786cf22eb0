"""The story: a phone texts `BH MK <code>` to 8079 and its owner is back in.

The database, the sockets, the SMPP between carrier and engine, and the pages are real.
"""

import asyncio
import threading
from html import unescape

import pytest
from django.conf import settings
from django.test import Client

from caplai.channels.links import Link
from caplai.engine import Engine
from caplai.simulator import Simulator, SimulatorConfig
from caplai.store.models import Account, Case, Event, Login


class Carrier:
    """The simulator's SMSC with our engine bound to it, in a thread of their own."""

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.call(self._start())
        return self

    def __exit__(self, *_):
        self.call(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    async def _start(self):
        self.simulator = await Simulator(SimulatorConfig()).__aenter__()
        link = Link(name="demo", host="127.0.0.1", port=self.simulator.smpp_port, password="secret")
        self.engine = Engine(settings.CAPLAI.model_copy(update={"links": [link]}), settings.KEYRING)
        await self.engine.start()

    async def _stop(self):
        await self.engine.stop()
        await self.simulator.__aexit__(None, None, None)

    def text(self, phone, words):
        """The phone texts 8079; returns the reply that it shows."""

        async def talk():
            message = await self.simulator.send(phone, words)
            return await self.simulator.reply(phone, after=message)

        return self.call(talk()).text

    def paid(self, phone):
        return self.simulator.phones.conversation("84" + phone[1:]).paid


@pytest.fixture
def carrier(transactional_db):
    with Carrier() as carrier:
        yield carrier


def page(response):
    return unescape(response.content.decode())


def test_lan_gets_back_in(carrier):
    Account.objects.create(code="0123456789", phone="+84327000686", state="approved")

    # Lan forgot her password and texts what the leaflet says, braces and all.
    reply = carrier.text("0327000686", "bh mk {0123456789}")
    assert reply.startswith("Cap lai mat khau thanh cong. Tai khoan: 0123456789/Mat khau: ")
    issued = reply.split("Mat khau: ")[1].split(".")[0]
    assert len(issued) == 6

    # It takes a while, so she texts once more: the same password again, and two thousand đồng are gone.
    assert carrier.text("0327000686", "BH MK 0123456789") == reply
    assert carrier.paid("0327000686") == 2000
    assert Case.objects.get().texts == 2

    # Somebody else who knows her code gets nothing.
    assert "khong khop" in carrier.text("0911222333", "BH MK 0123456789")

    # On the page, the issued password leads to choosing one of her own, and nowhere else.
    browser = Client()
    asked = browser.post("/login/", {"username": "0123456789", "password": issued}, follow=True)
    assert asked.redirect_chain[-1][0] == "/choose-password/"
    assert browser.get("/").status_code == 302

    # "12345678" is what everybody takes; she thinks of something better.
    refused = browser.post("/choose-password/", {"new_password": "12345678"})
    assert refused.status_code == 200
    home = browser.post("/choose-password/", {"new_password": "bà ngoại nấu phở"}, follow=True)
    assert home.redirect_chain[-1][0] == "/"
    assert "0123456789" in page(home)
    assert "0327xxx686" in page(home)

    # The six digits were a ticket, and it has been used; her own password is what counts from now on.
    other = Client()
    assert other.post("/login/", {"username": "0123456789", "password": issued}).status_code == 200
    assert (
        other.post("/login/", {"username": "0123456789", "password": "bà ngoại nấu phở"}).status_code == 302
    )
    assert Case.objects.get().ended_as == "used"
    assert Login.objects.get().account_id == "0123456789"
    assert Event.objects.filter(kind="password_chosen").count() == 1
