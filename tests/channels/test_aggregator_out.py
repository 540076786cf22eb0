"""To phones by an aggregator's send URL: a real engine, a real database, an aggregator that does as a test says."""

import asyncio
import json
import logging
import time
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from django.conf import settings

from caplai.channels.aggregator_in import SIGNATURE_HEADER, TIMESTAMP_HEADER, join, sign
from caplai.channels.aggregators import Aggregator
from caplai.engine import Engine
from caplai.service.answer import answer
from caplai.service.deliver import compose
from caplai.store import queues
from caplai.store.models import Inbox
from caplai.store.queues import Arrival
from caplai.watch import metrics
from caplai.watch.logs import Plain
from caplai.wiring import reissue_rules

LAN, PHONE = "0123456789", "84327000686"
PASSWORD = "hush-hush-hush"
REPLY = f"Cap lai mat khau thanh cong. Tai khoan: {LAN}/Mat khau: "


class Upstream:
    """The aggregator's side of the send URL: keeps what it is sent, and answers what it is told to."""

    def __init__(self):
        self.requests = []
        self.answers = []
        """(status, headers) of the next answers, or seconds of silence before a good one; then 202."""
        self._news = asyncio.Condition()

    async def __aenter__(self):
        application = web.Application()
        application.router.add_route("*", "/{anything:.*}", self._serve)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/cgi-bin/sendsms"
        return self

    async def __aexit__(self, *_):
        await self._runner.cleanup()

    async def _serve(self, request):
        body = await request.read()
        async with self._news:
            self.requests.append((request, body))
            self._news.notify_all()
        answer = self.answers.pop(0) if self.answers else (202, {})
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            answer = (202, {})
        return web.Response(status=answer[0], headers=answer[1])

    async def requested(self, count, seconds=15.0):
        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(lambda: len(self.requests) >= count)
        return self.requests


def configured(url, *, method="POST", kind="kannel", **send):
    secret = {"kannel": PASSWORD, "json": "s" * 32}[kind]
    values = {"name": "vnpt", "format": kind, "secrets": ["k" * 32], "reply": "send"}
    values["send"] = {"url": url, "method": method, "username": "caplai", "secret": secret, **send}
    return settings.CAPLAI.model_copy(update={"aggregators": [Aggregator.model_validate(values)]})


@asynccontextmanager
async def engine(config):
    running = Engine(config, settings.KEYRING)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


def bring(conn, config, text=f"BH MK {LAN}", source=PHONE, ton=1, request_id=None):
    """A message comes by the aggregator; its reply is to be sent."""
    rules = reissue_rules(config, settings.KEYRING, conn)
    arrival = Arrival(source, ton, 1, "8079", 0, text)
    with conn.transaction():
        assert answer(conn, "vnpt", request_id, arrival, rules, join=join, at_once=False) == ""


class Store:
    """The test's own look at the database, beside the loop."""

    def __init__(self, conn):
        self.conn = conn

    async def __call__(self, sql, **values):
        cursor = await asyncio.to_thread(self.conn.execute, sql, values)
        return cursor.fetchall() if cursor.description else None

    async def settled(self, state, seconds=15.0):
        """Wait until every row of the outbox has this state; its (status, attempts), if there is one."""
        rows = None
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rows = await self("select state, status, attempts from outbox")
            if rows and {row[0] for row in rows} == {state}:
                return rows[0][1:]
            await asyncio.sleep(0.02)
        raise AssertionError(rows)

    async def due_now(self):
        """As if the pause before the next attempt had passed."""
        while not await self("update outbox set due_at = now() where state = 'ready' returning id"):
            await asyncio.sleep(0.02)
        await self("notify caplai_outbox")


@pytest.fixture
def play(conn, lan):
    """Run an async scenario(upstream, store, bring) with an engine; the configuration is of `options`."""

    def run(scenario, **options):
        async def whole():
            async with Upstream() as upstream:
                config = configured(upstream.url, **options)
                async with engine(config):

                    async def come(*args, **kwargs):
                        await asyncio.to_thread(bring, conn, config, *args, **kwargs)

                    await scenario(upstream, Store(conn), come)

        asyncio.run(whole())

    return run


