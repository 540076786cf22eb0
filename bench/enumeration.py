"""Whether a stranger can tell by the sign-in, or by a forgotten password, who has an account: the same words and time.

One after another, on connections and from networks of their own, wrong passwords are tried at codes that nobody has
and at those of accounts of every kind (with and without a password of their own, with and without an open case, not
approved), each code once, half of them in the form of an issued password and half as words, by the app's API and by
the page. A third way asks for a one-time code for them (`recover`), a fourth types a wrong one (`otp`). The order is
drawn anew for each.

Words: status, the names of the headers and the body are those that an unknown code gets, but for what is drawn for
each answer. Time: each kind against the unknown codes, the shift of the lower quartile (noise only adds, so a
difference shows there first) and of the median by the stranger's clock, and of the median of the processor time that
web server and database took, which shows what a clock would on a machine without noise; with 95 % confidence
intervals (bootstrap). It is distinguishable when a permutation test finds it so at one in a hundred, shared out among
all comparisons (Bonferroni).
"""

import argparse
import asyncio
import json
import random
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench import _http
from bench._site import Site

_UNKNOWN = "unknown code"
_KINDS = (_UNKNOWN, "account", "with a case", "with a password", "with both", "pending", "closed")
_FORMS = ("271828", "mot mat khau sai")
_LOOKS = (("clock", 0.25), ("clock", 0.5), ("processor", 0.5))
_ALPHA = 0.01
_DRAWS = 5000
_WAYS = ("api", "page", "recover", "otp")
_LINK = {"name": "bench", "host": "127.0.0.1", "port": 1, "system_id": "bench", "password": "bench"}
"""So that one-time codes are written to the outbox; nobody sends them."""
_SETTINGS = {
    "CAPLAI_TRUSTED_PROXIES": '["127.0.0.1"]',
    "CAPLAI_SIGNIN__NETWORK_FAILURES": "100",
    "CAPLAI_LINKS": json.dumps([_LINK]),
    "CAPLAI_RECOVER__SITE_HOUR": "1000000",
    "CAPLAI_RECOVER__UNVERIFIED_LEAST": "1000000",
}
_TOKEN = re.compile(rb'name="csrfmiddlewaretoken" value="([^"]+)"')
_DRAWN = re.compile(rb'(?<=name="csrfmiddlewaretoken" value=")[^"]+|(?<=name="username" value=")\d{10}')

