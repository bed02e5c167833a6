"""Signing in with other issuers, who do what they like: nothing of it is believed unchecked."""

import asyncio
import gzip
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from http.cookies import SimpleCookie
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from redis.asyncio import Redis

from service.api.http.app_keys import ACCESS_LOG
from service.domain.clock import utc_now
from service.domain.rate_limits import RateLimit
from service.postgresql.database import connect
from service.providers.settings import MailSettings, OidcSettings, SmtpSettings
from service.settings.settings import Settings, read_settings
from service.telemetry.logs import JsonFormatter
from service.use_cases.housekeeping import Housekeeping
from tests.api.assertions import assert_problem
from tests.api.issuer import (
    ADA,
    CLIENT_ID,
    CLIENT_SECRET,
    EMAIL,
    GitHub,
    Handler,
    Issuer,
    Key,
    begin,
    come_back,
    forged,
    hang,
    sign_in,
    signed_in,
)
from tests.api.mailing import Postman, assert_unusable, confirm
from tests.conftest import Servers
from tests.factories import PASSWORD, Answer, Api, Person, running
from tests.stand_ins.smtp import SmtpServer


@pytest.fixture
def settings(environment: dict[str, str], provider_environment: dict[str, str]) -> Settings:
    return read_settings({**environment, **provider_environment})


@pytest.fixture
async def api(
    settings: Settings,
    database: asyncpg.Connection,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Api]:
    """A running service that is less patient with issuers than a real one."""
    monkeypatch.setattr("service.providers.http.TOTAL_SECONDS", 0.5)
    async with running(settings) as api:
        yield api


async def rows(database: asyncpg.Connection) -> tuple[int, int]:
    """Return how many accounts and identities there are."""
    return (
        await database.fetchval("SELECT count(*) FROM users"),
        await database.fetchval("SELECT count(*) FROM identities"),
    )


# There


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
        pytest.param({"email": "other@example.com"}, id="another e-mail"),
        pytest.param({"email_verified": False}, id="an e-mail in doubt"),
        pytest.param({"email": None}, id="no e-mail"),
        pytest.param({"email": "x" * 300}, id="no e-mail at all"),
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
    """Its challenge is another's: a code that was injected is worth nothing (RFC 7636)."""
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


# The issuer's answer


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"iss": "https://evil.example"}, id="another issuer"),
        pytest.param({"iss": None}, id="no issuer, though announced"),
        pytest.param({"code": None}, id="no code"),
        pytest.param({"code": ""}, id="an empty code"),
        pytest.param({"error": "access_denied", "code": None}, id="denied"),
        pytest.param({"error": "access_denied"}, id="denied and allowed"),
        pytest.param({"error": "<script>", "code": None}, id="an error of its own"),
        pytest.param({"code": "guessed"}, id="a guessed code"),
    ],
)
async def test_another_answer_than_a_code_of_the_issuer_is_refused(
    api: Api, issuer: Issuer, database: asyncpg.Connection, parameters: dict[str, str | None]
) -> None:
    begun = await begin(api)
    told = {"code": issuer.grant(begun.request), "iss": issuer.url, **parameters}
    answer = await come_back(api, begun, **told)
    assert_problem(answer, 403, "sign-in-refused")
    assert "script" not in answer.body.decode()
    assert await rows(database) == (0, 0)


async def test_an_issuer_that_does_not_name_itself_need_not_but_never_names_another(
    api: Api, issuer: Issuer
) -> None:
    issuer.description["authorization_response_iss_parameter_supported"] = False
    for iss, status in ((None, 200), (issuer.url, 200), ("https://evil.example", 403)):
        begun = await begin(api)
        answer = await come_back(api, begun, code=issuer.grant(begun.request), iss=iss)
        assert answer.status == status


@pytest.mark.parametrize("error", ["server_error", "temporarily_unavailable"])
async def test_an_issuer_that_cannot_now_is_unavailable(
    api: Api, issuer: Issuer, error: str
) -> None:
    answer = await come_back(api, await begin(api), error=error, iss=issuer.url)
    assert_problem(answer, 503, "provider-unavailable")


def public_pem(key: Key) -> bytes:
    pem: bytes = key.private.public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    return pem


SOMEBODY = Key.es256("first")  # an attacker's, of the same name
Forgery = Callable[[Issuer, dict[str, Any]], Any]


