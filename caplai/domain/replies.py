"""The words that go back to the phone: unaccented GSM-7, one segment each.

A reply is written in two steps. `prepare` puts in what the configuration says; the result, the wording, is
stored with the reply. `fill` puts in what is the person's own, in memory only. So a reply sent again is the
identical text, whatever has happened to the configuration in between, and no password is in any table.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, timezone
from functools import lru_cache

SEGMENT_SEPTETS = 160
"""One SMS in the GSM 7-bit default alphabet (3GPP TS 23.040, 9.2.3.16)."""

VIETNAM = timezone(timedelta(hours=7), "Asia/Ho_Chi_Minh")
"""Fixed: UTC+7 without summer time in the whole country since 1975, and bare machines have no zone files."""

# 3GPP TS 23.038, 6.2.1 and 6.2.1.1; those of the second table cost two septets, an escape and themselves.
_GSM7 = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_GSM7_EXTENSION = frozenset("\f^{}\\[~]|€")

_CONFIGURED = ("keyword", "command", "short_code", "portal")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")

# Which personal placeholders a text may have, and whether it is of use without.
_PERSONAL_OF: dict[str, dict[str, bool]] = {
    "issued": {"code": True, "password": True, "until": False},
    "over_limit": {"until": True},
    "issued_web": {"password": True, "code": False, "until": False},
    "issued_web_family": {"password": True, "code": True, "until": False},
    "otp": {"otp": True},
}


@dataclass(frozen=True)
class Texts:
    """The templates of the replies, by outcome (service.md); the agency may word them anew.

    `{keyword} {command} {short_code} {portal}` stand in all of them, `{code} {password} {until}` in `issued` and
    `issued_web`, `{until}` in `over_limit`, `{otp}` in `otp`. `mismatch` is one text for three outcomes, so that
    nobody learns which.
    """

    issued: str = "Cap lai mat khau thanh cong. Tai khoan: {code}/Mat khau: {password}. Dung truoc {until}."
    mismatch: str = (
        "So dien thoai va ma so BHXH khong khop hoac chua dang ky giao dich dien tu voi co quan BHXH."
    )
    bad_code: str = (
        "Ma so BHXH phai gom 10 chu so. Soan: {keyword} {command} <ma so BHXH> gui {short_code}. "
        "Vi du: {keyword} {command} 0123456789"
    )
    bad_syntax: str = (
        "Tin nhan sai cu phap. Soan: {keyword} {command} <ma so BHXH> gui {short_code}. "
        "Vi du: {keyword} {command} 0123456789"
    )
    over_limit: str = (
        "Da qua so lan cho phep. Thu lai sau {until}, khi do co the cap lai mien phi tai {portal}"
    )
    held: str = (
        "Tai khoan dang tam khoa vi co nguoi bao khong phai chu tai khoan yeu cau. "
        "De mo lai, mang the can cuoc den co quan BHXH gan nhat."
    )
    closed: str = "Dich vu tin nhan tam dung. Cap lai mat khau tai {portal} hoac tai co quan BHXH gan nhat."
    issued_web: str = "Cap lai mat khau thanh cong. Mat khau moi: {password}"
    issued_web_family: str = "Cap lai mat khau thanh cong. Tai khoan: {code}. Mat khau moi: {password}"
    otp: str = "Ma xac thuc (OTP) cua ban la {otp}. Khong cung cap cho bat ky ai."

    def check(
        self,
        *,
        keyword: str,
        command: str,
        short_code: str,
        portal: str,
        password_length: int = 10,
        host: str = "",
    ) -> list[str]:
        """What is wrong with the texts under this configuration: a sentence each, none if all is well.

        Each text must be one segment of GSM-7 with the longest values it can get (`short_code`: hand in the
        longest), have only placeholders that it can fill, and those without which it is of no use. `host`: of the
        site, for the last line of an OTP's text (`bind_to_origin`).
        """
        configured = {"keyword": keyword, "command": command, "short_code": short_code, "portal": portal}
        problems = [
            f"{name} has braces, which mark placeholders: remove them."
            for name, value in configured.items()
            if "{" in value or "}" in value
        ]
        if problems:
            return problems
        longest = {
            "code": "0" * 10,
            "password": "0" * password_length,
            "until": "00:00 00/00/0000",
            "otp": "0" * 6,
        }
        for each in fields(self):
            template: str = getattr(self, each.name)
            if each.name == "otp":
                template = bind_to_origin(template, host)
            problems += _problems(each.name, template, configured, longest)
        return problems


def prepare(template: str, *, keyword: str, command: str, short_code: str, portal: str) -> str:
    """Template → wording: the configuration's values put in, `{code} {password} {until} {otp}` left in place."""
    return _replace(
        template, {"keyword": keyword, "command": command, "short_code": short_code, "portal": portal}
    )


