"""Answering a repeated request as the first one, whose transaction keeps the answer."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Generic, TypeVar
from uuid import UUID

from service.domain.clock import Clock
from service.domain.errors import IdempotencyKeyReused, InvalidToken
from service.domain.idempotency import KEPT_FOR, MOST_KEPT, IdempotencyKey
from service.postgresql.database import Database, Repositories
from service.repositories.idempotency_keys import Answer

T = TypeVar("T")


class AlreadyAnswered(Exception):
    """The request is a repetition; `answer` is what the first one got."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class AnswerOnce(Generic[T]):
    """A request's key, and how its result becomes an answer. Without a key it does nothing."""

    def __init__(self, key: IdempotencyKey | None, render: Callable[[T], Answer]) -> None:
        self._key = key
        self._render = render

    def around(self, database: Database) -> AbstractAsyncContextManager[Repositories]:
        """Return the context for work of one statement: a transaction only if there is a key."""
        return database.autocommit() if self._key is None else database.transaction()

    async def look(self, database: Database, now: datetime) -> None:
        """Raise what `claim` would, before expensive work that a repetition need not do."""
        if self._key is not None:
            async with database.autocommit() as repositories:
                await _refuse_second(repositories, self._key, now)

    async def claim(self, repositories: Repositories, now: datetime) -> None:
        """Claim the key, first thing in the transaction.

        Raises AlreadyAnswered if the request is a repetition, IdempotencyKeyReused if another
        request has the key, InvalidToken if its user has been erased.
        """
        if self._key is not None:
            await _claim(repositories, self._key, now)

    async def keep(
        self,
        repositories: Repositories,
        result: T,
        user_id: UUID | None,
        participant_id: UUID | None = None,
    ) -> None:
        """Keep the answer, last thing in the transaction.

        It holds data of `user_id`, or names `participant_id` as a company does.
        """
        if self._key is not None:
            await repositories.idempotency_keys.keep(
                self._key, self._render(result), user_id, participant_id
            )


class Refusals:
    """Keeps the refusal of a request whose transaction was rolled back."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def keep(self, key: IdempotencyKey, answer: Answer) -> None:
        """Keep `answer`, unless another request has claimed the key or the user is erased."""
        try:
            async with self._database.transaction() as repositories:
                await _claim(repositories, key, self._clock())
                await repositories.idempotency_keys.keep(key, answer, key.user_id)
        except (AlreadyAnswered, IdempotencyKeyReused, InvalidToken):
            pass


async def _claim(repositories: Repositories, key: IdempotencyKey, now: datetime) -> None:
    """Claim the key, one of a user's at a time, so that `delete_surplus` counts exactly."""
    stored = repositories.idempotency_keys
    if key.user_id is not None and await repositories.users.hold(key.user_id) is None:
        raise InvalidToken  # erased since the session was checked
    if not await stored.claim(key, now, now - KEPT_FOR):
        await _refuse_second(repositories, key, now)
    elif key.user_id is not None:
        await stored.delete_surplus(key, MOST_KEPT)


async def _refuse_second(repositories: Repositories, key: IdempotencyKey, now: datetime) -> None:
    first = await repositories.idempotency_keys.find(key, now - KEPT_FOR)
    if first is None:
        return
    fingerprint, answer = first
    if fingerprint != key.fingerprint:
        raise IdempotencyKeyReused
    raise AlreadyAnswered(answer)
