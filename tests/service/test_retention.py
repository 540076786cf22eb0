"""Retention: what names a person goes, figures and unfinished work stay, and nobody is kept waiting."""

import asyncio
import dataclasses
import functools
import random
import threading
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import psycopg
import pytest
from click.testing import CliRunner
from django.conf import settings
from django.utils import timezone

from caplai import engine
from caplai.cli import main
from caplai.config import RetentionSettings
from caplai.domain.issuing import new_case_ids
from caplai.engine import Engine, retention_rules
from caplai.service import locks, retention
from caplai.service.reissue import reissue_inbox
from caplai.store import queues
from caplai.store.db import connect, conninfo

ZONE = ZoneInfo("Asia/Ho_Chi_Minh")
KEEP = dataclasses.replace(retention_rules(settings.CAPLAI), rate=100_000)
PHONE = "+84327000686"


def days(count):
    return timedelta(days=count)


def run(conn, keep=KEEP, stop=None):
    """A run; what each kind of data lost."""
    done = {}
    assert retention.run(
        conn, keep, stop or threading.Event(), lambda each: done.update({each.name: each.rows})
    )
    return {name: rows for name, rows in done.items() if rows}


def due(conn, keep=KEEP):
    return {each.name: each.rows for each in retention.due(conn, keep) if each.rows}


def message(conn, age, outcome="issued", *, case=None, phone=PHONE, text="BH MK 0123456789", error=None):
    [[id_]] = conn.execute(
        "insert into inbox (received_at, link, request_id, source, destination, text, decided_at, outcome, case_id,"
        " error) values (now() - %s, 'viettel', gen_random_uuid(), %s, '8079', %s, now() - %s, %s, %s, %s)"
        " returning id",
        [age, phone, text, age, outcome, case, error],
    ).fetchall()
    return id_


def reply(
    conn, age, inbox=None, *, kind="issued", case=None, account=None, state="sent", due_in=0, phone=PHONE
):
    conn.execute(
        "insert into outbox (created_at, inbox_id, kind, wording, account, case_id, link, sender, destination, state,"
        " due_at, settled_at, message_id) values (now() - %(age)s, %(inbox)s, %(kind)s, 1, %(account)s, %(case)s,"
        " 'viettel', '8079', %(phone)s, %(state)s, now() + %(due)s * interval '1 s',"
        " case when %(state)s not in ('ready', 'claimed') then now() - %(age)s + interval '2 s' end, 'A1')",
        {"age": age, "inbox": inbox, "kind": kind, "case": case, "account": account, "state": state}
        | {"due": due_in, "phone": phone},
    )


def case(conn, opened_at, account="0123456789", *, phone=PHONE, used_after=None, open_=False):
    id_ = next(new_case_ids())
    ended = None if open_ else opened_at + (used_after or timedelta(hours=24))
    how = None if open_ else "used" if used_after else "expired"
    conn.execute(
        "insert into reissue_case (account, id, phone, channel, key, version, length, alphabet, texts, opened_at,"
        " expires_at, ended_at, ended_as) values (%s, %s, %s, 'sms', 'k', 1, 6, '0123456789', 1, %s, %s, %s, %s)",
        [account, id_, phone, opened_at, opened_at + timedelta(hours=24), ended, how],
    )
    return id_


# --- figures ---------------------------------------------------------------------------------------

