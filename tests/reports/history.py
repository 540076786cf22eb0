"""Small random histories, and the same figures by plain counting: in Python, row by row, without a rollup."""

import math
import random
from collections import Counter
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from caplai.domain import msisdn
from caplai.domain.issuing import new_case_ids
from caplai.reports.figures import HEAVIEST, QUANTILES, months_before
from caplai.reports.rollups import RATIO

ZONE = ZoneInfo("Asia/Ho_Chi_Minh")
DAY = timedelta(days=1)
LINKS = ("viettel", "mobifone")


def at(day, hour=12, minute=0, second=0.0):
    """A time of a day in Vietnam."""
    return datetime.combine(day, time(hour, minute), ZONE) + timedelta(seconds=second)


def phone_of(account):
    """Two accounts on each phone. Phones differ in what their masks hide, too."""
    return f"+84327{int(account) // 2 % 7:03}{int(account) // 2:03}"


def message(
    conn,
    when,
    outcome="issued",
    *,
    link="viettel",
    by=None,
    account=None,
    case=None,
    replied=2.0,
    state="sent",
):
    """A message and, after so many seconds, its reply (`by` another link). Silent ones have none."""
    phone = phone_of(account or 0)
    [[id_]] = conn.execute(
        "insert into inbox (received_at, link, source, destination, text, decided_at, outcome, case_id)"
        " values (%s, %s, %s, '8079', '', %s, %s, %s) returning id",
        [when, link, phone, when, outcome, case],
    ).fetchall()
    if outcome not in ("other_agency", None):
        text(
            conn,
            when,
            outcome,
            link=by or link,
            account=account,
            case=case,
            inbox=id_,
            sent=replied,
            state=state,
        )


def text(conn, when, kind, *, link="viettel", account=None, case=None, inbox=None, sent=2.0, state="sent"):
    """A text to a phone, which went out after so many seconds (if it did)."""
    settled = None if state in ("ready", "claimed") else when + timedelta(seconds=sent)
    conn.execute(
        "insert into outbox (created_at, inbox_id, kind, wording, account, case_id, link, sender, destination, state,"
        " settled_at) values (%s, %s, %s, 1, %s, %s, %s, '8079', %s, %s, %s)",
        [when, inbox, kind, account, case, link, phone_of(account or 0)[1:], state, settled],
    )


def case(conn, when, account, *, used=None, channel="sms"):
    """A case, used after so many seconds or expired; its id."""
    id_ = next(new_case_ids())
    ended = when + (timedelta(seconds=used) if used else DAY)
    conn.execute(
        "insert into reissue_case (account, id, phone, channel, key, version, length, alphabet, texts, opened_at,"
        " expires_at, ended_at, ended_as) values (%s, %s, %s, %s, 'k', 1, 6, '0123456789', 1, %s, %s, %s, %s)",
        [account, id_, phone_of(account), channel, when, when + DAY, ended, "used" if used else "expired"],
    )
    return id_


def live_through(conn, first, now, *, seed, people=60):
    """People who ask once or often from that day to now, by SMS or the web, and many of them about midnight."""
    draw = random.Random(seed)
    days = (now.astimezone(ZONE).date() - first).days
    happened = []
    for number in range(people):
        for _ in range(draw.choice((1, 1, 2, 3, 12))):
            when = at(first + draw.randrange(days + 1) * DAY, draw.randrange(24), draw.randrange(60))
            if draw.random() < 0.3:
                when = at(when.date(), 0) + timedelta(seconds=draw.choice((-1, -0.001, 0, 0.001, 1)))
            happened.append((when, f"{number:010}", draw.random()))
    with conn.transaction():
        for when, account, chance in sorted(happened):
            if not at(first, 0) <= when <= now:
                continue
            link, by = draw.choices(LINKS, k=2)
            used = draw.uniform(5, 90_000) if draw.random() < 0.6 else None
            if chance < 0.5:
                id_ = case(conn, when, account, used=used)
                # It came before its case was opened, perhaps on the day before.
                came = when - timedelta(seconds=draw.choice((0, 0.01, 3)))
                replied = draw.uniform(0.05, 30)
                message(conn, came, link=link, by=by, account=account, case=id_, replied=replied)
            elif chance < 0.7:
                text(conn, when, "otp", link=link, account=account, sent=draw.uniform(0.3, 9))
                id_ = case(conn, when, account, used=used, channel="web")
                text(conn, when, "password", link=link, account=account, case=id_, sent=draw.uniform(0.3, 9))
            elif chance < 0.75:
                case(conn, when, account, used=used, channel="mail")
            else:
                outcome = draw.choice(
                    ("joined", "mismatch", "bad_code", "other_agency", "of another version", None)
                )
                state = draw.choice(("sent", "sent", "failed", "ready"))
                message(
                    conn,
                    when,
                    outcome,
                    link=link,
                    account=account,
                    replied=draw.uniform(0.1, 100),
                    state=state,
                )


