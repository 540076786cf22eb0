"""The commands of the operators' days: a message's life, retention, backup and restore (part of cli.py)."""

import dataclasses
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from caplai.cli import WRONG_USE, Failure, _config, _ready, main

# --- messages --------------------------------------------------------------------------------------


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
    config = _config()
    with _ready(config):
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
        if line.status:
            reply += f" ({config.answer_said(line.link, line.status)})"
        outcome = line.outcome or (f"parked ({line.error})" if line.error else "waiting")
        id_ = line.id if line.id is not None else "-"
        click.echo(f"{id_:>12}  {_time(line.at)}  {line.link:<10} {line.phone:<12} {outcome:<14} {reply}")


def _life(found: Any, config: Any) -> Any:
    """The lines of a message's life, in the order in which it happened."""
    yield f"message {found.id} from {found.phone} to {found.destination} by {found.link}"
    if found.request_id:
        yield f"  request   {found.request_id}"
    size = "its text has been removed" if found.characters is None else f"{found.characters} characters"
    parts = f" in {found.parts} parts" if found.parts else ""
    engine = f", stored by {found.engine}" if found.engine else ""
    yield f"  received  {_time(found.received_at)}, {size}{parts}{engine}"
    if found.decided_at:
        why = f" ({found.error})" if found.error else ""
        took = _after(found.received_at, found.decided_at)
        yield f"  decided   {_time(found.decided_at)}, {took}: {found.outcome}{why}"
    elif found.error:
        yield f"  parked    {found.error}"
    if case := found.case:
        how = "opened" if case.opened_by_this else "joined"
        yield f"  case      {how}: of {case.account}, opened {_time(case.opened_at)} by {case.channel}"
        yield f"            texts with its password: {case.texts}"
        if case.ended_at:
            yield f"            ended {_time(case.ended_at)} as {case.ended_as}"
        else:
            yield f"            {'lives until' if case.lives else 'expired'} {_time(case.expires_at)}"
    for reply in found.replies:
        yield f"  reply {reply.id}  {reply.kind} to {reply.phone} by {reply.link}: {reply.state}"
        answered = config.answer_said(reply.link, reply.status)
        who = "the aggregator" if answered.startswith("HTTP") else "the SMSC"
        said = f", {who} last said {answered}" if reply.status is not None else ""
        named = ", under an id of its own" if reply.named else ""
        named = ", in the answer to its request" if reply.at_once else named
        yield f"            written {_time(reply.created_at)}, attempts: {reply.attempts}{said}{named}"
        if reply.settled_at:
            yield (
                f"            settled {_time(reply.settled_at)}, {_after(found.received_at, reply.settled_at)} in all"
            )
        elif reply.claimed_by:
            yield f"            with {reply.claimed_by} until {_time(reply.due_at)}"
        else:
            yield f"            due {_time(reply.due_at)}"
        if reply.receipt:
            at = f" {_time(reply.receipt_at)}" if reply.receipt_at else ""
            yield f"            receipt{at}: {reply.receipt}"
    if found.waits_for:
        yield f"  waits for {found.waits_for}"


def _time(at: datetime) -> str:
    from django.utils import timezone

    return f"{timezone.localtime(at):%F %T}"


def _after(begun: datetime, ended: datetime) -> str:
    seconds = (ended - begun).total_seconds()
    return f"{seconds * 1000:.0f} ms later" if abs(seconds) < 10 else f"{seconds:.0f} s later"


# --- retention -------------------------------------------------------------------------------------


@main.group()
def retention() -> None:
    """How long what names a person is kept, and its removal. The engine does it by itself, once an hour."""


@retention.command("run")
@click.option("--dry-run", is_flag=True, help="Count what would go, row by row, and change nothing.")
def retention_run(dry_run: bool) -> None:
    """Remove now what is too old.

    It works beside a running service, in small steps; Ctrl-C stops it anywhere, and the next run goes
    on. Exit status: 0 done, 1 another run is at it, or something gave way to the flow and is left.
    """
    import threading

    config = _config()
    with _ready(config):
        from caplai.service import retention as service
        from caplai.store.db import connect
        from caplai.wiring import retention_rules

        keep = retention_rules(config)
        with connect() as conn:
            if dry_run:
                for due in service.due(conn, keep):
                    click.echo(f"{due.rows:>12}  {due.says}, older than {_time(due.before)}")
                return
            left = False

            def report(done: service.Done) -> None:
                nonlocal left
                left = left or done.left
                click.echo(f"{done.rows:>12}  {done.says}{': not all, it is in use' if done.left else ''}")

            if not service.run(conn, keep, threading.Event(), report):
                raise Failure("Another run is at it (an engine's, perhaps). See: caplai retention status")
        sys.exit(1 if left else 0)


@retention.command("status")
def retention_status() -> None:
    """Say for each kind of data what is too old, and when the last of that had gone."""
    config = _config()
    with _ready(config):
        from caplai.service import retention as service
        from caplai.store.db import connect
        from caplai.wiring import retention_rules

        with connect() as conn:
            for name, says, before, finished_at, rows in service.status(conn, retention_rules(config)):
                last = _time(finished_at) if finished_at else "never"
                click.echo(
                    f"{name:<10} {says}: older than {_time(before)}; all gone: {last}; rows ever: {rows}"
                )


