"""Mails: planned as jobs, and written when the job is done.

A token is made when its mail is sent: the database only ever holds its hash, and its ten minutes
begin when it can be read. This module only decides which mail is sent, and whether its mailbox has
budget left; what a token does is decided when it comes back.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from service.domain import mails
from service.domain.account_changes import UNDO_LIVES, UNSENT_FOR, AccountChange
from service.domain.claims import MOST_RESENT
from service.domain.clock import Clock
from service.domain.emails import Email, hash_mailbox, parse_email
from service.domain.errors import EmailMalformed
from service.domain.jobs import Job, JobKind, PermanentFailure
from service.domain.mails import TOKEN_LIVES, Mail, MailKind, MailToken, Share, TokenPurpose
from service.domain.oauth import hash_secret, new_secret
from service.domain.sessions import Caller
from service.domain.users import User
from service.domain.webhook_deliveries import DisabledReason
from service.postgresql.database import Database

if TYPE_CHECKING:
    from service.providers.mail import Mailer

_PAGES: Final = {
    TokenPurpose.CONFIRM_EMAIL: "confirm-email",
    TokenPurpose.CHANGE_EMAIL: "confirm-email",
    TokenPurpose.RESET_PASSWORD: "reset-password",
}
_CALLS: Final = {
    TokenPurpose.CONFIRM_EMAIL: "POST /api/v1/auth/email/confirm",
    TokenPurpose.CHANGE_EMAIL: "POST /api/v1/auth/email/confirm",
    TokenPurpose.RESET_PASSWORD: "POST /api/v1/auth/password/reset",
}
log = logging.getLogger(__name__)


def _job_of(kind: MailKind, **payload: UUID | str) -> dict[JobKind, Any]:
    return {JobKind.MAIL: {"mail": kind, **{name: str(each) for name, each in payload.items()}}}


def mail_to_email(kind: MailKind, email: Email, user_id: UUID | None = None) -> dict[JobKind, Any]:
    """Return the job of a mail to an address, which may have no account, or another one."""
    about = {} if user_id is None else {"user_id": user_id}
    return _job_of(kind, email=email.shown, email_key=email.key, **about)


def mail_to_user(kind: MailKind, user_id: UUID) -> dict[JobKind, Any]:
    """Return the job of a mail to an account."""
    return _job_of(kind, user_id=user_id)


def mail_about_change(change: AccountChange) -> dict[JobKind, Any]:
    """Return the job of the mail that offers to undo the change."""
    change_id = change.account_change_id
    return _job_of(MailKind.ACCOUNT_CHANGE, user_id=change.user_id, account_change_id=change_id)


def mail_to_new_email(caller: Caller, email: Email) -> dict[JobKind, Any]:
    """Return the job of a mail to the new email address of the caller's account."""
    about = {"user_id": caller.user_id, "session_id": caller.session_id}
    return _job_of(MailKind.EMAIL_CHANGE, email=email.shown, **about)


def mail_to_claim(claim_id: UUID) -> dict[JobKind, Any]:
    """Return the job of the mail with a claim's token."""
    return _job_of(MailKind.CLAIM, claim_id=claim_id)


def mail_about_webhooks(user_id: UUID, endpoint_id: UUID) -> dict[JobKind, Any]:
    """Return the job of the mail that tells an admin about a disabled webhook endpoint."""
    return _job_of(MailKind.WEBHOOK_DISABLED, user_id=user_id, endpoint_id=endpoint_id)


