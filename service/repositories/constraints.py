"""From the name of a violated constraint to the error that the domain has for it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from asyncpg import IntegrityConstraintViolationError


@contextmanager
def on_violation(errors: Mapping[str, Callable[[], Exception]]) -> Iterator[None]:
    """Raise the error that `errors` holds for the constraint violated inside the block.

    Other violations pass through: an unexpected one is a bug, and must end as a 500.
    """
    try:
        yield
    except IntegrityConstraintViolationError as violation:
        error = errors.get(violation.constraint_name or "")
        if error is None:
            raise
        raise error() from violation
