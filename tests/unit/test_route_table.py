"""The table finds what aiohttp's router finds, or leaves it to the router."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from service.api.http.route_table import RouteTable
from service.api.routes import ROUTES

METHODS = ("GET", "HEAD", "POST", "DELETE", "QUERY")
VALUES = (
    "x",
    "me",
    "anna@example.com",
    "a%40b.example",
    "%2F",
    "a%2Fb",
    "a%252Fb",
    "%25",
    "a{b}c@example.com",
    "%C3%A9",
    "é",
    "oauth2-redirect.html",
    "%00",
    " ",
    ";x",
    "",
    "x/",
    "x/y",
    "..",
)


async def answer(_: web.Request) -> web.Response:
    return web.Response()


@pytest.fixture(scope="module")
def router() -> web.UrlDispatcher:
    app = web.Application()
    app.add_routes(ROUTES)
    app.router.add_get("/more/{first}/{second}", answer)
    app.router.add_get("/{first}/fixed/{second:[^/]+}", answer)
    app.router.add_get("/more/{first}.json", answer)
    app.router.add_get("/more/{last}", answer)
    app.router.add_route("*", "/any/{last}", answer)
    app.router.add_get("/plain/here", answer)
    app.router.add_post("/plain/{elsewhere}", answer)
    return app.router


def paths(router: web.UrlDispatcher) -> Iterator[str]:
    for resource in router.resources():
        folder, brace, _ = resource.canonical.partition("{")
        yield from (resource.canonical + ending for ending in ("", "/", "?a=%2F", "%20", "#x"))
        yield "/" + resource.canonical
        yield resource.canonical.upper()
        if brace:
            yield from (folder + value for value in VALUES)
    yield from ("/more/x.json", "/more/x/y", "/plain/here", "/plain/x", "/any/x", "*", "//", "/%2F")


async def test_it_finds_the_same_route_with_the_same_values(router: web.UrlDispatcher) -> None:
    table, found = RouteTable(router), 0
    for path in paths(router):
        for method in METHODS:
            request: Any = SimpleNamespace(method=method, rel_url=URL(path, encoded=True))
            in_table, by_router = table.find(request), await router.resolve(request)
            if in_table is not None:
                found += 1
                assert in_table.route is by_router.route, (method, path)
                assert dict(in_table) == dict(by_router), (method, path)
    assert found > 100
