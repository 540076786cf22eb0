"""What a carrier can do wrong: which scenarios there are, how they are chosen, and which of them are on.

A scenario is on for everybody, or, by a number that nobody owns, for that one phone (`NUMBERS`). What it does
to a submit stands in fates.py, to a delivery and a connection in link.py, to the form of a PDU in writing.py.
"""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from caplai.smpp.pdu import MAX_COMMAND_LENGTH, Status

Value = int | float | str


class Part(StrEnum):
    """What a scenario happens to."""

    LINK = "link"
    MT = "mt"
    """What goes to phones: submits."""
    MO = "mo"
    """What comes from phones: deliveries."""
    RECEIPT = "receipt"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: what to write, and how it is read. `read` raises ValueError."""

    hint: str
    read: Callable[[str], Value]


def _whole(least: int, most: int) -> Callable[[str], Value]:
    def read(written: str) -> Value:
        number = int(written)
        if not least <= number <= most:
            raise ValueError
        return number

    return read


def _seconds(written: str) -> Value:
    number = float(written)
    if not 0 < number <= 3600:
        raise ValueError
    return number


def _status(written: str) -> Value:
    name = written.upper()
    for known in (name, f"ESME_{name}"):
        if known in Status.__members__ and Status[known]:
            return Status[known].value
    number = int(written, 0)
    if not 0 < number <= 0xFFFFFFFF:
        raise ValueError
    return number


def _impossible_length(written: str) -> Value:
    number = int(written)
    if not (0 <= number < 16 or MAX_COMMAND_LENGTH < number <= 0xFFFFFFFF):
        raise ValueError
    return number


def _one_of(*words: str) -> Kind:
    def read(written: str) -> Value:
        if written not in words:
            raise ValueError
        return written

    return Kind(" or ".join(words), read)


def _word(written: str) -> Value:
    if not re.fullmatch(r"[A-Z]{1,10}", written):
        raise ValueError
    return written


_SECONDS = Kind("seconds, up to 3600", _seconds)
_STATUS = Kind("a command_status: its name or its number (ESME_RSYSERR, 8, 0x4FF)", _status)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing that a carrier does. `vi` and `en` say it to people.

    kind, default: the value that it takes and the one it has if none is written; kind None: it takes none.
    share: percent of the messages that it happens to if nothing else is written; None: to all, always.
    """

    name: str
    part: Part
    vi: str
    en: str
    kind: Kind | None = None
    default: str = ""
    share: int | None = None

    @property
    def usual(self) -> str:
        """What stands after the `=` when nobody writes anything: `5`, `20%`, `ESME_RSYSERR 100%` or nothing."""
        return " ".join([self.default] * bool(self.kind) + [f"{self.share}%"] * (self.share is not None))


