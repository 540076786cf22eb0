"""What the commands share: the group they belong to, what they need to begin, and how they fail."""

import contextlib
import errno
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

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


def load_config(*, quiet: bool = False) -> Any:
    """The configuration; `quiet`: with only warnings logged, here and in whatever process we start."""
    from caplai.config import load

    if quiet:
        os.environ["CAPLAI_LOG__LEVEL"] = "warning"
    return load()


@contextlib.contextmanager
def ready(config: Any, *, adopt: bool = False, migrate: bool | None = None) -> Iterator[Any]:
    """Inside: the database (which is yielded) runs, Django is loaded, the tables are up to date.

    `migrate` None: the embedded server is brought up to date, another one must be (`caplai migrate`).
    """
    from caplai import processes

    with processes.database(config, adopt=adopt) as database:
        _prepare(config, migrate)
        yield database


@contextlib.contextmanager
def ready_apart(config: Any) -> Iterator[Any]:
    """As `ready`, but Django is not loaded: the look at the tables is another process's, which ends after it.

    For who does nothing but tend another process, all the while that this one serves.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from caplai import processes

    with processes.database(config) as database:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as apart:
            apart.submit(_prepare_or_say, config).result()
        yield database


def _prepare(config: Any, migrate: bool | None) -> None:
    from caplai import processes

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


def _prepare_or_say(config: Any) -> None:
    """What went wrong, said here: of an error the cause does not come along to another process."""
    try:
        _prepare(config, None)
    except click.ClickException:
        raise
    except Exception as error:
        raise _sentence(error) from None


def local_time(at: datetime) -> str:
    """As people here read it. Django must be loaded."""
    from django.utils import timezone

    return f"{timezone.localtime(at):%F %T}"
