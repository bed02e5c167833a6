"""The SQL of transfers. A row never changes; balances move with them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from service.domain.ledger import Account, ListedTransfer, Transfer, TransferKind
from service.domain.pages import Cursor
from service.repositories.connection import LAST_ID, Repository

_COLUMNS: Final = """
    transfer_id, programme_id, participant_id, unit, kind, from_account, to_account, amount,
    reward_id, external_id, cancels, note, made_by, created_at
"""

_CANCELLED_AT: Final = """
    CASE kind WHEN 'redemption'
         THEN (SELECT c.created_at FROM transfers c WHERE c.cancels = transfers.transfer_id)
          END AS cancelled_at
"""

# In the order of ListedTransfer.
_LISTED: Final = f"""
    transfer_id, kind, from_account, to_account, participant_id, unit, amount, reward_id,
    external_id, cancels, {_CANCELLED_AT}, note, created_at
"""

# What transfers in `posted` add to each account of each balance.
_MOVED: Final = """
    SELECT participant_id, unit,
           sum(CASE 'pending' WHEN to_account THEN amount
                              WHEN from_account THEN -amount ELSE 0 END)::bigint AS pending,
           sum(CASE 'available' WHEN to_account THEN amount
                                WHEN from_account THEN -amount ELSE 0 END)::bigint AS available,
           sum(CASE 'redeemed' WHEN to_account THEN amount
                               WHEN from_account THEN -amount ELSE 0 END)::bigint AS redeemed
      FROM posted
     GROUP BY participant_id, unit
"""

# The balances are there already: a CHECK sees the row that an upsert proposes before the conflict
# is found, so one of -500 would fail. They are locked in one order.
POST: Final = f"""
    WITH posted AS (
        INSERT INTO transfers
               (transfer_id, programme_id, participant_id, unit, kind, from_account, to_account,
                amount, reward_id, made_by, created_at)
        SELECT transfer_id, $9, participant_id, unit, kind, from_account, to_account, amount,
               reward_id, $10, $11
          FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[],
                      $7::bigint[], $8::uuid[])
               AS new (transfer_id, participant_id, unit, kind, from_account, to_account, amount,
                       reward_id)
        RETURNING participant_id, unit, from_account, to_account, amount
    ), moved AS (
        {_MOVED}
    ), locked AS (
        SELECT b.participant_id, b.unit
          FROM balances b
          JOIN moved USING (participant_id, unit)
         ORDER BY b.participant_id, b.unit
           FOR NO KEY UPDATE OF b
    )
    UPDATE balances b
       SET pending = b.pending + m.pending,
           available = b.available + m.available,
           redeemed = b.redeemed + m.redeemed
      FROM locked
      JOIN moved m USING (participant_id, unit)
     WHERE (b.participant_id, b.unit) = (locked.participant_id, locked.unit)
"""

# The id first, then the money: the other way a repetition that waited for its first would find too
# little, and be refused instead of getting the first answer.
REDEEM: Final = """
    WITH posted AS (
        INSERT INTO transfers
               (transfer_id, programme_id, participant_id, unit, kind, from_account, to_account,
                amount, external_id, fingerprint, note, made_by, created_at)
        VALUES ($1, $2, $3, $4, 'redemption', 'available', 'redeemed', $5, $6, $7, $8, $9, $10)
            ON CONFLICT (programme_id, external_id) WHERE external_id IS NOT NULL DO NOTHING
        RETURNING participant_id, unit, amount
    ), taken AS (
        UPDATE balances b
           SET available = b.available - p.amount, redeemed = b.redeemed + p.amount
          FROM posted p
         WHERE (b.participant_id, b.unit) = (p.participant_id, p.unit)
           AND b.available >= p.amount
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM posted) AS posted, (SELECT count(*) FROM taken) AS taken
"""

CANCEL: Final = f"""
    WITH posted AS (
        INSERT INTO transfers
               (transfer_id, programme_id, participant_id, unit, kind, from_account, to_account,
                amount, cancels, made_by, created_at)
        SELECT $2, programme_id, participant_id, unit, 'cancellation', 'redeemed', 'available',
               amount, transfer_id, $3, $4
          FROM transfers
         WHERE transfer_id = $1
           AND kind = 'redemption'
            ON CONFLICT (cancels) WHERE cancels IS NOT NULL DO NOTHING
        RETURNING {_COLUMNS}
    ), paid_back AS (
        UPDATE balances b
           SET available = b.available + p.amount, redeemed = b.redeemed - p.amount
          FROM posted p
         WHERE (b.participant_id, b.unit) = (p.participant_id, p.unit)
    )
    SELECT {_COLUMNS}
      FROM posted
"""

# $5 is above 0 where it is given, below where it is taken.
ADJUST: Final = """
    WITH posted AS (
        INSERT INTO transfers
               (transfer_id, programme_id, participant_id, unit, kind, from_account, to_account,
                amount, external_id, fingerprint, note, made_by, created_at)
        VALUES ($1, $2, $3, $4, 'adjustment',
                CASE WHEN $5::bigint > 0 THEN 'programme' ELSE 'available' END,
                CASE WHEN $5::bigint > 0 THEN 'available' ELSE 'programme' END,
                abs($5::bigint), $6, $7, $8, $9, $10)
            ON CONFLICT (programme_id, external_id) WHERE external_id IS NOT NULL DO NOTHING
        RETURNING participant_id, unit
    )
    UPDATE balances b
       SET available = b.available + $5::bigint
      FROM posted p
     WHERE (b.participant_id, b.unit) = (p.participant_id, p.unit)
"""

FIND: Final = f"""
    SELECT {_COLUMNS}
      FROM transfers
     WHERE transfer_id = $1
