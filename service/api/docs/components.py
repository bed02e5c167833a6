"""The parts of the OpenAPI document that are the same for every route."""

from typing import Any, Final

from marshmallow import Schema, fields

from service.domain.scopes import Scope

VERSION: Final = "1.0.0"
DESCRIPTION: Final = """
Users register, create a referral code, and see who registered with it. A company with
accounts of its own reports sign-ups and the events that follow them: see *Programmes*.

**To try it in Swagger UI, which is at [/docs](/docs):**

1. *Register* an account.
2. *Sign in*, and copy the `access_token` from the response.
3. Paste it under **Authorize**, at the top of the page.
4. *Create my referral code*.
5. *Find a referrer's code by email address*: this needs no token.
6. Register a second account with the code as `referral_code`, and *List a referrer's referrals*
   for `me`.

Every error, except under `/oauth`, is a problem document (RFC 9457, `application/problem+json`)
whose `type` links to a page that explains it. Unknown members in a body are refused, even if the
call takes none; unknown query parameters are ignored. Times are in UTC (RFC 3339). Lists are paged:
send the `next_cursor` of one page as `cursor` to get the next.
""".strip()
# In the order of the sections on the pages.
TAGS: Final = {
    "Accounts": "Register, with or without a referral code, and manage your account.",
    "Referral codes": "One live code per user, which anyone can find by email address.",
    "Referrals": "The users who registered with a referrer's code.",
    "Sessions": "Sign in, stay signed in, sign out, change the password.",
    "Email": "Confirm, change or verify an email address; reset a password.",
    "Programmes": "For companies with accounts of their own. Five calls are enough: *Create a "
    "participant* with a code, *Report a sign-up* with that code, *Report an event* such as a "
    "purchase, *Report an event* again for its refund, and *Show a referral* to see the result. "
    "Clients authenticate each call with their id and secret (Basic) or with an access token of "
    "their own. Admins can make these calls too.",
    "Rewards": "What participants have earned, what is available, and what has been paid out. "
    "Transfers never change: a mistake is corrected by another transfer.",
    "Webhooks": "Notify a company of what has happened. Messages are signed according to Standard "
    "Webhooks 1.0 and delivered at least once, in no particular order. All attempts to deliver a "
    "message have the same `webhook-id`; a referral's `sequence` only increases, so ignore a "
    "message that is older than what you have. An attempt succeeds if a response with a status "
    "from 200 to 299 arrives within 15 s; otherwise up to ten attempts are made within 76 hours.",
    "OAuth 2.0": "Access for other applications with the user's consent. Errors follow RFC 6749.",
    "Admin": "For users with the role `admin`.",
    "Operating": "For operators and their tools.",
    "Reference": "What each problem means, and this document.",
}

CLIENT_SECRET: Final = "clientSecret"  # noqa: S105  # a name
SECURITY_SCHEMES: Final[dict[str, dict[str, Any]]] = {
    "bearerAuth": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The `access_token` from *Sign in*.",
    },
    CLIENT_SECRET: {
        "type": "http",
        "scheme": "basic",
        "description": "The id and secret of a client that acts on its own behalf.",
    },
    "oauth2": {
        "type": "oauth2",
        "description": "Authorization code with PKCE. On this page, `client_id` is `swagger-ui`.",
        "flows": {
            "authorizationCode": {
                "authorizationUrl": "/oauth/authorize",
                "tokenUrl": "/oauth/token",
                "refreshUrl": "/oauth/token",
                "scopes": {scope.value: scope.meaning for scope in Scope},
            }
        },
    },
}

HEADERS: Final = {
    "Location": "Where to go next, or the address of the new resource.",
    "X-Request-Id": "The id of the request: the client's, if it sent a valid one.",
    "Idempotency-Replayed": "`true` if this is the stored response to an earlier request with the "
    "same key.",
    "RateLimit": "What is left of each limit (draft-ietf-httpapi-ratelimit-headers).",
    "RateLimit-Policy": "The limits that the request counts towards.",
    "Retry-After": "The number of seconds to wait before retrying.",
    "WWW-Authenticate": "`Bearer`, with `error` if a token was sent (RFC 6750); "
    "`Basic` if a client has to authenticate.",
}


class InvalidMemberSchema(Schema):
    pointer = fields.String(
        metadata={
            "description": "The invalid member, as a JSON pointer (RFC 6901).",
            "example": "#/expires_at",
        }
    )
    detail = fields.String()


class ProblemSchema(Schema):
    """Why a request was refused (RFC 9457)."""

    type = fields.String(
        metadata={
            "format": "uri-reference",
            "description": "A page that explains the problem, relative to the server's URL.",
        }
    )
    title = fields.String(metadata={"description": "The same for every problem with this code."})
    status = fields.Integer(metadata={"description": "The status of the response."})
    # No enum: a client generated today must accept codes added tomorrow.
    code = fields.String(
        metadata={
            "description": "The kind of problem, for programs; more kinds may be added.",
            "example": "validation-failed",
        }
    )
    detail = fields.String(
        metadata={"description": "What is wrong with this request, or what to do about it."}
    )
    request_id = fields.String(metadata={"description": "The id of the request in the log."})
    errors = fields.List(
        fields.Nested(InvalidMemberSchema),
        metadata={
            "description": "The invalid members of the request, if any, and what is wrong with "
            "each."
        },
    )
    available = fields.Integer(
        metadata={
            "description": "Only for `balance-too-low`: the amount that could be redeemed at that "
            "moment."
        }
    )
    optional = frozenset({"errors", "available"})


class OAuthErrorSchema(Schema):
    """Why a request was refused (RFC 6749, 5.2)."""

    error = fields.String(metadata={"example": "invalid_grant"})
    error_description = fields.String()
