"""What clients call: getting, revoking and introspecting tokens. Errors are RFC 6749's."""

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web
from aiohttp_apispec import docs, form_schema, response_schema
from marshmallow import Schema, fields

from service.api.http.app_keys import SERVICES, SETTINGS
from service.api.http.authentication import read_basic
from service.api.http.fields import Text
from service.api.http.requests import header_text
from service.api.http.responses import JSON, to_json
from service.api.oauth.forms import OAuthRequestSchema, read_form
from service.domain.oauth import Client, OAuthError
from service.domain.scopes import to_text
from service.domain.sessions import Session, Tokens

_NO_STORE: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}
# RFC 7636, appendix B.
_EXAMPLE_VERIFIER: Final = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"


class ClientFormSchema(OAuthRequestSchema):
    """How a client authenticates in the body (RFC 6749, 2.3.1)."""

    client_id = Text()
    client_secret = Text(
        metadata={"description": "Required unless the client is public or uses Basic."}
    )


class TokenFormSchema(ClientFormSchema):
    grant_type = Text(
        required=True,
        metadata={"enum": ["authorization_code", "refresh_token", "client_credentials"]},
    )
    code = Text()
    redirect_uri = Text()
    code_verifier = Text()
    refresh_token = Text()
    scope = Text()


class TokenOnlyFormSchema(ClientFormSchema):
    token = Text(required=True, metadata={"description": "An access or a refresh token."})
    token_type_hint = Text()


class OAuthTokensSchema(Schema):
    access_token = fields.String()
    token_type = fields.Constant("Bearer")
    expires_in = fields.Integer()
    scope = fields.String()
    refresh_token = fields.String(
        metadata={"description": "Not for a client acting on its own behalf."}
    )
    optional = frozenset({"refresh_token"})


class IntrospectionSchema(Schema):
    active = fields.Boolean(metadata={"description": "If false, there are no other members."})
    token_type = fields.String(metadata={"enum": ["Bearer", "refresh_token"]})
    scope = fields.String(metadata={"example": "profile codes:read"})
    client_id = fields.String()
    sub = fields.String()
    aud = fields.String()
    iss = fields.String()
    iat = fields.Integer(metadata={"example": 1795253400})
    exp = fields.Integer(metadata={"example": 1795254000})
    jti = fields.String()
    optional = frozenset(
        {"token_type", "scope", "client_id", "sub", "aud", "iss", "iat", "exp", "jti"}
    )


@docs(
    tags=["OAuth 2.0"],
    summary="Get tokens",
    description="Grants `authorization_code`, `refresh_token` and `client_credentials` "
    "(RFC 6749). Clients authenticate with `client_secret_basic`, `client_secret_post`, or "
    "`none` if they are public.",
    responses={401: {"description": "`invalid_client`."}},
)
@form_schema(
    TokenFormSchema,
    example={
        "grant_type": "authorization_code",
        "client_id": "swagger-ui",
        "redirect_uri": "http://localhost:8080/docs/oauth2-redirect.html",
        "code": "SplxlOBeZQQYbYS6WxSbIA",
        "code_verifier": _EXAMPLE_VERIFIER,
    },
)
@response_schema(OAuthTokensSchema, 200, description="The tokens.")
async def issue_token(request: web.Request) -> web.Response:
    form = await read_form(request)
    oauth = request.app[SERVICES].oauth
    client = await _authenticate(request, form)
    match form.get("grant_type"):
        case "authorization_code":
            tokens = await oauth.redeem(client, form, header_text(request, "User-Agent"))
        case "refresh_token":
            tokens = await oauth.refresh(client, form)
        case "client_credentials":
            tokens = await oauth.sign_client_in(client, form)
        case None:
            raise OAuthError("invalid_request", "grant_type is missing.")
        case _:
            raise OAuthError("unsupported_grant_type", "This grant_type is not supported.")
    return web.Response(body=to_json(_written(tokens)), content_type=JSON, headers=_NO_STORE)


@docs(
    tags=["OAuth 2.0"],
    summary="Revoke a token",
    description="Ends the token's session, and with it all its refresh and access tokens "
    "(RFC 7009).",
    responses={
        200: {"description": "The token no longer works, or never did."},
        401: {"description": "`invalid_client`."},
    },
)
@form_schema(TokenOnlyFormSchema, example={"token": "AZ8r…", "client_id": "swagger-ui"})
async def revoke_token(request: web.Request) -> web.Response:
    form = await read_form(request)
    client = await _authenticate(request, form)
    await request.app[SERVICES].oauth.revoke(client, _token_in(form))
    return web.Response(headers=_NO_STORE)


@docs(
    tags=["OAuth 2.0"],
    summary="Introspect a token",
    description="For confidential clients (RFC 7662). A client can introspect its own tokens, a "
    "resource server, which operators mark as one, all tokens.",
    responses={401: {"description": "`invalid_client`."}},
)
@form_schema(TokenOnlyFormSchema, example={"token": "AZ8r…", "client_id": "swagger-ui"})
@response_schema(
    IntrospectionSchema, 200, description="Whether the token is active, and what it allows."
)
async def introspect_token(request: web.Request) -> web.Response:
    form = await read_form(request)
    client = await _authenticate(request, form)
    if not client.is_confidential:
        raise OAuthError("invalid_client", "Only a client with a secret may introspect tokens.")
    found = await request.app[SERVICES].oauth.introspect(client, _token_in(form))
    document: dict[str, Any] = {"active": found is not None}
    issuer = request.app[SETTINGS].public_url
    if found is not None:
        document |= {
            "client_id": found.client_id,
            "iss": issuer,
            "exp": int(found.expires_at.timestamp()),
        }
    if isinstance(found, Session):
        document |= {
            "token_type": "refresh_token",
            "sub": str(found.user_id),
            "iat": int(found.refreshed_at.timestamp()),
        }
    elif found is not None:
        document |= {
            "token_type": "Bearer",
            "scope": to_text(found.scopes),
            "sub": found.subject,
            "aud": issuer,
            "iat": int(found.issued_at.timestamp()),
            "jti": found.token_id,
        }
    return web.Response(body=to_json(document), content_type=JSON, headers=_NO_STORE)


def _token_in(form: Mapping[str, str]) -> str:
    if "token" not in form:
        raise OAuthError("invalid_request", "token is missing.")
    return form["token"]


async def _authenticate(request: web.Request, form: Mapping[str, str]) -> Client:
    """Return the client, which authenticates by exactly one method (RFC 6749, 2.3)."""
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    client_id, secret = form.get("client_id", ""), form.get("client_secret")
    if scheme.lower() == "basic":
        if secret is not None:
            raise OAuthError("invalid_request", "The client authenticates in two ways.")
        try:
            basic_id, secret = read_basic(encoded)
        except ValueError as error:
            raise OAuthError("invalid_client", "The Basic credentials are malformed.") from error
        if client_id not in {"", basic_id}:
            raise OAuthError(
                "invalid_request", "The client_id is not that of the Basic credentials."
            )
        client_id = basic_id
    return await request.app[SERVICES].oauth.authenticate(client_id, secret)


def _written(tokens: Tokens) -> dict[str, Any]:
    document: dict[str, Any] = {
        "access_token": tokens.access_token,
        "token_type": "Bearer",
        "expires_in": tokens.expires_in,
        "scope": to_text(tokens.scopes),
    }
    if tokens.refresh_token is not None:
        document["refresh_token"] = tokens.refresh_token
    return document
