"""Which `Accept` headers leave JSON, of either type."""

import pytest

from service.api.http.accept import _accepts_json

PROBLEM = "application/problem+json"


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "application/json",
        "APPLICATION/JSON",
        "application/*",
        "text/html, application/json;q=0.1",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "application/json; charset=utf-8",
        "application/json;q=1.000",
        "application/json;q=0.001",
        " application/json ",
        "application/json;q=0.5, text/html;q=0",
        "text/html;q=0, */*;q=0.1",
        PROBLEM,
        "APPLICATION/Problem+JSON ; charset=utf-8",
        "application/*+json",
        "application/json;q=0, application/json",
        f"{PROBLEM}, */*;q=0",
        f"{PROBLEM}, application/*;q=0",
        f"{PROBLEM};q=0, */*",
        'text/html;title="a, b;q=0", */*',
        'application/json;title=";q=0;"',
        "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",
        pytest.param("application/json;q=", id="a weight that is none"),
        pytest.param("application/json;q=nonsense", id="nor is this"),
        pytest.param("", id="as if it were not there"),
        pytest.param(" ", id="nor here"),
        pytest.param(",", id="nor with a comma"),
        pytest.param(";;q=0", id="no range"),
        pytest.param("json", id="no range either"),
    ],
)
def test_json_is_accepted(accept: str) -> None:
    assert _accepts_json((accept,))


@pytest.mark.parametrize(
    "accept",
    [
        "text/html",
        "application/xml",
        "application/jsonp",
        "application/json;q=0",
        "application/json; q=0.000",
        "application/json;Q=0",
        "*/*;q=0",
        "text/html, application/*;q=0",
        "text/*",
        "application/ld+json",
        "application/json ; q = 0",
        f"{PROBLEM};q=0",
        'text/html;title="application/json, application/json"',
        pytest.param(f"application/json;q=0, {PROBLEM}", id="JSON is excluded by its name"),
        pytest.param("application/json;q=0, */*", id="the nearer range decides: json, not all"),
        pytest.param("application/*;q=0, */*;q=0.5", id="the nearer range decides: application"),
    ],
)
def test_json_is_excluded(accept: str) -> None:
    assert not _accepts_json((accept,))
