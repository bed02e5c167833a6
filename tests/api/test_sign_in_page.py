"""The sign-in page beside the password: other issuers, who is signed in, a forgotten password."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg
import pytest
from redis.asyncio import Redis

from service.settings.settings import Settings, read_settings
from tests.api.assertions import assert_problem
from tests.api.conftest import no_jobs
from tests.api.issuer import CLIENT_ID, CLIENT_SECRET, Issuer, Key, served
from tests.factories import Answer, Api, Person, running
from tests.oauth import (
    AUTHORIZE,
    Application,
    Browser,
    PageReader,
    clients_of,
    new_admin,
    new_application,
    refusal,
    returned,
)
from tests.stand_ins.smtp import SmtpServer

EMAIL = "ada@example.com"
FORGOTTEN = "/oauth/forgot-password"
NEW_PASSWORD = "two ships in the harbour"


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    claims = {"sub": "ada-1", "email": EMAIL, "email_verified": True}
    issuer = Issuer("", [Key.es256("first")], claims)
    async with served(issuer.answer) as issuer.url:
        yield issuer


@pytest.fixture
def settings(environment: dict[str, str], issuer: Issuer) -> Settings:
    return read_settings(
        {
            **environment,
            "PROVIDERS": "corp",
            "PROVIDER_CORP_ISSUER": issuer.url,
            "PROVIDER_CORP_CLIENT_ID": CLIENT_ID,
            "PROVIDER_CORP_CLIENT_SECRET": CLIENT_SECRET,
            "PROVIDER_CORP_TITLE": "The corporation",
        }
    )


@pytest.fixture
async def application(api: Api) -> Application:
    return await new_application(api)


@dataclass(frozen=True)
class Visit:
    """A browser that signs in to an application with another issuer."""

    issuer: Issuer
    application: Application
    browser: Browser

    async def there(self, **changes: str | None) -> dict[str, str]:
        """Follow the page's link to the issuer; return the request that it gets."""
        page = PageReader(await self.browser.open(self.application.wish(**changes)))
        [link] = [one for one in page.links if "/providers/" in one]
        started = await self.browser.go(link)
        assert started.status == 303, started.body
        return dict(parse_qsl(urlsplit(started.headers["Location"]).query))

    async def back(self, asked: dict[str, str], **answer: str) -> Answer:
        """Come back from the issuer, by default with a code."""
        answer = answer or {"code": self.issuer.grant(asked)}
        query = urlencode({"state": asked["state"], "iss": self.issuer.url, **answer})
        return await self.browser.go(f"/api/v1/auth/providers/corp/callback?{query}")

    async def page(self, **changes: str | None) -> Answer:
        """Go there and back, to the page on which there is only to allow."""
        came_back = await self.back(await self.there(**changes))
        assert came_back.status == 303, came_back.body
        return await self.browser.go(came_back.headers["Location"])


@pytest.fixture
def visit(api: Api, issuer: Issuer, application: Application) -> Visit:
    return Visit(issuer, application, Browser(api))


# Other issuers


async def test_who_signs_in_with_another_issuer_only_has_to_allow(
    api: Api, application: Application, visit: Visit, database: asyncpg.Connection
) -> None:
    page = await visit.page(scope="profile codes:read", state="ü & = ? #")
    read = PageReader(page)
    assert page.status == 200
    assert EMAIL in read.text
    assert "See your referral code" in read.text
    assert not {"email", "password"} & set(read.fields)
    told = returned(await visit.browser.submit({**read.fields, "decision": "allow"}))
    assert told["state"] == "ü & = ? #"
    tokens = (await application.redeem(told["code"])).json()
    assert tokens["scope"] == "profile codes:read"
    assert (await api.get("/users/me", by=tokens["access_token"])).json()["email"] == EMAIL
    open_ones = await database.fetch("SELECT client_id FROM sessions WHERE ended_at IS NULL")
    assert [row["client_id"] for row in open_ones] == [application.client_id], "and no other"


