"""`caplai` figures, and figures rebuild."""

import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

import click

from caplai.cli.group import WRONG_USE, Failure, load_config, main, ready


class _Day(click.ParamType):
    """A day as ISO 8601 writes it, or as people here do (15/10/2021)."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        if isinstance(value, date):
            return value
        for form in ("%Y-%m-%d", "%d/%m/%Y"):
            with contextlib.suppress(ValueError):
                day = datetime.strptime(value, form).date()  # noqa: DTZ007 - a day has no zone
                if 2000 <= day.year < 3000:
                    return day
        self.fail(f"{value!r} is no day of these times. Write it as 2021-10-15, or 15/10/2021.", param, ctx)


_from = click.option("--from", "first", type=_Day(), metavar="DATE", help="The first day of the period.")
_to = click.option("--to", "last", type=_Day(), metavar="DATE", help="Its last day, which is included.")


@main.group(invoke_without_command=True)
@_from
@_to
@click.option(
    "--months",
    type=click.IntRange(1, 120),
    default=3,
    show_default=True,
    help="Compare with the average of so many months before.",
)
@click.option(
    "--lang", type=click.Choice(["vi", "en"]), default="vi", show_default=True, help="Of the report."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON; shares are parts of one.")
@click.option("--csv", "as_csv", is_flag=True, help="As CSV: figure, of what, value.")
@click.pass_context
def figures(
    ctx: click.Context,
    first: date | None,
    last: date | None,
    months: int,
    lang: str,
    as_json: bool,
    as_csv: bool,
) -> None:
    """The figures of a period: accounts, messages, re-issues, people, times.

    \b
    caplai figures --from 2021-09-29 --to 2021-10-15
    caplai figures --from 1/10/2021 --to 31/10/2021 --csv > thang-10.csv

    Days are those of Vietnam, and today is counted up to now. What the figures mean:
    docs/figures.md. They come from rollups by day, which an engine builds by itself; a day that is not
    built yet is counted from its messages, which takes longer.

    Exit status: 0, or 2 wrong use.
    """
    if ctx.invoked_subcommand is not None:
        if first or last or as_json or as_csv:
            raise Failure(f"Options of {ctx.invoked_subcommand} come after its name.", WRONG_USE)
        return
    if first is None or last is None:
        raise Failure("Name the period: --from DATE --to DATE.", WRONG_USE)
    _check_order(first, last)
    if as_json and as_csv:
        raise Failure("Name one of --json and --csv.", WRONG_USE)
    config = load_config()
    with ready(config):
        from caplai.reports.figures import figures as read
        from caplai.store.db import connect

        with connect() as conn:
            found = read(conn, first, last, months=months)
        if as_json:
            click.echo(json.dumps(found.as_json(), ensure_ascii=False, indent=2))
        elif as_csv:
            click.echo(_csv(found.as_json()), nl=False)
        else:
            for line in _report(found, _Language(lang)):
                click.echo(line)


@figures.command()
@_from
@_to
def rebuild(first: date | None, last: date | None) -> None:
    """Build the rollups of all days anew, or of those from --from to --to.

    Needed only after rows of past days were changed by hand: an engine builds each day after midnight,
    and again on the five days after it. It works beside a running service; Ctrl-C stops it anywhere, and
    the same command again does it all once more.

    Exit status: 0 done, 1 an engine is at it, 2 wrong use.
    """
    if first and last:
        _check_order(first, last)
    config = load_config()
    with ready(config):
        from caplai.reports import rollups
        from caplai.store.db import connect

        tty = sys.stderr.isatty()

        def report(day: date) -> None:
            if tty:
                click.echo(f"\r\x1b[K{day}", nl=False, err=True)

        with connect() as conn:
            try:
                days = rollups.rebuild(conn, first, last, report)
            except rollups.Busy:
                raise Failure("An engine is building them. Try again in a minute.") from None
        if tty:
            click.echo("\r\x1b[K", nl=False, err=True)
        click.echo(f"{days} days built")


def _check_order(first: date, last: date) -> None:
    if first > last:
        raise Failure(f"The period ends ({last}) before it begins ({first}).", WRONG_USE)


# --- as CSV ----------------------------------------------------------------------------------------


def _csv(found: dict[str, Any]) -> str:
    """A line for each number, under the names that it has in JSON."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["figure", "of", "value"])
    for name, value in found.items():
        for of, number in _numbers(value):
            lines.writerow([name, of, number])
    return out.getvalue()


