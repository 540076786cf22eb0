"""The citizens whose phones the simulator offers: read once from a file, searched as people type."""

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caplai.simulator.phones import read_number


@dataclass(frozen=True, slots=True)
class Citizen:
    """A name, a phone (international digits) and, if the file gave one, an insurance code."""

    name: str = field(repr=False)
    phone: str = field(repr=False)
    code: str = field(default="", repr=False)


def fold(text: str) -> str:
    """Lower case without accents, so that `nguyen` finds `Nguyễn` and `do` finds `Đỗ`."""
    decomposed = unicodedata.normalize("NFD", text.casefold().replace("đ", "d"))
    return "".join(char for char in decomposed if not unicodedata.combining(char))


class Citizens:
    """All citizens in the order of the file, found by name, phone or code, and by phone."""

    def __init__(self, citizens: Iterable[Citizen] = ()) -> None:
        self._all = list(citizens)
        self._by_phone: dict[str, list[Citizen]] = {}
        for citizen in self._all:
            self._by_phone.setdefault(citizen.phone, []).append(citizen)
        self._folded = [f"{fold(citizen.name)} {citizen.phone} {citizen.code}" for citizen in self._all]

    def __len__(self) -> int:
        return len(self._all)

    def of_phone(self, msisdn: str) -> list[Citizen]:
        """Everyone who has this phone: parents register their children with their own."""
        return self._by_phone.get(msisdn, [])

    def search(self, wanted: str, most: int = 20) -> list[Citizen]:
        """The first `most` citizens whose name, phone or code holds every word of `wanted`."""
        digits = "".join(wanted.split()).removeprefix("+")
        if digits.isdigit():  # a code or a phone, perhaps half typed, perhaps with the national zero
            needles = [[digits]] + [["84" + digits[1:]]] * digits.startswith("0")
        else:
            needles = [fold(wanted).split()]
        found: list[Citizen] = []
        for citizen, folded in zip(self._all, self._folded, strict=True):
            if any(all(word in folded for word in words) for words in needles):
                found.append(citizen)
                if len(found) == most:
                    break
        return found


def read_citizens(path: Path) -> Citizens:
    """The citizens of a JSON file: a list of {"name", "phone", "code" (may be missing)}.

    Raises ValueError with the place of the first bad entry, without quoting it.
    """
    try:
        entries: Any = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON (line {error.lineno})") from None
    if not isinstance(entries, list):
        raise ValueError(f"{path}: a list of citizens is expected")
    citizens = []
    for place, entry in enumerate(entries, start=1):
        fields = entry if isinstance(entry, dict) else {}
        name, code = fields.get("name"), fields.get("code", "")
        phone = read_number(str(fields.get("phone", "")))
        if not isinstance(name, str) or not isinstance(code, str) or phone is None:
            raise ValueError(f"{path}: citizen {place} needs a name, a phone and perhaps a code, all texts")
        citizens.append(Citizen(name, phone, code))
    return Citizens(citizens)
