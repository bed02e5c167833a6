"""The SQL of rewards."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from uuid6 import uuid7

from service.domain.rewards import ListedReward, Reward, RewardFilter, RewardState
from service.repositories.connection import LAST_ID, Repository, unnested

_COLUMNS: Final = """
    reward_id, programme_id, version, rule, participant_id, referral_id, cause_id, nth, unit,
    amount, reversed, state, held, available_at, created_at
"""

# In the order of ListedReward.
_LISTED: Final = """
    reward_id, rule, version,
    CASE WHEN participant_id = referral_id THEN 'referee' ELSE 'referrer' END AS "to",
    participant_id, referral_id, unit, amount, reversed, state, held, available_at, created_at
"""

# fmt: off
_GIVEN: Final = unnested(
    "uuid", "text", "uuid", "uuid", "uuid", "int", "text", "bigint", "boolean",
    "timestamptz", "uuid",
)
# fmt: on

# Rewards, the transfers with which they enter the ledger, and the balances, which only grow: an
# upsert does where nothing is subtracted. A block, and a pause, is looked for under the lock that a
# block takes, too.
GIVE: Final = f"""
    WITH wanted AS (
        SELECT new.*,
               new.doubtful OR p.blocked_at IS NOT NULL OR u.disabled_at IS NOT NULL AS held,
               g.paused
          FROM {_GIVEN}
               AS new (reward_id, rule, participant_id, referral_id, cause_id, nth, unit, amount,
                       doubtful, available_at, transfer_id)
          JOIN participants p USING (participant_id)
          LEFT JOIN users u ON u.user_id = p.user_id
          JOIN programmes g ON g.programme_id = $12
    ), decided AS (
        SELECT *, CASE WHEN held OR paused OR available_at > $14 THEN 'pending' ELSE 'available' END
               AS state
          FROM wanted
    ), given AS (
        INSERT INTO rewards
               (reward_id, programme_id, version, rule, participant_id, referral_id, cause_id, nth,
                unit, amount, state, held, available_at, created_at)
        SELECT reward_id, $12, $13, rule, participant_id, referral_id, cause_id, nth, unit, amount,
               state, held, available_at, $14
          FROM decided
    ), posted AS (
        INSERT INTO transfers
               (transfer_id, programme_id, participant_id, unit, kind, from_account, to_account,
                amount, reward_id, made_by, created_at)
        SELECT transfer_id, $12, participant_id, unit, 'grant', 'programme', state, amount,
               reward_id, $15, $14
          FROM decided
    ), moved AS (
        INSERT INTO balances AS b (participant_id, unit, programme_id, pending, available)
        SELECT participant_id, unit, $12,
               COALESCE(sum(amount) FILTER (WHERE state = 'pending'), 0),
               COALESCE(sum(amount) FILTER (WHERE state = 'available'), 0)
          FROM decided
         GROUP BY participant_id, unit
         ORDER BY participant_id, unit
            ON CONFLICT (participant_id, unit)
            DO UPDATE SET pending = b.pending + excluded.pending,
                          available = b.available + excluded.available
    )
    SELECT reward_id, state, held
      FROM decided
"""

LIVE_OF_REFERRAL: Final = f"""
    SELECT {_COLUMNS}
      FROM rewards
     WHERE referral_id = $1
       AND state <> 'reversed'
     ORDER BY rule, cause_id
"""

# Those for certain causes, and all of the rules that look at several events.
LIVE_OF_CAUSES: Final = f"""
    SELECT {_COLUMNS}
      FROM rewards
     WHERE referral_id = $1
       AND state <> 'reversed'
       AND rule = ANY ($2)
       AND cause_id = ANY ($3)
    UNION
    SELECT {_COLUMNS}
      FROM rewards
     WHERE referral_id = $1
       AND state <> 'reversed'
       AND rule = ANY ($4)
"""

DUE_OF_REFERRAL: Final = f"""
    SELECT {_COLUMNS}
      FROM rewards
     WHERE referral_id = $1
       AND state = 'pending'
       AND NOT held
       AND available_at <= $2
     ORDER BY rule, cause_id
"""

DUE_MILESTONES: Final = f"""
    SELECT {_COLUMNS}
      FROM rewards
     WHERE participant_id = $1
       AND referral_id IS NULL
       AND state = 'pending'
       AND NOT held
       AND available_at <= $2
     ORDER BY rule, nth
"""

MILESTONES_ABOVE: Final = f"""
    SELECT {_COLUMNS}
      FROM rewards
     WHERE participant_id = $1
       AND referral_id IS NULL
       AND state <> 'reversed'
       AND nth > $2
     ORDER BY rule, nth
"""

HAS_AVAILABLE: Final = """
    SELECT EXISTS (
        SELECT FROM rewards
         WHERE referral_id = $1
           AND state <> 'reversed'
           AND state = 'available'
           AND rule = ANY ($2))
