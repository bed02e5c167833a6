"""What people see of the authorization server: a real browser, a real mouse, a phone's width."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Literal
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, Route, ViewportSize

from tests.e2e.chromium import launched, needs_chromium
from tests.e2e.peers import new_client, new_person
from tests.e2e.processes import LOOPBACK, Service, service_process
from tests.oauth import VERIFIER, challenge_of

PHONE: ViewportSize = {"width": 390, "height": 844}
SMALLEST_PHONE: ViewportSize = {"width": 360, "height": 640}
TOUCH_TARGET = 44
"""CSS pixels of the least height that a finger hits (WCAG 2.5.5)."""

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def service(environment: dict[str, str]) -> Iterator[Service]:
    with service_process(environment) as service:
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser, service: Service) -> Iterator[Callable[..., Page]]:
    """Open pages of browsers that know nothing yet."""
    contexts = []

    def open_one(**options: Any) -> Page:
        contexts.append(browser.new_context(base_url=service.url, **options))
        return contexts[-1].new_page()

    yield open_one
    for context in contexts:
        context.close()


@contextmanager
def listening(body: str = "back in the application") -> Iterator[str]:
    """Serve one page on another port of loopback, at every path; yield its origin."""

    class OnePage(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((LOOPBACK, 0), OnePage) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def authorization_path(client_id: str, redirect_uri: str) -> str:
    wish = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": redirect_uri,
        "state": "a state",
        "code_challenge": challenge_of(VERIFIER),
        "code_challenge_method": "S256",
    }
    return f"/oauth/authorize?{urlencode(wish)}"


def sign_in(page: Page, person: dict[str, str]) -> None:
    """Fill in the page's form as its user, and allow."""
    page.get_by_label("Email address").fill(person["email"])
    page.get_by_label("Password").fill(person["password"])
    page.get_by_role("button", name="Sign in and allow").click()


def test_swagger_ui_gets_a_token_by_code_and_pkce_and_calls_with_it(
    service: Service, open_page: Callable[..., Page], tmp_path: Path
) -> None:
    person = new_person(service)
    page = open_page(viewport={"width": 1280, "height": 1000})
    redemptions: list[Request] = []
    page.on(
        "request", lambda sent: redemptions.append(sent) if "/oauth/token" in sent.url else None
    )
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.goto("/docs")
    page.get_by_role("button", name="Authorize", exact=True).click()
    dialogue = page.locator(".auth-container").filter(
        has_text="OAuth2, authorizationCode with PKCE"
    )
    assert dialogue.get_by_label("client_id").input_value() == "swagger-ui"
    for scope in ("profile", "codes:read"):
        dialogue.locator(f".checkbox:has([data-value='{scope}']) .item").click()
    dialogue.screenshot(path=tmp_path / "authorize.png")
    with page.expect_popup() as opened:
        dialogue.get_by_role("button", name="Apply given OAuth2 credentials").click()
    popup = opened.value
    assert "See your referral code" in popup.inner_text("ul")
    popup.screenshot(path=tmp_path / "popup.png")
    with popup.expect_event("close"):
        sign_in(popup, person)
    dialogue.get_by_role("heading", name="Authorized").wait_for()
    dialogue.screenshot(path=tmp_path / "authorized.png")
    dialogue.get_by_role("button", name="Close").click()

    (redemption,) = redemptions
    form = parse_qs(redemption.post_data or "")
    assert form["grant_type"] == ["authorization_code"]
    assert form["code_verifier"]

    block = page.locator(".opblock[id$='-showMe']")
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Execute").click()
    response = block.locator(".live-responses-table tr.response")
    assert response.locator(".response-col_status").inner_text().strip() == "200"
    body = response.locator(".response-col_description .highlight-code code").first.inner_text()
    assert json.loads(body)["email"] == person["email"]
    page.screenshot(path=tmp_path / "called.png")
    assert faults == []


