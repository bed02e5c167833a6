"""Programmes and the versions of their rules."""

import asyncio
from typing import Any

import pytest

from tests.api.assertions import assert_problem
from tests.company import Company, new_company
from tests.factories import Api

QUALIFY = {"qualify": {"on": "purchase"}}
FRIEND = {"name": "friend", "to": "referrer", "on": "qualified", "unit": "EUR", "amount": 500}


@pytest.fixture
async def company(api: Api) -> Company:
    return await new_company(api)


async def test_the_default_programme_does_what_the_mission_says(company: Company) -> None:
    shown = (await company.get("/programmes/default")).json()
    assert shown == {
        "key": "default",
        "name": "Default",
        "version": 1,
        "rules": {"qualify": {"on": "signup"}, "rewards": []},
        "effective_rules": {
            "qualify": {"on": "signup"},
            "rewards": [],
            "fraud": {
                "self_referral": "hold",
                "same_device": "hold",
                "same_ip": "flag",
                "disposable_email": "flag",
                "velocity": "flag",
            },
        },
        "landing_url": None,
        "paused": False,
        "leaderboard": False,
        "ended_at": None,
        "created_at": shown["created_at"],
    }
    referrer = await company.new_referrer()
    assert (await company.sign_up(referrer["code"])).json()["state"] == "qualified"


async def test_a_programme_shows_what_applies_where_its_rules_are_silent(company: Company) -> None:
    rules = {**QUALIFY, "rewards": [FRIEND], "fraud": {"velocity": "reject"}}
    await company.use_rules(rules)
    shown = (await company.get("/programmes/default")).json()
    assert shown["rules"] == rules
    full = shown["effective_rules"]
    assert full["rewards"] == [{**FRIEND, "hold_days": 0}]
    assert (full["fraud"]["velocity"], full["fraud"]["same_device"]) == ("reject", "hold")
    assert await company.use_rules(full) == 3  # so it can be put as it is
    again = (await company.get("/programmes/default")).json()
    assert again["rules"] == again["effective_rules"] == full


async def test_a_programme_is_created_listed_and_changed(company: Company) -> None:
    body = {"key": "spring", "name": "Spring", "rules": QUALIFY, "landing_url": "https://a.example"}
    created = await company.post("/programmes", body)
    assert created.status == 201
    assert created.headers["Location"] == "/api/v1/programmes/spring"
    again = await company.post("/programmes", body)
    assert_problem(again, 409, "programme-key-taken", ["#/key"])
    listed = (await company.get("/programmes")).json()["items"]
    assert [one["key"] for one in listed] == ["spring", "default"]
    first = (await company.get("/programmes?limit=1")).json()
    rest = (await company.get(f"/programmes?limit=1&cursor={first['next_cursor']}")).json()
    assert [one["key"] for one in first["items"] + rest["items"]] == ["spring", "default"]
    changed = await company.patch("/programmes/spring", {"paused": True, "name": "Summer"})
    assert changed.json() == {**created.json(), "paused": True, "name": "Summer"}
    for missing in ("nowhere", "%00", "%FF", "A" * 500):
        assert_problem(await company.get(f"/programmes/{missing}"), 404, "programme-not-found")
        assert_problem(
            await company.patch(f"/programmes/{missing}", {"paused": True}),
            404,
            "programme-not-found",
        )


async def test_a_version_is_shown_with_the_same_bytes_forever(company: Company) -> None:
    first = await company.get("/programmes/default/rules/1")
    rules = {"rewards": [FRIEND], "qualify": {"on": "purchase", "within_days": 30}}
    put = await company.put("/programmes/default/rules", {"version": 1, "rules": rules})
    assert (put.status, put.json()["version"]) == (201, 2)
    assert put.headers["Location"] == "/api/v1/programmes/default/rules/2"
    late = await company.put("/programmes/default/rules", {"version": 1, "rules": rules})
    assert_problem(late, 409, "rules-changed", ["#/version"])
    assert (await company.get("/programmes/default/rules/1")).body == first.body
    assert (await company.get("/programmes/default/rules/2")).body == put.body
    assert (await company.get("/programmes/default/rules/2")).json()["rules"] == rules
    for missing in ("3", "0", "-1", "x", "9" * 30, "²"):
        answer = await company.get(f"/programmes/default/rules/{missing}")
        assert_problem(answer, 404, "programme-not-found")
        assert "version" in answer.json()["detail"]
    answer = await company.get("/programmes/nobody/rules/1")
    assert_problem(answer, 404, "programme-not-found")
    assert "version" not in answer.json()["detail"]


