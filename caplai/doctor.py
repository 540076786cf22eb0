"""`caplai doctor`: what is wrong here, and how to mend it."""

import contextlib
import os
import secrets
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import psycopg

from caplai import processes
from caplai.channels.links import Link
from caplai.channels.trial import Trial
from caplai.config import Config, ConfigError, load
from caplai.local_postgres import LocalPostgresError
from caplai.store.keyring import KeyringError
from caplai.store.leases import Leases

OLDEST_POSTGRESQL = 15
LAST = 100_000
"""Messages to phones that are looked at for failures."""
_PATIENCE = 3.0
"""Seconds to wait for a carrier's host."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `well` None: it asks or tells. `mend`: what to do about it."""

    what: str
    well: bool | None
    says: str
    mend: str = ""


def examine() -> Generator[Finding, None, None]:
    """Look at configuration, data folder, keys, database and links, in this order."""
    try:
        config = load()
    except ConfigError as error:
        for line in str(error).splitlines():
            yield Finding("configuration", False, line)
        return
    file = os.environ.get("CAPLAI_CONFIG", "caplai.toml")
    yield Finding("configuration", True, file if os.path.exists(file) else "no file, so the defaults hold")
    yield from _data_folder(config)
    yield from _site(config)
    yield from _keys(config)
    yield from _database(config)
    if not config.links:
        yield Finding("links", False, "none is configured: no SMS will come", "Add [[links]] to caplai.toml.")
    for link in config.links:
        yield _link(link)


def _data_folder(config: Config) -> Iterator[Finding]:
    try:
        config.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        says = f"{config.data_dir}: {error.strerror}"
        yield Finding("data folder", False, says, "Name another with CAPLAI_DATA_DIR.")
        return
    room = os.statvfs(config.data_dir)
    gigabytes = room.f_bavail * room.f_frsize / 1e9
    well = os.access(config.data_dir, os.W_OK) and gigabytes > 1
    mend = "" if well else "It must be writable and have a gigabyte free."
    yield Finding("data folder", well, f"{config.data_dir}, {gigabytes:.0f} GB free", mend)


def _site(config: Config) -> Iterator[Finding]:
    if config.public_url is None:
        return
    if config.public_url.startswith("https://") and not config.trusted_proxies:
        yield Finding(
            "site",
            False,
            f"{config.public_url} is https, yet no proxy is trusted: every page would redirect to itself",
            "Name the network of the proxy that ends TLS in trusted_proxies.",
        )
    else:
        yield Finding("site", True, config.public_url)


def _keys(config: Config) -> Iterator[Finding]:
    try:
        if config.keys.source is None and not config.keyring_file.exists():
            yield Finding("keys", True, f"{config.keyring_file} will be made at the first start")
            return
        keyring = config.open_keyring()
        count = len(keyring.readable())
    except (ConfigError, KeyringError, OSError) as error:
        yield Finding("keys", False, str(error))
    else:
        yield Finding("keys", True, f"{keyring.place}, {count} keys")


def _agreement(config: Config, conn: psycopg.Connection) -> Iterator[Finding]:
    """What this host's keyring is worth among the others'."""
    from caplai.service.keys import look

    keyring, overview = config.open_keyring(), look(conn, config.keys.silence)
    try:
        readable = keyring.readable()
    except (KeyringError, OSError):
        return  # said before
    bring = f"Bring {keyring.place} up to date from a host that has it; a lost one: docs/keys.md."
    well = True
    for key in overview.keys:
        what = f"the {key.kind} key {key.id}"
        if key.state in ("active", "retired") and key.token not in readable:
            well = False
            yield Finding("keys in use", False, f"this host lacks {what}", bring)
        if key.state in ("active", "retired", "waiting") and (lacking := overview.lack(key.token)):
            late = key.state != "waiting" or key.not_before < overview.now
            well = well and not late
            names = ", ".join(process.name for process in lacking)
            yield Finding(
                "keys in use",
                not late,
                f"{what} is {key.state}, and lacked by {names}",
                bring if late else "",
            )
        if key.state == "destroyed" and key.token in readable and not keyring.writable:
            yield Finding(
                "keys in use", True, f"nothing needs {what} any more: remove it from {keyring.place}"
            )
    if well:
        living = len(overview.living)
        yield Finding(
            "keys in use", True, f"readable here, and by all {living} engines and web servers that run"
        )


def _database(config: Config) -> Iterator[Finding]:
    kind = "embedded" if config.database_url is None else "CAPLAI_DATABASE_URL"
    try:
        with (
            processes.database(config) as database,
            psycopg.connect(database.conninfo, connect_timeout=5) as conn,
        ):
            major = conn.info.server_version // 10_000
            well = major >= OLDEST_POSTGRESQL
            mend = "" if well else f"caplai needs PostgreSQL {OLDEST_POSTGRESQL} or later."
            yield Finding("database", well, f"PostgreSQL {major} ({kind})", mend)
            row = conn.execute("show fsync").fetchone()
            if row is None or row[0] != "on":
                yield Finding("database", False, "fsync is off: a crash loses messages", "Set fsync = on.")
            try:
                processes.setup_django()
            except (ConfigError, KeyringError, OSError):
                yield Finding("tables", False, "cannot be looked at without keys", "Mend the keys first.")
                return
            pending = processes.pending_migrations()
            if pending:
                yield Finding(
                    "tables", False, f"{len(pending)} migrations are missing", "Run: caplai migrate"
                )
                return
            yield Finding("tables", True, "up to date")
            yield from _agreement(config, conn)
            yield _inbox(conn)
            yield _replies(conn, config)
            yield _holds(conn)
            yield _mail(conn, config)
    except LocalPostgresError as error:
        says, _, mend = str(error).partition("\n")
        yield Finding("database", False, says, mend)
    except Exception as error:
        reason = processes.trouble(error)
        if reason is None:
            raise
        mend = "Is the server running, is the address right, and may its user do this?"
        yield Finding("database", False, reason, mend if config.database_url else "")


