"""The SQL of decisions. A row never changes."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from service.domain.referrals import Decision, ReferralReason, ReferralState, Review
from service.repositories.connection import Repository

NEWEST_OF_REFERRAL: Final = """
    SELECT d.referral_id, d.sequence, d.state, d.review, d.reason, d.made_by, d.event_id, d.detail,
           d.decided_at, e.external_id AS event_external_id
      FROM decisions d
      LEFT JOIN events e USING (event_id)
     WHERE d.referral_id = $1
     ORDER BY d.sequence DESC
     LIMIT $2
"""

OF_EVENT: Final = """
    SELECT referral_id, sequence, state, review, reason, made_by, event_id, detail, decided_at
      FROM decisions
     WHERE referral_id = $1
       AND event_id = $2
     ORDER BY sequence
"""

# What a cap once refused is not given later, when a place is free again.
REFUSED: Final = """
    SELECT detail, event_id
      FROM decisions
     WHERE referral_id = $1
       AND reason = 'cap-reached'
       AND detail = ANY ($2)
"""


class DecisionRepository(Repository):
    """Decisions, one statement a method. They are written with the referral they change."""

    async def newest_of_referral(self, referral_id: UUID, limit: int) -> Sequence[Decision]:
        rows = await self._connection.fetch(NEWEST_OF_REFERRAL, referral_id, limit)
        return list(map(_decision, rows))

    async def of_event(self, referral_id: UUID, event_id: UUID) -> Sequence[Decision]:
        """Return the decisions that the event led to, in their order."""
        rows = await self._connection.fetch(OF_EVENT, referral_id, event_id)
        return list(map(_decision, rows))

    async def refused(
        self, referral_id: UUID, rules: Sequence[str]
    ) -> set[tuple[str, UUID | None]]:
        """Return which of these rules a cap has kept from giving something, and for which event."""
        rows = await self._connection.fetch(REFUSED, referral_id, rules)
        return {(row["detail"], row["event_id"]) for row in rows}


def _decision(row: Any) -> Decision:
    return Decision(
        **{
            **row,
            "state": ReferralState(row["state"]),
            "review": Review(row["review"]),
            "reason": ReferralReason(row["reason"]),
        }
    )
