"""Enrichment: what a data provider knows about a user, shown only to the user and admins."""

from collections.abc import Awaitable, Callable
from uuid import UUID

from service.domain.emails import Email, parse_email
from service.domain.enrichment import Enrichment
from service.domain.errors import EnrichmentNotFound
from service.domain.jobs import Job, RetryLater, poll_again
from service.postgresql.database import Database

Enrich = Callable[[Email], Awaitable[Enrichment | None]]
"""Asks a provider; raises RetryLater or ProviderUnavailable."""


class Enrichments:
    """What is known about users, stored separately from their accounts."""

    def __init__(self, database: Database, enrich: Enrich | None) -> None:
        self._database = database
        self._enrich = enrich

    async def find(self, user_id: UUID) -> Enrichment:
        """Return what is known about the user; raise EnrichmentNotFound."""
        enrichment = await self._database.read(lambda stored: stored.enrichments.find(user_id))
        if enrichment is None:
            raise EnrichmentNotFound
        return enrichment

    async def fetch(self, job: Job) -> None:
        """Ask the provider about a job's user, and store the answer."""
        user_id = UUID(job.payload["user_id"])
        user = await self._database.read(lambda stored: stored.users.find(user_id))
        if user is None or user.email is None or self._enrich is None:
            return
        email = parse_email(user.email)
        try:
            enrichment = await self._enrich(email)
        except RetryLater as retry_later:
            poll_again(job, retry_later)
            return
        if enrichment is not None:
            async with self._database.transaction() as repositories:
                await repositories.enrichments.keep(user_id, email.key, enrichment)
