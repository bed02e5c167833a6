"""Judges referrals, rewards and the ledger as PostgreSQL holds them, at any instant.

All of it has to hold in every snapshot: what a transaction does is there whole or not at all. Under
load the newest referrals are looked at, which are the ones that change; in the end all are.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from tests.faults.conversion_model import Earned, Row, earned_by, states_of
from tests.faults.ledger_queries import (
    GIVEN_TWICE,
    HELD_FOR_NOTHING,
    OVER_THE_CAP_OF_A_REFERRER,
    OVER_THE_CAP_OF_ALL,
    PAID_TOO_MUCH,
    REFUSED_FOR_NOTHING,
    TOO_EARLY,
    WRONG_BALANCES,
    WRONG_MILESTONES,
    WRONG_NTHS,
    WRONG_REWARDS,
    WRONG_SEQUENCES,
    WRONG_STANDINGS,
    WRONG_SUMS,
)
from tests.faults.shop import CAPS, EVERY, PROGRAMME

NEWEST: Final = 200
"""How many referrals are looked at under load."""
BATCH: Final = 1000
"""How many are looked at together in the end."""

NEWEST_REFERRALS: Final = """
    SELECT r.user_id, r.referrer_id
      FROM referrals r
      JOIN programmes g USING (programme_id)
     WHERE g.key = $1
     ORDER BY r.user_id DESC
     LIMIT $2
"""

NEXT_REFERRALS: Final = """
    SELECT r.user_id, r.referrer_id
      FROM referrals r
      JOIN programmes g USING (programme_id)
     WHERE g.key = $1
       AND r.user_id > $3
     ORDER BY r.user_id
     LIMIT $2
"""

OTHER_REFERRALS: Final = """
    SELECT r.user_id, r.referrer_id
      FROM referrals r
      JOIN programmes g USING (programme_id)
     WHERE g.key <> $1
"""

REFERRALS: Final = """
    SELECT r.user_id AS referral_id, r.referrer_id, r.state, r.review, r.nth, r.registered_at,
           r.window_ends_at, r.state_changed_at
      FROM referrals r
      JOIN programmes g USING (programme_id)
     WHERE g.key = $2
       AND r.user_id = ANY ($1)
"""

EVENTS: Final = """
    SELECT participant_id, event_id, external_id AS id, type, amount, unit, refunds, occurred_at
      FROM events
     WHERE participant_id = ANY ($1)
"""

LIVE_REWARDS: Final = """
    SELECT referral_id, rule, cause_id, participant_id, unit, amount - reversed AS amount, state,
           held, available_at, available_at > clock_timestamp() - $2::interval AS may_wait,
           GREATEST(available_at, clock_timestamp() + $2::interval) AS at_latest
      FROM rewards
     WHERE referral_id = ANY ($1)
       AND state <> 'reversed'
"""

REFUSED: Final = """
    SELECT referral_id, detail
      FROM decisions
     WHERE referral_id = ANY ($1)
       AND reason = 'cap-reached'
