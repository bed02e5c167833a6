"""Judges what a company was answered, against what PostgreSQL holds: at each instant, and at last.

What became of a referral is compared with a model of its own, which knows the rules of the load's
programme and nothing of the service.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final, TypeAlias

import asyncpg

from tests.faults.conversions import MINIMUM, PROGRAMME, UNIT
from tests.faults.history import Call, Kind

Row: TypeAlias = Any
"""A row of PostgreSQL."""
SAME_INSTANT: Final = timedelta(minutes=5)
"""A purchase that occurred so long before the sign-up was reported by another clock: it counts."""

WRONG_SEQUENCES = """
    SELECT r.user_id::text, r.state, r.sequence, d.decisions, d.last, d.states
      FROM referrals r
     CROSS JOIN LATERAL (
            SELECT count(*) AS decisions, count(DISTINCT sequence) AS sequences,
                   min(sequence) AS first, max(sequence) AS last,
                   array_agg(state ORDER BY sequence) AS states
              FROM decisions
             WHERE referral_id = r.user_id
           ) AS d
     WHERE (d.decisions, d.sequences, d.first, d.last)
           IS DISTINCT FROM (r.sequence::bigint, r.sequence::bigint, 1, r.sequence)
        OR d.states[d.decisions] IS DISTINCT FROM r.state
        OR (r.nth IS NULL) = ('qualified' = ANY (d.states))
"""

WRONG_STANDINGS = """
    SELECT r.referrer_id::text, r.counted, s.qualified
      FROM (SELECT referrer_id,
                   count(*) FILTER (WHERE state IN ('qualified', 'rewarded')) AS counted
              FROM referrals
             GROUP BY referrer_id) AS r
      LEFT JOIN standings s ON s.participant_id = r.referrer_id
     WHERE r.counted <> COALESCE(s.qualified, 0)
"""

REFERRALS = """
    SELECT r.user_id AS referral_id, p.external_id AS referee, r.referrer_id, r.code, r.state,
           r.registered_at, r.window_ends_at, r.state_changed_at
      FROM referrals r
      JOIN participants p ON p.participant_id = r.user_id
      JOIN programmes g ON g.programme_id = r.programme_id
     WHERE g.key = $1
"""

EVENTS = """
    SELECT e.external_id AS id, e.type, e.participant_id, p.external_id AS referee, e.amount,
           e.unit, e.refunds, e.occurred_at, e.event_id
      FROM events e
      JOIN participants p USING (participant_id)
      JOIN programmes g ON g.programme_id = e.programme_id
     WHERE g.key = $1
"""

DECISIONS = "SELECT referral_id, sequence, state, event_id FROM decisions"

PARTICIPANTS = """
    SELECT p.external_id, p.participant_id::text
      FROM participants p
      JOIN programmes g USING (programme_id)
     WHERE g.key = $1