def with_claims(**changes: Any) -> Forgery:
    """Sign with the issuer's key; a claim that is None is left out."""

    def forge(issuer: Issuer, claims: dict[str, Any]) -> str:
        changed = {**claims, **changes}
        return issuer.keys[0].sign({k: v for k, v in changed.items() if v is not None})

    return forge


FORGERIES: dict[str, Forgery] = {
    "another issuer": with_claims(iss="https://evil.example"),
    "no issuer": with_claims(iss=None),
    "another nonce": with_claims(nonce="x"),
    "no nonce": with_claims(nonce=None),
    "for another client": with_claims(aud="somebody"),
    "for nobody": with_claims(aud=None),
    "for two, without azp": with_claims(aud=[CLIENT_ID, "somebody"]),
    "by another party": with_claims(azp="somebody"),
    "for two, by another party": with_claims(aud=[CLIENT_ID, "somebody"], azp="somebody"),
    "expired": with_claims(exp=1),
    "without an end": with_claims(exp=None),
    "an end that is no number": with_claims(exp="tomorrow"),
    "an end that is not a number": with_claims(exp=float("nan")),
    "not valid yet": with_claims(nbf=99_999_999_999),
    "without a beginning": with_claims(iat=None),
    "nobody": with_claims(sub=None),
    "an empty subject": with_claims(sub=""),
    "a subject that is a number": with_claims(sub=5),
    "too long a subject": with_claims(sub="x" * 256),
    "a subject with NUL": with_claims(sub="a\0b"),
    "alg none": lambda _, claims: forged(claims, None, alg="none", kid="first"),
    "alg None": lambda _, claims: forged(claims, None, alg="None", kid="first"),
    "HS256 with the public key": lambda issuer, claims: forged(
        claims, public_pem(issuer.keys[0]), alg="HS256", kid="first"
    ),
    "HS256 with the secret": lambda _, claims: forged(
        claims, CLIENT_SECRET.encode(), alg="HS256", kid="first"
    ),
    "the key of somebody else": lambda _, claims: SOMEBODY.sign(claims),
    "a key in the header": lambda _, claims: forged(
        claims, b"x", alg="ES256", jwk=SOMEBODY.to_public_jwk()
    ),
    "an unknown key": lambda _, claims: Key.es256("unknown").sign(claims),
    "no key id": lambda _, claims: forged(claims, b"x", alg="ES256"),
    "a key id that is a list": lambda _, claims: forged(claims, b"x", alg="ES256", kid=["first"]),
    "a critical header": lambda issuer, claims: forged(
        claims, b"x", alg="ES256", kid="first", crit=["exp"]
    ),
    "tampered": lambda issuer, claims: issuer.keys[0].sign(claims)[:-8] + "AAAAAAAA",
    "no signature": lambda issuer, claims: issuer.keys[0].sign(claims).rpartition(".")[0] + ".",
    "no token": lambda *_: None,
    "a number": lambda *_: 5,
    "no JWT": lambda *_: "eyJ",
    "half a surrogate pair": lambda *_: "\ud800.a.b",
    "no JSON": lambda *_: "YQ.YQ.YQ",
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forged_id_token_signs_nobody_in(
    api: Api, issuer: Issuer, database: asyncpg.Connection, name: str
) -> None:
    issuer.forge = lambda claims: FORGERIES[name](issuer, claims)
    assert_problem(await sign_in(api, issuer), 403, "sign-in-refused")
    assert await rows(database) == (0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": [CLIENT_ID]},
        {"aud": [CLIENT_ID, "somebody"], "azp": CLIENT_ID},
        {"azp": CLIENT_ID},
        {"sub": "x" * 255},
        {"email_verified": "true"},
    ],
)
async def test_other_ways_to_write_a_good_one_are_accepted(
    api: Api, issuer: Issuer, changes: dict[str, Any]
) -> None:
    issuer.forge = lambda claims: with_claims(**changes)(issuer, claims)
    answer = await sign_in(api, issuer)
    assert answer.status == 200, answer.body
    me = (await api.get("/users/me", by=answer.json()["access_token"])).json()
    assert me["email_confirmed"] is True


async def test_keys_of_rsa_are_taken_unless_they_are_too_short(api: Api, issuer: Issuer) -> None:
    issuer.keys = [Key.rs256("long")]
    assert (await sign_in(api, issuer)).status == 200
    issuer.keys = [Key.rs256("short", 1024)]
    api.clock.ahead = timedelta(seconds=31)
    issuer.forge = lambda claims: forged(claims, b"x", alg="RS256", kid="short")
    assert_problem(await sign_in(api, issuer), 403, "sign-in-refused")


