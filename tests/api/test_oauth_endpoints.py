"""What hostile and careless clients send to the token, revocation and introspection endpoints."""

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import quote_plus, urlencode

import pytest

from service.api.http import app_keys
from service.api.http.requests import LARGEST_BODY
from service.domain.errors import DatabaseUnavailable
from service.domain.oauth import Client, Grant, hash_secret
from service.domain.scopes import OF_CLIENTS, Scope
from service.settings.settings import Settings
from tests.factories import Answer, Api, Person, running
from tests.oauth import (
    AUTHORIZE,
    CALLBACK,
    INTROSPECT,
    REVOKE,
    TOKEN,
    VERIFIER,
    Application,
    Browser,
    insert_client,
    new_application,
    refusal,
    returned,
)

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
ENDPOINTS = [TOKEN, REVOKE, INTROSPECT]
INVALID_CLIENT = (401, "invalid_client")
INVALID_REQUEST = (400, "invalid_request")
DESCRIPTION = re.compile(r"[\x20-\x21\x23-\x5B\x5D-\x7E]+")
"""RFC 6749, 5.2: what an error_description may be written with."""


@pytest.fixture
async def anna(api: Api) -> Person:
    return await api.new_person()


@pytest.fixture
async def application(api: Api) -> Application:
    """A client that acts for users, and for itself."""
    return await new_application(api, own_scopes=OF_CLIENTS)


def basic(client_id: str, secret: str) -> dict[str, str]:
    """Return the header of RFC 6749, 2.3.1: both are form-encoded first."""
    raw = f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()
    return {"Authorization": f"Basic {base64.b64encode(raw).decode()}"}


def valid_form(application: Application, path: str) -> dict[str, str]:
    """Return a form that the endpoint answers with 200, but for the client's authentication."""
    return {"grant_type": "client_credentials"} if path == TOKEN else {"token": "unknown"}


# How clients authenticate


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_a_client_authenticates_in_the_header_or_in_the_body(
    api: Api, application: Application, path: str
) -> None:
    form = valid_form(application, path)
    assert application.secret is not None
    header = basic(application.client_id, application.secret)
    assert (await api.post(path, data=form, headers=header)).status == 200
    both_name_it = {**form, "client_id": application.client_id}
    assert (await api.post(path, data=both_name_it, headers=header)).status == 200
    assert (await application.send(path, **form)).status == 200


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    "changes",
    [
        {"client_secret": "wrong"},
        {"client_secret": ""},
        {"client_secret": None},
        {"client_secret": "é"},
        {"client_secret": "\0"},
        {"client_id": "nobody"},
        {"client_id": "\0"},
        {"client_id": ""},
        {"client_id": None},
        {"client_id": None, "client_secret": None},
        {"client_id": "swagger-ui"},
    ],
)
async def test_a_client_that_does_not_prove_itself_gets_nothing(
    application: Application, path: str, changes: dict[str, str | None]
) -> None:
    answer = await application.send(path, **{**valid_form(application, path), **changes})
    assert refusal(answer) == INVALID_CLIENT
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "header",
    [
        "Basic",
        "Basic ",
        "Basic !",
        "Basic %%%",
        "Basic /w==",
        "Basic Og==",
        "Basic \xff",
        "Basic bm8tY29sb24=",
        "Bearer x",
        "Digest username=x",
    ],
)
async def test_malformed_credentials_are_refused_and_the_scheme_is_named(
    api: Api, header: str
) -> None:
    sent = {"Authorization": header.encode("latin-1").decode("utf-8", "surrogateescape")}
    answer = await api.post(TOKEN, data={"grant_type": "client_credentials"}, headers=sent)
    assert refusal(answer) == INVALID_CLIENT
    assert answer.headers["WWW-Authenticate"].startswith("Basic")


async def test_the_credentials_in_the_header_are_form_encoded(api: Api) -> None:
    client = Client(
        client_id="shop: 1+1=2 100% & more",
        name="Shop",
        secret_hash=hash_secret("p:w+ d%&é"),
        redirect_uris=(),
        scopes=frozenset(),
        grants=frozenset({Grant.CLIENT_CREDENTIALS}),
        own_scopes=frozenset({Scope.REFERRALS_READ}),
    )
    await insert_client(api, client)
    form = {"grant_type": "client_credentials"}
    header = basic(client.client_id, "p:w+ d%&é")
    assert (await api.post(TOKEN, data=form, headers=header)).status == 200
    assert (
        refusal(await api.post(TOKEN, data=form, headers=basic(client.client_id, "p:w  d%&é")))
        == INVALID_CLIENT
    )


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_two_authentications_at_once_are_refused(
    api: Api, application: Application, path: str
) -> None:
    other = await new_application(api)
    assert application.secret is not None
    header = basic(application.client_id, application.secret)
    form = valid_form(application, path)
    for doubled in (
        {"client_id": application.client_id, "client_secret": application.secret},
        {"client_secret": application.secret},
        {"client_id": other.client_id},
        {"client_id": other.client_id, "client_secret": other.secret or ""},
    ):
        answer = await api.post(path, data={**form, **doubled}, headers=header)
        assert refusal(answer) == INVALID_REQUEST


