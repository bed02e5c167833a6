"""What can be done with the ledger: paying out, taking that back, adjusting, looking."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from uuid6 import uuid7

from service.domain.errors import (
    BalanceTooLow,
    IdReused,
    InvalidInput,
    ProgrammeNotFound,
    TransferNotFound,
)
from service.domain.ledger import (
    Account,
    Balance,
    Liability,
    ListedTransfer,
    Transfer,
    TransferKind,
)
from service.domain.pages import BalanceCursor, Cursor, Page
from service.domain.participants import Participant
from service.domain.programmes import DEFAULT_PROGRAMME, DEFAULT_PROGRAMME_ID
from service.domain.rewards import ListedReward, RewardFilter, RewardState
from service.domain.webhooks import EventType, redemption_announcement
from service.postgresql.batch_loader import PageLoader
from service.postgresql.database import Repositories, TryAgain, retried
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.participants import Participants, Who
from service.use_cases.programmes import Programmes
from service.use_cases.shared import Shared
from service.use_cases.webhooks import announce


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """What a company asks for, under its own id. `fingerprint` is of the body as it was sent.

    The amount of an adjustment is below 0 where something is taken.
    """

    external_id: str
    who: Who
    unit: str
    amount: int
    fingerprint: bytes
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Whose:
    """Whose rewards, balances or transfers are looked at: an account's, a participant's, or all.

    An account's and all are those of the programme with the key.
    """

    user_id: UUID | None = None
    who: Who | None = None
    programme: str = DEFAULT_PROGRAMME


class Ledger:
    """The ledger: redemptions, cancellations, adjustments, lists."""

    def __init__(self, shared: Shared, programmes: Programmes, participants: Participants) -> None:
        self._database = database = shared.database
        self._clock = shared.clock
        self._programmes = programmes
        self._participants = participants
        self._rewards = PageLoader[RewardFilter, ListedReward](self._read_rewards)
        self._transfers = PageLoader[tuple[UUID, Cursor | None], ListedTransfer](
            lambda places, limit: database.read(
                lambda stored: stored.transfers.newest_of_several(places, limit)
            )
        )
        self._balances = PageLoader[tuple[UUID, BalanceCursor | None], Balance](
            lambda places, limit: database.read(
                lambda stored: stored.balances.newest_of_several(places, limit)
            )
        )

    @retried
    async def redeem(
        self, asked: Movement, made_by: str, once: AnswerOnce[tuple[Transfer, bool]]
    ) -> tuple[Transfer, bool]:
        """Move what is available to what is redeemed; return the transfer, and whether it is new.

        Raises BalanceTooLow, IdReused, ProgrammeUnknown, or InvalidInput for somebody unknown.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            await once.claim(repositories, now)
            whose = await self._find(repositories, asked.who, now)
            accounts = Account.AVAILABLE, Account.REDEEMED
            transfer = _transfer(asked, TransferKind.REDEMPTION, accounts, whose, made_by, now)
            is_new, enough = await repositories.transfers.redeem(transfer, asked.fingerprint)
            if is_new and not enough:
                available = await repositories.balances.find_available(
                    transfer.participant_id, transfer.unit
                )
                if available >= transfer.amount:
                    raise TryAgain  # it has come in this very moment
                raise BalanceTooLow(available)
            if is_new:
                await self._announce(repositories, EventType.REDEMPTION_CREATED, transfer, now)
            else:
                transfer = await _find_repeated(repositories, transfer, asked.fingerprint)
            await once.keep(repositories, (transfer, is_new), None)
        return transfer, is_new

    @retried
    async def adjust(
        self, asked: Movement, made_by: str, once: AnswerOnce[tuple[Transfer, bool]]
    ) -> tuple[Transfer, bool]:
        """Give or take an amount; return the transfer, and whether it is new.

        What is available may fall below 0. Raises as `redeem` does, except BalanceTooLow.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            await once.claim(repositories, now)
            whose = await self._find(repositories, asked.who, now)
            accounts = Account.PROGRAMME, Account.AVAILABLE
            if asked.amount < 0:
                accounts = Account.AVAILABLE, Account.PROGRAMME
            transfer = _transfer(asked, TransferKind.ADJUSTMENT, accounts, whose, made_by, now)
            await repositories.balances.open(
                transfer.participant_id, transfer.unit, transfer.programme_id
            )
            is_new = await repositories.transfers.adjust(transfer, asked.fingerprint)
            if not is_new:
                transfer = await _find_repeated(repositories, transfer, asked.fingerprint)
            await once.keep(repositories, (transfer, is_new), None)
        return transfer, is_new

    @retried
    async def cancel(self, redemption_id: UUID, made_by: str) -> tuple[Transfer, bool]:
        """Take a redemption back, once; return the transfer that does, and whether it is new.

        Raises TransferNotFound.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            transfers = repositories.transfers
            made = await transfers.cancel(redemption_id, uuid7(), made_by, now)
            if made is not None:
                redemption = await transfers.find(redemption_id)
                assert redemption is not None
                await self._announce(repositories, EventType.REDEMPTION_CANCELLED, redemption, now)
                return made, True
            before = await transfers.find_cancellation(redemption_id)
            if before is None:
                raise TransferNotFound
            return before, False

    async def rewards(
        self,
        whose: Whose,
        state: RewardState | None,
        rule: str | None,
        limit: int,
        after: Cursor | None,
    ) -> Page[ListedReward]:
        """Return a page of rewards, newest first; raise ProgrammeUnknown."""
        found = await self._resolve(whose)
        if found is None:
            return Page([], None)
        programme_id, participant_id = found
        owner_id, is_own = participant_id or programme_id, whose.user_id is not None
        wanted = RewardFilter(owner_id, state, rule, after, discreet=is_own)
        if participant_id is None:
            rewards = await self._database.read(
                lambda stored: stored.rewards.newest(wanted, limit + 1)
            )
        else:
            rewards = await self._rewards.find(wanted, limit + 1)
        return Page.of(rewards, limit, lambda last: Cursor(last.created_at, last.reward_id))

    async def transfers(
        self, whose: Whose, limit: int, after: Cursor | None
    ) -> Page[ListedTransfer]:
        """Return a page of transfers, newest first; raise ProgrammeUnknown."""
        found = await self._resolve(whose)
        if found is None:
            return Page([], None)
        programme_id, participant_id = found
        if participant_id is None:
            transfers = await self._database.read(
                lambda stored: stored.transfers.newest(programme_id, limit + 1, after)
            )
        else:
            transfers = await self._transfers.find((participant_id, after), limit + 1)
        return Page.of(transfers, limit, lambda last: Cursor(last.created_at, last.transfer_id))

    async def balances(
        self, whose: Whose, limit: int, after: BalanceCursor | None
    ) -> Page[Balance]:
        """Return a page of balances, newest participants first; raise ProgrammeUnknown."""
        found = await self._resolve(whose)
        if found is None:
            return Page([], None)
        programme_id, participant_id = found
        if participant_id is None:
            balances = await self._database.read(
                lambda stored: stored.balances.newest(programme_id, limit + 1, after)
            )
        else:
            balances = await self._balances.find((participant_id, after), limit + 1)
        return Page.of(balances, limit, lambda last: BalanceCursor(last.participant_id, last.unit))

    async def liability(self, key: str) -> list[Liability]:
        """Return what a programme owes, by unit; raise ProgrammeNotFound."""
        async with self._database.autocommit() as repositories:
            programme = await repositories.programmes.find(key)
            if programme is None:
                raise ProgrammeNotFound
            return await repositories.balances.liability(programme.programme_id)

    async def _announce(
        self, repositories: Repositories, kind: EventType, redemption: Transfer, now: datetime
    ) -> None:
        programme = await self._programmes.find_by_id(repositories, redemption.programme_id)
        announce(repositories, now, redemption_announcement(kind, programme.key, redemption))

    async def _read_rewards(
        self, wanted: Sequence[RewardFilter], limit: int
    ) -> list[list[ListedReward]]:
        async with self._database.autocommit() as repositories:
            found = await repositories.rewards.newest_of_several(wanted, limit)
            return [
                await self._discreet(repositories, rewards) if one.discreet else rewards
                for one, rewards in zip(wanted, found, strict=True)
            ]

    async def _discreet(
        self, repositories: Repositories, rewards: list[ListedReward]
    ) -> list[ListedReward]:
        """Return an account's rewards as it may see them: what a percentage is of is not told."""
        parts = set()
        for version in {one.version for one in rewards}:
            rules = await self._programmes.rules(repositories, DEFAULT_PROGRAMME_ID, version)
            parts |= {
                (version, rule.name) for rule in rules.rewards if rule.basis_points is not None
            }
        if not parts:
            return rewards
        return [
            one._replace(referral_id=None)
            if one.to == "referrer" and (one.version, one.rule) in parts
            else one
            for one in rewards
        ]

    async def _resolve(self, whose: Whose) -> tuple[UUID, UUID | None] | None:
        """Return the programme, and whose participant's it is if it is one's.

        None: somebody whom nobody has reported, or an account in another programme than its own,
        who have nothing.
        """
        if whose.user_id is not None and whose.programme == DEFAULT_PROGRAMME:
            return DEFAULT_PROGRAMME_ID, whose.user_id
        async with self._database.autocommit() as repositories:
            if whose.who is not None:
                found = await self._participants.find_known(repositories, whose.who)
                return None if found is None else (found.programme_id, found.participant_id)
            programme_id = await self._programmes.id_of(repositories, whose.programme)
        return None if whose.user_id is not None else (programme_id, None)

    async def _find(self, repositories: Repositories, who: Who, now: datetime) -> Participant:
        """Return a participant, an account as one; raise InvalidInput for somebody unknown."""
        if who.participant_id is not None:
            await repositories.participants.add_account(who.participant_id, now)
        found = await self._participants.find_known(repositories, who)
        if found is None:
            field = "external_id" if who.participant_id is None else "participant_id"
            raise InvalidInput("There is no such participant.", field=field)
        return found


def _transfer(
    asked: Movement,
    kind: TransferKind,
    accounts: tuple[Account, Account],
    participant: Participant,
    made_by: str,
    now: datetime,
) -> Transfer:
    from_account, to_account = accounts
    return Transfer(
        transfer_id=uuid7(),
        programme_id=participant.programme_id,
        participant_id=participant.participant_id,
        unit=asked.unit,
        kind=kind,
        from_account=from_account,
        to_account=to_account,
        amount=abs(asked.amount),
        external_id=asked.external_id,
        note=asked.note,
        made_by=made_by,
        created_at=now,
    )


async def _find_repeated(
    repositories: Repositories, transfer: Transfer, fingerprint: bytes
) -> Transfer:
    """Return the transfer that has the id; raise IdReused if it is another one."""
    assert transfer.external_id is not None
    found = await repositories.transfers.find_external(transfer.programme_id, transfer.external_id)
    assert found is not None
    known, first = found
    if first != fingerprint or known.kind is not transfer.kind:
        raise IdReused
    return known
