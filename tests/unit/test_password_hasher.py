"""Hashing passwords: the cost that was set, bounded, and the same for everybody."""

import asyncio
import re
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from statistics import median
from time import monotonic, thread_time
from typing import Any

import argon2.low_level
import pytest

from service.domain.errors import HashingQueueFull
from service.security.password_hashing import Argon2, PasswordHasher

CHEAP = Argon2(memory_kib=64, passes=1, lanes=1)


@asynccontextmanager
async def hashing(
    cost: Argon2 = CHEAP, threads: int = 1, queue: int = 10
) -> AsyncIterator[PasswordHasher]:
    hasher = PasswordHasher(cost, threads, queue)
    try:
        hasher.warm_up()
        for _ in range(2):  # the first one waits for the dummy hash
            await hasher.verify("", None)
        yield hasher
    finally:
        hasher.close()


@pytest.fixture
async def hasher() -> AsyncIterator[PasswordHasher]:
    async with hashing() as hasher:
        yield hasher


@dataclass
class Spy:
    """Sees every verification on its way to argon2, and can hold it up."""

    hashes: list[bytes] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    begun: threading.Event = field(default_factory=threading.Event)
    goes_on: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    spy = Spy()
    spy.goes_on.set()
    verify = argon2.low_level.verify_secret

    def seen(password_hash: bytes, *arguments: Any) -> bool:
        spy.hashes.append(password_hash)
        spy.threads.add(threading.current_thread().name)
        spy.begun.set()
        assert spy.goes_on.wait(5)
        return verify(password_hash, *arguments)

    monkeypatch.setattr(argon2.low_level, "verify_secret", seen)
    yield spy
    spy.goes_on.set()


@pytest.mark.parametrize(
    ("cost", "parameters"),
    [
        pytest.param(CHEAP, "m=64,t=1,p=1", id="as these tests have it"),
        pytest.param(Argon2(memory_kib=19_456, passes=2, lanes=1), "m=19456,t=2,p=1", id="default"),
        pytest.param(Argon2(memory_kib=128, passes=3, lanes=4), "m=128,t=3,p=4", id="four lanes"),
    ],
)
async def test_a_hash_is_argon2id_of_the_cost_that_was_set(cost: Argon2, parameters: str) -> None:
    async with hashing(cost) as hasher:
        password_hash = await hasher.hash("a password")
    assert re.fullmatch(rf"\$argon2id\$v=19\${parameters}\$[\w+/]+\$[\w+/]{{43}}", password_hash)


async def test_two_hashes_of_one_password_differ(hasher: PasswordHasher) -> None:
    assert await hasher.hash("a password") != await hasher.hash("a password")


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("", id="empty"),
        pytest.param("a password", id="words"),
        pytest.param("nul\0within", id="NUL"),
        pytest.param("\U0001f600" * 128, id="128 emoji"),
        pytest.param(" spaces around ", id="spaces around, which count"),
        pytest.param("e\u0301" * 64, id="combining accents"),
    ],
)
async def test_a_password_is_right_to_the_last_character(
    hasher: PasswordHasher, password: str
) -> None:
    password_hash = await hasher.hash(password)
    assert await hasher.verify(password, password_hash) == (True, False)
    for wrong in (password + " ", password + "\0", password[:-1] + "x"):
        assert await hasher.verify(wrong, password_hash) == (False, False)


