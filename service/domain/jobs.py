"""Work that follows a write, may fail and must not be lost: when and how often it is tried."""

import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

MOST_TRIES: Final = 24
"""After this many a job is parked: about half a day."""
CLAIMED_FOR: Final = timedelta(seconds=30)
"""Longer than any job takes: after this another worker may do it."""
PARKED_FOR: Final = timedelta(days=30)
MOST_POLLS: Final = 3
"""How often a service that is still looking is asked again."""
_FIRST_WAIT: Final = timedelta(seconds=5)
_LONGEST_WAIT: Final = timedelta(hours=1)


class JobKind(StrEnum):
    """What a job does, which determines its payload."""

    FORGET = "forget"
    MAIL = "mail"
    VERIFY_EMAIL = "verify_email"
    ENRICH = "enrich"
    DELIVERY = "delivery"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A piece of work. `tries` includes the current one, and those of killed workers."""

    job_id: UUID
    kind: JobKind
    payload: Any
    tries: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """A job as operators see it: without the payload, which is personal data."""

    job_id: UUID
    kind: str
    tries: int
    created_at: datetime
    due_at: datetime | None
    parked_at: datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """How many jobs of a kind are pending or parked, and when the oldest pending one was made."""

    kind: str
    pending: int
    parked: int
    oldest: datetime | None


class RetryLater(Exception):
    """The work has to wait, which is no failure; `payload`, if given, replaces the job's."""

    def __init__(self, wait: timedelta, payload: Any = None) -> None:
        super().__init__(f"in {wait}")
        self.wait = wait
        self.payload = payload


class PermanentFailure(Exception):
    """Trying again would fail the same way: the job is parked immediately."""


def poll_again(job: Job, retry_later: RetryLater) -> None:
    """Raise RetryLater to ask again, waiting three times longer each time; return after MOST_POLLS.

    Failures do not count: a service that was down for hours is asked as often as any other.
    """
    polls = job.payload.get("polls", 0)
    if polls < MOST_POLLS:
        raise RetryLater(
            retry_later.wait * 3**polls, {**job.payload, "polls": polls + 1}
        ) from retry_later


def wait_after(tries: int) -> timedelta:
    """Return how long to wait after so many failures: twice as long each time.

    With jitter: jobs that failed together must not come back together.
    """
    longest: timedelta = min(_FIRST_WAIT * 2 ** min(tries - 1, 20), _LONGEST_WAIT)
    return longest * random.uniform(0.5, 1)  # noqa: S311