async def test_of_two_who_replace_the_rules_one_succeeds(company: Company) -> None:
    body = {"version": 1, "rules": QUALIFY}
    answers = await asyncio.gather(
        *(company.put("/programmes/default/rules", body) for _ in range(8))
    )
    assert sorted(answer.status for answer in answers) == [201] + [409] * 7


async def test_a_referral_keeps_the_rules_it_was_made_under(company: Company) -> None:
    await company.use_rules(QUALIFY)
    referrer = await company.new_referrer()
    await company.sign_up(referrer["code"], "u-1")
    version = await company.use_rules({"qualify": {"on": "subscription"}})
    await company.sign_up(referrer["code"], "u-2")
    states = {
        referee: (await company.report("purchase", referee)).json()["referral"]
        for referee in ("u-1", "u-2")
    }
    assert [states["u-1"]["state"], states["u-2"]["state"]] == ["qualified", "pending"]
    assert [states["u-1"]["version"], states["u-2"]["version"]] == [version - 1, version]


async def test_the_codes_of_an_ended_programme_are_unusable(company: Company, api: Api) -> None:
    person = await api.new_person()
    code = await api.new_code(person)
    assert (await api.get(f"/referral-code/{person.email}")).status == 200
    referrer = await company.new_referrer()
    await company.use_rules(QUALIFY)
    await company.sign_up(referrer["code"], "u-1")
    ended = await company.patch("/programmes/default", {"ended": True})
    assert ended.json()["ended_at"]
    assert (await api.get(f"/referral-code/{person.email}")).status == 404
    assert (await api.get(f"/codes/{code}")).status == 404
    assert (await api.get("/referral-code", by=person)).status == 404
    shown = (await company.get(f"/participants/{referrer['participant_id']}")).json()
    assert (shown["code"], shown["share_url"]) == (None, None)
    assert (await api.register(referral_code=code)).status == 422
    assert (await company.sign_up(referrer["code"])).status == 422
    assert (await company.report("purchase", "u-1")).json()["outcome"] == "qualified"
    await company.patch("/programmes/default", {"ended": False})
    assert (await api.get(f"/referral-code/{person.email}")).status == 200


async def test_a_code_of_another_programme_is_unusable(company: Company, api: Api) -> None:
    await company.post("/programmes", {"key": "spring", "name": "Spring", "rules": QUALIFY})
    referrer = await company.new_referrer(programme="spring")
    answer = await company.sign_up(referrer["code"])
    assert_problem(answer, 422, "referral-code-unusable", ["#/code"])
    assert (await api.register(referral_code=referrer["code"])).status == 422
    assert (await company.sign_up(referrer["code"], programme="spring")).status == 201


REWARDS = "#/rules/rewards"


def reward(**members: Any) -> dict[str, Any]:
    """Return rules with one reward, changed; a member None is left out."""
    wanted = {name: value for name, value in {**FRIEND, **members}.items() if value is not None}
    return {**QUALIFY, "rewards": [wanted]}


