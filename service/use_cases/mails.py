"""Mails: planned as jobs, and written when the job is done.

A token is made when its mail is sent: the database never holds more of it than the hash, and its
ten minutes begin when somebody can read it.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from service.database import Database
from service.domain import mails
from service.domain.clock import Clock
from service.domain.jobs import Job, JobKind
from service.domain.mails import (
    MOST_LIVE_TOKENS,
    TOKEN_LIVES,
    Mail,
    MailKind,
    MailToken,
    TokenPurpose,
)
from service.domain.oauth import hash_secret, new_secret
from service.domain.sessions import Caller
from service.domain.users import Email, User, parse_email

if TYPE_CHECKING:
    from service.providers.mail import Mailer

_PAGES: Final = {
    TokenPurpose.CONFIRM_EMAIL: "confirm-email",
    TokenPurpose.CHANGE_EMAIL: "confirm-email",
    TokenPurpose.RESET_PASSWORD: "reset-password",
}
WithToken = Callable[[str, str, str | None], Mail]
_WITH_TOKEN: Final[dict[TokenPurpose, WithToken]] = {
    TokenPurpose.CONFIRM_EMAIL: mails.confirmation,
    TokenPurpose.CHANGE_EMAIL: mails.email_change,
    TokenPurpose.RESET_PASSWORD: mails.password_reset,
}
log = logging.getLogger(__name__)


def mail_to_email(kind: MailKind, email: Email, user_id: UUID | None = None) -> dict[JobKind, Any]:
    """Return the job of a mail to an e-mail, which may be nobody's, or no longer the user's."""
    payload = {"mail": kind, "email": email.shown, "email_key": email.key}
    return {JobKind.MAIL: payload if user_id is None else {**payload, "user_id": str(user_id)}}


def mail_to_user(kind: MailKind, user_id: UUID) -> dict[JobKind, Any]:
    """Return the job of a mail to an account."""
    return {JobKind.MAIL: {"mail": kind, "user_id": str(user_id)}}


def mail_to_new_email(caller: Caller, email: Email) -> dict[JobKind, Any]:
    """Return the job of a mail to the e-mail that the caller's account is to have."""
    return {
        JobKind.MAIL: {
            "mail": MailKind.EMAIL_CHANGE,
            "user_id": str(caller.user_id),
            "session_id": str(caller.session_id),
            "email": email.shown,
        }
    }


class Mails:
    """Writes the mails that jobs ask for."""

    def __init__(
        self,
        database: Database,
        mailer: "Mailer",
        clock: Clock,
        *,
        service_name: str,
        app_url: str | None,
    ) -> None:
        self._database = database
        self._mailer = mailer
        self._clock = clock
        self._service_name = service_name
        self._app_url = app_url

    async def deliver(self, job: Job) -> None:
        """Send the mail of a job, if there is still somebody to send it to."""
        kind = MailKind(job.payload["mail"])
        match kind:
            case MailKind.EMAIL_CHANGED:
                await self._send(
                    job, mails.email_changed(self._service_name), parse_email(job.payload["email"])
                )
            case MailKind.EMAIL_CHANGE:
                await self._confirm_new_email(job)
            case MailKind.PASSWORD_CHANGED:
                await self._notify(job, mails.password_changed(self._service_name))
            case MailKind.PROMOTED:
                await self._notify(job, mails.promoted(self._service_name))
            case _:
                user = await self._find_by_email(parse_email(job.payload["email"]))
                if user is not None and not user.disabled:
                    await self._to_owner(job, kind, user)

    async def _notify(self, job: Job, mail: Mail) -> None:
        """Send the mail to the account, if it has not been erased."""
        if user := await self._find(job):
            await self._send(job, mail, _email_of(user))

    async def _to_owner(self, job: Job, kind: MailKind, user: User) -> None:
        """Send what is asked for in the name of an e-mail's owner, by whoever it was."""
        email = _email_of(user)
        match kind:
            case MailKind.PASSWORD_RESET:
                await self._send_token(job, TokenPurpose.RESET_PASSWORD, user.user_id, email)
            case MailKind.REGISTERED_AGAIN if user.email_confirmed:
                await self._send(job, mails.account_exists(self._service_name), email)
            case MailKind.REGISTERED_AGAIN:
                if user.awaits_confirmation:
                    await self._disown(user)
                await self._send_token(
                    job, TokenPurpose.RESET_PASSWORD, user.user_id, email, mails.registered_again
                )
            case _ if not user.email_confirmed:
                await self._send_token(job, TokenPurpose.CONFIRM_EMAIL, user.user_id, email)

    async def _disown(self, user: User) -> None:
        """Remove what signs in to an account that nobody has signed in to.

        Else whoever registers a stranger's e-mail would have the account once the stranger
        registers too, and confirms.
        """
        async with self._database.transaction() as repositories:
            locked = await repositories.users.lock(user.user_id)
            if locked is not None and not locked[1]:
                await repositories.users.set_password_hash(user.user_id, None)
                await repositories.identities.delete_of_user(user.user_id)

    async def _confirm_new_email(self, job: Job) -> None:
        async with self._database.reading() as repositories:
            session = await repositories.sessions.find_open(
                UUID(job.payload["session_id"]), self._clock()
            )
        user = await self._find(job)
        if session is None or user is None:
            return  # a new password has ended the session, and what was asked for in it
        email = parse_email(job.payload["email"])
        owner = await self._find_by_email(email)
        if owner is None or owner.user_id == user.user_id:
            await self._send_token(job, TokenPurpose.CHANGE_EMAIL, user.user_id, email)
        else:
            await self._send(job, mails.account_exists(self._service_name), _email_of(owner))

    async def _send_token(
        self,
        job: Job,
        purpose: TokenPurpose,
        user_id: UUID,
        email: Email,
        written: WithToken | None = None,
    ) -> None:
        now = self._clock()
        secret = new_secret()
        token = MailToken(
            token_hash=hash_secret(secret),
            purpose=purpose,
            user_id=user_id,
            email=email,
            created_at=now,
            expires_at=now + TOKEN_LIVES,
        )
        async with self._database.transaction() as repositories:
            if not await repositories.mail_tokens.add(token, MOST_LIVE_TOKENS):
                log.warning("too many mails in a short time, not sent: %s to %s", purpose, user_id)
                return
        link = self._app_url and f"{self._app_url}/{_PAGES[purpose]}#token={secret}"
        mail = (written or _WITH_TOKEN[purpose])(self._service_name, secret, link)
        try:
            await self._send(job, mail, email)
        except Exception:
            # Not sent, as far as is known: it must not count as one of the live ones.
            async with self._database.transaction() as repositories:
                await repositories.mail_tokens.delete(token.token_hash)
            raise

    async def _send(self, job: Job, mail: Mail, to: Email) -> None:
        await self._mailer.send(mail, to, str(job.job_id))

    async def _find(self, job: Job) -> User | None:
        async with self._database.reading() as repositories:
            return await repositories.users.find(UUID(job.payload["user_id"]))

    async def _find_by_email(self, email: Email) -> User | None:
        async with self._database.reading() as repositories:
            return await repositories.users.find_by_email(email.key)


def _email_of(user: User) -> Email:
    assert user.email is not None  # it is not erased
    return parse_email(user.email)
