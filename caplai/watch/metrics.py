"""Every number that is exported, declared once. docs/metrics.md says what each is; a test keeps the two equal.

Names follow Prometheus: `caplai_`, then what is counted, then `_total` or `_seconds`. A label's values are names of
ours, of the configuration or of SMPP, never a person's; what a peer may choose goes through `Bounded`.
"""

import re
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

disable_created_metrics()

REGISTRY = CollectorRegistry()


class Process(ProcessCollector):
    """`process_*`, also where /proc shows processes alone (ProcSubset=pid of our systemd units): the client's own
    reads when the host was booted from /proc/stat, and exports nothing where it cannot.
    """

    def _boot_time(self) -> float:
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


Process(registry=REGISTRY)

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 3600.0)


class Seconds(Collector):
    """A histogram of lengths of time that takes a batch in one go: the client's own takes one value at a time,
    at about two microseconds each.
    """

    def __init__(self, name: str, says: str, labels: Sequence[str] = ()) -> None:
        self._name, self._says, self._labels = name, says, labels
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        REGISTRY.register(self)

    def observe(self, values: Iterable[float], *labels: str) -> None:
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(_BUCKETS) + 1))
            total = 0.0
            for value in values:
                counts[bisect_left(_BUCKETS, value)] += 1
                total += value
            self._sums[labels] = self._sums.get(labels, 0.0) + total

    def describe(self) -> Iterable[Metric]:
        return [HistogramMetricFamily(self._name, self._says, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._says, labels=self._labels)
        with self._lock:
            for labels, counts in self._counts.items():
                reached, buckets = 0, []
                for bound, count in zip((*map(str, _BUCKETS), "+Inf"), counts, strict=True):
                    reached += count
                    buckets.append((bound, reached))
                family.add_metric(labels, buckets, self._sums[labels])
        yield family


class Bounded:
    """Label values from outside, as they are: the first `room` different ones of a harmless form, then `other`."""

    def __init__(self, form: str, room: int = 40) -> None:
        self._form = re.compile(form)
        self._room = room
        self._seen: set[str] = set()

    def __call__(self, value: str | None) -> str:
        if value is None:
            return "none"
        if value not in self._seen:
            if len(self._seen) >= self._room or not self._form.fullmatch(value):
                return "other"
            self._seen.add(value)
        return value


status = Bounded(r"ESME_[A-Z_]{1,24}|0x[0-9a-f]{8}", room=80)
"""A command_status by its name, or in hex."""
receipt_state = Bounded(r"[A-Za-z]{1,12}|[0-9]{1,3}")
command = Bounded(r"[a-z_]{1,24}")
"""A command by its name; numbers that no command has are `other`."""


def _counter(name: str, says: str, *labels: str) -> Counter:
    return Counter(name, says, labels, registry=REGISTRY)


# From phones.
received = _counter("caplai_messages_received", "Messages stored.", "link")
redelivered = _counter("caplai_messages_redelivered", "Deliveries of what was stored already.", "link")
segments = _counter("caplai_segments_received", "Parts of long messages stored.", "link")
refused = _counter("caplai_deliveries_refused", "Deliveries answered with an error.", "link", "status")
receipts = _counter(
    "caplai_receipts", "Delivery receipts, by the state as the carrier named it.", "link", "state"
)
unmatched = _counter("caplai_receipts_unmatched", "Receipts that fitted nothing sent when they came.", "link")
# Decided.
decisions = _counter("caplai_decisions", "Messages decided, by outcome.", "outcome")
parked = _counter("caplai_messages_parked", "Messages set aside because our own code failed on them.")
decided_seconds = Seconds("caplai_message_decided_seconds", "From a message's arrival to its outcome.")
# To phones.
submits = _counter("caplai_submits", "submit_sm sent.", "link")
resubmits = _counter(
    "caplai_resubmits", "submit_sm sent for a message that had been submitted before.", "link"
)
answers = _counter("caplai_submit_answers", "Answers to submit_sm, by status.", "link", "status")
lost = _counter("caplai_submits_lost", "submit_sm to which no answer will come.", "link")
settled = _counter("caplai_replies_settled", "What became of submitted messages.", "link", "state")
throttles = _counter("caplai_throttles", "Times that a carrier was left alone for a while.", "link")
submitted_seconds = Seconds(
    "caplai_message_submitted_seconds", "From a message's arrival to the first submit of its reply.", ["link"]
)
answered_seconds = Seconds(
    "caplai_message_answered_seconds", "From a message's arrival to the SMSC taking its reply.", ["link"]
)
# The links.
connects = _counter("caplai_link_connects", "Connections to the SMSC that were tried.", "link")
ignored = _counter("caplai_pdus_ignored", "PDUs dropped or refused by rule.", "link", "command", "reason")
# The web.
signins = _counter("caplai_signins", "Passwords (and passkeys) checked, by outcome.", "outcome")
otps = _counter("caplai_otps", "Wishes for a one-time code, by what became of them.", "outcome")
choices = _counter("caplai_password_choices", "Attempts to choose a password, by result.", "result")
reports = _counter("caplai_reports", "Accounts held because somebody said: this was not me.", "by")
mails = _counter(
    "caplai_mails_settled",
    "What became of e-mails after an attempt: sent, failed, or ready.",
    "kind",
    "state",
)
http_requests = _counter("caplai_http_requests", "Answers over HTTP.", "route", "method", "status")
http_seconds = Seconds("caplai_http_request_seconds", "From an HTTP request to its answer.", ["route"])
# The process.
ready = Gauge("caplai_ready", "Whether the process can serve.", registry=REGISTRY)
build = Gauge(
    "caplai_build_info", "What runs; always 1.", ["version", "python", "process"], registry=REGISTRY
)


def for_link(link: str) -> None:
    """Export the link's counters from the start: a rise from nothing to one is seen only if there was a zero."""
    for counter in (
        received,
        redelivered,
        segments,
        unmatched,
        submits,
        resubmits,
        lost,
        throttles,
        connects,
    ):
        counter.labels(link)


def gauge(name: str, says: str, values: Mapping[tuple[str, ...], float], *labels: str) -> Metric:
    """A gauge that is read for one scrape: a value for each combination of its labels' values."""
    family = GaugeMetricFamily(name, says, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family


def render(gauges: Iterable[Metric] = ()) -> bytes:
    """All metrics in Prometheus's text format, with gauges that were read for this scrape."""
    now = CollectorRegistry()
    now.register(_Gauges(gauges))
    return generate_latest(REGISTRY) + generate_latest(now)


class _Gauges(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families
