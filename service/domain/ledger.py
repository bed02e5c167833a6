"""The ledger: transfers between the accounts of a participant and unit, and their sums."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID


class Account(StrEnum):
    """Where an amount lies. What is given comes from the programme, and goes back to it."""

    PROGRAMME = "programme"
    PENDING = "pending"
    AVAILABLE = "available"
    REDEEMED = "redeemed"


class TransferKind(StrEnum):
    GRANT = "grant"
    RELEASE = "release"
    REVERSAL = "reversal"
    REDEMPTION = "redemption"
    CANCELLATION = "cancellation"
    ADJUSTMENT = "adjustment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """An amount, at least 1, that moved from one account to another. It never changes.

    `external_id` is the company's id of a redemption or an adjustment; `cancels` is the redemption
    that a cancellation takes back. `cancelled_at` is when a redemption was, by another transfer.
    """

    transfer_id: UUID
    programme_id: UUID
    participant_id: UUID
    unit: str
    kind: TransferKind
    from_account: Account
    to_account: Account
    amount: int
    reward_id: UUID | None = None
    external_id: str | None = None
    cancels: UUID | None = None
    note: str | None = None
    made_by: str
    created_at: datetime
    cancelled_at: datetime | None = None


class ListedTransfer(NamedTuple):  # which is made in a tenth of a dataclass' time, a hundred a page
    """A transfer as lists show it."""

    transfer_id: UUID
    kind: str
    from_account: str
    to_account: str
    participant_id: UUID
    unit: str
    amount: int
    reward_id: UUID | None
    external_id: str | None
    cancels: UUID | None
    cancelled_at: datetime | None
    note: str | None
    created_at: datetime


class Balance(NamedTuple):
    """The sums of a participant's transfers in a unit.

    `available` is below 0 where something was paid out and then taken back: a debt, with which
    what comes next is netted.
    """

    participant_id: UUID
    unit: str
    pending: int
    available: int
    redeemed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Liability:
    """What a programme owes in a unit: sums over its participants. Debts are counted from 0 up."""

    unit: str
    pending: int
    available: int
    debts: int
    redeemed: int
