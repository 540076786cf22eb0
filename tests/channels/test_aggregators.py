"""The door for aggregators: requests over a real socket, a real database, and what comes back."""

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from urllib.parse import quote, urlencode

import pytest
from django import db

from caplai import wiring
from caplai.channels.aggregator_in import sign
from caplai.service.operate import switch_service
from caplai.store.keyring import KeyringFile
from caplai.store.models import Account, Case, Inbox, Outbox, Segment
from caplai.watch import metrics
from caplai.watch.logs import Plain
from tests.channels.site import JSON, KANNEL, KEY, LAN, NEXT_KEY, PHONE, SECRET, kannel_url, part, serve

__all__ = ["serve"]  # a fixture


@pytest.fixture
def site(serve, lan):
    """Both aggregators, and lan's account."""
    return serve(KANNEL, JSON)


def outcomes():
    return list(Inbox.objects.order_by("id").values_list("outcome", flat=True))


# --- Kannel's convention ---------------------------------------------------------------------------


def test_the_answer_to_kannels_request_is_the_reply(site):
    status, headers, body = site.ask(
        "GET", kannel_url(id="a0e5fd3b", smsc="fake", ts="1795360866", coding="0")
    )
    assert (status, headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert body.startswith(f"Cap lai mat khau thanh cong. Tai khoan: {LAN}/Mat khau: ")
    assert headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in headers and "Location" not in headers
    message, reply = Inbox.objects.get(), Outbox.objects.get()
    assert (message.link, message.source, message.source_ton) == ("vnpt", PHONE, 1)
    assert (message.outcome, message.request_id) == ("issued", "a0e5fd3b")
    assert (reply.link, reply.state, reply.attempts) == ("vnpt", "sent", 1)
    assert (reply.inbox_id, reply.sender, reply.destination) == (message.id, "8079", PHONE)
    assert reply.settled_at is not None


def test_the_phone_is_known_however_it_is_written(site):
    assert "thanh cong" in site.kannel()
    # A plus that nobody encoded, none at all, and as people write it here.
    for source, raw in [(None, "&from=+84327000686"), ("84327000686", ""), ("0327 000 686", "")]:
        assert "thanh cong" in site.kannel(raw=raw, **{"from": source}), (source, raw)
    assert Case.objects.get().phone == "+" + PHONE


def test_the_charset_says_what_the_octets_are(site):
    accented = f"BH MK mã số {LAN}"
    known = [
        (accented.encode("utf-16-be"), "UTF-16BE", "2"),
        (accented.encode("utf-16-be"), None, "2"),
        (accented.encode(), "UTF-8", "0"),
        (accented.encode(), None, None),
        (f"BH MK m\xe3 {LAN}".encode("latin-1"), "ISO-8859-1", "0"),
        (f"BH MK {LAN}".encode(), "8-BIT", "1"),  # Kannel's word for octets without a charset
    ]
    for phone, (data, charset, coding) in enumerate(known, 84327000001):
        Account.objects.update(phone=f"+{phone}")
        raw, source = "&text=" + quote(data), {"from": f"+{phone}"}
        site.kannel(text=None, raw=raw, charset=charset, coding=coding, **source)
    assert outcomes() == ["issued", *["joined"] * 4, "over_limit"]
    assert "\ufffd" not in "".join(Inbox.objects.values_list("text", flat=True))


def test_octets_of_an_unknown_charset_are_kept_and_no_digit_is_guessed(site, caplog):
    data = f"BH MK {LAN}\xb5".encode("latin-1")
    for charset in ("TCVN-5712", "8-BIT", "rot13", "utf-7"):
        assert "sai cu phap" in site.kannel(text=None, raw="&text=" + quote(data), charset=charset)
        message = Inbox.objects.latest("id")
        assert message.text == f"charset {charset}: {data.hex()}"
        assert message.outcome == "bad_syntax"
    assert caplog.text.count("unknown charset cannot be read") == 4
    site.kannel(text=None, raw="&text=" + quote(data), coding="3", charset=None)
    assert Inbox.objects.latest("id").text == f"charset 8-BIT: {data.hex()}"


def test_a_form_and_a_posted_text_are_requests_too(site):
    _, _, form = site.ask(
        "POST",
        "/sms/vnpt",
        urlencode({"from": "+" + PHONE, "to": "8079", "text": f"BH MK {LAN}", "secret": SECRET}),
        {"Content-Type": "application/x-www-form-urlencoded"},
    )
    _, _, posted = site.ask(
        "POST",
        f"/sms/vnpt/{SECRET}?from=%2B{PHONE}&to=8079",
        f"BH MK {LAN}".encode("utf-16-be"),
        {"Content-Type": 'text/plain; charset="UTF-16BE"'},
    )
    assert "thanh cong" in form
    assert form == posted
    assert outcomes() == ["issued", "joined"]


def test_silence_is_an_empty_answer_and_a_closed_service_says_so(site):
    status, _, body = site.ask("GET", kannel_url("VIN 123"))
    assert (status, body) == (200, "")
    assert outcomes() == ["other_agency"]
    assert Outbox.objects.count() == 0
    switch_service(False)
    assert "tam dung" in site.kannel()
    switch_service(True)
    assert "thanh cong" in site.kannel()


@pytest.mark.parametrize(("order", "hexadecimal"), [((1, 2), False), ((2, 1), True)])
def test_the_last_part_of_a_long_message_brings_the_reply(site, order, hexadecimal):
    # The code runs over the cut, and one digit's two octets are on either side of it.
    whole = f"BH MK mã số bảo hiểm của tôi là {LAN}".encode("utf-16-be")
    texts = {1: whole[:-9], 2: whole[-9:]}

    def send(number):
        udh = part(number).hex() if hexadecimal else part(number)
        raw = "&text=" + quote(texts[number])
        return site.kannel(text=None, raw=raw, charset="UTF-16BE", coding="2", udh=udh, id=f"part-{number}")

    assert send(order[0]) == ""
    reply = send(order[1])
    assert f"Tai khoan: {LAN}/" in reply
    assert outcomes() == ["issued"]
    # Answers that got lost: each part again, with its id.
    assert send(order[1]) == reply
    assert send(order[0]) == ""
    assert outcomes() == ["issued"]
    assert Segment.objects.filter(joined_at=None).count() == 0


def test_parts_that_come_at_once_are_joined_and_answered_once(site):
    total = 4
    texts = [f"BH MK {LAN}", " mot hai", " ba bon", " nam"]

    def send(n):
        return site.kannel(texts[n], udh=part(n + 1, total), id=f"p{n}")

    with ThreadPoolExecutor(total) as pool:
        answers = list(pool.map(send, range(total)))
    assert sorted(map(bool, answers)) == [False, False, False, True]
    assert outcomes() == ["issued"]


# --- the same request again ------------------------------------------------------------------------


def test_the_same_id_again_gets_the_same_answer(site):
    first = site.kannel(id="one")
    assert site.kannel(id="one") == first
    assert outcomes() == ["issued"]
    assert Case.objects.get().texts == 1
    assert Outbox.objects.count() == 1
    # Another id, or none, is another message; it joins the case.
    assert site.kannel(id="two") == first
    assert site.kannel() == first
    # Each aggregator has ids of its own.
    assert site.json(message(id="one"))[1]["reply"] == first
    assert outcomes() == ["issued", "joined", "joined", "joined"]
    # A password that has ended is not repeated.
    Case.objects.update(ended_at=Case.objects.get().opened_at, ended_as="used")
    assert site.kannel(id="one") == ""


def test_a_message_can_be_followed_and_is_counted_once(site, caplog):
    def count(name, **labels):
        return metrics.REGISTRY.get_sample_value(name, labels) or 0.0

    before = (
        count("caplai_messages_received_total", link="vnpt"),
        count("caplai_decisions_total", outcome="issued"),
    )
    caplog.set_level(logging.INFO, "caplai.trail")
    site.kannel(id="one")
    site.kannel(id="one")
    after = (
        count("caplai_messages_received_total", link="vnpt"),
        count("caplai_decisions_total", outcome="issued"),
    )
    assert [now - then for then, now in zip(before, after, strict=True)] == [1, 1]
    message = Inbox.objects.get().id
    steps = [(record.message, record.rows[0][0][0]) for record in caplog.records if hasattr(record, "rows")]
    assert steps == [("accepted", message), ("decided", message)]


def test_an_error_is_repeated_word_for_word(site, settings):
    first = site.kannel("BH MK 123", id="one")
    texts = settings.CAPLAI.texts.model_copy(update={"bad_code": "Khac"})
    settings.CAPLAI = settings.CAPLAI.model_copy(update={"texts": texts})
    wiring.web_rules.cache_clear()
    assert site.kannel("BH MK 123", id="one") == first
    assert site.kannel("BH MK 123", id="two") == "Khac"


def test_the_same_id_with_another_message_is_refused(site):
    site.kannel(id="one")
    for other in ({"text": "BH MK 9876543210"}, {"from": "+84911222333"}):
        status, _, body = site.ask("GET", kannel_url(**{"id": "one"} | other))
        assert (status, body) == (409, "id: was another message's")
    assert outcomes() == ["issued"]


def test_sixteen_at_once_with_one_id_are_one_message(site):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: site.json(message(id="one")), range(16)))
    assert {status for status, _ in answers} == {200}
    assert len({answer["reply"] for _, answer in answers}) == 1
    assert outcomes() == ["issued"]
    assert Outbox.objects.count() == 1