@pytest.mark.parametrize(
    ("rules", "pointers"),
    [
        ({}, ["#/rules/qualify"]),
        ([], ["#/rules"]),
        ({"qualify": {}}, ["#/rules/qualify/on"]),
        ({"qualify": {"on": "Purchase"}}, ["#/rules/qualify/on"]),
        ({"qualify": {"on": "refund"}}, ["#/rules/qualify/on"]),
        ({"qualify": {"on": "milestone"}}, ["#/rules/qualify/on"]),
        ({"qualify": {"on": "purchase", "more": 1}}, ["#/rules/qualify/more"]),
        (
            {"qualify": {"on": "signup", "minimum": {"amount": 1, "unit": "EUR"}}},
            ["#/rules/qualify/minimum"],
        ),
        (
            {"qualify": {"on": "purchase", "minimum": {"amount": 0, "unit": "EURO"}}},
            ["#/rules/qualify/minimum/amount", "#/rules/qualify/minimum/unit"],
        ),
        ({"qualify": {"on": "purchase", "within_days": 0}}, ["#/rules/qualify/within_days"]),
        ({**QUALIFY, "more": 1}, ["#/rules/more"]),
        ({**QUALIFY, "fraud": {"same_ip": "maybe"}}, ["#/rules/fraud/same_ip"]),
        ({**QUALIFY, "rewards": [FRIEND, FRIEND]}, [f"{REWARDS}/1/name"]),
        ({**QUALIFY, "rewards": [{**FRIEND, "name": f"n{n}"} for n in range(21)]}, [REWARDS]),
        ({**QUALIFY, "rewards": ["x", 1, [], None]}, [f"{REWARDS}/{n}" for n in range(4)]),
        (reward(name="Nope!"), [f"{REWARDS}/0/name"]),
        (reward(to="anyone"), [f"{REWARDS}/0/to"]),
        (reward(more=1), [f"{REWARDS}/0/more"]),
        (reward(basis_points=5), [f"{REWARDS}/0/amount"]),
        (reward(amount=None), [f"{REWARDS}/0/amount"]),
        (reward(amount=None, basis_points=10_001), [f"{REWARDS}/0/basis_points"]),
        (reward(amount=None, basis_points=5, on="signup"), [f"{REWARDS}/0/basis_points"]),
        (
            {
                "qualify": {"on": "signup"},
                "rewards": [{**FRIEND, "amount": None, "basis_points": 1}],
            },
            [f"{REWARDS}/0/basis_points"],
        ),
        (
            reward(tiers=[{"from": 6, "amount": 1}, {"from": 3, "amount": 2}]),
            [f"{REWARDS}/0/tiers"],
        ),
        (reward(tiers=[{"from": 6, "basis_points": 1}]), [f"{REWARDS}/0/tiers"]),
        (reward(tiers=[{"amount": 1}]), [f"{REWARDS}/0/tiers/0/from"]),
        (reward(on="milestone"), [f"{REWARDS}/0/at"]),
        (reward(on="milestone", at=1, every=2), [f"{REWARDS}/0/at"]),
        (reward(at=1), [f"{REWARDS}/0/at"]),
        (reward(on="milestone", at=1, to="referee"), [f"{REWARDS}/0/to"]),
        (reward(times=1), [f"{REWARDS}/0/times"]),
        (reward(hold_days=367), [f"{REWARDS}/0/hold_days"]),
        (reward(max_amount=5), [f"{REWARDS}/0/max_amount"]),
        (reward(on="refund"), [f"{REWARDS}/0/on"]),
        # Several at once, each where it is, and none because of another one.
        (
            {
                "qualify": {"on": "purchase", "minimum": {"amount": 0, "unit": "points"}},
                "rewards": [None, FRIEND, {**FRIEND, "amount": None, "basis_points": 1}],
            },
            [
                "#/rules/qualify/minimum/amount",
                f"{REWARDS}/0",
                f"{REWARDS}/2/name",
                f"{REWARDS}/2/unit",
            ],
        ),
        (
            reward(times=0, max_amount=0, tiers=["x", {"from": 2, "amount": 0}]),
            [f"{REWARDS}/0/{at}" for at in ("max_amount", "tiers/0", "tiers/1/amount", "times")],
        ),
        (
            reward(tiers=[{}, {"from": 3, "amount": 1}, {"from": 3, "amount": 1}]),
            [f"{REWARDS}/0/tiers", f"{REWARDS}/0/tiers/0/from"],
        ),
    ],
)
async def test_rules_that_contradict_themselves_are_refused(
    company: Company, rules: Any, pointers: list[str]
) -> None:
    answer = await company.put("/programmes/default/rules", {"version": 1, "rules": rules})
    assert_problem(answer, 422, "validation-failed", pointers)


async def test_a_member_that_is_wrong_in_itself_is_named_once(company: Company) -> None:
    for members in ({"times": 0}, {"max_amount": 0}, {"tiers": [{"from": 2, "amount": 0}]}):
        body = {"version": 1, "rules": reward(**members)}
        answer = await company.put("/programmes/default/rules", body)
        assert len(answer.json()["errors"]) == 1, answer.body


