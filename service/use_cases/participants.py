"""What can be done with participants, who have an account here or only at a company."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from uuid6 import uuid7

from service.domain.emails import Email
from service.domain.errors import (
    InvalidInput,
    InvalidToken,
    ParticipantErased,
    ParticipantNotFound,
    ReferralCodeNotFound,
    ReferralCodeTaken,
)
from service.domain.participants import Participant, external_hash, signals_of
from service.domain.programmes import DEFAULT_PROGRAMME
from service.domain.referral_codes import (
    NewReferralCode,
    PublicReferralCode,
    ReferralCode,
    issue_referral_code,
)
from service.domain.webhooks import participant_created
from service.postgresql.database import Repositories, TryAgain, retried
from service.use_cases.cache_invalidation import code_key
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.locks import lock_standing
from service.use_cases.programmes import Programmes
from service.use_cases.referral_codes import ReferralCodes
from service.use_cases.shared import Shared
from service.use_cases.webhooks import announce


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """A participant as a company names one: exactly one of the two ids.

    `programme` is the key of the programme that `external_id` belongs to.
    """

    external_id: str | None = None
    participant_id: UUID | None = None
    programme: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewParticipant:
    who: Who
    code: NewReferralCode | None = None
    email: Email | None = None
    ip: str | None = None
    device_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantChange:
    """What is to be changed; None leaves it as it is."""

    trusted: bool | None = None
    blocked: bool | None = None
    public_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownParticipant:
    """A participant with the key of the programme and the live code."""

    participant: Participant
    programme: str
    code: ReferralCode | None


class Participants:
    """Participants: creating, finding, changing, signing up, erasing; their codes."""

    def __init__(self, shared: Shared, programmes: Programmes, codes: ReferralCodes) -> None:
        self._shared = shared
        self._database = shared.database
        self._clock = shared.clock
        self._programmes = programmes
        self._codes = codes

    async def take_part(self, repositories: Repositories, who: Who, now: datetime) -> Participant:
        """Return a participant, made if only a company knows it, locked until the transaction ends.

        First thing in a transaction: the lock order begins here. Raises ProgrammeUnknown, or
        InvalidInput for a `participant_id` that nobody has.
        """
        if who.external_id is not None:
            participant, _ = await self._lock_external(repositories, who, now)
            return participant
        assert who.participant_id is not None
        found = await self._lock(repositories, who.participant_id, now)
        if found is None:
            raise InvalidInput("There is no such participant.", field="participant_id")
        if (
            who.programme is not None
            and await self._programmes.id_of(repositories, who.programme) != found.programme_id
        ):
            raise InvalidInput("The participant belongs to another programme.", field="programme")
        return found

    async def find_known(self, repositories: Repositories, who: Who) -> Participant | None:
        """Return a participant whom somebody has reported before, or an account; make nobody.

        By our id also one who is erased, for what is still owed. Raises ProgrammeUnknown.
        """
        programme_id = await self._programmes.id_of(
            repositories, who.programme or DEFAULT_PROGRAMME
        )
        if who.external_id is not None:
            return await repositories.participants.find_external(
                programme_id, self._hash(programme_id, who.external_id)
            )
        assert who.participant_id is not None
        stored = repositories.participants
        found = await stored.find(who.participant_id)
        found = found or await stored.find_erased(who.participant_id)
        elsewhere = found and who.programme and found.programme_id != programme_id
        return None if elsewhere else found

    @retried
    async def create(
        self, new: NewParticipant, once: AnswerOnce[tuple[ShownParticipant, bool]]
    ) -> tuple[ShownParticipant, bool]:
        """Make a participant, and a code if one is wanted and none is live.

        Returns it, and whether it is new. Raises ProgrammeUnknown, ParticipantErased,
        ReferralCodeTaken, or a rule that the code breaks.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            await once.claim(repositories, now)
            participant, is_new = await self._lock_external(repositories, new.who, now)
            if participant.erased:
                raise ParticipantErased
            await self.note_signals(
                repositories, participant, new.email, new.ip, new.device_id, now
            )
            if new.code is not None:
                live = await repositories.referral_codes.find_live(participant.participant_id, now)
                if live is None:
                    await self._store_wanted_code(repositories, participant, new.code, now)
            key = new.who.programme or DEFAULT_PROGRAMME
            shown = await self._show(repositories, participant, key, now)
            await once.keep(repositories, (shown, is_new), None, participant.participant_id)
        return shown, is_new

    async def find_external(self, who: Who) -> list[ShownParticipant]:
        """Return the participant of a company's id, in a list of one or none."""
        now = self._clock()
        assert who.external_id is not None
        async with self._database.autocommit() as repositories:
            key = who.programme or DEFAULT_PROGRAMME
            programme_id = await self._programmes.id_of(repositories, key)
            hashed = self._hash(programme_id, who.external_id)
            found = await repositories.participants.find_external(programme_id, hashed)
            if found is None:
                return []
            return [await self._show(repositories, found, key, now)]

    async def find_owner(self, code: PublicReferralCode) -> ShownParticipant | None:
        """Return whose code it is, None if the owner has just been erased."""
        try:
            return await self.find(code.referrer_id)
        except ParticipantNotFound:
            return None

    async def find(self, participant_id: UUID | None) -> ShownParticipant:
        """Return a participant; raise ParticipantNotFound."""
        now = self._clock()
        async with self._database.autocommit() as repositories:
            return await self._find(repositories, participant_id, now)

    @retried
    async def change(
        self, participant_id: UUID | None, change: ParticipantChange
    ) -> ShownParticipant:
        """Trust, block or name a participant, or no longer; raise ParticipantNotFound."""
        now = self._clock()
        async with self._database.transaction() as repositories:
            locked = participant_id and await self._lock(repositories, participant_id, now)
            if not locked or locked.erased:
                raise ParticipantNotFound
            await repositories.participants.update(
                locked.participant_id, change.trusted, change.blocked, now
            )
            if change.public_name is not None:
                await repositories.participants.set_public_name(
                    locked.participant_id, locked.programme_id, change.public_name
                )
            if change.blocked is not None:
                await lock_standing(repositories, locked.participant_id, locked.programme_id, now)
                await repositories.rewards.hold_of_participant(locked.participant_id)
            if change.blocked is not None and locked.user_id is not None:
                await self._forget_code(repositories, locked.user_id, now)
            return await self._find(repositories, participant_id, now)

    @retried
    async def replace_code(
        self, participant_id: UUID | None, new: NewReferralCode
    ) -> tuple[ReferralCode, bool]:
        """Issue a code in place of the live one; return it, and whether there was one.

        Raises ParticipantNotFound, ReferralCodeTaken, or a rule that the code breaks.
        """
        now = self._clock()
        shown = await self.find(participant_id)
        if shown.participant.user_id is not None:
            try:
                return await self._codes.replace(shown.participant.user_id, new)
            except InvalidToken as error:  # erased since
                raise ParticipantNotFound from error
        async with self._database.transaction() as repositories:
            locked = await repositories.participants.lock(shown.participant.participant_id)
            if locked is None or locked.erased:
                raise ParticipantNotFound
            return await self._store_code(repositories, locked, new, now, replacing=True)

    @retried
    async def delete_code(self, participant_id: UUID | None) -> None:
        """End the live code; raise ParticipantNotFound or ReferralCodeNotFound."""
        now = self._clock()
        shown = await self.find(participant_id)
        if shown.participant.user_id is not None:
            await self._codes.delete(shown.participant.user_id)
            return
        async with self._database.transaction() as repositories:
            await repositories.participants.lock(shown.participant.participant_id)
            if not await repositories.participant_codes.end(shown.participant.participant_id, now):
                raise ReferralCodeNotFound

    @retried
    async def erase(self, participant_id: UUID | None) -> None:
        """Forget who a participant is, and end the code; raise ParticipantNotFound.

        An account erases itself.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            locked = participant_id and await self._lock(repositories, participant_id, now)
            if not locked or locked.erased:
                raise ParticipantNotFound
            if locked.user_id is not None:
                raise ParticipantNotFound(
                    "This is an account, which only its owner or an admin can erase."
                )
            participant_id = locked.participant_id
            await repositories.participant_codes.end(participant_id, now)
            await repositories.referral_codes.disown_names(participant_id)
            await repositories.signals.delete_of_participant(participant_id)
            await repositories.idempotency_keys.delete_of_participant(participant_id)
            await repositories.participants.erase(participant_id, now)

    async def _lock(
        self, repositories: Repositories, participant_id: UUID, now: datetime
    ) -> Participant | None:
        """Return a participant, locked; an account becomes one."""
        found = await repositories.participants.lock(participant_id)
        if found is None:
            await repositories.participants.add_account(participant_id, now)
            found = await repositories.participants.lock(participant_id)
        return found

    async def _lock_external(
        self, repositories: Repositories, who: Who, now: datetime
    ) -> tuple[Participant, bool]:
        """Return a participant whom a company knows, locked, and whether it is new."""
        key = who.programme or DEFAULT_PROGRAMME
        programme_id = await self._programmes.id_of(repositories, key)
        assert who.external_id is not None
        hashed = self._hash(programme_id, who.external_id)
        new = uuid7(), programme_id, who.external_id, hashed, now
        locked = await repositories.participants.lock_external(*new)
        locked = locked or await repositories.participants.lock_external(*new)
        if locked is None:
            raise TryAgain
        participant, is_new = locked
        if is_new:
            created = participant_created(key, participant.participant_id)
            announce(repositories, now, created)
        return participant, is_new

    async def _find(
        self, repositories: Repositories, participant_id: UUID | None, now: datetime
    ) -> ShownParticipant:
        found = participant_id and await repositories.participants.find(participant_id)
        if not found:
            raise ParticipantNotFound
        programme = await self._programmes.find_by_id(repositories, found.programme_id)
        return await self._show(repositories, found, programme.key, now)

    async def _show(
        self, repositories: Repositories, participant: Participant, programme: str, now: datetime
    ) -> ShownParticipant:
        code = await repositories.referral_codes.find_usable(participant.participant_id, now)
        return ShownParticipant(participant=participant, programme=programme, code=code)

    async def _store_code(
        self,
        repositories: Repositories,
        participant: Participant,
        new: NewReferralCode,
        now: datetime,
        *,
        replacing: bool = False,
    ) -> tuple[ReferralCode, bool]:
        code = issue_referral_code(participant.participant_id, new, now)
        try:
            replaced = await repositories.participant_codes.add(
                code, participant.programme_id, replacing=replacing
            )
        except ReferralCodeTaken as error:
            if new.code is not None:
                raise
            raise TryAgain from error  # the next try draws another one
        return code, replaced

    async def _store_wanted_code(
        self,
        repositories: Repositories,
        participant: Participant,
        new: NewReferralCode,
        now: datetime,
    ) -> None:
        """Like `_store_code`; errors point to the member `code` of a new participant."""
        try:
            await self._store_code(repositories, participant, new, now)
        except (ReferralCodeTaken, InvalidInput) as error:
            raise type(error)(error.detail, field=f"code/{error.field}") from error

    async def note_signals(
        self,
        repositories: Repositories,
        participant: Participant,
        email: Email | None,
        ip: str | None,
        device_id: str | None,
        now: datetime,
    ) -> Mapping[str, bytes]:
        """Keep keyed hashes of what a company tells about a person, and nothing else of it.

        Returns them by kind.
        """
        signals = signals_of(self._shared.hash_key, participant.programme_id, email, ip, device_id)
        if signals:
            await repositories.signals.note(participant.participant_id, signals, now)
        return signals

    async def _forget_code(self, repositories: Repositories, user_id: UUID, now: datetime) -> None:
        """Have the cache forget the code of an account that is blocked, or no longer."""
        email_key = await repositories.users.find_email_key(user_id)
        if email_key is not None:
            keys = [code_key(email_key)]
            await self._shared.invalidation.invalidate(repositories, keys, now)

    def _hash(self, programme_id: UUID, external_id: str) -> bytes:
        return external_hash(self._shared.hash_key, programme_id, external_id)
