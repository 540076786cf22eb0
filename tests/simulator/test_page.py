"""The virtual phone's page and its API, over real HTTP, with an ESME behind it that echoes."""

import asyncio
import json
import re
import sys
from contextlib import asynccontextmanager

import aiohttp
import pytest

from caplai.simulator import Simulator, SimulatorConfig, markup, run
from caplai.simulator.phones import State
from tests.simulator.esme import Esme, in_loop, text_of

PHONE = "84327111686"


@asynccontextmanager
async def browser(tmp_path=None, citizens=(), **options):
    """A simulator with these citizens, and a browser that stays on its address."""
    file = None
    if tmp_path is not None:
        file = tmp_path / "citizens.json"
        file.write_text(json.dumps(list(citizens)))
    async with Simulator(SimulatorConfig(citizens_file=file, **options)) as sim:
        jar = aiohttp.CookieJar(unsafe=True)  # cookies of an IP address
        async with aiohttp.ClientSession(sim.http_url, cookie_jar=jar) as web:
            yield sim, web


LAN = {"name": "Nguyễn Thị Lan <b>", "phone": "0327111686", "code": "0123456789"}
NA = {"name": "Trần Bé Na", "phone": "0327111686", "code": "0123456780"}


async def read(web, path, **kwargs):
    async with web.get(path, **kwargs) as response:
        return response.status, await response.text()


@in_loop
async def test_a_phone_texts_and_hears_back_over_the_api():
    async with browser() as (sim, web), Esme(sim.smpp_port) as esme:
        async with web.post(
            "/api/phones/0327111686/messages", json={"to": "8079", "text": "BH MK 0123456789"}
        ) as response:
            assert response.status == 202
            number = (await response.json())["id"]
        assert text_of(await esme.delivered.get()) == "BH MK 0123456789"
        esme.submit("Mat khau: 220199.", to=PHONE)
        await sim.reply(PHONE, after=number)
        async with web.get(f"/api/phones/{PHONE}") as response:
            shown = await response.json()
    assert shown["paid"] == 1000
    assert [(m["incoming"], m["text"], m["state"]) for m in shown["messages"]] == [
        (False, "BH MK 0123456789", "sent"),
        (True, "Mat khau: 220199.", "received"),
    ]
    assert shown["messages"][0]["id"] == number


@pytest.mark.parametrize(
    ("path", "body", "kind", "status"),
    [
        (PHONE, '{"to": "8079", "text": "BH"}', "text/plain", 415),
        (PHONE, "to=8079&text=BH", "application/x-www-form-urlencoded", 415),
        (PHONE, "{", "application/json", 400),
        (PHONE, "[]", "application/json", 400),
        (PHONE, b"\xff", "application/json", 400),
        (PHONE, '{"to": "8079", "text": 7}', "application/json", 400),
        (PHONE, '{"to": "8079", "text": " "}', "application/json", 400),
        (PHONE, '{"to": "abc", "text": "BH"}', "application/json", 400),
        (PHONE, json.dumps({"text": "x" * 1001}), "application/json", 400),
        (PHONE, json.dumps({"text": "x" * 20_000}), "application/json", 413),
        ("12", '{"to": "8079", "text": "BH"}', "application/json", 400),
    ],
)
@in_loop
async def test_the_api_refuses_what_it_cannot_send(path, body, kind, status):
    async with browser() as (sim, web):
        headers = {"Content-Type": kind}
        async with web.post(f"/api/phones/{path}/messages", data=body, headers=headers) as response:
            assert response.status == status
        assert not sim.phones.conversation(PHONE).messages


@in_loop
async def test_known_citizens_are_listed_and_found(tmp_path):
    many = [{"name": f"Người {n}", "phone": f"09{n:08d}"} for n in range(1000)]
    async with browser(tmp_path, [*many, LAN]) as (_, web):
        _, everybody = await read(web, "/api/phones")
        _, lan = await read(web, "/api/phones", params={"search": "thi lan"})
        _, page = await read(web, "/")
        _, found = await read(web, "/", params={"search": "thi lan"})
    assert (json.loads(everybody)["citizens"], len(json.loads(everybody)["phones"])) == (1001, 20)
    assert json.loads(lan)["phones"] == [
        {"label": "Nguyễn Thị Lan <b>", "phone": PHONE, "code": "0123456789"}
    ]
    assert page.count("<li>") == 20
    assert found.count("<li>") == 1
    assert "Nguyễn Thị Lan &lt;b&gt;" in found


