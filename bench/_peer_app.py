"""What an integrator would build behind Kannel: a Django service that looks the account up, calls `set_password` and
answers the password. Tuned as production is: DEBUG off, no middleware that it does not need, a database connection
that stays, an index (the primary key) for the look-up, one statement for the change, Argon2id with our parameters.

PEER_DSN names the database, in which `prepare` has made its table.
"""

import json
import os
import re
import secrets

import psycopg
from django.conf import settings
from django.contrib.auth.hashers import Argon2PasswordHasher
from psycopg.conninfo import conninfo_to_dict

_PARTS = conninfo_to_dict(os.environ["PEER_DSN"])
_TEXT = re.compile(r"\s*BH\s*MK\W*(\d{10})\b", re.IGNORECASE)
_ISSUED = "Cap lai mat khau thanh cong. Tai khoan: {}/Mat khau: {}. Dung truoc 14:05 23/11/2026."
_MISMATCH = "So dien thoai va ma so BHXH khong khop hoac chua dang ky giao dich dien tu voi co quan BHXH."
_BAD = "Ma so BHXH phai gom 10 chu so. Soan: BH MK <ma so BHXH> gui 8079. Vi du: BH MK 0123456789"


class Argon2(Argon2PasswordHasher):
    time_cost, memory_cost, parallelism = 2, 19456, 1


settings.configure(
    DEBUG=False,
    SECRET_KEY=secrets.token_hex(),
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[],
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
    PASSWORD_HASHERS=[f"{__name__}.Argon2"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": _PARTS["dbname"],
            "USER": _PARTS.get("user", ""),
            "HOST": _PARTS.get("host", ""),
            "CONN_MAX_AGE": None,
        }
    },
    LOGGING_CONFIG=None,
)

import django  # noqa: E402

django.setup()

from django.contrib.auth.base_user import AbstractBaseUser  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import models  # noqa: E402
from django.http import HttpRequest, HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402


class Citizen(AbstractBaseUser):
    code = models.CharField(max_length=10, primary_key=True)
    phone = models.CharField(max_length=16)
    last_login = None

    class Meta:
        app_label = "auth"
        db_table = "peer_citizen"


def prepare(dsn: str) -> None:
    """Its table, with every account that ours has."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("drop table if exists peer_citizen")
        conn.execute(
            "create table peer_citizen as select code::varchar(10), phone::varchar(16), ''::varchar(128) as password"
            " from account"
        )
        conn.execute("alter table peer_citizen add primary key (code), alter password set not null")
        conn.execute("vacuum analyze peer_citizen")


def issue(request: HttpRequest) -> HttpResponse:
    """The reply to one text, as smsbox asks for it."""
    match = _TEXT.match(request.GET.get("text", ""))
    if match is None:
        return HttpResponse(_BAD, content_type="text/plain")
    phone = "+" + request.GET.get("from", "").lstrip("+ ")
    citizen = Citizen.objects.filter(code=match[1], phone=phone).first()
    if citizen is None:
        return HttpResponse(_MISMATCH, content_type="text/plain")
    password = f"{secrets.randbelow(10**6):06}"
    citizen.set_password(password)
    citizen.save(update_fields=["password"])
    return HttpResponse(_ISSUED.format(citizen.code, password), content_type="text/plain")


urlpatterns = [path("", issue)]
application = get_wsgi_application()


def serve(port: int) -> None:
    """As many processes as there are cores, each with threads enough that none waits for the disk."""
    from granian import Granian
    from granian.constants import Interfaces

    Granian(
        f"{__name__}:application",
        address="127.0.0.1",
        port=port,
        interface=Interfaces.WSGI,
        workers=len(os.sched_getaffinity(0)),
        blocking_threads=4,
        backlog=4096,
        websockets=False,
        log_enabled=False,
    ).serve()


def check(passwords: dict[str, str]) -> int:
    """How many of these (code → password) are the stored ones."""
    return sum(Citizen.objects.get(code=code).check_password(given) for code, given in passwords.items())


def main(arguments: list[str]) -> None:
    """`prepare`, `check PASSWORDS` (JSON), or `serve PORT`."""
    match arguments:
        case ["prepare"]:
            prepare(os.environ["PEER_DSN"])
        case ["check", passwords]:
            print(check(json.loads(passwords)))
        case ["serve", port]:
            serve(int(port))
