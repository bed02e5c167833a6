"""The page for who has forgotten the password, where the operators have no front end of their own.

It does what the calls /auth/password/forgot and /auth/password/reset do, in a browser without
script.
"""

import secrets
from collections.abc import Mapping
from typing import Literal

from aiohttp import web
from aiohttp_apispec import docs, form_schema, querystring_schema
from marshmallow import EXCLUDE, Schema

from service.api.http.app_keys import SERVICES, SETTINGS
from service.api.http.cookies import is_from_elsewhere
from service.api.http.problems import status_of
from service.api.http.rate_limits import MAIL, count_request
from service.api.http.requests import RequestSchema, Text, public_path, read_query
from service.api.oauth.endpoints import (
    PASSWORD_PATH,
    csrf_of,
    keep_csrf,
    page_of,
    read_continued,
    read_form_of_page,
    sign_in_url,
)
from service.api.oauth.pages import PasswordPage, show_forgotten_password, show_refusal
from service.api.users import EXAMPLE_EMAIL
from service.domain.errors import InvalidInput, ServiceError, TooMany, Unavailable
from service.domain.oauth import OAuthError
from service.use_cases.oauth import RequestRefused


class ContinueQuery(Schema):
    class Meta:
        unknown = EXCLUDE

    continue_with = Text(
        load_default="",
        data_key="continue",
        metadata={"description": "The query of the request to `/oauth/authorize` to go back to."},
    )


class PasswordFormSchema(RequestSchema):
    step = Text(metadata={"enum": ["ask", "reset"]})
    email = Text(metadata={"description": "Where a token is mailed to."})
    token = Text(metadata={"description": "As it is in the mail."})
    new_password = Text()
    csrf = Text(required=True)


CONTINUE_QUERY = ContinueQuery()


@docs(
    tags=["OAuth 2.0"],
    summary="Ask for a new password, in a browser",
    responses={
        200: page_of("The page."),
        404: page_of("The service sends no mail."),
    },
)
@querystring_schema(ContinueQuery)
async def show_form(request: web.Request) -> web.Response:
    nonce = secrets.token_urlsafe(16)
    if request.app[SETTINGS].mail is None:
        return _no_mail(nonce)
    query = read_query(request, CONTINUE_QUERY)
    return await _show(request, "ask", {"continue": query["continue_with"]}, nonce)


@docs(
    tags=["OAuth 2.0"],
    summary="Have a token mailed, or set a new password with it",
    description="What the forms of the page send.",
    responses={
        200: page_of("The next step."),
        400: page_of("The form cannot be read."),
        403: page_of("The form is not of this service's page."),
        404: page_of("The service sends no mail."),
        422: page_of("The page again: the token or the password is of no use."),
        429: page_of("The page again: too many tries."),
        503: page_of("The page again: try later."),
    },
)
@form_schema(
    PasswordFormSchema,
    example={"step": "ask", "email": EXAMPLE_EMAIL, "csrf": "as the page has it"},
)
async def submit_form(request: web.Request) -> web.Response:
    nonce = secrets.token_urlsafe(16)
    if request.app[SETTINGS].mail is None:
        return _no_mail(nonce)
    if is_from_elsewhere(request):
        return show_refusal("The form was sent by another site.", nonce, 403)
    try:
        form = await read_form_of_page(request)
    except OAuthError as error:
        return show_refusal(error.description, nonce)
    if form is None:
        return show_refusal("The form was not filled in on this service's page.", nonce, 403)
    resetting = form.get("step") == "reset"
    try:
        if resetting:
            await request.app[SERVICES].passwords.reset(
                form.get("token", "").strip(), form.get("new_password", "")
            )
            return await _show(request, "done", form, nonce)
        email = form.get("email", "").strip()
        await count_request(request, MAIL)
        await request.app[SERVICES].mail_tokens.forgot_password(email)
    except (InvalidInput, TooMany, Unavailable) as error:
        return await _show(request, "reset" if resetting else "ask", form, nonce, error)
    return await _show(request, "reset", form, nonce)


async def _show(
    request: web.Request,
    step: Literal["ask", "reset", "done"],
    form: Mapping[str, str],
    nonce: str,
    fault: ServiceError | None = None,
) -> web.Response:
    csrf = csrf_of(request)
    continued = form.get("continue", "")
    response = show_forgotten_password(
        request.app[SETTINGS].service_name,
        PasswordPage(
            step=step,
            hidden={"step": step, "continue": continued, "csrf": csrf},
            action=public_path(request, PASSWORD_PATH),
            back_url=await _back_url(request, continued),
            fault=fault.detail if fault else "",
            email=form.get("email", ""),
            token=form.get("token", ""),
        ),
        nonce=nonce,
        status=status_of(type(fault)) if fault else 200,
    )
    if fault and fault.retry_after is not None:
        response.headers["Retry-After"] = str(fault.retry_after)
    keep_csrf(request, response, csrf)
    return response


async def _back_url(request: web.Request, continued: str) -> str | None:
    """Return where the sign-in goes on, if there is one that can."""
    try:
        _, parameters = await read_continued(request, continued)
    except (OAuthError, RequestRefused):
        return None
    return sign_in_url(request, parameters)


def _no_mail(nonce: str) -> web.Response:
    return show_refusal("This service sends no mail. Ask its operators.", nonce, 404)
