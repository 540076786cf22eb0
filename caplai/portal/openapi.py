"""The app API as OpenAPI 3.1, made of the endpoints themselves: paths, methods, bodies, and what their docstrings say.

An endpoint's docstring names for each method what it is given and which statuses it answers; tests/fuzz/test_openapi.py
holds both to the truth.
"""

import functools
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any, Literal, NotRequired

from allauth.headless.base.views import AuthenticatedAPIView, AuthenticationStageAPIView
from django import forms
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, get_resolver
from django.urls.converters import IntConverter
from django.views.decorators.http import require_safe
from pydantic import TypeAdapter
from typing_extensions import TypedDict

import caplai
from caplai.portal.api_account import OfOwner
from caplai.signin.answers import Pending, shape
from caplai.signin.api import Endpoint

PREFIX = "_allauth/app/v1/"
_METHOD = re.compile(r"\b(GET|POST|PUT|PATCH|DELETE)\b")
_STATUS = re.compile(r"\b([2-5]\d\d)\b")
_MEANINGS = {
    200: "Done.",
    400: "What was sent is wrong: `errors` says what; without a body it was no JSON object.",
    401: "Nobody is signed in (any more, or yet): `data.flows` says what is pending.",
    403: "The sign-in is too old for this: sign in again.",
    404: "There is no such thing (for this person).",
    409: "It cannot be as things stand now.",
    410: "The session token is of no session.",
    415: "The body is not `application/json`.",
    429: "Too many, or too soon: try again after `Retry-After` seconds.",
    503: "This host cannot say just now: try again after `Retry-After` seconds.",
}
_BARE = {400, 404, 405, 415}
"""Statuses that may come without JSON, from before an endpoint is asked."""

_LANGUAGE = {
    "name": "lang",
    "in": "query",
    "description": "Of the texts for people.",
    "schema": {"enum": [language for language, _ in settings.LANGUAGES]},
}
_DEVICE = {
    "name": "X-Device-Token",
    "in": "header",
    "description": "The `device_token` that an earlier sign-in gave: what makes this a known device.",
    "schema": {"type": "string"},
}


@shape
class Meta(TypedDict):
    """What comes beside the answer itself."""

    is_authenticated: NotRequired[bool | None]
    """null: there is no session."""
    session_token: NotRequired[str]
    """The token from now on."""
    device_token: NotRequired[str]
    """After a completed sign-in, to be kept: docs/app-api.md."""
    older: NotRequired[str | None]
    """Of `account/history`: what to ask with as `before` for the next page; null where there is none."""


@shape
class Mistake(TypedDict):
    """What is wrong, or why it cannot be."""

    code: str
    message: str
    """For people, in their language."""
    param: NotRequired[str]
    """Which part of the body it is about."""


@shape
class Answer(TypedDict):
    """Done; where there is something to tell, with `data`."""

    status: int
    meta: NotRequired[Meta]


@shape
class Refusal(TypedDict):
    """Not done."""

    status: int
    meta: NotRequired[Meta]
    errors: NotRequired[list[Mistake]]


@shape
class Unauthorized(TypedDict):
    """Nobody is signed in (any more, or yet)."""

    status: Literal[401, 410]
    meta: Meta
    data: Pending


def describe() -> dict[str, Any]:
    """The document. It says nothing of one installation, so it is the same at each."""
    schemas = _Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route, pattern in _endpoints(get_resolver().url_patterns, ""):
        view = pattern.callback.view_class
        path, parameters = _path(route, pattern)
        paths[path] = {"parameters": [*parameters, _LANGUAGE]} | {
            method: _operation(view, method.upper(), path, schemas) for method in _methods(view)
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "caplai, the app API",
            "version": caplai.__version__,
            "description": "What the citizen's pages do, for an app of the agency's. In words: docs/app-api.md.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.named.items())),
            "securitySchemes": {
                "session": {"type": "apiKey", "in": "header", "name": "X-Session-Token"},
            },
        },
    }


@require_safe
def document(request: HttpRequest) -> HttpResponse:
    return HttpResponse(_written(), content_type="application/json")


@functools.cache
def _written() -> bytes:
    """Once for each process: making it takes a tenth of a second, and any stranger may ask for it."""
    return json.dumps(describe()).encode()


class _Schemas:
    """The shapes of answers as JSON Schema; what has a name is in `named`, and referred to."""

    def __init__(self) -> None:
        self.named: dict[str, Any] = {}
        self._made: dict[Any, dict[str, Any]] = {}

    def of(self, kind: Any) -> dict[str, Any]:
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        return self._made[kind]

    def _make(self, kind: Any) -> dict[str, Any]:
        schema = TypeAdapter(kind).json_schema(mode="serialization", ref_template=f"{_SCHEMAS}{{model}}")
        self.named |= {name: _untitled(found) for name, found in schema.pop("$defs", {}).items()}
        schema = _untitled(schema)
        if "properties" not in schema:
            return schema
        name = kind.__name__
        assert self.named.setdefault(name, schema) == schema, f"two shapes are called {name}"
        return {"$ref": _SCHEMAS + name}


