"""Scopes, revocation (RFC 7009) and introspection (RFC 7662) of tokens."""

from datetime import timedelta
from typing import Any

import pytest

from service.api.http import app_keys
from service.domain.scopes import Scope
from service.settings.settings import Settings
from tests.api.oauth_endpoints.forms import INVALID_CLIENT, INVALID_REQUEST
from tests.factories import Api, Person
from tests.oauth import (
    INTROSPECT,
    REVOKE,
    TOKEN,
    Application,
    Browser,
    new_application,
    refusal,
    returned,
)


async def test_tokens_say_what_they_allow_and_how_long(
    application: Application, anna: Person, settings: Settings
) -> None:
    code = await application.code_of(anna, scope="codes:read profile")
    answer = await application.redeem(code)
    tokens = answer.json()
    assert set(tokens) == {"access_token", "token_type", "expires_in", "scope", "refresh_token"}
    assert tokens["token_type"] == "Bearer"
    assert set(tokens["scope"].split()) == {"codes:read", "profile"}
    assert tokens["expires_in"] == settings.access_token_ttl.total_seconds()
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Pragma"] == "no-cache"


async def test_a_refresh_cannot_widen_the_scope_and_spends_nothing_in_trying(
    application: Application, anna: Person
) -> None:
    tokens = await application.tokens_of(anna, scope="codes:read profile")
    for wider in ("codes:read codes:write", "admin", "codes:read everything"):
        refused = await application.refresh(tokens["refresh_token"], scope=wider)
        assert refusal(refused) == (400, "invalid_scope")
    narrow = await application.refresh(tokens["refresh_token"], scope="profile")
    assert narrow.json()["scope"] == "profile"
    whole = await application.refreshed(narrow.json()["refresh_token"])
    assert set(whole["scope"].split()) == {"codes:read", "profile"}


async def test_a_client_cannot_ask_for_more_than_it_was_given(api: Api, anna: Person) -> None:
    narrow = await new_application(
        api, scopes=[Scope.CODES_READ], own_scopes=[Scope.REFERRALS_READ]
    )
    for wider in ("admin", "codes:read", "referrals:read admin"):
        refused = await narrow.send(TOKEN, grant_type="client_credentials", scope=wider)
        assert refusal(refused) == (400, "invalid_scope")
    own = await narrow.send(TOKEN, grant_type="client_credentials")
    assert own.json()["scope"] == "referrals:read"
    refused = await Browser(api).open(narrow.wish(scope="referrals:read"))
    assert returned(refused)["error"] == "invalid_scope"
    tokens = await narrow.tokens_of(anna)
    assert tokens["scope"] == "codes:read"


async def test_the_redemption_cannot_widen_what_was_granted(
    application: Application, anna: Person
) -> None:
    code = await application.code_of(anna, scope="codes:read")
    tokens = (await application.redeem(code, scope="codes:write profile")).json()
    assert tokens.get("scope", "codes:read") == "codes:read"


async def test_an_ordinary_user_cannot_grant_what_admins_may(
    api: Api, application: Application, anna: Person
) -> None:
    tokens = await application.tokens_of(anna, scope="profile admin")
    assert tokens["scope"] == "profile"
    assert (await api.get("/admin/users", by=tokens["access_token"])).status == 403


async def test_who_may_grant_nothing_of_what_is_asked_gives_no_tokens(
    application: Application, anna: Person
) -> None:
    """RFC 6749, 3.3: a scope is at least one word, so there is no token with an empty one."""
    answer = await application.allowed_by(anna, scope="admin")
    if answer.status == 303 and "code=" in answer.headers["Location"]:
        code = answer.headers["Location"].partition("code=")[2].partition("&")[0]
        assert (await application.redeem(code)).status == 400


async def test_a_client_for_itself_gets_no_refresh_token(application: Application) -> None:
    answer = await application.send(TOKEN, grant_type="client_credentials", scope="referrals:read")
    assert answer.status == 200
    assert "refresh_token" not in answer.json()
    assert answer.json()["scope"] == "referrals:read"


# Revocation (RFC 7009)


