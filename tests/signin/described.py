"""Holds an answer of the app API to what the OpenAPI document says of it, and to nothing beside."""

import functools
import re

import jsonschema_rs

from caplai.portal.openapi import describe

_JSON = "application/json"


@functools.cache
def _document():
    """The document with its shapes closed: what is named is all there is. And which path is meant by a request's."""
    document = describe()
    for name, shape in document["components"]["schemas"].items():
        if "properties" in shape and name != "Answer":  # which is a part of a whole
            shape["additionalProperties"] = False
    known = [(re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), path) for path in document["paths"]]
    return document, known


@functools.cache
def _validator(path, method, status):
    document, _ = _document()
    answers = document["paths"][path][method]["responses"]
    assert str(status) in answers, f"{method} {path} answers {status}, and does not say so"
    schema = answers[str(status)]["content"][_JSON]["schema"]
    closed = {"components": document["components"], "allOf": [schema], "unevaluatedProperties": False}
    return jsonschema_rs.validator_for(closed, validate_formats=True)


def hold(method, path, response):
    """Assert that an answer in JSON is as described. `path` as the request had it, without what it asked."""
    if response["Content-Type"] != _JSON:
        return
    _, known = _document()
    fitting = [template for pattern, template in known if pattern.fullmatch(path)]
    described = min(fitting, key=lambda template: template.count("{"))  # `options` is no id
    _validator(described, method.lower(), response.status_code).validate(response.json())