def test_sixteen_at_once_without_an_id_are_sixteen_messages_of_one_case(site):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: site.kannel(), range(16)))
    assert sorted(outcomes()) == ["issued"] + ["joined"] * 4 + ["over_limit"] * 5 + ["silenced"] * 6
    assert len({answer for answer in answers if "thanh cong" in answer}) == 1


# --- JSON ------------------------------------------------------------------------------------------


def message(text=f"BH MK {LAN}", **values):
    return {"id": "1", "from": "+" + PHONE, "to": "8079", "text": text} | values


def test_a_signed_request_is_answered_in_json(site):
    status, answer = site.json(message("BH MK mã số " + LAN, operator="ignored"))
    assert status == 200
    assert answer["id"] == "1"
    assert f"Tai khoan: {LAN}/" in answer["reply"]
    assert site.json(message("VIN 1", id="2")) == (200, {"id": "2", "reply": ""})
    assert site.json(message(id="3"), key=NEXT_KEY)[0] == 200  # either secret is good


def test_a_bad_proof_is_refused_without_a_word(site):
    proofs = [
        {"key": "x" * 32},
        {"signature": "sha256="},
        {"signature": "none"},
        {"signature": "sha256=é"},
        {"at": time.time() - 301},
        {"at": time.time() + 400},
    ]
    for proof in proofs:
        assert site.json(message(), **proof) == (401, ""), proof
    # A signature is of the very octets and their time.
    body = json.dumps(message()).encode()
    signature = "sha256=" + sign(KEY, str(int(time.time())), body)
    assert site.json(body.replace(b"0123456789", b"0123456780"), signature=signature) == (401, "")
    assert site.json(body, signature=signature, at=time.time() + 20) == (401, "")
    assert Inbox.objects.count() == 0


