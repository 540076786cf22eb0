"""`caplai demo`: the whole service with sample citizens and a simulated carrier, in a folder of its own."""

import json
import os
import random
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import click

from caplai import processes
from caplai.config import Config

CITIZENS = 1000
SHORT_CODE = "8079"
PHONES_PORT = 8001
"""The virtual phones' port, if it is free."""
_PATIENCE = 20.0
"""Seconds that a step may take at the most."""


class Refused(Exception):
    """The demo will not run here; the text says why and what to do."""


class _Failed(Exception):
    """A step of the script did not happen."""


def run(config: Config, *, script: bool) -> int:
    """Start all; show the addresses until stopped, or walk through the script. Returns the exit status."""
    folder = config.data_dir / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["CAPLAI_DATA_DIR"] = str(folder)
    config = config.model_copy(update={"data_dir": folder})
    # A port that was asked for is taken as it is; otherwise any free one will do, so that two demos can run.
    port = _free(config.address, config.port)
    if port is None and "CAPLAI_PORT" in os.environ:
        raise Refused(f"Port {config.port} is in use. Choose another with CAPLAI_PORT.")
    os.environ["CAPLAI_PORT"] = str(port or processes.free_port(config.address, 0))
    children = processes.Children()
    try:
        with processes.stoppable():
            click.echo("caplai demo: starting (the first time takes some seconds more)")
            with processes.database(config, adopt=True):
                try:
                    citizens = _prepare()
                    smpp_port, phones = _start_simulator(children, citizens, folder)
                    pages = _start_service(children, config, smpp_port)
                    if script:
                        return _script(citizens, phones, pages)
                    _show(citizens, phones, pages)
                    processes.tend_until_stopped(children)
                finally:
                    children.stop()
    except processes.Stopped:
        click.echo("\ncaplai demo: stopped")
    return 0


def _free(address: str, port: int) -> int | None:
    try:
        return processes.free_port(address, port)
    except OSError:
        return None


def _prepare() -> list[dict[str, str]]:
    """Tables and sample citizens in a database that is empty or a demo's. Raises Refused for any other."""
    processes.setup_django()
    from django.db import connection

    with connection.cursor() as cursor:
        tables = set(connection.introspection.table_names(cursor))
        ours = not tables
        if "switch" in tables:
            cursor.execute("select exists (select from switch where name = 'demo')")
            ours = cursor.fetchone()[0]
    if not ours:
        raise Refused(
            "This database holds something else. The demo fills its database with sample citizens, so it takes"
            " only an empty one: unset CAPLAI_DATABASE_URL, or name another."
        )
    processes.migrate()
    from caplai.service.register import import_accounts
    from caplai.store.db import connect
    from caplai.store.models import Switch

    Switch.objects.get_or_create(name="demo", defaults={"value": True})
    connection.close()
    citizens = sample_citizens(CITIZENS)
    rows = [f"{citizen['code']},{citizen['phone']},,approved" for citizen in citizens]
    with connect() as conn:
        import_accounts(conn, ["code,phone,email,state", *rows])
    return citizens


_FAMILY = "Nguyễn Trần Lê Phạm Hoàng Huỳnh Phan Vũ Võ Đặng Bùi Đỗ Hồ Ngô".split()
_MIDDLE = "Văn Thị Hữu Ngọc Thanh Minh Quang Kim Đức Xuân Thu Gia".split()
_GIVEN = (
    "An Bình Châu Dũng Giang Hà Hạnh Hiền Hoa Hùng Khánh Lan Linh Mai Nam Nga Phúc Quân Sơn Tâm Thảo Trang"
    " Tuấn Vân Yến"
).split()


def sample_citizens(count: int) -> list[dict[str, str]]:
    """The same invented people each time: name, code, phone. About every tenth shares another's phone."""
    draw = random.Random(8079)  # noqa: S311 - sample data
    codes = draw.sample(range(10**10), count)
    numbers = draw.sample(range(10**6), count)
    citizens: list[dict[str, str]] = []
    for code, number in zip(codes, numbers, strict=True):
        name = f"{draw.choice(_FAMILY)} {draw.choice(_MIDDLE)} {draw.choice(_GIVEN)}"
        phone = f"+84327{number:06}"
        if citizens and draw.random() < 0.1:
            phone = citizens[-1]["phone"]
        citizens.append({"name": name, "code": f"{code:010}", "phone": phone})
    return citizens


def _start_simulator(
    children: processes.Children, citizens: list[dict[str, str]], folder: Path
) -> tuple[int, str]:
    file = folder / "citizens.json"
    file.write_text(json.dumps(citizens, ensure_ascii=False), "utf-8")
    smpp_port = processes.free_port("127.0.0.1", 0)
    http_port = _free("127.0.0.1", PHONES_PORT) or processes.free_port("127.0.0.1", 0)
    ports = ("--smpp-port", str(smpp_port), "--http-port", str(http_port))
    children.start("simulator", *ports, "--citizens", str(file), "--quiet")
    if not processes.wait_for_port("127.0.0.1", http_port, _PATIENCE):
        raise Refused("The simulator did not start; its error stands above.")
    return smpp_port, f"http://127.0.0.1:{http_port}/"


