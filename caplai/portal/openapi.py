"""The app API as OpenAPI 3.1, made of the endpoints themselves: paths, methods, bodies, and what their docstrings say.

An endpoint's docstring names for each method what it is given and which statuses it answers; tests/fuzz/test_openapi.py
holds both to the truth.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any

from allauth.headless.base.views import APIView, AuthenticatedAPIView, AuthenticationStageAPIView
from django import forms
from django.http import HttpRequest, JsonResponse
from django.urls import URLPattern, get_resolver
from django.urls.converters import IntConverter
from django.views.decorators.http import require_safe

import caplai
from caplai.portal.api_account import OfOwner

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
_ENVELOPE = {
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": {"type": "integer"},
        "data": {"type": ["object", "array"]},
        "meta": {
            "type": "object",
            "properties": {
                "is_authenticated": {
                    "type": ["boolean", "null"],
                    "description": "null: there is no session.",
                },
                "session_token": {"type": "string", "description": "The token from now on."},
                "access_token": {"type": "string"},
                "device_token": {
                    "type": "string",
                    "description": "After a completed sign-in: docs/app-api.md.",
                },
            },
        },
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": {"type": "string"},
                    "message": {"type": "string", "description": "For people, in their language."},
                    "param": {"type": "string", "description": "Which part of the body it is about."},
                },
            },
        },
    },
}


def describe() -> dict[str, Any]:
    """The document. It says nothing of one installation, so it is the same at each."""
    paths: dict[str, dict[str, Any]] = {}
    for route, pattern in _endpoints(get_resolver().url_patterns, ""):
        view = pattern.callback.view_class
        path, parameters = _path(route, pattern)
        paths[path] = {"parameters": parameters} | {
            method: _operation(view, method.upper(), path) for method in _methods(view)
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
            "schemas": {"Answer": _ENVELOPE},
            "securitySchemes": {
                "session": {"type": "apiKey", "in": "header", "name": "X-Session-Token"},
            },
        },
    }


@require_safe
def document(request: HttpRequest) -> JsonResponse:
    return JsonResponse(describe())


def _endpoints(patterns, route: str) -> Iterator[tuple[str, URLPattern]]:
    for pattern in patterns:
        if not isinstance(pattern, URLPattern):
            yield from _endpoints(pattern.url_patterns, route + str(pattern.pattern))
        elif (route + str(pattern.pattern)).startswith(PREFIX) and issubclass(
            getattr(pattern.callback, "view_class", object), APIView
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


def _methods(view: type[APIView]) -> list[str]:
    return [name for name in view.http_method_names if name != "options"]


def _operation(view: type[APIView], method: str, path: str) -> dict[str, Any]:
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
        "responses": {str(status): _response(status) for status in sorted(statuses)},
    }
    if asked := re.findall(r"\?(\w+)=", said):
        operation["parameters"] = [
            {"name": name, "in": "query", "schema": {"type": "string"}} for name in asked
        ]
    if body := _body(view, method, said):
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _said(view: type[APIView]) -> dict[str, str]:
    """What the class's docstring says of each method (of both: of each), else the method's own."""
    text, _, both = " ".join((inspect.getdoc(view) or "").split()).partition("Both ")
    parts = _METHOD.split(text)[1:]
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    own = {name.upper(): inspect.getdoc(getattr(view, name)) or "" for name in _methods(view)}
    return {name: f"{(found.get(name) or own[name]).strip()} {both}".strip() for name in own}


def _summary(said: str) -> str:
    return said.lstrip(" :,")


def _body(view: type[APIView], method: str, said: str) -> dict[str, Any] | None:
    """What the docstring names, of the kinds that the form knows; what it does not name need not be sent."""
    given = view.input_class.get(method) if isinstance(view.input_class, dict) else view.input_class
    fields: dict[str, forms.Field] = given.base_fields if given is not None else {}
    names = re.findall(r'"(\w+)"', said.partition("}")[0]) if said.startswith("{") else []
    if method == "GET" or not names:
        return None
    properties = {name: _schema(fields[name]) if name in fields else {"type": "object"} for name in names}
    required = [name for name in names if name not in fields or fields[name].required]
    return {"type": "object", "required": required, "properties": properties}


def _schema(field: forms.Field) -> dict[str, Any]:
    if isinstance(field, forms.JSONField):
        return {"type": "object"}
    if isinstance(field, forms.BooleanField):
        return {"type": "boolean"}
    schema: dict[str, Any] = {"type": "string"}
    if isinstance(field, forms.EmailField):
        schema["format"] = "email"
    if limit := getattr(field, "max_length", None):
        schema["maxLength"] = limit
    return schema


def _response(status: int) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": "#/components/schemas/Answer"}}}
    if status in _BARE:
        content["text/html"] = {}
    answer: dict[str, Any] = {"description": _MEANINGS[status], "content": content}
    if status in (429, 503):
        answer["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return answer
