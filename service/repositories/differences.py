"""The SQL of proving the ledger: what must be equal, and is not. Nothing is changed."""

from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from service.repositories.connection import Repository

NEXT: Final = """
    SELECT participant_id
      FROM participants
     WHERE participant_id > $1
     ORDER BY participant_id
     LIMIT $2
"""

# Each account of a balance is what came in less what went out.
BALANCES: Final = """
    WITH summed AS (
        SELECT participant_id, unit,
               sum(CASE 'pending' WHEN to_account THEN amount
                                  WHEN from_account THEN -amount ELSE 0 END) AS pending,
               sum(CASE 'available' WHEN to_account THEN amount
                                    WHEN from_account THEN -amount ELSE 0 END) AS available,
               sum(CASE 'redeemed' WHEN to_account THEN amount
                                   WHEN from_account THEN -amount ELSE 0 END) AS redeemed
          FROM transfers
         WHERE participant_id = ANY ($1)
         GROUP BY participant_id, unit
    ), kept AS (
        SELECT participant_id, unit, pending, available, redeemed
          FROM balances
         WHERE participant_id = ANY ($1)
    )
    SELECT participant_id,
           'balance in ' || unit || ' is not the sum of its transfers' AS difference
      FROM summed s
      FULL JOIN kept k USING (participant_id, unit)
     WHERE (COALESCE(s.pending, 0), COALESCE(s.available, 0), COALESCE(s.redeemed, 0))
        <> (COALESCE(k.pending, 0), COALESCE(k.available, 0), COALESCE(k.redeemed, 0))
"""

# What is left of a reward lies in the account of its state, and nothing in the other; what was
# taken back went back to the programme.
REWARDS: Final = """
    SELECT w.participant_id,
           'reward ' || w.reward_id || ' is not what its transfers say' AS difference
      FROM rewards w
      LEFT JOIN LATERAL (
            SELECT sum(CASE 'pending' WHEN to_account THEN amount
                                      WHEN from_account THEN -amount ELSE 0 END) AS pending,
                   sum(CASE 'available' WHEN to_account THEN amount
                                        WHEN from_account THEN -amount ELSE 0 END) AS available,
                   sum(amount) FILTER (WHERE kind = 'grant') AS given
              FROM (SELECT kind, from_account, to_account, amount
                      FROM transfers
                     WHERE reward_id = w.reward_id AND kind = 'grant'
                    UNION ALL
                    SELECT kind, from_account, to_account, amount
                      FROM transfers
                     WHERE reward_id = w.reward_id AND kind = 'release'
                    UNION ALL
                    SELECT kind, from_account, to_account, amount
                      FROM transfers
                     WHERE reward_id = w.reward_id AND kind = 'reversal') AS t
           ) AS moved ON true
     WHERE w.participant_id = ANY ($1)
       AND (moved.given, moved.pending, moved.available) IS DISTINCT FROM
           (w.amount::numeric,
            CASE w.state WHEN 'pending' THEN w.amount - w.reversed ELSE 0 END::numeric,
            CASE w.state WHEN 'available' THEN w.amount - w.reversed ELSE 0 END::numeric)
"""

STANDINGS: Final = """
    SELECT s.participant_id,
           'standing is not the number of qualified referrals' AS difference
      FROM standings s
     WHERE s.participant_id = ANY ($1)
       AND s.qualified <> (
            SELECT count(*)
              FROM referrals r
             WHERE r.referrer_id = s.participant_id
               AND r.state IN ('qualified', 'rewarded'))
"""

MILESTONES: Final = """
    SELECT w.participant_id,
           'milestone ' || w.reward_id || ' is not reached' AS difference
      FROM rewards w
      LEFT JOIN standings s USING (participant_id)
     WHERE w.participant_id = ANY ($1)
       AND w.referral_id IS NULL
       AND w.state <> 'reversed'
       AND w.nth > COALESCE(s.qualified, 0)
"""

