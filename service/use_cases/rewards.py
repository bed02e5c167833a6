"""Giving what rules give, releasing it when its hold is over, and taking it back.

The difference between what is wanted and what is stored is written in the transaction that changes
the referral, whose lock the caller holds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from uuid6 import uuid7

from service.domain.events import Event
from service.domain.programmes import HAVE_QUALIFIED, QUALIFIED, SIGN_UP, RewardRule, Rules
from service.domain.referrals import ProgrammeReferral, ReferralState, Review
from service.domain.rewards import (
    Reward,
    RewardState,
    WantedReward,
    concerns,
    has_cap,
    is_for_events,
    milestones,
    qualified_at,
    span_of,
    wanted_rewards,
)
from service.domain.settlement import Case, Changes, cause_id, release_of
from service.domain.webhooks import rewards_settled
from service.postgresql.database import Repositories
from service.use_cases.locks import lock_standing
from service.use_cases.programmes import Programmes
from service.use_cases.webhooks import announce


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What has been done about a referral's rewards.

    `refused` are rules of which a cap is reached, with the event that they would have given
    something for. `rewarded`: something is available, other than for signing up. `are_all`: what is
    granted is all that the referral has ever been given.
    """

    rewarded: bool
    granted: Sequence[Reward] = ()
    taken_back: bool = False
    refused: Sequence[tuple[str, UUID | None]] = ()
    are_all: bool = False


