"""`python -m tests.faults`: every fault in turn, and a table of what came of it."""

import argparse
import asyncio
import json
import secrets
import sys
from pathlib import Path
from typing import Any, Final

from tests.faults import faults
from tests.faults.run import Scenario, Skipped, Verdict, run
from tests.faults.sabotage import SABOTAGES, is_noticed

SCENARIOS: Final = [
    Scenario(faults.nothing),
    Scenario(faults.slow_ways, ways=True),
    Scenario(faults.workers_killed, ways=True),
    Scenario(faults.workers_suspended),
    Scenario(faults.valkey_killed),
    Scenario(faults.valkey_suspended),
    Scenario(faults.valkey_with_old_data),
    Scenario(faults.way_to_valkey_broken, ways=True),
    Scenario(faults.postgresql_killed),
    Scenario(faults.postgresql_suspended),
    Scenario(faults.commits_unanswered, ways=True),
    Scenario(faults.way_to_postgresql_broken, ways=True),
    Scenario(faults.backends_terminated),
    Scenario(faults.pool_exhausted, environment={"DATABASE_POOL_SIZE": "3"}),
    Scenario(faults.disk_full, small_disk=True),
    Scenario(faults.clocks_stepped, movable_clocks=True),
    Scenario(faults.one_after_the_other),
]
FAULTS: Final = [scenario.fault.__name__ for scenario in SCENARIOS]
HEAD: Final = (
    "fault",
    "requests",
    "new sign-ups",
    "new events",
    "errors",
    "longest s without a look-up",
    "… a write",
    "… an event",
    "violations",
)
WRITES: Final = ("create", "replace", "delete", "register")
SAVED: Final = Path(".cache")
SHOWN: Final = 5
LONGEST: Final = 160
"""Characters of a violation that a sabotage's row shows."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each fault strikes")
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        metavar="NAME",
        help="faults, with _ between their words, or sabotages",
    )
    parser.add_argument(
        "--sabotage",
        action="store_true",
        help="break the service on purpose; every break has to be noticed",
    )
    parser.add_argument(
        "--load",
        choices=["all", "conversions"],
        default="all",
        help="conversions: little else, for long runs",
    )
    parsed = parser.parse_args()
    known = [each.name for each in SABOTAGES] if parsed.sabotage else FAULTS
    if unknown := set(parsed.only).difference(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    if parsed.sabotage:
        return _sabotage(parsed.seed, parsed.seconds, parsed.only)
    print(
        f"seed {parsed.seed}: make faults SEED={parsed.seed} strikes in the same order", flush=True
    )
    rows = []
    for scenario in SCENARIOS:
        if not parsed.only or scenario.fault.__name__ in parsed.only:
            rows.append(_row(scenario, parsed))
            print(_markdown([rows[-1]]), flush=True)
    table = _markdown([dict(zip(HEAD, HEAD, strict=True)), dict.fromkeys(HEAD, "---"), *rows])
    SAVED.mkdir(exist_ok=True)
    (SAVED / "faults.md").write_text(f"seed {parsed.seed}\n\n{table}\n")
    (SAVED / "faults.json").write_text(json.dumps({"seed": parsed.seed, "runs": rows}, indent=1))
    print(f"\n{table}")
    return any(row["violations"] not in {0, "skipped"} for row in rows)


def _sabotage(seed: int, seconds: float, only: list[str]) -> int:
    print(f"seed {seed}")
    rows = []
    for sabotage in SABOTAGES:
        if only and sabotage.name not in only:
            continue
        violation = is_noticed(sabotage, seed, seconds)
        rows.append((sabotage.name, sabotage.scenario.name, violation and violation[:LONGEST]))
        print(f"| {' | '.join(map(str, rows[-1]))} |", flush=True)
    return any(violation is None for *_, violation in rows)


def _row(scenario: Scenario, parsed: argparse.Namespace) -> dict[str, Any]:
    only_conversions = parsed.load == "conversions"
    try:
        verdict = asyncio.run(
            run(scenario, parsed.seed, parsed.seconds, only_conversions=only_conversions)
        )
    except Skipped as skipped:
        print(f"{scenario.name}: skipped, {skipped}")
        return {**dict.fromkeys(HEAD, ""), "fault": scenario.name, "violations": "skipped"}
    for violation in verdict.violations[:SHOWN]:
        print(f"  VIOLATION {violation}")
    return dict(zip(HEAD, (scenario.name, *_figures(verdict)), strict=True))


def _figures(verdict: Verdict) -> tuple[Any, ...]:
    tally = verdict.tally
    return (
        tally.requests,
        tally.new["sign_up"],
        tally.new["report"],
        ", ".join(f"{kind} {count}" for kind, count in sorted(tally.errors.items())),
        round(tally.longest_gap(verdict.begun, verdict.ended, "look_up"), 1),
        round(tally.longest_gap(verdict.begun, verdict.ended, *WRITES), 1),
        round(tally.longest_gap(verdict.begun, verdict.ended, "report"), 1),
        len(verdict.violations),
    )


def _markdown(rows: list[dict[str, Any]]) -> str:
    return "\n".join(f"| {' | '.join(str(value) for value in row.values())} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
