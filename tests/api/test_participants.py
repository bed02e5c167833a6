"""Participants: people whom only a company knows."""

from typing import Any, Final
from uuid import UUID

import pytest

from service.api.http.app_keys import SERVICES
from service.api.referral_codes import ReferralCodeSchema, ReferralCodeWishSchema
from service.domain.scopes import Scope
from tests.api.assertions import assert_problem
from tests.company import Company, new_company, new_id
from tests.factories import Api, Person


@pytest.fixture
async def company(api: Api) -> Company:
    return await new_company(api)


async def test_a_new_participant_has_no_code_unless_one_is_wanted(company: Company) -> None:
    answer = await company.post("/participants", {"external_id": "u-1"})
    assert answer.status == 201
    created = answer.json()
    assert created == {
        "participant_id": created["participant_id"],
        "external_id": "u-1",
        "programme": "default",
        "code": None,
        "share_url": None,
        "trusted": False,
        "blocked": False,
        "public_name": None,
        "created_at": created["created_at"],
    }
    assert answer.headers["Location"] == f"/api/v1/participants/{created['participant_id']}"
    assert (await company.get(f"/participants/{created['participant_id']}")).json() == created


async def test_a_known_participant_keeps_id_and_live_code(company: Company) -> None:
    referrer = await company.new_referrer("u-1", code={"expires_in_days": 5, "code": "ANNA"})
    again = await company.post(
        "/participants", {"external_id": "u-1", "code": {"expires_in_days": 9, "code": "BERTA"}}
    )
    assert again.status == 200
    assert again.json() == referrer
    found = await company.get("/participants?external_id=u-1")
    assert found.json() == {"items": [referrer], "next_cursor": None}
    assert (await company.get("/participants?external_id=u-2")).json()["items"] == []


async def test_the_same_id_in_another_programme_is_somebody_else(company: Company) -> None:
    body = {"key": "spring", "name": "Spring", "rules": {"qualify": {"on": "purchase"}}}
    assert (await company.post("/programmes", body)).status == 201
    here = await company.new_referrer("u-1")
    there = await company.new_referrer("u-1", programme="spring")
    assert here["participant_id"] != there["participant_id"]
    assert there["programme"] == "spring"
    found = await company.get("/participants?external_id=u-1&programme=spring")
    assert found.json()["items"] == [there]


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, ["#/external_id"]),
        ({"external_id": ""}, ["#/external_id"]),
        ({"external_id": "x" * 129}, ["#/external_id"]),
        ({"external_id": "a b"}, ["#/external_id"]),
        ({"external_id": "a\0"}, ["#/external_id"]),
        ({"external_id": "\ud800"}, ["#/external_id"]),
        ({"external_id": "ä"}, ["#/external_id"]),
        ({"external_id": 5}, ["#/external_id"]),
        ({"external_id": "u", "programme": "nowhere"}, ["#/programme"]),
        ({"external_id": "u", "email": "nonsense"}, ["#/email"]),
        ({"external_id": "u", "ip": "1.2.3"}, ["#/ip"]),
        ({"external_id": "u", "nonsense": 1}, ["#/nonsense"]),
        ({"external_id": "u", "code": {}}, ["#/code/expires_at"]),
        ({"external_id": "u", "code": {"expires_in_days": 0}}, ["#/code/expires_in_days"]),
        ({"external_id": "u", "code": {"expires_in_days": 1, "x": 1}}, ["#/code/x"]),
        (
            {"external_id": "u", "code": {"expires_at": "2020-01-01T00:00:00Z"}},
            ["#/code/expires_at"],
        ),
        ({"external_id": "", "email": "nonsense"}, ["#/external_id", "#/email"]),
        (
            {"external_id": "u", "code": {"expires_at": "2020-01-01T00:00:00Z", "code": "a!"}},
            ["#/code/code", "#/code/expires_at"],
        ),
        (
            {"external_id": "u", "email": "x", "code": {"expires_at": "2020-01-01T00:00:00Z"}},
            ["#/code/expires_at", "#/email"],
        ),
    ],
)
async def test_what_cannot_be_is_refused(
    company: Company, body: dict[str, Any], pointers: list[str]
) -> None:
    assert_problem(await company.post("/participants", body), 422, "validation-failed", pointers)


async def test_a_taken_code_is_refused_and_makes_nobody(company: Company) -> None:
    await company.new_referrer("u-1", code={"expires_in_days": 5, "code": "ANNA"})
    body = {"external_id": "u-2", "code": {"expires_in_days": 5, "code": "anna"}}
    answer = await company.post("/participants", body)
    assert_problem(answer, 409, "referral-code-taken", ["#/code/code"])
    assert (await company.get("/participants?external_id=u-2")).json()["items"] == []


