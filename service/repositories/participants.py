"""The SQL of participants."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from service.domain.participants import Participant
from service.domain.programmes import DEFAULT_PROGRAMME_ID
from service.repositories.connection import Repository, rows_in

ADD_ACCOUNT: Final = """
    INSERT INTO participants (participant_id, programme_id, user_id, created_at)
    SELECT user_id, $2, user_id, $3
      FROM users
     WHERE user_id = $1
       AND erased_at IS NULL
       FOR KEY SHARE
    ON CONFLICT (participant_id) DO NOTHING
"""

# Whoever is second sees what the first has written: of an event and a sign-up of one participant
# that arrive at the same instant, one waits here for the other.
LOCK: Final = """
    SELECT p.participant_id, p.programme_id, p.user_id, p.external_id, p.trusted,
           p.blocked_at IS NOT NULL AS blocked, p.erased_at IS NOT NULL AS erased,
           NULL AS public_name, p.created_at
      FROM participants p
     WHERE p.participant_id = $1
       FOR NO KEY UPDATE
"""

# One statement, because each event begins with it. No row: another transaction has stored the
# participant since the statement began, and the next call finds it.
LOCK_EXTERNAL: Final = """
    WITH known AS (
        SELECT p.participant_id, p.programme_id, p.user_id, p.external_id, p.trusted,
               p.blocked_at, p.erased_at, p.created_at
          FROM participants p
         WHERE p.programme_id = $2
           AND p.external_hash = $4
           FOR NO KEY UPDATE
    ), added AS (
        INSERT INTO participants
               (participant_id, programme_id, external_id, external_hash, created_at)
        SELECT $1, $2, $3, $4, $5
         WHERE NOT EXISTS (SELECT FROM known)
        ON CONFLICT ON CONSTRAINT participants_external_once DO NOTHING
        RETURNING participant_id, programme_id, user_id, external_id, trusted,
                  blocked_at, erased_at, created_at
    ), locked AS (
        SELECT false AS is_new, known.* FROM known UNION ALL SELECT true, added.* FROM added
    )
    SELECT is_new, participant_id, programme_id, user_id, external_id, trusted,
           blocked_at IS NOT NULL AS blocked, erased_at IS NOT NULL AS erased,
           NULL AS public_name, created_at
      FROM locked
"""

# Also an account that has not taken part in anything yet, and was created when it registered.
FIND: Final = """
    SELECT p.participant_id, p.programme_id, p.user_id, p.external_id, p.trusted,
           p.blocked_at IS NOT NULL AS blocked, p.erased_at IS NOT NULL AS erased,
           s.public_name, COALESCE(u.created_at, p.created_at) AS created_at
      FROM participants p
      LEFT JOIN standings s USING (participant_id)
      LEFT JOIN users u ON u.user_id = p.user_id
     WHERE p.participant_id = $1
       AND p.erased_at IS NULL
     UNION ALL
    SELECT u.user_id, $2, u.user_id, NULL, false, false, false, NULL, u.created_at
      FROM users u
     WHERE u.user_id = $1
       AND u.erased_at IS NULL
       AND NOT EXISTS (SELECT FROM participants WHERE participant_id = $1)
"""

FIND_ERASED: Final = """
    SELECT p.participant_id, p.programme_id, p.user_id, p.external_id, p.trusted,
           p.blocked_at IS NOT NULL AS blocked, true AS erased, NULL AS public_name, p.created_at
      FROM participants p
     WHERE p.participant_id = $1
       AND p.erased_at IS NOT NULL
"""

FIND_EXTERNAL: Final = """
    SELECT p.participant_id, p.programme_id, p.user_id, p.external_id, p.trusted,
           p.blocked_at IS NOT NULL AS blocked, p.erased_at IS NOT NULL AS erased,
           s.public_name, p.created_at
      FROM participants p
      LEFT JOIN standings s USING (participant_id)
     WHERE p.programme_id = $1
       AND p.external_hash = $2
       AND p.erased_at IS NULL
"""

UPDATE: Final = """
    UPDATE participants
       SET trusted = COALESCE($2, trusted),
           blocked_at = CASE WHEN $3::boolean IS NULL THEN blocked_at
                             WHEN $3 THEN COALESCE(blocked_at, $4) END
     WHERE participant_id = $1