async def test_the_page_knows_the_browser_once(visit: Visit) -> None:
    read = PageReader(await visit.page())
    cookie = visit.browser.cookies["signed-in"]
    await visit.browser.submit({**read.fields, "decision": "allow"})
    assert "signed-in" not in visit.browser.cookies
    visit.browser.cookies["signed-in"] = cookie  # as a thief would
    again = await visit.browser.submit({**read.fields, "decision": "allow"})
    assert again.status == 401
    assert "password" in PageReader(again).fields
    page = await visit.browser.open(visit.application.wish())
    assert "password" in PageReader(page).fields


async def test_of_many_who_allow_at_once_with_one_sign_in_one_gets_a_code(visit: Visit) -> None:
    """Without the end of the session in the same transaction all would."""
    read = PageReader(await visit.page())
    form = {**read.fields, "decision": "allow"}
    answers = await asyncio.gather(*(visit.browser.submit(form) for _ in range(6)))
    assert sorted(answer.status for answer in answers) == [303, *[401] * 5]


async def test_who_denies_leaves_nothing_behind(visit: Visit, database: asyncpg.Connection) -> None:
    read = PageReader(await visit.page())
    denied = await visit.browser.submit({**read.fields, "decision": "deny"})
    assert returned(denied)["error"] == "access_denied"
    assert "signed-in" not in visit.browser.cookies
    assert await database.fetchval("SELECT count(*) FROM sessions WHERE ended_at IS NULL") == 0
    assert await database.fetchval("SELECT count(*) FROM authorization_codes") == 0


async def test_who_goes_away_leaves_a_session_of_minutes(
    visit: Visit, api: Api, settings: Settings, database: asyncpg.Connection
) -> None:
    read = PageReader(await visit.page())
    life = await database.fetchval("SELECT max(expires_at - created_at) FROM sessions")
    assert life <= settings.access_token_ttl * 1.1
    api.clock.ahead += settings.access_token_ttl * 1.1
    late = await visit.browser.submit({**read.fields, "decision": "allow"})
    assert late.status == 401


async def test_another_account_can_be_used_instead(visit: Visit, api: Api) -> None:
    read = PageReader(await visit.page())
    [link] = read.links
    other = PageReader(await visit.browser.go(link))
    assert "password" in other.fields
    anna = await api.new_person()
    signed = {"email": anna.email, "password": anna.password, "decision": "allow"}
    code = returned(await visit.browser.submit({**other.fields, **signed}))["code"]
    tokens = (await visit.application.redeem(code)).json()
    assert (await api.get("/users/me", by=tokens["access_token"])).json()["id"] == anna.user_id


async def test_what_the_page_knows_a_browser_by_opens_nothing_else(visit: Visit, api: Api) -> None:
    await visit.page()
    token = visit.browser.cookies["signed-in"]
    for path in ("/users/me", "/auth/sessions", "/referral-code"):
        assert_problem(await api.get(path, by=token), 403, "insufficient-scope")
    assert_problem(await api.post("/auth/logout", by=token), 403, "insufficient-scope")
    assert refusal(await visit.application.refresh(token)) == (400, "invalid_grant")


@pytest.mark.parametrize("which", ["access", "client's", "nonsense", "hostile", "empty"])
async def test_no_other_token_makes_the_page_know_anybody(
    visit: Visit, api: Api, anna: Person, which: str
) -> None:
    """An access token would otherwise be worth as much as the password."""
    tokens = await visit.application.tokens_of(anna)
    visit.browser.cookies["signed-in"] = {
        "access": anna.access_token,
        "client's": tokens["access_token"],
        "nonsense": "nonsense",
        "hostile": "a.b.c%00é",
        "empty": "",
    }[which]
    page = PageReader(await visit.browser.open(visit.application.wish()))
    assert "password" in page.fields
    assert anna.email not in page.text
    form = {**page.fields, "account": anna.user_id, "decision": "allow"}
    assert (await visit.browser.submit(form)).status == 401


