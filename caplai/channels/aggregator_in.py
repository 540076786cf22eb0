"""The door for aggregators: `/sms/NAME`, messages over HTTP, answered when they are stored and decided.

Two formats: that of Kannel's sms-service (GET or POST, the body of the answer is the reply) and a signed JSON
webhook. docs/aggregators.md is the integrator's page. What is not stored is never answered with 200.
"""

import hashlib
import hmac
import ipaddress
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import psycopg
from django import db
from django.http import HttpRequest, HttpResponse, JsonResponse

from caplai.channels.aggregators import Aggregator, charset_codec
from caplai.domain import msisdn
from caplai.domain.policy import Decision
from caplai.service.answer import answer
from caplai.service.reissue import tell
from caplai.service.requests import Rules
from caplai.smpp import text
from caplai.store.db import is_at_fault_itself
from caplai.store.keyring import KeyringError
from caplai.store.queues import Arrival, Waiting
from caplai.watch import metrics, trail

log = logging.getLogger(__name__)

PREFIX = "/sms/"
TIMESTAMP_HEADER = "X-Caplai-Timestamp"
SIGNATURE_HEADER = "X-Caplai-Signature"
CLOCK_SKEW = 300
"""Seconds that a signature's time may be off: nobody can send a captured request again later than that."""
PATIENCE = 4.0
"""Seconds that a statement may take: an aggregator that waits for longer gives up, and asks again."""
RETRY_AFTER = 5
_LONGEST = {"from": 32, "to": 21, "id": 128, "charset": 40, "coding": 8}
_OCTETS = "8-BIT"
"""Kannel's word for octets of unknown meaning."""
_BINARY = 4  # data_coding of octets whose alphabet is unknown (SMPP 3.4, 5.2.19)


@dataclass(slots=True)
class _Refused(Exception):
    """A request that is not taken: the status, and what the aggregator is told."""

    status: int
    says: str = ""


class Door:
    """Answers requests to `/sms/NAME`. `rules()` are the re-issue's; `insists_on_https` as public_url says."""

    def __init__(
        self, aggregators: Iterable[Aggregator], rules: Callable[[], Rules], *, insists_on_https: bool
    ) -> None:
        self._aggregators = {aggregator.name: aggregator for aggregator in aggregators}
        for name in self._aggregators:  # a rise from nothing to one is seen only if there was a zero
            metrics.received.labels(name)
        self._rules = rules
        self._insists_on_https = insists_on_https
        self._away = False

    def __call__(self, request: HttpRequest) -> HttpResponse:
        name, _, secret = request.path_info.removeprefix(PREFIX).partition("/")
        aggregator = self._aggregators.get(name)
        try:
            if aggregator is None:
                raise _Refused(404)
            response = self._answer(aggregator, request, secret)
        except _Refused as refused:
            response = HttpResponse(refused.says, "text/plain; charset=utf-8", refused.status)
            if refused.status == 503:
                response["Retry-After"] = str(RETRY_AFTER)
        except Exception:
            # Django would log the path, in which there may be a secret.
            log.exception("aggregator %s: a request cannot be answered", name)
            response = HttpResponse(status=500)
        response["Content-Length"] = str(len(response.content))
        response["Cache-Control"] = "no-store"
        response["X-Content-Type-Options"] = "nosniff"
        response._has_been_logged = True
        return response

    def _answer(self, aggregator: Aggregator, request: HttpRequest, secret: str) -> HttpResponse:
        self._check_network(aggregator, request)
        if request.method not in (("GET", "POST") if aggregator.format == "kannel" else ("POST",)):
            raise _Refused(405, f"{aggregator.format} does not come by {request.method}")
        body = _body(request, aggregator.max_body)
        if aggregator.format == "json":
            if secret:
                raise _Refused(404)
            _check_signature(aggregator, request, body)
            request_id, arrival = _read_json(aggregator, body)
        else:
            pairs = _pairs_of(request, body)
            _check_secret(aggregator, secret or dict(pairs).get("secret", b"").decode("latin-1"))
            request_id, arrival = _read_kannel(aggregator, _parameters(pairs))
        reply = self._store(aggregator, request_id, arrival)
        if reply is None:
            raise _Refused(409, "id: was another message's")
        if aggregator.format == "json":
            return JsonResponse({"id": request_id, "reply": reply})
        return HttpResponse(reply, "text/plain; charset=utf-8")

    def _check_network(self, aggregator: Aggregator, request: HttpRequest) -> None:
        """Who comes over plain http to a site that is on https must come from a network that was named."""
        if aggregator.networks:
            try:
                address = ipaddress.ip_address(request.META.get("REMOTE_ADDR", ""))
            except ValueError:
                raise _Refused(403) from None
            address = getattr(address, "ipv4_mapped", None) or address
            if not any(address in ipaddress.ip_network(each, strict=False) for each in aggregator.networks):
                raise _Refused(403)
        elif self._insists_on_https and not request.is_secure():
            raise _Refused(403)

    def _store(self, aggregator: Aggregator, request_id: str | None, arrival: Arrival) -> str | None:
        new: list[tuple[Waiting, Decision]] = []
        began = time.monotonic()
        try:
            rules = self._rules()
            with db.transaction.atomic():
                conn = db.connection.connection
                conn.execute(f"set local statement_timeout = {int(PATIENCE * 1000)}")
                reply = answer(
                    conn,
                    aggregator.name,
                    request_id,
                    arrival,
                    rules,
                    join=join,
                    at_once=aggregator.reply == "body",
                    decided=lambda *what: new.append(what),
                )
        except (psycopg.Error, db.Error, KeyringError) as error:
            cause = error.__cause__ if isinstance(error, db.Error) else error
            if isinstance(cause, Exception) and is_at_fault_itself(cause):
                raise
            self._say_once(type(error).__name__)
            raise _Refused(503) from None
        self._say_once(None)
        for message, decision in new:
            metrics.received.labels(aggregator.name).inc()
            trail.ACCEPTED.write([(message.id,)], aggregator.name)
            tell([message], [decision], time.monotonic() - began)
        return reply

    def _say_once(self, trouble: str | None) -> None:
        """Log that nothing can be stored or answered, and that it can be again, each once."""
        if trouble and not self._away:
            log.error("aggregators: nothing can be answered (%s); they must send it again", trouble)
        elif self._away and not trouble:
            log.info("aggregators: requests are answered again")
        self._away = bool(trouble)


