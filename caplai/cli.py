"""The command line: `caplai COMMAND`. Heavy imports wait inside the commands, so that --help is quick."""

import contextlib
import errno
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

import click

from caplai import __version__

WRONG_USE = 2
BUG = 70  # EX_SOFTWARE of sysexits(3)


class Failure(click.ClickException):
    """A clear sentence on stderr, and an exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.__dict__["exit_code"] = status  # click reads it from the instance and declares it for the class


class _Commands(click.Group):
    """All that goes wrong in a command becomes a clear sentence and an exit status here."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:  # Stopped, which knows whether it was SIGTERM, or Python's own
            raise click.exceptions.Exit(getattr(stop, "status", 130)) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # `| head`: click knows what to do
                raise
            raise _sentence(error) from None


def _sentence(error: Exception) -> Failure:
    """What to tell about it. Of a bug class and place only, for its text may quote a person's data or a secret."""
    from caplai import demo, processes
    from caplai.backup import BackupError
    from caplai.config import ConfigError
    from caplai.local_postgres import LocalPostgresError
    from caplai.processes import Blocked, ChildFailed
    from caplai.store.keyring import KeyringError
    from caplai.watch import logs

    if isinstance(error, ConfigError):
        return Failure(f"The configuration cannot be used.\n{error}", WRONG_USE)
    if isinstance(error, demo.Refused):
        return Failure(str(error), WRONG_USE)
    if isinstance(error, BackupError | Blocked | ChildFailed | KeyringError | LocalPostgresError):
        return Failure(str(error))
    if reason := processes.trouble(error):
        return Failure(f"The database cannot be used: {reason}. See: caplai doctor")
    if isinstance(error, OSError) and error.filename is not None:
        return Failure(f"{error.filename}: {error.strerror}.")
    return Failure(f"This is a bug in caplai. Where it happened:\n{logs.describe(error)}", BUG)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("--config", "config_file", type=click.Path(dir_okay=False), help="The configuration file.")
@click.version_option(__version__, prog_name="caplai")
def main(config_file: str | None) -> None:
    """Give people back the password of their public-service account, by the phone they registered.

    \b
    caplai demo      see it work: sample citizens, a virtual phone, nothing to configure
    caplai up        run it: database, engine and web server, with the links of caplai.toml
    caplai doctor    what is wrong, and how to mend it

    Settings come from caplai.toml here (or --config FILE, or CAPLAI_CONFIG), and the environment
    goes over them: CAPLAI_PORT, CAPLAI_SERVICE__KEYWORD, ... All of them: docs/configuration.md.
    """
    if config_file:
        os.environ["CAPLAI_CONFIG"] = str(Path(config_file).absolute())


def _config(*, quiet: bool = False) -> Any:
    """The configuration; `quiet`: with only warnings logged, here and in whatever process we start."""
    from caplai.config import load

    if quiet:
        os.environ["CAPLAI_LOG__LEVEL"] = "warning"
    return load()


@contextlib.contextmanager
def _ready(config: Any, *, adopt: bool = False, migrate: bool | None = None) -> Iterator[Any]:
    """Inside: the database (which is yielded) runs, Django is loaded, the tables are up to date.

    `migrate` None: the embedded server is brought up to date, another one must be (`caplai migrate`).
    """
    from caplai import processes

    with processes.database(config, adopt=adopt) as database:
        processes.setup_django()
        if processes.restore_is_unfinished():
            raise Failure(
                "A restore into this database has begun and was not finished. Run it again (caplai restore),"
                " or keep what is in it now: caplai restore --after-the-fact"
            )
        if migrate or (migrate is None and config.database_url is None):
            processes.migrate()
        elif processes.pending_migrations():
            raise Failure("The database's tables are not up to date. Run: caplai migrate")
        yield database


@main.command()
@click.option("--script", is_flag=True, help="Without a browser: one citizen does it all, and it is printed.")
def demo(script: bool) -> None:
    """Show it working, with 1,000 sample citizens and an SMSC simulator.

    Starts an embedded database, the simulator, the engine and the web server in a data folder of
    their own (`demo` in CAPLAI_DATA_DIR), and prints two addresses: a virtual phone and the
    sign-in page. Ctrl-C stops all of it.

    With --script one citizen texts, gets the reply, signs in, chooses a password and signs in with
    it; the exit status is 0 only if all of that happened.
    """
    from caplai import demo as show

    sys.exit(show.run(_config(), script=script))


