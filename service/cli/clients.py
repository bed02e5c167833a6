"""`clients`: the OAuth clients, as operators make, change and delete them."""

import argparse
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from service.cli.console import CommandError, Commands, Environment, add_command
from service.domain.oauth import Client, ClientFaulty
from service.domain.scopes import OF_CLIENTS, Scope, parse_scopes, scopes_of, to_text
from service.domain.users import Role

if TYPE_CHECKING:
    from service.use_cases.oauth_clients import OAuthClients

LONGEST_OVERLAP_HOURS: Final = 24 * 30
WithClients: TypeAlias = "Callable[[Environment, Callable[[OAuthClients], Awaitable[None]]], None]"


def add_commands(commands: Commands, with_clients: WithClients) -> None:
    """Add the commands; `with_clients` runs work with the clients of the settings' database."""
    clients = commands.add_parser("clients", help="manage the OAuth clients").add_subparsers(
        required=True
    )
    create = add_command(
        clients,
        "create",
        partial(_create, with_clients),
        "make a client, and print its id, its secret and what it may do",
    )
    create.add_argument("name", help="what users are shown")
    create.add_argument(
        "--confidential", action="store_true", help="it runs on a server, and can keep a secret"
    )
    _add_rights(create)
    create.add_argument("--resource-server", action="store_true", help=_RESOURCE_SERVER)

    add_command(
        clients, "list", partial(_list, with_clients), "list them: grants, scopes, redirect URIs"
    )

    update = add_command(
        clients,
        "update",
        partial(_update, with_clients),
        "change what is given, and leave the rest",
    )
    update.add_argument("client_id")
    update.add_argument("--name", help="what users are shown")
    _add_rights(update)
    update.add_argument(
        "--resource-server", action=argparse.BooleanOptionalAction, help=_RESOURCE_SERVER
    )

    rotate = add_command(
        clients,
        "rotate-secret",
        partial(_rotate_secret, with_clients),
        "give a client a new secret, and print it",
    )
    rotate.add_argument("client_id")
    rotate.add_argument(
        "--overlap",
        type=_hours,
        default=timedelta(hours=24),
        metavar="HOURS",
        help="how long the present secret goes on working (default: 24; 0: it stops at once)",
    )

    delete = add_command(
        clients, "delete", partial(_delete, with_clients), "delete a client, and end its sessions"
    )
    delete.add_argument("client_id")


_RESOURCE_SERVER: Final = "it may introspect the tokens of all clients"


def _add_rights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--redirect-uri",
        action="append",
        metavar="URI",
        help="where browsers come back to; several are allowed",
    )
    parser.add_argument(
        "--scope",
        type=_scopes,
        metavar='"SCOPE …"',
        help="with a redirect URI: what users can allow the client (default: "
        f'"{to_text(scopes_of(Role.USER))}"); without one: what it may do for itself '
        "(default: nothing)",
    )
    parser.add_argument(
        "--own-scope",
        type=_scopes,
        metavar='"SCOPE …"',
        help="what the client may do for itself, without a user: of "
        f'"{to_text(OF_CLIENTS)}" (default: nothing)',
    )


def _scopes(text: str) -> frozenset[Scope]:
    try:
        return parse_scopes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; the scopes are {to_text(Scope)}") from error


def _hours(text: str) -> timedelta:
    hours = int(text)
    if not 0 <= hours <= LONGEST_OVERLAP_HOURS:
        raise argparse.ArgumentTypeError(f"must lie between 0 and {LONGEST_OVERLAP_HOURS}")
    return timedelta(hours=hours)


def _create(with_clients: WithClients, parsed: argparse.Namespace, environ: Environment) -> None:
    blank = Client(
        client_id="", name=parsed.name, secret_hash=None, redirect_uris=(), scopes=frozenset()
    )
    wished = _with_rights(blank, parsed)

    async def create(clients: "OAuthClients") -> None:
        client, secret = await clients.create(
            wished.name,
            public=not parsed.confidential,
            redirect_uris=wished.redirect_uris,
            scopes=wished.scopes,
            own_scopes=wished.own_scopes,
            resource_server=parsed.resource_server,
        )
        print(f"client_id={client.client_id}")
        if secret is not None:
            print(f"client_secret={secret}  # shown this once")
        print(_described(client))

    _run(with_clients, environ, create)


def _with_rights(client: Client, parsed: argparse.Namespace) -> Client:
    """Return the client with the redirect URIs and scopes that the command line names."""
    for_users = bool(client.redirect_uris)
    if parsed.redirect_uri is not None:
        client = replace(client, redirect_uris=tuple(dict.fromkeys(parsed.redirect_uri)))
    if client.redirect_uris:
        if parsed.scope is not None:
            client = replace(client, scopes=parsed.scope)
        elif not for_users:
            client = replace(client, scopes=scopes_of(Role.USER))
        return client if parsed.own_scope is None else replace(client, own_scopes=parsed.own_scope)
    if parsed.scope is None and parsed.own_scope is None:
        return client
    return replace(
        client, own_scopes=(parsed.scope or frozenset()) | (parsed.own_scope or frozenset())
    )


def _list(with_clients: WithClients, _: argparse.Namespace, environ: Environment) -> None:
    async def show(clients: "OAuthClients") -> None:
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

    _run(with_clients, environ, show)


def _update(with_clients: WithClients, parsed: argparse.Namespace, environ: Environment) -> None:
    given = (parsed.name, parsed.redirect_uri, parsed.scope, parsed.own_scope)
    if all(one is None for one in (*given, parsed.resource_server)):
        raise CommandError("There is nothing to change: see `clients update --help`.")

    def change(client: Client) -> Client:
        client = _with_rights(client, parsed)
        if parsed.name is not None:
            client = replace(client, name=parsed.name)
        if parsed.resource_server is not None:
            client = replace(client, resource_server=parsed.resource_server)
        return client

    async def update(clients: "OAuthClients") -> None:
        changed = await clients.update(parsed.client_id, change)
        print(_described(changed.client))
        if changed.narrowed:
            print(
                f"It may do less than before, so that its sessions have ended ({changed.ended}): "
                "users have to allow it again."
            )

    _run(with_clients, environ, update)


def _rotate_secret(
    with_clients: WithClients, parsed: argparse.Namespace, environ: Environment
) -> None:
    async def rotate(clients: "OAuthClients") -> None:
        client, secret = await clients.rotate_secret(parsed.client_id, parsed.overlap)
        print(f"client_secret={secret}  # shown this once")
        until = client.previous_secret_expires_at
        print(
            "The secret before it no longer works."
            if until is None
            else f"The secret before it works until {until:%FT%TZ}."
        )

    _run(with_clients, environ, rotate)


def _delete(with_clients: WithClients, parsed: argparse.Namespace, environ: Environment) -> None:
    async def delete(clients: "OAuthClients") -> None:
        ended = await clients.delete(parsed.client_id)
        print(f"{parsed.client_id} is deleted, and its sessions have ended ({ended}).")

    _run(with_clients, environ, delete)


def _run(
    with_clients: WithClients,
    environ: Environment,
    work: Callable[["OAuthClients"], Awaitable[None]],
) -> None:
    try:
        with_clients(environ, work)
    except ClientFaulty as error:
        raise CommandError(error) from error


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