# What a report reads: facts of a case that hold whether its account is there or not.
FACTS = """
with facts as materialized (
    select c.*, (opened_at at time zone 'Asia/Ho_Chi_Minh')::date as day,
        to_char(opened_at at time zone 'Asia/Ho_Chi_Minh', 'YYYY-MM') as month,
        case when account = '' then previous_on else coalesce(
            (lag(opened_at) over (partition by account order by opened_at, id)
                at time zone 'Asia/Ho_Chi_Minh')::date, previous_on) end as previous,
        case when account = '' then c.nth else row_number() over (partition by account, date_trunc('month',
            opened_at at time zone 'Asia/Ho_Chi_Minh') order by opened_at, id) end as number
    from reissue_case c
)
"""
TODAY = datetime.now(UTC).date()
"""Also after a midnight in the middle of a test."""
FIGURES = {
    "messages by kind and link": "select link, outcome, count(*) from inbox group by 1, 2 order by 1, 2",
    "replies by kind and state": "select link, kind, state, count(*) from outbox group by 1, 2, 3 order by 1, 2, 3",
    "re-issues by month": FACTS + "select month, count(*) from facts group by 1 order by 1",
    "distinct people by month": FACTS
    + "select month, count(*) filter (where coalesce(to_char(previous, 'YYYY-MM'), '') < month) from facts"
    " group by 1 order by 1",
    "distinct people of 90 days": FACTS
    + "select d::date, (select count(*) from facts where day >= d::date and day < d::date + 90"
    " and (previous is null or previous < d::date))"
    f" from generate_series(timestamptz '{TODAY}' - interval '700 days', '{TODAY}', '37 days') d",
    "people by number of re-issues": FACTS
    + "select month, number, count(*) from facts group by 1, 2 order by 1, 2",
    "came back within 30 days": FACTS
    + "select month, count(*) filter (where day - previous <= 30) from facts group by 1 order by 1",
    "seconds to the reply": "select i.link, percentile_disc(array[0.5, 0.99]) within group"
    " (order by o.settled_at - i.received_at) from inbox i join outbox o on o.inbox_id = i.id group by 1",
    "seconds to the sign-in": "select i.link, percentile_disc(0.5) within group (order by c.ended_at - i.received_at)"
    " from inbox i join reissue_case c on c.id = i.case_id where c.ended_as = 'used' and i.outcome = 'issued'"
    " group by 1",
}


def figures(conn):
    return {name: conn.execute(query).fetchall() for name, query in FIGURES.items()}


def two_years(conn, people=70):
    """People who came back seldom, often, and on the edges of months, over 700 days, in the order of time."""
    draw = random.Random(8079)
    now = datetime.now(UTC)
    happened = []
    for number in range(people):
        who = f"{number:010}", f"+84327{number:06}"
        for _ in range(draw.choice((1, 2, 9))):
            happened.append((days(700) * draw.random(), *who, draw.random() < 0.9))
    for age, account, phone, right in sorted(happened, reverse=True):
        id_ = None
        if right:
            used = timedelta(minutes=draw.randrange(1, 600)) if draw.random() < 0.7 else None
            id_ = case(conn, now - age, account, phone=phone, used_after=used)
        kind = "issued" if right else "mismatch"
        texted = message(conn, age, kind, case=id_, phone=phone)
        reply(conn, age, texted, kind=kind, case=id_, account=account if right else None, phone=phone)


@pytest.fixture
def history(conn):
    with conn.transaction():
        two_years(conn)


def test_every_figure_is_the_same_before_amid_and_after(conn, history, monkeypatch):
    before = figures(conn)
    [[distinct]] = conn.execute("select count(distinct account) from reissue_case").fetchall()
    [[facts]] = conn.execute(FACTS + "select count(*) from facts where previous is null").fetchall()
    assert distinct == facts > 60

    monkeypatch.setattr(retention, "STEP", 20)
    stop = threading.Event()
    steps = []
    step = retention._step

    def watched(*given):
        steps.append(step(*given))
        if len(steps) % 9 == 0:
            assert figures(conn) == before
        return steps[-1]

    monkeypatch.setattr(retention, "_step", watched)
    monkeypatch.setattr(stop, "wait", lambda seconds: None)
    first = due(conn)
    assert run(conn, stop=stop) == first
    assert first["cases"] > 80 and first["messages"] > 80
    assert figures(conn) == before
    assert due(conn) == {}

    # Months later more of it is too old: the carried facts are carried on. Accounts are kept for 60 days now.
    later = dataclasses.replace(KEEP, phones=days(40), texts=days(40), accounts=days(60))
    assert run(conn, later, stop)["cases"] > 40
    assert figures(conn) == before
    assert len(steps) > 25


