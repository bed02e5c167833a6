"""The authorization server's endpoints. Their errors are RFC 6749's, not problem documents."""

import base64
import binascii
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_plus, urlencode

from aiohttp import web
from aiohttp_apispec import docs, form_schema, querystring_schema, response_schema
from marshmallow import EXCLUDE, Schema, fields

from service.api.http.app_keys import SERVICES, SETTINGS
from service.api.http.cookies import is_from_elsewhere, read_cookie
from service.api.http.front import API
from service.api.http.problems import status_of
from service.api.http.requests import (
    RequestSchema,
    Text,
    cookie_path,
    header_text,
    is_https,
    public_path,
    read_bytes,
)
from service.api.http.responses import to_json
from service.api.oauth.pages import SignInPage, show_refusal, show_sign_in
from service.api.password_attempts import password_attempt
from service.api.users import EXAMPLE_EMAIL, EXAMPLE_PASSWORD, account_of
from service.domain.errors import (
    AccountDisabled,
    InvalidCredentials,
    InvalidToken,
    ServiceError,
    TooMany,
    Unavailable,
    UserNotFound,
)
from service.domain.oauth import Client, OAuthError
from service.domain.scopes import Scope, to_text
from service.domain.sessions import Session, Tokens
from service.security.access_tokens import AccessToken
from service.security.signing_keys import JWKS_MAX_AGE
from service.use_cases.oauth import AuthorizationRequest, RequestRefused

_PATH: Final = "/oauth/authorize"
PASSWORD_PATH: Final = "/oauth/forgot-password"  # noqa: S105  # an address
_FORM: Final = "application/x-www-form-urlencoded"
_NO_STORE: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_REQUEST_PARAMETERS: Final = (
    "response_type",
    "client_id",
    "redirect_uri",
    "scope",
    "state",
    "code_challenge",
    "code_challenge_method",
)
LONGEST_LINK: Final = 8000
"""In characters: a little less than the longest address that is read."""


# The example of RFC 7636, appendix B.
EXAMPLE_VERIFIER: Final = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
EXAMPLE_CHALLENGE: Final = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


class OAuthRequestSchema(RequestSchema):
    """Parameters of which others are ignored (RFC 6749, 3.1 and 3.2)."""

    class Meta:
        unknown = EXCLUDE


class AuthorizationSchema(OAuthRequestSchema):
    response_type = Text(required=True, metadata={"enum": ["code"]})
    client_id = Text(required=True)
    redirect_uri = Text(required=True)
    scope = Text(metadata={"description": "Between spaces; all that the client may if left out."})
    state = Text()
    code_challenge = Text(required=True)
    code_challenge_method = Text(required=True, metadata={"enum": ["S256"]})


class ClientFormSchema(OAuthRequestSchema):
    """How a client authenticates in the body: RFC 6749, 2.3.1."""

    client_id = Text()
    client_secret = Text(metadata={"description": "Unless the client is public, or uses Basic."})


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


class DecisionFormSchema(AuthorizationSchema):
    decision = Text(metadata={"enum": ["allow", "deny"]})
    account = Text(metadata={"description": "Who is signed in already, as the page shows it."})
    email = Text()
    password = Text()
    csrf = Text(required=True)


class OAuthTokensSchema(Schema):
    access_token = fields.String()
    token_type = fields.Constant("Bearer")
    expires_in = fields.Integer()
    scope = fields.String()
    refresh_token = fields.String(
        metadata={"description": "Not for a client that speaks for itself."}
    )
    optional = frozenset({"refresh_token"})


class IntrospectionSchema(Schema):
    active = fields.Boolean(metadata={"description": "If false, nothing else is said."})
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


def page_of(description: str) -> dict[str, Any]:
    """Return how OpenAPI describes an answer for people."""
    return {"description": description, "content": {"text/html": {"schema": {"type": "string"}}}}