_SPREAD = """
update account set state = case right(code, 1) when '5' then 'pending' when '6' then 'closed' else 'approved' end;
insert into login (username, account_id, password, is_active, is_staff, is_superuser, stamp)
select code, code, (select password from login limit 1), true, false, false, md5(code)
from account where right(code, 1) in ('3', '4', '6') on conflict do nothing;
delete from login where right(username, 1) not in ('3', '4', '6');
insert into reissue_case (account, id, phone, channel, key, version, length, alphabet, texts, opened_at, expires_at)
select code, gen_random_uuid(), phone, 'sms', '{key}', 1, 6, '0123456789', 1, now(), now() + interval '1 day'
from account where right(code, 1) in ('2', '4');
analyze
"""
"""The last digit of a code says of which kind it is, as _KINDS counts them."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench enumeration", description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=300, help="codes of each kind, for each way (300)")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = random.randrange(10**6)
    with tempfile.TemporaryDirectory(prefix="caplai-enumeration-") as folder:
        report = run(Path(folder), options.samples, random.Random(options.seed))
    report = {"seed": options.seed, **report}
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print(f"{'way':<8} {'kind':<16} {'of':<14} {'shift':>8} {'95 % from':>10} {'to':>8} {'p':>8}")
        for line in report["shifts"]:
            print("{way:<8} {kind:<16} {of:<14} {ms:8.3f} {low:10.3f} {high:8.3f} {p:8.4f}".format(**line))
        print(f"ms; distinguishable below p = {report['alpha']}")
        for each in report["broken"]:
            print(each)
    return 1 if report["broken"] else 0


@dataclass(frozen=True, slots=True)
class _Try:
    way: str
    kind: str
    form: str
    code: str


def run(folder: Path, samples: int, draw: random.Random) -> dict:
    with Site(folder, accounts=10 * len(_WAYS) * samples + 100, logins=1, settings=_SETTINGS) as site:
        _spread(site)
        tries = []
        for number, way in enumerate(_WAYS):
            for digit, kind in enumerate(_KINDS):
                for n in range(samples):
                    code = f"{9_000_000_000 * (kind == _UNKNOWN) + 10 * (n + samples * number) + digit:010}"
                    tries.append(_Try(way, kind, _FORMS[n % 2], code))
        draw.shuffle(tries)
        return _judge(asyncio.run(_try_all(site, tries, draw)), draw)


def _spread(site: Site) -> None:
    from django.conf import settings

    key = settings.KEYRING.ring("issuing").active
    with psycopg.connect(site.dsn, autocommit=True) as conn:
        conn.execute(_SPREAD.format(key=key))


@dataclass(frozen=True, slots=True)
class _Heard:
    tried: _Try
    words: tuple[int, bytes, bytes]
    seconds: dict[str, float]
    """By the clock, and of processor time."""


async def _try_all(site: Site, tries: Sequence[_Try], draw: random.Random) -> list[_Heard]:
    page = await _http.ask(site.port, _http.get("/login/"))
    found = _TOKEN.search(page.body)
    assert found, "there is no sign-in page"
    token, cookie = found[1].decode(), page.cookies
    heard = []
    for one in [*draw.sample(tries, 40), *tries]:  # the first ones warm it, with guesses of their own
        given = {"username": one.code, "password": one.form}
        network = ".".join(str(draw.randrange(1, 255)) for _ in range(4))
        if one.way == "api":
            request = _http.post_json("/_allauth/app/v1/auth/login", given, x_forwarded_for=network)
        elif one.way == "page":
            given["csrfmiddlewaretoken"] = token
            request = _http.post_form("/login/", given, cookie=cookie, x_forwarded_for=network)
        else:
            given = {"code": one.code, "channel": "sms", "csrfmiddlewaretoken": token}
            request = _http.post_form("/recover/send/", given, cookie=cookie, x_forwarded_for=network)
            if one.way == "otp":
                session = (await _http.ask(site.port, request)).cookies
                given = {"otp": _FORMS[0], "csrfmiddlewaretoken": token}
                cookies = f"{cookie}; {session}"
                request = _http.post_form("/recover/otp/", given, cookie=cookies, x_forwarded_for=network)
        busy = site.web_tree.running() + site.database.running()
        answer = await _http.ask(site.port, request)
        busy = site.web_tree.running() + site.database.running() - busy
        names = b",".join(sorted(line.partition(b":")[0] for line in answer.head.split(b"\r\n")[1:]))
        words = (answer.status, names, _DRAWN.sub(b"", answer.body))
        heard.append(_Heard(one, words, {"clock": answer.seconds, "processor": busy}))
    return heard[40:]


def _judge(heard: Sequence[_Heard], draw: random.Random) -> dict:
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    words: dict[tuple[str, str], set] = defaultdict(set)
    for one in heard:
        for name, seconds in one.seconds.items():
            times[one.tried.way, one.tried.kind, name].append(1000 * seconds)
        words[one.tried.way, one.tried.form].add(one.words)
    broken = [
        f"{way}: {len(different)} different answers"
        for (way, _), different in words.items()
        if len(different) > 1
    ]
    for way, right in (("api", 400), ("page", 200), ("recover", 302), ("otp", 302)):
        found = {status for (one, _), each in words.items() if one == way for status, *_ in each}
        if strange := found - {right}:
            broken.append(f"{way}: answers that are none to what was sent: {strange}")
    ways = sorted({way for way, *_ in times})
    alpha = _ALPHA / (len(ways) * (len(_KINDS) - 1) * len(_LOOKS))
    shifts = []
    for way in ways:
        for kind in _KINDS[1:]:
            for name, q in _LOOKS:
                found = compare(times[way, _UNKNOWN, name], times[way, kind, name], q, draw)
                of = f"{name} {q:.0%}"
                shifts.append({"way": way, "kind": kind, "of": of, **found})
                if found["p"] < alpha:
                    broken.append(f"{way}: {kind} is told from an unknown code ({of})")
    return {
        "samples": len(heard),
        **{f"{way}_ms": round(quantile(times[way, _UNKNOWN, "clock"], 0.5), 2) for way in ways},
        **{f"{way}_cpu_ms": round(quantile(times[way, _UNKNOWN, "processor"], 0.5), 2) for way in ways},
        "alpha": round(alpha, 6),
        "shifts": shifts,
        "broken": broken,
    }


def compare(one: Sequence[float], other: Sequence[float], q: float, draw: random.Random) -> dict[str, float]:
    """By how much the other's quantile lies above the one's, from and to where that is certain at 95 %
    (bootstrap), and how often (p) as much comes of shuffling the two (permutation, both directions).
    """
    both = [*one, *other]
    shift = quantile(other, q) - quantile(one, q)
    shuffled, booted = 0, []
    for n in range(_DRAWS):
        draw.shuffle(both)
        shuffled += abs(quantile(both[len(one) :], q) - quantile(both[: len(one)], q)) >= abs(shift)
        if n % 5 == 0:
            left, right = (draw.choices(each, k=len(each)) for each in (one, other))
            booted.append(quantile(right, q) - quantile(left, q))
    return {
        "ms": round(shift, 3),
        "low": round(quantile(booted, 0.025), 3),
        "high": round(quantile(booted, 0.975), 3),
        "p": (shuffled + 1) / (_DRAWS + 1),
    }


def quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]
