"""The three promises of service/redis/cache.py where several servers hold the keys, and change."""

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import asyncpg
import pytest
from redis.crc import key_slot
from redis.exceptions import RedisError

from service.api.http.app_keys import SERVICES
from service.domain.clock import utc_now
from service.domain.rate_limits import RateLimit
from service.redis import cache as caching
from service.redis.cache import BELIEF_SECONDS, SETTLING_SECONDS, Cache, RedisServer
from service.redis.connection import TIMEOUT_SECONDS, RedisAway
from service.redis.password_attempts import KnownAddresses
from service.redis.rate_limits import RateLimiter
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
from tests.engines.valkeys import Valkey, cluster_settings, is_whole, join, until
from tests.factories import running

NODE_TIMEOUT: Final = 1000
"""In milliseconds: how long a node is not heard of until another takes its place."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Sequence[Valkey]]:
    """A cluster of three primaries and a replica of each."""
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        ports = free_ports(12)
        made = [
            Valkey(
                f"node{number}",
                LOOPBACK,
                ports.pop(),
                Path(folder),
                *cluster_settings(NODE_TIMEOUT),
                f"cluster-port {ports.pop()}",
            )
            for number in range(6)
        ]
        with started(made):
            join(made, 3)
            yield made


@pytest.fixture
def cluster(settings: Settings, nodes: Sequence[Valkey]) -> Settings:
    """The settings of a service whose Redis is the cluster, of which it is told two nodes."""
    until(lambda: is_whole(nodes))
    return replace(settings, redis_url=f"redis+cluster://{nodes[0].url},{nodes[5].url}")


@pytest.fixture
def settled_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what would only wait."""
    monkeypatch.setattr(caching, "SETTLING_SECONDS", 0.1)


