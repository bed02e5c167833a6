"""The errors are as their drawing says, and each of them can be told to a client."""

import json
from collections import Counter
from collections.abc import Iterator

import pytest

from service.api.http import problem_types
from service.api.http.problem_types import PROBLEM_TYPES, REMEDIES, STATUS_OF_KIND, status_of
from service.api.http.problems import problem
from service.domain import errors
from service.domain.errors import (
    DatabaseUnavailable,
    HashingQueueFull,
    Overloaded,
    ProviderUnavailable,
    ServiceError,
    TooMany,
    Unavailable,
)

ERRORS = [
    error
    for module in (errors, problem_types)
    for error in vars(module).values()
    if isinstance(error, type)
    and issubclass(error, ServiceError)
    and error is not ServiceError
    and error.__module__ == module.__name__
]
KINDS = ServiceError.__subclasses__()

# Clients compare with these: a code may be added, and never renamed or given another status.
# A new one belongs here too.
PROMISED = [
    ("account-disabled", 403),
    ("already-referred", 409),
    ("balance-too-low", 409),
    ("bad-request", 400),
    ("body-too-large", 413),
    ("conflict", 409),
    ("database-unavailable", 503),
    ("email-not-confirmed", 403),
    ("email-taken", 409),
    ("email-withheld", 403),
    ("enrichment-not-found", 404),
    ("hashing-queue-full", 503),
    ("headers-too-large", 431),
    ("id-reused", 409),
    ("idempotency-key-reused", 422),
    ("identity-not-found", 404),
    ("identity-not-linked", 409),
    ("insufficient-scope", 403),
    ("internal-error", 500),
    ("invalid-credentials", 401),
    ("invalid-token", 401),
    ("last-admin", 409),
    ("last-way-in", 409),
    ("mail-unavailable", 503),
    ("method-not-allowed", 405),
    ("migrations-pending", 503),
    ("not-acceptable", 406),
    ("not-allowed", 403),
    ("not-authenticated", 401),
    ("not-found", 404),
    ("overloaded", 503),
    ("participant-not-found", 404),
    ("programme-key-taken", 409),
    ("programme-not-found", 404),
    ("provider-not-found", 404),
    ("provider-unavailable", 503),
    ("referral-code-exists", 409),
    ("referral-code-not-found", 404),
    ("referral-code-taken", 409),
    ("referral-code-unusable", 422),
    ("referral-not-found", 404),
    ("request-timeout", 408),
    ("rotation-under-way", 409),
    ("rules-changed", 409),
    ("self-referral", 422),
    ("session-not-found", 404),
    ("sign-in-refused", 403),
    ("sign-in-too-old", 401),
    ("sign-in-unusable", 422),
    ("token-unusable", 422),
    ("too-many-requests", 429),
    ("unavailable", 503),
    ("unsupported-media-type", 415),
    ("uri-too-long", 414),
    ("transfer-not-found", 404),
    ("user-not-found", 404),
    ("validation-failed", 422),
    ("webhook-endpoint-not-found", 404),
    ("webhook-url-refused", 422),
]


def drawing(error: type[ServiceError]) -> Iterator[str]:
    """Draw the error and its descendants: kinds as they are defined, leaves by name."""
    yield error.__name__
    children = [child for child in error.__subclasses__() if child.__module__ == errors.__name__]
    if error is not ServiceError:
        children.sort(key=lambda child: child.__name__)
    for child in children:
        last = child is children[-1]
        name, *below = drawing(child)
        yield ("└── " if last else "├── ") + name
        yield from (("    " if last else "│   ") + line for line in below)


def test_the_tree_is_as_it_is_drawn() -> None:
    assert errors.__doc__ is not None
    drawn = [line[4:] for line in errors.__doc__.splitlines() if line.startswith("    ")]
    assert drawn == list(drawing(ServiceError))


def test_there_are_kinds_and_leaves_and_nothing_deeper() -> None:
    assert set(STATUS_OF_KIND) == set(KINDS)
    leaves = [error for error in ERRORS if error not in KINDS]
    assert [leaf for leaf in leaves if not set(leaf.__bases__) <= set(KINDS)] == []


