"""The whole service below a path of its host, behind a proxy that takes the path off."""

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit
from uuid import uuid4

import aiohttp
import jwt
import pytest
from playwright.sync_api import Page

from tests.e2e.chromium import launched, needs_chromium
from tests.e2e.peers import new_client
from tests.e2e.processes import LOOPBACK, Service, free_port, service_process
from tests.factories import PASSWORD, Answer
from tests.oauth import VERIFIER, PageReader, challenge_of
from tests.stand_ins.reverse_proxy import below

PREFIX = "/shop/referrals"
WELL_KNOWN = "/.well-known/oauth-authorization-server"
GITHUB = {"PROVIDERS": "github", "PROVIDER_GITHUB_CLIENT_ID": "i"}
CALLBACK = "http://127.0.0.1:9/callback"


@contextmanager
def published(environment: Mapping[str, str], **changes: str) -> Iterator[tuple[str, Service]]:
    """Run the service behind the proxy; yield the address that clients use, and the service."""
    port = free_port()
    public_url = f"http://{LOOPBACK}:{port}{PREFIX}"
    told = {**environment, **GITHUB}
    with (
        service_process(told, PUBLIC_URL=public_url, **changes) as service,
        below(PREFIX, port, service.url, (f"{WELL_KNOWN}{PREFIX}",)),
    ):
        yield public_url, service


@dataclass
class Client:
    """What sends requests to the public address, and keeps no cookies by itself."""

    session: aiohttp.ClientSession
    url: str
    service: Service

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        """Send a request; a path that begins with / is below the public address."""
        url = f"{self.url}{path}" if path.startswith("/") else path
        async with self.session.request(method, url, allow_redirects=False, **options) as answer:
            return Answer(answer.status, answer.headers, await answer.read())


@pytest.fixture(scope="module")
def shop(environment: dict[str, str]) -> Iterator[tuple[str, Service]]:
    with published(environment) as shop:
        yield shop


@pytest.fixture
async def client(shop: tuple[str, Service]) -> AsyncIterator[Client]:
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        yield Client(session, *shop)


async def signed_in(client: Client, **members: str) -> dict[str, Any]:
    """Register and sign in; return the tokens, and the email address."""
    person = {"email": f"{uuid4().hex}@example.com", "password": PASSWORD}
    made = await client.call("POST", "/api/v1/auth/register", json={**person, **members})
    assert made.status == 201, made.body
    answer = await client.call("POST", "/api/v1/auth/login", json=person)
    tokens: dict[str, Any] = answer.json()
    return {**tokens, "email": person["email"]}


