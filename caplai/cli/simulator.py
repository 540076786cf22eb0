"""`caplai` simulator: a carrier to try things with."""

from pathlib import Path
from typing import Any

import click

from caplai.cli.group import WRONG_USE, Failure, main


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
