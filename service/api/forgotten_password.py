"""The page for a forgotten password, for operators who have no front end of their own.

It does what the calls /auth/password/forgot and /auth/password/reset do, in a browser without
script.
"""

from collections.abc import Mapping

from aiohttp import web
from aiohttp_apispec import docs, form_schema, querystring_schema

from service.api.docs.describe import page_of
from service.api.http.app_keys import SERVICES, SETTINGS
from service.api.http.fields import QuerySchema, RequestSchema, Text
from service.api.http.rate_limits import MAIL, count_request
from service.api.http.requests import public_path, read_query
from service.api.oauth.authorize import PASSWORD_PATH, read_continued, shows_refusals, sign_in_url
from service.api.oauth.forms import csrf_of, keep_csrf, read_form_of_page
from service.api.oauth.pages import show_page, show_refusal
from service.api.users import EXAMPLE_EMAIL
from service.domain.errors import InvalidInput, ServiceError, TooMany, Unavailable
from service.domain.oauth import OAuthError
from service.use_cases.oauth import RequestRefused


class ContinueQuery(QuerySchema):
    continue_with = Text(
        load_default="",
        data_key="continue",
        metadata={"description": "The query of the request to `/oauth/authorize` to return to."},
    )


class PasswordFormSchema(RequestSchema):
    step = Text(metadata={"enum": ["ask", "reset"]})
    email = Text(metadata={"description": "Where the token is sent."})
    token = Text(metadata={"description": "The token from the email."})
    new_password = Text()
    csrf = Text(required=True)


@docs(
    tags=["OAuth 2.0"],
    summary="Reset a forgotten password in a browser",
    responses={200: page_of("The page."), 404: page_of("The service does not send email.")},
)
@querystring_schema(ContinueQuery)
async def show_form(request: web.Request) -> web.Response:
    if request.app[SETTINGS].mail is None:
        return _no_mail()
    query = read_query(request)
    return await _show(request, "ask", {"continue": query["continue_with"]})


@docs(
    tags=["OAuth 2.0"],
    summary="Request a token by email, or set a new password with it",
    description="What the forms on the page send.",
    responses={
        200: page_of("The next step."),
        400: page_of("The form cannot be read."),
        403: page_of("The form did not come from this service's page."),
        404: page_of("The service does not send email."),
        422: page_of("The page again: the token or the password is not acceptable."),
        429: page_of("The page again: too many attempts."),
        503: page_of("The page again: try later."),
    },
)
@form_schema(
    PasswordFormSchema, example={"step": "ask", "email": EXAMPLE_EMAIL, "csrf": "from the page"}
)
@shows_refusals
async def submit_form(request: web.Request) -> web.Response:
    if request.app[SETTINGS].mail is None:
        return _no_mail()
    form = await read_form_of_page(request)
    resetting = form.get("step") == "reset"
    try:
        if resetting:
            await request.app[SERVICES].passwords.reset(
                form.get("token", "").strip(), form.get("new_password", "")
            )
            return await _show(request, "done", form)
        email = form.get("email", "").strip()
        await count_request(request, MAIL)
        await request.app[SERVICES].mail_tokens.forgot_password(email)
    except (InvalidInput, TooMany, Unavailable) as error:
        return await _show(request, "reset" if resetting else "ask", form, error)
    return await _show(request, "reset", form)


async def _show(
    request: web.Request, step: str, form: Mapping[str, str], fault: ServiceError | None = None
) -> web.Response:
    csrf = csrf_of(request)
    continued = form.get("continue", "")
    response = show_page(
        "forgotten_password.html",
        form_action="'self'",
        fault=fault,
        service_name=request.app[SETTINGS].service_name,
        step=step,
        hidden={"step": step, "continue": continued, "csrf": csrf},
        action=public_path(request, PASSWORD_PATH),
        back_url=await _back_url(request, continued),
        email=form.get("email", ""),
        token=form.get("token", ""),
    )
    keep_csrf(request, response, csrf)
    return response


async def _back_url(request: web.Request, continued: str) -> str | None:
    """Return the URL of the sign-in that was interrupted, None if it cannot continue."""
    try:
        _, parameters = await read_continued(request, continued)
    except (OAuthError, RequestRefused):
        return None
    return sign_in_url(request, parameters)


def _no_mail() -> web.Response:
    return show_refusal("This service does not send email. Contact its operators.", 404)
