"""What is remembered of password attempts: recent failures, and where owners sign in from.

Redis holds it under keyed hashes. While Redis is away, each worker counts failures on its own.
"""

import asyncio
from contextlib import suppress
from typing import Final

from service.domain.clock import Clock
from service.domain.keyed_hashes import keyed_hash
from service.redis import RedisAway
from service.redis.cache import lasting_name
from service.redis.client import RedisClient
from service.redis.rate_limits import TAKE_BACK, LocalCounts

FREE_FAILURES: Final = 5
LONGEST_PAUSE_SECONDS: Final = 900
REMEMBERED_MS: Final = 3600 * 1000
"""How long after the last failure they are all forgotten: longer than any pause."""
PAUSES_MS: Final = (
    *(0 for _ in range(FREE_FAILURES)),
    *(min(1 << doubled, LONGEST_PAUSE_SECONDS) * 1000 for doubled in range(11)),
)
"""The pause after 0, 1, 2 … failures in a row; the last one also after any further failure."""
KNOWN_SECONDS: Final = 30 * 24 * 3600
"""How long after a sign-in its address counts as known."""
MOST_KNOWN: Final = 100
"""Known addresses of one account; the least recently used make room."""

# ARGV: how long failures are remembered, then the pauses. The key's remaining time to live shows
# how long ago the last attempt was.
_BEGIN: Final = """
local failures = tonumber(redis.call('GET', KEYS[1]) or 0)
local pause = tonumber(ARGV[math.min(failures, #ARGV - 2) + 2])
local early = pause - (tonumber(ARGV[1]) - redis.call('PTTL', KEYS[1]))
if early > 0 then return early end
redis.call('INCR', KEYS[1])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 0
"""


class Failures:
    """Failed attempts in a row, counted for each account and client address."""

    def __init__(self, redis: RedisClient, clock: Clock, hash_key: bytes) -> None:
        self._redis = redis
        self._hash_key = hash_key
        self._local = LocalCounts(clock)

    async def begin(self, account: str, address: str) -> int:
        """Count an attempt as failed; return 0, or by how many ms it is too early to be made.

        One that is too early does not count. The others count before their outcome is known:
        otherwise 60 parallel attempts would all pass.
        """
        key = self._key(account, address)
        try:
            early = await self._redis.call("EVAL", _BEGIN, 1, key, REMEMBERED_MS, *PAUSES_MS)
        except RedisAway:
            return self._begin_here(key)
        return int(early)

    def _begin_here(self, key: str) -> int:
        failures, left = self._local.find(key)
        pause = PAUSES_MS[min(failures, len(PAUSES_MS) - 1)]
        early = pause - (REMEMBERED_MS - left)
        if early > 0:
            return early
        self._local.keep(key, failures + 1, REMEMBERED_MS)
        return 0

    async def take_back(self, account: str, address: str) -> None:
        """Uncount an attempt that said nothing about the password."""
        key = self._key(account, address)
        self._local.take_back(key)
        with suppress(RedisAway):
            await self._redis.call("EVAL", TAKE_BACK, 1, key)

    async def forget(self, account: str, address: str) -> None:
        """Forget all failures, because an attempt has succeeded."""
        key = self._key(account, address)
        self._local.remove(key)
        with suppress(RedisAway):
            await self._redis.call("DEL", key)

    def _key(self, account: str, address: str) -> str:
        return f"limit:failures:{keyed_hash(self._hash_key, 'failures', f'{account} {address}')}"


def known_addresses_key(hash_key: bytes, email_key: str) -> str:
    """Return the key of an account's known addresses.

    It is forgotten like a cache key when the email address is no longer the account's.
    """
    return f"signed-in:{keyed_hash(hash_key, 'signed-in', email_key)}"


class KnownAddresses:
    """The addresses each account was signed in to from in the last 30 days, by email key."""

    def __init__(self, redis: RedisClient, clock: Clock, hash_key: bytes) -> None:
        self._redis = redis
        self._clock = clock
        self._hash_key = hash_key

    async def include(self, email_key: str, address: str) -> bool:
        """Whether the account was signed in to from this address; False while Redis is away."""
        name = self._name(email_key)
        try:
            at = await self._redis.call("ZSCORE", name, self._member(address))
        except RedisAway:
            return False
        return at is not None and float(at) > self._clock().timestamp() - KNOWN_SECONDS

    async def add(self, email_key: str, address: str) -> None:
        """Note that the account was signed in to from this address."""
        name, now = self._name(email_key), int(self._clock().timestamp())
        with suppress(RedisAway):
            await asyncio.gather(
                self._redis.call("ZADD", name, now, self._member(address)),
                self._redis.call("ZREMRANGEBYRANK", name, 0, -1 - MOST_KNOWN),
                self._redis.call("EXPIRE", name, KNOWN_SECONDS),
            )

    def _name(self, email_key: str) -> str:
        return lasting_name(known_addresses_key(self._hash_key, email_key))

    def _member(self, address: str) -> str:
        return keyed_hash(self._hash_key, "address", address)
