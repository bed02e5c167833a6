"""Every reason for which the service refuses a request.

    ServiceError
    ├── InvalidInput
    │   ├── CursorMalformed
    │   ├── EmailMalformed
    │   ├── ExpiryOutOfRange
    │   ├── IdempotencyKeyReused
    │   ├── PasswordUnacceptable
    │   ├── ReferralCodeUnusable
    │   ├── SignInUnusable
    │   └── TokenUnusable
    ├── NotAuthenticated
    │   ├── InvalidCredentials
    │   ├── InvalidToken
    │   ├── SignInTooOld
    │   └── TokenMissing
    ├── NotAllowed
    │   ├── AccountDisabled
    │   ├── EmailNotConfirmed
    │   ├── EmailWithheld
    │   ├── InsufficientScope
    │   └── SignInRefused
    ├── NotFound
    │   ├── EnrichmentNotFound
    │   ├── IdentityNotFound
    │   ├── ProviderNotFound
    │   ├── ReferralCodeNotFound
    │   ├── SessionNotFound
    │   └── UserNotFound
    ├── Conflict
    │   ├── EmailTaken
    │   ├── IdentityNotLinked
    │   ├── LastAdmin
    │   ├── LastWayIn
    │   ├── LiveReferralCodeExists
    │   └── ReferralCodeTaken
    ├── TooMany
    └── Unavailable
        ├── DatabaseUnavailable
        ├── HashingQueueFull
        ├── MailUnavailable
        ├── MigrationsPending
        ├── Overloaded
        └── ProviderUnavailable

The middle row are the *kinds*: service/api/problems.py gives each kind one HTTP status.
The leaves name the rule that was broken, and are what the domain and the repositories raise.
"""

from typing import ClassVar