async def test_credentials_in_the_query_are_not_looked_at(
    api: Api, application: Application
) -> None:
    credentials = {"client_id": application.client_id, "client_secret": application.secret or ""}
    answer = await api.post(
        f"{TOKEN}?{urlencode(credentials)}", data={"grant_type": "client_credentials"}
    )
    assert refusal(answer) == INVALID_CLIENT
    grant = f"{TOKEN}?grant_type=client_credentials"
    assert refusal(await api.post(grant, data=credentials)) == INVALID_REQUEST


async def test_a_public_client_has_no_secret_and_speaks_for_users_only(
    api: Api, anna: Person
) -> None:
    public = await new_application(api, public=True)
    tokens = await public.tokens_of(anna)
    assert await public.is_alive(tokens)
    refused = await public.send(TOKEN, grant_type="client_credentials")
    assert refusal(refused) == (400, "unauthorized_client")
    guessed = await public.refresh(tokens["refresh_token"], client_secret="guessed")
    assert refusal(guessed) == INVALID_CLIENT


async def test_a_parameter_without_a_value_counts_as_left_out(api: Api, anna: Person) -> None:
    """RFC 6749, 3.2; Swagger UI and others send a public client's empty secret."""
    public = await new_application(api, public=True)
    code = await public.code_of(anna)
    answer = await public.redeem(code, client_secret="", scope="")
    assert answer.status == 200, answer.body
    refreshed = await public.refresh(answer.json()["refresh_token"], client_secret="", scope="")
    assert refreshed.status == 200, refreshed.body


async def test_a_deleted_client_gets_no_more_tokens(
    api: Api, application: Application, anna: Person
) -> None:
    tokens = await application.tokens_of(anna)
    async with api.app[app_keys.SERVICES].database.transaction() as repositories:
        assert await repositories.oauth_clients.delete(application.client_id, api.clock())
    assert refusal(await application.refresh(tokens["refresh_token"])) == INVALID_CLIENT
    assert (await Browser(api).open(application.wish())).status == 400


# What is sent


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "application/json"}, b'{"grant_type": "client_credentials"}'),
        ({"Content-Type": "text/plain"}, b"grant_type=client_credentials"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x--"),
        ({}, b"grant_type=client_credentials"),
        (FORM, b"grant_type=client_credentials&scope=\xff"),
        (FORM, b"grant_type=client_credentials&scope=%ff"),
        (FORM, b"grant_type=client_credentials&%ff=x"),
        (FORM, b"grant_type=client_credentials&scope=%ed%a0%80"),
        (FORM, b"\x00"),
        (FORM, b"&=&"),
        (FORM, b""),
        ({**FORM, "Content-Encoding": "gzip"}, b"grant_type=client_credentials"),
    ],
)
async def test_what_is_no_form_is_refused(
    api: Api, application: Application, path: str, headers: dict[str, str], body: bytes
) -> None:
    header = basic(application.client_id, application.secret or "")
    answer = await api.post(path, data=body, headers={"Content-Type": "", **headers, **header})
    assert answer.status in {400, 415}
    assert refusal(answer)[1] == "invalid_request"


@pytest.mark.parametrize(
    "name",
    ["grant_type", "code", "redirect_uri", "code_verifier", "client_id", "client_secret", "scope"],
)
async def test_a_parameter_that_comes_twice_is_refused(
    api: Api, application: Application, anna: Person, name: str
) -> None:
    code = await application.code_of(anna)
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": CALLBACK,
        "code_verifier": VERIFIER,
        "client_id": application.client_id,
        "client_secret": application.secret or "",
        "scope": "profile",
    }
    doubled = urlencode([*form.items(), (name, form[name])])
    assert refusal(await api.post(TOKEN, data=doubled, headers=FORM)) == INVALID_REQUEST
    assert (await application.redeem(code)).status == 200, "nothing was spent"


@pytest.mark.parametrize(
    ("grant_type", "error"),
    [
        (None, "invalid_request"),
        ("password", "unsupported_grant_type"),
        ("implicit", "unsupported_grant_type"),
        ("Authorization_Code", "unsupported_grant_type"),
        ("urn:ietf:params:oauth:grant-type:jwt-bearer", "unsupported_grant_type"),
        ("\0", "unsupported_grant_type"),
    ],
)
async def test_no_other_grant_is_there(
    application: Application, anna: Person, grant_type: str | None, error: str
) -> None:
    answer = await application.send(
        TOKEN, grant_type=grant_type, username=anna.email, password=anna.password
    )
    assert refusal(answer) == (400, error)


@pytest.mark.parametrize("left_out", ["code", "redirect_uri", "code_verifier"])
async def test_a_grant_without_its_parameter_is_refused(
    application: Application, anna: Person, left_out: str
) -> None:
    form = {
        "grant_type": "authorization_code",
        "code": await application.code_of(anna),
        "redirect_uri": CALLBACK,
        "code_verifier": VERIFIER,
    }
    del form[left_out]
    status, error = refusal(await application.send(TOKEN, **form))
    assert status == 400
    assert error in {"invalid_request", "invalid_grant"}


async def test_a_refresh_without_a_token_is_refused(application: Application) -> None:
    status, error = refusal(await application.send(TOKEN, grant_type="refresh_token"))
    assert status == 400
    assert error in {"invalid_request", "invalid_grant"}


# Scopes


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


# Errors in RFC 6749's words


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
