"""What a person meant by the text of an SMS to the short code.

Every form that leaves no doubt about the ten digits is accepted (a refused message cost its sender money),
and a digit is never guessed (service.md, "`BH MK <code>` to 8079"). The reading goes in four steps:

1. fold: one alphabet (A-Z, 0-9), no accents, no invisible characters;
2. the head: keyword and command, or another agency's keyword;
3. the rest becomes runs of digit groups; separators join groups into a run, words end it;
4. each run is a code, a health-card number, noise that cannot be a code, or a doubt. One doubt refuses all.

Every pattern is possessive, so the work is linear in the length of the text, whatever the text is.
"""

import re
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

CODE_LENGTH = 10
"""Digits of a mã số BHXH; leading zeros matter."""

_CARD_DIGITS = 3 + CODE_LENGTH  # after its two letters: benefit level, province (2), then the code
_NOISE = 4  # a number of so few digits ("lan 2", a year) cannot be a code mistyped or a phone


@dataclass(frozen=True)
class Grammar:
    """The agency's words: its keyword and command, its short codes, the keywords of those who share them.

    Words are ASCII letters in any case, short codes digits; anything else is a ValueError.
    """

    keyword: str = "BH"
    command: str = "MK"
    short_codes: tuple[str, ...] = ("8079",)
    other_keywords: tuple[str, ...] = ("VIN", "MKH")

    def __post_init__(self) -> None:
        for word in (self.keyword, self.command, *self.other_keywords):
            if not (word.isascii() and word.isalpha()):
                raise ValueError(f"{word!r} is no keyword: use the letters A to Z only")
        for short_code in self.short_codes:
            if not (short_code.isascii() and short_code.isdigit()):
                raise ValueError(f"{short_code!r} is no short code: use digits only")
        ours = {self.keyword.upper(), (self.keyword + self.command).upper()}
        if clash := ours & self._others:
            raise ValueError(f"{clash.pop()!r} is both our keyword and another agency's")

    @cached_property
    def _others(self) -> frozenset[str]:
        return frozenset(word.upper() for word in self.other_keywords)

    @cached_property
    def _head(self) -> re.Pattern[str]:
        return re.compile(_GAP.join(map(_spelt, (self.keyword + self.command).upper())))


@dataclass(frozen=True, slots=True)
class Reissue:
    """`BH MK` with exactly one code: ten ASCII digits. The code is kept out of the repr, for the logs."""

    code: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class BadCode:
    """`BH MK` without exactly one ten-digit code."""


@dataclass(frozen=True, slots=True)
class BadSyntax:
    """Anything else that is not another agency's."""


@dataclass(frozen=True, slots=True)
class OtherAgency:
    """A message for someone else on the shared short code; `keyword` is theirs, in capitals."""

    keyword: str


Command = Reissue | BadCode | BadSyntax | OtherAgency


def understand(text: str, grammar: Grammar) -> Command:
    """Read any text, of any length and script. Never raises."""
    text = _LEAD.sub("", _fold(text), count=1)
    first = _WORD.match(text)
    if first and (keyword := _plain(first[0])) in grammar._others:
        return OtherAgency(keyword)
    head = grammar._head.match(text)
    if head is None:
        return BadSyntax()
    rest = text[head.end() :]
    runs = _runs(rest)
    if _is_another_command(rest, runs):
        return BadSyntax()
    codes: set[str] = set()
    for run in runs:
        found = _codes(run, grammar.short_codes)
        if found is None:
            return BadCode()
        codes |= found
    return Reissue(codes.pop()) if len(codes) == 1 else BadCode()


def code_of(typed: str) -> str | None:
    """The code in a field that asks for nothing else; None if something else stands there. Never raises.

    Ten digits, or a health-card number that ends in them, with any spaces and punctuation, folded as a message.
    """
    alone = _ALONE.fullmatch(_fold(typed))
    return re.sub(r"[\W_]", "", alone[1]).replace("O", "0") if alone else None


# --- 1. fold -------------------------------------------------------------------------------------------

_ACCENT = "\u0301"  # stands for every accent while folding
_ACCENTED_O = "Ô"
"""An O with any accent. It is a letter of a word ("số", "tôi") and never a zero: the typing methods Telex
(`oo` → `ô`) and VNI (`o1` → `ó`) swallow keystrokes to make it, so digits may be missing beside it."""


class _Folding(dict[int, str]):
    """A table for `str.translate` that fills itself, up to a size that no sender can push."""

    def __missing__(self, number: int) -> str:
        folded = "".join(map(self._fold_one, unicodedata.normalize("NFKD", chr(number))))
        if len(self) < 4096:
            self[number] = folded
        return folded

    @staticmethod
    def _fold_one(char: str) -> str:
        category = unicodedata.category(char)
        if category in ("Mn", "Me"):  # the parts of a keycap emoji (class 0) vanish, accents are kept for now
            return _ACCENT if unicodedata.combining(char) else ""
        if category in ("Cc", "Cf"):
            return " " if char.isspace() else ""
        if char.isdecimal():
            return str(unicodedata.decimal(char))
        return "D" if char in "đĐðÐ" else char.upper()  # these do not decompose; ð is typed for đ


_FOLDING = _Folding()


