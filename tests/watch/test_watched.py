"""A real engine and a real web server, seen as a monitoring system sees them."""

import asyncio
import os
import re
import signal
import time
import urllib.parse
from collections import defaultdict
from pathlib import Path

import pytest

from caplai.smpp.pdu import Command, Status, Tag
from tests.channels.carrier import Carrier
from tests.watch.running import running

ROOT = Path(__file__).parent.parent.parent
CODE, PHONE = "0123456789", "84327000686"


async def play(folder):
    seen = {}
    async with (
        Carrier() as carrier,
        running(folder, "engine", "web", smpp_port=carrier.port) as (_, engine, web),
    ):
        await carrier.until(lambda: carrier.binds, 40)
        await carrier.bound()
        await asyncio.gather(engine.ready(), web.ready(), web.ready(port=web.port))
        # Before, one that is slow to start may have said that it is not ready.
        seen["web was ready"] = len(web.lines())
        carrier.statuses = [Status.ESME_RTHROTTLED, 0x0471]
        assert await carrier.deliver(f"BH MK {CODE}") == Status.ESME_ROK
        # Throttled, then a status that no specification knows, then taken.
        texts = await carrier.replies(3, seconds=60)
        seen["password"] = re.search(r"Mat khau: (\d{6})", texts[0])[1]
        assert await carrier.deliver("BH MK 123", "84911222333") == Status.ESME_ROK
        await carrier.replies(4, seconds=30)
        for state in ("DELIVRD", f"X{PHONE}"):
            tlvs = [(Tag.RECEIPTED_MESSAGE_ID, b"404\0")]
            body = f"id:404 stat:{state} err:000 text:"
            await carrier.deliver(body, command_id=Command.DELIVER_SM, esm_class=4, tlvs=tlvs)
        page = await web.get("/login/", port=web.port, headers={"X-Request-Id": "from-a-stranger"})
        seen["page"] = page
        form = urllib.parse.urlencode({"username": CODE, "password": seen["password"]})
        await web.get(f"/{CODE}/{PHONE}?{form}", port=web.port)
        for charset in "hex", "undefined", "utf-16":  # codecs of Python's that decode no text, or another
            no_text = {"Content-Type": f"text/plain; charset={charset}"}
            assert (await web.get("/login/?lang=%ff", port=web.port, headers=no_text))[0] == 200
        await asyncio.sleep(0.2)
        seen["engine"] = (await engine.get("/metrics"))[1]
        seen["web"] = (await web.get("/metrics"))[1]
        seen["open to all"] = (await web.get("/metrics", port=web.port))[0]
    seen["lines"] = {"engine": engine.lines(), "web": web.lines()}
    seen["raw"] = engine.log.read_text() + web.log.read_text() + seen["engine"] + seen["web"]
    return seen


@pytest.mark.slow
def test_a_story_is_seen_from_outside(conn, lan, tmp_path):
    """Throttled replies, a refused text, receipts, web requests: one play, for it takes two processes to start."""
    story = asyncio.run(play(tmp_path))
    a_message_is_followed_by_its_id_through_the_log(story)
    the_metrics_tell_what_happened(story)
    the_metrics_are_not_for_the_internet(story)
    the_line_of_a_web_request_has_its_id(story)
    no_phone_no_code_and_no_password_is_in_logs_or_metrics(story)
    every_metric_is_documented_and_every_documented_one_exists(story)
    for file in ("contrib/grafana/caplai.json", "contrib/prometheus/caplai.rules.yml"):
        dashboard_and_rules_name_only_metrics_that_exist(story, file)


def value(text, name, **labels):
    """A sample's value in Prometheus's text; None where there is none."""
    for line in text.splitlines():
        found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if found and found[1] == name and dict(re.findall(r'(\w+)="([^"]*)"', found[2] or "")) == labels:
            return float(found[3])
    return None


