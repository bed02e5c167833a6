"""Events that companies report, and sign-ups."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from service.api.http.app_keys import SERVICES
from service.domain.clock import moment_text
from tests.api.assertions import assert_problem
from tests.company import Company, new_company, new_id
from tests.factories import Api
from tests.recorded import recorded_statements

RULES = {
    "qualify": {"on": "purchase", "minimum": {"amount": 2000, "unit": "EUR"}, "within_days": 30}
}
PAID = {"amount": 4900, "unit": "EUR"}


def at(**ago: float) -> str:
    """Return a moment in the past."""
    return moment_text(datetime.now(UTC) - timedelta(**ago))


@pytest.fixture
async def company(api: Api) -> Company:
    company = await new_company(api)
    await company.use_rules(RULES)
    return company


async def new_referral(company: Company, **members: Any) -> tuple[str, Any]:
    """Return the external id of a referee, and the referral."""
    referrer, referee = await company.new_referrer(), new_id("referee")
    answer = await company.sign_up(referrer["code"], referee, **members)
    assert answer.status == 201, answer.body
    return referee, answer.json()


async def test_an_event_before_the_sign_up_waits_for_it(company: Company) -> None:
    waiting = await company.report("purchase", "u-9", **PAID)
    assert (waiting.status, waiting.json()["outcome"]) == (201, "no-referral")
    assert waiting.json()["referral"] is None
    assert waiting.json()["rewards"] == []
    referrer = await company.new_referrer()
    assert (await company.sign_up(referrer["code"], "u-9")).json()["state"] == "qualified"


async def test_an_id_counts_once(company: Company) -> None:
    referee, _ = await new_referral(company)
    body = {"id": "order-1", "type": "purchase", "external_id": referee, **PAID}
    assert (await company.post("/events", body)).status == 201
    again = await company.post("/events", {**body, "occurred_at": None})
    assert (again.status, again.json()["outcome"]) == (200, "qualified")
    other = await company.post("/events", {**body, "amount": 1})
    assert_problem(other, 409, "id-reused", ["#/id"])


@pytest.mark.parametrize(
    ("members", "outcome"),
    [
        ({**PAID, "amount": 1999}, "below-minimum"),
        ({}, "below-minimum"),
        ({"amount": 4900, "unit": "USD"}, "unit-differs"),
        ({"type": "visit"}, "recorded"),
        (PAID, "qualified"),
    ],
)
async def test_the_answer_says_what_an_event_did(
    company: Company, members: dict[str, Any], outcome: str
) -> None:
    referee, _ = await new_referral(company)
    kind = members.get("type", "purchase")
    rest = {name: value for name, value in members.items() if name != "type"}
    answer = await company.report(kind, referee, **rest)
    assert (answer.status, answer.json()["outcome"]) == (201, outcome)


async def test_the_time_of_an_event_decides_whether_it_counts(company: Company) -> None:
    referee, _ = await new_referral(company, signed_up_at=at(days=40))
    late = await company.report("purchase", referee, **PAID)
    assert late.json()["outcome"] == "outside-window"
    early = await company.report("purchase", referee, **PAID, occurred_at=at(days=50))
    assert early.json()["outcome"] == "before-sign-up"
    in_time = await company.report("purchase", referee, **PAID, occurred_at=at(days=20))
    assert in_time.json()["outcome"] == "qualified"


async def test_refunds_take_back_in_part_and_no_more_than_was_paid(company: Company) -> None:
    referee, _ = await new_referral(company)
    await company.report("purchase", referee, id="order-1", **PAID)
    part = {"refunds": "order-1", "amount": 2000, "unit": "EUR"}
    kept = await company.report("refund", referee, **part)
    assert kept.json()["referral"]["state"] == "qualified"
    gone = await company.report("refund", referee, **part)
    assert gone.json()["outcome"] == "reversed"
    more = await company.report("refund", referee, **{**part, "amount": 10**12})
    assert (more.status, more.json()["referral"]["state"]) == (201, "reversed")
    again = await company.report("purchase", referee, **PAID)
    assert again.json()["outcome"] == "qualified"


async def test_a_refund_may_come_before_what_it_takes_back(company: Company) -> None:
    referee, _ = await new_referral(company)
    early = await company.report("refund", referee, refunds="order-1")
    assert (early.status, early.json()["outcome"]) == (201, "recorded")
    late = await company.report("purchase", referee, id="order-1", **PAID)
    assert late.json()["referral"]["state"] == "reversed"


@pytest.mark.parametrize(
    ("members", "pointers"),
    [
        ({"id": ""}, ["#/id"]),
        ({"id": "a b"}, ["#/id"]),
        ({"id": "x" * 129}, ["#/id"]),
        ({"id": None}, ["#/id"]),
        ({"type": "Purchase"}, ["#/type"]),
        ({"type": "x" * 65}, ["#/type"]),
        ({"amount": 1.5}, ["#/amount"]),
        ({"amount": 1e3}, ["#/amount"]),
        ({"amount": "5"}, ["#/amount"]),
        ({"amount": True}, ["#/amount"]),
        ({"amount": -1}, ["#/amount"]),
        ({"amount": 10**12 + 1}, ["#/amount"]),
        ({"unit": "eur"}, ["#/unit"]),
        ({"unit": "EURO"}, ["#/unit"]),
        ({"unit": "€"}, ["#/unit"]),
        ({"unit": "Points"}, ["#/unit"]),
        ({"unit": None}, ["#/unit"]),
        ({"amount": None}, ["#/amount"]),
        ({"external_id": None}, ["#/external_id"]),
        ({"participant_id": "00000000-0000-7000-8000-000000000000"}, ["#/external_id"]),
        ({"external_id": None, "participant_id": "nonsense"}, ["#/participant_id"]),
        (
            {"external_id": None, "participant_id": "00000000-0000-7000-8000-000000000000"},
            ["#/participant_id"],
        ),
        ({"occurred_at": "2026-11-26T09:00:00"}, ["#/occurred_at"]),
        ({"occurred_at": at(days=367)}, ["#/occurred_at"]),
        ({"occurred_at": at(minutes=-60)}, ["#/occurred_at"]),
        ({"refunds": "order-1"}, ["#/refunds"]),
        ({"refunds": "order 1"}, ["#/refunds"]),
        ({"type": "refund"}, ["#/refunds"]),
        ({"programme": "nowhere"}, ["#/programme"]),
        ({"programme": "\ud800"}, ["#/programme"]),
        ({"programme": "a\0"}, ["#/programme"]),
        ({"more": 1}, ["#/more"]),
        (
            {"id": "", "occurred_at": at(days=367), "unit": "eur"},
            ["#/id", "#/occurred_at", "#/unit"],
        ),
    ],
)
async def test_bad_events_are_refused_where_they_are_at_fault(
    company: Company, members: dict[str, Any], pointers: list[str]
) -> None:
    body = {"id": "e-1", "type": "purchase", "external_id": "u-1", **PAID, **members}
    answer = await company.post("/events", body)
    assert_problem(answer, 422, "validation-failed", pointers)
    assert len(answer.json()["errors"]) == len(pointers)  # each once


async def test_a_refund_still_counts_when_its_buyer_is_erased(company: Company) -> None:
    referee, referral = await new_referral(company)
    await company.report("purchase", referee, id="order-1", **PAID)
    assert (await company.delete(f"/participants/{referral['id']}")).status == 204
    more = await company.report("purchase", referee, **PAID)
    assert (more.json()["outcome"], more.json()["referral"]) == ("erased", None)
    refunded = await company.report("refund", referee, refunds="order-1")
    assert refunded.json()["outcome"] == "reversed"
    assert (await company.get(f"/referees/{referral['id']}")).json()["state"] == "reversed"


async def test_approving_lifts_the_rejection_of_a_window_that_has_passed(company: Company) -> None:
    _, referral = await new_referral(company, signed_up_at=at(days=40))
    assert (referral["state"], referral["reason"]) == ("rejected", "window-passed")
    path = f"/referees/{referral['id']}/decisions"
    approved = await company.post(path, {"decision": "approve", "reason": "We were late."})
    shown = approved.json()
    assert (shown["state"], shown["reason"]) == ("pending", "review-approved")


async def test_a_refund_of_what_it_cannot_be_of_is_refused(company: Company) -> None:
    await company.report("purchase", "u-1", id="order-1", **PAID)
    theirs = await company.report("refund", "u-2", refunds="order-1")
    assert_problem(theirs, 422, "validation-failed", ["#/refunds"])
    unit = await company.report("refund", "u-1", refunds="order-1", amount=1, unit="USD")
    assert_problem(unit, 422, "validation-failed", ["#/unit"])


async def test_a_referee_is_referred_once(company: Company) -> None:
    referrer, other = await company.new_referrer(), await company.new_referrer()
    first = await company.sign_up(referrer["code"], "u-1")
    assert first.status == 201
    assert first.headers["Location"] == f"/api/v1/referees/{first.json()['id']}"
    again = await company.sign_up(referrer["code"].lower(), "u-1")
    assert (again.status, again.json()) == (200, first.json())
    assert_problem(await company.sign_up(other["code"], "u-1"), 409, "already-referred")


async def test_an_email_address_is_referred_once(company: Company) -> None:
    referrer = await company.new_referrer()
    email = "carla@example.com"
    assert (await company.sign_up(referrer["code"], "u-1", email=email)).status == 201
    answer = await company.sign_up(referrer["code"], "u-2", email="Carla@Example.com")
    assert_problem(answer, 409, "already-referred", ["#/email"])


async def test_nobody_refers_themselves_nor_their_referrer(company: Company) -> None:
    anna = await company.new_referrer("anna")
    assert_problem(await company.sign_up(anna["code"], "anna"), 422, "self-referral", ["#/code"])
    bert = await company.new_referrer("bert")
    assert (await company.sign_up(anna["code"], "bert")).status == 201
    mutual = await company.sign_up(bert["code"], "anna")
    assert_problem(mutual, 409, "already-referred", ["#/code"])


async def test_a_code_counts_if_it_lived_when_its_link_was_followed(company: Company) -> None:
    referrer = await company.new_referrer()
    path, clicked = f"/participants/{referrer['participant_id']}", at(seconds=0)
    await company.put(f"{path}/code", {"expires_in_days": 9})
    dead = await company.sign_up(referrer["code"], "u-1")
    assert_problem(dead, 422, "referral-code-unusable", ["#/code"])
    assert (await company.sign_up(referrer["code"], "u-1", clicked_at=clicked)).status == 201
    early = await company.sign_up(referrer["code"], "u-2", clicked_at=at(hours=1))
    assert_problem(early, 422, "referral-code-unusable", ["#/code"])
    live = (await company.get(path)).json()["code"]
    early = await company.sign_up(live, "u-2", clicked_at=at(hours=1))
    assert_problem(early, 422, "referral-code-unusable", ["#/code"])


async def test_a_deleted_code_does_not_count_by_an_earlier_life(company: Company) -> None:
    referrer = await company.new_referrer(code={"expires_in_days": 5, "code": "ANNA-OIL"})
    path, clicked = f"/participants/{referrer['participant_id']}", at(seconds=0)
    await company.put(f"{path}/code", {"expires_in_days": 9, "code": "ANNA-OIL"})
    alike = await company.sign_up("anna-0il", "u-1", clicked_at=clicked)
    assert alike.status == 201
    assert (await company.sign_up("ANNA-O1L", "u-1")).status == 200
    await company.delete(f"{path}/code")
    answer = await company.sign_up("ANNA-OIL", "u-2", clicked_at=clicked)
    assert_problem(answer, 422, "referral-code-unusable", ["#/code"])


async def test_a_confirmation_just_before_the_sign_up_counts(company: Company, api: Api) -> None:
    await company.use_rules({"qualify": {"on": "email_confirmed"}})
    person, referrer = await api.new_person(), await company.new_referrer()
    async with api.app[SERVICES].database.transaction() as repositories:
        now = datetime.now(UTC)
        await repositories.users.confirm_email(UUID(person.user_id), person.email, now)
    body = {"code": referrer["code"], "participant_id": person.user_id}
    assert (await company.post("/referrals", body)).json()["state"] == "qualified"


@pytest.mark.parametrize(
    ("members", "pointers"),
    [
        ({"code": None}, ["#/code"]),
        ({"code": 5}, ["#/code"]),
        ({"clicked_at": at(days=367)}, ["#/clicked_at"]),
        ({"signed_up_at": at(minutes=-60)}, ["#/signed_up_at"]),
        ({"clicked_at": at(hours=1), "signed_up_at": at(hours=2)}, ["#/signed_up_at"]),
        ({"email": "nonsense"}, ["#/email"]),
        ({"ip": "nonsense"}, ["#/ip"]),
        ({"external_id": None}, ["#/external_id"]),
        ({"programme": "nowhere"}, ["#/programme"]),
    ],
)
async def test_bad_sign_ups_are_refused_where_they_are_at_fault(
    company: Company, members: dict[str, Any], pointers: list[str]
) -> None:
    referrer = await company.new_referrer()
    body = {"code": referrer["code"], "external_id": "u-1", **members}
    answer = await company.post("/referrals", body)
    assert_problem(answer, 422, "validation-failed", pointers)


async def test_a_used_up_code_is_unusable_even_with_an_early_click(company: Company) -> None:
    referrer = await company.new_referrer(code={"expires_in_days": 5, "max_uses": 1})
    clicked = at(seconds=-1)
    assert (await company.sign_up(referrer["code"], "u-1")).status == 201
    answer = await company.sign_up(referrer["code"], "u-2", clicked_at=clicked)
    assert_problem(answer, 422, "referral-code-unusable", ["#/code"])


async def test_referrals_are_listed_in_pages_and_by_state(company: Company) -> None:
    referrer = await company.new_referrer()
    referees = [new_id("page") for _ in range(5)]
    for referee in referees:
        await company.sign_up(referrer["code"], referee)
    await company.report("purchase", referees[2], **PAID)
    seen: list[Any] = []
    path = "/referrals?limit=2"
    while path:
        page = (await company.get(path)).json()
        seen += page["items"]
        path = page["next_cursor"] and f"/referrals?limit=2&cursor={page['next_cursor']}"
    assert len({one["id"] for one in seen}) == 5
    assert [one["registered_at"] for one in seen] == sorted(
        (one["registered_at"] for one in seen), reverse=True
    )
    reverse = (await company.get("/referrals?limit=3&order=oldest")).json()
    rest = (
        await company.get(f"/referrals?limit=3&order=oldest&cursor={reverse['next_cursor']}")
    ).json()
    assert reverse["items"] + rest["items"] == seen[::-1]
    qualified = (await company.get("/referrals?state=qualified")).json()["items"]
    assert [one["state"] for one in qualified] == ["qualified"]
    whose = f"/referrals?referrer_id={referrer['participant_id']}&state=pending"
    assert len((await company.get(whose)).json()["items"]) == 4
    assert (await company.get("/referrals?review=open")).json()["items"] == []
    for query, pointer in {
        "state=x": "#/state",
        "order=x": "#/order",
        "referrer_id=x": "#/referrer_id",
        "programme=nowhere": "#/programme",
        "limit=0": "#/limit",
        "cursor=x": "#/cursor",
    }.items():
        answer = await company.get(f"/referrals?{query}")
        assert_problem(answer, 422, "validation-failed", [pointer])


async def test_a_review_decides_and_says_so(company: Company) -> None:
    referee, referral = await new_referral(company)
    await company.report("purchase", referee, **PAID)
    path = f"/referees/{referral['id']}/decisions"
    verdict = {"decision": "reject", "reason": "The same person."}
    rejected = await company.post(path, verdict)
    assert (rejected.status, rejected.json()["state"]) == (201, "reversed")
    assert rejected.json()["review"] == "rejected"
    assert rejected.json()["decisions"][0]["detail"] == "The same person."
    assert rejected.json()["decisions"][0]["made_by"] == f"client:{company.client_id}"
    assert (await company.post(path, verdict)).status == 200
    more = await company.report("purchase", referee, **PAID)
    assert more.json()["referral"]["state"] == "reversed"
    approved = await company.post(path, {"decision": "approve", "reason": "A mistake."})
    assert (approved.status, approved.json()["state"]) == (201, "qualified")
    for body, pointers in [
        ({"decision": "maybe", "reason": "x"}, ["#/decision"]),
        ({"decision": "approve"}, ["#/reason"]),
        ({"decision": "approve", "reason": " "}, ["#/reason"]),
        ({"decision": "approve", "reason": "a\u202eb"}, ["#/reason"]),
    ]:
        assert_problem(await company.post(path, body), 422, "validation-failed", pointers)
    nobody = "/referees/00000000-0000-7000-8000-000000000000"
    assert_problem(await company.get(nobody), 404, "referral-not-found")
    assert_problem(await company.post(f"{nobody}/decisions", verdict), 404, "referral-not-found")


async def test_a_referee_with_an_account_sees_their_own_referral(
    company: Company, api: Api
) -> None:
    referrer = await company.new_referrer()
    person, other = await api.new_person(referral_code=referrer["code"]), await api.new_person()
    shown = await api.get(f"/referees/{person.user_id}", by=person)
    assert shown.status == 200
    assert shown.json()["referrer_id"] == referrer["participant_id"]
    assert {"review", "flags"}.isdisjoint(shown.json())
    assert_problem(await api.get(f"/referees/{person.user_id}", by=other), 403, "not-allowed")
    nobody = "/referees/00000000-0000-7000-8000-000000000000"
    assert_problem(await api.get(nobody, by=other), 403, "not-allowed")
    assert_problem(await api.get(f"/referees/{other.user_id}", by=other), 404, "referral-not-found")


async def test_a_registration_with_a_code_is_a_referral_of_the_programme(
    company: Company, api: Api
) -> None:
    referrer = await api.new_person()
    person = await api.new_person(referral_code=await api.new_code(referrer))
    listed = (await api.get("/referrals/me", by=referrer)).json()["items"]
    assert [(one["id"], one["state"]) for one in listed] == [(person.user_id, "pending")]
    bought = await company.post(
        "/events", {"id": "o-1", "type": "purchase", "participant_id": person.user_id, **PAID}
    )
    assert bought.json()["outcome"] == "qualified"
    listed = (await api.get("/referrals/me", by=referrer)).json()["items"]
    assert listed[0]["state"] == "qualified"
    assert listed[0]["state_changed_at"] > listed[0]["registered_at"]


async def test_an_event_takes_few_round_trips(company: Company) -> None:
    """With the look-up of the client, BEGIN and COMMIT: each is a wait for PostgreSQL.

    One finds out that nobody listens to what is announced. The first referral of a referrer that
    qualifies takes one more.
    """
    referrer = await company.new_referrer()
    first, referee = new_id("referee"), new_id("referee")
    for signing_up in (first, referee):
        assert (await company.sign_up(referrer["code"], signing_up)).status == 201
    assert (await company.report("purchase", first, **PAID)).json()["outcome"] == "qualified"
    order = {"id": new_id("order"), "type": "purchase", "external_id": referee, **PAID}
    works = {
        "no-referral": {**order, "id": new_id("order"), "external_id": new_id("nobody")},
        "qualified": order,
        "again": order,
        "reversed": {"id": new_id("refund"), "type": "refund", "refunds": order["id"]}
        | {"external_id": referee},
    }
    took = {}
    for name, body in works.items():
        with recorded_statements() as statements:
            answer = await company.post("/events", body)
        assert answer.status == (200 if name == "again" else 201), answer.body
        took[name] = len(statements)
    assert took == {"no-referral": 7, "qualified": 10, "again": 8, "reversed": 12}