# fmt: off
_ALL: Final = (
    Scenario("bind-refused", Part.LINK,
             "Từ chối đăng nhập (bind) với mã lỗi này.",
             "A bind is refused with this status.",
             _STATUS, "ESME_RBINDFAIL"),
    Scenario("outbind", Part.LINK,
             "Mỗi kết nối bắt đầu bằng một outbind của nhà mạng.",
             "Each connection begins with an outbind of the carrier's."),
    Scenario("silent-link", Part.LINK,
             "Không trả lời enquire_link.",
             "An enquire_link gets no answer."),
    Scenario("half-open", Part.LINK,
             "Kết nối vẫn mở nhưng không đọc và không ghi gì nữa. Khi tắt, các kết nối ấy bị cắt.",
             "Connections stay open, but nothing is read from them or written to them. Switched off, they are cut."),
    Scenario("throttle", Part.MT,
             "Quá số phần tin này mỗi giây thì từ chối với ESME_RTHROTTLED.",
             "More segments a second than this are refused with ESME_RTHROTTLED.",
             Kind("segments a second, 1 to 100000", _whole(1, 100_000)), "5"),
    Scenario("queue-full", Part.MT,
             "Trong số giây này, từ chối mọi tin với ESME_RMSGQFUL; sau đó tự tắt.",
             "For this many seconds every submit is refused with ESME_RMSGQFUL; then it ends by itself.",
             _SECONDS, "30"),
    Scenario("refuse", Part.MT,
             "Từ chối tỷ lệ tin này với mã lỗi này.",
             "This share of submits is refused with this status.",
             _STATUS, "ESME_RSYSERR", 100),
    Scenario("slow", Part.MT,
             "Trả lời mỗi tin chậm số giây này.",
             "Each submit is answered this many seconds late.",
             _SECONDS, "3"),
    Scenario("silent-submits", Part.MT,
             "Tỷ lệ tin này tới được điện thoại nhưng không bao giờ được trả lời.",
             "This share of submits reaches its phone, but is never answered.",
             share=100),
    Scenario("cut-submits", Part.MT,
             "Tỷ lệ tin này tới được điện thoại, nhưng thay vì trả lời thì cắt kết nối.",
             "This share of submits reaches its phone, but instead of an answer the connection is cut.",
             share=20),
    Scenario("swallow-ton", Part.MT,
             "Chỉ số ghi với kiểu số (TON) này mới nhận được tin; tin khác được nhận rồi mất, không báo lỗi.",
             "Only phones written with this type of number (TON) are reached; the rest is accepted and vanishes.",
             Kind("a type of number, 0 to 6", _whole(0, 6)), "0"),
    Scenario("cut-deliveries", Part.MO,
             "Cắt kết nối ngay sau tỷ lệ tin này, rồi gửi lại chúng.",
             "The connection is cut right after this share of deliveries; they come again.",
             share=20),
    Scenario("cut-answers", Part.MO,
             "Cắt kết nối khi trả lời cho tỷ lệ tin này vừa tới; câu trả lời bị mất, tin được gửi lại.",
             "The connection is cut as the answer to this share of deliveries comes; it is lost, they come again.",
             share=20),
    Scenario("half-pdu", Part.MO,
             "Tỷ lệ tin này đứt giữa chừng cùng với kết nối, rồi được gửi lại.",
             "This share of deliveries breaks off in the middle, with the connection; they come again.",
             share=20),
    Scenario("duplicate", Part.MO,
             "Trả lời cho tỷ lệ tin này bị mất: tin được gửi lại với số thứ tự khác.",
             "The answer to this share of deliveries is lost: they come again with another sequence number.",
             share=50),
    Scenario("bad-length", Part.MO,
             "Trước tỷ lệ tin này có một PDU với độ dài không thể có.",
             "Before this share of deliveries comes a PDU of this impossible length.",
             Kind(f"octets: 0 to 15, or {MAX_COMMAND_LENGTH + 1} to 4294967295", _impossible_length), "0", 20),
    Scenario("unknown-command", Part.MO,
             "Trước tỷ lệ tin này có một lệnh mà SMPP không biết.",
             "Before this share of deliveries comes a command that SMPP does not know.",
             share=20),
    Scenario("unknown-tlvs", Part.MO,
             "Tin mang theo các tham số tùy chọn không ai biết, một tham số lặp lại.",
             "Deliveries carry optional parameters that nobody knows, one of them twice."),
    Scenario("data-sm", Part.MO,
             "Tin tới bằng data_sm thay vì deliver_sm.",
             "Texts come as data_sm instead of deliver_sm."),
    Scenario("long-by", Part.MO,
             "Tin dài tới bằng tham số SAR, bằng một message_payload, hoặc bằng UDH với số hiệu 16 bit.",
             "Long texts come by SAR parameters, in one message_payload, or by UDH with a 16-bit reference.",
             _one_of("sar", "payload", "udh16"), "sar"),
    Scenario("last-part-first", Part.MO,
             "Các phần của tin dài tới theo thứ tự ngược.",
             "The parts of long texts come in reverse order."),
    Scenario("receipt-early", Part.RECEIPT,
             "Báo cáo gửi tin tới trước câu trả lời cho tin.",
             "A receipt comes before the answer to its submit."),
    Scenario("receipt-late", Part.RECEIPT,
             "Báo cáo gửi tin tới chậm số giây này.",
             "A receipt comes this many seconds late.",
             _SECONDS, "60"),
    Scenario("receipt-none", Part.RECEIPT,
             "Không bao giờ có báo cáo gửi tin.",
             "No receipt ever comes."),
    Scenario("receipt-twice", Part.RECEIPT,
             "Mỗi báo cáo gửi tin tới hai lần.",
             "Each receipt comes twice."),
    Scenario("receipt-unknown-id", Part.RECEIPT,
             "Báo cáo gửi tin nói về một tin mà nhà mạng chưa từng nhận.",
             "A receipt is for an id that was never given."),
    Scenario("receipt-id", Part.RECEIPT,
             "Báo cáo ghi mã tin với các số 0 ở đầu, hoặc bằng số thập lục phân.",
             "A receipt writes the id with leading zeros, or in hex.",
             _one_of("zeros", "hex"), "zeros"),
    Scenario("receipt-state", Part.RECEIPT,
             "Báo cáo ghi trạng thái này. UNDELIV, EXPIRED, REJECTD và DELETED: tin không tới được điện thoại.",
             "A receipt says this state. UNDELIV, EXPIRED, REJECTD and DELETED: the text does not reach its phone.",
             Kind("a state, such as UNDELIV, or any word of up to ten capitals", _word), "UNDELIV"),
)
# fmt: on
CATALOGUE: Final = {scenario.name: scenario for scenario in _ALL}

