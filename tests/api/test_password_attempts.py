"""Guessing passwords is slow, and nobody locks an owner out by it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import Final

import asyncpg
import pytest
from redis.asyncio import Redis

from service.api import password_attempts
from service.api.http.app_keys import SERVICES
from service.domain.rate_limits import RateLimit
from service.providers.settings import HunterSettings
from service.redis.password_attempts import MOST_KNOWN
from service.redis.rate_limits import Window
from service.settings.settings import Settings, read_settings
from tests.api.assertions import assert_problem
from tests.engines.redis_trouble import proxied
from tests.factories import PASSWORD, Answer, Api, Person, running
from tests.stand_ins.hunter import Hunter

ANNA: Final = "anna@example.com"
NEW_PASSWORD: Final = "another walk by the sea"
PROXY: Final = ip_network("127.0.0.1")
HOME: Final = "203.0.113.1"
ELSEWHERE: Final = "198.51.100.7"
FAR: Final = RateLimit(1000, 60)
"""A limit of the address, and of all addresses, that no test reaches."""


@pytest.fixture
def limited(environment: dict[str, str]) -> Settings:
    """With a mail server that takes nothing, or no email address could be changed."""
    mail = {"SMTP_URL": "smtp://127.0.0.1:1", "MAIL_FROM": "referrals@example.com"}
    settings = read_settings({**environment, **mail, "SERVE_JOBS": "off"})
    return replace(settings, rate_limit_login=FAR, trusted_proxies=(PROXY,))


@pytest.fixture
async def api(limited: Settings, database: asyncpg.Connection, redis: Redis) -> AsyncIterator[Api]:
    async with running(limited) as client:
        yield client


async def log_in(
    api: Api, email: str = ANNA, password: str = PASSWORD, address: str = HOME
) -> Answer:
    body = {"email": email, "password": password}
    return await api.post("/auth/login", body, headers={"X-Forwarded-For": address})


async def guess(api: Api, email: str = ANNA, address: str = HOME) -> Answer:
    return await log_in(api, email, "wrong password", address)


async def let_pass(redis: Redis, seconds: float) -> None:
    """Make all failures so much older."""
    async for key in redis.scan_iter("limit:failures:*"):
        await redis.pexpire(key, await redis.pttl(key) - int(seconds * 1000))


async def stored(redis: Redis) -> str:
    """Return all that Redis holds, keys and values."""
    readers: dict[bytes | str, Callable[[str], Awaitable[object]]] = {
        "string": redis.get,
        "zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
        "none": redis.get,  # gone since the scan
    }
    return "\n".join(
        [
            f"{key} {await readers[await redis.type(key)](key)}"
            async for key in redis.scan_iter(count=1000)
        ]
    )


def known_addresses(kept: str) -> list[str]:
    return [line for line in kept.splitlines() if line.startswith("{signed-in:")]


# For the client's address.


async def test_right_passwords_do_not_count_towards_the_limit_of_the_address(
    limited: Settings, database: asyncpg.Connection, redis: Redis
) -> None:
    async with running(replace(limited, rate_limit_login=RateLimit(3, 60))) as api:
        await api.register(ANNA)
        await api.register("bert@example.com")
        for email in [ANNA, "bert@example.com"] * 4:
            answer = await log_in(api, email)
            assert answer.status == 200
            assert answer.headers["RateLimit"] == '"login";r=3;t=60'
        assert (await guess(api)).headers["RateLimit"] == '"login";r=2;t=60'
        assert (await log_in(api)).headers["RateLimit"] == '"login";r=2;t=60'


async def test_a_right_password_takes_nothing_back_of_the_next_window(
    limited: Settings, database: asyncpg.Connection, redis: Redis
) -> None:
    """It was counted in the window before: what counts in the present one are others' failures."""
    async with running(replace(limited, rate_limit_login=RateLimit(3, 1))) as api:
        await api.register(ANNA)
        hasher, go_on = api.app[SERVICES].hasher, asyncio.Event()
        verify = hasher.verify

        async def verify_later(password: str, password_hash: str | None) -> tuple[bool, bool]:
            await go_on.wait()
            return await verify(password, password_hash)

        hasher.verify = verify_later  # type: ignore[method-assign]
        signing_in = asyncio.create_task(log_in(api))
        async with asyncio.timeout(5):
            while not (found := [key async for key in redis.scan_iter("limit:login:*")]):
                await asyncio.sleep(0.005)
            while await redis.exists(*found):
                await asyncio.sleep(0.005)
        await redis.set(found[0], 2, px=60_000)
        go_on.set()
        assert (await signing_in).status == 200
        assert await redis.get(found[0]) == "2"


