"""OpenTelemetry traces, for who wants them: `pip install 'caplai[otel]'` and an endpoint in the configuration.

Without an endpoint nothing of OpenTelemetry is imported, and a span costs a look at one variable. Spans are recorded
once they are over, a batch in one span: they say what took how long, for which messages.
"""

import time
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

_tracer: Any = None
_MOST = 100
"""Message ids that one span names."""


def available() -> bool:
    """Whether OpenTelemetry is installed."""
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


def start(endpoint: str, service: str) -> None:
    """Send spans to an OTLP endpoint over HTTP (`http://127.0.0.1:4318/v1/traces`). Needs `available()`."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    use(provider)


def use(provider: Any) -> None:
    """Take spans to this provider of the SDK's; None: to nobody."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("caplai")


def record(name: str, took: float, requests: Iterable[Any], **attributes: str | int) -> None:
    """A span that ends now and began `took` seconds ago. `requests`: the ids of what it is about."""
    if _tracer is None:
        return
    end = time.time_ns()
    ids = [str(request) for request in requests]
    span = _tracer.start_span(
        f"caplai {name}",
        start_time=end - int(took * 1e9),
        attributes={
            "caplai.requests": ids[:_MOST],
            "caplai.count": len(ids),
            **{f"caplai.{key}": value for key, value in attributes.items()},
        },
    )
    span.end(end)
