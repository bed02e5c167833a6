"""What processes cost: CPU, memory, and how busy the machine is otherwise."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SERVER_CORE: Final = min(os.sched_getaffinity(0))
OTHER_CORES: Final = os.sched_getaffinity(0) - {SERVER_CORE} or {SERVER_CORE}
"""Where the load, PostgreSQL and Redis run."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process; 0 if it is gone."""
    total = 0
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return total / 1e9


def pinned_to(cores: set[int], command: list[str]) -> list[str]:
    """Return the command that runs the other on these cores alone."""
    return ["taskset", "--cpu-list", ",".join(map(str, sorted(cores))), *command]


def tree(pid: int) -> list[int]:
    """Return the process and its descendants."""
    found = [pid]
    for parent in found:
        try:
            for thread in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def cpu_of(pids: Iterable[int]) -> float:
    return sum(map(cpu_seconds, pids))


def busy_seconds() -> float:
    """Return what all processes on all cores have used since the machine started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def pss_mib(pids: Iterable[int]) -> float:
    """Return the memory of the processes (PSS): a shared page is divided among them."""
    kib = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        kib += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024
