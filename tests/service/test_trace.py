"""A message's whole life, as `caplai message` tells it: masked, without texts, found without an index."""

import json
from datetime import timedelta

import pytest
from click.testing import CliRunner
from django.conf import settings

from caplai.channels.aggregator_in import join
from caplai.cli import main
from caplai.service import trace
from caplai.service.answer import answer
from caplai.service.deliver import compose
from caplai.service.reissue import reissue_inbox
from caplai.store import queues
from caplai.store.db import conninfo
from caplai.store.queues import Arrival

LAN, PHONE = "0123456789", "84327000686"


def receive(conn, text=f"BH MK {LAN}", source=PHONE):
    """A text comes and is decided; returns its id."""
    session = queues.open_session(conn, "viettel", "host-1:7:ab")
    queues.accept(conn, "viettel", session, [queues.Arrival(source, 1, 1, "8079", 0, text)], None)
    [[id_]] = conn.execute("select max(id) from inbox").fetchall()
    return id_


def decide(conn, rules):
    while reissue_inbox(conn, rules, 100):
        pass


def send(conn, state="sent", status=0, message_id="7F3A"):
    due = queues.claim_outbox(conn, "viettel", "host-1:7:ab", 100, timedelta(seconds=60))
    queues.settle_outbox(conn, "host-1:7:ab", [queues.Settled(d.id, state, status, message_id) for d in due])
    return [compose(d, settings.KEYRING.ring("issuing")) for d in due]


@pytest.fixture
def caplai(conn, monkeypatch):
    monkeypatch.setenv("CAPLAI_DATABASE_URL", conninfo())
    return lambda *words, said=None: CliRunner().invoke(main, ["message", *map(str, words)], input=said)


def test_a_whole_life(conn, rules, lan, caplai):
    id_ = receive(conn)
    decide(conn, rules)
    [text] = send(conn)
    queues.accept_receipts(conn, "viettel", [{"message_ids": ["7F3A"], "state": "DELIVRD", "error": "000"}])

    done = caplai(id_)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == f"message {id_} from 0327xxx686 to 8079 by viettel"
    for part in (
        "stored by host-1:7:ab",
        "16 characters",
        "ms later: issued",
        "opened: of 0123xxx789",
        "lives until",
        "issued to 0327xxx686 by viettel: sent",
        "attempts: 1, the SMSC last said ESME_ROK, under an id of its own",
        "ms later in all",
        ": DELIVRD",
    ):
        assert part in done.stdout, part
    assert "waits for" not in done.stdout
    issued = text.split("Mat khau: ")[1].split(".")[0]
    told = json.loads(caplai(id_, "--json").stdout)
    assert told["outcome"] == "issued" and told["replies"][0]["receipt"] == "DELIVRD"
    for output in (done.stdout, json.dumps(told)):
        assert issued not in output.replace("000", "") and LAN not in output and PHONE[2:] not in output


def test_what_it_waits_for(conn, rules, lan, caplai):
    id_ = receive(conn)
    assert "waits for an engine to decide it" in caplai(id_).stdout
    queues.park(conn, id_, "ValueError")
    assert "waits for a person" in caplai(id_).stdout
    queues.unpark(conn)
    decide(conn, rules)
    assert "waits for its link to send the reply" in caplai(id_).stdout
    send(conn, "failed", 11)
    said = caplai(id_).stdout
    assert "failed" in said and "ESME_RINVDSTADR" in said and "waits for" not in said


def test_a_message_that_joined_a_case_names_it(conn, rules, lan, caplai):
    first, second = receive(conn), receive(conn)
    decide(conn, rules)
    assert "case      opened" in caplai(first).stdout
    joined = caplai(second).stdout
    assert "case      joined" in joined and "texts with its password: 2" in joined


def test_replies_are_found_among_many_without_an_index(conn, rules, lan, caplai, monkeypatch):
    conn.execute(
        "insert into outbox (created_at, inbox_id, kind, wording, link, sender, destination, state)"
        " select now() - (100000 - n) * interval '1 s', null, 'x', 1, 'old', '8079', '84', 'sent'"
        " from generate_series(1, 5000) n"
    )
    conn.execute("delete from outbox where id % 7 = 0")
    id_ = receive(conn)
    decide(conn, rules)
    other = receive(conn, "BH")
    decide(conn, rules)
    assert [reply.kind for reply in trace.message(conn, id_).replies] == ["issued"]
    assert [reply.kind for reply in trace.message(conn, other).replies] == ["bad_syntax"]
    [[first]] = conn.execute("select min(id) from outbox where link = 'viettel'").fetchall()
    [[moment]] = conn.execute(
        "select created_at - interval '60 s' from outbox where id = %s", [first]
    ).fetchall()
    assert abs(trace._first_from(conn, moment) - first) <= 60
    conn.execute("delete from outbox")
    assert trace._first_from(conn, moment) in (0, 1)


