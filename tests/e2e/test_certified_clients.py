"""Other people's OAuth libraries, some of them certified, judge the authorization server."""

import base64
import hashlib
import hmac
import html
import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client

from tests.e2e.peers import (
    LOOPBACK,
    RegisteredClient,
    Service,
    free_port,
    install_npm_packages,
    judged_by,
    service_process,
    started,
    wait_for,
)

REDIRECT_URI = "https://app.example/callback"
METHODS = ["none", "client_secret_basic", "client_secret_post"]


@pytest.fixture(scope="module")
def service(environment: dict[str, str]) -> Iterator[Service]:
    with service_process(environment) as service:
        yield service


@pytest.fixture(scope="module")
def public(service: Service) -> RegisteredClient:
    return service.new_client(REDIRECT_URI)


@pytest.fixture(scope="module")
def confidential(service: Service) -> RegisteredClient:
    return service.new_client(REDIRECT_URI, confidential=True)


@pytest.fixture(scope="module")
def resource_server(service: Service) -> RegisteredClient:
    return service.new_client(confidential=True, scope="referrals:read")


# npm: openid-client and oauth4webapi


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
            "person": service.new_person(),
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


# PyPI: Authlib


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
        callback = await callback_of(url, service.new_person())
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


# Debian: Apache with mod_oauth2

MODULES = Path("/usr/lib/apache2/modules")
APACHE = shutil.which("apache2") or "/usr/sbin/apache2"
APACHE_CONFIGURATION = """
ServerName {host}
ServerRoot {folder}
Listen {host}:{port}
PidFile {folder}/pid
DefaultRuntimeDir {folder}
Mutex file:{folder}
ErrorLog {folder}/error.log
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authn_core_module {modules}/mod_authn_core.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule authz_user_module {modules}/mod_authz_user.so
LoadModule oauth2_module {modules}/mod_oauth2.so
StartServers 1
DocumentRoot {folder}/public
<Location /by-jwks>
    AuthType oauth2
    OAuth2TokenVerify jwks_uri {issuer}/.well-known/jwks.json verify.iss=required&verify.exp=required
    Require oauth2_claim iss:{issuer}
</Location>
<Location /by-metadata>
    AuthType oauth2
    OAuth2TokenVerify metadata {issuer}/.well-known/oauth-authorization-server
    Require valid-user
</Location>
<Location /by-introspection>
    AuthType oauth2
    OAuth2TokenVerify introspect {issuer}/oauth/introspect {introspection}
    Require valid-user
</Location>
<Location /by-scope>
    AuthType oauth2
    OAuth2TokenVerify jwks_uri {issuer}/.well-known/jwks.json
    Require oauth2_claim scope~\\badmin\\b
</Location>
"""


@pytest.fixture(scope="module")
def apache(service: Service, resource_server: RegisteredClient) -> Iterator[str]:
    """Run Apache as nobody on loopback; yield its address."""
    if not Path(APACHE).exists() or not (MODULES / "mod_oauth2.so").exists():
        pytest.skip("no Apache with mod_oauth2 (Debian: apt-get install libapache2-mod-oauth2)")
    with tempfile.TemporaryDirectory(prefix="apache-") as name:
        folder = Path(name)
        for place in ("by-jwks", "by-metadata", "by-introspection", "by-scope"):
            (folder / "public" / place).mkdir(parents=True)
            (folder / "public" / place / "index.html").write_text("let in\n")
        port = free_port()
        secret = f"client_id={resource_server.client_id}&client_secret={resource_server.secret}"
        (folder / "apache.conf").write_text(
            APACHE_CONFIGURATION.format(
                host=LOOPBACK,
                port=port,
                folder=folder,
                modules=MODULES,
                issuer=service.url,
                # Not kept, so that a revoked token is refused at once.
                introspection=f"introspect.auth=client_secret_basic&{secret}&expiry=0",
            )
        )
        whom: dict[str, Any] = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            for path in [folder, *folder.rglob("*")]:
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
            whom = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        command = [APACHE, "-f", str(folder / "apache.conf"), "-DFOREGROUND"]
        with started(command, **whom) as process:
            url = f"http://{LOOPBACK}:{port}"
            wait_for(url, process)
            yield url


async def let_in(url: str, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        return answer.status