@in_loop
async def test_changes_are_streamed():
    async with (
        browser() as (sim, web),
        Esme(sim.smpp_port) as esme,
        web.get("/api/events", params={"phone": PHONE}) as response,
    ):
        assert response.content_type == "text/event-stream"
        seen = []

        async def until(number: int) -> None:
            while not seen or seen[-1] < number:
                line = await response.content.readline()
                if line.startswith(b"data: "):
                    seen.append(int(line[6:]))

        await until(0)
        esme.submit("Mat khau: 220199.", to="84900000001")
        esme.submit("Mat khau: 220199.", to=PHONE)
        reply = await sim.reply(PHONE)
        await until(reply.id)
        assert seen == [0, reply.id]


@in_loop
async def test_an_open_stream_does_not_hold_up_the_end():
    async with browser() as (sim, web), web.get("/api/events", params={"phone": PHONE}) as response:
        await response.content.readline()
        async with asyncio.timeout(3):
            await sim.__aexit__(None, None, None)
            await response.read()


def origin(sim: Simulator) -> str:
    return sim.http_url.rstrip("/")


@in_loop
async def test_the_form_works_without_javascript(tmp_path):
    async with browser(tmp_path, [LAN]) as (sim, web), Esme(sim.smpp_port) as esme:
        _, page = await read(web, "/", params={"phone": PHONE})
        assert 'placeholder="BH MK 0123456789"' in page
        assert ">BH MK 0123456789</textarea>" in page  # known, so it is written already
        assert "Đã trả: <strong>0 đ</strong>" in page
        form = {"phone": PHONE, "to": "8079", "text": "BH MK\r\n0123456789"}
        async with web.post(
            "/send", data=form, headers={"Origin": origin(sim)}, allow_redirects=False
        ) as response:
            assert (response.status, response.headers["Location"]) == (303, f"/?phone={PHONE}")
        assert text_of(await esme.delivered.get()) == "BH MK\n0123456789"
        await sim.phones.wait_for(PHONE, lambda m: m.state is State.SENT)
        _, page = await read(web, "/", params={"phone": PHONE})
        assert 'http-equiv="refresh"' in page  # an answer may come
        esme.submit("Mat khau: 220199. <script>", to=PHONE)
        await sim.reply(PHONE)
        _, page = await read(web, "/", params={"phone": PHONE})
    assert "Mat khau: 220199. &lt;script&gt;" in page
    assert "Đã trả: <strong>1.000 đ</strong>" in page
    assert 'http-equiv="refresh"' not in page
    assert "></textarea>" in page


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "null"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://[bad"},
        {"Referer": "https://evil.example/"},
    ],
)
@in_loop
async def test_a_form_from_elsewhere_sends_nothing(headers):
    async with browser() as (sim, web):
        form = {"phone": PHONE, "to": "8079", "text": "BH MK 0123456789"}
        async with web.post("/send", data=form, headers=headers) as response:
            assert response.status == 403
        assert not sim.phones.conversation(PHONE).messages


@in_loop
async def test_a_referer_of_ours_will_do_for_old_browsers():
    async with browser() as (sim, web):
        form = {"phone": PHONE, "to": "8079", "text": "BH MK 0123456789"}
        async with web.post("/send", data=form, headers={"Referer": f"{origin(sim)}/?phone=1"}) as response:
            assert response.status == 200
        assert len(sim.phones.conversation(PHONE).messages) == 1


@in_loop
async def test_a_rebound_name_is_not_served():
    async with browser() as (sim, web):
        for host, status in [
            (f"evil.example:{sim.http_port}", 421),
            ("[bad", 421),
            (f"localhost:{sim.http_port}", 200),
        ]:
            assert (await read(web, "/", headers={"Host": host}))[0] == status


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("phone", "12", "wrong_phone"),
        ("to", "abc", "wrong_to"),
        ("text", "", "wrong_text"),
        ("text", "x" * 1001, "wrong_text"),
    ],
)
@in_loop
async def test_what_cannot_be_sent_is_said_and_what_was_written_is_kept(field, value, word):
    async with browser() as (sim, web):
        form = {"phone": PHONE, "to": "8079", "text": "BH MK 0123456789", field: value}
        async with web.post("/send", data=form, headers={"Origin": origin(sim)}) as response:
            page = await response.text()
            assert response.status == 400
        assert markup.WORDS["vi"][word] in page
        if field != "phone":
            assert f">{form['text']}</textarea>" in page
        assert not sim.phones.conversation(PHONE).messages


