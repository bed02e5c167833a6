"""The page on which a user signs in and grants access to a client (RFC 6749, 4.1.1)."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, Final, ParamSpec
from urllib.parse import SplitResult, urlencode, urlsplit

from aiohttp import web
from aiohttp_apispec import docs, form_schema, querystring_schema

from service.api.docs.describe import page_of
from service.api.http.app_keys import SERVICES, SETTINGS
from service.api.http.cookies import delete_cookie, read_cookie, set_cookie
from service.api.http.fields import Text
from service.api.http.front import API
from service.api.http.requests import public_path
from service.api.oauth.forms import (
    OAuthRequestSchema,
    csrf_of,
    keep_csrf,
    parse_query,
    read_form_of_page,
)
from service.api.oauth.pages import show_page, show_refusal
from service.api.password_attempts import password_attempt
from service.api.users import EXAMPLE_EMAIL, EXAMPLE_PASSWORD, account_of
from service.domain.errors import (
    AccountDisabled,
    InvalidCredentials,
    InvalidToken,
    NotAllowed,
    ServiceError,
    TooMany,
    Unavailable,
    UserNotFound,
)
from service.domain.oauth import OAuthError
from service.domain.scopes import Scope
from service.domain.sessions import Tokens
from service.security.access_tokens import AccessToken
from service.use_cases.oauth import AuthorizationRequest, RequestRefused

_PATH: Final = "/oauth/authorize"
PASSWORD_PATH: Final = "/oauth/forgot-password"  # noqa: S105  # an address
LONGEST_LINK: Final = 8000
"""In characters: a little less than the longest URL that the service reads."""
_SIGNED_IN: Final = "signed-in"
"""The cookie of a user who has just signed in with another issuer."""
_REQUEST_PARAMETERS: Final = (
    "response_type",
    "client_id",
    "redirect_uri",
    "scope",
    "state",
    "code_challenge",
    "code_challenge_method",
)
# RFC 7636, appendix B.
_EXAMPLE_CHALLENGE: Final = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
P = ParamSpec("P")
Answering = Callable[Concatenate[web.Request, P], Awaitable[web.Response]]


class AuthorizationSchema(OAuthRequestSchema):
    response_type = Text(required=True, metadata={"enum": ["code"]})
    client_id = Text(required=True)
    redirect_uri = Text(required=True)
    scope = Text(
        metadata={
            "description": "Separated by spaces; if omitted, all that the client may ask for."
        }
    )
    state = Text()
    code_challenge = Text(required=True)
    code_challenge_method = Text(required=True, metadata={"enum": ["S256"]})


class DecisionFormSchema(AuthorizationSchema):
    decision = Text(metadata={"enum": ["allow", "deny"]})
    account = Text(
        metadata={
            "description": "The user id that the page was shown for, if someone is signed in."
        }
    )
    email = Text()
    password = Text()
    csrf = Text(required=True)


def shows_refusals(handler: Answering[P]) -> Answering[P]:
    """Answer a refused request with a page, or at the client once its address can be trusted."""

    @wraps(handler)
    async def answer(request: web.Request, /, *args: P.args, **kwargs: P.kwargs) -> web.Response:
        try:
            return await handler(request, *args, **kwargs)
        except OAuthError as error:
            return show_refusal(error.description)
        except NotAllowed as error:
            return show_refusal(error.detail, 403)
        except RequestRefused as refused:
            return _send_back_error(request, refused.redirect_uri, refused.state, refused.error)

    return answer


@docs(
    tags=["OAuth 2.0"],
    summary="Ask a user for access",
    description="Authorization code with PKCE (S256). To be opened in a browser: shows a page on "
    "which the user signs in and allows access, and then redirects to `redirect_uri` with `code`, "
    "`state` and `iss`.",
    responses={
        200: page_of("The page."),
        303: {"description": "Back to the client, with an `error`."},
        400: page_of("The client or its `redirect_uri` is unknown."),
    },
)
@querystring_schema(AuthorizationSchema)
@shows_refusals
async def show_authorization(request: web.Request) -> web.Response:
    parameters = parse_query(request.rel_url.raw_query_string)
    authorization = await request.app[SERVICES].oauth.read_request(parameters)
    # As in OpenID Connect; the page's own link to use another account sends it.
    known = None if parameters.get("prompt") == "login" else await _find_known(request)
    return _sign_in_page(request, authorization, parameters, known=known)


@docs(
    tags=["OAuth 2.0"],
    summary="Grant or deny access",
    description="What the form on the page sends.",
    responses={
        303: {"description": "Back to the client, with a `code` or an `error`."},
        400: page_of("The client or its `redirect_uri` is unknown, or the form cannot be read."),
        401: page_of("The page again: the email address or the password is wrong."),
        403: page_of("The account is disabled, or the form did not come from this service's page."),
        429: page_of("Too many attempts."),
        503: page_of("The page again: try later."),
    },
)
@form_schema(
    DecisionFormSchema,
    example={
        "response_type": "code",
        "client_id": "swagger-ui",
        "redirect_uri": "http://localhost:8080/docs/oauth2-redirect.html",
        "code_challenge": _EXAMPLE_CHALLENGE,
        "code_challenge_method": "S256",
        "decision": "allow",
        "email": EXAMPLE_EMAIL,
        "password": EXAMPLE_PASSWORD,
        "csrf": "from the page",
    },
)
@shows_refusals
async def decide_authorization(request: web.Request) -> web.Response:
    form = await read_form_of_page(request)
    authorization = await request.app[SERVICES].oauth.read_request(form)
    redirect_uri, state = authorization.redirect_uri, authorization.state
    if form.get("decision") != "allow":
        if known := await _find_known(request):
            await request.app[SERVICES].sessions.revoke(known.token.session_id, reason="denied")
        denied = OAuthError("access_denied", "The user denied the request.")
        response = _send_back_error(request, redirect_uri, state, denied)
    else:
        try:
            code = await _grant(request, authorization, form)
        except (InvalidCredentials, InvalidToken, AccountDisabled, TooMany, Unavailable) as error:
            email = form.get("email", "")
            return _sign_in_page(request, authorization, form, fault=error, email=email)
        response = _send_back(request, redirect_uri, state, code=code)
    delete_cookie(request, response, _SIGNED_IN)
    return response


async def _grant(
    request: web.Request, authorization: AuthorizationRequest, form: Mapping[str, str]
) -> str:
    """Return an authorization code of the user that the form or the page's cookie authenticates."""
    oauth = request.app[SERVICES].oauth
    if "account" in form:
        known = await _find_known(request)
        if known is None or str(known.token.user_id) != form["account"]:
            raise InvalidToken("You are no longer signed in. Please sign in again.")
        return await oauth.grant_signed_in(authorization, known.token)
    email = form.get("email", "").strip()
    async with password_attempt(request, account_of(email), signs_in=True):
        return await oauth.grant(authorization, email, form.get("password", ""))


