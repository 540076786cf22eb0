"""The virtual phone as HTML: words in two languages, and plain functions from values to escaped text."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from html import escape
from urllib.parse import urlencode

from caplai.simulator.citizens import Citizen
from caplai.simulator.phones import Conversation, Message, State, show_number

HANOI = timezone(timedelta(hours=7))  # Viet Nam has one zone and no summer time

WORDS = {
    "vi": {
        "title": "Điện thoại ảo",
        "about": "Máy mô phỏng để thử nhắn tin. Không có tin nhắn nào ra mạng thật.",
        "who": "Chọn điện thoại",
        "search": "Tên, số điện thoại hoặc mã số",
        "find": "Tìm",
        "more": "Còn nữa: hãy gõ thêm để tìm.",
        "nobody": "Không tìm thấy ai. Có thể gõ một số điện thoại bất kỳ.",
        "no_citizens": "Hãy gõ một số điện thoại, ví dụ 0912 345 678.",
        "other": "Dùng số khác",
        "unknown": "Số ngoài danh sách",
        "code": "Mã số",
        "start": "Hãy chọn một người trong danh sách, hoặc gõ một số điện thoại bất kỳ.",
        "change": "Đổi điện thoại",
        "paid": "Đã trả",
        "empty": "Chưa có tin nhắn nào.",
        "to": "Gửi tới",
        "text": "Nội dung tin nhắn",
        "send": "Gửi",
        "reload": "Xem tin mới",
        "sending": "Đang gửi…",
        "sent": "Đã gửi",
        "failed": "Không gửi được",
        "from": "Từ",
        "wrong_phone": "Số điện thoại này không đúng.",
        "wrong_to": "Số nhận gồm 3 đến 15 chữ số.",
        "wrong_text": "Tin nhắn phải có từ 1 đến 1.000 ký tự.",
        "carrier": "Nhà mạng",
        "other_language": "English",
    },
    "en": {
        "title": "Virtual phone",
        "about": "A simulator to try text messages with. No message leaves for a real network.",
        "who": "Choose a phone",
        "search": "Name, phone number or code",
        "find": "Find",
        "more": "There are more: type more to find them.",
        "nobody": "Nobody found. Any phone number can be typed.",
        "no_citizens": "Type a phone number, such as 0912 345 678.",
        "other": "Use another number",
        "unknown": "Not in the list",
        "code": "Code",
        "start": "Choose a person from the list, or type any phone number.",
        "change": "Change phone",
        "paid": "Paid",
        "empty": "No messages yet.",
        "to": "To",
        "text": "Message",
        "send": "Send",
        "reload": "Check for messages",
        "sending": "Sending…",
        "sent": "Sent",
        "failed": "Not sent",
        "from": "From",
        "wrong_phone": "This phone number is not right.",
        "wrong_to": "The number to send to has 3 to 15 digits.",
        "wrong_text": "A message has 1 to 1,000 characters.",
        "carrier": "Carrier",
        "other_language": "Tiếng Việt",
    },
}


@dataclass(frozen=True, slots=True)
class View:
    """What the page shows: whose phone (None: nobody's yet), who can be picked, what is being written.

    `words` stand before a code in a message; `troubles` is how many of the carrier's scenarios are on.
    """

    language: str
    search: str
    found: Sequence[Citizen]
    more: bool
    citizens: int
    typed_number: str | None
    phone: str | None
    owners: Sequence[Citizen]
    conversation: Conversation
    short_code: str
    words: str
    troubles: int
    to: str
    draft: str
    error: str
    waiting: bool

    def word(self, key: str) -> str:
        return escape(WORDS[self.language][key])


def money(amount: int, language: str) -> str:
    """3000 → `3.000 đ` in Vietnamese, `3,000 đ` in English."""
    grouped = f"{amount:,}"
    return f"{grouped.replace(',', '.') if language == 'vi' else grouped} đ"


def link(**query: str) -> str:
    return escape("/?" + urlencode({key: value for key, value in query.items() if value}))


def head(language: str, title: str) -> str:
    """How each page begins, its title and style."""
    return f"""<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/static/phone.css">"""


def page(view: View) -> str:
    """The whole page. Everything works by links and forms; phone.js only spares the reloading."""
    # Without JavaScript the page looks again by itself, but only while an answer may still be on its way:
    # a reload takes away what is being written.
    refresh = '<noscript><meta http-equiv="refresh" content="2"></noscript>' if view.waiting else ""
    other = "en" if view.language == "vi" else "vi"
    troubles = f" ({view.troubles})" if view.troubles else ""
    title = view.word("title")
    return f"""{head(view.language, title)}
{refresh}<script src="/static/phone.js" defer></script>
</head>
<body class="{"talking" if view.phone else "choosing"}">
<header>
<h1>{title}</h1>
<p>{view.word("about")}</p>
<p class="ways"><a href="/carrier">{view.word("carrier")}{troubles}</a>
<a lang="{other}" hreflang="{other}" \
href="{link(phone=view.phone or "", search=view.search, lang=other)}">{view.word("other_language")}</a></p>
</header>
<main>
{_choice(view)}
{_phone(view)}
</main>
</body>
</html>
"""


def _choice(view: View) -> str:
    people = "".join(_person(view, citizen) for citizen in view.found)
    if view.typed_number and not any(citizen.phone == view.typed_number for citizen in view.found):
        people = (
            f'<li><a href="{link(phone=view.typed_number)}"><strong>{show_number(view.typed_number)}</strong>'
            f"<span>{view.word('other')}</span></a></li>" + people
        )
    note = ""
    if view.more:
        note = view.word("more")
    elif not people:
        note = view.word("nobody" if view.citizens else "no_citizens")
    kept = f'<input type="hidden" name="phone" value="{view.phone}">' if view.phone else ""
    return f"""<section id="choice" aria-labelledby="who">
<h2 id="who">{view.word("who")}</h2>
<form action="/" method="get" role="search" class="search">{kept}
<label for="search">{view.word("search")}</label>
<input id="search" name="search" type="search" value="{escape(view.search)}" autocomplete="off" \
maxlength="60">
<button>{view.word("find")}</button>
</form>
<ul id="people">{people}</ul>
<p id="note">{note}</p>
</section>"""


def _person(view: View, citizen: Citizen) -> str:
    code = f"<span>{view.word('code')} {escape(citizen.code)}</span>" if citizen.code else ""
    current = ' aria-current="true"' if citizen.phone == view.phone else ""
    return (
        f'<li><a href="{link(phone=citizen.phone, search=view.search)}"{current}>'
        f"<strong>{escape(citizen.name)}</strong>"
        f"<span>{show_number(citizen.phone)}</span>{code}</a></li>"
    )


def _phone(view: View) -> str:
    if view.phone is None:
        error = f'<p class="error" role="alert">{view.word(view.error)}</p>' if view.error else ""
        return f'<section id="phone" class="off">{error}<p>{view.word("start")}</p></section>'
    names = ", ".join(escape(citizen.name) for citizen in view.owners) or view.word("unknown")
    codes = [citizen.code for citizen in view.owners if citizen.code]
    # One phone may stand for a family: a code each, one tap puts it into the message.
    fill = "".join(
        f'<a class="fill" href="{link(phone=view.phone, text=f"{view.words} {code}")}">'
        f"{escape(view.words)} {escape(code)}</a>"
        for code in codes
    )
    bubbles = "".join(_bubble(view, message) for message in view.conversation.messages)
    error = f'<p class="error" role="alert" id="error">{view.word(view.error)}</p>' if view.error else ""
    return f"""<section id="phone" data-phone="{view.phone}" aria-labelledby="owner">
<div class="owner">
<h2 id="owner">{names} <span>{show_number(view.phone)}</span></h2>
<p id="paid">{view.word("paid")}: <strong>{money(view.conversation.paid, view.language)}</strong></p>
<a class="change" href="/">{view.word("change")}</a>
</div>
<ol id="thread" role="log" tabindex="0" aria-label="{view.word("title")}" data-empty="{view.word("empty")}">\
{bubbles}</ol>
<form id="write" action="/send" method="post">{error}
<input type="hidden" name="phone" value="{view.phone}">
<div class="to"><label for="to">{view.word("to")}</label>
<input id="to" name="to" value="{escape(view.to or view.short_code)}" inputmode="numeric" autocomplete="off" \
maxlength="15" required>
<p class="fills">{fill}</p></div>
<label for="text" class="unseen">{view.word("text")}</label>
<div class="line"><textarea id="text" name="text" rows="2" maxlength="1000" required \
placeholder="{escape(view.words)} 0123456789">{escape(view.draft)}</textarea>
<button>{view.word("send")}</button></div>
<noscript><a class="reload" href="{link(phone=view.phone)}">{view.word("reload")}</a></noscript>
</form>
</section>"""


def _bubble(view: View, message: Message) -> str:
    at = datetime.fromtimestamp(message.at, HANOI)
    who = view.word("from") if message.incoming else view.word("to")
    state = "" if message.incoming else f' · <span class="state">{view.word(message.state)}</span>'
    reason = f" ({escape(message.reason)})" if message.state is State.FAILED and message.reason else ""
    return (
        f'<li id="m{message.id}" class="{message.state}"><p>{escape(message.text)}</p>'
        f'<small>{who} {escape(message.number)} · <time datetime="{at.isoformat(timespec="seconds")}">'
        f"{at:%H:%M}</time>{state}{reason}</small></li>"
    )
