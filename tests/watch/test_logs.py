"""What a log line says of an exception: class and place, and nothing of what was handled."""

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import threading

import pytest

from caplai.watch.logs import (
    Json,
    Plain,
    Stderr,
    configuration,
    describe,
    request_id,
    tell_of_failed_threads,
)

SECRET, SECRET_WORD = "0123456789", "tram-xanh"


def caught(function):
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def fails_on_a_code():
    raise ValueError(f"cannot do {SECRET}")


def fails_because_of_that():
    try:
        fails_on_a_code()
    except ValueError as error:
        raise KeyError(SECRET) from error


def test_an_exception_and_its_cause_are_told_by_class_and_place():
    said = describe(caught(fails_because_of_that))
    assert "builtins.KeyError" in said and "builtins.ValueError" in said
    assert "in fails_on_a_code" in said and "test_logs.py" in said
    assert SECRET not in said


def test_what_is_in_a_group_is_told_too():
    inner = ExceptionGroup(SECRET, [caught(fails_because_of_that)])
    said = describe(ExceptionGroup(SECRET, [TypeError(SECRET), inner]))
    for name in ("ExceptionGroup", "TypeError", "KeyError", "ValueError"):
        assert f"builtins.{name}" in said
    assert "in fails_on_a_code" in said
    assert SECRET not in said


def test_a_circle_of_causes_has_an_end():
    one, two = ValueError(SECRET), TypeError(SECRET)
    one.__cause__, two.__cause__ = two, one
    assert describe(one).splitlines() == ["builtins.ValueError", "builtins.TypeError"]


def failed(error):
    try:
        raise error
    except Exception:
        return logging.LogRecord("caplai", logging.ERROR, __file__, 1, "it %s", ("failed",), sys.exc_info())


@pytest.mark.parametrize("error", [ValueError(SECRET), ExceptionGroup(SECRET, [ValueError(SECRET)])])
def test_the_formatters_write_no_text_of_an_exception(error):
    plain = Plain().format(failed(error))
    assert "ERROR caplai: it failed\n" in plain
    line = json.loads(Json().format(failed(error)))
    assert (line["level"], line["logger"], line["message"]) == ("ERROR", "caplai", "it failed")
    for said in (plain, line["exception"]):
        assert "builtins.ValueError" in said
        assert SECRET not in said


@pytest.mark.parametrize("form", [Plain, Json])
def test_a_long_number_is_cut_out_whoever_logs_it(form):
    record = logging.LogRecord(
        "x", logging.INFO, __file__, 1, "GET /%s and +%s", (SECRET, "84327000686"), None
    )
    said = form().format(record)
    assert SECRET not in said and "84327000686" not in said
    assert "GET /… and +…" in said


@pytest.mark.parametrize("form", [Plain, Json])
def test_a_line_has_its_fields_and_the_request_that_is_answered(form):
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "said", None, None)
    record.fields = {"status": 200}
    token = request_id.set("abc")
    said = form().format(record)
    request_id.reset(token)
    if form is Json:
        line = json.loads(said)
        assert (line["request"], line["status"]) == ("abc", 200)
    else:
        assert said.endswith("x: said request=abc status=200")


@pytest.mark.parametrize("form", [Plain, Json])
def test_a_line_that_cannot_be_formatted_tells_where_and_not_what(form, capfd):
    handler = Stderr()
    handler.setFormatter(form())
    handler.handle(logging.LogRecord("x", logging.INFO, __file__, 1, "%d of %s", (SECRET, SECRET_WORD), None))
    said = capfd.readouterr().err
    assert "could not be written" in said and "builtins.TypeError" in said
    assert SECRET not in said and SECRET_WORD not in said


@pytest.mark.parametrize("form", [Plain, Json])
def test_what_asyncio_says_of_a_task_that_failed_has_no_text_of_its_exception(form, caplog):
    async def fails():
        raise ValueError(SECRET_WORD)

    async def main():
        tasks = [asyncio.create_task(fails()) for _ in range(2)]
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(lambda task: 1 / 0, tasks[1])
        await asyncio.sleep(0)

    asyncio.run(main())
    gc.collect()
    for record in caplog.records:
        record.exc_text = None  # as the formatter of pytest left it
    said = "\n".join(form().format(record) for record in caplog.records)
    assert "Exception in callback" in said and "builtins.ZeroDivisionError" in said
    assert "Task exception was never retrieved" in said and "builtins.ValueError" in said
    assert SECRET_WORD not in said


def test_what_ends_a_thread_is_logged_without_its_text(monkeypatch, caplog):
    monkeypatch.setattr(threading, "excepthook", None)
    tell_of_failed_threads()
    thread = threading.Thread(target=fails_on_a_code, name="beat")
    thread.start()
    thread.join()
    # An earlier test's remains may be logged meanwhile, when they are collected.
    [record] = [record for record in caplog.records if record.name == "caplai.watch.logs"]
    said = Json().format(record)
    assert "the thread beat has ended" in said and "builtins.ValueError" in said and SECRET not in said


def test_json_is_what_is_logged_where_no_terminal_shows_it(monkeypatch):
    formatter = configuration("auto", "info", messages=True)["formatters"]["ours"]["()"]
    assert formatter.endswith("Json")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    formatter = configuration("auto", "info", messages=True)["formatters"]["ours"]["()"]
    assert formatter.endswith("Plain")


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_long_batches_of_two_processes_do_not_mingle(tmp_path, kind):
    """Each writes 200 batches of 60 lines to one place, more at once than a pipe takes in one piece."""
    writer = """
import logging.config, sys
from caplai.watch import logs, trail
logging.config.dictConfig(logs.configuration("json", "info", messages=True))
for batch in range(200):
    trail.DECIDED.write((n, sys.argv[1], 0.5) for n in range(60))
"""
    if kind == "pipe":
        read, write = os.pipe()
    else:
        write = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    both = [subprocess.Popen([sys.executable, "-c", writer, name], stderr=write) for name in "ab"]
    os.close(write)
    if kind == "file":
        assert [process.wait() for process in both] == [0, 0]
        read = os.open(tmp_path / "log", os.O_RDONLY)
    with open(read, encoding="utf-8") as log:
        lines = [json.loads(line) for line in log]
    if kind == "file":  # each batch in one piece
        assert all(
            len({line["outcome"] for line in lines[n : n + 60]}) == 1 for n in range(0, len(lines), 60)
        )
    assert [process.wait() for process in both] == [0, 0]
    for name in "ab":
        assert [line["request"] for line in lines if line["outcome"] == name] == [*map(str, range(60))] * 200