@dataclass(frozen=True, slots=True)
class _Known:
    """A user who has just signed in with another issuer, and only has to allow access."""

    token: AccessToken
    email: str


def _sign_in_page(
    request: web.Request,
    authorization: AuthorizationRequest,
    parameters: Mapping[str, str],
    *,
    fault: ServiceError | None = None,
    email: str = "",
    known: _Known | None = None,
) -> web.Response:
    """Return the page; its form sends the request's parameters along."""
    query = urlencode(_request_in(parameters))
    csrf = csrf_of(request)
    account = {"account": str(known.token.user_id)} if known else {}
    target = urlsplit(authorization.redirect_uri)
    response = show_page(
        "sign_in.html",
        # Browsers apply form-action to the redirect that follows the form as well.
        form_action=f"'self' {_source_of(target)}",
        fault=fault,
        service_name=request.app[SETTINGS].service_name,
        client_name=authorization.client.name,
        wishes=[scope.meaning for scope in Scope if scope in authorization.scopes],
        target=f"{target.scheme}://{target.netloc}",
        action=public_path(request, _PATH),
        hidden={**_request_in(parameters), **account, "csrf": csrf},
        email=email,
        account=known.email if known else None,
        other_account_url=f"{sign_in_url(request, parameters)}&prompt=login",
        forgotten_password_url=_forgotten_password_url(request, query),
        providers=[] if known else _providers(request, query),
    )
    keep_csrf(request, response, csrf)
    return response