@pytest.mark.parametrize("how", ["disabled", "erased", "signed out"])
async def test_who_is_no_longer_signed_in_grants_nothing(
    visit: Visit, api: Api, database: asyncpg.Connection, how: str
) -> None:
    read = PageReader(await visit.page())
    user_id = read.fields["account"]
    admin = await new_admin(api)
    if how == "disabled":
        await api.patch(f"/admin/users/{user_id}", {"disabled": True}, by=admin)
    elif how == "erased":
        assert (await api.delete(f"/admin/users/{user_id}", by=admin)).status == 204
    else:
        for disabled in (True, False):
            await api.patch(f"/admin/users/{user_id}", {"disabled": disabled}, by=admin)
    answer = await visit.browser.submit({**read.fields, "decision": "allow"})
    assert answer.status == 401
    assert await database.fetchval("SELECT count(*) FROM authorization_codes") == 0


async def test_the_account_that_is_shown_is_the_one_that_grants(
    visit: Visit, api: Api, issuer: Issuer
) -> None:
    """Another tab has signed in as somebody else meanwhile."""
    first = PageReader(await visit.page())
    issuer.claims |= {"sub": "bert-1", "email": "bert@example.com"}
    second = PageReader(await visit.page(prompt="login"))
    assert "bert@example.com" in second.text
    assert (await visit.browser.submit({**first.fields, "decision": "allow"})).status == 401
    assert "code" in returned(await visit.browser.submit({**second.fields, "decision": "allow"}))


async def test_another_site_cannot_allow_in_the_name_of_who_is_signed_in(visit: Visit) -> None:
    read = PageReader(await visit.page())
    form = {**read.fields, "decision": "allow"}
    assert (await visit.browser.submit({**form, "csrf": "guessed"})).status == 403


async def test_two_sign_ins_at_once_each_go_on_with_their_own_request(
    api: Api, issuer: Issuer, visit: Visit
) -> None:
    other = Visit(issuer, await new_application(api, name="Another one"), Browser(api))
    asked = [await one.there(state=state) for one, state in ((visit, "1"), (other, "2"))]
    for one, of_it, state in ((other, asked[1], "2"), (visit, asked[0], "1")):
        came_back = await one.back(of_it)
        page = PageReader(await one.browser.go(came_back.headers["Location"]))
        told = returned(await one.browser.submit({**page.fields, "decision": "allow"}))
        assert told["state"] == state


async def test_a_sign_in_that_fails_shows_the_page_again(visit: Visit) -> None:
    asked = await visit.there(state="a state")
    failed = await visit.back(asked, error="access_denied")
    assert failed.status == 403
    assert failed.headers["Content-Type"] == "text/html; charset=utf-8"
    read = PageReader(failed)
    assert read.fields["state"] == "a state"
    assert "has denied it" in read.text
    assert is_safe(failed)
    again = await visit.back(asked)
    assert_problem(again, 422, "sign-in-unusable", ["#/state"])


def is_safe(answer: Answer) -> bool:
    policy = answer.headers["Content-Security-Policy"]
    return "frame-ancestors 'none'" in policy and "script-src" not in policy


async def test_a_client_that_is_gone_when_the_user_comes_back_gets_nothing(
    visit: Visit, api: Api
) -> None:
    asked = await visit.there()
    await clients_of(api).delete(visit.application.client_id)
    came_back = await visit.back(asked)
    page = await visit.browser.go(came_back.headers["Location"])
    assert page.status == 400
    assert "Location" not in page.headers


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": "nobody"},
        {"client_id": None},
        {"redirect_uri": "https://evil.example"},
        {"response_type": "token"},
        {"code_challenge": None},
        {"scope": "everything"},
    ],
)
async def test_nobody_is_sent_away_with_a_request_that_could_not_be_granted(
    api: Api, application: Application, changes: dict[str, str | None]
) -> None:
    continued = urlencode(application.wish(**changes))
    query = urlencode({"continue": continued})
    answer = await api.get(f"/auth/providers/corp/start?{query}", allow_redirects=False)
    assert_problem(answer, 422, "validation-failed", ["#/continue"])


