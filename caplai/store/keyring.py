"""The keyring: issuing keys, peppers, the web's signing keys and OpenID Connect's, outside the database. Docs:
docs/keys.md.

`Keys` is the interface of whatever holds them; a file (here) and a mounted folder (keyfolder.py) come with
caplai, a site may bring its own, such as a KMS. A source only says which keys can be read. Which of them is
the active one is agreed on through the database (service/keys.py), so that nobody uses a key before every
other process can read it; `obey` is told of it.
"""

import base64
import contextlib
import fcntl
import hmac
import json
import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from caplai.domain.issuing import Keyring
from caplai.store import signing_key

KINDS = ("issuing", "pepper", "web")
"""Passwords that are issued; passwords that people choose; cookies and sessions."""
SIGNING = "oidc"
"""What signs people in at clients (OpenID Connect): RSA keys (signing_key.py). A keyring needs none without clients."""
ALL_KINDS = (*KINDS, SIGNING)

Content = Mapping[str, Mapping[str, bytes]]
"""Kind → id → key, the oldest first where the source knows."""

_LEAST_BYTES = 32
# A stored hash names its pepper, and Django's column for it has 128 characters.
_ID = re.compile(r"[A-Za-z0-9._-]{1,15}")
_ID_LETTERS = "23456789abcdefghjkmnpqrstuvwxyz"


class KeyringError(Exception):
    """The keyring cannot be used; the text says why and how to mend it. Never holds a key."""


@dataclass(frozen=True, slots=True)
class Token:
    """One key, told apart from any other, without a word of what it is.

    The fingerprint (48 bits of an HMAC under the key) tells two keys apart that got the same id on two hosts.
    """

    kind: str
    id: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.id}/{self.fingerprint}"


@dataclass(frozen=True, slots=True)
class Agreed:
    """What the database says: the id of each kind's active key, and the keys that something in use may need."""

    active: Mapping[str, str]
    needed: frozenset[Token]


