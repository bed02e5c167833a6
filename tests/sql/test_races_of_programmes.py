"""What events, sign-ups, reviews and sweeps do to one another.

Each race says what to remove in order to see it lost.
"""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from service.domain.emails import parse_email
from service.domain.errors import (
    AlreadyReferred,
    IdReused,
    InvalidInput,
    ReferralCodeUnusable,
    RulesChanged,
)
from service.domain.events import Outcome
from service.domain.programmes import DEFAULT_PROGRAMME
from service.domain.referral_codes import NewReferralCode
from service.domain.referrals import Decision, ReferralReason, ReferralState, Review
from service.use_cases.locks import end_code_and_lock
from service.use_cases.participants import Who
from tests.sql.company import BY, DAY, ON_PURCHASE, Company, Pause, outcomes
from tests.sql.racing import HASH, NOW, new_user, refer_to, until_blocked

ROUNDS = 25


# One fact, one row.


@pytest.mark.parametrize("referred", [True, False], ids=["referred", "known to nobody"])
async def test_of_64_identical_events_at_once_one_is_new(company: Company, referred: bool) -> None:
    """Without ON CONFLICT in ADD of events, 63 would fail; without that in ADD_EXTERNAL of
    participants, those of somebody unknown would."""
    if referred:
        await company.refer(await company.share("u-1"), "u-2")
    reported, refused = await outcomes(*(company.report("order-1", "u-2") for _ in range(64)))
    assert refused == []
    assert [one.is_new for one in reported].count(True) == 1
    assert {one.outcome for one in reported} == {
        Outcome.QUALIFIED if referred else Outcome.NO_REFERRAL
    }
    assert len({one.event.event_id for one in reported}) == 1
    assert await company.database.fetchval("SELECT count(*) FROM events") == 1
    if referred:
        found = await company.look(await company.id_of("u-2"))
        assert found["states"] == ["pending", "qualified"]
        assert await company.standing("u-1") == 1
    else:
        assert await company.database.fetchval("SELECT count(*) FROM participants") == 1


async def test_an_id_counts_once_whoever_it_is_reported_of(company: Company) -> None:
    """Without the constraint events_happen_once it would count for each of them. Who is refused
    leaves nothing, no participant either."""
    people = [f"u-{number}" for number in range(32)]
    reported, refused = await outcomes(*(company.report("order-1", one) for one in people))
    assert len(reported) == 1
    assert {type(error) for error in refused} == {IdReused}
    assert await company.database.fetchval("SELECT count(*) FROM events") == 1
    assert await company.database.fetchval("SELECT count(*) FROM participants") == 1


# An event and its sign-up.


@pytest.mark.parametrize("known", [True, False], ids=["known before", "known to nobody"])
async def test_an_event_and_a_sign_up_at_once_always_qualify(company: Company, known: bool) -> None:
    """Without FOR NO KEY UPDATE in LOCK_EXTERNAL of participants, neither would see the other."""
    code = await company.share("u-1")
    for number in range(ROUNDS):
        who = f"r-{number}"
        if known:
            await company.report(f"visit-{number}", who, type="visit", amount=None, unit=None)
        both = company.report(f"order-{number}", who), company.sign_up(code, who)
        _, refused = await outcomes(*(both if number % 2 else reversed(both)))
        assert refused == []
        found = await company.look(await company.id_of(who))
        assert found["states"] == ["pending", "qualified"], number
    assert await company.standing("u-1") == ROUNDS


async def test_a_sign_up_waits_for_an_event_that_is_being_reported(company: Company) -> None:
    """Without FOR NO KEY UPDATE in LOCK_EXTERNAL of participants it would miss the event."""
    code = await company.share("u-1")
    await company.share("u-2")  # so that no unique index makes it wait
    pause = Pause()
    event = await pause.begins_in(company.report("order-1", "u-2", pause))
    sign_up = await until_blocked(company.database, company.sign_up(code, "u-2"))
    pause.over.set()
    assert (await event).outcome is Outcome.NO_REFERRAL
    referral, _ = await sign_up
    assert referral.state is ReferralState.QUALIFIED


async def test_an_event_waits_for_a_sign_up_that_is_being_made(company: Company) -> None:
    """Without FOR NO KEY UPDATE in LOCK_EXTERNAL of participants it would find no referral."""
    code = await company.share("u-1")
    await company.share("u-2")
    pause = Pause()
    sign_up = await pause.begins_in(company.sign_up(code, "u-2", pause))
    event = await until_blocked(company.database, company.report("order-1", "u-2"))
    pause.over.set()
    await sign_up
    assert (await event).outcome is Outcome.QUALIFIED


