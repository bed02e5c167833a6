"""The parts of the OpenAPI document that are the same for every route."""

from typing import Any, Final

from marshmallow import Schema, fields

from service.domain.scopes import Scope

VERSION: Final = "1.0.0"
DESCRIPTION: Final = """
Users register, create a referral code, and see who registered with it. A company with accounts of
its own reports who signed up and what followed: see *Programmes*.

**To try it in Swagger UI, which is at [/docs](/docs):**

1. *Register* an account.
2. *Sign in*, and copy the `access_token` from the response.
3. Paste it under **Authorize**, at the top of the page.
4. *Create my referral code*.
5. *Find a referrer's code by email address*: this needs no token.
6. Register a second account with the code as `referral_code`, and *List a referrer's referrals*
   for `me`.

Every error, except under `/oauth`, is a problem document (RFC 9457, `application/problem+json`)
whose `type` links to a page that explains it. Unknown members in a body are refused, also where a
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
    "Programmes": "For a company with its own accounts, in five calls: *Create a participant* with "
    "a code, *Report a sign-up* with that code, *Report an event* such as a purchase, another one "
    "for its refund, and *Show a referral* to see what followed. Clients send their id and secret "
    "with each call (Basic), or an access token of their own. Admins can make these calls too.",
    "Rewards": "What rules gave, what is available, and what has been paid out. Nothing is ever "
    "changed: what was wrong is moved back by another transfer.",
    "Webhooks": "Where a company is told what has happened: signed as Standard Webhooks 1.0 says, "
    "sent at least once, in no particular order. `webhook-id` is the same for each repetition; a "
    "referral's `sequence` only grows, so drop what is not newer. Any status from 200 to 299 "
    "within 15 s is a success; otherwise there are ten attempts within 76 hours.",
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
        "description": "The id and the secret of a client that acts on its own behalf.",
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
    "Idempotency-Replayed": "`true` if this is the first response to the key, sent again.",
    "RateLimit": "What remains of the limits (draft-ietf-httpapi-ratelimit-headers).",
    "RateLimit-Policy": "The limits that count the request.",
    "Retry-After": "The seconds after which another try may succeed.",
    "WWW-Authenticate": "`Bearer`, with `error` if a token was sent (RFC 6750); "
    "`Basic` if a client has to authenticate.",
}


class InvalidMemberSchema(Schema):
    pointer = fields.String(
        metadata={
            "description": "The member at fault, as a JSON pointer (RFC 6901).",
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
        metadata={"description": "What is wrong with members of the request, if anything is."},
    )
    available = fields.Integer(
        metadata={"description": "Of `balance-too-low`: what could be redeemed at that moment."}
    )
    optional = frozenset({"errors", "available"})


class OAuthErrorSchema(Schema):
    """Why a request was refused (RFC 6749, 5.2)."""

    error = fields.String(metadata={"example": "invalid_grant"})
    error_description = fields.String()
