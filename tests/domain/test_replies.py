"""The reply texts: those of service.md to the letter, one GSM-7 segment, safe against their own templates."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import gsm0338
import pytest

from caplai.domain.replies import Texts, fill, prepare, septets, whole_minute

AGENCY: dict[str, Any] = {
    "keyword": "BH",
    "command": "MK",
    "short_code": "8079",
    "portal": "https://dichvucong.baohiemxahoi.gov.vn",
}
UNTIL = datetime(2026, 11, 23, 7, 5, tzinfo=UTC)


def test_the_default_texts_are_those_of_the_service() -> None:
    wordings = {
        name: prepare(getattr(Texts(), name), **AGENCY)
        for name in ("issued", "mismatch", "bad_code", "bad_syntax")
    }
    assert fill(wordings["issued"], code="0123456789", password="220199", until=UNTIL) == (
        "Cap lai mat khau thanh cong. Tai khoan: 0123456789/Mat khau: 220199. Dung truoc 14:05 23/11/2026."
    )
    assert fill(wordings["mismatch"]) == (
        "So dien thoai va ma so BHXH khong khop hoac chua dang ky giao dich dien tu voi co quan BHXH."
    )
    assert fill(wordings["bad_code"]) == (
        "Ma so BHXH phai gom 10 chu so. Soan: BH MK <ma so BHXH> gui 8079. Vi du: BH MK 0123456789"
    )
    assert fill(wordings["bad_syntax"]) == (
        "Tin nhan sai cu phap. Soan: BH MK <ma so BHXH> gui 8079. Vi du: BH MK 0123456789"
    )


def test_over_limit_says_when_and_where_it_is_free_and_closed_says_where_to_go() -> None:
    over_limit = fill(prepare(Texts().over_limit, **AGENCY), until=UNTIL)
    assert over_limit == (
        "Da qua so lan cho phep. Thu lai sau 14:05 23/11/2026, khi do co the cap lai mien phi tai"
        " https://dichvucong.baohiemxahoi.gov.vn"
    )
    assert len(over_limit) <= 160
    closed = fill(prepare(Texts().closed, **AGENCY))
    assert AGENCY["portal"] in closed
    assert "co quan BHXH" in closed


def test_the_default_texts_have_no_problem() -> None:
    assert Texts().check(**AGENCY) == []
    assert Texts().check(**AGENCY, password_length=32) == []


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"issued": "Mat khau: {password}"}, "texts.issued is of no use without {code}: put it in."),
        ({"issued": "{code}"}, "texts.issued is of no use without {password}: put it in."),
        ({"over_limit": "Thu lai sau."}, "texts.over_limit is of no use without {until}: put it in."),
        (
            {"mismatch": "Sai: {code}"},
            "texts.mismatch has {code}, which it cannot fill: "
            "use only {keyword} {command} {short_code} {portal}.",
        ),
        (
            {"over_limit": "{until} {password}"},
            "texts.over_limit has {password}, which it cannot fill: "
            "use only {until} {keyword} {command} {short_code} {portal}.",
        ),
        (
            {"closed": "{portal.__class__}"},
            "texts.closed has {portal.__class__}, which it cannot fill: "
            "use only {keyword} {command} {short_code} {portal}.",
        ),
        (
            {"closed": "Dịch vụ"},
            "texts.closed has 'ị' (U+1ECB), which GSM-7 lacks: write it without accents.",
        ),
        ({"closed": "a`b"}, "texts.closed has '`' (U+0060), which GSM-7 lacks: write it without accents."),
        (
            {"closed": "x" * 161},
            "texts.closed is 161 characters long with the longest values: shorten it by 1, "
            "so that it is one SMS (160).",
        ),
        (
            {"closed": "x" * 157 + "[]"},
            "texts.closed is 161 characters long with the longest values: shorten it by 1, "
            "so that it is one SMS (160).",
        ),
        (
            {"bad_syntax": "  "},
            "texts.bad_syntax is empty: give it a text, or leave the setting out for the default.",
        ),
    ],
)
def test_a_text_that_cannot_work_is_named(changed: dict[str, str], problem: str) -> None:
    assert replace(Texts(), **changed).check(**AGENCY) == [problem]


def test_the_longest_values_decide_about_the_length() -> None:
    texts = replace(Texts(), issued="{code}{password}{until}" + "x" * 124)  # 10 + 10 + 16 + 124 = 160
    assert texts.check(**AGENCY) == []
    assert texts.check(**AGENCY, password_length=9) == []
    assert [problem[:28] for problem in texts.check(**AGENCY, password_length=11)] == [
        "texts.issued is 161 characte"
    ]
    long_portal = Texts().check(**{**AGENCY, "portal": "https://" + "x" * 150})
    assert [problem.split()[0] for problem in long_portal] == ["texts.over_limit", "texts.closed"]


def test_every_problem_is_told_at_once() -> None:
    texts = replace(Texts(), issued="Mật {who}", closed="")
    assert [problem.split()[0] for problem in texts.check(**AGENCY)] == ["texts.issued"] * 4 + [
        "texts.closed"
    ]


def test_braces_in_the_configuration_are_refused() -> None:
    assert Texts().check(**{**AGENCY, "portal": "{password}"}) == [
        "portal has braces, which mark placeholders: remove them."
    ]


def test_septets_agree_with_the_alphabet_of_another_hand() -> None:
    codec = gsm0338.Codec()
    for char in map(chr, range(0x10000)):
        if char == "\x1b":  # the escape itself is no character
            continue
        try:
            known: int | None = len(codec.encode(char)[0])
        except (UnicodeError, KeyError, ValueError):
            known = None
        assert septets(char) == known, ascii(char)
    assert septets("a€b") == 4
    assert septets("aạb") is None


def test_a_template_is_not_code() -> None:
    template = "{keyword.__class__} {0} {} {{code}} {code!r} %s {portal"
    wording = prepare(template, **AGENCY)
    assert wording == template
    assert fill("{until.year} {code:>99}", code="0123456789", until=UNTIL) == "{until.year} {code:>99}"


def test_a_value_is_never_read_as_a_placeholder() -> None:
    assert prepare("{keyword}", **{**AGENCY, "keyword": "{portal}"}) == "{portal}"
    assert fill("{code} {password}", code="{password}", password="x") == "{password} x"


@pytest.mark.parametrize("wording", ["{code}", "{password}", "{until}"])
def test_nothing_is_sent_with_a_hole_in_it(wording: str) -> None:
    with pytest.raises(ValueError, match="the reply needs"):
        fill(wording)


@pytest.mark.parametrize(
    ("moment", "shown"),
    [
        (datetime(2026, 11, 22, 17, 0, tzinfo=UTC), "00:00 23/11/2026"),
        (datetime(2026, 11, 22, 16, 59, 59, 999999, tzinfo=UTC), "23:59 22/11/2026"),
        (datetime(2026, 3, 1, 9, 7, tzinfo=timezone(timedelta(hours=7))), "09:07 01/03/2026"),
    ],
)
def test_times_are_vietnams_and_cut_to_the_minute(moment: datetime, shown: str) -> None:
    assert fill("{until}", until=moment) == shown


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        fill("{until}", until=datetime(2026, 11, 23, 14, 5))  # noqa: DTZ001


def test_who_waits_until_the_time_told_has_waited_long_enough() -> None:
    assert whole_minute(UNTIL) == UNTIL
    assert whole_minute(UNTIL + timedelta(microseconds=1)) == UNTIL + timedelta(minutes=1)
    assert whole_minute(UNTIL - timedelta(seconds=1)) == UNTIL