"""

CHANGE: Final = f"""
    UPDATE rewards r
       SET reversed = c.reversed, state = c.state, available_at = c.available_at,
           held = r.held AND c.state = 'pending'
      FROM {unnested("uuid", "bigint", "text", "timestamptz")}
           AS c (reward_id, reversed, state, available_at)
     WHERE r.reward_id = c.reward_id
"""

# `held` is looked at again: whoever holds rewards does so without the referral's lock.
RELEASE: Final = """
    UPDATE rewards r
       SET state = 'available'
      FROM programmes g
     WHERE r.reward_id = ANY (ARRAY(SELECT unnest($1::uuid[])))
       AND r.state = 'pending'
       AND NOT r.held
       AND g.programme_id = r.programme_id
       AND NOT g.paused
    RETURNING r.reward_id
"""

# Up to so many of each programme, the longest due first.
FIND_DUE: Final = """
    SELECT DISTINCT due.referral_id, due.participant_id
      FROM programmes g
     CROSS JOIN LATERAL (
            SELECT referral_id, CASE WHEN referral_id IS NULL THEN participant_id END
                   AS participant_id
              FROM rewards
             WHERE programme_id = g.programme_id
               AND state = 'pending'
               AND NOT held
               AND available_at <= $1
             ORDER BY available_at
             LIMIT $2
           ) AS due
     WHERE NOT g.paused
"""

# Whether a reward `r` is kept from its participant: by a block, an account that is disabled, or a
# review of its referral, of a milestone a review of any referral that may have led there. Not by
# EXISTS, which PostgreSQL may answer by reading all participants.
_HELD: Final = """
    (COALESCE((SELECT p.blocked_at IS NOT NULL OR u.disabled_at IS NOT NULL
                 FROM participants p
                 LEFT JOIN users u ON u.user_id = p.user_id
                WHERE p.participant_id = r.participant_id), false)
     OR COALESCE((SELECT f.review = 'open' FROM referrals f WHERE f.user_id = r.referral_id), false)
     OR (r.referral_id IS NULL
         AND (SELECT f.user_id
                FROM referrals f
               WHERE f.referrer_id = r.participant_id AND f.review = 'open'
               LIMIT 1) IS NOT NULL))
"""

HOLD_OF_PARTICIPANT: Final = f"""
    UPDATE rewards r
       SET held = NOT r.held
     WHERE r.participant_id = $1
       AND r.state = 'pending'
       AND r.held <> {_HELD}
"""

HOLD_OF_REFERRAL: Final = f"""
    UPDATE rewards r
       SET held = NOT r.held
     WHERE r.referral_id = $1
       AND r.state = 'pending'
       AND r.held <> {_HELD}
"""

HOLD_MILESTONES: Final = f"""
    UPDATE rewards r
       SET held = NOT r.held
     WHERE r.participant_id = $1
       AND r.referral_id IS NULL
       AND r.state = 'pending'
       AND r.held <> {_HELD}
"""

NEWEST_OF_REFERRAL: Final = f"""
    SELECT {_COLUMNS}
      FROM rewards
     WHERE referral_id = $1
     ORDER BY created_at DESC, reward_id DESC
     LIMIT $2
"""

NEWEST_OF_SEVERAL: Final = f"""
    SELECT wanted.place, page.*
      FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::uuid[])
           WITH ORDINALITY AS wanted (participant_id, state, rule, before, before_id, place)
     CROSS JOIN LATERAL (
            SELECT {_LISTED}
              FROM rewards
             WHERE participant_id = wanted.participant_id
               AND (wanted.state IS NULL OR state = wanted.state)
               AND (wanted.rule IS NULL OR rule = wanted.rule)
               AND (created_at, reward_id) < (COALESCE(wanted.before, 'infinity'), wanted.before_id)
             ORDER BY created_at DESC, reward_id DESC
             LIMIT $6
           ) AS page
     ORDER BY wanted.place, page.created_at DESC, page.reward_id DESC
"""

NEWEST: Final = f"""
    SELECT {_LISTED}
      FROM rewards
     WHERE programme_id = $1
       AND ($2::text IS NULL OR state = $2)
       AND ($3::text IS NULL OR rule = $3)
       AND (created_at, reward_id) < (COALESCE($4::timestamptz, 'infinity'), $5)
     ORDER BY created_at DESC, reward_id DESC
     LIMIT $6
"""


class Due(NamedTuple):
    """Whose rewards are due: a referral's, or the milestones of a participant."""

    referral_id: UUID | None
    participant_id: UUID | None


