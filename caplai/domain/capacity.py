"""What a wave of requests meets: how long the queues grow, how long people wait, what is the bottleneck.

Queues are reckoned as fluids: messages flow in at a rate that is constant over a piece of time, and out at a
server's rate at most, first come first served. So every figure is exact arithmetic on these pieces, no simulation:
the deciders first, then for each carrier what goes out by it. It is a plan, not a promise: people who wait text
again, and what passes in seconds is smaller than the noise of a real day.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from math import ceil, exp, inf

from caplai.domain.policy import Limits

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What one machine was measured to do, for each message. Plans and docs/scaling.md take these figures from here."""

    per_second: float
    """Messages a second, from phone to phone."""
    engine_us: float
    database_us: float
    """Processor time under load."""
    sign_in_us: float
    """The same, of a person who signs in with it and chooses a password: Argon2id (service.md), and as much again."""
    wal_bytes: float
    disk_bytes: float
    """Of tables and indexes, until retention empties them."""
    where: str


MEASURED = Measured(
    per_second=5150,
    engine_us=155,
    database_us=155,
    sign_in_us=46_000,
    wal_bytes=3000,
    disk_bytes=1250,
    where="two cores: `bench wave` for five minutes, two engines; bytes of `bench scale`, rounded up",
)


# --- how they arrive -------------------------------------------------------------------------------------

_STEPS = 240
_OCTOBER_DAY = (2, 1, 1, 1, 1, 3, 8, 20, 60, 75, 70, 50, 35, 40, 65, 70, 60, 45, 40, 50, 55, 45, 25, 8)


def _flat(hours: float) -> list[float]:
    return [1.0]


def _peak(hours: float) -> list[float]:
    # Steep, for people hear of it at once, then an exponential tail: e-fold in a quarter of the time.
    moments = [(step + 0.5) / _STEPS for step in range(_STEPS)]
    return [moment / 0.1 if moment < 0.1 else exp((0.1 - moment) / 0.25) for moment in moments]


def _days(hours: float) -> list[float]:
    whole = [float(_OCTOBER_DAY[hour % 24]) for hour in range(ceil(hours))]
    whole[-1] *= hours - (len(whole) - 1)
    return whole


SHAPES: dict[str, Callable[[float], list[float]]] = {"flat": _flat, "peak": _peak, "days": _days}
"""Weights of equal pieces of the time (of `days`: of hours, the last one perhaps shorter).

`flat`: evenly. `peak`: up within a tenth of the time, then a tail. `days`: from midnight, by the hours at which
people text (mornings, afternoons, a little at night): an assumption, for the agency published days only.
"""


@dataclass(frozen=True, slots=True)
class Wave:
    """How many ask, how often, over how long, and what share of all messages helps nobody."""

    accounts: int
    share: float
    """Of the accounts, whose owner asks."""
    hours: float
    shape: str = "flat"
    again: float = 1.2
    """Requests of each who asks, on average: most once, a geometric tail."""
    malformed: float = 0.05
    """Of all messages: not understood."""
    wrong_phone: float = 0.03
    """Of all messages: from another phone than the account's."""

    @property
    def people(self) -> float:
        return self.accounts * self.share

    @property
    def messages(self) -> float:
        """All that come: what is malformed or from a wrong phone comes beside the requests."""
        return self.people * self.again / (1 - self.malformed - self.wrong_phone)


OCTOBER_2021 = Wave(accounts=21_635_070, share=1_791_924 / 21_635_070, hours=17 * 24.0, shape="days")
"""29/9 to 15/10/2021: 1,791,924 people of 21,635,070 approved accounts (the agency's published figures)."""


# --- what serves them ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Carrier:
    """A way out: what of all replies goes by it, and what it takes."""

    name: str
    share: float = 1.0
    tps: float = 0.0
    """Segments a second on each bind; 0: no limit."""
    window: int = 50
    """Submits that may wait for their answer, on each bind."""
    binds: int = 1
    answers_in: float = 0.1
    """Seconds from a submit to its answer."""
    parts: float = 1.0
    """Segments of a reply."""

    @property
    def by_tps(self) -> float:
        """Replies a second that its TPS lets through."""
        return self.binds * self.tps / self.parts if self.tps else inf

    @property
    def by_window(self) -> float:
        """Replies a second that its window lets through: Little's law, in flight = rate times latency."""
        return self.binds * self.window / (self.answers_in * self.parts) if self.answers_in else inf

    @property
    def per_second(self) -> float:
        return min(self.by_tps, self.by_window)


@dataclass(frozen=True, slots=True)
class Service:
    """What there is to serve them."""

    carriers: Sequence[Carrier]
    per_second: float = MEASURED.per_second
    """Messages a second that are stored and decided, on all machines together."""
    limits: Limits = field(default_factory=Limits)
    lifetime: timedelta = timedelta(hours=24)
    """Of an issued password, from its deciding."""


# --- what becomes of them --------------------------------------------------------------------------------

Pieces = list[tuple[float, float]]
"""A flow: (seconds, messages a second), one piece after the other."""


