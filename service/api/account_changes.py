"""Undoing a change of the account, with the token from the email about it."""

from aiohttp import web
from aiohttp_apispec import docs, request_schema

from service.api.http.app_keys import SERVICES
from service.api.http.requests import read_body
from service.api.http.responses import no_content
from service.api.mail_tokens import EXAMPLE_TOKEN, TokenSchema
from service.domain.errors import TokenUnusable


@docs(
    tags=["Email"],
    summary="Undo a change of my account",
    description="With the token from the email about the change. That goes to the old address "
    "when an account gets a new one, and to the account's own when an identity is linked. The "
    "token works once, within 72 hours of the email.\n\n"
    "- *Email address:* the account has the old one again, confirmed if it was before. Later "
    "changes are reverted and their tokens stop working. A password chosen after the change stops "
    "working; an older one stays, and a token to replace it is sent to the address. An account "
    "registered with the address in the meantime is erased, unless it has confirmed it: then the "
    "token is unusable.\n"
    "- *Identity:* it no longer signs in to the account, and is not linked to it again.\n\n"
    "All sessions end, and all other emailed tokens and unredeemed authorization codes stop "
    "working. A disabled account stays disabled.",
    responses={204: {"description": "The change is undone and all sessions have ended."}},
    refuses=(TokenUnusable,),
)
@request_schema(TokenSchema, example={"token": EXAMPLE_TOKEN})
async def undo_change(request: web.Request) -> web.Response:
    body = await read_body(request)
    await request.app[SERVICES].account_changes.undo(body["token"])
    return no_content()
