"""Rows wanted at once are read at once, and nobody gets an old one."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from service.domain.errors import DatabaseUnavailable
from service.postgresql.batch_loader import FEW_KEYS, MANY_KEYS, MOST_AT_ONCE, BatchLoader


class Source:
    """Stands in for a table: notes the statements, and can hold them up."""

    def __init__(self) -> None:
        self.rows = {"a": 1, "b": 2}
        self.statements: list[list[str]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def read(self, keys: Sequence[str]) -> Mapping[str, int]:
        self.statements.append(list(keys))
        found = {key: self.rows[key] for key in keys if key in self.rows}
        await self.open.wait()  # what was read stays as it was
        return found


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def batches(source: Source) -> BatchLoader[str, int]:
    return BatchLoader(source.read)


async def test_all_that_is_wanted_in_one_turn_is_one_statement(
    batches: BatchLoader[str, int], source: Source
) -> None:
    found = await asyncio.gather(*map(batches.find, ["a", "b", "c", "a", "a"]))
    assert found == [1, 2, None, 1, 1]
    assert source.statements == [["a", "b", "c"]]


async def test_what_turns_in_a_row_add_is_one_statement(
    batches: BatchLoader[str, int], source: Source
) -> None:
    found = []
    for turn in range(MANY_KEYS // (FEW_KEYS + 1) - 1):
        keys = [f"{turn} {number}" for number in range(FEW_KEYS + 1)]
        found += [asyncio.create_task(batches.find(key)) for key in keys]
        await asyncio.sleep(0)
    assert source.statements == []
    await asyncio.gather(*found)
    assert len(source.statements) == 1


async def test_keys_do_not_wait_for_ever(batches: BatchLoader[str, int], source: Source) -> None:
    found = []
    for number in range(2 * MANY_KEYS):
        found.append(asyncio.create_task(batches.find(str(number))))
        await asyncio.sleep(0)
    assert source.statements
    await asyncio.gather(*found)


async def test_under_load_there_are_few_statements_and_none_is_forgotten(
    batches: BatchLoader[str, int], source: Source
) -> None:
    source.open.clear()
    early = []
    for _ in range(10):
        early.append(asyncio.create_task(batches.find("a")))
        await asyncio.sleep(0.01)
    assert len(source.statements) == MOST_AT_ONCE
    source.open.set()
    assert await asyncio.gather(*early) == [1] * 10
    assert len(source.statements) == MOST_AT_ONCE + 1


async def test_a_question_is_not_answered_with_what_was_read_before_it_was_asked(
    batches: BatchLoader[str, int], source: Source
) -> None:
    source.open.clear()
    early = asyncio.create_task(batches.find("a"))
    await asyncio.sleep(0.05)
    assert source.statements == [["a"]]
    source.rows["a"] = 7  # written, and answered
    late = asyncio.create_task(batches.find("a"))
    await asyncio.sleep(0.05)
    source.open.set()
    assert await late == 7
    assert await early == 1


async def test_a_caller_that_gives_up_does_not_take_the_row_from_the_others(
    batches: BatchLoader[str, int], source: Source
) -> None:
    source.open.clear()
    first, *others = [asyncio.create_task(batches.find("a")) for _ in range(3)]
    await asyncio.sleep(0.05)
    first.cancel()
    source.open.set()
    assert await asyncio.gather(*others) == [1, 1]
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await batches.find("b") == 2


async def test_no_statement_has_more_keys_than_it_may(source: Source) -> None:
    batches = BatchLoader(source.read, most=2)
    found = await asyncio.gather(*map(batches.find, ["a", "b", "c", "d", "a", "e"]))
    assert found == [1, 2, None, None, 1, None]
    assert source.statements == [["a", "b"], ["c", "d"], ["e"]]


async def test_all_callers_get_a_failure_and_the_next_question_is_asked_again(
    source: Source,
) -> None:
    async def fail_once(keys: Sequence[str]) -> Mapping[str, int]:
        if not source.statements:
            source.statements.append([])
            raise DatabaseUnavailable
        return await source.read(keys)

    batches = BatchLoader(fail_once)
    answers = await asyncio.gather(*map(batches.find, ["a", "b"]), return_exceptions=True)
    assert [type(answer) for answer in answers] == [DatabaseUnavailable] * 2
    assert await batches.find("a") == 1
