"""The app API does what its description says: schemathesis makes requests from it, and reads every answer by it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.test import Client

from tests.fuzz.test_http import web
from tests.signin.conftest import CHOSEN, App, citizen, login, open_case

__all__ = ["citizen", "login", "open_case", "web"]
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture
def document(db):
    return Client().get("/_allauth/openapi.json").json()


def test_every_endpoint_is_in_it_by_a_name_of_its_own_and_says_what_it_does(document):
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method != "parameters"
    ]
    names = [operation["operationId"] for _, _, operation in operations]
    assert len(set(names)) == len(names) > 20
    assert all(operation["summary"] for _, _, operation in operations)
    login = document["paths"]["/_allauth/app/v1/auth/login"]["post"]
    asked = login["requestBody"]["content"]["application/json"]["schema"]
    assert asked["required"] == list(asked["properties"]) == ["username", "password"]
    change = document["paths"]["/_allauth/app/v1/account/password"]["post"]
    assert change["requestBody"]["content"]["application/json"]["schema"]["required"] == ["new_password"]
    for path, method, _ in operations:  # and each is one of ours
        assert Client().generic(method.upper(), path.replace("{", "").replace("}", "")).status_code != 405


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("who", ["nobody", "an owner", "somebody with an issued password"])
def test_every_answer_is_as_described(web, login, open_case, who):
    _, port, log = web
    app = App()
    if who == "an owner":
        assert app.sign_in(login.username, CHOSEN).status_code == 200
    elif who != "nobody":
        assert app.sign_in(login.username, open_case().password).status_code == 401
    document = f"http://127.0.0.1:{port}/_allauth/openapi.json"
    words = [document, "--checks", CHECKS, "--max-examples", "10", "--generation-deterministic", "--no-color"]
    words += [
        "--phases",
        "examples,coverage,fuzzing",
        "--continue-on-failure",
    ]
    if app.session:
        # What signs the session out is for another time: nothing would be left to ask.
        words += [
            "--header",
            f"X-Session-Token: {app.session}",
            "--exclude-path-regex",
            "auth/session|devices|report",
        ]
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", *words],
        env={**os.environ, "SCHEMATHESIS_HOOKS": ""},
        capture_output=True,
        text=True,
        cwd=log.parent,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Traceback" not in log.read_text()
