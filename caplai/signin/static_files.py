"""Static files under names with the hash of their content, so that a browser keeps them for a year and asks no more.

No step of the build makes them: they are hashed when they are first named, and served from where they lie.
"""

import hashlib
from functools import cache
from pathlib import Path

from django.contrib.staticfiles import finders
from django.contrib.staticfiles.storage import StaticFilesStorage
from django.http import HttpRequest, HttpResponse
from whitenoise.middleware import WhiteNoiseMiddleware


@cache
def hashed(name: str) -> str:
    """`caplai.css` as `caplai.0123456789ab.css`; a name that is no file's as it is."""
    path = finders.find(name)
    if not isinstance(path, str):
        return name
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
    stem, dot, kind = name.rpartition(".")
    return f"{stem}.{digest}{dot}{kind}"


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

    def add_file_to_dictionary(self, url: str, path: str, stat_cache: dict | None = None) -> None:
        super().add_file_to_dictionary(url, path, stat_cache=stat_cache)
        name = url.removeprefix(self.static_prefix)
        super().add_file_to_dictionary(self.static_prefix + hashed(name), path, stat_cache=stat_cache)


def headers(response_headers: dict[str, str], path: str, url: str) -> None:
    """What whitenoise adds to every static file: no other site may use it."""
    response_headers["Cross-Origin-Resource-Policy"] = "same-origin"
