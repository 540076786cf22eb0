"""The agency's figures: the same from the rollups and from the rows, today live, and for ever."""

import asyncio
import dataclasses
import json
import random
import threading
import time
from datetime import UTC, date, datetime, timedelta

import pytest
from click.testing import CliRunner
from django.conf import settings

from bench.figures import Totals, make_history
from caplai import engine
from caplai.cli import main
from caplai.engine import Engine, retention_rules
from caplai.reports import rollups
from caplai.reports.figures import figures, months_before
from caplai.service import retention
from caplai.store.db import connect, conninfo
from caplai.store.models import FiguresHeavy
from tests.reports.history import DAY, ZONE, Plain, are_of, at, case, live_through, message, text

KEEP = dataclasses.replace(retention_rules(settings.CAPLAI), rate=100_000)


@pytest.fixture(autouse=True)
def yesterday_is_over(monkeypatch):
    """Also within the first minutes of a day."""
    monkeypatch.setattr(rollups, "_CLOSES_AFTER", 0 * DAY)


@pytest.fixture
def now(conn):
    """Today is still today when the test ends: none begins in the last half minute of a day."""
    while True:
        [[now]] = conn.execute("select clock_timestamp()").fetchall()
        if (now + timedelta(seconds=30)).astimezone(ZONE).date() == now.astimezone(ZONE).date():
            return now
        time.sleep(1)  # nothing tells of midnight but the clock


@pytest.fixture
def today(now):
    return now.astimezone(ZONE).date()


def keep_built(conn):
    return rollups.keep_built(conn, threading.Event())


def agree(conn, plain, periods):
    """Whether all figures of these periods are those of plain counting."""
    for first, last in periods:
        found = figures(conn, first, last)
        told = found.as_json()
        expected = plain.figures(first, last)
        told["heaviest"] = [heavy["count"] for heavy in told["heaviest"]]
        if not found.heaviest_certain:
            del told["heaviest"], expected["heaviest"]
        for name, value in expected.items():
            assert told[name] == value, (name, first, last)
        assert are_of(told["seconds_to_reply"], plain.seconds_to_reply(first, last))
        assert are_of(told["seconds_to_sign_in"], plain.seconds_to_sign_in(first, last))


def periods_of(first, last, count, seed=1):
    """Random periods, days, and whole months."""
    draw = random.Random(seed)
    for n in range(count):
        begin = first + draw.randrange((last - first).days + 1) * DAY
        if n % 3 == 0:
            yield begin.replace(day=1), rollups.last_of_month(begin)
        else:
            yield begin, begin + draw.randrange(0, 2 + (last - begin).days) * DAY * (n % 3 - 1)


# --- the same from wherever they come ---------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_they_are_those_of_plain_counting_from_rows_and_from_rollups(conn, now, today, seed):
    first = today - 100 * DAY
    live_through(conn, first, now, seed=seed)
    plain = Plain(conn)
    periods = [(first, today), (today, today), *periods_of(first, today, 12, seed)]
    agree(conn, plain, periods)  # nothing is rolled up: all of it is live
    rollups.rebuild(conn, first + 20 * DAY, first + 40 * DAY)
    rollups.rebuild(conn, first + 60 * DAY, first + 61 * DAY)
    agree(conn, plain, periods)  # some days are
    built = keep_built(conn)
    assert built[-1] == today - DAY and first + 30 * DAY not in built
    agree(conn, plain, periods)
    [[rows]] = conn.execute("select sum(count)::int from figures_reissues").fetchall()
    assert rows > 100
    assert rollups.rebuild(conn, None, None) >= 100  # and again: nothing is there twice
    agree(conn, plain, periods)


def test_a_day_ends_at_midnight_in_vietnam_and_the_last_one_is_included(conn):
    day = date(2026, 3, 31)
    for moment in (at(day, 0), at(day, 23, 59, 59.999), at(day + DAY, 0)):
        message(conn, moment, case=case(conn, moment, "0000000001"), account="0000000001")
    assert at(day, 0).astimezone(UTC).day == 30
    rollups.rebuild(conn, day, day)  # one from the rollup, one from the rows
    of_day, of_next, of_both = (
        figures(conn, day, day),
        figures(conn, day + DAY, day + DAY),
        figures(conn, day, day + DAY),
    )
    assert (of_day.reissues, of_day.people, of_day.sent) == (2, 1, {"issued": 2})
    assert (of_next.reissues, of_next.people, of_next.sent) == (1, 1, {"issued": 1})
    assert (of_both.reissues, of_both.people, of_both.received) == (3, 1, {"issued": 3})
    assert [(heavy.month.month, heavy.count) for heavy in of_both.heaviest] == [(3, 2), (4, 1)]