# Live rewards of rules with a cap for each referrer, by the version they were given under.
COUNTS_OF_REFERRERS: Final = """
    WITH live AS (
        SELECT f.referrer_id AS subject_id, w.programme_id, w.version, w.rule
          FROM referrals f
          JOIN rewards w ON w.referral_id = f.user_id AND w.state <> 'reversed'
         WHERE f.referrer_id = ANY ($1)
        UNION ALL
        SELECT participant_id, programme_id, version, rule
          FROM rewards
         WHERE participant_id = ANY ($1)
           AND referral_id IS NULL
           AND state <> 'reversed'
    ), counted AS (
        SELECT live.subject_id, live.rule, count(*) AS given,
               max((of_version.rule ->> 'max_per_referrer')::int) AS cap
          FROM live
          JOIN programme_versions v USING (programme_id, version)
         CROSS JOIN LATERAL json_array_elements(v.rules -> 'rewards') AS of_version (rule)
         WHERE of_version.rule ->> 'name' = live.rule
           AND of_version.rule ->> 'max_per_referrer' IS NOT NULL
         GROUP BY live.subject_id, live.rule
    ), kept AS (
        SELECT subject_id, rule, given
          FROM reward_counts
         WHERE subject_id = ANY ($1)
    )
    SELECT subject_id AS participant_id,
           'live rewards of ' || rule || ' are not as counted, or more than the cap' AS difference
      FROM counted c
      FULL JOIN kept k USING (subject_id, rule)
     WHERE COALESCE(c.given, 0) <> COALESCE(k.given, 0)
        OR c.given > c.cap
"""

COUNTS_OF_PROGRAMMES: Final = """
    WITH counted AS (
        SELECT w.programme_id AS subject_id, w.rule, count(*) AS given,
               max((of_version.rule ->> 'max_total')::int) AS cap
          FROM rewards w
          JOIN programme_versions v USING (programme_id, version)
         CROSS JOIN LATERAL json_array_elements(v.rules -> 'rewards') AS of_version (rule)
         WHERE w.state <> 'reversed'
           AND of_version.rule ->> 'name' = w.rule
           AND of_version.rule ->> 'max_total' IS NOT NULL
         GROUP BY w.programme_id, w.rule
    ), kept AS (
        SELECT c.subject_id, c.rule, c.given
          FROM reward_counts c
          JOIN programmes g ON g.programme_id = c.subject_id
    )
    SELECT subject_id AS participant_id,
           'live rewards of ' || rule || ' are not as counted, or more than the cap' AS difference
      FROM counted c
      FULL JOIN kept k USING (subject_id, rule)
     WHERE COALESCE(c.given, 0) <> COALESCE(k.given, 0)
        OR c.given > c.cap
"""


class Difference(NamedTuple):
    """What is not as it must be, and whose: a participant's, or a programme's."""

    subject_id: UUID
    difference: str


class DifferenceRepository(Repository):
    """Differences in the ledger, one statement a method, each of one moment."""

    async def next_participants(self, after: UUID, limit: int) -> list[UUID]:
        """Return participants to look at, in the order of their ids."""
        rows = await self._connection.fetch(NEXT, after, limit)
        return [row["participant_id"] for row in rows]

    async def of_participants(self, statement: str, ids: Sequence[UUID]) -> list[Difference]:
        """Return what one of this module's statements finds about these participants."""
        rows = await self._connection.fetch(statement, ids)
        return [Difference(*row) for row in rows]

    async def of_programmes(self) -> list[Difference]:
        """Return the rules of which a programme's live rewards are not as counted."""
        rows = await self._connection.fetch(COUNTS_OF_PROGRAMMES)
        return [Difference(*row) for row in rows]


OF_PARTICIPANTS: Final = (BALANCES, REWARDS, STANDINGS, MILESTONES, COUNTS_OF_REFERRERS)
"""What can be asked about participants, a few at a time."""
