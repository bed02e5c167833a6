"""Who registered with whose code: for the referrer's eyes, and an admin's."""

from datetime import datetime
from typing import Final
from uuid import uuid4

from tests.api.assertions import assert_problem
from tests.factories import Api, Person

MEMBERS: Final = {"id", "email", "registered_at", "code", "flags", "state", "state_changed_at"}


async def refer(api: Api, referrer: Person, count: int) -> list[str]:
    """Register that many people with the referrer's code; return their ids, newest first."""
    code = await api.new_code(referrer)
    registered = [await api.register(referral_code=code) for _ in range(count)]
    return [answer.json()["id"] for answer in reversed(registered)]


async def test_a_referrer_sees_the_referrals_newest_first(api: Api, anna: Person) -> None:
    code = await api.new_code(anna)
    bert = await api.new_person("Bert@example.com", referral_code=code)
    carl = await api.new_person("carl@example.com", referral_code=code)
    by_id = await api.get(f"/referrals/{anna.user_id}", by=anna)
    as_me = await api.get("/referrals/me", by=anna)
    assert (by_id.status, as_me.status) == (200, 200)
    assert by_id.json() == as_me.json()
    assert set(by_id.json()) == {"items", "next_cursor"}
    newest, oldest = by_id.json()["items"]
    assert set(newest) == set(oldest) == MEMBERS
    assert [newest["id"], oldest["id"]] == [carl.user_id, bert.user_id]
    assert oldest["email"] == "Bert@example.com"
    assert oldest["code"] == code
    assert oldest["flags"] == []
    assert oldest["registered_at"].endswith("Z")
    registered_at = datetime.fromisoformat(oldest["registered_at"])
    assert registered_at < datetime.fromisoformat(newest["registered_at"])


async def test_who_referred_nobody_sees_an_empty_list(api: Api, anna: Person) -> None:
    answer = await api.get("/referrals/me", by=anna)
    assert answer.json() == {"items": [], "next_cursor": None}


async def test_pages_have_every_referral_once(api: Api, anna: Person) -> None:
    ids = await refer(api, anna, 7)
    for limit in (1, 3, 7, 100):
        read: list[str] = []
        cursor = ""
        while True:
            page = (await api.get(f"/referrals/me?limit={limit}{cursor}", by=anna)).json()
            read += [item["id"] for item in page["items"]]
            if page["next_cursor"] is None:
                break
            assert len(page["items"]) == limit
            cursor = f"&cursor={page['next_cursor']}"
        assert read == ids


async def test_a_page_has_20_unless_it_is_said(api: Api, anna: Person) -> None:
    await refer(api, anna, 21)
    page = (await api.get("/referrals/me", by=anna)).json()
    assert len(page["items"]) == 20
    assert page["next_cursor"]


async def test_who_registers_between_two_pages_is_on_neither(api: Api, anna: Person) -> None:
    """The second page begins where the first one ended, whatever has come before that."""
    ids = await refer(api, anna, 4)
    first = (await api.get("/referrals/me?limit=2", by=anna)).json()
    code = (await api.get("/referral-code", by=anna)).json()["code"]
    await api.register(referral_code=code)
    path = f"/referrals/me?limit=2&cursor={first['next_cursor']}"
    second = (await api.get(path, by=anna)).json()
    assert [item["id"] for item in first["items"] + second["items"]] == ids


async def test_nobody_else_sees_them_whether_there_are_any_or_not(api: Api, anna: Person) -> None:
    await refer(api, anna, 1)
    bert = await api.new_person()
    problems = []
    for referrer in (anna.user_id, str(uuid4()), "nonsense"):
        answer = await api.get(f"/referrals/{referrer}", by=bert)
        assert_problem(answer, 403, "not-allowed")
        problem = answer.json()
        del problem["request_id"]
        problems.append(problem)
    assert problems == [problems[0]] * 3


async def test_a_referral_does_not_see_the_referrer_list(api: Api, anna: Person) -> None:
    code = await api.new_code(anna)
    bert = await api.new_person(referral_code=code)
    assert_problem(await api.get(f"/referrals/{anna.user_id}", by=bert), 403, "not-allowed")


async def test_an_admin_sees_those_of_everybody(api: Api, anna: Person, admin: Person) -> None:
    ids = await refer(api, anna, 2)
    answer = await api.get(f"/referrals/{anna.user_id}", by=admin)
    assert [item["id"] for item in answer.json()["items"]] == ids
    for unknown in (str(uuid4()), "nonsense"):
        assert_problem(await api.get(f"/referrals/{unknown}", by=admin), 404, "user-not-found")


async def test_referrals_outlive_the_code(api: Api, anna: Person) -> None:
    ids = await refer(api, anna, 2)
    await api.delete("/referral-code", by=anna)
    answer = await api.get("/referrals/me", by=anna)
    assert [item["id"] for item in answer.json()["items"]] == ids