def test_nonsense_is_named_and_nothing_stored(site):
    nonsense = [
        (b"{", "no JSON"),
        (b"[" * 5000, "no JSON"),
        (b"[]", "no JSON object"),
        (message(text=5), "text: must be a string"),
        ({"id": "1", "from": PHONE, "to": "8079"}, "text: must be a string"),
        ({"from": PHONE, "to": "8079", "text": "BH"}, "id: must be a string"),
        (message(id=""), "id: is missing"),
        (message(**{"from": 84327000686}), "from: must be a string"),
        (message(**{"from": ""}), "from: is missing"),
        (message(**{"from": "+ "}), "from: is missing"),
        (message(**{"from": "84\n32"}), "from: has characters"),
        (message(to="1234"), "to: is none of this aggregator's short codes"),
        (message(id="x" * 129), "id: is too long"),
        (message(id="é"), "id: must be printable ASCII"),
    ]
    for body, says in nonsense:
        status, answer = site.json(body)
        assert status == 400, body
        assert says in answer
    assert Inbox.objects.count() == 0


def test_what_the_store_cannot_hold_is_marked(site):
    assert "sai cu phap" in site.json(message("\0 \ud83d"))[1]["reply"]
    assert Inbox.objects.get().text == "\ufffd \ufffd"


# --- Kannel's: who, and nonsense -------------------------------------------------------------------


def test_what_is_not_taken(site):
    refused = [
        (kannel_url(secret="x" * 16), 403),
        (kannel_url(secret=None), 403),
        (f"/sms/vnpt/{'x' * 16}?from=1&to=8079&text=a", 403),
        (kannel_url(name="nobody"), 404),
        (kannel_url(name=""), 404),
        (kannel_url(**{"from": None}), 400),
        (kannel_url(to=None), 400),
        (kannel_url(text=None), 400),
        (kannel_url(to="9999"), 400),
        (kannel_url(raw="&text=again"), 400),
        (kannel_url(udh=b"\x05\x00"), 400),
        (kannel_url(charset="utf-8\n"), 400),
        (kannel_url(id="x" * 129), 400),
        (kannel_url(name="fpt"), 405),
    ]
    for url, status in refused:
        answered, headers, body = site.ask("GET", url)
        assert answered == status, url
        assert bool(body) == (status in (400, 405)), url
        assert headers["Cache-Control"] == "no-store"
    # Bodies have a limit and a kind.
    headers = {"Content-Type": "text/plain"}
    assert site.ask("POST", f"/sms/vnpt/{SECRET}", b"x" * 20_000, headers)[0] == 413
    assert site.ask("POST", f"/sms/vnpt/{SECRET}", b"<a/>", {"Content-Type": "text/xml"})[0] == 415
    assert Inbox.objects.count() == 0
    # Pages are as they were.
    assert site.ask("GET", "/login/")[0] == 200
    assert site.ask("GET", "/sms")[0] == 404


