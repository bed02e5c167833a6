"""What admins may do, and nobody else."""

from typing import Any, Final
from uuid import uuid4

import asyncpg
import pytest

from tests.api.assertions import assert_problem
from tests.factories import Api, Person

MEMBERS: Final = {
    *("id", "email", "email_confirmed", "role", "created_at", "referrer_id", "disabled"),
    *("awaits_confirmation", "email_verification", "referral_flags"),
}


async def disable(api: Api, person: Person, by: Person, disabled: bool = True) -> None:
    body = {"disabled": disabled}
    changed = await api.patch(f"/admin/users/{person.user_id}", body, by=by)
    assert changed.status == 200
    assert changed.json()["disabled"] is disabled


async def test_the_accounts_are_listed_newest_first(api: Api, anna: Person, admin: Person) -> None:
    answer = await api.get("/admin/users", by=admin)
    assert answer.status == 200
    assert set(answer.json()) == {"items", "next_cursor"}
    assert [user["id"] for user in answer.json()["items"]] == [admin.user_id, anna.user_id]
    assert all(set(user) == MEMBERS for user in answer.json()["items"])
    assert [user["role"] for user in answer.json()["items"]] == ["admin", "user"]


async def test_pages_have_every_account_once(api: Api, admin: Person) -> None:
    people = [admin, *[await api.new_person() for _ in range(4)]]
    read: list[str] = []
    cursor = ""
    while True:
        page = (await api.get(f"/admin/users?limit=2{cursor}", by=admin)).json()
        read += [user["id"] for user in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert read == [person.user_id for person in reversed(people)]


async def test_an_account_is_found_by_email(api: Api, anna: Person, admin: Person) -> None:
    found = (await api.get("/admin/users?email=ANNA@example.com", by=admin)).json()
    assert [user["id"] for user in found["items"]] == [anna.user_id]
    assert found["next_cursor"] is None
    none = (await api.get("/admin/users?email=nobody@example.com", by=admin)).json()
    assert none == {"items": [], "next_cursor": None}
    for wrong in ("nobody", ""):
        answer = await api.get(f"/admin/users?email={wrong}", by=admin)
        assert_problem(answer, 422, "validation-failed", ["#/email"])


async def test_an_account_is_shown(api: Api, anna: Person, admin: Person) -> None:
    answer = await api.get(f"/admin/users/{anna.user_id}", by=admin)
    assert answer.status == 200
    own = (await api.get("/users/me", by=anna)).json()
    assert answer.json() == {
        **own,
        "disabled": False,
        "awaits_confirmation": False,
        "email_verification": None,
        "referral_flags": [],
    }


async def test_an_account_that_there_is_not_is_not_found(api: Api, admin: Person) -> None:
    for unknown in (str(uuid4()), "nonsense"):
        path = f"/admin/users/{unknown}"
        assert_problem(await api.get(path, by=admin), 404, "user-not-found")
        answer = await api.patch(path, {"disabled": True}, by=admin)
        assert_problem(answer, 404, "user-not-found")


async def test_an_erased_account_is_not_shown(api: Api, anna: Person, admin: Person) -> None:
    await api.delete("/users/me", {"password": anna.password}, by=anna)
    path = f"/admin/users/{anna.user_id}"
    assert_problem(await api.get(path, by=admin), 404, "user-not-found")
    assert_problem(await api.patch(path, {"disabled": True}, by=admin), 404, "user-not-found")
    listed = (await api.get("/admin/users", by=admin)).json()["items"]
    assert [user["id"] for user in listed] == [admin.user_id]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/admin/users", None),
        ("GET", "/admin/users?email=anna@example.com", None),
        ("GET", "/admin/users/{known}", None),
        ("GET", "/admin/users/{unknown}", None),
        ("PATCH", "/admin/users/{known}", {"disabled": True}),
        ("PATCH", "/admin/users/{unknown}", {"disabled": True}),
        ("PATCH", "/admin/users/{known}", {"nonsense": True}),
    ],
)
async def test_a_user_may_do_none_of_this_and_learns_nothing(
    api: Api, anna: Person, admin: Person, method: str, path: str, body: Any
) -> None:
    path = path.format(known=admin.user_id, unknown=uuid4())
    answer = await api.call(method, path, body, by=anna)
    assert_problem(answer, 403, "insufficient-scope")
    assert answer.json()["detail"] == "The access token lacks the scope admin."


async def test_who_is_no_admin_any_more_may_not_at_once(
    api: Api, admin: Person, database: asyncpg.Connection
) -> None:
    """The database decides, not what the token says."""
    assert (await api.get("/admin/users", by=admin)).status == 200
    await database.execute("UPDATE users SET role = 'user'")
    assert_problem(await api.get("/admin/users", by=admin), 403, "not-allowed")


async def test_a_disabled_user_is_out_at_once(
    api: Api, other: Api, anna: Person, admin: Person
) -> None:
    code = await api.new_code(anna)
    assert (await other.get("/users/me", by=anna)).status == 200
    assert (await other.get(f"/referral-code/{anna.email}")).status == 200
    await disable(api, anna, by=admin)
    assert_problem(await other.get("/users/me", by=anna), 401, "invalid-token")
    refreshed = await other.post("/auth/refresh", {"refresh_token": anna.refresh_token})
    assert_problem(refreshed, 401, "invalid-token")
    assert_problem(await other.log_in(anna.email), 403, "account-disabled")
    wrong = await other.log_in(anna.email, "wrong password")
    assert_problem(wrong, 401, "invalid-credentials")
    found = await other.get(f"/referral-code/{anna.email}")
    assert_problem(found, 404, "referral-code-not-found")
    assert (await other.register(referral_code=code)).status == 422


async def test_an_enabled_user_signs_in_again_with_the_same_code(
    api: Api, other: Api, anna: Person, admin: Person
) -> None:
    code = await api.new_code(anna)
    await disable(api, anna, by=admin)
    assert (await other.get(f"/referral-code/{anna.email}")).status == 404
    await disable(api, anna, by=admin, disabled=False)
    assert_problem(await other.get("/users/me", by=anna), 401, "invalid-token")
    anna = await other.signed_in(anna.email)
    assert (await other.get("/referral-code", by=anna)).json()["code"] == code
    assert (await other.get(f"/referral-code/{anna.email}")).json()["code"] == code


async def test_doing_it_twice_changes_nothing(api: Api, anna: Person, admin: Person) -> None:
    for disabled in (False, True, True, False, False):
        await disable(api, anna, by=admin, disabled=disabled)
    assert (await api.log_in(anna.email)).status == 200


@pytest.mark.parametrize("disabled", [1, 0, 1.0, "true", "on", None, []])
async def test_disabled_is_true_or_false_and_nothing_like_it(
    api: Api, anna: Person, admin: Person, disabled: Any
) -> None:
    path = f"/admin/users/{anna.user_id}"
    answer = await api.patch(path, {"disabled": disabled}, by=admin)
    assert_problem(answer, 422, "validation-failed", ["#/disabled"])


async def test_nothing_else_can_be_changed(api: Api, anna: Person, admin: Person) -> None:
    for member in ("role", "email", "id", "email_confirmed", "referrer_id"):
        body = {"disabled": False, member: "admin"}
        answer = await api.patch(f"/admin/users/{anna.user_id}", body, by=admin)
        assert_problem(answer, 422, "validation-failed", [f"#/{member}"])
    answer = await api.patch(f"/admin/users/{anna.user_id}", {}, by=admin)
    assert_problem(answer, 422, "validation-failed", ["#/disabled"])