def test_what_is_too_old_names_nobody(conn, history):
    run(conn)
    limits = {
        "select text from inbox where received_at < now() - interval '90 days'": "",
        "select source from inbox where received_at < now() - interval '180 days'": "",
        "select destination from outbox where created_at < now() - interval '180 days'": "",
        "select account from outbox where created_at < now() - interval '180 days'": None,
        "select phone from reissue_case where opened_at < now() - interval '212 days'": "",
        "select account from reissue_case where opened_at < now() - interval '432 days'": "",
    }
    for query, value in limits.items():
        rows = conn.execute(query).fetchall()
        assert len(rows) > 20
        assert set(rows) == {(value,)}, query
    # And what is younger has all of it.
    young = "select count(*) from inbox where received_at > now() - interval '90 days' and (text = '' or source = '')"
    assert conn.execute(young).fetchall() == [(0,)]
    young = "select count(*) from reissue_case where opened_at > now() - interval '180 days' and phone = ''"
    assert conn.execute(young).fetchall() == [(0,)]
    young = "select count(*) from reissue_case where opened_at > now() - interval '400 days' and account = ''"
    assert conn.execute(young).fetchall() == [(0,)]


def test_a_month_is_the_agencys_and_goes_as_a_whole():
    keep = dataclasses.replace(KEEP, zone=ZONE)
    at = datetime(2026, 9, 30, 17, 0, tzinfo=UTC)  # 1 October in Vietnam
    assert keep.month(at + days(180), days(180)) == datetime(2026, 10, 1, tzinfo=ZONE)
    assert keep.month(at + days(180) - timedelta(seconds=1), days(180)) == datetime(2026, 9, 1, tzinfo=ZONE)


# --- unfinished work -------------------------------------------------------------------------------


def test_a_waiting_message_keeps_its_text_and_a_parked_one_is_given_up(conn):
    parked = message(conn, days(91), None, error="ValueError")
    waiting = message(conn, days(91), None)
    behind = message(conn, days(91))
    assert run(conn)["texts"] == 1
    columns = "select id, text, outcome, error from inbox order by id"
    text = "BH MK 0123456789"
    assert conn.execute(columns).fetchall() == [
        (parked, "", "given_up", "ValueError"),
        (waiting, text, None, None),
        (behind, text, "issued", None),
    ]
    conn.execute("update inbox set outcome = 'mismatch' where id = %s", [waiting])
    assert run(conn)["texts"] == 2
    assert conn.execute("select distinct text from inbox").fetchall() == [("",)]


def test_a_reply_that_no_link_sends_is_closed_and_one_that_is_held_is_left(conn):
    reply(conn, days(181), state="ready", account="0123456789")
    reply(conn, days(181), state="claimed", due_in=60, account="0123456789")
    assert run(conn) == {"replies": 1}
    columns = "select state, destination, account, settled_at is null from outbox order by id"
    assert conn.execute(columns).fetchall() == [
        ("expired", "", None, False),
        ("claimed", PHONE, "0123456789", True),
    ]


def test_a_case_that_nobody_ended_is_ended_as_it_did(conn):
    opened_at = datetime.now(UTC) - days(500)
    case(conn, opened_at, open_=True)
    case(conn, datetime.now(UTC))
    run(conn)
    rows = conn.execute(
        "select account, ended_at, ended_as, previous_on from reissue_case order by opened_at"
    ).fetchall()
    day = opened_at.astimezone(ZONE).date()
    assert rows == [("", opened_at + timedelta(hours=24), "expired", None), rows[1]]
    assert (rows[1][0], rows[1][3]) == ("0123456789", day)