# --- backup and restore ----------------------------------------------------------------------------


@main.command()
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--keyring",
    "keyring_dest",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Copy the keyring, too, to this new file; not beside DEST.",
)
def backup(dest: Path, keyring_dest: Path | None) -> None:
    """Back up the database into the new folder DEST, beside a running service.

    The folder holds no key, no issued password and no sign-in: with it alone nobody can get in. It
    holds phones and codes, so it is readable by its owner only. Keep the keyring's backup in another
    place: with both, chosen passwords could be guessed at; without the keyring they are lost.

    Interrupted, it leaves no folder of that name. Exit status: 0 it is whole and its checksum written,
    1 it could not be made.
    """
    from caplai import backup as work
    from caplai import processes

    config = _config()
    with processes.database(config) as database:
        if keyring_dest is not None:
            if config.keys.source is not None:
                raise Failure(f"The keys come from {config.keys.source}: back them up where they are kept.")
            work.copy_keyring(config.keyring_file, keyring_dest, dest)
        try:
            manifest = work.back_up(database.conninfo, dest, pg_bin=_pg_bin(config))
        except BaseException:
            if keyring_dest is not None:
                keyring_dest.unlink()  # so that the same command can be given again
            raise
    if keyring_dest is not None:
        click.echo(f"keyring: {keyring_dest}")
    click.echo(
        f"database: {dest}, {manifest.bytes / 1e6:.1f} MB, {manifest.rows['account']} accounts,"
        f" PostgreSQL {manifest.postgresql}"
    )
    if manifest.peppers and keyring_dest is None:
        click.echo("The keyring is not in it. Back it up, too, to another place: --keyring FILE", err=True)


def _pg_bin(config: Any) -> str | None:
    return str(config.pg_bin) if config.pg_bin else None


@main.command()
@click.argument("src", required=False, type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Remove what is in the database first; it must not be in use.")
@click.option(
    "--keyring",
    "keyring_src",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Put this copy of the keyring in its place, where there is none yet.",
)
@click.option(
    "--without-keys",
    is_flag=True,
    help="The keyring is lost: chosen passwords that need it are forgotten, and their owners text for another.",
)
@click.option(
    "--after-the-fact",
    is_flag=True,
    help="The database came back by other means (a snapshot, point in time): only end what lived in it.",
)
def restore(
    src: Path | None, replace: bool, keyring_src: Path | None, without_keys: bool, after_the_fact: bool
) -> None:
    """Load the backup SRC into an empty database, and end everything that lived in it.

    Nothing may be connected to the database. Its open cases end, so no password that was issued
    before signs in; sign-ins and remembered devices end; messages without an outcome and replies
    that the SMSC has not taken are closed and never sent. All of it is one transaction: stopped or
    killed, nothing has changed, and caplai refuses to start until the same command has gone through.

    Without CAPLAI_DATABASE_URL it goes into the embedded server of the data folder, by whichever
    version of PostgreSQL is here: so a backup is also the way from one major version to the next.

    Exit status: 0 restored, 1 it could not be, 2 wrong use.
    """
    from caplai import backup as work
    from caplai import processes

    if after_the_fact == (src is not None) or (after_the_fact and (replace or keyring_src or without_keys)):
        raise Failure("Name either a backup to restore, or --after-the-fact and nothing else.", WRONG_USE)
    config = _config()
    if src is None:
        with processes.database(config) as database:
            _echo_ended(work.after_the_fact(database.conninfo))
        return
    manifest = work.read(src)
    if keyring_src is not None:
        if not config.keyring_file.exists():
            config.keyring_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            work.copy_keyring(keyring_src, config.keyring_file)
        elif config.keyring_file.is_dir() or config.keyring_file.read_bytes() != keyring_src.read_bytes():
            raise Failure(
                f"{config.keyring_file} is there already. Move it away to put another in its place."
            )
    lacking = work.lacking_peppers(manifest, config.open_keyring())
    if lacking and not without_keys:
        raise Failure(
            f"The keyring lacks {', '.join(sorted(lacking))}, which {sum(lacking.values())}"
            " chosen passwords need. Restore it first (--keyring FILE); if it is lost for good, --without-keys"
            " makes their owners text for another."
        )
    with processes.database(config) as database:
        ended = work.restore(
            database.conninfo, src, manifest, replace=replace, forget=lacking, pg_bin=_pg_bin(config)
        )
        click.echo(f"Restored as of {manifest.taken_at}: {manifest.rows['account']} accounts.")
        _echo_ended(ended)
        if config.database_url is None:
            processes.setup_django()
            processes.migrate()
        else:
            click.echo("If this is a newer version of caplai than the backup's, run: caplai migrate")


def _echo_ended(ended: Any) -> None:
    click.echo(
        f"Ended: {ended.cases} open cases, {ended.sessions} sign-ins, {ended.devices} remembered devices.\n"
        f"Closed without an answer: {ended.messages} messages, {ended.replies} replies, {ended.parts} parts."
    )
