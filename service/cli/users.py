"""`users` and `admin`: accounts, as operators find, disable, erase, export and promote them."""

import argparse
import getpass
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from service.cli.console import CommandError, Commands, Environment, add_command, confirm
from service.domain.errors import EmailNotConfirmed, UserNotFound

if TYPE_CHECKING:
    from service.use_cases.personal_data import Found, PersonalData
    from service.use_cases.users import Users

WithUsers: TypeAlias = (
    "Callable[[Environment, Callable[[Users, PersonalData], Awaitable[None]]], None]"
)
_REASON: Final = "operator"
"""What the log says of who has disabled, enabled or erased an account."""


def add_commands(commands: Commands, with_users: WithUsers) -> None:
    """Add the commands; `with_users` runs work with the accounts of the settings' database."""
    users = commands.add_parser("users", help="find, disable, erase and export accounts")
    of_users = users.add_subparsers(required=True)
    find = add_command(
        of_users,
        "find",
        partial(_find, with_users),
        "show accounts, and what stands for them in the log",
    )
    find.add_argument("which", nargs="+", metavar="EMAIL|ID|HASH")
    disable = add_command(
        of_users,
        "disable",
        partial(_disable, with_users),
        "end an account's sessions and its code's life",
    )
    enable = add_command(
        of_users, "enable", partial(_enable, with_users), "let a disabled account sign in again"
    )
    erase = add_command(
        of_users, "erase", partial(_erase, with_users), "erase an account, as its owner can"
    )
    erase.add_argument("--yes", action="store_true", help="do not ask")
    export = add_command(
        of_users,
        "export",
        partial(_export, with_users),
        "print all that is held about a person, as JSON",
    )
    for one in (disable, enable, erase, export):
        one.add_argument("which", metavar="EMAIL|ID")

    admin = commands.add_parser("admin", help="manage the admins").add_subparsers(required=True)
    create = add_command(
        admin, "create", partial(_create_admin, with_users), "make an account with the role admin"
    )
    promote = add_command(
        admin,
        "promote",
        partial(_promote, with_users),
        "give an account the role admin; ends its sessions",
    )
    promote.add_argument(
        "--unconfirmed", action="store_true", help="even if nobody has confirmed the email address"
    )
    promote.add_argument("--yes", action="store_true", help="do not ask")
    demote = add_command(
        admin,
        "demote",
        partial(_demote, with_users),
        "take the role admin from an account; ends its sessions",
    )
    for one in (create, promote, demote):
        one.add_argument("email")
    add_command(
        admin,
        "list",
        partial(_list_admins, with_users),
        "list the admins: email address, id, since when, state",
    )


def _find(with_users: WithUsers, parsed: argparse.Namespace, environ: Environment) -> None:
    async def find(_: "Users", personal_data: "PersonalData") -> None:
        missing = []
        for which in parsed.which:
            try:
                print(_described(await personal_data.find(which)), end="\n\n")
            except UserNotFound as error:
                missing.append(str(error))
        if missing:
            raise CommandError("\n".join(missing))

    with_users(environ, find)


def _described(found: "Found") -> str:
    user, code = found.user, found.code
    told = {
        "id": user.user_id,
        "email": user.email,
        "role": user.role,
        "confirmed": _yes_or_no(user.email_confirmed),
        "disabled": _yes_or_no(user.disabled),
        "created": _moment(user.created_at),
        "referrer": user.referrer_id or "none",
        "code": "none" if code is None else f"{code.code} until {_moment(code.expires_at)}",
        "log_hash": found.log_hash,
    }
    return "\n".join(f"{name}={value}" for name, value in told.items())


def _disable(with_users: WithUsers, parsed: argparse.Namespace, environ: Environment) -> None:
    _set_disabled(with_users, parsed, environ, disabled=True)


def _enable(with_users: WithUsers, parsed: argparse.Namespace, environ: Environment) -> None:
    _set_disabled(with_users, parsed, environ, disabled=False)


def _set_disabled(
    with_users: WithUsers, parsed: argparse.Namespace, environ: Environment, *, disabled: bool
) -> None:
    async def set_disabled(users: "Users", personal_data: "PersonalData") -> None:
        found = await personal_data.find(parsed.which)
        user = await users.set_disabled(found.user.user_id, disabled, _REASON)
        print(f"{user.email} is {'disabled' if disabled else 'enabled'}.")

    with_users(environ, set_disabled)


def _erase(with_users: WithUsers, parsed: argparse.Namespace, environ: Environment) -> None:
    async def erase(users: "Users", personal_data: "PersonalData") -> None:
        user = (await personal_data.find(parsed.which)).user
        confirm(f"Erase {user.email} ({user.user_id}) for good?", yes=parsed.yes)
        await users.erase_anyone(user.user_id, _REASON)
        print(f"{user.user_id} is erased.")

    with_users(environ, erase)


def _export(with_users: WithUsers, parsed: argparse.Namespace, environ: Environment) -> None:
    async def export(_: "Users", personal_data: "PersonalData") -> None:
        found = await personal_data.find(parsed.which)
        document = await personal_data.export(found.user.user_id)
        print(json.dumps(document, indent=2, ensure_ascii=False, default=_plain))

    with_users(environ, export)


def _plain(value: Any) -> str:
    return _moment(value) if isinstance(value, datetime) else str(value)


def _create_admin(with_users: WithUsers, parsed: argparse.Namespace, environ: Environment) -> None:
    """Make an admin; the password comes from ADMIN_PASSWORD, the terminal or standard input."""
    if (given := environ.get("ADMIN_PASSWORD")) is not None:
        password = given
    else:
        interactive = sys.stdin.isatty()
        password = getpass.getpass("Password: ") if interactive else sys.stdin.readline().strip()

    async def create(users: "Users", _: "PersonalData") -> None:
        await users.make_admin(parsed.email, password)
        print(f"{parsed.email} is an admin.")

    with_users(environ, create)


def _promote(with_users: WithUsers, parsed: argparse.Namespace, environ: Environment) -> None:
    async def promote(users: "Users", _: "PersonalData") -> None:
        try:
            promoted = await users.promote(parsed.email)
        except EmailNotConfirmed as error:
            who = f"Nobody has confirmed {parsed.email}: a stranger may have registered it"
            if not parsed.unconfirmed:
                raise CommandError(
                    f"{who}. Have its owner confirm it or reset the password by mail, or add "
                    "--unconfirmed."
                ) from error
            confirm(f"{who}, and would be an admin. Promote it all the same?", yes=parsed.yes)
            promoted = await users.promote(parsed.email, unconfirmed=True)
        print(
            f"{parsed.email} is an admin, and has to sign in again."
            if promoted
            else f"{parsed.email} is an admin already."
        )

    with_users(environ, promote)


def _demote(with_users: WithUsers, parsed: argparse.Namespace, environ: Environment) -> None:
    async def demote(users: "Users", _: "PersonalData") -> None:
        await users.demote(parsed.email)
        print(f"{parsed.email} is no longer an admin, and has to sign in again.")

    with_users(environ, demote)


def _list_admins(with_users: WithUsers, _: argparse.Namespace, environ: Environment) -> None:
    async def show(users: "Users", _: "PersonalData") -> None:
        for admin in await users.admins():
            print(
                admin.email,
                admin.user_id,
                f"since {_moment(admin.promoted_at)}" if admin.promoted_at else "since before",
                "confirmed" if admin.email_confirmed else "not confirmed",
                "disabled" if admin.disabled else "enabled",
                sep="\t",
            )

    with_users(environ, show)


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
