"""What is to be seen of each web request: its id in every line logged meanwhile, a line of its own, the metrics.

No path: it may hold whatever a stranger typed. The route is ours.
"""

import logging
import re
import secrets
import time
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from caplai.watch import logs, metrics, tracing

log = logging.getLogger("caplai.http")

HEADER = "X-Request-Id"
_SANE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Requests:
    """Gives each request an id: the trusted proxy's if it is sane, else a new one. To stand behind whoever takes
    the header away from those who are not trusted.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        began = time.monotonic()
        given = request.headers.get(HEADER, "")
        id_ = (
            given if _SANE.fullmatch(given) and logs.without_numbers(given) == given else secrets.token_hex(8)
        )
        token = logs.request_id.set(id_)
        try:
            response = self.get_response(request)
            response[HEADER] = id_
            self._tell(request, response, id_, time.monotonic() - began)
        finally:
            logs.request_id.reset(token)
        return response

    def _tell(self, request: HttpRequest, response: HttpResponse, id_: str, took: float) -> None:
        match = request.resolver_match
        route = "/" + str(match.route) if match else "static" if response.streaming else "other"
        method = request.method if request.method in _METHODS else "other"
        metrics.http_requests.labels(route, method, str(response.status_code)).inc()
        metrics.http_seconds.observe([took], route)
        tracing.record("request", took, [id_], route=route, method=str(method), status=response.status_code)
        if match:
            fields = {
                "method": method,
                "route": route,
                "status": response.status_code,
                "seconds": round(took, 3),
            }
            log.info("answered", extra={"fields": fields})