def _numbers(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        yield from ((f"{heavy['phone']} {heavy['month']}", heavy["count"]) for heavy in value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from ((f"{key} {of}".strip(), number) for of, number in _numbers(inner))
    else:
        yield "", value


# --- as people read it -----------------------------------------------------------------------------


_WORDS = {
    "vi": {
        "title": "Số liệu cấp lại mật khẩu từ {first} đến hết {last}",
        "live": "Hôm nay tính đến {now}.",
        "approved": "Tài khoản đã được phê duyệt",
        "counted": "đếm lúc {at}",
        "sent": "Tin nhắn đã gửi",
        "unsent": "Tin nhắn chưa gửi, hoặc không gửi được",
        "received": "Tin nhắn nhận được",
        "reissues": "Lượt cấp lại mật khẩu",
        "of_accounts": "{share} số tài khoản",
        "people": "Số người được cấp lại",
        "growth": "So với bình quân {months} tháng trước",
        "average": "{number} lượt một tháng, {first} đến hết {last}",
        "returned": "Cấp lại trong vòng 30 ngày sau lần trước",
        "heaviest": "Số điện thoại được cấp lại nhiều nhất trong một tháng",
        "uncertain": "Có tháng chỉ còn {kept} số đứng đầu cả tháng, danh sách có thể thiếu.",
        "reply": "Từ tin nhắn đến trả lời",
        "sign_in": "Từ tin nhắn đến đăng nhập đầu tiên",
        "share": "{share} trong",
        "count": "số lượt",
        "none": "chưa có",
        "s": "giây",
        "min": "phút",
        "h": "giờ",
        "d": "ngày",
    },
    "en": {
        "title": "Password re-issues from {first} to {last}, inclusive",
        "live": "Today is counted up to {now}.",
        "approved": "Approved accounts",
        "counted": "counted {at}",
        "sent": "Messages sent",
        "unsent": "Messages not sent, or not yet",
        "received": "Messages received",
        "reissues": "Re-issues",
        "of_accounts": "{share} of the accounts",
        "people": "People",
        "growth": "Against the average of {months} months before",
        "average": "{number} a month, {first} to {last}",
        "returned": "Re-issued within 30 days after the time before",
        "heaviest": "Phones with the most re-issues in a month",
        "uncertain": "Of some month only its {kept} heaviest are still known; others may belong here.",
        "reply": "From message to reply",
        "sign_in": "From message to first sign-in",
        "share": "{share} within",
        "count": "how many",
        "none": "none",
        "s": "s",
        "min": "min",
        "h": "h",
        "d": "d",
    },
}
# Kinds, outcomes and states, which in English are called as they are; one that stands nowhere here is shown raw.
_KINDS = {
    "otp": "mã OTP",
    "password": "mật khẩu mới",
    "issued": "cấp mật khẩu",
    "joined": "gửi lại mật khẩu",
    "mismatch": "số điện thoại và mã số không khớp",
    "bad_code": "sai mã số",
    "bad_syntax": "sai cú pháp",
    "over_limit": "quá giới hạn",
    "held": "tài khoản tạm khóa",
    "closed": "dịch vụ tạm đóng",
    "other_agency": "của cơ quan khác",
    "silenced": "lỗi lặp lại, không trả lời",
    "waiting": "đang chờ",
    "parked": "để riêng",
    "given_up": "đã bỏ",
    "restored": "đã bỏ khi khôi phục",
    "ready": "chờ gửi",
    "claimed": "đang gửi",
    "failed": "bị từ chối",
    "expired": "hết hạn",
}


class _Language:
    """What the report says and how it writes numbers, days and times: in Vietnamese or English."""

    def __init__(self, lang: str) -> None:
        self._vietnamese = lang == "vi"
        self._words = _WORDS[lang]

    def __call__(self, word: str, **values: object) -> str:
        return self._words[word].format(**values)

    def kind(self, kind: str) -> str:
        return f"{_KINDS[kind]} ({kind})" if self._vietnamese and kind in _KINDS else kind

    def number(self, value: float, digits: int = 0) -> str:
        text = f"{value:,.{digits}f}"
        return text.translate(str.maketrans(",.", ".,")) if self._vietnamese else text

    def share(self, value: float | None, sign: str = "") -> str:
        """In percent, with a digit more where it is small."""
        if value is None:
            return self("none")
        text = self.number(abs(value) * 100, digits=0 if abs(value) >= 0.095 or not value else 1)
        return f"{'−' if value < 0 else sign}{text} %"

    def day(self, day: date) -> str:
        return f"{day.day}/{day.month}/{day.year}" if self._vietnamese else f"{day:%F}"

    def month(self, day: date) -> str:
        return f"{day.month}/{day.year}" if self._vietnamese else f"{day:%Y-%m}"

    def time(self, at: datetime) -> str:
        from django.utils import timezone

        local = timezone.localtime(at)
        return f"{local:%H:%M} {self.day(local.date())}"

    def seconds(self, seconds: float) -> str:
        for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
            if seconds >= 2 * size:
                return f"{self.number(seconds / size, 0 if seconds >= 10 * size else 1)} {self(unit)}"
        return f"{self.number(seconds, 0 if seconds >= 10 else 1 if seconds >= 1 else 2)} {self('s')}"


def _report(found: Any, say: _Language) -> Iterator[str]:
    from caplai.reports.figures import HEAVIEST, QUANTILES

    yield say("title", first=say.day(found.first), last=say.day(found.last))
    if found.live:
        yield say("live", now=say.time(found.now))
    yield ""
    counted = "" if found.counted_at == found.now else f"({say('counted', at=say.time(found.counted_at))})"
    yield _line(say("approved"), say.number(found.approved_accounts), counted)
    for name in ("sent", "unsent", "received"):
        kinds = getattr(found, name)
        if kinds or name == "sent":
            yield _line(say(name), say.number(sum(kinds.values())))
        for kind, count in kinds.items():
            yield _line(f"  {say.kind(kind)}", say.number(count))
    share = found.share_of_accounts
    of_accounts = "" if share is None else say("of_accounts", share=say.share(share))
    yield _line(say("reissues"), say.number(found.reissues), of_accounts)
    yield _line(say("people"), say.number(found.people))
    average = say(
        "average",
        number=say.number(found.month_before),
        first=say.day(found.months_from),
        last=say.day(found.months_to),
    )
    yield _line(say("growth", months=found.months), say.share(found.growth, sign="+"), average)
    yield _line(say("returned"), say.share(found.returned_share))
    yield from ("", say("heaviest"))
    for heavy in found.heaviest:
        yield _line(f"  {heavy.phone}  {say.month(heavy.month)}", say.number(heavy.count))
    if not found.heaviest:
        yield f"  {say('none')}"
    if not found.heaviest_certain:
        yield f"  {say('uncertain', kept=HEAVIEST)}"
    for name, by_link in (("reply", found.seconds_to_reply), ("sign_in", found.seconds_to_sign_in)):
        heads = [say("share", share=say.share(share)) for share in QUANTILES.values()]
        yield from ("", f"{say(name):<42}" + "".join(f"{head:>14}" for head in [*heads, say("count")]))
        for link, times in by_link.items():
            took = [say.seconds(times.quantiles[quantile]) for quantile in QUANTILES]
            yield f"  {link:<40}" + "".join(f"{text:>14}" for text in [*took, say.number(times.count)])
        if not by_link:
            yield f"  {say('none')}"


def _line(label: str, number: str, remark: str = "") -> str:
    return f"{label:<42}{number:>14}  {remark}".rstrip()