def bearer(tokens: Mapping[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


async def test_the_story_is_told_below_the_path(client: Client) -> None:
    anna = await signed_in(client)
    wish = {"expires_in_days": 7}
    made = await client.call("POST", "/api/v1/referral-code", json=wish, headers=bearer(anna))
    assert made.status == 201
    address = f"{client.url}/api/v1/referral-code"
    assert urljoin(address, made.headers["Location"]) == address
    found = await client.call("GET", f"/api/v1/referral-code/{anna['email']}")
    assert found.json()["code"] == made.json()["code"]
    bert = await signed_in(client, referral_code=made.json()["code"])
    listed = await client.call("GET", "/api/v1/referrals/me", headers=bearer(anna))
    assert [item["id"] for item in listed.json()["items"]] == [bert["user_id"]]


async def test_the_start_leads_to_the_docs_below_the_path(client: Client) -> None:
    start = await client.call("GET", "/")
    assert urljoin(f"{client.url}/", start.headers["Location"]) == f"{client.url}/docs"
    links = re.findall(r'href="([^"]+)"', start.body.decode())
    assert links
    for link in links:
        answer = await client.call("GET", urljoin(f"{client.url}/", link))
        assert answer.status == 200, link


async def test_problems_keep_their_words_and_are_explained_below_the_path(client: Client) -> None:
    answer = await client.call("GET", "/api/v1/users/me")
    assert answer.json()["type"] == "/problems/not-authenticated"
    page = await client.call("GET", answer.json()["type"])
    assert page.status == 200
    assert b"not-authenticated" in page.body
    listed = await client.call("GET", "/problems")
    links = re.findall(r'href="([^"]+not-authenticated)"', listed.body.decode())
    assert [urljoin(f"{client.url}/problems", link) for link in links] == [
        f"{client.url}/problems/not-authenticated"
    ]


async def test_tokens_are_of_the_public_address_and_its_keys_verify_them(client: Client) -> None:
    anna = await signed_in(client)
    metadata = (await client.call("GET", WELL_KNOWN)).json()
    keys = jwt.PyJWKSet.from_dict((await client.call("GET", metadata["jwks_uri"])).json())
    key = keys[jwt.get_unverified_header(anna["access_token"])["kid"]]
    claims = jwt.decode(
        anna["access_token"], key, algorithms=["ES256"], audience=client.url, issuer=client.url
    )
    assert claims["sub"] == anna["user_id"]


async def test_the_metadata_are_where_rfc_8414_looks_and_lead_below_the_path(
    client: Client,
) -> None:
    origin = client.url.removesuffix(PREFIX)
    answers = [
        await client.call("GET", url)
        for url in (f"{origin}{WELL_KNOWN}{PREFIX}", WELL_KNOWN, f"{WELL_KNOWN}{PREFIX}")
    ]
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    metadata = answers[0].json()
    assert metadata["issuer"] == client.url
    urls = {name: url for name, url in metadata.items() if str(url).startswith("http")}
    assert len(urls) >= 7
    for name, url in urls.items():
        assert url == client.url or url.startswith(f"{client.url}/"), name
        if name != "issuer":
            assert (await client.call("GET", url)).status in {200, 400, 405}, name
    assert (await client.call("GET", f"{WELL_KNOWN}/nothing")).status == 404


async def test_the_document_and_the_pages_lead_below_the_path(client: Client) -> None:
    at = f"{client.url}/openapi.json"
    document = (await client.call("GET", at)).json()
    [server] = document["servers"]
    assert urljoin(at, server["url"]) == client.url
    flow = document["components"]["securitySchemes"]["oauth2"]["flows"]["authorizationCode"]
    for name in ("authorizationUrl", "tokenUrl", "refreshUrl"):
        assert urljoin(at, flow[name]).startswith(f"{client.url}/oauth/")
    links = re.findall(r"\]\(([^)]+)\)", document["info"]["description"])
    for page in ("/docs", "/redoc"):
        body = (await client.call("GET", page)).body.decode()
        found = re.findall(r'(?:src|href)="([^"]+)"', body)
        assert found
        links += found
    for link in links:
        assert (await client.call("GET", urljoin(at, link))).status == 200, link


async def test_an_application_gets_a_code_through_the_page_below_the_path(client: Client) -> None:
    anna = await signed_in(client)
    application = new_client(client.service, CALLBACK)
    wish = {
        "response_type": "code",
        "client_id": application.client_id,
        "redirect_uri": CALLBACK,
        "code_challenge": challenge_of(VERIFIER),
        "code_challenge_method": "S256",
    }
    page = await client.call("GET", "/oauth/authorize", params=wish)
    assert page.status == 200
    [cookie] = SimpleCookie(page.headers["Set-Cookie"]).values()
    assert cookie["path"] == PREFIX
    [action] = re.findall(r'action="([^"]+)"', page.body.decode())
    allowed = await client.call(
        "POST",
        urljoin(f"{client.url}/oauth/authorize", action),
        data={
            **PageReader(page).fields,
            "email": anna["email"],
            "password": PASSWORD,
            "decision": "allow",
        },
        headers={
            "Cookie": f"{cookie.key}={cookie.value}",
            "Origin": client.url.rpartition("/shop")[0],
        },
    )
    assert allowed.status == 303, allowed.body
    told = parse_qs(urlsplit(allowed.headers["Location"]).query)
    assert told["iss"] == [client.url]
    form = {
        "grant_type": "authorization_code",
        "code": told["code"][0],
        "redirect_uri": CALLBACK,
        "code_verifier": VERIFIER,
        "client_id": application.client_id,
    }
    tokens = await client.call("POST", "/oauth/token", data=form)
    assert tokens.status == 200, tokens.body
    me = await client.call("GET", "/api/v1/users/me", headers=bearer(tokens.json()))
    assert me.json()["email"] == anna["email"]


async def test_a_sign_in_with_an_issuer_comes_back_below_the_path(client: Client) -> None:
    listed = await client.call("GET", "/api/v1/auth/providers")
    [provider] = listed.json()["items"]
    assert provider["start_url"] == f"{client.url}/api/v1/auth/providers/github/start"
    started = await client.call("GET", provider["start_url"])
    assert started.status == 303
    asked = parse_qs(urlsplit(started.headers["Location"]).query)
    assert asked["redirect_uri"] == [f"{client.url}/api/v1/auth/providers/github/callback"]
    [cookie] = SimpleCookie(started.headers["Set-Cookie"]).values()
    assert cookie["path"] == PREFIX


async def test_with_https_cookies_keep_the_prefix_that_ties_them_to_the_host(
    environment: dict[str, str],
) -> None:
    """`__Host-` is believed on the path / alone, and keeps other hosts from planting one."""
    told = {**environment, **GITHUB}
    with service_process(told, PUBLIC_URL=f"https://example.com{PREFIX}") as service:
        async with aiohttp.ClientSession() as session:
            client = Client(session, service.url, service)
            started = await client.call("GET", "/api/v1/auth/providers/github/start")
    [cookie] = SimpleCookie(started.headers["Set-Cookie"]).values()
    assert cookie.key.startswith("__Host-")
    assert (cookie["path"], cookie["secure"]) == ("/", True)


@needs_chromium
def test_swagger_ui_and_redoc_work_below_the_path(
    shop: tuple[str, Service], tmp_path: Path
) -> None:
    url, _ = shop
    with launched() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on(
            "request",
            lambda sent: (
                None
                if sent.url.startswith((f"{url}/", "blob:", "data:"))
                else faults.append(sent.url)
            ),
        )
        page.goto(f"{url}/redoc")
        page.locator("h2").filter(has_text=re.compile("^Accounts$")).wait_for()
        page.screenshot(path=tmp_path / "redoc.png")
        page.goto(f"{url}/docs")
        email = f"{uuid4().hex}@example.com"
        assert executed(page, "register", {"email": email, "password": PASSWORD}) == 201
        page.get_by_role("button", name="Authorize", exact=True).click()
        dialogue = page.locator(".auth-container").filter(has_text="OAuth2, authorizationCode")
        dialogue.locator(".checkbox:has([data-value='profile']) .item").click()
        with page.expect_popup() as opened:
            dialogue.get_by_role("button", name="Apply given OAuth2 credentials").click()
        popup = opened.value
        assert popup.url.startswith(f"{url}/oauth/authorize?")
        with popup.expect_event("close"):
            popup.locator("input[name=email]").fill(email)
            popup.locator("input[name=password]").fill(PASSWORD)
            popup.locator("button[value=allow]").click()
        dialogue.get_by_role("heading", name="Authorized").wait_for()
        dialogue.get_by_role("button", name="Close").click()
        assert executed(page, "showMe") == 200
        page.screenshot(path=tmp_path / "docs.png")
    assert faults == []


def executed(page: Page, operation_id: str, body: Mapping[str, str] | None = None) -> int:
    """Unfold an operation of Swagger UI, fill in its body, execute it; return the status."""
    block = page.locator(f".opblock[id$='-{operation_id}']")
    block.locator(".opblock-summary-control").click()
    if body is not None:
        block.locator("textarea.body-param__text").fill(json.dumps(body))
    block.get_by_role("button", name="Execute").click()
    response = block.locator(".live-responses-table tr.response")
    return int(response.locator(".response-col_status").inner_text())
