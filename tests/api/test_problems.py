"""Every error is a problem of one shape, whoever found it: the router, a schema, a rule, nobody."""

import asyncio
import html
import json
import logging
import re

import asyncpg
import psycopg
import pytest

from service.api.http.problem_types import PROBLEM_TYPES
from service.settings.settings import Settings
from tests.api.assertions import assert_problem
from tests.api.wire import request, send
from tests.factories import PASSWORD, Api, Person, running

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
METHODS_OF = {
    "/auth/register": {"POST"},
    "/auth/login": {"POST"},
    "/auth/refresh": {"POST"},
    "/auth/logout": {"POST"},
    "/auth/password/change": {"POST"},
    "/auth/sessions": {"GET", "HEAD", "DELETE"},
    f"/auth/sessions/{ID}": {"DELETE"},
    "/users/me": {"GET", "HEAD", "DELETE"},
    "/referral-code": {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"},
    "/referral-codes": {"GET", "HEAD"},
    "/codes/ANNA-2026": {"GET", "HEAD"},
    "/referral-code/anna@example.com": {"GET", "HEAD"},
    f"/referrals/{ID}": {"GET", "HEAD"},
    "/admin/users": {"GET", "HEAD"},
    f"/admin/users/{ID}": {"GET", "HEAD", "PATCH", "DELETE"},
}
METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"}


async def test_an_address_that_nobody_knows_is_not_found(api: Api) -> None:
    for path in (
        "//nope",
        "//api",
        "//api/v2/users/me",
        "//.env",
        "//health",
        "//docs/nope",
        "/nope",
        "/auth",
        "/users",
        f"/users/{ID}",
        "/referral-code/a@example.com/x",
        "/auth/register/",
    ):
        for method in ("GET", "POST", "PROPFIND"):
            assert_problem(await api.call(method, path), 404, "not-found")


async def test_another_method_is_not_allowed_and_those_that_are_are_listed(api: Api) -> None:
    for path, allowed in METHODS_OF.items():
        for method in METHODS - allowed:
            answer = await api.call(method, path)
            assert answer.status == 405, (method, path)
            assert_problem(answer, 405, "method-not-allowed")
            assert set(answer.headers["Allow"].split(",")) == allowed, path


async def test_a_method_that_http_does_not_know_is_a_bad_request(api: Api) -> None:
    assert_problem(await api.call("FOO", "/users/me"), 400, "bad-request")


@pytest.mark.parametrize(
    "target", ["*", "localhost:80", "http://elsewhere.example/health/live", "//elsewhere/x"]
)
async def test_a_target_that_is_no_path_is_a_problem_or_its_path(api: Api, target: str) -> None:
    answer = await send(api, request("GET", target))
    assert answer.status in {200, 400, 404}
    if answer.status != 200:
        assert_problem(answer, answer.status, {400: "bad-request", 404: "not-found"}[answer.status])


@pytest.mark.parametrize(
    "accept", ["text/html", "image/png, text/csv", "application/json;q=0", "text/csv, */*;q=0"]
)
async def test_who_takes_no_json_is_told_in_json_all_the_same(api: Api, accept: str) -> None:
    answer = await api.get("/referral-code/a@example.com", headers={"Accept": accept})
    assert_problem(answer, 406, "not-acceptable")


@pytest.mark.parametrize(
    "accept",
    ["application/json", "*/*", "application/*;q=0.1", "text/html, */*;q=0.1", "APPLICATION/JSON"],
)
async def test_who_takes_json_gets_it(api: Api, anna: Person, accept: str) -> None:
    answer = await api.get("/users/me", by=anna, headers={"Accept": accept})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")


async def test_all_members_that_are_at_fault_are_told_together(api: Api) -> None:
    answer = await api.post("/auth/register", {"email": 5, "is_admin": True})
    assert_problem(answer, 422, "validation-failed", ["#/email", "#/password", "#/is_admin"])


async def test_problems_of_one_code_have_one_title_and_say_what_is_wrong_in_their_detail(
    api: Api, anna: Person
) -> None:
    answers = [
        await api.post("/auth/register", {"email": "a@example.com"}),
        await api.post("/auth/register", {"email": "a@example.com", "password": "short"}),
        await api.post("/auth/register", {"email": "a@example.com", "password": "password"}),
        await api.post("/auth/register", {"email": "nobody", "password": PASSWORD}),
        await api.post("/referral-code", {"expires_in_days": 367}, by=anna),
        await api.post("/referral-code", {"expires_at": "2001-01-01T00:00:00Z"}, by=anna),
        await api.get("/auth/sessions?cursor=x", by=anna),
        await api.get("/auth/sessions?limit=0", by=anna),
        await api.delete("/users/me", {}, by=anna),
    ]
    assert {answer.json()["code"] for answer in answers} == {"validation-failed"}
    assert {answer.json()["title"] for answer in answers} == {"The request is invalid."}
    details = [answer.json()["detail"] for answer in answers]
    assert len(set(details)) == len(details), details
    assert details[0] == "#/password: This member is missing."


EMAIL, NEW, EXPIRY = "#/email", "#/new_password", "#/expires_at"


@pytest.mark.parametrize(
    ("call", "body", "pointers"),
    [
        ("POST /auth/register", {"email": "x", "password": "y"}, [EMAIL, "#/password"]),
        (
            "POST /auth/register",
            {"email": "x", "password": "y", "z": 1},
            ["#/z", EMAIL, "#/password"],
        ),
        ("POST /auth/register", {"password": "password"}, [EMAIL, "#/password"]),
        ("POST /auth/password/forgot", {"email": "x", "z": 1}, ["#/z", EMAIL]),
        ("POST /auth/password/reset", {"new_password": "y"}, ["#/token", NEW]),
        ("POST /auth/password/change", {"new_password": "y"}, ["#/current_password", NEW]),
        ("POST /auth/email/change", {"new_email": "x", "z": 1}, ["#/z", "#/new_email"]),
        (
            "POST /referral-code",
            {"expires_at": "2001-01-01T00:00:00Z", "code": "!"},
            ["#/code", EXPIRY],
        ),
        ("PATCH /referral-code", {"expires_at": "2001-01-01T00:00:00Z", "z": 1}, ["#/z", EXPIRY]),
    ],
)
async def test_what_needs_no_look_up_is_told_with_all_else_that_is_wrong(
    api: Api, anna: Person, call: str, body: dict[str, object], pointers: list[str]
) -> None:
    method, _, path = call.partition(" ")
    answer = await api.call(method, path, body, by=anna)
    assert (answer.status, answer.json()["code"]) == (422, "validation-failed")
    assert [error["pointer"] for error in answer.json()["errors"]] == pointers


async def test_of_several_errors_the_detail_says_the_first_and_how_many_there_are(api: Api) -> None:
    answer = await api.post("/auth/register", {"email": 5, "is_admin": True, "x" * 500: 1})
    assert answer.json()["detail"] == "#/email: This is not a string. (3 more in `errors`.)"
    named = await api.post("/auth/login", {"email": "a@example.com", "password": "x", "x" * 500: 1})
    assert named.json()["detail"] == f"#/{'x' * 78}: There is no such member."
    whole = await api.post("/auth/login", [])
    assert whole.json()["detail"] == "This is not an object."


async def test_problems_are_written_without_spaces_as_other_answers_are(api: Api) -> None:
    for answer in (
        await api.post("/auth/register", {}),
        await api.get("//nope"),
        await api.post("//oauth/token"),
        await send(api, b"no HTTP\r\n\r\n"),
    ):
        assert answer.body == json.dumps(answer.json(), separators=(",", ":")).encode()


async def test_every_problem_has_a_page_that_explains_it(api: Api) -> None:
    for code, problem_type in PROBLEM_TYPES.items():
        page = await api.get(f"//problems/{code}")
        assert page.status == 200, code
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert f"<h1>{code}</h1>" in page.body.decode()
        assert f"Status {problem_type.status:d}." in page.body.decode()
        assert "`" not in page.body.decode()
        assert (
            page.body.count(b"<code>") == (problem_type.title + problem_type.remedy).count("`") / 2
        )


async def test_one_page_lists_all_problems_and_links_to_the_page_of_each(api: Api) -> None:
    """The links are relative, which holds below the path of PUBLIC_URL too."""
    page = await api.get("//problems")
    assert page.status == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    text = page.body.decode()
    for code, problem_type in PROBLEM_TYPES.items():
        assert f'<a href="problems/{code}">{code}</a> ({problem_type.status:d})' in text
        plain = html.unescape(re.sub("</?code>", "`", text))
        assert f"<dd>{problem_type.title} {problem_type.remedy}</dd>" in plain
    assert text.count("<dt>") == len(PROBLEM_TYPES)


async def test_what_is_to_be_typed_is_code_on_the_page(api: Api) -> None:
    page = (await api.get("//problems/not-authenticated")).body.decode()
    assert "<code>Authorization: Bearer &lt;token&gt;</code>" in page


async def test_a_problem_that_there_is_not_has_no_page(api: Api) -> None:
    assert_problem(await api.get("//problems/%3Cscript%3E"), 404, "not-found")


async def test_the_type_of_a_problem_leads_to_its_page(api: Api) -> None:
    refused = await api.get("/referral-code/a@example.com")
    page = await api.get("/" + refused.json()["type"])
    assert page.status == 200


async def test_a_failure_that_nobody_foresaw_is_opaque_and_logged(
    own_database: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """A column is missing: what PostgreSQL says about it stays in the log."""
    async with running(own_database) as api:
        person = await api.new_person()
        with psycopg.connect(own_database.database_url) as connection:
            connection.execute("ALTER TABLE referral_codes DROP COLUMN max_uses")
        answer = await api.post("/referral-code", {"expires_in_days": 1}, by=person)
        assert_problem(answer, 500, "internal-error")
        about = PROBLEM_TYPES["internal-error"]
        assert answer.json()["detail"] == f"{about.title} {about.remedy}"
        assert b"max_uses" not in answer.body
        [failure] = [record for record in caplog.records if record.exc_info]
        assert failure.levelno == logging.ERROR
        assert vars(failure)["request_id"] == answer.json()["request_id"]
        assert vars(failure)["route"] == "/api/v1/referral-code"
        assert "max_uses" in str(failure.exc_info)
        assert (await api.get("/users/me", by=person)).status == 200, "and the service goes on"


async def test_a_violation_that_nobody_foresaw_is_no_polite_answer(own_database: Settings) -> None:
    async with running(own_database) as api:
        with psycopg.connect(own_database.database_url) as connection:
            connection.execute("ALTER TABLE users ADD CONSTRAINT nobody_knows CHECK (false)")
        assert_problem(await api.register(), 500, "internal-error")


async def test_when_postgresql_goes_the_answer_is_503_and_when_it_is_back_it_is_the_usual_one(
    own_database: Settings, database: asyncpg.Connection
) -> None:
    """The database takes no connections for a while, and ends those that there are."""
    async with running(own_database) as api:
        person = await api.new_person()
        name = own_database.database_url.partition("?")[0].rpartition("/")[2]
        await database.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        await database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
        )
        answers = await asyncio.gather(
            api.get("/referral-code", by=person),
            api.log_in(person.email),
            api.register(),
            api.get("/referral-code/nobody@example.com"),
        )
        for answer in answers:
            assert_problem(answer, 503, "database-unavailable")
            assert answer.headers["Retry-After"] == "1"
        await database.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
        assert (await api.log_in(person.email)).status == 200


async def test_a_problem_says_nothing_that_the_caller_did_not_know(api: Api, anna: Person) -> None:
    """The words of the library that parsed an e-mail, say, hold no more than the e-mail."""
    wrong = await api.post("/auth/login", {"email": anna.email, "password": "wrong password"})
    unknown = await api.post("/auth/login", {"email": "nobody@example.com", "password": PASSWORD})
    malformed = await api.post("/auth/login", {"email": "nobody", "password": PASSWORD})
    documents = [answer.json() for answer in (wrong, unknown, malformed)]
    for document in documents:
        del document["request_id"]
    assert documents[0] == documents[1] == documents[2]
