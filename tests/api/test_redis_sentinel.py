"""The three promises of service/redis/cache.py where sentinels say which server is the primary."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.domain.clock import utc_now
from service.redis import TIMEOUT_SECONDS, RedisAway, topology
from service.redis import client as redis_client
from service.redis.cache import Cache
from service.redis.client import RedisClient
from service.redis.topology import BELIEF_SECONDS, SETTLING_SECONDS
from service.settings.settings import Settings
from service.use_cases.cache_invalidation import code_key
from tests.api.several_redis import (
    LONG,
    LOOPBACK,
    free_ports,
    loading,
    names,
    nothing_to_load,
    open_cache,
    serving,
    started,
    trusted,
)
from tests.api.test_cache import STALE_SECONDS, all_jobs_done, seen
from tests.engines import valkeys
from tests.engines.valkeys import Watched, until
from tests.factories import running


@pytest.fixture
def watched() -> Iterator[Watched]:
    """Two servers, one of them the primary, and the three sentinels that watch it."""
    with tempfile.TemporaryDirectory(prefix="sentinel-") as folder:
        places = [(LOOPBACK, port) for port in free_ports(5)]
        made = valkeys.watched(places[:2], places[2:], Path(folder), down_after=500)
        with started(made.servers), started(made.sentinels):
            yield made


@pytest.fixture
def sentinel(settings: Settings, watched: Watched) -> Settings:
    """The settings of a service that knows the sentinels."""
    until(watched.is_whole)
    return replace(settings, redis_url=watched.url())


@pytest.fixture
def settled_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what would only wait."""
    monkeypatch.setattr(topology, "SETTLING_SECONDS", 0.1)


@pytest.mark.usefixtures("settled_soon")
async def test_a_server_that_is_a_primary_no_more_is_given_up(
    sentinel: Settings, watched: Watched
) -> None:
    """And its values are not seen when it is one again."""
    old, new = watched.roles()
    async with open_cache(sentinel.redis_url) as (cache, client):
        assert await cache.read_through("kind:key", loading(b"old")) == b"old"
        assert await cache.read_through("kind:key", nothing_to_load) == b"old"
        old.tell("REPLICAOF", new.machine.address, new.port)
        with pytest.raises(RedisAway, match="ReadOnlyError"):
            await client.call("SET", "key", "value")
        assert client.away
        with pytest.raises(RedisAway, match="not a primary"):
            await client.probe()
        old.tell("REPLICAOF", "NO", "ONE")
        await client.probe()
        await asyncio.sleep(topology.SETTLING_SECONDS)
        client.resume()
        assert names(old, "kind:key")
        assert await cache.read_through("kind:key", loading(b"new")) == b"new"
        old.tell("REPLICAOF", new.machine.address, new.port)
        with pytest.raises(RedisAway, match="not a primary"):
            await client.probe()
        assert client.away


@pytest.mark.usefixtures("settled_soon")
async def test_a_primary_is_the_one_that_most_of_the_sentinels_name(
    sentinel: Settings, watched: Watched
) -> None:
    first, second, _ = (each.url for each in watched.sentinels)
    nobody, neither = (f"{LOOPBACK.address}:{port}" for port in free_ports(2))
    async with open_cache(watched.url(first, nobody, second)) as (_, client):
        assert await client.get("key") is None
    client = RedisClient(watched.url(first, nobody, neither))
    with pytest.raises(RedisAway, match="Most sentinels must name the same primary: Connection"):
        await client.probe()
    await client.close()


async def test_sentinels_that_do_not_know_the_name_say_so(
    sentinel: Settings, watched: Watched
) -> None:
    client = RedisClient(watched.url().replace("/referrals", "/orders"))
    with pytest.raises(RedisAway, match="'orders'"):
        await client.probe()
    await client.close()


