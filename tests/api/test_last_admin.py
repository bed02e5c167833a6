"""There is always an admin who can act, whoever goes, however, and at whatever moment."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.domain.errors import LastAdmin
from service.domain.scopes import Scope
from service.repositories import users
from service.repositories.users import UserRepository
from tests.api.assertions import assert_problem
from tests.factories import PASSWORD, Answer, Api, Person
from tests.oauth import TOKEN, new_admin, new_application
from tests.sql.racing import until_blocked

Goes = Callable[[Api, Person, Person], Awaitable[str]]
"""Has the second person taken away by the first; returns the code of the problem, or nothing."""


def code_of(answer: Answer) -> str:
    return "" if answer.status < 400 else str(answer.json()["code"])


async def disabled(api: Api, by: Person, who: Person) -> str:
    path = f"/admin/users/{who.user_id}"
    return code_of(await api.patch(path, {"disabled": True}, by=by))


async def erased(api: Api, by: Person, who: Person) -> str:
    return code_of(await api.delete(f"/admin/users/{who.user_id}", by=by))


async def erased_by_own_hand(api: Api, _: Person, who: Person) -> str:
    return code_of(await api.delete("/users/me", {"password": PASSWORD}, by=who))


async def demoted(api: Api, _: Person, who: Person) -> str:
    try:
        await api.app[SERVICES].users.demote(who.email)
    except LastAdmin as error:
        return error.code
    return ""


WAYS: list[Goes] = [disabled, erased, erased_by_own_hand, demoted]


async def count(database: asyncpg.Connection) -> int:
    """Return how many admins can act."""
    admins: int = await database.fetchval(
        "SELECT count(*) FROM users"
        " WHERE role = 'admin' AND disabled_at IS NULL AND erased_at IS NULL"
    )
    return admins


@pytest.mark.parametrize("goes", WAYS)
async def test_the_last_one_stays_and_nothing_has_changed(
    api: Api, admin: Person, database: asyncpg.Connection, goes: Goes
) -> None:
    assert await goes(api, admin, admin) == "last-admin"
    assert (await api.get("/admin/users", by=admin)).status == 200
    assert await count(database) == 1


@pytest.mark.parametrize("goes", WAYS)
async def test_of_two_each_may_go(
    api: Api, admin: Person, database: asyncpg.Connection, goes: Goes
) -> None:
    second = await new_admin(api)
    assert await goes(api, second, admin) == ""
    assert await goes(api, second, second) == "last-admin"
    assert await count(database) == 1


async def test_the_problem_is_a_409(api: Api, admin: Person) -> None:
    answer = await api.delete(f"/admin/users/{admin.user_id}", by=admin)
    assert_problem(answer, 409, "last-admin")


async def test_a_wrong_password_comes_first(api: Api, admin: Person) -> None:
    answer = await api.delete("/users/me", {"password": "wrong"}, by=admin)
    assert_problem(answer, 401, "invalid-credentials", ["#/password"])


async def test_an_admin_who_cannot_act_is_not_another(
    api: Api, admin: Person, database: asyncpg.Connection
) -> None:
    second, third = await new_admin(api), await new_admin(api)
    assert await disabled(api, admin, second) == ""
    assert await erased(api, admin, third) == ""
    assert await disabled(api, admin, admin) == "last-admin"
    assert await disabled(api, admin, second) == "", "it is disabled already"
    assert await erased(api, admin, second) == "", "nor is it the last who can act"
    assert await count(database) == 1


async def test_a_user_is_no_admin(api: Api, admin: Person, anna: Person) -> None:
    assert await erased_by_own_hand(api, anna, anna) == ""


async def test_a_client_cannot_take_the_last_one_away(
    api: Api, admin: Person, anna: Person
) -> None:
    machine = await new_application(api, redirect_uris=[], own_scopes=[Scope.ADMIN])
    token = (await machine.send(TOKEN, grant_type="client_credentials")).json()["access_token"]
    for person in (anna, await new_admin(api)):
        path = f"/admin/users/{person.user_id}"
        assert (await api.patch(path, {"disabled": True}, by=token)).status == 200
        assert (await api.delete(path, by=token)).status == 204
    path = f"/admin/users/{admin.user_id}"
    assert_problem(await api.patch(path, {"disabled": True}, by=token), 409, "last-admin")
    assert_problem(await api.delete(path, by=token), 409, "last-admin")


@pytest.mark.parametrize("one_goes", WAYS)
@pytest.mark.parametrize("other_goes", WAYS)
@pytest.mark.parametrize("crosswise", [True, False], ids=["each other", "themselves"])
async def test_of_two_who_go_at_once_one_is_left(
    api: Api, database: asyncpg.Connection, one_goes: Goes, other_goes: Goes, crosswise: bool
) -> None:
    """Without FOR NO KEY UPDATE in LOCK_ADMINS both would go."""
    for _ in range(3):
        one, other = await new_admin(api), await new_admin(api)
        by_one, by_other = (other, one) if crosswise else (one, other)
        codes = await asyncio.gather(one_goes(api, by_one, one), other_goes(api, by_other, other))
        went, stayed = sorted(codes)
        assert went == ""
        # Whoever was slow had been signed out, or was no admin any more, when its request was read.
        assert stayed in {"last-admin", "invalid-token", "not-allowed"}
        assert await count(database) == 1
        await database.execute("UPDATE users SET role = 'user'")


async def test_without_the_lock_both_would_go(
    api: Api, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof that the races above are some."""
    one, other = await new_admin(api), await new_admin(api)
    both_have_looked = asyncio.Barrier(2)

    async def look(self: UserRepository, user_id: UUID) -> list[UUID]:
        unlocked = users.LOCK_ADMINS.replace("FOR NO KEY UPDATE", "")
        rows = await self._connection.fetch(unlocked, user_id)
        await both_have_looked.wait()
        return [row["user_id"] for row in rows]

    monkeypatch.setattr(UserRepository, "lock_admins", look)
    codes = await asyncio.gather(disabled(api, one, other), disabled(api, other, one))
    assert list(codes) == ["", ""]
    assert await count(database) == 0


async def test_who_becomes_an_admin_while_being_disabled_counts(
    api: Api, anna: Person, admin: Person, database: asyncpg.Connection
) -> None:
    """Without the second look, behind the lock on the account, nobody would be left."""
    set_role = "UPDATE users SET role = $2 WHERE user_id = $1"
    async with database.transaction():
        await database.execute(set_role, anna.user_id, "admin")
        await database.execute(set_role, admin.user_id, "user")
        disabling = await until_blocked(
            database, api.app[SERVICES].users.set_disabled(UUID(anna.user_id), True, "operator")
        )
    with pytest.raises(LastAdmin):
        await disabling
    assert await count(database) == 1
