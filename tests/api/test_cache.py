"""The three promises of service/redis/cache.py, each kept under the worst that can happen to it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import asyncpg
import pytest
from redis.asyncio import Redis

from service.api.http.app_keys import SERVICES
from service.domain.clock import utc_now
from service.domain.rate_limits import RateLimit
from service.redis import TIMEOUT_SECONDS
from service.redis.cache import LEASE_FOR, NOTHING_FOR, Cache, Entry
from service.redis.client import RedisClient
from service.settings.settings import Settings
from service.use_cases.cache_invalidation import POLL_SECONDS, CacheInvalidation, code_key
from tests.engines import redis_trouble
from tests.factories import PASSWORD, Api, Person, running

STALE_SECONDS: Final = 2.0
"""How long an old value may live after Redis was away or a process was killed."""
NEXT_HOUR: Final = utc_now() + timedelta(hours=1)

Write = Callable[[Api, Person, Person], Awaitable[str | None]]
Trouble = Callable[[str], AbstractAsyncContextManager[str]]


async def seen(api: Api, owner: Person) -> str | None:
    """Return the code that a look-up gives, or None."""
    answer = await api.get(f"/referral-code/{owner.email}")
    assert answer.status in {200, 404}, answer.body
    return answer.json()["code"] if answer.status == 200 else None


async def kept(redis: Redis, key: str) -> dict[str, str]:
    """Return what Redis has of a cache key, whatever the run of the server."""
    keys: list[Any] = [name async for name in redis.scan_iter(f"*{{{key}}}*")]
    return {name: str(await redis.get(name)) for name in keys}


async def all_jobs_done(database: asyncpg.Connection) -> None:
    """Wait until no job is left that would remove what the test wants to keep."""
    async with asyncio.timeout(STALE_SECONDS):
        while await database.fetchval("SELECT count(*) FROM jobs"):
            await asyncio.sleep(0.02)


# 1. Once the answer to a write is sent, no look-up on any process gives the old code.


async def create(api: Api, owner: Person, _: Person) -> str | None:
    await api.delete("/referral-code", by=owner)
    assert await seen(api, owner) is None  # and this is kept too
    return await api.new_code(owner)


async def replace_code(api: Api, owner: Person, _: Person) -> str | None:
    replaced = await api.put("/referral-code", {"expires_in_days": 9}, by=owner)
    code: str = replaced.json()["code"]
    return code


async def delete(api: Api, owner: Person, _: Person) -> str | None:
    await api.delete("/referral-code", by=owner)
    return None


async def use_up(api: Api, owner: Person, _: Person) -> str | None:
    replaced = await api.put("/referral-code", {"expires_in_days": 9, "max_uses": 1}, by=owner)
    code = replaced.json()["code"]
    assert await seen(api, owner) == code
    assert (await api.register(referral_code=code)).status == 201
    return None


async def limit(api: Api, owner: Person, _: Person) -> str | None:
    code = await seen(api, owner)
    assert (await api.register(referral_code=code)).status == 201
    assert (await api.patch("/referral-code", {"max_uses": 1}, by=owner)).status == 200
    return None


async def disable(api: Api, owner: Person, admin: Person) -> str | None:
    await api.patch(f"/admin/users/{owner.user_id}", {"disabled": True}, by=admin)
    return None


async def enable(api: Api, owner: Person, admin: Person) -> str | None:
    code = await seen(api, owner)
    await disable(api, owner, admin)
    assert await seen(api, owner) is None
    await api.patch(f"/admin/users/{owner.user_id}", {"disabled": False}, by=admin)
    return code


async def erase(api: Api, owner: Person, _: Person) -> str | None:
    await api.delete("/users/me", {"password": PASSWORD}, by=owner)
    return None


WRITES: Final = [create, replace_code, delete, use_up, limit, disable, enable, erase]


@pytest.mark.parametrize("write", WRITES)
async def test_after_the_answer_to_a_write_no_process_gives_the_old_code(
    api: Api, other: Api, admin: Person, write: Write
) -> None:
    for _ in range(3):
        owner = await api.new_person()
        code = await api.new_code(owner)
        assert await seen(other, owner) == code
        new_code = await write(api, owner, admin)
        assert await seen(other, owner) == new_code
        assert await seen(api, owner) == new_code


@dataclass
class Watched:
    """What look-ups have to give: nothing in particular while a write is under way."""

    owner: Person
    code: str | None = None
    settled: bool = True
    writes: int = 0
    judged: int = field(default=0)

    @asynccontextmanager
    async def written(self) -> AsyncIterator[None]:
        self.settled = False
        self.writes += 1
        yield
        self.settled = True

    async def read(self, api: Api) -> None:
        """Look the code up; judge the answer unless a write was under way in the meantime."""
        settled, writes, code = self.settled, self.writes, self.code
        found = await seen(api, self.owner)
        if settled and writes == self.writes:
            assert found == code, f"stale after write {writes}"
            self.judged += 1


async def test_readers_that_hammer_on_two_processes_never_see_an_old_code(
    api: Api, other: Api
) -> None:
    owner = await api.new_person()
    watched = Watched(owner)
    over = asyncio.Event()

    async def read_on(process: Api) -> None:
        while not over.is_set():
            await watched.read(process)

    async def write_on() -> None:
        for round_ in range(30):
            process = (api, other)[round_ % 2]
            async with watched.written():
                watched.code = await replace_code(process, owner, owner)
            await asyncio.gather(watched.read(api), watched.read(other))
            if round_ % 3 == 0:
                async with watched.written():
                    watched.code = await delete(process, owner, owner)
                await asyncio.gather(watched.read(api), watched.read(other))
        over.set()

    async with asyncio.timeout(30):
        await asyncio.gather(write_on(), *map(read_on, [api, other] * 4))
    assert watched.judged > 100


@asynccontextmanager
async def open_cache(url: str) -> AsyncIterator[Cache]:
    """Yield the cache alone, without a service around it."""
    client = RedisClient(url)
    await client.probe()
    client.resume()
    try:
        yield Cache(client, utc_now)
    finally:
        await client.close()


async def nothing_to_load() -> Entry | None:
    raise AssertionError("the value was to come from Redis")


def loading(value: bytes) -> Callable[[], Awaitable[Entry | None]]:
    async def load() -> Entry | None:
        return Entry(value, NEXT_HOUR)

    return load


async def test_what_was_loaded_once_comes_from_redis_afterwards(
    settings: Settings, redis: Redis
) -> None:
    async with open_cache(settings.redis_url) as cache:
        assert await cache.read_through("kind:key", loading(b"value")) == b"value"
        assert await cache.read_through("kind:key", nothing_to_load) == b"value"


async def test_a_reader_held_up_before_its_fill_does_not_put_the_old_value_back(
    settings: Settings, redis: Redis
) -> None:
    """The removal removes the lease, and without it the fill does nothing."""
    async with open_cache(settings.redis_url) as cache:

        async def load_while_a_writer_writes() -> Entry | None:
            old = Entry(b"old", NEXT_HOUR)
            await cache.forget(["kind:key"])
            return old

        assert await cache.read_through("kind:key", load_while_a_writer_writes) == b"old"
        assert await kept(redis, "kind:key") == {}
        assert await cache.read_through("kind:key", loading(b"new")) == b"new"


async def test_a_reader_held_up_does_not_overwrite_what_a_later_reader_filled(
    settings: Settings, redis: Redis
) -> None:
    async with open_cache(settings.redis_url) as cache:

        async def load_while_a_writer_writes_and_another_reads() -> Entry | None:
            await cache.forget(["kind:key"])
            assert await cache.read_through("kind:key", loading(b"new")) == b"new"
            return Entry(b"old", NEXT_HOUR)

        await cache.read_through("kind:key", load_while_a_writer_writes_and_another_reads)
        assert await cache.read_through("kind:key", nothing_to_load) == b"new"


async def test_a_reader_held_up_does_not_use_the_lease_of_a_later_reader(
    settings: Settings, redis: Redis
) -> None:
    """A lease is a random token, not a flag."""
    async with open_cache(settings.redis_url) as cache:
        late_reader_loads, early_reader_is_done = asyncio.Event(), asyncio.Event()
        late_readers: list[asyncio.Task[bytes | None]] = []

        async def load_late() -> Entry | None:
            late_reader_loads.set()
            await early_reader_is_done.wait()
            return Entry(b"new", NEXT_HOUR)

        async def load_early() -> Entry | None:
            await cache.forget(["kind:key"])
            late_readers.append(asyncio.create_task(cache.read_through("kind:key", load_late)))
            await late_reader_loads.wait()
            return Entry(b"old", NEXT_HOUR)

        await cache.read_through("kind:key", load_early)
        early_reader_is_done.set()
        assert [await reader for reader in late_readers] == [b"new"]
        assert await cache.read_through("kind:key", nothing_to_load) == b"new"


async def test_of_many_readers_who_miss_at_once_one_fills(settings: Settings, redis: Redis) -> None:
    async with open_cache(settings.redis_url) as cache:
        values = [b"value %d" % number for number in range(10)]
        read = await asyncio.gather(
            *(cache.read_through("kind:key", loading(value)) for value in values)
        )
        filled = await cache.read_through("kind:key", nothing_to_load)
        assert filled in values
        assert set(read) <= set(values)


async def test_a_lease_whose_reader_died_is_not_in_the_way_for_long(
    settings: Settings, redis: Redis
) -> None:
    async with open_cache(settings.redis_url) as cache:

        async def die() -> Entry | None:
            raise LookupError

        with pytest.raises(LookupError):
            await cache.read_through("kind:key", die)
        assert await cache.read_through("kind:key", loading(b"value")) == b"value"
        [lease] = await kept(redis, "kind:key")
        assert lease.endswith(":lease")
        assert 0 < await redis.pttl(lease) <= LEASE_FOR.total_seconds() * 1000


async def test_an_entry_ends_in_redis_at_the_instant_at_which_the_code_expires(
    api: Api, anna: Person, redis: Redis
) -> None:
    created = await api.post("/referral-code", {"expires_in_days": 3}, by=anna)
    await seen(api, anna)
    [(key, value)] = (await kept(redis, code_key(anna.email))).items()
    assert created.json()["code"] in value
    expires_at = datetime.fromisoformat(created.json()["expires_at"])
    assert await redis.pexpiretime(key) == int(expires_at.timestamp() * 1000)


async def test_an_expired_code_is_neither_given_nor_kept(
    api: Api, anna: Person, redis: Redis
) -> None:
    code = await api.new_code(anna, expires_in_days=1)
    assert await seen(api, anna) == code
    api.clock.ahead = timedelta(days=1, seconds=1)
    assert await seen(api, anna) is None
    assert code not in str(await kept(redis, code_key(anna.email)))


@pytest.mark.parametrize("form", ["", "1 ", "3 "], ids=["of old", "before", "after"])
@pytest.mark.parametrize("value", ["", '["CODE"]', '{"another": "form"}'])
async def test_what_another_version_keeps_is_not_given(
    api: Api, anna: Person, database: asyncpg.Connection, redis: Redis, form: str, value: str
) -> None:
    """While one version replaces the other, both serve, with one cache."""
    code = await api.new_code(anna)
    await all_jobs_done(database)
    await seen(api, anna)
    [(key, own)] = (await kept(redis, code_key(anna.email))).items()
    _, expires_at, _ = own.split(" ", 2)
    await redis.set(key, f"{form}{expires_at} {value}")
    assert await seen(api, anna) == code
    assert (await kept(redis, code_key(anna.email)))[key] == own


async def test_that_there_is_no_code_is_kept_for_a_short_while(
    api: Api, anna: Person, redis: Redis
) -> None:
    for email in (anna.email, "nobody@example.com"):
        assert (await api.get(f"/referral-code/{email}")).status == 404
        [(key, value)] = (await kept(redis, code_key(email))).items()
        assert value.split(" ", 2)[2] == ""
        assert 0 < await redis.pttl(key) <= NOTHING_FOR.total_seconds() * 1000


async def test_registration_does_not_believe_the_cache(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """Redis says that the code lives, PostgreSQL that it has ended."""
    code = await api.new_code(anna)
    assert await seen(api, anna) == code
    await database.execute("UPDATE referral_codes SET ended_at = now()")
    assert await seen(api, anna) == code
    assert (await api.register(referral_code=code)).status == 422


async def test_a_session_that_expires_before_its_access_token_is_over_for_the_cache_too(
    settings: Settings, database: asyncpg.Connection, redis: Redis
) -> None:
    """Promise 2 the other way round: with Redis the same answers as without it."""
    short = replace(settings, refresh_token_ttl=timedelta(seconds=60))
    assert short.access_token_ttl > short.refresh_token_ttl
    async with running(short) as api:
        person = await api.new_person()
        assert (await api.get("/users/me", by=person)).status == 200  # kept
        api.clock.ahead = timedelta(seconds=66)
        assert (await api.get("/users/me", by=person)).status == 401


# 2. While Redis is away every answer comes from PostgreSQL, and no request waits for Redis.

TROUBLES: Final = [
    redis_trouble.refusing,
    redis_trouble.silent,
    redis_trouble.hanging_up,
    redis_trouble.babbling,
]


async def story(api: Api) -> list[Any]:
    """Return what happens to someone who does everything that the cache plays a part in."""
    owner = await api.new_person()
    observed: list[Any] = [await seen(api, owner) is None]
    code = await api.new_code(owner)
    observed.append(await seen(api, owner) == code)
    code = (await api.put("/referral-code", {"expires_in_days": 1, "max_uses": 1}, by=owner)).json()
    observed.append(await seen(api, owner) == code["code"])
    friend = await api.new_person(referral_code=code["code"])
    observed.append(await seen(api, owner))
    observed.append((await api.register(referral_code=code["code"])).status)
    observed.append((await api.delete("/referral-code", by=owner)).status)
    observed.append((await api.get("/users/me", by=friend)).json()["referrer_id"] == owner.user_id)
    second = await api.signed_in(owner.email)
    change = {"current_password": PASSWORD, "new_password": "another walk by the sea"}
    observed.append((await api.post("/auth/password/change", change, by=second)).status)
    observed.append((await api.get("/users/me", by=owner)).status)
    observed.append((await api.post("/auth/logout", by=second)).status)
    observed.append((await api.get("/users/me", by=second)).status)
    refreshed = await api.post("/auth/refresh", {"refresh_token": friend.refresh_token})
    observed.append(refreshed.status)
    newest = {"refresh_token": refreshed.json()["refresh_token"]}
    observed.append((await api.post("/auth/refresh", newest)).status)
    again = await api.post("/auth/refresh", {"refresh_token": friend.refresh_token})
    observed.append(again.status)
    observed.append((await api.get("/users/me", by=refreshed.json()["access_token"])).status)
    return observed


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_the_service_starts_without_redis_and_gives_the_same_answers(
    api: Api, settings: Settings, trouble: Trouble
) -> None:
    expected = await story(api)
    assert expected.count(401) == 4
    async with (
        trouble(settings.redis_url) as url,
        running(replace(settings, redis_url=url)) as lone,
    ):
        assert await story(lone) == expected
        ready = await lone.get("//health/ready")
        assert (ready.status, ready.json()["status"]) == (200, "degraded")
        assert ready.json()["checks"] == {"postgresql": "ok", "redis": "down"}


@pytest.mark.parametrize("cut", [redis_trouble.Proxy.cut, redis_trouble.Proxy.hold_up])
async def test_redis_may_go_in_the_middle_of_the_story(
    api: Api, settings: Settings, cut: Callable[[redis_trouble.Proxy], None]
) -> None:
    expected = await story(api)
    async with (
        redis_trouble.proxied(settings.redis_url) as proxy,
        running(replace(settings, redis_url=proxy.url)) as lone,
    ):
        owner = await lone.new_person()
        code = await lone.new_code(owner)
        assert await seen(lone, owner) == code
        cut(proxy)
        assert await seen(lone, owner) == code
        assert await story(lone) == expected


async def test_once_the_breaker_is_open_no_request_waits_for_redis(
    api: Api, settings: Settings
) -> None:
    """Only the probe, every POLL_SECONDS, still asks."""
    async with (
        redis_trouble.proxied(settings.redis_url) as proxy,
        running(replace(settings, redis_url=proxy.url)) as lone,
    ):
        owner = await lone.new_person()
        code = await lone.new_code(owner)
        proxy.hold_up()
        await seen(lone, owner)  # the first one waits, and opens the breaker
        connections, started = proxy.connections, time.perf_counter()
        longest = 0.0
        for _ in range(60):
            begun = time.perf_counter()
            assert await seen(lone, owner) == code
            longest = max(longest, time.perf_counter() - begun)
        assert longest < TIMEOUT_SECONDS / 2
        probes = 1 + (time.perf_counter() - started) / POLL_SECONDS
        assert proxy.connections - connections <= probes


async def test_a_flood_takes_no_more_connections_to_redis_and_does_not_open_the_breaker(
    api: Api, anna: Person, redis: Redis
) -> None:
    """With a connection for each request there would be so many that all are late."""
    code = await api.new_code(anna)
    assert await seen(api, anna) == code
    others = len(await redis.client_list())
    flood = [asyncio.create_task(seen(api, anna)) for _ in range(100)]
    most = 0
    while not all(look_up.done() for look_up in flood):
        most = max(most, len(await redis.client_list()))
    assert {look_up.result() for look_up in flood} == {code}
    assert most == others
    assert not api.app[SERVICES].redis.away


async def test_without_redis_rate_limits_count_in_the_process(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with redis_trouble.refusing("") as url:
        limited = replace(settings, redis_url=url, rate_limit_lookup=RateLimit(3, 60))
        async with running(limited) as lone:
            answers = [await lone.get("/referral-code/x@example.com") for _ in range(5)]
            assert [answer.status for answer in answers] == [404, 404, 404, 429, 429]
            assert answers[0].headers["RateLimit"] == '"lookup";r=2;t=60'
            assert 1 <= int(answers[4].headers["Retry-After"]) <= 60
            lone.clock.ahead = timedelta(seconds=61)
            assert (await lone.get("/referral-code/x@example.com")).status == 404


# 3. Redis back, or a process killed at any instant: stale for STALE_SECONDS at most.


async def end_code_and_die(database: asyncpg.Connection, owner: Person, *, job: bool) -> None:
    """Do what a process does to delete a code, and be killed after the commit."""
    async with database.transaction():
        await database.execute(
            "UPDATE referral_codes SET ended_at = now() WHERE owner_id = $1", owner.user_id
        )
        if job:
            await database.execute(
                "INSERT INTO jobs (job_id, kind, payload, created_at)"
                " VALUES ($1, 'forget', $2, now())",
                uuid4(),
                json.dumps([code_key(owner.email)]),
            )


async def test_what_a_killed_process_did_not_forget_another_forgets(
    api: Api, database: asyncpg.Connection
) -> None:
    owner, control = await api.new_person(), await api.new_person()
    codes = {person.email: await api.new_code(person) for person in (owner, control)}
    await all_jobs_done(database)
    for person in (owner, control):
        assert await seen(api, person) == codes[person.email]
    await end_code_and_die(database, owner, job=True)
    await end_code_and_die(database, control, job=False)
    async with asyncio.timeout(STALE_SECONDS):
        while await seen(api, owner) is not None:
            await asyncio.sleep(0.05)
    assert await seen(api, control) == codes[control.email], "it was the job that did it"
    assert await database.fetchval("SELECT count(*) FROM jobs") == 0


async def test_what_a_killed_process_did_not_forget_the_next_one_forgets_before_it_answers(
    settings: Settings, database: asyncpg.Connection, redis: Redis
) -> None:
    async with running(settings) as first:
        owner = await first.new_person()
        code = await first.new_code(owner)
        await all_jobs_done(database)
        assert await seen(first, owner) == code
    await end_code_and_die(database, owner, job=True)
    assert code in str(await kept(redis, code_key(owner.email)))
    async with running(settings) as second:
        assert await seen(second, owner) is None


async def test_what_could_not_be_forgotten_is_forgotten_before_redis_is_trusted_again(
    settings: Settings, database: asyncpg.Connection, redis: Redis
) -> None:
    async with (
        redis_trouble.proxied(settings.redis_url) as proxy,
        running(replace(settings, redis_url=proxy.url)) as api,
    ):
        owner = await api.new_person()
        code = await api.new_code(owner)
        await all_jobs_done(database)
        assert await seen(api, owner) == code
        proxy.cut()
        assert (await api.delete("/referral-code", by=owner)).status == 204
        assert code in str(await kept(redis, code_key(owner.email))), "Redis still has the old one"
        assert await seen(api, owner) is None
        proxy.mend()
        async with asyncio.timeout(STALE_SECONDS):
            while (await api.get("//health/ready")).json()["status"] != "ok":
                assert await seen(api, owner) is None
        assert await seen(api, owner) is None
        assert code not in str(await kept(redis, code_key(owner.email)))


async def test_redis_is_not_trusted_while_a_job_is_under_way(
    settings: Settings, database: asyncpg.Connection, redis: Redis
) -> None:
    async with (
        redis_trouble.proxied(settings.redis_url) as proxy,
        running(replace(settings, redis_url=proxy.url)) as api,
    ):
        owner = await api.new_person()
        code = await api.new_code(owner)
        await all_jobs_done(database)
        assert await seen(api, owner) == code
        invalidation = CacheInvalidation(
            api.app[SERVICES].database,
            Cache(api.app[SERVICES].redis, utc_now),
            api.app[SERVICES].redis,
        )
        proxy.cut()
        assert (await api.delete("/referral-code", by=owner)).status == 204
        assert api.app[SERVICES].redis.away
        proxy.mend()
        proxy.hold_up()
        work = asyncio.create_task(invalidation.work_off())
        await asyncio.sleep(TIMEOUT_SECONDS / 3)
        assert api.app[SERVICES].redis.away
        assert await seen(api, owner) is None
        proxy.mend()
        await work
        assert not api.app[SERVICES].redis.away
        assert await kept(redis, code_key(owner.email)) == {}


async def test_a_process_without_redis_does_not_leave_the_others_with_an_old_code_for_long(
    api: Api, settings: Settings
) -> None:
    async with redis_trouble.refusing("") as url, running(replace(settings, redis_url=url)) as lone:
        owner = await api.new_person()
        code = await api.new_code(owner)
        assert await seen(api, owner) == code
        assert (await lone.delete("/referral-code", by=owner)).status == 204
        async with asyncio.timeout(STALE_SECONDS):
            while await seen(api, owner) is not None:
                await asyncio.sleep(0.05)


async def test_what_a_restarted_redis_read_from_an_old_file_is_never_given(
    settings: Settings, database: asyncpg.Connection, redis: Redis
) -> None:
    """Neither before the restart is noticed, nor when Redis is trusted again."""
    async with (
        redis_trouble.proxied(settings.redis_url) as proxy,
        running(replace(settings, redis_url=proxy.url)) as api,
    ):
        owner = await api.new_person()
        code = await api.new_code(owner)
        await all_jobs_done(database)
        assert await seen(api, owner) == code
        file = await kept(redis, code_key(owner.email))
        assert (await api.delete("/referral-code", by=owner)).status == 204
        await all_jobs_done(database)
        assert await kept(redis, code_key(owner.email)) == {}
        proxy.cut()
        await redis.mset(file)
        proxy.run_id = "f" * 40
        proxy.mend()
        for _ in range(5):
            assert await seen(api, owner) is None
        async with asyncio.timeout(STALE_SECONDS):
            while api.app[SERVICES].redis.away:
                await asyncio.sleep(0.02)
        for _ in range(5):
            assert await seen(api, owner) is None


async def test_after_a_restart_of_redis_the_cache_is_used_again(
    settings: Settings, database: asyncpg.Connection, redis: Redis
) -> None:
    async with (
        redis_trouble.proxied(settings.redis_url) as proxy,
        running(replace(settings, redis_url=proxy.url)) as api,
    ):
        owner = await api.new_person()
        code = await api.new_code(owner)
        proxy.cut()
        proxy.run_id = "f" * 40
        assert await seen(api, owner) == code
        proxy.mend()
        async with asyncio.timeout(STALE_SECONDS):
            while not await kept(redis, code_key(owner.email)):
                assert await seen(api, owner) == code
        [key] = await kept(redis, code_key(owner.email))
        assert key.startswith("f" * 40)
