"""The one table of problems: the status of each kind of error, and the remedy for each error."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from service.domain import errors
from service.domain.errors import ServiceError


class BadRequest(ServiceError):
    code = "bad-request"
    title = "The request cannot be read."


class MethodNotAllowed(ServiceError):
    code = "method-not-allowed"
    title = "This address does not support the method."


class NotAcceptable(ServiceError):
    code = "not-acceptable"
    title = "The response would be JSON, which `Accept` excludes."


class RequestTimeout(ServiceError):
    code = "request-timeout"
    title = "The request did not arrive in time."


class BodyTooLarge(ServiceError):
    code = "body-too-large"
    title = "The body is larger than 16 KiB."


class UriTooLong(ServiceError):
    code = "uri-too-long"
    title = "The URL is longer than 8 kB."


class UnsupportedMediaType(ServiceError):
    code = "unsupported-media-type"
    title = "The body is not application/json in UTF-8."


class HeadersTooLarge(ServiceError):
    code = "headers-too-large"
    title = "A header is larger than 8 kB."


class InternalError(ServiceError):
    code = "internal-error"
    title = "The service failed. The failure has been logged."


STATUS_OF_KIND: Final[Mapping[type[ServiceError], HTTPStatus]] = {
    errors.InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NotAuthenticated: HTTPStatus.UNAUTHORIZED,
    errors.NotAllowed: HTTPStatus.FORBIDDEN,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.TooMany: HTTPStatus.TOO_MANY_REQUESTS,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    # Of HTTP itself, unknown to the domain.
    BadRequest: HTTPStatus.BAD_REQUEST,
    MethodNotAllowed: HTTPStatus.METHOD_NOT_ALLOWED,
    NotAcceptable: HTTPStatus.NOT_ACCEPTABLE,
    RequestTimeout: HTTPStatus.REQUEST_TIMEOUT,
    BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UriTooLong: HTTPStatus.REQUEST_URI_TOO_LONG,
    UnsupportedMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HeadersTooLarge: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    InternalError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
KIND_OF_STATUS: Final = {status: kind for kind, status in STATUS_OF_KIND.items()}

REMEDIES: Final[Mapping[type[ServiceError], str]] = {
    errors.InvalidInput: "Correct the members that `errors` points to, and send the request again.",
    errors.NotAuthenticated: "Sign in, and send the access token as `Authorization: Bearer "
    "<token>`. A client acting on its own behalf can send its id and secret instead (Basic).",
    errors.NotAllowed: "Use an account that owns the resource or has the role the call requires.",
    errors.NotFound: "Check the address against /docs.",
    errors.Conflict: "Fetch the current state and retry.",
    errors.TooMany: "Wait for the number of seconds in `Retry-After`.",
    errors.Unavailable: "Retry after the number of seconds in `Retry-After`.",
    errors.IdempotencyKeyReused: "Use a new key, such as a random UUID, for each new request.",
    errors.SelfReferral: "Send another participant's code.",
    errors.ReferralCodeUnusable: "Use another referral code, or none.",
    errors.SignInUnusable: "Start again at the provider's `start_url`, and stay in one browser.",
    errors.TokenUnusable: "Request a new email with `/auth/email/resend` or "
    "`/auth/password/forgot`. A token for `/auth/undo` is sent only once: without it, set a new "
    "password and change the account back.",
    errors.WebhookUrlRefused: "Send an https:// URL with a public host. If there are already 20 "
    "endpoints, delete one first.",
    errors.InvalidCredentials: "Check both, and look for an email that asks you to confirm the "
    "address.",
    errors.ClientSecretWrong: "Check the client's id and secret. An operator can replace the "
    "secret with `python -m service clients rotate-secret CLIENT_ID`.",
    errors.InvalidToken: "Refresh the access token, or sign in again.",
    errors.SignInTooOld: "Sign in again, and repeat the request with the new access token.",
    errors.AccountDisabled: "Contact the operators of the service.",
    errors.EmailNotConfirmed: "Follow the confirmation email, or request another with "
    "`/auth/email/resend`.",
    errors.EmailWithheld: "Allow the issuer to share your email address, or register with a "
    "password.",
    errors.InsufficientScope: "Ask the user for a token with the scope that `WWW-Authenticate` "
    "names. For a client acting on its own behalf, an operator can add it with "
    "`python -m service clients update`.",
    errors.SignInRefused: "Start again; if it happens again, report the `request_id` to the "
    "operators.",
    errors.EnrichmentNotFound: "Try again later: data providers are queried in the background.",
    errors.IdentityNotFound: "List your identities with `GET /api/v1/users/me/identities`.",
    errors.ParticipantNotFound: "Create the participant with `POST /api/v1/participants`.",
    errors.ProgrammeNotFound: "List the programmes with `GET /api/v1/programmes`.",
    errors.ReferralNotFound: "Report the sign-up with `POST /api/v1/referrals`.",
    errors.ProviderNotFound: "List the providers with `GET /api/v1/auth/providers`.",
    errors.ReferralCodeNotFound: "Ask the referrer for a new one, or create one with "
    "`POST /api/v1/referral-code`.",
    errors.SessionNotFound: "List your sessions with `GET /api/v1/auth/sessions`.",
    errors.UserNotFound: "Search for users with `GET /api/v1/admin/users?email=`.",
    errors.TransferNotFound: "List the transfers with `GET /api/v1/transfers`.",
    errors.BalanceTooLow: "Redeem at most `available`, or wait until more becomes available.",
    errors.AlreadyReferred: "Do nothing: the first sign-up counts.",
    errors.IdReused: "Use a new id, such as an order number, for each thing you report. To retry a "
    "call, send the same body.",
    errors.ProgrammeKeyTaken: "Choose another key.",
    errors.RotationUnderWay: "Wait until `previous_until` or, if a secret has leaked, send "
    "`overlap_hours` 0.",
    errors.RulesChanged: "Fetch the programme, apply your change to its current rules, and send "
    "them with its `version`.",
    errors.WebhookEndpointNotFound: "List the endpoints with `GET /api/v1/webhook-endpoints`.",
    errors.EmailTaken: "Sign in to it, or register with another email address.",
    errors.IdentityNotLinked: "Sign in as before, for example with the password. An identity is "
    "linked automatically only if the issuer has verified the email address and the owner has not "
    "undone the link before.",
    errors.LastAdmin: "Make another account an admin first: "
    "`python -m service admin promote EMAIL`.",
    errors.LastWayIn: "Set a password with `POST /api/v1/auth/password/forgot` first.",
    errors.LiveReferralCodeExists: "Delete the live code first, or replace it with "
    "`PUT /api/v1/referral-code`.",
    errors.ReferralCodeTaken: "Choose another code, or omit `code` to have one generated.",
    errors.MailUnavailable: "Contact the operators of the service, who have to configure a mail "
    "server.",
    errors.MigrationsPending: "Operators: run `python -m service migrate`. Everyone else: try "
    "again later.",
    BadRequest: "Fix what `detail` describes. A body is a JSON document in UTF-8.",
    MethodNotAllowed: "Use one of the methods that `Allow` lists.",
    NotAcceptable: "Send `Accept: application/json`, or no `Accept` header.",
    RequestTimeout: "Retry over a faster connection.",
    BodyTooLarge: "Send a smaller body.",
    UriTooLong: "Shorten the path or the query.",
    UnsupportedMediaType: "Send `Content-Type: application/json`.",
    HeadersTooLarge: "Send smaller headers; in a browser, delete the cookies of this site.",
    InternalError: "Report the `request_id` to the operators.",
}
"""What a client can do. A leaf that is not listed has its kind's remedy."""


@dataclass(frozen=True, slots=True)
class ProblemType:
    """What all problems with one code have in common."""

    status: HTTPStatus
    code: str
    title: str
    remedy: str


def status_of(error: type[ServiceError]) -> HTTPStatus:
    """Return the status of the error's kind."""
    for ancestor in error.__mro__:
        if ancestor in STATUS_OF_KIND:
            return STATUS_OF_KIND[ancestor]
    raise LookupError(f"{error.__name__} is of no kind listed in STATUS_OF_KIND")


def _problem_types(error: type[ServiceError]) -> Iterator[ProblemType]:
    """Yield the problem types below `error`: those of the leaves before their kind's."""
    for child in error.__subclasses__():
        yield from _problem_types(child)
        remedy = next(REMEDIES[each] for each in child.__mro__ if each in REMEDIES)
        yield ProblemType(status_of(child), child.code, child.title, remedy)


# Of the leaves that share their kind's code, the kind comes last and explains it.
PROBLEM_TYPES: Final[Mapping[str, ProblemType]] = {
    problem_type.code: problem_type for problem_type in _problem_types(ServiceError)
}
