"""Signing in, staying signed in, and signing out, which ends access tokens at once."""

from dataclasses import replace
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

import asyncpg
import jwt
import pytest
from redis.asyncio import Redis

from service.domain.errors import HashingQueueFull
from service.security.password_hashing import Argon2, PasswordHasher
from service.security.signing_keys import LEEWAY
from service.settings.settings import Settings
from tests.api.assertions import assert_problem
from tests.factories import PASSWORD, Answer, Api, Person, running

TOKEN_MEMBERS: Final = {"access_token", "token_type", "expires_in", "refresh_token", "user_id"}
SESSION_MEMBERS: Final = {
    *(
        "id",
        "client_id",
        "origin",
        "user_agent",
        "created_at",
        "refreshed_at",
        "expires_at",
        "current",
    )
}
NEW_PASSWORD: Final = "another walk by the sea"
NEEDS_A_USER: Final = [
    ("GET", "/users/me", None),
    ("DELETE", "/users/me", {"password": PASSWORD}),
    ("POST", "/auth/logout", None),
    ("GET", "/auth/sessions", None),
    ("DELETE", "/auth/sessions", None),
    ("DELETE", f"/auth/sessions/{uuid4()}", None),
    ("POST", "/auth/password/change", {"current_password": PASSWORD, "new_password": NEW_PASSWORD}),
    ("GET", "/referral-code", None),
    ("POST", "/referral-code", {"expires_in_days": 1}),
    ("PUT", "/referral-code", {"expires_in_days": 1}),
    ("DELETE", "/referral-code", None),
    ("GET", "/referrals/me", None),
    ("GET", "/admin/users", None),
    ("GET", f"/admin/users/{uuid4()}", None),
    ("PATCH", f"/admin/users/{uuid4()}", {"disabled": True}),
]


async def refresh(api: Api, token: str) -> Answer:
    return await api.post("/auth/refresh", {"refresh_token": token})


async def change_password(api: Api, person: Person, current: str, new: str) -> Answer:
    body = {"current_password": current, "new_password": new}
    return await api.post("/auth/password/change", body, by=person)


async def assert_over(api: Api, person: Person) -> None:
    """Neither token of the session works any more."""
    answer = await api.get("/users/me", by=person)
    assert_problem(answer, 401, "invalid-token")
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert_problem(await refresh(api, person.refresh_token), 401, "invalid-token")


async def assert_open(api: Api, person: Person) -> None:
    assert (await api.get("/users/me", by=person)).status == 200


async def test_signing_in_gives_tokens(api: Api, anna: Person) -> None:
    answer = await api.log_in("ANNA@example.com")
    assert answer.status == 200
    tokens = answer.json()
    assert set(tokens) == TOKEN_MEMBERS
    assert (tokens["token_type"], tokens["expires_in"]) == ("Bearer", 600)
    assert tokens["user_id"] == anna.user_id
    assert (await api.get("/users/me", by=tokens["access_token"])).status == 200


async def test_wrong_credentials_are_refused_with_the_same_words(api: Api, anna: Person) -> None:
    for email, password in [
        (anna.email, "wrong password"),
        ("nobody@example.com", PASSWORD),
        ("nobody", PASSWORD),
        (anna.email, PASSWORD.upper()),
        (anna.email, ""),
    ]:
        answer = await api.log_in(email, password)
        assert_problem(answer, 401, "invalid-credentials")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_a_call_of_a_user_needs_a_token(api: Api) -> None:
    for method, path, body in NEEDS_A_USER:
        answer = await api.call(method, path, body)
        assert answer.status == 401, (method, path)
        assert_problem(answer, 401, "not-authenticated")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_credentials_that_are_no_bearer_token_are_told_apart_from_none(
    api: Api, anna: Person
) -> None:
    token = anna.access_token
    for value in (
        *(token, f"Token {token}", f"JWT {token}", f"Bearer:{token}", f"Bearer{token}"),
        *(f'Bearer "{token}" x', f"Bearer {token} {token}", f"Bearer {token}, Bearer {token}"),
        *("Bearer", "Bearer ", "null", "", f"Bearer\t{token}"),
    ):
        for method, path in (("GET", "/users/me"), ("DELETE", "/auth/sessions")):
            answer = await api.call(method, path, headers={"Authorization": value})
            assert_problem(answer, 401, "not-authenticated")
            told = "The Authorization header is not `Bearer TOKEN`."
            assert answer.json()["detail"] == told, value
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    none = await api.get("/users/me")
    assert none.json()["detail"] == "The request carries no access token."
    assert none.json()["title"] == answer.json()["title"]


