"""The locks of programmes are taken in the order of sql/README.md (*Lock order*)."""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg
import pytest
from uuid6 import uuid7

from service.domain.errors import ServiceError
from service.domain.referral_codes import NewReferralCode, ReferralCodeChange
from service.settings.settings import Settings
from service.use_cases.participants import ParticipantChange, Who
from service.use_cases.users import Registration
from tests.factories import PASSWORD, WITHOUT_KEY, new_email
from tests.recorded import recorded_statements
from tests.sql.company import DAY, ON_PURCHASE, Company, open_company
from tests.sql.plans import statements

# Which statements take each lock, in the order of the locks.
ORDER: Final = {
    "participant": {"participants.ADD_ACCOUNT", "participants.LOCK", "participants.LOCK_EXTERNAL"},
    "event": {"events.ADD"},
    "code": {
        "referral_codes.ADD",
        "referral_codes.CHANGE",
        "referral_codes.END_OF_OWNER",
        "referral_codes.LOCK_LIVE",
        "participant_codes.ADD",
        "participant_codes.END",
        "referral_code_uses.TAKE",
        "referral_code_uses.TAKE_BY_ID",
    },
    "user": {"users.LOCK"},
    "referral": {"referrals.LOCK", "referrals.LOCK_FREE"},
    "standing": {
        "standings.BEGIN",
        "standings.MOVE",
        "standings.LOCK",
        "participants.ERASE",
        "participants.REMOVE_PUBLIC_NAME",
        "participants.SET_PUBLIC_NAME",
        "standings.LOCK_FREE",
    },
    "new referral": {"referrals.ADD"},
    "count of rewards": {"reward_counts.TAKE", "reward_counts.GIVE_BACK"},
    "reward": {
        "rewards.CHANGE",
        "rewards.RELEASE",
        "rewards.HOLD_OF_PARTICIPANT",
        "rewards.HOLD_OF_REFERRAL",
        "rewards.HOLD_MILESTONES",
    },
    "balance": {
        "rewards.GIVE",
        "balances.OPEN",
        "transfers.POST",
        "transfers.REDEEM",
        "transfers.CANCEL",
        "transfers.ADJUST",
    },
    "uses of the code": {"referral_code_uses.COUNT_USE"},
}
# Statements that write to rows which the transaction has locked before, or which nobody else can
# have locked.
WAIT_FOR_NOBODY: Final = {
    "events.DELETE_OF_NOBODY",
    "events.LOCK_OLD",
    "participants.UPDATE",
    "referral_codes.DELETE_UNUSED",
    "referral_codes.DISOWN_NAMES",
    "referrals.DECIDE",
    "referrals.DELETE",
    "referrals.LIFT_FLAGS",
    "signals.NOTE",
    "signals.DELETE_OF_PARTICIPANT",
    "signals.DELETE_OLD",
}
# Of these tables nothing is recorded here: their places are those of the list in sql/README.md, and
# their races are in test_races_of_*.py.
NOT_RECORDED: Final = {
    "account_changes": "10: what belongs to the user",
    "authorization_codes": "10",
    "claims": "4, with their mailed tokens",
    "confirmations": "10",
    "enrichments": "10",
    "idempotency_keys": "1: after the user, before all else",
    "identities": "10",
    "jobs": "12, the last",
    "mail_tokens": "4 or 10: whose they are decides",
    "mailboxes": "none: one statement to a transaction",
    "oauth_clients": "2",
    "outdated": "none: housekeeping, one statement to a transaction",
    "programmes": "none: nothing else is locked with them",
    "security_events": "10",
    "sessions": "10, the oldest first",
    "sign_ins": "none: one statement to a transaction",
    "users": "1, 3 or 7; users.LOCK is recorded",
    "webhook_deliveries": "12, as jobs",
    "webhook_endpoints": "11",
    "webhook_messages": "none: they are only added",
}
NAME_OF: Final = {text: f"{module}.{name}" for (module, name), text in statements().items()}
LOCK_OF: Final = {name: lock for lock, names in ORDER.items() for name in names}
LOCKS: Final = list(ORDER)


def locks_of(recorded: list[tuple[str, Any]]) -> list[list[str]]:
    """Return the locks of each transaction, in the order in which they were taken.

    What finds no row locks none.
    """
    found: list[list[str]] = []
    for text, answer in recorded:
        name = NAME_OF.get(text, "")
        if text.startswith("BEGIN"):
            found.append([])
        elif name == "referral_codes.END_OF_OWNER" and not answer["ended"]:
            continue
        elif name == "standings.MOVE" and "new referral" in found[-1]:
            assert "standing" in found[-1], "of the new referral's referrer, and held already"
        elif name in LOCK_OF and found and answer is not None:
            found[-1].append(LOCK_OF[name])
            if name.startswith("referral_code_uses.TAKE") and answer["is_standing_locked"]:
                found[-1].append("standing")
    return found