def test_an_aggregators_id_finds_its_message(conn, caplai):
    id_ = receive(conn)
    conn.execute("update inbox set link = 'agg', request_id = 'R-17'")
    said = caplai("R-17", "--link", "agg").stdout
    assert said.startswith(f"message {id_} ") and "request   R-17" in said
    none = caplai("R-18", "--link", "agg")
    assert none.exit_code == 1 and "no message of agg with this id" in none.stderr


def test_an_answer_over_http_is_told_as_one(conn, rules, lan, caplai, monkeypatch):
    aggregator = {"name": "agg", "format": "kannel", "secrets": ["k" * 16]}
    monkeypatch.setenv("CAPLAI_AGGREGATORS", json.dumps([aggregator]))
    with conn.transaction():
        assert answer(
            conn, "agg", "R-17", Arrival(PHONE, 1, 1, "8079", 0, "BH"), rules, join=join, at_once=True
        )
    said = caplai("R-17", "--link", "agg").stdout
    assert "written" in said and "in the answer to its request" in said
    assert "under an id" not in said
    conn.execute("update outbox set state = 'failed', status = 400, message_id = null")  # a send URL's 400
    said = caplai("R-17", "--link", "agg").stdout
    assert "the aggregator last said HTTP 400" in said and "SMSC" not in said
    assert "failed (HTTP 400)" in caplai("--failed").stdout


def test_the_messages_of_a_phone_and_of_an_account(conn, rules, lan, caplai):
    """However carriers write it."""
    ids = [
        receive(conn),
        receive(conn, "BH", source="+84327000686"),
        receive(conn, "BH", source="0327000686"),
    ]
    receive(conn, source="84912345678")
    decide(conn, rules)
    send(conn)
    for words, said in ((["--phone"], "0327 000 686\n"), (["--code"], f"{LAN}\n")):
        done = caplai(*words, said=said)
        assert done.exit_code == 0, done.output
        assert [int(line.split()[0]) for line in done.stdout.splitlines()] == [*reversed(ids)]
        assert "issued         sent" in done.stdout and "bad_syntax     sent" in done.stdout
        assert PHONE[2:] not in done.output and LAN not in done.output


def test_a_phone_is_not_taken_from_the_command_line(caplai):
    done = caplai("--phone", "0327000686", said="")
    assert done.exit_code == 2
    assert "do not give it here" in done.stderr and "0327000686" not in done.output


def test_wrong_use_is_a_sentence(caplai):
    for words, said, status, says in (
        ([], None, 2, "Name one message"),
        (["--phone", "--code"], None, 2, "Name one message"),
        (["--link", "viettel"], None, 2, "Name one message"),
        (["abc"], None, 1, "Ids are numbers"),
        (["99999999999999999999"], None, 1, "Ids are numbers"),
        (["--phone"], "12345\n", 2, "no phone"),
        (["--code"], "123\n", 2, "exactly ten digits"),
        (["--phone"], "0912345678\n", 1, "No message of it"),
    ):
        done = caplai(*words, said=said)
        assert done.exit_code == status, words
        assert says in done.stderr


def test_what_needs_a_person(conn, rules, lan, caplai):
    assert caplai("--failed").stdout == ""
    parked = receive(conn)
    queues.park(conn, parked, "ValueError")
    refused, waiting, well = (receive(conn, "BH", source=f"8432700068{n}") for n in (1, 2, 3))
    decide(conn, rules)
    states = {refused: ("failed", 11), waiting: ("ready", 88), well: ("sent", 0)}
    for id_, (state, status) in states.items():
        conn.execute(
            "update outbox set state = %s, status = %s, created_at = created_at - interval '11 minutes'"
            " where inbox_id = %s",
            [state, status, id_],
        )
    lines = caplai("--failed").stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == [parked, waiting, refused]
    assert "parked (ValueError)" in lines[0]
    assert "ready (ESME_RTHROTTLED)" in lines[1]
    assert "failed (ESME_RINVDSTADR)" in lines[2]


def test_what_retention_left_of_it_is_told(conn, rules, lan, caplai):
    id_ = receive(conn)
    decide(conn, rules)
    send(conn)
    conn.execute("update inbox set text = '', source = ''")
    conn.execute("update outbox set destination = '', account = null, message_id = null")
    said = caplai(id_).stdout
    assert f"message {id_} from xxx to 8079" in said and "its text has been removed" in said
    assert "issued to xxx by viettel: sent" in said