class Rewards:
    """Rewards: giving, releasing, taking back."""

    def __init__(self, programmes: Programmes) -> None:
        self._programmes = programmes

    async def settle(self, repositories: Repositories, case: Case) -> Settled:
        """Give what is wanted and missing, take back what is not wanted, release what is due."""
        referral = case.referral
        was_rewarded = referral.state is ReferralState.REWARDED
        if not case.whole and case.event is None:
            live = await repositories.rewards.due_of_referral(referral.referral_id, case.now)
            released = await self._release(repositories, live, case.now, case.made_by)
            names = _names_for_more_than_signing_up(case.rules)
            rewarded = any(reward.rule in names for reward in released)
            announce(
                repositories, case.now, *rewards_settled(referral.programme, released=released)
            )
            return Settled(rewarded=was_rewarded or rewarded)
        events = await _events_of(repositories, case)
        live = await _live(repositories, case, events)
        changes = Changes(case)
        changes.compare(live, wanted_rewards(case.rules, referral, case.cause, events, case.now))
        await self._compare_milestones(repositories, case, changes)
        # A block waits until this ends, or is seen. A sign-up has locked the standing before.
        if changes.missing and case.standing is None and not case.is_new:
            await lock_standing(repositories, referral.referrer_id, referral.programme_id, case.now)
        refused = await self._take_places(repositories, case, changes)
        return await self._write(repositories, case, changes, live, refused)

    async def release_milestones(
        self, repositories: Repositories, participant_id: UUID, now: datetime, made_by: str
    ) -> None:
        """Release a referrer's milestones that are due, unless somebody else is about to."""
        if await repositories.standings.lock_free(participant_id):
            due = await repositories.rewards.due_milestones(participant_id, now)
            released = await self._release(repositories, due, now, made_by)
            if released:
                programme = await self._programmes.find_by_id(
                    repositories, released[0].programme_id
                )
                told = rewards_settled(programme.key, released=released)
                announce(repositories, now, *told)

    async def _compare_milestones(
        self, repositories: Repositories, case: Case, changes: Changes
    ) -> None:
        if case.standing is None:
            return
        referrer_id = case.referral.referrer_id
        if case.rose:
            at = qualified_at(case.referral, case.cause)
            changes.missing += milestones(case.rules, case.standing, at, case.now)
        else:
            undercut = await repositories.rewards.milestones_above(referrer_id, case.standing)
            for reward in undercut:
                changes.take_back(reward, reward.left)

    async def _take_places(
        self, repositories: Repositories, case: Case, changes: Changes
    ) -> list[tuple[str, UUID | None]]:
        """Count what is given and taken back of rules with a cap; return what a cap refuses."""
        steps: list[tuple[str, int, RewardRule, WantedReward | None]] = []
        for reward in changes.changed:
            if reward.state is RewardState.REVERSED:
                rules = await self._programmes.rules(
                    repositories, reward.programme_id, reward.version
                )
                rule = next(one for one in rules.rewards if one.name == reward.rule)
                steps.append((rule.name, 0, rule, None))
        steps += [(want.rule.name, 1, want.rule, want) for want in changes.missing]
        steps = [step for step in steps if has_cap(step[2])]
        if not steps:
            return []
        before = await _refused_before(repositories, case, changes)
        refused: list[tuple[str, UUID | None]] = []
        # In one order for all transactions: by rule, the referrer before the programme.
        for _, _, rule, want in sorted(steps, key=lambda step: step[:2]):
            if want is None:
                await _give_back_place(repositories, case.referral, rule)
                continue
            event_id = want.cause.event_id if want.cause else None
            known = _is_among(before, rule, event_id)
            if known or not await _take_place(repositories, case.referral, rule):
                changes.missing.remove(want)
                if not known:
                    at_hand = None if case.event is None else case.event.event_id
                    refused.append((rule.name, event_id or at_hand))
        return refused

    async def _write(
        self,
        repositories: Repositories,
        case: Case,
        changes: Changes,
        live: Sequence[Reward],
        refused: Sequence[tuple[str, UUID | None]],
    ) -> Settled:
        if changes.changed:
            await repositories.rewards.change(changes.changed)
        current = {reward.reward_id: reward for reward in [*live, *changes.changed]}
        released = await self._release(repositories, current.values(), case.now, case.made_by)
        if changes.transfers:
            await repositories.transfers.post(changes.transfers)
        granted = await self._grant(repositories, case, changes.missing)
        told = rewards_settled(
            case.referral.programme,
            granted=granted,
            released=released,
            taken_back=changes.taken_back,
        )
        announce(repositories, case.now, *told)
        names = _names_for_more_than_signing_up(case.rules)
        rewarded = case.referral.state is ReferralState.REWARDED
        if any(
            reward.rule in names and reward.state is RewardState.AVAILABLE
            for reward in [*released, *granted]
        ):
            rewarded = True
        elif rewarded and changes.transfers:
            rewarded = await repositories.rewards.has_available(case.referral.referral_id, names)
        return Settled(
            rewarded=rewarded and case.referral.state in HAVE_QUALIFIED,
            granted=granted,
            taken_back=bool(changes.transfers),
            refused=refused,
            are_all=_has_nothing(case),
        )

    async def _grant(
        self, repositories: Repositories, case: Case, missing: Iterable[WantedReward]
    ) -> Sequence[Reward]:
        referral, granted = case.referral, []
        for want in missing:
            is_milestone = want.nth > 0
            to_referrer = want.rule.to == "referrer"
            participant_id = referral.referrer_id if to_referrer else referral.referral_id
            held = referral.review is Review.OPEN
            if is_milestone and not held:
                held = await repositories.referrals.has_open_review(participant_id)
            granted.append(
                Reward(
                    reward_id=uuid7(),
                    programme_id=referral.programme_id,
                    version=referral.version,
                    rule=want.rule.name,
                    participant_id=participant_id,
                    referral_id=None if is_milestone else referral.referral_id,
                    cause_id=participant_id if is_milestone else cause_id(referral, want),
                    nth=want.nth,
                    unit=want.unit,
                    amount=want.amount,
                    state=RewardState.PENDING,
                    held=held,
                    available_at=want.available_at,
                    created_at=case.now,
                )
            )
        return await repositories.rewards.give(granted, case.made_by) if granted else ()

    async def _release(
        self, repositories: Repositories, rewards: Iterable[Reward], now: datetime, made_by: str
    ) -> list[Reward]:
        """Make available what is due and nothing holds, no pause either; return that."""
        due = [
            reward
            for reward in rewards
            if reward.state is RewardState.PENDING
            and not reward.held
            and reward.available_at <= now
        ]
        if not due:
            return []
        free = await repositories.rewards.release([reward.reward_id for reward in due])
        released = [
            replace(reward, state=RewardState.AVAILABLE)
            for reward in due
            if reward.reward_id in free
        ]
        if released:
            await repositories.transfers.post(
                [release_of(reward, made_by, now) for reward in released]
            )
        return released


