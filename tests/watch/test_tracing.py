"""Spans, where OpenTelemetry is installed; it is no part of what caplai needs."""

import asyncio
import subprocess
import sys

import pytest

from caplai.config import ConfigError, WatchSettings, load
from caplai.watch import tracing
from tests.channels.carrier import Carrier
from tests.channels.test_esme import TEXT, engine


@pytest.fixture
def spans():
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="caplai[otel] is not installed")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter
    tracing.use(None)


def test_a_message_s_batches_are_spans_with_its_id(spans, conn, lan):
    async def play():
        async with Carrier() as carrier, engine(carrier):
            await carrier.bound()
            await carrier.deliver(TEXT)
            await carrier.replies(1)

    asyncio.run(play())
    [(message,)] = conn.execute("select id from inbox").fetchall()
    found = {span.name: span for span in spans.get_finished_spans()}
    assert set(found) == {"caplai accept", "caplai decide", "caplai submit"}
    for span in found.values():
        assert span.attributes["caplai.requests"] == (str(message),)
        assert 0 < span.end_time - span.start_time < 10e9
        assert "84327000686" not in span.to_json() and "0123456789" not in span.to_json()


def test_a_web_request_is_a_span_with_its_id(spans, client, db):
    answer = client.get("/login/")
    [span] = spans.get_finished_spans()
    assert span.name == "caplai request"
    assert span.attributes["caplai.requests"] == (answer["X-Request-Id"],)
    assert (span.attributes["caplai.route"], span.attributes["caplai.status"]) == ("/login/", 200)


def test_without_an_endpoint_nothing_of_it_is_imported():
    code = "import caplai.watch.tracing as t, sys; t.record('x', 1, []); sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_endpoint_without_the_package_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(tracing, "available", lambda: False)
    monkeypatch.setenv("CAPLAI_WATCH__TRACES", "http://127.0.0.1:4318/v1/traces")
    with pytest.raises(ConfigError, match=r"watch\.traces: .*pip install 'caplai\[otel\]'"):
        load()


def test_an_endpoint_is_an_address():
    with pytest.raises(ValueError, match="http"):
        WatchSettings(traces="127.0.0.1:4318")