def _fold(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text.upper()
    # Character by character: normalising a whole text sorts long rows of accents, in quadratic time.
    folded = text.translate(_FOLDING)
    return folded.replace("O" + _ACCENT, _ACCENTED_O).replace(_ACCENT, "")


def _plain(word: str) -> str:
    return word.replace(_ACCENTED_O, "O")


# --- 2. the head ---------------------------------------------------------------------------------------


def _spelt(word: str) -> str:
    return word.replace("O", f"[O{_ACCENTED_O}]")


_GAP = r"[\W_]*+"
_LETTER = r"[^\W0-9_]"
_WORD = re.compile(f"{_LETTER}++")
# The leaflet's own "Soạn (tin (nhắn)):", copied with the rest.
_LEAD = re.compile(rf"\A{_GAP}(?:SOAN{_GAP}(?:TIN{_GAP}(?:NHAN{_GAP})?+)?+)?+")

# Words that people glue to the command or the digits. None of them is the beginning of a health card.
_FILLER = f"(?:{_spelt('MSBHXH|BHXH|BHYT|BH|XH|YT|MA|SO|THE|CODE|LA|CUA|TOI|GUI|DEN|MK')})"
# "Mã số" and "tài khoản"; also the letters of real cards, which they are before thirteen digits.
_ABBREVIATIONS = frozenset({"MS", "TK"})
_GLUED = re.compile(f"{_FILLER}*+({_LETTER}*+)")


def _is_another_command(rest: str, runs: "list[_Run]") -> bool:
    """Whether the letters right behind the command make another word of it, as in `BH MKX 0123456789`."""
    glued = _GLUED.match(rest)
    stray = glued[1] if glued else ""
    if stray in _ABBREVIATIONS or not stray.strip("O"):  # an O is a digit's neighbour, not a word's beginning
        return False
    is_card = len(stray) == 2 and runs and runs[0].may_be_card and sum(map(len, runs[0].groups)) > CODE_LENGTH
    return not is_card


# --- 3. runs -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """Groups of digits with nothing but separators between them, and the word before, unless it is known."""

    word: str
    groups: list[str]

    @property
    def may_be_card(self) -> bool:
        return len(self.word) == 2 and self.word.isascii()


# O is a zero among digits and nothing else (O12, 1O2, 12O). After letters it is one of them: in "theo123…" or
# the card "NO401…" nobody can tell. Before letters it is a zero if they are a known word: 12OGUI, not 12OK.
_ITEM = re.compile(
    f"(?P<digits>(?:(?<!{_LETTER})O++)?+[0-9]++(?:O++[0-9]++)*+(?:O++(?={_FILLER}|(?!{_LETTER})))?+)"
    f"|{_FILLER}"
    f"|(?P<word>{_LETTER}++)"
)


def _runs(rest: str) -> list[_Run]:
    runs: list[_Run] = []
    word, in_run = "", False
    for item in _ITEM.finditer(rest):
        if digits := item["digits"]:
            if not in_run:
                runs.append(_Run(word, []))
            runs[-1].groups.append(digits.replace("O", "0"))
            in_run = True
        else:
            word, in_run = item["word"] or "", False
    return runs


_GAPPED_DIGIT = f"[0-9O]{_GAP}"
_ALONE = re.compile(
    f"{_GAP}(?:(?:[A-Z]{_GAP}){{2}}(?:{_GAPPED_DIGIT}){{{_CARD_DIGITS - CODE_LENGTH}}})?"
    f"((?:{_GAPPED_DIGIT}){{{CODE_LENGTH}}})"
)


# --- 4. codes ------------------------------------------------------------------------------------------


def _codes(run: _Run, short_codes: tuple[str, ...]) -> set[str] | None:
    """The codes that a run names, none of them if it is noise; None if it might be a code and is not."""
    if codes := _bare_codes(run.groups, run.word):
        return codes
    end = len(run.groups)
    while end and run.groups[end - 1] in short_codes:  # "… 0123456789 8079", without the word "gửi"
        end -= 1
    groups = run.groups[:end]
    if codes := _bare_codes(groups, run.word) or (_card_codes(groups) if run.may_be_card else None):
        return codes
    return set() if sum(map(len, groups)) <= _NOISE else None


def _bare_codes(groups: list[str], word: str = "") -> set[str] | None:
    """Ten digits in any groups, or nothing but groups of ten."""
    if sum(map(len, groups)) == CODE_LENGTH:
        # In "lan 2, 012345678" the first digit is the word's, the code one short. Nobody counts from 0.
        numbered = word and groups[0] in {*"123456789"} and max(map(len, groups)) > 1
        return None if numbered else {"".join(groups)}
    if groups and all(len(group) == CODE_LENGTH for group in groups):
        return set(groups)
    return None


def _card_codes(groups: list[str]) -> set[str] | None:
    """The number of a health card behind its two letters, in any groups, maybe with bare codes after it."""
    ends = list(accumulate(map(len, groups)))
    if _CARD_DIGITS not in ends:
        return None
    count = ends.index(_CARD_DIGITS) + 1
    card, rest = groups[:count], groups[count:]
    number = "".join(card)
    code = number[-CODE_LENGTH:]
    # Two letters may also be a word, as in "id 0123456789 123" or "an 12 01234567890": a group so long that
    # it could be a code of its own, or one mistyped, must be the card's.
    if any(len(group) >= CODE_LENGTH - 1 and group not in (code, number) for group in card):
        return None
    if not rest:
        return {code}
    others = _bare_codes(rest)
    return others and others | {code}