async def test_a_code_is_replaced_and_deleted(company: Company) -> None:
    referrer = await company.new_referrer()
    path = f"/participants/{referrer['participant_id']}"
    replaced = await company.put(f"{path}/code", {"expires_in_days": 3, "code": "NEW-ONE"})
    assert (replaced.status, replaced.json()["code"]) == (200, "NEW-ONE")
    assert (await company.get(path)).json()["code"] == "NEW-ONE"
    assert (await company.get(f"/codes/{referrer['code']}")).status == 404
    assert (await company.delete(f"{path}/code")).status == 204
    assert_problem(await company.delete(f"{path}/code"), 404, "referral-code-not-found")
    assert (await company.get(path)).json()["code"] is None
    assert (await company.put(f"{path}/code", {"expires_in_days": 3})).status == 201


WISH: Final[dict[str, Any]] = {"expires_in_days": 9, "code": "ANNA-2026", "max_uses": 3}
WISHED: Final = {name: value for name, value in WISH.items() if name != "expires_in_days"}


def test_all_that_can_be_wished_of_a_code_is_tried_below() -> None:
    wishes = set(ReferralCodeWishSchema().fields) - {"expires_at"}
    assert set(WISH) == wishes, "Give the new member a value in WISH: do companies' calls store it?"


async def stored_code(api: Api, owner_id: str) -> Any:
    """Return an owner's live code as its owner would see it."""
    async with api.app[SERVICES].database.autocommit() as repositories:
        code = await repositories.referral_codes.find_live(UUID(owner_id), api.clock())
    return ReferralCodeSchema().dump(code)


async def test_a_new_participants_code_is_stored_as_it_was_wished(
    company: Company, api: Api
) -> None:
    referrer = await company.new_referrer(code=WISH)
    stored = await stored_code(api, referrer["participant_id"])
    assert {name: stored[name] for name in WISHED} == WISHED


async def test_what_is_answered_about_a_code_is_what_is_stored(
    company: Company, api: Api, anna: Person
) -> None:
    """Accounts and other participants have statements of their own: repositories/referral_codes.py
    and participant_codes.py."""
    nobodys = await company.post("/participants", {"external_id": "u-1"})
    for owner_id in (anna.user_id, nobodys.json()["participant_id"]):
        for status, name in ((201, "FIRST"), (200, "SECOND")):
            code = f"{name}-{owner_id[-6:]}".upper()
            answered = await company.put(f"/participants/{owner_id}/code", WISH | {"code": code})
            assert answered.status == status
            assert answered.json().items() >= (WISHED | {"code": code}).items()
            assert answered.json() == await stored_code(api, owner_id)
    assert (await api.get("/referral-code", by=anna)).json() == await stored_code(api, anna.user_id)


async def test_a_blocked_participants_code_is_not_live(company: Company, api: Api) -> None:
    referrer = await company.new_referrer()
    path = f"/participants/{referrer['participant_id']}"
    blocked = await company.patch(path, {"blocked": True})
    assert (blocked.json()["blocked"], blocked.json()["code"]) == (True, None)
    assert (await api.get(f"/codes/{referrer['code']}")).status == 404
    assert_problem(
        await company.sign_up(referrer["code"]), 422, "referral-code-unusable", ["#/code"]
    )
    await company.patch(path, {"blocked": False})
    assert (await company.sign_up(referrer["code"])).status == 201


async def test_a_blocked_accounts_code_is_gone_from_look_ups(company: Company, api: Api) -> None:
    person = await api.new_person()
    await api.new_code(person)
    assert (await api.get(f"/referral-code/{person.email}")).status == 200
    await company.patch(f"/participants/{person.user_id}", {"blocked": True})
    assert (await api.get(f"/referral-code/{person.email}")).status == 404
    own = await api.get("/referral-code", by=person)
    assert_problem(own, 404, "referral-code-not-found")
    await company.patch(f"/participants/{person.user_id}", {"blocked": False})
    for path in (f"/referral-code/{person.email}", "/referral-code"):
        assert (await api.get(path, by=person)).status == 200


@pytest.mark.parametrize("name", ["می\u200cخواهم", "👨\u200d👩\u200d👧", "Zoë Ł."])  # noqa: RUF001
async def test_a_public_name_may_be_of_any_script(company: Company, name: str) -> None:
    path = f"/participants/{(await company.new_referrer())['participant_id']}"
    changed = await company.patch(path, {"public_name": name})
    assert (changed.status, changed.json()["public_name"]) == (200, name)


async def test_a_public_name_is_given_and_taken_away(company: Company) -> None:
    path = f"/participants/{(await company.new_referrer())['participant_id']}"
    assert (await company.patch(path, {"public_name": " Anna B. "})).json()[
        "public_name"
    ] == "Anna B."
    assert (await company.patch(path, {"trusted": True})).json()["public_name"] == "Anna B."
    assert (await company.patch(path, {"public_name": ""})).json()["public_name"] is None


@pytest.mark.parametrize("name", ["x" * 41, "a\nb", "\u202eevil", "a\u200eb", 5])
async def test_a_name_that_misleads_is_refused(company: Company, name: Any) -> None:
    path = f"/participants/{(await company.new_referrer())['participant_id']}"
    answer = await company.patch(path, {"public_name": name})
    assert_problem(answer, 422, "validation-failed", ["#/public_name"])
    assert_problem(await company.patch(path, {}), 422, "validation-failed", ["#"])