@docs(
    tags=["OAuth 2.0"],
    summary="Ask a user for access",
    description="Authorization code with PKCE (S256). Opened in a browser: shows a page on which "
    "the user signs in and allows, and sends the browser to `redirect_uri` with `code`, `state` "
    "and `iss`.",
    responses={
        200: page_of("The page."),
        303: {"description": "Back to the client, with an `error`."},
        400: page_of("The client or its `redirect_uri` is unknown."),
    },
)
@querystring_schema(AuthorizationSchema)
async def show_authorization(request: web.Request) -> web.Response:
    nonce = secrets.token_urlsafe(16)
    try:
        parameters = _unique(parse_qsl(request.rel_url.raw_query_string, keep_blank_values=True))
        authorization = await request.app[SERVICES].oauth.read_request(parameters)
    except OAuthError as error:
        return show_refusal(error.description, nonce)
    except RequestRefused as refused:
        return _send_back_error(request, refused.redirect_uri, refused.state, refused.error)
    # As OpenID Connect has it; the page itself says so for who wants to use another account.
    known = None if parameters.get("prompt") == "login" else await _find_known(request)
    return _sign_in_page(request, authorization, parameters, nonce, known=known)


@docs(
    tags=["OAuth 2.0"],
    summary="Grant or deny access",
    description="What the form of the page sends.",
    responses={
        303: {"description": "Back to the client, with a `code` or an `error`."},
        400: page_of("The client or its `redirect_uri` is unknown, or the form cannot be read."),
        401: page_of("The page again: the email address or the password is wrong."),
        403: page_of("The account is disabled, or the form is not of this service's page."),
        429: page_of("Too many tries."),
        503: page_of("The page again: try later."),
    },
)
@form_schema(
    DecisionFormSchema,
    example={
        "response_type": "code",
        "client_id": "swagger-ui",
        "redirect_uri": "http://localhost:8080/docs/oauth2-redirect.html",
        "code_challenge": EXAMPLE_CHALLENGE,
        "code_challenge_method": "S256",
        "decision": "allow",
        "email": EXAMPLE_EMAIL,
        "password": EXAMPLE_PASSWORD,
        "csrf": "as the page has it",
    },
)
async def decide_authorization(request: web.Request) -> web.Response:
    nonce = secrets.token_urlsafe(16)
    if is_from_elsewhere(request):
        return show_refusal("The form was sent by another site.", nonce, 403)
    try:
        form = await read_form_of_page(request)
        if form is None:
            return show_refusal("The form was not filled in on this service's page.", nonce, 403)
        authorization = await request.app[SERVICES].oauth.read_request(form)
    except OAuthError as error:
        return show_refusal(error.description, nonce)
    except RequestRefused as refused:
        return _send_back_error(request, refused.redirect_uri, refused.state, refused.error)
    if form.get("decision") != "allow":
        if known := await _find_known(request):
            await request.app[SERVICES].sessions.revoke(known.token.session_id, reason="denied")
        denied = OAuthError("access_denied", "The user denied the request.")
        response = _send_back_error(
            request, authorization.redirect_uri, authorization.state, denied
        )
        return _forget_known(request, response)
    try:
        code = await _grant(request, authorization, form)
    except OAuthError as error:
        return show_refusal(error.description, nonce)
    except (InvalidCredentials, InvalidToken, AccountDisabled, TooMany, Unavailable) as error:
        email = form.get("email", "")
        return _sign_in_page(request, authorization, form, nonce, fault=error, email=email)
    told = {"code": code}
    response = _send_back(request, authorization.redirect_uri, authorization.state, told)
    return _forget_known(request, response)


async def _grant(
    request: web.Request, authorization: AuthorizationRequest, form: Mapping[str, str]
) -> str:
    """Return an authorization code of whom the form, or the page's cookie, proves to be there."""
    oauth = request.app[SERVICES].oauth
    if "account" in form:
        known = await _find_known(request)
        if known is None or str(known.token.user_id) != form["account"]:
            raise InvalidToken("You are no longer signed in. Please sign in again.")
        return await oauth.grant_signed_in(authorization, known.token)
    email = form.get("email", "").strip()
    async with password_attempt(request, account_of(email), signs_in=True):
        return await oauth.grant(authorization, email, form.get("password", ""))


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
        "code_verifier": EXAMPLE_VERIFIER,
    },
)
@response_schema(OAuthTokensSchema, 200, description="The tokens.")
async def issue_token(request: web.Request) -> web.Response:
    form = await _read_form(request)
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
            raise OAuthError("invalid_request", "There is no grant_type.")
        case _:
            raise OAuthError("unsupported_grant_type", "There is no such grant.")
    return web.Response(
        body=to_json(_written(tokens)), content_type="application/json", headers=_NO_STORE
    )


