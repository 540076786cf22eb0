"""The carrier's troubles, to be switched while it runs: a page for people, a JSON API for scripts."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from caplai.simulator.guard import ask_for_own_form, language_of, read_json, refuse, remember
from caplai.simulator.panel_markup import PanelView, panel
from caplai.simulator.scenarios import CATALOGUE, NUMBERS, Scenario, Scenarios, read

_MOST_CHARACTERS = 60


class Panel:
    """`bound` counts the binds that take what phones send; `cut` ends every connection now."""

    def __init__(self, scenarios: Scenarios, bound: Callable[[], int], cut: Callable[[], int]) -> None:
        self._scenarios = scenarios
        self._bound = bound
        self._cut = cut

    @property
    def troubles(self) -> int:
        """How many scenarios are on for everybody."""
        return len(self._scenarios.on())

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/carrier", self._show)
        router.add_post("/carrier", self._change)
        router.add_get("/api/scenarios", self._list)
        router.add_delete("/api/scenarios", self._all_off)
        router.add_put("/api/scenarios/{name}", self._on)
        router.add_delete("/api/scenarios/{name}", self._off)
        router.add_post("/api/cut", self._cut_now)

    # The page

    async def _show(self, request: web.Request) -> web.Response:
        query = request.query
        response = self._render(request, done=query.get("done", ""), name=query.get("name", ""))
        remember(request, response)
        return response

    async def _change(self, request: web.Request) -> web.Response:
        ask_for_own_form(request)
        form = await request.post()
        action, name = str(form.get("action", "")), str(form.get("name", ""))
        value = str(form.get("value", ""))[:_MOST_CHARACTERS]
        try:
            match action:
                case "on":
                    self._scenarios.switch_on(f"{name}={value}" if value.strip() else name)
                case "off":
                    self._scenarios.switch_off(name)
                case "all-off":
                    self._scenarios.switch_all_off()
                case "cut":
                    self._cut()
        except ValueError:
            return self._render(request, name=name, wrong=value, status=400)
        anchor = f"#{name}" if name in CATALOGUE else ""
        raise web.HTTPSeeOther(f"/carrier?{urlencode({'done': action, 'name': name})}{anchor}")

    def _render(
        self, request: web.Request, *, name: str, done: str = "", wrong: str | None = None, status: int = 200
    ) -> web.Response:
        view = PanelView(
            language=language_of(request),
            on=self._scenarios.on(),
            bound=self._bound(),
            done=done,
            name=name,
            wrong=wrong,
        )
        return web.Response(text=panel(view), content_type="text/html", status=status)

    # The API

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "bound": self._bound(),
                "scenarios": [self._as_json(scenario) for scenario in CATALOGUE.values()],
                "numbers": NUMBERS,
            }
        )

    async def _on(self, request: web.Request) -> web.Response:
        scenario = _scenario_of(request)
        value = (await read_json(request)).get("value", "")
        if not isinstance(value, str):
            raise refuse("`value` must be a text")
        try:
            self._scenarios.switch_on(f"{scenario.name}={value}" if value else scenario.name)
        except ValueError as refusal:
            raise refuse(str(refusal)) from None
        return web.json_response(self._as_json(scenario))

    async def _off(self, request: web.Request) -> web.Response:
        scenario = _scenario_of(request)
        self._scenarios.switch_off(scenario.name)
        return web.json_response(self._as_json(scenario))

    async def _all_off(self, request: web.Request) -> web.Response:
        self._scenarios.switch_all_off()
        return await self._list(request)

    async def _cut_now(self, request: web.Request) -> web.Response:
        await read_json(request)
        return web.json_response({"cut": self._cut()})

    def _as_json(self, scenario: Scenario) -> dict[str, Any]:
        setting = self._scenarios.find(scenario.name)
        return {
            "name": scenario.name,
            "on": setting is not None,
            "value": setting.written if setting else scenario.usual,
            "about": scenario.en,
        }


def _scenario_of(request: web.Request) -> Scenario:
    name = request.match_info["name"]
    try:
        return read(name).scenario
    except ValueError as refusal:
        raise web.HTTPNotFound(text=f"{refusal}\n") from None