async def test_events_of_several_referees_count_once_each_for_their_referrer(
    company: Company,
) -> None:
    """With a count that is read and written back in place of MOVE, some would be lost; with two
    counts in its place, `nth` would have twins."""
    code = await company.share("u-1")
    people = [f"r-{number}" for number in range(40)]
    referrals = [await company.refer(code, one) for one in people]
    await outcomes(*(company.report(f"order-{one}", one) for one in people))
    found = [await company.look(one) for one in referrals]
    assert sorted(one["nth"] for one in found) == list(range(1, 41))
    assert await company.standing("u-1") == 40
    await outcomes(*(company.refund(f"refund-{one}", one, f"order-{one}") for one in people[:15]))
    assert await company.standing("u-1") == 25


async def test_the_first_two_of_a_referrer_of_before_are_both_counted(company: Company) -> None:
    """With `excluded.qualified` in place of `s.qualified + $2` in BEGIN, what those who wait for
    the first row have counted would be lost."""
    code = await company.share("u-1")
    people = [f"r-{number}" for number in range(8)]
    for one in people:
        await company.refer(code, one)
    before = await company.id_of("r-0"), await company.id_of("r-1")
    await company.database.execute(
        "UPDATE referrals SET state = 'qualified' WHERE user_id = ANY ($1)", before
    )
    await company.database.execute("DELETE FROM standings")  # which were not kept then
    await outcomes(*(company.report(f"order-{one}", one) for one in people[2:]))
    assert await company.standing("u-1") == 8


# Reviews.


async def test_reviews_at_once_leave_one_decision_each(company: Company) -> None:
    """Without FOR NO KEY UPDATE in LOCK, of participants and of referrals, most would give up:
    the sequence lets only one of them decide at a time."""
    referral_id = await company.refer(await company.share("u-1"), "u-2")
    await company.report("order-1", "u-2")
    decisions = ["approve", "reject"] * 16
    news = await asyncio.gather(*(company.review(referral_id, one) for one in decisions))  # type: ignore[arg-type]
    found = await company.look(referral_id)
    assert found["sequence"] == 2 + news.count(True)
    assert await company.standing("u-1") == (found["state"] == "qualified")
    assert found["review"] == ("approved" if found["state"] == "qualified" else "rejected")


async def test_of_identical_reviews_at_once_one_is_news(company: Company) -> None:
    """Without FOR NO KEY UPDATE in LOCK, of participants and of referrals, and without the sequence
    in DECIDE, several would be."""
    code = await company.share("u-1")
    for number in range(5):
        referral_id = await company.refer(code, f"r-{number}")
        news = await asyncio.gather(*(company.review(referral_id, "reject") for _ in range(16)))
        assert news.count(True) == 1
        assert (await company.look(referral_id))["states"] == ["pending", "rejected"]


async def test_a_review_and_a_refund_at_once_both_count(company: Company) -> None:
    """Without FOR NO KEY UPDATE in LOCK, of participants and of referrals, one would give up now
    and then; without the sequence in DECIDE, too, the count would fall twice."""
    code = await company.share("u-1")
    seen = set()
    for number in range(ROUNDS):
        who, order = f"r-{number}", f"order-{number}"
        referral_id = await company.refer(code, who)
        await company.report(order, who)
        both = company.review(referral_id, "reject"), company.refund(f"refund-{number}", who, order)
        await outcomes(*(both if number % 2 else reversed(both)))
        found = await company.look(referral_id)
        assert found["states"][:3] == ["pending", "qualified", "reversed"]
        assert (found["state"], found["review"]) == ("reversed", "rejected")
        seen.add(found["sequence"])
        assert await company.standing("u-1") == 0
    assert seen <= {3, 4}, "a rejection after the refund is a decision of its own"


@pytest.mark.parametrize("first", ["review", "refund"])
async def test_a_decision_waits_for_the_one_being_made(company: Company, first: str) -> None:
    """Without FOR NO KEY UPDATE in LOCK of referrals: the rows of participants are left alone."""
    referral_id = await company.refer(await company.share("u-1"), "u-2")
    await company.report("order-1", "u-2")
    async with company.services.database.transaction() as repositories:
        locked = await repositories.referrals.lock(referral_id)
        assert locked is not None
        work: Any = (
            company.review(referral_id, "reject")
            if first == "review"
            else company.refund("refund-1", "u-2", "order-1")
        )
        waiting = await until_blocked(company.database, work)
    await waiting
    assert (await company.look(referral_id))["state"] == "reversed"


