"""The SQL of decisions. A row never changes."""

from collections.abc import Sequence
from typing import Final
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
    SELECT state
      FROM decisions
     WHERE referral_id = $1
       AND event_id = $2
     ORDER BY sequence DESC
     LIMIT 1
"""


class DecisionRepository(Repository):
    """Decisions, one statement a method. They are written with the referral they change."""

    async def newest_of_referral(self, referral_id: UUID, limit: int) -> Sequence[Decision]:
        rows = await self._connection.fetch(NEWEST_OF_REFERRAL, referral_id, limit)
        return [
            Decision(
                **{
                    **row,
                    "state": ReferralState(row["state"]),
                    "review": Review(row["review"]),
                    "reason": ReferralReason(row["reason"]),
                }
            )
            for row in rows
        ]

    async def find_state_after(self, referral_id: UUID, event_id: UUID) -> ReferralState | None:
        """Return the state that the event led to, or None if it changed nothing."""
        state: str | None = await self._connection.fetchval(OF_EVENT, referral_id, event_id)
        return None if state is None else ReferralState(state)
