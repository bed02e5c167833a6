"""Signing in with another issuer, there and back."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from http.cookies import SimpleCookie
from typing import Any

import asyncpg
import pytest

from service.domain.clock import utc_now
from service.postgresql.database import connect
from service.settings.settings import Settings
from service.use_cases.housekeeping import Housekeeping
from tests.api.assertions import assert_problem
from tests.api.issuer import (
    CLIENT_ID,
    EMAIL,
    GitHub,
    Issuer,
    begin,
    come_back,
    rows,
    sign_in,
    signed_in,
)
from tests.conftest import Servers
from tests.factories import Api, running


async def test_the_providers_are_listed(api: Api, settings: Settings) -> None:
    answer = await api.get("/auth/providers")
    base = f"{settings.public_url}/api/v1/auth/providers"
    assert answer.json() == {
        "items": [
            {"name": "corp", "title": "The corporation", "start_url": f"{base}/corp/start"},
            {"name": "github", "title": "GitHub", "start_url": f"{base}/github/start"},
        ],
        "next_cursor": None,
    }


async def test_the_browser_is_sent_with_state_nonce_and_challenge(
    api: Api, issuer: Issuer, settings: Settings
) -> None:
    one, other = await begin(api), await begin(api)
    assert one.location.startswith(f"{issuer.url}/authorize?by=browser&")
    request = one.request
    assert request.pop("by") == "browser"
    random = {request.pop(name) for name in ("state", "nonce", "code_challenge")}
    assert request == {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": f"{settings.public_url}/api/v1/auth/providers/corp/callback",
        "scope": "openid email",
        "code_challenge_method": "S256",
    }
    assert all(len(value) == 43 for value in random)
    assert not random & set(other.request.values())
    assert one.cookie != other.cookie
    assert one.cookie.partition("=")[2] not in one.location


@pytest.mark.parametrize(
    ("public_url", "name", "secure"),
    [
        ("http://localhost:8080", "sign-in", ""),
        ("https://referrals.example.com", "__Host-sign-in", True),
    ],
)
async def test_the_cookie_is_for_this_host_and_no_script(
    api: Api, settings: Settings, public_url: str, name: str, secure: Any
) -> None:
    async with running(replace(settings, public_url=public_url)) as other:
        path = "/auth/providers/corp/start"
        answer = await other.get(path, allow_redirects=False)
    [cookie] = SimpleCookie(answer.headers["Set-Cookie"]).values()
    assert cookie.key == name
    assert (cookie["secure"], cookie["httponly"]) == (secure, True)
    assert (cookie["samesite"], cookie["path"], cookie["domain"]) == ("Lax", "/", "")
    assert cookie["max-age"] == "600"


async def test_an_unknown_provider_is_not_found(api: Api) -> None:
    for path in ("start", "callback?state=x"):
        answer = await api.get(f"/auth/providers/nobody/{path}")
        assert_problem(answer, 404, "provider-not-found")


@pytest.mark.parametrize("path", ["start", "callback?state=x"])
async def test_a_look_with_head_begins_and_ends_nothing(api: Api, path: str) -> None:
    assert (await api.call("HEAD", f"/auth/providers/corp/{path}")).status == 405


# And back


async def test_a_new_person_gets_an_account_without_a_password(
    api: Api, issuer: Issuer, database: asyncpg.Connection
) -> None:
    answer = await sign_in(api, issuer)
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in answer.headers  # another tab may need it yet
    tokens = answer.json()
    assert set(tokens) == {"access_token", "token_type", "expires_in", "refresh_token", "user_id"}

    user = (await api.get("/users/me", by=tokens["access_token"])).json()
    assert (user["id"], user["email"]) == (tokens["user_id"], EMAIL)
    assert (user["email_confirmed"], user["role"]) == (True, "user")
    sessions = (await api.get("/auth/sessions", by=tokens["access_token"])).json()["items"]
    assert [(one["origin"], one["client_id"]) for one in sessions] == [("corp", "first-party")]
    refreshed = await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})
    assert refreshed.status == 200
    assert_problem(await api.log_in(EMAIL), 401, "invalid-credentials")
    assert_problem(await api.register(EMAIL), 409, "email-taken", ["#/email"])
    assert await database.fetchval("SELECT password_hash FROM users") is None


@pytest.mark.parametrize(
    "claims",
    [
        pytest.param({}, id="as before"),
        pytest.param({"email": "other@example.com"}, id="another address"),
        pytest.param({"email_verified": False}, id="an unverified address"),
        pytest.param({"email": None}, id="no address"),
        pytest.param({"email": "x" * 300}, id="a malformed address"),
    ],
)
async def test_who_is_known_is_known_by_issuer_and_subject_alone(
    api: Api, issuer: Issuer, database: asyncpg.Connection, claims: dict[str, Any]
) -> None:
    first = await signed_in(api, issuer)
    issuer.claims |= claims
    again = await signed_in(api, issuer)
    assert again.user_id == first.user_id
    assert (await api.get("/users/me", by=again)).json()["email"] == EMAIL
    assert await rows(database) == (1, 1)


async def test_the_same_subject_of_another_issuer_is_somebody_else(
    api: Api, issuer: Issuer, github: tuple[GitHub, str]
) -> None:
    issuer.claims["sub"] = "583231"
    first = await signed_in(api, issuer)
    github[0].emails = [{"email": "octo@example.com", "primary": True, "verified": True}]
    answer = await come_back(api, await begin(api, "github"), code="x")
    assert answer.status == 200
    assert answer.json()["user_id"] != first.user_id


async def test_of_20_callbacks_at_once_one_makes_the_account(
    api: Api, issuer: Issuer, database: asyncpg.Connection
) -> None:
    """Without identities_of_one_user and users_email_unique there would be more."""
    begun = [await begin(api) for _ in range(20)]
    answers = await asyncio.gather(
        *(come_back(api, one, code=issuer.grant(one.request), iss=issuer.url) for one in begun)
    )
    assert {answer.status for answer in answers} == {200}
    assert len({answer.json()["user_id"] for answer in answers}) == 1
    assert await rows(database) == (1, 1)


async def test_a_disabled_account_stays_outside(
    api: Api, issuer: Issuer, database: asyncpg.Connection
) -> None:
    await signed_in(api, issuer)
    await database.execute("UPDATE users SET disabled_at = now()")
    assert_problem(await sign_in(api, issuer), 403, "account-disabled")


# The state


async def test_a_callback_in_another_browser_is_refused_and_ends_nothing(
    api: Api, issuer: Issuer
) -> None:
    victim, attacker = await begin(api), await begin(api)
    code = issuer.grant(attacker.request)
    ours = attacker.cookie
    planted = (f"x=1 {ours}", f"x={ours}", f"x=1,{ours}", f"{ours}; {ours}", f"{ours}; sign-in=x")
    for cookie in ("", victim.cookie, "sign-in=", "sign-in=\xff", *planted):
        answer = await come_back(api, attacker, code=code, iss=issuer.url, cookie=cookie)
        assert_problem(answer, 422, "sign-in-unusable", ["#/state"])
    assert "/token" not in issuer.calls
    assert (await come_back(api, attacker, code=code, iss=issuer.url)).status == 200


async def test_both_of_two_tabs_finish(api: Api, issuer: Issuer) -> None:
    first = await begin(api)
    second = await begin(api, cookie=first.cookie)
    assert second.cookie == first.cookie
    for tab in (first, second):
        answer = await come_back(api, tab, code=issuer.grant(tab.request), iss=issuer.url)
        assert answer.status == 200, answer.body


async def test_a_tab_that_begins_while_another_comes_back_finishes(
    api: Api, issuer: Issuer
) -> None:
    first = await begin(api)
    code = issuer.grant(first.request)
    answer = await come_back(api, first, code=code, iss=issuer.url)
    assert answer.status == 200
    second = await begin(api, cookie=first.cookie)
    answer = await come_back(api, second, code=issuer.grant(second.request), iss=issuer.url)
    assert answer.status == 200


@pytest.mark.parametrize("cookie", ["sign-in=x", "sign-in=", "sign-in=" + "a" * 44, "other=1"])
async def test_a_cookie_that_is_none_of_ours_is_replaced(
    api: Api, issuer: Issuer, cookie: str
) -> None:
    begun = await begin(api, cookie=cookie)
    assert begun.cookie != cookie
    answer = await come_back(api, begun, code=issuer.grant(begun.request), iss=issuer.url)
    assert answer.status == 200


async def test_a_state_is_good_once(api: Api, issuer: Issuer) -> None:
    begun = await begin(api)
    code = issuer.grant(begun.request)
    answers = await asyncio.gather(
        *(come_back(api, begun, code=code, iss=issuer.url) for _ in range(10))
    )
    assert sorted(answer.status for answer in answers) == [200] + 9 * [422]
    assert issuer.calls.count("/token") == 1


async def test_a_code_is_good_once(api: Api, issuer: Issuer) -> None:
    one = await begin(api)
    code = issuer.grant(one.request)
    assert (await come_back(api, one, code=code, iss=issuer.url)).status == 200
    answer = await come_back(api, await begin(api), code=code, iss=issuer.url)
    assert_problem(answer, 403, "sign-in-refused")


async def test_the_code_of_another_sign_in_is_refused(api: Api, issuer: Issuer) -> None:
    """Its challenge differs: an injected code is worth nothing (RFC 7636)."""
    mine, stolen = await begin(api), await begin(api)
    answer = await come_back(api, mine, code=issuer.grant(stolen.request), iss=issuer.url)
    assert_problem(answer, 403, "sign-in-refused")


async def test_a_sign_in_waits_ten_minutes(api: Api, issuer: Issuer) -> None:
    begun = await begin(api)
    api.clock.ahead = timedelta(minutes=10, seconds=1)
    answer = await come_back(api, begun, code=issuer.grant(begun.request), iss=issuer.url)
    assert_problem(answer, 422, "sign-in-unusable", ["#/state"])


async def test_the_state_of_one_provider_is_none_of_another(api: Api, issuer: Issuer) -> None:
    begun = replace(await begin(api), provider="github")
    assert_problem(await come_back(api, begun, code="x"), 422, "sign-in-unusable", ["#/state"])


@pytest.mark.parametrize("state", [None, "", "x", "x" * 4000, "\ud83d\ude00", "a\0b"])
async def test_any_other_state_is_refused(api: Api, state: str | None) -> None:
    begun = await begin(api)
    answer = await come_back(api, begun, code="x", state=state)
    assert answer.status == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["#/state"]


async def test_what_has_expired_is_tidied_away(
    api: Api, servers: Servers, database: asyncpg.Connection
) -> None:
    await begin(api)
    api.clock.ahead = timedelta(minutes=5)
    await begin(api)
    async with connect(servers.database_url, 1) as opened:
        await Housekeeping(opened, lambda: utc_now() + timedelta(minutes=11)).tidy_up()
    assert await database.fetchval("SELECT count(*) FROM sign_ins") == 1