def named_holder(node: Valkey, key: str) -> int:
    """Return the port of whom a node takes for the holder of a cache key; 0 while it is away."""
    slot = key_slot(f"{{{key}}}".encode())
    with suppress(RedisError):
        for first, last, (_, port, *_), *_ in node.tell("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return int(port)
    return 0


def holder(nodes: Sequence[Valkey], key: str) -> Valkey:
    """Return the primary that holds a cache key."""
    port = next(filter(None, (named_holder(node, key) for node in nodes)))
    return next(node for node in nodes if node.port == port)


@pytest.mark.usefixtures("settled_soon")
async def test_each_node_keeps_its_values_and_a_removal_counts_for_every_process(
    cluster: Settings, nodes: Sequence[Valkey]
) -> None:
    keys = [f"kind:{number}" for number in range(30)]
    async with (
        open_cache(cluster.redis_url) as (cache, _),
        open_cache(cluster.redis_url) as (other, _),
    ):
        for key in keys:
            assert await cache.read_through(key, loading(key.encode())) == key.encode()
        for node in nodes[:3]:
            assert node.tell("DBSIZE") >= 3
        for key in keys:
            assert await other.read_through(key, nothing_to_load) == key.encode()
        await cache.forget(keys)  # of all nodes at once
        for key in keys:
            assert await other.read_through(key, loading(b"new")) == b"new"


@pytest.mark.usefixtures("settled_soon")
async def test_each_window_is_counted_where_its_key_belongs(cluster: Settings) -> None:
    subjects = [("login", f"subject {number}") for number in range(20)]
    async with (
        open_cache(cluster.redis_url) as (_, server),
        open_cache(cluster.redis_url) as (_, other),
    ):
        for count, asked in ((1, server), (2, other)):
            limiter = RateLimiter(asked, utc_now, b"key")
            windows = await limiter.count(RateLimit(2, 60), subjects)
            assert [window.count for window in windows] == [count] * 20
            assert {window.reset for window in windows} <= {59, 60}
            await KnownAddresses(asked, utc_now, b"key").add("account", "address")
        assert await KnownAddresses(other, utc_now, b"key").include("account", "address")


@pytest.mark.usefixtures("settled_soon")
async def test_when_a_primary_dies_postgresql_answers_until_its_replica_is_one(
    cluster: Settings, database: asyncpg.Connection, nodes: Sequence[Valkey]
) -> None:
    """And what the dead one had removed, but its replica had not yet, is not seen again."""
    async with serving(cluster) as api:
        owner, other = await api.new_person(), await api.new_person()
        codes = [await api.new_code(person) for person in (owner, other)]
        await all_jobs_done(database)
        assert [await seen(api, person) for person in (owner, other)] == codes
        key = code_key(owner.email)
        old = holder(nodes, key)
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
            while holder(nodes, key) is old or api.app[SERVICES].redis.away:
                assert await seen(api, owner) is None
                assert await seen(api, other) == codes[1]
        new = holder(nodes, key)
        assert name in names(new, key)
        assert await seen(api, owner) is None
        assert len(names(new, key)) == 2, "what was read is kept under a name of its own"
    old.start()
    old.wait_until(old.answers)


def move_slot(slot: int, old: Valkey, new: Valkey) -> None:
    """Give a slot to another primary, with its keys."""
    ids = {node: node.tell("CLUSTER", "MYID") for node in (old, new)}
    new.tell("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[old])
    old.tell("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[new])
    for key in old.tell("CLUSTER", "GETKEYSINSLOT", slot, 1000):
        old.tell("MIGRATE", new.machine.address, new.port, key, 0, 1000)
    for node in (new, old):
        node.tell("CLUSTER", "SETSLOT", slot, "NODE", ids[new])


@pytest.mark.usefixtures("settled_soon")
async def test_moved_slots_are_followed_and_values_do_not_come_back_with_them(
    cluster: Settings, database: asyncpg.Connection, nodes: Sequence[Valkey]
) -> None:
    async with serving(cluster) as api:
        owner = await api.new_person()
        code = await api.new_code(owner)
        await all_jobs_done(database)
        assert await seen(api, owner) == code
        key = code_key(owner.email)
        slot = key_slot(f"{{{key}}}".encode())
        old = holder(nodes, key)
        new = next(node for node in nodes if node.is_primary() and node is not old)
        [name] = names(old, key)

        async def found_after(move: tuple[Valkey, Valkey]) -> set[str | None]:
            """Move the slot; return what look-ups give until one is kept by the new holder."""
            await asyncio.to_thread(move_slot, slot, *move)
            moved = names(move[1], key)
            assert name in moved, "the value is where it could be seen"
            found = set()
            async with asyncio.timeout(LONG):
                while set(names(move[1], key)) <= set(moved):
                    found.add(await seen(api, owner))
                    await asyncio.sleep(0.02)
            return found

        assert await found_after((old, new)) == {code}
        assert (await api.delete("/referral-code", by=owner)).status == 204
        assert await seen(api, owner) is None
        assert await found_after((new, old)) == {None}


@pytest.mark.usefixtures("settled_soon")
async def test_a_primary_that_does_not_know_of_its_successor_is_not_used_for_long(
    cluster: Settings, database: asyncpg.Connection, nodes: Sequence[Valkey]
) -> None:
    async with serving(cluster) as api:
        owner = await api.new_person()
        code = await api.new_code(owner)
        await all_jobs_done(database)
        assert await seen(api, owner) == code
        key = code_key(owner.email)
        old = holder(nodes, key)
        [name] = names(old, key)
        old.tell("CONFIG", "SET", "cluster-node-timeout", 30_000)  # or it would soon give up
        old.tell("DEBUG", "DROP-CLUSTER-PACKET-FILTER", -2)
        [new] = [
            node for node in nodes if not node.is_primary() and node.tell("ROLE")[2] == old.port
        ]
        new.tell("CLUSTER", "FAILOVER", "TAKEOVER")
        others = [node for node in nodes if node is not old]
        await asyncio.to_thread(
            until, lambda: {named_holder(node, key) for node in others} == {new.port}
        )
        async with running(replace(cluster, redis_url=f"redis+cluster://{old.url}")) as other:
            assert (await other.delete("/referral-code", by=owner)).status == 204
            async with asyncio.timeout(STALE_SECONDS):
                while await seen(api, owner) is not None:
                    await asyncio.sleep(0.02)
                await all_jobs_done(database)
            assert code.encode() in old.tell("GET", name)
            assert named_holder(old, key) == old.port, "it still believes that it holds the key"
            for process in (api, other):
                await trusted(process)
                assert await seen(process, owner) is None
        told_by_it_alone = RedisServer(f"redis+cluster://{old.url}")
        redis = await told_by_it_alone.connect_anyway(f"{{{key}}}")
        assert await redis.call(("CLUSTER", "MYID")) == [new.tell("CLUSTER", "MYID")]
        await told_by_it_alone.close()
    old.tell("DEBUG", "DROP-CLUSTER-PACKET-FILTER", -1)
    old.tell("CONFIG", "SET", "cluster-node-timeout", NODE_TIMEOUT)


async def test_a_new_holder_is_not_used_while_another_process_may_use_the_one_before(
    cluster: Settings, nodes: Sequence[Valkey], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SETTLING_SECONDS > BELIEF_SECONDS + TIMEOUT_SECONDS
    monkeypatch.setattr(caching, "SETTLING_SECONDS", 0.4)
    server = RedisServer(cluster.redis_url)
    await server.ask()
    for _ in range(2):
        server.resume()
        assert server.away
        await asyncio.sleep(0.2)
    await server.ask()
    server.resume()
    assert not server.away
    # As when slots have come to them. One of the two may have the highest epoch already.
    for node in [each for each in nodes if each.is_primary()][:2]:
        node.tell("CLUSTER", "BUMPEPOCH")
    await server.ask()
    assert server.away
    server.resume()
    assert server.away
    await server.close()


@pytest.mark.usefixtures("settled_soon")
async def test_what_a_process_removes_before_it_uses_the_nodes_is_removed_for_others(
    cluster: Settings,
) -> None:
    """One that has just started: its first writes must not wait for a job to be seen."""
    async with open_cache(cluster.redis_url) as (cache, _):
        assert await cache.read_through("kind:1", loading(b"old")) == b"old"
        started_now = RedisServer(cluster.redis_url)
        await started_now.ask()
        assert started_now.away
        await Cache(started_now, utc_now).forget(["kind:1"])
        assert await cache.read_through("kind:1", loading(b"new")) == b"new"
        await started_now.close()


async def test_what_the_nodes_have_said_is_not_believed_for_ever(
    cluster: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are asked again in time; only a process that was held up has to wait for it."""
    monkeypatch.setattr(caching, "BELIEF_SECONDS", 0.3)
    monkeypatch.setattr(caching, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(caching, "SETTLING_SECONDS", 0.0)
    async with open_cache(cluster.redis_url) as (_, server):
        for _ in range(10):
            await asyncio.sleep(0.05)
            assert server.connection_of("key") is not None
        time.sleep(0.3)  # noqa: ASYNC251 - nothing else runs meanwhile
        assert server.connection_of("key") is None
        with suppress(RedisAway):  # where they were asked already before it was held up
            await server.connect("key")
        assert await server.connect("key") is server.connection_of("key")


async def test_nodes_that_are_no_cluster_are_not_used(settings: Settings) -> None:
    [port] = free_ports(1)
    server = RedisServer(f"redis+cluster://127.0.0.1:{port}")
    with pytest.raises(RedisAway, match="The nodes of the cluster: ConnectionRefusedError"):
        await server.ask()
    await server.close()
