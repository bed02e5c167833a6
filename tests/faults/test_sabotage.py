"""The words that `make sabotage` exchanges are there: else it would break nothing, late."""

from pathlib import Path

import pytest

from tests.faults.sabotage import SABOTAGES, Sabotage

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.name)
def test_its_words_are_in_the_code(sabotage: Sabotage) -> None:
    for file, words, _ in sabotage.changes:
        assert words in (ROOT / file).read_text(), file
