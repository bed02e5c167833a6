"""Asking for mails with tokens, and confirming email addresses with them.

A request for a mail gets the same answer after the same work whether or not there is an account: a
job is written either way, and the worker finds out whom it is for.
"""

import logging
from datetime import datetime, timedelta
from uuid import UUID

from uuid6 import uuid7

from service.domain.account_changes import AccountChange, ChangeKind
from service.domain.emails import Email, parse_email
from service.domain.errors import EmailMalformed, EmailTaken, MailUnavailable, TokenUnusable
from service.domain.jobs import JobKind
from service.domain.mails import RESET_HEAD_START, MailKind, MailToken, TokenPurpose
from service.domain.oauth import hash_secret
from service.domain.security_events import SecurityEvent
from service.domain.sessions import Caller
from service.domain.users import LockedUser
from service.postgresql.database import Repositories, TryAgain, retried
from service.use_cases.account_changes import offer_undo
from service.use_cases.cache_invalidation import code_key
from service.use_cases.claims import Claims
from service.use_cases.credentials import reauthenticate
from service.use_cases.mails import mail_to_email, mail_to_new_email
from service.use_cases.referring import note_confirmation_of
from service.use_cases.shared import Shared
from service.use_cases.users import jobs_about_email

_CONFIRMING = (TokenPurpose.CONFIRM_EMAIL, TokenPurpose.CHANGE_EMAIL)
log = logging.getLogger(__name__)


class MailTokens:
    """Mails with tokens, and what the tokens are good for."""

    def __init__(self, shared: Shared, claims: Claims) -> None:
        self._shared = shared
        self._database = shared.database
        self._invalidation = shared.invalidation
        self._jobs = shared.jobs
        self._claims = claims
        self._events = shared.events
        self._clock = shared.clock

    async def resend_confirmation(self, email: str) -> None:
        """Have the confirmation sent again, if there is something to confirm."""
        await self._mail(MailKind.CONFIRMATION, parse_email(email), timedelta())

    async def forgot_password(self, email: str) -> None:
        """Have a token sent with which the owner sets a new password."""
        await self._mail(MailKind.PASSWORD_RESET, parse_email(email), RESET_HEAD_START)

    @retried
    async def _mail(self, kind: MailKind, email: Email, head_start: timedelta) -> None:
        if not self._jobs.include(JobKind.MAIL):
            log.warning("cannot send a requested mail: set SMTP_URL")
        async with self._database.transaction() as repositories:
            await self._jobs.plan(repositories, mail_to_email(kind, email), head_start)

    async def change_email(self, caller: Caller, new_email: str, password: str | None) -> None:
        """Have a token sent to the new email address, which replaces the old once it comes back.

        Raises EmailMalformed, MailUnavailable and what `reauthenticate` raises.
        """
        try:
            email = parse_email(new_email)
        except EmailMalformed as error:
            raise EmailMalformed(error.detail, field="new_email") from error
        if not self._jobs.include(JobKind.MAIL):
            raise MailUnavailable
        await reauthenticate(self._shared, caller, password)
        await self._request_change(caller, email)

    @retried
    async def _request_change(self, caller: Caller, email: Email) -> None:
        async with self._database.transaction() as repositories:
            await self._events.record(
                repositories, SecurityEvent.EMAIL_CHANGE_REQUESTED, caller.user_id, self._clock()
            )
            await self._jobs.plan(repositories, mail_to_new_email(caller, email))

    @retried
    async def confirm(self, token: str) -> None:
        """Confirm the address that the token was mailed to, for its account or claim.

        Does nothing if the token has done so before and the account still has the address. Raises
        TokenUnusable.
        """
        token_hash = hash_secret(token)
        now = self._clock()
        async with self._database.transaction() as repositories:
            await repositories.claims.lock_for_confirmation(token_hash)
            found = await repositories.mail_tokens.find(token_hash, _CONFIRMING, now)
            if found is None:
                if not await repositories.confirmations.still_holds(token_hash):
                    raise TokenUnusable
                return
            user_id = await self._confirm(repositories, found, now)
            # None of them can become the account any more.
            await repositories.claims.delete_of_email(found.email.key)
            await repositories.confirmations.add(token_hash, user_id)

    async def _confirm(self, repositories: Repositories, token: MailToken, now: datetime) -> UUID:
        """Do what the token is for; return the account's id."""
        if token.claim_id is not None:
            await self._take(repositories, token, now)
            user_id = await self._claims.confirm(repositories, token.claim_id, now)
            was_confirmed = False
        else:
            assert token.user_id is not None
            user_id = token.user_id
            user = await repositories.users.lock(user_id)
            await self._take(repositories, token, now)
            if user is None:
                raise TokenUnusable  # the account is erased
            if token.purpose is TokenPurpose.CHANGE_EMAIL:
                await self._change_email(repositories, user, token, now)
                return user_id
            if user.email.key != token.email.key:
                raise TokenUnusable  # the account has another email address by now
            was_confirmed = user.email_confirmed
            await repositories.users.confirm_email(user_id, token.email.key, now)
            await note_confirmation_of(self._shared, repositories, user_id, now)
        if not was_confirmed:
            await self._events.record(repositories, SecurityEvent.EMAIL_CONFIRMED, user_id, now)
            # Where addresses have to be confirmed, the account's code counts from now on.
            await self._invalidation.invalidate(repositories, [code_key(token.email.key)], now)
        return user_id

    async def _take(self, repositories: Repositories, token: MailToken, now: datetime) -> None:
        """Use the token up; raise TryAgain if another request has just done so."""
        if await repositories.mail_tokens.take(token.token_hash, _CONFIRMING, now) is None:
            raise TryAgain

    async def _change_email(
        self, repositories: Repositories, user: LockedUser, token: MailToken, now: datetime
    ) -> None:
        """Give the account its new email address."""
        user_id = user.user_id
        if token.session_id is None:
            raise TokenUnusable
        if not await repositories.sessions.lock_open(token.session_id, user_id, now):
            raise TokenUnusable  # signed out, or disabled, since
        try:
            await repositories.users.change_email(user_id, token.email, now)
        except EmailTaken as error:  # since the mail was sent
            raise TokenUnusable from error
        await note_confirmation_of(self._shared, repositories, user_id, now)
        # The reader of the old mailbox may no longer be the owner.
        await repositories.mail_tokens.delete_of_user(user_id)
        await repositories.confirmations.delete_of_user(user_id)
        await repositories.enrichments.delete_of_user(user_id)
        await repositories.identities.delete_of_other_emails(user_id, token.email.key)
        old_keys = [*self._shared.keys_of_email(user.email.key), code_key(token.email.key)]
        await self._invalidation.invalidate(repositories, old_keys, now)
        await self._events.record(repositories, SecurityEvent.EMAIL_CHANGED, user_id, now)
        await self._jobs.plan(repositories, jobs_about_email(user_id))
        change = AccountChange(
            account_change_id=uuid7(),
            user_id=user_id,
            kind=ChangeKind.EMAIL,
            email=user.email,
            email_confirmed=user.email_confirmed,
        )
        await offer_undo(repositories, self._jobs, change, now)
