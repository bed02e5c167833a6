"""The texts of the log that operators look up at night are those of the code."""

import re
from pathlib import Path

SERVICE = Path(__file__).parents[2] / "service"


def test_each_text_of_the_log_that_the_readme_explains_is_in_the_code() -> None:
    code = "\n".join(path.read_text() for path in SERVICE.rglob("*.py"))
    night = (SERVICE / "server" / "README.md").read_text().partition("## At night")[2]
    seen = [line.split(" | ")[0] for line in night.splitlines() if line.startswith("| ")]
    quoted = [text for cell in seen for text in re.findall("`([^`]+)`", cell)]
    parts = [part.strip() for text in quoted for part in text.split("…")]
    assert "job parked" in parts
    assert [part for part in parts if part not in code] == []