async def test_a_key_set_with_keys_of_other_kinds_is_read_all_the_same(
    api: Api, issuer: Issuer
) -> None:
    others = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "first"},
        {"kty": "RSA", "kid": "broken", "n": 5, "e": "AQAB"},
        {"kty": "of the future", "kid": "new"},
        {"kty": ["EC"]},
        {**Key.es256("first").to_public_jwk(), "use": "enc"},
        {},
    ]
    good = issuer.keys[0].to_public_jwk()

    async def show(request: web.Request) -> web.StreamResponse:
        return web.json_response({"keys": [good, *others]})

    issuer.instead["/jwks"] = show
    assert (await sign_in(api, issuer)).status == 200


async def test_a_new_key_is_fetched_but_not_more_often_than_every_30_seconds(
    api: Api, issuer: Issuer
) -> None:
    await signed_in(api, issuer)
    issuer.keys = [Key.es256("second")]
    for _ in range(3):
        assert_problem(await sign_in(api, issuer), 403, "sign-in-refused")
    assert issuer.calls.count("/jwks") == 1
    api.clock.ahead = timedelta(seconds=31)
    for _ in range(3):
        await signed_in(api, issuer)
    assert issuer.calls.count("/jwks") == 2
    assert issuer.calls.count("/.well-known/openid-configuration") == 1


async def test_a_key_that_the_issuer_has_dropped_is_believed_for_an_hour_at_most(
    api: Api, issuer: Issuer
) -> None:
    await signed_in(api, issuer)
    dropped, issuer.keys = issuer.keys[0], [Key.es256("second")]
    issuer.forge = lambda claims: dropped.sign({**claims, "exp": claims["exp"] + 7200})
    await signed_in(api, issuer)
    api.clock.ahead = timedelta(hours=1, seconds=1)
    assert_problem(await sign_in(api, issuer), 403, "sign-in-refused")


# Issuers in trouble, and troublesome ones


def answering(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers=headers)

    return answer


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def trickle(request: web.Request) -> web.StreamResponse:
    """Send a body that never ends, a byte at a time."""
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)
    except ConnectionError:
        return response


TROUBLE: dict[str, Handler] = {
    "slow": hang,
    "a byte at a time": trickle,
    "hanging up": hang_up,
    "500": answering(b"{}", 500),
    "503 in HTML": answering(b"<html>", 503),
    "10 MB": answering(b"[" + b" " * 10_000_000 + b"]"),
    "truncated JSON": answering(b'{"keys": ['),
    "not UTF-8": answering(b'{"keys": "\xff"}'),
    "brackets without end": answering(b"[" * 60_000),
    "a number of 60000 digits": answering(b"1" * 60_000),
    "nothing": answering(b""),
    "a list": answering(b"[]"),
    "null": answering(b"null"),
}


@pytest.mark.parametrize("name", TROUBLE)
@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/jwks"])
async def test_an_issuer_in_trouble_is_503_and_soon(
    api: Api, issuer: Issuer, database: asyncpg.Connection, path: str, name: str
) -> None:
    issuer.instead[path] = TROUBLE[name]
    async with asyncio.timeout(5):
        if path.startswith("/.well-known"):
            answer = await api.get("/auth/providers/corp/start", allow_redirects=False)
        else:
            answer = await sign_in(api, issuer)
    if path == "/token" and name in {"a list", "null"}:
        assert_problem(answer, 403, "sign-in-refused")
    else:
        assert_problem(answer, 503, "provider-unavailable")
        assert answer.headers["Retry-After"] == "5"
    issuer.instead.clear()
    assert (await sign_in(api, issuer)).status == 200


async def test_what_was_compressed_unasked_is_not_unpacked(api: Api, issuer: Issuer) -> None:
    """64 KiB of it can be 64 MiB."""
    keys = json.dumps({"keys": [issuer.keys[0].to_public_jwk()]}).encode()
    packed = answering(gzip.compress(keys), headers={"Content-Encoding": "gzip"})
    issuer.instead["/jwks"] = packed
    assert_problem(await sign_in(api, issuer), 503, "provider-unavailable")


async def test_a_hanging_issuer_holds_up_nobody_else(api: Api, issuer: Issuer) -> None:
    issuer.instead["/.well-known/openid-configuration"] = hang
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(api.get("/auth/providers/corp/start")) for _ in range(50)]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(0.3):
            assert (await api.get("//health/live")).status == 200
            assert (await api.get("/auth/providers")).status == 200
    assert {task.result().status for task in waiting} == {503}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/jwks"])
