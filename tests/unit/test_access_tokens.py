"""Access tokens: ours are read by others, and nobody else's is taken for ours."""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from joserfc import jwt as other_jwt
from joserfc.jwk import ECKey
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from service.domain.errors import InvalidToken
from service.domain.scopes import Scope, scopes_of, to_text
from service.domain.users import Role
from service.security.access_tokens import AccessToken, AccessTokens
from service.security.refresh_tokens import RefreshTokens
from service.security.signing_keys import LEEWAY, SigningKey, SigningKeys

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
LIFETIME = timedelta(minutes=10)
ISSUER = "https://referrals.example.com"
USER = UUID("01920000-0000-7000-8000-000000000001")
SESSION = UUID("01920000-0000-7000-8000-000000000002")
KEY = SigningKey.generate()
STRANGERS_KEY = SigningKey.generate()
TOKENS = AccessTokens(SigningKeys([KEY]), ISSUER, LIFETIME)
SCOPES = scopes_of(Role.USER)


def issue(tokens: AccessTokens = TOKENS, scopes: frozenset[Scope] = SCOPES) -> str:
    return tokens.issue(
        subject=str(USER), client_id="first-party", session_id=SESSION, scopes=scopes, now=NOW
    )


ISSUED = issue()

HEADER = {"alg": "ES256", "typ": "at+jwt", "kid": KEY.key_id}
CLAIMS = {
    "iss": ISSUER,
    "aud": ISSUER,
    "sub": str(USER),
    "client_id": "first-party",
    "scope": "profile",
    "iat": int(NOW.timestamp()),
    "exp": int((NOW + LIFETIME).timestamp()),
    "jti": "01920000-0000-7000-8000-000000000003",
    "sid": str(SESSION),
}
WITHOUT = object()
"""Stands for a member that is not there."""


def encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def part(document: Any) -> str:
    return encode(json.dumps(document).encode())


def changed(members: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**members, **changes}.items() if value is not WITHOUT}


def es256(message: bytes, key: SigningKey = KEY) -> bytes:
    return ECAlgorithm(ECAlgorithm.SHA256).sign(message, key.private)


def hs256(message: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, message, "sha256")


def rs256(message: bytes) -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return RSAAlgorithm(RSAAlgorithm.SHA256).sign(message, key)


def es384(message: bytes) -> bytes:
    key = ec.generate_private_key(ec.SECP384R1())
    return ECAlgorithm(ECAlgorithm.SHA384).sign(message, key)


def signed(header: Any, claims: Any, sign: Any = es256) -> str:
    message = f"{part(header)}.{part(claims)}"
    return f"{message}.{encode(sign(message.encode()))}"


def with_header(sign: Any = es256, **changes: Any) -> str:
    return signed(changed(HEADER, changes), CLAIMS, sign)


def with_claims(**changes: Any) -> str:
    return signed(HEADER, changed(CLAIMS, changes))


def public(key: SigningKey) -> ec.EllipticCurvePublicKey:
    return key.private.public_key()


def public_pem(key: SigningKey) -> bytes:
    return public(key).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def public_jwk(key: SigningKey) -> dict[str, Any]:
    return {name: value for name, value in key.to_jwk().items() if name != "d"}


def by_stranger(message: bytes) -> bytes:
    return es256(message, STRANGERS_KEY)


def as_der(message: bytes) -> bytes:
    return KEY.private.sign(message, ec.ECDSA(hashes.SHA256()))


HEAD, PAYLOAD, SIGNATURE = ISSUED.split(".")

