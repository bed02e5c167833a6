"""Errors in RFC 6749's words, what other sites' scripts may read, and the documents."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from service.api.http import app_keys
from service.api.http.requests import LARGEST_BODY
from service.domain.errors import DatabaseUnavailable
from service.domain.scopes import Scope
from service.settings.settings import Settings
from tests.api.oauth_endpoints.forms import DESCRIPTION, ENDPOINTS, valid_form
from tests.factories import Answer, Api, running
from tests.oauth import AUTHORIZE, REVOKE, TOKEN, Application, refusal


def assert_of_rfc_6749(answer: Answer) -> str:
    status, error = refusal(answer)
    assert status >= 400
    assert DESCRIPTION.fullmatch(answer.json()["error_description"])
    assert answer.headers["Cache-Control"] == "no-store"
    assert re.fullmatch(r"[a-z_]+", error)
    return error


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", path, 405) for path in ENDPOINTS),
        *(("PUT", path, 405) for path in [*ENDPOINTS, AUTHORIZE]),
        ("DELETE", AUTHORIZE, 405),
        ("POST", "//oauth/nothing", 404),
        ("GET", "//oauth/", 404),
        ("POST", f"{TOKEN}/", 404),
    ],
)
async def test_addresses_and_methods_that_are_not_there(
    api: Api, method: str, path: str, status: int
) -> None:
    answer = await api.call(method, path)
    assert answer.status == status
    assert_of_rfc_6749(answer)
    assert ("Allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("path", [*ENDPOINTS, AUTHORIZE])
async def test_a_body_too_large_is_refused(api: Api, path: str) -> None:
    answer = await api.post(path, data={"token": "x" * LARGEST_BODY})
    assert answer.status == 413
    assert_of_rfc_6749(answer)


@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        (RuntimeError("a secret of ours"), 500, "server_error"),
        (DatabaseUnavailable(), 503, "temporarily_unavailable"),
    ],
)
@pytest.mark.parametrize("path", ENDPOINTS)
async def test_our_own_faults_are_told_in_the_same_words(
    api: Api,
    application: Application,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    fault: Exception,
    status: int,
    error: str,
) -> None:
    async def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(api.app[app_keys.SERVICES].oauth, "find_client", fail)
    answer = await application.send(path, **valid_form(application, path))
    assert answer.status == status
    assert assert_of_rfc_6749(answer) == error
    assert b"secret of ours" not in answer.body
    assert ("Retry-After" in answer.headers) == (status == 503)


# What other sites' scripts may read

ORIGIN = "https://app.example"
METADATA = "//.well-known/oauth-authorization-server"
JWKS = "//.well-known/jwks.json"


@pytest.mark.parametrize(
    ("method", "path", "readable"),
    [
        ("POST", TOKEN, True),
        ("POST", REVOKE, True),
        ("GET", METADATA, True),
        ("GET", JWKS, True),
        ("GET", AUTHORIZE, False),
        ("POST", AUTHORIZE, False),
    ],
)
async def test_scripts_of_allowed_origins_may_read_all_but_the_page(
    settings: Settings, method: str, path: str, readable: bool
) -> None:
    async with running(replace(settings, cors_origins=frozenset({ORIGIN}))) as api:
        answer = await api.call(method, path, headers={"Origin": ORIGIN})
        asked = {"Origin": ORIGIN, "Access-Control-Request-Method": method}
        preflight = await api.call("OPTIONS", path, headers=asked)
        foreign = await api.call(method, path, headers={"Origin": "https://evil.example"})
    allowed = ORIGIN if readable else None
    assert answer.headers.get("Access-Control-Allow-Origin") == allowed
    assert preflight.headers.get("Access-Control-Allow-Origin") == allowed
    assert (preflight.status == 204) == readable
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert "Access-Control-Allow-Origin" not in foreign.headers


async def test_without_allowed_origins_no_script_may_read_anything(api: Api) -> None:
    for method, path in (("POST", TOKEN), ("GET", METADATA), ("GET", JWKS), ("GET", AUTHORIZE)):
        answer = await api.call(method, path, headers={"Origin": ORIGIN})
        assert "Access-Control-Allow-Origin" not in answer.headers


# The documents


def endpoints_in(document: dict[str, Any]) -> Iterator[str]:
    for name, value in document.items():
        if name.endswith("_endpoint") or name == "jwks_uri":
            yield value


async def test_the_metadata_says_what_is_there(api: Api) -> None:
    answer = await api.get(METADATA)
    document = answer.json()
    issuer = api.app[app_keys.SETTINGS].public_url
    assert document["issuer"] == issuer
    assert document["code_challenge_methods_supported"] == ["S256"]
    assert document["authorization_response_iss_parameter_supported"] is True
    assert document["response_types_supported"] == ["code"]
    assert "password" not in document["grant_types_supported"]
    assert "none" not in document["introspection_endpoint_auth_methods_supported"]
    assert set(document["scopes_supported"]) == set(Scope)
    assert answer.headers["Cache-Control"] == "public, max-age=600"
    for endpoint in endpoints_in(document):
        assert endpoint.startswith(f"{issuer}/")
        assert (await api.get("/" + endpoint.removeprefix(issuer))).status != 404


async def test_the_jwks_hold_public_members_only(api: Api) -> None:
    answer = await api.get(JWKS)
    assert answer.headers["Cache-Control"] == "public, max-age=600"
    (key,) = answer.json()["keys"]
    assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    assert (key["alg"], key["use"]) == ("ES256", "sig")