def test_the_rest_is_removed(conn):
    conn.execute("""
        insert into event (at, kind, data) values (now() - interval '401 days', 'x', '{}'), (now(), 'y', '{}');
        insert into receipt (received_at, link, message_ids)
            values (now() - interval '91 days', 'v', '{A}'), (now(), 'v', '{B}');
        insert into link_session (link, engine, seen_at)
            values ('v', 'gone', now() - interval '91 days'), ('v', 'alive', now());
        insert into process (name, kind, version, keys, seen_at)
            values ('gone', 'web', '1', '{}', now() - interval '91 days'), ('alive', 'web', '1', '{}', now());
        insert into segment (link, source, destination, reference, total, number, source_ton, source_npi, coding,
            payload, received_at)
            values ('v', 'a', '8079', 1, 2, 1, 1, 1, 0, 'x', now() - interval '91 days'),
                   ('v', 'b', '8079', 1, 2, 1, 1, 1, 0, 'x', now());
        insert into taken_over_password (code, hash, taken_at)
            values ('0123456789', 'x', now() - interval '401 days'), ('0000000042', 'x', now());
        insert into figures_heavy (month, number, day, phone, count)
            select now()::date - 212, number, now()::date - 212, '0327xxx686', 1 from (values (10), (11)) n (number);
        insert into guess (at, network) values (now() - interval '73 hours', 'old'), (now(), 'new');
        insert into mail (name, kind, account, until, created_at)
            select gen_random_uuid(), kind, '', now(), now() - days * interval '1 day'
            from (values ('old', 91), ('new', 89)) m (kind, days);
        insert into address (name, account, email, codes, tries, added_at, confirmed_at, removed_at)
            select gen_random_uuid(), '', email, 1, 0, now() - interval '500 days', now() - interval '400 days',
                now() - removed * interval '1 day'
            from (values ('kept', null), ('removed', 91)) a (email, removed);
        insert into hold (account, by, since, lifted_at, lifted_by)
            select account, 'mail', now() - interval '500 days', now() - lifted * interval '1 day', 'x'
            from (values ('lifted', 401), ('standing', null)) h (account, lifted);
        insert into django_session values ('old', '', now() - interval '1 s'), ('new', '', now() + interval '1 h');
    """)
    gone = run(conn)
    assert gone == dict.fromkeys(
        (
            "events",
            "old-passwords",
            "receipts",
            "mails",
            "addresses",
            "holds",
            "binds",
            "processes",
            "figures",
            "parts",
            "guesses",
            "sign-ins",
        ),
        1,
    )
    for query in (
        "select kind from event where kind = 'y'",
        "select message_ids[1] from receipt where message_ids = '{B}'",
        "select engine from link_session where engine = 'alive'",
        "select name from process where name = 'alive'",
        "select source from segment where source = 'b'",
        "select code from taken_over_password where code = '0000000042'",
        "select network from guess where network = 'new'",
        "select kind from mail where kind = 'new'",
        "select email from address where email = 'kept'",
        "select account from hold where account = 'standing'",
        "select session_key from django_session where session_key = 'new'",
        "select phone from figures_heavy where number = 10",
    ):
        [[left]] = conn.execute(query).fetchall()
        [[count]] = conn.execute(f"select count(*) from {query.split()[3]}").fetchall()
        assert left and count == 1, query
    assert {name: rows for name, *_, rows in retention.status(conn, KEEP) if rows} == gone