@pytest.mark.parametrize("which", ["access_token", "refresh_token"])
@pytest.mark.parametrize("hint", [None, "access_token", "refresh_token", "cookie"])
async def test_revoking_either_token_ends_both_whatever_the_hint(
    application: Application, anna: Person, which: str, hint: str | None
) -> None:
    tokens = await application.tokens_of(anna)
    answer = await application.send(REVOKE, token=tokens[which], token_type_hint=hint)
    assert answer.status == 200
    assert not await application.is_alive(tokens)


@pytest.mark.parametrize("token", ["unknown", "a.b.c", "", "\0", "é", "x" * 5000])
async def test_revoking_what_is_no_token_is_no_fault(application: Application, token: str) -> None:
    answer = await application.send(REVOKE, token=token)
    assert answer.status in ({200, 400} if token == "" else {200})


async def test_revoking_twice_is_no_fault(application: Application, anna: Person) -> None:
    token = (await application.tokens_of(anna))["refresh_token"]
    answers = [await application.send(REVOKE, token=token) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]


async def test_no_client_can_revoke_anothers_tokens(
    api: Api, application: Application, anna: Person
) -> None:
    tokens = await application.tokens_of(anna)
    for public in (True, False):
        other = await new_application(api, public=public)
        for which in ("access_token", "refresh_token"):
            assert (await other.send(REVOKE, token=tokens[which])).status == 200
    assert await application.is_alive(tokens)


@pytest.mark.parametrize("path", [REVOKE, INTROSPECT])
async def test_a_request_about_no_token_is_refused(application: Application, path: str) -> None:
    assert refusal(await application.send(path)) == INVALID_REQUEST


# Introspection (RFC 7662)


async def introspected(application: Application, token: str) -> Any:
    answer = await application.send(INTROSPECT, token=token)
    assert answer.status == 200, answer.body
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.json()


async def test_a_resource_server_learns_what_a_token_allows(
    api: Api, application: Application, anna: Person
) -> None:
    resource_server = await new_application(api, redirect_uris=[], resource_server=True)
    tokens = await application.tokens_of(anna, scope="profile codes:read")
    told = await introspected(resource_server, tokens["access_token"])
    issuer = api.app[app_keys.SETTINGS].public_url
    assert told["active"] is True
    assert told["client_id"] == application.client_id
    assert (told["sub"], told["iss"], told["aud"]) == (anna.user_id, issuer, issuer)
    assert set(told["scope"].split()) == {"profile", "codes:read"}
    assert told["token_type"] == "Bearer"
    assert told["exp"] - told["iat"] == tokens["expires_in"]
    assert (await introspected(resource_server, tokens["refresh_token"]))["active"] is True


async def test_of_a_token_of_no_use_nothing_is_told(
    api: Api, application: Application, anna: Person
) -> None:
    inactive = {"active": False}
    old = await application.tokens_of(anna)
    new = await application.refreshed(old["refresh_token"])
    assert await introspected(application, old["refresh_token"]) == inactive
    tampered = new["access_token"][:-4] + "AAAA"
    for token in (tampered, "unknown", "", "\0", "é", "a.b.c", "x" * 5000):
        answer = await application.send(INTROSPECT, token=token)
        assert answer.json() == inactive or (token == "" and answer.status == 400)
    api.clock.ahead += timedelta(minutes=11)
    assert await introspected(application, new["access_token"]) == inactive
    assert (await introspected(application, new["refresh_token"]))["active"] is True
    await application.send(REVOKE, token=new["refresh_token"])
    assert await introspected(application, new["refresh_token"]) == inactive


async def test_who_has_no_secret_cannot_introspect(api: Api, anna: Person) -> None:
    public = await new_application(api, public=True)
    tokens = await public.tokens_of(anna)
    assert refusal(await public.send(INTROSPECT, token=tokens["access_token"])) == INVALID_CLIENT
    for headers in ({}, {"Authorization": f"Bearer {tokens['access_token']}"}):
        answer = await api.post(INTROSPECT, data={"token": "x"}, headers=headers)
        assert refusal(answer) == INVALID_CLIENT
        assert "WWW-Authenticate" in answer.headers