async def test_of_two_that_decide_unlocked_one_does(company: Company) -> None:
    """Without the comparison of `sequence` in DECIDE the second would fail, at the primary key
    decisions_follow_each_other; without that, too, both would decide."""
    referral_id = await company.refer(await company.share("u-1"), "u-2")
    decision = Decision(
        referral_id=referral_id,
        sequence=2,
        state=ReferralState.REJECTED,
        review=Review.REJECTED,
        reason=ReferralReason.REVIEW_REJECTED,
        made_by=BY,
        event_id=None,
        detail=None,
        decided_at=NOW,
    )

    async def decide() -> bool:
        async with company.services.database.transaction() as repositories:
            return await repositories.referrals.decide([decision])

    assert sorted(await asyncio.gather(decide(), decide())) == [False, True]
    assert (await company.look(referral_id))["states"] == ["pending", "rejected"]


# Sign-ups.


async def test_of_identical_sign_ups_at_once_one_is_new(company: Company) -> None:
    """Without FOR NO KEY UPDATE in LOCK_EXTERNAL of participants the others would be refused."""
    code = await company.share("u-1")
    await company.share("u-2")
    signed_up, refused = await outcomes(*(company.sign_up(code, "u-2") for _ in range(32)))
    assert refused == []
    assert [is_new for _, is_new in signed_up].count(True) == 1
    assert await company.database.fetchval("SELECT sum(uses) FROM referral_code_uses") == 1


async def test_a_sign_up_is_repeated_with_a_look_alike_of_its_code(company: Company) -> None:
    code = await company.share("u-1", code="OIL-2026")
    for typed, new in (("0il-2o26", True), ("01L-2026", False), (code, False)):
        referral, is_new = await company.sign_up(typed, "u-2")
        assert (referral.code, is_new) == (code, new)


@pytest.mark.parametrize("known", [True, False], ids=["known before", "known to nobody"])
async def test_of_two_sign_ups_of_one_referee_with_two_codes_one_wins(
    company: Company, known: bool
) -> None:
    """Without the primary key of referrals and FOR NO KEY UPDATE in LOCK_EXTERNAL both would."""
    codes = [await company.share("u-1"), await company.share("u-2")]
    for number in range(ROUNDS):
        who = f"r-{number}"
        if known:
            await company.share(who)
        signed_up, refused = await outcomes(*(company.sign_up(code, who) for code in codes))
        assert len(signed_up) == 1
        assert [type(error) for error in refused] == [AlreadyReferred]
        assert (await company.look(await company.id_of(who)))["states"] == ["pending"]
    uses = await company.database.fetchval("SELECT sum(uses) FROM referral_code_uses")
    assert uses == ROUNDS, "a sign-up that is refused is no use of the code"


async def test_an_email_address_is_referred_once_in_a_programme(company: Company) -> None:
    """Without the constraint referrals_email_referred_once it would be by several."""
    email = parse_email("anna@example.com")
    code = await company.share("u-1")
    work = [company.sign_up(code, f"r-{number}", email=email) for number in range(16)]
    signed_up, refused = await outcomes(*work)
    assert len(signed_up) == 1
    assert {type(error) for error in refused} == {AlreadyReferred}


async def test_of_two_who_refer_each_other_one_does(company: Company) -> None:
    """Without the index referrals_of_a_pair_once both would."""
    for number in range(ROUNDS):
        anna, bert = f"a-{number}", f"b-{number}"
        of_anna, of_bert = await company.share(anna), await company.share(bert)
        signed_up, refused = await outcomes(
            company.sign_up(of_bert, anna), company.sign_up(of_anna, bert)
        )
        assert len(signed_up) == 1
        assert [type(error) for error in refused] == [AlreadyReferred]


@pytest.mark.parametrize("begun", [True, False], ids=["with a standing", "the first ones"])
@pytest.mark.parametrize(
    ("of_each", "plain"),
    [({"device_id": "d-1"}, 1), ({"ip": "203.0.113.7"}, 2), ({}, 20)],
    ids=["device", "ip", "velocity"],
)
async def test_sign_ups_at_once_are_compared_with_each_other(
    company: Company, begun: bool, of_each: dict[str, Any], plain: int
) -> None:
    """Without FOR NO KEY UPDATE OF s in TAKE, or lock_standing before COMPARE, they are not."""
    code = await company.share("u-1")
    if begun:
        await company.refer(code, "u-2")
    work = [company.sign_up(code, f"r-{number}", **of_each) for number in range(28)]
    signed_up, refused = await outcomes(*work)
    assert refused == []
    flags = [list(referral.flags) for referral, _ in signed_up]
    expected = plain - (begun and not of_each)  # who came before counts for the velocity alone
    assert sum(not one or (one == ["velocity"] and bool(of_each)) for one in flags) == expected


