"""The door to mailboxes: what is due is claimed, made into a mail in memory only, handed to the server, settled.

One thread of each web server does it; any number of them may, for a claim's lease says whose a mail is. Blocking on
purpose: smtplib speaks all that servers do, and a thread that waits costs nobody anything. Of addresses, and of what a
server says (it quotes them), nothing is logged.
"""

import contextlib
import logging
import os
import secrets
import smtplib
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, localtime

import psycopg

from caplai.channels.mailserver import MailServer
from caplai.domain.letters import Letter
from caplai.service.mail import KINDS, Site, write
from caplai.store import mails
from caplai.store.db import connect
from caplai.store.keyring import KeyringError
from caplai.store.mails import Due
from caplai.watch import metrics

log = logging.getLogger(__name__)

BATCH = 10
POLL = 2.0
"""Seconds between looks at the queue when nobody wakes us."""
IDLE = 20.0
"""Seconds without a mail after which the connection to the server is given up."""
LONGEST_PAUSE = 900.0
"""Seconds between tries of a mail that the server puts off."""
LONGEST_REST = 60.0
"""Seconds that a server which cannot be used is left alone at most."""
KEY_RETRY = 30.0
_LOST = (OSError, smtplib.SMTPServerDisconnected, smtplib.SMTPConnectError, smtplib.SMTPHeloError)

Chore = Callable[[psycopg.Connection], object]
"""Returns what is true if it queued mails."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the server's answer means for a mail."""

    state: str
    error: str | None = None
    lost: bool = False
    """The connection, or the server, cannot be used: the next mail would meet the same."""
    tried: bool = True