def is_in_order(locks: list[str]) -> bool:
    places = list(map(LOCKS.index, locks))
    return places == sorted(places)


@dataclass(frozen=True)
class Scene:
    """A referrer with a code, a code of one use, and a referee who has bought something."""

    company: Company
    code: str
    limited: str
    referral_id: UUID
    user_id: UUID
    """An account that was referred as well, and has a code."""


@pytest.fixture
async def scene(company: Company) -> Scene:
    code, limited = await company.share("referrer"), await company.share("other", max_uses=1)
    referral_id = await company.refer(code, "referee")
    await company.report("order-1", "referee")
    registration = Registration(email=new_email(), password=PASSWORD, referral_code=code)
    user = await company.services.users.register(registration, WITHOUT_KEY)
    await company.report("order-u", user.user_id)
    wish = NewReferralCode(expires_in_days=30)
    await company.services.participants.replace_code(user.user_id, wish)
    return Scene(company, code, limited, referral_id, user.user_id)


async def report_event(of: Scene) -> None:
    await of.company.refer(of.code, "late")
    await of.company.report("order-2", "late")


async def report_event_of_nobody(of: Scene) -> None:
    await of.company.report("order-2", "nobody")


async def report_refund(of: Scene) -> None:
    await of.company.refund("refund-1", "referee", "order-1")


async def reward_and_take_back(of: Scene) -> None:
    friend = {"name": "friend", "to": "referrer", "on": "qualified", "unit": "EUR", "amount": 500}
    capped = {**friend, "max_per_referrer": 2, "max_total": 2, "hold_days": 1}
    await of.company.set_rules({**ON_PURCHASE, "rewards": [capped]}, 2)
    referral_id = await of.company.refer(of.code, "rewarded")
    await of.company.report("order-3", "rewarded")
    of.company.clock.now += 2 * DAY
    await of.company.services.sweeps.release_due()
    await of.company.review(referral_id, "approve")
    await of.company.refund("refund-3", "rewarded", "order-3")


async def block_and_free(of: Scene) -> None:
    for blocked in (True, False):
        change = ParticipantChange(blocked=blocked)
        await of.company.services.participants.change(of.user_id, change)
        await of.company.services.users.set_disabled(of.user_id, blocked, "a test")


async def sign_up(of: Scene) -> None:
    await of.company.set_rules({"qualify": {"on": "signup"}}, 2)
    await of.company.sign_up(of.code, "another")


async def sign_up_by_a_limited_code(of: Scene) -> None:
    await of.company.sign_up(of.limited, "another")


async def sign_up_after_the_code_was_replaced(of: Scene) -> None:
    clicked_at = of.company.clock.now
    of.company.clock.now += DAY
    await replace_code(of)
    await of.company.sign_up(of.code, "another", clicked_at=clicked_at)


async def sign_up_an_account(of: Scene) -> None:
    registration = Registration(email=new_email(), password=PASSWORD, referral_code=None)
    user = await of.company.services.users.register(registration, WITHOUT_KEY)
    await of.company.sign_up(of.code, user.user_id)


async def register(of: Scene) -> None:
    await of.company.set_rules({"qualify": {"on": "signup"}}, 2)
    registration = Registration(email=new_email(), password=PASSWORD, referral_code=of.code)
    await of.company.services.users.register(registration, WITHOUT_KEY)


async def reject(of: Scene) -> None:
    await of.company.review(of.referral_id, "reject")


async def sweep(of: Scene) -> None:
    await of.company.refer(of.code, "late")
    of.company.clock.now += 40 * DAY
    await of.company.services.referrals.reject_overdue()


async def create_with_a_code(of: Scene) -> None:
    await of.company.share("new")


async def replace_code(of: Scene) -> None:
    wish = NewReferralCode(expires_in_days=30)
    referrer_id = await of.company.id_of("referrer")
    await of.company.services.participants.replace_code(referrer_id, wish)


async def change_code(of: Scene) -> None:
    change = ReferralCodeChange(max_uses=5)
    await of.company.services.referral_codes.change(of.user_id, change)


async def block_and_name(of: Scene) -> None:
    change = ParticipantChange(blocked=True, public_name="Anna")
    await of.company.services.participants.change(of.user_id, change)


async def erase_a_participant(of: Scene) -> None:
    await of.company.services.participants.erase(await of.company.id_of("referrer"))


async def erase_an_account(of: Scene) -> None:
    await of.company.services.users.erase_anyone(of.user_id, "a test")