@main.command()
def up() -> None:
    """Run the service: database, engine and web server, with the links of caplai.toml.

    Without CAPLAI_DATABASE_URL an embedded PostgreSQL is started in the data folder. The web port
    opens once the migrations are done. A part that ends by itself is started again, and so is the
    embedded database; a part that cannot even start is a failure (exit status 1). Ctrl-C or SIGTERM
    stops all in order: what is in the windows is finished first. Ctrl-C again does not wait for that.
    """
    from caplai import processes

    config = _config()
    processes.keep_memory_private(config)
    port = _free_port(config)
    with contextlib.suppress(processes.Stopped), _ready(config, adopt=True, migrate=True) as database:
        children = processes.Children()
        try:
            children.start("engine")
            children.start("web", environment={"CAPLAI_PORT": str(port)})
            children.wait_for_port(config.address, port, 60)
            click.echo(f"caplai is up: {config.public_url or processes.url(config.address, port)}")
            if not config.links and not config.aggregators:
                click.echo(
                    "No links to carriers are configured: no SMS will come. See docs/configuration.md."
                )
            processes.tend_until_stopped(children, database)
        finally:
            children.stop()


def _free_port(config: Any) -> int:
    from caplai import processes

    try:
        return processes.free_port(config.address, config.port)
    except OSError as error:
        raise Failure(
            f"Cannot listen on {config.address}:{config.port}: {error.strerror}."
            " Stop what holds it, or choose another with CAPLAI_PORT."
        ) from None


@main.command()
@click.option("--quiet", is_flag=True, help="Say nothing unless something is wrong.")
def engine(quiet: bool) -> None:
    """Run the engine alone: the links to the carriers, and the deciding of messages."""
    import asyncio

    from caplai import processes

    config = _config(quiet=quiet)
    processes.keep_memory_private(config)
    with _ready(config):
        from django.conf import settings

        from caplai.engine import Engine
        from caplai.watch import logs

        logs.tell_of_failed_threads()
        asyncio.run(Engine(config, settings.KEYRING).run())


@main.command()
@click.option("--quiet", is_flag=True, help="Say nothing unless something is wrong.")
def web(quiet: bool) -> None:
    """Run the web server alone: sign-in pages and the app API."""
    from caplai import processes

    config = _config(quiet=quiet)
    processes.keep_memory_private(config)
    port = _free_port(config)
    with _ready(config):
        from django.db import connection
        from granian import Granian
        from granian.constants import Interfaces
        from granian.log import LogLevels

        from caplai.watch import logs

        logs.tell_of_failed_threads()
        if not quiet:
            click.echo(f"web: {processes.url(config.address, port)}")
        connection.close()  # the worker is a fork of us, and a connection is for one process
        Granian(
            "caplai.wsgi:application",
            address=config.address,
            port=port,
            interface=Interfaces.WSGI,
            workers=1,
            blocking_threads=config.web_threads,
            websockets=False,
            log_level=LogLevels.error,
            log_dictconfig={"loggers": {"_granian": {}}},  # with no handler of its own: by ours
            respawn_failed_workers=True,
        ).serve()