"""

FIND_CANCELLATION: Final = f"""
    SELECT {_COLUMNS}
      FROM transfers
     WHERE cancels = $1
"""

FIND_EXTERNAL: Final = f"""
    SELECT {_COLUMNS}, {_CANCELLED_AT}, fingerprint
      FROM transfers
     WHERE programme_id = $1
       AND external_id = $2
"""

NEWEST_OF_SEVERAL: Final = f"""
    SELECT wanted.place, page.*
      FROM unnest($1::uuid[], $2::timestamptz[], $3::uuid[]) WITH ORDINALITY
           AS wanted (participant_id, before, before_id, place)
     CROSS JOIN LATERAL (
            SELECT {_LISTED}
              FROM transfers
             WHERE participant_id = wanted.participant_id
               AND (created_at, transfer_id)
                   < (COALESCE(wanted.before, 'infinity'), wanted.before_id)
             ORDER BY created_at DESC, transfer_id DESC
             LIMIT $4
           ) AS page
     ORDER BY wanted.place, page.created_at DESC, page.transfer_id DESC
"""

NEWEST: Final = f"""
    SELECT {_LISTED}
      FROM transfers
     WHERE programme_id = $1
       AND (created_at, transfer_id) < (COALESCE($2::timestamptz, 'infinity'), $3)
     ORDER BY created_at DESC, transfer_id DESC
     LIMIT $4
"""


class TransferRepository(Repository):
    """Transfers, one statement a method, which moves the balances too."""

    async def post(self, transfers: Sequence[Transfer]) -> None:
        """Store transfers of rewards, of one programme and time, whose balances are there."""
        one = transfers[0]
        await self._connection.execute(
            POST,
            [transfer.transfer_id for transfer in transfers],
            [transfer.participant_id for transfer in transfers],
            [transfer.unit for transfer in transfers],
            [transfer.kind for transfer in transfers],
            [transfer.from_account for transfer in transfers],
            [transfer.to_account for transfer in transfers],
            [transfer.amount for transfer in transfers],
            [transfer.reward_id for transfer in transfers],
            one.programme_id,
            one.made_by,
            one.created_at,
        )

    async def redeem(self, transfer: Transfer, fingerprint: bytes) -> tuple[bool, bool]:
        """Store a redemption; return whether its id is new, and whether there was enough.

        Where there was not, the caller rolls back.
        """
        row = await self._connection.fetchrow(
            REDEEM, *_asked_for(transfer, transfer.amount, fingerprint)
        )
        assert row is not None
        return row["posted"] == 1, row["taken"] == 1

    async def adjust(self, transfer: Transfer, fingerprint: bytes) -> bool:
        """Store an adjustment, whose balance is there; return whether its id is new."""
        given = transfer.to_account is Account.AVAILABLE
        status = await self._connection.execute(
            ADJUST,
            *_asked_for(transfer, transfer.amount if given else -transfer.amount, fingerprint),
        )
        return status == "UPDATE 1"

    async def cancel(
        self, redemption_id: UUID, transfer_id: UUID, made_by: str, now: datetime
    ) -> Transfer | None:
        """Store the transfer back; None if there is no such redemption, or it is cancelled."""
        return _transfer(
            await self._connection.fetchrow(CANCEL, redemption_id, transfer_id, made_by, now)
        )

    async def find(self, transfer_id: UUID) -> Transfer | None:
        return _transfer(await self._connection.fetchrow(FIND, transfer_id))

    async def find_cancellation(self, redemption_id: UUID) -> Transfer | None:
        return _transfer(await self._connection.fetchrow(FIND_CANCELLATION, redemption_id))

    async def find_external(
        self, programme_id: UUID, external_id: str
    ) -> tuple[Transfer, bytes] | None:
        """Return a transfer by the company's id of it, with its fingerprint."""
        row = await self._connection.fetchrow(FIND_EXTERNAL, programme_id, external_id)
        if row is None:
            return None
        members = dict(row)
        fingerprint: bytes = members.pop("fingerprint")
        return _of(members), fingerprint

    async def newest(
        self, programme_id: UUID, limit: int, after: Cursor | None
    ) -> list[ListedTransfer]:
        """Return up to `limit` of a programme, newest first."""
        rows = await self._connection.fetch(
            NEWEST, programme_id, after and after.at, after.row_id if after else LAST_ID, limit
        )
        return list(map(ListedTransfer._make, rows))

    async def newest_of_several(
        self, wanted: Sequence[tuple[UUID, Cursor | None]], limit: int
    ) -> list[list[ListedTransfer]]:
        """Return up to `limit` of each participant after the cursor, newest first."""
        return await self._pages(
            len(wanted),
            ListedTransfer._make,
            NEWEST_OF_SEVERAL,
            [participant_id for participant_id, _ in wanted],
            [after and after.at for _, after in wanted],
            [after.row_id if after else LAST_ID for _, after in wanted],
            limit,
        )


def _asked_for(transfer: Transfer, amount: int, fingerprint: bytes) -> tuple[Any, ...]:
    return (
        transfer.transfer_id,
        transfer.programme_id,
        transfer.participant_id,
        transfer.unit,
        amount,
        transfer.external_id,
        fingerprint,
        transfer.note,
        transfer.made_by,
        transfer.created_at,
    )


def _transfer(row: Any) -> Transfer | None:
    return None if row is None else _of(row)


def _of(row: Any) -> Transfer:
    return Transfer(
        **{
            **row,
            "kind": TransferKind(row["kind"]),
            "from_account": Account(row["from_account"]),
            "to_account": Account(row["to_account"]),
        }
    )
