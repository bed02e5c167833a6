"""Which server is the primary: the one that REDIS_URL names, or the one that sentinels name.

A primary that is cut off from the others carries on as one for a while, so one sentinel's word is
not enough: the primary is the server that most of them name, provided that it is no replica. And
no two servers are ever in use at a time. A process believes what it heard for BELIEF_SECONDS, and
so stops using a primary that was replaced without knowing; a new one is used only after
SETTLING_SECONDS. This needs no setting of the servers. Theirs decide how long a failover takes,
during which answers come from PostgreSQL.

redis-py's own Sentinel client asks one sentinel after the other and takes the first one's word.
"""

import asyncio
import math
from collections import Counter
from time import monotonic
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.redis import TIMEOUT_SECONDS, RedisAway
from service.redis.urls import read_redis_url

BELIEF_SECONDS: Final = 1.0
"""Counted from the question. Less than promise 3: a job may have been done at the new server."""
SETTLING_SECONDS: Final = BELIEF_SECONDS + 2 * TIMEOUT_SECONDS
"""Counted from the answer. Outlasts what other processes still believe, and their last replies."""


class Topology:
    """The primary, as far as this process knows."""

    def __init__(self, url: str) -> None:
        self._read = read_redis_url(url)
        self._sentinels: list[Any] = []
        self.is_watched = self._read.kind == "sentinel"
        self.url = "" if self.is_watched else url
        self.generation = ""
        self._believed_until = -math.inf if self.is_watched else math.inf
        self._settled_at = -math.inf

    @property
    def is_believed(self) -> bool:
        """Whether the primary may be used: always, if no other can take its place."""
        return not self.is_watched or monotonic() < self._believed_until

    @property
    def is_settled(self) -> bool:
        """Whether no other process can still be using another primary."""
        return monotonic() >= self._settled_at

    async def find_primary(self) -> bool:
        """Ask the sentinels, if any; return whether they name another server than before.

        Raises RedisAway unless most of them name the same one.
        """
        if not self.is_watched:
            return False
        if not self._sentinels:
            self._sentinels = [_client(url) for url in self._read.named]
        failures: list[str] = []
        answers = await asyncio.gather(*(self._ask(each, failures) for each in self._sentinels))
        [(url, votes)] = Counter(filter(None, answers)).most_common(1) or [("", 0)]
        if votes * 2 <= len(answers):
            reasons = "; ".join(dict.fromkeys(failures)) or "they disagree"
            raise RedisAway(f"Most sentinels must name the same primary: {reasons}")
        moved, self.url = url != self.url, url
        return moved

    def learn(self, info: bytes) -> None:
        """Take the generation from the primary's INFO; raise RedisAway if it is a replica.

        A server alone has a new one when it was restarted; one of several also when it was a
        replica in between.
        """
        fields = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        if self.is_watched and fields["role"] != "master":
            raise RedisAway("The server that the sentinels name is not a primary.")
        generation = fields["master_replid" if self.is_watched else "run_id"]
        if self.is_watched and generation != self.generation:
            self._settled_at = monotonic() + SETTLING_SECONDS
        self.generation = generation

    def believe_since(self, asked_at: float) -> None:
        """Believe what has been learnt from questions asked then."""
        if self.is_watched:
            self._believed_until = asked_at + BELIEF_SECONDS

    async def close(self) -> None:
        for sentinel in self._sentinels:
            await sentinel.aclose()

    async def _ask(self, sentinel: Any, failures: list[str]) -> str | None:
        """Return the URL of the primary that a sentinel names; note a failure."""
        service = self._read.service
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                address = await sentinel.sentinel_get_master_addr_by_name(service)
        except (RedisError, OSError) as error:
            failures.append(f"{type(error).__name__}: {error}")
            return None
        if address is None:
            failures.append(f"a sentinel does not know {service!r}")
            return None
        host, port = address
        return self._read.to(host, port)


def _client(url: str) -> Any:
    return Redis.from_url(url, protocol=2, decode_responses=True, retry=Retry(NoBackoff(), 0))
