"""The carrier's panel as HTML: every scenario with its sentence, its value and one button."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from caplai.simulator.markup import head
from caplai.simulator.phones import show_number
from caplai.simulator.scenarios import CATALOGUE, NUMBERS, Part, Scenario, Setting

WORDS = {
    "vi": {
        "title": "Nhà mạng ảo",
        "about": "Bật một sự cố để thử xem hệ thống chịu đựng ra sao. Không có gì ra mạng thật.",
        "phones": "Điện thoại",
        "bound": "Kết nối đang nhận tin",
        "running": "Sự cố đang bật",
        "nothing_on": "Không có sự cố nào đang bật.",
        "cut": "Cắt mọi kết nối ngay",
        "did_cut": "Đã cắt mọi kết nối.",
        "all_off": "Tắt tất cả",
        "on": "Bật",
        "off": "Tắt",
        "is_on": "Đang bật",
        "value": "Giá trị",
        "wrong": "Giá trị này không dùng được",
        "example": "Ví dụ",
        "link": "Kết nối",
        "mt": "Tin tới điện thoại",
        "mo": "Tin từ điện thoại",
        "receipt": "Báo cáo gửi tin",
        "numbers": "Số điện thoại luôn gặp sự cố",
        "about_numbers": "Các số này không thuộc về ai. Nhắn từ một số, hoặc gửi tới nó: chỉ riêng số ấy gặp sự cố.",
        "other_language": "English",
    },
    "en": {
        "title": "Virtual carrier",
        "about": "Switch trouble on to see how a system bears it. Nothing leaves for a real network.",
        "phones": "Phones",
        "bound": "Connected to receive",
        "running": "Troubles that are on",
        "nothing_on": "No trouble is on.",
        "cut": "Cut all connections now",
        "did_cut": "All connections were cut.",
        "all_off": "Switch all off",
        "on": "Switch on",
        "off": "Switch off",
        "is_on": "On",
        "value": "Value",
        "wrong": "This value cannot be used",
        "example": "For instance",
        "link": "Connections",
        "mt": "Messages to phones",
        "mo": "Messages from phones",
        "receipt": "Delivery receipts",
        "numbers": "Numbers that always have trouble",
        "about_numbers": "Nobody owns these numbers. Text from one, or send to it: that one alone has the trouble.",
        "other_language": "Tiếng Việt",
    },
}


@dataclass(frozen=True, slots=True)
class PanelView:
    """What is on, how many binds take messages, what was just done and to which scenario, and what was written
    if its value was wrong.
    """

    language: str
    on: Mapping[str, Setting]
    bound: int
    done: str
    name: str
    wrong: str | None

    def word(self, key: str) -> str:
        return escape(WORDS[self.language][key])

    def sentence(self, scenario: Scenario) -> str:
        return escape(scenario.vi if self.language == "vi" else scenario.en)


def panel(view: PanelView) -> str:
    """The whole page; all of it is links and forms."""
    other = "en" if view.language == "vi" else "vi"
    title = view.word("title")
    return f"""{head(view.language, title)}
</head>
<body class="carrier">
<header>
<h1>{title}</h1>
<p>{view.word("about")}</p>
<p class="ways"><a href="/">{view.word("phones")}</a>
<a lang="{other}" hreflang="{other}" href="/carrier?lang={other}">{view.word("other_language")}</a></p>
</header>
<main>
{_state(view)}
{"".join(_group(view, part) for part in Part)}
{_numbers(view)}
</main>
</body>
</html>
"""


def _state(view: PanelView) -> str:
    done = f'<p role="status">{view.word("did_cut")}</p>' if view.done == "cut" else ""
    error = f'<p class="error" role="alert">{_error(view)}</p>' if view.wrong is not None else ""
    running = "".join(
        f'<li><a href="#{name}">{escape(f"{name}={setting.written}" if setting.written else name)}</a></li>'
        for name, setting in view.on.items()
    )
    on = (
        f'<p>{view.word("running")}:</p><ul class="running">{running}</ul>'
        if running
        else f"<p>{view.word('nothing_on')}</p>"
    )
    all_off = _button("all-off", view.word("all_off"), "plain") if running else ""
    return f"""<section class="state" aria-label="{view.word("title")}">{error}{done}
<p>{view.word("bound")}: <strong>{view.bound}</strong></p>
{on}
<form action="/carrier" method="post">{_button("cut", view.word("cut"), "danger")}{all_off}</form>
</section>"""


def _error(view: PanelView) -> str:
    scenario = CATALOGUE.get(view.name)
    if scenario is None:
        return f"{view.word('wrong')}: {escape(view.name)}"
    link = f'<a href="#{scenario.name}">{scenario.name}</a>'
    example = f" {view.word('example')}: <code>{scenario.usual}</code>" if scenario.usual else ""
    return f"{view.word('wrong')}: {link}.{example}"


def _button(action: str, label: str, kind: str = "", context: str = "") -> str:
    named = f' aria-label="{label}: {context}"' if context else ""
    return f'<button name="action" value="{action}" class="{kind}"{named}>{label}</button>'


def _group(view: PanelView, part: Part) -> str:
    scenarios = [scenario for scenario in CATALOGUE.values() if scenario.part is part]
    rows = "".join(_row(view, scenario) for scenario in scenarios)
    on = sum(scenario.name in view.on for scenario in scenarios)
    shown = " open" if on or any(scenario.name == view.name for scenario in scenarios) else ""
    count = f" ({on})" if on else ""
    return f"""<details{shown}><summary><h2>{view.word(part)}{count}</h2></summary>
<ul class="scenarios">{rows}</ul></details>"""


def _row(view: PanelView, scenario: Scenario) -> str:
    name = scenario.name
    setting = view.on.get(name)
    wrong = view.wrong if view.name == name else None
    value = ""
    if setting is not None:
        label = f"{view.word('is_on')}{f': {escape(setting.written)}' if setting.written else ''}"
        value = f'<strong class="is-on">{label}</strong>'
        button = _button("off", view.word("off"), "plain", name)
    else:
        button = _button("on", view.word("on"), "", name)
        if scenario.usual:
            shown, invalid = (scenario.usual, "") if wrong is None else (wrong, ' aria-invalid="true"')
            value = (
                f'<input name="value" value="{escape(shown)}" aria-label="{view.word("value")}: {name}"'
                f' maxlength="60" autocomplete="off"{invalid}>'
            )
    return f"""<li id="{name}"{' class="on"' if setting else ""}><form action="/carrier" method="post">
<p><code>{name}</code> {view.sentence(scenario)}</p>
<input type="hidden" name="name" value="{name}">
<p class="switch">{value}{button}</p></form></li>"""


def _numbers(view: PanelView) -> str:
    rows = "".join(
        f'<li><a href="/?phone={quote(phone)}">{show_number(phone)}</a> <code>{escape(what)}</code></li>'
        for phone, what in NUMBERS.items()
    )
    return f"""<details><summary><h2>{view.word("numbers")}</h2></summary>
<p>{view.word("about_numbers")}</p>
<ul class="numbers">{rows}</ul></details>"""