def test_addresses_go_by_an_index_however_many_stay(conn):
    conn.execute("""
        insert into address (name, account, email, codes, tries, added_at, confirmed_at)
            select gen_random_uuid(), n::text, 'kept', 1, 0, now() - interval '900 days', now()
            from generate_series(1, 20000) n;
        insert into address (name, account, email, codes, tries, added_at, confirmed_at, removed_at)
            select gen_random_uuid(), 'x', email, 1, 0, now() - added * interval '1 day',
                now() - confirmed * interval '1 day', now() - removed * interval '1 day'
            from (values ('removed', 500, 400, 91), ('never', 500, null, 91), ('lately', 500, 400, 89),
                         ('forgotten', 91, null, null)) a (email, added, confirmed, removed);
        insert into address (name, account, email, codes, tries, added_at)
            select gen_random_uuid(), 'y', 'typing', 1, 0, now() - interval '89 days';
        analyze address
    """)
    [job] = (job for job in retention.JOBS if job.name == "addresses")
    plan = "\n".join(
        line
        for (line,) in conn.execute(
            f"explain delete from address where id in ({job.some}) and {job.old}",
            {"before": timezone.now() - KEEP.links, "count": retention.STEP},
        ).fetchall()
    )
    assert "Seq Scan" not in plan and "address_removed" in plan and "address_unconfirmed" in plan, plan
    assert run(conn) == {"addresses": 3}
    left = conn.execute("select email from address where email <> 'kept' order by 1").fetchall()
    assert left == [("lately",), ("typing",)]


# --- beside others ---------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def test_killed_in_any_step_it_goes_on_where_it_was(conn, history, monkeypatch):
    before, expected = figures(conn), due(conn)
    monkeypatch.setattr(retention, "STEP", 50)
    draw = random.Random(3)
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", lambda seconds: None)

    def killed_after_its_work(job, *given, step):
        result = step(job, *given)
        if draw.random() < 0.3:
            raise Killed
        return result

    for job in (retention._Walk, retention._Cases):
        monkeypatch.setattr(job, "step", functools.partialmethod(killed_after_its_work, step=job.step))
    runs = 0
    while due(conn):
        runs += 1
        with connect() as own:
            try:
                run(own, stop=stop)
            except Killed:
                assert figures(conn) == before
    assert runs > 5
    [[ever]] = conn.execute("select sum(rows) from retention").fetchall()
    assert ever == sum(expected.values())


def test_two_at_once_do_it_once(conn):
    message(conn, days(100))
    with connect() as other:
        other.execute("select pg_advisory_lock(%s)", [retention._LOCK])
        assert not retention.run(conn, KEEP, threading.Event())
        assert due(conn)
        other.execute("select pg_advisory_unlock(%s)", [retention._LOCK])
        assert run(conn)


def test_it_gives_way_to_who_holds_a_row_and_holds_nobody_up(conn, monkeypatch):
    message(conn, days(100))
    stop = threading.Event()
    waits = []
    monkeypatch.setattr(stop, "wait", waits.append)
    monkeypatch.setattr(retention, "_PATIENCE", 3)
    with connect() as flow, flow.transaction():
        flow.execute("select from inbox for update")
        done = []
        assert retention.run(conn, KEEP, stop, done.append)
        assert done[0].left and done[0].rows == 0
        assert waits[: retention._PATIENCE] == [1.0] * retention._PATIENCE
    assert run(conn) == {"texts": 1}


def test_it_waits_for_who_decides_about_an_account(conn, monkeypatch):
    case(conn, datetime.now(UTC) - days(500), open_=True)
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", lambda seconds: None)
    monkeypatch.setattr(retention, "_PATIENCE", 3)
    with connect() as flow, flow.transaction():
        locks.take(flow, [locks.account_key("0123456789")])
        assert run(conn, stop=stop) == {}
    assert run(conn) == {"cases": 1}