# Numbers that are phones by their form, and nobody's: Viet Nam gives 05x to mobile networks, and of those
# 0500 to none. With 50% the first message is hit and the one after it is not.
NUMBERS: Final[dict[str, str]] = {
    "84500000101": "cut-deliveries=100%",
    "84500000102": "cut-answers=100%",
    "84500000103": "half-pdu=100%",
    "84500000104": "duplicate=100%",
    "84500000105": "bad-length=0 100%",
    "84500000106": "bad-length=15 100%",
    "84500000107": "bad-length=4294967295 100%",
    "84500000108": "unknown-command=100%",
    "84500000109": "unknown-tlvs",
    "84500000110": "data-sm",
    "84500000111": "long-by=sar",
    "84500000112": "long-by=payload",
    "84500000113": "long-by=udh16",
    "84500000114": "last-part-first",
    "84500000201": "refuse=ESME_RTHROTTLED 50%",
    "84500000202": "refuse=ESME_RMSGQFUL 50%",
    "84500000203": "refuse=ESME_RSYSERR 50%",
    "84500000204": "refuse=0x4FF 50%",
    "84500000205": "refuse=ESME_RSYSERR",
    "84500000206": "refuse=ESME_RINVDSTADR",
    "84500000207": "slow=3",
    "84500000208": "silent-submits=50%",
    "84500000209": "cut-submits=50%",
    "84500000210": "swallow-ton=0",
    "84500000211": "throttle=1",
    "84500000301": "receipt-early",
    "84500000302": "receipt-late=5",
    "84500000303": "receipt-none",
    "84500000304": "receipt-twice",
    "84500000305": "receipt-unknown-id",
    "84500000306": "receipt-id=zeros",
    "84500000307": "receipt-id=hex",
    "84500000308": "receipt-state=UNDELIV",
    "84500000309": "receipt-state=EXPIRED",
    "84500000310": "receipt-state=REJECTD",
    "84500000311": "receipt-state=WHATEVER",
}


@dataclass(slots=True, eq=False)
class Setting:
    """A scenario that is on: its value, its share in percent, and what it has to remember.

    `until` is on the clock of its `Scenarios`. `allowance` is what a throttle lets through now, in segments.
    """

    scenario: Scenario
    value: Value
    share: int
    until: float = float("inf")
    counted: int = 0
    allowance: float = 0.0
    allowance_at: float = 0.0

    def __post_init__(self) -> None:
        self.counted = 100 - self.share  # the first message is hit, so that it is seen at once

    @property
    def number(self) -> float:
        """The value of a scenario that takes a number."""
        assert not isinstance(self.value, str)
        return self.value

    @property
    def written(self) -> str:
        """As it is written after the `=`; nothing when there is nothing to write."""
        kind, share = self.scenario.kind, self.scenario.share
        value = self.value
        if kind is _STATUS:
            number = int(self.number)
            value = Status(number).name if number in set(Status) else f"0x{number:X}"
        elif isinstance(value, float):
            value = f"{value:g}"
        return " ".join([str(value)] * bool(kind) + [f"{self.share}%"] * (share is not None))

    def strikes(self) -> bool:
        """Whether this message is one of its share: evenly spread and by no chance, so that it can be repeated."""
        self.counted += self.share
        if self.counted < 100:
            return False
        self.counted -= 100
        return True


