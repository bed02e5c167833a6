"""Settling the rewards of a referral: how what there is differs from what is wanted."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from uuid6 import uuid7

from service.domain.events import Event
from service.domain.ledger import Account, Transfer, TransferKind
from service.domain.programmes import Rules
from service.domain.referrals import ProgrammeReferral
from service.domain.rewards import Reward, RewardState, WantedReward


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A locked referral in its new state, whose rewards are to be settled.

    `cause` is the event that qualifies it, `event` what has just become known. `whole`: all of its
    rewards are looked at, and not just what the event concerns. `first`: it has not qualified
    before. `standing` is how many of the referrer's have qualified, if that
    has changed, and `rose` whether there are more.
    """

    rules: Rules
    referral: ProgrammeReferral
    cause: Event | None
    event: Event | None
    now: datetime
    made_by: str
    whole: bool
    is_new: bool = False
    first: bool = False
    standing: int | None = None
    rose: bool = False


class Changes:
    """What is to be given, what is to be taken back, and the transfers that do the latter."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self.missing: list[WantedReward] = []
        self.changed: list[Reward] = []
        self.transfers: list[Transfer] = []
        self.taken_back: list[Reward] = []

    def compare(self, live: Iterable[Reward], wanted: Iterable[WantedReward]) -> None:
        """Note by what the rewards of a referral differ from what is wanted."""
        referral = self._case.referral
        missing = {(want.rule.name, cause_id(referral, want)): want for want in wanted}
        for reward in live:
            want = missing.get((reward.rule, reward.cause_id))
            # One that grows is given anew, and so is one that was released, and would still be held
            # if the later event, by which the referral qualifies now, had been the first.
            if (
                want is None
                or want.unit != reward.unit
                or want.amount > reward.left
                or self._is_held_again(reward, want)
            ):
                self.take_back(reward, reward.left)
                continue
            del missing[reward.rule, reward.cause_id]
            current = reward
            pending = reward.state is RewardState.PENDING
            if pending and want.rule.hold_days and want.available_at != reward.available_at:
                current = replace(reward, available_at=want.available_at)
                self.changed.append(current)
            if want.amount < current.left:
                self.take_back(current, current.left - want.amount)
        self.missing += missing.values()

    def _is_held_again(self, reward: Reward, want: WantedReward) -> bool:
        return (
            reward.state is RewardState.AVAILABLE
            and want.rule.hold_days > 0
            and want.available_at > max(reward.available_at, self._case.now)
        )

    def take_back(self, reward: Reward, amount: int) -> None:
        """Note that so much of a reward goes back to the programme."""
        account = Account(reward.state)
        back = reward.reversed + amount
        state = RewardState.REVERSED if back == reward.amount else reward.state
        self.changed = [one for one in self.changed if one.reward_id != reward.reward_id]
        lessened = replace(reward, reversed=back, state=state)
        self.changed.append(lessened)
        self.taken_back.append(lessened)
        accounts = account, Account.PROGRAMME
        by, now = self._case.made_by, self._case.now
        self.transfers.append(_transfer(reward, TransferKind.REVERSAL, accounts, amount, by, now))


def cause_id(referral: ProgrammeReferral, want: WantedReward) -> UUID:
    """Return what a reward is given for, milestones apart."""
    return referral.referral_id if want.cause is None else want.cause.event_id


def release_of(reward: Reward, made_by: str, now: datetime) -> Transfer:
    """Return the transfer with which what is left of a reward becomes available."""
    accounts = Account.PENDING, Account.AVAILABLE
    return _transfer(reward, TransferKind.RELEASE, accounts, reward.left, made_by, now)


def _transfer(
    reward: Reward,
    kind: TransferKind,
    accounts: tuple[Account, Account],
    amount: int,
    made_by: str,
    now: datetime,
) -> Transfer:
    from_account, to_account = accounts
    return Transfer(
        transfer_id=uuid7(),
        programme_id=reward.programme_id,
        participant_id=reward.participant_id,
        unit=reward.unit,
        kind=kind,
        from_account=from_account,
        to_account=to_account,
        amount=amount,
        reward_id=reward.reward_id,
        made_by=made_by,
        created_at=now,
    )
