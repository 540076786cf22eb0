"""`caplai demo`: the whole service with sample citizens and a simulated carrier, in a folder of its own."""

import importlib.util
import json
import os
import random
import shlex
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import click

from caplai import processes
from caplai.config import Config, TextSettings, load

CITIZENS = 1000
PHONES_PORT = 8001
"""The virtual phones' port, if it is free."""
EXAMPLE_PORT = 9000
"""The example client's, likewise."""
_EXAMPLE = "Phòng khám ví dụ"
_PATIENCE = 20.0
"""Seconds that a step may take at the most."""
_MARK = "caplai_demo_is_being_made"
"""The table that says whose a database is from before its migrations until the switch `demo` says it."""


class Refused(Exception):
    """The demo will not run here; the text says why and what to do."""


class _Failed(Exception):
    """A step of the script did not happen."""


def run(config: Config, *, script: bool) -> int:
    """Start all; show the addresses until stopped, or walk through the script. Returns the exit status.

    It follows the user's configuration, but for the reply texts, the links, the keys and the public address,
    which are its own. Raises Refused, LocalPostgresError, ChildFailed.
    """
    click.echo("caplai demo: starting (the first time takes some seconds more)")
    smpp_port = processes.free_port("127.0.0.1", 0)
    own = _environment(config, smpp_port)
    # The virtual phones have a port to remember, unless nobody will look at them or any port was asked for.
    phones_port = 0 if script or config.port == 0 else PHONES_PORT
    Path(own["CAPLAI_DATA_DIR"]).mkdir(parents=True, exist_ok=True)
    os.environ.update(own)
    config = load()
    children = processes.Children()
    try:
        with processes.database(config, adopt=True) as database:
            try:
                citizens = _prepare(config)
                phones = _start_simulator(children, config, smpp_port, phones_port, citizens)
                pages = _start_service(children, config)
                if script:
                    return _script(config, citizens, phones, pages)
                _show(config, citizens, phones, pages)
                _show_example(config, pages)
                click.echo("\nCtrl-C stops all of it.")
                processes.tend_until_stopped(children, database)
            finally:
                children.stop()
    except processes.Stopped as stopped:
        click.echo("\ncaplai demo: stopped")
        return stopped.status if script else 0
    return 0


def _environment(config: Config, smpp_port: int) -> dict[str, str]:
    """What is the demo's own, over the user's configuration."""
    folder = (config.data_dir / "demo").absolute()
    # A port that was asked for is taken as it is; otherwise any free one will do, so that two demos can run.
    port = _free(config.address, config.port)
    if port is None and "CAPLAI_PORT" in os.environ:
        raise Refused(f"Port {config.port} is in use. Choose another with CAPLAI_PORT.")
    port = port or _free(config.address, 0)
    if port is None:
        raise Refused(f"Cannot listen on {config.address}. Choose another with CAPLAI_ADDRESS.")
    link = {
        "name": "demo",
        "host": "127.0.0.1",
        "port": smpp_port,
        "system_id": "caplai",
        "password": "secret",
        "short_codes": config.service.short_codes,
    }
    own = {
        "CAPLAI_DATA_DIR": str(folder),
        "CAPLAI_KEYRING": str(folder / "keyring.json"),
        "CAPLAI_PORT": str(port),
        "CAPLAI_LINKS": json.dumps([link]),
        "CAPLAI_SERVICE__MT_LINK": "demo",
        # A demo is watched by people, and may run beside a service whose ports these are.
        "CAPLAI_WATCH__ENGINE_PORT": "0",
        "CAPLAI_WATCH__WEB_PORT": "0",
    }
    # The script finds the password in the reply.
    own |= {f"CAPLAI_TEXTS__{name.upper()}": text for name, text in TextSettings().model_dump().items()}
    if config.public_url is not None:
        own["CAPLAI_PUBLIC_URL"] = processes.url(config.address, port)
    return own