async def _events_of(repositories: Repositories, case: Case) -> list[Event]:
    """Return the events that the referral's rewards are for, as far as they are looked at."""
    referral = case.referral
    rules = [rule for rule in case.rules.rewards if is_for_events(rule)]
    if referral.state not in HAVE_QUALIFIED or not rules:
        return []
    events: list[Event] = []
    if not case.whole:
        assert case.event is not None
        event = await repositories.events.find_counted(
            referral.programme_id,
            case.event.refunds or case.event.external_id,
            referral.referral_id,
        )
        if event is None:  # refunded before it was reported
            return []
        if not any(concerns(rule, referral, event) for rule in rules):
            return []
        # The first few of one rule may be among those of another, too, that this event is not for.
        rules = [rule for rule in rules if rule.on == event.type]
        events = [event]
    for rule in rules:
        if case.whole or rule.times is not None:
            unit = None if rule.basis_points is None else rule.unit
            events += await repositories.events.that_count(
                referral.referral_id, rule.on, *span_of(rule, referral), unit, rule.times
            )
    return events


def _has_nothing(case: Case) -> bool:
    """Whether nothing has ever been given for the referral."""
    for_signing_up = any(rule.on == SIGN_UP for rule in case.rules.rewards)
    return not case.rules.rewards or case.is_new or (case.first and not for_signing_up)


async def _live(repositories: Repositories, case: Case, events: Sequence[Event]) -> list[Reward]:
    """Return the rewards to compare with what is wanted for the events."""
    referral = case.referral
    if _has_nothing(case):
        return []
    if case.whole:
        return await repositories.rewards.live_of_referral(referral.referral_id)
    # Of these rules all that the first few events of a type have given is compared.
    of_the_first = [
        rule.name
        for rule in case.rules.rewards
        if rule.times is not None and any(concerns(rule, referral, event) for event in events)
    ]
    return await repositories.rewards.live_of_causes(
        referral.referral_id,
        [rule.name for rule in case.rules.rewards],
        [referral.referral_id, *(event.event_id for event in events)],
        of_the_first,
    )


async def _refused_before(
    repositories: Repositories, case: Case, changes: Changes
) -> set[tuple[str, UUID | None]]:
    """Return what a cap has kept from being given: it is not given later."""
    asked = [
        want.rule.name
        for want in changes.missing
        if has_cap(want.rule)
        and not (case.is_new or (case.first and want.rule.on != SIGN_UP))
        and (want.cause is None or case.event is None or want.cause.event_id != case.event.event_id)
        and want.nth == 0
    ]
    if not asked:
        return set()
    return await repositories.decisions.refused(case.referral.referral_id, asked)


def _is_among(
    refused: set[tuple[str, UUID | None]], rule: RewardRule, event_id: UUID | None
) -> bool:
    if is_for_events(rule):
        return (rule.name, event_id) in refused
    return any(name == rule.name for name, _ in refused)


async def _take_place(
    repositories: Repositories, referral: ProgrammeReferral, rule: RewardRule
) -> bool:
    """Count one more reward of the rule; return False, and count nothing, if a cap is reached."""
    counts = repositories.reward_counts
    each, total = rule.max_per_referrer, rule.max_total
    if each is not None and not await counts.take(referral.referrer_id, rule.name, each):
        return False
    if total is not None and not await counts.take(referral.programme_id, rule.name, total):
        if each is not None:
            await counts.give_back(referral.referrer_id, rule.name)
        return False
    return True


async def _give_back_place(
    repositories: Repositories, referral: ProgrammeReferral, rule: RewardRule
) -> None:
    if rule.max_per_referrer is not None:
        await repositories.reward_counts.give_back(referral.referrer_id, rule.name)
    if rule.max_total is not None:
        await repositories.reward_counts.give_back(referral.programme_id, rule.name)


def _names_for_more_than_signing_up(rules: Rules) -> list[str]:
    return [rule.name for rule in rules.rewards if is_for_events(rule) or rule.on == QUALIFIED]