# What each has to lock, at least, for the order to say anything.
EXPECTED: Final[dict[Callable[[Scene], Awaitable[None]], set[str]]] = {
    report_event: {"participant", "event", "referral", "standing"},
    report_event_of_nobody: {"participant", "event"},
    report_refund: {"participant", "event", "referral", "standing"},
    reward_and_take_back: {
        *("participant", "event", "referral", "standing", "count of rewards", "reward", "balance")
    },
    block_and_free: {"participant", "standing"},
    sign_up: {"participant", "code", "standing", "new referral", "uses of the code"},
    sign_up_by_a_limited_code: {"participant", "code", "standing", "new referral"},
    sign_up_after_the_code_was_replaced: {"participant", "code", "standing", "new referral"},
    sign_up_an_account: {"participant", "code", "standing", "new referral"},
    register: {"code", "standing", "new referral", "uses of the code"},
    reject: {"participant", "referral", "standing"},
    sweep: {"referral"},
    create_with_a_code: {"participant", "code"},
    replace_code: {"participant", "code"},
    change_code: {"code"},
    block_and_name: {"participant", "standing"},
    erase_a_participant: {"participant", "code", "standing"},
    erase_an_account: {"participant", "code", "user", "standing"},
}


@pytest.mark.parametrize("work", EXPECTED)
async def test_it_locks_in_order(scene: Scene, work: Callable[[Scene], Awaitable[None]]) -> None:
    """Two statements that change places in one of the use cases fail here."""
    with recorded_statements() as recorded:
        await work(scene)
    found = locks_of(recorded)
    assert [locks for locks in found if not is_in_order(locks)] == []
    assert EXPECTED[work] <= {lock for locks in found for lock in locks}


def test_a_lock_that_is_taken_late_is_seen() -> None:
    assert is_in_order(["participant", "participant", "code", "standing"])
    assert not is_in_order(["participant", "referral", "code"])


def test_every_statement_that_writes_has_its_place() -> None:
    locking = re.compile(r"\b(INSERT|UPDATE|DELETE|FOR SHARE|FOR KEY SHARE)\b")
    writing = {
        name
        for text, name in NAME_OF.items()
        if name.partition(".")[0] not in NOT_RECORDED and locking.search(text)
    }
    new = writing - set(LOCK_OF) - WAIT_FOR_NOBODY
    assert new == set(), (
        "Which locks do these take? Add each to ORDER; to WAIT_FOR_NOBODY if it has none to wait "
        "for; or its table to NOT_RECORDED, with its place in the lock order of sql/README.md."
    )
    gone = (set(LOCK_OF) | WAIT_FOR_NOBODY) - set(NAME_OF.values())
    assert gone == set(), "There are no such statements: remove them here, or rename them."
    gone = set(NOT_RECORDED) - {module for module, _ in statements()}
    assert gone == set(), "There are no such modules: remove them from NOT_RECORDED."


DEADLOCKS: Final = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
OTHERS: Final = """
    SELECT count(*)
      FROM pg_stat_activity
     WHERE datname = current_database()
       AND pid <> pg_backend_pid()
"""


async def test_all_at_once_they_never_deadlock(
    settings: Settings, database: asyncpg.Connection, redis: object
) -> None:
    """With the two locks of `Referrals.review` in each other's place they would. As deadlocks are
    retried, clients would notice nothing but the second that each takes."""
    before = await database.fetchval(DEADLOCKS)
    async with open_company(settings, database) as company:
        await company.set_rules(ON_PURCHASE)
        await asyncio.gather(*(act(company, random.Random(seed)) for seed in range(20)))
    async with asyncio.timeout(10):  # a connection counts its deadlocks when it ends
        while await database.fetchval(OTHERS):
            await asyncio.sleep(0.05)
    assert await database.fetchval(DEADLOCKS) == before


PEOPLE: Final = 4
SECONDS: Final = 4.0


async def act(company: Company, chance: random.Random) -> None:
    """Do what comes, with and for few people, who refer one another."""
    services, ends = company.services, asyncio.get_running_loop().time() + SECONDS
    number, identity = 0, uuid7()
    while asyncio.get_running_loop().time() < ends:
        number += 1
        who, other = (f"p-{chance.randrange(PEOPLE)}" for _ in range(2))
        event_id = f"{identity}-{number}"
        known = await services.participants.find_external(Who(external_id=who))
        participant_id = known[0].participant.participant_id if known else uuid7()
        with suppress(ServiceError):
            match chance.randrange(9):
                case 0 | 1:
                    await company.report(event_id, who)
                case 2:
                    await company.refund(event_id, who, f"{identity}-{number - 1}")
                case 3 | 4:
                    code = await company.share(other)
                    await company.sign_up(code, who)
                case 5:
                    await company.review(participant_id, chance.choice(["approve", "reject"]))
                case 6:
                    company.clock.now += chance.choice([timedelta(), timedelta(hours=1)])
                    await services.referrals.reject_overdue()
                case 7:
                    wish = NewReferralCode(expires_in_days=30)
                    await services.participants.replace_code(participant_id, wish)
                case 8 if chance.random() < 0.05:
                    await services.participants.erase(participant_id)
