"""`caplai` clients: add, change, list, remove, rotate-secret."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

import click

from caplai.cli.group import WRONG_USE, Failure, load_config, main, ready

if TYPE_CHECKING:
    from allauth.idp.oidc.models import Client

    from caplai.config import Config


@main.group()
def clients() -> None:
    """Who may sign people in with their account here (OpenID Connect, docs/oidc.md)."""


@clients.command("add")
@click.argument("name")
@click.option("--redirect-uri", "redirect_uris", multiple=True, required=True, help="Exact; may be repeated.")
@click.option(
    "--scope", "scopes", multiple=True, help="What it may ask for beside openid: email, phone, bhxh_code."
)
@click.option(
    "--post-logout-uri",
    "post_logout_uris",
    multiple=True,
    help="Where people come back to who have signed out. Exact; may be repeated.",
)
@click.option("--public", is_flag=True, help="An app or a page that can keep no secret.")
@click.option("--trusted", is_flag=True, help="The agency's own: people are not asked for their consent.")
@click.option("--introspects", is_flag=True, help="It may ask about tokens of other clients, too.")
@click.option("--sector", help="Clients of one sector know a person by the same `sub`.")
def clients_add(
    name: str,
    redirect_uris: tuple[str, ...],
    scopes: tuple[str, ...],
    post_logout_uris: tuple[str, ...],
    public: bool,
    trusted: bool,
    introspects: bool,
    sector: str | None,
) -> None:
    """Register a client. NAME is what people read when they are asked.

    Prints the client's id and, once and never again, its secret. The first client also brings the key
    that signs (caplai keys rotate oidc).
    """
    config = load_config()
    keyring = config.open_keyring()
    with _registry(config, WRONG_USE) as registry:
        from caplai.service.keys import rotate
        from caplai.store.db import connect
        from caplai.store.keyring import SIGNING

        client, secret = registry.add(
            name,
            redirect_uris,
            scopes,
            post_logout_uris=post_logout_uris,
            public=public,
            trusted=trusted,
            introspects=introspects,
            sector=sector,
        )
        click.echo(f"client_id      {client.id}")
        if secret is not None:
            click.echo(f"client_secret  {secret}")
            click.echo("The secret is stored as a hash only: keep it now.")
        if not keyring.read().get(SIGNING):
            if not keyring.writable:
                click.echo(
                    f"Put an {SIGNING} key into {keyring.place} (docs/keys.md): nobody signs in without."
                )
                return
            with connect() as conn:
                key = rotate(conn, keyring, SIGNING, config.keys.lead, config.keys.silence)
            click.echo(
                f"The first {SIGNING} key {key.id} was made. Nobody signs in to clients before it is active: at"
                f" {key.not_before.astimezone():%T} or later, when every engine and web server can read it."
            )


@clients.command("change")
@click.argument("client_id")
@click.option("--name", help="What people read when they are asked.")
@click.option(
    "--redirect-uri", "redirect_uris", multiple=True, help="Exact; these and no others from now on."
)
@click.option(
    "--scope", "scopes", multiple=True, help="These and no others from now on; openid for it alone."
)
@click.option(
    "--post-logout-uri",
    "post_logout_uris",
    multiple=True,
    help="These and no others from now on; '' for none.",
)
@click.option("--sector", help="Only what it has: with another it would know nobody again.")
def clients_change(
    client_id: str,
    name: str | None,
    redirect_uris: tuple[str, ...],
    scopes: tuple[str, ...],
    post_logout_uris: tuple[str, ...],
    sector: str | None,
) -> None:
    """Change a client: what is given replaces what there is, the rest stays.

    So do its id, its secret, and the name (`sub`) by which it knows each person. A scope that is taken away
    is gone from its tokens at once.
    """
    if name is None and sector is None and not (redirect_uris or scopes or post_logout_uris):
        raise Failure("Say what to change: --name, --redirect-uri, --scope, --post-logout-uri.", WRONG_USE)
    with _registry(load_config(), WRONG_USE) as registry:
        client = registry.change(
            client_id,
            name=name,
            redirect_uris=redirect_uris,
            scopes=scopes,
            post_logout_uris=post_logout_uris,
            sector=sector,
        )
        _show(client)


@clients.command("list")
def clients_list() -> None:
    """Show the clients: what each may ask for, and where it sends people back to."""
    with _registry(load_config()) as registry:
        for client in registry.every():
            _show(client)


@clients.command("remove")
@click.argument("client_id")
def clients_remove(client_id: str) -> None:
    """Remove a client, with every code and token that it has."""
    with _registry(load_config()) as registry:
        click.echo(f"{registry.remove(client_id)} is removed; its tokens have ended.")


@clients.command("rotate-secret")
@click.argument("client_id")
def clients_rotate_secret(client_id: str) -> None:
    """Give a client a new secret; the old one ends at once, its tokens live on."""
    with _registry(load_config()) as registry:
        click.echo(f"client_secret  {registry.rotate_secret(client_id)}")


@contextmanager
def _registry(config: "Config", status: int = 1) -> Iterator[ModuleType]:
    """Inside: the database is ready; yields what keeps the clients. What that refuses ends us with its words and this
    status.
    """
    with ready(config):
        from caplai.portal.oidc import clients

        try:
            yield clients
        except clients.Refused as refused:
            raise Failure(str(refused), status) from None


def _show(client: "Client") -> None:
    data = client.data or {}
    marks = [client.type, *(["trusted"] if client.skip_consent else [])]
    marks += ["introspects"] if data.get("introspects") else []
    marks += [str(data["sector"])] if data.get("sector") else []
    click.echo(f"{client.id}  {client.name}  ({', '.join(marks)})")
    click.echo(f"    scopes: {' '.join(client.get_scopes())}")
    for uri in client.get_redirect_uris():
        click.echo(f"    {uri}")
    for uri in client.get_post_logout_redirect_uris():
        click.echo(f"    signed out: {uri}")
