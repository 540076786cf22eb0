"""While database or keys cannot be used: people are told to try again, and the log says it once, not for each."""

import logging
import sys
import time
from collections.abc import Callable

import psycopg
from django.conf import settings
from django.db import connection
from django.db.utils import Error
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils.translation import gettext as _

from caplai.store.keyring import KINDS, KeyringError

log = logging.getLogger(__name__)

RETRY_SECONDS = 30
QUIET = 10.0
"""Seconds without a failure after which an outage may be over: on a full disk, say, some pages are served all along."""
APP = "/_allauth/"
"""Where the app's endpoints are: it hears of it in JSON."""


class Outage:
    """Notices the end of an outage. (Its beginning shows in `server_error`, which Django asks first.)"""

    lasts = False
    failed_at = 0.0

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if Outage.lasts and response.status_code < 500 and time.monotonic() - Outage.failed_at >= QUIET:
            Outage.failed_at = time.monotonic()  # a database that hangs holds one request at a time, not all
            if _is_well():
                Outage.lasts = False
                log.info("web: pages are served again")
        return response


def server_error(request: HttpRequest) -> HttpResponse:
    """What Django answers an exception with: 503 where it will pass by itself, else 500."""
    error = sys.exc_info()[1]
    if not _passes(error):
        if request.path.startswith(APP):
            return _to_app(
                500, "error", _("Something went wrong on our side. Please try again in a few minutes.")
            )
        return render(request, "500.html", status=500)
    Outage.failed_at = time.monotonic()
    if not Outage.lasts:
        Outage.lasts = True
        log.error("web: database or keys cannot be used; people are told to try again", exc_info=error)
    if request.path.startswith(APP):
        response = _to_app(
            503, "try_again", _("We cannot check this password just now. Try again in a minute.")
        )
    else:
        response = render(request, "500.html", status=503)
    response["Retry-After"] = str(RETRY_SECONDS)
    response._has_been_logged = True  # Django would log each as an error
    return response


def _to_app(status: int, code: str, message: str) -> HttpResponse:
    return JsonResponse({"status": status, "errors": [{"code": code, "message": message}]}, status=status)


def _passes(error: BaseException | None) -> bool:
    """Whether this is the state of database or keys, and no bug: then it heals without a new version."""
    if isinstance(error, Error):  # Django's, with psycopg's behind it
        error = error.__cause__
    return isinstance(
        error, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError | KeyringError
    )


def _is_well() -> bool:
    """Whether the database takes writes and the keys can be read."""
    try:
        for kind in KINDS:
            settings.KEYRING.ring(kind)
        with connection.cursor() as cursor:
            cursor.execute("select current_setting('transaction_read_only') = 'off'")
            return cursor.fetchone()[0]
    except (Error, KeyringError):
        return False
