"""How a dataclass says which variables it is read from, and the marshmallow schema made of that.

A field's default is `setting(…)`, `dependent(…)` or `group(…)`, which are typed as what they
read. So a setting is one line, and mypy compares the line's two halves.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import EllipsisType
from typing import Any, TypeVar

from marshmallow import EXCLUDE, Schema, ValidationError, fields, missing

T = TypeVar("T")
Environment = Mapping[str, str | None]


class SettingsError(Exception):
    """Settings that the service cannot start with: one line for each fault."""


class Variable(fields.Field[T]):
    """One variable; `read` raises ValidationError for text that it cannot mean."""

    def __init__(
        self, name: str, read: Callable[[str, Environment], T], default: T | EllipsisType
    ) -> None:
        super().__init__(
            data_key=name,
            required=default is ...,
            load_default=missing if default is ... else default,
            error_messages={"required": "is not set."},
        )
        self._read = read

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> T:
        return self._read(value, data)


class Group(fields.Field[T]):
    """A value made of several variables, which stand in the environment beside all others."""

    def __init__(self, make: Callable[..., T], variables: Mapping[str, Any]) -> None:
        super().__init__()
        self.schema = schema_of(variables)
        self._make = make

    def deserialize(self, value: Any, attr: Any = None, data: Any = None, **_: Any) -> T:
        return self._make(**self.schema.load(data))


def setting(
    name: str, read: Callable[[str], T], default: T | EllipsisType = ..., *, secret: bool = False
) -> T:
    """Declare a dataclass field that is read from a variable; a `secret` is not in the repr."""
    return _declared(Variable(name, lambda text, _: read(text), default), secret)


def dependent(name: str, read: Callable[[str, Environment], T], default: T) -> T:
    """Like `setting`, for a variable whose meaning depends on others."""
    return _declared(Variable(name, read, default))


def group(make: Callable[..., T], **variables: Any) -> T:
    """Declare a dataclass field whose value `make` builds from several variables.

    `make` may raise ValidationError with a dictionary of variables and their faults.
    """
    return _declared(Group(make, variables))


def _declared(kind: fields.Field[T], secret: bool = False) -> T:
    field: Any = dataclasses.field(metadata={"kind": kind}, repr=not secret)
    return field  # type: ignore[no-any-return]


def schema_of(declared: Mapping[str, "dataclasses.Field[Any]"]) -> Schema:
    """Return the schema of a dataclass's fields, by name."""
    kinds = {name: field.metadata["kind"] for name, field in declared.items()}
    return Schema.from_dict(kinds)(unknown=EXCLUDE)  # the environment holds much else


def load(kind: type[T], environ: Environment) -> T:
    """Return the dataclass as `environ` gives it; raise SettingsError with every fault."""
    declared = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**schema_of(declared).load(environ))
    except ValidationError as error:
        faults = sorted(_faults(error.messages_dict), key=lambda fault: fault[0])
        raise SettingsError("\n".join(map(" ".join, faults))) from error


def _faults(messages: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield variables with what is wrong with them; those of a group lie one level deeper."""
    for name, found in messages.items():
        yield from _faults(found) if isinstance(found, Mapping) else ((name, one) for one in found)
