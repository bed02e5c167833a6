"""`programmes`: the referral programmes and their rules."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from service.cli.console import Commands, Environment
from service.cli.resources import open_services
from service.domain.operators import OperatorError
from service.domain.pages import Cursor
from service.domain.referrals import SYSTEM

if TYPE_CHECKING:
    from service.use_cases.programmes import ShownProgramme

_AT_ONCE: Final = 100


def add_commands(commands: Commands) -> None:
    programmes = commands.group("programmes", "Manage the referral programmes.")
    programmes.add("list", _list)
    _add_key(programmes.add("show", _show))
    create = programmes.add("create", _create)
    _add_key(create)
    create.add_argument("name", metavar="NAME", help="the name that people see")
    _add_rules(create)
    rules = programmes.add("rules", _replace_rules)
    _add_key(rules)
    _add_rules(rules)
    for name, run in (("pause", _pause), ("resume", _resume), ("end", _end), ("reopen", _reopen)):
        _add_key(programmes.add(name, run))


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", help="the programme's key, such as default")


def _add_rules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="RULES.json", help="a JSON file with the rules")


async def _list(_: argparse.Namespace, environ: Environment) -> None:
    """List the programmes: key, version of the rules, state, name."""
    async with open_services(environ) as services:
        after: Cursor | None = None
        while True:
            page = await services.programmes.page(_AT_ONCE, after)
            for shown in page.items:
                print(_line(shown))
            if not isinstance(page.next_cursor, Cursor):
                return
            after = page.next_cursor


async def _show(parsed: argparse.Namespace, environ: Environment) -> None:
    """Show a programme and its current rules."""
    async with open_services(environ) as services:
        _print(await services.programmes.find(parsed.key))


async def _create(parsed: argparse.Namespace, environ: Environment) -> None:
    """Create a programme."""
    from service.api.programmes import NewProgrammeSchema
    from service.use_cases.idempotency import AnswerOnce
    from service.use_cases.programmes import NewProgramme

    rules = _read(parsed.file)
    new = _validated(NewProgrammeSchema(), {"key": parsed.key, "name": parsed.name, "rules": rules})
    async with open_services(environ) as services:
        once = AnswerOnce["ShownProgramme"](None, _render_nothing)
        _print(await services.programmes.create(NewProgramme(**new), SYSTEM, once))


async def _replace_rules(parsed: argparse.Namespace, environ: Environment) -> None:
    """Replace the rules; existing referrals keep those they were made under."""
    from service.api.rules import RulesSchema

    rules = _validated(RulesSchema(), _read(parsed.file))
    async with open_services(environ) as services:
        programmes = services.programmes
        version = (await programmes.find(parsed.key)).programme.version
        await programmes.replace_rules(parsed.key, version, rules, SYSTEM)
        _print(await programmes.find(parsed.key))


async def _pause(parsed: argparse.Namespace, environ: Environment) -> None:
    """Pause a programme: everything is recorded, but no reward becomes available."""
    await _change(parsed.key, environ, paused=True)


async def _resume(parsed: argparse.Namespace, environ: Environment) -> None:
    """Resume a paused programme."""
    await _change(parsed.key, environ, paused=False)


async def _end(parsed: argparse.Namespace, environ: Environment) -> None:
    """End a programme: its codes can no longer be used; its referrals continue."""
    await _change(parsed.key, environ, ended=True)


async def _reopen(parsed: argparse.Namespace, environ: Environment) -> None:
    """Reopen a programme that has ended."""
    await _change(parsed.key, environ, ended=False)


async def _change(
    key: str, environ: Environment, *, paused: bool | None = None, ended: bool | None = None
) -> None:
    from service.use_cases.programmes import ProgrammeChange

    async with open_services(environ) as services:
        change = ProgrammeChange(paused=paused, ended=ended)
        _print(await services.programmes.change(key, change))


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise OperatorError(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise OperatorError(f"{file} is not JSON in UTF-8: {error}.") from error


def _validated(schema: Any, document: Any) -> Any:
    """Return the document as the API would take it; raise OperatorError with every fault."""
    from marshmallow import ValidationError

    try:
        return schema.load(document)
    except ValidationError as error:
        raise OperatorError("\n".join(_faults(error.messages, ""))) from error


def _faults(messages: Any, pointer: str) -> Iterator[str]:
    if isinstance(messages, dict):
        for name, inner in messages.items():
            yield from _faults(inner, pointer if name == "_schema" else f"{pointer}/{name}")
    else:
        for message in messages:
            yield f"{pointer or '/'}: {message}"


def _state(shown: "ShownProgramme") -> str:
    programme = shown.programme
    if programme.ended_at is not None:
        return f"ended {programme.ended_at:%FT%TZ}"
    return "paused" if programme.paused else "running"


def _line(shown: "ShownProgramme") -> str:
    programme = shown.programme
    return "\t".join((programme.key, f"rules {programme.version}", _state(shown), programme.name))


def _print(shown: "ShownProgramme") -> None:
    print(_line(shown))
    print(json.dumps(shown.rules, indent=2, ensure_ascii=False))


def _render_nothing(_: object) -> NoReturn:
    raise AssertionError("no answer is kept without a key")