# For the account as it is tried from one address.

PAUSES: Final = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]


@pytest.mark.parametrize("email", [ANNA, "nobody@example.com", "no address"])
async def test_the_pause_between_guesses_doubles_known_or_not(
    api: Api, redis: Redis, email: str
) -> None:
    await api.register(ANNA)
    for _ in range(5):
        assert (await guess(api, email)).status == 401
    for pause in PAUSES:
        for _ in range(2):  # what is refused is no failure
            refused = await guess(api, email.upper())
            assert_problem(refused, 429, "too-many-requests")
            assert refused.headers["Retry-After"] == str(pause)
            assert refused.headers["RateLimit-Policy"] == '"login";q=1000;w=60'
        await let_pass(redis, pause)
        assert (await guess(api, email)).status == 401


async def test_in_a_pause_the_right_password_is_refused_and_afterwards_it_ends_them(
    api: Api, redis: Redis
) -> None:
    await api.register(ANNA)
    for _ in range(5):
        await guess(api)
    assert (await log_in(api)).status == 429
    await let_pass(redis, 1)
    assert (await log_in(api)).status == 200
    for _ in range(5):
        assert (await guess(api)).status == 401
    assert (await guess(api)).headers["Retry-After"] == "1"


async def test_failures_are_forgotten_after_an_hour(api: Api, redis: Redis) -> None:
    for _ in range(5):
        await guess(api)
    [key] = [key async for key in redis.scan_iter("limit:failures:*")]
    assert 3_590_000 < await redis.pttl(key) <= 3_600_000


async def test_parallel_guesses_are_counted_before_they_are_known_to_be_wrong(
    api: Api, hashes: list[object]
) -> None:
    await api.register(ANNA)
    hashes.clear()
    answers = await asyncio.gather(*(guess(api) for _ in range(30)))
    assert sorted(answer.status for answer in answers) == [401] * 5 + [429] * 25
    assert len(hashes) == 5


async def test_guesses_for_one_account_hold_up_no_other(api: Api) -> None:
    await api.register(ANNA)
    for _ in range(6):
        await guess(api, "nobody@example.com")
    assert (await log_in(api)).status == 200


RE_AUTHENTICATIONS: Final = [
    ("POST", "/auth/password/change", {"new_password": NEW_PASSWORD}, "current_password"),
    ("POST", "/auth/email/change", {"new_email": "anna@example.org"}, "password"),
    ("DELETE", "/users/me", {}, "password"),
]


@pytest.mark.parametrize(("method", "path", "body", "member"), RE_AUTHENTICATIONS)
async def test_a_stolen_token_helps_to_guess_no_faster(
    api: Api, redis: Redis, method: str, path: str, body: dict[str, str], member: str
) -> None:
    anna = await api.new_person(ANNA)

    async def reauthenticate(password: str, address: str) -> Answer:
        sent = {**body, member: password}
        return await api.call(method, path, sent, by=anna, headers={"X-Forwarded-For": address})

    for _ in range(5):
        assert (await reauthenticate("wrong password", ELSEWHERE)).status == 401
    refused = await reauthenticate("wrong password", ELSEWHERE)
    assert_problem(refused, 429, "too-many-requests")
    assert refused.headers["Retry-After"] == "1"
    await let_pass(redis, 1)
    assert (await reauthenticate("wrong password", ELSEWHERE)).status == 401
    assert (await reauthenticate(PASSWORD, ELSEWHERE)).headers["Retry-After"] == "2"
    assert (await reauthenticate(PASSWORD, HOME)).status in {202, 204}


