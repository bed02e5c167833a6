"""What a million accounts take on disk, and what a request costs each server.

    python -m tests.load.growing [--seconds 6]

One worker, 32 clients that wait for their answers, everything on this machine. The cost is CPU
time of the processes of each server, which depends little on what else the machine does.
"""

import argparse
import asyncio
import itertools
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import aiohttp
import psycopg

from service import embedded
from service.postgresql.migrations import apply_migrations
from tests.e2e.processes import COMMAND, LOOPBACK, free_port, started, wait_for
from tests.engines.killable import children_of
from tests.factories import PASSWORD, new_secrets
from tests.load.registering import NO_LIMITS

SIZES: Final = """
    SELECT relname, reltuples::bigint, pg_relation_size(c.oid), pg_indexes_size(c.oid),
           pg_total_relation_size(c.oid)
      FROM pg_class c
     WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND reltuples > 0
     ORDER BY 5 DESC
"""
REWARDED: Final = 100_000
"""Referrals of rewarded.sql."""
OF_THEM: Final = """
    SELECT sum(pg_total_relation_size(c.oid))
      FROM pg_class c
     WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND reltuples >= 1000
"""
TICKS: Final = os.sysconf("SC_CLK_TCK")
CLIENTS: Final = 32
MEGABYTE: Final = 1_000_000
Act = Callable[[aiohttp.ClientSession], Awaitable[int]]


def main(seconds: float) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="growing-")))
        database_url = stack.enter_context(embedded.postgresql(folder))
        redis_url = stack.enter_context(embedded.valkey(folder))
        apply_migrations(database_url)
        with psycopg.connect(database_url, autocommit=True) as connection:
            _run(connection, Path(__file__).with_name("rewarded.sql"))
            size = connection.execute(OF_THEM).fetchone()
            assert size is not None
            print(f"A rewarded referral with all of its own: {size[0] / REWARDED:.0f} bytes.\n")
            connection.execute("TRUNCATE participants, referrals, decisions, events CASCADE")
            _run(connection, Path(__file__).with_suffix(".sql"))
            print("| table | rows | table MB | indexes MB | bytes a row |\n|---|---|---|---|---|")
            for name, rows, table, indexes, total in connection.execute(SIZES):
                print(
                    f"| {name} | {rows} | {table / MEGABYTE:.0f} | {indexes / MEGABYTE:.0f} |"
                    f" {total / rows:.0f} |"
                )
        port = free_port()
        url = f"http://{LOOPBACK}:{port}"
        environment = {
            **new_secrets(),
            **NO_LIMITS,
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "HOST": LOOPBACK,
            "PORT": str(port),
            "WORKERS": "1",
            "LOG_LEVEL": "warning",
        }
        log = stack.enter_context((folder / "service.log").open("w"))
        process = stack.enter_context(started([*COMMAND, "serve"], environment, stderr=log))
        wait_for(f"{url}/health/ready", process)
        pids = {
            "service": process.pid,
            "PostgreSQL": int((folder / "postgresql/postmaster.pid").read_text().split()[0]),
            "Valkey": int((folder / "valkey/valkey.pid").read_text()),
        }
        asyncio.run(_measure(url, pids, seconds))


def _run(connection: "psycopg.Connection[Any]", file: Path) -> None:
    for statement in file.read_text().split(";\n"):
        if statement.strip():
            connection.execute(statement.encode())


async def _measure(url: str, pids: dict[str, int], seconds: float) -> None:
    print(f"\n| request | a second | {' | '.join(f'{name} µs' for name in pids)} |")
    print("|---|---|---|---|---|")
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(f"{url}/api/v1/", connector=connector) as session:
        token = await _signed_in(session)
        numbers = itertools.count(1)

        async def look_up_again(session: aiohttp.ClientSession) -> int:
            return await _get(
                session, f"referral-code/person{5 * random.randint(1, 500)}@example.com"
            )

        async def look_up_first(session: aiohttp.ClientSession) -> int:
            return await _get(session, f"referral-code/person{5 * next(numbers)}@example.com")

        async def list_own(session: aiohttp.ClientSession) -> int:
            return await _get(session, "referrals/me", token)

        async def register(session: aiohttp.ClientSession) -> int:
            body = {"email": f"{uuid4().hex}@example.org", "password": PASSWORD}
            body["referral_code"] = token_code
            async with session.post("auth/register", json=body) as answer:
                return answer.status

        async with session.post(
            "referral-code",
            json={"expires_in_days": 7},
            headers={"Authorization": f"Bearer {token}"},
        ) as made:
            token_code = (await made.json())["code"]
        acts: dict[str, Act] = {
            "look-up, cached": look_up_again,
            "look-up, not cached": look_up_first,
            "registration with a code": register,
            "page of 20 referrals": list_own,
        }
        for name, act in acts.items():
            await _have_done(act, session, 1.0)
            before, begun = {name: _cpu(pid) for name, pid in pids.items()}, time.monotonic()
            done = await _have_done(act, session, seconds)
            took = time.monotonic() - begun
            costs = [(_cpu(pid) - before[server]) / done * 1e6 for server, pid in pids.items()]
            print(f"| {name} | {done / took:.0f} | {' | '.join(f'{cost:.0f}' for cost in costs)} |")


async def _have_done(act: Act, session: aiohttp.ClientSession, seconds: float) -> int:
    """Have the clients act for so long; return how often they did."""
    until = time.monotonic() + seconds

    async def client() -> int:
        for count in itertools.count():
            if time.monotonic() > until:
                return count
            status = await act(session)
            assert status in {200, 201}, status
        raise AssertionError

    return sum(await asyncio.gather(*(client() for _ in range(CLIENTS))))


async def _get(session: aiohttp.ClientSession, path: str, token: str = "") -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with session.get(path, headers=headers) as answer:
        await answer.read()
        return answer.status


async def _signed_in(session: aiohttp.ClientSession) -> str:
    body = {"email": "somebody@example.org", "password": PASSWORD}
    async with session.post("auth/register", json=body) as made:
        assert made.status == 201, await made.text()
    async with session.post("auth/login", json=body) as answer:
        return str((await answer.json())["access_token"])


def _cpu(pid: int) -> float:
    """Return the CPU seconds of a process and its children, dead ones included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = sum(map(int, fields[11:15])) / TICKS
    return own + sum(map(_cpu, children_of(pid)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=6)
    main(parser.parse_args().seconds)