def test_each_kind_has_a_status_of_its_own() -> None:
    assert len(set(STATUS_OF_KIND.values())) == len(KINDS)


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_has_the_status_of_its_kind(error: type[ServiceError]) -> None:
    [kind] = [kind for kind in KINDS if issubclass(error, kind)]
    assert status_of(error) == STATUS_OF_KIND[kind]
    assert 400 <= status_of(error) <= 503


def test_an_error_of_no_kind_has_no_status() -> None:
    with pytest.raises(LookupError, match="ServiceError is of no kind"):
        status_of(ServiceError)


def test_a_code_means_one_thing() -> None:
    codes = [vars(error)["code"] for error in ERRORS if "code" in vars(error)]
    assert [code for code, count in Counter(codes).items() if count > 1] == []


def test_problems_have_the_same_title_where_they_have_the_same_code_and_nowhere_else() -> None:
    """What is wrong with one request, of several that a code stands for, is its detail."""
    titles = {(error.code, error.title) for error in ERRORS}
    assert [code for code, count in Counter(code for code, _ in titles).items() if count > 1] == []
    assert [
        title for title, count in Counter(title for _, title in titles).items() if count > 1
    ] == []


def test_details_differ_where_errors_differ() -> None:
    details = Counter(error().detail for error in ERRORS)
    assert [detail for detail, count in details.items() if count > 1] == []


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_can_be_raised_without_words(error: type[ServiceError]) -> None:
    raised = error()
    assert raised.detail == str(raised)
    assert raised.detail == error.title or "code" not in vars(error)
    assert raised.detail.endswith(".")
    assert raised.title.endswith(".")


@pytest.mark.parametrize("error", ERRORS)
def test_no_problem_says_its_title_again_as_its_detail(error: type[ServiceError]) -> None:
    body = problem(error(), "request-id").body
    assert isinstance(body, bytes)
    document = json.loads(body)
    assert document["detail"] != document["title"]


def test_words_field_and_waiting_time_can_be_given() -> None:
    raised = TooMany("Slowly.", field="email", wait=7)
    assert (raised.detail, raised.field, raised.wait) == ("Slowly.", "email", 7)


def test_every_kind_has_a_remedy_and_every_remedy_is_a_sentence() -> None:
    assert set(KINDS) <= set(REMEDIES)
    assert [remedy for remedy in REMEDIES.values() if not remedy.endswith(".")] == []


@pytest.mark.parametrize("error", [error for error in ERRORS if "code" in vars(error)])
def test_an_error_with_its_own_code_has_its_own_remedy(error: type[ServiceError]) -> None:
    """Except where there is nothing to do but wait."""
    waits = error in {DatabaseUnavailable, HashingQueueFull, Overloaded, ProviderUnavailable}
    assert (error in REMEDIES) is not waits, f"add what a client can do about {error.code}"


@pytest.mark.parametrize("error", [error for error in ERRORS if issubclass(error, Unavailable)])
def test_whoever_is_sent_away_is_told_when_to_come_back(error: type[ServiceError]) -> None:
    assert error().wait


@pytest.mark.parametrize("error", ERRORS)
def test_every_code_has_a_page_with_the_status(error: type[ServiceError]) -> None:
    assert PROBLEM_TYPES[error.code].status == status_of(error)


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_of_a_kinds_code_explains_the_kind(kind: type[ServiceError]) -> None:
    """And not a leaf that has no code of its own."""
    page = PROBLEM_TYPES[kind.code]
    assert (page.title, page.remedy) == (kind.title, REMEDIES[kind])


@pytest.mark.parametrize(("code", "status"), PROMISED)
def test_a_promised_code_keeps_its_status(code: str, status: int) -> None:
    assert PROBLEM_TYPES[code].status == status


def test_every_code_is_promised() -> None:
    assert set(PROBLEM_TYPES) == {code for code, _ in PROMISED}