def test_today_is_live_beside_what_is_rolled_up(conn, now, today):
    case(conn, at(today - DAY), "0000000001")
    case(conn, at(today - 2 * DAY), "0000000002")
    assert keep_built(conn)
    before = figures(conn, today - 2 * DAY, today)
    case(conn, now, "0000000001", used=60)
    message(conn, now, None)
    after = figures(conn, today - 2 * DAY, today)
    assert (before.reissues, before.people, before.returned) == (2, 2, 0)
    assert (after.reissues, after.people, after.returned) == (3, 2, 1)
    assert after.received == {"waiting": 1} and after.live
    assert after.seconds_to_sign_in["sms"].count == 1


def test_they_survive_retention_and_a_rebuild_after_it(conn, now, today, monkeypatch):
    first = today - 140 * DAY
    live_through(conn, first, now, seed=3)
    conn.execute("update inbox set outcome = 'silenced' where outcome is null")  # retention passes none by
    plain = Plain(conn)
    keep = dataclasses.replace(
        KEEP, texts=31 * DAY, phones=31 * DAY, accounts=65 * DAY, events=DAY, guesses=DAY, links=DAY
    )
    keep_built(conn)
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", lambda seconds: None)
    months = [
        (month, rollups.last_of_month(month))
        for month in sorted({day.replace(day=1) for day in rollups.days_between(first, today)})
    ]
    heaviest = {month: figures(conn, *month).heaviest for month in months}
    gone = {}
    assert retention.run(conn, keep, stop, lambda done: gone.update({done.name: done.rows}))
    assert gone["cases"] > 100 and gone["messages"] > 50 and gone["figures"] > 10
    # Of a month whose phones are still there, all.
    young = (today - 31 * DAY).replace(day=1)
    [[kept]] = conn.execute("select max(number) from figures_heavy where month = %s", [young]).fetchall()
    assert kept > FiguresHeavy.FOR_EVER
    # No period here is longer than accounts are kept, and none of those with which it is compared.
    periods = [(begin, min(end, begin + 60 * DAY)) for begin, end in periods_of(first, today, 12)]
    agree(conn, plain, [*periods, *months])
    rollups.rebuild(conn, None, None)
    agree(conn, plain, [*periods, *months])
    # The heaviest of a month stay as they were, masked; of a part of one that is over, not for certain.
    assert {month: figures(conn, *month).heaviest for month in months} == heaviest
    (begin, end) = months[1]
    part = figures(conn, begin + DAY, end - DAY)
    assert not part.heaviest_certain
    assert 0 < len(part.heaviest) <= FiguresHeavy.FOR_EVER
    [[kept]] = conn.execute("select max(number) from figures_heavy where month = %s", [begin]).fetchall()
    assert kept == FiguresHeavy.FOR_EVER


def test_no_rollup_names_a_person(conn, now, today):
    live_through(conn, today - 20 * DAY, now, seed=4)
    keep_built(conn)
    rows = conn.execute(
        "select m::text from figures_messages m union all select r::text from figures_reissues r"
        " union all select t::text from figures_times t union all select h::text from figures_heavy h"
    ).fetchall()
    text_ = "\n".join(row for (row,) in rows)
    phones = {phone for (phone,) in conn.execute("select distinct phone from reissue_case").fetchall()}
    assert len(phones) > 10 and "0327xxx" in text_
    assert not [phone for phone in phones if phone.removeprefix("+84") in text_]
    assert not [n for n in range(60) if f"{n:010}" in text_]


# --- what they mean ---------------------------------------------------------------------------------


def test_the_months_before_a_period_are_counted_back_from_its_first_day():
    assert months_before(date(2021, 9, 29), 3) == date(2021, 6, 29)
    assert months_before(date(2026, 1, 1), 3) == date(2025, 10, 1)
    assert months_before(date(2026, 5, 31), 3) == date(2026, 2, 28)
    assert months_before(date(2026, 3, 15), 24) == date(2024, 3, 15)


