"""`caplai backup` and `caplai restore`: the database as one folder, the keyring apart from it.

A backup is a folder of two files: `database.dump` (pg_dump's custom format) and `manifest.json`, which says from what
it was taken, its checksum, the rows of each table at that moment, and which peppers its passwords need. It gets its
name when it is whole: one that was interrupted is called `.NAME.partial-…` and has no manifest. It holds no key, no
issued password and no session, so by itself it opens nothing; with the keyring it could, so the two belong in
different places.

A restore is one transaction: load, compare with the manifest, end what lived in the old time (service/recover.py),
commit. Killed anywhere it has changed nothing but for a mark, the schema `caplai_restore`, on which everything else
refuses to start; the same command again goes through.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import psycopg
from psycopg import pq, sql

from caplai import __version__
from caplai.local_postgres import installed
from caplai.prctl import end_with
from caplai.processes import RESTORE_MARK
from caplai.service import keys, recover
from caplai.store.keyring import KINDS, KeyringFile, Keys

DUMP, MANIFEST = "database.dump", "manifest.json"
_FORMAT = 1
# Sign-ins are not for keeping; parts of messages, running processes and which key is active are of the moment.
_NOT_KEPT = ("django_session", "sitting", "segment", "process", "key")
_CHUNK = 1 << 20
_NAME = re.compile(r"[a-z_][a-z0-9_]*")


class BackupError(Exception):
    """It cannot be done; the text says why and what to do. Holds nothing of a person's and no password."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself."""

    format: int
    caplai: str
    """The version that took it."""
    taken_at: str
    postgresql: int
    """The server's major version."""
    pg_dump: int
    """The major version of the program that wrote the dump: none older can read it."""
    sha256: str
    bytes: int
    rows: Mapping[str, int]
    peppers: Mapping[str, int]
    """How many chosen passwords need each pepper of the keyring."""


# --- backup ----------------------------------------------------------------------------------------