class Plain:
    """All rows, read once; the figures of any period."""

    def __init__(self, conn):
        self.inbox = conn.execute("select id, received_at, link, outcome from inbox").fetchall()
        self.outbox = conn.execute(
            "select created_at, kind, state, settled_at, inbox_id, link, case_id from outbox order by id"
        ).fetchall()
        self.cases = conn.execute(
            "select account, opened_at, phone, ended_at, ended_as, id, channel from reissue_case"
            " order by opened_at, id"
        ).fetchall()
        self.came = {id_: (received_at, link) for id_, received_at, link, _ in self.inbox}
        self.carried = {row[-1]: row for row in reversed(self.outbox)}

    def figures(self, first, last, months=3):
        """As the JSON has them, but for the times and what depends on when accounts were counted."""

        def inside(when, first=first, last=last):
            return first <= when.astimezone(ZONE).date() <= last

        sent = Counter(kind for when, kind, state, *_ in self.outbox if state == "sent" and inside(when))
        received = sum(inside(when) for _, when, *_ in self.inbox)
        mine = [case for case in self.cases if inside(case[1])]
        before = months_before(first, months)
        average = sum(inside(case[1], before, first - DAY) for case in self.cases) / months
        returned, latest = 0, {}
        for account, opened_at, *_ in self.cases:
            day = opened_at.astimezone(ZONE).date()
            if inside(opened_at) and account in latest and day - latest[account] <= 30 * DAY:
                returned += 1
            latest[account] = day
        phones = Counter((f"{opened_at.astimezone(ZONE):%Y-%m}", phone) for _, opened_at, phone, *_ in mine)
        heaviest = sorted((-n, month, msisdn.mask(phone)) for (month, phone), n in phones.items())
        return {
            "messages": {**sent, "received": received},
            "reissues": len(mine),
            "people": len({account for account, *_ in mine}),
            "growth_over_months_before": len(mine) / average - 1 if average else None,
            "returned_within_30_days": returned / len(mine) if mine else None,
            "heaviest": [-n for n, *_ in heaviest][:HEAVIEST],
        }

    def seconds_to_reply(self, first, last):
        took = {}
        for created_at, _, state, settled_at, inbox, link, _ in self.outbox:
            if state == "sent" and first <= created_at.astimezone(ZONE).date() <= last:
                begun, link = self.came.get(inbox, (created_at, link))
                took.setdefault(link, []).append((settled_at - begun).total_seconds())
        return took

    def seconds_to_sign_in(self, first, last):
        took = {}
        for _, opened_at, _, ended_at, ended_as, id_, channel in self.cases:
            if ended_as == "used" and first <= opened_at.astimezone(ZONE).date() <= last:
                *_, inbox, link, _ = self.carried.get(id_, (None, channel, None))
                begun, link = self.came.get(inbox, (opened_at, link))
                took.setdefault(link, []).append((ended_at - begun).total_seconds())
        return took


def are_of(read, took):
    """Whether these are the quantiles of what it took: at an upper boundary, so as exact or a little more."""
    if read.keys() != took.keys():
        return False
    for link, seconds in took.items():
        seconds.sort()
        for name, share in QUANTILES.items():
            exact = seconds[math.ceil(share * len(seconds)) - 1]
            if not exact <= read[link][name] * 1.000001 <= exact * RATIO * 1.011:
                return False
        if read[link]["count"] != len(seconds):
            return False
    return True
