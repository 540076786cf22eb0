"""Our web application as aggregators meet it, on a port of its own."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from urllib.parse import urlencode

import pytest
from django.conf import settings
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application

from caplai import processes, wiring
from caplai.channels.aggregator_in import SIGNATURE_HEADER, TIMESTAMP_HEADER, sign
from caplai.channels.aggregators import Aggregator
from caplai.store.db import conninfo
from tests.ports import free_port

LAN, PHONE = "0123456789", "84327000686"
SECRET = "k" * 16
KEY, NEXT_KEY = "j" * 32, "n" * 32
KANNEL = {"name": "vnpt", "format": "kannel", "secrets": [SECRET]}
JSON = {"name": "fpt", "format": "json", "secrets": [KEY, NEXT_KEY]}


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


class Site:
    """Our web application on a port of its own; `kannel` and `json` ask as the aggregators do."""

    def __init__(self, port):
        self.port = port

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and body of an answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()
        finally:
            connection.close()

    def kannel(self, text="BH MK " + LAN, name="vnpt", secret=SECRET, raw="", **parameters):
        """The body of the answer, which must be 200; `raw` is appended to the query as it is."""
        status, _, body = self.ask("GET", kannel_url(text, name, secret, raw, **parameters))
        assert status == 200, (status, body)
        return body

    def json(self, values, key=KEY, at=None, signature=None, name="fpt"):
        """Status and body, read, of a signed request."""
        body = values if isinstance(values, bytes) else json.dumps(values).encode()
        timestamp = str(int(time.time() if at is None else at))
        signature = signature or "sha256=" + sign(key, timestamp, body)
        headers = {
            "Content-Type": "application/json",
            TIMESTAMP_HEADER: timestamp,
            SIGNATURE_HEADER: signature,
        }
        status, answered, text = self.ask("POST", f"/sms/{name}", body, headers)
        return status, json.loads(text) if answered["Content-Type"] == "application/json" else text


def part(number, total=2, reference=0x11):
    """The user data header of a part."""
    return bytes([5, 0, 3, reference, total, number])


def kannel_url(text="BH MK " + LAN, name="vnpt", secret=SECRET, raw="", **parameters):
    query = {"from": "+" + PHONE, "to": "8079", "secret": secret, "text": text} | parameters
    return f"/sms/{name}?" + urlencode({k: v for k, v in query.items() if v is not None}) + raw


@contextmanager
def web_process(*aggregators, port=0):
    """`caplai web`, a process of its own, on the test's database."""
    port = port or free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")},
        "CAPLAI_DATABASE_URL": conninfo(),
        "CAPLAI_DATA_DIR": str(settings.CAPLAI.data_dir),
        "CAPLAI_PORT": str(port),
        "CAPLAI_AGGREGATORS": json.dumps(aggregators),
    }
    process = subprocess.Popen([sys.executable, "-m", "caplai", "web", "--quiet"], env=environment)
    try:
        assert processes.wait_for_port("127.0.0.1", port, 60)
        yield Site(port)
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def serve(transactional_db, settings, monkeypatch):
    """Start our site with these aggregators (and other settings)."""
    servers = []
    wiring.web_rules.cache_clear()  # the wordings of another test are gone

    def start(*aggregators, **others):
        update = {"aggregators": [Aggregator.model_validate(each) for each in aggregators], **others}
        settings.CAPLAI = settings.CAPLAI.model_copy(update=update)
        server = ThreadedWSGIServer(("127.0.0.1", 0), _Quiet, connections_override=None)
        server.set_app(get_wsgi_application())
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        servers.append((server, thread))
        return Site(server.server_port)

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()
    wiring.web_rules.cache_clear()
