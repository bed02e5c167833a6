"""The client that all requests share: each gets its own reply, or learns that there is none."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from service.domain.clock import utc_now
from service.redis import TIMEOUT_SECONDS, RedisAway
from service.redis import client as redis_client
from service.redis.client import MANY_AT_ONCE, MOST_TURNS, RedisClient
from service.settings.settings import Settings
from tests.engines import redis_trouble
from tests.engines.redis_trouble import Proxy


@pytest.fixture
async def proxy(settings: Settings, redis: Redis) -> AsyncIterator[Proxy]:
    async with redis_trouble.proxied(settings.redis_url) as proxy:
        yield proxy


@asynccontextmanager
async def trusted(url: str) -> AsyncIterator[RedisClient]:
    client = RedisClient(url)
    try:
        await client.probe()
        client.resume()
        yield client
    finally:
        await client.close()


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[RedisClient]:
    """Redis behind a proxy, connected and trusted."""
    async with trusted(proxy.url) as client:
        yield client


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[list[bytes]]:
    """The words that are sent to Redis, in a list for each exchange."""
    exchanges: list[list[bytes]] = []
    send = AbstractConnection.send_packed_command

    async def spy(
        self: AbstractConnection, command: list[bytes], check_health: bool = True
    ) -> None:
        exchanges.append(b"".join(command).split())
        await send(self, command, check_health=check_health)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", spy)
    return exchanges


async def test_each_of_many_requests_at_once_gets_its_own_reply(client: RedisClient) -> None:
    async def ask(number: int) -> None:
        for round_ in range(5):
            value = f"{number} {round_} ".encode() * (1 + number % 50)
            assert await client.call("SET", f"key {number}", value) == b"OK"
            read, unknown, count, echo = await asyncio.gather(
                client.get(f"key {number}"),
                client.get(f"nothing {number}"),
                client.count(f"count {number}", 60_000),
                client.call("ECHO", value),
            )
            assert (read, unknown, echo) == (value, None, value)
            assert count[0] == round_ + 1
            assert 59_000 < count[1] <= 60_000

    await asyncio.gather(*map(ask, range(200)))


async def test_what_one_turn_asks_for_is_one_exchange(
    client: RedisClient, sent: list[list[bytes]]
) -> None:
    """Reads are one MGET, counts one script: their cost is that of one."""
    reads = [client.get(f"key {number % 30}") for number in range(50)]
    counts = [client.count(f"count {number % 30}", 60_000) for number in range(50)]
    assert await asyncio.gather(*reads) == [None] * 50
    assert [(await count)[0] for count in counts] == [1] * 30 + [2] * 20
    [words] = sent
    assert (words.count(b"MGET"), words.count(b"EVAL")) == (1, 1)


async def test_many_requests_wait_for_those_of_a_few_more_turns(
    client: RedisClient, sent: list[list[bytes]]
) -> None:
    """An exchange for each turn would cost more than what they ask for."""
    reads = []
    for turn in range(MOST_TURNS // 2):
        reads += [client.get(f"key {turn} {number}") for number in range(MANY_AT_ONCE)]
        await asyncio.sleep(0)
    assert sent == []
    await asyncio.gather(*reads)
    assert len(sent) == 1


async def test_many_requests_do_not_wait_for_ever(
    client: RedisClient, sent: list[list[bytes]]
) -> None:
    reads = []
    for turn in range(MOST_TURNS * 2):
        reads += [client.get(f"key {turn} {number}") for number in range(MANY_AT_ONCE)]
        await asyncio.sleep(0)
    assert len(sent) == 1
    await asyncio.gather(*reads)


async def test_reads_that_come_meanwhile_wait_for_each_other_and_writes_for_none(
    client: RedisClient, proxy: Proxy, sent: list[list[bytes]]
) -> None:
    proxy.hold_up()
    first = client.get("key")
    await asyncio.sleep(0.01)
    others = []
    for number in range(3):
        others.append(client.get(f"key {number}"))
        await asyncio.sleep(0.01)
    write = client.call("SET", "key", "value")
    await asyncio.sleep(0.01)
    assert [words[2] for words in sent] == [b"MGET", b"SET"]
    proxy.mend()
    assert await first is None
    assert await write == b"OK"
    assert await asyncio.gather(*others) == [None] * 3
    assert [words[2] for words in sent] == [b"MGET", b"SET", b"MGET"]


async def test_parallel_counts_all_count_and_a_window_has_an_end(
    client: RedisClient, redis: Redis
) -> None:
    counted = await asyncio.gather(*(client.count("count", 60_000) for _ in range(60)))
    assert sorted(count for count, _ in counted) == list(range(1, 61))
    assert 59_000 < await redis.pttl("count") <= 60_000
    await redis.persist("count")
    assert await client.count("count", 30_000) == (61, 30_000)
    assert 29_000 < await redis.pttl("count") <= 30_000


async def test_a_cancelled_caller_leaves_the_others_their_replies(client: RedisClient) -> None:
    async def ask(word: str) -> Any:
        return await asyncio.gather(client.call("ECHO", word), client.get(word))

    tasks = [asyncio.create_task(ask(word)) for word in ("a", "b", "c", "d")]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[2].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[1::2] == [[b"b", None], [b"d", None]]
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[0::2])


@pytest.mark.parametrize("trouble", [Proxy.cut, Proxy.hold_up])
async def test_when_redis_goes_away_everything_fails_that_waits_and_the_next_at_once(
    client: RedisClient, proxy: Proxy, trouble: Callable[[Proxy], None]
) -> None:
    await client.call("SET", "key", "value")
    proxy.hold_up()  # whatever is asked from now on has no reply when the trouble comes
    waiting: list[asyncio.Future[Any]] = []
    for _ in range(5):
        waiting += [client.get("key"), client.count("count", 1000), client.call("GET", "key")]
        await asyncio.sleep(0.01)
    trouble(proxy)
    started = time.perf_counter()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert time.perf_counter() - started < TIMEOUT_SECONDS * 1.5
    assert [type(answer) for answer in answers] == [RedisAway] * 15
    assert client.away
    assert not client.answers
    for ask in (client.get, client.call, client.delete):
        with pytest.raises(RedisAway):
            ask("key")
    with pytest.raises(RedisAway):
        client.count("count", 1000)


async def test_a_late_reply_is_nobodys(client: RedisClient, proxy: Proxy) -> None:
    """After a time-out the replies that still come belong to callers that have given up."""
    proxy.hold_up()
    with pytest.raises(RedisAway, match="no answer in time"):
        await client.call("ECHO", "old")
    proxy.mend()
    await client.probe()
    client.resume()
    assert await client.call("ECHO", "new") == b"new"


async def test_a_probe_that_is_given_up_leaves_its_reply_to_nobody(
    client: RedisClient, proxy: Proxy
) -> None:
    proxy.hold_up()
    probe = asyncio.create_task(client.probe())
    await asyncio.sleep(0.01)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    proxy.mend()
    await client.probe()
    client.resume()
    assert await client.call("ECHO", "word") == b"word"


async def test_a_slow_exchange_does_not_hide_after_quick_ones(
    client: RedisClient, proxy: Proxy
) -> None:
    for _ in range(4):
        await client.call("ECHO", "word")
        await asyncio.sleep(TIMEOUT_SECONDS / 3)
    proxy.hold_up()
    started = time.perf_counter()
    with pytest.raises(RedisAway):
        await client.call("ECHO", "word")
    assert TIMEOUT_SECONDS * 0.9 <= time.perf_counter() - started < TIMEOUT_SECONDS * 2


def test_a_process_that_was_held_up_does_not_blame_redis(settings: Settings) -> None:
    """With uvloop, in the middle of reading: then the timers come before what has arrived since."""

    async def be_held_up() -> None:
        async with trusted(settings.redis_url) as client:
            reader, writer = socket.socketpair()
            with reader, writer:
                loop = asyncio.get_running_loop()
                held_up = TIMEOUT_SECONDS * 2
                loop.add_reader(reader, lambda: time.sleep(len(reader.recv(1)) * held_up))
                call = client.call("BLPOP", "nothing", "0.05")  # not answered at once
                await asyncio.sleep(0)
                writer.send(b".")
                assert await call is None
                loop.remove_reader(reader)
            assert not client.away

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(be_held_up())


async def test_an_error_reply_is_a_failure(client: RedisClient) -> None:
    with pytest.raises(RedisAway, match="unknown command"):
        await client.call("NO-SUCH-COMMAND")
    assert client.away
    await client.probe()
    client.resume()
    assert await client.call("ECHO", "word") == b"word"


async def test_a_reply_that_nobody_asked_for_is_not_given_to_the_next_caller() -> None:
    """The connection is made again instead."""
    connections = ended = infos = 0

    async def answer_too_much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections, ended, infos
        connections += 1
        while words := (await reader.read(65536)).upper():
            writer.write(b"+OK\r\n" * words.count(b"SETINFO"))
            writer.write(b"$15\r\nrun_id:abcdefgh\r\n" * words.count(b"\nINFO\r"))
            infos += words.count(b"\nINFO\r")
            if (connections, infos) == (1, 2):  # when it has connected, and is probed
                writer.write(b"*1\r\n$3\r\nodd\r\n")
            writer.write(b"*1\r\n$4\r\neven\r\n" * words.count(b"MGET"))
        writer.close()
        ended += 1

    async with redis_trouble.listening(answer_too_much) as url:
        async with trusted(url) as client:
            assert client.generation == "abcdefgh"
            await asyncio.sleep(0.05)
            assert await client.get("key") == b"even"
            assert connections == 2
        async with asyncio.timeout(1):
            while ended < 2:
                await asyncio.sleep(0.01)


async def test_no_more_requests_wait_than_memory_allows(
    client: RedisClient, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "MOST_UNDER_WAY", 5)
    proxy.hold_up()
    waiting = [client.call("ECHO", number) for number in range(4)]
    await asyncio.sleep(0.01)
    waiting.append(client.get("key"))
    for ask in (client.get, client.delete):
        with pytest.raises(RedisAway, match="Too many"):
            ask("one too many")
    proxy.mend()
    assert await asyncio.gather(*waiting) == [b"0", b"1", b"2", b"3", None]
    assert await client.get("key") is None


async def test_a_connection_lost_while_idle_is_no_failure(
    client: RedisClient, proxy: Proxy
) -> None:
    await client.call("SET", "key", "value")
    proxy.cut()
    proxy.mend()
    async with asyncio.timeout(1):
        while proxy.pairs:
            await asyncio.sleep(0.01)
    read, echo = client.get("key"), client.call("ECHO", "word")
    assert (await read, await echo) == (b"value", b"word")
    assert not client.away
    assert proxy.connections == 2


async def test_after_a_restart_what_is_named_by_the_run_before_is_neither_read_nor_removed(
    client: RedisClient, proxy: Proxy
) -> None:
    """It would seem to be gone, though others may have it under its new name."""
    for ask in (client.get, client.delete):
        old = client.generation
        proxy.cut()
        proxy.run_id = ("e" if old.startswith("f") else "f") * 40
        proxy.mend()
        async with asyncio.timeout(1):
            while proxy.pairs:
                await asyncio.sleep(0.01)
        with pytest.raises(RedisAway, match="restarted"):
            await ask(f"{old}:key")
        assert client.away
        await client.probe()
        client.resume()
        assert client.generation == proxy.run_id


async def test_probes_share_a_connection(proxy: Proxy) -> None:
    client = RedisClient(proxy.url)
    await asyncio.gather(*(client.probe() for _ in range(5)))
    assert proxy.connections == 1
    await client.close()


async def test_closing_fails_what_waits(client: RedisClient, proxy: Proxy) -> None:
    proxy.hold_up()
    waiting = [client.call("ECHO", "word"), client.get("key")]
    await asyncio.sleep(0.01)
    waiting += [client.call("ECHO", "next"), client.get("next")]
    await client.close()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [RedisAway] * 4
    proxy.mend()
    async with asyncio.timeout(1):
        while proxy.pairs:  # Redis sees the end too
            await asyncio.sleep(0.01)


async def test_it_signs_in_and_selects_the_database(settings: Settings, redis: Redis) -> None:
    await redis.acl_setuser(
        "shop", enabled=True, passwords=["+p@ss/word"], keys=["*"], commands=["+@all"]
    )
    path = urlsplit(settings.redis_url).path
    async with trusted(f"unix://shop:p%40ss%2Fword@{path}?db=3") as client:
        assert await client.call("ACL", "WHOAMI") == b"shop"
        assert b" db=3 " in await client.call("CLIENT", "INFO")
    for url in (f"unix://shop:wrong@{path}", f"unix://{path}?db=99"):
        with pytest.raises(RedisAway, match="correct REDIS_URL"):
            async with trusted(url):
                pass
    await redis.acl_deluser("shop")


def make_certificate(folder: Path) -> Path:
    """Return a file with a key and a certificate of localhost that it has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(utc_now() - timedelta(hours=1))
        .not_valid_after(utc_now() + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "localhost.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file


async def test_rediss_is_tls_and_the_certificate_is_checked(
    settings: Settings, redis: Redis, tmp_path: Path
) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with redis_trouble.proxied(settings.redis_url, ssl=context) as proxy:
        url = proxy.url.replace("redis://127.0.0.1", "rediss://localhost")
        async with trusted(f"{url}?ssl_ca_certs={certificate}") as client:
            assert await client.call("ECHO", "word") == b"word"
        with pytest.raises(RedisAway, match="certificate"):
            async with trusted(url):
                pass
