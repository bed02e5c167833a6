"""`users` and `admin`: accounts, as operators find, disable, erase, export and promote them."""

import argparse
import getpass
import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from service.cli.console import Commands, Environment, confirm
from service.cli.resources import open_services
from service.domain.clock import moment_text
from service.domain.errors import EmailNotConfirmed, UserNotFound
from service.domain.operators import OperatorError

if TYPE_CHECKING:
    from service.use_cases.personal_data import Found

_REASON: Final = "operator"
"""The reason in the log of what an operator does to an account."""


def add_commands(commands: Commands) -> None:
    users = commands.group("users", "Find, disable, erase and export accounts.")
    users.add("find", _find).add_argument("which", nargs="+", metavar="EMAIL|ID|HASH")
    erase = users.add("erase", _erase)
    erase.add_argument("--yes", action="store_true", help="do not ask")
    disable = users.add("disable", _disable)
    enable = users.add("enable", _enable)
    export = users.add("export", _export)
    for one in (disable, enable, erase, export):
        one.add_argument("which", metavar="EMAIL|ID|HASH")

    admin = commands.group("admin", "Manage the admins.")
    admin.add("create", _create_admin).add_argument("email")
    promote = admin.add("promote", _promote)
    promote.add_argument("email")
    promote.add_argument(
        "--unconfirmed",
        action="store_true",
        help="promote even if nobody has confirmed the email address",
    )
    promote.add_argument("--yes", action="store_true", help="do not ask")
    admin.add("demote", _demote).add_argument("email")
    admin.add("list", _list_admins)


async def _find(parsed: argparse.Namespace, environ: Environment) -> None:
    """Show accounts, with the hash that stands for each in the log."""
    missing = []
    async with open_services(environ) as services:
        for which in parsed.which:
            try:
                print(_described(await services.personal_data.find(which)), end="\n\n")
            except UserNotFound as error:
                missing.append(str(error))
    if missing:
        raise OperatorError("\n".join(missing))


def _described(found: "Found") -> str:
    user, code = found.user, found.code
    shown = {
        "id": user.user_id,
        "email": user.email,
        "role": user.role,
        "confirmed": _yes_or_no(user.email_confirmed),
        "disabled": _yes_or_no(user.disabled),
        "created": moment_text(user.created_at),
        "referrer": user.referrer_id or "none",
        "code": "none" if code is None else f"{code.code} until {moment_text(code.expires_at)}",
        "log_hash": found.log_hash,
    }
    return "\n".join(f"{name}={value}" for name, value in shown.items())


async def _disable(parsed: argparse.Namespace, environ: Environment) -> None:
    """Disable an account: its sessions and its referral code end."""
    await _set_disabled(parsed.which, environ, True)


async def _enable(parsed: argparse.Namespace, environ: Environment) -> None:
    """Let a disabled account sign in again."""
    await _set_disabled(parsed.which, environ, False)


async def _set_disabled(which: str, environ: Environment, disabled: bool) -> None:
    async with open_services(environ) as services:
        found = await services.personal_data.find(which)
        user = await services.users.set_disabled(found.user.user_id, disabled, _REASON)
        print(f"{user.email} is {'disabled' if disabled else 'enabled'}.")


async def _erase(parsed: argparse.Namespace, environ: Environment) -> None:
    """Erase an account, as its owner can."""
    async with open_services(environ) as services:
        user = (await services.personal_data.find(parsed.which)).user
        confirm(f"Erase {user.email} ({user.user_id}) for good?", yes=parsed.yes)
        await services.users.erase_anyone(user.user_id, _REASON)
        print(f"{user.user_id} is erased.")


async def _export(parsed: argparse.Namespace, environ: Environment) -> None:
    """Print all that is stored about an account, as JSON."""
    async with open_services(environ) as services:
        found = await services.personal_data.find(parsed.which)
        document = await services.personal_data.export(found.user.user_id)
        print(json.dumps(document, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> str:
    return moment_text(value) if isinstance(value, datetime) else str(value)


async def _create_admin(parsed: argparse.Namespace, environ: Environment) -> None:
    """Create an admin; the password is ADMIN_PASSWORD, prompted for, or read from a pipe."""
    if (password := environ.get("ADMIN_PASSWORD")) is None:
        interactive = sys.stdin.isatty()
        password = getpass.getpass("Password: ") if interactive else sys.stdin.readline().strip()
    async with open_services(environ) as services:
        await services.users.make_admin(parsed.email, password)
        print(f"{parsed.email} is an admin.")


async def _promote(parsed: argparse.Namespace, environ: Environment) -> None:
    """Give an account the role admin, and end its sessions."""
    async with open_services(environ) as services:
        try:
            promoted = await services.users.promote(parsed.email)
        except EmailNotConfirmed as error:
            who = f"Nobody has confirmed {parsed.email}: a stranger may have registered it"
            if not parsed.unconfirmed:
                raise OperatorError(
                    f"{who}. Have its owner confirm it or reset the password by mail, or add "
                    "--unconfirmed."
                ) from error
            confirm(f"{who}, and would be an admin. Promote it all the same?", yes=parsed.yes)
            promoted = await services.users.promote(parsed.email, unconfirmed=True)
        print(
            f"{parsed.email} is an admin, and has to sign in again."
            if promoted
            else f"{parsed.email} is an admin already."
        )


async def _demote(parsed: argparse.Namespace, environ: Environment) -> None:
    """Take the role admin from an account, and end its sessions."""
    async with open_services(environ) as services:
        await services.users.demote(parsed.email)
        print(f"{parsed.email} is no longer an admin, and has to sign in again.")


async def _list_admins(_: argparse.Namespace, environ: Environment) -> None:
    """List the admins: email address, id, since when, state."""
    async with open_services(environ) as services:
        for admin in await services.users.admins():
            print(
                admin.email,
                admin.user_id,
                f"since {moment_text(admin.promoted_at)}" if admin.promoted_at else "since before",
                "confirmed" if admin.email_confirmed else "not confirmed",
                "disabled" if admin.disabled else "enabled",
                sep="\t",
            )


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"
