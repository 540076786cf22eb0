"""`caplai` retention: run, status."""

import sys

import click

from caplai.cli.group import Failure, load_config, local_time, main, ready


@main.group()
def retention() -> None:
    """How long what names a person is kept, and its removal. The engine does it by itself, once an hour."""


@retention.command("run")
@click.option("--dry-run", is_flag=True, help="Count what would go, row by row, and change nothing.")
def retention_run(dry_run: bool) -> None:
    """Remove now what is too old; days that the figures have not counted yet are counted before.

    It works beside a running service, in small steps; Ctrl-C stops it anywhere, and the next run goes
    on. Exit status: 0 done, 1 another run is at it (or at the figures), or something gave way to the flow and is left.
    """
    import threading

    config = load_config()
    with ready(config):
        from caplai.reports import rollups
        from caplai.service import retention as service
        from caplai.store.db import connect
        from caplai.wiring import retention_rules

        keep = retention_rules(config)
        with connect() as conn:
            if dry_run:
                for due in service.due(conn, keep):
                    click.echo(f"{due.rows:>12}  {due.says}, older than {local_time(due.before)}")
                return
            days = rollups.keep_built(conn, threading.Event())
            if days is None:
                raise Failure("An engine is counting days for the figures. Try again in a minute.")
            if days:
                click.echo(f"{len(days):>12}  days counted for the figures")
            left = False

            def report(done: service.Done) -> None:
                nonlocal left
                left = left or done.left
                click.echo(f"{done.rows:>12}  {done.says}{': not all, it is in use' if done.left else ''}")

            if not service.run(conn, keep, threading.Event(), report):
                raise Failure("Another run is at it (an engine's, perhaps). See: caplai retention status")
        sys.exit(1 if left else 0)


@retention.command("status")
def retention_status() -> None:
    """Say for each kind of data what is too old, and when the last of that had gone."""
    config = load_config()
    with ready(config):
        from caplai.service import retention as service
        from caplai.store.db import connect
        from caplai.wiring import retention_rules

        with connect() as conn:
            for name, says, before, finished_at, rows in service.status(conn, retention_rules(config)):
                last = local_time(finished_at) if finished_at else "never"
                click.echo(
                    f"{name:<10} {says}: older than {local_time(before)}; all gone: {last}; rows ever: {rows}"
                )