async def test_the_scheme_is_written_in_any_case(api: Api, anna: Person) -> None:
    headers = {"Authorization": f"bEARER {anna.access_token}"}
    assert (await api.get("/users/me", headers=headers)).status == 200


async def test_other_tokens_are_no_access_tokens(api: Api, anna: Person) -> None:
    code = await api.new_code(anna)
    header, payload, signature = anna.access_token.split(".")
    other_key = jwt.encode({"sub": anna.user_id}, "a" * 32, "HS256", headers={"typ": "at+jwt"})
    without_signature = jwt.encode({"sub": anna.user_id}, "", "none")
    for token in (
        anna.refresh_token,
        code,
        other_key,
        without_signature,
        f"{header}.{payload}.",
        f"{header}.{payload}.{signature[::-1]}",
        f"{header}.{payload[::-1]}.{signature}",
    ):
        assert_problem(await api.get("/users/me", by=token), 401, "invalid-token")
    assert_problem(await refresh(api, anna.access_token), 401, "invalid-token")


async def test_an_access_token_expires(api: Api, settings: Settings, anna: Person) -> None:
    api.clock.ahead = settings.access_token_ttl
    await assert_open(api, anna)
    api.clock.ahead = settings.access_token_ttl + LEEWAY + timedelta(seconds=1)
    answer = await api.get("/users/me", by=anna)
    assert_problem(answer, 401, "invalid-token")
    refreshed = (await refresh(api, anna.refresh_token)).json()
    assert (await api.get("/users/me", by=refreshed["access_token"])).status == 200


# Refreshing.


async def test_refreshing_gives_new_tokens_of_the_same_session(api: Api, anna: Person) -> None:
    answer = await refresh(api, anna.refresh_token)
    assert answer.status == 200
    tokens = answer.json()
    assert set(tokens) == TOKEN_MEMBERS
    assert tokens["refresh_token"] != anna.refresh_token
    assert tokens["access_token"] != anna.access_token
    assert (await refresh(api, tokens["refresh_token"])).status == 200
    sessions = (await api.get("/auth/sessions", by=tokens["access_token"])).json()["items"]
    assert len(sessions) == 1


async def test_a_token_used_twice_ends_the_session_at_once(
    api: Api, other: Api, anna: Person
) -> None:
    first = (await refresh(api, anna.refresh_token)).json()
    second = (await refresh(api, first["refresh_token"])).json()
    assert (await other.get("/users/me", by=second["access_token"])).status == 200
    assert_problem(await refresh(api, anna.refresh_token), 401, "invalid-token")
    for tokens in (first, second):
        answer = await other.get("/users/me", by=tokens["access_token"])
        assert_problem(answer, 401, "invalid-token")
        assert_problem(await refresh(api, tokens["refresh_token"]), 401, "invalid-token")


async def test_a_stolen_token_ends_its_own_session_only(api: Api, anna: Person) -> None:
    elsewhere = await api.signed_in(anna.email)
    first = (await refresh(api, anna.refresh_token)).json()
    await refresh(api, first["refresh_token"])
    assert_problem(await refresh(api, anna.refresh_token), 401, "invalid-token")
    await assert_open(api, elsewhere)


