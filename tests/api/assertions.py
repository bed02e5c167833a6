"""What holds for whole kinds of answers."""

from collections.abc import Sequence

from tests.factories import Answer

PROBLEM_MEMBERS = {"type", "title", "status", "code", "detail", "request_id"}


def assert_problem(answer: Answer, status: int, code: str, pointers: Sequence[str] = ()) -> None:
    """The answer is this problem (RFC 9457), about the members at the pointers and no other."""
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == code
    assert problem["type"] == f"/problems/{code}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["X-Request-Id"]
    errors = problem.get("errors", [])
    assert set(problem) == PROBLEM_MEMBERS | ({"errors"} if errors else set())
    assert {error["pointer"] for error in errors} == set(pointers), errors
    for error in errors:
        assert set(error) == {"pointer", "detail"}
        assert error["detail"]
