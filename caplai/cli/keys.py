"""`caplai` keys: list, rotate, destroy."""

import sys

import click

from caplai.cli.group import WRONG_USE, Failure, load_config, main, ready


@main.group()
def keys() -> None:
    """The keyring: what issued passwords are derived from, and what protects the chosen ones."""


@keys.command("list")
def keys_list() -> None:
    """Show the keys' ids (never the keys), what each is doing, and what still needs it.

    \b
    active    the one of its kind that is used for what is new
    waiting   becomes active at that time, once every engine and web server can read it
    retired   used for nothing new; it is destroyed by itself when nothing needs it any more
    new       no engine or web server has noticed it yet
    """
    config = load_config()
    keyring = config.open_keyring()
    with ready(config):
        from caplai.service.keys import in_use, look
        from caplai.store.db import connect

        with connect() as conn:
            overview, used = look(conn, config.keys.silence), in_use(conn)
        readable = keyring.readable()
        known = {key.token for key in overview.keys}
        rows = [(key.kind, key.id, key.state, key.token) for key in overview.keys]
        rows += [(one.kind, one.id, "new", one) for one in sorted(readable - known, key=str)]
        begun = {kind for kind, _, state, _ in rows if state == "active"}
        click.echo(f"{'kind':<9} {'id':<16} {'':<9} needed by")
        for kind, key_id, state, one in sorted(rows, key=lambda row: row[0]):
            if state == "destroyed" and one not in readable:
                continue
            if state == "new" and kind not in begun and keyring.first(kind) == key_id:
                state = "active"  # as soon as anybody starts
            remarks = [used.get((kind, key_id), "")]
            if state == "waiting":
                since = next(key.not_before for key in overview.keys if key.token == one)
                remarks.append(f"not before {since.astimezone():%F %T}")
            if state in ("active", "waiting", "retired"):
                lacking = [process.name for process in overview.lack(one)]
                remarks += [f"lacked by {', '.join(lacking)}"] if lacking else []
                remarks += ["NOT READABLE HERE"] if one not in readable else []
            if state == "destroyed":
                remarks.append(f"remove it from {keyring.place}")
            click.echo(f"{kind:<9} {key_id:<16} {state:<9} {'; '.join(filter(None, remarks))}".rstrip())


@keys.command("rotate")
@click.argument("kind", type=click.Choice(["issuing", "pepper", "web", "oidc"]), default="issuing")
@click.option("--now", is_flag=True, help="Wait for nobody: for a key that others may know.")
def keys_rotate(kind: str, now: bool) -> None:
    """Add a key of this kind, which becomes the active one when every host can read it.

    \b
    issuing  new cases derive their passwords from it (the default)
    pepper   passwords chosen from now on are protected by it
    web      cookies and sessions are signed with it
    oidc     clients check by it who signed in (OpenID Connect); the first one is made so, too

    It becomes active once a time has passed (keys.lead, five minutes) and every running engine and
    web server has said that it can read it; nothing is to be restarted. Where hosts have keyrings of
    their own, copy it to them now. `caplai keys list` shows who still lacks it. The old key stays
    readable, and is destroyed by itself when nothing needs it any more.

    With --now it is active at once. A host that lacks it signs nobody in and decides no message until
    it has it. What the old key protects goes on until it ends: `caplai keys destroy ID --end-cases`
    ends the open cases of a compromised issuing key.
    """
    config = load_config()
    keyring = config.open_keyring()
    with ready(config):
        from caplai.service.keys import look, rotate
        from caplai.store.db import connect

        with connect() as conn:
            key = rotate(conn, keyring, kind, config.keys.lead, config.keys.silence, now=now)
            lacking = look(conn, config.keys.silence).lack(key.token)
        if now:
            click.echo(f"The active {kind} key is now {key.id}.")
        else:
            click.echo(
                f"The new {kind} key {key.id} becomes active at {key.not_before.astimezone():%T} or later, when every"
                " engine and web server can read it."
            )
        for process in lacking:
            click.echo(f"It cannot be read yet by: {process.kind} {process.name}")


@keys.command("destroy")
@click.argument("key_id", metavar="[ID]", required=False)
@click.option("--end-cases", is_flag=True, help="End the open cases of this issuing key first.")
def keys_destroy(key_id: str | None, end_cases: bool) -> None:
    """Destroy the retired keys that nothing needs any more (all of them, or this one).

    The engine does so by itself; this does it now, and says what still needs the others. Every host
    removes a destroyed key from its keyring within seconds, if it may write there.

    With --end-cases the issued passwords of this key end at once, for a key that is lost or known to
    others; whoever was sent one texts again. The active key must be rotated first.

    Exit status: 0 it is done, 1 something still needs the key.
    """
    if end_cases and key_id is None:
        raise Failure("Which key? --end-cases needs an id; see: caplai keys list", WRONG_USE)
    config = load_config()
    keyring = config.open_keyring()
    with ready(config):
        from caplai.service import keys
        from caplai.store.db import connect
        from caplai.store.keyring import SIGNING

        with connect() as conn:
            overview = keys.look(conn, config.keys.silence)
            known = [key for key in overview.keys if key_id in (None, key.id)]
            if key_id is not None and (not known or known[0].state != "retired"):
                state = known[0].state if known else "not known"
                raise Failure(f"The key {key_id} is {state}; only a retired one is destroyed.")
            if end_cases:
                if known[0].kind != "issuing":
                    raise Failure(f"{key_id} is no issuing key: it has no cases.", WRONG_USE)
                click.echo(f"{keys.end_cases(conn, known[0].id)} open cases have been ended.")
            kept = 0
            for key in known:
                if key.state != "retired":
                    continue
                lost = key_id is not None and key.kind in ("web", SIGNING) and overview.is_lost(key.token)
                if not lost and (why := keys.still_needed(conn, key, config.signin.session_age)):
                    kept += 1
                    click.echo(f"{key.kind} {key.id} is still needed by {why}.")
                elif keys.end(conn, key):
                    click.echo(f"{key.kind} {key.id} is destroyed.")
            overview = keys.look(conn, config.keys.silence)
        keyring.obey(overview.agreed())
        gone = {key.token for key in overview.keys if key.state == "destroyed"} & keyring.readable()
        if gone and keyring.writable:
            keyring.remove(gone)
        else:
            for one in sorted(gone, key=str):
                click.echo(f"Remove the {one.kind} key {one.id} from {keyring.place}.")
        if key_id is not None and kept:
            sys.exit(1)