def read(written: str) -> Setting:
    """`NAME` or `NAME=VALUE` → the setting. VALUE is what the scenario takes, a share (`20%`), or both.

    Raises ValueError with a sentence that says what would be right.
    """
    name, _, value = written.partition("=")
    scenario = CATALOGUE.get(name.strip())
    if scenario is None:
        raise ValueError(f"There is no scenario {name.strip()!r}. There are: {', '.join(CATALOGUE)}.")
    share, rest = scenario.share, []
    try:
        for word in value.replace(",", " ").split():
            alone = scenario.kind is None and scenario.share is not None
            if share is not None and (alone or word.endswith("%")):
                share = int(word.removesuffix("%"))
                if not 1 <= share <= 100:
                    raise ValueError
            else:
                rest.append(word)
        if len(rest) > bool(scenario.kind):
            raise ValueError
        chosen = scenario.kind.read(rest[0] if rest else scenario.default) if scenario.kind else ""
    except ValueError:
        raise ValueError(f"{name.strip()} takes {_takes(scenario)}.") from None
    return Setting(scenario, chosen, 100 if share is None else share)


def _takes(scenario: Scenario) -> str:
    takes = [scenario.kind.hint] if scenario.kind else []
    takes += ["a share of 1% to 100%"] if scenario.share is not None else []
    return " and perhaps ".join(takes) or "no value"


class Scenarios:
    """Those that are on for everybody, and those of the numbers that nobody owns. `clock`: monotonic seconds."""

    def __init__(self, written: Iterable[str] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._on: dict[str, Setting] = {}
        self._of_phones: dict[str, Setting] = {phone: read(what) for phone, what in NUMBERS.items()}
        self._watchers: list[Callable[[], None]] = []
        for one in written:
            self.switch_on(one)

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` each time something was switched."""
        self._watchers.append(watcher)

    def switch_on(self, written: str) -> Setting:
        """Switch `NAME` or `NAME=VALUE` on, anew if it was on. ValueError as `read` raises it."""
        setting = read(written)
        if setting.scenario.name == "queue-full":
            setting.until = self._clock() + setting.number
        self._on[setting.scenario.name] = setting
        self._tell()
        return setting

    def switch_off(self, name: str) -> None:
        """Switch it off, if it was on. ValueError for an unknown name."""
        self._on.pop(read(name).scenario.name, None)
        self._tell()

    def switch_all_off(self) -> None:
        self._on.clear()
        self._tell()

    def on(self) -> dict[str, Setting]:
        """What is on for everybody, by name, in the order of the catalogue."""
        return {name: setting for name in CATALOGUE if (setting := self.find(name))}

    def calm(self, phone: str | None = None) -> bool:
        """Whether nothing can happen to the messages of this phone: asked first, for it is quick."""
        return not self._on and phone not in self._of_phones

    def find(self, name: str, phone: str | None = None) -> Setting | None:
        """The setting of this scenario for a message of this phone: the number's own before everybody's."""
        own = self._of_phones.get(phone) if phone else None
        if own is not None and own.scenario.name == name:
            return own
        setting = self._on.get(name)
        if setting is not None and setting.until <= self._clock():
            del self._on[name]
            return None
        return setting

    def strike(self, name: str, phone: str) -> Setting | None:
        """The setting if the scenario happens to this message of this phone. Asking counts the message."""
        setting = self.find(name, phone)
        return setting if setting is not None and setting.strikes() else None

    def _tell(self) -> None:
        for watcher in self._watchers:
            watcher()