def back_up(conninfo: str, destination: Path, *, pg_bin: str | None = None) -> Manifest:
    """Write a backup of the database into a new folder. The service may run meanwhile.

    Raises BackupError; then there is nothing of that name.
    """
    destination = destination.absolute()
    if destination.exists() or destination.is_symlink():
        raise BackupError(f"{destination} exists. A backup is a new folder: give it another name.")
    partial = destination.with_name(f".{destination.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir(mode=0o700)
    try:
        manifest = _dump(conninfo, partial / DUMP, pg_bin)
        _write(partial / MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
        _sync(partial)
        partial.rename(destination)
        _sync(destination.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None:
            raise BackupError(f"{destination.parent}: {error.strerror}.") from None
        raise
    return manifest


def _dump(conninfo: str, file: Path, pg_bin: str | None) -> Manifest:
    with _connect(conninfo) as conn:
        server = conn.info.server_version // 10_000
        folder, version = _programs(pg_bin, server, server)
        conn.autocommit = False
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.read_only = True
        tables = _tables(conn)
        if "reissue_case" not in tables:
            raise BackupError("This database holds no tables of caplai's: there is nothing to back up.")
        [[snapshot]] = conn.execute("select pg_export_snapshot()").fetchall()
        command = [
            str(folder / "pg_dump"),
            "--format=custom",
            "--no-owner",
            "--no-privileges",
            "--no-password",
        ]
        command += [f"--snapshot={snapshot}", f"--file={file}", f"--exclude-schema={RESTORE_MARK}"]
        command += [f"--exclude-table-data=public.{table}" for table in _NOT_KEPT]
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with _program(command, conninfo) as dumping:
            # Beside it and by the same snapshot, so that they are the rows of the dump.
            kept = [table for table in sorted(tables) if table not in _NOT_KEPT]
            rows = {table: _count(conn, table) for table in kept}
            peppers = _peppers(conn)
            _finish(dumping, "pg_dump")
    with _program([str(folder / "pg_restore"), "--list", str(file)], conninfo) as listing:
        _finish(listing, "pg_restore --list")
    _sync(file)
    return Manifest(
        format=_FORMAT,
        caplai=__version__,
        taken_at=f"{datetime.now(UTC):%FT%TZ}",
        postgresql=server,
        pg_dump=version,
        sha256=_checksum(file),
        bytes=file.stat().st_size,
        rows=rows,
        peppers=peppers,
    )


def copy_keyring(keyring: Path, destination: Path, backup: Path | None = None) -> None:
    """A copy of the keyring in a new file of mode 0600. Raises BackupError, KeyringError.

    `backup`, where the database's was put, is compared: the two must not lie side by side.
    """
    _whole_keyring(keyring)
    destination = destination.absolute()
    if backup is not None and destination.parent.resolve() in (backup.resolve(), backup.parent.resolve()):
        raise BackupError(
            "The keyring's backup must not lie beside the database's: whoever finds both has what one alone"
            " would not give. Name a file in another place, better on another system."
        )
    if destination.exists() or destination.is_symlink():
        raise BackupError(f"{destination} exists. It may be another keyring: give the copy another name.")
    partial = destination.with_name(f".{destination.name}.partial-{secrets.token_hex(4)}")
    try:
        _write(partial, keyring.read_bytes())
        partial.rename(destination)
        _sync(destination.parent)
    except OSError as error:
        if error.filename is None:  # a full disk
            raise BackupError(f"{destination.parent}: {error.strerror}.") from None
        raise
    finally:
        partial.unlink(missing_ok=True)


def _whole_keyring(keyring: Path) -> dict[str, set[str]]:
    """The ids of its keys, by kind. Raises KeyringError."""
    if keyring.is_dir():
        raise BackupError(
            f"{keyring} is a directory (of a secret store, perhaps): back it up and restore it there, not here."
        )
    ring = KeyringFile(keyring)
    return {kind: set(ring.ring(kind).keys) for kind in KINDS}


# --- restore ---------------------------------------------------------------------------------------


def read(source: Path) -> Manifest:
    """The manifest of a backup whose dump is whole. Raises BackupError."""
    try:
        values = json.loads((source / MANIFEST).read_bytes())
        if values.get("format") != _FORMAT:
            raise BackupError(
                f"{source} was made by another version of caplai ({values.get('caplai')}): use that."
            )
        manifest = Manifest(**values)
        names = [*manifest.rows, *manifest.peppers]
        if not all(_NAME.fullmatch(table) for table in manifest.rows) or any("'" in name for name in names):
            raise ValueError
    except (OSError, ValueError, TypeError, AttributeError):
        raise BackupError(f"{source} is no whole backup (no {MANIFEST} that can be read).") from None
    try:
        whole = _checksum(source / DUMP) == manifest.sha256
    except OSError as error:
        raise BackupError(f"{source / DUMP}: {error.strerror}.") from None
    if not whole:
        raise BackupError(f"{source / DUMP} is damaged: its checksum is another one. Take an older backup.")
    return manifest


def lacking_peppers(manifest: Manifest, keyring: Keys) -> dict[str, int]:
    """The peppers that this keyring lacks, with the number of chosen passwords that need each."""
    if not manifest.peppers:
        return {}
    missing = isinstance(keyring, KeyringFile) and not keyring.path.exists()
    have = {} if missing else keyring.read().get("pepper", {})
    return {pepper: count for pepper, count in manifest.peppers.items() if pepper not in have}


def restore(
    conninfo: str,
    source: Path,
    manifest: Manifest,
    *,
    replace: bool = False,
    forget: Mapping[str, int] | None = None,
    pg_bin: str | None = None,
) -> recover.Ended:
    """Load a backup into an empty database and end what lived in it; returns what was ended.

    `replace`: everything in the schema `public` goes first. `forget`: peppers that are lost; the passwords that need
    them are made unusable, so that their owners can text for another.

    One transaction. Raises BackupError; then the database is as it was, but for the mark that keeps everything
    from starting on it if a restore had begun.
    """
    with _connect(conninfo) as conn:
        server = conn.info.server_version // 10_000
        if server < manifest.postgresql:
            raise BackupError(
                f"The backup is of PostgreSQL {manifest.postgresql}, this server is {server}: it cannot be older."
            )
        folder, _ = _programs(pg_bin, server, manifest.pg_dump)
        if _tables(conn) and not replace:
            raise BackupError(
                "This database is not empty. Name an empty one (or another CAPLAI_DATA_DIR); --replace removes"
                " everything that is in this one."
            )
        [[begun]] = conn.execute("select to_regnamespace(%s) is not null", [RESTORE_MARK]).fetchall()
        conn.execute(f"create schema if not exists {RESTORE_MARK}")
        try:
            _refuse_if_used(conn)
        except BackupError:
            if not begun:  # nothing has been touched: who runs here may start again
                conn.execute(f"drop schema {RESTORE_MARK}")
            raise
    _load(conninfo, folder, source / DUMP, _before(replace), _after(manifest, forget or {}))
    with _connect(conninfo) as conn:
        conn.execute("analyze")  # a table that has just grown is planned as an empty one
        return recover.last_ended(conn)


def after_the_fact(conninfo: str) -> recover.Ended:
    """End what lived in a database that came back by other means. Raises BackupError if anybody uses it."""
    with _connect(conninfo) as conn, conn.transaction():
        if "reissue_case" not in _tables(conn):
            raise BackupError("This database holds no tables of caplai's. Name the restored one.")
        _refuse_if_used(conn)
        ended = recover.end_all(conn)
        if "key" in _tables(conn):
            keys.forget(conn)
        conn.execute(f"drop schema if exists {RESTORE_MARK}")
    return ended


def _refuse_if_used(conn: psycopg.Connection) -> None:
    """Who connects from now on meets the mark; who is connected already might serve what is to end."""
    [[others]] = conn.execute(
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and coalesce(backend_type, 'client backend') = 'client backend'"
    ).fetchall()
    if others:
        raise BackupError(
            f"{others} other connections use this database. Stop every engine and web server (and psql) first."
        )


def _before(replace: bool) -> str:
    gone = (
        "set client_min_messages = error; drop schema public cascade; create schema public;\n"
        if replace
        else ""
    )
    return f"begin;\n{gone}"


def _after(manifest: Manifest, forget: Mapping[str, int]) -> str:
    """The end of the script: compare, end what lived, lift the mark, commit."""
    checks = "".join(
        f"if (select count(*) from {table}) <> {int(rows)} then raise data_corrupted; end if;\n"  # noqa: S608
        for table, rows in manifest.rows.items()
    )
    lost = ", ".join(f"'{pepper}'" for pepper in forget)
    unusable = (
        "update login set password = '!' || replace(gen_random_uuid()::text, '-', '')"  # noqa: S608
        f" where password like 'argon2p$%' and split_part(password, '$', 2) in ({lost});\n"
        if lost
        else ""
    )
    return (
        "\nset search_path = public;\n"
        f"do $check$ begin\n{checks}end $check$;\n"
        f"{unusable}{recover.END};\ndrop schema {RESTORE_MARK};\ncommit;\n"
    )


def _load(conninfo: str, folder: Path, dump: Path, before: str, after: str) -> None:
    reading = [str(folder / "pg_restore"), "--no-owner", "--no-privileges", "--file=-", str(dump)]
    # Of an error only its SQLSTATE, for the text would quote rows.
    writing = [
        str(folder / "psql"),
        "--no-psqlrc",
        "--quiet",
        "--no-password",
        "--output=/dev/null",
        "--file=-",
    ]
    settings = ("ON_ERROR_STOP=1", "VERBOSITY=sqlstate", "SHOW_CONTEXT=never")
    writing += [f"--set={setting}" for setting in settings]
    with (
        _program(writing, conninfo, stdin=subprocess.PIPE) as psql,
        _program(reading, conninfo, stdout=subprocess.PIPE) as script,
    ):
        assert psql.stdin and script.stdout
        try:
            psql.stdin.write(before.encode())
            shutil.copyfileobj(script.stdout, psql.stdin, _CHUNK)
            # Without the commit at the end nothing has happened: psql's end rolls all of it back.
            _finish(script, "pg_restore")
            psql.stdin.write(after.encode())
        except BrokenPipeError:
            pass  # psql's own status says why
        with contextlib.suppress(BrokenPipeError):
            psql.stdin.close()
        _finish(psql, "psql")


# --- programs and files ----------------------------------------------------------------------------


def _programs(pg_bin: str | None, server: int, least: int) -> tuple[Path, int]:
    """The folder of PostgreSQL's client programs, and their version: the server's own, or the next newer.

    A pg_dump must not be older than its server, a pg_restore not older than the pg_dump (`least`).
    """
    found: dict[int, Path] = {}
    for folder in [*([Path(pg_bin)] if pg_bin else []), *installed()]:
        with contextlib.suppress(OSError):
            said = subprocess.run(
                [folder / "pg_dump", "--version"], capture_output=True, text=True, check=False
            )
            version = re.search(r"\(PostgreSQL\) (\d+)", said.stdout)
            if version and os.access(folder / "psql", os.X_OK):
                found.setdefault(int(version[1]), folder)
    fit = [version for version in found if version >= max(server, least)]
    if not fit:
        here = ", ".join(map(str, sorted(found))) or "none"
        raise BackupError(
            f"This needs pg_dump, pg_restore and psql of PostgreSQL {max(server, least)} or later (found: {here})."
            f" Install them (apt install postgresql-client-{max(server, least)}) or name their folder in CAPLAI_PG_BIN."
        )
    return found[min(fit)], min(fit)


@contextlib.contextmanager
def _program(
    command: list[str], conninfo: str, *, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A client program on this database, which does not outlive us. Its password stands in no argument list."""
    us = os.getpid()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "CAPLAI_", "LC_", "LANG"))}
    for option in pq.Conninfo.parse(conninfo.encode()):
        if option.val is not None and option.envvar:
            environment[option.envvar.decode()] = option.val.decode()
    process = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**environment, "LC_ALL": "C", "PGAPPNAME": "caplai"},
        preexec_fn=lambda: end_with(us),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        process.wait()


def _finish(process: subprocess.Popen[bytes], name: str) -> None:
    """Wait for its end. Raises BackupError if it failed, with what it said (its last two lines)."""
    errors: IO[bytes] | None = process.stderr
    said = errors.read().decode(errors="replace").strip() if errors else ""
    if process.wait() != 0:
        last = " / ".join(said.splitlines()[-2:]) or f"status {process.returncode}"
        raise BackupError(f"{name} failed, and nothing was changed: {last}")


def _connect(conninfo: str) -> psycopg.Connection:
    """A connection in autocommit for which no time limit holds, as for pg_dump's and pg_restore's."""
    conn = psycopg.connect(conninfo, autocommit=True)
    conn.execute(
        "select set_config(name, '0', false) from pg_settings where name ~ '^(statement|lock|transaction|"
        "idle_in_transaction_session)_timeout$'"
    )
    return conn


def _tables(conn: psycopg.Connection) -> set[str]:
    rows = conn.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
    return {name for (name,) in rows}


def _count(conn: psycopg.Connection, table: str) -> int:
    [[rows]] = conn.execute(
        sql.SQL("select count(*) from public.{}").format(sql.Identifier(table))
    ).fetchall()
    return rows


def _peppers(conn: psycopg.Connection) -> dict[str, int]:
    rows: list[Any] = conn.execute(
        "select split_part(password, '$', 2), count(*) from login where password like 'argon2p$%' group by 1"
    ).fetchall()
    return dict(rows)


def _checksum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
