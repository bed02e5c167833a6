"""Other people's OAuth libraries, some of them certified, judge the authorization server."""

import base64
import hmac
import html
import json
import os
import pwd
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

from tests.e2e.peers import (
    RegisteredClient,
    install_npm_packages,
    judged_by,
    new_client,
    new_person,
)
from tests.e2e.processes import LOOPBACK, Service, free_port, service_process, started, wait_for
from tests.waiting import until

REDIRECT_URI = "https://app.example/callback"
METHODS = ["none", "client_secret_basic", "client_secret_post"]


@pytest.fixture(scope="module")
def service(environment: dict[str, str]) -> Iterator[Service]:
    with service_process(environment) as service:
        yield service


@pytest.fixture(scope="module")
def public(service: Service) -> RegisteredClient:
    return new_client(service, REDIRECT_URI)


@pytest.fixture(scope="module")
def confidential(service: Service) -> RegisteredClient:
    """A client that acts for users, and for itself."""
    own = "--own-scope=referrals:read admin"
    return new_client(service, REDIRECT_URI, confidential=True, options=[own])


@pytest.fixture(scope="module")
def resource_server(service: Service) -> RegisteredClient:
    options = ["--resource-server", "--scope=referrals:read"]
    return new_client(service, confidential=True, options=options)


# openid-client and oauth4webapi, from npm


@pytest.fixture(scope="module")
def drivers() -> Path:
    return install_npm_packages()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("driver", ["openid-client.mjs", "oauth4webapi.mjs"])
def test_a_certified_client_goes_the_whole_way(
    drivers: Path,
    service: Service,
    public: RegisteredClient,
    confidential: RegisteredClient,
    resource_server: RegisteredClient,
    driver: str,
    method: str,
) -> None:
    client = public if method == "none" else confidential
    seen = judged_by(
        drivers,
        driver,
        {
            "issuer": service.url,
            "application": {"id": client.client_id, "secret": client.secret, "method": method},
            "resourceServer": {
                "id": resource_server.client_id,
                "secret": resource_server.secret,
                "method": "client_secret_basic",
            },
            "person": new_person(service),
            "redirectUri": REDIRECT_URI,
            "scope": "profile codes:read",
            "resource": f"{service.url}/api/v1/users/me",
        },
    )
    assert seen["supportsPkce"] is True
    assert seen["denied"] == "access_denied"
    assert seen["mixedUp"] == ["OAUTH_INVALID_RESPONSE"] * 3
    for tokens in (seen["tokens"], seen["refreshed"]):
        assert set(tokens["scope"].split()) == {"profile", "codes:read"}
    assert seen["refreshed"]["refresh_token"] != seen["tokens"]["refresh_token"]
    assert seen["open"]["active"] is True
    assert seen["open"]["client_id"] == client.client_id
    assert (seen["called"], seen["calledWhenRevoked"]) == (200, 401)
    assert seen["closed"] == {"active": False}
    assert seen["refreshedWhenRevoked"] == "invalid_grant"
    assert seen["ownTokens"]["scope"] == "referrals:read"
    if driver == "oauth4webapi.mjs":
        assert seen["validated"]["client_id"] == client.client_id
        assert seen["validated"]["aud"] == service.url
        assert seen["forOthers"] == "OAUTH_JWT_CLAIM_COMPARISON_FAILED"
        assert seen["tampered"] == "OAUTH_INVALID_RESPONSE"


# Authlib, from PyPI


async def callback_of(url: str, person: Mapping[str, str]) -> str:
    """Sign in and allow, as a browser does; return the address that it is sent to."""
    jar = aiohttp.CookieJar(unsafe=True)  # the issuer's host is an IP address
    async with aiohttp.ClientSession(cookie_jar=jar) as browser:
        async with browser.get(url) as page:
            text = await page.text()
        hidden = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', text)
        form = {name: html.unescape(value) for name, value in hidden}
        form |= {**person, "decision": "allow"}
        action = url.partition("?")[0]
        async with browser.post(action, data=form, allow_redirects=False) as answer:
            assert answer.status == 303, await answer.text()
            return answer.headers["Location"]