class Curve:
    """A quantity over time, a straight line between its points."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self.points = points
        self._at = [at for at, _ in points]
        self._value = [value for _, value in points]

    def __call__(self, at: float) -> float:
        """Its value at a moment; before the first point and after the last, as there."""
        return _between(self._at, self._value, at)

    def when(self, value: float) -> float:
        """When a curve that only rises reaches a value: the latest moment, should it stand still there."""
        return _between(self._value, self._at, value)

    @property
    def highest(self) -> tuple[float, float]:
        """(when, how much), the first time."""
        return max(self.points, key=lambda point: (point[1], -point[0]))


def _between(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    right = bisect_right(xs, x)
    if right == 0:
        return ys[0]
    if right == len(xs):
        return ys[-1]
    part = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + part * (ys[right] - ys[right - 1])


def arrivals(wave: Wave) -> Pieces:
    """The messages of a wave as they come."""
    weights = SHAPES[wave.shape](wave.hours)
    total, seconds = sum(weights), wave.hours * HOUR / len(weights)
    if wave.shape == "days":
        pieces = [HOUR] * (len(weights) - 1) + [(wave.hours - len(weights) + 1) * HOUR]
    else:
        pieces = [seconds] * len(weights)
    return [
        (piece, wave.messages * weight / total / piece) for piece, weight in zip(pieces, weights, strict=True)
    ]


def serve(flow: Pieces, per_second: float) -> tuple[Pieces, Curve]:
    """Send a flow through a server with a queue in front: what comes out, until it is empty; and the queue."""
    out: Pieces = []
    queue = at = 0.0
    points = [(0.0, 0.0)]
    for piece, rate in [*flow, (inf, 0.0)]:
        left = piece
        while left > 0:
            if queue <= 0 and rate <= per_second:
                if left == inf:
                    return out, Curve(points)
                step, leaves = left, rate
                after = 0.0
            elif rate < per_second and queue / (per_second - rate) <= left:
                step, leaves = queue / (per_second - rate), per_second
                after = 0.0
            else:
                step, leaves = left, per_second
                after = queue + (rate - per_second) * step
            out.append((step, leaves))
            left, at, queue = left - step, at + step, after
            points.append((at, queue))
    raise AssertionError("a queue that nothing serves never ends")


def _sum(flow: Pieces) -> Curve:
    at = total = 0.0
    points = [(0.0, 0.0)]
    for seconds, rate in flow:
        at += seconds
        total += seconds * rate
        points.append((at, total))
    return Curve(points)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What becomes of all messages. They add up to the messages that come."""

    granted: float
    """A password, new or the open case's again."""
    over_limit: float
    bad_code: float
    mismatch: float
    silenced: float
    """Over a limit, and over the error replies that a phone gets in an hour."""

    @property
    def refused(self) -> float:
        """Answered, without a password."""
        return self.over_limit + self.bad_code + self.mismatch

    @property
    def total(self) -> float:
        return self.granted + self.refused + self.silenced


def outcomes(wave: Wave, service: Service) -> Outcomes:
    """What the limits make of a wave.

    Everybody's requests are taken to fall into as few cases as the time allows, and the error replies into as few
    hours: an upper bound of what is refused.
    """
    limits, seconds = service.limits, wave.hours * HOUR
    cases = ceil(seconds / service.lifetime.total_seconds())
    for limit in (*limits.account, *limits.phone):  # a phone's are for each account that it serves
        cases = min(cases, limit.count * ceil(seconds / limit.window.total_seconds()))
    texts = cases * limits.texts_per_case
    errors = limits.errors.count * ceil(seconds / limits.errors.window.total_seconds())
    # Of a person's requests the nth comes with this probability to the power n - 1.
    tail = 1 - 1 / wave.again
    requests = wave.people * wave.again
    over, silenced = requests * tail**texts, requests * tail ** (texts + errors)
    return Outcomes(
        granted=requests - over,
        over_limit=over - silenced,
        bad_code=wave.messages * wave.malformed,
        mismatch=wave.messages * wave.wrong_phone,
        silenced=silenced,
    )


