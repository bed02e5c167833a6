"""Whether a history can have happened, if the service keeps its promises.

An owner's live code is a register. Creations, replacements, deletions, the owner's own reads and
registrations with the code are answered by PostgreSQL, so all of them together must be
linearizable: there is an order, consistent with their times, in which each gets the answer that it
got. The search is the one of Wing and Gong in the form of Lowe ("Testing for linearizability",
2017): all configurations that are possible go from event to event, each a state and the pending
operations that have taken effect.

A look-up goes through the cache, and promises to be no older than the last write that was
answered. So each must fit into one of the orders found, by itself: while a write is under way two
look-ups may see it in either order.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from tests.faults.history import Operation, Window

MOST_CONFIGURATIONS: Final = 100_000


class State(NamedTuple):
    """An owner's live code, and how often it was used if that is limited."""

    code: str | None = None
    max_uses: int | None = None
    uses: int = 0


NOTHING: Final = State()


def after(operation: Operation, state: State) -> State | None:
    """Return the state after the operation; None if its answer is impossible in this state."""
    live = state.code is not None
    mine = live and state.code == operation.code
    new = State(operation.code, operation.max_uses)
    match operation.kind, operation.status:
        case ("create", 201 | 0) | ("replace", 201):
            allowed, result = not live, new
        case ("replace", 200):
            allowed, result = live, new
        case ("replace", 0):
            allowed, result = True, new
        case ("create", 409):
            allowed, result = live, state
        case ("delete", 204 | 0):
            allowed, result = live, NOTHING
        case ("delete" | "show" | "look_up", 404):
            allowed, result = not live, state
        case ("show" | "look_up", 200):
            allowed, result = mine and operation.uses in {None, state.uses}, state
        case ("register", 201 | 0):
            allowed, result = mine, _used(state)
        case ("register", 422):
            allowed, result = not mine, state
        case _:
            allowed, result = False, state
    return result if allowed else None


def _used(state: State) -> State:
    if state.max_uses is None:
        return state
    used = state._replace(uses=state.uses + 1)
    return NOTHING if used.uses >= state.max_uses else used


class Configuration(NamedTuple):
    """A state that may have been, and which pending operations had taken effect in it."""

    state: State
    done: frozenset[int] = frozenset()


Layer = dict[Configuration, set[Configuration]]
"""All that may have been between two events, and what each may have become before the second."""


class Event(NamedTuple):
    """An operation begins, or ends."""

    at: float
    ends: bool
    place: int


class Register:
    """What an owner's code may have been at each time, by the answers that PostgreSQL gave.

    Operations of unknown outcome did happen, at some time, or may have where that is not certain.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._operations = sorted(operations, key=lambda operation: operation.begun)
        self._pending: list[int] = []
        self._times = [-math.inf]
        self._states: list[set[State]] = []
        self.impossible: str | None = None
        """The first answer that cannot have been given, in words."""
        self._search()

    def may_have_given(self, look_up: Operation, windows: Sequence[Window]) -> bool:
        """Whether the answer was right at some time of the look-up, or of its windows."""
        begun = min(
            (
                window.since
                for window in windows
                if window.begin < look_up.ended and look_up.begun < window.end
            ),
            default=look_up.begun,
        )
        first = bisect_right(self._times, min(begun, look_up.begun)) - 1
        last = bisect_left(self._times, look_up.ended)
        return any(
            after(look_up, state) is not None
            for states in self._states[first:last]
            for state in states
        )

    def _search(self) -> None:
        layer = self._closed({Configuration(NOTHING)})
        layers = [layer]
        moves: list[dict[Configuration, Configuration]] = []
        for event in sorted(self._events()):
            (self._pending.remove if event.ends else self._pending.append)(event.place)
            moves.append({one: self._normal(past) for one in layer if (past := _past(event, one))})
            if not moves[-1]:
                self._complain(self._operations[event.place], layer)
                return
            layer = self._closed(moves[-1].values())
            layers.append(layer)
            self._times.append(event.at)
        musts = self._musts()
        alive = {one for one in layer if one.done.issuperset(musts)}
        if not alive:
            self._complain(self._operations[musts[0]], layer)
            return
        # Backwards, without those that lead nowhere.
        for layer, move in zip(reversed(layers), reversed([*moves, {}]), strict=True):
            if move:
                alive = {one for one, moved in move.items() if moved in alive}
            alive = _with_ancestors(alive, layer)
            self._states.append({one.state for one in alive})
        self._states.reverse()

    def _events(self) -> Iterator[Event]:
        for index, operation in enumerate(self._operations):
            yield Event(operation.begun, False, index)
            if operation.ended < math.inf:
                yield Event(operation.ended, True, index)

    def _musts(self) -> list[int]:
        return [index for index in self._pending if self._operations[index].certain]

    def _closed(self, entered: Iterable[Configuration]) -> Layer:
        """Let pending operations take effect, in every order."""
        layer: Layer = {}
        unexplored = list(entered)
        while unexplored:
            one = unexplored.pop()
            if one not in layer:
                layer[one] = {*map(self._normal, self._steps(one))}
                unexplored.extend(layer[one])
        if len(layer) > MOST_CONFIGURATIONS:
            raise RuntimeError("the history has too many requests at once to be checked")
        return layer

    def _normal(self, one: Configuration) -> Configuration:
        """Let all take effect that change nothing: that never makes anything impossible."""
        idle = [
            index
            for index in self._pending
            if index not in one.done and after(self._operations[index], one.state) == one.state
        ]
        return one._replace(done=one.done.union(idle)) if idle else one

    def _steps(self, one: Configuration) -> Iterator[Configuration]:
        a_deletion_may_have_happened = False
        for index in self._pending:
            operation = self._operations[index]
            if index in one.done:
                continue
            if operation.kind == "delete" and not operation.known:
                if a_deletion_may_have_happened:
                    continue  # the same as the one before, which came first
                a_deletion_may_have_happened = True
            state = after(operation, one.state)
            if state is not None:
                yield Configuration(state, one.done | {index})

    def _complain(self, operation: Operation, layer: Layer) -> None:
        states = sorted({str(one.state) for one in layer})
        self.impossible = f"{operation} cannot be, where there can be {', '.join(states)}"


def _past(event: Event, one: Configuration) -> Configuration | None:
    """Return the configuration after the event; None if it is impossible."""
    if not event.ends:
        return one
    return one._replace(done=one.done - {event.place}) if event.place in one.done else None


def _with_ancestors(alive: set[Configuration], layer: Layer) -> set[Configuration]:
    ancestors: dict[Configuration, list[Configuration]] = {}
    for one, successors in layer.items():
        for successor in successors:
            ancestors.setdefault(successor, []).append(one)
    unexplored = list(alive)
    found = set(alive)
    while unexplored:
        for ancestor in ancestors.get(unexplored.pop(), ()):
            if ancestor not in found:
                found.add(ancestor)
                unexplored.append(ancestor)
    return found
