"""`clients`: the OAuth clients, as operators make, change and delete them."""

import argparse
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from service.cli.console import Commands, Environment, between
from service.cli.resources import beside_dev
from service.domain.oauth import Client
from service.domain.operators import OperatorError
from service.domain.scopes import OF_CLIENTS, Scope, parse_scopes, scopes_of, to_text
from service.domain.users import Role
from service.settings.schema import load
from service.settings.settings import DatabaseSettings, ServerSettings
from service.telemetry.logs import set_up_logging

if TYPE_CHECKING:
    from service.use_cases.oauth_clients import OAuthClients

_USUAL: Final = scopes_of(Role.USER) - {Scope.REWARDS_READ}
"""What users can allow a client unless an operator says otherwise: nothing about money."""
_KEPT: Final = "unchanged if omitted"
_RESOURCE_SERVER: Final = "the client may introspect the tokens of all clients"


def add_commands(commands: Commands) -> None:
    clients = commands.group("clients", "Manage the OAuth clients.")
    create = clients.add("create", _create)
    create.add_argument("name", help="the name that users see")
    create.add_argument(
        "--confidential",
        action="store_true",
        help="the client runs on a server and can keep a secret",
    )
    _add_rights(
        create,
        redirect_uri="may be repeated",
        scope=f'default with a redirect URI: "{to_text(_USUAL)}"; without: nothing',
        own_scope=f'from "{to_text(OF_CLIENTS)}"',
    )
    create.add_argument("--resource-server", action="store_true", help=_RESOURCE_SERVER)
    clients.add("list", _list)
    update = clients.add("update", _update)
    update.add_argument("client_id")
    update.add_argument("--name", help=f"the name that users see ({_KEPT})")
    _add_rights(update, redirect_uri=f"replaces all; {_KEPT}", scope=_KEPT, own_scope=_KEPT)
    update.add_argument(
        "--resource-server",
        action=argparse.BooleanOptionalAction,
        help=f"{_RESOURCE_SERVER} ({_KEPT})",
    )
    rotate = clients.add("rotate-secret", _rotate_secret)
    rotate.add_argument("client_id")
    rotate.add_argument(
        "--overlap",
        type=between(0, 24 * 30),
        default=24,
        metavar="HOURS",
        help="how long the current secret keeps working (default: 24; 0: it stops at once)",
    )
    clients.add("delete", _delete).add_argument("client_id")


def _add_rights(
    parser: argparse.ArgumentParser, *, redirect_uri: str, scope: str, own_scope: str
) -> None:
    parser.add_argument(
        "--redirect-uri",
        action="append",
        metavar="URI",
        help=f"where browsers are redirected to ({redirect_uri})",
    )
    parser.add_argument(
        "--scope",
        type=_scopes,
        metavar='"SCOPE …"',
        help="with a redirect URI: what users can allow the client; without: what it may do on its "
        f"own behalf ({scope})",
    )
    parser.add_argument(
        "--own-scope",
        type=_scopes,
        metavar='"SCOPE …"',
        help=f"what it may do on its own behalf, without a user ({own_scope})",
    )


def _scopes(text: str) -> frozenset[Scope]:
    if unknown := set(text.split()) - set(Scope):
        raise argparse.ArgumentTypeError(
            f"{min(unknown)!r} is not a scope; the scopes are {to_text(Scope)}"
        )
    return parse_scopes(text)


async def _create(parsed: argparse.Namespace, environ: Environment) -> None:
    """Make a client, and print its id, its secret and what it may do."""
    blank = Client(
        client_id="", name=parsed.name, secret_hash=None, redirect_uris=(), scopes=frozenset()
    )
    wanted = _with_rights(blank, parsed)
    async with _open_clients(environ) as clients:
        client, secret = await clients.create(
            wanted.name,
            public=not parsed.confidential,
            redirect_uris=wanted.redirect_uris,
            scopes=wanted.scopes,
            own_scopes=wanted.own_scopes,
            resource_server=parsed.resource_server,
        )
        print(f"client_id={client.client_id}")
        if secret is not None:
            _print_secret(secret)
        print(_described(client))


