"""Static files under names with the hash of their content, so that a browser keeps them for a year and asks no more.

No step of the build makes them: they are hashed when they are first named, and served from where they lie; those of
text also compressed, from memory. (Pages are not: whoever can make somebody's browser ask for one, with words of theirs
in it, would read off its length what tokens stand in it, by BREACH. Here there is nothing to read.)
"""

import gzip
import hashlib
import io
import re
from functools import cache
from pathlib import Path

from django.contrib.staticfiles import finders
from django.contrib.staticfiles.storage import StaticFilesStorage
from django.http import HttpRequest, HttpResponse
from whitenoise.middleware import WhiteNoiseMiddleware
from whitenoise.responders import Response, StaticFile

_OF_TEXT = (".css", ".js", ".svg")
_TAKES_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?(?![.\d]))")


@cache
def hashed(name: str) -> str:
    """`caplai.css` as `caplai.0123456789ab.css`; a name that is no file's as it is."""
    path = finders.find(name)
    if not isinstance(path, str):
        return name
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
    stem, dot, kind = name.rpartition(".")
    return f"{stem}.{digest}{dot}{kind}"


@cache
def _compressed(path: str) -> bytes:
    return gzip.compress(Path(path).read_bytes(), mtime=0)


class _CompressedFile(StaticFile):
    """A file of text: whole, it goes out compressed to whoever takes that."""

    def __init__(self, path: str, headers: list[tuple[str, str]]) -> None:
        super().__init__(path, [*headers, ("Vary", "Accept-Encoding")])
        self._octets = _compressed(path)

    def get_response(self, method: str, request_headers: dict[str, str]) -> Response:
        response = super().get_response(method, request_headers)
        if response.status != 200 or not _TAKES_GZIP.search(request_headers.get("HTTP_ACCEPT_ENCODING", "")):
            return response
        if response.file is not None:
            response.file.close()
            response.file = io.BytesIO(self._octets)
        its = {**dict(response.headers), "Content-Length": str(len(self._octets)), "Content-Encoding": "gzip"}
        return Response(response.status, list(its.items()), response.file)


class HashedNames(StaticFilesStorage):
    """What `{% static %}` writes."""

    def url(self, name: str | None) -> str:
        return super().url(hashed(name) if name else name)


class StaticFiles(WhiteNoiseMiddleware):
    """Serves each file under its hashed name, for a year, and under its own, for a minute.

    Under another hash, too, for a minute: while a new version is being rolled out, a page of one host may ask another.
    """

    def __call__(self, request: HttpRequest) -> HttpResponse:
        file = self.files.get(request.path_info)
        if file is None and request.path_info.startswith(self.static_prefix):
            file = self.files.get(self.get_name_without_hash(request.path_info))
        return self.get_response(request) if file is None else self.serve(file, request)

    def get_static_file(self, path: str, url: str, stat_cache: dict | None = None) -> StaticFile:
        file = super().get_static_file(path, url, stat_cache=stat_cache)
        if not path.endswith(_OF_TEXT):
            return file
        _encoding, _path, its = file.alternatives[-1]
        return _CompressedFile(path, [(name, value) for name, value in its if name != "Content-Length"])

    def add_file_to_dictionary(self, url: str, path: str, stat_cache: dict | None = None) -> None:
        super().add_file_to_dictionary(url, path, stat_cache=stat_cache)
        name = url.removeprefix(self.static_prefix)
        super().add_file_to_dictionary(self.static_prefix + hashed(name), path, stat_cache=stat_cache)


def headers(response_headers: dict[str, str], path: str, url: str) -> None:
    """What whitenoise adds to every static file: no other site may use it."""
    response_headers["Cross-Origin-Resource-Policy"] = "same-origin"