@pytest.mark.parametrize("method", METHODS)
async def test_authlib_goes_the_whole_way(
    service: Service,
    public: RegisteredClient,
    confidential: RegisteredClient,
    resource_server: RegisteredClient,
    method: str,
) -> None:
    registered = public if method == "none" else confidential
    verifier = "a-verifier-of-Authlib's-test".replace("'", "-") + "x" * 40
    async with AsyncOAuth2Client(
        registered.client_id,
        registered.secret,
        token_endpoint_auth_method=method,
        revocation_endpoint_auth_method=method,
        redirect_uri=REDIRECT_URI,
        scope="profile",
        code_challenge_method="S256",
    ) as client:
        endpoint = f"{service.url}/oauth/token"
        url, state = client.create_authorization_url(
            f"{service.url}/oauth/authorize", code_verifier=verifier
        )
        callback = await callback_of(url, new_person(service))
        tokens = await client.fetch_token(
            endpoint, authorization_response=callback, code_verifier=verifier, state=state
        )
        assert tokens["scope"] == "profile"
        resource = f"{service.url}/api/v1/users/me"
        assert (await client.get(resource)).status_code == 200
        refreshed = await client.refresh_token(endpoint)
        assert refreshed["refresh_token"] != tokens["refresh_token"]
        async with AsyncOAuth2Client(resource_server.client_id, resource_server.secret) as guard:
            introspection = f"{service.url}/oauth/introspect"
            told = await guard.introspect_token(introspection, refreshed["access_token"])
            assert told.json()["active"] is True
            revoked = await client.revoke_token(
                f"{service.url}/oauth/revoke", refreshed["refresh_token"]
            )
            assert revoked.status_code == 200
            told = await guard.introspect_token(introspection, refreshed["access_token"])
            assert told.json() == {"active": False}
        assert (await client.get(resource)).status_code == 401
        with pytest.raises(OAuthError, match="invalid_grant"):
            await client.refresh_token(endpoint, refreshed["refresh_token"])


# Apache with mod_oauth2, from Debian

MODULES = Path("/usr/lib/apache2/modules")
APACHE = Path("/usr/sbin/apache2")
CONFIGURATION = """
ServerName {host}
ServerRoot {folder}
DefaultRuntimeDir {folder}
DocumentRoot {folder}
Listen {host}:{port}
PidFile pid
Mutex file:{folder}
ErrorLog error.log
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authn_core_module {modules}/mod_authn_core.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule authz_user_module {modules}/mod_authz_user.so
LoadModule oauth2_module {modules}/mod_oauth2.so

# What one kind of verification has found must not be believed by another.
OAuth2Cache shm name=by-jwks&max_entries=100
OAuth2Cache shm name=by-metadata&max_entries=100
OAuth2Cache shm name=by-introspection&max_entries=100
OAuth2Cache shm name=by-scope&max_entries=100

<Location />
    AuthType oauth2
</Location>
<Location /by-jwks>
    OAuth2TokenVerify jwks_uri {issuer}/.well-known/jwks.json {strict}&verify.cache=by-jwks
    Require oauth2_claim iss:{issuer}
</Location>
<Location /by-metadata>
    OAuth2TokenVerify metadata {issuer}/.well-known/oauth-authorization-server \
        {strict}&verify.cache=by-metadata
    Require valid-user
</Location>
<Location /by-introspection>
    OAuth2TokenVerify introspect {issuer}/oauth/introspect \
        introspect.auth=client_secret_basic&{secret}&verify.cache=by-introspection&expiry=1
    Require valid-user
</Location>
<Location /by-scope>
    OAuth2TokenVerify jwks_uri {issuer}/.well-known/jwks.json {strict}&verify.cache=by-scope
    Require oauth2_claim scope:admin
</Location>
"""
PLACES = ["by-jwks", "by-metadata", "by-introspection"]


@pytest.fixture(scope="module")
def apache(service: Service, resource_server: RegisteredClient) -> Iterator[str]:
    """Run Apache, not as root, on loopback; yield its address."""
    if not APACHE.exists() or not (MODULES / "mod_oauth2.so").exists():
        pytest.skip("no Apache with mod_oauth2 (Debian: apt-get install libapache2-mod-oauth2)")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="apache-") as name:
        folder = Path(name)
        for place in (*PLACES, "by-scope"):
            (folder / place).write_text("let in\n")
        configuration = CONFIGURATION.format(
            host=LOOPBACK,
            port=port,
            folder=folder,
            modules=MODULES,
            issuer=service.url,
            strict="verify.exp=required&verify.iat=required",
            secret=f"client_id={resource_server.client_id}&client_secret={resource_server.secret}",
        )
        (folder / "apache.conf").write_text(configuration)
        command = [str(APACHE), "-f", str(folder / "apache.conf"), "-DFOREGROUND"]
        with started(command, {}, **_as_nobody(folder)) as process:
            url = f"http://{LOOPBACK}:{port}"
            wait_for(url, process)
            yield url


