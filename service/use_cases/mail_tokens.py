"""What is done with the tokens in mails: confirming an e-mail, changing it, setting a password.

Whoever asks for a mail gets the same answer after the same work whether or not there is an
account: a job is written either way, and the worker looks who it is for.
"""

import logging
from datetime import datetime, timedelta
from uuid import UUID

from uuid6 import uuid7

from service.domain.account_changes import AccountChange, ChangeKind
from service.domain.clock import Clock
from service.domain.errors import EmailMalformed, EmailTaken, MailUnavailable, TokenUnusable
from service.domain.jobs import JobKind
from service.domain.mails import RESET_HEAD_START, MailKind, MailToken, TokenPurpose
from service.domain.oauth import hash_secret
from service.domain.passwords import PasswordRules, check_password
from service.domain.security_events import SecurityEvent
from service.domain.sessions import Caller
from service.domain.users import Email, parse_email
from service.postgresql.database import Database, Repositories, TransactionConflict, retried
from service.security.password_hashing import PasswordHasher
from service.use_cases.account_changes import offer_undo
from service.use_cases.cache_invalidation import CacheInvalidation, code_key, session_key
from service.use_cases.claims import Claims
from service.use_cases.jobs import Jobs
from service.use_cases.mails import mail_to_email, mail_to_new_email, mail_to_user
from service.use_cases.security_events import SecurityEvents
from service.use_cases.users import Users, jobs_about_email

_CONFIRMING = (TokenPurpose.CONFIRM_EMAIL, TokenPurpose.CHANGE_EMAIL)
_RESETTING = (TokenPurpose.RESET_PASSWORD,)
log = logging.getLogger(__name__)