# --- who asks --------------------------------------------------------------------------------------


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """The signature of a JSON body: HMAC-SHA-256 over the time (Unix seconds), a dot and the body, in hex."""
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _check_signature(aggregator: Aggregator, request: HttpRequest, body: bytes) -> None:
    timestamp = request.headers.get(TIMESTAMP_HEADER, "")
    given = request.headers.get(SIGNATURE_HEADER, "").removeprefix("sha256=").strip().lower()
    well = False
    for secret in aggregator.secrets:  # all of them, whichever fits
        well |= _equal(given, sign(secret.get_secret_value(), timestamp, body))
    if not well or not timestamp.isdecimal() or abs(time.time() - int(timestamp[:15])) > CLOCK_SKEW:
        raise _Refused(401)


def _check_secret(aggregator: Aggregator, given: str) -> None:
    well = False
    for secret in aggregator.secrets:
        well |= _equal(given, secret.get_secret_value())
    if not well:
        raise _Refused(403)


def _equal(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), right.encode())


# --- what is asked ---------------------------------------------------------------------------------


def _body(request: HttpRequest, most: int) -> bytes:
    if request.headers.get("Transfer-Encoding"):
        raise _Refused(411, "send a Content-Length")
    length = request.headers.get("Content-Length") or "0"
    if not length.isdecimal():
        raise _Refused(400, "Content-Length: is no number")
    if int(length) > most:
        raise _Refused(413)
    try:
        body = request.read(int(length)) if int(length) else b""
    except OSError:
        body = b""
    if len(body) != int(length):  # it hung up: half a text is not what somebody wrote
        raise _Refused(400, "the body is cut off")
    return body


def _pairs_of(request: HttpRequest, body: bytes) -> list[tuple[str, bytes]]:
    """The parameters of a query, and of a form or a text that was posted, as octets: only `charset` says what they are.

    Django's own reading would take them for UTF-8.
    """
    pairs = list(_pairs(request.META.get("QUERY_STRING", "").encode("latin-1", "replace")))
    kind, _, option = request.headers.get("Content-Type", "").partition(";")
    kind = kind.strip().lower()
    if body:
        if kind == "application/x-www-form-urlencoded":
            pairs += _pairs(body)
        elif kind in ("text/plain", "application/octet-stream"):  # Kannel's post-url
            pairs.append(("text", body))
            charset = option.partition("charset=")[2].strip().strip('"')
            if charset and not any(name == "charset" for name, _ in pairs):
                pairs.append(("charset", charset.encode()))
        else:
            raise _Refused(415, "send a form, or the text as text/plain")
    return pairs


def _parameters(pairs: list[tuple[str, bytes]]) -> dict[str, bytes]:
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise _Refused(400, "a parameter is given twice")
    for name, most in _LONGEST.items():
        if len(parameters.get(name, b"")) > most:
            raise _Refused(400, f"{name}: is too long")
    return parameters


def _pairs(query: bytes) -> Iterator[tuple[str, bytes]]:
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if name:
            yield unquote_to_bytes(name).decode("latin-1"), unquote_to_bytes(value.replace(b"+", b" "))