class Keys(ABC):
    """The keys that this host can read. A source of one's own implements `read`, and is thread-safe.

    `place` names it for people, without a secret. A source that caplai may write to (`add`, `remove`) sets
    `writable`.
    """

    place = "the keyring"
    writable = False

    _agreed: Agreed | None = None
    _known: tuple[Content, frozenset[Token]] | None = None
    _rings: tuple[Content, Agreed | None, dict[str, Keyring]] | None = None

    @abstractmethod
    def read(self) -> Content:
        """All keys of every kind (there may be none of SIGNING). Called for each sign-in and each batch of messages,
        so it must be cheap, and return the same object until something has changed. Raises KeyringError where they
        cannot be had.
        """

    def first(self, kind: str) -> str:
        """The id of the key to start with where the database knows of none: the newest, unless the source knows
        better.
        """
        return next(reversed(list(self.read()[kind])))

    def create(self) -> bool:
        """Make first keys if this source is ours to fill and is empty; whether it did."""
        return False

    def add(self, kind: str) -> str:
        """Store a new key of this kind, durably when this returns; its id. For writable sources."""
        raise KeyringError(
            f"caplai only reads {self.place}. Put the new {kind} key there yourself (docs/keys.md);"
            " it becomes active when every host can read it."
        )

    def remove(self, gone: Collection[Token]) -> None:
        """Destroy these keys. For writable sources; the others' are named to the operator instead."""
        raise NotImplementedError

    def note(self, active: Mapping[str, str]) -> None:  # noqa: B027 - a source may forget it
        """Keep in mind, durably, which key of each kind is active now, for `first`."""

    def ring(self, kind: str) -> Keyring:
        """The keys of this kind as they can be read now, with the agreed active one. Raises KeyringError."""
        content, agreed = self._checked()[0], self._agreed
        rings = self._rings
        if rings is None or rings[0] is not content or rings[1] is not agreed:
            self._rings = rings = (content, agreed, {})
        if kind not in rings[2]:
            rings[2][kind] = self._ring(kind, content, agreed)
        return rings[2][kind]

    def _ring(self, kind: str, content: Content, agreed: Agreed | None) -> Keyring:
        if not content.get(kind):
            raise KeyringError(f"{self.place} has no {kind} key: caplai keys rotate {kind} (docs/keys.md).")
        if kind == SIGNING and agreed is not None and agreed.active.get(kind) not in content[kind]:
            raise KeyringError(f"No {kind} key of {self.place} is active yet (caplai keys list).")
        if agreed is None:
            return Keyring(content[kind], self.first(kind))
        # A key of ours that only bears the id of one that is in use is none of the ring.
        others = {one.id for one in agreed.needed - self.readable() if one.kind == kind}
        keys = {key_id: key for key_id, key in content[kind].items() if key_id not in others}
        if not keys:
            raise KeyringError(f"{self.place} has no {kind} key that the other processes know.")
        active = agreed.active.get(kind, "")
        first = self.first(kind)
        return Keyring(keys, next((one for one in (active, first) if one in keys), next(iter(keys))))

    def readable(self) -> frozenset[Token]:
        """The keys that can be read now. Raises KeyringError."""
        return self._checked()[1]

    def obey(self, agreed: Agreed) -> None:
        """From now on these keys are the active ones. It holds while the database is away, too."""
        if agreed != self._agreed:
            self._agreed = agreed

    def missing(self) -> frozenset[Token]:
        """The keys that something in use may need, as last heard, and that cannot be read here; but those that only
        clients of OpenID Connect need, who are put off by themselves.

        While there are any, this host must look at no password: it could not count the guesses at some, and a
        stranger would see which. Raises KeyringError.
        """
        if self._agreed is None:
            return frozenset()
        return frozenset(one for one in self._agreed.needed - self.readable() if one.kind != SIGNING)

    def _checked(self) -> tuple[Content, frozenset[Token]]:
        content = self.read()
        if self._known is None or self._known[0] is not content:
            for kind in ALL_KINDS:
                if kind in KINDS and not content.get(kind):
                    raise KeyringError(f"{self.place} has no {kind} key (docs/keys.md).")
                for name, key in content.get(kind, {}).items():
                    if not _ID.fullmatch(name):
                        raise KeyringError(
                            f"{self.place}: the id of a {kind} key must be 1 to 15 letters, digits or . _ -"
                        )
                    if len(key) < _LEAST_BYTES:
                        raise KeyringError(
                            f"{self.place}: the {kind} key {name} is shorter than {_LEAST_BYTES} random bytes."
                        )
                    if kind == SIGNING and not signing_key.looks_right(key):
                        raise KeyringError(
                            f"{self.place}: the {kind} key {name} is no RSA key of 2048 bits in PKCS #8 (DER)."
                        )
            tokens = frozenset(
                token(kind, name, key) for kind in ALL_KINDS for name, key in content.get(kind, {}).items()
            )
            self._known = (content, tokens)
        return self._known


def token(kind: str, key_id: str, key: bytes) -> Token:
    return Token(kind, key_id, hmac.digest(key, b"caplai key fingerprint 1", "sha256")[:6].hex())


def new_id(kind: str, taken: Collection[str]) -> str:
    """Kind's letter, the day, four characters: ids that hosts make at the same time differ, too."""
    while True:
        tail = "".join(secrets.choice(_ID_LETTERS) for _ in range(4))
        if (key_id := f"{kind[0]}{datetime.now(UTC):%Y%m%d}-{tail}") not in taken:
            return key_id


def decode(text: str | bytes) -> bytes:
    """A key as it is written: base64, white space around it ignored. ValueError for anything else."""
    return base64.b64decode(text.strip(), validate=True)


