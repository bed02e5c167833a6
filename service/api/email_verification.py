"""Whether an email address can receive mail."""

from dataclasses import asdict

from aiohttp import web
from aiohttp_apispec import docs, response_schema
from marshmallow import fields

from service.api.admin import EmailVerificationSchema
from service.api.docs.describe import in_path
from service.api.http.app_keys import SERVICES
from service.api.http.authentication import current_user, needs
from service.api.http.rate_limits import VERIFICATION, count_request
from service.api.http.responses import respond
from service.api.users import EXAMPLE_EMAIL
from service.domain.errors import TooMany
from service.domain.scopes import Scope


class CheckedEmailSchema(EmailVerificationSchema):
    email = fields.String(metadata={"example": EXAMPLE_EMAIL})


@docs(
    tags=["Email"],
    summary="Verify an email address",
    description="Syntax and a list of disposable domains decide at once, otherwise Hunter does. "
    "If it does not answer in time, the verdict is `unknown`. Verdicts are cached for a day.",
    parameters=[in_path("email", "The email address.", EXAMPLE_EMAIL)],
    refuses=(TooMany,),
)
@response_schema(
    CheckedEmailSchema, 200, description="The verdict, its source, and when it was given."
)
@needs(Scope.PROFILE)
async def verify_email(request: web.Request) -> web.Response:
    caller = current_user(request)
    await count_request(request, VERIFICATION, account=str(caller.user_id))
    email = request.match_info["email"].strip()
    verification = await request.app[SERVICES].email_verification.check(email)
    return respond(request, {"email": email, **asdict(verification)})