def test_networks_and_https(serve, lan):
    here, elsewhere = {"networks": ["127.0.0.0/8"]}, {"networks": ["198.51.100.0/24"]}
    public = serve(
        KANNEL | here, KANNEL | {"name": "b"}, KANNEL | {"name": "c"} | elsewhere, public_url="https://x.vn"
    )
    # Plain http from a named network, by whatever name this host is called.
    assert "thanh cong" in public.kannel()
    assert public.ask("GET", kannel_url(name="b"))[0] == 403
    assert public.ask("GET", kannel_url(name="c"))[0] == 403
    assert Inbox.objects.count() == 1


# --- trouble ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_store_that_is_away_is_no_answer(site, conn, caplog):
    caplog.set_level(logging.INFO)
    conn.execute("begin")
    conn.execute("lock table inbox in access exclusive mode")
    started = time.monotonic()
    status, headers, body = site.ask("GET", kannel_url(id="one"))
    conn.execute("rollback")
    assert (status, headers["Retry-After"], body) == (503, "5", "")
    assert time.monotonic() - started < 10
    assert "thanh cong" in site.kannel(id="one")
    assert outcomes() == ["issued"]
    assert caplog.text.count("nothing can be answered") == 1
    assert caplog.text.count("answered again") == 1


def test_a_server_that_cut_every_connection_is_asked_anew(site, conn):
    first = site.kannel(id="one")
    conn.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    db.connection.close()  # ours
    status, _, body = site.ask("GET", kannel_url(id="one"))
    assert (status, body) in [(200, first), (503, "")]
    assert site.kannel(id="one") == first


def test_an_answer_that_was_cut_off_after_the_commit_is_given_again(site):
    connection = HTTPConnection("127.0.0.1", site.port)
    connection.request("GET", kannel_url(id="one"))
    while not Inbox.objects.exists():
        time.sleep(0.01)
    connection.close()  # nobody read it
    assert "thanh cong" in site.kannel(id="one")
    assert outcomes() == ["issued"]


def test_a_host_without_the_key_stores_nothing(site, settings, tmp_path):
    first = site.kannel(id="one")
    other = KeyringFile(tmp_path / "keyring.json")
    other.create()
    content = other.path.read_text().replace(settings.KEYRING.ring("issuing").active, "i-elsewhere")
    other.path.write_text(content)
    settings.KEYRING, well = other, settings.KEYRING
    wiring.web_rules.cache_clear()
    assert site.ask("GET", kannel_url(id="one"))[0] == 503
    assert site.ask("GET", kannel_url(id="two"))[0] == 503
    assert "khong khop" in site.kannel("BH MK 9876543210", id="three")  # needs no key
    other.path.unlink()
    assert site.ask("GET", kannel_url(id="four"))[0] == 503
    assert outcomes() == ["issued", "mismatch"]
    settings.KEYRING = well
    wiring.web_rules.cache_clear()
    assert site.kannel(id="two") == first


def test_no_log_holds_a_person_or_a_secret(site, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    reply = site.kannel(id="one")
    site.ask("GET", kannel_url(id="two", secret="wrong-and-secret"))

    def fail(*_, **__):
        raise RuntimeError(f"{PHONE} {LAN}")

    monkeypatch.setattr("caplai.channels.aggregator_in.answer", fail)
    assert site.ask("GET", f"/sms/vnpt/{SECRET}?from={PHONE}&to=8079&text=BH+MK+{LAN}")[0] == 500
    password = reply.split("Mat khau: ")[1].split(".")[0]
    ours = [
        record for record in caplog.records if not record.name.startswith("django.db")
    ]  # DEBUG, with its SQL
    written = "\n".join(map(Plain().format, ours))
    assert "a request cannot be answered" in written
    assert "builtins.RuntimeError" in written
    for secret in (SECRET, "wrong-and-secret", PHONE, LAN, password):
        assert secret not in written
