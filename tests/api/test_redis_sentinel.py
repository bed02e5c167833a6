"""The three promises of service/redis/cache.py where sentinels say which server is the primary."""

import asyncio
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.redis import cache as caching
from service.redis.cache import RedisServer
from service.redis.connection import RedisAway
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
)
from tests.api.test_cache import all_jobs_done, seen
from tests.engines.valkeys import Valkey, until

PASSWORD = "a word"


@dataclass(frozen=True)
class Watched:
    """Two servers, one of them the primary, and the three sentinels that watch it."""

    servers: tuple[Valkey, Valkey]
    sentinels: tuple[Valkey, ...]

    def url(self, *sentinels: str) -> str:
        """Return the REDIS_URL, with these sentinels instead of the real ones if there are some."""
        hosts = ",".join(sentinels or [each.url for each in self.sentinels])
        return f"redis+sentinel://:{PASSWORD.replace(' ', '%20')}@{hosts}/referrals"

    def roles(self) -> tuple[Valkey, Valkey]:
        """Return the primary and the replica."""
        primary, replica = sorted(self.servers, key=Valkey.is_primary, reverse=True)
        return primary, replica

    def is_whole(self) -> bool:
        """Whether the replica has what the primary has, and all sentinels know all of it."""
        primary, replica = self.roles()
        if replica.is_primary() or replica.tell("ROLE")[3] != b"connected":
            return False
        for sentinel in self.sentinels:
            _, port = sentinel.tell("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "referrals")
            others = sentinel.tell("SENTINEL", "SENTINELS", "referrals")
            replicas = sentinel.tell("SENTINEL", "REPLICAS", "referrals")
            if int(port) != primary.port or len(others) != 2 or len(replicas) != 1:
                return False
        return True


@pytest.fixture
def watched() -> Iterator[Watched]:
    with tempfile.TemporaryDirectory(prefix="sentinel-") as name:
        folder = Path(name)
        first, second, *ports = free_ports(5)
        common = (
            f'requirepass "{PASSWORD}"',
            f'primaryauth "{PASSWORD}"',
            'save ""',
            "repl-diskless-sync-delay 0",
        )
        replica = f"replicaof {LOOPBACK.address} {first}"
        servers = (
            Valkey("first", LOOPBACK, first, folder, *common, password=PASSWORD),
            Valkey("second", LOOPBACK, second, folder, *common, replica, password=PASSWORD),
        )
        ids = {port: secrets.token_hex(20) for port in ports}
        sentinels = tuple(
            Valkey(
                f"sentinel{port}",
                LOOPBACK,
                port,
                folder,
                f"sentinel myid {own}",
                f"sentinel monitor referrals {LOOPBACK.address} {first} 2",
                f'sentinel auth-pass referrals "{PASSWORD}"',
                "sentinel down-after-milliseconds referrals 500",
                "sentinel failover-timeout referrals 2000",
                # What they would tell each other within seconds.
                f"sentinel known-replica referrals {LOOPBACK.address} {second}",
                *(
                    f"sentinel known-sentinel referrals {LOOPBACK.address} {other} {ids[other]}"
                    for other in ports
                    if other != port
                ),
            )
            for port, own in ids.items()
        )
        with started(servers), started(sentinels):
            yield Watched(servers, sentinels)


@pytest.fixture
def sentinel(settings: Settings, watched: Watched) -> Settings:
    """The settings of a service that knows the sentinels."""
    until(watched.is_whole)
    return replace(settings, redis_url=watched.url())


@pytest.fixture
def settled_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what would only wait."""
    monkeypatch.setattr(caching, "SETTLING_SECONDS", 0.1)


@pytest.mark.usefixtures("settled_soon")
async def test_a_server_that_is_a_primary_no_more_is_given_up(
    sentinel: Settings, watched: Watched
) -> None:
    """And its values are not seen when it is one again."""
    old, new = watched.roles()
    async with open_cache(sentinel.redis_url) as (cache, server):
        assert await cache.read_through("kind:key", loading(b"old")) == b"old"
        assert await cache.read_through("kind:key", nothing_to_load) == b"old"
        redis = await server.connect("key")
        old.tell("REPLICAOF", new.machine.address, new.port)
        with pytest.raises(RedisAway, match="READONLY"):
            await redis.call(("SET", "key", "value"))
        assert server.away
        with pytest.raises(RedisAway, match="not a primary"):
            await server.ask()
        old.tell("REPLICAOF", "NO", "ONE")
        await server.ask()
        await asyncio.sleep(caching.SETTLING_SECONDS)
        server.resume()
        assert names(old, "kind:key")
        assert await cache.read_through("kind:key", loading(b"new")) == b"new"


@pytest.mark.usefixtures("settled_soon")
async def test_a_primary_is_the_one_that_most_of_the_sentinels_name(
    sentinel: Settings, watched: Watched
) -> None:
    first, second, _ = (each.url for each in watched.sentinels)
    nobody, neither = (f"{LOOPBACK.address}:{port}" for port in free_ports(2))
    async with open_cache(watched.url(first, nobody, second)) as (_, server):
        assert server.connection_of("key") is not None
    server = RedisServer(watched.url(first, nobody, neither))
    with pytest.raises(RedisAway, match="Most of the sentinels: ConnectionRefusedError"):
        await server.ask()
    await server.close()


async def test_sentinels_that_do_not_know_the_name_say_so(
    sentinel: Settings, watched: Watched
) -> None:
    server = RedisServer(watched.url().replace("/referrals", "/orders"))
    with pytest.raises(RedisAway, match="'orders'"):
        await server.ask()
    await server.close()


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
