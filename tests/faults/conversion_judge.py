"""Judges what a company was answered, against what PostgreSQL holds in the end.

What there is, whatever was answered, is judged by ledger_judge.py.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import asyncpg

from tests.faults.conversion_model import Row
from tests.faults.history import UNKNOWN, Call, Kind
from tests.faults.shop import PROGRAMME

REFERRALS: Final = """
    SELECT p.external_id AS referee, r.user_id::text AS referral_id, r.referrer_id, r.code, r.flags
      FROM referrals r
      JOIN participants p ON p.participant_id = r.user_id
      JOIN programmes g ON g.programme_id = r.programme_id
     WHERE g.key = $1
"""

EVENTS: Final = """
    SELECT e.external_id AS id, e.type, p.external_id AS referee, e.amount, e.unit, e.refunds,
           e.event_id
      FROM events e
      JOIN participants p USING (participant_id)
      JOIN programmes g ON g.programme_id = e.programme_id
     WHERE g.key = $1
"""

DECISIONS: Final = """
    SELECT referral_id, sequence, state, review, event_id
      FROM decisions
     ORDER BY referral_id, sequence
"""

PARTICIPANTS: Final = """
    SELECT p.external_id, p.participant_id::text
      FROM participants p
      JOIN programmes g USING (programme_id)
     WHERE g.key = $1
"""

REWARDS: Final = "SELECT reward_id::text FROM rewards"

# What a company asked for, by its own id, and what took it back. An adjustment may take.
MOVEMENTS: Final = """
    SELECT t.transfer_id::text, t.external_id AS id, t.kind, p.external_id AS whose, t.unit,
           CASE t.from_account WHEN 'available' THEN -t.amount ELSE t.amount END AS amount,
           t.cancels::text
      FROM transfers t
      JOIN participants p USING (participant_id)
     WHERE t.kind IN ('redemption', 'adjustment', 'cancellation')
"""


async def judge(calls: list[Call], database: asyncpg.Connection) -> list[str]:
    """Return every violation, in words. The service must have ended: nothing may be under way."""
    referrals = await database.fetch(REFERRALS, PROGRAMME)
    events = await database.fetch(EVENTS, PROGRAMME)
    decisions = await database.fetch(DECISIONS)
    movements = await database.fetch(MOVEMENTS)
    rewards = {row["reward_id"] for row in await database.fetch(REWARDS)}
    people = {row["external_id"]: row for row in await database.fetch(PARTICIPANTS, PROGRAMME)}
    stored = {row["id"]: row for row in events}
    referred = {row["referee"]: row for row in referrals}
    asked = [row for row in movements if row["id"] is not None]
    return [
        *(f"stored {times} times: {name}" for name, times in _counted(events) if times > 1),
        *_wrong_participants(_by(calls, "take_part"), people),
        *wrong_sign_ups(_by(calls, "sign_up"), referred),
        *wrong_events(_by(calls, "report"), stored),
        *_wrong_decisions(calls, stored, decisions),
        *_lost_rewards(calls, rewards),
        *wrong_movements(_by(calls, "redeem") | _by(calls, "adjust"), asked),
        *wrong_cancellations(_by(calls, "cancel"), movements),
        *wrong_reviews(_by(calls, "review"), decisions),
    ]


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
        # A device is what the shop's sign-ups are suspicious for.
        if row is not None and "same-device" in row["flags"] and not _with_device(tried):
            yield f"a referral is flagged for nothing: {dict(row)}"


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


def _with_device(tried: Iterable[Call]) -> bool:
    return any("device_id" in call.body for call in tried)


def wrong_movements(calls: dict[str, list[Call]], stored: Iterable[Row]) -> Iterator[str]:
    """Compare the answers to payouts and adjustments, by the company's ids, with the transfers."""
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    for row in stored:
        rows[row["id"]].append(row)
    for name, tried in calls.items():
        if len(rows[name]) > 1:
            yield f"moved {len(rows[name])} times: {name}"
        yield from _wrong_movement(tried, rows[name][0] if rows[name] else None)
    yield from (f"moved, though nobody asked: {name}" for name in rows.keys() - calls.keys())


def _wrong_movement(tried: list[Call], row: Row) -> Iterator[str]:
    too_low = [call for call in tried if call.status == 409 and "available" in call.answer]
    yield from _wrong_repetitions([call for call in tried if call not in too_low])
    known = _known(tried)
    paid_at = min((call.ended for call in known), default=math.inf)
    for call in tried:
        same = row is not None and _movement(row) == _asked(call)
        if call.acknowledged and (not same or call.answer["id"] != row["transfer_id"]):
            yield f"an acknowledged movement is lost: {call}, {row and dict(row)}"
        if call in too_low:
            if call.answer["available"] >= call.body["amount"]:
                yield f"refused as too much, though it is not: {call}"
            if same and call.begun > paid_at:
                yield f"refused as too much, though it had been paid: {call}"
        elif call.status == 409 and (row is None or same):
            yield f"refused as another movement under a known id: {call}, {row and dict(row)}"
    if row is not None and _movement(row) not in {_asked(call) for call in tried if _may(call)}:
        yield f"moved, though nobody asked: {dict(row)}"


