"""What is recorded of security events, for the owner of an account and for the operators."""

import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import asyncpg
import pytest

from service.api.http.app_keys import SERVICES
from service.settings.settings import read_settings
from service.telemetry.logs import JsonFormatter, TextFormatter
from service.use_cases.housekeeping import Housekeeping
from tests.api.issuer import Issuer, begin, come_back, signed_in
from tests.api.mailing import ANNA, NEW_PASSWORD, confirm, forgotten, mailed, reset, token_in
from tests.factories import PASSWORD, Answer, Api, Person, running
from tests.oauth import REVOKE, new_admin, new_application
from tests.stand_ins.smtp import SmtpServer


async def events(api: Api, person: Person) -> list[str]:
    """Return the names of what happened to the person's account, newest first."""
    page = await api.get("/users/me/activity", by=person)
    assert page.status == 200, page.body
    return [item["event"] for item in page.json()["items"]]


async def test_the_owner_sees_sign_ins_and_failed_ones(api: Api, anna: Person) -> None:
    await api.post(
        "/auth/login",
        {"email": anna.email, "password": "wrong"},
        headers={"User-Agent": "Thief/1.0"},
    )
    page = (await api.get("/users/me/activity", by=anna)).json()
    assert [item["event"] for item in page["items"]] == [
        "sign_in.failed",
        "sign_in.succeeded",
        "account.registered",
    ]
    failed = page["items"][0]
    assert set(failed) == {"event", "at", "address", "user_agent"}
    assert failed["address"] == "127.0.0.0/24"
    assert failed["user_agent"] == "Thief/1.0"


async def test_nobody_sees_the_activity_of_another(api: Api, anna: Person) -> None:
    bert = await api.new_person("bert@example.com")
    await api.log_in(anna.email, "wrong")
    assert await events(api, bert) == ["sign_in.succeeded", "account.registered"]


async def test_it_is_kept_for_90_days(api: Api, anna: Person, database: asyncpg.Connection) -> None:
    api.clock.ahead = timedelta(days=91)
    anna = await api.signed_in(anna.email)
    assert await events(api, anna) == ["sign_in.succeeded"]
    await database.execute("UPDATE security_events SET occurred_at = occurred_at - interval '91 d'")
    await Housekeeping(api.app[SERVICES].database, api.clock).tidy_up()
    assert await database.fetchval("SELECT count(*) FROM security_events") == 0


