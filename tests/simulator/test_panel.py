"""The carrier's panel and its API: troubles are switched while it runs, by people and by scripts."""

import re

import pytest

from caplai.simulator import panel_markup
from caplai.simulator.scenarios import CATALOGUE, NUMBERS
from tests.simulator.esme import Esme, in_loop
from tests.simulator.test_page import browser, origin, read


async def press(sim, web, expected=200, **form):
    """Send one of the panel's forms; the page that comes after it."""
    async with web.post("/carrier", data=form, headers={"Origin": origin(sim)}) as response:
        assert response.status == expected
        return await response.text()


@in_loop
async def test_a_person_switches_trouble_on_and_off_without_javascript():
    async with browser() as (sim, web):
        _, page = await read(web, "/carrier")
        assert page.count('name="action" value="on"') == len(CATALOGUE)
        assert "Không có sự cố nào đang bật." in page
        assert "<script" not in page

        page = await press(sim, web, action="on", name="throttle", value="7")
        assert page.count('value="on"') == len(CATALOGUE) - 1
        assert '<strong class="is-on">Đang bật: 7</strong>' in page
        assert sim.scenarios.find("throttle").value == 7
        assert ">Nhà mạng (1)</a>" in (await read(web, "/"))[1]

        page = await press(sim, web, action="on", name="receipt-twice", value="")
        assert '<strong class="is-on">Đang bật</strong>' in page
        await press(sim, web, action="off", name="throttle")
        assert list(sim.scenarios.on()) == ["receipt-twice"]
        page = await press(sim, web, action="all-off")
        assert "Không có sự cố nào đang bật." in page and sim.scenarios.on() == {}
        assert ">Nhà mạng</a>" in (await read(web, "/"))[1]


@in_loop
async def test_a_value_that_cannot_be_used_is_said_and_kept():
    async with browser() as (sim, web):
        page = await press(sim, web, 400, action="on", name="throttle", value="<many>")
        assert 'Giá trị này không dùng được: <a href="#throttle">throttle</a>. Ví dụ: <code>5</code>' in page
        assert 'value="&lt;many&gt;" aria-label="Giá trị: throttle"' in page
        page = await press(sim, web, 400, action="on", name="<thunder>")
        assert "Giá trị này không dùng được: &lt;thunder&gt;" in page
        assert sim.scenarios.on() == {}


@in_loop
async def test_all_connections_are_cut_now():
    async with browser() as (sim, web):
        async with Esme(sim.smpp_port) as esme:
            assert "nhận tin: <strong>1</strong>" in (await read(web, "/carrier"))[1]
            assert "Đã cắt mọi kết nối." in await press(sim, web, action="cut")
            await esme.ended()
        async with Esme(sim.smpp_port) as esme, web.post("/api/cut", json={}) as response:
            assert (response.status, await response.json()) == (200, {"cut": 1})
            await esme.ended()


@in_loop
async def test_every_number_leads_to_its_phone():
    async with browser() as (_, web):
        _, page = await read(web, "/carrier?lang=en")
        assert re.findall(r'href="/\?phone=(\d+)"', page) == list(NUMBERS)
        assert "Nobody owns these numbers." in page
        status, page = await read(web, f"/?phone={next(iter(NUMBERS))}")
        assert status == 200 and "0500 000 101" in page


@in_loop
async def test_scripts_see_and_switch_them():
    async with browser() as (sim, web):
        async with web.get("/api/scenarios") as response:
            shown = await response.json()
        assert [one["name"] for one in shown["scenarios"]] == list(CATALOGUE)
        assert shown["scenarios"][6] == {
            "name": "refuse",
            "on": False,
            "value": "ESME_RSYSERR 100%",
            "about": CATALOGUE["refuse"].en,
        }
        assert (shown["bound"], shown["numbers"]) == (0, NUMBERS)
        async with web.put("/api/scenarios/refuse", json={"value": "ESME_RTHROTTLED 10%"}) as response:
            answer = await response.json()
        assert (answer["on"], answer["value"]) == (True, "ESME_RTHROTTLED 10%")
        async with web.put("/api/scenarios/data-sm", json={}) as response:
            assert response.status == 200
        assert list(sim.scenarios.on()) == ["refuse", "data-sm"]
        async with web.delete("/api/scenarios/refuse") as response:
            assert (await response.json())["on"] is False
        async with web.delete("/api/scenarios") as response:
            assert not any(one["on"] for one in (await response.json())["scenarios"])
        assert sim.scenarios.on() == {}


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "says"),
    [
        (
            "PUT",
            "/api/scenarios/thunder",
            {"json": {}},
            404,
            "There is no scenario 'thunder'. There are: bind-",
        ),
        ("DELETE", "/api/scenarios/thunder", {}, 404, "There is no scenario 'thunder'."),
        ("PUT", "/api/scenarios/slow", {"json": {"value": "x"}}, 400, "slow takes seconds, up to 3600."),
        ("PUT", "/api/scenarios/slow", {"json": {"value": 3}}, 400, "`value` must be a text"),
        ("PUT", "/api/scenarios/slow=3", {"json": {"value": "4=5"}}, 400, "slow takes seconds"),
        ("PUT", "/api/scenarios/slow", {"data": "value=3"}, 415, "application/json"),
        ("POST", "/api/cut", {"data": {"a": "b"}}, 415, "application/json"),
        ("POST", "/carrier", {"data": {"action": "cut"}}, 403, "not sent from this page"),
        (
            "POST",
            "/carrier",
            {"data": {"action": "cut"}, "headers": {"Origin": "https://evil.example"}},
            403,
            "not sent from this page",
        ),
    ],
)
@in_loop
async def test_what_is_wrong_or_comes_from_elsewhere_changes_nothing(method, path, sent, status, says):
    async with (
        browser() as (sim, web),
        Esme(sim.smpp_port) as esme,
        web.request(method, path, **sent) as response,
    ):
        assert response.status == status
        assert says in await response.text()
        assert sim.scenarios.on() == {} and not esme.closed


@in_loop
async def test_the_panel_is_light_and_has_nothing_inline():
    async with browser() as (_, web):
        _, page = await read(web, "/carrier")
        _, style = await read(web, "/static/phone.css")
    assert re.findall(r"<script|<style| style=| on[a-z]+=", page) == []
    assert len(page.encode()) + len(style.encode()) < 60_000


def test_both_languages_say_everything():
    assert panel_markup.WORDS["vi"].keys() == panel_markup.WORDS["en"].keys()
