"""Undoing what was changed on an account: by its owner, with the token in a mail.

A change is stored by the transaction that makes it: undoing an earlier change ends the later ones
too, even one whose mail is late, or is in a thief's mailbox.
"""

from datetime import datetime

from service.domain.account_changes import UNSENT_FOR, AccountChange, ChangeKind
from service.domain.emails import Email
from service.domain.errors import EmailTaken, TokenUnusable
from service.domain.jobs import JobKind
from service.domain.mails import MailKind
from service.domain.oauth import hash_secret
from service.domain.security_events import SecurityEvent
from service.domain.users import Role
from service.postgresql.database import Repositories, TryAgain, retried
from service.use_cases.cache_invalidation import code_key
from service.use_cases.erasure import reclaim, remove_account
from service.use_cases.jobs import Jobs
from service.use_cases.mails import mail_about_change, mail_to_email
from service.use_cases.sessions import end_sessions
from service.use_cases.shared import Shared
from service.use_cases.users import jobs_about_email


async def offer_undo(
    repositories: Repositories, jobs: Jobs, change: AccountChange, now: datetime
) -> None:
    """Store a change and plan its mail, in the transaction that makes it and has locked the user.

    Without mail nobody could ever undo it: then nothing is stored.
    """
    if jobs.include(JobKind.MAIL):
        await repositories.account_changes.add(change, now + UNSENT_FOR)
        await jobs.plan(repositories, mail_about_change(change))


class AccountChanges:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    @retried
    async def undo(self, token: str) -> None:
        """Take a change back and end all sessions; raise TokenUnusable.

        A disabled account stays disabled.
        """
        shared, now = self._shared, self._shared.clock()
        token_hash = hash_secret(token)
        async with shared.database.transaction() as repositories:
            user_id = await repositories.account_changes.find_user_id(token_hash, now)
            if user_id is None:
                raise TokenUnusable
            user = await repositories.users.lock(user_id)
            change = await repositories.account_changes.take(token_hash, now)
            if user is None or change is None:
                raise TokenUnusable
            if change.kind is ChangeKind.EMAIL:
                await self._give_address_back(repositories, change, user.email, now)
            elif change.issuer is not None and change.subject is not None:
                await repositories.identities.delete(change.issuer, change.subject, user_id)
            await repositories.mail_tokens.delete_of_user(user_id)
            await shared.events.record(
                repositories, SecurityEvent.CHANGE_UNDONE, user_id, now, reason=change.kind
            )
            await end_sessions(shared, repositories, user_id, now, reason="change-undone")

    async def _give_address_back(
        self, repositories: Repositories, change: AccountChange, current: Email, now: datetime
    ) -> None:
        """Give the account its previous address back.

        What came with other addresses ends: identities, and later changes. The account is as
        confirmed as it was: reading the mail of an address that was never confirmed does not make a
        stranger's account one's own. A password chosen since is the thief's; an older one stays,
        and its owner is mailed a token for a new one.
        """
        user_id, email = change.user_id, change.email
        await self._make_room(repositories, change, now)
        try:
            await repositories.users.change_email(
                user_id, email, now if change.email_confirmed else None
            )
        except EmailTaken as error:  # at this moment: look again
            raise TryAgain from error
        if change.password_changed:
            await repositories.users.set_password_hash(user_id, None)
        await repositories.account_changes.delete_from(change)
        await repositories.confirmations.delete_of_user(user_id)
        await repositories.enrichments.delete_of_user(user_id)
        await repositories.identities.delete_of_other_emails(user_id, email.key)
        jobs = self._shared.jobs
        await jobs.plan(repositories, jobs_about_email(user_id))
        await jobs.plan(repositories, mail_to_email(MailKind.CHANGE_UNDONE, email))
        if current.key != email.key:
            notice = mail_to_email(MailKind.EMAIL_CHANGED, current, user_id)
            await jobs.plan(repositories, notice)
        old_keys = [code_key(email.key), *self._shared.keys_of_email(current.key)]
        await self._shared.invalidation.invalidate(repositories, old_keys, now)

    async def _make_room(
        self, repositories: Repositories, change: AccountChange, now: datetime
    ) -> None:
        """Erase the unconfirmed account that was registered with the address meanwhile.

        Raises TokenUnusable if it has confirmed the address, or is an admin's, which an operator
        has made.
        """
        squatter = await repositories.users.find_by_email(change.email.key)
        if squatter is None or squatter.user_id == change.user_id:
            return
        if squatter.email_confirmed or squatter.role is Role.ADMIN:
            raise TokenUnusable
        user = await reclaim(self._shared, repositories, squatter.user_id, now)
        reason = "address-given-back"
        await remove_account(self._shared, repositories, user, None, now, reason=reason)