@pytest.mark.parametrize("continued", ["//evil.example", "https://evil.example", "\0", "&&", "é"])
async def test_it_never_leads_to_another_site(api: Api, continued: str) -> None:
    query = urlencode({"continue": continued})
    answer = await api.get(f"/auth/providers/corp/start?{query}", allow_redirects=False)
    assert_problem(answer, 422, "validation-failed", ["#/continue"])


async def test_a_link_that_would_be_too_long_to_follow_is_left_out(
    api: Api, application: Application
) -> None:
    page = PageReader(await Browser(api).open(application.wish(state="ü" * 1000)))
    assert [link for link in page.links if "/providers/" in link] == []


async def test_without_issuers_and_mail_there_is_the_password_alone(
    environment: dict[str, str], database: asyncpg.Connection, redis: Redis
) -> None:
    async with running(read_settings(environment)) as api:
        application = await new_application(api)
        assert PageReader(await Browser(api).open(application.wish())).links == []
        answer = await Browser(api).go(FORGOTTEN)
        assert answer.status == 404
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"


# A forgotten password


@pytest.fixture
def without_front_end(mail_environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in mail_environment.items() if name != "APP_URL"}


@pytest.fixture
async def mailing(
    without_front_end: dict[str, str], database: asyncpg.Connection, redis: Redis
) -> AsyncIterator[Api]:
    """A service that sends mails, and has no front end."""
    async with running(read_settings(without_front_end)) as api:
        yield api


async def test_with_a_front_end_of_their_own_the_link_leads_there(
    mail_environment: dict[str, str], database: asyncpg.Connection, redis: Redis
) -> None:
    async with running(read_settings(mail_environment)) as api:
        application = await new_application(api)
        page = PageReader(await Browser(api).open(application.wish()))
    assert page.links == ["https://app.example.com/forgot-password"]


async def test_a_password_is_set_anew_and_the_sign_in_goes_on(
    mailing: Api, smtp: SmtpServer, database: asyncpg.Connection
) -> None:
    anna = await mailing.new_person("anna@example.com")
    application, browser = await new_application(mailing), Browser(mailing)
    await no_jobs(database)
    [link] = PageReader(await browser.open(application.wish(state="a state"))).links
    asking = PageReader(await browser.go(link))
    sent = await browser.submit({**asking.fields, "email": f" {anna.email} "}, f"/{FORGOTTEN}")
    assert sent.status == 200
    resetting = PageReader(sent)
    await no_jobs(database)
    token = mailed_token(smtp)
    wrong = {"token": "wrong", "new_password": NEW_PASSWORD}
    again = await browser.submit({**resetting.fields, **wrong}, f"/{FORGOTTEN}")
    assert again.status == 422
    assert PageReader(again).fields["new_password"] == ""
    weak = {"token": token, "new_password": "password1"}
    again = await browser.submit({**resetting.fields, **weak}, f"/{FORGOTTEN}")
    assert (again.status, PageReader(again).fields["token"]) == (422, token)
    right = {"token": f" {token} ", "new_password": NEW_PASSWORD}
    done = PageReader(await browser.submit({**resetting.fields, **right}, f"/{FORGOTTEN}"))
    assert_problem(await mailing.log_in(anna.email), 401, "invalid-credentials")
    [back] = done.links
    page = PageReader(await browser.go(back))
    assert page.fields["state"] == "a state"
    signed = {"email": anna.email, "password": NEW_PASSWORD, "decision": "allow"}
    assert "code" in returned(await browser.submit({**page.fields, **signed}))


def mailed_token(smtp: SmtpServer) -> str:
    """Return the token in the newest mail, which stands alone in its line."""
    lines = smtp.mails[-1].text.splitlines()
    [token] = [line.strip() for line in lines if len(line.strip()) == 43]
    return token


async def test_the_page_does_not_tell_who_has_an_account(
    mailing: Api, database: asyncpg.Connection
) -> None:
    anna = await mailing.new_person("anna@example.com")
    shown = []
    for email in (anna.email, "nobody@example.com"):
        browser = Browser(mailing)
        form = PageReader(await browser.go(FORGOTTEN)).fields
        answer = await browser.submit({**form, "email": email}, f"/{FORGOTTEN}")
        shown.append((answer.status, PageReader(answer).text))
    assert shown[0] == shown[1]


