"""`caplai` accounts: import, generate, hold."""

import contextlib
import os
import sys
import time
from collections.abc import Generator
from typing import IO, Any

import click

from caplai.cli.group import WRONG_USE, Failure, load_config, main, ready


@main.group()
def accounts() -> None:
    """The citizens' accounts."""


@accounts.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--update-phones", is_flag=True, help="Let the file change the phones of existing accounts.")
def accounts_import(file: IO[bytes], update_phones: bool) -> None:
    """Add and update accounts from a CSV file.

    \b
    code,phone,email,state
    0123456789,0327 000 686,,approved

    The first line names the columns; each line after it is one account, also where fields stand in
    quotation marks. Phones may be written as people write them here, the eleven digits from before
    2018 included; state is pending, approved or closed. Good rows are taken, each bad one is
    reported with its line and reason. The same file twice changes nothing.

    A column password_hash, where there is one, takes over the passwords that people have:
    Django's pbkdf2_sha256, argon2, bcrypt and bcrypt_sha256, bare bcrypt and bare Argon2id. They
    sign in until their owners do so for the first time, and are hashed anew then. It may be empty,
    and is passed by for closed accounts and for those that somebody has signed in to here.

    The whole file is read before anything is changed, then stored piece by piece, beside a running
    service. Stopped by Ctrl-C or a crash, what was stored stays and is whole; the same command
    again stores the rest.

    Exit status: 0 all rows were good, 1 some were refused, 2 wrong use (nothing was changed).
    """
    config = load_config()
    with ready(config):
        from caplai.service.accounts_file import BadRow, WrongFile, read_lines
        from caplai.service.register import import_accounts
        from caplai.store.db import connect

        over_the_bar = "\r\x1b[K" if sys.stderr.isatty() else ""

        def refused(row: BadRow) -> None:
            click.echo(f"{over_the_bar}{file.name}:{row.line}: {row.reason}", err=True)

        def lines() -> Generator[str, None, None]:
            with _bar("Reading", os.fstat(file.fileno()).st_size, "MB", 10**6) as bar:
                yield from read_lines(file, bar.update)
            click.echo("Sorting", err=True)

        storing: Any = None

        def stored(rows: int, total: int) -> None:
            nonlocal storing
            storing = storing or bars.enter_context(_bar("Storing", total, "accounts"))
            storing.update(rows)

        try:
            with (
                contextlib.closing(lines()) as source,
                contextlib.ExitStack() as bars,
                connect() as conn,
                connect() as other,
            ):
                done = import_accounts(
                    conn, source, beside=[other], update_phones=update_phones, report=refused, stored=stored
                )
        except WrongFile as error:
            raise Failure(f"{file.name}: {error}", WRONG_USE) from None
        except KeyboardInterrupt:
            click.echo(
                "Stopped. What was stored stays and is whole; the same command again stores the rest.",
                err=True,
            )
            raise
        click.echo(
            f"{done.added} added, {done.changed} changed, {done.unchanged} unchanged, {done.refused} refused"
        )
        if done.phones_kept:
            click.echo(
                f"{done.phones_kept} accounts have another phone in the file; it was not changed"
                " (--update-phones changes it).",
                err=True,
            )
        if done.refused:
            sys.exit(1)


@accounts.command("generate")
@click.argument("count", type=click.IntRange(0, 10**10))
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed, the same file.")
@click.option(
    "--with-passwords",
    type=click.FloatRange(0, 1),
    default=0,
    metavar="SHARE",
    help="Give this share of the accounts (0 to 1) a password_hash.",
)
def accounts_generate(count: int, seed: int, with_passwords: float) -> None:
    """Write made-up accounts as CSV to standard output, for tests and demos.

    \b
    caplai accounts generate 100000 > accounts.csv

    Codes are unique and in no order, families share a phone, some people have an e-mail address,
    one account in a hundred is closed and two are pending. The file of fewer accounts is the
    beginning of the file of more. The password of an account that has one is "con meo" with the
    last two digits of its code: con meo 07.

    Phones are in real prefixes and may be somebody's: never send anything to them.
    """
    from caplai.simulator import population

    out = sys.stdout.buffer
    for block in population.accounts(count, seed, with_passwords):
        out.write(block)


@accounts.group("hold")
def accounts_hold() -> None:
    """Accounts whose owners said "this was not me": nothing is issued for them until the counter lifts it."""


@accounts_hold.command("list")
def accounts_hold_list() -> None:
    """List the accounts that are held, the longest first: since when, how it was reported, code and phone masked."""
    with ready(load_config()):
        from caplai.service.report import held
        from caplai.store.db import connect

        with connect() as conn:
            found = held(conn)
        for each in found:
            click.echo(f"{each.since.astimezone():%F %R}  by {each.by:<7}  {each.code}  {each.phone}")
        click.echo(f"{len(found)} accounts are held.")


@accounts_hold.command("lift")
@click.argument("code")
@click.option("--by", required=True, help="Who has seen the person and lifts it; kept for the record.")
def accounts_hold_lift(code: str, by: str) -> None:
    """Let the account CODE (ten digits) be re-issued again, for a person whom you have seen.

    Nothing that was ended comes back, and what the report left (passkeys, young addresses) goes: the person
    texts for a new password. Correct the registered phone first if it is not theirs any more.
    """
    with ready(load_config()):
        from caplai.portal.report import end_the_rest
        from caplai.service.report import lift

        if not lift(code, by, end_the_rest):
            raise Failure("This account is not held. See: caplai accounts hold list")
        click.echo("Lifted. The person can text for a new password now.")


def _bar(label: str, length: int, unit: str, scale: int = 1) -> Any:
    """A progress bar on stderr with rate and time left, drawn a thousand times at most; none where the length is
    unknown (a pipe).
    """
    began = time.monotonic()

    def rate(_: object) -> str:
        return f"{bar.pos / scale / max(time.monotonic() - began, 0.001):,.0f} {unit}/s"

    bar: Any = click.progressbar(
        length=length,
        label=label,
        file=sys.stderr,
        hidden=not length,
        update_min_steps=max(1, length // 1000),
        item_show_func=rate,
    )
    return bar
