"""The pages that show the OpenAPI document: Swagger UI at /docs, ReDoc at /redoc; / leads there.

They load files from assets/, most of them vendored (assets/VERSIONS.md says from where). Their
content security policy lets them run only those, and talk only to this service.
"""

import asyncio
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Final

from aiohttp import web

from service.api.http.app_keys import SETTINGS
from service.api.http.requests import public_path
from service.api.http.static_files import StaticFile
from service.domain.errors import NotFound

_ASSETS: Final = Path(__file__).parent / "assets"
_CONTENT_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
}
_SERVED: Final = {path.name for path in _ASSETS.iterdir() if path.suffix in _CONTENT_TYPES}

_SWAGGER_UI_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
# ReDoc creates style elements: empty ones, which it fills by script, and one for its scroll bars.
# These are their hashes. Its search runs in a worker created from its own source.
_REDOC_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' "
    "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=' "
    "'sha256-QMIg+bpjm3JdElJ388KYke01izlUW0UoNOeKjpMxdgc='; img-src 'self' data:; "
    "connect-src 'self'; worker-src blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_POLICY_OF_PAGE: Final = {
    "docs.html": _SWAGGER_UI_POLICY,
    "oauth2-redirect.html": _SWAGGER_UI_POLICY,
    "redoc.html": _REDOC_POLICY,
}

# For clients that show the answer instead of following the redirect.
_START: Final = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Referrals API</title></head>
<body>
<ul>
  <li><a href="/docs">Try the API</a></li>
  <li><a href="/redoc">Read about the API</a></li>
  <li><a href="/openapi.json">OpenAPI document</a></li>
  <li><a href="/health/ready">Health</a></li>
</ul>
</body>
</html>
"""


@cache
def _read(name: str, base_path: str) -> StaticFile:
    path = _ASSETS / name
    policy = _POLICY_OF_PAGE.get(name)
    headers = {"Content-Security-Policy": policy} if policy else {}
    body = path.read_bytes()
    if path.suffix == ".html":
        body = body.replace(b'="/', f'="{base_path}/'.encode())
    return StaticFile.of(body, _CONTENT_TYPES[path.suffix], headers)


async def _respond(request: web.Request, name: str) -> web.Response:
    # In a thread, because the first request for a bundle spends 0.1 s on compressing it.
    file = await asyncio.to_thread(_read, name, request.app[SETTINGS].base_path)
    return file.respond(request)


async def lead_to_docs(request: web.Request) -> web.Response:
    """GET /."""
    headers = {"Location": public_path(request, "/docs"), "Content-Type": _CONTENT_TYPES[".html"]}
    page = _START.replace('="/', f'="{public_path(request, "/")}')
    return web.Response(status=HTTPStatus.FOUND, headers=headers, body=page.encode())


async def show_swagger_ui(request: web.Request) -> web.Response:
    """GET /docs."""
    return await _respond(request, "docs.html")


async def show_redoc(request: web.Request) -> web.Response:
    """GET /redoc."""
    return await _respond(request, "redoc.html")


async def show_asset(request: web.Request) -> web.Response:
    """GET /docs/assets/{name}, and the page to which an authorization server redirects browsers."""
    name = request.match_info["name"]
    if name not in _SERVED:
        raise NotFound
    return await _respond(request, name)


DOCS_ROUTES: Final = [
    web.get("/", lead_to_docs),
    web.get("/docs", show_swagger_ui),
    web.get("/redoc", show_redoc),
    web.get("/docs/assets/{name}", show_asset),
    # The page loads the script of the same name from its own folder.
    web.get(r"/docs/{name:oauth2-redirect\.(html|js)}", show_asset),
]
