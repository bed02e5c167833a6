"""What is done with the tokens in mails: confirming an e-mail, changing it, setting a password.

Whoever asks for a mail gets the same answer after the same work whether or not there is an
account: a job is written either way, and the worker looks who it is for.
"""

import logging

from service.database import Database, Repositories, retried
from service.domain.clock import Clock
from service.domain.errors import EmailMalformed, EmailTaken, MailUnavailable, TokenUnusable
from service.domain.jobs import JobKind
from service.domain.mails import MailKind, MailToken, TokenPurpose
from service.domain.oauth import hash_secret
from service.domain.passwords import check_password
from service.domain.sessions import Caller
from service.domain.users import Email, parse_email
from service.passwords import PasswordHasher
from service.use_cases.forgetting import Forgetting, code_key, session_key
from service.use_cases.jobs import Jobs
from service.use_cases.mails import mail_to_email, mail_to_new_email, mail_to_user
from service.use_cases.users import Users, jobs_about_email

_CONFIRMING = (TokenPurpose.CONFIRM_EMAIL, TokenPurpose.CHANGE_EMAIL)
_RESETTING = (TokenPurpose.RESET_PASSWORD,)
log = logging.getLogger(__name__)


class MailTokens:
    """Mails with tokens, and what the tokens are good for, once."""

    def __init__(
        self,
        database: Database,
        forgetting: Forgetting,
        jobs: Jobs,
        users: Users,
        hasher: PasswordHasher,
        clock: Clock,
        *,
        password_min_length: int,
    ) -> None:
        self._database = database
        self._forgetting = forgetting
        self._jobs = jobs
        self._users = users
        self._hasher = hasher
        self._clock = clock
        self._password_min_length = password_min_length

    async def resend_confirmation(self, email: str) -> None:
        """Have the confirmation sent again, if there is something to confirm."""
        await self._mail(MailKind.CONFIRMATION, parse_email(email))

    async def forgot_password(self, email: str) -> None:
        """Have a token sent with which the owner sets a new password."""
        await self._mail(MailKind.PASSWORD_RESET, parse_email(email))

    @retried
    async def _mail(self, kind: MailKind, email: Email) -> None:
        if not self._jobs.include(JobKind.MAIL):
            log.warning("a mail was asked for, and there is no mail server: set SMTP_URL")
        async with self._database.transaction() as repositories:
            await self._jobs.plan(repositories, mail_to_email(kind, email))

    @retried
    async def change_email(self, caller: Caller, new_email: str, password: str | None) -> None:
        """Have a token sent to the new e-mail, which becomes the account's when it comes back.

        Raises EmailMalformed, MailUnavailable and what `Users.prove` raises.
        """
        try:
            email = parse_email(new_email)
        except EmailMalformed as error:
            raise EmailMalformed(error.detail, pointer="#/new_email") from error
        if not self._jobs.include(JobKind.MAIL):
            raise MailUnavailable
        await self._users.prove(caller, password)
        async with self._database.transaction() as repositories:
            await self._jobs.plan(repositories, mail_to_new_email(caller, email))

    @retried
    async def confirm(self, token: str) -> None:
        """Note that the address a token was mailed to is its account's; raise TokenUnusable."""
        now = self._clock()
        old_keys: list[str] = []
        async with self._database.transaction() as repositories:
            taken = await repositories.mail_tokens.take(hash_secret(token), _CONFIRMING, now)
            if taken is None:
                raise TokenUnusable
            if taken.purpose is TokenPurpose.CHANGE_EMAIL:
                old_keys = await self._change_email(repositories, taken)
            elif not await repositories.users.confirm_email(taken.user_id, taken.email.key, now):
                raise TokenUnusable  # the account has another e-mail by now
        await self._forgetting.forget(old_keys)
        log.info("e-mail confirmed: %s", taken.user_id)

    async def _change_email(self, repositories: Repositories, token: MailToken) -> list[str]:
        """Give the account its new e-mail; return the cache keys that became old."""
        now = self._clock()
        locked = await repositories.users.lock(token.user_id)
        if locked is None:
            raise TokenUnusable
        old, _ = locked
        try:
            await repositories.users.change_email(token.user_id, token.email, now)
        except EmailTaken as error:  # since the mail was sent
            raise TokenUnusable from error
        # Those in the old mailbox are for somebody who may no longer be the owner.
        await repositories.mail_tokens.delete_of_user(token.user_id)
        await repositories.enrichments.delete_of_user(token.user_id)
        old_keys = [code_key(old.key), code_key(token.email.key)]
        await self._forgetting.plan(repositories, old_keys, now)
        await self._jobs.plan(
            repositories,
            {
                **mail_to_email(MailKind.EMAIL_CHANGED, old, token.user_id),
                **jobs_about_email(token.user_id),
            },
        )
        return old_keys

    @retried
    async def reset_password(self, token: str, new_password: str) -> None:
        """Store a new password and end all sessions; raise TokenUnusable or PasswordUnacceptable.

        Whoever reads the mail is the owner: the e-mail counts as confirmed, and what another
        issuer's user has put on an e-mail that was not is removed.
        """
        token_hash = hash_secret(token)
        async with self._database.reading() as repositories:
            found = await repositories.mail_tokens.find(token_hash, _RESETTING, self._clock())
        if found is None:
            raise TokenUnusable
        check_password(new_password, found.email, self._password_min_length, "#/new_password")
        password_hash = await self._hasher.hash(new_password)
        user_id = found.user_id
        now = self._clock()
        async with self._database.transaction() as repositories:
            taken = await repositories.mail_tokens.take(token_hash, _RESETTING, now)
            locked = await repositories.users.lock(user_id)
            if taken is None or locked is None or locked[0].key != taken.email.key:
                raise TokenUnusable
            await repositories.users.set_password_hash(user_id, password_hash)
            await repositories.users.confirm_email(user_id, taken.email.key, now)
            if not locked[1]:
                await repositories.identities.delete_of_user(user_id)
            ended = await repositories.sessions.end_all_but(user_id, None, now)
            await repositories.authorization_codes.delete_of_user(user_id)
            await repositories.mail_tokens.delete_of_user(user_id)
            old_keys = [session_key(session_id) for session_id in ended]
            await self._forgetting.plan(repositories, old_keys, now)
            await self._jobs.plan(repositories, mail_to_user(MailKind.PASSWORD_CHANGED, user_id))
        await self._forgetting.forget(old_keys)
        log.info("password reset: %s", user_id)