"""

SET_PUBLIC_NAME: Final = """
    INSERT INTO standings (participant_id, programme_id, public_name)
    VALUES ($1, $2, NULLIF($3, ''))
    ON CONFLICT (participant_id) DO UPDATE SET public_name = excluded.public_name
"""

REMOVE_PUBLIC_NAME: Final = """
    UPDATE standings
       SET public_name = NULL
     WHERE participant_id = $1
"""

EXTERNAL_IDS: Final = """
    SELECT participant_id, external_id
      FROM participants
     WHERE participant_id = ANY (ARRAY(SELECT unnest($1::uuid[])))
"""

# The keyed hash of the company's id stays: an erased id that comes back is nobody new.
ERASE: Final = """
    WITH unnamed AS (
        UPDATE standings SET public_name = NULL WHERE participant_id = $1
    )
    UPDATE participants
       SET erased_at = $2, external_id = NULL
     WHERE participant_id = $1
       AND erased_at IS NULL
"""


class ParticipantRepository(Repository):
    """Participants, one statement a method."""

    async def add_account(self, user_id: UUID, now: datetime) -> None:
        """Make an account a participant of the programme `default`, unless it is one or erased."""
        await self._connection.execute(ADD_ACCOUNT, user_id, DEFAULT_PROGRAMME_ID, now)

    async def lock(self, participant_id: UUID) -> Participant | None:
        """Return a participant whose events and sign-up wait until the transaction ends."""
        return await self._one(_participant, LOCK, participant_id)

    async def lock_external(
        self,
        participant_id: UUID,
        programme_id: UUID,
        external_id: str,
        external_hash: bytes,
        now: datetime,
    ) -> tuple[Participant, bool] | None:
        """Like `lock`, by the company's id: one that is not known is stored, and so locked.

        Returns whether it is new, too. None: another transaction has just stored it, call again.
        """
        row = await self._connection.fetchrow(
            LOCK_EXTERNAL, participant_id, programme_id, external_id, external_hash, now
        )
        if row is None:
            return None
        members = dict(row)
        is_new: bool = members.pop("is_new")
        return Participant(**members), is_new

    async def find(self, participant_id: UUID) -> Participant | None:
        """Return a participant who is not erased."""
        return await self._one(_participant, FIND, participant_id, DEFAULT_PROGRAMME_ID)

    async def find_erased(self, participant_id: UUID) -> Participant | None:
        """Return a participant who is erased: what is owed to them stays."""
        return await self._one(_participant, FIND_ERASED, participant_id)

    async def find_external(self, programme_id: UUID, external_hash: bytes) -> Participant | None:
        """Return a participant who is not erased, by the hash of the company's id."""
        return await self._one(_participant, FIND_EXTERNAL, programme_id, external_hash)

    async def external_ids(self, participant_ids: Collection[UUID]) -> Mapping[UUID, str | None]:
        """Return the companies' ids of participants; None of accounts and of those erased."""
        rows = await self._connection.fetch(EXTERNAL_IDS, list(participant_ids))
        return {row["participant_id"]: row["external_id"] for row in rows}

    async def update(
        self, participant_id: UUID, trusted: bool | None, blocked: bool | None, now: datetime
    ) -> None:
        """Trust or block a participant, or no longer; None leaves it as it is."""
        await self._connection.execute(UPDATE, participant_id, trusted, blocked, now)

    async def set_public_name(
        self, participant_id: UUID, programme_id: UUID, public_name: str | None
    ) -> None:
        await self._connection.execute(SET_PUBLIC_NAME, participant_id, programme_id, public_name)

    async def remove_public_name(self, participant_id: UUID) -> None:
        """Like `set_public_name` with None, of somebody who may take part in nothing."""
        await self._connection.execute(REMOVE_PUBLIC_NAME, participant_id)

    async def erase(self, participant_id: UUID, now: datetime) -> bool:
        """Remove who the participant is; return False if that was done before."""
        return rows_in(await self._connection.execute(ERASE, participant_id, now)) == 1


def _participant(row: Any) -> Participant:
    return Participant(**row)
