"""The keyring as a folder that a secret store mounts, one file per key: Kubernetes secrets, Vault's agent.

    issuing.2026-11-22    pepper.a    web.a        each: base64 of 32 random bytes or more
    oidc.2026-11                                   base64 of an RSA key (signing_key.py), where there are clients

Read only: whoever fills the folder adds and removes keys. Kubernetes swaps all files at once, by a symbolic
link `..data`; they are read through it, so what is read together belongs together. Names that begin with a
dot, and those of no kind that we know, are left alone.
"""

import errno
import os
import stat
import threading
import time
from pathlib import Path

from caplai.store.keyring import ALL_KINDS, Content, KeyringError, Keys, decode

_EVERY = 1.0
"""Seconds between looks at the folder: each costs a system call per key, and every reply asks for a key."""
_ATTEMPTS = 10


class KeyFolder(Keys):
    """The keys in the files `<kind>.<id>` of `path`, in the order of their ids.

    A file is accepted if it is root's or ours and nobody else can read or change it: at most 0440, the group
    being the one that the secret store gives the service (`fsGroup`, `defaultMode: 0440`). The folder's own
    mode is not looked at: Kubernetes makes it 1777, and what strangers put there is not theirs to own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = str(path)
        self._lock = threading.Lock()
        self._seen: tuple[object, Content] | None = None
        self._next = 0.0

    def read(self) -> Content:
        seen = self._seen
        if seen is not None and time.monotonic() < self._next:
            return seen[1]
        with self._lock:
            for attempt in range(_ATTEMPTS):
                try:
                    return self._look()
                except FileNotFoundError as error:  # swapped while we looked
                    if attempt == _ATTEMPTS - 1:
                        raise KeyringError(f"{error.filename}: {error.strerror}") from None
                except OSError as error:
                    raise KeyringError(f"{error.filename or self.path}: {error.strerror}") from None
        raise AssertionError("not reached")

    def _base(self) -> Path:
        swapped = self.path / "..data"
        return Path(os.path.realpath(swapped if swapped.exists() else self.path))

    def _look(self) -> Content:
        base = self._base()
        files = {}
        for name in sorted(os.listdir(base)):
            kind, dot, key_id = name.partition(".")
            if dot and kind in ALL_KINDS:
                files[kind, key_id] = base / name
        status = {which: path.stat() for which, path in files.items()}
        signature = [
            (which, one.st_ino, one.st_mtime_ns, one.st_size, one.st_mode) for which, one in status.items()
        ]
        if self._seen is None or self._seen[0] != (base, signature):
            content: dict[str, dict[str, bytes]] = {kind: {} for kind in ALL_KINDS}
            for (kind, key_id), path in files.items():
                _check(path, status[kind, key_id])
                try:
                    content[kind][key_id] = decode(path.read_bytes())
                except ValueError:
                    raise KeyringError(f"{path} is no key: write base64 of 32 random bytes.") from None
            if self._base() != base:  # what we have listed may have been half removed
                raise FileNotFoundError(errno.ENOENT, "it changes all the time", str(self.path))
            self._seen = ((base, signature), content)
        self._next = time.monotonic() + _EVERY
        return self._seen[1]


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyringError(f"{path} is no file.")
    if status.st_uid not in (0, os.geteuid()):
        raise KeyringError(f"{path}: it must belong to root or to the service's user.")
    if status.st_mode & 0o037:
        raise KeyringError(
            f"{path}: others may read or change it. At most its group may read it:"
            " chmod 440 (in Kubernetes: defaultMode: 0440)."
        )