async def test_what_says_nothing_about_the_password_is_no_failure(api: Api) -> None:
    anna = await api.new_person(ANNA)
    for path, body in [
        ("/auth/password/change", {"current_password": PASSWORD, "new_password": "short"}),
        ("/auth/email/change", {"password": PASSWORD, "new_email": "no address"}),
    ]:
        for _ in range(7):
            assert (await api.post(path, body, by=anna)).status == 422
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    answer = await api.post("/auth/password/change", body, by=anna)
    assert answer.status == 204
    assert answer.headers["RateLimit"] == '"login";r=1000;t=60'


async def test_an_answer_that_says_nothing_forgets_no_failure(api: Api) -> None:
    """Or a thief would have a try that is free of charge between any two guesses."""
    anna = await api.new_person(ANNA)
    wrong = {"current_password": "wrong password", "new_password": NEW_PASSWORD}
    unacceptable = {"current_password": "wrong password", "new_password": "short"}
    statuses = [
        (await api.post("/auth/password/change", body, by=anna)).status
        for body in (wrong, unacceptable) * 6
    ]
    assert statuses == [*[401, 422] * 4, 401, 429, 429, 429]


# For the account from everywhere.


async def test_where_the_owner_has_signed_in_before_nothing_is_held_up(
    limited: Settings, database: asyncpg.Connection, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(replace(limited, rate_limit_login=RateLimit(3, 60))) as api:
        await api.register(ANNA)
        assert (await log_in(api)).status == 200
        for number in range(3):
            await guess(api, address=f"198.51.100.{number}")
        monkeypatch.setattr(password_attempts, "FIRST_DELAY_SECONDS", 20)
        monkeypatch.setattr(password_attempts, "LONGEST_DELAY_SECONDS", 20)
        held_up = asyncio.create_task(log_in(api, address=ELSEWHERE))
        async with asyncio.timeout(10):
            assert (await log_in(api)).status == 200
        assert not held_up.done()
        held_up.cancel()


async def test_what_is_held_up_holds_up_nobody(
    limited: Settings, database: asyncpg.Connection, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no connection to PostgreSQL and no place in the queue for a hash meanwhile."""
    few = replace(limited, rate_limit_login=RateLimit(1, 60), database_pool_size=2, hashing_queue=2)
    async with running(few) as api:
        await api.register(ANNA)
        await api.register("bert@example.com")
        await guess(api)
        monkeypatch.setattr(password_attempts, "FIRST_DELAY_SECONDS", 20)
        monkeypatch.setattr(password_attempts, "LONGEST_DELAY_SECONDS", 20)
        held_up = [
            asyncio.create_task(guess(api, address=f"198.51.100.{number}")) for number in range(9)
        ]
        async with asyncio.timeout(5):
            while len([key async for key in redis.scan_iter("limit:failures:*")]) < 10:
                await asyncio.sleep(0.005)
        bert = await log_in(api, "bert@example.com", address="203.0.113.9")
        assert bert.status == 200
        assert not any(attempt.done() for attempt in held_up)
        for attempt in held_up:
            attempt.cancel()


@pytest.mark.parametrize(
    ("count", "seconds"),
    [(1, 0), (10, 0), (11, 0.1), (12, 0.2), (15, 1.6), (16, 2), (17, 2), (10_000, 2)],
)
async def test_an_attempt_is_held_up_for_two_seconds_at_most(count: int, seconds: float) -> None:
    window = Window("login-account", RateLimit(10, 60), count, reset=60)
    assert password_attempts.delay_of(window) == seconds


# What Redis knows of it.


async def test_redis_learns_no_email_and_no_address(
    limited: Settings, database: asyncpg.Connection, redis: Redis, hunter: Hunter
) -> None:
    everything = RateLimit(1000, 60)
    on = replace(
        limited,
        rate_limit_register=everything,
        rate_limit_lookup=everything,
        rate_limit_mail=everything,
        rate_limit_verification=everything,
        rate_limit_write=everything,
        hunter=HunterSettings(api_key=hunter.key, url=hunter.url),
    )
    async with running(on) as api:
        headers = {"X-Forwarded-For": HOME}
        for email in (ANNA, "nobody@example.com"):
            await guess(api, email)
            await api.post("/auth/password/forgot", {"email": email}, headers=headers)
        await api.post("/auth/register", {"email": ANNA, "password": PASSWORD}, headers=headers)
        token = (await log_in(api)).json()["access_token"]
        await api.post("/referral-code", {"expires_in_days": 1}, by=token, headers=headers)
        await api.get(f"/referral-code/{ANNA}", headers=headers)
        await api.get("/email-verification/bert@example.com", by=token, headers=headers)
        wrong = {"password": "wrong password"}
        await api.delete("/users/me", wrong, by=token, headers=headers)
        kept = await stored(redis)
        assert "{signed-in:" in kept
        assert "{verification:" in kept
        assert kept.count("limit:") >= 9
        right = {"password": PASSWORD}
        assert (await api.delete("/users/me", right, by=token, headers=headers)).status == 204
        kept = await stored(redis)
    assert known_addresses(kept) == []
    for clear in ("example.com", "anna", "nobody", HOME, "127.0.0.1"):
        assert clear not in kept


async def erase(api: Api, anna: Person, _: asyncpg.Connection) -> None:
    assert (await api.delete("/users/me", {"password": PASSWORD}, by=anna)).status == 204


async def disable(api: Api, anna: Person, database: asyncpg.Connection) -> None:
    await api.register("admin@example.com")
    await database.execute("UPDATE users SET role = 'admin' WHERE email = 'admin@example.com'")
    admin = await api.signed_in("admin@example.com")
    changed = await api.patch(f"/admin/users/{anna.user_id}", {"disabled": True}, by=admin)
    assert changed.status == 200
    await database.execute("UPDATE users SET role = 'user'")  # or the last admin would have to stay
    await erase(api, admin, database)


@pytest.mark.parametrize("end", [erase, disable])
async def test_where_an_owner_signed_in_from_is_forgotten_with_the_account(
    api: Api,
    database: asyncpg.Connection,
    redis: Redis,
    end: Callable[[Api, Person, asyncpg.Connection], Awaitable[None]],
) -> None:
    anna = await api.new_person(ANNA)
    assert len(known_addresses(await stored(redis))) == 1
    await end(api, anna, database)
    assert known_addresses(await stored(redis)) == []


async def test_it_is_forgotten_when_redis_was_away_as_the_account_was_erased(
    limited: Settings, database: asyncpg.Connection, redis: Redis
) -> None:
    async with (
        proxied(limited.redis_url) as proxy,
        running(replace(limited, redis_url=proxy.url)) as api,
    ):
        anna = await api.new_person(ANNA)
        assert len(known_addresses(await stored(redis))) == 1
        proxy.cut()
        await erase(api, anna, database)
        assert len(known_addresses(await stored(redis))) == 1
        proxy.mend()
        async with asyncio.timeout(10):
            while known_addresses(await stored(redis)):
                await asyncio.sleep(0.05)


async def test_so_many_addresses_of_an_account_are_kept_for_30_days(api: Api, redis: Redis) -> None:
    await api.register(ANNA)
    for number in range(3):
        await log_in(api, address=f"198.51.100.{number}")
    [line] = known_addresses(await stored(redis))
    key = line.partition(" ")[0]
    assert await redis.zcard(key) == 3
    assert 2_591_990 < await redis.ttl(key) <= 2_592_000
    await redis.zadd(key, {f"address {number}": number for number in range(2 * MOST_KNOWN)})
    await log_in(api, address=ELSEWHERE)
    assert await redis.zcard(key) == MOST_KNOWN
