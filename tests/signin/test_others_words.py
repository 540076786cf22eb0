"""What Django and django-allauth say to people is Vietnamese, too: allauth ships none."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import allauth
import pytest
from allauth.account.adapter import DefaultAccountAdapter
from allauth.mfa.adapter import DefaultMFAAdapter
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po
from django import forms
from django.test import Client
from django.utils import translation

import caplai

ALLAUTH = Path(allauth.__file__).parent
FOLDER = Path(caplai.__file__).parent / "locale_others" / "vi" / "LC_MESSAGES"
ROOMS = ("account", "core", "headless", "idp", "mfa")
"""Of allauth's applications those that we use."""
FOR_DEVELOPERS = ("admin.py", "apps.py", "models.py", "clientkit.py")
"""Names of tables and columns, and what only who registers a client reads."""
MARKS = {"_", "gettext", "gettext_lazy", "pgettext", "pgettext_lazy"}


def catalog():
    with open(FOLDER / "django.po", "rb") as file:
        return {(message.context, message.id): message.string for message in read_po(file) if message.id}


def test_all_that_allauth_can_say_is_translated():
    said, marks = set(), set()
    for room in ROOMS:
        for file in (ALLAUTH / room).rglob("*.py"):
            if file.name in FOR_DEVELOPERS or {"migrations", "tests"} & set(file.parts):
                continue
            for node in ast.walk(ast.parse(file.read_text())):
                name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
                marks.add(name)
                if name in MARKS:
                    words = [given.value for given in node.args if isinstance(given, ast.Constant)]
                    said.add((words[0] if name.startswith("p") else None, words[-1]))
    assert not marks & {"ngettext", "ngettext_lazy", "npgettext"}  # whose plurals nobody has written
    assert len(said) > 50
    words = catalog()
    assert said <= set(words)
    assert len(words) - len(said) == 3  # Django's
    for (_context, source), text in words.items():
        assert text
        assert re.findall(r"%\w|\{\w+\}", source) == re.findall(r"%\w|\{\w+\}", text)


def test_compiled_catalog_is_that_of_the_source():
    with open(FOLDER / "django.mo", "rb") as file:
        compiled = {one.id: one.string for one in read_mo(file) if one.id}
    by_id = {source: text for (_context, source), text in catalog().items()}
    assert len(compiled) == len(by_id)
    assert set(compiled.values()) == set(by_id.values())
    assert compiled.items() - by_id.items() <= {("Login", "Mã số BHXH")}


def _fields():
    for module in pkgutil.walk_packages(caplai.__path__, "caplai."):
        if re.search(r"\.(forms|inputs|recover|\w*api\w*|agreements|\w+_form)$", module.name):
            for _name, form in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                if issubclass(form, forms.BaseForm):
                    yield from form.base_fields.values()


def test_whatever_a_field_of_ours_says_is_vietnamese():
    said = [text for field in _fields() for text in field.error_messages.values()]
    said += [
        validator.message
        for field in _fields()
        for validator in field.validators
        if hasattr(validator, "message")
    ]
    said += DefaultAccountAdapter.error_messages.values()
    said += DefaultMFAAdapter.error_messages.values()
    assert len(said) > 60
    for text in said:
        with translation.override("en"):
            english = str(text)
        with translation.override("vi"):
            assert str(text) != english or not english


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("auth/login", {}),
        ("auth/login", {"username": "\0", "password": "\0"}),
        ("auth/login", {"username": "0123456789", "password": "x"}),
        ("auth/recover", {"code": ""}),
    ],
)
def test_an_app_hears_vietnamese(db, path, body):
    def said(language: str) -> list[str]:
        answer = Client().post(
            f"/_allauth/app/v1/{path}?lang={language}", body, content_type="application/json"
        )
        return [error["message"] for error in answer.json().get("errors", [])]

    vietnamese, english = said("vi"), said("en")
    assert len(vietnamese) == len(english) > 0
    assert not set(vietnamese) & set(english)
