"""What attackers do to PKCE and to where the browser is sent."""

from urllib.parse import urlencode

import pytest

from service.api.http import app_keys
from tests.factories import Answer, Api, Person
from tests.oauth import (
    CALLBACK,
    INVALID_GRANT,
    VERIFIER,
    Application,
    Browser,
    PageReader,
    challenge_of,
    new_application,
    refusal,
    returned,
)

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
