"""Every reason the service has to refuse a request.

    ServiceError
    ├── InvalidInput
    │   ├── CursorMalformed
    │   ├── EmailMalformed
    │   ├── ExpiryOutOfRange
    │   ├── IdempotencyKeyReused
    │   ├── PasswordUnacceptable
    │   ├── ProgrammeUnknown
    │   ├── ReferralCodeUnusable
    │   ├── SelfReferral
    │   ├── SignInUnusable
    │   ├── TokenUnusable
    │   └── WebhookUrlRefused
    ├── NotAuthenticated
    │   ├── ClientSecretWrong
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
    │   ├── ParticipantNotFound
    │   ├── ProgrammeNotFound
    │   ├── ProviderNotFound
    │   ├── ReferralCodeNotFound
    │   ├── ReferralNotFound
    │   ├── SessionNotFound
    │   ├── TransferNotFound
    │   ├── UserNotFound
    │   └── WebhookEndpointNotFound
    ├── Conflict
    │   ├── AlreadyReferred
    │   ├── BalanceTooLow
    │   ├── EmailTaken
    │   ├── IdReused
    │   ├── IdentityNotLinked
    │   ├── LastAdmin
    │   ├── LastWayIn
    │   ├── LiveReferralCodeExists
    │   ├── ParticipantErased
    │   ├── ProgrammeKeyTaken
    │   ├── ReferralCodeTaken
    │   ├── RotationUnderWay
    │   └── RulesChanged
    ├── TooMany
    └── Unavailable
        ├── DatabaseUnavailable
        ├── HashingQueueFull
        ├── MailUnavailable
        ├── MigrationsPending
        ├── Overloaded
        └── ProviderUnavailable

The middle level are the *kinds*: service/api/http/problem_types.py gives each one its HTTP status.
"""

from typing import ClassVar


class ServiceError(Exception):
    """A request that the service refuses. A leaf without a code of its own shares its kind's."""

    code: ClassVar[str]
    """Stable, for programs."""
    title: ClassVar[str]
    """One sentence, the same for every error with this code."""
    detail: str = ""
    """What is wrong with this request; the title if nothing more is known."""
    field: str | None = None
    """The member of the request that is at fault."""
    wait: int | None = None
    """Seconds after which another try may succeed."""

    def __init__(self, detail: str = "", *, field: str = "", wait: int = 0) -> None:
        self.detail = detail or self.detail or self.title
        self.field = field or self.field
        self.wait = wait or self.wait
        super().__init__(self.detail)


class InvalidInput(ServiceError):
    code = "validation-failed"
    title = "The request is invalid."


class NotAuthenticated(ServiceError):
    code = "not-authenticated"
    title = "Authentication is required."


class NotAllowed(ServiceError):
    code = "not-allowed"
    title = "You do not have permission to do this."


class NotFound(ServiceError):
    code = "not-found"
    title = "There is nothing at this address."


class Conflict(ServiceError):
    code = "conflict"
    title = "The request conflicts with the current state."


class TooMany(ServiceError):
    code = "too-many-requests"
    title = "Too many requests."
    wait = 1


class Unavailable(ServiceError):
    code = "unavailable"
    title = "The service is temporarily unavailable."
    wait = 1


class CursorMalformed(InvalidInput):
    detail = "The cursor was not issued by this service."
    field = "cursor"


class EmailMalformed(InvalidInput):
    detail = "This is not a valid email address."
    field = "email"


class ExpiryOutOfRange(InvalidInput):
    detail = "The expiry must be in the future, at most 366 days from now."
    field = "expires_at"


class IdempotencyKeyReused(InvalidInput):
    code = "idempotency-key-reused"
    title = "This Idempotency-Key was used with a different request."


class PasswordUnacceptable(InvalidInput):
    detail = "The password is too easy to guess."
    field = "password"


class ProgrammeUnknown(InvalidInput):
    detail = "No programme has this key."
    field = "programme"


class ReferralCodeUnusable(InvalidInput):
    code = "referral-code-unusable"
    title = "The referral code cannot be used."
    field = "referral_code"


class SelfReferral(InvalidInput):
    code = "self-referral"
    title = "A participant cannot refer themselves."
    field = "code"


class SignInUnusable(InvalidInput):
    code = "sign-in-unusable"
    title = "The sign-in has expired, is already complete, or was started in another browser."
    field = "state"


class TokenUnusable(InvalidInput):
    code = "token-unusable"
    title = "The token has expired or has already been used."
    field = "token"


class WebhookUrlRefused(InvalidInput):
    code = "webhook-url-refused"
    title = "Webhooks cannot be sent to this URL."
    field = "url"


class ClientSecretWrong(NotAuthenticated):
    detail = "The Authorization header is not `Bearer TOKEN` or a known client's credentials."