def test_kannels_post_has_no_secret_in_its_url(play):
    async def scenario(upstream, store, come):
        await come()
        [(request, body)] = await upstream.requested(1)
        assert await store.settled("sent") == (202, 1)
        assert (request.method, request.path_qs) == ("POST", "/cgi-bin/sendsms")
        assert request.headers["X-Kannel-Username"] == "caplai"
        assert request.headers["X-Kannel-Password"] == PASSWORD
        assert (request.headers["X-Kannel-From"], request.headers["X-Kannel-To"]) == ("8079", "+" + PHONE)
        assert request.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert body.decode().startswith(REPLY)
        assert await store("select link, 'caplai-' || id from outbox") == [
            ("vnpt", request.headers["Idempotency-Key"])
        ]

    play(scenario)


@pytest.mark.slow
def test_kannels_get(play):
    async def scenario(upstream, store, come):
        await come()
        [(request, _)] = await upstream.requested(1)
        await store.settled("sent")
        query = request.query
        assert (query["username"], query["password"]) == ("caplai", PASSWORD)
        assert (query["from"], query["to"], query["charset"]) == ("8079", "+" + PHONE, "utf-8")
        assert query["text"].startswith(REPLY)
        assert query["id"] == request.headers["Idempotency-Key"]

    play(scenario, method="GET")


def test_json_is_signed_as_the_webhook_is(play):
    async def scenario(upstream, store, come):
        await come(source="VIETTEL", ton=5, text="BH MK")  # a sender with letters gets its answer, too
        [(request, body)] = await upstream.requested(1)
        await store.settled("sent")
        timestamp = request.headers[TIMESTAMP_HEADER]
        assert request.headers[SIGNATURE_HEADER] == "sha256=" + sign("s" * 32, timestamp, body)
        assert abs(time.time() - int(timestamp)) < 30
        said = json.loads(body)
        assert (said["from"], said["to"], said["id"]) == (
            "8079",
            "VIETTEL",
            request.headers["Idempotency-Key"],
        )
        assert said["text"].startswith("Ma so BHXH phai gom 10 chu so.")

    play(scenario, kind="json")


def test_a_refusal_for_now_and_a_silence_bring_the_identical_message_again(play):
    async def scenario(upstream, store, come):
        upstream.answers = [(302, {"Location": "/elsewhere"}), 3.0]
        await come()
        for attempt in (1, 2):
            await upstream.requested(attempt)
            await store.due_now()
        requests = await upstream.requested(3)
        assert await store.settled("sent") == (202, 3)
        assert {request.path for request, _ in requests} == {"/cgi-bin/sendsms"}
        assert len({body for _, body in requests}) == 1
        assert len({request.headers["Idempotency-Key"] for request, _ in requests}) == 1

    play(scenario, timeout=1.0)


def test_a_reply_can_be_followed_and_is_counted(play, caplog):
    caplog.set_level(logging.INFO, "caplai.trail")
    labels = {"link": "vnpt", "state": "sent"}
    before = metrics.REGISTRY.get_sample_value("caplai_replies_settled_total", labels) or 0.0

    async def scenario(upstream, store, bring):
        upstream.answers = [(503, {})]
        await bring()
        await upstream.requested(1)
        await store.due_now()
        await store.settled("sent")

    play(scenario)
    lines = [
        line
        for record in caplog.records
        if hasattr(record, "rows")
        for line in record.step.plain(record.rows)
    ]
    assert [line.split()[0] for line in lines] == ["submitted", "settled", "submitted", "settled"]
    assert "state=ready" in lines[1] and "status=HTTP 503" in lines[1]
    assert "state=sent attempt=2 status=HTTP 202" in lines[3] and "link=vnpt" in lines[3]
    assert metrics.REGISTRY.get_sample_value("caplai_replies_settled_total", labels) == before + 1


