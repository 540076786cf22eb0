"""The command line: `caplai COMMAND`. Heavy imports wait inside the commands, so that --help is quick."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from caplai import __version__

WRONG_USE = 2


class Failure(click.ClickException):
    """A clear sentence on stderr, and an exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.__dict__["exit_code"] = status  # click reads it from the instance and declares it for the class


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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


def _config() -> Any:
    from caplai.config import ConfigError, load

    try:
        return load()
    except ConfigError as error:
        raise Failure(f"The configuration cannot be used.\n{error}", WRONG_USE) from None


@contextlib.contextmanager
def _ready(config: Any, *, adopt: bool = False, migrate: bool | None = None) -> Iterator[None]:
    """Inside: the database runs, Django is loaded, the tables are up to date.

    `migrate` None: the embedded server is brought up to date, another one must be (`caplai migrate`).
    """
    import psycopg

    from caplai import processes
    from caplai.local_postgres import LocalPostgresError
    from caplai.store.keyring import KeyringError

    try:
        with processes.database(config, adopt=adopt):
            processes.setup_django()
            from django.db.utils import OperationalError

            try:
                if migrate or (migrate is None and config.database_url is None):
                    processes.migrate()
                elif processes.pending_migrations():
                    raise Failure("The database's tables are not up to date. Run: caplai migrate")
                yield
            except (OperationalError, psycopg.OperationalError) as error:
                raise Failure(
                    f"The database cannot be used: {_first_line(error)}. See: caplai doctor"
                ) from None
    except (LocalPostgresError, KeyringError) as error:
        raise Failure(str(error)) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


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

    config = _config()
    try:
        sys.exit(show.run(config, script=script))
    except show.Refused as error:
        raise Failure(str(error), WRONG_USE) from None


@main.command()
def up() -> None:
    """Run the service: database, engine and web server, with the links of caplai.toml.

    Without CAPLAI_DATABASE_URL an embedded PostgreSQL is started in the data folder. The web port
    opens once the migrations are done. A part that ends by itself is started again. Ctrl-C or
    SIGTERM stops all in order: what is in the windows is finished first.
    """
    from caplai import processes

    config = _config()
    port = _free_port(config)
    with (
        contextlib.suppress(processes.Stopped),
        processes.stoppable(),
        _ready(config, adopt=True, migrate=True),
    ):
        children = processes.Children()
        try:
            children.start("engine")
            children.start("web", environment={"CAPLAI_PORT": str(port)})
            if processes.wait_for_port(config.address, port, 60):
                click.echo(f"caplai is up: {config.public_url or _url(config.address, port)}")
            if not config.links:
                click.echo(
                    "No links to carriers are configured: no SMS will come. See docs/configuration.md."
                )
            processes.tend_until_stopped(children)
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


def _url(address: str, port: int) -> str:
    return f"http://{f'[{address}]' if ':' in address else address}:{port}/"


@main.command()
@click.option("--quiet", is_flag=True, help="Say nothing unless something is wrong.")
def engine(quiet: bool) -> None:
    """Run the engine alone: the links to the carriers, and the deciding of messages."""
    import asyncio

    from caplai.store.keyring import KeyringFile

    config = _config()
    with _ready(config):
        from caplai.engine import Engine

        keyring = KeyringFile(config.keyring_file)
        if quiet:
            logging.getLogger().setLevel(logging.WARNING)
        asyncio.run(Engine(config, keyring).run())