def _free(address: str, port: int) -> int | None:
    try:
        return processes.free_port(address, port)
    except OSError:
        return None


def _prepare(config: Config) -> list[dict[str, str]]:
    """Tables and sample citizens in a database that is empty or a demo's. Raises Refused for any other."""
    processes.setup_django()
    from django.db import connection, transaction

    with transaction.atomic(), connection.cursor() as cursor:
        # Not while another command makes the tables of an empty database: it would look like neither.
        cursor.execute("select pg_advisory_xact_lock(%s)", [processes.MIGRATION_LOCK])
        cursor.execute(_TABLES)
        tables = {name for (name,) in cursor.fetchall()}
        if not tables:
            cursor.execute(f"create table {_MARK} ()")
        elif _MARK not in tables and not _has_switch(cursor, tables):
            raise Refused(_foreign(config))
    processes.migrate()
    from caplai.service.register import import_accounts
    from caplai.store.db import connect
    from caplai.store.models import Switch

    with transaction.atomic(), connection.cursor() as cursor:
        Switch.objects.get_or_create(name="demo", defaults={"value": True})
        cursor.execute(f"drop table if exists {_MARK}")
    connection.close()
    citizens = sample_citizens(CITIZENS)
    rows = [f"{citizen['code']},{citizen['phone']},,approved" for citizen in citizens]
    with connect() as conn:
        import_accounts(conn, ["code,phone,email,state", *rows])
    return citizens


# Tables, views and sequences of all schemas, but those that came with an extension (pg_depend, deptype e).
_TABLES = """
select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
  and not exists (select from pg_depend d
                  where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
"""


def _has_switch(cursor: Any, tables: set[str]) -> bool:
    if "switch" not in tables:
        return False
    cursor.execute(
        "select column_name from information_schema.columns where table_name = 'switch'"
        " and table_schema = current_schema()"
    )
    if not {"name", "value"} <= {name for (name,) in cursor.fetchall()}:
        return False  # a table of that name that is somebody else's
    cursor.execute("select exists (select from switch where name = 'demo')")
    return cursor.fetchone()[0]


def _foreign(config: Config) -> str:
    if config.database_url is None:
        mend = f"move {config.data_dir / 'postgres'} away, or name another data folder with CAPLAI_DATA_DIR."
    else:
        mend = "unset CAPLAI_DATABASE_URL, or name another."
    return (
        "This database holds something else. The demo fills its database with sample citizens, so it takes"
        f" only an empty one: {mend}"
    )


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
    children: processes.Children,
    config: Config,
    smpp_port: int,
    phones_port: int,
    citizens: list[dict[str, str]],
) -> str:
    file = config.data_dir / "citizens.json"
    file.write_text(json.dumps(citizens, ensure_ascii=False), "utf-8")
    http_port = _free("127.0.0.1", phones_port) or processes.free_port("127.0.0.1", 0)
    ports = ("--smpp-port", str(smpp_port), "--http-port", str(http_port))
    words = ("--keyword", config.service.keyword, "--command", config.service.command)
    service = ("--short-code", config.service.short_codes[0], *words, "--citizens", str(file))
    children.start("simulator", *ports, *service, "--quiet")
    children.wait_for_port("127.0.0.1", http_port, _PATIENCE)
    return processes.url("127.0.0.1", http_port)


def _start_service(children: processes.Children, config: Config) -> str:
    children.start("engine", "--quiet")
    children.start("web", "--quiet")
    children.wait_for_port(config.address, config.port, _PATIENCE)
    return processes.url(config.address, config.port)


def _message(config: Config, code: str) -> str:
    """What a citizen texts."""
    return f"{config.service.keyword} {config.service.command} {code}"


