"""`caplai` doctor: what is wrong, and how a new link behaves."""

import contextlib
import sys
from typing import Any

import click

from caplai.cli.group import WRONG_USE, Failure, load_config, main, ready


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

    config = load_config()
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
    with ready(config):
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
