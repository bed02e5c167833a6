"""The README's stories, run line by line."""

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from service.settings.settings import Settings
from tests.factories import running

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "http://localhost:8080"
ONE_ANSWER_A_LINE = 'curl() { command curl "$@"; echo; }'
needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="the README uses curl")


def lines_below(heading: str) -> str:
    """Return the first shell block below a heading."""
    _, below = README.read_text().split(f"## {heading}\n")
    found = re.search("```sh\n(.*?)```", below, re.DOTALL)
    assert found is not None
    return found[1]


async def run(script: str, environment: dict[str, str]) -> list[str]:
    """Run a script; return the lines that it prints."""
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-eu",
        "-c",
        script,
        stdout=asyncio.subprocess.PIPE,
        cwd=README.parent,
        env={"PATH": os.environ["PATH"], **environment},
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode().splitlines()


@needs_curl
@pytest.mark.usefixtures("database", "redis")
async def test_the_stories_of_the_readme_end_well(
    settings: Settings, environment: dict[str, str]
) -> None:
    async with running(settings) as api:
        host, port = api.address
        story, company = (
            lines_below("The story in curl"),
            lines_below("A company with its own accounts"),
        )
        script = f"{ONE_ANSWER_A_LINE}\n{story}\n{company}"
        script = script.replace(ADDRESS, f"http://{host}:{port}")
        script = script.replace(".venv/bin/python", sys.executable)
        printed = await run(script, environment)
    answers = [json.loads(line) for line in printed if line.startswith("{")]
    assert not [answer for answer in answers if "status" in answer], printed
    lists = [answer["items"] for answer in answers if "items" in answer]
    assert [one["email"] for one in lists[0]] == ["bert@example.com"]
    assert [(one["unit"], one["pending"]) for one in lists[1]] == [("EUR", 500)]
    outcomes = [answer["outcome"] for answer in answers if "outcome" in answer]
    assert outcomes == ["qualified", "reversed"]
    assert [one["code"] for one in lists[2]] == ["SHOP-ANNA"]
