"""`python -m tests.faults.backups`: a backup, a disaster, and a restore to a point in time.

pg_basebackup and an archive of the log, as operators do it. Then the service runs on what was
restored, and what it makes of tokens, codes, passwords and jobs is compared with what README.md
promises operators.
"""

import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis

from service import embedded
from service.postgresql.migrations import apply_migrations
from service.settings.settings import Settings, read_settings
from tests.e2e.processes import LOOPBACK, free_port
from tests.engines.machines import Machine
from tests.engines.standbys import PostgreSQL, folder_for_servers
from tests.factories import PASSWORD, Api, Person, new_secrets, running
from tests.stand_ins.smtp import SmtpServer

NEW_PASSWORD: Final = "two ships in the harbour"
ARCHIVED_SECONDS: Final = 20


class Report:
    """What was seen, beside what was expected."""

    def __init__(self) -> None:
        self.wrong = 0

    def note(self, what: str, seen: Any, expected: Any) -> None:
        self.wrong += seen != expected
        verdict = "" if seen == expected else f"  EXPECTED {expected}"
        print(f"  {what}: {seen}{verdict}", flush=True)


def main() -> int:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="backups-")))
        redis_url = stack.enter_context(embedded.valkey(folder))
        servers = folder_for_servers(folder / "servers")
        archive = folder_for_servers(servers / "archive")
        here = Machine(LOOPBACK)
        server = PostgreSQL("original", here, servers, free_port())
        restored = PostgreSQL("restored", here, servers, free_port())
        stack.callback(restored.kill)
        stack.callback(server.kill)
        server.initialise()
        server.start(archive_mode="on", archive_command=f"cp %p {archive}/%f", wal_level="replica")
        apply_migrations(server.url)
        return asyncio.run(_run(server, restored, archive, redis_url))


async def _run(server: PostgreSQL, restored: PostgreSQL, archive: Path, redis_url: str) -> int:
    report = Report()
    async with SmtpServer().serving() as smtp:
        settings = read_settings(
            {
                **new_secrets(),
                "DATABASE_URL": server.url,
                "REDIS_URL": redis_url,
                "SMTP_URL": smtp.url,
                "MAIL_FROM": "referrals@example.com",
                "ARGON2_MEMORY_KIB": "64",
                "ARGON2_PASSES": "1",
            }
        )
        before = await _before(settings, server, restored, archive, smtp)
        redis = Redis.from_url(redis_url)
        settings = replace(settings, database_url=restored.url)
        async with running(settings) as api:
            await _look(report, api, before, smtp, redis)
        async with running(replace(settings, refresh_token_keys=(b"k" * 32,))) as api:
            print("with other REFRESH_TOKEN_KEYS:")
            for name, token in before.tokens.items():
                report.note(f"refresh token ({name})", await _refresh(api, token), 401)
            signed_in = await api.log_in("dora@example.com")
            report.note("a new sign-in", signed_in.status, 200)
        await redis.aclose()
    print(f"{report.wrong} unlike what is documented")
    return report.wrong > 0


class Before:
    """What clients hold when the disaster comes."""

    anna: Person
    bert: Person
    dora: Person
    old_code: str
    new_code: str
    tokens: dict[str, str]