class Mailer:
    """Sends what is queued, in a thread of its own, until `stop`. `chores` are done now and then with its connection:
    they queue what others left to be told.
    """

    def __init__(self, server: MailServer, site: Site, chores: Sequence[Chore] = ()) -> None:
        assert server.host is not None
        self._server, self._site, self._chores = server, site, chores
        self.name = f"mail {os.uname().nodename}:{os.getpid()}:{secrets.token_hex(4)}"
        self._lease = timedelta(seconds=60) + 12 * server.timeout
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mail", daemon=True)
        self._connection: psycopg.Connection | None = None
        self._smtp: smtplib.SMTP | None = None
        self._used_at = self._chores_at = 0.0
        self._failures = self._chores_failed = 0
        self._rest_until = 0.0
        self._state = "well"

    def start(self) -> None:
        self._thread.start()

    def stop(self, patience: float = 5.0) -> None:
        """Finish the mail under way, and no other."""
        self._ending.set()
        self._thread.join(patience)

    # --- the loop ---

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                if not self._work():
                    self._wait()
            except psycopg.Error as error:
                self._say_state(f"the store is away ({type(error).__name__})")
                if self._connection is not None:
                    self._connection.close()
                self._ending.wait(POLL)
            except Exception:  # a bug of ours in one mail or chore must not end the thread
                log.exception("mail: a round failed")
                self._ending.wait(POLL)
        self._hang_up()
        if self._connection is not None:
            self._connection.close()

    def _connect(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect(connect_timeout=5, statement_timeout=10.0)
            self._connection.execute(f"listen {mails.MAIL_CHANNEL}")
        return self._connection

    def _wait(self) -> None:
        """Until somebody posts, or the poll is due."""
        if self._smtp is not None and time.monotonic() - self._used_at > IDLE:
            self._hang_up()
        rest = self._rest_until - time.monotonic()
        if rest > 0:
            self._ending.wait(min(rest, POLL))
            return
        for _ in self._connect().notifies(timeout=POLL, stop_after=1):
            pass

    def _work(self) -> bool:
        """Send a batch, then do the chores; whether there may be more to send."""
        conn = self._connect()
        sent = self._send_batch(conn)
        return self._do_chores(conn) or bool(sent)

    def _do_chores(self, conn: psycopg.Connection) -> bool:
        """If it is time; whether they queued anything. One that fails is put off, and keeps no mail waiting."""
        if time.monotonic() < self._chores_at:
            return False
        pause, queued = POLL, False
        try:
            for chore in self._chores:
                queued = bool(chore(conn)) or queued
            self._chores_failed = 0
        except Exception as error:
            if conn.closed:
                raise
            self._chores_failed += 1
            pause = min(POLL * 2.0 ** min(self._chores_failed, 6), LONGEST_REST)
            # Without its text: what the database says may quote an account.
            log.warning("mail: a chore failed (%s)", type(error).__name__)
        self._chores_at = time.monotonic() + pause
        return queued

    def _send_batch(self, conn: psycopg.Connection) -> int:
        """How many mails it had."""
        if time.monotonic() < self._rest_until:
            return 0
        began, claimed = time.monotonic(), mails.claim(conn, self.name, BATCH, self._lease)
        for number, due in enumerate(claimed):
            # A slow server must not make us send what is another one's by now.
            spent = time.monotonic() - began > self._lease.total_seconds() / 3
            if self._ending.is_set() or spent or time.monotonic() < self._rest_until:
                for left in claimed[number:]:
                    mails.settle(conn, self.name, left.id, "ready", tried=False)
                break
            self._handle(conn, due)
        return len(claimed)

    def _handle(self, conn: psycopg.Connection, due: Due) -> None:
        verdict = self._judge(conn, due)
        pause = min(2.0 ** min(due.attempts, 12), LONGEST_PAUSE)
        if verdict.lost:
            self._hang_up()
            self._failures += 1
            pause = min(2.0 ** min(self._failures - 1, 6), LONGEST_REST)
            self._rest_until = time.monotonic() + pause
        elif verdict.state == "sent":
            self._failures = 0
            self._say_state("well")
        if not verdict.tried:
            pause = KEY_RETRY
        written = mails.settle(
            conn,
            self.name,
            due.id,
            verdict.state,
            error=verdict.error,
            again_in=pause,
            tried=verdict.tried,
        )
        if written:
            metrics.mails.labels(due.kind if due.kind in KINDS else "other", verdict.state).inc()
        if verdict.state == "failed":
            log.warning("mail: %d of kind %s failed (%s)", due.id, due.kind, verdict.error)

    def _judge(self, conn: psycopg.Connection, due: Due) -> Verdict:
        """Write one mail and hand it over."""
        if due.late:
            return Verdict("failed", "late", tried=False)
        if not due.email:
            return Verdict("failed", "no_address", tried=False)
        if due.kind not in KINDS:  # a newer version's: its web server sends it
            return Verdict("ready", "unknown_kind", tried=False)
        try:
            letter = write(due, replace(self._site, conn=conn))
            if letter is None:
                return Verdict("failed", "moot", tried=False)
            message = _message(self._server, due, letter)
        except KeyringError:
            return Verdict("ready", "lacks_key", tried=False)
        except psycopg.Error:
            raise
        except Exception as error:  # an address that no header can hold, or a bug
            log.exception("mail: %d of kind %s cannot be written", due.id, due.kind)
            return Verdict("failed", type(error).__name__)
        return self._send(due, message)

    def _send(self, due: Due, message: EmailMessage) -> Verdict:
        try:
            smtp = self._dial()
        except (*_LOST, smtplib.SMTPException) as error:
            self._say_state(f"the server cannot be used ({_name(error)})")
            return Verdict("ready", _name(error), lost=True)
        try:
            smtp.send_message(message, self._server.sender, [due.email])
        except smtplib.SMTPRecipientsRefused as error:
            (code, _), *_others = error.recipients.values()
            return _verdict(code)
        except smtplib.SMTPSenderRefused as error:  # it is us whom they refuse, whoever the mail is for
            self._say_state(f"the server refuses our sender (SMTP {error.smtp_code})")
            return Verdict("ready", f"sender {error.smtp_code}", lost=True)
        except smtplib.SMTPDataError as error:
            return _verdict(error.smtp_code)
        except _LOST as error:
            # After the mail's last line it may have been taken all the same; it is sent again under the same name.
            self._say_state(f"the server hung up ({_name(error)})")
            return Verdict("ready", _name(error), lost=True)
        except (smtplib.SMTPException, UnicodeError) as error:
            return Verdict("failed", _name(error))
        return Verdict("sent")

    # --- the server ---

    def _dial(self) -> smtplib.SMTP:
        """The connection, signed in; made anew where the old one is gone."""
        self._used_at = time.monotonic()
        if self._smtp is not None:
            try:
                if self._smtp.noop()[0] == 250:
                    return self._smtp
            except (*_LOST, smtplib.SMTPException):
                pass
            self._hang_up()
        server, timeout = self._server, self._server.timeout.total_seconds()
        assert server.host is not None
        smtp: smtplib.SMTP
        if server.tls == "tls":
            context = ssl.create_default_context()
            smtp = smtplib.SMTP_SSL(server.host, server.port, timeout=timeout, context=context)
        else:
            smtp = smtplib.SMTP(server.host, server.port, timeout=timeout)
        try:
            if server.tls == "starttls":
                smtp.starttls(context=ssl.create_default_context())
            if server.username is not None and server.password is not None:
                smtp.login(server.username, server.password.get_secret_value())
        except BaseException:
            smtp.close()
            raise
        self._smtp = smtp
        return smtp

    def _hang_up(self) -> None:
        if self._smtp is not None:
            with contextlib.suppress(*_LOST, smtplib.SMTPException):
                self._smtp.quit()
            self._smtp.close()
            self._smtp = None

    def _say_state(self, state: str) -> None:
        """Log a change of the state, once."""
        if state != self._state:
            self._state = state
            log.log(logging.INFO if state == "well" else logging.ERROR, "mail: %s", state)


def _verdict(code: int) -> Verdict:
    """What an SMTP reply to one mail means (RFC 5321, 4.2.1): 4xx passes, 5xx does not, 421 ends the connection."""
    if code == 421:
        return Verdict("ready", "SMTP 421", lost=True)
    return Verdict("failed" if 500 <= code < 600 else "ready", f"SMTP {code}")


def _name(error: BaseException) -> str:
    """What an error is, without its text, which may quote an address."""
    code = getattr(error, "smtp_code", None)
    return type(error).__name__ if code is None else f"{type(error).__name__} {code}"


def _message(server: MailServer, due: Due, letter: Letter) -> EmailMessage:
    assert server.sender is not None
    sender = Address(server.sender_name, addr_spec=server.sender)
    message = EmailMessage()
    message["From"] = sender
    message["To"] = Address(addr_spec=due.email)
    message["Subject"] = letter.subject
    message["Date"] = format_datetime(localtime(due.created_at))
    # The same however often it is sent, so that a mailbox may know a repeat.
    message["Message-ID"] = f"<{due.name}@{sender.domain}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no machine answers it
    message.set_content(letter.text, cte="quoted-printable")
    message.add_alternative(letter.html, subtype="html", cte="quoted-printable")
    return message