class KeyringFile(Keys):
    """The keyring in a file, mode 0600, which caplai makes and writes.

        {"issuing": {"active": "i20261122-k7q4", "keys": {"i20261122-k7q4": "<base64 of 32 bytes>"}},
         "pepper": {...}, "web": {...}, "oidc": {...}}

    `active` is what was last agreed on; a database that knows of no key starts with it. Every change is a new
    file, on disk before it is renamed over the old one, so a crash leaves one or the other.
    """

    writable = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = str(path)
        self._seen: tuple[tuple[int, int], Content, dict[str, str]] | None = None

    def read(self) -> Content:
        return self._look()[1]

    def first(self, kind: str) -> str:
        return self._look()[2][kind]

    def create(self) -> bool:
        """Make the file with a first key of each kind if there is none; whether it did.

        Called at the start of every process, so it also removes what a crash in mid-write has left.
        """
        if self.path.exists():
            if self._leftovers():
                with self._alone():
                    self._sweep()
            return False
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._alone() as folder:
            self._sweep()
            content = {}
            for kind in KINDS:
                key_id = new_id(kind, ())
                content[kind] = {"active": key_id, "keys": {key_id: _new_key(kind)}}
            temporary = self._temporary(content)
            try:
                os.link(temporary, self.path)  # unlike a rename, it fails where another process was first
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            os.fsync(folder)
        return True

    def add(self, kind: str) -> str:
        with self._alone() as folder:
            content = self._content()
            keys = content.get(kind, {"keys": {}})["keys"]
            key_id = new_id(kind, keys)
            keys[key_id] = _new_key(kind)
            content.setdefault(kind, {"active": key_id, "keys": keys})
            self._replace(content, folder)
        return key_id

    def remove(self, gone: Collection[Token]) -> None:
        """The keys are in the file no more when this returns. What the disk keeps of a deleted file, and the
        file's backups, are beyond our reach (docs/keys.md).
        """
        with self._alone() as folder:
            content, removed = self._content(), False
            for one in gone:
                ring = content.get(one.kind, {"keys": {}})
                text = ring["keys"].get(one.id)
                if text is None or token(one.kind, one.id, decode(text)) != one or len(ring["keys"]) == 1:
                    continue
                del ring["keys"][one.id]
                removed = True
                if ring["active"] == one.id:
                    active = self._agreed.active.get(one.kind) if self._agreed else None
                    ring["active"] = active if active in ring["keys"] else next(reversed(ring["keys"]))
            if removed:
                self._replace(content, folder)

    def note(self, active: Mapping[str, str]) -> None:
        if self._look()[2] == active:
            return
        with self._alone() as folder:
            content = self._content()
            before = {kind: content[kind]["active"] for kind in ALL_KINDS if kind in content}
            known = {kind: one for kind, one in active.items() if kind in before}
            after = before | {kind: one for kind, one in known.items() if one in content[kind]["keys"]}
            for kind in before:
                content[kind]["active"] = after[kind]
            if after != before:
                self._replace(content, folder)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[int]:
        """Two who write at once must not lose a key: whatever it issued could never sign in.

        Yields the descriptor of the folder.
        """
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _look(self) -> tuple[tuple[int, int], Content, dict[str, str]]:
        try:
            status = self.path.stat()
        except OSError as error:
            raise KeyringError(
                f"{self.path}: {error.strerror}. `caplai keys list` makes a new keyring."
            ) from None
        seen = self._seen
        if seen is None or seen[0] != (status.st_ino, status.st_mtime_ns):
            if status.st_mode & 0o077:
                raise KeyringError(f"{self.path}: others may read it. Mend it: chmod 600 {self.path}")
            content = self._content()
            there = [kind for kind in ALL_KINDS if kind in content]
            keys = {
                kind: {name: decode(key) for name, key in content[kind]["keys"].items()} for kind in there
            }
            active = {kind: content[kind]["active"] for kind in there}
            self._seen = seen = ((status.st_ino, status.st_mtime_ns), keys, active)
        return seen

    def _content(self) -> dict:
        try:
            content = json.loads(self.path.read_bytes())
            for kind in (*KINDS, *({SIGNING} & content.keys())):
                keys = {name: decode(key) for name, key in content[kind]["keys"].items()}
                Keyring(keys, content[kind]["active"])
        except OSError as error:
            raise KeyringError(f"{self.path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise KeyringError(f"{self.path} is no keyring. Restore it from its backup.") from None
        return content

    def _replace(self, content: dict, folder: int) -> None:
        self._sweep()
        self._temporary(content).replace(self.path)
        os.fsync(folder)

    def _leftovers(self) -> list[Path]:
        return list(self.path.parent.glob(f".{self.path.name}.*"))

    def _sweep(self) -> None:
        """Remove what crashes have left. It holds keys, perhaps some that were destroyed since."""
        for left in self._leftovers():
            with contextlib.suppress(OSError):
                left.unlink()

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


def _new_key(kind: str) -> str:
    key = signing_key.new() if kind == SIGNING else secrets.token_bytes(_LEAST_BYTES)
    return base64.b64encode(key).decode()