@main.command()
@click.option("--quiet", is_flag=True, help="Say nothing unless something is wrong.")
def web(quiet: bool) -> None:
    """Run the web server alone: sign-in pages and the app API."""
    config = _config()
    port = _free_port(config)
    with _ready(config):
        from granian import Granian
        from granian.constants import Interfaces
        from granian.log import LogLevels

        if not quiet:
            click.echo(f"web: {_url(config.address, port)}")
        Granian(
            "caplai.wsgi:application",
            address=config.address,
            port=port,
            interface=Interfaces.WSGI,
            workers=1,
            blocking_threads=config.web_threads,
            websockets=False,
            log_level=LogLevels.error,
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

    The first line names the columns. Phones may be written as people write them here, the eleven
    digits from before 2018 included; state is pending, approved or closed. Good rows are taken,
    each bad one is reported with its line and reason. The same file twice changes nothing.

    Exit status: 0 all rows were good, 1 some were refused, 2 wrong use (nothing was changed).
    """
    config = _config()
    with _ready(config):
        from caplai.service.register import WrongFile, import_accounts
        from caplai.store.db import connect

        def lines() -> Iterator[str]:
            bar: Any
            with click.progressbar(length=_size(file), label="Importing", file=sys.stderr) as bar:
                for line in file:
                    bar.update(len(line))
                    yield line.decode("utf-8", "surrogateescape")

        try:
            with connect() as conn:
                done = import_accounts(conn, lines(), update_phones=update_phones)
        except WrongFile as error:
            raise Failure(f"{file.name}: {error}", WRONG_USE) from None
        for row in done.bad:
            click.echo(f"{file.name}:{row.line}: {row.reason}", err=True)
        click.echo(
            f"{done.added} added, {done.changed} changed, {done.unchanged} unchanged, {len(done.bad)} refused"
        )
        if done.phones_kept:
            click.echo(
                f"{done.phones_kept} accounts have another phone in the file; it was not changed"
                " (--update-phones changes it).",
                err=True,
            )
        if done.bad:
            sys.exit(1)


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size or 1  # a pipe has no size; the bar needs one


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


@main.command()
@click.option("--smpp-port", default=2775, show_default=True, help="Where ESMEs bind; 0: any free port.")
@click.option("--http-port", default=8001, show_default=True, help="The virtual phones; 0: any free port.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--system-id", default="caplai", show_default=True, help="Who may bind.")
@click.option("--password", default="secret", show_default=True, help="With which password.")
@click.option("--short-code", default="8079", show_default=True, help="The short code that phones text to.")
@click.option("--price", default=1000, show_default=True, help="What a message costs, in đồng.")
@click.option(
    "--citizens",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='A JSON list of {"name", "phone", "code"} to choose from on the page.',
)
@click.option("--quiet", is_flag=True, help="Say nothing unless something is wrong.")
def simulator(
    smpp_port: int,
    http_port: int,
    host: str,
    system_id: str,
    password: str,
    short_code: str,
    price: int,
    citizens: Path | None,
    quiet: bool,
) -> None:
    """Run an SMSC and its phones: a carrier to try things with.

    An ESME (such as `caplai engine`) binds to the SMPP port; the page on the other port is a phone.
    """
    import asyncio

    from caplai.simulator import SimulatorConfig, run

    config = SimulatorConfig(
        smpp_host=host,
        smpp_port=smpp_port,
        http_host=host,
        http_port=http_port,
        system_id=system_id,
        password=password,
        short_code=short_code,
        price=price,
        citizens_file=citizens,
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
def doctor() -> None:
    """Check configuration, database, keys and links, and say how to mend what is wrong.

    Exit status: 0 all is well, 1 something is wrong.
    """
    from caplai.doctor import examine

    sick = False
    for finding in examine():
        sick = sick or not finding.well
        click.echo(f"{'ok ' if finding.well else 'BAD'}  {finding.what}: {finding.says}")
        if finding.mend:
            click.echo(f"     {finding.mend}")
    sys.exit(1 if sick else 0)


@main.group()
def keys() -> None:
    """The keyring: what issued passwords are derived from, and what protects the chosen ones."""


@keys.command("list")
def keys_list() -> None:
    """Show the keys' ids (never the keys), which is active, and what still needs each."""
    config = _config()
    with _ready(config):
        from caplai.service.operate import keys_in_use
        from caplai.store.keyring import KINDS, KeyringFile

        keyring = KeyringFile(config.keyring_file)
        in_use = keys_in_use()
        click.echo(f"{'kind':<9} {'id':<16} {'':<8} needed by")
        for kind in KINDS:
            ring = keyring.ring(kind)
            for key in sorted(ring.keys):
                active = "active" if key == ring.active else ""
                click.echo(f"{kind:<9} {key:<16} {active:<8} {in_use.get((kind, key), '')}".rstrip())


@keys.command("rotate")
@click.argument("kind", type=click.Choice(["issuing", "pepper", "web"]), default="issuing")
def keys_rotate(kind: str) -> None:
    """Make a new key of this kind the active one; the old ones stay readable.

    \b
    issuing  new cases derive their passwords from it (the default)
    pepper   passwords chosen from now on are protected by it
    web      cookies and sessions are signed with it
    """
    config = _config()
    with _ready(config):
        from caplai.store.keyring import KeyringFile

        click.echo(f"The active {kind} key is now {KeyringFile(config.keyring_file).rotate(kind)}.")
