"""Plant and search: whether any of these secrets stands in any of these files, in any form that one may take."""

import base64
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_CHUNK = 1 << 24


def forms(secret: str) -> set[bytes]:
    """The secret as bytes: plain, in UTF-16, in hex, and in Base64 whatever stands before it."""
    plain = secret.encode()
    found = {plain, secret.encode("utf-16-le"), secret.encode("utf-16-be"), plain.hex().encode()}
    found.add(plain.hex().upper().encode())
    for shift in range(3):
        # Only the groups of four that hold bits of the secret alone.
        whole = base64.b64encode(bytes(shift) + plain)
        inner = whole[4 if shift else 0 : (shift + len(plain)) // 3 * 4]
        found |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return found


def search(needles: Mapping[str, str], files: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """The name of each needle (name → secret) with a file that holds it. A short one would be found by chance."""
    assert all(len(secret) >= 8 for secret in needles.values()), "six digits are found by chance"
    wanted = {form: name for name, secret in needles.items() for form in forms(secret) if len(form) >= 8}
    longest = max(map(len, wanted), default=0)
    for path in files:
        try:
            content = path.open("rb")
        except FileNotFoundError:  # it was temporary
            continue
        with content:
            tail = b""
            while chunk := content.read(_CHUNK):
                hay = tail + chunk
                for form, name in wanted.items():
                    if form in hay:
                        yield name, path
                tail = hay[-longest:]


def files_under(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