def a_message_is_followed_by_its_id_through_the_log(story):
    ways = defaultdict(list)
    for line in story["lines"]["engine"]:
        if line["logger"] == "caplai.trail":
            ways[line["request"]].append(line)
    first, second = (ways[key] for key in sorted(ways, key=int))
    # The link hears of a reply when it is committed, and may have submitted it before the decider writes its line.
    replies = [line for line in first if "reply" in line]
    # Likewise a decider, of a message: it may write its line before the link does.
    assert sorted(line["message"] for line in first if line not in replies) == ["accepted", "decided"]
    assert [line["message"] for line in replies] == ["submitted", "settled"] * 3
    assert [line.get("state") for line in first if line["message"] == "settled"] == ["ready", "ready", "sent"]
    assert [line.get("status") for line in first if line["message"] == "settled"] == [
        "ESME_RTHROTTLED",
        "0x00000471",
        "ESME_ROK",
    ]
    assert [line["attempt"] for line in first if line["message"] == "submitted"] == [1, 2, 3]
    assert {line["outcome"] for line in first if "outcome" in line} == {"issued"}
    assert {line["link"] for line in first if "link" in line} == {"viettel"}
    assert [line["outcome"] for line in second if line["message"] == "decided"] == ["bad_code"]
    seconds = [line["seconds"] for line in replies]
    assert seconds == sorted(seconds) and 0 < seconds[0] < 10
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in first)


def the_metrics_tell_what_happened(story):
    engine, web = story["engine"], story["web"]
    link = {"link": "viettel"}
    assert value(engine, "caplai_messages_received_total", **link) == 2
    assert value(engine, "caplai_decisions_total", outcome="issued") == 1
    assert value(engine, "caplai_decisions_total", outcome="bad_code") == 1
    assert value(engine, "caplai_submits_total", **link) == 4
    assert value(engine, "caplai_resubmits_total", **link) == 2
    assert value(engine, "caplai_throttles_total", **link) == 1
    assert value(engine, "caplai_submit_answers_total", status="0x00000471", **link) == 1
    assert value(engine, "caplai_submit_answers_total", status="ESME_ROK", **link) == 2
    assert value(engine, "caplai_receipts_total", state="DELIVRD", **link) == 1
    assert value(engine, "caplai_receipts_total", state="other", **link) == 1
    assert value(engine, "caplai_receipts_unmatched_total", **link) == 2
    assert value(engine, "caplai_message_submitted_seconds_count", **link) == 2
    assert value(engine, "caplai_message_answered_seconds_count", **link) == 2
    assert value(engine, "caplai_message_decided_seconds_bucket", le="+Inf") == 2
    assert value(engine, "caplai_link_binds", **link) == 1
    assert value(engine, "caplai_inbox_waiting") == 0
    assert value(engine, "caplai_database_up") == 1
    assert value(web, "caplai_http_requests_total", route="/login/", method="GET", status="200") == 4
    assert value(web, "caplai_http_requests_total", route="other", method="GET", status="404") == 1


def the_metrics_are_not_for_the_internet(story):
    assert story["open to all"] == 404


def the_line_of_a_web_request_has_its_id(story):
    status, _, headers = story["page"]
    given = headers["X-Request-Id"]
    assert status == 200 and given and given != "from-a-stranger"
    [line] = [line for line in story["lines"]["web"] if line.get("request") == given]
    assert (line["route"], line["method"], line["status"]) == ("/login/", "GET", 200)


def no_phone_no_code_and_no_password_is_in_logs_or_metrics(story):
    levels = {line["level"] for line in story["lines"]["web"][story["web was ready"] :]}
    assert levels == {"INFO"}, "a stranger's request is no error of ours"
    for secret in (CODE, PHONE, "84911222333"):
        assert secret[-7:] not in story["raw"]
    assert story["password"] not in story["raw"]


def exported(text):
    return set(re.findall(r"^# TYPE (caplai_\w+) ", text, re.MULTILINE))


def base(name, known):
    """The family that a series belongs to: a histogram's have suffixes."""
    return name if name in known else re.sub(r"_(bucket|sum|count)$", "", name)


