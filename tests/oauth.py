"""An application of the authorization server, and the browser of the person who uses it."""

import asyncio
import base64
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from service.api.http import app_keys
from service.domain.oauth import Client
from service.domain.scopes import Scope
from service.use_cases.oauth_clients import OAuthClients
from tests.factories import Answer, Api, Person

AUTHORIZE = "//oauth/authorize"
TOKEN = "//oauth/token"
REVOKE = "//oauth/revoke"
INTROSPECT = "//oauth/introspect"
CALLBACK = "https://app.example/callback"
VERIFIER = "a-verifier-of-43-characters-or-a-few-more-0123"
INVALID_GRANT = (400, "invalid_grant")


def challenge_of(verifier: str) -> str:
    """Return the S256 challenge of a verifier (RFC 7636, 4.2)."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def returned(answer: Answer) -> dict[str, str]:
    """Return what the answer sends the browser back to the application with."""
    assert answer.status == 303, answer.body
    pairs = parse_qsl(urlsplit(answer.headers["Location"]).query, keep_blank_values=True)
    assert len(dict(pairs)) == len(pairs), "a parameter comes twice"
    return dict(pairs)


def refusal(answer: Answer) -> tuple[int, str]:
    """Return the status and the error of an answer that RFC 6749 describes."""
    assert answer.headers["Content-Type"].startswith("application/json"), answer.headers
    assert set(answer.json()) == {"error", "error_description"}
    return answer.status, answer.json()["error"]


class PageReader(HTMLParser):
    """What a browser makes of a page: its elements, its form's fields, its text."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.fields: dict[str, str] = {}
        self.links: list[str] = []
        self.text = ""
        self.feed(answer.body.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append(tag)
        if tag == "a":
            self.links.append(attributes["href"] or "")
        if tag == "input" and attributes.get("name"):
            self.fields[attributes["name"] or ""] = attributes.get("value") or ""

    def handle_data(self, data: str) -> None:
        self.text += data


@dataclass
class Browser:
    """The browser of one person. It keeps cookies and submits forms; it follows no redirect."""

    api: Api
    cookies: dict[str, str] = field(default_factory=dict)

    async def open(self, query: dict[str, str] | str) -> Answer:
        """Open the authorization endpoint with a query."""
        text = query if isinstance(query, str) else urlencode(query)
        return await self._send("GET", f"{AUTHORIZE}?{text}")

    async def submit(
        self, form: dict[str, str], path: str = AUTHORIZE, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Post a form to the authorization endpoint, or another page."""
        return await self._send("POST", path, headers, data=form)

    async def go(self, address: str) -> Answer:
        """Go to an address of the service, as a link or a redirect has it."""
        return await self._send("GET", f"/{address}")

    async def _send(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Answer:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent = {**({"Cookie": cookie} if cookie else {}), **(headers or {})}
        answer = await self.api.call(method, path, headers=sent, allow_redirects=False, **options)
        for header in answer.headers.getall("Set-Cookie", []):
            for name, morsel in SimpleCookie(header).items():
                if morsel["max-age"] == "0":
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = morsel.value
        return answer


@dataclass(frozen=True)
class Application:
    """A client of the authorization server, as its makers have written it."""

    api: Api
    client_id: str
    secret: str | None = None
    redirect_uri: str = CALLBACK

    def wish(self, **changes: str | None) -> dict[str, str]:
        """Return the authorization request; a change to None leaves the parameter out."""
        usual = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.redirect_uri,
            "state": "a state",
            "code_challenge": challenge_of(VERIFIER),
            "code_challenge_method": "S256",
        }
        return {name: value for name, value in {**usual, **changes}.items() if value is not None}

    async def form(self, browser: Browser, **changes: str | None) -> dict[str, str]:
        """Return the fields of the page that asks the user."""
        page = await browser.open(self.wish(**changes))
        assert page.status == 200, page.body
        return PageReader(page).fields

    async def allowed_by(self, person: Person, **changes: str | None) -> Answer:
        """Let the person sign in and allow."""
        browser = Browser(self.api)
        form = await self.form(browser, **changes)
        signed = {"email": person.email, "password": person.password, "decision": "allow"}
        return await browser.submit({**form, **signed})

    async def code_of(self, person: Person, **changes: str | None) -> str:
        """Return an authorization code of the person."""
        return returned(await self.allowed_by(person, **changes))["code"]

    async def send(self, path: str, **form: str | None) -> Answer:
        """Post a form, with the client's authentication; a member None is left out."""
        identity = {"client_id": self.client_id, "client_secret": self.secret}
        sent = {name: value for name, value in {**identity, **form}.items() if value is not None}
        return await self.api.post(path, data=sent)

    async def redeem(self, code: str, **changes: str | None) -> Answer:
        """Ask for the tokens that an authorization code gives."""
        usual: dict[str, str | None] = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": VERIFIER,
        }
        return await self.send(TOKEN, **{**usual, **changes})

    async def tokens_of(self, person: Person, **changes: str | None) -> dict[str, Any]:
        """Return the tokens that the person lets the application have."""
        answer = await self.redeem(await self.code_of(person, **changes))
        assert answer.status == 200, answer.body
        tokens: dict[str, Any] = answer.json()
        return tokens

    async def refresh(self, refresh_token: str, **changes: str | None) -> Answer:
        return await self.send(
            TOKEN, **{"grant_type": "refresh_token", "refresh_token": refresh_token, **changes}
        )

    async def refreshed(self, refresh_token: str) -> dict[str, Any]:
        """Return the tokens that a refresh gives."""
        answer = await self.refresh(refresh_token)
        assert answer.status == 200, answer.body
        tokens: dict[str, Any] = answer.json()
        return tokens

    async def is_alive(self, tokens: dict[str, Any]) -> bool:
        """Whether the tokens are good for anything; asks with both, and both must agree."""
        access, refresh = await asyncio.gather(
            self.api.get("/users/me", by=tokens["access_token"]),
            self.refresh(tokens["refresh_token"]),
        )
        outcome = access.status, refresh.status
        assert outcome in {(200, 200), (401, 400)}, (access.body, refresh.body)
        return outcome == (200, 200)


async def new_application(
    api: Api,
    name: str = "An application",
    *,
    public: bool = False,
    redirect_uris: Collection[str] = (CALLBACK,),
    scopes: Collection[Scope] = frozenset(Scope),
    own_scopes: Collection[Scope] = (),
    resource_server: bool = False,
) -> Application:
    """Make a client as an operator does."""
    client, secret = await clients_of(api).create(
        name,
        public=public,
        redirect_uris=tuple(redirect_uris),
        scopes=frozenset(scopes),
        own_scopes=frozenset(own_scopes),
        resource_server=resource_server,
    )
    return Application(api, client.client_id, secret, next(iter(redirect_uris), CALLBACK))


def clients_of(api: Api) -> OAuthClients:
    """Return the clients as the command line manages them."""
    return OAuthClients(api.app[app_keys.SERVICES].database, api.clock)


async def insert_client(api: Api, client: Client) -> None:
    """Store a client that the command line would not make."""
    async with api.app[app_keys.SERVICES].database.transaction() as repositories:
        await repositories.oauth_clients.add(client, api.clock())


async def new_admin(api: Api) -> Person:
    """Register somebody, make an admin of them, sign in."""
    person = await api.new_person()
    await api.app[app_keys.SERVICES].users.promote(person.email, unconfirmed=True)
    return await api.signed_in(person.email)