class RewardRepository(Repository):
    """Rewards, one statement a method."""

    async def give(self, rewards: Sequence[Reward], made_by: str) -> list[Reward]:
        """Store rewards of one programme, version and time, and post their grants.

        Returns them as they are: available only if they are due and nothing holds them. Pass those
        as `held` that a review holds.
        """
        one = rewards[0]
        rows = await self._connection.fetch(
            GIVE,
            [reward.reward_id for reward in rewards],
            [reward.rule for reward in rewards],
            [reward.participant_id for reward in rewards],
            [reward.referral_id for reward in rewards],
            [reward.cause_id for reward in rewards],
            [reward.nth for reward in rewards],
            [reward.unit for reward in rewards],
            [reward.amount for reward in rewards],
            [reward.held for reward in rewards],
            [reward.available_at for reward in rewards],
            [uuid7() for _ in rewards],
            one.programme_id,
            one.version,
            one.created_at,
            made_by,
        )
        stored = {row["reward_id"]: row for row in rows}
        return [
            replace(reward, state=RewardState(row["state"]), held=row["held"])
            for reward in rewards
            for row in [stored[reward.reward_id]]
        ]

    async def live_of_referral(self, referral_id: UUID) -> list[Reward]:
        return await self._rewards(LIVE_OF_REFERRAL, referral_id)

    async def live_of_causes(
        self, referral_id: UUID, rules: Sequence[str], causes: Sequence[UUID], whole: Sequence[str]
    ) -> list[Reward]:
        """Return those of `rules` for these causes, and those of the rules `whole` for any."""
        return await self._rewards(LIVE_OF_CAUSES, referral_id, rules, causes, whole)

    async def due_of_referral(self, referral_id: UUID, now: datetime) -> list[Reward]:
        return await self._rewards(DUE_OF_REFERRAL, referral_id, now)

    async def due_milestones(self, participant_id: UUID, now: datetime) -> list[Reward]:
        return await self._rewards(DUE_MILESTONES, participant_id, now)

    async def milestones_above(self, participant_id: UUID, qualified: int) -> list[Reward]:
        """Return the live ones that so many qualified referrals do not reach."""
        return await self._rewards(MILESTONES_ABOVE, participant_id, qualified)

    async def has_available(self, referral_id: UUID, rules: Sequence[str]) -> bool:
        """Return whether the referral has a reward of these rules that is available."""
        return bool(await self._connection.fetchval(HAS_AVAILABLE, referral_id, rules))

    async def change(self, changed: Sequence[Reward]) -> None:
        """Store how much of them is reversed, their states, and when they become available."""
        await self._connection.execute(
            CHANGE,
            [reward.reward_id for reward in changed],
            [reward.reversed for reward in changed],
            [reward.state for reward in changed],
            [reward.available_at for reward in changed],
        )

    async def release(self, reward_ids: Sequence[UUID]) -> set[UUID]:
        """Make pending rewards available; return which of them nothing holds, no pause either."""
        rows = await self._connection.fetch(RELEASE, reward_ids)
        return {row["reward_id"] for row in rows}

    async def find_due(self, now: datetime, limit: int) -> list[Due]:
        """Return whose rewards are due, up to so many of each programme that is not paused."""
        return [Due(*row) for row in await self._connection.fetch(FIND_DUE, now, limit)]

    async def hold_of_participant(self, participant_id: UUID) -> None:
        """Hold the participant's pending rewards, or free them, as things stand."""
        await self._connection.execute(HOLD_OF_PARTICIPANT, participant_id)

    async def hold_of_referral(self, referral_id: UUID) -> None:
        """Like `hold_of_participant`, of a referral."""
        await self._connection.execute(HOLD_OF_REFERRAL, referral_id)

    async def hold_milestones(self, participant_id: UUID) -> None:
        """Like `hold_of_participant`, milestones alone."""
        await self._connection.execute(HOLD_MILESTONES, participant_id)

    async def newest_of_referral(self, referral_id: UUID, limit: int) -> list[Reward]:
        return await self._rewards(NEWEST_OF_REFERRAL, referral_id, limit)

    async def newest(self, wanted: RewardFilter, limit: int) -> list[ListedReward]:
        """Return up to `limit` of the wanted rewards of a programme, newest first."""
        after = wanted.after
        rows = await self._connection.fetch(
            NEWEST,
            wanted.owner_id,
            wanted.state,
            wanted.rule,
            after and after.at,
            after.row_id if after else LAST_ID,
            limit,
        )
        return list(map(ListedReward._make, rows))

    async def newest_of_several(
        self, wanted: Sequence[RewardFilter], limit: int
    ) -> list[list[ListedReward]]:
        """Return up to `limit` of the wanted rewards of each participant, newest first."""
        return await self._pages(
            len(wanted),
            ListedReward._make,
            NEWEST_OF_SEVERAL,
            [one.owner_id for one in wanted],
            [one.state for one in wanted],
            [one.rule for one in wanted],
            [one.after and one.after.at for one in wanted],
            [one.after.row_id if one.after else LAST_ID for one in wanted],
            limit,
        )

    async def _rewards(self, statement: str, *arguments: Any) -> list[Reward]:
        return list(map(_reward, await self._connection.fetch(statement, *arguments)))


def _reward(row: Any) -> Reward:
    return Reward(**{**row, "state": RewardState(row["state"])})
