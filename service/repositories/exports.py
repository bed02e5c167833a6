"""The SQL of exporting whole tables in the order of their ids, a thousand rows a statement."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from service.repositories.connection import Repository

PARTICIPANTS: Final = """
    SELECT p.participant_id AS id, g.key AS programme, p.external_id, p.user_id, p.trusted,
           p.blocked_at, p.erased_at, s.public_name, p.created_at
      FROM participants p
      JOIN programmes g USING (programme_id)
      LEFT JOIN standings s USING (participant_id)
     WHERE p.participant_id > $1
     ORDER BY p.participant_id
     LIMIT 1000
"""

CODES: Final = """
    SELECT c.referral_code_id AS id, g.key AS programme, c.owner_id AS participant_id,
           p.external_id, c.code, c.created_at, c.expires_at, c.max_uses, c.ended_at, c.end_reason
      FROM referral_codes c
      JOIN programmes g USING (programme_id)
      LEFT JOIN participants p ON p.participant_id = c.owner_id
     WHERE c.referral_code_id > $1
     ORDER BY c.referral_code_id
     LIMIT 1000
"""

REFERRALS: Final = """
    SELECT r.user_id AS id, g.key AS programme, r.version, r.referrer_id,
           referrer.external_id AS referrer, referee.external_id AS referee, r.code, r.state,
           r.reason, r.review, r.flags, r.sequence, r.nth, r.registered_at, r.window_ends_at
      FROM referrals r
      JOIN programmes g USING (programme_id)
      LEFT JOIN participants referrer ON referrer.participant_id = r.referrer_id
      LEFT JOIN participants referee ON referee.participant_id = r.user_id
     WHERE r.user_id > $1
     ORDER BY r.user_id
     LIMIT 1000
"""

EVENTS: Final = """
    SELECT e.event_id AS id, g.key AS programme, e.external_id AS event_id, e.participant_id,
           p.external_id, e.type, e.amount, e.unit, e.refunds, e.occurred_at, e.received_at
      FROM events e
      JOIN programmes g USING (programme_id)
      LEFT JOIN participants p USING (participant_id)
     WHERE e.event_id > $1
     ORDER BY e.event_id
     LIMIT 1000
"""

DECISIONS: Final = """
    SELECT d.referral_id || '/' || d.sequence AS id, d.referral_id, d.sequence, d.state, d.review,
           d.reason, d.made_by, e.external_id AS event_id, d.detail, d.decided_at
      FROM decisions d
      LEFT JOIN events e USING (event_id)
     WHERE (d.referral_id, d.sequence) > ($1, $2::integer)
     ORDER BY d.referral_id, d.sequence
     LIMIT 1000
"""

REWARDS: Final = """
    SELECT w.reward_id AS id, g.key AS programme, w.rule, w.version,
           CASE WHEN w.participant_id = w.referral_id THEN 'referee' ELSE 'referrer' END AS "to",
           w.participant_id, w.referral_id, w.cause_id, w.nth, w.unit, w.amount, w.reversed,
           w.state, w.held, w.available_at, w.created_at
      FROM rewards w
      JOIN programmes g USING (programme_id)
     WHERE w.reward_id > $1
     ORDER BY w.reward_id
     LIMIT 1000
"""

TRANSFERS: Final = """
    SELECT t.transfer_id AS id, g.key AS programme, t.kind, t.from_account AS "from",
           t.to_account AS "to", t.participant_id, t.unit, t.amount, t.reward_id, t.external_id,
           t.cancels, t.note, t.made_by, t.created_at
      FROM transfers t
      JOIN programmes g USING (programme_id)
     WHERE t.transfer_id > $1
     ORDER BY t.transfer_id
     LIMIT 1000
"""

BALANCES: Final = """
    SELECT b.participant_id || '/' || b.unit AS id, g.key AS programme, b.participant_id,
           p.external_id, b.unit, b.pending, b.available, b.redeemed
      FROM balances b
      JOIN programmes g USING (programme_id)
      LEFT JOIN participants p USING (participant_id)
     WHERE (b.participant_id, b.unit) > ($1, $2::text)
     ORDER BY b.participant_id, b.unit
     LIMIT 1000
"""
Row = dict[str, Any]


class ExportRepository(Repository):
    """Rows of any table that can be exported."""

    async def after(self, statement: str, *place: UUID | int | str) -> Sequence[Row]:
        """Return up to 1,000 rows after a place, with one of this module's statements."""
        return [dict(row) for row in await self._connection.fetch(statement, *place)]