async def test_an_erased_id_that_comes_back_is_nobody_new(company: Company) -> None:
    referrer = await company.new_referrer("u-1")
    path = f"/participants/{referrer['participant_id']}"
    assert (await company.delete(path)).status == 204
    assert_problem(await company.delete(path), 404, "participant-not-found")
    assert_problem(await company.get(path), 404, "participant-not-found")
    assert (await company.get("/participants?external_id=u-1")).json()["items"] == []
    assert (await company.get(f"/codes/{referrer['code']}")).status == 404
    again = await company.post("/participants", {"external_id": "u-1"})
    assert_problem(again, 409, "conflict", ["#/external_id"])
    other = await company.new_referrer("u-2")
    assert_problem(await company.sign_up(other["code"], "u-1"), 409, "already-referred")
    reported = await company.report("purchase", "u-1")
    assert (reported.status, reported.json()["outcome"]) == (201, "erased")


async def test_an_account_is_a_participant_and_erases_itself(company: Company, api: Api) -> None:
    person = await api.new_person()
    code = await api.new_code(person)
    shown = (await company.get(f"/participants/{person.user_id}")).json()
    assert (shown["external_id"], shown["code"]) == (None, code)
    me = (await api.get("/users/me", by=person)).json()
    assert shown["created_at"] == me["created_at"]
    for _ in ("nobody has reported it yet", "somebody has"):
        refused = await company.delete(f"/participants/{person.user_id}")
        assert_problem(refused, 404, "participant-not-found")
        assert refused.json()["detail"].startswith("This is an account")
        changed = await company.patch(f"/participants/{person.user_id}", {"trusted": True})
        assert changed.json() == {**shown, "trusted": True}
    assert (await company.sign_up(code)).json()["referrer_id"] == person.user_id


async def test_nobody_is_found_by_a_malformed_id(company: Company) -> None:
    for path in ("/participants/nonsense", f"/participants/{'0' * 8}-0000-7000-8000-{'0' * 12}"):
        assert_problem(await company.get(path), 404, "participant-not-found")
        assert_problem(await company.patch(path, {"blocked": True}), 404, "participant-not-found")
        assert_problem(
            await company.put(f"{path}/code", {"expires_in_days": 1}), 404, "participant-not-found"
        )


async def test_a_code_tells_clients_whose_it_is_and_nobody_else(company: Company, api: Api) -> None:
    referrer = await company.new_referrer("u-1")
    await company.patch(f"/participants/{referrer['participant_id']}", {"public_name": "Anna"})
    seen = (await company.get(f"/codes/{referrer['code']}")).json()
    assert seen == {
        "code": referrer["code"],
        "expires_at": seen["expires_at"],
        "programme": "default",
        "participant_id": referrer["participant_id"],
        "external_id": "u-1",
        "public_name": "Anna",
    }
    assert set((await api.get(f"/codes/{referrer['code']}")).json()) == {"code", "expires_at"}
    reader = await new_company(api, Scope.PROGRAMME_READ)
    assert set((await reader.get(f"/codes/{referrer['code']}")).json()) == {"code", "expires_at"}


async def test_a_share_link_leads_to_the_landing_page(company: Company, api: Api) -> None:
    referrer = await company.new_referrer(new_id("u"))
    link = f"//r/{referrer['code']}"
    answer = await api.get(link, allow_redirects=False)
    assert (answer.status, answer.headers["Location"]) == (302, "/")
    await company.patch("/programmes/default", {"landing_url": "https://shop.example/hi?a=1#top"})
    answer = await api.get(link, allow_redirects=False)
    assert answer.headers["Location"] == (f"https://shop.example/hi?a=1&ref={referrer['code']}#top")
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in answer.headers
    for dead in ("NOBODY", "%FF%00", "%0d%0a", "x" * 5000, "", "a/b", "%E2%80%AE"):
        answer = await api.get(f"//r/{dead}", allow_redirects=False)
        assert (answer.status, answer.headers["Location"]) == (
            302,
            "https://shop.example/hi?a=1#top",
        ), dead
    await company.patch("/programmes/default", {"landing_url": ""})
    assert (await company.get("/programmes/default")).json()["landing_url"] is None


async def test_an_erased_account_takes_no_part_any_more(company: Company, api: Api) -> None:
    person = await api.new_person()
    await company.sign_up(await api.new_code(person))
    assert (await api.delete("/users/me", {"password": person.password}, by=person)).status == 204
    path = f"/participants/{person.user_id}"
    assert_problem(await company.get(path), 404, "participant-not-found")
    body = {"expires_in_days": 3}
    assert_problem(await company.put(f"{path}/code", body), 404, "participant-not-found")
    other = await company.new_referrer()
    signed_up = {"code": other["code"], "participant_id": person.user_id}
    assert_problem(await company.post("/referrals", signed_up), 409, "already-referred")
    event = {"id": new_id("e"), "type": "purchase", "participant_id": person.user_id}
    assert (await company.post("/events", event)).json()["outcome"] == "erased"