class MailTokens:
    """Mails with tokens, and what the tokens are good for, once."""

    def __init__(
        self,
        database: Database,
        invalidation: CacheInvalidation,
        jobs: Jobs,
        users: Users,
        claims: Claims,
        hasher: PasswordHasher,
        events: SecurityEvents,
        clock: Clock,
        *,
        password_rules: PasswordRules,
    ) -> None:
        self._database = database
        self._invalidation = invalidation
        self._jobs = jobs
        self._users = users
        self._claims = claims
        self._hasher = hasher
        self._events = events
        self._clock = clock
        self._password_rules = password_rules

    async def resend_confirmation(self, email: str) -> None:
        """Have the confirmation sent again, if there is something to confirm."""
        await self._mail(MailKind.CONFIRMATION, parse_email(email), timedelta())

    async def forgot_password(self, email: str) -> None:
        """Have a token sent with which the owner sets a new password."""
        await self._mail(MailKind.PASSWORD_RESET, parse_email(email), RESET_HEAD_START)

    @retried
    async def _mail(self, kind: MailKind, email: Email, head_start: timedelta) -> None:
        if not self._jobs.include(JobKind.MAIL):
            log.warning("a mail was asked for, and there is no mail server: set SMTP_URL")
        async with self._database.transaction() as repositories:
            await self._jobs.plan(repositories, mail_to_email(kind, email), head_start)

    @retried
    async def change_email(self, caller: Caller, new_email: str, password: str | None) -> None:
        """Have a token sent to the new e-mail, which becomes the account's when it comes back.

        Raises EmailMalformed, MailUnavailable and what `Users.reauthenticate` raises.
        """
        try:
            email = parse_email(new_email)
        except EmailMalformed as error:
            raise EmailMalformed(error.detail, field="new_email") from error
        if not self._jobs.include(JobKind.MAIL):
            raise MailUnavailable
        await self._users.reauthenticate(caller, password)
        async with self._database.transaction() as repositories:
            await self._events.record(
                repositories, SecurityEvent.EMAIL_CHANGE_REQUESTED, caller.user_id, self._clock()
            )
            await self._jobs.plan(repositories, mail_to_new_email(caller, email))

    @retried
    async def confirm(self, token: str) -> None:
        """Confirm the address that the token was mailed to, for its account or claim.

        Does nothing where the token has done so before and the account still has the address.
        Raises TokenUnusable.
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
            user_id, old_keys = await self._confirm(repositories, found, now)
            # None of them can become the account any more.
            await repositories.claims.delete_of_email(found.email.key)
            await repositories.confirmations.add(token_hash, user_id)
        await self._invalidation.forget(old_keys)

    async def _confirm(
        self, repositories: Repositories, token: MailToken, now: datetime
    ) -> tuple[UUID, list[str]]:
        """Do what the token is for; return whose it was, and the cache keys that became old."""
        old_keys: list[str] = []
        if token.claim_id is not None:
            await self._take(repositories, token, now)
            user_id, old_keys = await self._claims.confirm(repositories, token.claim_id, now)
            was_confirmed = False
        else:
            assert token.user_id is not None
            user_id = token.user_id
            # The user before the token and the session: so do those who end them.
            locked = await repositories.users.lock(user_id)
            await self._take(repositories, token, now)
            if locked is None:
                raise TokenUnusable  # the account is erased
            if token.purpose is TokenPurpose.CHANGE_EMAIL:
                return user_id, await self._change_email(repositories, user_id, locked, token, now)
            if locked[0].key != token.email.key:
                raise TokenUnusable  # the account has another email address by now
            was_confirmed = locked[1]
            await repositories.users.confirm_email(user_id, token.email.key, now)
        if not was_confirmed:
            await self._events.record(repositories, SecurityEvent.EMAIL_CONFIRMED, user_id, now)
            # Where addresses have to be confirmed, the account's code counts from now on.
            confirmed_keys = [code_key(token.email.key)]
            await self._invalidation.plan(repositories, confirmed_keys, now)
            old_keys += confirmed_keys
        return user_id, old_keys

    async def _take(self, repositories: Repositories, token: MailToken, now: datetime) -> None:
        """Use the token up; raise TransactionConflict where another request has just done so."""
        if await repositories.mail_tokens.take(token.token_hash, _CONFIRMING, now) is None:
            raise TransactionConflict

    async def _change_email(
        self,
        repositories: Repositories,
        user_id: UUID,
        locked: tuple[Email, bool],
        token: MailToken,
        now: datetime,
    ) -> list[str]:
        """Give the account its new email address; return the cache keys that became old."""
        if token.session_id is None:
            raise TokenUnusable
        if not await repositories.sessions.lock_open(token.session_id, user_id, now):
            raise TokenUnusable  # signed out, or disabled, since: the change was given up
        old, confirmed = locked
        try:
            await repositories.users.change_email(user_id, token.email, now)
        except EmailTaken as error:  # since the mail was sent
            raise TokenUnusable from error
        # Those in the old mailbox are for somebody who may no longer be the owner.
        await repositories.mail_tokens.delete_of_user(user_id)
        await repositories.confirmations.delete_of_user(user_id)
        await repositories.enrichments.delete_of_user(user_id)
        await repositories.identities.delete_of_other_emails(user_id, token.email.key)
        old_keys = [*self._users.keys_of_email(old.key), code_key(token.email.key)]
        await self._invalidation.plan(repositories, old_keys, now)
        await self._events.record(repositories, SecurityEvent.EMAIL_CHANGED, user_id, now)
        await self._jobs.plan(repositories, jobs_about_email(user_id))
        change = AccountChange(
            account_change_id=uuid7(),
            user_id=user_id,
            kind=ChangeKind.EMAIL,
            email=old,
            email_confirmed=confirmed,
        )
        await offer_undo(repositories, self._jobs, change, now)
        return old_keys

    @retried
    async def reset_password(self, token: str, new_password: str) -> str:
        """Store a new password and end all sessions; return the key of the email address.

        Raises TokenUnusable or PasswordUnacceptable.

        Whoever reads the mail is the owner: the e-mail counts as confirmed, and what another
        issuer's user has put on an e-mail that was not is removed.
        """
        token_hash = hash_secret(token)
        async with self._database.autocommit() as repositories:
            found = await repositories.mail_tokens.find(token_hash, _RESETTING, self._clock())
        if found is None:
            raise TokenUnusable
        check_password(new_password, found.email, self._password_rules, "new_password")
        password_hash = await self._hasher.hash(new_password)
        user_id = found.user_id
        assert user_id is not None
        now = self._clock()
        async with self._database.transaction() as repositories:
            # The code, its owner, the token: whoever ends tokens holds their owner first.
            if await repositories.users.is_unconfirmed(user_id):
                await repositories.referral_codes.lock_live(user_id, confirmed_only=False)
            locked = await repositories.users.lock(user_id)
            taken = await repositories.mail_tokens.take(token_hash, _RESETTING, now)
            if locked is None or taken is None:
                raise TokenUnusable
            reclaimed = await self._users.reclaim(repositories, user_id, now)
            if reclaimed is not None:
                email, old_keys = reclaimed
            else:
                email = locked[0]
                ended = await repositories.sessions.end_all_but(user_id, None, now)
                await repositories.authorization_codes.delete_of_user(user_id)
                await repositories.mail_tokens.delete_of_user(user_id)
                await repositories.identities.delete_of_other_emails(user_id, email.key)
                await self._events.record_ended_sessions(
                    repositories, user_id, ended, now, reason="password-reset"
                )
                old_keys = [session_key(session_id) for session_id in ended]
                await self._invalidation.plan(repositories, old_keys, now)
            if email.key != taken.email.key:
                raise TokenUnusable
            await repositories.users.set_password_hash(user_id, password_hash)
            await repositories.users.confirm_email(user_id, email.key, now)
            await repositories.account_changes.note_new_password(user_id)
            await self._events.record(repositories, SecurityEvent.PASSWORD_RESET, user_id, now)
            await self._jobs.plan(repositories, mail_to_user(MailKind.PASSWORD_CHANGED, user_id))
        await self._invalidation.forget(old_keys)
        return email.key
