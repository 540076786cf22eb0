"""The planner: nobody is lost, more never makes it worse, and the arithmetic agrees with a queue that is played."""

from collections import deque
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caplai.domain.capacity import (
    MEASURED,
    OCTOBER_2021,
    SHAPES,
    Carrier,
    Service,
    Wave,
    arrivals,
    bottleneck,
    outcomes,
    plan,
    serve,
)
from caplai.domain.policy import Limit, Limits

waves = st.builds(
    Wave,
    accounts=st.integers(1000, 100_000_000),
    share=st.floats(0.001, 1),
    hours=st.floats(0.1, 200),
    shape=st.sampled_from(sorted(SHAPES)),
    again=st.floats(1, 5),
    malformed=st.floats(0, 0.4),
    wrong_phone=st.floats(0, 0.4),
)
carriers = st.lists(
    st.builds(
        Carrier,
        name=st.just("carrier"),
        share=st.floats(0.1, 1),
        tps=st.one_of(st.just(0.0), st.floats(5, 5000)),
        window=st.integers(1, 1000),
        binds=st.integers(1, 4),
        answers_in=st.one_of(st.just(0.0), st.floats(0.001, 1)),
        parts=st.floats(1, 3),
    ),
    min_size=1,
    max_size=3,
)
services = st.builds(
    Service,
    carriers=carriers,
    per_second=st.floats(10, 10_000),
    lifetime=st.timedeltas(timedelta(minutes=10), timedelta(hours=72)),
)
quick = settings(max_examples=30, deadline=None)


@quick
@given(waves, services, st.floats(0, 1))
def test_nobody_is_lost(wave, service, part):
    found = plan(wave, service)
    assert found.outcomes.total == pytest.approx(wave.messages)
    for at in (part * found.ends, found.ends):
        served = found.answered(at) + found.silent(at)
        assert served + found.waiting(at) == pytest.approx(found.arrived(at), rel=1e-6, abs=1e-3)
    assert found.waiting(found.ends) == pytest.approx(0, abs=1e-3)
    served = found.outcomes.granted + found.outcomes.refused
    assert found.answered(found.ends) == pytest.approx(served, rel=1e-6)


@quick
@given(waves, services, st.floats(1, 10))
def test_more_never_makes_anybody_wait_longer(wave, service, times):
    found = plan(wave, service)
    richer = [replace(carrier, tps=carrier.tps * times) for carrier in service.carriers]
    for more in (
        plan(wave, replace(service, carriers=richer)),
        plan(wave, replace(service, per_second=service.per_second * times, carriers=richer)),
    ):
        assert more.ends <= found.ends * (1 + 1e-9)
        assert more.longest_wait <= found.longest_wait * (1 + 1e-6) + 1e-3


@quick
@given(waves, services)
def test_waits_are_in_order_and_nobody_leaves_before_coming(wave, service):
    found = plan(wave, service)
    assert 0 <= found.wait(0.5) <= found.wait(0.99) + 1e-6 <= found.longest_wait + 1e-5
    assert 0 <= found.too_late() <= found.outcomes.granted * (1 + 1e-6)
    assert found.longest_wait <= found.ends * (1 + 1e-9)