class Mails:
    """Sends the mails that jobs ask for."""

    def __init__(
        self,
        database: Database,
        mailer: "Mailer",
        clock: Clock,
        *,
        service_name: str,
        app_url: str | None,
        hash_key: bytes,
    ) -> None:
        self._database = database
        self._mailer = mailer
        self._clock = clock
        self._service_name = service_name
        self._app_url = app_url
        self._hash_key = hash_key

    async def deliver(self, job: Job) -> None:
        """Send the mail of a job, if there is still a recipient."""
        try:
            await self._deliver(job)
        except EmailMalformed as error:  # stored before the rule that it breaks
            raise PermanentFailure("cannot send mail to the email address") from error

    async def _deliver(self, job: Job) -> None:
        kind = MailKind(job.payload["mail"])
        match kind:
            case MailKind.CLAIM:
                await self._to_claim(job)
            case MailKind.EMAIL_CHANGED:
                mail = mails.email_changed(self._service_name)
                await self._send(job, mail, parse_email(job.payload["email"]), Share.NOTICE)
            case MailKind.EMAIL_CHANGE:
                await self._confirm_new_email(job)
            case MailKind.ACCOUNT_CHANGE:
                await self._offer_undo(job)
            case MailKind.PASSWORD_CHANGED:
                await self._notify(job, mails.password_changed(self._service_name))
            case MailKind.PROMOTED:
                await self._notify(job, mails.promoted(self._service_name))
            case MailKind.WEBHOOK_DISABLED:
                await self._webhook_disabled(job)
            case _:
                email = parse_email(job.payload["email"])
                user = await self._find_by_email(email)
                if user is not None and not user.disabled:
                    await self._to_owner(job, kind, user)
                if kind is MailKind.CONFIRMATION:
                    await self._resend_to_claims(email, user)

    async def _notify(self, job: Job, mail: Mail) -> None:
        """Send the mail to the account, if it has not been erased."""
        if user := await self._find(job):
            await self._send(job, mail, _email_of(user), Share.NOTICE)

    async def _webhook_disabled(self, job: Job) -> None:
        endpoint_id = UUID(job.payload["endpoint_id"])
        endpoint = await self._database.read(
            lambda stored: stored.webhook_endpoints.find(endpoint_id)
        )
        if endpoint is None or endpoint.disabled_reason is None:
            return  # somebody has seen to it
        gone = endpoint.disabled_reason is DisabledReason.GONE
        await self._notify(job, mails.webhook_disabled(self._service_name, endpoint.url, gone=gone))

    async def _to_owner(self, job: Job, kind: MailKind, user: User) -> None:
        """Send what somebody, perhaps not the owner, asked to be sent to the address."""
        email, purpose = _email_of(user), TokenPurpose.RESET_PASSWORD
        match kind:
            case MailKind.CHANGE_UNDONE:
                mail = mails.change_undone(self._service_name)
            case MailKind.REGISTERED_AGAIN if user.email_confirmed:
                await self._account_exists(job, email)
                return
            case MailKind.PASSWORD_RESET | MailKind.REGISTERED_AGAIN:
                mail = mails.password_reset(self._service_name)
            case _ if user.email_confirmed:
                return
            case _:
                rivals = await self._claims_of(email, 1)
                mail = mails.confirmation(
                    self._service_name, user.created_at, has_rivals=bool(rivals)
                )
                purpose = TokenPurpose.CONFIRM_EMAIL
        await self._send_token(job, purpose, mail, email, user_id=user.user_id)

    async def _to_claim(self, job: Job) -> None:
        """Send the claim its token, or notify the owner of the account that already exists."""
        claim_id = UUID(job.payload["claim_id"])
        async with self._database.autocommit() as repositories:
            claim = await repositories.claims.find(claim_id, self._clock() + TOKEN_LIVES)
        if claim is None:
            return  # confirmed, or it would expire before its token
        owner = await self._find_by_email(claim.email)
        if owner is not None and owner.disabled:
            return
        if owner is not None and owner.email_confirmed:
            await self._account_exists(job, _email_of(owner))
            async with self._database.transaction() as repositories:
                await repositories.claims.delete(claim_id)
            return
        rivals = await self._claims_of(claim.email, 2)
        mail = mails.confirmation(
            self._service_name, claim.created_at, has_rivals=len(rivals) > 1 or owner is not None
        )
        await self._send_token(
            job, TokenPurpose.CONFIRM_EMAIL, mail, claim.email, claim_id=claim_id
        )

    async def _resend_to_claims(self, email: Email, owner: User | None) -> None:
        """Send the newest claims of the address their mails again, unless it is confirmed.

        Each in its own job: one mail that fails must not send the others twice.
        """
        if owner is not None and (owner.disabled or owner.email_confirmed):
            return
        claim_ids = await self._claims_of(email, MOST_RESENT)
        async with self._database.transaction() as repositories:
            for claim_id in claim_ids:
                await repositories.jobs.add_due(mail_to_claim(claim_id), self._clock())

    async def _claims_of(self, email: Email, limit: int) -> Sequence[UUID]:
        async with self._database.autocommit() as repositories:
            return await repositories.claims.newest_of_email(email.key, self._clock(), limit)

    async def _confirm_new_email(self, job: Job) -> None:
        async with self._database.autocommit() as repositories:
            session = await repositories.sessions.find_open(
                UUID(job.payload["session_id"]), self._clock()
            )
        user = await self._find(job)
        if session is None or user is None:
            return  # a new password has ended the session and its request
        email = parse_email(job.payload["email"])
        owner = await self._find_by_email(email)
        if owner is None or owner.user_id == user.user_id:
            mail = mails.email_change(self._service_name)
            await self._send_token(
                job,
                TokenPurpose.CHANGE_EMAIL,
                mail,
                email,
                user_id=user.user_id,
                session_id=session[0].session_id,
            )
        else:
            await self._account_exists(job, _email_of(owner))

    async def _account_exists(self, job: Job, email: Email) -> None:
        await self._send(job, mails.account_exists(self._service_name), email, Share.OTHER)

    async def _offer_undo(self, job: Job) -> None:
        change_id = UUID(job.payload["account_change_id"])
        secret = new_secret()
        now = self._clock()
        async with self._database.transaction() as repositories:
            change = await repositories.account_changes.offer(
                change_id, hash_secret(secret), now + UNDO_LIVES
            )
        if change is None:
            return  # undone by an older token, or the account is erased
        mail = replace(
            mails.email_changed(self._service_name, undoable=True)
            if change.issuer is None
            else mails.identity_linked(self._service_name, change.issuer),
            token=secret,
            link=self._app_url and f"{self._app_url}/undo#token={secret}",
            call="POST /api/v1/auth/undo",
        )
        try:
            await self._send(job, mail, change.email, Share.NOTICE)
        except Exception:
            # Not sent, as far as we know: its 72 hours have not begun.
            async with self._database.transaction() as repositories:
                await repositories.account_changes.offer(change_id, None, now + UNSENT_FOR)
            raise

    async def _send_token(
        self,
        job: Job,
        purpose: TokenPurpose,
        mail: Mail,
        email: Email,
        *,
        user_id: UUID | None = None,
        claim_id: UUID | None = None,
        session_id: UUID | None = None,
    ) -> None:
        """Send the mail with a new token, which belongs to the account or to the claim."""
        now = self._clock()
        secret = new_secret()
        token = MailToken(
            token_hash=hash_secret(secret),
            purpose=purpose,
            user_id=user_id,
            claim_id=claim_id,
            email=email,
            created_at=now,
            expires_at=now + TOKEN_LIVES,
            session_id=session_id,
        )
        async with self._database.transaction() as repositories:
            if not await repositories.mail_tokens.add(token):
                return
        mail = replace(
            mail,
            token=secret,
            link=self._app_url and f"{self._app_url}/{_PAGES[purpose]}#token={secret}",
            call=_CALLS[purpose],
        )
        share = Share.RESET if purpose is TokenPurpose.RESET_PASSWORD else Share.OTHER
        try:
            sent = await self._send(job, mail, email, share)
        except Exception:
            await self._drop(token)
            raise
        if not sent:
            await self._drop(token)

    async def _drop(self, token: MailToken) -> None:
        """Delete a token that was not sent, as far as we know."""
        async with self._database.transaction() as repositories:
            await repositories.mail_tokens.delete(token.token_hash)

    async def _send(self, job: Job, mail: Mail, to: Email, share: Share) -> bool:
        """Send the mail, unless its mailbox has no budget left; return whether it was sent."""
        mailbox_hash = hash_mailbox(to.key, self._hash_key)
        async with self._database.autocommit() as repositories:
            if not await repositories.mailboxes.count(
                mailbox_hash, job.job_id, share, self._clock()
            ):
                log.info("mail not sent, its mailbox has reached its limit: %s", job.job_id)
                return False
        try:
            await self._mailer.send(mail, to, str(job.job_id))
        except Exception:
            # Not sent, as far as we know: do not count it.
            async with self._database.autocommit() as repositories:
                await repositories.mailboxes.take_back(mailbox_hash, job.job_id)
            raise
        return True

    async def _find(self, job: Job) -> User | None:
        user_id = UUID(job.payload["user_id"])
        return await self._database.read(lambda stored: stored.users.find(user_id))

    async def _find_by_email(self, email: Email) -> User | None:
        return await self._database.read(lambda stored: stored.users.find_by_email(email.key))


def _email_of(user: User) -> Email:
    assert user.email is not None  # it is not erased
    return parse_email(user.email)
