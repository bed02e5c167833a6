"""The same runs with a service that is broken on purpose: the checker has to notice each time.

A sabotage replaces something of the service by name, in the service's own processes
(sabotaged.py), or runs SQL on its migrated database. A name, a word or a constraint that no longer
exists is an error: test_sabotage.py looks for all of them, in a second.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from service.domain.webhook_deliveries import Outcome
from service.postgresql import database
from service.redis import cache
from service.repositories import (
    events,
    participants,
    referral_code_uses,
    referral_codes,
    referrals,
    reward_counts,
    rewards,
    transfers,
)
from service.repositories.referral_code_uses import ReferralCodeUseRepository
from service.repositories.referrals import ReferralRepository
from service.repositories.reward_counts import RewardCountRepository
from service.repositories.rewards import RewardRepository
from service.repositories.transfers import TransferRepository
from service.use_cases import events as event_use_cases
from service.use_cases import webhooks
from service.use_cases.cache_invalidation import CacheInvalidation, code_key
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.referral_codes import ReferralCodes
from service.use_cases.referrals import Referrals
from service.use_cases.webhook_deliveries import WebhookDeliveries
from tests.faults import faults
from tests.faults.run import UNHANDLED, Scenario, run

TRIES: Final = 8
"""How many seeds are tried, because some races are lost by chance only."""

SLOWLY: Final = 0.1
"""Seconds in which another transaction can come in between."""


@dataclass(frozen=True)
class Replacement:
    """What `name` of a module or a class is replaced with."""

    owner: Any
    name: str
    value: Any

    def apply(self) -> None:
        setattr(self.owner, self.name, self.value)


def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Replacement:
    """Return the replacement that `make` makes of what is there; raise AttributeError."""
    return Replacement(owner, name, make(getattr(owner, name)))


def reworded(module: ModuleType, name: str, words: str, others: str) -> Replacement:
    """Replace words of a text constant."""

    def reword(text: str) -> str:
        assert words in text, f"{module.__name__}.{name} has changed: there is no {words!r}"
        return text.replace(words, others)

    return replaced(module, name, reword)


def without_effect(owner: Any, name: str) -> Replacement:
    """Let a coroutine method do nothing."""

    async def nothing(*_: Any, **__: Any) -> None:
        pass

    return replaced(owner, name, lambda _: nothing)


Replacements = Sequence[Replacement]


def fill_without_lease() -> Replacements:
    return [reworded(cache, "_FILL", "redis.call('GET', KEYS[2]) == ARGV[1]", "true")]


def keep_the_lease() -> Replacements:
    """A removal looks for the lease under another name."""
    removing = ContextVar("removing", default=False)

    @contextmanager
    def during_removal() -> Iterator[None]:
        token = removing.set(True)
        try:
            yield
        finally:
            removing.reset(token)

    def lease(real: Callable[[str], str]) -> Callable[[str], str]:
        return lambda name: f"not {real(name)}" if removing.get() else real(name)

    def removal(real: Any) -> Any:
        async def remove(self: cache.Cache, keys: Sequence[str]) -> None:
            with during_removal():
                await real(self, keys)

        return remove

    return [replaced(cache, "_lease", lease), replaced(cache.Cache, "forget", removal)]


def forget_before_the_commit() -> Replacements:
    def early(real: Any) -> Any:
        async def replace(self: Any, owner_id: Any, *wish: Any) -> Any:
            async with self._database.autocommit() as repositories:
                email_key = await repositories.users.find_email_key(owner_id)
            await self._invalidation.forget([code_key(email_key)])
            quiet = copy(self)
            quiet._invalidation = copy(self._invalidation)
            without_effect(quiet._invalidation, "forget").apply()
            return await real(quiet, owner_id, *wish)

        return replace

    return [replaced(ReferralCodes, "replace", early)]


def forget_by_the_job_alone() -> Replacements:
    return [without_effect(CacheInvalidation, "forget")]


def use_one_too_many() -> Replacements:
    return [
        reworded(referral_code_uses, "TAKE", "c.uses + 1 >= c.max_uses", "c.uses >= c.max_uses")
    ]


def delete_without_a_second_look() -> Replacements:
    found = "EXISTS (SELECT FROM referral_codes WHERE owner_id = $1 AND ended_at IS NULL)"
    return [reworded(referral_codes, "END_OF_OWNER", found, "false")]


def commit_between_user_and_referral() -> Replacements:
    def committing(real: Any) -> Any:
        async def take(self: Any, *arguments: Any, **options: Any) -> Any:
            await self._connection.execute("COMMIT")
            await self._connection.execute("BEGIN")
            return await real(self, *arguments, **options)

        return take

    return [replaced(ReferralCodeUseRepository, "take", committing)]


def forget_idempotency_keys() -> Replacements:
    return [without_effect(AnswerOnce, "claim")]


def take_part_without_a_lock() -> Replacements:
    lock = "FOR NO KEY UPDATE"
    return [reworded(participants, name, lock, "") for name in ("LOCK", "LOCK_EXTERNAL")]


def decide_without_a_lock() -> Replacements:
    """Nor one of the referee: either makes the events of one referral wait for each other."""
    lock = "FOR NO KEY UPDATE OF r"
    return [*take_part_without_a_lock(), reworded(referrals, "LOCK", lock, "")]


def store_events_twice() -> Replacements:
    words = "ON CONFLICT ON CONSTRAINT events_happen_once DO NOTHING"
    return [reworded(events, "ADD", words, "")]


def take_any_event_for_a_repetition() -> Replacements:
    async def find(repositories: Any, event: Any, _: bytes) -> Any:
        found = await repositories.events.find(event.programme_id, event.external_id)
        return found[0]

    return [replaced(event_use_cases, "_find_repeated", lambda _: find)]


def commit_between_event_and_decision() -> Replacements:
    def committing(real: Any) -> Any:
        async def assess(self: Any, repositories: Any, *arguments: Any, **options: Any) -> Any:
            await repositories._connection.execute("COMMIT")
            await repositories._connection.execute("BEGIN")
            return await real(self, repositories, *arguments, **options)

        return assess

    return [replaced(Referrals, "assess", committing)]


def commit_between_cause_and_webhook() -> Replacements:
    def committing(real: Any) -> Any:
        async def write(repositories: Any, *arguments: Any) -> None:
            await repositories._connection.execute("COMMIT")
            await repositories._connection.execute("BEGIN")
            await real(repositories, *arguments)

        return write

    return [replaced(webhooks, "_write", committing)]


def end_deliveries_before_they_are_sent() -> Replacements:
    def early(real: Any) -> Any:
        async def deliver(self: Any, delivery: Any, *arguments: Any) -> None:
            async with self._database.autocommit() as repositories:
                sent = Outcome(status=204, milliseconds=0)
                await repositories.webhook_deliveries.succeed(delivery, sent, self._clock())
            await real(self, delivery, *arguments)

        return deliver

    return [replaced(WebhookDeliveries, "_deliver", early)]


def take_a_cut_connection_for_a_bug() -> Replacements:
    return [replaced(database, "DatabaseUnavailable", lambda _: RuntimeError)]


def overlook_what_is_pending() -> Replacements:
    """With its index a reward that is given again is refused: an error, but no money."""
    words, others = "state <> 'reversed'", "state = 'available'"
    return [reworded(rewards, "LIVE_OF_CAUSES", words, others)]


def read_the_cap_first() -> Replacements:
    """And slowly, because two hit the moment by chance only."""
    read = "SELECT given FROM reward_counts WHERE subject_id = $1 AND rule = $2"

    async def take(self: Any, subject_id: Any, rule: str, cap: int) -> bool:
        given = await self._connection.fetchval(read, subject_id, rule)
        await asyncio.sleep(SLOWLY)
        if given is not None and given >= cap:
            return False
        count = reward_counts.TAKE.replace("c.given < $3", "$3::int > 0")
        return await self._connection.fetchval(count, subject_id, rule, cap) is not None

    return [replaced(RewardCountRepository, "take", lambda _: take)]


def release_without_a_lock() -> Replacements:
    """And slowly, because a refund hits the moment by chance only."""

    def slow(real: Any) -> Any:
        async def release(self: Any, reward_ids: Any) -> Any:
            await asyncio.sleep(SLOWLY)
            return await real(self, reward_ids)

        return release

    return [
        replaced(ReferralRepository, "lock_free", lambda _: ReferralRepository.find),
        replaced(RewardRepository, "release", slow),
    ]


def pay_before_the_id() -> Replacements:
    """The money is taken first, and given back where the id turns out to be known."""
    move = """
        UPDATE balances
           SET available = available - $3::bigint, redeemed = redeemed + $3::bigint
         WHERE participant_id = $1
           AND unit = $2
           AND available >= $3::bigint
    """
    note = """
        INSERT INTO transfers
               (transfer_id, programme_id, participant_id, unit, kind, from_account, to_account,
                amount, external_id, fingerprint, note, made_by, created_at)
        VALUES ($1, $2, $3, $4, 'redemption', 'available', 'redeemed', $5, $6, $7, $8, $9, $10)
            ON CONFLICT (programme_id, external_id) WHERE external_id IS NOT NULL DO NOTHING
    """

    async def redeem(self: Any, transfer: Any, fingerprint: bytes) -> tuple[bool, bool]:
        balance = transfer.participant_id, transfer.unit
        taken = await self._connection.execute(move, *balance, transfer.amount)
        if taken == "UPDATE 0":
            return True, False
        asked = transfers._asked_for(transfer, transfer.amount, fingerprint)
        if await self._connection.execute(note, *asked) == "INSERT 0 0":
            await self._connection.execute(move, *balance, -transfer.amount)
            return False, True
        return True, True

    return [replaced(TransferRepository, "redeem", lambda _: redeem)]


NO_JOB = """
    CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER no_job BEFORE INSERT ON jobs
       FOR EACH ROW WHEN (NEW.kind = 'forget') EXECUTE FUNCTION leave_out()