def _with_rights(client: Client, parsed: argparse.Namespace) -> Client:
    """Return the client with the redirect URIs and scopes that the command line names."""
    for_users = bool(client.redirect_uris)
    if parsed.redirect_uri is not None:
        client = replace(client, redirect_uris=tuple(dict.fromkeys(parsed.redirect_uri)))
    if client.redirect_uris:
        if parsed.scope is not None:
            client = replace(client, scopes=parsed.scope)
        elif not for_users:
            client = replace(client, scopes=_USUAL)
        return client if parsed.own_scope is None else replace(client, own_scopes=parsed.own_scope)
    if parsed.scope is None and parsed.own_scope is None:
        return client
    own_scopes = (parsed.scope or frozenset()) | (parsed.own_scope or frozenset())
    return replace(client, own_scopes=own_scopes)


async def _list(_: argparse.Namespace, environ: Environment) -> None:
    """List the clients: grants, scopes, redirect URIs."""
    async with _open_clients(environ) as clients:
        for client in await clients.list_all():
            print(
                client.client_id,
                "confidential" if client.is_confidential else "public",
                repr(client.name),
                f"grants: {' '.join(sorted(client.grants)) or 'none'}",
                f"for users: {to_text(client.scopes) or 'none'}",
                f"for itself: {to_text(client.own_scopes) or 'none'}",
                f"resource server: {'yes' if client.resource_server else 'no'}",
                *client.redirect_uris,
                sep="\t",
            )


async def _update(parsed: argparse.Namespace, environ: Environment) -> None:
    """Change a client; whatever is not given stays as it is."""
    given = (parsed.name, parsed.redirect_uri, parsed.scope, parsed.own_scope)
    if all(one is None for one in (*given, parsed.resource_server)):
        raise OperatorError("There is nothing to change: see `clients update --help`.")

    def change(client: Client) -> Client:
        client = _with_rights(client, parsed)
        if parsed.name is not None:
            client = replace(client, name=parsed.name)
        if parsed.resource_server is not None:
            client = replace(client, resource_server=parsed.resource_server)
        return client

    async with _open_clients(environ) as clients:
        changed = await clients.update(parsed.client_id, change)
        print(_described(changed.client))
        if changed.narrowed:
            print(
                f"It may do less than before, and its sessions have ended ({changed.ended}): "
                "users have to allow it again."
            )


async def _rotate_secret(parsed: argparse.Namespace, environ: Environment) -> None:
    """Give a client a new secret, and print it."""
    async with _open_clients(environ) as clients:
        overlap = timedelta(hours=parsed.overlap)
        client, secret = await clients.rotate_secret(parsed.client_id, overlap)
        _print_secret(secret)
        until = client.previous_secret_expires_at
        print(
            "The previous secret no longer works."
            if until is None
            else f"The previous secret works until {until:%FT%TZ}."
        )


async def _delete(parsed: argparse.Namespace, environ: Environment) -> None:
    """Delete a client, and end its sessions."""
    async with _open_clients(environ) as clients:
        ended = await clients.delete(parsed.client_id)
        print(f"{parsed.client_id} is deleted, and its sessions have ended ({ended}).")


@asynccontextmanager
async def _open_clients(environ: Environment) -> AsyncIterator["OAuthClients"]:
    """Yield the OAuth clients of the settings' database; sessions that end leave Redis at once."""
    from service.postgresql.startup_check import check_database
    from service.services import open_clients

    environ = beside_dev(environ)
    settings = load(ServerSettings if environ.get("REDIS_URL") else DatabaseSettings, environ)
    await check_database(settings.database_url)
    set_up_logging("info", "auto")
    async with open_clients(settings) as clients:
        yield clients


def _print_secret(secret: str) -> None:
    """Print the secret on a line that can be copied or evaluated as a whole."""
    print(f"client_secret={secret}")
    print("The secret is not shown again.", file=sys.stderr)


def _described(client: Client) -> str:
    """Return in plain words what a client may do; one line that begins as the others do."""
    own = "; ".join(scope.own_meaning for scope in Scope if scope in client.own_scopes)
    for_users = "; ".join(scope.meaning for scope in Scope if scope in client.scopes)
    words = [
        f"For itself: {own or 'nothing'}.",
        f"For users who allow it: {for_users or 'nothing'}.",
        "It may introspect the tokens of all clients." if client.resource_server else "",
        "Nothing else.",
    ]
    return f'may="{" ".join(filter(None, words))}"'