@docs(
    tags=["OAuth 2.0"],
    summary="Revoke a token",
    description="Ends the token's session, so that its refresh and access tokens are of no more "
    "use (RFC 7009).",
    responses={
        200: {"description": "The token no longer works, or never did."},
        401: {"description": "`invalid_client`."},
    },
)
@form_schema(TokenOnlyFormSchema, example={"token": "AZ8r…", "client_id": "swagger-ui"})
async def revoke_token(request: web.Request) -> web.Response:
    form = await _read_form(request)
    client = await _authenticate(request, form)
    await request.app[SERVICES].oauth.revoke(client, _token_in(form))
    return web.Response(headers=_NO_STORE)


@docs(
    tags=["OAuth 2.0"],
    summary="Ask what a token is good for",
    description="For confidential clients (RFC 7662). A client learns of its own tokens; one that "
    "an operator has marked as a resource server, of all.",
    responses={401: {"description": "`invalid_client`."}},
)
@form_schema(TokenOnlyFormSchema, example={"token": "AZ8r…", "client_id": "swagger-ui"})
@response_schema(IntrospectionSchema, 200, description="`active`, and what the token allows.")
async def introspect_token(request: web.Request) -> web.Response:
    form = await _read_form(request)
    client = await _authenticate(request, form)
    if not client.is_confidential:
        raise OAuthError("invalid_client", "Only a client with a secret may ask.")
    found = await request.app[SERVICES].oauth.introspect(client, _token_in(form))
    document: dict[str, Any] = {"active": False}
    issuer = request.app[SETTINGS].public_url
    if isinstance(found, Session):
        document = {
            "active": True,
            "token_type": "refresh_token",
            "client_id": found.client_id,
            "sub": str(found.user_id),
            "iss": issuer,
            "iat": int(found.refreshed_at.timestamp()),
            "exp": int(found.expires_at.timestamp()),
        }
    elif found is not None:
        document = {
            "active": True,
            "token_type": "Bearer",
            "scope": to_text(found.scopes),
            "client_id": found.client_id,
            "sub": found.subject,
            "aud": issuer,
            "iss": issuer,
            "iat": int(found.issued_at.timestamp()),
            "exp": int(found.expires_at.timestamp()),
            "jti": found.token_id,
        }
    return web.Response(body=to_json(document), content_type="application/json", headers=_NO_STORE)