def test_a_refusal_for_good_is_one(play):
    async def scenario(upstream, store, come):
        upstream.answers = [(400, {})]
        await come()
        assert await store.settled("failed") == (400, 1)
        # Nor does what no header can hold stand in the way of others.
        await come(source="A\nB", ton=5)
        await store.settled("failed")
        await come()
        assert len(await upstream.requested(2)) == 2

    play(scenario)


def test_an_aggregator_that_is_overloaded_is_left_alone(play):
    async def scenario(upstream, store, come):
        upstream.answers = [(503, {"Retry-After": "1"})]
        await come()
        await upstream.requested(1)
        since = time.monotonic()
        await store.due_now()
        await come(source="84911222333")  # another message waits as well
        await upstream.requested(3)
        assert time.monotonic() - since > 0.5
        await store.settled("sent")

    play(scenario)


def test_what_a_dead_engine_had_claimed_is_sent_with_the_identical_text(play):
    async def scenario(upstream, store, come):
        upstream.answers = [1.0]
        await come()
        [(first, body), *_] = await upstream.requested(1)
        # Its engine died meanwhile: the lease runs out, and what it would have written counts no more.
        await store("update outbox set claimed_by = 'dead', due_at = now()")
        await store("notify caplai_outbox")
        (second, again) = (await upstream.requested(2))[1]
        assert again == body
        assert second.headers["Idempotency-Key"] == first.headers["Idempotency-Key"]
        await store.settled("sent")

    play(scenario)


def test_a_password_that_has_ended_is_not_sent(conn, lan):
    async def scenario():
        async with Upstream() as upstream:
            config = configured(upstream.url)
            await asyncio.to_thread(bring, conn, config)
            await Store(conn)("update reissue_case set ended_at = opened_at, ended_as = 'used'")
            async with engine(config):
                await Store(conn).settled("expired")
            assert upstream.requests == []

    asyncio.run(scenario())


def lost_part(conn):
    """The first of two parts came a minute ago; the other never will."""
    first = Arrival(PHONE, 1, 1, "8079", 8, None, 7, 2, 1, f"BH MK {LAN} ".encode("utf-16-be"))
    rules = reissue_rules(settings.CAPLAI, settings.KEYRING, conn)
    with conn.transaction():
        assert answer(conn, "vnpt", "p1", first, rules, join=join, at_once=True) == ""
    conn.execute("update segment set received_at = received_at - interval '61 seconds'")


def test_parts_that_wait_in_vain_are_answered_by_the_send_url(play, conn):
    lost_part(conn)

    async def scenario(upstream, store, come):
        [(_, body)] = await upstream.requested(1)
        assert body.decode().startswith(REPLY)
        await store.settled("sent")

    play(scenario)
    assert Inbox.objects.get().text == f"BH MK {LAN}  …"


def test_without_a_send_url_nobody_can_answer_them(conn, lan, caplog):
    lost_part(conn)
    body_only = Aggregator.model_validate({"name": "vnpt", "format": "kannel", "secrets": ["k" * 32]})

    async def scenario():
        async with engine(settings.CAPLAI.model_copy(update={"aggregators": [body_only]})):
            await Store(conn).settled("failed")

    asyncio.run(scenario())
    assert "has no way to go" in caplog.text


def test_no_log_holds_the_url_the_secret_or_the_text(conn, lan, caplog):
    caplog.set_level(logging.DEBUG)
    config = configured("http://127.0.0.1:9/cgi-bin/sendsms", method="GET")
    bring(conn, config)

    async def scenario():
        async with engine(config):
            while "its send URL fails" not in caplog.text:
                await asyncio.sleep(0.02)

    asyncio.run(scenario())
    with conn.transaction():
        conn.execute("update outbox set due_at = now()")
        [due] = queues.claim_outbox(conn, "vnpt", "test", 1, queues.REDELIVERY)
    text = compose(due, settings.KEYRING.ring("issuing"))
    password = text.split("Mat khau: ")[1].split(".")[0]
    ours = [record for record in caplog.records if not record.name.startswith("django.db")]
    written = "\n".join(map(Plain().format, ours))
    for secret in (PASSWORD, LAN, PHONE, password, "sendsms?"):
        assert secret not in written