@dataclass(frozen=True, slots=True)
class Lane:
    """What goes out by one carrier. `share` is its share of all messages that are answered."""

    carrier: Carrier
    share: float
    queue: Curve
    answered: Curve
    busiest: float
    """Replies a second, when most come to it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of the wave; moments are seconds from its begin, amounts are messages."""

    wave: Wave
    service: Service
    outcomes: Outcomes
    arrived: Curve
    decided: Curve
    inbox: Curve
    busiest: float
    """Messages a second, when most come."""
    lanes: Sequence[Lane]

    @property
    def answers(self) -> float:
        """Of all messages, how large a part is answered."""
        total = self.outcomes.total
        return (total - self.outcomes.silenced) / total if total else 1.0

    @property
    def ends(self) -> float:
        """When the last one has been served."""
        return max(self.decided.points[-1][0], *(lane.answered.points[-1][0] for lane in self.lanes))

    def waiting(self, at: float) -> float:
        """How many have come by then and have neither an answer nor their silence."""
        return self.inbox(at) + sum(lane.queue(at) for lane in self.lanes)

    def answered(self, at: float) -> float:
        return sum(lane.answered(at) for lane in self.lanes)

    def silent(self, at: float) -> float:
        """Those that were decided to get no answer."""
        return self.decided(at) * (1 - self.answers)

    @property
    def most_waiting(self) -> tuple[float, float]:
        """(when, how many)."""
        curves = [self.inbox, *(lane.queue for lane in self.lanes)]
        moments = {at for curve in curves for at, _ in curve.points}
        return max(((at, self.waiting(at)) for at in moments), key=lambda found: (found[1], -found[0]))

    @property
    def longest_wait(self) -> float:
        return max((wait for _, low, high in self._waits() for wait in (low, high)), default=0.0)

    def wait(self, part: float) -> float:
        """The wait that this part of all answered messages does not exceed, in seconds; 0.5: the median."""
        pieces = self._waits()
        wanted = part * sum(mass for mass, _, _ in pieces)
        low, high = 0.0, self.longest_wait
        for _ in range(60):
            middle = (low + high) / 2
            if sum(mass * _part_within(middle, *ends) for mass, *ends in pieces) < wanted:
                low = middle
            else:
                high = middle
        return high

    def too_late(self) -> float:
        """Replies with a password that waits for its carrier longer than it lives, and is not sent.

        More than there will be: what is dropped makes room for others, which is not reckoned here.
        """
        lifetime = self.service.lifetime.total_seconds()
        late = 0.0
        for lane in self.lanes:
            for mass, low, high in _horizontal(self.decided, self.answers * lane.share, lane.answered):
                late += mass * (1 - _part_within(lifetime, low, high))
        answered = self.outcomes.total - self.outcomes.silenced
        return late * self.outcomes.granted / answered if answered else 0.0

    def longest_outbox_wait(self) -> float:
        """Seconds between a decision and its reply's way out."""
        return max(
            (
                wait
                for lane in self.lanes
                for _, low, high in _horizontal(self.decided, self.answers * lane.share, lane.answered)
                for wait in (low, high)
            ),
            default=0.0,
        )

    def _waits(self) -> list[tuple[float, float, float]]:
        """(messages, the first one's wait, the last one's), a straight line between, of all answered messages."""
        return [
            piece
            for lane in self.lanes
            for piece in _horizontal(self.arrived, self.answers * lane.share, lane.answered)
        ]


def plan(wave: Wave, service: Service) -> Plan:
    """What becomes of the wave. Needs at least one carrier, with shares that add up to more than nothing."""
    found = outcomes(wave, service)
    flow = arrivals(wave)
    decided, inbox = serve(flow, service.per_second)
    part = (found.total - found.silenced) / found.total if found.total else 1.0
    shares = sum(carrier.share for carrier in service.carriers)
    lanes = []
    for carrier in service.carriers:
        share = carrier.share / shares
        into = [(seconds, rate * part * share) for seconds, rate in decided]
        out, queue = serve(into, carrier.per_second)
        lanes.append(Lane(carrier, share, queue, _sum(out), max((rate for _, rate in into), default=0.0)))
    busiest = max((rate for _, rate in flow), default=0.0)
    return Plan(wave, service, found, _sum(flow), _sum(decided), inbox, busiest, lanes)


def _horizontal(into: Curve, share: float, out: Curve) -> list[tuple[float, float, float]]:
    """How long what flows in (a share of `into`) is within until it flows out: (amount, first's, last's)."""
    own = Curve([(at, value * share) for at, value in into.points])
    marks = sorted({value for _, value in own.points} | {value for _, value in out.points})
    pieces = []
    for first, last in pairwise(marks):
        # Just inside the piece: at its ends a curve may stand still.
        near = (last - first) * 1e-9
        waits = [max(0.0, out.when(mark) - own.when(mark)) for mark in (first + near, last - near)]
        pieces.append((last - first, waits[0], waits[1]))
    return pieces


def _part_within(bound: float, low: float, high: float) -> float:
    """What part of a straight line from `low` to `high` is not above the bound."""
    low, high = min(low, high), max(low, high)
    if high <= bound:
        return 1.0
    return 0.0 if low > bound else (bound - low) / (high - low)


def bottleneck(found: Plan) -> tuple[str, float]:
    """(what it is, how busy it is when most come; above 1 a queue grows). What queues longest, else what is busiest.

    `decide`, or `tps` or `window` and the carrier's name.
    """
    service = found.service
    loads = [("decide", found.inbox.highest[1], found.busiest / service.per_second)]
    for lane in found.lanes:
        carrier = lane.carrier
        what = "tps" if carrier.by_tps <= carrier.by_window else "window"
        wait = lane.queue.highest[1]
        loads.append((f"{what} {carrier.name}", wait, lane.busiest / carrier.per_second))
    what, _, load = max(loads, key=lambda each: (each[1] > 1.0, each[1], each[2]))
    return what, load