"""

OF_PARTICIPANTS: Final = {
    "a balance that is not the sum of its transfers": (WRONG_BALANCES, ()),
    "paid out more than there was": (PAID_TOO_MUCH, ()),
    "a reward that is not what its transfers say": (WRONG_REWARDS, ()),
    "given twice": (GIVEN_TWICE, ()),
    "more than the cap of a referrer": (OVER_THE_CAP_OF_A_REFERRER, (CAPS["friend"],)),
    "milestones that are not what was reached": (WRONG_MILESTONES, (EVERY,)),
    "a milestone is held for nothing": (HELD_FOR_NOTHING, ()),
    "a wrong standing": (WRONG_STANDINGS, ()),
    "a gap or a twin among the referrals that qualified": (WRONG_NTHS, ()),
}
"""What to complain about, and the statement that finds it, with its arguments after the ids."""


async def wrong_now(database: asyncpg.Connection, clocks_off: timedelta) -> list[str]:
    """Return what is true now of the newest referrals and never may be.

    `clocks_off` is how far the service's clocks may be off.
    """
    async with database.transaction(isolation="repeatable_read", readonly=True):
        newest = await database.fetch(NEWEST_REFERRALS, PROGRAMME, NEWEST)
        return await _wrong(database, newest, clocks_off)


async def wrong_at_last(database: asyncpg.Connection, clocks_off: timedelta) -> list[str]:
    """Return what is wrong with any referral, and with the ledger as a whole."""
    found, after = [], UUID(int=0)
    while batch := await database.fetch(NEXT_REFERRALS, PROGRAMME, BATCH, after):
        found += await _wrong(database, batch, clocks_off)
        after = batch[-1]["user_id"]
    others = await database.fetch(OTHER_REFERRALS, PROGRAMME)
    gaps = await database.fetch(WRONG_SEQUENCES, [row["user_id"] for row in others])
    standings = await database.fetch(WRONG_STANDINGS, list({row["referrer_id"] for row in others}))
    refused = await database.fetch(REFUSED_FOR_NOTHING, CAPS["friend"], CAPS["thanks"])
    return [
        *found,
        *_listed("decisions with gaps", gaps),
        *_listed("a wrong standing", standings),
        *_listed("wrong sums", await database.fetch(WRONG_SUMS)),
        *_listed("refused before the cap was reached", refused),
    ]


async def _wrong(
    database: asyncpg.Connection, chosen: Sequence[Row], clocks_off: timedelta
) -> list[str]:
    referral_ids = [row["user_id"] for row in chosen]
    participant_ids = list({*referral_ids, *(row["referrer_id"] for row in chosen)})
    early = await database.fetch(TOO_EARLY, participant_ids, clocks_off)
    over = await database.fetch(OVER_THE_CAP_OF_ALL, CAPS["thanks"])
    gaps = await database.fetch(WRONG_SEQUENCES, referral_ids)
    found = [
        *_listed("released before its time", early),
        *_listed("more than the cap of all", over),
        *_listed("decisions with gaps", gaps),
    ]
    for complaint, (statement, arguments) in OF_PARTICIPANTS.items():
        rows = await database.fetch(statement, participant_ids, *arguments)
        found += _listed(complaint, rows)
    referrals = await database.fetch(REFERRALS, referral_ids, PROGRAMME)
    events = _by("participant_id", await database.fetch(EVENTS, referral_ids))
    rewards = _by("referral_id", await database.fetch(LIVE_REWARDS, referral_ids, clocks_off))
    refused = _by("referral_id", await database.fetch(REFUSED, referral_ids))
    for referral in referrals:
        referral_id = referral["referral_id"]
        rules = {row["detail"] for row in refused[referral_id]}
        found += wrong_referral(referral, events[referral_id], rewards[referral_id], rules)
    return found


def wrong_referral(
    referral: Row, events: Sequence[Row], rewards: Sequence[Row], refused: set[str]
) -> Iterator[str]:
    """Compare a referral and its live rewards with what the model makes of its events."""
    for complaint in _complaints(referral, events, rewards, refused):
        known = sorted((str(event["id"]), event["type"], event["amount"]) for event in events)
        yield f"{complaint}: {dict(referral)}, {known}, {[dict(reward) for reward in rewards]}"


def _complaints(
    referral: Row, events: Sequence[Row], rewards: Sequence[Row], refused: set[str]
) -> Iterator[str]:
    states = states_of(referral, events)
    rewarded = any(row["state"] == "available" and row["rule"] != "welcome" for row in rewards)
    if states == {"qualified"} and rewarded:
        states = {"rewarded"}
    if referral["state"] not in states:
        yield f"a referral is not {states}"
    earned = earned_by(referral, events, refused)
    given = [
        Earned(row["rule"], row["cause_id"], row["participant_id"], row["unit"], row["amount"])
        for row in rewards
    ]
    if Counter(given) != Counter(earned.keys()):
        yield f"rewards are not {list(earned)}"
    for row, reward in zip(rewards, given, strict=True):
        waits, is_open = row["state"] == "pending", referral["review"] == "open"
        if row["held"] is not is_open or (is_open and not waits):
            yield f"{reward.rule} is {row['state']} in spite of its review, or held without one"
        until = earned.get(reward)
        # A machine whose clock is behind takes it for not yet due.
        if waits and not is_open and until is None and not row["may_wait"]:
            yield f"{reward.rule} waits for nothing"
        if waits and until is not None and row["available_at"] != until:
            yield f"{reward.rule} waits until {row['available_at']}, not {until}"
        if not waits and until is not None and until > row["at_latest"]:
            yield f"{reward.rule} is available before {until}"


def _listed(complaint: str, rows: Iterable[Row]) -> list[str]:
    return [f"{complaint}: {dict(row)}" for row in rows]


def _by(member: str, rows: Iterable[Row]) -> defaultdict[Any, list[Row]]:
    grouped: defaultdict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row[member]].append(row)
    return grouped
