"""`caplai` capacity: what the configuration makes of a wave."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from caplai.cli.group import load_config, main

if TYPE_CHECKING:
    from caplai.config import Config
    from caplai.domain.capacity import Carrier, Plan, Wave

_COLUMNS = 72
_POINTS = 240


def _shares(ctx: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, float]:
    """`NAME=SHARE` options as a dictionary."""
    shares: dict[str, float] = {}
    for value in values:
        name, _, share = value.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise click.BadParameter(f"{value!r} is not NAME=SHARE, such as viettel=0.5") from None
        if not 0 <= shares[name] < float("inf"):
            raise click.BadParameter(f"{value!r}: a share is not below 0")
    return shares


@main.command()
@click.option("--accounts", type=click.IntRange(1, 10**10), help="Accounts that there are.")
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    help="The part of them whose owner asks: 0.05 is 5 %.",
)
@click.option("--hours", type=click.FloatRange(0.01, 10_000), help="The time within which they ask.")
@click.option(
    "--shape",
    type=click.Choice(["flat", "peak", "days", "october-2021"]),
    default="peak",
    show_default=True,
    help="How they come: evenly; steeply, then a tail; by the hours of the day from midnight; or the agency's"
    " wave of October 2021, which fills in the three options above.",
)
@click.option(
    "--again",
    type=click.FloatRange(1, 100),
    default=1.2,
    show_default=True,
    help="Requests of each, on average.",
)
@click.option(
    "--malformed",
    type=click.FloatRange(0, 0.49),
    default=0.05,
    show_default=True,
    help="The part of all messages that is not understood.",
)
@click.option(
    "--wrong-phone",
    type=click.FloatRange(0, 0.49),
    default=0.03,
    show_default=True,
    help="The part that comes from another phone than the account's.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Messages a second that all machines together store and decide (default: what was measured of one).",
)
@click.option(
    "--latency",
    type=click.FloatRange(0, 60_000),
    default=100,
    show_default=True,
    help="Milliseconds in which a carrier answers a submit.",
)
@click.option(
    "--parts",
    type=click.FloatRange(1, 255),
    default=1,
    show_default=True,
    help="Segments of a reply, on average: a carrier counts segments.",
)
@click.option(
    "--by",
    "shares",
    multiple=True,
    callback=_shares,
    metavar="LINK=SHARE",
    help="How large a part of the messages comes by this link (default: each link the same).",
)
@click.option(
    "--svg", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Draw it in this file, too."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def capacity(
    accounts: int | None,
    share: float | None,
    hours: float | None,
    shape: str,
    again: float,
    malformed: float,
    wrong_phone: float,
    rate: float | None,
    latency: float,
    parts: float,
    shares: dict[str, float],
    svg: Path | None,
    as_json: bool,
) -> None:
    """Plan for a wave: the queue, the waits, the bottleneck, and what the limits refuse.

    \b
    caplai capacity --accounts 21635070 --share 0.05 --hours 8
    caplai capacity --shape october-2021
    caplai capacity --accounts 100000000 --share 0.3 --hours 24 --by viettel=0.5 --by vina=0.3 --svg plan.svg

    Links (tps, window, binds), limits and the password's lifetime are those of the configuration; try others by
    setting them for this call. The database is not asked. It is arithmetic, not a test: docs/scaling.md says
    what it reckons with, and `python -m bench wave` measures.
    """
    config = load_config()
    from caplai.domain import capacity as model

    wave = model.OCTOBER_2021 if shape == "october-2021" else None
    if wave is None:
        if accounts is None or share is None or hours is None:
            raise click.UsageError("Say --accounts, --share and --hours, or --shape october-2021.")
        wave = model.Wave(accounts, share, hours, shape)
    wave = replace(
        wave,
        accounts=accounts or wave.accounts,
        share=share or wave.share,
        hours=hours or wave.hours,
        again=again,
        malformed=malformed,
        wrong_phone=wrong_phone,
    )
    service = model.Service(
        _carriers(config, shares, latency / 1000, parts),
        rate or model.MEASURED.per_second,
        config.policy_limits,
        config.password.lifetime,
    )
    found = model.plan(wave, service)
    cautions = _cautions(found, config)
    if svg:
        from caplai.cli.plot import Panel
        from caplai.cli.plot import svg as draw

        panels = [
            Panel("messages that come, a second", _rates(found, _POINTS)),
            Panel("messages that wait", _waiting(found, _POINTS)),
        ]
        svg.write_text(draw(panels, span=found.ends, title=_title(wave)), "utf-8")
    if as_json:
        click.echo(json.dumps(_as_json(found, cautions), indent=1))
        return
    for line in [*_told(found, rate is None), "", *_drawn(found), *(["", *cautions] if cautions else [])]:
        click.echo(line)
    if svg:
        click.echo(f"\nDrawn in {svg}.")


def _carriers(config: "Config", shares: dict[str, float], latency: float, parts: float) -> list["Carrier"]:
    """The ways out, each with the share of replies that goes by it: as reissue.py chooses them."""
    from caplai.domain.capacity import Carrier

    doors = [link.name for link in config.links if "mo" in link.use]
    doors += [aggregator.name for aggregator in config.aggregators]
    if unknown := sorted(shares.keys() - set(doors)):
        known = ", ".join(doors) or "none is configured"
        raise click.BadParameter(
            f"{unknown[0]} is no link or aggregator that messages come by ({known}).", param_hint="--by"
        )
    if shares and not sum(shares.values()):
        raise click.BadParameter("One of them must be above 0.", param_hint="--by")
    ways = {
        link.name: Carrier(link.name, 0.0, float(link.tps), link.window, link.binds, latency, parts)
        for link in config.links
        if "mt" in link.use
    }
    for each in config.aggregators:
        if each.reply == "send" and each.send:
            ways[each.name] = Carrier(each.name, 0.0, 0.0, each.send.window, 1, latency, 1.0)
        else:  # in the answer to the request
            ways[each.name] = Carrier(each.name, 0.0, answers_in=0.0)
    instead = config.service.mt_link or next(iter(config.senders), None)
    for door in doors:
        way = door if door in ways else instead
        if way in ways:
            ways[way] = replace(ways[way], share=ways[way].share + shares.get(door, 0 if shares else 1))
    return [way for way in ways.values() if way.share] or [Carrier("(no link is configured)", answers_in=0.0)]


# --- in words --------------------------------------------------------------------------------------------


def _title(wave: "Wave") -> str:
    return f"{_count(wave.people)} people of {_count(wave.accounts)} accounts ask within {_time(wave.hours * 3600)}"


def _told(found: "Plan", measured: bool) -> list[str]:
    from caplai.domain.capacity import MEASURED

    wave, service, outcomes = found.wave, found.service, found.outcomes
    at, most = found.most_waiting
    lines = [
        _title(wave),
        "",
        _row("messages that come", outcomes.total, f"{wave.again:g} requests each; {_rate(found.busiest)} a second"
             " when most come"),
        _row("  a password in answer", outcomes.granted),
        _row("  not understood", outcomes.bad_code),
        _row("  from another phone", outcomes.mismatch),
        _row("  over a limit, and told so", outcomes.over_limit, "at most: the same person, again and again"),
        _row("  over a limit, in silence", outcomes.silenced),
        _row("  password dead before sent", found.too_late(), "of those with a password; at most"),
        "",
        _row("waiting, when most do", most, f"{_time(at)} after the begin" if most else ""),
        _said("the last one is served", f"{_time(found.ends)} after the begin"),
        _said(
            "waits",
            f"half of them up to {_time(found.wait(0.5))}, 99 % {_time(found.wait(0.99))},"
            f" the longest {_time(found.longest_wait)}",
        ),
        "",
        "                                takes a second   when most come   for no queue",
        _load("store and decide", service.per_second, found.busiest, f"{_rate(found.busiest)} a second"),
    ]  # fmt: skip
    for lane in found.lanes:
        carrier = lane.carrier
        comes = found.busiest * found.answers * lane.share  # as if nothing waited before it
        if carrier.tps:
            needed = f"{_rate(comes * carrier.parts)} TPS"
            lines.append(_load(f"{carrier.name}: TPS", carrier.by_tps, comes, needed))
        if carrier.answers_in:
            window = comes * carrier.answers_in * carrier.parts
            needed = f"window {_rate(max(1, window))}"
            lines.append(_load(f"{carrier.name}: window", carrier.by_window, comes, needed))
    lines += ["", _said("bottleneck", _bottleneck(found))]
    wal, tables = outcomes.total * MEASURED.wal_bytes, outcomes.total * MEASURED.disk_bytes
    fastest = min(found.busiest, service.per_second) * MEASURED.wal_bytes
    lines.append(
        _said("WAL", f"{_bytes(wal)}, {_bytes(fastest)} a second at most; as much again where archived")
    )
    lines.append(_said("tables and indexes", f"{_bytes(tables)} more"))
    busy = min(found.busiest, service.per_second) / 1e6
    signing_in = busy * wave.people / outcomes.total * MEASURED.sign_in_us
    lines.append(
        _said(
            "cores busy, when most come",
            f"engines {_rate(busy * MEASURED.engine_us)}, database {_rate(busy * MEASURED.database_us)}; web"
            f" {_rate(signing_in)}, if all sign in as soon as they are answered",
        )
    )
    if measured:
        lines.append(_said("rate, bytes, cores", MEASURED.where))
    return lines


def _row(name: str, count: float, note: str = "") -> str:
    return f"{name:<30}{_count(count):>16}   {note}".rstrip()


def _said(name: str, says: str) -> str:
    return f"{name:<30}{says}"


def _load(name: str, has: float, comes: float, needed: str) -> str:
    return f"  {name:<28}{_rate(has):>16}{_part(comes / has):>17}   {needed}"


def _part(load: float) -> str:
    if 0 < load < 0.01:
        return "below 1%"
    return f"{load:.0%}" if load < 100 else f"{load:,.0f} times"


def _bottleneck(found: "Plan") -> str:
    from caplai.domain.capacity import bottleneck

    what, load = bottleneck(found)
    kind, _, name = what.partition(" ")
    words = {"decide": "storing and deciding", "tps": f"the TPS of {name}", "window": f"the window of {name}"}
    if load > 1:
        return f"{words[kind]}: {_rate(load)} times as much comes as it takes"
    return f"none; {words[kind]} is the busiest, {_part(load)} when most come"


def _cautions(found: "Plan", config: "Config") -> list[str]:
    """What a plan forgets, where it matters."""
    from caplai.service.deliver import GIVE_UP

    lines = []
    lifetime, delay = config.password.lifetime.total_seconds(), found.longest_outbox_wait()
    if late := found.too_late():
        lines.append(
            f"{_count(late)} passwords die before their reply is sent (password.lifetime, {_time(lifetime)} from the"
            " decision): these people get nothing and ask again."
        )
    elif delay > lifetime / 2:
        lines.append(
            f"Replies wait up to {_time(delay)} for their carrier: little is left of {_time(lifetime)}"
            " (password.lifetime) when they come."
        )
    if delay > GIVE_UP.total_seconds():
        lines.append(
            f"Replies wait longer than {_time(GIVE_UP.total_seconds())}: one that the carrier then refuses for now"
            " is given up."
        )
    if found.longest_wait > 300:
        lines.append(
            f"Who waits {_time(found.longest_wait)} asks again: --again is too low. What joins an open case is"
            f" answered {config.password.texts_per_case} times at most, and takes its place in the same queue."
        )
    if found.inbox.highest[1]:
        lines.append(
            "The queue before the deciders stands in our database. If that is full or away it stands at the"
            " carriers, who keep a message for as long as they please: ask them."
        )
    for lane in found.lanes:
        carrier = lane.carrier
        if not carrier.tps and carrier.answers_in:
            lines.append(
                f"{carrier.name} has no TPS here; the carrier has one, in segments, and throttles beyond it. Ask."
            )
        elif carrier.binds > 1 and carrier.tps:
            lines.append(
                f"{carrier.name}: each of its {carrier.binds} binds sends {_rate(carrier.tps)} segments a second,"
                " if as many engines run; the carrier may count them together."
            )
    if receipts := [link.name for link in config.links if link.receipts and "mt" in link.use]:
        lines.append(
            f"Receipts are asked for ({', '.join(receipts)}): a receipt for each reply comes in and is stored,"
            " which is not reckoned here."
        )
    return [f"- {line}" for line in lines]


# --- in numbers and pictures -----------------------------------------------------------------------------


def _rates(found: "Plan", points: int) -> list[float]:
    """Messages a second that come, in each of so many pieces of the time."""
    step = found.ends / points
    return [max(0.0, found.arrived(step * (n + 1)) - found.arrived(step * n)) / step for n in range(points)]


def _waiting(found: "Plan", points: int) -> list[float]:
    step = found.ends / points
    # Below a message it is the rounding of the arithmetic.
    return [value if (value := found.waiting(step * (n + 0.5))) >= 1 else 0.0 for n in range(points)]


def _drawn(found: "Plan") -> list[str]:
    from caplai.cli.plot import axis, blocks

    lines = [f"messages that come ({_rate(found.busiest)} a second, when most do)"]
    lines += blocks(_rates(found, _COLUMNS))
    lines += axis(found.ends, _COLUMNS)
    _, most = found.most_waiting
    if most < 1:
        return [*lines, "", "nothing waits"]
    lines += ["", f"messages that wait ({_count(most)}, when most do)"]
    return [*lines, *blocks(_waiting(found, _COLUMNS)), *axis(found.ends, _COLUMNS)]


def _as_json(found: "Plan", cautions: list[str]) -> dict[str, Any]:
    from caplai.domain.capacity import MEASURED, bottleneck

    wave, outcomes = found.wave, found.outcomes
    at, most = found.most_waiting
    what, load = bottleneck(found)
    step = found.ends / _POINTS
    moments = [step * n for n in range(_POINTS + 1)]
    return {
        "accounts": wave.accounts,
        "people": round(wave.people),
        "hours": wave.hours,
        "shape": wave.shape,
        "messages": round(outcomes.total),
        "granted": round(outcomes.granted),
        "refused": round(outcomes.refused),
        "refused_over_limit": round(outcomes.over_limit),
        "refused_bad_code": round(outcomes.bad_code),
        "refused_mismatch": round(outcomes.mismatch),
        "silenced": round(outcomes.silenced),
        "password_dead_before_sent": round(found.too_late()),
        "busiest_per_second": round(found.busiest, 3),
        "decided_per_second_at_most": found.service.per_second,
        "most_waiting": round(most),
        "most_waiting_at_seconds": round(at),
        "last_served_at_seconds": round(found.ends, 1),
        "median_wait_seconds": round(found.wait(0.5), 1),
        "p99_wait_seconds": round(found.wait(0.99), 1),
        "longest_wait_seconds": round(found.longest_wait, 1),
        "bottleneck": what,
        "bottleneck_load": round(load, 4),
        "links": [
            {
                "name": lane.carrier.name,
                "share": round(lane.share, 4),
                "replies_per_second_by_tps": _finite(lane.carrier.by_tps),
                "replies_per_second_by_window": _finite(lane.carrier.by_window),
                "busiest_per_second": round(lane.busiest, 3),
                "in_flight_when_busiest": round(
                    min(lane.busiest, lane.carrier.per_second) * lane.carrier.answers_in * lane.carrier.parts, 2
                ),
                "most_waiting": round(lane.queue.highest[1]),
            }
            for lane in found.lanes
        ],
        "wal_bytes": round(outcomes.total * MEASURED.wal_bytes),
        "disk_bytes": round(outcomes.total * MEASURED.disk_bytes),
        "queue": [
            {
                "at_seconds": round(at, 1),
                "arrived": round(found.arrived(at)),
                "answered": round(found.answered(at)),
                "waiting": round(found.waiting(at)),
            }
            for at in moments
        ],
        "cautions": [line.removeprefix("- ") for line in cautions],
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return None if value == float("inf") else round(value, 3)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _time(seconds: float) -> str:
    if seconds < 0.5:
        return "0 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.3g} h"
    return f"{seconds / 86_400:.3g} days"


def _bytes(value: float) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} bytes"
