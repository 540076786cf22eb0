"""Lines of the trail: the quick way to write them says the same as the careful one."""

import json
import logging

import pytest

from caplai.channels.outbound import _Seen
from caplai.store.queues import Settled
from caplai.watch import trail
from caplai.watch.logs import Json, Plain

SETTLED = (17, 4, "sent", 1, "ESME_ROK", 0.25)
LOST = (17, 4, "ready", 1, None, 0.25)


def written(caplog, formatter, rows, link="viettel"):
    caplog.set_level("INFO", "caplai.trail")
    caplog.clear()
    trail.SETTLED.write(rows, link)
    [record] = caplog.records
    return formatter.format(record).splitlines()


def test_a_batch_is_one_record_and_a_json_object_for_each_row(caplog):
    first, second = map(json.loads, written(caplog, Json(), [SETTLED, LOST]))
    assert {name: first[name] for name in ("logger", "message", "link", "request", "reply", "state")} == {
        "logger": "caplai.trail",
        "message": "settled",
        "link": "viettel",
        "request": "17",
        "reply": 4,
        "state": "sent",
    }
    assert (first["attempt"], first["status"], first["seconds"]) == (1, "ESME_ROK", 0.25)
    assert second == {**first, "state": "ready", "status": None}


def test_a_reply_that_answers_no_message_has_no_request(caplog):
    [line] = map(json.loads, written(caplog, Json(), [(None, *SETTLED[1:])]))
    assert line["request"] is None and line["reply"] == 4


def test_people_read_it_plainly(caplog):
    first, second = written(caplog, Plain(), [SETTLED, LOST])
    told = "INFO caplai.trail: settled request=17 reply=4 state={} attempt=1 status={} seconds=0.25{} link=viettel"
    assert first.endswith(told.format("sent", "ESME_ROK", ""))
    assert second.endswith(told.format("ready", "-", ""))
    [alone] = written(caplog, Plain(), [SETTLED])
    assert alone.endswith(told.format("sent", "ESME_ROK", "0"))


@pytest.mark.parametrize(
    "step", [s for s in vars(trail).values() if isinstance(s, trail.Step)], ids=lambda s: s.name
)
def test_every_step_can_be_written(caplog, step):
    caplog.set_level("INFO", "caplai.trail")
    values = {int: 7, str: "ours", float: 1.5}
    step.write([tuple(values[kind] for kind in step.fields.values())])
    line = json.loads(Json().format(caplog.records[0]))
    assert {name: line[name] for name in step.fields} == {
        name: values[kind] for name, kind in step.fields.items()
    }


def test_nothing_is_made_where_nobody_reads_it(caplog):
    caplog.set_level(logging.WARNING, "caplai.trail")
    trail.ACCEPTED.write(pytest.fail("it was asked for") for _ in range(1))
    trail.ACCEPTED.write([])
    assert not caplog.records


def test_a_reply_that_is_settled_a_second_time_is_no_trouble(caplog):
    """It happens when the database was away for longer than a lease."""
    caplog.set_level("INFO", "caplai.trail")
    _Seen("viettel").settled([Settled(1, "sent", 0), Settled(1, "sent", 0)])
    assert not caplog.records
