"""Signing up at a company with a referral code."""

from dataclasses import dataclass
from datetime import datetime

from service.domain.emails import Email
from service.domain.errors import AlreadyReferred, InvalidInput, ReferralCodeUnusable, SelfReferral
from service.domain.events import check_moment
from service.domain.referral_codes import TakenReferralCode, are_alike
from service.domain.referrals import ProgrammeReferral
from service.postgresql.database import Repositories, retried
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.participants import Participants, Who
from service.use_cases.referring import count_use, new_referral, normalise, note_confirmation
from service.use_cases.shared import Shared


@dataclass(frozen=True, slots=True, kw_only=True)
class SignUp:
    """A participant who signed up at a company with a code."""

    code: str
    who: Who
    clicked_at: datetime | None = None
    signed_up_at: datetime | None = None
    email: Email | None = None
    ip: str | None = None
    device_id: str | None = None

    def check(self, now: datetime) -> None:
        """Raise InvalidInput for times that a company may not report."""
        check_moment(self.clicked_at, now, "clicked_at")
        check_moment(self.signed_up_at, now, "signed_up_at")
        if self.clicked_at and self.signed_up_at and self.signed_up_at < self.clicked_at:
            raise InvalidInput("This must not be before clicked_at.", field="signed_up_at")


class SignUps:
    """Sign-ups that companies report."""

    def __init__(self, shared: Shared, participants: Participants) -> None:
        self._shared = shared
        self._participants = participants

    @retried
    async def report(
        self, sign_up: SignUp, made_by: str, once: AnswerOnce[tuple[ProgrammeReferral, bool]]
    ) -> tuple[ProgrammeReferral, bool]:
        """Make a referral of a sign-up at a company; return it, and whether it is new.

        The code must have lived when its link was followed: `clicked_at`, or now. Raises
        AlreadyReferred, ReferralCodeUnusable, SelfReferral, ProgrammeUnknown or InvalidInput.
        """
        now = self._shared.clock()
        sign_up.check(now)
        async with self._shared.database.transaction() as repositories:
            await once.claim(repositories, now)
            participant = await self._participants.take_part(repositories, sign_up.who, now)
            if participant.erased:
                raise AlreadyReferred("This participant has been erased.")
            known = await repositories.referrals.lock(participant.participant_id)
            if known is not None:
                if not are_alike(known.code, normalise(sign_up.code, "code")):
                    raise AlreadyReferred
                await once.keep(repositories, (known, False), None)
                return known, False
            signals = await self._participants.note_signals(
                repositories, participant, sign_up.email, sign_up.ip, sign_up.device_id, now
            )
            taken = await self._take(repositories, sign_up, now)
            if taken.programme_id != participant.programme_id:
                raise ReferralCodeUnusable("The code belongs to another programme.", field="code")
            if taken.owner_id == participant.participant_id:
                raise SelfReferral
            new = new_referral(
                self._shared,
                taken,
                participant.participant_id,
                sign_up.email,
                registered_at=sign_up.signed_up_at or now,
                made_by=made_by,
                signals=signals,
            )
            referral = await self._shared.referrals.add(repositories, new, now)
            if participant.user_id is not None:
                referral = await note_confirmation(self._shared, repositories, referral, now)
            await count_use(self._shared, repositories, taken, now)
            await once.keep(repositories, (referral, True), None)
        return referral, True

    async def _take(
        self, repositories: Repositories, sign_up: SignUp, now: datetime
    ) -> TakenReferralCode:
        """Count a use of the code that the link led to; raise ReferralCodeUnusable."""
        code, uses = normalise(sign_up.code, "code"), repositories.referral_code_uses
        confirmed_only = self._shared.confirmation_required
        if sign_up.clicked_at is None:
            taken = await uses.take(code, now, confirmed_only=confirmed_only)
        else:
            found = await uses.find_at(code, sign_up.clicked_at, confirmed_only=confirmed_only)
            taken = None if found is None else await uses.take_by_id(found, now)
        if taken is None:
            raise ReferralCodeUnusable(field="code")
        return taken