_SCHEMAS = "#/components/schemas/"


def _untitled(schema: Any) -> Any:
    """Without the titles that pydantic makes of names."""
    if isinstance(schema, list):
        return [_untitled(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: {key: _untitled(part) for key, part in value.items()}
        if name == "properties"
        else _untitled(value)
        for name, value in schema.items()
        if name != "title"
    }


def _endpoints(patterns, route: str) -> Iterator[tuple[str, URLPattern]]:
    for pattern in patterns:
        if not isinstance(pattern, URLPattern):
            yield from _endpoints(pattern.url_patterns, route + str(pattern.pattern))
        elif (route + str(pattern.pattern)).startswith(PREFIX) and issubclass(
            getattr(pattern.callback, "view_class", object), Endpoint
        ):
            yield route + str(pattern.pattern), pattern


def _path(route: str, pattern: URLPattern) -> tuple[str, list[dict[str, Any]]]:
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "integer", "minimum": 0}
            if isinstance(converter, IntConverter)
            else {"type": "string", "pattern": "^[-a-zA-Z0-9_]+$"},
        }
        for name, converter in pattern.pattern.converters.items()
    ]
    return "/" + re.sub(r"<\w+:(\w+)>", r"{\1}", route), parameters


def _methods(view: type[Endpoint]) -> list[str]:
    return [name for name in view.http_method_names if name != "options"]


def _operation(view: type[Endpoint], method: str, path: str, schemas: _Schemas) -> dict[str, Any]:
    said = _said(view)[method]
    statuses = {int(found) for found in _STATUS.findall(said)} or {200}
    statuses |= {410, 503}
    if method != "GET":
        statuses |= {400, 415}
    if issubclass(view, OfOwner | AuthenticatedAPIView | AuthenticationStageAPIView):
        statuses.add(401)
    place = re.sub(r"[^a-z]+", "_", path.removeprefix(f"/{PREFIX}")).strip("_")
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()}_{place}",
        "summary": _summary(said),
        "security": [{}, {"session": []}],
        "responses": {
            str(status): _response(status, view.answers.get(method), schemas) for status in sorted(statuses)
        },
    }
    asked = re.findall(r"\?(\w+)=", said)
    more = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in asked]
    if method == "POST" and path.startswith(f"/{PREFIX}auth/"):
        more.append(_DEVICE)
    if more:
        operation["parameters"] = more
    if body := _body(view, method, said):
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _said(view: type[Endpoint]) -> dict[str, str]:
    """What the class's docstring says of each method (of both: of each), else the method's own."""
    text, _, both = " ".join((inspect.getdoc(view) or "").split()).partition("Both ")
    parts = _METHOD.split(text)[1:]
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    own = {name.upper(): inspect.getdoc(getattr(view, name)) or "" for name in _methods(view)}
    return {name: f"{(found.get(name) or own[name]).strip()} {both}".strip() for name in own}


def _summary(said: str) -> str:
    return said.lstrip(" :,")


def _body(view: type[Endpoint], method: str, said: str) -> dict[str, Any] | None:
    """What the docstring names, of the kinds that the form knows; what it does not name, or with a question mark, need
    not be sent.
    """
    given = view.input_class.get(method) if isinstance(view.input_class, dict) else view.input_class
    fields: dict[str, forms.Field] = given.base_fields if given is not None else {}
    named = re.findall(r'"(\w+)"(\??)', said.partition("}")[0]) if said.startswith("{") else []
    if method == "GET" or not named:
        return None
    properties = {name: _schema(fields[name]) if name in fields else {"type": "object"} for name, _ in named}
    required = [name for name, may in named if not may and (name not in fields or fields[name].required)]
    return {"type": "object", "required": required, "properties": properties}


def _schema(field: forms.Field) -> dict[str, Any]:
    if isinstance(field, forms.JSONField):
        return {"type": "object"}
    if isinstance(field, forms.BooleanField):
        return {"type": "boolean"}
    if isinstance(field, forms.ChoiceField):
        return {"enum": [choice for choice, _ in field.choices]}
    schema: dict[str, Any] = {"type": "string"}
    if isinstance(field, forms.EmailField):
        schema["format"] = "email"
    if limit := getattr(field, "max_length", None):
        schema["maxLength"] = limit
    return schema


def _response(status: int, data: Any, schemas: _Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _schema_of(status, data, schemas)}}
    if status in _BARE:
        content["text/html"] = {}
    answer: dict[str, Any] = {"description": _MEANINGS[status], "content": content}
    if status in (429, 503):
        answer["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return answer


def _schema_of(status: int, data: Any, schemas: _Schemas) -> dict[str, Any]:
    if status in (401, 410):
        return schemas.of(Unauthorized)
    if status != 200:
        return schemas.of(Refusal)
    envelope = schemas.of(Answer)
    if data is None:
        return envelope
    return {
        "allOf": [
            envelope,
            {"type": "object", "required": ["data"], "properties": {"data": schemas.of(data)}},
        ]
    }