async def test_a_redirect_is_not_followed(api: Api, issuer: Issuer, path: str, status: int) -> None:
    """Else an issuer could let the service ask its own network: 169.254.169.254, say."""
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.setblocking(False)
        location = f"http://127.0.0.1:{inside.getsockname()[1]}/latest/meta-data"
        issuer.instead[path] = answering(b"{}", status, {"Location": location})
        if path.startswith("/.well-known"):
            answer = await api.get("/auth/providers/corp/start", allow_redirects=False)
        else:
            answer = await sign_in(api, issuer)
        assert_problem(answer, 503, "provider-unavailable")
        with pytest.raises(BlockingIOError):
            inside.accept()


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://evil.example"},
        {"issuer": None},
        {"token_endpoint": "http://169.254.169.254/latest/meta-data"},
        {"token_endpoint": "file:///etc/passwd"},
        {"token_endpoint": "http://127.0.0.1:70000/"},
        {"token_endpoint": "http://[::1"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": "http://issuer.example/\r\nSet-Cookie: a=b"},
        {"authorization_endpoint": "https://issuer.example/#fragment"},
        {"jwks_uri": "http://issuer.example/jwks"},
        {"jwks_uri": 5},
        {"jwks_uri": None},
    ],
    ids=str,
)
async def test_a_description_that_leads_astray_is_not_followed(
    api: Api, issuer: Issuer, change: dict[str, Any]
) -> None:
    issuer.description |= change
    answer = await api.get("/auth/providers/corp/start", allow_redirects=False)
    assert_problem(answer, 503, "provider-unavailable")
    assert issuer.calls == ["/.well-known/openid-configuration"]


@pytest.mark.parametrize("error", ["invalid_client", "unauthorized_client", "<script>", "x" * 999])
async def test_a_refusal_that_is_the_operators_matter_is_no_fault_of_the_users(
    api: Api, issuer: Issuer, error: str
) -> None:
    body = b'{"error": "%b"}' % error.encode()
    issuer.instead["/token"] = answering(body, 400)
    answer = await sign_in(api, issuer)
    assert_problem(answer, 503, "provider-unavailable")
    assert error not in answer.body.decode()


# Who the service is to the issuer


@pytest.mark.parametrize(
    ("secret", "methods"),
    [
        pytest.param(CLIENT_SECRET, None, id="basic, as the standard has it"),
        pytest.param(CLIENT_SECRET, ["client_secret_post", "client_secret_basic"], id="basic"),
        pytest.param(CLIENT_SECRET, ["client_secret_post"], id="post"),
        pytest.param(None, ["none"], id="public"),
        pytest.param(None, None, id="public, and nothing is said"),
    ],
)
async def test_the_service_says_which_client_it_is(
    api: Api, issuer: Issuer, settings: Settings, secret: str | None, methods: list[str] | None
) -> None:
    corp = settings.providers[0]
    assert isinstance(corp, OidcSettings)
    issuer.secret = secret
    if methods:
        issuer.description["token_endpoint_auth_methods_supported"] = methods
    changed = replace(settings, providers=(replace(corp, client_secret=secret),))
    async with running(changed) as other:
        assert (await sign_in(other, issuer)).status == 200


# The e-mail


async def test_an_unverified_email_makes_an_account_that_has_not_confirmed_it(
    api: Api, issuer: Issuer
) -> None:
    for verified in (False, None, "false", 1, ["true"]):
        issuer.claims |= {"sub": str(verified), "email_verified": verified}
        issuer.claims["email"] = f"person{len(issuer.calls)}@example.com"
        person = await signed_in(api, issuer)
        me = (await api.get("/users/me", by=person)).json()
        assert me["email_confirmed"] is (verified == 1 and verified is not False)


@pytest.mark.parametrize(
    "email",
    [
        None,
        "",
        5,
        ["a@example.com"],
        "no e-mail",
        "a@example.com\r\nBcc: b@example.com",
        "a\0@example.com",
        "\ud800@example.com",
        "a@" + "x" * 250 + ".example.com",
        "\u0131@example.com",
    ],
)
async def test_without_an_email_there_is_no_account(
    api: Api, issuer: Issuer, database: asyncpg.Connection, email: Any
) -> None:
    issuer.claims["email"] = email
    assert_problem(await sign_in(api, issuer), 403, "email-withheld")
    assert await rows(database) == (0, 0)


