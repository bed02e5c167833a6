"""Work that follows a write, may fail and must not be lost: when it is tried, and how often."""

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
"""So often a service that is still looking is asked again."""
_FIRST_WAIT: Final = timedelta(seconds=5)
_LONGEST_WAIT: Final = timedelta(hours=1)


class JobKind(StrEnum):
    """What is to be done, and so what a job's payload means."""

    FORGET = "forget"
    MAIL = "mail"
    VERIFY_EMAIL = "verify_email"
    ENRICH = "enrich"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A piece of work. `tries` counts the present one, and what a killed worker has begun."""

    job_id: UUID
    kind: JobKind
    payload: Any
    tries: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """How a job stands, as operators see it: without the payload, which is personal data."""

    job_id: UUID
    kind: str
    tries: int
    created_at: datetime
    due_at: datetime | None
    parked_at: datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """How many jobs of a kind wait or are parked, and since when the oldest one waits."""

    kind: str
    pending: int
    parked: int
    oldest: datetime | None


class RetryLater(Exception):
    """The work has not failed, but can only be done in `wait`, then with `payload` if given."""

    def __init__(self, wait: timedelta, payload: Any = None) -> None:
        super().__init__(f"in {wait}")
        self.wait = wait
        self.payload = payload


class PermanentFailure(Exception):
    """Trying again would end in the same way: the job is parked at once."""


def poll_again(job: Job, retry_later: RetryLater) -> None:
    """Raise RetryLater to ask once more, each time three times later; return after MOST_POLLS.

    Failures do not count: a service that was away for hours is asked as often as any other.
    """
    polls = job.payload.get("polls", 0)
    if polls < MOST_POLLS:
        raise RetryLater(
            retry_later.wait * 3**polls, {**job.payload, "polls": polls + 1}
        ) from retry_later


def wait_after(tries: int) -> timedelta:
    """Return how long a job that has failed so often waits.

    Twice as long each time, and never two jobs for the same time: what failed together would
    come back together.
    """
    longest: timedelta = min(_FIRST_WAIT * 2 ** min(tries - 1, 20), _LONGEST_WAIT)
    return longest * random.uniform(0.5, 1)  # noqa: S311  # nobody gains by guessing it
