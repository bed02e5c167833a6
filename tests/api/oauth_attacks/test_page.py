"""What attackers do to the page on which users sign in."""

from dataclasses import replace
from urllib.parse import urlencode

import asyncpg
import pytest

from service.domain.scopes import Scope
from service.settings.settings import Settings, read_settings
from tests.factories import Answer, Api, Person, running
from tests.oauth import AUTHORIZE, Application, Browser, PageReader, new_application, returned


async def all_pages(api: Api, application: Application) -> list[Answer]:
    """Return the page, the page after a wrong password, and both kinds of refusal."""
    browser = Browser(api)
    page = await browser.open(application.wish())
    wrong = {"email": "nobody@example.com", "password": "wrong", "decision": "allow"}
    form = {**PageReader(page).fields, **wrong}
    return [
        page,
        await browser.submit(form),
        await browser.open(application.wish(redirect_uri="https://evil.example")),
        await browser.submit({**form, "csrf": "wrong"}),
    ]


async def test_no_page_may_be_framed_kept_or_scripted(api: Api, application: Application) -> None:
    answers = await all_pages(api, application)
    assert [answer.status for answer in answers] == [200, 401, 400, 403]
    for answer in answers:
        headers = answer.headers
        directives = dict(
            part.strip().partition(" ")[::2]
            for part in headers["Content-Security-Policy"].split(";")
        )
        assert directives["frame-ancestors"] == "'none'"
        assert directives["default-src"] == "'none'"
        assert directives["base-uri"] == "'none'"
        assert "script-src" not in directives
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "script" not in PageReader(answer).elements


async def test_each_page_has_its_own_nonce_and_each_browser_its_own_csrf_value(
    api: Api, application: Application
) -> None:
    pages = [await Browser(api).open(application.wish()) for _ in range(2)]
    assert len({page.headers["Content-Security-Policy"] for page in pages}) == 2
    assert len({PageReader(page).fields["csrf"] for page in pages}) == 2


async def test_the_csrf_cookie_stays_on_this_site(api: Api) -> None:
    application = await new_application(api)
    cookie = (await Browser(api).open(application.wish())).headers["Set-Cookie"]
    attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "path=/"} <= attributes
    assert attributes & {"samesite=lax", "samesite=strict"}
    assert not any(attribute.startswith("domain") for attribute in attributes)


@pytest.mark.parametrize(
    ("cookie", "value"),
    [
        (None, "as it was"),
        ("as it was", None),
        ("as it was", ""),
        ("as it was", "another's"),
        ("another's", "as it was"),
        ("", ""),
        (None, None),
        ("as it was", "ü\0"),
    ],
)
async def test_a_form_that_this_browser_was_not_given_grants_nothing(
    api: Api,
    application: Application,
    anna: Person,
    database: asyncpg.Connection,
    cookie: str | None,
    value: str | None,
) -> None:
    form = await application.form(browser := Browser(api))
    other = await application.form(Browser(api))
    values = {"as it was": form["csrf"], "another's": other["csrf"]}
    name = next(iter(browser.cookies))
    browser.cookies = {} if cookie is None else {name: values.get(cookie, cookie)}
    del form["csrf"]
    if value is not None:
        form["csrf"] = values.get(value, value)
    signed = {"email": anna.email, "password": anna.password, "decision": "allow"}
    answer = await browser.submit({**form, **signed})
    assert answer.status == 403
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Location" not in answer.headers
    assert await database.fetchval("SELECT count(*) FROM authorization_codes") == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "same-origin, cross-site"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:8080"},
        {"Origin": "https://evil.example"},
        {"Origin": "https://evil.localhost:8080"},
        {"Origin": "http://localhost:8081"},
        {"Origin": "http://localhost:8080, https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
    ],
)
async def test_a_form_of_another_site_grants_nothing_though_it_knows_the_cookie(
    api: Api,
    application: Application,
    anna: Person,
    database: asyncpg.Connection,
    headers: dict[str, str],
) -> None:
    """A sibling subdomain may have planted it, and the victim would be signed in as its owner."""
    form = await application.form(browser := Browser(api))
    for decision in ("allow", "deny"):
        signed = {"email": anna.email, "password": anna.password, "decision": decision}
        answer = await browser.submit({**form, **signed}, headers=headers)
        assert answer.status == 403
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert await database.fetchval("SELECT count(*) FROM authorization_codes") == 0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "null"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://localhost:8080"},
        {"Origin": "http://127.0.0.1:9000", "Host": "127.0.0.1:9000"},
    ],
)
async def test_a_form_of_this_site_grants_what_it_says(
    api: Api, application: Application, anna: Person, headers: dict[str, str]
) -> None:
    form = await application.form(browser := Browser(api))
    signed = {"email": anna.email, "password": anna.password, "decision": "allow"}
    assert "code" in returned(await browser.submit({**form, **signed}, headers=headers))


async def test_by_https_a_form_comes_from_the_public_address_and_no_other(
    settings: Settings, anna: Person
) -> None:
    """A page of the same host that came without TLS may be anybody's."""
    async with running(replace(settings, public_url="https://id.example")) as api:
        application = await new_application(api)
        form = await application.form(browser := Browser(api))
        assert [*browser.cookies] == ["__Host-csrf"]
        signed = {**form, "email": anna.email, "password": anna.password, "decision": "allow"}
        for origin in ("http://id.example", "https://id.example:8443", "null"):
            answer = await browser.submit(signed, headers={"Host": "id.example", "Origin": origin})
            assert answer.status == 403, origin
        ours = {"Host": "10.0.0.1:8080", "Origin": "https://id.example"}
        assert (await browser.submit(signed, headers=ours)).status == 303


