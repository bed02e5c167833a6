"""Signing in with another issuer: which there are, to it, and back."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, response_schema
from marshmallow import EXCLUDE, Schema, fields, validate

from service.api.docs.openapi import refuses
from service.api.http.app_keys import SERVICES, SETTINGS
from service.api.http.cookies import read_cookie
from service.api.http.front import API
from service.api.http.rate_limits import LOGIN, count_request
from service.api.http.requests import (
    Text,
    TypedCode,
    cookie_path,
    header_text,
    is_https,
    read_query,
)
from service.api.http.responses import PageSchema, respond
from service.api.oauth.endpoints import go_on_signed_in, read_continued, show_again
from service.api.sessions import TOKENS_SCHEMA, TokensSchema
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

_PATH: Final = f"{API}/auth/providers/{{provider}}"


class ProviderSchema(Schema):
    name = fields.String(metadata={"example": "google"})
    title = fields.String(metadata={"description": "For the button.", "example": "Google"})
    start_url = fields.Url(
        metadata={
            "description": "Send the browser here.",
            "example": "https://referrals.example.com/api/v1/auth/providers/google/start",
        }
    )


class ProvidersSchema(PageSchema):
    items = fields.List(fields.Nested(ProviderSchema))


class StartQuery(Schema):
    class Meta:
        unknown = EXCLUDE

    referral_code = TypedCode(
        load_default=None,
        metadata={"description": "The code of the person who referred the user, if any."},
    )
    continue_with = Text(
        load_default=None,
        data_key="continue",
        metadata={
            "description": "The query of a request to `/oauth/authorize`, to go on with "
            "afterwards in place of an answer with tokens."
        },
    )


class CallbackQuery(Schema):
    class Meta:
        unknown = EXCLUDE

    state = Text(required=True)
    code = Text(load_default=None, validate=validate.Length(max=2048))
    error = Text(load_default=None)
    iss = Text(load_default=None, metadata={"description": "RFC 9207."})


@dataclass(frozen=True, slots=True)
class ShownProvider:
    """A provider as people choose it."""

    name: str
    title: str
    start_url: str


PROVIDERS_SCHEMA = ProvidersSchema()
START_QUERY = StartQuery()
CALLBACK_QUERY = CallbackQuery()


@docs(
    tags=["Sessions"],
    summary="List the issuers to sign in with",
    description="Those that the operators have set up, such as Google or GitHub.",
)
@response_schema(ProvidersSchema, 200, description="All of them, on one page.")
async def list_providers(request: web.Request) -> web.Response:
    public_url = request.app[SETTINGS].public_url
    shown = [
        ShownProvider(name, provider.title, f"{public_url}{_PATH.format(provider=name)}/start")
        for name, provider in request.app[SERVICES].identities.providers.items()
    ]
    return respond(PROVIDERS_SCHEMA, Page(shown, None))


@docs(
    tags=["Sessions"],
    summary="Sign in with another issuer",
    description="To be opened in a browser: a script cannot follow it. A referral code counts if "
    "the sign-in makes an account.",
    responses={303: {"description": "To the issuer, with a cookie that knows the browser again."}},
)
@querystring_schema(StartQuery)
@refuses(ProviderNotFound, ReferralCodeUnusable, TooMany, ProviderUnavailable)
async def start_sign_in(request: web.Request) -> web.Response:
    await count_request(request, LOGIN)
    query = read_query(request, START_QUERY)
    continued = query["continue_with"]
    if continued is not None:
        continued = await _check_continued(request, continued)
    started = await request.app[SERVICES].identities.start(
        request.match_info["provider"],
        query["referral_code"],
        read_cookie(request, _cookie(request)) or "",
        authorization_request=continued,
    )
    response = web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": started.url})
    response.set_cookie(
        _cookie(request),
        started.browser,
        max_age=int(SIGN_IN_LIVES.total_seconds()),
        path=cookie_path(request),
        httponly=True,
        samesite="Lax",  # it has to come along from the issuer's site
        secure=is_https(request),
    )
    return response


@docs(
    tags=["Sessions"],
    summary="Come back from another issuer",
    description="Where the issuer sends the browser. The person it signs in gets a session: "
    "of the account that the identity belongs to, otherwise of the account with the same email "
    "address if the issuer has verified it, otherwise of a new account without a password. Linked "
    "to an account for the first time, it ends the account's other sessions, and the owner gets a "
    "mail with a token for `/auth/undo`. An account that has never confirmed the address is taken "
    "from the person who made it: its password, sessions, code and referral end.",
)
@querystring_schema(CallbackQuery)
@response_schema(TokensSchema, 200, description="The tokens of a new session.")
@refuses(
    ProviderNotFound,
    SignInUnusable,
    SignInRefused,
    EmailWithheld,
    AccountDisabled,
    IdentityNotLinked,
    ReferralCodeUnusable,
    ProviderUnavailable,
)
async def finish_sign_in(request: web.Request) -> web.Response:
    query = read_query(request, CALLBACK_QUERY)
    identities = request.app[SERVICES].identities
    begun = (
        request.match_info["provider"],
        query["state"],
        read_cookie(request, _cookie(request)) or "",
    )
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
    # The cookie stays: another tab may be on its way back with it.
    if continued is None:
        return respond(TOKENS_SCHEMA, tokens)
    return await go_on_signed_in(request, continued, tokens)


async def _check_continued(request: web.Request, query: str) -> str:
    """Return the query without what is no part of an authorization request.

    Raises InvalidInput where nobody could grant it: better now than when the user has been to the
    issuer.
    """
    try:
        _, parameters = await read_continued(request, query)
    except (OAuthError, RequestRefused) as error:
        raise InvalidInput(
            "This is not the query of a request to /oauth/authorize that could be granted.",
            pointer="#/continue",
        ) from error
    return urlencode(parameters)


def _cookie(request: web.Request) -> str:
    """The prefix makes browsers refuse a cookie that another host or path has set (RFC 6265bis)."""
    return "__Host-sign-in" if is_https(request) else "sign-in"
