"""The SQL of enrichments."""

import json
from typing import Any, Final
from uuid import UUID

from service.domain.enrichment import Enrichment
from service.repositories.connection import Repository

# The share lock makes erasure, or a change of the email address, wait or be seen: nothing is stored
# for an erased account or a previous address.
UPSERT: Final = """
    INSERT INTO enrichments (user_id, person, company, source, fetched_at)
    SELECT user_id, $2::jsonb, $3::jsonb, $4, $5
      FROM users
     WHERE user_id = $1
       AND email_key = $6
       FOR SHARE
    ON CONFLICT (user_id) DO UPDATE
       SET person = excluded.person, company = excluded.company,
           source = excluded.source, fetched_at = excluded.fetched_at
"""

FIND: Final = """
    SELECT person, company, source, fetched_at
      FROM enrichments
     WHERE user_id = $1
"""

DELETE_OF_USER: Final = """
    DELETE FROM enrichments
     WHERE user_id = $1
"""


class EnrichmentRepository(Repository):
    """Enrichments, one statement per method."""

    async def keep(self, user_id: UUID, email_key: str, enrichment: Enrichment) -> None:
        """Store it, replacing an older one, if the account still has the email address."""
        await self._connection.execute(
            UPSERT,
            user_id,
            _to_json(enrichment.person),
            _to_json(enrichment.company),
            enrichment.source,
            enrichment.fetched_at,
            email_key,
        )

    async def find(self, user_id: UUID) -> Enrichment | None:
        row = await self._connection.fetchrow(FIND, user_id)
        if row is None:
            return None
        person, company = (value and json.loads(value) for value in (row["person"], row["company"]))
        return Enrichment(
            person=person, company=company, source=row["source"], fetched_at=row["fetched_at"]
        )

    async def delete_of_user(self, user_id: UUID) -> None:
        await self._connection.execute(DELETE_OF_USER, user_id)


def _to_json(document: dict[str, Any] | None) -> str | None:
    return None if document is None else json.dumps(document)