@pytest.mark.parametrize(
    "planted",
    [
        "x=1 csrf={}",
        "x=1,csrf={}",
        "x=1\tcsrf={}",
        "x=csrf={}",
        "x=1; xcsrf={}",
        "x=1; CSRF={}",
        "x=1;  csrf={}",
        "x=1; csrf ={}",
        "x=1; csrf= {}",
        'csrf="{}"',
        "csrf={} ; x=1",
        "csrf={}; csrf=abc",
        "csrf=abc; csrf={}",
        "csrf={0}; csrf={0}",
        "csrf",
        "csrf=",
        "=csrf={}",
    ],
)
async def test_a_cookie_that_stands_within_another_or_twice_is_none(
    api: Api, application: Application, anna: Person, planted: str
) -> None:
    """RFC 6265, 4.2.1: any subdomain may set the value of a cookie, and put ours into it."""
    form = await application.form(Browser(api))
    signed = {"email": anna.email, "password": anna.password, "decision": "allow"}
    planting = {"Cookie": planted.format(form["csrf"])}
    assert (await Browser(api).submit({**form, **signed}, headers=planting)).status == 403
    page = await api.get(f"{AUTHORIZE}?{urlencode(application.wish())}", headers=planting)
    assert PageReader(page).fields["csrf"] != form["csrf"], "nor is it kept for the next page"


@pytest.mark.parametrize("cookie", ["csrf={}", "x=1; csrf={}; y=2", "x=1;csrf={}", "x; csrf={}"])
async def test_a_cookie_beside_others_is_ours(
    api: Api, application: Application, anna: Person, cookie: str
) -> None:
    form = await application.form(Browser(api))
    signed = {"email": anna.email, "password": anna.password, "decision": "allow"}
    answer = await Browser(api).submit(
        {**form, **signed}, headers={"Cookie": cookie.format(form["csrf"])}
    )
    assert "code" in returned(answer)


HOSTILE = "\"'></title><script>alert(1)</script><img src=x onerror=alert(1)>&lt;{{7*7}}"


async def test_hostile_texts_are_only_text_on_the_page(api: Api) -> None:
    application = await new_application(api, name=HOSTILE)
    browser = Browser(api)
    page = await browser.open(application.wish(state=HOSTILE))
    read = PageReader(page)
    assert HOSTILE in read.text, "the client's name"
    assert read.fields["state"] == HOSTILE
    assert {"script", "img"}.isdisjoint(read.elements)
    wrong = {"email": HOSTILE, "password": HOSTILE, "decision": "allow"}
    again = PageReader(await browser.submit({**read.fields, **wrong}))
    assert (again.fields["email"], again.fields["state"]) == (HOSTILE, HOSTILE)
    assert {"script", "img"}.isdisjoint(again.elements)
    assert again.fields["password"] == "", "a password is not sent back"


async def test_hostile_parameters_do_not_become_fields_of_the_form(
    api: Api, application: Application
) -> None:
    usual = application.wish()
    page = await Browser(api).open({**usual, "decision": "allow", "email": "x", HOSTILE: HOSTILE})
    read = PageReader(page)
    assert set(read.fields) == {*usual, "csrf", "email", "password"}
    assert read.fields["email"] == ""


async def test_the_page_names_the_client_what_it_may_do_and_where_it_leads(
    api: Api, application: Application
) -> None:
    page = await Browser(api).open(application.wish(scope="codes:read"))
    text = PageReader(page).text
    assert "An application" in text
    assert Scope.CODES_READ.meaning in text
    assert Scope.CODES_WRITE.meaning not in text
    assert "https://app.example" in text


@pytest.mark.parametrize("email", ["anna", "nobody@example.com", "not an e-mail", "", "\0", "ü"])
async def test_a_wrong_password_shows_the_page_again_and_does_not_tell_who_exists(
    api: Api, application: Application, anna: Person, email: str
) -> None:
    browser = Browser(api)
    form = await application.form(browser)
    sent = anna.email if email == "anna" else email
    wrong = {"email": sent, "password": "not hers, surely", "decision": "allow"}
    answer = await browser.submit({**form, **wrong})
    assert answer.status == 401
    read = PageReader(answer)
    assert "".join(read.text.split()).count("wrong") == 1
    right = {"email": anna.email, "password": anna.password, "decision": "allow"}
    assert "code" in returned(await browser.submit({**read.fields, **right}))


async def test_guessing_passwords_on_the_page_is_limited(environment: dict[str, str]) -> None:
    settings = read_settings({**environment, "RATE_LIMIT_LOGIN": "3/minute"})
    async with running(settings) as api:
        application = await new_application(api)
        browser = Browser(api)
        form = await application.form(browser)
        wrong = {**form, "email": "anna@example.com", "password": "guess", "decision": "allow"}
        answers = [await browser.submit(wrong) for _ in range(4)]
    assert [answer.status for answer in answers] == [401, 401, 401, 429]
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert answers[-1].headers["Content-Type"] == "text/html; charset=utf-8"
