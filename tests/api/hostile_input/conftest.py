"""Hostile bytes are input too: whatever comes, the answer is a problem of the client's making.

Tables rather than parameters, because one service answers a thousand of them in a second.
"""

import json
import logging
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import pytest

from service.api.http.problem_types import PROBLEM_TYPES
from service.api.http.problems import CONTENT_TYPE
from tests.factories import PASSWORD, Answer, Api, Person

API: Final = "/api/v1"
KIB_16: Final = 16 * 1024
LATIN_1: Final = '{"email": "é"}'.encode("latin-1")
UTF_16: Final = '{"email": "a"}'.encode("utf-16")


class Call(NamedTuple):
    """A call with a body, and a body that has the right shape."""

    method: str
    path: str
    body: dict[str, Any]
    optional: frozenset[str] = frozenset()


CALLS: Final = [
    Call(
        "POST",
        "/auth/register",
        {"email": "x@example.com", "password": PASSWORD, "referral_code": "NONE"},
        frozenset({"referral_code"}),
    ),
    Call("POST", "/auth/login", {"email": "x@example.com", "password": PASSWORD}),
    Call("POST", "/auth/refresh", {"refresh_token": "x"}),
    Call("POST", "/auth/password/change", {"current_password": "x", "new_password": PASSWORD}),
    Call("DELETE", "/users/me", {"password": "x"}),
    Call("POST", "/referral-code", {"expires_at": "2001-01-01T00:00:00Z", "code": "ABCD"}),
    Call("PUT", "/referral-code", {"expires_at": "2001-01-01T00:00:00Z", "code": "ABCD"}),
    Call(
        "PATCH", "/referral-code", {"expires_at": "2001-01-01T00:00:00Z"}, frozenset({"expires_at"})
    ),
]


@pytest.fixture(autouse=True)
def nothing_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No log line of the service afterwards has a traceback or is an error."""
    yield
    failures = [
        record
        for phase in ("setup", "call")
        for record in caplog.get_records(phase)
        if record.exc_info or (record.levelno >= logging.ERROR and record.name != "asyncio")
    ]
    assert failures == []


def assert_refused(answer: Answer, told: object) -> None:
    """The answer is one of the 4xx problems."""
    assert 400 <= answer.status < 500, (told, answer.status, answer.body)
    assert answer.headers["Content-Type"] == CONTENT_TYPE, told
    assert PROBLEM_TYPES[answer.json()["code"]].status == answer.status, told
    assert answer.headers["X-Request-Id"] == answer.json()["request_id"], told


async def post_text(api: Api, call: Call, text: str | bytes, by: Person) -> Answer:
    """Send the call with exactly this text for a body."""
    return await api.call(
        call.method,
        call.path,
        by=by,
        data=text.encode() if isinstance(text, str) else text,
        headers={"Content-Type": "application/json"},
    )


def with_literal(body: dict[str, Any], member: str, literal: str) -> str:
    """Return the body as JSON, with `literal` as it stands for the value of a member."""
    members = [f'"{name}": {json.dumps(value)}' for name, value in body.items() if name != member]
    return "{" + ", ".join([*members, f'"{member}": {literal}']) + "}"