async def test_erasing_the_account_removes_it(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    erased = await api.delete("/users/me", {"password": PASSWORD}, by=anna)
    assert erased.status == 204
    assert await database.fetchval("SELECT count(*) FROM security_events") == 0


@pytest.mark.parametrize(
    ("email", "password", "reason"),
    [
        ("anna@example.com", "wrong", "wrong-password"),
        ("nobody@example.com", PASSWORD, "unknown-email"),
        ("no address", PASSWORD, "unknown-email"),
    ],
)
async def test_a_failed_sign_in_is_one_line_that_names_nobody(
    api: Api, anna: Person, caplog: pytest.LogCaptureFixture, email: str, password: str, reason: str
) -> None:
    with caplog.at_level(logging.INFO, "service.security"):
        await api.post(
            "/auth/login",
            {"email": email, "password": password},
            headers={"X-Request-Id": "request-1"},
        )
    [line] = [record for record in caplog.records if record.name == "service.security"]
    assert line.getMessage() == "sign_in.failed"
    told = vars(line)
    assert told["reason"] == reason
    assert told["address"] == "127.0.0.0/24"
    assert told["request_id"] == "request-1"
    assert len(told["account"]) == 16
    assert email not in str(told)


# --- Every event.


def lines_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the records of security events of accounts since the last time."""
    lines = [record for record in caplog.records if record.name == "service.security"]
    caplog.clear()
    return [line for line in lines if not line.getMessage().startswith("client.")]


def told(lines: Sequence[logging.LogRecord]) -> list[str]:
    """Return the lines in brief: the event, its reason, how many sessions have ended."""
    return [
        " ".join(
            str(part)
            for part in (line.getMessage(), vars(line)["reason"], vars(line).get("count"))
            if part is not None
        )
        for line in lines
    ]


@pytest.fixture
async def whole(
    mail_environment: dict[str, str],
    provider_environment: dict[str, str],
    database: asyncpg.Connection,
    redis: object,
    caplog: pytest.LogCaptureFixture,
) -> AsyncIterator[Api]:
    """A service that sends mails and knows issuers."""
    caplog.set_level(logging.INFO, "service.security")
    async with running(read_settings({**mail_environment, **provider_environment})) as api:
        yield api


async def undone(api: Api, smtp: SmtpServer, anna: Person) -> None:
    """Change the address and have it undone."""
    body = {"new_email": "anna@example.org", "password": PASSWORD}
    await api.post("/auth/email/change", body, by=anna)
    [mail] = await mailed(smtp, "anna@example.org", "Confirm your new")
    await confirm(api, token_in(mail))
    [mail] = await mailed(smtp, ANNA, "Your email address for")
    assert (await api.post("/auth/undo", {"token": token_in(mail)})).status == 204


async def with_applications(api: Api, anna: Person) -> None:
    """Let an application have tokens, revoke them, and steal its code."""
    application = await new_application(api)
    tokens = await application.tokens_of(anna)
    await application.send(REVOKE, token=tokens["access_token"])
    code = await application.code_of(anna)
    for _ in range(3):
        await application.redeem(code)


async def with_issuer(api: Api, issuer: Issuer) -> None:
    """Link an identity and cut it off; then come back in the wrong browser."""
    anna = await signed_in(api, issuer)
    [identity] = (await api.get("/users/me/identities", by=anna)).json()["items"]
    await api.delete(f"/users/me/identities/{identity['id']}", by=anna)
    begun = await begin(api)
    await come_back(api, begun, code=issuer.grant(begun.request), iss=issuer.url, cookie="")


async def test_every_event_has_one_line_and_the_owners_one_row(
    whole: Api,
    smtp: SmtpServer,
    issuer: Issuer,
    database: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = whole
    issuer.claims = {"sub": "anna-1", "email": ANNA, "email_verified": True}
    lines: list[logging.LogRecord] = []

    def expect(*expected: str) -> None:
        new = lines_of(caplog)
        assert told(new) == list(expected)
        lines.extend(new)

    anna = await api.new_person(ANNA)
    expect("account.registered password", "sign_in.succeeded password")
    await confirm(api, token_in((await mailed(smtp, ANNA, "Confirm"))[0]))
    expect("email.confirmed")
    await api.log_in(ANNA, "wrong")
    expect("sign_in.failed wrong-password")
    await api.post("/auth/logout", by=await api.signed_in(ANNA))
    expect("sign_in.succeeded password", "session.ended signed-out 1")
    await api.signed_in(ANNA)
    [newest, _] = (await api.get("/auth/sessions", by=anna)).json()["items"]
    await api.delete(f"/auth/sessions/{newest['id']}", by=anna)
    expect("sign_in.succeeded password", "session.ended from-another 1")
    for _ in range(3):
        await api.signed_in(ANNA)
    for _ in range(2):  # the second ends nothing
        await api.delete("/auth/sessions", by=anna)
    expect(*["sign_in.succeeded password"] * 3, "session.ended others 3")
    await api.signed_in(ANNA)
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    await api.post("/auth/password/change", body, by=anna)
    expect("sign_in.succeeded password", "password.changed", "session.ended password-changed 1")
    await reset(api, await forgotten(api, smtp), PASSWORD)
    expect("session.ended password-reset 1", "password.reset")
    anna = await api.signed_in(ANNA)
    for _ in range(3):  # the third finds the session ended
        await api.post("/auth/refresh", {"refresh_token": anna.refresh_token})
    expect(
        "sign_in.succeeded password", "refresh_token.reused", "session.ended refresh-token-reused 1"
    )
    await with_applications(api, anna)
    expect(
        "sign_in.succeeded oauth",
        "session.ended token-revoked 1",
        "sign_in.succeeded oauth",
        "authorization_code.reused",
        "session.ended authorization-code-reused 1",
        "authorization_code.reused",
    )
    await undone(api, smtp, await api.signed_in(ANNA))
    expect(
        "sign_in.succeeded password",
        "email.change_requested",
        "email.changed",
        "change.undone email",
        "session.ended change-undone 1",
    )
    await api.signed_in(ANNA)
    await with_issuer(api, issuer)
    expect(
        "sign_in.succeeded password",
        "session.ended identity-linked 1",
        "identity.linked corp",
        "sign_in.succeeded corp",
        "identity.unlinked corp",
        "sign_in.failed sign-in-unusable",
    )
    admin = await new_admin(api)
    lines_of(caplog)
    await api.patch(f"/admin/users/{anna.user_id}", {"disabled": True}, by=admin)
    await api.log_in(ANNA)
    await api.patch(f"/admin/users/{anna.user_id}", {"disabled": False}, by=admin)
    expect(
        "session.ended account-disabled 1",
        "account.disabled admin",
        "sign_in.failed account-disabled",
        "account.enabled admin",
    )
    anna = await api.signed_in(ANNA)
    expect("sign_in.succeeded password")
    rows = await database.fetch(
        "SELECT event FROM security_events WHERE user_id = $1", anna.user_id
    )
    hashed = api.app[SERVICES].security_events.account_hash(anna.user_id)
    assert Counter(row["event"] for row in rows) == Counter(
        line.getMessage() for line in lines if vars(line)["account"] == hashed
    )
    assert [line.getMessage() for line in lines if vars(line)["account"] != hashed] == [
        "sign_in.failed"  # nobody knows whose
    ]
    await api.delete("/users/me", {"password": PASSWORD}, by=anna)
    expect("account.erased owner", "session.ended account-erased 1")
    for line in lines:
        assert vars(line)["address"] == "127.0.0.0/24"
        assert vars(line)["request_id"]
    for formatter in (JsonFormatter(), TextFormatter()):
        text = "\n".join(map(formatter.format, lines))
        for secret in ("anna@", "anna%40", PASSWORD, anna.access_token, anna.refresh_token):
            assert secret not in text
        assert text.count(hashed) == len(lines) - 1
    as_json = json.loads(JsonFormatter().format(lines[0]))
    assert (as_json["message"], as_json["reason"]) == ("account.registered", "password")


async def test_nobody_is_told_of_a_sign_in_that_was_refused_for_another(
    whole: Api, smtp: SmtpServer, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    """An issuer that has not verified Anna's address: she sees that it was tried."""
    anna = await whole.new_person(ANNA)
    issuer.claims = {"sub": "thief-1", "email": ANNA, "email_verified": False}
    lines_of(caplog)
    begun = await begin(whole)
    answer: Answer = await come_back(whole, begun, code=issuer.grant(begun.request), iss=issuer.url)
    assert answer.status == 409
    assert told(lines_of(caplog)) == ["sign_in.failed identity-not-linked"]
    assert (await events(whole, anna))[0] == "sign_in.failed"


async def test_nothing_is_stored_of_an_account_that_is_erased(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """Without the condition in INSERT a code that is sent again later would leave a row."""
    application = await new_application(api)
    code = await application.code_of(anna)
    await application.redeem(code)
    assert (await api.delete("/users/me", {"password": PASSWORD}, by=anna)).status == 204
    await application.redeem(code)
    assert await database.fetchval("SELECT count(*) FROM security_events") == 0


async def test_what_was_rolled_back_has_not_happened(
    api: Api, anna: Person, caplog: pytest.LogCaptureFixture
) -> None:
    """Without after_commit a session that is not there would be logged as ended."""
    caplog.set_level(logging.INFO, "service.security")
    nobody = "01890000-0000-7000-8000-000000000000"
    lines_of(caplog)
    assert (await api.delete(f"/auth/sessions/{nobody}", by=anna)).status == 404
    assert lines_of(caplog) == []
    assert await events(api, anna) == ["sign_in.succeeded", "account.registered"]
