"""What operators do with programmes on the command line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from service.cli.parser import main

RULES: dict[str, Any] = {
    "qualify": {"on": "purchase", "minimum": {"amount": 2000, "unit": "EUR"}},
    "rewards": [
        {"name": "welcome", "to": "referee", "on": "signup", "unit": "points", "amount": 1}
    ],
}


class Terminal:
    """Where an operator types commands, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self._capsys = capsys
        self.file = folder / "rules.json"

    def does(self, *arguments: str) -> list[str]:
        """Run a command that succeeds; return the lines that it prints."""
        assert main(["programmes", *arguments]) == 0, self._capsys.readouterr().err
        return self._capsys.readouterr().out.splitlines()

    def fails(self, *arguments: str) -> str:
        """Run a command that is refused; return why."""
        assert main(["programmes", *arguments]) == 1
        told = self._capsys.readouterr()
        assert told.out == ""
        return told.err


@pytest.fixture
def terminal(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Iterator[Terminal]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    yield Terminal(capsys, tmp_path)
    with psycopg.connect(environment["DATABASE_URL"]) as connection:
        connection.execute(
            """
            WITH made AS (
                DELETE FROM programme_versions v
                 USING programmes p
                 WHERE p.programme_id = v.programme_id
                   AND p.key = 'spring'
            )
            DELETE FROM programmes
             WHERE key = 'spring'
            """
        )


def test_a_programme_is_made_changed_and_ended(terminal: Terminal) -> None:
    file = str(terminal.file)
    terminal.file.write_text(json.dumps(RULES))
    first, *rules = terminal.does("create", "spring", "Spring 2026", file)
    assert first == "spring\trules 1\trunning\tSpring 2026"
    assert json.loads("\n".join(rules)) == RULES
    assert "has this key" in terminal.fails("create", "spring", "Another", file)

    changed = {**RULES, "rewards": []}
    terminal.file.write_text(json.dumps(changed))
    first, *rules = terminal.does("rules", "spring", file)
    assert first == "spring\trules 2\trunning\tSpring 2026"
    assert json.loads("\n".join(rules)) == changed
    assert terminal.does("show", "spring") == [first, *rules]

    for command, state in (("pause", "paused"), ("resume", "running"), ("end", "ended 20")):
        assert terminal.does(command, "spring")[0].split("\t")[2].startswith(state)
    listed = [line.split("\t") for line in terminal.does("list")]
    assert {line[0] for line in listed} >= {"default", "spring"}
    assert terminal.does("reopen", "spring")[0].split("\t")[2] == "running"
    assert terminal.fails("show", "autumn") == "There is no such programme.\n"


def test_rules_are_checked_as_by_the_api(terminal: Terminal) -> None:
    file = str(terminal.file)
    wrong = {"qualify": {"on": "purchase", "minimum": {"amount": -1, "unit": "eur"}}, "rule": 1}
    terminal.file.write_text(json.dumps(wrong))
    said = terminal.fails("rules", "default", file)
    assert [line.partition(":")[0] for line in sorted(said.splitlines())] == [
        "/qualify/minimum/amount",
        "/qualify/minimum/unit",
        "/rule",
    ]
    assert "/key" in terminal.fails("create", "NO KEY", "A name", file)
    terminal.file.write_bytes(b"\xff")
    assert "is not JSON in UTF-8" in terminal.fails("rules", "default", file)
    terminal.file.unlink()
    assert "cannot be read" in terminal.fails("rules", "default", file)
