"""A mail server of the tests' own (aiosmtpd): mailboxes that are read, and the moods of a server."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage

from aiosmtpd.controller import Controller
from django.conf import settings

from caplai.channels.mail import Chore, Mailer
from caplai.channels.mailserver import MailServer
from caplai.service.mail import Site
from caplai.store.db import connect


class Mailbox:
    """Takes every mail. `moods`: what is answered instead to the next RCPTs or DATAs ("drop": it hangs up), each once;
    "taken and dropped" keeps the mail and then hangs up before its answer.
    """

    def __init__(self) -> None:
        self.mails: list[tuple[str, EmailMessage]] = []
        self.at_rcpt: list[str] = []
        self.at_data: list[str] = []
        self.rcpts = 0

    async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802 - aiosmtpd's name
        self.rcpts += 1
        if self.at_rcpt:
            mood = self.at_rcpt.pop(0)
            if mood == "drop":
                server.transport.abort()
            return mood
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):  # noqa: N802
        mood = self.at_data.pop(0) if self.at_data else "250 OK"
        if mood in ("250 OK", "taken and dropped"):
            message = message_from_bytes(envelope.content, policy=policy.default)
            self.mails += [(address, message) for address in envelope.rcpt_tos]
        if "drop" in mood:
            server.transport.abort()
        return mood

    def to(self, address: str) -> list[EmailMessage]:
        return [message for other, message in self.mails if other == address]

    def wait_for(self, count: int, seconds: float = 10.0) -> list[tuple[str, EmailMessage]]:
        """The mails, once there are so many."""
        end = time.monotonic() + seconds
        while len(self.mails) < count:
            assert time.monotonic() < end, f"{len(self.mails)} of {count} mails"
            time.sleep(0.02)
        return self.mails


def text_of(message: EmailMessage) -> str:
    return message.get_body(("plain",)).get_content()


def code_in(message: EmailMessage) -> str:
    return re.search(r"^\s*(\d{6})\s*$", text_of(message), re.MULTILINE)[1]


def link_in(message: EmailMessage) -> str:
    return re.search(r"http\S+", text_of(message))[0]


class _Listener(Controller):
    """On a port that nobody else can have taken between its choice and its use."""

    def __init__(self, box: Mailbox, **options):
        self._socket = socket.create_server(("127.0.0.1", 0))
        super().__init__(box, hostname="127.0.0.1", port=self._socket.getsockname()[1], **options)

    def _create_server(self):
        return self.loop.create_server(self._factory_invoker, sock=self._socket, ssl=self.ssl_context)


@contextmanager
def running(**options) -> Iterator[tuple[Mailbox, MailServer]]:
    """A server that listens, and the settings by which it is reached."""
    box = Mailbox()
    controller = _Listener(box, ready_timeout=30, **options)
    controller.start()
    try:
        yield (
            box,
            MailServer(
                host="127.0.0.1", port=controller.port, tls="none", sender="caplai@agency.vn", timeout=30
            ),
        )
    finally:
        controller.stop(no_assert=True)


def mailer(server: MailServer, *chores: Chore) -> Mailer:
    """Not started: `send` does its rounds in the test's own thread."""
    return Mailer(server, Site("https://caplai.example.vn", settings.KEYRING, "8079"), chores)


def send(sender: Mailer) -> None:
    """Rounds until nothing is due."""
    try:
        while sender._work():
            pass
    finally:
        sender._hang_up()
        if sender._connection is not None:
            sender._connection.close()


def make_due(sender: Mailer) -> None:
    """What waits for another attempt, and a server that is left alone, need to wait no longer."""
    with connect() as conn:
        conn.execute("update mail set due_at = now() where state = 'ready'")
    sender._rest_until = 0.0