async def test_max_uses_counts_sign_ups_exactly(company: Company) -> None:
    """Without the WHERE of the UPDATE in TAKE more would be let in; and those who say that they
    followed the link in time are too late as well."""
    code = await company.share("u-1", max_uses=5)
    clicks = [None, NOW - timedelta(minutes=1), NOW]
    company.clock.now += timedelta(minutes=1)
    work = [company.sign_up(code, f"r-{n}", clicked_at=clicks[n % 3]) for n in range(30)]
    signed_up, refused = await outcomes(*work)
    assert len(signed_up) == 5
    assert {type(error) for error in refused} == {ReferralCodeUnusable}


# Rules.


async def test_of_admins_who_replace_a_version_at_once_one_does(company: Company) -> None:
    """Without `version = $2` in NEXT_VERSION all would; each without seeing the others' change."""
    for replaced in range(2, 12):
        rules = [{**ON_PURCHASE, "qualify": {"on": f"event_{n}"}} for n in range(6)]
        made, refused = await outcomes(*(company.set_rules(one, replaced) for one in rules))
        assert made == [replaced + 1]
        assert [type(error) for error in refused] == [RulesChanged] * 5
    shown = await company.services.programmes.find(DEFAULT_PROGRAMME)
    assert shown.programme.version == 12


async def test_a_referral_keeps_the_rules_that_it_was_made_under(company: Company) -> None:
    """With the newest version in place of the referral's in `assess`, it would not qualify."""
    code = await company.share("u-1")
    before = await company.refer(code, "u-2")
    pause = Pause()
    meanwhile = await pause.begins_in(company.sign_up(code, "u-3", pause))
    dearer = {"qualify": {"on": "purchase", "minimum": {"amount": 9900, "unit": "EUR"}}}
    assert await company.set_rules(dearer, 2) == 3  # which waits for nobody
    pause.over.set()
    referral, _ = await meanwhile
    after = await company.refer(code, "u-4")
    for who in ("u-2", "u-3", "u-4"):
        await company.report(f"order-{who}", who)
    found = [await company.look(one) for one in (before, referral.referral_id, after)]
    assert [one["state"] for one in found] == ["qualified", "qualified", "pending"]


# Codes that die between click and sign-up.


async def replace_code(company: Company) -> None:
    await company.services.participants.replace_code(
        await company.id_of("u-1"), NewReferralCode(expires_in_days=30)
    )


async def expire_code(company: Company) -> None:
    company.clock.now += 40 * DAY


async def delete_code(company: Company) -> None:
    await company.services.participants.delete_code(await company.id_of("u-1"))


@pytest.mark.parametrize("end", [replace_code, expire_code])
async def test_a_code_that_died_since_the_click_counts_with_it_alone(
    company: Company, end: Any
) -> None:
    """Without FIND_AT no sign-up would count; without the last condition on `ended_at` in it one
    that followed the link later would."""
    code, clicked_at = await company.share("u-1"), company.clock.now
    company.clock.now += timedelta(hours=1)
    await end(company)
    ended = company.clock.now
    company.clock.now += timedelta(hours=1)
    with pytest.raises(ReferralCodeUnusable):
        await company.sign_up(code, "u-2")
    for late in (ended, company.clock.now):
        with pytest.raises(ReferralCodeUnusable):
            await company.sign_up(code, "u-2", clicked_at=late)
    referral, _ = await company.sign_up(code, "u-2", clicked_at=clicked_at)
    assert referral.code == code


async def test_a_code_that_was_used_up_or_deleted_since_the_click_does_not_count(
    company: Company,
) -> None:
    """Without `end_reason IN (…)` in FIND_AT the deleted one would."""
    used_up, deleted = await company.share("u-2", max_uses=1), await company.share("u-1")
    clicked_at = company.clock.now
    company.clock.now += timedelta(hours=1)
    await company.refer(used_up, "u-3")
    await delete_code(company)
    for code in (used_up, deleted):
        with pytest.raises(ReferralCodeUnusable):
            await company.sign_up(code, "u-4", clicked_at=clicked_at)


async def test_a_sign_up_counts_while_its_code_is_being_replaced(company: Company) -> None:
    """Without FIND_AT, or with a look for the code before it is locked, some would be refused."""
    code = await company.share("u-1")
    for number in range(ROUNDS):
        clicked_at = company.clock.now
        company.clock.now += timedelta(minutes=1)
        both = company.sign_up(code, f"r-{number}", clicked_at=clicked_at), replace_code(company)
        _, refused = await outcomes(*(both if number % 2 else reversed(both)))
        assert refused == []
        [shown] = await company.services.participants.find_external(Who(external_id="u-1"))
        assert shown.code is not None
        code = shown.code.code


