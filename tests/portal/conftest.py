"""The citizen of the sign-in's tests, with what the portal needs beside her: a mailbox."""

import pytest

from caplai.channels.mailserver import MailServer
from tests.mailbox import Mailbox, mailer, running, send
from tests.signin.conftest import app, browser, citizen, login, open_case, operator

__all__ = ["app", "browser", "citizen", "login", "open_case", "operator"]


class Post:
    """A mailbox, and the sender that the test drives: `deliver` sends what is due."""

    def __init__(self, box: Mailbox, server: MailServer) -> None:
        self.box, self.server = box, server

    def deliver(self) -> Mailbox:
        send(mailer(self.server))
        return self.box

    def newest(self, address: str):
        return self.deliver().to(address)[-1]


@pytest.fixture
def post(transactional_db, settings):
    """Mail is on, and goes to a server of the test's."""
    with running() as (box, server):
        settings.CAPLAI = settings.CAPLAI.model_copy(update={"mail": server})
        yield Post(box, server)