"""
NO_ONE_LIVE_CODE = """
    DROP INDEX referral_codes_one_live_per_owner;
    CREATE INDEX ON referral_codes (owner_id) WHERE ended_at IS NULL
"""
NO_UNIQUE_EMAIL = """
    ALTER TABLE users DROP CONSTRAINT users_email_unique;
    CREATE INDEX ON users (email_key)
"""
NO_EVENT_ONCE = """
    ALTER TABLE events DROP CONSTRAINT events_happen_once;
    CREATE INDEX ON events (programme_id, external_id)
"""
NO_REWARD_ONCE = """
    DROP INDEX rewards_given_once;
    CREATE INDEX ON rewards (rule, participant_id, cause_id, nth) WHERE state <> 'reversed'
"""
NO_MOST_USES = "ALTER TABLE referral_codes DROP CONSTRAINT referral_codes_used_at_most_max_uses"


@dataclass(frozen=True)
class Sabotage:
    """What is broken, and the fault under which it shows."""

    name: str
    scenario: Scenario
    replacements: Callable[[], Replacements] = tuple
    sql: str = ""
    """Run on the migrated database."""
    unhandled: bool = False
    """Whether it shows as an unhandled error; otherwise the sabotage itself is what failed."""
    words: str = ""
    """What the violation says, where what is broken has other violations too."""

    def is_shown_by(self, violation: str) -> bool:
        if self.words not in violation:
            return False
        return self.unhandled or not any(words in violation for words in UNHANDLED)


SLOW: Final = Scenario(faults.slow_ways, ways=True)
SABOTAGES: Final = [
    Sabotage("a reader fills the cache without its lease", SLOW, fill_without_lease),
    Sabotage("a removal leaves the lease", SLOW, keep_the_lease),
    Sabotage("the cache is cleared before the commit", SLOW, forget_before_the_commit),
    Sabotage(
        "the cache is cleared by the job alone", Scenario(faults.nothing), forget_by_the_job_alone
    ),
    Sabotage("no job for what was not removed", Scenario(faults.valkey_suspended), sql=NO_JOB),
    Sabotage(
        "a restarted Valkey is not noticed",
        Scenario(faults.valkey_with_old_data, ways=True, run_id="0" * 40),
    ),
    Sabotage("no unique index of live codes", SLOW, sql=NO_ONE_LIVE_CODE),
    Sabotage("no unique email address", SLOW, sql=NO_UNIQUE_EMAIL),
    Sabotage("one use too many", Scenario(faults.nothing), use_one_too_many, sql=NO_MOST_USES),
    Sabotage("a deletion does not look again", SLOW, delete_without_a_second_look),
    Sabotage(
        "user and referral in two transactions",
        Scenario(faults.nothing),
        commit_between_user_and_referral,
    ),
    Sabotage(
        "a repetition is a new request",
        Scenario(faults.commits_unanswered, ways=True),
        forget_idempotency_keys,
    ),
    Sabotage(
        "a connection that was cut is a bug",
        Scenario(faults.way_to_postgresql_broken, ways=True),
        take_a_cut_connection_for_a_bug,
        unhandled=True,
    ),
    Sabotage("an event does not wait for the sign-up", SLOW, take_part_without_a_lock),
    Sabotage("two events decide at once", SLOW, decide_without_a_lock),
    Sabotage("an event counts twice", SLOW, store_events_twice, sql=NO_EVENT_ONCE),
    Sabotage(
        "an event is known by its id alone",
        Scenario(faults.nothing),
        take_any_event_for_a_repetition,
    ),
    Sabotage("event and decision in two transactions", SLOW, commit_between_event_and_decision),
    Sabotage("webhook and cause in two transactions", SLOW, commit_between_cause_and_webhook),
    Sabotage(
        "a delivery ends before it is sent",
        Scenario(faults.nothing),
        end_deliveries_before_they_are_sent,
    ),
    Sabotage(
        "no unique index of live rewards",
        Scenario(faults.nothing),
        overlook_what_is_pending,
        sql=NO_REWARD_ONCE,
        words="given twice",
    ),
    Sabotage("a cap is read before it is counted", SLOW, read_the_cap_first),
    Sabotage("a release does not lock the referral", SLOW, release_without_a_lock),
    Sabotage("a payout is taken before its id is", Scenario(faults.nothing), pay_before_the_id),
    Sabotage(
        "PostgreSQL acknowledges what it has not written",
        Scenario(faults.postgresql_killed, durable=False),
    ),
]


def is_noticed(sabotage: Sabotage, seed: int, seconds: float) -> str | None:
    """Return the first violation that the sabotage leads to, None if there is none."""
    command = [sys.executable, "-m", "tests.faults.sabotaged", sabotage.name]
    for attempt in range(TRIES):
        running = run(sabotage.scenario, seed + attempt, seconds, command=command, sql=sabotage.sql)
        for violation in asyncio.run(running).violations:
            if sabotage.is_shown_by(violation):
                return violation
    return None
