"""Undoing a change of the account, with the token in the mail about it."""

from aiohttp import web
from aiohttp_apispec import docs, request_schema

from service.api.docs.openapi import refuses
from service.api.http.app_keys import SERVICES
from service.api.http.requests import read_body
from service.api.http.responses import no_content
from service.api.mail_tokens import EXAMPLE_TOKEN, TOKEN_SCHEMA, Confirmation, TokenSchema
from service.domain.errors import TokenUnusable


@docs(
    tags=["Email"],
    summary="Undo a change of my account",
    description="With the token in the mail about the change. That goes to the old email address "
    "when an account gets another one, and to the account's own when an identity is linked to it. "
    "The token is good once, for 72 hours from when the mail is sent.\n\n"
    "- *Email address:* the account has the old one again, confirmed if it was before. Whatever "
    "was changed later is over, and its tokens are of no use. A password chosen after the change "
    "ends; one from before stays, and a token for a new one is mailed to the address. An account "
    "that was registered with the address meanwhile is erased, unless it has confirmed it: then "
    "the token is unusable.\n"
    "- *Identity:* it no longer signs in to the account, and is not linked to it again.\n\n"
    "All sessions end, and so do all other mailed tokens and unredeemed authorization codes. A "
    "disabled account stays disabled.",
    responses={204: {"description": "The change is undone, and all sessions have ended."}},
)
@request_schema(TokenSchema, example={"token": EXAMPLE_TOKEN})
@refuses(TokenUnusable)
async def undo_change(request: web.Request) -> web.Response:
    body = await read_body(request, TOKEN_SCHEMA, into=Confirmation)
    await request.app[SERVICES].account_changes.undo(body.token)
    return no_content()
