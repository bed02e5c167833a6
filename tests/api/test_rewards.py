"""Rewards as companies and users see them, and what events say about them."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.domain.scopes import Scope
from tests.api.assertions import assert_problem
from tests.company import Company, new_company, new_id
from tests.factories import Api, Person
from tests.oauth import new_admin
from tests.recorded import recorded_statements

DAY = timedelta(days=1)
EUR = {"unit": "EUR"}
FRIEND = {"name": "friend", "to": "referrer", "on": "qualified", "amount": 500, **EUR}
HELD = {**FRIEND, "hold_days": 14}
SHARE = {"name": "share", "to": "referrer", "on": "purchase", "basis_points": 1000, **EUR}
WELCOME = {"name": "welcome", "to": "referee", "on": "signup", "unit": "points", "amount": 100}
QUALIFY = {"on": "purchase", "minimum": {"amount": 2000, "unit": "EUR"}}
PAID = {"amount": 4900, "unit": "EUR"}


@pytest.fixture
async def company(api: Api) -> Company:
    return await new_company(api)


async def use_rewards(company: Company, *rewards: dict[str, Any], **rules: Any) -> None:
    await company.use_rules({"qualify": QUALIFY, "rewards": list(rewards), **rules})


async def bought(company: Company, referrer: Any, **members: Any) -> tuple[str, str, Any]:
    """Have somebody sign up and buy; return who, the purchase, and the answer to it."""
    referee, order = new_id("referee"), new_id("order")
    assert (await company.sign_up(referrer["code"], referee)).status == 201
    answer = await company.report("purchase", referee, id=order, **{**PAID, **members})
    assert answer.status == 201, answer.body
    return referee, order, answer.json()


async def refunded(company: Company, referee: str, order: str, **members: Any) -> Any:
    return (await company.report("refund", referee, refunds=order, **members)).json()


def ago(days: int) -> str:
    return (datetime.now(UTC) - days * DAY).isoformat()


async def balance(company: Company, external_id: str) -> dict[str, tuple[int, int, int]]:
    answer = await company.get(f"/balances?external_id={external_id}")
    assert answer.status == 200, answer.body
    return {
        one["unit"]: (one["pending"], one["available"], one["redeemed"])
        for one in answer.json()["items"]
    }


async def test_the_answer_to_an_event_says_what_was_given(company: Company) -> None:
    await use_rewards(company, HELD, WELCOME)
    referrer = await company.new_referrer()
    referee, order, said = await bought(company, referrer)
    assert (said["outcome"], said["referral"]["state"]) == ("qualified", "qualified")
    friend, welcome = sorted(said["rewards"], key=lambda reward: str(reward["rule"]))
    assert friend == {
        "id": friend["id"],
        "rule": "friend",
        "version": 2,
        "to": "referrer",
        "participant_id": referrer["participant_id"],
        "referral_id": said["referral"]["id"],
        "unit": "EUR",
        "amount": 500,
        "reversed": 0,
        "state": "pending",
        "held": False,
        "available_at": friend["available_at"],
        "created_at": friend["created_at"],
    }
    assert (welcome["to"], welcome["participant_id"]) == ("referee", said["referral"]["id"])
    assert welcome["state"] == "available"
    assert await balance(company, referrer["external_id"]) == {"EUR": (500, 0, 0)}
    assert await balance(company, referee) == {"points": (0, 100, 0)}

    taken_back = await refunded(company, referee, order)
    assert taken_back["outcome"] == "reversed"
    assert {one["rule"]: one["state"] for one in taken_back["rewards"]} == {
        "friend": "reversed",
        "welcome": "available",
    }
    assert await balance(company, referrer["external_id"]) == {"EUR": (0, 0, 0)}


@pytest.mark.parametrize(
    ("rewards", "purchases", "outcome"),
    [
        ([FRIEND], [{}], "qualified"),
        ([SHARE], [{}, {}], "rewarded"),
        ([SHARE], [{}, {"unit": "USD"}], "unit-differs"),
        ([{**FRIEND, "max_total": 1}], [{}], "qualified"),
        ([SHARE], [{"amount": 1999}], "below-minimum"),
        ([FRIEND], [{}, {}], "recorded"),
    ],
)
async def test_what_an_event_does_has_a_name_which_it_keeps(
    company: Company, rewards: list[Any], purchases: list[dict[str, Any]], outcome: str
) -> None:
    await use_rewards(company, *rewards)
    referrer, referee = await company.new_referrer(), new_id("referee")
    await company.sign_up(referrer["code"], referee)
    for members in purchases:
        body = {
            "id": new_id("order"),
            "type": "purchase",
            "external_id": referee,
            **PAID,
            **members,
        }
        last = await company.post("/events", body)
    assert (last.status, last.json()["outcome"]) == (201, outcome)
    again = await company.post("/events", body)
    assert (again.status, again.json()["outcome"]) == (200, outcome)
    assert again.json()["rewards"] == last.json()["rewards"]


async def test_a_refund_that_makes_room_for_a_later_event_changes_what_was_given(
    company: Company,
) -> None:
    await use_rewards(company, {**SHARE, "times": 1})
    referee, order, _ = await bought(company, await company.new_referrer(), amount=9000)
    await company.report("purchase", referee, **PAID)
    refund = {"id": new_id("refund"), "type": "refund", "external_id": referee, "refunds": order}
    for status in (201, 200):
        answer = await company.post("/events", refund)
        assert (answer.status, answer.json()["outcome"]) == (status, "changed")
    left = [one["amount"] - one["reversed"] for one in answer.json()["rewards"]]
    assert sorted(left) == [0, 490]


@pytest.mark.parametrize(
    "rules",
    [
        [{"amount": 50, "times": 1}, {"amount": 50, "times": 2, "within_days": 5}],
        [{"amount": 50, "times": 1}, {"amount": 50, "times": 3, "within_days": 5}],
        [{"amount": 50, "times": 2}, {"basis_points": 1000, "times": 2, "within_days": 5}],
    ],
)
async def test_an_event_takes_nothing_back_of_a_rule_that_it_is_too_late_for(
    company: Company, rules: list[dict[str, Any]]
) -> None:
    """It is looked at with the first few of the other rule, some of which this one is for, too."""
    on = {"to": "referrer", "on": "purchase", "unit": "EUR"}
    rewards = [{"name": f"rule-{at}", **on, **rule} for at, rule in enumerate(rules)]
    await company.use_rules({"qualify": {"on": "signup"}, "rewards": rewards})
    referrer, referee = await company.new_referrer(), new_id("referee")
    await company.sign_up(referrer["code"], referee, signed_up_at=ago(20))
    for days, unit in ((19, "USD"), (18, "EUR"), (17, "EUR")):
        paid = {"amount": 3000, "unit": unit, "occurred_at": ago(days)}
        assert (await company.report("purchase", referee, **paid)).status == 201
    before = await balance(company, referrer["external_id"])
    late = await company.report("purchase", referee, amount=9000, unit="EUR")
    assert (late.status, late.json()["outcome"]) == (201, "recorded")
    assert await balance(company, referrer["external_id"]) == before


async def test_what_a_cap_refuses_is_said_and_never_given_later(company: Company) -> None:
    await use_rewards(company, {**FRIEND, "max_per_referrer": 1})
    referrer = await company.new_referrer()
    first, order, _ = await bought(company, referrer)
    second, _, said = await bought(company, referrer)
    assert (said["outcome"], said["rewards"]) == ("cap-reached", [])
    assert (said["referral"]["state"], said["referral"]["reason"]) == ("qualified", "cap-reached")
    await refunded(company, first, order)
    assert (await company.report("purchase", second, **PAID)).json()["rewards"] == []
    _, _, third = await bought(company, referrer)
    assert third["outcome"] == "qualified"
    assert [reward["amount"] for reward in third["rewards"]] == [500]


async def test_a_refund_in_part_shrinks_a_percentage_and_not_a_flat_amount(
    company: Company,
) -> None:
    await use_rewards(company, FRIEND, SHARE)
    referrer = await company.new_referrer()
    referee, order, _ = await bought(company, referrer)
    said = await refunded(company, referee, order, amount=999, unit="EUR")
    assert (said["outcome"], said["referral"]["state"]) == ("changed", "rewarded")
    left = {one["rule"]: one["amount"] - one["reversed"] for one in said["rewards"]}
    assert left == {"friend": 500, "share": 390}
    assert await balance(company, referrer["external_id"]) == {"EUR": (0, 890, 0)}


async def test_a_hold_ends_by_itself_and_makes_the_referral_rewarded(
    api: Api, company: Company
) -> None:
    await use_rewards(company, HELD)
    referrer = await company.new_referrer()
    _, _, said = await bought(company, referrer)
    api.clock.ahead += 15 * DAY
    async with asyncio.timeout(5):
        while await balance(company, referrer["external_id"]) != {"EUR": (0, 500, 0)}:
            await asyncio.sleep(0.05)
    shown = (await company.get(f"/referees/{said['referral']['id']}")).json()
    assert (shown["state"], shown["reason"]) == ("rewarded", "hold-over")


async def test_nothing_becomes_available_while_a_programme_is_paused_or_its_referrer_blocked(
    api: Api, company: Company
) -> None:
    await use_rewards(company, FRIEND)
    referrer = await company.new_referrer()
    referee = new_id("referee")
    await company.sign_up(referrer["code"], referee)
    paused = await company.patch("/programmes/default", {"paused": True})
    assert paused.json()["paused"]
    path = f"/participants/{referrer['participant_id']}"
    said = (await company.report("purchase", referee, **PAID)).json()
    assert [one["state"] for one in said["rewards"]] == ["pending"]
    await company.patch(path, {"blocked": True})
    await company.patch("/programmes/default", {"paused": False})
    await api.app[SERVICES].sweeps.release_due()
    [reward] = (await company.get("/rewards?state=pending")).json()["items"]
    assert reward["held"]
    await company.patch(path, {"blocked": False})
    await api.app[SERVICES].sweeps.release_due()
    assert await balance(company, referrer["external_id"]) == {"EUR": (0, 500, 0)}


async def test_neither_a_review_nor_an_event_releases_while_a_programme_is_paused(
    api: Api, company: Company
) -> None:
    await use_rewards(company, FRIEND, SHARE)
    referrer = await company.new_referrer()
    await company.patch("/programmes/default", {"paused": True})
    referee, order, said = await bought(company, referrer)
    await company.post(
        f"/referees/{said['referral']['id']}/decisions", {"decision": "approve", "reason": "Fine."}
    )
    await refunded(company, referee, order, amount=1000, unit="EUR")
    assert await balance(company, referrer["external_id"]) == {"EUR": (890, 0, 0)}
    await company.patch("/programmes/default", {"paused": False})
    await api.app[SERVICES].sweeps.release_due()
    assert await balance(company, referrer["external_id"]) == {"EUR": (0, 890, 0)}


async def test_what_an_account_is_given_waits_while_it_is_disabled(
    api: Api, company: Company
) -> None:
    await use_rewards(company, HELD)
    anna, admin = await api.new_person(), await new_admin(api)
    await company.sign_up(await api.new_code(anna), referee := new_id("referee"))
    await company.report("purchase", referee, **PAID)
    path = f"/admin/users/{anna.user_id}"
    for disabled in (True, False):
        assert (await api.patch(path, {"disabled": disabled}, by=admin)).status == 200
        [reward] = (await company.get("/rewards")).json()["items"]
        assert reward["held"] is disabled


async def test_nothing_follows_from_events_called_like_what_rules_are_about(
    api: Api, company: Company
) -> None:
    once = {**FRIEND, "name": "once", "on": "milestone", "at": 1}
    await use_rewards(company, FRIEND, WELCOME, once)
    types = ("signup", "qualified", "milestone")
    schema = (await api.get("//openapi.json")).json()["components"]["schemas"]["EventReport"]
    described = schema["properties"]["type"]["description"]
    referee, _, _ = await bought(company, await company.new_referrer())
    await company.sign_up((await company.new_referrer())["code"], other := new_id("referee"))
    before = (await company.get("/rewards")).json()
    given = ["friend", "once", "welcome", "welcome"]
    assert sorted(one["rule"] for one in before["items"]) == given
    for kind in types:
        assert f"`{kind}`" in described
        for one in (referee, other):
            answer = await company.report(kind, one, **PAID)
            assert (answer.status, answer.json()["outcome"]) == (201, "recorded")
    assert (await company.get("/rewards")).json() == before


async def test_rewards_are_listed_newest_first_and_found_by_state_rule_and_participant(
    company: Company,
) -> None:
    await use_rewards(company, FRIEND, WELCOME)
    referrer, other = await company.new_referrer(), await company.new_referrer()
    referee, order, _ = await bought(company, referrer)
    await bought(company, other)
    await refunded(company, referee, order)
    seen: list[Any] = []
    cursor = ""
    while cursor is not None:
        page = (await company.get(f"/rewards?limit=1{cursor}")).json()
        seen += page["items"]
        cursor = page["next_cursor"] and f"&cursor={page['next_cursor']}"
    assert [one["rule"] for one in seen] == ["friend", "welcome", "friend", "welcome"]

    async def found(query: str) -> list[str]:
        listed = (await company.get(f"/rewards?{query}")).json()["items"]
        return [one["id"] for one in listed]

    assert await found("state=reversed") == [seen[2]["id"]]
    assert await found("rule=welcome") == [seen[1]["id"], seen[3]["id"]]
    assert await found(f"external_id={other['external_id']}") == [seen[0]["id"]]
    assert await found(f"participant_id={referrer['participant_id']}") == [seen[2]["id"]]
    assert await found("external_id=nobody") == []


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("external_id=a&participant_id=01890000-0000-7000-8000-000000000000", "#/external_id"),
        ("participant_id=a", "#/participant_id"),
        ("external_id=a%20b", "#/external_id"),
        ("state=paid", "#/state"),
        ("rule=a%00b", "#/rule"),
        ("programme=nobody", "#/programme"),
        ("cursor=x", "#/cursor"),
        ("limit=0", "#/limit"),
    ],
)
async def test_a_list_that_cannot_be_is_refused(company: Company, query: str, pointer: str) -> None:
    assert_problem(await company.get(f"/rewards?{query}"), 422, "validation-failed", [pointer])


async def test_users_see_their_own_rewards_and_not_what_a_friend_has_spent(
    api: Api, company: Company
) -> None:
    await use_rewards(company, FRIEND, SHARE)
    anna, bert = await api.new_person(), await api.new_person()
    referrer = {"code": await api.new_code(anna)}
    await bought(company, referrer)
    await bought(company, await company.new_referrer())

    async def seen(path: str, person: Person) -> list[Any]:
        answer = await api.get(path, by=person)
        assert answer.status == 200, answer.body
        items: list[Any] = answer.json()["items"]
        return items

    rewards = {one["rule"]: one for one in await seen("/rewards", anna)}
    assert rewards["friend"]["referral_id"] is not None
    assert rewards["share"]["referral_id"] is None
    [shown] = await seen("/balances", anna)
    assert (shown["participant_id"], shown["available"]) == (anna.user_id, 990)
    assert len(await seen("/transfers", anna)) == 2
    for path in ("/rewards", "/balances", "/transfers"):
        assert await seen(path, bert) == []


@pytest.mark.parametrize("path", ["/rewards", "/balances", "/transfers"])
async def test_a_user_who_names_somebody_is_answered_about_nobody_else(
    api: Api, company: Company, path: str
) -> None:
    await use_rewards(company, FRIEND)
    spring = {"key": "spring", "name": "Spring", "rules": {"qualify": QUALIFY}}
    assert (await company.post("/programmes", spring)).status == 201
    anna, bert = await api.new_person(), await api.new_person()
    await bought(company, {"code": await api.new_code(anna)})

    async def seen(query: str) -> int:
        answer = await api.get(f"{path}?{query}", by=anna)
        assert answer.status == 200, answer.body
        return len(answer.json()["items"])

    assert await seen(f"participant_id={anna.user_id}") == 1
    assert await seen("programme=default") == 1
    assert await seen("programme=spring") == 0
    unknown = await api.get(f"{path}?programme=nobody", by=anna)
    assert_problem(unknown, 422, "validation-failed", ["#/programme"])
    for other in (f"participant_id={bert.user_id}", "external_id=u-1"):
        assert_problem(await api.get(f"{path}?{other}", by=anna), 403, "not-allowed")


async def test_trying_rules_says_what_the_service_then_does(company: Company) -> None:
    """Promise 16."""
    rewards = [FRIEND, {**SHARE, "max_amount": 300, "hold_days": 3}, WELCOME]
    rules = {"qualify": QUALIFY, "rewards": rewards}
    order, refund = new_id("order"), new_id("refund")
    events = [
        {"id": order, "type": "purchase", **PAID},
        {"id": refund, "type": "refund", "refunds": order, "amount": 2000, "unit": "EUR"},
    ]
    body = {"rules": rules, "referral": {}, "events": events}
    tried = (await company.post("/programmes/default/rules/try", body)).json()
    await company.use_rules(rules)
    referrer, referee = await company.new_referrer(), new_id("referee")
    await company.sign_up(referrer["code"], referee)
    for event in events:
        last = await company.post("/events", {**event, "external_id": referee})
    said = last.json()
    assert (tried["state"], tried["reason"]) == (said["referral"]["state"], "hold-over")

    def told(of: list[Any]) -> set[tuple[Any, ...]]:
        return {
            (one["rule"], one["to"], one["unit"], one["amount"] - one.get("reversed", 0))
            for one in of
        }

    assert told(tried["rewards"]) == told(said["rewards"])
    assert {one["rule"]: one["event_id"] for one in tried["rewards"]} == {
        "friend": None,
        "share": order,
        "welcome": None,
    }


async def test_an_event_that_gives_two_rewards_takes_twelve_round_trips(
    company: Company, database: asyncpg.Connection
) -> None:
    """With the look-up of the client, BEGIN, COMMIT, and a message for an endpoint that listens."""
    await use_rewards(company, FRIEND, {**WELCOME, "on": "qualified"})
    made = await company.post("/webhook-endpoints", {"url": "https://hooks.example.com/"})
    assert made.status == 201
    await database.execute(
        "UPDATE webhook_endpoints SET failing_since = now(), resume_at = now() + interval '1 day'"
    )
    referrer = await company.new_referrer()
    await bought(company, referrer)
    await company.sign_up(referrer["code"], referee := new_id("referee"))
    with recorded_statements() as statements:
        said = (await company.report("purchase", referee, **PAID)).json()
    assert len(said["rewards"]) == 2
    of_workers = ("FROM jobs", "WITH ready", "SELECT DISTINCT due", "ORDER BY window_ends_at")
    took = [text for text, _ in statements if not any(one in text for one in of_workers)]
    assert len(took) == 12


async def test_tiers_and_milestones_can_be_tried_as_a_later_referral(company: Company) -> None:
    tiers = {**FRIEND, "tiers": [{"from": 5, "amount": 700}]}
    five = {"name": "five", "to": "referrer", "on": "milestone", "every": 5, "amount": 9, **EUR}
    body = {
        "rules": {"qualify": QUALIFY, "rewards": [tiers, five]},
        "referral": {"nth": 5},
        "events": [{"id": "o", "type": "purchase", **PAID}],
    }
    tried = (await company.post("/programmes/default/rules/try", body)).json()
    assert {one["rule"]: one["amount"] for one in tried["rewards"]} == {"friend": 700, "five": 9}


async def test_a_client_without_the_scope_sees_no_rewards(api: Api) -> None:
    writer = await new_company(api, Scope.EVENTS_WRITE)
    for path in ("/rewards", "/balances", "/transfers", "/programmes/default/liability"):
        assert_problem(await writer.get(path), 403, "insufficient-scope")