def bind_to_origin(template: str, host: str) -> str:
    """An OTP's text with the last line by which phones offer the code to this site alone
    (https://wicg.github.io/sms-one-time-codes/); as it is where the site's host is not known.
    """
    return f"{template}\n@{host} #{{otp}}" if host else template


def fill(
    wording: str,
    *,
    code: str | None = None,
    password: str | None = None,
    until: datetime | None = None,
    otp: str | None = None,
) -> str:
    """Wording → the text to send. ValueError if the wording has a placeholder whose value is not given.

    `until` is an aware datetime and is shown in Vietnam's time as `14:05 23/11/2026`, cut to the minute:
    never later than it is. A time from which something holds is passed through `whole_minute` first.
    """
    values = {"code": code, "password": password, "until": None if until is None else _local(until)}
    if otp is not None:
        values["otp"] = otp
    pieces = list(_pieces(wording))
    for at in range(1, len(pieces), 2):
        name = pieces[at]
        value = values.get(name, f"{{{name}}}")  # any other name is no placeholder here
        if value is None:
            raise ValueError(f"the reply needs {{{name}}}, which was not given")
        pieces[at] = value
    return "".join(pieces)


@lru_cache(1024)
def _pieces(wording: str) -> list[str]:
    """What stands between the placeholders, and at each odd place the name in one."""
    return _PLACEHOLDER.split(wording)


def whole_minute(moment: datetime) -> datetime:
    """The moment itself or the next whole minute: who is told to wait until then has not waited too short."""
    cut = moment.replace(second=0, microsecond=0)
    return cut if cut == moment else cut + timedelta(minutes=1)


def septets(text: str) -> int | None:
    """The length of a text in GSM-7 septets; None if it has a character that GSM-7 lacks."""
    if not _GSM7.union(_GSM7_EXTENSION).issuperset(text):
        return None
    return len(text) + sum(char in _GSM7_EXTENSION for char in text)


@lru_cache(4096)  # cases end at whole minutes: many in the same
def _local(moment: datetime) -> str:
    if moment.utcoffset() is None:
        raise ValueError("the time in a reply must be aware of its zone")
    return moment.astimezone(VIETNAM).strftime("%H:%M %d/%m/%Y")


def _replace(template: str, values: Mapping[str, str]) -> str:
    """Exactly the named placeholders, in one pass. Not str.format: a template is configuration, not code."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)


def _problems(
    name: str, template: str, configured: Mapping[str, str], longest: Mapping[str, str]
) -> list[str]:
    setting = f"texts.{name}"
    if not template.strip():
        return [f"{setting} is empty: give it a text, or leave the setting out for the default."]
    personal = _PERSONAL_OF.get(name, {})
    used = set(_PLACEHOLDER.findall(template))
    allowed = (*personal, *_CONFIGURED)
    problems = [
        f"{setting} has {{{unknown}}}, which it cannot fill: use only "
        f"{' '.join(f'{{{each}}}' for each in allowed)}."
        for unknown in sorted(used.difference(allowed))
    ]
    problems += [
        f"{setting} is of no use without {{{needed}}}: put it in."
        for needed, required in personal.items()
        if required and needed not in used
    ]
    filled = _replace(template, {**configured, **longest})
    length = septets(filled)
    if length is None:
        foreign = next(char for char in filled if septets(char) is None)
        problems.append(
            f"{setting} has {foreign!r} (U+{ord(foreign):04X}), which GSM-7 lacks: write it without accents."
        )
    elif length > SEGMENT_SEPTETS:
        problems.append(
            f"{setting} is {length} characters long with the longest values: shorten it by "
            f"{length - SEGMENT_SEPTETS}, so that it is one SMS ({SEGMENT_SEPTETS})."
        )
    return problems
