"""The results: a table for people, JSON for programs, and a plot."""

import importlib.metadata
import json
import os
import platform
import statistics
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

FEWEST_PAIRS: Final = 3
_MEASURES: Final = ("rate", "p50", "p99", "cpu")


@dataclass
class Row:
    """One kind of work: the ratio of the service to the control in each clean pair of rounds."""

    name: str
    goal: str
    is_met: Callable[["Row"], bool]
    told: str = ""
    """What was measured, where it is no ratio."""
    rate: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    cpu_of_all: list[tuple[float, float]] = field(default_factory=list)
    """CPU a request of the control and the service in all pairs, those that were dropped too."""
    dropped: int = 0
    detail: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_result(self) -> bool:
        return bool(self.told) or max(len(self.rate), len(self.cpu)) >= FEWEST_PAIRS

    def median(self, measure: str) -> float:
        values: list[float] = getattr(self, measure)
        return statistics.median(values or [0.0])

    def spread(self, measure: str) -> str:
        """Return the median, least and greatest ratio."""
        values = getattr(self, measure)
        if not values:
            return "-"
        return f"{self.median(measure):.2f} ({min(values):.2f} to {max(values):.2f})"

    @property
    def least_cpu(self) -> str:
        """Return the ratio of the least CPU a request: what noise there is only adds to it."""
        if not self.cpu_of_all:
            return "-"
        controls, services = zip(*self.cpu_of_all, strict=True)
        return f"{min(services) / min(controls):.2f}"

    @property
    def verdict(self) -> str:
        if not self.is_result:
            return "no result"
        return "yes" if self.is_met(self) else "no"


def line(row: Row) -> str:
    """Return the row of the table, in Markdown."""
    measured = (
        [row.told, "-", "-", "-"] if row.told else [row.spread(measure) for measure in _MEASURES]
    )
    return f"| {' | '.join([row.name, row.goal, *measured, row.least_cpu, row.verdict])} |"


def table(rows: list[Row]) -> str:
    head = (
        "| work | goal | rate | p50 | p99 | CPU a request | least CPU | met |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *map(line, rows)])


def write(rows: list[Row], folder: Path) -> None:
    """Print the table, and write it, all numbers and the plot to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{table(rows)}\n\n{_machine_in_words()}\n"
    print(f"\n{text}")
    (folder / "table.md").write_text(text)
    document = {
        "machine": _machine(),
        "rows": [
            {
                "work": row.name,
                "goal": row.goal,
                "met": row.verdict,
                "measured": row.told,
                **{measure: getattr(row, measure) for measure in _MEASURES},
                "cpu_of_all": row.cpu_of_all,
                "dropped": row.dropped,
                "detail": row.detail,
            }
            for row in rows
        ],
    }
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    _plot([row for row in rows if row.rate], folder / "rates.svg")


def _plot(rows: list[Row], file: Path) -> None:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("No plot: pip install -r tests/load/requirements.txt")
        return
    figure, axes = plt.subplots(figsize=(8, 1 + 0.35 * len(rows)), layout="constrained")
    names = [row.name for row in reversed(rows)]
    medians = [row.median("rate") for row in reversed(rows)]
    low = [row.median("rate") - min(row.rate) for row in reversed(rows)]
    high = [max(row.rate) - row.median("rate") for row in reversed(rows)]
    axes.barh(names, medians, xerr=[low, high], color="#4477aa", ecolor="#222222", capsize=3)
    axes.axvline(1, color="#222222", linewidth=1)
    axes.set_xlabel("requests/s, as a ratio to aiohttp alone (argon2id alone for registrations)")
    figure.savefig(file)


def _machine() -> dict[str, str]:
    model = next(
        (
            text.partition(":")[2].strip()
            for text in Path("/proc/cpuinfo").read_text().splitlines()
            if text.startswith("model name")
        ),
        "unknown",
    )
    libraries = ("aiohttp", "uvloop", "asyncpg", "hiredis")
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "build": sysconfig.get_config_var("CONFIG_ARGS") or "",
        **{name: importlib.metadata.version(name) for name in libraries},
    }


def _machine_in_words() -> str:
    machine = _machine()
    optimised = "" if "--enable-optimizations" in machine["build"] else " not"
    return (
        f"{machine['cores']} cores ({machine['cpu']}), Linux {machine['kernel']}, Python "
        f"{machine['python']} (built{optimised} --enable-optimizations), aiohttp "
        f"{machine['aiohttp']}, uvloop {machine['uvloop']}, asyncpg {machine['asyncpg']}."
    )
