"""Counting while Redis is away: each worker on its own, in bounded memory."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from service.domain.rate_limits import RateLimit
from service.redis import rate_limits
from service.redis.client import RedisClient
from service.redis.rate_limits import RateLimiter, Window

TWO_A_MINUTE = RateLimit(2, 60)


@dataclass
class HandSetClock:
    """A clock that stands still until it is moved."""

    now: datetime = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> HandSetClock:
    return HandSetClock()


@pytest.fixture
def limiter(clock: HandSetClock) -> RateLimiter:
    return RateLimiter(RedisClient("unix:///nowhere"), clock, b"key")


async def count(limiter: RateLimiter, subject: str = "anna", name: str = "login") -> Window:
    [window] = await limiter.count(TWO_A_MINUTE, [(name, subject)])
    return window


async def test_a_window_fills_and_says_how_full_it_is(limiter: RateLimiter) -> None:
    windows = [await count(limiter) for _ in range(4)]
    assert [window.count for window in windows] == [1, 2, 3, 4]
    assert [window.remaining for window in windows] == [1, 0, 0, 0]
    assert [window.exceeded for window in windows] == [False, False, True, True]
    assert {(window.name, window.limit, window.reset) for window in windows} == {
        ("login", TWO_A_MINUTE, 60)
    }


@pytest.mark.parametrize(
    ("later", "reset"),
    [
        pytest.param(timedelta(), 60, id="at once"),
        pytest.param(timedelta(milliseconds=1), 60, id="rounded up"),
        pytest.param(timedelta(seconds=1), 59, id="a second later"),
        pytest.param(timedelta(milliseconds=59_999), 1, id="at the end"),
    ],
)
async def test_a_window_says_how_long_it_lasts(
    limiter: RateLimiter, clock: HandSetClock, later: timedelta, reset: int
) -> None:
    await count(limiter)
    clock.now += later
    assert (await count(limiter)).reset == reset


async def test_after_a_window_has_ended_another_starts(
    limiter: RateLimiter, clock: HandSetClock
) -> None:
    for _ in range(3):
        await count(limiter)
    clock.now += timedelta(seconds=60)
    window = await count(limiter)
    assert (window.count, window.reset) == (1, 60)


async def test_counting_does_not_make_a_window_longer(
    limiter: RateLimiter, clock: HandSetClock
) -> None:
    for _ in range(3):
        await count(limiter)
        clock.now += timedelta(seconds=20)
    assert (await count(limiter)).count == 1


async def test_windows_are_counted_by_name_and_subject(limiter: RateLimiter) -> None:
    assert (await count(limiter, "anna", "login")).count == 1
    assert (await count(limiter, "bert", "login")).count == 1
    assert (await count(limiter, "anna", "lookup")).count == 1
    assert (await count(limiter, "anna", "login")).count == 2


async def test_one_request_counts_in_all_its_windows(limiter: RateLimiter) -> None:
    await count(limiter, "anna")
    both = await limiter.count(TWO_A_MINUTE, [("login", "anna"), ("login-account", "a@b.example")])
    assert [(window.name, window.count) for window in both] == [("login", 2), ("login-account", 1)]


async def test_the_windows_counted_longest_ago_make_room(
    limiter: RateLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "MOST_LOCAL_WINDOWS", 3)
    for subject in ("anna", "bert", "carl", "anna", "dora"):
        await count(limiter, subject)
    assert len(limiter.local) == 3
    assert (await count(limiter, "anna")).count == 3  # counted twice, and lately
    assert (await count(limiter, "bert")).count == 1  # made room for dora


async def test_memory_stays_bounded_whatever_strangers_invent(limiter: RateLimiter) -> None:
    for number in range(0, rate_limits.MOST_LOCAL_WINDOWS + 1000, 1000):
        subjects = [("lookup", f"{number + step}") for step in range(1000)]
        await limiter.count(TWO_A_MINUTE, subjects)
    assert len(limiter.local) == rate_limits.MOST_LOCAL_WINDOWS