FORGED = [
    pytest.param(with_header(lambda _: b"", alg="none"), id="alg none, unsigned"),
    pytest.param(with_header(alg="none"), id="alg none, signed"),
    pytest.param(with_header(lambda _: b"", alg="nOnE"), id="alg nOnE"),
    pytest.param(with_header(alg=WITHOUT), id="no alg"),
    pytest.param(with_header(alg=["ES256"]), id="a list of algs"),
    pytest.param(
        with_header(lambda message: hs256(message, public_pem(KEY)), alg="HS256"),
        id="HS256 with the public key as PEM",
    ),
    pytest.param(
        with_header(lambda message: hs256(message, part(public_jwk(KEY)).encode()), alg="HS256"),
        id="HS256 with the public key as JWK",
    ),
    pytest.param(
        with_header(lambda message: hs256(message, KEY.key_id.encode()), alg="HS256"),
        id="HS256 with the key id",
    ),
    pytest.param(with_header(lambda message: hs256(message, b""), alg="HS256"), id="HS256, empty"),
    pytest.param(with_header(rs256, alg="RS256"), id="RS256"),
    pytest.param(with_header(es384, alg="ES384"), id="ES384"),
    pytest.param(with_header(alg="ES512"), id="another alg than it is signed with"),
    pytest.param(with_header(by_stranger), id="a stranger's key under our key id"),
    pytest.param(
        with_header(by_stranger, kid=STRANGERS_KEY.key_id), id="a stranger's key under its own id"
    ),
    pytest.param(
        with_header(by_stranger, jwk=public_jwk(STRANGERS_KEY)), id="a stranger's key in jwk"
    ),
    pytest.param(
        with_header(by_stranger, jwk=public_jwk(STRANGERS_KEY), kid=WITHOUT),
        id="a stranger's key in jwk alone",
    ),
    pytest.param(
        with_header(by_stranger, jku="https://evil.example/keys", kid="evil"), id="keys at jku"
    ),
    pytest.param(
        with_header(by_stranger, x5u="https://evil.example/cert", kid="evil"), id="keys at x5u"
    ),
    pytest.param(with_header(crit=["unheard-of"], **{"unheard-of": True}), id="unknown crit"),
    pytest.param(with_header(crit=["exp"]), id="crit without the member"),
    pytest.param(with_header(crit=[]), id="empty crit"),
    pytest.param(with_header(b64=False, crit=["b64"]), id="an unencoded payload"),
    pytest.param(with_header(typ="JWT"), id="typ JWT: a token for something else"),
    pytest.param(with_header(typ="AT+JWT"), id="typ in capitals"),
    pytest.param(with_header(typ=WITHOUT), id="no typ"),
    pytest.param(with_header(typ=["at+jwt"]), id="a list of typs"),
    pytest.param(with_header(kid="unknown"), id="unknown kid"),
    pytest.param(with_header(kid="../../../dev/null"), id="a path as kid"),
    pytest.param(with_header(kid=1), id="a number as kid"),
    pytest.param(with_header(kid=[KEY.key_id]), id="a list as kid"),
    pytest.param(with_header(kid=None), id="kid null"),
    pytest.param(with_header(kid=WITHOUT), id="no kid"),
    *(
        pytest.param(with_claims(**{name: value}), id=f"{name} {said}")
        for name in CLAIMS
        for value, said in ((WITHOUT, "missing"), (None, "null"))
    ),
    pytest.param(with_claims(aud="https://other.example.com"), id="another audience"),
    pytest.param(with_claims(aud=[ISSUER]), id="a list of audiences"),
    pytest.param(with_claims(aud=[ISSUER, "https://other.example.com"]), id="two audiences"),
    pytest.param(with_claims(iss="https://other.example.com"), id="another issuer"),
    pytest.param(with_claims(iss=ISSUER + "/"), id="nearly the issuer"),
    pytest.param(with_claims(iss=[ISSUER]), id="a list of issuers"),
    pytest.param(with_claims(exp=int(NOW.timestamp()) - 60), id="expired"),
    pytest.param(with_claims(exp=0), id="expired in 1970"),
    pytest.param(with_claims(exp="2100000000"), id="exp as text"),
    pytest.param(with_claims(exp=True), id="exp true"),
    pytest.param(with_claims(exp=[2_100_000_000]), id="exp in a list"),
    pytest.param(with_claims(exp=float("inf")), id="exp infinite"),
    pytest.param(with_claims(exp=float("nan")), id="exp not a number"),
    pytest.param(with_claims(exp=10**12), id="exp behind the year 9999"),
    pytest.param(with_claims(exp=10**17), id="exp in a year of 10 digits"),
    pytest.param(with_claims(exp=10**30), id="exp beyond 64 bits"),
    pytest.param(with_claims(exp=-(10**17)), id="exp long before the year 1"),
    pytest.param(with_claims(nbf=2**40), id="not valid yet"),
    pytest.param(with_claims(sub="admin"), id="a sub that is no id"),
    pytest.param(with_claims(sub=1), id="a number as sub"),
    pytest.param(with_claims(sid="1"), id="a sid that is no id"),
    pytest.param(with_claims(sid=1), id="a number as sid"),
    pytest.param(with_claims(sid={}), id="an object as sid"),
    pytest.param(with_claims(scope=1), id="a number as scope"),
    pytest.param(with_claims(scope=["admin"]), id="a list as scope"),
    pytest.param(signed(HEADER, [CLAIMS]), id="a list of claims"),
    pytest.param(signed(HEADER, "claims"), id="text for claims"),
    pytest.param(signed([HEADER], CLAIMS), id="a list for a header"),
    pytest.param(f"{HEAD}.{part({**CLAIMS, 'scope': 'admin'})}.{SIGNATURE}", id="other claims"),
    pytest.param(f"{HEAD}.{PAYLOAD}.{encode(bytes(64))}", id="a signature of zeros"),
    pytest.param(f"{HEAD}.{PAYLOAD}.", id="no signature"),
    pytest.param(f"{HEAD}.{PAYLOAD}", id="one dot"),
    pytest.param(with_header(as_der), id="a signature as DER"),
    pytest.param(f"{ISSUED}.{SIGNATURE}", id="three dots"),
    pytest.param(f"{ISSUED}.{SIGNATURE}.{SIGNATURE}", id="four dots, as if encrypted"),
    pytest.param(f" {ISSUED}", id="a space before it"),
    pytest.param(f"{ISSUED}\n", id="a newline behind it"),
    pytest.param("", id="empty"),
    pytest.param("..", id="two dots"),
    pytest.param("a.b.c", id="letters"),
    pytest.param("\0", id="NUL"),
    pytest.param("\udcff", id="a byte that is not UTF-8"),
    pytest.param(f"\udcff{ISSUED}", id="a byte that is not UTF-8, before it"),
    pytest.param(f"{HEAD}.{PAYLOAD}.\udcff", id="a byte that is not UTF-8, as signature"),
    pytest.param(f"{encode(b'{' * 50_000)}..", id="a deep header"),
    pytest.param(f"{encode(b'[' * 50_000)}..", id="a deep list for a header"),
    pytest.param(f"{encode(b'9' * 50_000)}..", id="a number of 50 000 digits"),
    pytest.param("a" * 1_000_000, id="a megabyte"),
    pytest.param("." * 1_000_000, id="a megabyte of dots"),
    pytest.param(RefreshTokens([b"k" * 32]).issue(SESSION, 0), id="a refresh token"),
]


