"""`caplai` service: open and close."""

import click

from caplai.cli.group import load_config, main, ready


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
    with ready(load_config()):
        from caplai.store.models import Switch

        switch = Switch.objects.filter(name="service").first()
        click.echo(
            "open" if switch is None or switch.value["open"] else f"closed since {switch.changed_at:%F %T %Z}"
        )


def _switch_service(is_open: bool) -> None:
    with ready(load_config()):
        from caplai.service.operate import switch_service

        switch_service(is_open)
        click.echo("The SMS service is open." if is_open else "The SMS service is closed.")
