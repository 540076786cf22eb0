"""The keyring file: issuing keys, peppers and the web's signing key, outside the database, mode 0600.

    {"issuing": {"active": "k2026-11-22a", "keys": {"k2026-11-22a": "<base64 of 32 bytes>"}},
     "pepper": {...}, "web": {...}}

Several processes read it, `caplai keys` writes it (a new file renamed over the old one). A running process
sees the change at its next look.
"""

import base64
import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from caplai.domain.issuing import Keyring

KINDS = ("issuing", "pepper", "web")
"""Passwords that are issued; passwords that people choose; cookies and sessions."""


class KeyringError(Exception):
    """The keyring cannot be used; the text says why and how to mend it. Never holds a key."""


class KeyringFile:
    """The keyring in `path`. Reads it again when it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None
        self._rings: dict[str, Keyring] = {}

    def create(self) -> bool:
        """Make the file with a first key of each kind if there is none; returns whether it did."""
        if self.path.exists():
            return False
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = {}
        for kind in KINDS:
            key_id, key = _new_key(kind, taken=())
            content[kind] = {"active": key_id, "keys": {key_id: key}}
        temporary = self._temporary(content)
        try:
            os.link(temporary, self.path)  # unlike a rename, it fails where another process was first
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def rotate(self, kind: str) -> str:
        """Add a key of this kind and make it the active one; the old ones stay readable. Returns its id."""
        with self._alone():
            content = self._content()
            ring = content[kind]
            key_id, key = _new_key(kind, ring["keys"])
            ring["keys"][key_id] = key
            ring["active"] = key_id
            self._temporary(content).replace(self.path)
        return key_id

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Two who rotate at once must not lose a key: whatever it issued could never sign in."""
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def ring(self, kind: str) -> Keyring:
        """The keys of this kind, as the file has them now. Raises KeyringError."""
        try:
            status = self.path.stat()
        except OSError as error:
            raise KeyringError(
                f"{self.path}: {error.strerror}. `caplai keys list` makes a new keyring."
            ) from None
        seen = (status.st_ino, status.st_mtime_ns)
        if seen != self._seen:
            if status.st_mode & 0o077:
                raise KeyringError(f"{self.path}: others may read it. Mend it: chmod 600 {self.path}")
            self._rings = {name: _ring(value) for name, value in self._content().items() if name in KINDS}
            self._seen = seen
        return self._rings[kind]

    def _content(self) -> dict:
        try:
            content = json.loads(self.path.read_bytes())
            for kind in KINDS:
                _ring(content[kind])
        except OSError as error:
            raise KeyringError(f"{self.path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise KeyringError(f"{self.path} is no keyring. Restore it from its backup.") from None
        return content

    def _temporary(self, content: dict) -> Path:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            if self.path.exists() and os.geteuid() == 0:  # root rotates it for the user who runs the service
                status = self.path.stat()
                os.fchown(descriptor, status.st_uid, status.st_gid)
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        return temporary


def _ring(value: dict) -> Keyring:
    keys = {key_id: base64.b64decode(key, validate=True) for key_id, key in value["keys"].items()}
    if value["active"] not in keys or any(len(key) < 32 for key in keys.values()):
        raise ValueError("incomplete")
    return Keyring(keys, value["active"])


def _new_key(kind: str, taken) -> tuple[str, str]:
    """A new id (kind's letter, the day, a letter) and 32 random bytes in base64."""
    day = f"{kind[0]}{datetime.now(UTC):%Y-%m-%d}"
    key_id = next(name for n in range(10_000) if (name := day + (f".{n}" if n else "")) not in taken)
    return key_id, base64.b64encode(secrets.token_bytes(32)).decode()