def test_a_token_spelled_by_these_tests_is_accepted() -> None:
    """Otherwise the forgeries would be refused for another reason than their own."""
    read = TOKENS.verify(signed(HEADER, CLAIMS), NOW)
    assert read.user_id == USER
    assert read.scopes == {Scope.PROFILE}


@pytest.mark.parametrize("token", FORGED)
def test_what_is_not_ours_is_refused(token: str) -> None:
    with pytest.raises(InvalidToken):
        TOKENS.verify(token, NOW)


@pytest.mark.parametrize("role", Role)
def test_a_token_says_whose_it_is(role: Role) -> None:
    read = TOKENS.verify(issue(scopes=scopes_of(role)), NOW)
    expected = AccessToken(
        token_id=read.token_id,
        subject=str(USER),
        client_id="first-party",
        session_id=SESSION,
        scopes=scopes_of(role),
        issued_at=NOW,
        expires_at=NOW + LIFETIME,
        user_id=USER,
    )
    assert read == expected


def test_a_client_s_own_token_is_no_user_s() -> None:
    token = TOKENS.issue(
        subject="shop", client_id="shop", session_id=SESSION, scopes=SCOPES, now=NOW
    )
    assert TOKENS.verify(token, NOW).user_id is None


@pytest.mark.parametrize(
    "late",
    [
        pytest.param(timedelta(), id="at its expiry: another clock may be slow"),
        pytest.param(LEEWAY - timedelta(microseconds=1), id="at the end of the leeway"),
    ],
)
def test_a_token_lives_until_its_expiry_and_the_leeway(late: timedelta) -> None:
    assert TOKENS.verify(ISSUED, NOW + LIFETIME + late).user_id == USER


@pytest.mark.parametrize("late", [LEEWAY, timedelta(days=1)])
def test_later_it_has_expired(late: timedelta) -> None:
    with pytest.raises(InvalidToken, match="expired"):
        TOKENS.verify(ISSUED, NOW + LIFETIME + late)


def test_two_tokens_of_one_moment_differ() -> None:
    assert issue() != ISSUED


def test_another_library_accepts_our_token_by_the_public_key_alone() -> None:
    token = other_jwt.decode(ISSUED, ECKey.import_key(public_jwk(KEY)), algorithms=["ES256"])
    assert token.header == {"alg": "ES256", "typ": "at+jwt", "kid": KEY.key_id}
    assert token.claims == {**CLAIMS, "scope": to_text(SCOPES), "jti": token.claims["jti"]}
    assert UUID(token.claims["jti"]).version == 7