"""


async def wrong_now(database: asyncpg.Connection) -> list[str]:
    """Return what is true now and never may be."""
    async with database.transaction(isolation="repeatable_read", readonly=True):
        referrals = await database.fetch(REFERRALS, PROGRAMME)
        events = await database.fetch(EVENTS, PROGRAMME)
        return [
            *(f"decisions with gaps: {dict(row)}" for row in await database.fetch(WRONG_SEQUENCES)),
            *(f"a wrong standing: {dict(row)}" for row in await database.fetch(WRONG_STANDINGS)),
            *_wrong_states(referrals, events),
        ]


async def judge(calls: list[Call], database: asyncpg.Connection) -> list[str]:
    """Return every violation, in words. The service must have ended: nothing may be under way."""
    referrals = await database.fetch(REFERRALS, PROGRAMME)
    events = await database.fetch(EVENTS, PROGRAMME)
    decisions = await database.fetch(DECISIONS)
    people = {row["external_id"]: row for row in await database.fetch(PARTICIPANTS, PROGRAMME)}
    stored = {row["id"]: row for row in events}
    referred = {row["referee"]: row for row in referrals}
    return [
        *await wrong_now(database),
        *(f"stored {times} times: {name}" for name, times in _counted(events) if times > 1),
        *_wrong_participants(_by(calls, "take_part", "external_id"), people),
        *wrong_sign_ups(_by(calls, "sign_up", "external_id"), referred),
        *wrong_events(_by(calls, "report", "id"), stored),
        *_wrong_decisions(calls, stored, decisions),
    ]


def states_of(referral: Row, events: Iterable[Row]) -> set[str]:
    """Return what may have become of a referral with these events of its referee: the model.

    Once the window has ended the referral is rejected, but by a sweep, at some time; a sweep's
    clock may be wrong, an event's cannot be.
    """
    refunds = defaultdict(list)
    for event in events:
        if event["type"] == "refund":
            refunds[event["refunds"]].append(event)
    qualified, reversed_ = False, False
    for event in events:
        in_time = referral["registered_at"] - SAME_INSTANT <= event["occurred_at"]
        in_time = in_time and event["occurred_at"] < referral["window_ends_at"]
        if event["type"] != "purchase" or not in_time or not _is_enough(event, event["amount"]):
            continue
        taken = sum(
            event["amount"] if refund["amount"] is None else refund["amount"]
            for refund in refunds[event["id"]]
        )
        qualified = qualified or _is_enough(event, event["amount"] - taken)
        reversed_ = True
    if qualified:
        return {"qualified"}
    if reversed_:
        return {"reversed"}
    over = referral["state_changed_at"] >= referral["window_ends_at"]
    return {"rejected"} if over else {"pending"}


def _is_enough(event: Row, amount: int) -> bool:
    return event["unit"] == UNIT and amount >= MINIMUM


def _wrong_states(referrals: Iterable[Row], events: Iterable[Row]) -> Iterator[str]:
    of_referee = defaultdict(list)
    for event in events:
        of_referee[event["participant_id"]].append(event)
    for referral in referrals:
        own = of_referee[referral["referral_id"]]
        expected = states_of(referral, own)
        if referral["state"] not in expected:
            known = sorted((str(event["id"]), event["type"], event["amount"]) for event in own)
            yield f"a referral is not {expected}: {dict(referral)}, {known}"


def _wrong_participants(calls: dict[str, list[Call]], stored: Mapping[str, Row]) -> Iterator[str]:
    for name, tried in calls.items():
        yield from _wrong_repetitions(tried)
        answers = {(call.answer["participant_id"], call.answer["code"]) for call in _known(tried)}
        if len(answers) > 1:
            yield f"one participant is answered as several: {answers}"
        for participant_id, _ in answers:
            if name not in stored or stored[name]["participant_id"] != participant_id:
                yield f"an acknowledged participant is lost: {name}, {participant_id}"


def wrong_sign_ups(calls: dict[str, list[Call]], stored: Mapping[str, Row]) -> Iterator[str]:
    for referee, tried in calls.items():
        yield from _wrong_repetitions(tried)
        row = stored.get(referee)
        for call in tried:
            if call.acknowledged and (
                row is None
                or row["code"] != call.body["code"]
                or str(row["referrer_id"]) != call.answer["referrer_id"]
            ):
                yield f"an acknowledged referral is lost: {call}, {row and dict(row)}"
            if call.status == 409 and (row is None or row["code"] == call.body["code"]):
                yield f"refused as referred by another code: {call}, {row and dict(row)}"
        if row is not None and row["code"] not in {call.body["code"] for call in tried}:
            yield f"a referral that nobody reported: {dict(row)}"


def wrong_events(calls: dict[str, list[Call]], stored: Mapping[str, Row]) -> Iterator[str]:
    for name, tried in calls.items():
        yield from _wrong_repetitions(tried)
        row = stored.get(name)
        answers = [call.answer["event"] for call in _known(tried)]
        if any(answer != answers[0] for answer in answers):
            yield f"one event is answered as several: {name}, {answers}"
        for call in tried:
            same = row is not None and _content(row) == _content(call.body)
            if call.acknowledged and not same:
                yield f"an acknowledged event is lost: {call}, {row and dict(row)}"
            if call.status == 409 and (row is None or same):
                yield f"refused as another event under a known id: {call}, {row and dict(row)}"


def _wrong_repetitions(tried: list[Call]) -> Iterator[str]:
    """Compare the answers to one thing reported several times: it is new once."""
    made = [call for call in tried if call.status == 201]
    if len(made) > 1:
        yield f"new twice: {'; '.join(map(str, made))}"
    if not made and all(call.status for call in tried):
        yield f"never new, though all was answered: {'; '.join(map(str, tried))}"


def _wrong_decisions(
    calls: list[Call], events: Mapping[str, Row], decisions: Iterable[Row]
) -> Iterator[str]:
    """Compare the states that were answered with the decisions that are stored."""
    states = {(str(row["referral_id"]), row["sequence"]): row["state"] for row in decisions}
    made = {(row["event_id"], row["state"]) for row in decisions}
    for call in _known(calls):
        referral = call.answer if call.kind == "sign_up" else call.answer.get("referral")
        if call.kind == "take_part" or referral is None:
            continue
        if states.get((referral["id"], referral["sequence"])) != referral["state"]:
            yield f"an acknowledged decision is lost: {call}, {referral}"
        outcome, event = call.answer.get("outcome"), events.get(call.body.get("id", ""))
        if (
            outcome in {"qualified", "reversed"}
            and event
            and (event["event_id"], outcome) not in made
        ):
            yield f"an event without its decision: {call}, {outcome}"


def _content(of: Any) -> tuple[Any, ...]:
    referee = of["referee"] if "referee" in of else of["external_id"]
    return referee, of["type"], *(of.get(name) for name in ("amount", "unit", "refunds"))


def _known(calls: Iterable[Call]) -> list[Call]:
    return [call for call in calls if call.acknowledged]


def _by(calls: Iterable[Call], kind: Kind, member: str) -> dict[str, list[Call]]:
    """Group the calls of a kind by what they are about."""
    grouped = defaultdict(list)
    for call in calls:
        if call.kind == kind:
            grouped[call.body[member]].append(call)
    return grouped


def _counted(events: Iterable[Row]) -> Iterable[tuple[str, int]]:
    return Counter(event["id"] for event in events).items()