def test_the_growth_is_over_as_many_months_as_are_asked_for(conn, today):
    for day, count in (
        (date(2026, 1, 31), 9),
        (date(2026, 2, 1), 2),
        (date(2026, 2, 28), 2),
        (date(2026, 3, 1), 6),
    ):
        for n in range(count):
            case(conn, at(day), f"{n:010}")
    march = date(2026, 3, 1), date(2026, 3, 31)
    assert figures(conn, *march, months=1).growth == 0.5
    assert figures(conn, *march, months=2).growth == pytest.approx(6 / 6.5 - 1)
    assert figures(conn, date(2026, 1, 31), date(2026, 1, 31)).growth is None


def test_who_comes_back_comes_within_thirty_days(conn, today):
    for account, days in (("0000000001", 30), ("0000000002", 31), ("0000000003", 0)):
        case(conn, at(today - DAY, 10) - days * DAY, account)
        case(conn, at(today - DAY, 11), account)
    for _ in range(2):
        found = figures(conn, today - DAY, today)
        assert (found.reissues, found.people, found.returned) == (4, 3, 2)
        keep_built(conn)


def test_kinds_that_nobody_knows_are_counted_under_their_own_names(conn, today):
    text(conn, at(today - DAY), "a kind of tomorrow")
    message(conn, at(today - DAY), "an outcome of tomorrow", state="state of tomorrow")
    keep_built(conn)
    found = figures(conn, today - DAY, today)
    assert found.sent == {"a kind of tomorrow": 1}
    assert found.unsent == {"state of tomorrow": 1}
    assert found.received == {"an outcome of tomorrow": 1}