async def test_an_email_that_the_id_token_lacks_is_asked_for(api: Api, issuer: Issuer) -> None:
    issuer.userinfo, issuer.claims = issuer.claims, {"sub": "ada-1"}
    person = await signed_in(api, issuer)
    me = (await api.get("/users/me", by=person)).json()
    assert (me["email"], me["email_confirmed"]) == (EMAIL, True)


async def test_it_is_not_asked_for_where_it_is_there(api: Api, issuer: Issuer) -> None:
    issuer.userinfo = dict(ADA)
    await signed_in(api, issuer)
    assert "/userinfo" not in issuer.calls


@pytest.mark.parametrize("sub", ["somebody", None, 5, ["ada-1"]])
async def test_information_on_somebody_else_is_refused(api: Api, issuer: Issuer, sub: Any) -> None:
    issuer.claims, issuer.userinfo = {"sub": "ada-1"}, {**ADA, "sub": sub}
    assert_problem(await sign_in(api, issuer), 403, "sign-in-refused")


async def test_an_issuer_that_gives_no_information_gives_no_email(api: Api, issuer: Issuer) -> None:
    issuer.claims, issuer.userinfo = {"sub": "ada-1"}, {}
    issuer.instead["/userinfo"] = answering(b"{}", 403)
    assert_problem(await sign_in(api, issuer), 403, "email-withheld")


# An account with the same e-mail


@pytest.mark.parametrize("verified_there", [True, False])
@pytest.mark.parametrize("confirmed_here", [True, False])
async def test_an_identity_is_linked_only_if_the_issuer_has_verified_the_email(
    api: Api,
    issuer: Issuer,
    database: asyncpg.Connection,
    verified_there: bool,
    confirmed_here: bool,
) -> None:
    ada = await api.new_person(EMAIL.lower())
    if confirmed_here:
        await database.execute("UPDATE users SET email_confirmed_at = now()")
    issuer.claims["email_verified"] = verified_there
    answer = await sign_in(api, issuer)
    if verified_there:
        assert answer.json()["user_id"] == ada.user_id
        # The password of an account that never confirmed the address may be a stranger's.
        assert (await api.log_in(EMAIL)).status == (200 if confirmed_here else 401)
        issuer.claims |= {"email": "moved@example.com", "email_verified": False}
        assert (await signed_in(api, issuer)).user_id == ada.user_id
        assert await rows(database) == (1, 1)
    else:
        assert_problem(answer, 409, "identity-not-linked")
        assert await rows(database) == (1, 0)


async def test_a_disabled_account_is_not_linked(
    api: Api, issuer: Issuer, database: asyncpg.Connection
) -> None:
    await api.new_person(EMAIL)
    await database.execute("UPDATE users SET email_confirmed_at = now(), disabled_at = now()")
    assert_problem(await sign_in(api, issuer), 403, "account-disabled")
    assert await rows(database) == (1, 0)


async def test_two_identities_of_one_email_are_one_account_if_both_are_sure_of_it(
    api: Api, issuer: Issuer, github: tuple[GitHub, str]
) -> None:
    first = await signed_in(api, issuer)
    github[0].emails = [{"email": EMAIL, "primary": True, "verified": True}]
    answer = await come_back(api, await begin(api, "github"), code="x")
    assert answer.json()["user_id"] == first.user_id


# The referral code


async def test_a_referral_code_survives_the_way_there_and_back(
    api: Api, issuer: Issuer, anna: Person
) -> None:
    code = await api.new_code(anna, max_uses=1)
    ada = await signed_in(api, issuer, referral_code=code.lower())
    assert (await api.get("/users/me", by=ada)).json()["referrer_id"] == anna.user_id
    referrals = (await api.get("/referrals/me", by=anna)).json()["items"]
    assert [(one["id"], one["email"], one["code"]) for one in referrals] == [
        (ada.user_id, EMAIL, code)
    ]
    assert (await api.get(f"/referral-code/{anna.email}")).status == 404  # used up


async def test_of_parallel_sign_ins_with_one_code_each_counts_once(
    api: Api, issuer: Issuer, anna: Person
) -> None:
    code = await api.new_code(anna, max_uses=5)
    begun = [await begin(api, referral_code=code) for _ in range(8)]

    async def come(one: Any) -> Answer:
        return await come_back(api, one, code=issuer.grant(one.request), iss=issuer.url)

    answers = await asyncio.gather(*map(come, begun))
    assert {answer.status for answer in answers} == {200}
    assert (await api.get("/referral-code", by=anna)).json()["uses"] == 1