def test_we_accept_what_another_library_signs_with_our_key() -> None:
    token = other_jwt.encode(HEADER, CLAIMS, ECKey.import_key(KEY.to_jwk()))
    assert TOKENS.verify(token, NOW).user_id == USER


def test_the_first_key_signs_and_all_verify() -> None:
    rotated = AccessTokens(SigningKeys([STRANGERS_KEY, KEY]), ISSUER, LIFETIME)
    assert rotated.verify(ISSUED, NOW).user_id == USER
    new = issue(rotated)
    assert rotated.verify(new, NOW).user_id == USER
    with pytest.raises(InvalidToken):
        TOKENS.verify(new, NOW)


@pytest.mark.parametrize("key_id", [None, 1, "", "another", [KEY.key_id], {}])
def test_a_key_is_looked_up_by_its_id_alone(key_id: object) -> None:
    assert SigningKeys([KEY]).find(KEY.key_id) is not None
    assert SigningKeys([KEY]).find(key_id) is None


def test_there_is_a_key() -> None:
    with pytest.raises(ValueError, match="no signing key"):
        SigningKeys([])


# Of these private numbers the public point has a coordinate that begins with a zero byte, which
# an encoder may lose.
SHORT = [ec.derive_private_key(number, ec.SECP256R1()) for number in (43, 379)]
KEYS = [KEY, *(SigningKey.from_jwk(ECAlgorithm.to_jwk(key, as_dict=True)) for key in SHORT)]


@pytest.mark.parametrize("key", KEYS, ids=["random", "short y", "short x"])
def test_a_key_id_is_the_thumbprint_that_another_library_computes(key: SigningKey) -> None:
    assert key.key_id == ECKey.import_key(public_jwk(key)).thumbprint()


def test_a_key_id_is_made_as_rfc_7638_spells_it() -> None:
    """3.2 and 3.3: required members only, in the order of their names, without spaces."""
    jwk = public_jwk(KEY)
    spelled = f'{{"crv":"P-256","kty":"EC","x":"{jwk["x"]}","y":"{jwk["y"]}"}}'
    assert KEY.key_id == encode(hashlib.sha256(spelled.encode()).digest())


@pytest.mark.parametrize("key", KEYS, ids=["random", "short y", "short x"])
def test_a_key_comes_back_as_it_went(key: SigningKey) -> None:
    jwk = key.to_jwk()
    assert [len(jwk[name]) for name in ("x", "y", "d")] == [43, 43, 43]  # RFC 7518, 6.2.1.2
    read = SigningKey.from_jwk(json.loads(json.dumps(jwk)))
    assert read.key_id == key.key_id
    assert read.private.private_numbers() == key.private.private_numbers()


def test_a_key_does_not_print_itself() -> None:
    assert KEY.to_jwk()["d"] not in f"{KEY!r} {KEY}"


def make_tokens() -> AccessTokens:
    return AccessTokens(SigningKeys([KEY]), ISSUER, LIFETIME)


def test_a_signature_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = make_tokens()
    read = tokens.verify(ISSUED, NOW)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was to be known again")

    monkeypatch.setattr("service.security.access_tokens.jwt.decode", refuse)
    assert tokens.verify(ISSUED, NOW) == read
    with pytest.raises(InvalidToken, match="expired"):
        tokens.verify(ISSUED, NOW + LIFETIME + LEEWAY)


@pytest.mark.parametrize("place", [0, len(HEAD) + 3, -2])
def test_what_resembles_a_token_that_was_verified_is_refused(place: int) -> None:
    tokens = make_tokens()
    tokens.verify(ISSUED, NOW)
    forged = list(ISSUED)
    forged[place] = "A" if forged[place] != "A" else "Q"
    for _ in range(2):
        with pytest.raises(InvalidToken):
            tokens.verify("".join(forged), NOW)
    assert tokens.verify(ISSUED, NOW).user_id == USER


def test_no_more_tokens_are_known_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.security.access_tokens.MOST_VERIFIED", 3)
    tokens = make_tokens()
    for _ in range(10):
        tokens.verify(issue(), NOW)
    assert len(tokens._verified) == 3


def test_an_expired_token_is_forgotten() -> None:
    tokens = make_tokens()
    tokens.verify(ISSUED, NOW)
    with pytest.raises(InvalidToken):
        tokens.verify(ISSUED, NOW + LIFETIME + LEEWAY)
    assert tokens._verified == {}