@main.command()
def migrate() -> None:
    """Bring the database's tables up to date (`up` does it by itself)."""
    with _ready(_config(), migrate=True):
        click.echo("The tables are up to date.")


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

    The whole file is read before anything is changed, then stored piece by piece, beside a running
    service. Stopped by Ctrl-C or a crash, what was stored stays and is whole; the same command
    again stores the rest.

    Exit status: 0 all rows were good, 1 some were refused, 2 wrong use (nothing was changed).
    """
    config = _config()
    with _ready(config):
        from caplai.service.register import BadRow, WrongFile, import_accounts, read_lines
        from caplai.store.db import connect

        over_the_bar = "\r\x1b[K" if sys.stderr.isatty() else ""

        def refused(row: BadRow) -> None:
            click.echo(f"{over_the_bar}{file.name}:{row.line}: {row.reason}", err=True)

        def lines() -> Generator[str, None, None]:
            with _bar("Reading", os.fstat(file.fileno()).st_size) as bar:
                yield from read_lines(file, bar.update)

        storing: Any = None

        def stored(rows: int, total: int) -> None:
            nonlocal storing
            storing = storing or bars.enter_context(_bar("Storing", total))
            storing.update(rows)

        try:
            with contextlib.closing(lines()) as source, contextlib.ExitStack() as bars, connect() as conn:
                done = import_accounts(
                    conn, source, update_phones=update_phones, report=refused, stored=stored
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


def _bar(label: str, length: int) -> Any:
    """A progress bar on stderr, drawn a thousand times at most; none where the length is unknown (a pipe)."""
    steps = max(1, length // 1000)
    return click.progressbar(
        length=length, label=label, file=sys.stderr, hidden=not length, update_min_steps=steps
    )


@main.group()
def service() -> None:
    """Open or close the SMS service."""


@service.command("close")
def service_close() -> None:
    """Answer every message with where to go instead."""
    _switch_service(False)


@service.command("open")
def service_open() -> None:
    """Re-issue passwords again."""
    _switch_service(True)


@service.command("status")
def service_status() -> None:
    """Say whether it is open."""
    with _ready(_config()):
        from caplai.store.models import Switch

        switch = Switch.objects.filter(name="service").first()
        click.echo(
            "open" if switch is None or switch.value["open"] else f"closed since {switch.changed_at:%F %T %Z}"
        )


def _switch_service(is_open: bool) -> None:
    with _ready(_config()):
        from caplai.service.operate import switch_service

        switch_service(is_open)
        click.echo("The SMS service is open." if is_open else "The SMS service is closed.")


def _list_scenarios(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from caplai.simulator.scenarios import CATALOGUE, NUMBERS

    click.echo("Scenarios, each with its usual value:\n")
    for scenario in CATALOGUE.values():
        click.echo(f"  {scenario.name}{f'={scenario.usual}' if scenario.usual else ''}\n      {scenario.en}")
    click.echo("\nNumbers that nobody owns, each with its scenario for itself alone:\n")
    for phone, written in NUMBERS.items():
        click.echo(f"  +{phone}  {written}")
    context.exit()


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@main.command()
@click.option("--smpp-port", default=2775, show_default=True, help="Where ESMEs bind; 0: any free port.")
@click.option("--http-port", default=8001, show_default=True, help="The virtual phones; 0: any free port.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--system-id", default="caplai", show_default=True, help="Who may bind.")
@click.option("--password", default="secret", show_default=True, help="With which password.")
@click.option("--short-code", default="8079", show_default=True, help="The short code that phones text to.")
@click.option("--keyword", default="BH", show_default=True, help="The agency's keyword that they begin with.")
@click.option("--command", "command_word", default="MK", show_default=True, help="The word after it.")
@click.option("--price", default=1000, show_default=True, help="What a message costs, in đồng.")
@click.option(
    "--citizens",
    type=_FILE,
    help='A JSON list of {"name", "phone", "code"} to choose from on the page.',
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Something that the carrier does wrong from the start. Repeat it for more.",
)
@click.option(
    "--list-scenarios",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_scenarios,
    help="List the scenarios and the numbers that have one, and exit.",
)
@click.option("--tls-cert", type=_FILE, help="Let ESMEs come by TLS, with this certificate (PEM).")
@click.option("--tls-key", type=_FILE, help="Its key, unless the same file holds it.")
@click.option("--quiet", is_flag=True, help="Say nothing unless something is wrong.")
def simulator(
    smpp_port: int,
    http_port: int,
    host: str,
    system_id: str,
    password: str,
    short_code: str,
    keyword: str,
    command_word: str,
    price: int,
    citizens: Path | None,
    scenarios: tuple[str, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    quiet: bool,
) -> None:
    """Run an SMSC and its phones: a carrier to try things with.

    An ESME (such as `caplai engine`) binds to the SMPP port; the page on the other port is a phone.
    What goes wrong with carriers can be switched on with --scenario, on the page, and by numbers that
    nobody owns; docs/simulator.md tells it all.
    """
    import asyncio

    from caplai.simulator import SimulatorConfig, run

    if tls_key and not tls_cert:
        raise Failure("--tls-key needs --tls-cert.", WRONG_USE)
    config = SimulatorConfig(
        smpp_host=host,
        smpp_port=smpp_port,
        http_host=host,
        http_port=http_port,
        system_id=system_id,
        password=password,
        short_code=short_code,
        keyword=keyword,
        command=command_word,
        price=price,
        citizens_file=citizens,
        scenarios=scenarios,
        tls_cert=tls_cert,
        tls_key=tls_key,
    )

    def ready(running: Any) -> None:
        if not quiet:
            click.echo(f"SMSC on {host}:{running.smpp_port}, virtual phones on {running.http_url}")

    try:
        asyncio.run(run(config, ready))
    except OSError as error:
        raise Failure(
            f"Cannot listen: {error.strerror}. Choose other ports with --smpp-port, --http-port."
        ) from None
    except ValueError as error:
        raise Failure(str(error), WRONG_USE) from None


@main.command()
@click.option("--link", "name", metavar="NAME", help="Try this link out against the carrier's SMSC.")
@click.option(
    "--send-to", metavar="PHONE", help="With --link: send two texts there, look at ids and receipts."
)
@click.option(
    "--status",
    "statuses",
    multiple=True,
    metavar="STATUS",
    help="With --link: try this status only (ESME_RX_T_APPN, 0x64); may be given several times.",
)
@click.option(
    "--word", metavar="TEXT", help="With --link: what to text, if the carrier routes by another keyword."
)
@click.option("--no-delivery", is_flag=True, help="With --link: nobody is asked to text.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=120.0,
    show_default=True,
    help="With --link: seconds to wait for each text, its return, and receipts.",
)
def doctor(
    name: str | None,
    send_to: str | None,
    statuses: tuple[str, ...],
    word: str | None,
    no_delivery: bool,
    timeout: float,
) -> None:
    """Check configuration, database, keys and links, and say how to mend what is wrong.

    With --link NAME it binds that link and tries it out, at onboarding or in a maintenance window
    (engines must be stopped; messages of other people are refused for now and wait at the SMSC):
    who the SMSC is and how quick, its certificate, what ids and receipts it gives (--send-to), and
    after which refusal it delivers a message again. For the last it asks somebody to text a word
    from a phone, and prints the line for caplai.toml. Nothing is stored.

    Exit status: 0 all is well, 1 something is wrong, 2 wrong use.
    """
    sick = False

    def report(finding: Any) -> None:
        nonlocal sick
        sick = sick or finding.well is False
        mark = {True: "ok ", False: "BAD", None: "-->"}[finding.well]
        click.echo(f"{mark}  {finding.what}: {finding.says}")
        for line in finding.mend.splitlines():
            click.echo(f"     {line}")

    if name is not None:
        _try_link(name, report, send_to, statuses, word, not no_delivery, timeout)
    elif send_to or statuses or word or no_delivery:
        raise Failure("--send-to, --status, --word and --no-delivery need --link NAME.", WRONG_USE)
    else:
        from caplai.doctor import examine

        with contextlib.closing(examine()) as findings:
            for finding in findings:
                report(finding)
    sys.exit(1 if sick else 0)


def _try_link(
    name: str,
    report: Any,
    send_to: str | None,
    statuses: tuple[str, ...],
    word: str | None,
    deliveries: bool,
    timeout: float,
) -> None:
    import asyncio

    from caplai.domain import msisdn
    from caplai.smpp.pdu import parse_status

    config = _config()
    link = next((link for link in config.links if link.name == name), None)
    if link is None:
        names = ", ".join(link.name for link in config.links) or "none"
        raise Failure(f"There is no link {name}; configured are: {names}.", WRONG_USE)
    phone = None if send_to is None else msisdn.parse(send_to)
    if send_to is not None and phone is None:
        raise Failure("--send-to must be a phone number, such as 0327654686.", WRONG_USE)
    try:
        wanted = [parse_status(status) for status in statuses]
    except ValueError as error:
        raise Failure(f"--status: {error}.", WRONG_USE) from None
    if 0 in wanted:
        raise Failure("--status: ESME_ROK is no refusal.", WRONG_USE)
    with _ready(config):
        from caplai.doctor import try_link

        asyncio.run(
            try_link(
                link,
                config.service.keyword,
                report,
                timeout=timeout,
                word=word,
                statuses=wanted,
                send_to=None if phone is None else msisdn.digits(phone),
                deliveries=deliveries,
            )
        )


@main.command()
@click.option(
    "--retry", is_flag=True, help="Let them be decided after all, for instance by a mended version."
)
def parked(retry: bool) -> None:
    """List the messages that caplai's own code failed on, which were set aside so that others go on.

    Each has got no answer yet. The engine's log says where the code failed.
    """
    with _ready(_config()):
        from caplai.store.db import connect
        from caplai.store.queues import list_parked, unpark

        with connect() as conn:
            if retry:
                click.echo(f"{unpark(conn)} messages will be decided again.")
                return
            for message, received_at, error in list_parked(conn):
                click.echo(f"{message:>12}  {received_at:%F %T %Z}  {error}")


@main.command()
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True, help="How many at most.")
def failed(count: int) -> None:
    """List the latest messages to phones that were given up: refused for good, or tried for too long.

    Each line: its id, when, link, kind, the carrier's last answer, and how often it was tried. Whoever
    waits for it can text again: the password of an open case is the same.
    """
    config = _config()
    with _ready(config):
        from caplai.store.db import connect
        from caplai.store.queues import list_failed

        with connect() as conn:
            for message, when, link, kind, status, attempts in list_failed(conn, count):
                said = config.answer_said(link, status)
                click.echo(f"{message:>12}  {when:%F %T %Z}  {link}  {kind}  {said}  {attempts}")


@main.group()
def keys() -> None:
    """The keyring: what issued passwords are derived from, and what protects the chosen ones."""


@keys.command("list")
def keys_list() -> None:
    """Show the keys' ids (never the keys), what each is doing, and what still needs it.

    \b
    active    the one of its kind that is used for what is new
    waiting   becomes active at that time, once every engine and web server can read it
    retired   used for nothing new; it is destroyed by itself when nothing needs it any more
    new       no engine or web server has noticed it yet
    """
    config = _config()
    keyring = config.open_keyring()
    with _ready(config):
        from caplai.service.keys import in_use, look
        from caplai.store.db import connect

        with connect() as conn:
            overview, used = look(conn, config.keys.silence), in_use(conn)
        readable = keyring.readable()
        known = {key.token for key in overview.keys}
        rows = [(key.kind, key.id, key.state, key.token) for key in overview.keys]
        rows += [(one.kind, one.id, "new", one) for one in sorted(readable - known, key=str)]
        begun = {kind for kind, _, state, _ in rows if state == "active"}
        click.echo(f"{'kind':<9} {'id':<16} {'':<9} needed by")
        for kind, key_id, state, one in sorted(rows, key=lambda row: row[0]):
            if state == "destroyed" and one not in readable:
                continue
            if state == "new" and kind not in begun and keyring.first(kind) == key_id:
                state = "active"  # as soon as anybody starts
            remarks = [used.get((kind, key_id), "")]
            if state == "waiting":
                since = next(key.not_before for key in overview.keys if key.token == one)
                remarks.append(f"not before {since.astimezone():%F %T}")
            if state in ("active", "waiting", "retired"):
                lacking = [process.name for process in overview.lack(one)]
                remarks += [f"lacked by {', '.join(lacking)}"] if lacking else []
                remarks += ["NOT READABLE HERE"] if one not in readable else []
            if state == "destroyed":
                remarks.append(f"remove it from {keyring.place}")
            click.echo(f"{kind:<9} {key_id:<16} {state:<9} {'; '.join(filter(None, remarks))}".rstrip())


@keys.command("rotate")
@click.argument("kind", type=click.Choice(["issuing", "pepper", "web"]), default="issuing")
@click.option("--now", is_flag=True, help="Wait for nobody: for a key that others may know.")
def keys_rotate(kind: str, now: bool) -> None:
    """Add a key of this kind, which becomes the active one when every host can read it.

    \b
    issuing  new cases derive their passwords from it (the default)
    pepper   passwords chosen from now on are protected by it
    web      cookies and sessions are signed with it

    It becomes active once a time has passed (keys.lead, five minutes) and every running engine and
    web server has said that it can read it; nothing is to be restarted. Where hosts have keyrings of
    their own, copy it to them now. `caplai keys list` shows who still lacks it. The old key stays
    readable, and is destroyed by itself when nothing needs it any more.

    With --now it is active at once. A host that lacks it signs nobody in and decides no message until
    it has it. What the old key protects goes on until it ends: `caplai keys destroy ID --end-cases`
    ends the open cases of a compromised issuing key.
    """
    config = _config()
    keyring = config.open_keyring()
    with _ready(config):
        from caplai.service.keys import look, rotate
        from caplai.store.db import connect

        with connect() as conn:
            key = rotate(conn, keyring, kind, config.keys.lead, config.keys.silence, now=now)
            lacking = look(conn, config.keys.silence).lack(key.token)
        if now:
            click.echo(f"The active {kind} key is now {key.id}.")
        else:
            click.echo(
                f"The new {kind} key {key.id} becomes active at {key.not_before.astimezone():%T} or later, when every"
                " engine and web server can read it."
            )
        for process in lacking:
            click.echo(f"It cannot be read yet by: {process.kind} {process.name}")


@keys.command("destroy")
@click.argument("key_id", metavar="[ID]", required=False)
@click.option("--end-cases", is_flag=True, help="End the open cases of this issuing key first.")
def keys_destroy(key_id: str | None, end_cases: bool) -> None:
    """Destroy the retired keys that nothing needs any more (all of them, or this one).

    The engine does so by itself; this does it now, and says what still needs the others. Every host
    removes a destroyed key from its keyring within seconds, if it may write there.

    With --end-cases the issued passwords of this key end at once, for a key that is lost or known to
    others; whoever was sent one texts again. The active key must be rotated first.

    Exit status: 0 it is done, 1 something still needs the key.
    """
    if end_cases and key_id is None:
        raise Failure("Which key? --end-cases needs an id; see: caplai keys list", WRONG_USE)
    config = _config()
    keyring = config.open_keyring()
    with _ready(config):
        from caplai.service import keys
        from caplai.store.db import connect

        with connect() as conn:
            overview = keys.look(conn, config.keys.silence)
            known = [key for key in overview.keys if key_id in (None, key.id)]
            if key_id is not None and (not known or known[0].state != "retired"):
                state = known[0].state if known else "not known"
                raise Failure(f"The key {key_id} is {state}; only a retired one is destroyed.")
            if end_cases:
                if known[0].kind != "issuing":
                    raise Failure(f"{key_id} is no issuing key: it has no cases.", WRONG_USE)
                click.echo(f"{keys.end_cases(conn, known[0].id)} open cases have been ended.")
            kept = 0
            for key in known:
                if key.state != "retired":
                    continue
                lost = key_id is not None and key.kind == "web" and overview.is_lost(key.token)
                if not lost and (why := keys.still_needed(conn, key, config.signin.session_age)):
                    kept += 1
                    click.echo(f"{key.kind} {key.id} is still needed by {why}.")
                elif keys.end(conn, key):
                    click.echo(f"{key.kind} {key.id} is destroyed.")
            overview = keys.look(conn, config.keys.silence)
        keyring.obey(overview.agreed())
        gone = {key.token for key in overview.keys if key.state == "destroyed"} & keyring.readable()
        if gone and keyring.writable:
            keyring.remove(gone)
        else:
            for one in sorted(gone, key=str):
                click.echo(f"Remove the {one.kind} key {one.id} from {keyring.place}.")
        if key_id is not None and kept:
            sys.exit(1)


import caplai.cli_operate  # noqa: E402,F401 - its commands put themselves into main