def _as_nobody(folder: Path) -> dict[str, Any]:
    """Return the options of a process that may write into the folder and is not root's."""
    if os.getuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    for path in (folder, *folder.iterdir()):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


async def status_of(url: str, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        return answer.status


async def own_token(service: Service, client: RegisteredClient, scope: str) -> str:
    """Return an access token of a client that speaks for itself."""
    async with AsyncOAuth2Client(client.client_id, client.secret, scope=scope) as session:
        endpoint = f"{service.url}/oauth/token"
        tokens = await session.fetch_token(endpoint, grant_type="client_credentials")
    token: str = tokens["access_token"]
    return token


def parts(token: str) -> tuple[dict[str, Any], str, bytes]:
    """Return the header, the claims as they are written, and the signature."""
    header, claims, signature = token.split(".")
    return json.loads(decoded(header)), claims, decoded(signature)


def tampered(token: str) -> str:
    """Return the token with one bit of its signature changed."""
    *_, signature = parts(token)
    return token.rpartition(".")[0] + "." + encoded(signature[:-1] + bytes([signature[-1] ^ 1]))


def widened(token: str) -> str:
    """Return the token with a scope more than was signed."""
    header, claims, signature = token.split(".")
    members = {**json.loads(decoded(claims)), "scope": "admin codes:write"}
    return f"{header}.{encoded(json.dumps(members).encode())}.{signature}"


def unsigned(token: str) -> str:
    """Return the token as one without a signature."""
    header, claims, _ = parts(token)
    return f"{encoded(json.dumps({**header, 'alg': 'none'}).encode())}.{claims}."


def signed_with(token: str, key: bytes) -> str:
    """Return the token signed by HS256 with what everybody knows: the public key."""
    header, claims, _ = parts(token)
    signed = f"{encoded(json.dumps({**header, 'alg': 'HS256'}).encode())}.{claims}"
    return f"{signed}.{encoded(hmac.digest(key, signed.encode(), 'sha256'))}"


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.mark.parametrize("place", PLACES)
async def test_apache_lets_our_tokens_in_and_no_others(
    apache: str, service: Service, confidential: RegisteredClient, place: str
) -> None:
    token = await own_token(service, confidential, "referrals:read")
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{service.url}/.well-known/jwks.json") as answer,
    ):
        jwk = (await answer.json())["keys"][0]
    public_key = ECAlgorithm.from_jwk(jwk)
    assert isinstance(public_key, EllipticCurvePublicKey)
    pem = public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    url = f"{apache}/{place}"
    forgeries = {
        "tampered": tampered(token),
        "widened": widened(token),
        "unsigned": unsigned(token),
        "signed with the PEM": signed_with(token, pem),
        "signed with the JWK": signed_with(token, json.dumps(jwk).encode()),
        "signed with the kid": signed_with(token, jwk["kid"].encode()),
        "no JWT": "x",
    }
    assert {
        name: await status_of(url, forged) for name, forged in forgeries.items()
    } == dict.fromkeys(forgeries, 401)
    assert await status_of(url, None) == 401
    assert await status_of(url, token) == 200


async def test_apache_sees_the_scope(
    apache: str, service: Service, confidential: RegisteredClient
) -> None:
    for scope, status in (("admin", 200), ("referrals:read", 401)):
        token = await own_token(service, confidential, scope)
        assert await status_of(f"{apache}/by-scope", token) == status


async def test_apache_refuses_a_revoked_token_when_it_asks_again(
    apache: str, service: Service, confidential: RegisteredClient
) -> None:
    url = f"{apache}/by-introspection"
    token, kept = [await own_token(service, confidential, "admin") for _ in range(2)]
    assert await status_of(url, token) == 200
    async with AsyncOAuth2Client(confidential.client_id, confidential.secret) as client:
        await client.revoke_token(f"{service.url}/oauth/revoke", token)

    async def refused() -> bool:
        return await status_of(url, token) == 401

    await until(refused)  # Apache keeps answers for a while
    assert await status_of(url, kept) == 200
