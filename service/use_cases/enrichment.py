"""Enrichment: what a data provider knows about a user, shown only to the user and admins."""

from uuid import UUID

from service.domain.emails import parse_email
from service.domain.enrichment import Enrichment
from service.domain.errors import EnrichmentNotFound
from service.domain.jobs import Job, RetryLater, poll_again
from service.postgresql.database import Database
from service.providers.enrichment import Enricher


class Enrichments:
    """What is known about users, stored separately from their accounts."""

    def __init__(self, database: Database, enricher: Enricher | None) -> None:
        self._database = database
        self._enricher = enricher

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
        if user is None or user.email is None or self._enricher is None:
            return
        email = parse_email(user.email)
        try:
            enrichment = await self._enricher.enrich(email)
        except RetryLater as retry_later:
            poll_again(job, retry_later)
            return
        if enrichment is not None:
            async with self._database.transaction() as repositories:
                await repositories.enrichments.keep(user_id, email.key, enrichment)
