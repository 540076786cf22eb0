"""`caplai` demo, up, engine, web, migrate: what runs."""

import contextlib
import sys
from typing import Any

import click

from caplai.cli.group import Failure, load_config, main, ready, ready_apart


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

    sys.exit(show.run(load_config(), script=script))


@main.command()
def up() -> None:
    """Run the service: database, engine and web server, with the links of caplai.toml.

    Without CAPLAI_DATABASE_URL an embedded PostgreSQL is started in the data folder. The web port
    opens once the migrations are done. A part that ends by itself is started again, and so is the
    embedded database; a part that cannot even start is a failure (exit status 1). Ctrl-C or SIGTERM
    stops all in order: what is in the windows is finished first. Ctrl-C again does not wait for that.
    """
    from caplai import processes

    config = load_config()
    processes.keep_memory_private(config)
    port = _free_port(config)
    with contextlib.suppress(processes.Stopped), ready(config, adopt=True, migrate=True) as database:
        children = processes.Children()
        try:
            for number in range(config.engines):
                children.start("engine", environment=_probes(config, number))
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


def _probes(config: Any, number: int) -> dict[str, str]:
    """Where this engine's probes listen, if they do: next to the first's there is the web server's."""
    port = config.watch.engine_port
    return {"CAPLAI_WATCH__ENGINE_PORT": str(port + 10 * number)} if port else {}


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

    config = load_config(quiet=quiet)
    processes.keep_memory_private(config)
    with ready(config):
        from django.conf import settings

        from caplai.engine import Engine
        from caplai.watch import logs

        logs.tell_of_failed_threads()
        asyncio.run(Engine(config, settings.KEYRING).run())


@main.command()
@click.option("--quiet", is_flag=True, help="Say nothing unless something is wrong.")
def web(quiet: bool) -> None:
    """Run the web server alone: sign-in pages and the app API."""
    from caplai import processes, webserver

    config = load_config(quiet=quiet)
    processes.keep_memory_private(config)
    port = _free_port(config)
    serving = webserver.Serving(
        config.address,
        port,
        config.web_threads,
        config.debuggable,
        config.log.format,
        config.log.level,
        config.log.messages,
    )
    with ready_apart(config) as database:
        if not quiet:
            click.echo(f"web: {processes.url(config.address, port)}")
        if not database.embedded:  # else we may have to stop it
            webserver.become(serving)
        webserver.serve(serving)


@main.command()
def migrate() -> None:
    """Bring the database's tables up to date (`up` does it by itself)."""
    with ready(load_config(), migrate=True):
        click.echo("The tables are up to date.")
