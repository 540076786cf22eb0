"""The floor under a wave: the same rows by the plainest set-based SQL, with no logic and no wire, in the same run.

For each batch of 500 (what the engine's batches hold at the rate that is answered): insert into inbox; insert into
reissue_case and outbox, and update inbox; settle in outbox: three commits, as the engine does them, with fsync. Codes
come in no order, as people do. What is written was made before the clock starts.

The plainest is a program with one connection that gives psycopg lists: the bar (bar.md) is for that, before and after
the wave, and the wave, at the rate that is answered ("max"), is to reach at least 0.35 of it. Told beside it: what the
server alone can do, when a batch's arrays lie ready in PostgreSQL's own form, by one connection and by two.
"""

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

import psycopg

from bench import _measure
from bench._crowd import Mix, phone_of
from bench.wave import World, parser_of, texts, world
from caplai.store.db import array

_BATCH = 500
_MOST_A_SECOND = 60_000
_INBOX = """
insert into inbox (link, session, source, source_ton, source_npi, destination, coding, text)
select 'carrier', 1, source, 1, 1, '8079', 0, text from unnest(%s::text[], %s::text[]) as r (source, text)
returning id
"""
_DECIDE = """
with cases as (
    insert into reissue_case (account, id, phone, channel, key, version, length, alphabet, texts, opened_at, expires_at)
    select account, id, phone, 'sms', 'i20261122-floor', 1, 6, '0123456789', 1, %(now)s, %(until)s
    from unnest(%(code)s::text[], %(case)s::uuid[], %(phone)s::text[]) as r (account, id, phone)
), replies as (
    insert into outbox (inbox_id, kind, wording, account, case_id, until, link, sender, destination, state, attempts,
        claimed_by, due_at)
    select inbox, 'issued', 1, account, id, %(until)s, 'carrier', '8079', destination, 'claimed', 1, 'floor',
        now() + interval '90 s'
    from unnest(%(inbox)s::bigint[], %(code)s::text[], %(case)s::uuid[], %(source)s::text[])
        as r (inbox, account, id, destination)
    returning id
), decided as (
    update inbox i set outcome = 'issued', decided_at = clock_timestamp(), case_id = d.id
    from unnest(%(inbox)s::bigint[], %(case)s::uuid[]) as d (inbox, id) where i.id = d.inbox
)
select id from replies
"""
_SETTLE = """
update outbox set state = 'sent', settled_at = now(), claimed_by = null, status = 0 where id = any(%s::bigint[])
"""


_Form = Callable[[Iterable[object]], object]
"""What makes of a column what psycopg is given."""


def batches(accounts: int, rows: int, form: _Form) -> list[dict[str, object]]:
    """What is written: codes that are drawn once each."""
    now = datetime.now(UTC)
    made = []
    people = random.Random(1).sample(range(accounts), min(rows, accounts))
    for first in range(0, len(people) - _BATCH + 1, _BATCH):
        some = people[first : first + _BATCH]
        made.append(
            {
                "source": form(map(phone_of, some)),
                "text": form(f"BH MK {code:010}" for code in some),
                "code": form(f"{code:010}" for code in some),
                "case": form(uuid.uuid4() for _ in some),
                "phone": form(f"+{phone_of(code)}" for code in some),
                "now": now,
                "until": now + timedelta(hours=24),
            }
        )
    return made


def floor(it: World, connections: int, form: _Form, seconds: float) -> float:
    """Re-issues a second."""
    it.clear()
    ready = batches(it.accounts, int(seconds * _MOST_A_SECOND), form)
    written = [0] * connections

    def write(which: int) -> None:
        options = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off"
        with psycopg.connect(it.dsn, autocommit=True, options=options) as conn:
            end = time.monotonic() + seconds
            while time.monotonic() < end and ready:
                batch = ready.pop()
                inbox = [id_ for (id_,) in conn.execute(_INBOX, [batch["source"], batch["text"]])]
                batch["inbox"] = form(inbox)
                outbox = form(id_ for (id_,) in conn.execute(_DECIDE, batch))
                conn.execute(_SETTLE, [outbox])
                written[which] += _BATCH

    began = time.monotonic()
    threads = [threading.Thread(target=write, args=(which,)) for which in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = sum(written) / (time.monotonic() - began)
    counted = it.conn.execute(
        "select (select count(*) from inbox where outcome = 'issued'), (select count(*) from reissue_case),"
        " (select count(*) from outbox where state = 'sent')"
    ).fetchone()
    if counted != (sum(written),) * 3:
        raise SystemExit(f"the floor wrote {sum(written)} and {counted} are there")
    return rate


def main(arguments: list[str]) -> int:
    options = parser_of("floor", __doc__).parse_args(arguments)
    machine = _measure.machine()
    with world(options, "floor") as it:
        before = floor(it, 1, list, options.seconds / 3)
        wave = it.wave(texts(options, Mix(), 0.0))
        plain = (before + floor(it, 1, list, options.seconds / 3)) / 2
        server = {connections: floor(it, connections, array, options.seconds / 3) for connections in (1, 2)}
    answered = wave["completed_per_second"]
    report = {
        "wave_over_floor": round(answered / plain, 2),
        "bar": 0.35,
        "floor_per_second": round(plain),
        "server_alone_per_second": {f"{count} connections": round(rate) for count, rate in server.items()},
        "wave_over_server_alone": round(answered / max(server.values()), 2),
        "wave_per_second": answered,
        "engines": wave["engines"],
        "cpu_us_per_reply": wave["cpu_us_per_reply"],
        "machine": machine,
        "broken": wave["broken"],
    }
    _measure.show(report, as_json=options.json)
    return 1 if wave["broken"] else 0