def _read_kannel(aggregator: Aggregator, parameters: Mapping[str, bytes]) -> tuple[str | None, Arrival]:
    def said(name: str) -> str:
        try:
            return parameters.get(name, b"").decode()
        except UnicodeDecodeError:
            raise _Refused(400, f"{name}: is not UTF-8") from None

    arrival = _addressed(aggregator, said("from"), said("to"))
    data = parameters.get("text")
    if data is None:
        raise _Refused(400, "text: is missing")
    usual = {"": aggregator.charset, "-1": aggregator.charset, "0": aggregator.charset, "2": "utf-16be"}
    charset = said("charset") or usual.get(said("coding"), _OCTETS)
    if not _printable(charset):
        raise _Refused(400, "charset: is no name")
    codec = charset_codec(charset)
    if charset.upper() == _OCTETS and data.isascii() and _printable(data.decode("ascii")):
        codec = "ascii"  # these have only one meaning
    if codec is None:  # which it is stands in the store; nobody knows what else was put there
        log.warning("aggregator %s: a text in an unknown charset cannot be read", aggregator.name)
    arrival.coding = {None: _BINARY, "utf-16-be": text.UCS2_CODING}.get(codec, text.DEFAULT_CODING)
    part = _part(parameters.get("udh", b""))
    if part is None:
        arrival.text = _decode(codec, data, charset)
    else:
        # Parts are joined before they are read, as UTF-16 or, unread, as octets.
        arrival.reference, arrival.total, arrival.number = part
        known = data if codec in (None, "utf-16-be") else _decode(codec, data).encode("utf-16-be")
        arrival.payload = known
        arrival.coding = _BINARY if codec is None else text.UCS2_CODING
    return _id(said("id")), arrival


def _part(udh: bytes) -> text.Part | None:
    if not udh:
        return None
    if len(udh) != udh[0] + 1:
        try:
            udh = bytes.fromhex(udh.decode("ascii"))
        except ValueError:
            raise _Refused(400, "udh: is no user data header") from None
    part, rest = text.parse_udh(udh)
    if rest:
        raise _Refused(400, "udh: is no user data header")
    return part


def _read_json(aggregator: Aggregator, body: bytes) -> tuple[str | None, Arrival]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise _Refused(400, "the body is no JSON") from None
    if not isinstance(values, dict):
        raise _Refused(400, "the body is no JSON object")
    for name in ("id", "from", "to", "text"):
        if not isinstance(values.get(name), str):
            raise _Refused(400, f"{name}: must be a string")
        if len(values[name]) > _LONGEST.get(name, len(body)):
            raise _Refused(400, f"{name}: is too long")
    # Without it, whoever captured a request could bring it again as long as its signature is good.
    if not values["id"]:
        raise _Refused(400, "id: is missing")
    arrival = _addressed(aggregator, values["from"], values["to"])
    # Half a surrogate pair, which JSON can write, is no character.
    whole = values["text"].encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    arrival.text = _storable(whole)
    return _id(values["id"]), arrival


def _addressed(aggregator: Aggregator, source: str, destination: str) -> Arrival:
    """An arrival with its addresses and nothing else. A plus (or the blank that it becomes where somebody forgot to
    encode it) means TON 1, and is no part of the number: so the phone has one name, whoever brings its messages.
    """
    for name, value in (("from", source), ("to", destination)):
        if not value.strip():
            raise _Refused(400, f"{name}: is missing")
        if not _printable(value):
            raise _Refused(400, f"{name}: has characters that no address has")
    international = source[:1] in ("+", " ")
    source = source.strip().removeprefix("+")
    if not source:
        raise _Refused(400, "from: is missing")
    ton = msisdn.TON_INTERNATIONAL if international and source.isdecimal() else 0
    if any(char.isalpha() for char in source):
        ton = msisdn.TON_ALPHANUMERIC
    destination = destination.strip().removeprefix("+")
    if destination not in aggregator.short_codes:
        raise _Refused(400, "to: is none of this aggregator's short codes")
    return Arrival(source, ton, 1 if ton != msisdn.TON_ALPHANUMERIC else 0, destination, 0, None)


def _id(given: str) -> str | None:
    if given and not (given.isascii() and _printable(given)):
        raise _Refused(400, "id: must be printable ASCII")
    return given or None


def _printable(value: str) -> bool:
    return value.isprintable()


# --- octets to text --------------------------------------------------------------------------------


def _decode(codec: str | None, data: bytes, charset: str = _OCTETS) -> str:
    """The text of octets. Those of an unknown charset are kept as they came, in hex: no digit of them is guessed."""
    match codec:
        case None:
            return f"charset {charset}: {data.hex()}"
        case "gsm":
            return _storable(text.decode(text.DEFAULT_CODING, data).text)
        case "utf-16-be":
            return _storable(text.decode(text.UCS2_CODING, data).text)
    return _storable(data.decode(codec, "replace"))


def _storable(whole: str) -> str:
    # PostgreSQL cannot hold the character NUL.
    return whole.replace("\0", "\ufffd")


def join(coding: int, parts: dict[int, bytes], total: int) -> str:
    """The text of a long message. A part that never came leaves a mark, so that no digits run together."""
    codec = "utf-16-be" if coding == text.UCS2_CODING else None
    if len(parts) == total:
        return _decode(codec, text.assemble(parts))
    return " … ".join(_decode(codec, parts[number]) for number in sorted(parts)) + " …"
