"""Claims: registering where email addresses have to be confirmed first.

A claim is stored after the same work whether or not the address has an account, and looks at no
account: neither words nor time tell. It becomes the account, with its own password and referral
code, when its own token comes back; all other claims of the address end then.
"""

from datetime import datetime
from uuid import UUID

from uuid6 import uuid7

from service.domain.claims import CLAIM_LIVES, Claim
from service.domain.clock import Clock
from service.domain.errors import EmailTaken, TokenUnusable
from service.domain.identities import Identity, IdentityTaken
from service.domain.passwords import PasswordRules, check_password
from service.domain.users import Email, parse_email
from service.postgresql.database import Database, Repositories, TransactionConflict, retried
from service.security.password_hashing import PasswordHasher
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.jobs import Jobs
from service.use_cases.mails import mail_to_claim
from service.use_cases.users import Registration, Users


class Claims:
    """Registrations that wait for a confirmation."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        users: Users,
        hasher: PasswordHasher,
        clock: Clock,
        *,
        password_rules: PasswordRules,
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._users = users
        self._hasher = hasher
        self._clock = clock
        self._password_rules = password_rules

    @retried
    async def register(self, registration: Registration, once: AnswerOnce[None]) -> None:
        """Store a claim, and have its mail sent.

        Raises EmailMalformed, PasswordUnacceptable, or ReferralCodeUnusable, whoever has the
        address.
        """
        email = parse_email(registration.email)
        check_password(registration.password, email, self._password_rules, "password")
        now = self._clock()
        await once.look(self._database, now)
        async with self._database.autocommit() as repositories:
            code_id = await self._users.find_code(repositories, registration.referral_code, now)
        password_hash = await self._hasher.hash(registration.password)
        async with self._database.transaction() as repositories:
            await once.claim(repositories, now)
            await self._add(repositories, email, code_id, now, password_hash=password_hash)
            await once.keep(repositories, None, None)

    async def add_of_identity(
        self,
        repositories: Repositories,
        email: Email,
        identity: Identity,
        referral_code: str | None,
        now: datetime,
    ) -> None:
        """Store the claim of whom another issuer signs in with an address that it is not sure of.

        Raises ReferralCodeUnusable.
        """
        code_id = await self._users.find_code(repositories, referral_code, now)
        await self._add(repositories, email, code_id, now, identity=identity)

    async def _add(
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
        await self._jobs.plan(repositories, mail_to_claim(claim.claim_id))

    async def confirm(
        self, repositories: Repositories, claim_id: UUID, now: datetime
    ) -> tuple[UUID, list[str]]:
        """Make the claim the account of its address, in the caller's transaction.

        The caller has locked the claims of the address, has taken the claim's token, and deletes
        the claims. Returns the account, and the cache keys that became old. Raises TokenUnusable
        if the claim has expired, or somebody has a confirmed account with the address.
        """
        claim = await repositories.claims.find(claim_id, now)
        if claim is None:
            raise TokenUnusable
        try:
            async with repositories.savepoint():  # undone alone: the transaction goes on
                user, old_keys = await self._users.add(
                    repositories,
                    claim.email,
                    now,
                    None,
                    password_hash=claim.password_hash,
                    email_confirmed=True,
                )
            user_id = user.user_id
        except EmailTaken:
            user_id, old_keys = await self._take_over(repositories, claim, now)
        if claim.identity is not None:
            try:
                await repositories.identities.add(claim.identity, user_id, now)
            except IdentityTaken as error:
                raise TokenUnusable from error
        # The mails with the claim's other tokens confirm the same.
        await repositories.mail_tokens.hand_over(claim_id, user_id)
        if claim.referral_code_id is not None:
            old_keys += await self._users.refer_by_id(
                repositories, user_id, claim.email, claim.referral_code_id, now
            )
        return user_id, old_keys

    async def _take_over(
        self, repositories: Repositories, claim: Claim, now: datetime
    ) -> tuple[UUID, list[str]]:
        """Give the claim the account that never confirmed the address; raise TokenUnusable."""
        owner = await repositories.users.find_by_email(claim.email.key)
        if owner is None:
            raise TransactionConflict  # erased, or moved to another address, since
        if owner.email_confirmed:
            raise TokenUnusable
        reclaimed = await self._users.reclaim(repositories, owner.user_id, now)
        if reclaimed is None or reclaimed[0].key != claim.email.key:
            raise TransactionConflict
        await repositories.users.set_password_hash(owner.user_id, claim.password_hash)
        await repositories.users.confirm_email(owner.user_id, claim.email.key, now)
        return owner.user_id, reclaimed[1]