def test_the_page_fits_a_phone(
    service: Service, open_page: Callable[..., Page], tmp_path: Path
) -> None:
    with listening() as origin:
        redirect_uri = f"{origin}/callback"
        client = new_client(service, redirect_uri)
        page = open_page(viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True)
        page.goto(authorization_path(client.client_id, redirect_uri))
        page.screenshot(path=tmp_path / "sign-in.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        for control in page.locator("input:visible, button").all():
            box = control.bounding_box()
            assert box is not None
            assert box["height"] >= TOUCH_TARGET, control.inner_text()
            size = control.evaluate("element => parseFloat(getComputedStyle(element).fontSize)")
            assert size >= 16, "a phone zooms in on smaller letters"

        sign_in(page, {"email": "nobody@example.com", "password": "a wrong one"})
        page.get_by_role("alert").wait_for()
        page.screenshot(path=tmp_path / "wrong-password.png", full_page=True)
        assert page.get_by_label("Email address").input_value() == "nobody@example.com"
        assert page.get_by_label("Password").input_value() == ""

        page.emulate_media(color_scheme="dark")
        page.screenshot(path=tmp_path / "dark.png", full_page=True)
        sign_in(page, new_person(service))
        page.get_by_text("back in the application").wait_for()
        told = parse_qs(urlsplit(page.url).query)
        assert (told["state"], told["iss"]) == (["a state"], [service.url])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_issuers_and_a_forgotten_password_fit_the_smallest_phone_and_the_dark(
    environment: dict[str, str], browser: Browser, tmp_path: Path, scheme: Literal["light", "dark"]
) -> None:
    issuers = {
        "PROVIDERS": "google,github,corp",
        "PROVIDER_CORP_ISSUER": "https://issuer.example",
        "PROVIDER_CORP_TITLE": "the Incorporated Company of Donaudampfschifffahrt",
    }
    for name in ("GOOGLE", "GITHUB", "CORP"):
        issuers |= {f"PROVIDER_{name}_CLIENT_ID": "id", f"PROVIDER_{name}_CLIENT_SECRET": "x"}
    issuers["PROVIDER_GOOGLE_ISSUER"] = "https://accounts.google.com"
    mail = {"SMTP_URL": f"smtp://{LOOPBACK}:9", "MAIL_FROM": "referrals@example.com"}
    with service_process(environment, **issuers, **mail) as service, listening() as origin:
        client = new_client(service, f"{origin}/callback")
        context = browser.new_context(
            base_url=service.url,
            viewport=SMALLEST_PHONE,
            color_scheme=scheme,
            is_mobile=True,
            has_touch=True,
            java_script_enabled=False,
        )
        page = context.new_page()

        def assert_fits(name: str) -> None:
            page.screenshot(path=tmp_path / f"{name}-{scheme}.png", full_page=True)
            shown = page.locator("html").bounding_box()
            assert shown is not None
            assert shown["width"] <= SMALLEST_PHONE["width"]
            for control in page.locator("input:visible, button, a").all():
                box = control.bounding_box()
                assert box is not None
                assert box["height"] >= TOUCH_TARGET, control.inner_text()
                assert box["x"] + box["width"] <= SMALLEST_PHONE["width"]

        page.goto(authorization_path(client.client_id, f"{origin}/callback"))
        assert_fits("sign-in")
        titles = [link.inner_text() for link in page.locator("a.button").all()]
        assert titles == [
            "Continue with Google",
            "Continue with GitHub",
            "Continue with the Incorporated Company of Donaudampfschifffahrt",
        ]
        page.get_by_role("link", name="Forgot your password?").click()
        assert_fits("forgotten")
        page.get_by_label("Email address").fill("anna@example.com")
        page.get_by_role("button", name="Send email").click()
        page.get_by_label("Token from the email").fill("wrong")
        page.get_by_label("New password").fill("two ships in the harbour")
        page.get_by_role("button", name="Set password").click()
        page.get_by_role("alert").wait_for()
        assert_fits("reset")
        page.get_by_role("link", name="Back to sign-in").click()
        page.get_by_label("Password").wait_for()
        page.goto("/oauth/authorize?client_id=nobody")
        assert_fits("refused")
        context.close()


def test_the_page_is_signed_with_the_keyboard_alone(
    service: Service, open_page: Callable[..., Page]
) -> None:
    person = new_person(service)
    with listening() as origin:
        client = new_client(service, f"{origin}/callback")
        page = open_page(java_script_enabled=False)
        page.goto(authorization_path(client.client_id, f"{origin}/callback"))
        page.keyboard.press("Tab")
        page.keyboard.type(person["email"])
        page.keyboard.press("Tab")
        page.keyboard.type(person["password"])
        page.keyboard.press("Enter")
        page.get_by_text("back in the application").wait_for()
        assert "code" in parse_qs(urlsplit(page.url).query)


def test_the_form_says_where_it_comes_from(
    service: Service, open_page: Callable[..., Page]
) -> None:
    """By the header's Referrer-Policy alone the browser would say `Origin: null`."""
    with listening() as origin:
        client = new_client(service, f"{origin}/callback")
        page = open_page()
        page.goto(authorization_path(client.client_id, f"{origin}/callback"))
        with page.expect_request(lambda sent: sent.method == "POST") as posted:
            page.get_by_role("button", name="Deny").click()
        headers = posted.value.all_headers()
        assert (headers["origin"], headers["sec-fetch-site"]) == (service.url, "same-origin")


def test_who_denies_goes_back_with_an_error(
    service: Service, open_page: Callable[..., Page]
) -> None:
    with listening() as origin:
        client = new_client(service, f"{origin}/callback")
        page = open_page()
        page.goto(authorization_path(client.client_id, f"{origin}/callback"))
        page.get_by_role("button", name="Deny").click()
        page.get_by_text("back in the application").wait_for()
        assert parse_qs(urlsplit(page.url).query)["error"] == ["access_denied"]


@pytest.mark.parametrize(
    "redirect_uri",
    [
        "https://app.example/callback",
        "com.example.app:/callback",
        "http://127.0.0.1:9000/callback",
        "http://[::1]:9000/callback",
    ],
)
def test_the_browser_submits_the_form_wherever_it_leads(
    service: Service, open_page: Callable[..., Page], redirect_uri: str
) -> None:
    """Content-Security-Policy's form-action has no way to write some addresses."""
    client = new_client(service, redirect_uri)
    page = open_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(authorization_path(client.client_id, redirect_uri))
    assert not [text for text in said if "Content Security Policy" in text]
    sent: list[Request] = []

    def stop(route: Route) -> None:
        sent.append(route.request)
        route.abort()

    page.route("**/oauth/authorize", stop)
    page.get_by_role("button", name="Deny").click()
    page.wait_for_timeout(200)
    assert not [text for text in said if "Content Security Policy" in text]
    assert [request.method for request in sent] == ["POST"]


def test_no_other_site_can_frame_the_page(
    service: Service, open_page: Callable[..., Page], tmp_path: Path
) -> None:
    page = open_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    path = authorization_path("swagger-ui", f"{service.url}/docs/oauth2-redirect.html")
    with listening(f'<iframe id="trap" src="{service.url}{path}"></iframe>') as origin:
        page.goto(origin)
        page.wait_for_load_state("networkidle")
        page.screenshot(path=tmp_path / "framed.png")
        (framed,) = (frame for frame in page.frames if frame != page.main_frame)
        assert framed.locator("form").count() == 0
        assert [text for text in said if "frame" in text.lower()]
        page.goto(f"{service.url}{path}")
        assert page.locator("form").count() == 1, "unframed, the same address has the form"


def test_another_site_cannot_submit_the_form(
    service: Service, open_page: Callable[..., Page]
) -> None:
    person = new_person(service)
    with listening() as origin:
        client = new_client(service, f"{origin}/callback")
        path = authorization_path(client.client_id, f"{origin}/callback")
        page = open_page()
        page.goto(path)
        fields = {
            element.get_attribute("name") or "": element.input_value()
            for element in page.locator("input").all()
        }
        form = {**fields, **person, "decision": "allow"}
        hidden = "".join(f'<input name="{name}" value="{value}">' for name, value in form.items())
        attack = f'<form method="post" action="{service.url}/oauth/authorize">{hidden}</form>'
        with listening(attack) as evil:
            page.goto(evil)
            with page.expect_navigation() as navigation:
                page.evaluate("document.forms[0].submit()")
        assert navigation.value is not None
        assert navigation.value.status == 403
        assert urlsplit(page.url).path == "/oauth/authorize"
