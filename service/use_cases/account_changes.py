"""Undoing what was changed on an account: by its owner, with the token in a mail.

A change is a row from the transaction that made it, so that one whose mail is late, or in the
mailbox of a thief, ends with the others when an earlier one is undone.
"""

from datetime import datetime

from service.domain.account_changes import UNSENT_FOR, AccountChange, ChangeKind
from service.domain.clock import Clock
from service.domain.errors import EmailTaken, TokenUnusable
from service.domain.jobs import JobKind
from service.domain.mails import MailKind
from service.domain.oauth import hash_secret
from service.domain.security_events import SecurityEvent
from service.domain.users import Email, Role
from service.postgresql.database import Database, Repositories, TryAgain, retried
from service.use_cases.cache_invalidation import CacheInvalidation, code_key, session_key
from service.use_cases.jobs import Jobs
from service.use_cases.mails import mail_about_change, mail_to_email
from service.use_cases.security_events import SecurityEvents
from service.use_cases.users import Users, jobs_about_email


async def offer_undo(
    repositories: Repositories, jobs: Jobs, change: AccountChange, now: datetime
) -> None:
    """Store a change and plan its mail, in the transaction that makes it and has locked the user.

    Where no mail is sent, nobody could ever undo it: then there is nothing to store.
    """
    if jobs.include(JobKind.MAIL):
        await repositories.account_changes.add(change, now + UNSENT_FOR)
        await jobs.plan(repositories, mail_about_change(change))


class AccountChanges:
    """What the tokens are good for that are mailed when an account was changed."""

    def __init__(
        self,
        database: Database,
        invalidation: CacheInvalidation,
        jobs: Jobs,
        users: Users,
        events: SecurityEvents,
        clock: Clock,
    ) -> None:
        self._database = database
        self._invalidation = invalidation
        self._jobs = jobs
        self._users = users
        self._events = events
        self._clock = clock

    @retried
    async def undo(self, token: str) -> None:
        """Take a change back and end all sessions; raise TokenUnusable.

        A disabled account stays disabled.
        """
        token_hash = hash_secret(token)
        now = self._clock()
        async with self._database.transaction() as repositories:
            user_id = await repositories.account_changes.find_user_id(token_hash, now)
            if user_id is None:
                raise TokenUnusable
            # The user first, as whoever makes another change does.
            locked = await repositories.users.lock(user_id)
            change = await repositories.account_changes.take(token_hash, now)
            if locked is None or change is None:
                raise TokenUnusable
            old_keys = []
            if change.kind is ChangeKind.EMAIL:
                old_keys = await self._give_address_back(repositories, change, locked[0], now)
            elif change.issuer is not None and change.subject is not None:
                await repositories.identities.delete(change.issuer, change.subject, user_id)
            await repositories.authorization_codes.delete_of_user(user_id)
            await repositories.mail_tokens.delete_of_user(user_id)
            ended = await repositories.sessions.end_all_but(user_id, None, now)
            old_keys += map(session_key, ended)
            await self._invalidation.plan(repositories, old_keys, now)
            await self._events.record(
                repositories, SecurityEvent.CHANGE_UNDONE, user_id, now, reason=change.kind
            )
            await self._events.record_ended_sessions(
                repositories, user_id, ended, now, reason="change-undone"
            )
        await self._invalidation.forget(old_keys)

    async def _give_address_back(
        self, repositories: Repositories, change: AccountChange, present: Email, now: datetime
    ) -> list[str]:
        """Give the account the address back that it had; return the cache keys that became old.

        What came with other addresses ends: identities, and what was changed since. The account is
        as confirmed as it was: that somebody reads the mail of an address that never was confirmed
        does not make a stranger's account theirs. A password chosen since is the thief's; the one
        from before stays, and its owner is mailed a token for a new one.
        """
        user_id, email = change.user_id, change.email
        old_keys = await self._make_room(repositories, change, now)
        try:
            await repositories.users.change_email(
                user_id, email, now if change.email_confirmed else None
            )
        except EmailTaken as error:  # at this moment: to be looked at anew
            raise TryAgain from error
        if change.password_changed:
            await repositories.users.set_password_hash(user_id, None)
        await repositories.account_changes.delete_from(change)
        await repositories.confirmations.delete_of_user(user_id)
        await repositories.enrichments.delete_of_user(user_id)
        await repositories.identities.delete_of_other_emails(user_id, email.key)
        await self._jobs.plan(repositories, jobs_about_email(user_id))
        await self._jobs.plan(repositories, mail_to_email(MailKind.CHANGE_UNDONE, email))
        if present.key != email.key:
            told = mail_to_email(MailKind.EMAIL_CHANGED, present, user_id)
            await self._jobs.plan(repositories, told)
        return [
            *old_keys,
            code_key(email.key),
            *self._users.keys_of_email(present.key),
        ]

    async def _make_room(
        self, repositories: Repositories, change: AccountChange, now: datetime
    ) -> list[str]:
        """Erase the account that was registered with the address meanwhile and not confirmed.

        Returns the cache keys that became old. Raises TokenUnusable where the address was
        confirmed, or is an admin's, which an operator has made.
        """
        squatter = await repositories.users.find_by_email(change.email.key)
        if squatter is None or squatter.user_id == change.user_id:
            return []
        if squatter.email_confirmed or squatter.role is Role.ADMIN:
            raise TokenUnusable
        reclaimed = await self._users.reclaim(repositories, squatter.user_id, now)
        if reclaimed is None:
            raise TryAgain  # confirmed, or erased, at this moment
        email, old_keys = reclaimed
        return old_keys + await self._users.remove(
            repositories, squatter.user_id, email, None, now, reason="address-given-back"
        )
