"""What `Accept` leaves: JSON for whom either of its types suits, and nothing is refused in vain."""

import re

import pytest

from tests.api.assertions import assert_problem
from tests.api.openapi_changes import present_document
from tests.api.wire import request, send
from tests.factories import Api, Person

PROBLEM = "application/problem+json"


@pytest.mark.parametrize(
    "accept", [PROBLEM, "application/*+json", "application/json;q=", "", " ", ","]
)
async def test_a_client_that_takes_json_gets_it(api: Api, anna: Person, accept: str) -> None:
    answer = await api.get("/users/me", by=anna, headers={"Accept": accept})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")


@pytest.mark.parametrize(
    "accept", ["text/*", "application/json;q=0.000", "application/json;q=0, */*"]
)
async def test_a_client_that_excludes_json_is_refused_before_anything_is_done(
    api: Api, anna: Person, accept: str
) -> None:
    answer = await api.post(
        "/referral-code", {"expires_in_days": 1}, by=anna, headers={"Accept": accept}
    )
    assert_problem(answer, 406, "not-acceptable")
    assert_problem(await api.get("/referral-code", by=anna), 404, "referral-code-not-found")


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((b"text/html", b"application/json"), 200),
        ((PROBLEM.encode(), b"text/html"), 200),
        ((b"", b""), 200),
        ((b"", b"text/html"), 406),
        ((b"application/json;q=0", b"*/*"), 406),
        ((b"text/html", b'text/csv;title="', b"application/json"), 200),
    ],
)
async def test_several_lines_are_one_list(
    api: Api, anna: Person, lines: tuple[bytes, ...], status: int
) -> None:
    headers = [b"Accept: " + line for line in lines]
    bearer = f"Authorization: Bearer {anna.access_token}".encode()
    answer = await send(api, request("GET", "/api/v1/users/me", [*headers, bearer]))
    assert answer.status == status


@pytest.mark.parametrize("accept", [PROBLEM, "text/html", "image/png;q=0", "application/json;q=0"])
async def test_what_is_answered_without_a_body_is_done_whatever_the_client_takes(
    api: Api, anna: Person, accept: str
) -> None:
    await api.new_code(anna)
    headers = {"Accept": accept}
    deleted = await api.delete("/referral-code", by=anna, headers=headers)
    assert (deleted.status, deleted.body) == (204, b"")
    again = await api.delete("/referral-code", by=anna, headers=headers)
    assert_problem(again, 404, "referral-code-not-found")
    signed_out = await api.post("/auth/logout", by=anna, headers=headers)
    assert (signed_out.status, signed_out.body) == (204, b"")
    assert_problem(await api.get("/users/me", by=anna), 401, "invalid-token")


async def test_406_is_for_the_calls_that_have_json_to_send_and_for_no_other(api: Api) -> None:
    for path, methods in present_document()["paths"].items():
        for method, operation in methods.items():
            has_json = any(
                "application/json" in response.get("content", ())
                for status, response in operation["responses"].items()
                if status < "400"
            )
            answer = await api.call(
                method.upper(),
                "/" + re.sub(r"{\w+}", "x", path),
                None if method == "get" else {},
                headers={"Accept": "image/png"},
            )
            refused = has_json and path.startswith("/api/")
            assert (answer.status == 406) is refused, f"{method} {path}"


async def test_an_address_or_a_method_that_does_not_exist_is_no_matter_of_accept(api: Api) -> None:
    headers = {"Accept": "text/html"}
    assert_problem(await api.get("/nope", headers=headers), 404, "not-found")
    assert_problem(await api.patch("/users/me", headers=headers), 405, "method-not-allowed")


@pytest.mark.parametrize(
    "accept", [b"\xff\xfe/\xfd", b'"' * 4000, b'"\\' * 2000, b"a/b;q=" + b"0" * 4000, b"\\", b'"\\']
)
async def test_nonsense_is_never_a_failure_of_the_service(api: Api, accept: bytes) -> None:
    raw = request("GET", "/api/v1/referral-code/a@example.com", [b"Accept: " + accept])
    assert (await send(api, raw)).status in {404, 406}