def _may(call: Call) -> bool:
    """Whether the call may have done what it asked for."""
    return call.acknowledged or call.status == UNKNOWN


def _asked(call: Call) -> tuple[Any, ...]:
    sign = -1 if call.kind == "redeem" else 1
    return call.body["external_id"], call.body["unit"], sign * call.body["amount"]


def _movement(row: Row) -> tuple[Any, ...]:
    return row["whose"], row["unit"], row["amount"]


def wrong_cancellations(calls: dict[str, list[Call]], movements: Iterable[Row]) -> Iterator[str]:
    """Compare the answers to cancellations, by the redemptions' ids, with the transfers."""
    movements = list(movements)
    cancelled = Counter(row["cancels"] for row in movements if row["cancels"] is not None)
    made = {row["cancels"]: row for row in movements if row["cancels"] is not None}
    redeemed = {row["transfer_id"]: row["amount"] for row in movements}
    for redemption, times in cancelled.items():
        if times > 1:
            yield f"cancelled {times} times: {redemption}"
        if not any(map(_may, calls.get(redemption, ()))):
            yield f"cancelled, though nobody asked: {redemption}"
        if made[redemption]["amount"] != -redeemed.get(redemption, 0):
            yield f"another amount was paid than is cancelled: {dict(made[redemption])}"
    for redemption, tried in calls.items():
        yield from _wrong_repetitions(tried)
        for call in _known(tried):
            row = made.get(redemption)
            if row is None or row["transfer_id"] != call.answer["id"]:
                yield f"an acknowledged cancellation is lost: {call}, {row and dict(row)}"


def wrong_reviews(calls: dict[str, list[Call]], decisions: Iterable[Row]) -> Iterator[str]:
    """Compare the answers to reviews with how often each referral's review has changed."""
    turns: defaultdict[str, list[str]] = defaultdict(list)
    now: dict[str, str] = {}
    for row in decisions:
        referral_id = str(row["referral_id"])
        if row["review"] != now.get(referral_id) and row["review"] in _VERDICTS.values():
            turns[referral_id].append(row["review"])
        now[referral_id] = row["review"]
    for referral_id in turns.keys() | calls.keys():
        tried = calls.get(referral_id, [])
        for decision, review in _VERDICTS.items():
            alike = [call for call in tried if call.body["decision"] == decision]
            made = sum(call.status == 201 for call in alike)
            unknown = sum(call.status == UNKNOWN for call in alike)
            times = turns[referral_id].count(review)
            if not made <= times <= made + unknown:
                yield f"{review} {times} times: {referral_id}, {'; '.join(map(str, alike))}"


_VERDICTS: Final = {"approve": "approved", "reject": "rejected"}


def _lost_rewards(calls: Iterable[Call], stored: set[str]) -> Iterator[str]:
    for call in _known(calls):
        if call.kind == "report" and not stored.issuperset(call.answer.get("rewards", ())):
            yield f"an acknowledged reward is lost: {call}"


def _wrong_repetitions(tried: list[Call]) -> Iterator[str]:
    """Compare the answers to one thing reported several times: it is new once."""
    made = [call for call in tried if call.status == 201]
    if len(made) > 1:
        yield f"new twice: {'; '.join(map(str, made))}"
    if tried and not made and all(call.status for call in tried):
        yield f"never new, though all was answered: {'; '.join(map(str, tried))}"


def _wrong_decisions(
    calls: list[Call], events: Mapping[str, Row], decisions: Iterable[Row]
) -> Iterator[str]:
    """Compare the states that were answered with the decisions that are stored."""
    states = {(str(row["referral_id"]), row["sequence"]): row["state"] for row in decisions}
    made = {(row["event_id"], row["state"]) for row in decisions}
    for call in _known(calls):
        referral = call.answer.get("referral") if call.kind == "report" else call.answer
        if call.kind not in {"sign_up", "review", "report"} or referral is None:
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


def _by(calls: Iterable[Call], kind: Kind) -> dict[str, list[Call]]:
    """Group the calls of a kind by what they are about."""
    grouped = defaultdict(list)
    for call in calls:
        if call.kind == kind:
            about = call.about or call.body.get("id") or call.body["external_id"]
            grouped[about].append(call)
    return grouped


def _counted(events: Iterable[Row]) -> Iterable[tuple[str, int]]:
    return Counter(event["id"] for event in events).items()
