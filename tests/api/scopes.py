"""The scope that each call of the API needs, as its handler says."""

from typing import Final

from aiohttp import web

from service.api.http.authentication import own_scope_of, scope_of
from service.api.routes import ROUTES
from service.domain.scopes import Scope


def routes_of_api() -> list[web.AbstractRoute]:
    """Return the routes under /api, without those of HEAD."""
    app = web.Application()
    app.add_routes(ROUTES)
    return [
        route
        for route in app.router.routes()
        if route.resource
        and route.resource.canonical.startswith("/api/")
        and route.method != "HEAD"
    ]


def call_of(route: web.AbstractRoute) -> tuple[str, str]:
    """Return the route's method and path."""
    assert route.resource is not None
    return route.method, route.resource.canonical


SCOPE_OF: Final[dict[tuple[str, str], Scope]] = {
    call_of(route): scope for route in routes_of_api() if (scope := scope_of(route.handler))
}
OWN_SCOPE_OF: Final[dict[tuple[str, str], Scope]] = {
    call_of(route): scope for route in routes_of_api() if (scope := own_scope_of(route.handler))
}
"""The scope that is enough for what concerns the user alone."""
