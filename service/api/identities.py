"""Which issuers sign in to the caller's account, and cutting one off."""

from aiohttp import web
from aiohttp_apispec import docs, response_schema
from marshmallow import Schema, fields

from service.api.docs.openapi import refuses
from service.api.http.app_keys import SERVICES
from service.api.http.authentication import current_first_party_user
from service.api.http.requests import Moment, read_id
from service.api.http.responses import PageSchema, no_content, respond
from service.domain.errors import IdentityNotFound, LastWayIn
from service.domain.pages import Page


class IdentitySchema(Schema):
    id = fields.UUID(attribute="identity_id")
    provider = fields.String(
        allow_none=True,
        metadata={
            "description": "The provider's name; null for an issuer that is not set up any more, "
            "which signs nobody in.",
            "example": "google",
        },
    )
    issuer = fields.String(metadata={"example": "https://accounts.google.com"})
    email = fields.Email(
        allow_none=True,
        metadata={
            "description": "The email address that the identity came with; null if not known.",
            "example": "anna@example.com",
        },
    )
    created_at = Moment()


class IdentitiesSchema(PageSchema):
    items = fields.List(fields.Nested(IdentitySchema))


IDENTITIES_SCHEMA = IdentitiesSchema()


@docs(
    tags=["Accounts"],
    summary="List my identities",
    description="The issuers that sign in to the account, newest first. An identity goes with the "
    "email address it came with: it is removed when the account gets another address.",
)
@response_schema(IdentitiesSchema, 200, description="All of them, on one page.")
async def list_identities(request: web.Request) -> web.Response:
    caller = await current_first_party_user(request)
    found = await request.app[SERVICES].identities.list_of(caller.user_id)
    return respond(IDENTITIES_SCHEMA, Page(found, None))


@docs(
    tags=["Accounts"],
    summary="Unlink one of my identities",
    description="Ends the other sessions. Refused where there would be no way left to sign in: "
    "neither a password nor an identity of another issuer that is set up.",
    responses={204: {"description": "The identity no longer signs in to the account."}},
)
@refuses(IdentityNotFound, LastWayIn)
async def unlink_identity(request: web.Request) -> web.Response:
    caller = await current_first_party_user(request)
    identity_id = read_id(request, "identity_id")
    if identity_id is None:
        raise IdentityNotFound
    await request.app[SERVICES].identities.unlink(caller, identity_id)
    return no_content()