def test_the_heaviest_of_a_part_of_a_month_are_told_from_what_is_kept_where_that_is_enough(conn, monkeypatch):
    """Phone n asks n times in the first half of the month, and phone 99 twenty times in the second."""
    month = date(2026, 3, 1)
    for n in range(1, 31):
        for again in range(n):
            case(conn, at(month + again % 14 * DAY, 1 + again // 14), f"{2 * n:010}")
    for n in range(20):
        case(conn, at(date(2026, 3, 16) + n % 14 * DAY, 1 + n // 14), "0000000198")
    monkeypatch.setattr(rollups, "HEAVY", 15)
    rollups.rebuild(conn, month, date(2026, 3, 31))
    conn.execute("update reissue_case set phone = ''")  # from now on, from what is kept
    first_half = figures(conn, month, date(2026, 3, 14))
    assert [heavy.count for heavy in first_half.heaviest] == list(range(30, 20, -1))
    assert first_half.heaviest[0].phone == "0327xxx030"
    assert first_half.heaviest_certain  # the fifteenth had sixteen in the whole month
    second_half = figures(conn, date(2026, 3, 15), date(2026, 3, 31))
    assert [heavy.count for heavy in second_half.heaviest] == [20]
    assert not second_half.heaviest_certain


def test_who_asks_today_is_among_the_heaviest_of_the_month(conn, now, today):
    for n in range(12):
        case(conn, at(today - DAY, n), f"{2 * n:010}")
    keep_built(conn)
    for _ in range(3):
        case(conn, now, "0000000098")
    found = figures(conn, today - DAY, today)
    assert [heavy.count for heavy in found.heaviest[:2]] == [3, 1]
    assert (found.heaviest[0].phone, found.heaviest_certain) == ("0327xxx049", True)


def test_accounts_are_those_at_the_end_of_the_period_as_near_as_they_were_counted(conn, today):
    def approve(*codes):
        conn.execute(
            "insert into account (code, phone, state)"
            " select code, '+84327000686', 'approved' from unnest(%s::text[]) code",
            [list(codes)],
        )

    assert figures(conn, today, today).approved_accounts == 0
    approve("0000000001", "0000000002")
    conn.execute("insert into account (code, phone) values ('0000000003', '+84327000686')")
    assert figures(conn, today - 90 * DAY, today - 80 * DAY).approved_accounts == 2  # never counted: now
    rollups.rebuild(conn, None, None)
    conn.execute("update figures_accounts set counted_at = counted_at - interval '80 days', day = day - 80")
    approve("0000000004")
    rollups.rebuild(conn, None, None)
    approve("0000000005")
    assert figures(conn, today, today).approved_accounts == 4  # live
    assert figures(conn, today - 20 * DAY, today - DAY).approved_accounts == 3
    assert figures(conn, today - 90 * DAY, today - 79 * DAY).approved_accounts == 2


# --- being built ------------------------------------------------------------------------------------


def test_a_day_is_built_again_while_things_still_happen_to_it(conn, today):
    signed_in = case(conn, at(today - 2 * DAY), "0000000001", used=None)
    case(conn, at(today - 20 * DAY), "0000000001")
    assert keep_built(conn) == list(rollups.days_between(today - 20 * DAY, today - DAY))
    assert keep_built(conn) == []
    conn.execute("update reissue_case set ended_as = 'used' where id = %s", [signed_in])
    assert figures(conn, today - 2 * DAY, today).seconds_to_sign_in == {}
    conn.execute("update figures_day set built_at = built_at - interval '1 day'")  # a day has passed
    again = keep_built(conn)
    assert again == list(rollups.days_between(again[0], today - DAY))
    assert again[0] == today - 6 * DAY
    assert figures(conn, today - 2 * DAY, today).seconds_to_sign_in["sms"].count == 1


def test_a_day_is_over_when_nobody_can_commit_to_it_any_more(monkeypatch):
    monkeypatch.undo()
    assert rollups._last_closed(at(date(2026, 3, 2), 0, 14)) == date(2026, 2, 28)
    assert rollups._last_closed(at(date(2026, 3, 2), 0, 15)) == date(2026, 3, 1)


def test_stopped_anywhere_it_counts_nothing_twice_and_goes_on(conn, now, today):
    first = today - 80 * DAY
    live_through(conn, first, now, seed=5)
    plain = Plain(conn)
    with pytest.raises(KeyboardInterrupt):
        rollups.rebuild(conn, None, None, lambda upto: (_ for _ in ()).throw(KeyboardInterrupt))
    [[some]] = conn.execute("select count(*) from figures_day").fetchall()
    assert 0 < some < 80
    agree(conn, plain, [(first, today)])
    assert len(keep_built(conn)) > 40
    agree(conn, plain, [(first, today)])


def test_two_at_once_do_it_once(conn, today):
    case(conn, at(today - DAY), "0000000001")
    with connect() as other:
        other.execute("select pg_advisory_lock(%s)", [rollups._LOCK])
        assert keep_built(conn) is None
        with pytest.raises(rollups.Busy):
            rollups.rebuild(conn, None, None)
        other.execute("select pg_advisory_unlock(%s)", [rollups._LOCK])
    assert keep_built(conn) == [today - DAY]


def test_an_engine_rolls_up_before_it_removes(transactional_db, conn, today, monkeypatch):
    day = (today - 250 * DAY).replace(day=2)
    message(conn, at(day), case=case(conn, at(day), "0000000001"), account="0000000001")
    monkeypatch.setattr(engine, "HOUSEWORK_AFTER", (0, 0))

    async def live():
        alive = Engine(settings.CAPLAI, settings.KEYRING)
        await alive.start()
        async with asyncio.timeout(60):
            while conn.execute("select phone from reissue_case").fetchall() != [("",)]:
                await asyncio.sleep(0.05)
        await alive.stop()

    asyncio.run(live())
    found = figures(conn, day.replace(day=1), rollups.last_of_month(day))
    assert [heavy.count for heavy in found.heaviest] == [1]
    assert found.heaviest_certain


def test_an_engine_that_is_stopped_does_not_finish_a_long_day(transactional_db, conn, today, monkeypatch):
    case(conn, at(today - DAY), "0000000001")
    slow = "select %(begin)s::date as day, 'x', 'x', 1 from pg_sleep(600)"
    monkeypatch.setitem(rollups.ROLLUPS, "figures_messages", ("day, state, kind, count", slow))
    monkeypatch.setattr(engine, "HOUSEWORK_AFTER", (0, 0))

    async def live():
        alive = Engine(settings.CAPLAI, settings.KEYRING)
        await alive.start()
        async with asyncio.timeout(60):
            while not conn.execute("select from pg_stat_activity where wait_event = 'PgSleep'").fetchall():
                await asyncio.sleep(0.05)
        await alive.stop()

    asyncio.run(live())
    assert conn.execute("select from figures_day").fetchall() == []


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture
def caplai(conn, monkeypatch):
    monkeypatch.setenv("CAPLAI_DATABASE_URL", conninfo())
    return lambda *words: CliRunner().invoke(main, ["figures", *words])


def test_the_published_history_prints_the_published_figures(conn, caplai):
    """Everything at a ten-thousandth, but for the three that asked most."""
    make_history(conn, Totals.at(1e-4))
    built = caplai("rebuild", "--to", "18/10/2021")
    assert (built.exit_code, built.stdout) == (0, "291 days built\n")
    year = caplai("--from", "2021-01-01", "--to", "2021-10-18").stdout
    for line in (
        "Số liệu cấp lại mật khẩu từ 1/1/2021 đến hết 18/10/2021",
        "Tài khoản đã được phê duyệt 2.164 (đếm lúc",
        "Tin nhắn đã gửi 1.136\n",
        "mã OTP (otp) 568\n",
        "mật khẩu mới (password) 568\n",
        "Lượt cấp lại mật khẩu 568 26 % số tài khoản\n",
    ):
        assert line in squeezed(year)
    period = squeezed(caplai("--from", "29/9/2021", "--to", "15/10/2021").stdout)
    assert "Lượt cấp lại mật khẩu 180 8,3 % số tài khoản\n" in period
    assert "So với bình quân 3 tháng trước +200 % 60 lượt một tháng, 29/6/2021 đến hết 28/9/2021\n" in period
    assert "0900xxx001 10/2021 47\n0900xxx002 10/2021 45\n0900xxx003 10/2021 43\n" in period
    english = squeezed(caplai("--from", "2021-01-01", "--to", "2021-10-18", "--lang", "en").stdout)
    assert "Approved accounts 2,164 (counted" in english and "\npassword 568\n" in english
    found = json.loads(caplai("--from", "2021-09-29", "--to", "2021-10-15", "--json").stdout)
    assert list(found) == [
        "from", "to", "at", "approved_accounts", "approved_accounts_at", "messages", "reissues",
        "reissues_share_of_accounts", "people",
        "growth_over_months_before", "heaviest", "seconds_to_reply", "seconds_to_sign_in", "returned_within_30_days",
    ]  # fmt: skip
    assert found["messages"] == {"otp": 180, "password": 180, "received": 0}
    assert (found["from"], found["to"]) == ("2021-09-29", "2021-10-15")
    for moment in "at", "approved_accounts_at":
        assert found[moment].endswith("+07:00") and datetime.fromisoformat(found[moment]) <= datetime.now(UTC)
    assert (found["reissues"], found["growth_over_months_before"]) == (180, 2.0)
    assert found["heaviest"][0] == {"phone": "0900xxx001", "count": 47, "month": "2021-10"}
    lines = caplai("--from", "2021-09-29", "--to", "2021-10-15", "--csv").stdout.splitlines()
    assert lines[:3] == ["figure,of,value", "from,,2021-09-29", "to,,2021-10-15"]
    assert {"approved_accounts,,2164", "messages,otp,180", "messages,password,180"} < set(lines)
    assert "heaviest,0900xxx002 2021-10,45" in lines
    assert any(line.startswith("seconds_to_reply,viettel p99,") for line in lines)


def squeezed(printed):
    """Without what puts it into columns."""
    return "".join(f"{' '.join(line.split())}\n" for line in printed.splitlines())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "Name the period: --from DATE --to DATE."),
        ("--from 2026-02-02 --to 2026-02-01", "ends (2026-02-01) before it begins (2026-02-02)"),
        (
            "--from 2026-02-30 --to 2026-03-01",
            "'2026-02-30' is no day of these times. Write it as 2021-10-15, or 15/10/2021.",
        ),
        ("--from 0001-01-01 --to 2026-03-01", "'0001-01-01' is no day of these times."),
        ("--from 2026-02-01 --to 2026-03-01 --json --csv", "one of --json and --csv"),
        ("--from 2026-02-01 rebuild", "Options of rebuild come after its name."),
        ("--from 2026-02-01 --to 2026-03-01 --months 0", "--months"),
    ],
)
def test_what_cannot_be_asked_is_told(caplai, words, says):
    done = caplai(*words.split())
    assert done.exit_code == 2
    assert says in done.stderr


def test_an_empty_store_has_figures_too(caplai, today):
    done = caplai("--from", str(today), "--to", str(today + DAY))
    assert done.exit_code == 0, done.output
    assert "chưa có" in done.stdout and "Hôm nay tính đến" in done.stdout
    found = json.loads(caplai("--from", str(today), "--to", str(today), "--json").stdout)
    assert found["reissues"] == 0 and found["messages"] == {"received": 0}
    assert found["growth_over_months_before"] is None and found["returned_within_30_days"] is None


def test_a_rebuild_beside_an_engine_that_is_at_it_says_so(caplai, conn):
    conn.execute("select pg_advisory_lock(%s)", [rollups._LOCK])
    busy = caplai("rebuild")
    assert busy.exit_code == 1 and "An engine is building them" in busy.stderr
