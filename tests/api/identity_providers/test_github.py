"""Signing in with GitHub."""

from typing import Any

import asyncpg
import pytest

from tests.api.assertions import assert_problem
from tests.api.issuer import EMAIL, GitHub, begin, come_back
from tests.factories import Answer, Api


async def with_github(api: Api) -> Answer:
    return await come_back(api, await begin(api, "github"), code="x")


async def test_github_signs_in_whom_its_number_names(
    api: Api, github: tuple[GitHub, str], database: asyncpg.Connection
) -> None:
    octocat, url = github
    octocat.emails = [
        {"email": "old@example.com", "primary": False, "verified": True},
        {"email": EMAIL, "primary": True, "verified": True},
    ]
    begun = await begin(api, "github")
    assert begun.location.startswith(f"{url}/login/oauth/authorize?")
    assert begun.request["scope"] == "user:email"
    answer = await come_back(api, begun, code="x")
    assert answer.status == 200, answer.body
    me = (await api.get("/users/me", by=answer.json()["access_token"])).json()
    assert (me["email"], me["email_confirmed"]) == (EMAIL, True)
    [row] = await database.fetch("SELECT issuer, subject FROM identities")
    assert tuple(row) == (url, "583231")

    octocat.user["login"], octocat.emails = "another-name", None
    assert (await with_github(api)).json()["user_id"] == me["id"]


@pytest.mark.parametrize(
    "emails",
    [
        [],
        None,
        {},
        [{"email": EMAIL, "primary": True, "verified": False}],
        [{"email": EMAIL, "primary": False, "verified": True}],
        [{"email": EMAIL, "primary": True, "verified": "yes"}],
        [{"email": 5, "primary": True, "verified": True}],
        ["a@example.com"],
    ],
)
async def test_of_github_only_the_primary_verified_email_counts(
    api: Api, github: tuple[GitHub, str], emails: Any
) -> None:
    github[0].emails = emails
    assert_problem(await with_github(api), 403, "email-withheld")


@pytest.mark.parametrize("user", [None, {}, [], {"id": "5"}, {"id": True}, {"id": None}])
async def test_who_has_no_number_is_nobody(api: Api, github: tuple[GitHub, str], user: Any) -> None:
    github[0].user = user
    assert_problem(await with_github(api), 403, "sign-in-refused")


@pytest.mark.parametrize(
    ("token", "status", "code"),
    [
        ({"error": "bad_verification_code"}, 403, "sign-in-refused"),
        ({"error": "incorrect_client_credentials"}, 503, "provider-unavailable"),
        ({}, 403, "sign-in-refused"),
        ({"access_token": "a\r\nb"}, 403, "sign-in-refused"),
    ],
)
async def test_a_refusal_of_github_comes_with_the_status_200(
    api: Api, github: tuple[GitHub, str], token: Any, status: int, code: str
) -> None:
    github[0].token = token
    assert_problem(await with_github(api), status, code)
