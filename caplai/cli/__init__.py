"""The command line: `caplai COMMAND`, a file for each noun.

It parses, says and exits; what is done lives in the rooms below. Heavy imports wait inside the commands, so that
--help is quick.
"""

from caplai.cli import (
    accounts,
    backup,
    capacity,
    clients,
    doctor,
    figures,
    keys,
    messages,
    retention,
    run,
    service,
    simulator,
)
from caplai.cli.group import BUG, WRONG_USE, main

__all__ = [
    "BUG",
    "WRONG_USE",
    "accounts",
    "backup",
    "capacity",
    "clients",
    "doctor",
    "figures",
    "keys",
    "main",
    "messages",
    "retention",
    "run",
    "service",
    "simulator",
]