def _show(config: Config, citizens: list[dict[str, str]], phones: str, pages: str) -> None:
    click.echo(f"\n  the virtual phone   {phones}\n  the sign-in page    {_named(config, pages)}\n")
    click.echo(f"Three of the {len(citizens)} citizens to try:\n")
    for citizen in citizens[:3]:
        text = _message(config, citizen["code"])
        click.echo(f"  {citizen['name']:<20} phone {citizen['phone']}   text: {text}")
    short_code = config.service.short_codes[0]
    click.echo(f"\nText it to {short_code} from the virtual phone, then sign in with what comes back.")


def _named(config: Config, pages: str) -> str:
    """The pages' address for browsers, which have passkeys for names only, and for this one without https."""
    return pages.replace("//127.0.0.1:", "//localhost:") if config.public_url is None else pages


def _show_example(config: Config, pages: str) -> None:
    """Register the example client, and say how it is started; nothing where it is not at hand, as in a wheel."""
    program = Path(__file__).parents[1] / "examples" / "oidc-client" / "client.py"
    keyring = config.open_keyring()
    if not program.exists() or not keyring.writable:
        return
    from django.db import connection

    from caplai.portal.oidc import clients
    from caplai.service.keys import rotate
    from caplai.store.db import connect
    from caplai.store.keyring import SIGNING

    wanted = 0 if config.port == 0 else EXAMPLE_PORT
    port = _free("127.0.0.1", wanted) or processes.free_port("127.0.0.1", 0)
    base = f"http://127.0.0.1:{port}"
    back, bye = [f"{base}/back"], [f"{base}/"]
    client = next((one for one in clients.every() if one.name == _EXAMPLE), None)
    if client is None:
        client, _ = clients.add(_EXAMPLE, back, ["phone"], post_logout_uris=bye, public=True)
    else:
        clients.change(client.id, redirect_uris=back, post_logout_uris=bye)
    connection.close()
    if not keyring.read().get(SIGNING):  # at once: there is no other host that has to read it first
        with connect() as conn:
            rotate(conn, keyring, SIGNING, config.keys.lead, config.keys.silence, now=True)
    python = _from_here(Path(sys.executable))
    words = [
        python,
        _from_here(program),
        "--issuer",
        _named(config, pages).rstrip("/"),
        "--client-id",
        client.id,
    ]
    words += [] if port == EXAMPLE_PORT else ["--port", str(port)]
    click.echo("\nAnother site, which people sign in to with their account here. In a second terminal:\n")
    if importlib.util.find_spec("authlib") is None:
        click.echo(f"  {python} -m pip install authlib")
    click.echo(f"  {shlex.join(words)}")


def _from_here(path: Path) -> str:
    """As one types it: relative, where it is in this folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


# --- the script ------------------------------------------------------------------------------------


def _script(config: Config, citizens: list[dict[str, str]], phones: str, pages: str) -> int:
    citizen = random.choice(citizens)  # noqa: S311 - another one each time, or the limits would end it
    try:
        _walk_through(config, citizen, phones, pages)
    except (_Failed, OSError) as error:
        click.echo(f"\nIt did not work: {error}.", err=True)
        return 1
    click.echo("\nAll of it happened.")
    return 0


def _walk_through(config: Config, citizen: dict[str, str], phones: str, pages: str) -> None:
    code, phone = citizen["code"], citizen["phone"]
    short_code = config.service.short_codes[0]
    api = f"{pages}_allauth/app/v1/auth"
    click.echo(f"\n{citizen['name']} has forgotten the password and takes the phone {phone}.\n")
    text = _message(config, code)
    click.echo(f"  phone -> {short_code}   {text}")
    started = time.monotonic()
    reply = _text(phones, phone, short_code, text)
    click.echo(f"  {short_code} -> phone   {reply}")
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


def _text(phones: str, phone: str, short_code: str, text: str) -> str:
    """Text the short code from the virtual phone and wait for the next message that comes."""
    conversation = f"{phones}api/phones/{phone}"
    seen = {message["id"] for message in _get(conversation)["messages"]}
    status, _ = _post(f"{conversation}/messages", {"to": short_code, "text": text})
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