@pytest.mark.parametrize("email", ["", "nobody", "\0", "ü@", "x" * 5000])
async def test_what_is_no_address_is_told_on_the_page(mailing: Api, email: str) -> None:
    browser = Browser(mailing)
    form = PageReader(await browser.go(FORGOTTEN)).fields
    answer = await browser.submit({**form, "email": email}, f"/{FORGOTTEN}")
    assert answer.status == 422
    assert PageReader(answer).fields["email"] == email.strip()
    empty = {"step": "reset", "csrf": form["csrf"]}
    assert (await browser.submit(empty, f"/{FORGOTTEN}")).status == 422


async def test_asking_for_mails_on_the_page_is_limited(
    without_front_end: dict[str, str], database: asyncpg.Connection, redis: Redis
) -> None:
    limited = {**without_front_end, "RATE_LIMIT_MAIL": "2/minute"}
    async with running(read_settings(limited)) as api:
        browser = Browser(api)
        form = {**PageReader(await browser.go(FORGOTTEN)).fields, "email": "anna@example.com"}
        answers = [await browser.submit(form, f"/{FORGOTTEN}") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert int(answers[-1].headers["Retry-After"]) > 0


async def test_another_site_cannot_ask_in_the_browsers_name(mailing: Api) -> None:
    browser = Browser(mailing)
    form = {**PageReader(await browser.go(FORGOTTEN)).fields, "email": "anna@example.com"}
    for csrf in ("guessed", ""):
        answer = await browser.submit({**form, "csrf": csrf}, f"/{FORGOTTEN}")
        assert answer.status == 403
    assert (await Browser(mailing).submit(form, f"/{FORGOTTEN}")).status == 403
    refused = await mailing.post(f"/{FORGOTTEN}", {"email": "anna@example.com"})
    assert refused.status == 400


HOSTILE = "\"'></title><script>alert(1)</script>&lt;{{7*7}}"


async def test_hostile_texts_are_only_text_on_the_pages(mailing: Api) -> None:
    browser = Browser(mailing)
    page = PageReader(await browser.go(f"{FORGOTTEN}?{urlencode({'continue': HOSTILE})}"))
    assert page.fields["continue"] == HOSTILE
    answers = [
        await browser.submit({**page.fields, "email": HOSTILE}, f"/{FORGOTTEN}"),
        await browser.submit(
            {**page.fields, "step": "reset", "token": HOSTILE, "new_password": HOSTILE * 9},
            f"/{FORGOTTEN}",
        ),
    ]
    for answer in answers:
        read = PageReader(answer)
        assert HOSTILE in read.fields.values()
        assert "script" not in read.elements
        assert read.links == [], "nor does it lead anywhere"
        assert is_safe(answer)


async def test_the_page_leads_back_to_this_service_alone(mailing: Api) -> None:
    application = await new_application(mailing)
    for continued in (
        urlencode(application.wish(redirect_uri="https://evil.example")),
        "//evil.example",
        "client_id=nobody",
    ):
        page = await Browser(mailing).go(f"{FORGOTTEN}?{urlencode({'continue': continued})}")
        assert PageReader(page).links == []
    wish = urlencode({**application.wish(), "extra": "x"})
    page = await Browser(mailing).go(f"{FORGOTTEN}?{urlencode({'continue': wish})}")
    [back] = PageReader(page).links
    assert back.startswith(f"{AUTHORIZE[1:]}?")
    assert "extra" not in back


async def test_scripts_of_other_sites_may_not_read_it(
    without_front_end: dict[str, str], database: asyncpg.Connection, redis: Redis
) -> None:
    allowed = {**without_front_end, "CORS_ORIGINS": "https://app.example"}
    async with running(read_settings(allowed)) as api:
        answer = await api.get(f"/{FORGOTTEN}", headers={"Origin": "https://app.example"})
    assert "Access-Control-Allow-Origin" not in answer.headers
