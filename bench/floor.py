"""The floor under a wave: the same rows by the plainest set-based SQL, with no logic and no wire, in the same run.

For each batch of 500: insert into inbox; insert into reissue_case and outbox, and update inbox; claim in outbox;
settle in outbox: four commits, as the engine does them, with fsync. Codes come in no order, as people do. What is
sent was made before the clock starts. By one connection and by two; the better counts. The bar (bar.md): the wave,
at the rate that is answered ("max"), reaches at least 0.35 of it.
"""

import random
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta

import psycopg

from bench import _measure
from bench._crowd import Mix, phone_of
from bench.wave import World, parser_of, show, texts, world
from caplai.store.db import array

_BATCH = 500
_MOST_A_SECOND = 20_000
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
    insert into outbox (inbox_id, kind, wording, account, case_id, until, link, sender, destination)
    select inbox, 'issued', 1, account, id, %(until)s, 'carrier', '8079', destination
    from unnest(%(inbox)s::bigint[], %(code)s::text[], %(case)s::uuid[], %(source)s::text[])
        as r (inbox, account, id, destination)
    returning id
), decided as (
    update inbox i set outcome = 'issued', decided_at = clock_timestamp(), case_id = d.id
    from unnest(%(inbox)s::bigint[], %(case)s::uuid[]) as d (inbox, id) where i.id = d.inbox
)
select id from replies
"""
_CLAIM = """
update outbox set state = 'claimed', claimed_by = 'floor', attempts = 1, due_at = now() + interval '90 s'
where id = any(%s::bigint[])
"""
_SETTLE = """
update outbox set state = 'sent', settled_at = now(), claimed_by = null, status = 0 where id = any(%s::bigint[])
"""


def batches(accounts: int, rows: int) -> list[dict[str, object]]:
    """What is sent, ready: codes that are drawn once each."""
    now = datetime.now(UTC)
    made = []
    people = random.Random(1).sample(range(accounts), min(rows, accounts))
    for first in range(0, len(people) - _BATCH + 1, _BATCH):
        some = people[first : first + _BATCH]
        made.append(
            {
                "source": array(map(phone_of, some)),
                "text": array(f"BH MK {code:010}" for code in some),
                "code": array(f"{code:010}" for code in some),
                "case": array(uuid.uuid4() for _ in some),
                "phone": array(f"+{phone_of(code)}" for code in some),
                "now": now,
                "until": now + timedelta(hours=24),
            }
        )
    return made


def floor(it: World, connections: int, seconds: float) -> float:
    """Re-issues a second."""
    it.clear()
    ready = batches(it.accounts, int(seconds * _MOST_A_SECOND))
    written = [0] * connections

    def write(which: int) -> None:
        options = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off"
        with psycopg.connect(it.dsn, autocommit=True, options=options) as conn:
            end = time.monotonic() + seconds
            while time.monotonic() < end and ready:
                batch = ready.pop()
                inbox = [id_ for (id_,) in conn.execute(_INBOX, [batch["source"], batch["text"]])]
                batch["inbox"] = array(inbox)
                outbox = array(id_ for (id_,) in conn.execute(_DECIDE, batch))
                conn.execute(_CLAIM, [outbox])
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
        rates = {connections: floor(it, connections, options.seconds / 2) for connections in (1, 2)}
        wave = it.wave(texts(options, Mix(), 0.0))
    best = max(rates.values())
    report = {
        "wave_over_floor": round(wave["completed_per_second"] / best, 2),
        "bar": 0.35,
        "floor_per_second": {f"{name} connections": round(rate) for name, rate in rates.items()},
        "wave_per_second": wave["completed_per_second"],
        "cpu_us_per_reply": wave["cpu_us_per_reply"],
        "machine": machine,
        "broken": wave["broken"],
    }
    show(report, as_json=options.json)
    return 1 if wave["broken"] else 0
