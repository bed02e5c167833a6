"""The issuers that sign in to the caller's account, and unlinking one."""

from aiohttp import web
from aiohttp_apispec import docs, response_schema
from marshmallow import Schema, fields

from service.api.http.app_keys import SERVICES
from service.api.http.authentication import current_user, needs
from service.api.http.fields import Moment
from service.api.http.requests import read_id
from service.api.http.responses import PageSchema, no_content, respond
from service.domain.errors import IdentityNotFound, LastWayIn
from service.domain.pages import Page
from service.domain.scopes import Scope


class IdentitySchema(Schema):
    id = fields.UUID(attribute="identity_id")
    provider = fields.String(
        allow_none=True,
        metadata={
            "description": "The provider's name; null for an issuer that is no longer configured "
            "and cannot be used to sign in.",
            "example": "google",
        },
    )
    issuer = fields.String(metadata={"example": "https://accounts.google.com"})
    email = fields.Email(
        allow_none=True,
        metadata={
            "description": "The email address that the identity came with; null if unknown.",
            "example": "anna@example.com",
        },
    )
    created_at = Moment()


class IdentitiesSchema(PageSchema):
    items = fields.List(fields.Nested(IdentitySchema))


@docs(
    tags=["Accounts"],
    summary="List my identities",
    description="The issuers that sign in to the account, newest first. An identity belongs to the "
    "email address it came with, and is removed when the account gets another one.",
)
@response_schema(IdentitiesSchema, 200, description="All linked identities, on one page.")
@needs(Scope.PROFILE, first_party=True)
async def list_identities(request: web.Request) -> web.Response:
    caller = current_user(request)
    found = await request.app[SERVICES].identities.list_of(caller.user_id)
    return respond(request, Page(found, None))


@docs(
    tags=["Accounts"],
    summary="Unlink one of my identities",
    description="Ends the other sessions. Refused if it would leave no way to sign in: neither a "
    "password nor an identity from another configured issuer.",
    responses={204: {"description": "The identity no longer signs in to the account."}},
    refuses=(IdentityNotFound, LastWayIn),
)
@needs(Scope.PROFILE, first_party=True)
async def unlink_identity(request: web.Request) -> web.Response:
    caller = current_user(request)
    identity_id = read_id(request, "identity_id", IdentityNotFound)
    await request.app[SERVICES].identities.unlink(caller, identity_id)
    return no_content()
