"""Whether the time of an answer gives away that an email address has an account.

    python -m tests.load.timing [--requests 300] [--seed 1]

A service in mode `required`, with hashes at their usual cost and a mail server, is asked one
request after the other, about known and unknown addresses in random order. What it prints for each
call is the AUC: how often a request about a known address takes longer than one about an unknown
one. 0.5 gives nothing away; 0.47 to 0.53 is the goal, and about what chance makes of 300 and 300
(one standard deviation is 0.024). It needs a quiet moment.
"""

import argparse
import asyncio
import random
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final
from uuid import uuid4

import aiohttp

from service import embedded
from tests.e2e.processes import service_process
from tests.factories import PASSWORD, new_secrets
from tests.load.registering import NO_LIMITS
from tests.stand_ins.smtp import SmtpServer

ACCOUNTS: Final = 30
CALLS: Final = {
    "sign-in": ("/auth/login", {"password": "a wrong password"}),
    "forgot": ("/auth/password/forgot", {}),
    "resend": ("/auth/email/resend", {}),
    "register": ("/auth/register", {"password": PASSWORD}),
}


def auc(known: Sequence[float], unknown: Sequence[float]) -> float:
    """Return how often one of `known` is larger than one of `unknown`; equal ones count half."""
    ordered = sorted(unknown)
    ranks = [bisect_left(ordered, one) + bisect_right(ordered, one) for one in known]
    return sum(ranks) / 2 / len(known) / len(unknown)


async def make_accounts(url: str, smtp: SmtpServer) -> list[str]:
    """Register people, and confirm their addresses with the tokens in their mails."""
    emails = [f"known-{uuid4().hex}@example.com" for _ in range(ACCOUNTS)]
    async with aiohttp.ClientSession(url) as session:

        async def post(path: str, body: dict[str, str], status: int) -> None:
            async with session.post(f"/api/v1{path}", json=body) as answer:
                assert answer.status == status, await answer.text()

        for email in emails:
            await post("/auth/register", {"email": email, "password": PASSWORD}, 202)
        for mail in await smtp.wait_for(ACCOUNTS, timeout=60):
            token = mail.text.partition("confirm:")[2].split()[0]
            await post("/auth/email/confirm", {"token": token}, 204)
        for email in emails:
            await post("/auth/login", {"email": email, "password": PASSWORD}, 200)
    return emails


async def measure(url: str, known: Sequence[str], requests: int) -> dict[str, float]:
    """Return the AUC of each call."""
    asked = [(call, is_known) for call in CALLS for is_known in (True, False)] * requests
    random.shuffle(asked)
    took: dict[tuple[str, bool], list[float]] = {each: [] for each in asked}
    async with aiohttp.ClientSession(url) as session:
        for call, is_known in asked:
            email = random.choice(known) if is_known else f"known-{uuid4().hex}@example.com"
            path, members = CALLS[call]
            body = {"email": email, **members}
            began = time.perf_counter()
            async with session.post(f"/api/v1{path}", json=body) as answer:
                await answer.read()
            took[call, is_known].append(time.perf_counter() - began)
            assert answer.status == (401 if call == "sign-in" else 202)
    return {call: auc(took[call, True], took[call, False]) for call in CALLS}


async def run(requests: int) -> None:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="timing-")))
        smtp = await stack.enter_async_context(SmtpServer().serving())
        environment = {
            **new_secrets(),
            **NO_LIMITS,
            "DATABASE_URL": stack.enter_context(embedded.postgresql(folder)),
            "REDIS_URL": stack.enter_context(embedded.valkey(folder)),
            "SMTP_URL": smtp.url,
            "MAIL_FROM": "referrals@example.com",
            "EMAIL_CONFIRMATION": "required",
        }
        log = stack.enter_context((folder / "log").open("w"))
        service = stack.enter_context(service_process(environment, log))
        known = await make_accounts(service.url, smtp)
        await measure(service.url, known, 10)  # warm up
        for call, value in (await measure(service.url, known, requests)).items():
            print(f"{call:10} {value:.3f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=300, help="about known addresses, a call")
    parser.add_argument("--seed", type=int, default=1)
    parsed = parser.parse_args()
    random.seed(parsed.seed)
    asyncio.run(run(parsed.requests))