async def test_an_unusable_code_is_told_at_the_start(
    api: Api, issuer: Issuer, anna: Person, database: asyncpg.Connection
) -> None:
    code = await api.new_code(anna)
    await database.execute("UPDATE users SET disabled_at = now()")
    for unusable in (code, "NOBODYS", "x", "\u0131\u0131\u0131\u0131", "a\0bc"):
        answer = await api.get(
            "/auth/providers/corp/start",
            params={"referral_code": unusable},
            allow_redirects=False,
        )
        assert_problem(answer, 422, "referral-code-unusable", ["#/referral_code"])
    assert await database.fetchval("SELECT count(*) FROM sign_ins") == 0


@pytest.mark.parametrize("nothing", ["", " ", "\u00a0\n"])
async def test_nothing_but_white_space_is_no_code(api: Api, issuer: Issuer, nothing: str) -> None:
    ada = await signed_in(api, issuer, referral_code=nothing)
    assert (await api.get("/users/me", by=ada)).json()["referrer_id"] is None


async def test_a_code_is_read_there_as_everywhere(api: Api, issuer: Issuer, anna: Person) -> None:
    await api.new_code(anna, code="TOOL-101")
    ada = await signed_in(api, issuer, referral_code=" t00l-LoI\n")
    assert (await api.get("/users/me", by=ada)).json()["referrer_id"] == anna.user_id


async def test_a_code_that_ends_on_the_way_makes_no_account(
    api: Api, issuer: Issuer, anna: Person, database: asyncpg.Connection
) -> None:
    code = await api.new_code(anna)
    begun = await begin(api, referral_code=code)
    await api.delete("/referral-code", by=anna)
    answer = await come_back(api, begun, code=issuer.grant(begun.request), iss=issuer.url)
    assert_problem(answer, 422, "referral-code-unusable", ["#/referral_code"])
    assert await rows(database) == (1, 0)
    assert (await sign_in(api, issuer)).status == 200


async def test_a_code_counts_only_for_who_is_new(api: Api, issuer: Issuer, anna: Person) -> None:
    await signed_in(api, issuer)
    code = await api.new_code(anna)
    ada = await signed_in(api, issuer, referral_code=code)
    assert (await api.get("/users/me", by=ada)).json()["referrer_id"] is None
    assert (await api.get("/referral-code", by=anna)).json()["uses"] == 0


# Accounts without a password


async def test_one_without_a_password_is_erased_just_after_signing_in(
    api: Api, issuer: Issuer, anna: Person, database: asyncpg.Connection
) -> None:
    code = await api.new_code(anna)
    ada = await signed_in(api, issuer, referral_code=code)
    api.clock.ahead = timedelta(minutes=10, seconds=1)
    tokens = await api.post("/auth/refresh", {"refresh_token": ada.refresh_token})
    old = tokens.json()["access_token"]
    assert_problem(await api.delete("/users/me", {}, by=old), 401, "sign-in-too-old")
    assert_problem(
        await api.delete("/users/me", {"password": PASSWORD}, by=old), 401, "sign-in-too-old"
    )
    issuer.forge = lambda claims: issuer.keys[0].sign({**claims, "exp": claims["exp"] + 3600})
    ada = await signed_in(api, issuer)
    assert (await api.delete("/users/me", {}, by=ada)).status == 204
    assert await rows(database) == (2, 0)
    assert (await api.get("/users/me", by=ada)).status == 401

    # Whoever comes back is somebody new, and no new referral.
    answer = await sign_in(api, issuer, referral_code=code)
    assert_problem(answer, 422, "referral-code-unusable", ["#/referral_code"])
    assert (await signed_in(api, issuer)).user_id != ada.user_id


async def test_another_application_cannot_erase_one_without_a_password(
    api: Api, issuer: Issuer, database: asyncpg.Connection
) -> None:
    ada = await signed_in(api, issuer)
    await database.execute("UPDATE sessions SET client_id = 'an application'")
    assert_problem(await api.delete("/users/me", {}, by=ada), 401, "sign-in-too-old")


async def test_one_with_a_password_still_needs_it(api: Api, anna: Person) -> None:
    answer = await api.delete("/users/me", {}, by=anna)
    assert_problem(answer, 422, "validation-failed", ["#/password"])
    answer = await api.delete("/users/me", {"password": "wrong"}, by=anna)
    assert_problem(answer, 401, "invalid-credentials", ["#/password"])


