"""What can be done with webhook endpoints, and how use cases announce what has happened."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final
from uuid import UUID

from uuid6 import uuid7

from service.domain.clock import Clock
from service.domain.errors import (
    Conflict,
    NotFound,
    RotationUnderWay,
    WebhookEndpointNotFound,
    WebhookUrlRefused,
)
from service.domain.pages import Cursor, Page
from service.domain.webhook_addresses import Networks, check_url
from service.domain.webhook_deliveries import (
    DeliveryState,
    Endpoint,
    EndpointCounts,
    Secrets,
    ShownDelivery,
)
from service.domain.webhooks import Announcement, endpoint_test
from service.postgresql.database import Database, Repositories, retried
from service.repositories.webhook_messages import NewMessage
from service.use_cases.idempotency import AnswerOnce

BEGUN_WITHIN_SECONDS: Final = 1.0
"""An attempt that has not begun so long after its delivery was claimed does not begin."""
SENT_WITHIN_SECONDS: Final = 5.0
"""After its delivery was claimed, an attempt has been sent or will not be: it has to begin, and
then to connect within three seconds."""
_LOOK_SECONDS: Final = 0.05
_FIRST_ID: Final = UUID(int=0)


def announce(repositories: Repositories, now: datetime, *announcements: Announcement) -> None:
    """Have messages, and their deliveries to all who listen, written with the transaction.

    All that a transaction announces is written last in it, by one statement; nothing where nobody
    listens, which takes another one to find out.
    """
    if announcements and not repositories.announcements:
        repositories.before_commit(partial(_write, repositories, now))
    repositories.announcements += announcements


async def _write(repositories: Repositories, now: datetime) -> None:
    announcements = repositories.announcements
    types = {each.type for each in announcements}
    if not await repositories.webhook_messages.has_listeners(types):
        return
    messages = [NewMessage(uuid7(), each.type, each.body(now)) for each in announcements]
    await repositories.webhook_messages.add(messages, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEndpoint:
    """Where a company listens; no `types` stand for all."""

    url: str
    types: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointChange:
    """What is to be changed; None leaves it as it is."""

    url: str | None = None
    types: Sequence[str] | None = None
    disabled: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSecrets:
    """The secret of an endpoint, and the previous one while it signs along."""

    secret: str
    previous: str | None


class Webhooks:
    """Webhook endpoints: creating, changing, deleting; secrets; their deliveries."""

    def __init__(
        self, database: Database, secrets: Secrets, networks: Networks, clock: Clock
    ) -> None:
        self._database = database
        self._secrets = secrets
        self._networks = networks
        self._clock = clock

    @retried
    async def create(self, new: NewEndpoint, once: AnswerOnce[Endpoint]) -> Endpoint:
        """Create an endpoint; raise WebhookUrlRefused, also if there are twenty."""
        check_url(new.url, self._networks)
        now = self._clock()
        endpoint = Endpoint(endpoint_id=uuid7(), url=new.url, types=new.types, created_at=now)
        async with self._database.transaction() as repositories:
            await once.claim(repositories, now)
            for slot in await repositories.webhook_endpoints.free_slots():
                if await repositories.webhook_endpoints.add(endpoint, slot):
                    break
            else:
                raise WebhookUrlRefused(
                    "There are already 20 endpoints, the most there can be. Delete one first."
                )
            await once.keep(repositories, endpoint, None)
        return endpoint

    async def page(self, limit: int, after: Cursor | None) -> Page[Endpoint]:
        """Return a page of the endpoints, newest first."""
        found = await self._database.read(lambda stored: stored.webhook_endpoints.list_all())
        place = after and (after.at, after.row_id)
        rest = [one for one in found if not place or (one.created_at, one.endpoint_id) < place]
        return Page.of(rest, limit, lambda last: Cursor(last.created_at, last.endpoint_id))

    async def find(self, endpoint_id: UUID) -> Endpoint:
        """Return an endpoint; raise WebhookEndpointNotFound."""
        async with self._database.autocommit() as repositories:
            return await _find(repositories, endpoint_id)

    @retried
    async def change(self, endpoint_id: UUID, change: EndpointChange) -> Endpoint:
        """Change an endpoint; raise WebhookEndpointNotFound or WebhookUrlRefused.

        Once this returns, no attempt follows that was meant for the endpoint as it was.
        """
        if change.url is not None:
            check_url(change.url, self._networks)
        now = self._clock()
        async with self._database.transaction() as repositories:
            endpoint = await repositories.webhook_endpoints.change(
                endpoint_id, change.url, change.types, change.disabled, now
            )
            if endpoint is None:
                raise WebhookEndpointNotFound
            if change.disabled:
                await repositories.webhook_deliveries.end_of_disabled(now)
        if change.disabled or change.url is not None:
            await self._wait_for_attempts(endpoint_id)
        return endpoint

    @retried
    async def delete(self, endpoint_id: UUID) -> None:
        """Delete an endpoint, which is sent nothing more; raise WebhookEndpointNotFound."""
        now = self._clock()
        async with self._database.transaction() as repositories:
            if not await repositories.webhook_endpoints.delete(endpoint_id, now):
                raise WebhookEndpointNotFound
            await repositories.webhook_deliveries.end_of_disabled(now)
        await self._wait_for_attempts(endpoint_id)

    async def secrets_of(self, endpoint_id: UUID) -> ShownSecrets:
        """Return the secrets that sign; raise WebhookEndpointNotFound."""
        now = self._clock()
        endpoint = await self.find(endpoint_id)
        number = endpoint.secret_number
        overlaps = endpoint.previous_until is not None and now < endpoint.previous_until
        return ShownSecrets(
            secret=self._secrets.text(endpoint_id, number),
            previous=self._secrets.text(endpoint_id, number - 1) if overlaps else None,
        )

    @retried
    async def rotate(self, endpoint_id: UUID, overlap: timedelta) -> Endpoint:
        """Sign with a new secret, and for a while with the previous one, too.

        Without an overlap only the new one signs from now on. Otherwise RotationUnderWay is raised
        while an older one signs along. Raises WebhookEndpointNotFound.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            await _find(repositories, endpoint_id)
            endpoint = await repositories.webhook_endpoints.rotate(
                endpoint_id, now, now + overlap if overlap else None
            )
            if endpoint is None:
                raise RotationUnderWay
        await self._wait_for_attempts(endpoint_id)
        return endpoint

    @retried
    async def test(self, endpoint_id: UUID) -> UUID:
        """Send a test to one endpoint; return the message's id.

        Raises WebhookEndpointNotFound, or Conflict if it is disabled.
        """
        now = self._clock()
        announcement = endpoint_test(endpoint_id)
        message = NewMessage(uuid7(), announcement.type, announcement.body(now))
        async with self._database.transaction() as repositories:
            await _find_enabled(repositories, endpoint_id)
            await repositories.webhook_messages.add_for_one(message, now, endpoint_id)
        return message.message_id

    async def replay(self, endpoint_id: UUID, since: datetime, *, only_failed: bool) -> int:
        """Send again what failed since then, or all that was sent; return how many messages.

        Raises WebhookEndpointNotFound, or Conflict if the endpoint is disabled.
        """
        now = self._clock()
        async with self._database.autocommit() as repositories:
            await _find_enabled(repositories, endpoint_id)
        replayed = 0
        after: Cursor | None = Cursor(since, _FIRST_ID)
        while after is not None:
            places = await self._replay(endpoint_id, after, now, only_failed=only_failed)
            replayed += len(places)
            after = places[0] if places else None
        return replayed

    @retried
    async def _replay(
        self, endpoint_id: UUID, after: Cursor, now: datetime, *, only_failed: bool
    ) -> list[Cursor]:
        async with self._database.autocommit() as repositories:
            return await repositories.webhook_deliveries.replay(
                endpoint_id, after, now, only_failed=only_failed
            )

    async def deliveries(
        self, endpoint_id: UUID, state: DeliveryState | None, limit: int, after: Cursor | None
    ) -> Page[ShownDelivery]:
        """Return a page of an endpoint's deliveries, newest first, with their attempts.

        Raises WebhookEndpointNotFound.
        """
        async with self._database.autocommit() as repositories:
            await _find(repositories, endpoint_id)
            found = await repositories.webhook_deliveries.newest(
                endpoint_id, state, limit + 1, after
            )
            attempts = await repositories.webhook_attempts.of_messages(
                endpoint_id, [delivery.message_id for delivery in found]
            )
        shown = [replace(one, attempts=attempts.get(one.message_id, ())) for one in found]
        return Page.of(shown, limit, lambda last: Cursor(last.created_at, last.message_id))

    @retried
    async def retry(self, endpoint_id: UUID, message_id: UUID) -> None:
        """Send a message again now, whatever became of it.

        Raises WebhookEndpointNotFound, NotFound if the endpoint was never sent it, or Conflict if
        the endpoint is disabled.
        """
        now = self._clock()
        async with self._database.autocommit() as repositories:
            await _find_enabled(repositories, endpoint_id)
            if not await repositories.webhook_deliveries.retry(endpoint_id, message_id, now):
                raise NotFound("This message has no delivery to this endpoint.")

    async def count(self) -> EndpointCounts:
        """Return how many endpoints are live, rest and are disabled."""
        return await self._database.read(lambda stored: stored.webhook_endpoints.count())

    async def _wait_for_attempts(self, endpoint_id: UUID) -> None:
        """Wait until attempts are over, or at least sent, whose deliveries were claimed before."""
        deadline = time.monotonic() + SENT_WITHIN_SECONDS
        async with self._database.autocommit() as repositories:
            begun = await repositories.jobs.under_way(endpoint_id, self._clock())
        while begun and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)
            async with self._database.autocommit() as repositories:
                begun = await repositories.jobs.still_under_way(begun)


async def _find(repositories: Repositories, endpoint_id: UUID) -> Endpoint:
    endpoint = await repositories.webhook_endpoints.find(endpoint_id)
    if endpoint is None:
        raise WebhookEndpointNotFound
    return endpoint


async def _find_enabled(repositories: Repositories, endpoint_id: UUID) -> None:
    """Raise what `_find` does, or Conflict if the endpoint is disabled: nothing would be sent."""
    if (await _find(repositories, endpoint_id)).disabled_at is not None:
        raise Conflict("The endpoint is disabled. Enable it first.")