class ServiceError(Exception):
    """A request that the service cannot accept.

    `detail` says what is wrong with this request. `pointer` is the JSON pointer (RFC 6901)
    of the member at fault, `retry_after` the seconds after which another try may succeed.
    An error without a code of its own has its kind's code and title, and a detail of its own.
    """

    code: ClassVar[str]
    """Stable and machine-readable: part of the public API, as /problems/<code>."""
    title: ClassVar[str]
    """The same sentence for every problem of the code."""
    default_detail: ClassVar[str | None] = None
    """What is wrong, where the one who raises it says nothing; otherwise the title."""
    remedy: ClassVar[str]
    """What the caller can do about it, for the page that explains the code."""
    default_pointer: ClassVar[str | None] = None
    default_retry_after: ClassVar[int | None] = None

    def __init__(
        self,
        detail: str | None = None,
        *,
        pointer: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        self.detail = detail or self.default_detail or self.title
        self.pointer = pointer or self.default_pointer
        self.retry_after = retry_after or self.default_retry_after
        super().__init__(self.detail)


class InvalidInput(ServiceError):
    code = "validation-failed"
    title = "The request is invalid."
    remedy = "Correct the members that `errors` points at, and send the request again."


class NotAuthenticated(ServiceError):
    code = "not-authenticated"
    title = "The request carries no valid credentials."
    remedy = "Sign in, and send the access token as `Authorization: Bearer <token>`."


class NotAllowed(ServiceError):
    code = "not-allowed"
    title = "The caller may not do this."
    remedy = "Use an account that owns the resource or has the role that the call needs."


class NotFound(ServiceError):
    code = "not-found"
    title = "There is nothing at this address."
    remedy = "Check the address against /docs."


class Conflict(ServiceError):
    code = "conflict"
    title = "The present state forbids this."
    remedy = "Read the present state, and decide anew."


class TooMany(ServiceError):
    code = "too-many-requests"
    title = "Too many requests in a short time."
    remedy = "Wait for the seconds that `Retry-After` gives."
    default_retry_after = 1


class Unavailable(ServiceError):
    code = "unavailable"
    title = "The service cannot answer at the moment."
    remedy = "Send the request again after the seconds that `Retry-After` gives."
    default_retry_after = 1


class CursorMalformed(InvalidInput):
    default_detail = "The cursor was not made by this service."
    default_pointer = "#/cursor"


class EmailMalformed(InvalidInput):
    default_detail = "This is not an email address."
    default_pointer = "#/email"


class ExpiryOutOfRange(InvalidInput):
    default_detail = "The expiry must lie after now and within 366 days."
    default_pointer = "#/expires_at"


class PasswordUnacceptable(InvalidInput):
    default_detail = "The password is too easy to guess."
    default_pointer = "#/password"


class IdempotencyKeyReused(InvalidInput):
    code = "idempotency-key-reused"
    title = "This Idempotency-Key was used with another request."
    remedy = "Use a new key (a random UUID, say) for each request that is not a repetition."


class ReferralCodeUnusable(InvalidInput):
    code = "referral-code-unusable"
    title = "The referral code cannot be used."
    remedy = "Register with another referral code, or with none."
    default_pointer = "#/referral_code"


class SignInUnusable(InvalidInput):
    code = "sign-in-unusable"
    title = "The sign-in has expired, was ended before, or began in another browser."
    remedy = "Begin again at the `start_url` of the provider, and stay in one browser."
    default_pointer = "#/state"


class TokenUnusable(InvalidInput):
    code = "token-unusable"
    title = "The token has expired or was used before."
    remedy = (
        "Ask for a new mail with `/auth/email/resend` or `/auth/password/forgot`. A token for "
        "`/auth/undo` is mailed once: without it, set a new password and change the account back."
    )
    default_pointer = "#/token"


class InvalidCredentials(NotAuthenticated):
    code = "invalid-credentials"
    title = "The email address or the password is wrong, or the address is not confirmed yet."
    remedy = "Check both, and look for a mail that asks you to confirm."


class InvalidToken(NotAuthenticated):
    code = "invalid-token"
    title = "The token is expired, revoked or not one of this service."
    remedy = "Refresh the access token, or sign in again."


class SignInTooOld(NotAuthenticated):
    code = "sign-in-too-old"
    title = "The sign-in was too long ago for this."
    remedy = "Sign in again, and repeat the request with the new access token."


class TokenMissing(NotAuthenticated):
    default_detail = "The request carries no access token."


class AccountDisabled(NotAllowed):
    code = "account-disabled"
    title = "This account is disabled."
    remedy = "Ask the operators of the service."


class EmailNotConfirmed(NotAllowed):
    code = "email-not-confirmed"
    title = "The email address of this account is not confirmed yet."
    remedy = "Follow the mail that asks you to confirm, or get another with `/auth/email/resend`."


class EmailWithheld(NotAllowed):
    code = "email-withheld"
    title = "The issuer gives no email address that an account can have."
    remedy = "Let the issuer share your email address, or register with a password."


class InsufficientScope(NotAllowed):
    code = "insufficient-scope"
    title = "The access token does not allow this call."
    remedy = "Ask the user for a token with the scope that `WWW-Authenticate` names."

    def __init__(self, detail: str | None = None, *, scope: str = "") -> None:
        super().__init__(
            detail or (f"The access token lacks the scope {scope}." if scope else None)
        )
        self.scope = scope


class SignInRefused(NotAllowed):
    code = "sign-in-refused"
    title = "The issuer does not sign the user in, or its answer cannot be trusted."
    remedy = "Begin again; if it happens again, tell the operators the `request_id`."


class EnrichmentNotFound(NotFound):
    code = "enrichment-not-found"
    title = "Nothing is known about this person."
    remedy = "Ask again later: data providers are asked in the background."


class IdentityNotFound(NotFound):
    code = "identity-not-found"
    title = "The caller has no such identity."
    remedy = "List the identities with `GET /api/v1/users/me/identities`."


class ProviderNotFound(NotFound):
    code = "provider-not-found"
    title = "Nobody can sign in with such a provider here."
    remedy = "List the providers with `GET /api/v1/auth/providers`."


class ReferralCodeNotFound(NotFound):
    code = "referral-code-not-found"
    title = "There is no live referral code."
    remedy = "Ask the referrer for a new one, or create one with `POST /api/v1/referral-code`."


class SessionNotFound(NotFound):
    code = "session-not-found"
    title = "The caller has no such session."
    remedy = "List the sessions with `GET /api/v1/auth/sessions`."


class UserNotFound(NotFound):
    code = "user-not-found"
    title = "There is no such user."
    remedy = "Search the users with `GET /api/v1/admin/users?email=`."


class EmailTaken(Conflict):
    code = "email-taken"
    title = "An account with this email address exists."
    remedy = "Sign in with it, or register with another email address."
    default_pointer = "#/email"


class IdentityNotLinked(Conflict):
    code = "identity-not-linked"
    title = "An account with this email address exists, and is not linked to this identity."
    remedy = (
        "Sign in as before, for example with the password. The two are linked by themselves only "
        "where the issuer has verified the email address, and the owner has not undone it before."
    )


class LastAdmin(Conflict):
    code = "last-admin"
    title = "This is the last admin who can act."
    remedy = "Make another account an admin first: `python -m service admin promote EMAIL`."


class LastWayIn(Conflict):
    code = "last-way-in"
    title = "There would be no way left to sign in to this account."
    remedy = "Set a password with `POST /api/v1/auth/password/forgot` first."


class LiveReferralCodeExists(Conflict):
    code = "referral-code-exists"
    title = "A user can hold only one live referral code."
    remedy = "Delete the live code first, or replace it with `PUT /api/v1/referral-code`."


class ReferralCodeTaken(Conflict):
    code = "referral-code-taken"
    title = "This referral code belongs to another user."
    remedy = "Choose another code, or leave `code` out to get a generated one."
    default_pointer = "#/code"


class DatabaseUnavailable(Unavailable):
    code = "database-unavailable"
    title = "The database does not answer."


class HashingQueueFull(Unavailable):
    code = "hashing-queue-full"
    title = "Too many passwords are being hashed at the moment."


class MailUnavailable(Unavailable):
    code = "mail-unavailable"
    title = "This service sends no mail."
    remedy = "Ask the operators of the service, who have to set up a mail server."
    default_retry_after = 60


class MigrationsPending(Unavailable):
    code = "migrations-pending"
    title = "The database schema is older than the service."
    remedy = "Operators: run `python -m service migrate`. Others: try again later."
    default_retry_after = 5


class Overloaded(Unavailable):
    code = "overloaded"
    title = "There are more requests than can be answered at the moment."


class ProviderUnavailable(Unavailable):
    code = "provider-unavailable"
    title = "The provider does not answer as it should."
    default_retry_after = 5