@docs(
    tags=["OAuth 2.0"],
    summary="What the authorization server can do",
    responses={
        200: {
            "description": "RFC 8414.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    },
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
    """GET where RFC 8414 looks for it: at the root of the host, the issuer's path at the end."""
    response: web.Response = await show_metadata(request)
    return response


@docs(
    tags=["OAuth 2.0"],
    summary="The keys that verify access tokens",
    responses={
        200: {
            "description": "A JWK set (RFC 7517).",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    },
)
async def show_jwks(request: web.Request) -> web.Response:
    return _cached(request.app[SETTINGS].signing_keys.to_public_jwks())


def _cached(document: dict[str, Any]) -> web.Response:
    seconds = int(JWKS_MAX_AGE.total_seconds())
    return web.Response(
        body=to_json(document),
        content_type="application/json",
        headers={"Cache-Control": f"public, max-age={seconds}"},
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """Who has just signed in with another issuer, and only has to allow."""

    token: AccessToken
    email: str


def _sign_in_page(
    request: web.Request,
    authorization: AuthorizationRequest,
    parameters: Mapping[str, str],
    nonce: str,
    *,
    fault: ServiceError | None = None,
    email: str = "",
    known: _Known | None = None,
) -> web.Response:
    """Return the page with its form, which sends the request's parameters along."""
    query = _query_of(parameters)
    csrf = csrf_of(request)
    hidden = {name: parameters[name] for name in _REQUEST_PARAMETERS if name in parameters}
    if known:
        hidden["account"] = str(known.token.user_id)
    response = show_sign_in(
        request.app[SETTINGS].service_name,
        authorization,
        SignInPage(
            hidden={**hidden, "csrf": csrf},
            fault=fault.detail if fault else "",
            email=email,
            account=known.email if known else None,
            other_account_url=f"{public_path(request, _PATH)}?{query}&prompt=login",
            forgotten_password_url=_forgotten_password_url(request, query),
            providers=[] if known else _providers(request, query),
        ),
        action=public_path(request, _PATH),
        nonce=nonce,
        status=status_of(type(fault)) if fault else 200,
    )
    if fault and fault.retry_after is not None:
        response.headers["Retry-After"] = str(fault.retry_after)
    keep_csrf(request, response, csrf)
    return response


def _query_of(parameters: Mapping[str, str]) -> str:
    """Return the query of the authorization request among the parameters."""
    return urlencode({name: parameters[name] for name in _REQUEST_PARAMETERS if name in parameters})


def sign_in_url(request: web.Request, parameters: Mapping[str, str]) -> str:
    """Return where the page for the authorization request is."""
    return f"{public_path(request, _PATH)}?{_query_of(parameters)}"


def _providers(request: web.Request, query: str) -> list[tuple[str, str]]:
    """Return the titles of the other issuers, and where to sign in with them and go on here."""
    path = public_path(request, f"{API}/auth/providers")
    links = [
        (provider.title, f"{path}/{name}/start?{urlencode({'continue': query})}")
        for name, provider in request.app[SERVICES].identities.providers.items()
    ]
    return [link for link in links if len(link[1]) <= LONGEST_LINK]


def _forgotten_password_url(request: web.Request, query: str) -> str | None:
    """Return the page for who has forgotten the password; None where no mail can be sent."""
    mail = request.app[SETTINGS].mail
    if mail is None:
        return None
    if mail.app_url:
        return f"{mail.app_url}/forgot-password"
    path = public_path(request, PASSWORD_PATH)
    link = f"{path}?{urlencode({'continue': query})}"
    return link if len(link) <= LONGEST_LINK else path


async def read_continued(
    request: web.Request, query: str
) -> tuple[AuthorizationRequest, dict[str, str]]:
    """Return the authorization request that something else has interrupted, and its parameters.

    Raises what `read_request` does: it may be anyone's.
    """
    parameters = _unique(parse_qsl(query, keep_blank_values=True))
    return await request.app[SERVICES].oauth.read_request(parameters), {
        name: parameters[name] for name in _REQUEST_PARAMETERS if name in parameters
    }


async def show_again(request: web.Request, query: str, fault: ServiceError) -> web.Response:
    """Return the sign-in page after a sign-in with another issuer has failed."""
    nonce = secrets.token_urlsafe(16)
    try:
        authorization, parameters = await read_continued(request, query)
    except OAuthError as error:
        return show_refusal(error.description, nonce)
    except RequestRefused as refused:
        return _send_back_error(request, refused.redirect_uri, refused.state, refused.error)
    return _sign_in_page(request, authorization, parameters, nonce, fault=fault)


async def go_on_signed_in(request: web.Request, query: str, tokens: Tokens) -> web.Response:
    """Send the browser back to the page, which then knows who has signed in with another issuer."""
    token, life = await request.app[SERVICES].sessions.lend_to_page(tokens)
    location = f"{public_path(request, _PATH)}?{query}"
    response = web.Response(status=303, headers={"Location": location, **_NO_STORE})
    response.set_cookie(
        _known_cookie(request),
        token,
        max_age=int(life.total_seconds()),
        path=cookie_path(request),
        httponly=True,
        samesite="Lax",  # it has to come along from the issuer's site
        secure=is_https(request),
    )
    return response


async def _find_known(request: web.Request) -> _Known | None:
    cookie = read_cookie(request, _known_cookie(request))
    token = cookie and await request.app[SERVICES].oauth.find_signed_in(cookie)
    if not token or token.user_id is None:
        return None
    try:
        user = await request.app[SERVICES].users.find(token.user_id)
    except UserNotFound:
        return None
    return None if user.email is None else _Known(token, user.email)


def _forget_known(request: web.Request, response: web.Response) -> web.Response:
    if _known_cookie(request) in request.cookies:
        response.del_cookie(
            _known_cookie(request),
            path=cookie_path(request),
            secure=is_https(request),
            httponly=True,
        )
    return response


def _send_back_error(
    request: web.Request, redirect_uri: str, state: str | None, error: OAuthError
) -> web.Response:
    told = {"error": error.code, "error_description": error.description}
    return _send_back(request, redirect_uri, state, told)


def _send_back(
    request: web.Request, redirect_uri: str, state: str | None, told: Mapping[str, str]
) -> web.Response:
    """Send the browser to the client; 303 so that it does not send the password along."""
    issuer = request.app[SETTINGS].public_url
    query = urlencode({**told, **({"state": state} if state is not None else {}), "iss": issuer})
    separator = "&" if "?" in redirect_uri else "?"
    location = f"{redirect_uri}{separator}{query}"
    return web.Response(status=303, headers={"Location": location, **_NO_STORE})


async def _read_form(request: web.Request) -> dict[str, str]:
    """Return a form's parameters; raise OAuthError unless each is there once (RFC 6749, 3.2)."""
    if request.content_type != _FORM:
        raise OAuthError("invalid_request", f"The body is not {_FORM}.")
    try:
        text = (await read_bytes(request)).decode()
        return _unique(
            parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), errors="strict")
        )
    except ValueError as error:
        raise OAuthError("invalid_request", "The body is not a form in UTF-8.") from error


def _unique(pairs: list[tuple[str, str]]) -> dict[str, str]:
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise OAuthError("invalid_request", "A parameter comes more than once.")
    # One without a value counts as left out (RFC 6749, 3.1); the state is the client's own matter.
    return {name: value for name, value in parameters.items() if value or name == "state"}


def _token_in(form: Mapping[str, str]) -> str:
    if "token" not in form:
        raise OAuthError("invalid_request", "There is no token.")
    return form["token"]


async def _authenticate(request: web.Request, form: Mapping[str, str]) -> Client:
    """Return the client that sends the request, by one method of its kind (RFC 6749, 2.3)."""
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    client_id, secret = form.get("client_id", ""), form.get("client_secret")
    if scheme.lower() == "basic":
        if secret is not None:
            raise OAuthError("invalid_request", "The client authenticates in two ways.")
        try:
            raw = base64.b64decode(encoded.encode("ascii"), validate=True).decode()
        except (binascii.Error, ValueError) as error:
            raise OAuthError("invalid_client", "The Basic credentials are malformed.") from error
        basic_id, _, basic_secret = raw.partition(":")
        if client_id not in {"", unquote_plus(basic_id)}:
            raise OAuthError("invalid_request", "The client names itself in two ways.")
        client_id, secret = unquote_plus(basic_id), unquote_plus(basic_secret)
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


async def read_form_of_page(request: web.Request) -> dict[str, str] | None:
    """Return the form that a page of this service has sent from this browser, None if none has.

    Raises OAuthError where it cannot be read.
    """
    form = await _read_form(request)
    cookie = read_cookie(request, _csrf_cookie(request)) or ""
    return form if cookie and _same(cookie, form.get("csrf", "")) else None


def csrf_of(request: web.Request) -> str:
    """Return the secret by which this browser's forms are known: its own, or a new one."""
    return read_cookie(request, _csrf_cookie(request)) or secrets.token_urlsafe(32)


def keep_csrf(request: web.Request, response: web.Response, csrf: str) -> None:
    """Have the browser keep the secret of its forms."""
    response.set_cookie(
        _csrf_cookie(request),
        csrf,
        path=cookie_path(request),
        httponly=True,
        samesite="Lax",
        secure=is_https(request),
    )


def _csrf_cookie(request: web.Request) -> str:
    """The prefix makes browsers refuse a cookie that another host or path has set (RFC 6265bis)."""
    return "__Host-csrf" if is_https(request) else "csrf"


def _known_cookie(request: web.Request) -> str:
    return "__Host-signed-in" if is_https(request) else "signed-in"


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), other.encode(errors="replace"))
