"""What issuers answer: nothing is believed unchecked."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.providers.settings import OidcSettings
from service.settings.settings import Settings
from tests.api.assertions import assert_problem
from tests.api.issuer import (
    CLIENT_ID,
    CLIENT_SECRET,
    SOMEBODY,
    Issuer,
    Key,
    begin,
    come_back,
    forged,
    rows,
    sign_in,
    signed_in,
)
from tests.factories import Api, running


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


# How the service authenticates to the issuer


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