# The sweep.


async def test_sweeps_at_once_reject_each_overdue_referral_once(company: Company) -> None:
    """Without SKIP LOCKED in LOCK_FREE they would queue; without the lock they would meet in the
    sequence."""
    code = await company.share("u-1")
    referrals = [await company.refer(code, f"r-{number}") for number in range(30)]
    company.clock.now += 30 * DAY
    looked_at = await asyncio.gather(
        *(company.services.referrals.reject_overdue() for _ in range(8))
    )
    assert max(looked_at) == 30
    for one in referrals:
        assert (await company.look(one))["states"] == ["pending", "rejected"]
    assert await company.services.referrals.reject_overdue() == 0


async def test_a_sweep_passes_by_what_is_being_decided(company: Company) -> None:
    """Without SKIP LOCKED in LOCK_FREE it would wait, and every other referral with it."""
    referral_id = await company.refer(await company.share("u-1"), "u-2")
    company.clock.now += 30 * DAY
    async with company.services.database.transaction() as repositories:
        assert await repositories.referrals.lock(referral_id)
        async with asyncio.timeout(2):
            await company.services.referrals.reject_overdue()
    assert (await company.look(referral_id))["state"] == "pending"


async def test_an_event_that_comes_with_the_sweep_qualifies_however_late(company: Company) -> None:
    """Without FOR NO KEY UPDATE in LOCK of referrals and the sequence in DECIDE, the sweep would
    have the last word now and then."""
    code = await company.share("u-1")
    for number in range(ROUNDS):
        who, company.clock.now = f"r-{number}", NOW
        referral_id = await company.refer(code, who)
        company.clock.now += 31 * DAY
        both = (
            company.report(f"order-{number}", who, occurred_at=NOW),
            company.services.referrals.reject_overdue(),
        )
        await outcomes(*(both if number % 2 else reversed(both)))
        found = await company.look(referral_id)
        assert found["state"] == "qualified"
        assert found["states"] in (["pending", "qualified"], ["pending", "rejected", "qualified"])
    assert await company.standing("u-1") == ROUNDS


# Accounts that take part, and are erased.


async def new_account(company: Company) -> UUID:
    async with company.services.database.transaction() as repositories:
        return await new_user(repositories)


async def test_an_account_that_is_being_erased_does_not_become_a_participant(
    company: Company,
) -> None:
    """Without FOR KEY SHARE in ADD_ACCOUNT it would, as one that is not erased."""
    user_id = await new_account(company)
    async with company.services.database.transaction() as repositories:
        assert await end_code_and_lock(repositories, user_id, NOW)
        event = await until_blocked(company.database, company.report("order-1", user_id))
        assert await repositories.users.erase(user_id, HASH, NOW)
    with pytest.raises(InvalidInput):
        await event
    assert await company.database.fetchval("SELECT count(*) FROM participants") == 0


async def test_a_referrer_who_is_being_erased_becomes_an_erased_participant(
    company: Company,
) -> None:
    """Without FOR KEY SHARE in MOVE it would become one that is not erased. So it is for referrers
    of before there were participants."""
    referrer_id = await new_account(company)
    async with company.services.database.transaction() as repositories:
        referee_id = await new_user(repositories)
        await refer_to(repositories, referee_id, referrer_id, b"hash")
    async with company.services.database.transaction() as repositories:
        assert await end_code_and_lock(repositories, referrer_id, NOW)
        event = await until_blocked(company.database, company.report("order-1", referee_id))
        assert await repositories.users.erase(referrer_id, HASH, NOW)
    assert (await event).outcome is Outcome.QUALIFIED
    erased = "SELECT erased_at IS NOT NULL FROM participants WHERE participant_id = $1"
    assert await company.database.fetchval(erased, referrer_id)


async def test_the_erasure_of_an_account_waits_for_its_event_and_ends_its_part(
    company: Company,
) -> None:
    """Without `participants.erase` in `remove_account` the erasure would wait for nobody, and the
    participant go on."""
    user_id = await new_account(company)
    await company.report("visit-1", user_id, type="visit")
    pause = Pause()
    event = await pause.begins_in(company.report("order-1", user_id, pause))
    erasure = await until_blocked(
        company.database, company.services.users.erase_anyone(user_id, "a test")
    )
    pause.over.set()
    await asyncio.gather(event, erasure)
    assert (await company.report("order-2", user_id)).outcome is Outcome.ERASED