async def _before(
    settings: Settings, server: PostgreSQL, restored: PostgreSQL, archive: Path, smtp: SmtpServer
) -> Before:
    """Live through it: a backup, a moment, what came after the moment, and the restore."""
    before = Before()
    async with running(settings) as api:
        before.anna = await api.new_person("anna@example.com")
        before.dora = await api.new_person("dora@example.com")
        before.old_code = await api.new_code(before.anna)
        began = time.monotonic()
        await asyncio.to_thread(restored.copy, server, [server])
        print(f"backup: pg_basebackup took {time.monotonic() - began:.1f} s")
        before.tokens = {"used": before.anna.refresh_token}
        before.tokens["first used later"] = await _next(api, before.tokens["used"])
        await smtp.wait_for(2)
    async with running(replace(settings, serve_jobs=False)) as api:
        await api.register("carl@example.com")  # whose mail is a job that waits
        moment = server.ask("SELECT clock_timestamp()::text")
        await asyncio.sleep(0.1)
        before.tokens["newest"] = await _next(api, before.tokens["first used later"])
        before.tokens["Dora's"] = await _next(api, before.dora.refresh_token)
        assert (await api.delete("/referral-code", by=before.anna)).status == 204
        before.new_code = await api.new_code(before.anna)
        before.bert = await api.new_person("bert@example.com", referral_code=before.new_code)
        changed = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
        done = await api.post("/auth/password/change", changed, by=before.dora)
        assert done.status == 204
    async with running(settings) as api:
        # To Anna, Dora, Carl and Bert, and of Dora's password.
        await smtp.wait_for(5)
        while server.ask("SELECT count(*) FROM jobs"):
            await asyncio.sleep(0.1)
        await api.get("/referral-code/anna@example.com")  # into the cache
    last = server.ask("SELECT pg_walfile_name(pg_switch_wal())")
    deadline = time.monotonic() + ARCHIVED_SECONDS
    while not (archive / last).exists():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    await asyncio.to_thread(server.kill)
    began = time.monotonic()
    await asyncio.to_thread(_restore, restored, archive, moment)
    print(f"disaster, and restored to {moment} in {time.monotonic() - began:.1f} s")
    return before


def _restore(restored: PostgreSQL, archive: Path, moment: str) -> None:
    (restored.data / "standby.signal").rename(restored.data / "recovery.signal")
    restored.start(
        restore_command=f"cp {archive}/%f %p",
        recovery_target_time=moment,
        recovery_target_action="promote",
    )
    while restored.ask("SELECT pg_is_in_recovery()"):
        time.sleep(0.05)


async def _look(report: Report, api: Api, before: Before, smtp: SmtpServer, redis: Redis) -> None:
    look_up = "/referral-code/anna@example.com"
    print("what the cache still holds:")
    report.note("Anna's code", (await api.get(look_up)).json().get("code"), before.new_code)
    await redis.flushdb()
    print("after FLUSHDB:")
    report.note("Anna's code", (await api.get(look_up)).json().get("code"), before.old_code)
    for code, name, expected in (
        (before.old_code, "the code that was deleted", 201),
        (before.new_code, "the code that replaced it", 422),
    ):
        answer = await api.register(f"with-{code.lower()}@example.com", referral_code=code)
        report.note(f"registering with {name}", answer.status, expected)
    report.note("Bert's account", (await api.log_in("bert@example.com")).status, 401)
    report.note("Bert's access token", (await api.get("/users/me", by=before.bert)).status, 401)
    report.note("Anna's access token", (await api.get("/users/me", by=before.anna)).status, 200)
    for password, name, expected in (
        (PASSWORD, "the password that was changed", 200),
        (NEW_PASSWORD, "the new password", 401),
    ):
        status = (await api.log_in("dora@example.com", password)).status
        report.note(f"signing in with {name}", status, expected)
    mails = await smtp.wait_for(7)
    to_carl = sum("carl@example.com" in mail.rcpt_tos for mail in mails)
    report.note("mails to Carl, whose job was done after the moment", to_carl, 2)
    for name, token, expected in (
        ("Dora's refresh token, the newest", before.tokens["Dora's"], 401),
        ("Anna's, used after the moment, by a thief", before.tokens["first used later"], 200),
        ("Anna's newest, by herself beside the thief", before.tokens["newest"], 200),
    ):
        report.note(name, await _refresh(api, token), expected)


async def _next(api: Api, refresh_token: str) -> str:
    answer = await api.post("/auth/refresh", {"refresh_token": refresh_token})
    assert answer.status == 200, answer.body
    return str(answer.json()["refresh_token"])


async def _refresh(api: Api, refresh_token: str) -> int:
    return (await api.post("/auth/refresh", {"refresh_token": refresh_token})).status


if __name__ == "__main__":
    sys.exit(main())
