"""`caplai` message and parked: what became of a message."""

import dataclasses
import json
import sys
from datetime import datetime
from typing import Any

import click

from caplai.cli.group import WRONG_USE, Failure, load_config, local_time, main, ready


@main.command()
@click.option(
    "--retry", is_flag=True, help="Let them be decided after all, for instance by a mended version."
)
def parked(retry: bool) -> None:
    """List the messages that caplai's own code failed on, which were set aside so that others go on.

    Each has got no answer yet. The engine's log says where the code failed.
    """
    with ready(load_config()):
        from caplai.store.db import connect
        from caplai.store.queues import list_parked, unpark

        with connect() as conn:
            if retry:
                click.echo(f"{unpark(conn)} messages will be decided again.")
                return
            for message, received_at, error in list_parked(conn):
                click.echo(f"{message:>12}  {received_at:%F %T %Z}  {error}")


@main.command()
@click.argument("id_", metavar="[ID]", required=False)
@click.option("--link", metavar="LINK", help="ID is an aggregator's own (request id) on this link.")
@click.option("--phone", is_flag=True, help="List the last messages of a phone, which is asked for.")
@click.option(
    "--code", is_flag=True, help="List the last messages of an account's phones; its code is asked for."
)
@click.option("--failed", is_flag=True, help="List what needs a person.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def message(id_: str | None, link: str | None, phone: bool, code: bool, failed: bool, as_json: bool) -> None:
    """Tell a message's whole life, or list messages.

    \b
    caplai message 4711               its arrival, outcome, case, replies and how long each took
    caplai message --link agg R-17    the same, of the message with this request id
    caplai message --phone            the last 20 of a phone (asked for, or the first line of stdin)
    caplai message --code             the last 20 of the phones of an account
    caplai message --failed           parked, waiting for ten minutes, or refused for good

    Phones and codes are asked for because a shell keeps what it is told, and every user of the host
    sees it meanwhile. They are shown masked; texts and passwords are not shown at all.

    Exit status: 0 found, 1 there is none, 2 wrong use.
    """
    if (id_ is not None) + phone + code + failed != 1 or (link is not None and id_ is None):
        hint = " A phone or code is asked for; do not give it here." if phone or code else ""
        raise Failure(f"Name one message by its ID, or one of --phone, --code, --failed.{hint}", WRONG_USE)
    subject = _ask_subject(phone) if phone or code else None
    config = load_config()
    with ready(config):
        from caplai.service import trace
        from caplai.store.db import connect

        with connect() as conn:
            if id_ is None:
                if subject is None:
                    lines = trace.in_trouble(conn)
                else:
                    lines = (trace.of_phone if phone else trace.of_account)(conn, subject)
                if as_json:
                    click.echo(_json([dataclasses.asdict(line) for line in lines]))
                else:
                    _echo_lines(lines, config)
                if not lines and subject is not None:
                    raise Failure("No message of it is known.")
                return
            number = trace.of_request(conn, link, id_) if link else int(id_) if _is_id(id_) else None
            found = trace.message(conn, number) if number is not None else None
        if found is None:
            where = f" of {link}" if link else ""
            raise Failure(
                f"There is no message{where} with this id. Ids are numbers; with --link the aggregator's own."
            )
        if as_json:
            click.echo(_json({**dataclasses.asdict(found), "waits_for": found.waits_for}))
        else:
            for line in _life(found, config):
                click.echo(line)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 1 << 63


def _ask_subject(phone: bool) -> str:
    """A phone (E.164) or a code from the terminal or the first line of stdin; never from the command line."""
    from caplai.domain import msisdn

    asked = sys.stdin.isatty()
    said = click.prompt("Phone" if phone else "Code", err=True) if asked else sys.stdin.readline()
    if phone:
        number = msisdn.parse(said)
        if number is None:
            raise Failure("This is no phone that can receive an SMS.", WRONG_USE)
        return number
    digits = said.strip()
    if len(digits) != 10 or not _is_id(digits):
        raise Failure("A code is exactly ten digits.", WRONG_USE)
    return digits


def _json(value: Any) -> str:
    def plain(item: Any) -> str:
        return item.isoformat() if isinstance(item, datetime) else str(item)

    return json.dumps(value, default=plain, ensure_ascii=False, indent=2)


def _echo_lines(lines: Any, config: Any) -> None:
    for line in lines:
        reply = line.reply or "-"
        if line.status or reply == "failed":
            reply += f" ({config.answer_said(line.link, line.status)})"
        outcome = line.outcome or (f"parked ({line.error})" if line.error else "waiting")
        id_ = line.id if line.id is not None else "-"
        click.echo(
            f"{id_:>12}  {local_time(line.at)}  {line.link:<10} {line.phone:<12} {outcome:<14} {reply}"
        )


def _life(found: Any, config: Any) -> Any:
    """The lines of a message's life, in the order in which it happened."""
    yield f"message {found.id} from {found.phone} to {found.destination} by {found.link}"
    if found.request_id:
        yield f"  request   {found.request_id}"
    size = "its text has been removed" if found.characters is None else f"{found.characters} characters"
    parts = f" in {found.parts} parts" if found.parts else ""
    engine = f", stored by {found.engine}" if found.engine else ""
    yield f"  received  {local_time(found.received_at)}, {size}{parts}{engine}"
    if found.decided_at:
        why = f" ({found.error})" if found.error else ""
        took = _after(found.received_at, found.decided_at)
        yield f"  decided   {local_time(found.decided_at)}, {took}: {found.outcome}{why}"
    elif found.error:
        yield f"  parked    {found.error}"
    if case := found.case:
        how = "opened" if case.opened_by_this else "joined"
        yield f"  case      {how}: of {case.account}, opened {local_time(case.opened_at)} by {case.channel}"
        yield f"            texts with its password: {case.texts}"
        if case.ended_at:
            yield f"            ended {local_time(case.ended_at)} as {case.ended_as}"
        else:
            yield f"            {'lives until' if case.lives else 'expired'} {local_time(case.expires_at)}"
    for reply in found.replies:
        yield f"  reply {reply.id}  {reply.kind} to {reply.phone} by {reply.link}: {reply.state}"
        answered = config.answer_said(reply.link, reply.status)
        who = "the aggregator" if answered.startswith("HTTP") else "the SMSC"
        said = f", {who} last said {answered}" if reply.status is not None else ""
        named = ", under an id of its own" if reply.named else ""
        named = ", in the answer to its request" if reply.at_once else named
        yield f"            written {local_time(reply.created_at)}, attempts: {reply.attempts}{said}{named}"
        if reply.settled_at:
            took = _after(found.received_at, reply.settled_at)
            yield f"            settled {local_time(reply.settled_at)}, {took} in all"
        elif reply.claimed_by:
            yield f"            with {reply.claimed_by} until {local_time(reply.due_at)}"
        else:
            yield f"            due {local_time(reply.due_at)}"
        if reply.receipt:
            at = f" {local_time(reply.receipt_at)}" if reply.receipt_at else ""
            yield f"            receipt{at}: {reply.receipt}"
    if found.waits_for:
        yield f"  waits for {found.waits_for}"


def _after(begun: datetime, ended: datetime) -> str:
    seconds = (ended - begun).total_seconds()
    return f"{seconds * 1000:.0f} ms later" if abs(seconds) < 10 else f"{seconds:.0f} s later"
