"""Failed attempts while Redis is away: the same pauses, counted by each worker on its own."""

from datetime import UTC, datetime, timedelta

import pytest

from service.domain.keyed_hashes import keyed_hash
from service.redis.client import RedisClient
from service.redis.password_attempts import PAUSES_MS, REMEMBERED_MS, Failures, KnownAddresses
from tests.unit.test_rate_limits import HandSetClock

WHO = ("anna@example.com", "203.0.113.1")


@pytest.fixture
def clock() -> HandSetClock:
    return HandSetClock(datetime(2026, 11, 21, 9, 30, tzinfo=UTC))


@pytest.fixture
def failures(clock: HandSetClock) -> Failures:
    return Failures(RedisClient("unix:///nowhere"), clock, b"key")


async def fail(failures: Failures, times: int) -> None:
    for _ in range(times):
        assert await failures.begin(*WHO) == 0


async def test_after_five_failures_the_pauses_double(
    failures: Failures, clock: HandSetClock
) -> None:
    await fail(failures, 5)
    for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]:
        pause = timedelta(seconds=seconds)
        assert await failures.begin(*WHO) == seconds * 1000
        clock.now += pause - timedelta(milliseconds=1)
        assert await failures.begin(*WHO) == 1
        clock.now += timedelta(milliseconds=1)
        assert await failures.begin(*WHO) == 0


async def test_they_are_of_one_account_and_one_address(failures: Failures) -> None:
    await fail(failures, 5)
    assert await failures.begin(*WHO) > 0
    assert await failures.begin("bert@example.com", WHO[1]) == 0
    assert await failures.begin(WHO[0], "203.0.113.2") == 0


async def test_a_success_forgets_them(failures: Failures) -> None:
    await fail(failures, 5)
    await failures.forget(*WHO)
    await fail(failures, 5)


async def test_an_attempt_that_is_taken_back_has_not_been(failures: Failures) -> None:
    await failures.take_back(*WHO)
    for _ in range(20):
        await fail(failures, 1)
        await failures.take_back(*WHO)
    await fail(failures, 5)
    assert await failures.begin(*WHO) > 0


async def test_after_an_hour_without_a_failure_they_are_forgotten(
    failures: Failures, clock: HandSetClock
) -> None:
    await fail(failures, 5)
    clock.now += timedelta(milliseconds=REMEMBERED_MS)
    await fail(failures, 5)


async def test_no_pause_is_longer_than_failures_are_remembered() -> None:
    """How long it lasts already is seen from how long they are still remembered."""
    assert max(PAUSES_MS) < REMEMBERED_MS


async def test_while_redis_is_away_no_address_is_known(clock: HandSetClock) -> None:
    known = KnownAddresses(RedisClient("unix:///nowhere"), clock, b"key")
    await known.add(*WHO)
    assert not await known.include(*WHO)


def test_a_hash_is_of_its_key_its_kind_and_its_text() -> None:
    hashes = {
        keyed_hash(key, kind, text)
        for key in (b"key", b"another")
        for kind in ("address", "failures")
        for text in WHO
    }
    assert len(hashes) == 8
    assert {len(one) for one in hashes} == {32}
