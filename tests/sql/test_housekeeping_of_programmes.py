"""What housekeeping deletes of programmes, and what it leaves."""

import asyncio
from datetime import timedelta

import pytest

from service.domain.events import Outcome
from service.domain.participants import SIGNALS_KEPT_FOR
from service.domain.referrals import ReferralState
from service.use_cases import housekeeping as module
from service.use_cases.housekeeping import Housekeeping
from tests.sql.company import DAY, Company, Pause

KEPT = timedelta(days=30)


async def ids_of_events(company: Company) -> set[str]:
    rows = await company.database.fetch("SELECT external_id FROM events")
    return {external_id for (external_id,) in rows}


async def test_old_events_of_nobodys_referral_are_deleted(company: Company) -> None:
    """Without NOT EXISTS in DELETE_OF_NOBODY a refund would find nothing to take back."""
    housekeeping = Housekeeping(company.services.database, company.clock, KEPT)
    await company.refer(await company.share("u-1"), "u-2")
    await company.report("order-2", "u-2")
    await company.report("order-3", "u-3")
    company.clock.now += KEPT
    await company.report("order-4", "u-4")
    await housekeeping.tidy_up()
    assert await ids_of_events(company) == {"order-2", "order-3", "order-4"}, "it is not older yet"
    company.clock.now += timedelta(seconds=1)
    await housekeeping.tidy_up()
    assert await ids_of_events(company) == {"order-2", "order-4"}
    company.clock.now += KEPT
    await housekeeping.tidy_up()
    assert await ids_of_events(company) == {"order-2"}
    refunded = await company.refund("refund-2", "u-2", "order-2")
    assert refunded.outcome is Outcome.REVERSED


async def test_an_old_event_stays_while_its_participant_signs_up(company: Company) -> None:
    """Without LOCK_OLD it would be deleted after the sign-up has qualified by it."""
    code = await company.share("u-1", expires_in_days=366)
    signed_up_at = company.clock.now
    await company.report("order-2", "u-2")
    company.clock.now += KEPT + DAY
    pause = Pause()
    sign_up = await pause.begins_in(
        company.sign_up(code, "u-2", pause, clicked_at=signed_up_at, signed_up_at=signed_up_at)
    )
    housekeeping = Housekeeping(company.services.database, company.clock, KEPT)
    async with asyncio.timeout(2):
        await housekeeping.tidy_up()
    pause.over.set()
    referral, _ = await sign_up
    assert referral.state is ReferralState.QUALIFIED
    assert await ids_of_events(company) == {"order-2"}


async def test_events_that_stay_do_not_keep_others_from_being_deleted(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If each call began at the oldest event, it would never come past those that stay."""
    monkeypatch.setattr(module, "MOST_BATCHES", 1)
    housekeeping = Housekeeping(company.services.database, company.clock, KEPT)
    await company.refer(await company.share("u-1"), "u-2")
    await company.report("order-0", "u-2")
    await company.database.execute(
        """
        INSERT INTO events
               (event_id, programme_id, external_id, participant_id, type, occurred_at,
                received_at, fingerprint)
        SELECT gen_random_uuid(), programme_id, 'visit-' || number, participant_id, 'visit',
               occurred_at, received_at, fingerprint
          FROM events, generate_series(1, 1000) AS number
        """
    )
    company.clock.now += timedelta(seconds=1)
    await company.report("order-3", "u-3")
    company.clock.now += KEPT + DAY
    for _ in range(2):
        await housekeeping.tidy_up()
    left = await ids_of_events(company)
    assert "order-3" not in left
    assert len(left) == 1001


async def test_signals_are_deleted_but_those_of_email_addresses(company: Company) -> None:
    """Without `kind <> 'email'` in DELETE_OLD an address would be forgotten before its owner."""
    await company.share("u-1")
    hashes = {"email": b"e", "ip": b"i", "device": b"d"}
    participant_id = await company.id_of("u-1")
    async with company.services.database.autocommit() as repositories:
        await repositories.signals.note(participant_id, hashes, company.clock.now)
        company.clock.now += DAY
        await repositories.signals.note(participant_id, {"device": b"d"}, company.clock.now)
    company.clock.now += SIGNALS_KEPT_FOR - timedelta(hours=1)
    await Housekeeping(company.services.database, company.clock).tidy_up()
    kinds = await company.database.fetch("SELECT kind FROM signals")
    assert {kind for (kind,) in kinds} == {"email", "device"}
