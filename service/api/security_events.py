"""What happened to the caller's account: sign-ins, failed ones, sessions ended, changes."""

from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, response_schema
from marshmallow import Schema, fields

from service.api.http.app_keys import SERVICES
from service.api.http.authentication import current_user, needs
from service.api.http.fields import Moment, PageQuery
from service.api.http.requests import read_page
from service.api.http.responses import PageSchema, respond
from service.domain.scopes import Scope


class ActivitySchema(Schema):
    event = fields.String(metadata={"example": "sign_in.succeeded"})
    at = Moment(attribute="occurred_at")
    address = fields.String(
        allow_none=True,
        metadata={
            "description": "The client's network: its /24 or /64.",
            "example": "203.0.113.0/24",
        },
    )
    user_agent = fields.String(allow_none=True)


class ActivitiesSchema(PageSchema):
    items = fields.List(fields.Nested(ActivitySchema))


@docs(
    tags=["Accounts"],
    summary="List my account's activity",
    description="Successful and failed sign-ins, ended sessions, linked identities, changes of "
    "password and email address: the last 90 days, newest first.",
)
@querystring_schema(PageQuery)
@response_schema(ActivitiesSchema, 200, description="A page of events.")
@needs(Scope.PROFILE)
async def list_activity(request: web.Request) -> web.Response:
    caller = current_user(request)
    page = await request.app[SERVICES].security_events.page(caller.user_id, *read_page(request))
    return respond(request, page)