@pytest.mark.usefixtures("settled_soon")
async def test_when_the_primary_dies_postgresql_answers_until_the_sentinels_have_another(
    sentinel: Settings, watched: Watched, database: asyncpg.Connection
) -> None:
    """And what the dead one had removed, but its replica had not yet, is not seen again."""
    async with serving(sentinel) as api:
        owner, other = await api.new_person(), await api.new_person()
        codes = [await api.new_code(person) for person in (owner, other)]
        await all_jobs_done(database)
        assert [await seen(api, person) for person in (owner, other)] == codes
        key = code_key(owner.email)
        old, new = watched.roles()
        [name] = names(old, key)
        value = old.tell("GET", name)
        assert (await api.delete("/referral-code", by=owner)).status == 204
        await all_jobs_done(database)
        assert not names(old, key)
        # As the replica has it if the removal never came to it.
        old.tell("SET", name, value)
        assert old.tell("WAIT", 1, 1000) == 1
        old.kill()
        async with asyncio.timeout(LONG):
            while len(names(new, key)) < 2:
                assert await seen(api, owner) is None
                assert await seen(api, other) == codes[1]
                await asyncio.sleep(0.02)
        assert name in names(new, key)
        assert not api.app[SERVICES].redis.away


@pytest.mark.usefixtures("settled_soon")
async def test_a_primary_that_does_not_know_of_its_successor_is_not_used_for_long(
    sentinel: Settings, watched: Watched, database: asyncpg.Connection
) -> None:
    async with serving(sentinel) as api:
        owner = await api.new_person()
        code = await api.new_code(owner)
        await all_jobs_done(database)
        assert await seen(api, owner) == code
        old, new = watched.roles()
        [name] = names(old, code_key(owner.email))
        watched.isolate(old)
        await asyncio.to_thread(until, lambda: watched.primary() is new)
        async with running(sentinel) as other:
            assert (await other.delete("/referral-code", by=owner)).status == 204
            async with asyncio.timeout(STALE_SECONDS):
                while await seen(api, owner) is not None:
                    await asyncio.sleep(0.02)
                await all_jobs_done(database)
            assert old.is_primary(), "it still believes that it is one"
            assert code.encode() in old.tell("GET", name)
            for process in (api, other):
                await trusted(process)
                assert await seen(process, owner) is None


async def test_a_new_primary_is_not_used_while_another_process_may_use_the_one_before(
    sentinel: Settings, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SETTLING_SECONDS > BELIEF_SECONDS + TIMEOUT_SECONDS
    monkeypatch.setattr(topology, "SETTLING_SECONDS", 0.4)
    client = RedisClient(sentinel.redis_url)
    await client.probe()
    for _ in range(2):
        client.resume()
        assert client.away
        await asyncio.sleep(0.2)
    await client.probe()
    client.resume()
    assert not client.away
    _, new = watched.roles()
    watched.sentinels[0].tell("SENTINEL", "FAILOVER", "referrals")
    await asyncio.to_thread(until, new.is_primary)
    async with asyncio.timeout(LONG):
        while not client.away:
            await asyncio.sleep(0.02)
        while not client.answers:
            with suppress(RedisAway):
                await client.probe()
    client.resume()
    assert client.away
    await client.close()


@pytest.mark.usefixtures("settled_soon")
async def test_what_a_process_removes_before_it_uses_the_primary_is_removed_for_others(
    sentinel: Settings,
) -> None:
    """One that has just started: its first writes must not wait for a job to be seen."""
    async with open_cache(sentinel.redis_url) as (cache, _):
        assert await cache.read_through("kind:1", loading(b"old")) == b"old"
        started_now = RedisClient(sentinel.redis_url)
        await started_now.probe()
        assert started_now.away
        await Cache(started_now, utc_now).forget(["kind:1"])
        assert await cache.read_through("kind:1", loading(b"new")) == b"new"
        await started_now.close()


async def test_what_the_sentinels_have_said_is_not_believed_for_ever(
    sentinel: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are asked again in time; only a process that was held up does without Redis a while."""
    monkeypatch.setattr(topology, "BELIEF_SECONDS", 0.3)
    monkeypatch.setattr(redis_client, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(topology, "SETTLING_SECONDS", 0.0)
    async with open_cache(sentinel.redis_url) as (_, client):
        for _ in range(10):
            await asyncio.sleep(0.05)
            assert await client.get("key") is None
        await client.probe()  # or one under way would time out, which opens the breaker
        time.sleep(0.3)  # noqa: ASYNC251 - nothing else runs meanwhile
        with pytest.raises(RedisAway):
            client.get("key")
        with pytest.raises(RedisAway):
            client.delete("key")
        await client.probe()
        assert await client.get("key") is None
