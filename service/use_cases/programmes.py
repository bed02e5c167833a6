"""What can be done with programmes and their rules."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from uuid6 import uuid7

from service.domain.clock import Clock
from service.domain.errors import ProgrammeNotFound, ProgrammeUnknown
from service.domain.events import Event, with_refunds
from service.domain.pages import Cursor, Page
from service.domain.programmes import PROGRAMME_KEY, Programme, Rules, Supposed, in_full, rules_of
from service.domain.rewards import Trial, try_out
from service.domain.webhooks import programme_changed
from service.postgresql.database import Database, Repositories, retried
from service.use_cases.cache_invalidation import CacheInvalidation, code_key
from service.use_cases.idempotency import AnswerOnce
from service.use_cases.webhooks import announce

MOST_VERSIONS: Final = 1000
"""Versions whose rules are kept in memory; they never change."""
Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownProgramme:
    """A programme with its newest rules, as JSON."""

    programme: Programme
    rules: Document

    @property
    def effective_rules(self) -> Document:
        return in_full(self.rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewProgramme:
    key: str
    name: str
    rules: Document
    landing_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgrammeChange:
    """What is to be changed; None leaves it as it is, and an empty `landing_url` removes it."""

    name: str | None = None
    landing_url: str | None = None
    paused: bool | None = None
    leaderboard: bool | None = None
    ended: bool | None = None


class Programmes:
    """Programmes: creating, changing, finding; rules: replacing, finding, trying."""

    def __init__(self, database: Database, invalidation: CacheInvalidation, clock: Clock) -> None:
        self._database = database
        self._invalidation = invalidation
        self._clock = clock
        self._rules: dict[tuple[UUID, int], Rules] = {}
        self._ids: dict[str, UUID] = {}

    async def find(self, key: str) -> ShownProgramme:
        """Return a programme; raise ProgrammeNotFound."""
        async with self._database.autocommit() as repositories:
            found = await repositories.programmes.find_with_rules(key)
        if found is None:
            raise ProgrammeNotFound
        return _shown(*found)

    async def page(self, limit: int, after: Cursor | None) -> Page[ShownProgramme]:
        """Return a page of all programmes, newest first."""
        async with self._database.autocommit() as repositories:
            found = await repositories.programmes.newest(limit + 1, after)
        shown = [_shown(*one) for one in found]
        return Page.of(
            shown,
            limit,
            lambda last: Cursor(last.programme.created_at, last.programme.programme_id),
        )

    @retried
    async def create(
        self, new: NewProgramme, made_by: str, once: AnswerOnce[ShownProgramme]
    ) -> ShownProgramme:
        """Create a programme with the first version of its rules; raise ProgrammeKeyTaken."""
        now = self._clock()
        programme = Programme(
            programme_id=uuid7(),
            key=new.key,
            name=new.name,
            version=1,
            landing_url=new.landing_url,
            paused=False,
            leaderboard=False,
            ended_at=None,
            created_at=now,
        )
        shown = ShownProgramme(programme=programme, rules=new.rules)
        async with self._database.transaction() as repositories:
            await once.claim(repositories, now)
            await repositories.programmes.add(programme)
            await repositories.programmes.add_version(
                programme.programme_id, 1, json.dumps(new.rules), made_by, now
            )
            await once.keep(repositories, shown, None)
        return shown

    @retried
    async def change(self, key: str, change: ProgrammeChange) -> ShownProgramme:
        """Change a programme; raise ProgrammeNotFound."""
        now = self._clock()
        async with self._database.transaction() as repositories:
            old = await repositories.programmes.lock(key)
            if old is None:
                raise ProgrammeNotFound
            new = _changed(old, change, now)
            await repositories.programmes.update(new)
            if new != old:
                announce(repositories, now, programme_changed(new))
            rules = await repositories.programmes.find_rules(new.programme_id, new.version)
            codes_die_or_live = (old.ended_at is None) is not (new.ended_at is None)
            if codes_die_or_live:
                await self._forget_codes(repositories, new, now)
        if codes_die_or_live:
            # Those of codes that were being created meanwhile.
            async with self._database.transaction() as repositories:
                await self._forget_codes(repositories, new, now)
        return _shown(new, rules)

    async def _forget_codes(
        self, repositories: Repositories, programme: Programme, now: datetime
    ) -> None:
        """Have the cache forget what look-ups by email address have found in the programme."""
        last = UUID(int=0)
        while found := await repositories.participant_codes.email_keys_of_live(
            programme.programme_id, last
        ):
            last = max(found)
            await self._invalidation.invalidate(
                repositories, list(map(code_key, found.values())), now
            )

    @retried
    async def replace_rules(
        self, key: str, version: int, rules: Document, made_by: str
    ) -> tuple[int, datetime]:
        """Add the version after `version`; return its number, and when it was made.

        Referrals keep the version they were made under. Raises ProgrammeNotFound, or RulesChanged
        if `version` is not the newest.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            programme = await repositories.programmes.find(key)
            if programme is None:
                raise ProgrammeNotFound
            programme_id = programme.programme_id
            added = await repositories.programmes.next_version(programme_id, version)
            await repositories.programmes.add_version(
                programme_id, added, json.dumps(rules), made_by, now
            )
            changed = programme_changed(replace(programme, version=added))
            announce(repositories, now, changed)
        return added, now

    async def find_version(self, key: str, version: int) -> tuple[Document, datetime]:
        """Return a version's rules, and when it was made; raise ProgrammeNotFound."""
        async with self._database.autocommit() as repositories:
            found = await repositories.programmes.find_version(key, version)
            if found is None:
                if await repositories.programmes.find(key) is None:
                    raise ProgrammeNotFound
                raise ProgrammeNotFound("The programme has no such version of its rules.")
        rules, created_at = found
        return json.loads(rules), created_at

    async def try_rules(
        self, key: str, rules: Document, referral: Supposed, events: Sequence[Event]
    ) -> Trial:
        """Return what rules would make of a referral with these events; nothing is stored.

        Raises ProgrammeNotFound.
        """
        async with self._database.autocommit() as repositories:
            if await repositories.programmes.find(key) is None:
                raise ProgrammeNotFound
        return try_out(rules_of(rules), referral, with_refunds(events), self._clock())

    async def resolve(self, repositories: Repositories, key: str) -> Programme:
        """Return the programme that a body names; raise ProgrammeUnknown."""
        if not PROGRAMME_KEY.fullmatch(key):
            raise ProgrammeUnknown
        programme = await repositories.programmes.find(key)
        if programme is None:
            raise ProgrammeUnknown
        return programme

    async def id_of(self, repositories: Repositories, key: str) -> UUID:
        """Like `resolve`, but only the id: it never changes, and is read once."""
        if key not in self._ids:
            self._ids[key] = (await self.resolve(repositories, key)).programme_id
        return self._ids[key]

    async def find_by_id(self, repositories: Repositories, programme_id: UUID) -> Programme:
        """Return a programme that something belongs to."""
        programme = await repositories.programmes.find_by_id(programme_id)
        assert programme is not None
        return programme

    async def rules(self, repositories: Repositories, programme_id: UUID, version: int) -> Rules:
        """Return a version's rules."""
        rules = self._rules.get((programme_id, version))
        if rules is None:
            if len(self._rules) >= MOST_VERSIONS:
                self._rules.clear()
            stored = await repositories.programmes.find_rules(programme_id, version)
            rules = self._rules[programme_id, version] = rules_of(json.loads(stored))
        return rules


def _shown(programme: Programme, rules: str) -> ShownProgramme:
    return ShownProgramme(programme=programme, rules=json.loads(rules))


def _changed(old: Programme, change: ProgrammeChange, now: datetime) -> Programme:
    members = {
        name: value
        for name in ("name", "landing_url", "paused", "leaderboard")
        if (value := getattr(change, name)) is not None
    }
    if change.landing_url == "":
        members["landing_url"] = None
    if change.ended is not None:
        members["ended_at"] = (old.ended_at or now) if change.ended else None
    return replace(old, **members)