@pytest.mark.parametrize("length", [129, 4096, 4097, 5000, 1_000_000])
@pytest.mark.parametrize("character", ["x", "\0", "\U0001f600"])
async def test_a_password_that_nobody_has_is_wrong_at_any_length(
    hasher: PasswordHasher, spy: Spy, character: str, length: int
) -> None:
    password_hash = await hasher.hash("a password")
    assert await hasher.verify(character * length, password_hash) == (False, False)
    assert len(spy.hashes) == 1


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(Argon2(memory_kib=128, passes=1, lanes=1), id="dearer"),
        pytest.param(Argon2(memory_kib=32, passes=1, lanes=1), id="cheaper"),
        pytest.param(Argon2(memory_kib=64, passes=2, lanes=1), id="more passes"),
        pytest.param(Argon2(memory_kib=64, passes=1, lanes=2), id="more lanes"),
    ],
)
async def test_a_hash_of_another_cost_is_to_be_made_anew_once_its_password_is_known(
    hasher: PasswordHasher, changed: Argon2
) -> None:
    old = await hasher.hash("a password")
    async with hashing(changed) as later:
        assert await later.verify("another password", old) == (False, False)
        assert await later.verify("a password", old) == (True, True)
        assert await later.verify("a password", await later.hash("a password")) == (True, False)


OLD = Argon2(memory_kib=8192, passes=1, lanes=1)


@pytest.mark.parametrize(
    ("now", "clock"),
    [
        pytest.param(Argon2(memory_kib=16_384, passes=1, lanes=1), thread_time, id="memory raised"),
        pytest.param(Argon2(memory_kib=8192, passes=3, lanes=1), thread_time, id="passes raised"),
        pytest.param(Argon2(memory_kib=40_960, passes=1, lanes=1), thread_time, id="to 40 MiB"),
        pytest.param(Argon2(memory_kib=32_768, passes=2, lanes=2), monotonic, id="lanes raised"),
        pytest.param(Argon2(memory_kib=2048, passes=1, lanes=1), thread_time, id="memory lowered"),
    ],
)
async def test_after_the_cost_was_changed_nobody_has_an_account_by_the_time_it_takes(
    now: Argon2, clock: Callable[[], float]
) -> None:
    """Otherwise an unknown email address takes as long as none of an account from before."""
    async with hashing(OLD) as before:
        old = await before.hash("a password")
    async with hashing(now) as hasher:
        new = await hasher.hash("a password")
        took = defaultdict[str, list[float]](list)
        for _ in range(25):  # in turns, so that what else the machine does meets all of them
            for name, password, password_hash in [
                ("unknown", "another password", None),
                ("before", "another password", old),
                ("right", "a password", old),
                ("since", "another password", new),
            ]:
                began_at = clock()
                hasher._verify(password, password_hash)
                took[name].append(clock() - began_at)
    # The first ones measure what the two costs take.
    usual = {name: median(seconds[5:]) for name, seconds in took.items()}
    for name in ("before", "right", "since"):
        # Time by the clock depends on what else the machine does, time of the core does not.
        tolerance = 1.33 if clock is thread_time else 2.0
        assert 1 / tolerance < usual[name] / usual["unknown"] < tolerance, usual


async def test_without_a_hash_one_is_computed_all_the_same(
    hasher: PasswordHasher, spy: Spy
) -> None:
    """An unknown e-mail costs what a wrong password does: one hash, of the same parameters."""
    password_hash = await hasher.hash("a password")
    assert await hasher.verify("another password", password_hash) == (False, False)
    assert await hasher.verify("another password", None) == (False, False)
    known, unknown = (seen.decode().split("$")[1:4] for seen in spy.hashes)
    assert known == unknown == ["argon2id", "v=19", "m=64,t=1,p=1"]


async def test_what_is_sent_in_another_form_costs_two_hashes_whoever_has_it(
    hasher: PasswordHasher, spy: Spy
) -> None:
    """Otherwise the time would tell whether there is an account, or whether the first was right."""
    sent = "u\u0308ber\u00a0allem"
    for password_hash in (
        None,
        await hasher.hash("another password"),
        await hasher.hash(sent),
        hasher._context.hash(sent),
    ):
        spy.hashes.clear()
        await hasher.verify(sent, password_hash)
        assert len(spy.hashes) == 2
        spy.hashes.clear()
        await hasher.verify("in one form", password_hash)
        assert len(spy.hashes) == 1


