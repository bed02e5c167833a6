"""What a data provider knows about a user: for the user, and for admins."""

from aiohttp import web
from aiohttp_apispec import docs, response_schema
from marshmallow import Schema, fields

from service.api.http.app_keys import SERVICES
from service.api.http.authentication import current_user, needs
from service.api.http.fields import Moment
from service.api.http.requests import read_id
from service.api.http.responses import respond
from service.domain.errors import EnrichmentNotFound, NotAllowed
from service.domain.scopes import Scope


class EnrichmentSchema(Schema):
    person = fields.Dict(
        allow_none=True,
        metadata={
            "description": "As described by Clearbit; any member may be missing or null.",
            "example": {"name": {"fullName": "Anna Example"}, "location": "Vienna, AT"},
        },
    )
    company = fields.Dict(
        allow_none=True,
        metadata={
            "description": "As described by Clearbit; any member may be missing or null.",
            "example": {"name": "Example GmbH", "domain": "example.com"},
        },
    )
    fetched_at = Moment()
    source = fields.String(metadata={"example": "hunter"})


@docs(
    tags=["Accounts"],
    summary="Show what is known about me",
    description="From a data provider, queried in the background after registration. It is stored "
    "separately from the account and erased with it.",
    refuses=(EnrichmentNotFound,),
)
@response_schema(EnrichmentSchema, 200, description="The person, the company, and the source.")
@needs(Scope.PROFILE)
async def show_my_enrichment(request: web.Request) -> web.Response:
    caller = current_user(request)
    return respond(request, await request.app[SERVICES].enrichments.find(caller.user_id))


@docs(
    tags=["Admin"],
    summary="Show what is known about a user",
    refuses=(NotAllowed, EnrichmentNotFound),
)
@response_schema(EnrichmentSchema, 200, description="The person, the company, and the source.")
@needs(Scope.ADMIN)
async def show_enrichment(request: web.Request) -> web.Response:
    user_id = read_id(request, "user_id", EnrichmentNotFound)
    return respond(request, await request.app[SERVICES].enrichments.find(user_id))