def _inbox(conn: psycopg.Connection) -> Finding:
    row = conn.execute(
        "select count(*) filter (where error is null), count(*) filter (where error is not null),"
        " coalesce(extract(epoch from now() - min(received_at) filter (where error is null)), 0)::float"
        " from inbox where outcome is null"
    ).fetchone()
    assert row is not None
    waiting, parked, age = row
    well = age < 60 and not parked
    says = f"{waiting} messages wait, the oldest {age:.0f} s; {parked} are parked"
    mend = (
        ""
        if well
        else "Is an engine running? See its log; caplai parked lists messages that met an error of ours."
    )
    return Finding("inbox", well, says, mend)


def _holds(conn: psycopg.Connection) -> Finding:
    """Accounts whose owners said "this was not me": somebody may be at work on more than one."""
    row = conn.execute(
        "select count(*), count(*) filter (where since > now() - interval '1 day') from hold where lifted_at is null"
    ).fetchone()
    assert row is not None
    says = (
        f"{row[0]} accounts wait for the counter, {row[1]} of them since a day" if row[0] else "none is held"
    )
    return Finding(
        "reports", None if row[0] else True, says, "See: caplai accounts hold list" if row[0] else ""
    )


def _mail(conn: psycopg.Connection, config: Config) -> Finding:
    if config.mail.host is None:
        return Finding("e-mail", None, "off: no host in [mail], so owners hear of nothing by e-mail")
    row = conn.execute(
        "select count(*) filter (where state in ('ready', 'claimed')),"
        " coalesce(extract(epoch from now() - min(due_at) filter (where state in ('ready', 'claimed'))), 0)::float,"
        " count(*) filter (where state = 'failed' and settled_at > now() - interval '1 day') from mail"
    ).fetchone()
    assert row is not None
    waiting, overdue, failed = row
    well = overdue < 300
    says = f"{waiting} wait, the first since {max(overdue, 0):.0f} s; {failed} failed within a day"
    return Finding(
        "e-mail", well, says, "" if well else "Is a web server running? Its log says what the server answers."
    )


def _replies(conn: psycopg.Connection, config: Config) -> Finding:
    """What carriers would not take, of the last messages only: the table is large."""
    rows = conn.execute(
        "select link, status, count(*) from outbox where state = 'failed'"
        " and id > (select coalesce(max(id), 0) from outbox) - %s and settled_at > now() - interval '1 day'"
        " group by 1, 2 order by 3 desc",
        [LAST],
    ).fetchall()
    if not rows:
        return Finding("replies", True, f"of the last {LAST:,} none failed within a day")
    each = (f"{link} {config.answer_said(link, status)} {n}" for link, status, n in rows)
    mend = (
        "What the carrier says about these statuses decides: is the sender, or a setting of the link, wrong?"
    )
    return Finding("replies", False, f"failed within a day: {', '.join(each)}", mend)


async def try_link(
    link: Link,
    keyword: str,
    report: Callable[[Finding], None],
    *,
    timeout: float,
    word: str | None,
    statuses: Sequence[int],
    send_to: str | None,
    deliveries: bool,
) -> None:
    """Try a link out against its SMSC, unless an engine holds it. Needs the database, with Django set up."""

    def say(what: str, well: bool | None, says: str, mend: str = "") -> None:
        report(Finding(f"link {link.name}: {what}", well, says, mend))

    leases = Leases()
    try:
        if not await leases.hold(link.name, 1):
            mend = (
                "Stop every engine that may hold it (of each host, for another one takes over), try the link, and"
                " start them again. Meanwhile messages wait at the SMSC."
            )
            say("lease", False, "an engine holds it", mend)
            return
        trial = Trial(
            link,
            say,
            timeout=timeout,
            word=word or f"{keyword} THU {secrets.randbelow(9000) + 1000}",
            statuses=statuses,
            send_to=send_to,
            deliveries=deliveries,
        )
        await trial.run()
    finally:
        leases.close()


def _link(link: Link) -> Finding:
    address = f"{link.host}:{link.port}"
    try:
        with contextlib.closing(socket.create_connection((link.host, link.port), _PATIENCE)):
            return Finding(f"link {link.name}", True, f"{address} answers")
    except (OSError, UnicodeError) as error:  # the latter: no name that DNS could know
        reason = getattr(error, "strerror", None) or type(error).__name__
        mend = "Is the address right, and does the carrier let this host in?"
        return Finding(f"link {link.name}", False, f"{address}: {reason}", mend)
