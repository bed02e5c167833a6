"""What attackers do to codes, refresh tokens, redirects and the page on which users sign in."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from time import perf_counter
from urllib.parse import urlencode

import asyncpg
import pytest

from service.api.http import app_keys
from service.domain.oauth import CODE_LIVES
from service.domain.scopes import Scope
from service.domain.sessions import Credentials
from service.settings.settings import Settings, read_settings
from service.use_cases.credentials import verify_credentials
from service.use_cases.sessions import GRACE
from service.use_cases.shared import Shared
from tests.factories import PASSWORD, Answer, Api, Person, running
from tests.oauth import (
    AUTHORIZE,
    CALLBACK,
    VERIFIER,
    Application,
    Browser,
    PageReader,
    challenge_of,
    new_admin,
    new_application,
    refusal,
    returned,
)

AFTER_THE_GRACE = GRACE + timedelta(seconds=1)
INVALID_GRANT = (400, "invalid_grant")


@pytest.fixture
async def anna(api: Api) -> Person:
    return await api.new_person()


@pytest.fixture
async def application(api: Api) -> Application:
    return await new_application(api)


# Codes


async def test_of_twenty_parallel_redemptions_of_a_code_one_succeeds(
    application: Application, anna: Person, database: asyncpg.Connection
) -> None:
    code = await application.code_of(anna)
    answers = await asyncio.gather(*(application.redeem(code) for _ in range(20)))
    outcomes = Counter(a.status if a.status == 200 else refusal(a) for a in answers)
    assert outcomes == {200: 1, INVALID_GRANT: 19}
    opened = "SELECT count(*) FROM sessions WHERE client_id = $1"
    assert await database.fetchval(opened, application.client_id) == 1


async def test_a_replayed_code_ends_what_it_gave(application: Application, anna: Person) -> None:
    code = await application.code_of(anna)
    tokens = (await application.redeem(code)).json()
    tokens = await application.refreshed(tokens["refresh_token"])
    assert refusal(await application.redeem(code)) == INVALID_GRANT
    assert not await application.is_alive(tokens), "the live leaf of what the code gave"


@pytest.mark.parametrize(
    "changes",
    [
        {"code_verifier": None},
        {"code_verifier": VERIFIER[:-1] + "4"},
        {"redirect_uri": None},
        {"redirect_uri": f"{CALLBACK}/"},
        {"client_secret": "another"},
        {"client_secret": None},
    ],
)
async def test_who_has_seen_a_code_cannot_sign_its_user_out(
    application: Application, anna: Person, changes: dict[str, str | None]
) -> None:
    code = await application.code_of(anna)
    tokens = (await application.redeem(code)).json()
    assert (await application.redeem(code, **changes)).status in {400, 401}
    assert await application.is_alive(tokens)


async def test_another_client_can_neither_redeem_a_code_nor_end_what_it_gave(
    api: Api, application: Application, anna: Person
) -> None:
    thief = await new_application(api)
    code = await application.code_of(anna)
    assert refusal(await thief.redeem(code)) == INVALID_GRANT
    tokens = (await application.redeem(code)).json()
    assert refusal(await thief.redeem(code)) == INVALID_GRANT
    assert await application.is_alive(tokens)


async def test_a_code_is_good_for_a_minute(
    api: Api, application: Application, anna: Person
) -> None:
    early, late = await application.code_of(anna), await application.code_of(anna)
    api.clock.ahead += CODE_LIVES - timedelta(seconds=5)
    assert (await application.redeem(early)).status == 200
    api.clock.ahead += timedelta(seconds=6)
    assert refusal(await application.redeem(late)) == INVALID_GRANT


async def test_a_code_must_come_from_where_it_was_sent(api: Api, anna: Person) -> None:
    two = [CALLBACK, "https://app.example/other"]
    application = await new_application(api, redirect_uris=two)
    code = await application.code_of(anna)
    assert refusal(await application.redeem(code, redirect_uri=two[1])) == INVALID_GRANT


@pytest.mark.parametrize("code", ["", "x", "A" * 43, "é", "\0", "x" * 10_000])
async def test_a_code_that_was_never_made_is_refused(application: Application, code: str) -> None:
    assert refusal(await application.redeem(code)) in {INVALID_GRANT, (400, "invalid_request")}


async def test_a_code_of_a_user_disabled_since_is_refused(
    api: Api, application: Application, anna: Person
) -> None:
    admin = await new_admin(api)
    code, tokens = await application.code_of(anna), await application.tokens_of(anna)
    path = f"/admin/users/{anna.user_id}"
    assert (await api.patch(path, {"disabled": True}, by=admin)).status == 200
    assert refusal(await application.redeem(code)) == INVALID_GRANT
    assert not await application.is_alive(tokens)


async def test_a_code_of_a_user_erased_since_is_refused(
    api: Api, application: Application, anna: Person
) -> None:
    code, tokens = await application.code_of(anna), await application.tokens_of(anna)
    assert (await api.delete("/users/me", {"password": PASSWORD}, by=anna)).status == 204
    assert refusal(await application.redeem(code)) == INVALID_GRANT
    assert not await application.is_alive(tokens)


async def change_password(api: Api, person: Person) -> None:
    passwords = {"current_password": PASSWORD, "new_password": "quite another long walk"}
    assert (await api.post("/auth/password/change", passwords, by=person)).status == 204


async def test_a_code_granted_with_a_password_changed_since_is_refused(
    api: Api, application: Application, anna: Person
) -> None:
    code, tokens = await application.code_of(anna), await application.tokens_of(anna)
    await change_password(api, anna)
    assert refusal(await application.redeem(code)) == INVALID_GRANT
    assert not await application.is_alive(tokens)


async def test_a_password_changed_while_it_is_being_checked_gives_no_tokens(
    api: Api, application: Application, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check_slowly(shared: Shared, email: str, password: str) -> Credentials:
        credentials = await verify_credentials(shared, email, password)
        await change_password(api, anna)
        return credentials

    monkeypatch.setattr("service.use_cases.oauth.verify_credentials", check_slowly)
    answer = await application.allowed_by(anna)
    monkeypatch.undo()
    if answer.status == 303 and "code" in returned(answer):
        assert refusal(await application.redeem(returned(answer)["code"])) == INVALID_GRANT
    else:
        assert answer.status == 401


async def test_a_code_redeemed_while_the_password_changes_leaves_no_session_behind(
    api: Api, application: Application
) -> None:
    async def alive_after(delay: float) -> bool:
        person = await api.new_person()
        code = await application.code_of(person)
        changing = asyncio.create_task(change_password(api, person))
        await asyncio.sleep(delay)
        answer = await application.redeem(code)
        await changing
        return answer.status == 200 and await application.is_alive(answer.json())

    started = perf_counter()
    await change_password(api, await api.new_person())
    took = perf_counter() - started
    # From before the change to after it, in small steps.
    assert not any([await alive_after(step / 20 * took) for step in range(25)])


# Refresh tokens


async def test_twenty_parallel_refreshes_give_one_child(
    application: Application, anna: Person
) -> None:
    parent = (await application.tokens_of(anna))["refresh_token"]
    answers = await asyncio.gather(*(application.refresh(parent) for _ in range(20)))
    assert {answer.status for answer in answers} == {200}
    children = {answer.json()["refresh_token"] for answer in answers}
    assert len(children) == 1
    assert children != {parent}
    assert await application.is_alive(answers[0].json())


async def test_the_parent_gives_the_same_child_for_a_while(
    api: Api, application: Application, anna: Person
) -> None:
    parent = await application.tokens_of(anna)
    child = await application.refreshed(parent["refresh_token"])
    api.clock.ahead += GRACE - timedelta(seconds=2)
    again = await application.refreshed(parent["refresh_token"])
    assert again["refresh_token"] == child["refresh_token"]
    assert await application.is_alive(again)


@pytest.mark.parametrize(
    ("rotations", "wait"),
    [(1, AFTER_THE_GRACE), (2, timedelta()), (2, AFTER_THE_GRACE), (3, timedelta())],
    ids=["parent late", "grandparent at once", "grandparent late", "its parent at once"],
)
async def test_an_older_refresh_token_ends_the_session_and_its_live_leaf(
    api: Api, application: Application, anna: Person, rotations: int, wait: timedelta
) -> None:
    old = await application.tokens_of(anna)
    leaf = old
    for _ in range(rotations):
        leaf = await application.refreshed(leaf["refresh_token"])
    api.clock.ahead += wait
    assert (await api.get("/users/me", by=leaf["access_token"])).status == 200
    assert refusal(await application.refresh(old["refresh_token"])) == INVALID_GRANT
    assert not await application.is_alive(leaf)
    assert (await api.get("/users/me", by=old["access_token"])).status == 401


async def test_a_stolen_refresh_token_is_of_no_use_to_another_client_and_lives_on(
    api: Api, application: Application, anna: Person
) -> None:
    tokens = await application.tokens_of(anna)
    for public in (True, False):
        thief = await new_application(api, public=public)
        assert refusal(await thief.refresh(tokens["refresh_token"])) == INVALID_GRANT
    first_party = await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})
    assert first_party.status == 401
    assert await application.is_alive(tokens)


async def test_an_old_refresh_token_from_another_client_ends_nothing(
    api: Api, application: Application, anna: Person
) -> None:
    old = await application.tokens_of(anna)
    leaf = await application.refreshed(
        (await application.refreshed(old["refresh_token"]))["refresh_token"]
    )
    thief = await new_application(api)
    assert refusal(await thief.refresh(old["refresh_token"])) == INVALID_GRANT
    assert await application.is_alive(leaf)


async def test_a_first_party_refresh_token_is_of_no_use_to_a_client(
    api: Api, application: Application, anna: Person
) -> None:
    assert refusal(await application.refresh(anna.refresh_token)) == INVALID_GRANT
    refreshed = await api.post("/auth/refresh", {"refresh_token": anna.refresh_token})
    assert refreshed.status == 200


@pytest.mark.parametrize("kind", ["access_token", "nothing", "hostile"])
async def test_what_is_no_refresh_token_is_refused(
    application: Application, anna: Person, kind: str
) -> None:
    tokens = await application.tokens_of(anna)
    sent = {**tokens, "nothing": "", "hostile": "\0é\ud7ff" + "=" * 100}[kind]
    assert refusal(await application.refresh(sent)) in {INVALID_GRANT, (400, "invalid_request")}
    assert await application.is_alive(tokens)


# PKCE

UNPROTECTED: list[dict[str, str | None]] = [
    {"code_challenge": None, "code_challenge_method": None},
    {"code_challenge": VERIFIER, "code_challenge_method": "plain"},
    {"code_challenge_method": "plain"},
    {"code_challenge_method": None},
    {"code_challenge_method": ""},
    {"code_challenge_method": "s256"},
    {"code_challenge": None},
    {"code_challenge": ""},
    {"code_challenge": challenge_of(VERIFIER)[:42]},
    {"code_challenge": challenge_of(VERIFIER) + "="},
    {"code_challenge": challenge_of(VERIFIER)[:42] + "é"},
    {"code_challenge": challenge_of(VERIFIER) + "\n"},
]


@pytest.mark.parametrize("changes", UNPROTECTED)
async def test_a_request_without_sound_pkce_gets_no_page(
    api: Api, application: Application, changes: dict[str, str | None]
) -> None:
    answer = await Browser(api).open(application.wish(**changes))
    told = returned(answer)
    assert answer.headers["Location"].startswith(f"{CALLBACK}?")
    assert (told["error"], told["state"]) == ("invalid_request", "a state")
    assert told["iss"] == api.app[app_keys.SETTINGS].public_url
    assert "code" not in told


@pytest.mark.parametrize("changes", UNPROTECTED)
async def test_pkce_cannot_be_taken_out_of_the_page(
    api: Api, application: Application, anna: Person, changes: dict[str, str | None]
) -> None:
    browser = Browser(api)
    form = await application.form(browser)
    tampered = {name: value for name, value in {**form, **changes}.items() if value is not None}
    signed = {"email": anna.email, "password": anna.password, "decision": "allow"}
    told = returned(await browser.submit({**tampered, **signed}))
    assert told["error"] == "invalid_request"
    assert "code" not in told


@pytest.mark.parametrize(
    ("challenged", "sent"),
    [
        (VERIFIER, None),
        (VERIFIER, ""),
        (VERIFIER, VERIFIER[:-1] + "4"),
        (VERIFIER, VERIFIER.upper()),
        (VERIFIER, VERIFIER + "\n"),
        (VERIFIER, challenge_of(VERIFIER)),
        ("v" * 42, "v" * 42),
        ("v" * 129, "v" * 129),
        ("v" * 42 + "!", "v" * 42 + "!"),
        ("v" * 42 + "é", "v" * 42 + "é"),
    ],
    ids=[
        "missing",
        "empty",
        "wrong",
        "other case",
        "newline",
        "the challenge",
        "42 characters",
        "129 characters",
        "a character too odd",
        "not ASCII",
    ],
)
async def test_a_code_is_not_redeemed_without_its_verifier(
    application: Application, anna: Person, challenged: str, sent: str | None
) -> None:
    code = await application.code_of(anna, code_challenge=challenge_of(challenged))
    assert refusal(await application.redeem(code, code_verifier=sent)) == INVALID_GRANT


@pytest.mark.parametrize("length", [43, 128])
async def test_verifiers_of_every_lawful_length_do(
    application: Application, anna: Person, length: int
) -> None:
    verifier = ("Az09-._~" * 16)[:length]
    code = await application.code_of(anna, code_challenge=challenge_of(verifier))
    assert (await application.redeem(code, code_verifier=verifier)).status == 200


# Where the browser is sent

MUTATED_REDIRECTS = [
    "",
    " ",
    "/callback",
    "//app.example/callback",
    "app.example/callback",
    "http://app.example/callback",
    "HTTPS://app.example/callback",
    "https://APP.example/callback",
    "https://app.example/Callback",
    "https://app.example/callback/",
    "https://app.example/callback/..",
    "https://app.example/callback/../evil",
    "https://app.example/x/../callback",
    "https://app.example/./callback",
    "https://app.example//callback",
    "https://app.example/%63allback",
    "https://app.example/callback%2f",
    "https://app.example/callback%00",
    "https://app.example/callback\0",
    "https://app.example/callback\n",
    "https://app.example/callback\r\nSet-Cookie: a=b",
    " https://app.example/callback",
    "https://app.example/callback ",
    "https://app.example/callback?",
    "https://app.example/callback?next=https://evil.example",
    "https://app.example/callback#",
    "https://app.example/callback#fragment",
    "https://app.example:443/callback",
    "https://app.example:8443/callback",
    "https://app.example./callback",
    "https://app.example@evil.example/callback",
    "https://user@app.example/callback",
    "https://app.example:pass@evil.example/callback",
    "https://evil.example/https://app.example/callback",
    "https://app.example.evil.example/callback",
    "https://evil.example\\@app.example/callback",
    "https:\\\\app.example\\callback",
    "https://аpp.example/callback",  # noqa: RUF001  # a Cyrillic letter
    "https://app.example/callback\u200b",
    "https://app。example/callback",
    "javascript:alert(1)//https://app.example/callback",
    "data:text/html,https://app.example/callback",
    "https://[::1]/callback",
    "https://[broken/callback",
]


def assert_refused_without_redirect(answer: Answer) -> None:
    assert answer.status == 400, answer.body
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert not {"Location", "Refresh", "Set-Cookie"} & set(answer.headers)
    assert {"a", "form", "meta http-equiv"}.isdisjoint(PageReader(answer).elements)


@pytest.mark.parametrize("redirect_uri", MUTATED_REDIRECTS)
async def test_nobody_is_sent_to_an_address_that_is_not_registered(
    api: Api, application: Application, anna: Person, redirect_uri: str
) -> None:
    browser = Browser(api)
    form = await application.form(browser)
    opened = await browser.open(application.wish(redirect_uri=redirect_uri))
    assert_refused_without_redirect(opened)
    for decision in ("allow", "deny"):
        signed = {"email": anna.email, "password": anna.password, "decision": decision}
        submitted = await browser.submit({**form, "redirect_uri": redirect_uri, **signed})
        assert_refused_without_redirect(submitted)


@pytest.mark.parametrize(
    "query",
    [
        "{usual}&redirect_uri=https%3A%2F%2Fevil.example",
        "redirect_uri=https%3A%2F%2Fevil.example&{usual}",
        "{usual}&redirect_uri={callback}",
        "{usual}&client_id=swagger-ui",
        "{without}",
        "{without}&redirect_uri",
        "{without}&redirect_uri[]={callback}",
        "{without}&redirect_uri={callback}%00",
        "{without}&redirect_uri={callback}%ff",
        "{without};redirect_uri={callback}",
    ],
)
async def test_a_query_that_can_be_read_in_two_ways_is_refused(
    api: Api, application: Application, query: str
) -> None:
    usual = urlencode(application.wish())
    without = urlencode(application.wish(redirect_uri=None))
    callback = urlencode({"": CALLBACK})[1:]
    written = query.format(usual=usual, without=without, callback=callback)
    assert_refused_without_redirect(await Browser(api).open(written))


@pytest.mark.parametrize(
    "client_id", [None, "", "nobody", "first-party", "\0", "é", "x" * 5000, "' OR '1'='1"]
)
async def test_an_unknown_client_is_told_so_on_a_page(
    api: Api, application: Application, client_id: str | None
) -> None:
    answer = await Browser(api).open(application.wish(client_id=client_id))
    assert_refused_without_redirect(answer)


async def test_a_redirect_uri_may_have_a_query_of_its_own(api: Api, anna: Person) -> None:
    uri = "https://app.example/callback?tenant=a%20b&x="
    application = await new_application(api, redirect_uris=[uri])
    answer = await application.allowed_by(anna)
    assert answer.headers["Location"].startswith(f"{uri}&code=")
    told = returned(answer)
    assert (told["tenant"], told["x"], told["state"]) == ("a b", "", "a state")
    assert (await application.redeem(told["code"])).status == 200


@pytest.mark.parametrize(
    ("host", "form_action"),
    [("127.0.0.1", "'self' http://127.0.0.1:51004"), ("[::1]", "'self' http:")],
)
async def test_a_native_app_listens_on_loopback_on_whatever_port(
    api: Api, anna: Person, host: str, form_action: str
) -> None:
    """RFC 8252, 7.3. The code is for the very address that was sent."""
    registered = f"http://{host}/callback"
    application = await new_application(api, public=True, redirect_uris=[registered])
    sent = f"http://{host}:51004/callback"
    page = await Browser(api).open(application.wish(redirect_uri=sent))
    assert f"form-action {form_action};" in page.headers["Content-Security-Policy"]
    answer = await application.allowed_by(anna, redirect_uri=sent)
    assert answer.headers["Location"].startswith(f"{sent}?code=")
    code = returned(answer)["code"]
    for other in (registered, f"http://{host}:51005/callback"):
        assert refusal(await application.redeem(code, redirect_uri=other)) == INVALID_GRANT
    assert (await application.redeem(code, redirect_uri=sent)).status == 200


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"response_type": "code token"}, "unsupported_response_type"),
        ({"response_type": "code id_token"}, "unsupported_response_type"),
        ({"scope": "profile everything"}, "invalid_scope"),
        ({"scope": "PROFILE"}, "invalid_scope"),
    ],
)
async def test_other_faults_are_told_to_the_client(
    api: Api, application: Application, changes: dict[str, str], error: str
) -> None:
    answer = await Browser(api).open(application.wish(**changes))
    told = returned(answer)
    issuer = api.app[app_keys.SETTINGS].public_url
    assert (told["error"], told["state"], told["iss"]) == (error, "a state", issuer)
    assert set(told) <= {"error", "error_description", "state", "iss"}


async def test_a_request_without_a_response_type_is_told_to_the_client(
    api: Api, application: Application
) -> None:
    told = returned(await Browser(api).open(application.wish(response_type=None)))
    assert told["error"] == "invalid_request"


async def test_who_denies_needs_no_password_and_gives_nothing(
    api: Api, application: Application
) -> None:
    browser = Browser(api)
    form = await application.form(browser)
    told = returned(await browser.submit({**form, "decision": "deny"}))
    assert (told["error"], told["state"]) == ("access_denied", "a state")
    assert "code" not in told


@pytest.mark.parametrize("state", ["", "ü & = ? #", "a\r\nSet-Cookie: b=c", "x" * 4000, "+ %2B"])
async def test_the_state_comes_back_as_it_was_sent(
    application: Application, anna: Person, state: str
) -> None:
    answer = await application.allowed_by(anna, state=state)
    assert returned(answer)["state"] == state
    assert "b" not in answer.headers.getall("Set-Cookie", [])


async def test_without_a_state_none_comes_back(application: Application, anna: Person) -> None:
    assert set(returned(await application.allowed_by(anna, state=None))) == {"code", "iss"}


# The page on which users sign in


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