def every_metric_is_documented_and_every_documented_one_exists(story):
    table = re.findall(r"^\| `(caplai_\w+)`", (ROOT / "docs/metrics.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(table) == sorted(exported(story["engine"]) | exported(story["web"]))


def dashboard_and_rules_name_only_metrics_that_exist(story, file):
    known = exported(story["engine"]) | exported(story["web"])
    named = set(re.findall(r"\bcaplai_\w+", (ROOT / file).read_text("utf-8")))
    assert len(named) > 10
    assert {name for name in named if base(name, known) not in known} == set()


# --- the database goes away ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_database_that_goes_away_is_told_within_two_seconds_and_once_and_heals(conn, tmp_path):
    async def scenario():
        async with (
            Carrier() as carrier,
            running(tmp_path, "engine", "web", smpp_port=carrier.port, CAPLAI_WEB_THREADS="2") as (
                door,
                engine,
                web,
            ),
        ):
            await carrier.until(lambda: carrier.binds, 40)
            await carrier.bound()
            await asyncio.gather(engine.ready(), web.ready())
            # What it said before, at its start, is not about this.
            at_first = {process: len(process.lines()) for process in (engine, web)}
            await door.shut()
            for process, port in ((engine, None), (web, None), (web, web.port)):
                body, took = await process.ready(False, port=port)
                assert took < 2
                assert "the database cannot be reached" in body["problems"]
                assert (await process.get("/healthz", port=port))[0] == 200
            assert value((await engine.get("/metrics"))[1], "caplai_database_up") == 0
            await asyncio.sleep(1)
            await door.open()
            await asyncio.gather(engine.ready(), web.ready(), web.ready(port=web.port))
            # One that neither answers nor refuses.
            door.hang()
            for process, port in ((engine, None), (web, None), (web, web.port)):
                body, took = await process.ready(False, port=port)
                assert took < 3
                assert "the database does not answer" in body["problems"]
                began = time.monotonic()
                await process.get("/readyz", port=port)
                assert time.monotonic() - began < 1.5
            # People who sign in now hold every thread of the web server; its other port still answers.
            cookie = {"Cookie": f"caplai_session={'x' * 32}"}
            stuck = [asyncio.create_task(web.get("/", port=web.port, headers=cookie)) for _ in range(3)]
            await asyncio.sleep(0.5)
            assert not any(task.done() for task in stuck)
            assert (await web.get("/readyz"))[0] == 503
            assert (await web.get("/healthz"))[0] == 200
            await door.open()
            await asyncio.gather(engine.ready(), web.ready(), *stuck, return_exceptions=True)
            await web.ready(port=web.port)
        return engine, web, at_first

    engine, web, at_first = asyncio.run(scenario())
    for process in (engine, web):
        lines = process.lines()[at_first[process] :]
        said = [line["message"] for line in lines if line["logger"] == "caplai.health"]
        assert [bool(message.startswith("not ready: the database")) for message in said] == [
            True,
            False,
            True,
            False,
        ]
    away = [line for line in engine.lines() if line["message"].startswith("link viettel: the store is away")]
    assert len(away) <= 2


@pytest.mark.slow
def test_a_port_that_is_taken_is_a_warning_and_the_engine_goes_on(conn, lan, tmp_path):
    async def scenario():
        async with Carrier() as carrier, running(tmp_path, "engine", smpp_port=carrier.port) as (_, engine):
            await carrier.until(lambda: carrier.binds, 40)
            await carrier.bound()
            taken = {"CAPLAI_WATCH__ENGINE_PORT": str(engine.watch)}
            async with running(tmp_path, "engine", smpp_port=carrier.port, **taken) as (_, second):
                while "cannot listen" not in second.log.read_text():
                    assert second.process.poll() is None
                    await asyncio.sleep(0.05)
                [line] = [line for line in second.lines() if "cannot listen" in line["message"]]
                assert line["level"] == "WARNING" and str(engine.watch) in line["message"]
                engine.end()
                await carrier.until(lambda: len(carrier.binds) == 2, 30)
                await carrier.bound()
                assert await carrier.deliver(f"BH MK {CODE}") == Status.ESME_ROK

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.slow
def test_a_web_server_s_worker_that_is_killed_is_told_in_our_form_and_replaced(conn, tmp_path):
    async def scenario():
        async with running(tmp_path, "web") as (_, web):
            await web.ready(port=web.port)
            children = Path(f"/proc/{web.process.pid}/task/{web.process.pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGKILL)
            while "Unexpected exit from worker" not in web.log.read_text():
                await asyncio.sleep(0.1)
            await web.ready(port=web.port)
            await web.ready()  # the listener of the new one has the port
        return web.lines()

    lines = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert [line["level"] for line in lines if line["logger"] == "_granian"] == ["ERROR"]