async def test_one_without_a_password_cannot_change_it(api: Api, issuer: Issuer) -> None:
    ada = await signed_in(api, issuer)
    answer = await api.post(
        "/auth/password/change", {"current_password": "", "new_password": PASSWORD}, by=ada
    )
    assert_problem(answer, 401, "invalid-credentials", ["#/current_password"])


# GitHub


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


# What operators see


async def test_no_secret_gets_into_the_log(
    api: Api, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    begun = await begin(api)
    code = issuer.grant(begun.request)
    answer = await come_back(api, begun, code=code, iss=issuer.url)
    issuer.forge = SOMEBODY.sign
    await sign_in(api, issuer)
    issuer.instead["/token"] = TROUBLE["truncated JSON"]
    await sign_in(api, issuer)
    secrets = {
        code,
        CLIENT_SECRET,
        EMAIL,
        begun.request["state"],
        begun.request["nonce"],
        begun.cookie.partition("=")[2],
        answer.json()["access_token"],
        *issuer.tokens,
    }
    api.app[ACCESS_LOG].flush()
    ours = [record for record in caplog.records if record.name.startswith("service")]
    lines = [line for record in ours for line in JsonFormatter().format(record).splitlines()]
    assert len(lines) >= 5
    told = "\n".join(f"{record.getMessage()} {vars(record)}" for record in ours)
    assert not [secret for secret in secrets if secret in told]


async def test_calls_are_counted_by_provider_and_result(api: Api, issuer: Issuer) -> None:
    async def count(result: str) -> float:
        text = (await api.get("//metrics")).body.decode()
        name = f'provider_calls_total{{provider="corp",result="{result}"}} '
        return sum(float(line.split()[-1]) for line in text.splitlines() if name in line)

    before = {result: await count(result) for result in ("ok", "refused", "failed")}
    await signed_in(api, issuer)  # the description, the token, the keys
    await come_back(api, await begin(api), code="guessed", iss=issuer.url)
    issuer.instead["/token"] = TROUBLE["500"]
    await sign_in(api, issuer)
    assert await count("ok") == before["ok"] + 3
    assert await count("refused") == before["refused"] + 1
    assert await count("failed") == before["failed"] + 1


async def test_starts_are_limited_as_logins_are(api: Api, settings: Settings) -> None:
    async with running(replace(settings, rate_limit_login=RateLimit(2, 60))) as other:
        statuses = [
            (await other.get("/auth/providers/corp/start", allow_redirects=False)).status
            for _ in range(3)
        ]
    assert statuses == [303, 303, 429]


# Where email addresses are confirmed first


@pytest.fixture
def strict_settings(settings: Settings, smtp: SmtpServer) -> Settings:
    mail = MailSettings(
        sender="referrals@example.com",
        app_url="https://app.example.com",
        delivery=SmtpSettings(
            host=smtp.host, port=smtp.port, user=None, password=None, implicit_tls=False
        ),
    )
    return replace(settings, mail=mail, confirmation_required=True, serve_jobs=False)


@pytest.fixture
async def strict(
    strict_settings: Settings, database: asyncpg.Connection, redis: Redis
) -> AsyncIterator[Api]:
    async with running(strict_settings) as api:
        yield api


@pytest.fixture
def postman(strict: Api, strict_settings: Settings, smtp: SmtpServer) -> Postman:
    return Postman.of(strict, strict_settings, smtp)


async def test_an_email_that_the_issuer_is_not_sure_of_is_a_claim_until_it_is_confirmed(
    strict: Api, postman: Postman, issuer: Issuer, database: asyncpg.Connection
) -> None:
    """Neither who is new nor who comes back gets in, and there is no account yet."""
    issuer.claims["email_verified"] = False
    for _ in range(2):
        assert_problem(await sign_in(strict, issuer), 403, "email-not-confirmed")
    assert await rows(database) == (0, 0)
    assert await database.fetchval("SELECT count(*) FROM sessions") == 0
    first, second = await postman.tokens()
    assert (await confirm(strict, second)).status == 204
    assert_unusable(await confirm(strict, first))
    assert await rows(database) == (1, 1)
    ada = await signed_in(strict, issuer)
    me = (await strict.get("/users/me", by=ada)).json()
    assert (me["email"], me["email_confirmed"]) == (EMAIL, True)
    assert await database.fetchval("SELECT password_hash FROM users") is None


@pytest.mark.parametrize("verified", [True, False])
async def test_an_email_that_the_issuer_is_not_sure_of_tells_nobody_whether_it_is_known(
    strict: Api, postman: Postman, issuer: Issuer, database: asyncpg.Connection, verified: bool
) -> None:
    await strict.register(EMAIL)
    [token] = await postman.tokens()
    assert (await confirm(strict, token)).status == 204
    issuer.claims["email_verified"] = verified
    answer = await sign_in(strict, issuer)
    if verified:
        assert answer.status == 200  # both sides are sure
        return
    assert_problem(answer, 403, "email-not-confirmed")
    assert await rows(database) == (1, 0)
    [note] = await postman.deliver()
    assert "already have an account" in note.message["Subject"]
    assert await database.fetchval("SELECT count(*) FROM claims") == 0


async def test_without_an_email_there_is_no_claim(
    strict: Api, issuer: Issuer, database: asyncpg.Connection
) -> None:
    issuer.claims |= {"email": None, "email_verified": False}
    assert_problem(await sign_in(strict, issuer), 403, "email-withheld")
    assert await database.fetchval("SELECT count(*) FROM claims") == 0


async def test_a_verified_sign_in_makes_the_account_while_claims_wait_which_end(
    strict: Api, postman: Postman, issuer: Issuer, database: asyncpg.Connection
) -> None:
    await strict.register(EMAIL, password="the password of a stranger")
    [token] = await postman.tokens()
    ada = await signed_in(strict, issuer)
    assert_unusable(await confirm(strict, token))
    assert (await strict.log_in(EMAIL, "the password of a stranger")).status == 401
    assert (await strict.get("/users/me", by=ada)).json()["email_confirmed"]
    await strict.register(EMAIL)
    [note] = await postman.deliver()
    assert "already have an account" in note.message["Subject"]


async def test_a_verified_sign_in_beside_the_confirmation_of_a_claim_makes_one_account(
    strict: Api, postman: Postman, issuer: Issuer, database: asyncpg.Connection
) -> None:
    await strict.register(EMAIL)
    [token] = await postman.tokens()
    begun = await begin(strict)
    code = issuer.grant(begun.request)
    confirmed, signed = await asyncio.gather(
        confirm(strict, token), come_back(strict, begun, code=code, iss=issuer.url)
    )
    # Whichever is second: a sign-in is linked to what is confirmed, a claim comes too late.
    assert (confirmed.status, signed.status) in {(204, 200), (422, 200)}
    assert await rows(database) == (1, 1)


async def test_the_claim_of_an_identity_has_its_referral_with_the_confirmation(
    strict: Api, postman: Postman, issuer: Issuer
) -> None:
    await strict.register("bert@example.com")
    [token] = await postman.tokens()
    await confirm(strict, token)
    bert = await strict.signed_in("bert@example.com")
    code = await strict.new_code(bert, max_uses=1)
    issuer.claims["email_verified"] = False
    answer = await sign_in(strict, issuer, referral_code=code)
    assert_problem(answer, 403, "email-not-confirmed")
    assert (await strict.get("/referral-code", by=bert)).json()["uses"] == 0
    [token] = await postman.tokens()
    assert (await confirm(strict, token)).status == 204
    ada = await signed_in(strict, issuer)
    assert (await strict.get("/users/me", by=ada)).json()["referrer_id"] == bert.user_id


async def test_an_identity_becomes_no_second_account_by_a_claim_with_another_email(
    strict: Api, postman: Postman, issuer: Issuer, database: asyncpg.Connection
) -> None:
    issuer.claims["email_verified"] = False
    await sign_in(strict, issuer)
    issuer.claims["email"] = "ada@example.org"
    await sign_in(strict, issuer)
    tokens = await postman.tokens()
    answers = await asyncio.gather(*(confirm(strict, token) for token in tokens))
    assert sorted(answer.status for answer in answers) == [204, 422]
    assert await rows(database) == (1, 1)


async def test_an_identity_of_an_account_that_never_confirmed_begins_no_session(
    api: Api, strict: Api, postman: Postman, issuer: Issuer, database: asyncpg.Connection
) -> None:
    """It was made before the mode was switched."""
    issuer.claims["email_verified"] = False
    await signed_in(api, issuer)
    assert_problem(await sign_in(strict, issuer), 403, "email-not-confirmed")
    assert await rows(database) == (1, 1)
    assert await database.fetchval("SELECT count(*) FROM claims") == 0
