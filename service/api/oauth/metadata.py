"""What clients and resource servers read about the authorization server."""

from typing import Any

from aiohttp import web
from aiohttp_apispec import docs

from service.api.docs.describe import json_of
from service.api.http.app_keys import SETTINGS
from service.api.http.responses import JSON, to_json
from service.domain.scopes import Scope
from service.security.signing_keys import JWKS_MAX_AGE


@docs(
    tags=["OAuth 2.0"],
    summary="Authorization server metadata",
    responses={200: json_of("RFC 8414.")},
)
async def show_metadata(request: web.Request) -> web.Response:
    issuer = request.app[SETTINGS].public_url
    methods = ["none", "client_secret_basic", "client_secret_post"]
    document = {
        "issuer": issuer,
        "authorization_endpoint": f"{issuer}/oauth/authorize",
        "token_endpoint": f"{issuer}/oauth/token",
        "revocation_endpoint": f"{issuer}/oauth/revoke",
        "introspection_endpoint": f"{issuer}/oauth/introspect",
        "jwks_uri": f"{issuer}/.well-known/jwks.json",
        "scopes_supported": list(Scope),
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["authorization_code", "refresh_token", "client_credentials"],
        "token_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_methods_supported": methods,
        "introspection_endpoint_auth_methods_supported": methods[1:],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": True,
        "service_documentation": f"{issuer}/docs",
    }
    return _cached(document)


async def show_metadata_of_host(request: web.Request) -> web.Response:
    """GET where RFC 8414 puts it: at the root of the host, followed by the issuer's path."""
    response: web.Response = await show_metadata(request)
    return response


@docs(
    tags=["OAuth 2.0"],
    summary="Keys that verify access tokens",
    responses={200: json_of("A JWK set (RFC 7517).")},
)
async def show_jwks(request: web.Request) -> web.Response:
    return _cached(request.app[SETTINGS].signing_keys.to_public_jwks())


def _cached(document: dict[str, Any]) -> web.Response:
    seconds = int(JWKS_MAX_AGE.total_seconds())
    headers = {"Cache-Control": f"public, max-age={seconds}"}
    return web.Response(body=to_json(document), content_type=JSON, headers=headers)
