"""Namespaces of one's own: what runs there dies with it, and sees nobody else's processes, mounts or network."""

import os
import subprocess
import sys
from functools import cache

_MARK = "BENCH_APART"


def namespaces(*, network: bool = False) -> list[str]:
    """What to put in front of a command: it becomes the first process of a PID namespace, with mounts (and a
    network, if wanted) of its own.
    """
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    net = ["--net"] if network else []
    return ["unshare", *user, *net, "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


@cache
def why_not(*, network: bool = False) -> str | None:
    """Why namespaces of one's own cannot be had here; None if they can."""
    trial = "mount -t tmpfs none /run"
    if network:
        trial += (
            " && ip link set lo up && ip link add name bridge type bridge && ip netns add one"
            " && ip link add name port type veth peer name eth0 netns one"
        )
    try:
        done = subprocess.run(
            [*namespaces(network=network), "sh", "-c", trial],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unshare: {error}"
    return None if done.returncode == 0 else f"no namespaces here: {done.stderr.strip()}"


def go_apart(module: str, arguments: list[str], *, network: bool = False) -> int | None:
    """Run `python -m MODULE ARGUMENTS` in namespaces of its own and return its exit status; None if that is
    where we are already. Raises OSError where they cannot be had.
    """
    if os.environ.pop(_MARK, None):
        return None
    if reason := why_not(network=network):
        raise OSError(reason)
    command = [*namespaces(network=network), sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env={**os.environ, _MARK: "1"}, check=False).returncode
