"""Signing in with another issuer: the list of them, the way there, and the way back."""

from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, response_schema
from marshmallow import Schema, fields, validate

from service.api.docs.describe import in_path
from service.api.http.app_keys import SERVICES, SETTINGS
from service.api.http.cookies import read_cookie, set_cookie
from service.api.http.fields import QuerySchema, Text, TypedCode
from service.api.http.front import API
from service.api.http.rate_limits import LOGIN, count_request
from service.api.http.requests import header_text, read_query
from service.api.http.responses import PageSchema, respond
from service.api.oauth.authorize import go_on_signed_in, read_continued, show_again
from service.api.sessions import TokensSchema
from service.domain.errors import (
    AccountDisabled,
    EmailWithheld,
    IdentityNotLinked,
    InvalidInput,
    ProviderNotFound,
    ProviderUnavailable,
    ReferralCodeUnusable,
    ServiceError,
    SignInRefused,
    SignInUnusable,
    TooMany,
)
from service.domain.identities import SIGN_IN_LIVES, AuthorizationAnswer
from service.domain.oauth import OAuthError
from service.domain.pages import Page
from service.use_cases.oauth import RequestRefused

_COOKIE: Final = "sign-in"
_PROVIDER: Final = in_path("provider", "The provider's name.", "google")


class ProviderSchema(Schema):
    name = fields.String(metadata={"example": "google"})
    title = fields.String(
        metadata={"description": "The provider's name, for a button.", "example": "Google"}
    )
    start_url = fields.Url(
        metadata={
            "description": "Where to send the browser.",
            "example": "https://referrals.example.com/api/v1/auth/providers/google/start",
        }
    )


class ProvidersSchema(PageSchema):
    items = fields.List(fields.Nested(ProviderSchema))


class StartQuery(QuerySchema):
    referral_code = TypedCode(
        load_default=None,
        metadata={"description": "The code of the person who referred the user, if any."},
    )
    continue_with = Text(
        load_default=None,
        data_key="continue",
        metadata={
            "description": "The query of a request to `/oauth/authorize` to continue with "
            "afterwards, instead of a response with tokens."
        },
    )


class CallbackQuery(QuerySchema):
    state = Text(required=True)
    code = Text(load_default=None, validate=validate.Length(max=2048))
    error = Text(load_default=None)
    iss = Text(load_default=None, metadata={"description": "RFC 9207."})


@docs(
    tags=["Sessions"],
    summary="List the issuers to sign in with",
    description="Those that the operators have configured, such as Google or GitHub.",
)
@response_schema(ProvidersSchema, 200, description="All configured providers, on one page.")
async def list_providers(request: web.Request) -> web.Response:
    base = f"{request.app[SETTINGS].public_url}{API}/auth/providers"
    shown = [
        {"name": name, "title": provider.title, "start_url": f"{base}/{name}/start"}
        for name, provider in request.app[SERVICES].identities.providers.items()
    ]
    return respond(request, Page(shown, None))


@docs(
    tags=["Sessions"],
    summary="Sign in with another issuer",
    description="To be opened in a browser: a script cannot follow it. A referral code counts if "
    "the sign-in creates an account.",
    parameters=[_PROVIDER],
    responses={
        303: {"description": "A redirect to the issuer, with a cookie that identifies the browser."}
    },
    refuses=(ProviderNotFound, ReferralCodeUnusable, TooMany, ProviderUnavailable),
)
@querystring_schema(StartQuery)
async def start_sign_in(request: web.Request) -> web.Response:
    await count_request(request, LOGIN)
    query = read_query(request)
    continued = query["continue_with"]
    if continued is not None:
        continued = await _check_continued(request, continued)
    started = await request.app[SERVICES].identities.start(
        request.match_info["provider"],
        query["referral_code"],
        read_cookie(request, _COOKIE) or "",
        authorization_request=continued,
    )
    response = web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": started.url})
    set_cookie(request, response, _COOKIE, started.browser, SIGN_IN_LIVES)
    return response


@docs(
    tags=["Sessions"],
    summary="Come back from another issuer",
    description="Where the issuer sends the browser. The user gets a session of the account that "
    "the identity belongs to, otherwise of the account with the same email address if the issuer "
    "has verified it, otherwise of a new account without a password. When an identity is first "
    "linked to an account, the account's other sessions end, and its owner gets an email with a "
    "token for `/auth/undo`. If the account has never confirmed the address, the person who "
    "registered it loses it: its password, sessions, code and referral end.",
    parameters=[_PROVIDER],
    refuses=(
        ProviderNotFound,
        SignInUnusable,
        SignInRefused,
        EmailWithheld,
        AccountDisabled,
        IdentityNotLinked,
        ReferralCodeUnusable,
        ProviderUnavailable,
    ),
)
@querystring_schema(CallbackQuery)
@response_schema(TokensSchema, 200, description="The tokens of a new session.")
async def finish_sign_in(request: web.Request) -> web.Response:
    query = read_query(request)
    identities = request.app[SERVICES].identities
    begun = (request.match_info["provider"], query["state"], read_cookie(request, _COOKIE) or "")
    continued = await identities.request_of(*begun)
    try:
        tokens = await identities.finish(
            *begun,
            AuthorizationAnswer(code=query["code"], error=query["error"], issuer=query["iss"]),
            header_text(request, "User-Agent"),
        )
    except ServiceError as error:
        if continued is None:
            raise
        return await show_again(request, continued, error)
    # The cookie stays: another tab may still need it on its way back.
    if continued is None:
        return respond(request, tokens)
    return await go_on_signed_in(request, continued, tokens)


async def _check_continued(request: web.Request, query: str) -> str:
    """Return the query, reduced to the parameters of an authorization request.

    Raises InvalidInput if it cannot be granted, before the user takes the way to the issuer.
    """
    try:
        _, parameters = await read_continued(request, query)
    except (OAuthError, RequestRefused) as error:
        raise InvalidInput(
            "This is not the query of a request to /oauth/authorize that can be granted.",
            field="continue",
        ) from error
    return urlencode(parameters)
