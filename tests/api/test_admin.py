"""What admins may do, and nobody else."""

import logging
from typing import Any, Final
from uuid import uuid4

import asyncpg
import pytest

from service.domain.scopes import Scope
from service.domain.users import LockedUser
from service.use_cases import users
from tests.api.assertions import assert_problem
from tests.factories import PASSWORD, Answer, Api, Person
from tests.oauth import TOKEN, new_application, refusal

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
    for user in answer.json()["items"]:
        assert set(user) == MEMBERS
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
        assert_problem(await api.delete(path, by=admin), 404, "user-not-found")


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
        ("DELETE", "/admin/users/{known}", None),
        ("DELETE", "/admin/users/{unknown}", None),
        ("DELETE", "/admin/users/{own}", None),
        ("DELETE", "/admin/users/nonsense", None),
    ],
)
async def test_a_user_may_do_none_of_this_and_learns_nothing(
    api: Api, anna: Person, admin: Person, method: str, path: str, body: Any
) -> None:
    path = path.format(known=admin.user_id, unknown=uuid4(), own=anna.user_id)
    answer = await api.call(method, path, body, by=anna)
    assert_problem(answer, 403, "insufficient-scope")
    assert answer.json()["detail"] == "This call needs the scope admin."


async def test_who_is_no_admin_any_more_may_not_at_once(
    api: Api, admin: Person, database: asyncpg.Connection
) -> None:
    """The database decides, not what the token says."""
    assert (await api.get("/admin/users", by=admin)).status == 200
    await database.execute("UPDATE users SET role = 'user'")
    for path in ("/admin/users", f"/admin/users/{admin.user_id}", f"/admin/users/{uuid4()}"):
        assert_problem(await api.get(path, by=admin), 403, "not-allowed")
    for path in (f"/admin/users/{admin.user_id}", f"/admin/users/{uuid4()}"):
        assert_problem(await api.delete(path, by=admin), 403, "not-allowed")


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


# Erasing


async def test_an_erased_user_is_gone_as_if_by_own_hand(
    api: Api, other: Api, anna: Person, admin: Person, database: asyncpg.Connection
) -> None:
    code = await api.new_code(anna)
    referral = await api.new_person(referral_code=code)
    assert (await other.get("/users/me", by=anna)).status == 200
    erased = await api.delete(f"/admin/users/{anna.user_id}", by=admin)
    assert (erased.status, erased.body) == (204, b"")
    assert_problem(await other.get("/users/me", by=anna), 401, "invalid-token")
    refreshed = await other.post("/auth/refresh", {"refresh_token": anna.refresh_token})
    assert_problem(refreshed, 401, "invalid-token")
    assert_problem(await other.log_in(anna.email), 401, "invalid-credentials")
    assert (await other.get(f"/referral-code/{anna.email}")).status == 404
    path = f"/admin/users/{anna.user_id}"
    assert_problem(await api.get(path, by=admin), 404, "user-not-found")
    assert_problem(await api.delete(path, by=admin), 404, "user-not-found")
    assert (await api.get("/users/me", by=referral)).json()["referrer_id"] == anna.user_id
    for table in ("sessions", "security_events", "identities", "mail_tokens"):
        left = f"SELECT count(*) FROM {table} WHERE user_id = $1"
        assert await database.fetchval(left, anna.user_id) == 0, table
    row = await database.fetchrow("SELECT * FROM users WHERE user_id = $1", anna.user_id)
    assert anna.email not in str(row)


async def test_an_account_without_a_password_is_erased_too(
    api: Api, anna: Person, admin: Person, database: asyncpg.Connection
) -> None:
    await database.execute("UPDATE users SET password_hash = NULL WHERE user_id = $1", anna.user_id)
    assert (await api.delete(f"/admin/users/{anna.user_id}", by=admin)).status == 204


async def test_who_changes_the_password_meanwhile_is_erased_all_the_same(
    api: Api, anna: Person, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords = {"current_password": PASSWORD, "new_password": "quite another long walk"}
    lock = users._lock_to_erase

    async def lock_slowly(*arguments: Any) -> LockedUser:
        if not changed:
            changed.append(await api.post("/auth/password/change", passwords, by=anna))
        return await lock(*arguments)

    changed: list[Answer] = []
    monkeypatch.setattr(users, "_lock_to_erase", lock_slowly)
    assert (await api.delete(f"/admin/users/{anna.user_id}", by=admin)).status == 204
    assert changed[0].status == 204
    assert_problem(await api.get("/users/me", by=anna), 401, "invalid-token")


async def test_who_changes_the_own_password_meanwhile_is_not_erased_with_the_old_one(
    api: Api, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The condition on the hash in ERASE; the password is then verified once more."""
    passwords = {"current_password": PASSWORD, "new_password": "quite another long walk"}
    lock = users._lock_to_erase

    async def lock_slowly(*arguments: Any) -> LockedUser:
        if not changed:
            changed.append(await api.post("/auth/password/change", passwords, by=anna))
        return await lock(*arguments)

    changed: list[Answer] = []
    monkeypatch.setattr(users, "_lock_to_erase", lock_slowly)
    answer = await api.delete("/users/me", {"password": PASSWORD}, by=anna)
    assert_problem(answer, 401, "invalid-credentials", ["#/password"])
    assert changed[0].status == 204
    assert (await api.get("/users/me", by=anna)).status == 200
    new = {"password": passwords["new_password"]}
    assert (await api.delete("/users/me", new, by=anna)).status == 204


async def test_disabled_or_not_an_account_is_erased(api: Api, anna: Person, admin: Person) -> None:
    await disable(api, anna, by=admin)
    assert (await api.delete(f"/admin/users/{anna.user_id}", by=admin)).status == 204


async def test_whose_doing_it_was_is_in_the_log_and_not_shown_to_the_owner(
    api: Api, anna: Person, admin: Person, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither where the admin was nor with what browser."""
    machine = await new_application(api, redirect_uris=[], own_scopes=[Scope.ADMIN])
    token = (await machine.send(TOKEN, grant_type="client_credentials")).json()["access_token"]
    caplog.set_level(logging.INFO, "service.security")
    caplog.clear()
    for disabled in (True, True, False, False):  # the second changes nothing
        await disable(api, anna, by=admin, disabled=disabled)
    anna = await api.signed_in(anna.email)
    items = (await api.get("/users/me/activity", by=anna)).json()["items"]
    assert [item["event"] for item in items][1:3] == ["account.enabled", "account.disabled"]
    assert {(item["address"], item["user_agent"]) for item in items[1:3]} == {(None, None)}
    await api.delete(f"/admin/users/{anna.user_id}", by=token)
    told = [
        (record.getMessage(), vars(record)["reason"], vars(record)["address"])
        for record in caplog.records
        if record.getMessage().startswith("account.")
    ]
    assert told == [
        ("account.disabled", "admin", "127.0.0.0/24"),
        ("account.enabled", "admin", "127.0.0.0/24"),
        ("account.erased", "client", "127.0.0.0/24"),
    ]


async def test_what_a_user_has_allowed_before_being_disabled_is_of_no_use_afterwards(
    api: Api, anna: Person, admin: Person
) -> None:
    application = await new_application(api)
    code = await application.code_of(anna)
    for disabled in (True, False):
        await disable(api, anna, by=admin, disabled=disabled)
    assert refusal(await application.redeem(code)) == (400, "invalid_grant")