def test_messages_come_in_and_are_decided_while_a_step_is_under_way(conn, rules, lan, monkeypatch):
    case(conn, datetime.now(UTC) - days(500), "0000000001")
    for age in (500, 200, 100):
        message(conn, days(age))
    passed = []

    def with_the_flow_beside_it(self, *given, step):
        result = step(self, *given)
        with connect() as other:  # our step is not committed yet
            other.execute("set lock_timeout = '1s'")
            arrival = queues.Arrival("84327000686", 1, 1, "8079", 0, "BH MK 0123456789")
            queues.accept(other, "viettel", None, [arrival], None)
            assert reissue_inbox(other, rules, 10) == 1
        passed.append(self)
        return result

    for job in (retention._Walk, retention._Cases):
        monkeypatch.setattr(job, "step", functools.partialmethod(with_the_flow_beside_it, step=job.step))
    assert run(conn) == {"texts": 3, "messages": 2, "cases": 1}
    assert len(passed) == 5  # replies and cases are looked at twice, or once where there is nothing
    [[decided]] = conn.execute("select count(*) from inbox where text <> ''").fetchall()
    assert decided == len(passed)


def test_a_full_engine_runs_it(transactional_db, conn, monkeypatch):
    message(conn, days(100))
    monkeypatch.setattr(engine, "HOUSEWORK_AFTER", (0, 0))

    async def live():
        alive = Engine(settings.CAPLAI, settings.KEYRING)
        await alive.start()
        async with asyncio.timeout(60):
            while conn.execute("select text from inbox").fetchall() != [("",)]:
                await asyncio.sleep(0.05)
        await alive.stop()

    asyncio.run(live())


# --- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"texts": days(200)}, "texts must not outlive phones"),
        ({"phones": days(30), "texts": days(1)}, "retention.phones must be 31 days"),
        ({"events": days(500)}, "events must not outlive accounts"),
        ({"texts": timedelta(hours=1)}, "retention.texts must be 1 day"),
    ],
)
def test_a_retention_that_would_break_something_is_refused(values, says):
    with pytest.raises(ValueError, match=says):
        RetentionSettings(**values)


def test_a_lost_database_is_raised_and_the_next_run_goes_on(conn):
    message(conn, days(200))
    with connect() as lost:
        lost.execute("select 1")
        [[pid]] = lost.execute("select pg_backend_pid()").fetchall()

        def report(done):
            conn.execute("select pg_terminate_backend(%s)", [pid])

        with pytest.raises(psycopg.OperationalError):
            retention.run(lost, KEEP, threading.Event(), report)
    assert run(conn)


# --- the commands ----------------------------------------------------------------------------------


def test_the_commands_count_remove_and_tell(conn, history, monkeypatch):
    monkeypatch.setenv("CAPLAI_DATABASE_URL", conninfo())
    monkeypatch.setenv("CAPLAI_RETENTION__RATE", "100000")

    def caplai(*words):
        return CliRunner().invoke(main, ["retention", *words])

    [texts] = [line for line in caplai("run", "--dry-run").stdout.splitlines() if "texts of messages" in line]
    count = int(texts.split()[0])
    assert count > 80 and "older than" in texts
    assert "all gone: never" in caplai("status").stdout
    done = caplai("run")
    assert done.exit_code == 0, done.output
    assert f"{count:>12}  texts of messages" in done.stdout
    counted, *removed = done.stdout.splitlines()
    assert "days counted for the figures" in counted and "texts of messages" in "".join(removed)
    assert conn.execute("select sum(count) from figures_reissues").fetchone() > (80,)
    assert f"rows ever: {count}" in caplai("status").stdout
    conn.execute("select pg_advisory_lock(%s)", [retention._LOCK])
    busy = caplai("run")
    assert busy.exit_code == 1 and "Another run is at it" in busy.stderr


def test_where_somebody_was_signed_in_goes_with_the_session(conn):
    conn.execute(
        "insert into django_session values ('lives', '', now() + interval '1 hour'), ('over', '', now())"
    )
    conn.execute(
        "insert into sitting (row_key, login_id, stamp, client) select name, 1, '', ''"
        " from unnest(array['lives', 'over', 'gone']) as name"
    )
    assert run(conn) == {"sign-ins": 1, "sittings": 2}
    assert conn.execute("select row_key from sitting").fetchall() == [("lives",)]