async def test_the_password_of_the_dummy_opens_nothing(hasher: PasswordHasher) -> None:
    assert await hasher.verify("too many secrets", None) == (False, False)


async def test_hashes_run_beside_the_event_loop(hasher: PasswordHasher, spy: Spy) -> None:
    spy.begun.clear()
    spy.goes_on.clear()
    hash_of_nobody = asyncio.create_task(hasher.verify("a password", None))
    assert await asyncio.to_thread(spy.begun.wait, 5)  # the loop turns while the hash is held up
    assert not hash_of_nobody.done()
    spy.goes_on.set()
    await hash_of_nobody
    assert all(name.startswith("hashing") for name in spy.threads)


async def test_a_full_queue_refuses_at_once_and_takes_again_when_it_is_not(spy: Spy) -> None:
    async with hashing(threads=1, queue=3) as hasher:
        spy.hashes.clear()
        spy.goes_on.clear()
        waiting = [asyncio.create_task(hasher.verify("a password", None)) for _ in range(3)]
        await asyncio.sleep(0)
        assert hasher.pending == 3
        with pytest.raises(HashingQueueFull) as caught:
            await hasher.hash("a password")
        assert caught.value.wait
        assert len(spy.hashes) <= 1
        spy.goes_on.set()
        assert await asyncio.gather(*waiting) == 3 * [(False, False)]
        assert hasher.pending == 0
        await hasher.hash("a password")


async def test_who_waits_no_longer_gives_the_place_back(spy: Spy) -> None:
    async with hashing(threads=1, queue=2) as hasher:
        spy.goes_on.clear()
        waiting = [asyncio.create_task(hasher.verify("a password", None)) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.wait(waiting[1:])
        assert hasher.pending == 1
        spy.goes_on.set()
        await waiting[0]


async def test_a_hash_that_fails_gives_the_place_back(hasher: PasswordHasher) -> None:
    with pytest.raises(UnicodeEncodeError):
        await hasher.hash("\ud800")  # the API refuses such text before
    assert hasher.pending == 0


def test_passlib_is_the_maintained_one_alone() -> None:
    """Both distributions own the folder `passlib`, and the old one breaks with new backends."""
    assert distribution("libpass")
    with pytest.raises(PackageNotFoundError):
        distribution("passlib")


async def test_a_queue_in_which_hashes_wait_for_long_is_full_before_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What comes at once may wait; when it has, what would wait for as long again is refused."""
    monkeypatch.setattr("service.security.password_hashing.BURST_SECONDS", 0.02)
    monkeypatch.setattr("service.security.password_hashing.LONGEST_WAIT_SECONDS", 0.04)
    async with hashing(Argon2(memory_kib=19_456, passes=2, lanes=1), queue=1000) as hasher:
        burst = [asyncio.create_task(hasher.hash("a password")) for _ in range(10)]
        await asyncio.sleep(0)
        await burst[4]
        with pytest.raises(HashingQueueFull):
            await hasher.hash("a password")
        await asyncio.gather(*burst)
        again = [asyncio.create_task(hasher.hash("a password")) for _ in range(10)]
        await asyncio.gather(*again)  # what comes at once after a pause may wait too


async def test_hashes_that_wait_for_the_core_are_not_taken_for_long_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They have the lowest priority: whoever is refused asks again, which takes more of the core,
    and if that were a reason to refuse, nobody would be let in any more."""
    monkeypatch.setattr("service.security.password_hashing.BURST_SECONDS", 0.02)
    monkeypatch.setattr("service.security.password_hashing.LONGEST_WAIT_SECONDS", 0.04)
    async with hashing(Argon2(memory_kib=64, passes=1, lanes=1), queue=1000) as hasher:
        starved = [asyncio.create_task(hasher._run(lambda: time.sleep(0.03))) for _ in range(5)]
        await asyncio.sleep(0)
        await starved[2]
        await hasher.hash("a password")
        await asyncio.gather(*starved)