@in_loop
async def test_one_phone_of_a_family_offers_each_code(tmp_path):
    async with browser(tmp_path, [LAN, NA]) as (_, web):
        _, page = await read(web, "/", params={"phone": PHONE})
        assert "></textarea>" in page  # whose code is meant is not guessed
        offered = re.findall(r'class="fill" href="([^"]+)"', page)
        assert len(offered) == 2
        _, page = await read(web, offered[1].replace("&amp;", "&"))
        assert ">BH MK 0123456780</textarea>" in page


@in_loop
async def test_the_words_before_a_code_are_the_agencys(tmp_path):
    async with browser(tmp_path, [LAN, NA], keyword="XH", command="<LAI>") as (_, web):
        _, page = await read(web, "/", params={"phone": PHONE})
        assert 'placeholder="XH &lt;LAI&gt; 0123456789"' in page
        assert page.count(">XH &lt;LAI&gt; 01234567") == 2
        assert "BH MK" not in page
    async with browser(tmp_path, [LAN], keyword="XH", command="LAI") as (_, web):
        assert ">XH LAI 0123456789</textarea>" in (await read(web, "/", params={"phone": PHONE}))[1]


@in_loop
async def test_any_number_can_be_typed(tmp_path):
    async with browser(tmp_path, [LAN]) as (_, web):
        _, page = await read(web, "/", params={"search": "0912 345 678"})
        assert 'href="/?phone=84912345678"' in page
        status, page = await read(web, "/", params={"phone": "0912 345 678"})
        assert status == 200
        assert 'data-phone="84912345678"' in page
        _, page = await read(web, "/", params={"phone": "12"})
        assert markup.WORDS["vi"]["wrong_phone"] in page


@in_loop
async def test_the_language_is_remembered():
    async with browser() as (_, web):
        assert '<html lang="vi">' in (await read(web, "/"))[1]
        assert '<html lang="en">' in (await read(web, "/?lang=en"))[1]
        assert "Choose a phone" in (await read(web, "/"))[1]
        assert '<html lang="en">' in (await read(web, "/?lang=xx"))[1]
        assert "Chọn điện thoại" in (await read(web, "/?lang=vi"))[1]


def test_both_languages_say_everything():
    assert markup.WORDS["vi"].keys() == markup.WORDS["en"].keys()
    assert markup.money(1_234_000, "vi") == "1.234.000 đ"
    assert markup.money(1_234_000, "en") == "1,234,000 đ"


@pytest.mark.parametrize("path", ["/", "/static/phone.js", "/nowhere", "/api/phones", "/api/phones/12"])
@in_loop
async def test_every_answer_carries_a_strict_policy(path):
    async with browser() as (_, web), web.get(path) as response:
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"


@in_loop
async def test_the_page_has_nothing_inline_and_is_light(tmp_path):
    async with browser(tmp_path, [LAN]) as (_, web):
        _, page = await read(web, "/", params={"phone": PHONE})
        assert re.findall(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", page) == []
        size = len(page.encode())
        for path in re.findall(r'(?:src|href)="(/static/[^"]+)"', page):
            status, content = await read(web, path)
            assert status == 200
            size += len(content.encode())
        assert size < 60_000


@in_loop
async def test_run_announces_its_ports_and_ends_when_cancelled():
    ready: asyncio.Future[Simulator] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(run(SimulatorConfig(), ready.set_result))
    sim = await ready
    async with aiohttp.ClientSession() as web, web.get(sim.http_url) as response:
        assert response.status == 200
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(OSError, match=r"refused|Connect"):
        await asyncio.open_connection("127.0.0.1", sim.smpp_port)
    with pytest.raises(OSError, match=r"refused|Connect"):
        await asyncio.open_connection("127.0.0.1", sim.http_port)


@in_loop
async def test_a_taken_port_leaves_nothing_open():
    async with Simulator() as first:
        second = Simulator(SimulatorConfig(http_port=first.http_port))
        with pytest.raises(OSError, match="in use"):
            await second.__aenter__()
        with pytest.raises(OSError, match=r"refused|Connect"):
            await asyncio.open_connection("127.0.0.1", second.smpp_port)


@in_loop
async def test_sigterm_ends_a_running_simulator_cleanly():
    program = (
        "import asyncio; from caplai.simulator import SimulatorConfig, run;"
        "asyncio.run(run(SimulatorConfig(), lambda simulator: print(simulator.smpp_port, flush=True)))"
    )
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=pipe, stderr=pipe)
    async with Esme(int(await process.stdout.readline())) as esme:
        process.terminate()
        _, errors = await process.communicate()
        await esme.ended()
        assert (process.returncode, errors, esme.closed) == (0, b"", "unbound by the peer")
