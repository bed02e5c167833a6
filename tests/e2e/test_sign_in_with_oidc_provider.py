"""A certified OpenID Connect issuer, npm's oidc-provider, signs people in."""

import html
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

import aiohttp
import pytest

from tests.e2e.peers import install_npm_packages, new_client, new_person
from tests.e2e.processes import LOOPBACK, Service, free_port, service_process, started, wait_for
from tests.oauth import VERIFIER, challenge_of

SECRET = "a secret: +%&"
CLIENTS = {
    "basic": ("client_secret_basic", "RS256"),
    "post": ("client_secret_post", "ES256"),
    "public": ("none", "EdDSA"),
}


@pytest.fixture(scope="module")
def service(environment: dict[str, str]) -> Iterator[Service]:
    """A service that has one issuer under three names, as three clients."""
    drivers = install_npm_packages()
    issuer = f"http://{LOOPBACK}:{free_port()}"
    variables = {"PROVIDERS": ",".join(CLIENTS)}
    for name, (method, _) in CLIENTS.items():
        variables |= {
            f"PROVIDER_{name.upper()}_ISSUER": issuer,
            f"PROVIDER_{name.upper()}_CLIENT_ID": f"{name}:client",
        }
        if method != "none":
            variables[f"PROVIDER_{name.upper()}_CLIENT_SECRET"] = SECRET
    with service_process(environment, **variables) as service:
        clients = [
            {
                "client_id": f"{name}:client",
                "redirect_uris": [f"{service.url}/api/v1/auth/providers/{name}/callback"],
                "token_endpoint_auth_method": method,
                "id_token_signed_response_alg": algorithm,
                **({"client_secret": SECRET} if method != "none" else {}),
            }
            for name, (method, algorithm) in CLIENTS.items()
        ]
        command = ["node", "oidc-provider.mjs", json.dumps({"issuer": issuer, "clients": clients})]
        with started(command, {}, cwd=drivers) as process:
            wait_for(f"{issuer}/jwks", process)
            yield service


@dataclass(frozen=True)
class Page:
    """What a browser shows."""

    url: str
    status: int
    text: str

    @property
    def form(self) -> str:
        """Where the form leads."""
        return self._lead("action")

    @property
    def way_out(self) -> str:
        """Where the link leads."""
        return self._lead("href")

    def _lead(self, attribute: str) -> str:
        [found] = re.findall(rf'{attribute}="(http[^"]*)"', self.text)
        return html.unescape(found)


class Browser:
    """Keeps cookies and follows redirects."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def open(self, url: str, **form: str) -> Page:
        method = "POST" if form else "GET"
        async with self._session.request(method, url, data=form or None) as response:
            return Page(str(response.url), response.status, await response.text())

    async def sent_to(self, url: str, **form: str) -> str:
        """Send a form; return where the browser is to go then, without going there."""
        async with self._session.post(url, data=form, allow_redirects=False) as response:
            assert response.status == 303, await response.text()
            return response.headers["Location"]


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    jar = aiohttp.CookieJar(unsafe=True)  # the hosts are IP addresses
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        yield Browser(session)


async def sign_in(service: Service, provider: str, name: str, query: str = "") -> Page:
    """Press the button, write a name, and allow."""
    async with browser() as person:
        start = f"{service.url}/api/v1/auth/providers/{provider}/start{query}"
        page = await person.open(start)
        page = await person.open(page.form, prompt="login", login=name, password="x")
        return await person.open(page.form, prompt="consent")


async def call(url: str, token: str, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession() as session,
        session.request("POST" if body else "GET", url, json=body, headers=headers) as response,
    ):
        return await response.json()


@pytest.mark.parametrize("provider", CLIENTS)
async def test_it_signs_somebody_in_who_was_referred(service: Service, provider: str) -> None:
    api = f"{service.url}/api/v1"
    referrer = new_person(service)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{api}/auth/login", json=referrer) as response,
    ):
        token = (await response.json())["access_token"]
    code = (await call(f"{api}/referral-code", token, {"expires_in_days": 7}))["code"]

    name = uuid4().hex
    page = await sign_in(service, provider, name, f"?referral_code={code}")
    assert page.status == 200, page.text
    tokens = json.loads(page.text)
    me = await call(f"{api}/users/me", tokens["access_token"])
    assert (me["email"], me["email_confirmed"]) == (f"{name}@example.com", True)
    referrals = (await call(f"{api}/referrals/me", token))["items"]
    assert [one["id"] for one in referrals] == [me["id"]]

    again = json.loads((await sign_in(service, provider, name)).text)
    assert again["user_id"] == tokens["user_id"]


async def test_the_same_person_through_another_client_is_the_same(service: Service) -> None:
    name = uuid4().hex
    pages = [await sign_in(service, provider, name) for provider in CLIENTS]
    assert len({json.loads(page.text)["user_id"] for page in pages}) == 1


async def test_who_changes_their_mind_gets_no_account(service: Service) -> None:
    async with browser() as person:
        page = await person.open(f"{service.url}/api/v1/auth/providers/basic/start")
        page = await person.open(page.way_out)
    assert page.status == 403
    assert json.loads(page.text)["code"] == "sign-in-refused"


async def test_the_address_of_the_callback_is_worth_nothing_twice_or_elsewhere(
    service: Service,
) -> None:
    page = await sign_in(service, "basic", uuid4().hex)
    async with browser() as another:
        page = await another.open(page.url)
    assert page.status == 422
    assert json.loads(page.text)["code"] == "sign-in-unusable"


async def test_who_signs_in_there_allows_an_application_here(service: Service) -> None:
    """No password anywhere: the page, the issuer's pages, the page again, the application."""
    callback, name = "https://app.example/callback", uuid4().hex
    client = new_client(service, callback)
    wish = {
        "response_type": "code",
        "client_id": client.client_id,
        "redirect_uri": callback,
        "state": "a state",
        "code_challenge": challenge_of(VERIFIER),
        "code_challenge_method": "S256",
    }
    async with browser() as person:
        page = await person.open(f"{service.url}/oauth/authorize?{urlencode(wish)}")
        [link] = re.findall(r'href="(/api/v1/auth/providers/basic/start\?[^"]*)"', page.text)
        page = await person.open(service.url + html.unescape(link))
        page = await person.open(page.form, prompt="login", login=name, password="x")
        page = await person.open(page.form, prompt="consent")
        assert page.url.startswith(f"{service.url}/oauth/authorize?")
        assert f"{name}@example.com" in page.text
        hidden = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', page.text)
        form = {field: html.unescape(value) for field, value in hidden}
        location = await person.sent_to(f"{service.url}/oauth/authorize", decision="allow", **form)
    told = dict(parse_qsl(urlsplit(location).query))
    assert location.startswith(f"{callback}?")
    assert told["state"] == "a state"
    redeeming = {
        "grant_type": "authorization_code",
        "client_id": client.client_id,
        "redirect_uri": callback,
        "code": told["code"],
        "code_verifier": VERIFIER,
    }
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{service.url}/oauth/token", data=redeeming) as response,
    ):
        tokens = await response.json()
    me = await call(f"{service.url}/api/v1/users/me", tokens["access_token"])
    assert me["email"] == f"{name}@example.com"