async def test_a_session_ends_for_good_at_its_expiry(
    api: Api, settings: Settings, anna: Person
) -> None:
    """Refreshing does not prolong it."""
    api.clock.ahead = settings.refresh_token_ttl - timedelta(minutes=1)
    tokens = (await refresh(api, anna.refresh_token)).json()
    api.clock.ahead = settings.refresh_token_ttl + timedelta(seconds=1)
    assert_problem(await refresh(api, tokens["refresh_token"]), 401, "invalid-token")
    answer = await api.get("/users/me", by=tokens["access_token"])
    assert_problem(answer, 401, "invalid-token")


@pytest.mark.parametrize("token", ["", "x", "é", "A" * 64, "A" * 5000, "a.b.c"])
async def test_what_is_no_refresh_token_is_refused(api: Api, token: str) -> None:
    assert_problem(await refresh(api, token), 401, "invalid-token")


# Listing and ending.


async def test_the_sessions_are_listed_newest_first(api: Api, anna: Person) -> None:
    login = {"email": anna.email, "password": PASSWORD}
    answer = await api.post("/auth/login", login, headers={"User-Agent": "A" * 300})
    page = await api.get("/auth/sessions", by=answer.json()["access_token"])
    assert set(page.json()) == {"items", "next_cursor"}
    newest, oldest = page.json()["items"]
    assert set(newest) == set(oldest) == SESSION_MEMBERS
    assert UUID(newest["id"]).version == 7
    assert (newest["user_agent"], newest["current"]) == ("A" * 200, True)
    assert oldest["current"] is False
    assert oldest["created_at"] < newest["created_at"] < newest["expires_at"]
    assert page.json()["next_cursor"] is None


async def test_many_sessions_have_pages(api: Api, anna: Person) -> None:
    for _ in range(4):
        await api.signed_in(anna.email)
    whole = (await api.get("/auth/sessions", by=anna)).json()["items"]
    read, cursor = [], ""
    while True:
        page = (await api.get(f"/auth/sessions?limit=2{cursor}", by=anna)).json()
        read += page["items"]
        if page["next_cursor"] is None:
            break
        assert len(page["items"]) == 2
        cursor = f"&cursor={page['next_cursor']}"
    assert read == whole
    assert len(read) == 5


async def session_id(api: Api, person: Person) -> str:
    items = (await api.get("/auth/sessions", by=person)).json()["items"]
    found: str = next(session["id"] for session in items if session["current"])
    return found


async def test_after_signing_out_the_tokens_do_not_work_anywhere(
    api: Api, other: Api, anna: Person
) -> None:
    elsewhere = await api.signed_in(anna.email)
    for process in (api, other):
        await assert_open(process, anna)
    assert (await api.post("/auth/logout", by=anna)).status == 204
    for process in (other, api):
        await assert_over(process, anna)
        await assert_open(process, elsewhere)


async def test_one_session_is_ended(api: Api, other: Api, anna: Person) -> None:
    elsewhere = await api.signed_in(anna.email)
    await assert_open(other, elsewhere)
    path = f"/auth/sessions/{await session_id(api, elsewhere)}"
    assert (await api.delete(path, by=anna)).status == 204
    await assert_over(other, elsewhere)
    await assert_open(api, anna)
    assert_problem(await api.delete(path, by=anna), 404, "session-not-found")


async def test_the_session_of_another_user_is_as_if_it_were_not_there(
    api: Api, anna: Person
) -> None:
    bert = await api.new_person()
    for session in (await session_id(api, bert), str(uuid4()), "nonsense"):
        answer = await api.delete(f"/auth/sessions/{session}", by=anna)
        assert_problem(answer, 404, "session-not-found")
    await assert_open(api, bert)


async def test_all_other_sessions_are_ended(api: Api, other: Api, anna: Person) -> None:
    others = [await api.signed_in(anna.email) for _ in range(3)]
    bert = await api.new_person()
    for person in (*others, bert):
        await assert_open(other, person)
    assert (await api.delete("/auth/sessions", by=anna)).status == 204
    for person in others:
        await assert_over(other, person)
    await assert_open(other, anna)
    await assert_open(other, bert)


# Changing the password.


