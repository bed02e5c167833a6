"""Claims: registering where email addresses have to be confirmed first.

A claim is stored after the same work whether or not the address has an account, without looking at
accounts: neither the answer nor its time reveals one. It becomes the account, with its own password
and referral code, when its own token comes back; all other claims of the address end then.
"""

from datetime import datetime
from uuid import UUID

from uuid6 import uuid7

from service.domain.claims import CLAIM_LIVES, Claim
from service.domain.emails import Email, parse_email
from service.domain.errors import EmailTaken, TokenUnusable
from service.domain.identities import Identity, IdentityTaken
from service.domain.passwords import check_password
from service.postgresql.database import Repositories, TryAgain, retried
from service.use_cases.erasure import reclaim
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.mails import mail_to_claim
from service.use_cases.referring import find_code, refer_by_code_id
from service.use_cases.shared import Shared
from service.use_cases.users import Registration, Users


class Claims:
    """Registrations that wait for a confirmation."""

    def __init__(self, shared: Shared, users: Users) -> None:
        self._shared = shared
        self._users = users

    async def register(self, registration: Registration, once: AnswerOnce[None]) -> None:
        """Store a claim, and have its mail sent.

        Raises EmailMalformed, PasswordUnacceptable, or ReferralCodeUnusable, whether or not the
        address has an account.
        """
        shared = self._shared
        email = parse_email(registration.email)
        check_password(registration.password, email, shared.password_rules, "password")
        now = shared.clock()
        await once.look(shared.database, now)
        async with shared.database.autocommit() as repositories:
            code_id = await find_code(shared, repositories, registration.referral_code, now)
        password_hash = await shared.hasher.hash(registration.password)
        await self._register(email, code_id, password_hash, once)

    @retried
    async def _register(
        self, email: Email, code_id: UUID | None, password_hash: str, once: AnswerOnce[None]
    ) -> None:
        now = self._shared.clock()
        async with self._shared.database.transaction() as repositories:
            await once.claim(repositories, now)
            await self._add_claim(repositories, email, code_id, now, password_hash=password_hash)
            await once.keep(repositories, None, None)

    async def add_of_identity(
        self,
        repositories: Repositories,
        email: Email,
        identity: Identity,
        referral_code: str | None,
        now: datetime,
    ) -> None:
        """Store the claim of an identity whose issuer has not verified the address.

        Raises ReferralCodeUnusable.
        """
        code_id = await find_code(self._shared, repositories, referral_code, now)
        await self._add_claim(repositories, email, code_id, now, identity=identity)

    async def _add_claim(
        self,
        repositories: Repositories,
        email: Email,
        referral_code_id: UUID | None,
        now: datetime,
        *,
        password_hash: str | None = None,
        identity: Identity | None = None,
    ) -> None:
        claim = Claim(
            claim_id=uuid7(),
            email=email,
            password_hash=password_hash,
            identity=identity,
            referral_code_id=referral_code_id,
            created_at=now,
            expires_at=now + CLAIM_LIVES,
        )
        await repositories.claims.add(claim)
        await self._shared.jobs.plan(repositories, mail_to_claim(claim.claim_id))

    async def confirm(self, repositories: Repositories, claim_id: UUID, now: datetime) -> UUID:
        """Turn the claim into the account of its address, and return the account's id.

        In the caller's transaction, which has locked the claims of the address, has taken the
        claim's token, and deletes the claims. Raises TokenUnusable if the claim has expired, or the
        address has a confirmed account.
        """
        claim = await repositories.claims.find(claim_id, now)
        if claim is None:
            raise TokenUnusable
        try:
            async with repositories.savepoint():  # undone alone: the transaction goes on
                user = await self._users.add_account(
                    repositories,
                    claim.email,
                    now,
                    password_hash=claim.password_hash,
                    email_confirmed=True,
                )
            user_id = user.user_id
        except EmailTaken:
            user_id = await self._take_over(repositories, claim, now)
        if claim.identity is not None:
            try:
                await repositories.identities.add(claim.identity, user_id, now)
            except IdentityTaken as error:
                raise TokenUnusable from error
        # The mails with the claim's other tokens confirm the same.
        await repositories.mail_tokens.hand_over(claim_id, user_id)
        if claim.referral_code_id is not None:
            await refer_by_code_id(
                self._shared, repositories, user_id, claim.email, claim.referral_code_id, now
            )
        return user_id

    async def _take_over(self, repositories: Repositories, claim: Claim, now: datetime) -> UUID:
        """Give the claim the account that never confirmed the address; raise TokenUnusable."""
        owner = await repositories.users.find_by_email(claim.email.key)
        if owner is None:
            raise TryAgain  # erased, or moved to another address, since
        if owner.email_confirmed:
            raise TokenUnusable
        user = await reclaim(self._shared, repositories, owner.user_id, now)
        if user.email.key != claim.email.key:
            raise TryAgain
        await repositories.users.set_password_hash(user.user_id, claim.password_hash)
        await repositories.users.confirm_email(user.user_id, claim.email.key, now)
        return user.user_id
