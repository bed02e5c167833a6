"""The checker sees what is wrong, and nothing else."""

import math
from typing import Any

import pytest

from tests.faults.checker import Register
from tests.faults.history import Operation, Window


def did(
    begun: float, ended: float, kind: Any, status: int, code: str | None = None, **more: Any
) -> Operation:
    return Operation(
        kind=kind, owner="anna", begun=begun, ended=ended, status=status, code=code, **more
    )


CREATED = did(0, 1, "create", 201, "A")
REPLACED = did(4, 5, "replace", 200, "B")
LIMITED = did(0, 1, "create", 201, "A", max_uses=2)

POSSIBLE = {
    "nothing": [],
    "one after the other": [
        CREATED,
        did(2, 3, "show", 200, "A"),
        REPLACED,
        did(6, 7, "show", 200, "B"),
    ],
    "a read during a write sees either": [
        CREATED,
        REPLACED,
        did(4.1, 4.2, "show", 200, "A"),
        did(4.3, 4.4, "show", 200, "B"),
    ],
    "of two at once one is refused": [CREATED, did(0.5, 2, "create", 409, "B")],
    "a deletion between": [CREATED, did(2, 3, "delete", 204), did(4, 5, "create", 201, "B")],
    "unknown, and happened late": [
        CREATED,
        did(2, math.inf, "replace", 0, "B"),
        did(3, 4, "show", 200, "A"),
        did(5, 6, "show", 200, "B"),
    ],
    "a deletion of unknown outcome happened": [
        CREATED,
        did(2, math.inf, "delete", 0, certain=False),
        did(3, 4, "create", 201, "B"),
    ],
    "a deletion of unknown outcome did not happen": [
        CREATED,
        did(2, math.inf, "delete", 0, certain=False),
        did(3, 4, "create", 409, "B"),
    ],
    "used up": [
        LIMITED,
        did(2, 3, "register", 201, "A"),
        did(3.5, 3.6, "show", 200, "A", uses=1),
        did(4, 5, "register", 201, "A"),
        did(6, 7, "show", 404),
        did(6, 7, "register", 422, "A"),
    ],
    "used up by one of unknown outcome": [
        LIMITED,
        did(2, math.inf, "register", 0, "A"),
        did(4, 5, "register", 201, "A"),
        did(6, 7, "create", 201, "B"),
    ],
}

IMPOSSIBLE = {
    "a write is lost": [CREATED, did(2, 3, "show", 404)],
    "an old code": [CREATED, REPLACED, did(6, 7, "show", 200, "A")],
    "two live codes": [CREATED, did(2, 3, "create", 201, "B")],
    "new, then old, during a write": [
        CREATED,
        REPLACED,
        did(4.1, 4.2, "show", 200, "B"),
        did(4.3, 4.4, "show", 200, "A"),
    ],
    "unknown, and taken back": [
        CREATED,
        did(2, math.inf, "replace", 0, "B"),
        did(3, 4, "show", 200, "B"),
        did(5, 6, "show", 200, "A"),
    ],
    "a code that nobody made": [CREATED, did(2, 3, "show", 200, "C")],
    "one deletion of unknown outcome for two": [
        CREATED,
        did(2, math.inf, "delete", 0, certain=False),
        did(3, 4, "create", 201, "B"),
        did(5, 6, "create", 201, "C"),
    ],
    "a registration with a dead code": [CREATED, REPLACED, did(6, 7, "register", 201, "A")],
    "a refusal of a live code": [CREATED, did(2, 3, "register", 422, "A")],
    "more uses than max_uses": [LIMITED, *(did(2, 3, "register", 201, "A") for _ in range(3))],
    "a use that is not counted": [
        LIMITED,
        did(2, 3, "register", 201, "A"),
        did(4, 5, "show", 200, "A", uses=0),
    ],
    "refused, and nothing was there": [did(0, 1, "create", 409, "A")],
    "it happened, though nothing could be replaced": [did(0, math.inf, "register", 0, "A")],
}


@pytest.mark.parametrize("operations", POSSIBLE.values(), ids=POSSIBLE)
def test_what_can_happen_is_found_possible(operations: list[Operation]) -> None:
    assert Register(operations).impossible is None


@pytest.mark.parametrize("operations", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_cannot_happen_is_found_impossible(operations: list[Operation]) -> None:
    assert Register(operations).impossible is not None


@pytest.mark.parametrize(
    ("look_up", "possible"),
    [
        (did(2, 3, "look_up", 200, "A"), True),
        (did(2, 3, "look_up", 404), False),
        (did(2, 3, "look_up", 200, "B"), False),
        (did(4.5, 4.6, "look_up", 200, "A"), True),
        (did(4.5, 4.6, "look_up", 200, "B"), True),
        (did(4.9, 6, "look_up", 200, "A"), True),
        (did(5.1, 6, "look_up", 200, "A"), False),
        (did(-2, -1, "look_up", 404), True),
        (did(-2, -1, "look_up", 200, "A"), False),
    ],
)
def test_a_look_up_gives_what_was_live_at_its_time(look_up: Operation, possible: bool) -> None:
    assert Register([CREATED, REPLACED]).may_have_given(look_up, ()) is possible


@pytest.mark.parametrize(
    ("look_up", "possible"),
    [
        (did(9, 9.5, "look_up", 200, "A"), False),
        (did(9.9, 10.1, "look_up", 200, "A"), True),
        (did(11, 11.5, "look_up", 200, "A"), True),
        (did(12.1, 12.5, "look_up", 200, "A"), False),
        (did(11, 11.5, "look_up", 404), False),
    ],
)
def test_in_a_window_a_look_up_may_be_as_old_as_the_window_says(
    look_up: Operation, possible: bool
) -> None:
    window = Window(begin=10, end=12, since=4.5)
    assert Register([CREATED, REPLACED]).may_have_given(look_up, [window]) is possible


def test_what_a_later_answer_excludes_was_never_there() -> None:
    """The replacement of unknown outcome came after 6, because B was not there at 5."""
    late = did(2, math.inf, "replace", 0, "B")
    register = Register([CREATED, late, did(5, 6, "show", 200, "A"), did(8, 9, "show", 200, "B")])
    assert not register.may_have_given(did(3, 4, "look_up", 200, "B"), ())
    assert register.may_have_given(did(7, 8, "look_up", 200, "B"), ())
