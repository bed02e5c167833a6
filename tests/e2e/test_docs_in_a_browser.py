"""What a stranger does first: tries the API in Swagger UI, in a real browser, with a mouse."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request

from tests.e2e.chromium import launched, needs_chromium

PASSWORD = "a long walk by the river"
TAGS = [
    "Accounts",
    "Referral codes",
    "Referrals",
    "Sessions",
    "Email",
    "Programmes",
    "Rewards",
    "Webhooks",
    "OAuth 2.0",
    "Admin",
    "Operating",
    "Reference",
]

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, live_service: str) -> Iterator[Page]:
    """A fresh page, which afterwards must have had no fault and talked to the service only."""
    context = browser.new_context(base_url=live_service, viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    faults: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        # Violations of the content security policy are reported here too.
        if message.type == "error":
            faults.append(message.text)

    def see(request: Request) -> None:
        if not request.url.startswith((f"{live_service}/", f"blob:{live_service}/", "data:")):
            faults.append(f"request to {request.url}")

    page.on("console", hear)
    page.on("pageerror", lambda error: faults.append(str(error)))
    context.on("request", see)
    yield page
    context.close()
    assert faults == []


def opened(page: Page, operation_id: str) -> Locator:
    """Unfold an operation of Swagger UI."""
    block = page.locator(f".opblock[id$='-{operation_id}']")
    block.locator(".opblock-summary-control").click()
    return block


def executed(block: Locator) -> tuple[int, Any]:
    """Press Execute; return the status and the JSON that the page then shows."""
    block.get_by_role("button", name="Execute").click()
    response = block.locator(".live-responses-table tr.response")
    status = int(response.locator(".response-col_status").inner_text())
    body = response.locator(".response-col_description .highlight-code code").first.inner_text()
    return status, json.loads(body)


def test_the_whole_story_by_clicking_and_typing(page: Page, tmp_path: Path) -> None:
    email = f"{uuid4().hex}@example.com"
    page.goto("/docs")

    register = opened(page, "register")
    register.locator("textarea.body-param__text").fill(
        json.dumps({"email": email, "password": PASSWORD})
    )
    status, user = executed(register)
    assert (status, user["email"]) == (201, email)
    register.screenshot(path=tmp_path / "register.png")

    log_in = opened(page, "logIn")
    log_in.locator("textarea.body-param__text").fill(
        json.dumps({"email": email, "password": PASSWORD})
    )
    status, tokens = executed(log_in)
    assert (status, tokens["user_id"]) == (200, user["id"])

    page.get_by_role("button", name="Authorize", exact=True).click()
    dialogue = page.locator(".auth-container").filter(has_text="bearerAuth")
    dialogue.get_by_role("textbox").fill(tokens["access_token"])
    dialogue.screenshot(path=tmp_path / "authorize.png")
    dialogue.get_by_role("button", name="Apply credentials").click()
    assert "Authorized" in dialogue.inner_text()
    dialogue.get_by_role("button", name="Close").last.click()

    status, code = executed(opened(page, "createReferralCode"))
    assert status == 201, code

    find = opened(page, "findReferralCode")
    find.get_by_placeholder("email").fill(email)
    status, found = executed(find)
    assert (status, found["code"]) == (200, code["code"])
    assert found["referrer_id"] == user["id"]
    find.screenshot(path=tmp_path / "find.png")

    page.reload()
    status, me = executed(opened(page, "showMe"))
    assert (status, me["email"]) == (200, email), "the token outlives a reload"
    page.screenshot(path=tmp_path / "docs.png", full_page=True)


def test_the_root_leads_to_the_sections_in_the_order_of_use(page: Page, tmp_path: Path) -> None:
    page.goto("/")
    page.locator(".opblock[id$='-register']").wait_for()
    assert page.url.endswith("/docs")
    sections = page.locator(".opblock-tag[data-tag]")
    assert [section.get_attribute("data-tag") for section in sections.all()] == TAGS
    codes = page.locator("#operations-tag-Referral_codes ~ div .opblock-summary-control")
    first = codes.first.inner_text()
    assert "POST" in first
    assert "Create my referral code" in first
    create = opened(page, "createReferralCode")
    example = create.locator("textarea.body-param__text").input_value()
    assert json.loads(example) == {"expires_in_days": 30}
    create.locator(".opblock-section-request-body").screenshot(path=tmp_path / "create.png")


@pytest.mark.parametrize("parameter", ["url", "configUrl", "urls.primaryName"])
def test_a_link_cannot_make_the_page_show_another_document(page: Page, parameter: str) -> None:
    page.goto(f"/docs?{parameter}=https://elsewhere.example/openapi.json")
    page.locator(".opblock[id$='-register']").wait_for()
    assert page.locator(".info a.link").first.inner_text() == "/openapi.json"
    assert page.locator(".opblock-tag[data-tag]").count() == len(TAGS)
    page.wait_for_load_state("networkidle")


def test_redoc_shows_every_section_and_finds_words(page: Page, tmp_path: Path) -> None:
    page.goto("/redoc")
    for tag in TAGS:
        page.locator("h2").filter(has_text=re.compile(f"^{tag}$")).wait_for()
        page.locator(".menu-content").get_by_text(tag, exact=True).wait_for()
    page.screenshot(path=tmp_path / "redoc.png")
    page.get_by_placeholder("Search...").fill("referrer")
    page.locator("[data-role='search:results'] li").first.wait_for()
    page.screenshot(path=tmp_path / "redoc-search.png")
