"""The connection that all requests share: each gets its own reply, or is told of none."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
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

from service.domain.clock import utc_now
from service.redis import connection as redis_connection
from service.redis.cache import RedisServer
from service.redis.connection import (
    FEW,
    TIMEOUT_SECONDS,
    RedisAway,
    RedisConnection,
    open_connection,
)
from service.settings.settings import Settings
from tests.engines import redis_trouble
from tests.engines.redis_trouble import Proxy


@pytest.fixture
async def proxy(settings: Settings, redis: Redis) -> AsyncIterator[Proxy]:
    async with redis_trouble.proxied(settings.redis_url) as proxy:
        yield proxy


@pytest.fixture
async def server(proxy: Proxy) -> AsyncIterator[RedisServer]:
    """Redis behind a proxy, trusted and connected."""
    server = RedisServer(proxy.url)
    await server.ask()
    server.resume()
    yield server
    await server.close()


def ignore() -> None:
    """Nobody minds that the connection fails."""


async def test_each_of_many_calls_at_once_gets_its_own_replies(server: RedisServer) -> None:
    redis = await server.connect("key")

    async def call(number: int) -> None:
        for round_ in range(5):
            value = f"{number} {round_} ".encode() * (1 + number % 50)
            replies = await redis.call(("SET", f"key {number}", value), ("GET", f"key {number}"))
            assert replies == [b"OK", value]
            assert await redis.call(("ECHO", value)) == [value]

    await asyncio.gather(*map(call, range(200)))


async def test_the_calls_of_one_turn_are_one_write(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis = await server.connect("key")
    assert redis._transport is not None
    written: list[bytes] = []
    write = redis._transport.write

    class Spy:
        def write(self, data: bytes) -> None:
            written.append(data)
            write(data)

    monkeypatch.setattr(redis, "_transport", Spy())
    for first in (FEW, 0):  # at first they are sent at once, for want of company
        written.clear()
        calls = [redis.call(("ECHO", number)) for number in range(50)]
        assert [await call for call in calls] == [[b"%d" % number] for number in range(50)]
        assert len(written) == first + 1
    for _ in range(2):
        written.clear()
        await redis.call(("ECHO", 1))
    assert not redis._unsent
    redis.call(("ECHO", 1))
    assert len(written) == 2, "sent at once, now that few come again"
    monkeypatch.undo()


async def test_whoever_is_cancelled_leaves_the_others_their_replies(server: RedisServer) -> None:
    redis = await server.connect("key")

    async def ask(word: str) -> Any:
        return await redis.call(("ECHO", word), ("ECHO", word.upper()))

    tasks = [asyncio.create_task(ask(word)) for word in ("a", "b", "c", "d")]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[2].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[1::2] == [[b"b", b"B"], [b"d", b"D"]]
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[0::2])


@pytest.mark.parametrize("trouble", [Proxy.cut, Proxy.hold_up])
async def test_when_redis_goes_all_calls_under_way_are_told_and_the_next_ones_at_once(
    server: RedisServer, proxy: Proxy, trouble: Callable[[Proxy], None]
) -> None:
    redis = await server.connect("key")
    await redis.call(("SET", "key", "value"))
    proxy.hold_up()  # what is asked from now on has no answer when the trouble comes
    calls = [redis.call(("GET", "key")) for _ in range(20)]
    await asyncio.sleep(0.05)
    trouble(proxy)
    started = time.perf_counter()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert time.perf_counter() - started < TIMEOUT_SECONDS * 2
    assert [type(answer) for answer in answers] == [RedisAway] * 20
    assert server.away
    assert redis.is_closed
    with pytest.raises(RedisAway):
        await server.connect("key")
    with pytest.raises(RedisAway):
        await redis.call(("GET", "key"))


async def test_a_late_reply_is_nobodys(server: RedisServer, proxy: Proxy) -> None:
    """After a time-out the replies that still come belong to calls that have given up."""
    redis = await server.connect("key")
    proxy.hold_up()
    with pytest.raises(RedisAway):
        await redis.call(("ECHO", "old"))
    proxy.mend()
    again = await server.connect_anyway("key")
    assert again is not redis
    assert await again.call(("ECHO", "new")) == [b"new"]


async def test_a_slow_call_does_not_hide_behind_quick_ones(
    server: RedisServer, proxy: Proxy
) -> None:
    """The watch is on the oldest call, and goes on after replies to others."""
    redis = await server.connect("key")
    for _ in range(4):
        await redis.call(("ECHO", "word"))
        await asyncio.sleep(TIMEOUT_SECONDS / 3)
    proxy.hold_up()
    started = time.perf_counter()
    with pytest.raises(RedisAway):
        await redis.call(("ECHO", "word"))
    assert TIMEOUT_SECONDS * 0.9 <= time.perf_counter() - started < TIMEOUT_SECONDS * 2


def test_a_process_that_was_held_up_does_not_blame_redis(settings: Settings) -> None:
    """With uvloop, in the middle of reading: then the timers come before what has arrived since."""

    async def be_held_up() -> None:
        server = RedisServer(settings.redis_url)
        await server.ask()
        server.resume()
        redis = await server.connect("key")
        reader, writer = socket.socketpair()
        with reader, writer:
            loop = asyncio.get_running_loop()
            loop.add_reader(reader, lambda: time.sleep(len(reader.recv(1)) * TIMEOUT_SECONDS * 2))
            call = redis.call(("BLPOP", "nothing", "0.05"))  # not answered at once
            writer.send(b".")
            assert await call == [None]
            loop.remove_reader(reader)
        assert not server.away
        await server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(be_held_up())


async def test_an_error_reply_is_a_failure(server: RedisServer) -> None:
    redis = await server.connect("key")
    before, wrong, behind = (
        redis.call(command) for command in (("ECHO", "a"), ("NO-SUCH-COMMAND",), ("ECHO", "b"))
    )
    assert await before == [b"a"]
    for call in (wrong, behind):
        with pytest.raises(RedisAway):
            await call
    assert server.away


async def test_a_reply_that_nobody_asked_for_is_not_given_to_the_next_one() -> None:
    more = asyncio.Event()

    async def answer_too_much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"server\r\n")
        writer.write(b"$15\r\nrun_id:abcdefgh\r\n")
        await more.wait()
        writer.write(b"$3\r\nodd\r\n")
        await reader.read(1)
        writer.close()

    async with redis_trouble.listening(answer_too_much) as url:
        redis = await open_connection(url, ignore)
        assert redis.run_id == "abcdefgh"
        more.set()
        async with asyncio.timeout(1):
            while not redis.is_closed:
                await asyncio.sleep(0.01)
        with pytest.raises(RedisAway):
            await redis.call(("GET", "key"))


async def test_no_more_calls_wait_than_memory_allows(
    server: RedisServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_connection, "MOST_UNDER_WAY", 5)
    redis = await server.connect("key")
    proxy.hold_up()
    calls = [redis.call(("ECHO", number)) for number in range(5)]
    assert not redis.is_closed
    calls.append(redis.call(("ECHO", "one too many")))
    assert redis.is_closed, "at once, and not when the others have waited too long"
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [RedisAway] * 6
    assert server.away


async def test_a_connection_lost_while_nobody_used_it_is_no_failure(
    server: RedisServer, proxy: Proxy
) -> None:
    redis = await server.connect("key")
    proxy.cut()
    proxy.mend()
    async with asyncio.timeout(1):
        while not redis.is_closed:
            await asyncio.sleep(0.01)
    assert not server.away
    assert server.connection_of("key") is None
    again = await server.connect("key")
    assert await again.call(("ECHO", "word")) == [b"word"]
    assert not server.away


async def test_those_who_need_a_connection_at_once_share_it_and_one_may_give_up(
    proxy: Proxy,
) -> None:
    server = RedisServer(proxy.url)
    first, *others = [asyncio.create_task(server.connect_anyway("key")) for _ in range(5)]
    await asyncio.sleep(0)
    first.cancel()
    connections = await asyncio.gather(*others)
    assert len({id(connection) for connection in connections}) == 1
    assert proxy.connections == 1
    with pytest.raises(asyncio.CancelledError):
        await first
    await server.close()


async def test_closing_tells_the_calls_under_way(server: RedisServer, proxy: Proxy) -> None:
    redis = await server.connect("key")
    proxy.hold_up()
    call = redis.call(("ECHO", "word"))
    await server.close()
    with pytest.raises(RedisAway):
        await call
    proxy.mend()
    async with asyncio.timeout(1):
        while proxy.pairs:  # Redis sees the end too
            await asyncio.sleep(0.01)


async def test_it_signs_in_and_chooses_the_database(settings: Settings, redis: Redis) -> None:
    await redis.acl_setuser(
        "shop", enabled=True, passwords=["+p@ss/word"], keys=["*"], commands=["+@all"]
    )
    path = urlsplit(settings.redis_url).path
    opened = await open_connection(f"unix://shop:p%40ss%2Fword@{path}?db=3", ignore)
    [whoami, info] = await opened.call(("ACL", "WHOAMI"), ("CLIENT", "INFO"))
    assert whoami == b"shop"
    assert b" db=3 " in info
    opened.close()
    with pytest.raises(RedisAway, match="WRONGPASS"):
        await open_connection(f"unix://shop:wrong@{path}", ignore)
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
        opened: RedisConnection = await open_connection(f"{url}?ssl_ca_certs={certificate}", ignore)
        assert await opened.call(("ECHO", "word")) == [b"word"]
        opened.close()
        with pytest.raises(RedisAway, match="certificate"):
            await open_connection(url, ignore)