def _start_service(children: processes.Children, config: Config, smpp_port: int) -> str:
    link = {
        "name": "demo",
        "host": "127.0.0.1",
        "port": smpp_port,
        "system_id": "caplai",
        "password": "secret",
    }
    environment = {"CAPLAI_LINKS": json.dumps([link])}
    children.start("engine", "--quiet", environment=environment)
    children.start("web", "--quiet", environment=environment)
    port = int(os.environ["CAPLAI_PORT"])
    if not processes.wait_for_port(config.address, port, _PATIENCE):
        raise Refused("The web server did not start; its error stands above.")
    return f"http://{config.address}:{port}/"


def _show(citizens: list[dict[str, str]], phones: str, pages: str) -> None:
    click.echo(f"\n  the virtual phone   {phones}\n  the sign-in page    {pages}\n")
    click.echo(f"Three of the {len(citizens)} citizens to try:\n")
    for citizen in citizens[:3]:
        click.echo(f"  {citizen['name']:<20} phone {citizen['phone']}   text: BH MK {citizen['code']}")
    click.echo(f"\nText it to {SHORT_CODE} from the virtual phone, then sign in with what comes back.")
    click.echo("Ctrl-C stops all of it.")


# --- the script ------------------------------------------------------------------------------------


def _script(citizens: list[dict[str, str]], phones: str, pages: str) -> int:
    citizen = random.choice(citizens)  # noqa: S311 - another one each time, or the limits would end it
    try:
        _walk_through(citizen, phones, pages)
    except _Failed as error:
        click.echo(f"\nIt did not work: {error}.", err=True)
        return 1
    click.echo("\nAll of it happened.")
    return 0


def _walk_through(citizen: dict[str, str], phones: str, pages: str) -> None:
    code, phone = citizen["code"], citizen["phone"]
    api = f"{pages}_allauth/app/v1/auth"
    click.echo(f"\n{citizen['name']} has forgotten the password and takes the phone {phone}.\n")
    text = f"BH MK {code}"
    click.echo(f"  phone -> {SHORT_CODE}   {text}")
    started = time.monotonic()
    reply = _text(phones, phone, text)
    click.echo(f"  {SHORT_CODE} -> phone   {reply}")
    click.echo(f"                  ({(time.monotonic() - started) * 1000:.0f} ms later)\n")
    marker = "Mat khau: "
    if marker not in reply:
        raise _Failed("the reply holds no password")
    issued = reply.split(marker)[1].split(".")[0]

    status, answer = _post(f"{api}/login", {"username": code, "password": issued})
    pending = [flow["id"] for flow in answer.get("data", {}).get("flows", []) if flow.get("is_pending")]
    click.echo(f"  sign in with {issued}: {status}, pending: {', '.join(pending) or 'nothing'}")
    if status != 401 or pending != ["choose_password"]:
        raise _Failed("the issued password did not lead to choosing one")
    token = answer["meta"]["session_token"]

    chosen = f"cho Ben Thanh {random.randrange(10**6):06}"  # noqa: S311 - a sample citizen's
    status, answer = _post(f"{api}/choose_password", {"new_password": chosen}, token)
    click.echo(f"  choose '{chosen}': {status}")
    if status != 200 or not answer.get("meta", {}).get("is_authenticated"):
        raise _Failed("the chosen password was not taken")

    status, answer = _post(f"{api}/login", {"username": code, "password": chosen})
    who = answer.get("data", {}).get("user", {}).get("username")
    click.echo(f"  sign in with the chosen one: {status}, {who} is in")
    if status != 200 or who != code:
        raise _Failed("the chosen password does not sign in")

    status, _ = _post(f"{api}/login", {"username": code, "password": issued})
    click.echo(f"  sign in with the issued one again: {status}, it has been used")
    if status in (200, 401):
        raise _Failed("the issued password still leads in")


def _text(phones: str, phone: str, text: str) -> str:
    """Text the short code from the virtual phone and wait for the next message that comes."""
    conversation = f"{phones}api/phones/{phone}"
    seen = {message["id"] for message in _get(conversation)["messages"]}
    status, _ = _post(f"{conversation}/messages", {"to": SHORT_CODE, "text": text})
    if status != 202:
        raise _Failed(f"the virtual phone answered {status}")
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        for message in _get(conversation)["messages"]:
            if message["id"] not in seen and message["incoming"]:
                return message["text"]
        time.sleep(0.02)  # a person looks at the phone, too
    raise _Failed(f"no reply came within {_PATIENCE:.0f} s")


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - an address of our own
        return json.load(response)


def _post(url: str, body: dict[str, str], token: str | None = None) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json", **({"X-Session-Token": token} if token else {})}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - an address of our own
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        try:
            return error.code, json.load(error)
        except ValueError:
            return error.code, {}