async def test_the_rules_of_the_design_are_accepted(company: Company) -> None:
    rules = {
        "qualify": {
            "on": "purchase",
            "minimum": {"amount": 2000, "unit": "EUR"},
            "within_days": 30,
        },
        "rewards": [
            {"name": "welcome", "to": "referee", "on": "signup", "unit": "points", "amount": 100},
            {
                **FRIEND,
                "hold_days": 14,
                "tiers": [{"from": 6, "amount": 800}],
                "max_per_referrer": 50,
                "max_total": 10000,
            },
            {
                "name": "share",
                "to": "referrer",
                "on": "purchase",
                "unit": "EUR",
                "basis_points": 1000,
                "max_amount": 5000,
                "times": 12,
                "within_days": 365,
                "hold_days": 30,
            },
            {
                "name": "ten",
                "to": "referrer",
                "on": "milestone",
                "at": 10,
                "unit": "EUR",
                "amount": 5000,
            },
        ],
        "fraud": {
            "self_referral": "hold",
            "same_device": "hold",
            "same_ip": "flag",
            "disposable_email": "flag",
            "velocity": "flag",
        },
    }
    version = await company.use_rules(rules)
    stored = (await company.get(f"/programmes/default/rules/{version}")).json()["rules"]
    assert stored == rules


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"key": "Spring"}, "#/key"),
        ({"key": "x" * 33}, "#/key"),
        ({"name": " "}, "#/name"),
        ({"name": "a\0b"}, "#/name"),
        ({"landing_url": "javascript:alert(1)"}, "#/landing_url"),
        ({"landing_url": "https://"}, "#/landing_url"),
        ({"landing_url": "https://[::1"}, "#/landing_url"),
        ({"landing_url": "https://a@b.example"}, "#/landing_url"),
        ({"landing_url": "https://a.example:x/"}, "#/landing_url"),
        ({"landing_url": "https://a.example/\r\nSet-Cookie: a=b"}, "#/landing_url"),
    ],
)
async def test_what_a_programme_cannot_be_is_refused(
    company: Company, members: dict[str, Any], pointer: str
) -> None:
    body = {"key": "spring", "name": "Spring", "rules": QUALIFY, **members}
    answer = await company.post("/programmes", body)
    assert_problem(answer, 422, "validation-failed", [pointer])
    assert_problem(await company.patch("/programmes/default", {}), 422, "validation-failed", ["#"])


async def test_rules_are_tried_without_storing_anything(company: Company) -> None:
    minimum = {"minimum": {"amount": 2000, "unit": "EUR"}}
    body: dict[str, Any] = {"rules": {"qualify": {"on": "purchase", **minimum}}, "referral": {}}
    bought = {"id": "o-1", "type": "purchase", "amount": 4900, "unit": "EUR"}
    back = {"id": "r-1", "type": "refund", "refunds": "o-1", "external_id": "u-1"}
    path = "/programmes/default/rules/try"
    for events, state, reason in [
        ([], "pending", "signed-up"),
        ([bought], "qualified", "qualified"),
        ([back, bought], "reversed", "refunded"),
        ([{**bought, "amount": 1}], "pending", "signed-up"),
    ]:
        tried = await company.post(path, {**body, "events": events})
        assert (tried.status, tried.json()) == (
            200,
            {"state": state, "reason": reason, "rewards": []},
        )
    assert (await company.get("/participants?external_id=u-1")).json()["items"] == []
    for events, pointer in [
        ([bought, {**bought, "amount": -1}], "#/events/1/amount"),
        ([bought, {**bought, "amount": 1}], "#/events/1/id"),
        ([{**bought, "occurred_at": "9999-12-31T23:59:59Z"}], "#/events/0/occurred_at"),
        ([bought, {**back, "amount": 1, "unit": "USD"}], "#/events/1/unit"),
        ([back, {**back, "id": "r-2", "refunds": "r-1"}], "#/events/1/refunds"),
        ("x", "#/events"),
        ([1], "#/events/0"),
    ]:
        bad = await company.post(path, {**body, "events": events})
        assert_problem(bad, 422, "validation-failed", [pointer])
    for moment in ("9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"):
        referral = {"signed_up_at": moment}
        bad = await company.post(path, {**body, "referral": referral, "events": []})
        assert_problem(bad, 422, "validation-failed", ["#/referral/signed_up_at"])
