"""A network of hosts with addresses of their own: network namespaces on a bridge. Only for a process apart."""

import contextlib
import ctypes
import os
import subprocess
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_setns = ctypes.CDLL(None, use_errno=True).setns  # Python has it from 3.12 on


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Lan:
    """The switch. We stand on it ourselves, as 10.79.0.254."""

    def __init__(self):
        subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)  # where `ip netns` notes names
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "name", "switch", "type", "bridge")
        _ip("address", "add", "10.79.0.254/24", "dev", "switch")
        _ip("link", "set", "switch", "up")
        self.hosts = []

    def host(self, name):
        host = Host(name, f"10.79.0.{len(self.hosts) + 1}")
        self.hosts.append(host)
        return host


class Host:
    """A host on the switch: `before` stands in front of a command that is to run on it."""

    def __init__(self, name, address):
        self.name, self.address = name, address
        self.before = ("ip", "netns", "exec", name)
        self._port = f"to-{name}"
        _ip("netns", "add", name)
        _ip("link", "add", "name", self._port, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", self._port, "master", "switch", "up")
        _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")

    @property
    def octets(self):
        """What the host has sent and received so far."""
        for line in Path("/proc/net/dev").read_text("ascii").splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == self._port:
                received, sent = (int(counters.split()[field]) for field in (0, 8))
                return received, sent  # the switch receives what the host sends
        raise LookupError(self._port)

    def cut(self):
        """Pull the plug out of the switch: nothing gets through, and nobody is told."""
        _ip("link", "set", self._port, "down")

    def mend(self):
        _ip("link", "set", self._port, "up")

    @contextlib.contextmanager
    def inside(self):
        """Sockets and processes that this thread makes meanwhile are the host's."""
        ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        theirs = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            assert _setns(theirs, _CLONE_NEWNET) == 0
            yield
        finally:
            assert _setns(ours, _CLONE_NEWNET) == 0
            os.close(ours)
            os.close(theirs)