def _source_of(target: SplitResult) -> str:
    # A policy cannot express an IPv6 address, or an app's own scheme with a host.
    expressible = target.netloc and "[" not in target.netloc
    return f"{target.scheme}://{target.netloc}" if expressible else f"{target.scheme}:"


def _request_in(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters that belong to the authorization request."""
    return {name: parameters[name] for name in _REQUEST_PARAMETERS if name in parameters}


def sign_in_url(request: web.Request, parameters: Mapping[str, str]) -> str:
    """Return the URL of the page for the authorization request."""
    return f"{public_path(request, _PATH)}?{urlencode(_request_in(parameters))}"


def _providers(request: web.Request, query: str) -> list[tuple[str, str]]:
    """Return the titles of the other issuers, and links that sign in there and continue here."""
    path = public_path(request, f"{API}/auth/providers")
    links = [
        (provider.title, f"{path}/{name}/start?{urlencode({'continue': query})}")
        for name, provider in request.app[SERVICES].identities.providers.items()
    ]
    return [link for link in links if len(link[1]) <= LONGEST_LINK]


def _forgotten_password_url(request: web.Request, query: str) -> str | None:
    """Return a link to the page for a forgotten password, None if no mail can be sent."""
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
    """Return an authorization request that was interrupted, and its parameters.

    Raises what `OAuth.read_request` does: the query may come from anyone.
    """
    parameters = parse_query(query)
    authorization = await request.app[SERVICES].oauth.read_request(parameters)
    return authorization, _request_in(parameters)


@shows_refusals
async def show_again(request: web.Request, query: str, fault: ServiceError) -> web.Response:
    """Return the sign-in page after a sign-in with another issuer has failed."""
    authorization, parameters = await read_continued(request, query)
    return _sign_in_page(request, authorization, parameters, fault=fault)


async def go_on_signed_in(request: web.Request, query: str, tokens: Tokens) -> web.Response:
    """Send the browser back to the page, with a cookie for the user who has just signed in."""
    token, life = await request.app[SERVICES].sessions.lend_to_page(tokens)
    response = _redirect(f"{public_path(request, _PATH)}?{query}")
    set_cookie(request, response, _SIGNED_IN, token, life)
    return response


async def _find_known(request: web.Request) -> _Known | None:
    cookie = read_cookie(request, _SIGNED_IN)
    token = cookie and await request.app[SERVICES].oauth.find_signed_in(cookie)
    if not token or token.user_id is None:
        return None
    try:
        user = await request.app[SERVICES].users.find(token.user_id)
    except UserNotFound:
        return None
    return None if user.email is None else _Known(token, user.email)


def _send_back_error(
    request: web.Request, redirect_uri: str, state: str | None, error: OAuthError
) -> web.Response:
    return _send_back(
        request, redirect_uri, state, error=error.code, error_description=error.description
    )


def _send_back(
    request: web.Request, redirect_uri: str, state: str | None, **result: str
) -> web.Response:
    """Redirect the browser to the client, with the result of its request."""
    if state is not None:
        result["state"] = state
    query = urlencode({**result, "iss": request.app[SETTINGS].public_url})
    return _redirect(f"{redirect_uri}{'&' if '?' in redirect_uri else '?'}{query}")


def _redirect(location: str) -> web.Response:
    # 303, so that the browser does not send the password along.
    headers = {"Location": location, "Cache-Control": "no-store", "Pragma": "no-cache"}
    return web.Response(status=303, headers=headers)