async def test_a_new_password_ends_the_other_sessions(api: Api, other: Api, anna: Person) -> None:
    elsewhere = await api.signed_in(anna.email)
    await assert_open(other, elsewhere)
    answer = await change_password(api, anna, PASSWORD, NEW_PASSWORD)
    assert (answer.status, answer.body) == (204, b"")
    await assert_over(other, elsewhere)
    await assert_open(other, anna)
    assert_problem(await api.log_in(anna.email, PASSWORD), 401, "invalid-credentials")
    assert (await api.log_in(anna.email, NEW_PASSWORD)).status == 200


async def test_the_present_password_must_be_right(api: Api, anna: Person) -> None:
    answer = await change_password(api, anna, "wrong password", NEW_PASSWORD)
    assert_problem(answer, 401, "invalid-credentials", ["#/current_password"])
    assert (await api.log_in(anna.email, PASSWORD)).status == 200


@pytest.mark.parametrize("new", ["short", "x" * 129, "password1", "anna@example.com"])
async def test_the_new_password_must_be_acceptable(api: Api, anna: Person, new: str) -> None:
    answer = await change_password(api, anna, PASSWORD, new)
    assert_problem(answer, 422, "validation-failed", ["#/new_password"])
    assert (await api.log_in(anna.email, PASSWORD)).status == 200


# The cost of hashes.


async def test_a_password_is_hashed_anew_at_the_next_sign_in_after_the_cost_has_changed(
    api: Api, settings: Settings, anna: Person, database: asyncpg.Connection
) -> None:
    async def stored() -> str:
        password_hash: str = await database.fetchval("SELECT password_hash FROM users")
        return password_hash

    assert "$m=64,t=1,p=1$" in await stored()
    async with running(replace(settings, argon2=Argon2(memory_kib=128, passes=2, lanes=1))) as new:
        assert (await new.log_in(anna.email, "wrong password")).status == 401
        assert "$m=64,t=1,p=1$" in await stored(), "a wrong password changes nothing"
        assert (await new.log_in(anna.email)).status == 200
        changed = await stored()
        assert "$m=128,t=2,p=1$" in changed
        assert (await new.log_in(anna.email)).status == 200
        assert await stored() == changed, "and once is enough"
        await assert_open(new, anna)


async def test_where_there_is_no_time_for_another_hash_the_old_one_signs_in(
    settings: Settings, anna: Person, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(hasher: PasswordHasher, password: str) -> str:
        raise HashingQueueFull

    before = await database.fetchval("SELECT password_hash FROM users")
    monkeypatch.setattr(PasswordHasher, "hash", full)
    async with running(replace(settings, argon2=Argon2(memory_kib=128, passes=2, lanes=1))) as new:
        assert (await new.log_in(anna.email)).status == 200
    assert await database.fetchval("SELECT password_hash FROM users") == before


# Keys and lifetimes are settings.


async def test_the_lifetimes_are_settings(
    settings: Settings, database: asyncpg.Connection, redis: Redis
) -> None:
    short = replace(
        settings, access_token_ttl=timedelta(seconds=30), refresh_token_ttl=timedelta(seconds=90)
    )
    async with running(short) as api:
        anna = await api.new_person()
        assert (await api.log_in(anna.email)).json()["expires_in"] == 30
        api.clock.ahead = timedelta(seconds=30) + LEEWAY + timedelta(seconds=1)
        assert (await api.get("/users/me", by=anna)).status == 401
        assert (await refresh(api, anna.refresh_token)).status == 200
        api.clock.ahead = timedelta(seconds=91)
        assert (await api.log_in(anna.email)).status == 200


async def test_a_token_for_another_issuer_is_not_ours(
    api: Api, settings: Settings, anna: Person
) -> None:
    """The same keys and the same database, at another address."""
    async with running(replace(settings, public_url="https://elsewhere.example")) as elsewhere:
        answer = await elsewhere.get("/users/me", by=anna)
        assert_problem(answer, 401, "invalid-token")