@quick
@given(waves)
def test_all_of_a_wave_comes_in_its_time(wave):
    flow = arrivals(wave)
    assert sum(seconds for seconds, _ in flow) == pytest.approx(wave.hours * 3600)
    assert sum(seconds * rate for seconds, rate in flow) == pytest.approx(wave.messages)


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_it_agrees_with_a_queue_that_is_played_second_by_second(shape):
    wave = Wave(accounts=40_000, share=0.5, hours=1.5, shape=shape, again=1, malformed=0, wrong_phone=0)
    service = Service([Carrier("slow", tps=3, answers_in=0)], per_second=4.5)
    found = plan(wave, service)

    flow = [
        rate for seconds, rate in arrivals(wave) for _ in range(round(seconds * 10))
    ]  # tenths of a second
    inbox, outbox, waits, most, came, decided, sent = deque(), deque(), [], 0, 0.0, 0.0, 0.0
    tenth = 0
    while tenth < len(flow) or inbox or outbox:
        came += flow[tenth] / 10 if tenth < len(flow) else 0
        while came >= 1:
            came -= 1
            inbox.append(tenth)
        decided = min(decided + 0.45, 1.45)
        while inbox and decided >= 1:
            decided -= 1
            outbox.append(inbox.popleft())
        sent = min(sent + 0.3, 1.3)
        while outbox and sent >= 1:
            sent -= 1
            waits.append((tenth - outbox.popleft()) / 10)
        most = max(most, len(inbox) + len(outbox))
        tenth += 1
    waits.sort()
    assert found.ends == pytest.approx(tenth / 10, rel=0.001)
    assert found.most_waiting[1] == pytest.approx(most, rel=0.002)
    assert found.longest_wait == pytest.approx(waits[-1], rel=0.01)
    assert found.wait(0.5) == pytest.approx(waits[len(waits) // 2], rel=0.01)


def test_a_server_that_is_fast_enough_has_no_queue():
    out, queue = serve([(10, 5.0), (10, 7.0)], 7.0)
    assert out == [(10, 5.0), (10, 7.0)]
    assert queue.highest[1] == 0


def test_a_queue_grows_and_empties():
    out, queue = serve([(10, 15.0), (10, 2.0), (5, 0.0)], 5.0)
    # 100 wait after ten seconds, 70 after twenty, 45 after 25; nine more seconds empty it.
    assert [queue(at) for at in (10, 20, 25, 34)] == pytest.approx([100, 70, 45, 0])
    assert sum(seconds for seconds, _ in out) == pytest.approx(34)


def test_the_bottleneck_is_named():
    wave = Wave(accounts=36_000, share=1, hours=1, again=1, malformed=0, wrong_phone=0)  # ten a second
    wide = Carrier("wide", window=1000)

    def found(per_second=100.0, **values):
        return bottleneck(plan(wave, Service([replace(wide, **values)], per_second)))

    assert found(per_second=5.0) == ("decide", pytest.approx(2))
    assert found(tps=4) == ("tps wide", pytest.approx(2.5))
    assert found(tps=4, binds=2) == ("tps wide", pytest.approx(1.25))
    assert found(tps=12, parts=2) == ("tps wide", pytest.approx(10 / 6))
    assert found(window=1, answers_in=0.25) == ("window wide", pytest.approx(2.5))
    assert found() == ("decide", pytest.approx(0.1))


def test_little_s_law():
    assert Carrier("a", window=50, answers_in=0.1).per_second == pytest.approx(500)
    assert Carrier("a", window=50, answers_in=0.1, binds=2, parts=2).per_second == pytest.approx(500)


def test_what_the_limits_refuse():
    wave = Wave(accounts=1000, share=1, hours=1, again=2, malformed=0, wrong_phone=0)
    service = Service([Carrier("a")], limits=Limits(texts_per_case=5))
    found = outcomes(wave, service)
    # Each asks once more with probability 1/2: 1 of 32 requests is a sixth or later one, 1 of 1024 beyond 5 errors.
    assert found.over_limit + found.silenced == pytest.approx(2000 / 32)
    assert found.silenced == pytest.approx(2000 / 1024)
    assert found.granted == pytest.approx(2000 * 31 / 32)
    # Over several lifetimes there are several cases, as many as an account may have.
    days = replace(wave, hours=72)
    assert outcomes(days, service).over_limit < found.over_limit
    once = (Limit(1, timedelta(days=30)),)
    for one in (Limits(account=once), Limits(phone=once)):
        assert outcomes(days, replace(service, limits=one)).granted == pytest.approx(found.granted)


def test_passwords_that_die_before_their_reply_is_sent():
    wave = Wave(accounts=36_000, share=1, hours=1, again=1, malformed=0, wrong_phone=0)
    service = Service([Carrier("a", tps=5)], lifetime=timedelta(minutes=45))
    # Ten a second come and five go: who comes after 45 minutes waits longer than that.
    assert plan(wave, service).too_late() == pytest.approx(9000, rel=1e-6)
    assert plan(wave, replace(service, lifetime=timedelta(hours=1))).too_late() == 0


def test_october_2021_is_no_trouble():
    assert round(OCTOBER_2021.people) == 1_791_924
    found = plan(OCTOBER_2021, Service([Carrier("a")]))
    assert found.longest_wait == 0
    assert found.busiest == max(rate for _, rate in arrivals(OCTOBER_2021))


def test_the_year_in_twenty_minutes_takes_what_bar_md_says():
    wave = Wave(21_635_070, 5_700_000 / 21_635_070, 1 / 3, again=1, malformed=0, wrong_phone=0)
    wide = [Carrier("a", window=1000)]
    assert plan(wave, Service(wide, 4750)).longest_wait == pytest.approx(0, abs=1e-6)
    assert plan(wave, Service(wide, 3200)).ends == pytest.approx(1800, rel=0.02)


def test_the_measured_figures_say_where_they_come_from():
    assert MEASURED.per_second > 0
    assert MEASURED.where
