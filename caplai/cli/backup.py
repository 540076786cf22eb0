"""`caplai` backup and restore."""

from pathlib import Path
from typing import Any

import click

from caplai.cli.group import WRONG_USE, Failure, load_config, main


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

    config = load_config()
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
    config = load_config()
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
