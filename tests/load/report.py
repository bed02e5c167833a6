"""The results: a table for people, JSON for programs, and a plot."""

import importlib.metadata
import json
import os
import platform
import statistics
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

CONTROL: Final = "control"
OLD: Final = "old"
NEW: Final = "new"
"""The names of the servers: OLD is there with --against."""
FEWEST_PAIRS: Final = 3
_MEASURES: Final = ("rate", "p50", "p99", "CPU")
_OLD_AND_NEW: Final = (*_MEASURES, "memory", "start")
Measures = Mapping[str, float]


@dataclass
class Row:
    """One kind of work, measured in pairs of rounds."""

    name: str
    goal: str
    is_met: Callable[["Row"], bool]
    told: str = ""
    """What was measured, if it is not a ratio to the control."""
    pairs: list[Mapping[str, Measures]] = field(default_factory=list)
    """What each server came to, by its name, in clean pairs."""
    dropped: list[Mapping[str, Measures]] = field(default_factory=list)
    """The same of pairs beside which the machine did something else."""

    def add(self, measured: Mapping[str, Measures], *, clean: bool = True) -> None:
        (self.pairs if clean else self.dropped).append(measured)

    @property
    def clean(self) -> int:
        return len(self.pairs)

    @property
    def is_result(self) -> bool:
        return bool(self.told) or self.clean >= FEWEST_PAIRS

    def ratios(self, measure: str, to: str = CONTROL) -> list[float]:
        """Return the ratio of the service to another server in each clean pair."""
        return [
            pair[NEW][measure] / pair[to][measure]
            for pair in self.pairs
            if measure in pair[NEW] and measure in pair.get(to, ())
        ]

    def median(self, measure: str) -> float:
        return statistics.median(self.ratios(measure) or [0.0])

    def spread(self, measure: str, to: str = CONTROL) -> str:
        """Return the median, least and greatest ratio."""
        values = self.ratios(measure, to)
        if not values:
            return "-"
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    def least_cpu(self, to: str = CONTROL) -> str:
        """Return the ratio of the least CPU a request: noise only ever adds to it."""
        own, other = (
            [pair[name]["CPU"] for pair in [*self.pairs, *self.dropped] if "CPU" in pair[name]]
            for name in (NEW, to)
        )
        return f"{min(own) / min(other):.2f}" if own and other else "-"

    @property
    def new_to_old(self) -> str:
        """Return every ratio to the other checkout's service."""
        if not any(OLD in pair for pair in self.pairs):
            return "-"
        spreads = [
            f"{measure} {self.spread(measure, OLD)}"
            for measure in _OLD_AND_NEW
            if self.ratios(measure, OLD)
        ]
        if self.ratios("CPU", OLD):
            spreads.append(f"least CPU {self.least_cpu(OLD)}")
        return ", ".join(spreads)

    @property
    def verdict(self) -> str:
        if not self.is_result:
            return "no result"
        return "yes" if self.is_met(self) else "no"


def line(row: Row) -> str:
    """Return the row of the table, in Markdown."""
    if row.told:
        measured = [row.told, *["-"] * len(_MEASURES)]
    else:
        measured = [*(row.spread(measure) for measure in _MEASURES), row.least_cpu()]
    return f"| {' | '.join([row.name, row.goal, *measured, row.verdict, row.new_to_old])} |"


def table(rows: list[Row]) -> str:
    head = (
        "| work | goal | rate | p50 | p99 | CPU a request | least CPU | met | new to old |\n"
        "|---|---|---|---|---|---|---|---|---|"
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
                "pairs": row.pairs,
                "dropped": row.dropped,
            }
            for row in rows
        ],
    }
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    _plot([row for row in rows if row.ratios("rate")], folder / "rates.svg")


def _plot(rows: list[Row], file: Path) -> None:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("No plot: pip install -r tests/load/requirements.txt")
        return
    figure, axes = plt.subplots(figsize=(8, 1 + 0.35 * len(rows)), layout="constrained")
    names = [row.name for row in reversed(rows)]
    medians = [row.median("rate") for row in reversed(rows)]
    low = [row.median("rate") - min(row.ratios("rate")) for row in reversed(rows)]
    high = [max(row.ratios("rate")) - row.median("rate") for row in reversed(rows)]
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