class InvalidCredentials(NotAuthenticated):
    code = "invalid-credentials"
    title = "The email address or the password is wrong, or the address is not confirmed yet."


class InvalidToken(NotAuthenticated):
    code = "invalid-token"
    title = "The token is expired, revoked, or was not issued by this service."


class SignInTooOld(NotAuthenticated):
    code = "sign-in-too-old"
    title = "Recent sign-in required."


class TokenMissing(NotAuthenticated):
    detail = "The request carries no access token."


class AccountDisabled(NotAllowed):
    code = "account-disabled"
    title = "This account is disabled."


class EmailNotConfirmed(NotAllowed):
    code = "email-not-confirmed"
    title = "The email address of this account is not confirmed yet."


class EmailWithheld(NotAllowed):
    code = "email-withheld"
    title = "The issuer did not share an email address that an account can use."


class InsufficientScope(NotAllowed):
    code = "insufficient-scope"
    title = "A required scope is missing."

    def __init__(self, scope: str = "") -> None:
        super().__init__(f"This call needs the scope {scope}." if scope else "")
        self.scope = scope


class SignInRefused(NotAllowed):
    code = "sign-in-refused"
    title = "The issuer refused the sign-in, or its response cannot be trusted."


class EnrichmentNotFound(NotFound):
    code = "enrichment-not-found"
    title = "Nothing is known about this person."


class IdentityNotFound(NotFound):
    code = "identity-not-found"
    title = "You have no such identity."


class ParticipantNotFound(NotFound):
    code = "participant-not-found"
    title = "There is no such participant."


class ProgrammeNotFound(NotFound):
    code = "programme-not-found"
    title = "There is no such programme."


class ProviderNotFound(NotFound):
    code = "provider-not-found"
    title = "There is no such sign-in provider."


class ReferralCodeNotFound(NotFound):
    code = "referral-code-not-found"
    title = "There is no live referral code."


class ReferralNotFound(NotFound):
    code = "referral-not-found"
    title = "This participant has not been referred."


class SessionNotFound(NotFound):
    code = "session-not-found"
    title = "You have no such session."


class TransferNotFound(NotFound):
    code = "transfer-not-found"
    title = "There is no such redemption."


class UserNotFound(NotFound):
    code = "user-not-found"
    title = "There is no such user."


class WebhookEndpointNotFound(NotFound):
    code = "webhook-endpoint-not-found"
    title = "There is no such webhook endpoint."


class AlreadyReferred(Conflict):
    code = "already-referred"
    title = "This participant has already been referred."


class BalanceTooLow(Conflict):
    code = "balance-too-low"
    title = "The available balance is too low."
    field = "amount"

    def __init__(self, available: int = 0) -> None:
        super().__init__(f"Only {available} can be redeemed." if available > 0 else "")
        self.available = available  # at that moment; below 0 it is a debt


class EmailTaken(Conflict):
    code = "email-taken"
    title = "An account with this email address already exists."
    field = "email"


class IdReused(Conflict):
    code = "id-reused"
    title = "This id has already been used with different content."
    field = "id"


class IdentityNotLinked(Conflict):
    code = "identity-not-linked"
    title = "An account with this email address exists but is not linked to this identity."


class LastAdmin(Conflict):
    code = "last-admin"
    title = "This is the last active admin."


class LastWayIn(Conflict):
    code = "last-way-in"
    title = "This would leave no way to sign in to the account."


class LiveReferralCodeExists(Conflict):
    code = "referral-code-exists"
    title = "A user can have only one live referral code."


class ParticipantErased(Conflict):
    detail = "The participant with this id has been erased; the id cannot be used again."
    field = "external_id"


class ProgrammeKeyTaken(Conflict):
    code = "programme-key-taken"
    title = "Another programme has this key."
    field = "key"


class ReferralCodeTaken(Conflict):
    code = "referral-code-taken"
    title = "This referral code belongs to another user."
    field = "code"


class RotationUnderWay(Conflict):
    code = "rotation-under-way"
    title = "The endpoint's previous secret is still in use."


class RulesChanged(Conflict):
    code = "rules-changed"
    title = "The rules have been replaced since this version."
    field = "version"


class DatabaseUnavailable(Unavailable):
    code = "database-unavailable"
    title = "The database is not responding."


class HashingQueueFull(Unavailable):
    code = "hashing-queue-full"
    title = "Too many passwords are being hashed at the moment."


class MailUnavailable(Unavailable):
    code = "mail-unavailable"
    title = "This service does not send email."
    wait = 60


class MigrationsPending(Unavailable):
    code = "migrations-pending"
    title = "The database schema is older than the service."
    wait = 5


class Overloaded(Unavailable):
    code = "overloaded"
    title = "The service is overloaded."


class ProviderUnavailable(Unavailable):
    code = "provider-unavailable"
    title = "The provider is not responding properly."
    wait = 5
