"""Delivering webhooks, several at once, so that receivers that are slow or away delay no others.

Of an endpoint that answers, more and more deliveries are under way at once; of one that has just
failed, none until it has rested, and then a single one that finds out. An attempt that takes long
gives up its place, and its endpoint gets no other meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Final
from uuid import UUID

from service.domain.clock import Clock
from service.domain.errors import Unavailable
from service.domain.jobs import CLAIMED_FOR
from service.domain.webhook_deliveries import (
    DISABLED_AFTER,
    GONE,
    Delivery,
    DisabledReason,
    FailureReason,
    Outcome,
    Secrets,
    rest_after,
    wait_after,
)
from service.domain.webhooks import as_sent, endpoint_disabled, participants_in
from service.postgresql.database import Database, retried
from service.providers.webhooks import WebhookSender
from service.telemetry.metrics import WEBHOOK_ATTEMPTS
from service.use_cases.jobs import Jobs, pause_after
from service.use_cases.mails import mail_about_webhooks
from service.use_cases.webhooks import BEGUN_WITHIN_SECONDS, announce

MOST_AT_ONCE: Final = 16
"""Attempts under way in a process that take no longer than SLOW_SECONDS."""
FIRST_PLACES: Final = 2
"""How many may be under way to an endpoint of which nothing is known."""
SLOW_SECONDS: Final = 1.0
POLL_SECONDS: Final = 0.5
SWEEP_SECONDS: Final = 5.0
"""How often what waits for disabled endpoints is ended, if it came after they were disabled."""
log = logging.getLogger(__name__)


class WebhookDeliveries:
    """Sends what is due, until stopped."""

    def __init__(
        self, database: Database, jobs: Jobs, secrets: Secrets, sender: WebhookSender, clock: Clock
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._secrets = secrets
        self._sender = sender
        self._clock = clock
        # By try as well: if the clock is set forward, a job is claimed while it is under way.
        self._under_way: dict[tuple[UUID, int], tuple[UUID, float]] = {}
        self._places: dict[UUID, int] = {}
        self._ended = asyncio.Event()
        self._sweep_at = 0.0

    async def run(self, stopping: asyncio.Event) -> None:
        """Deliver until `stopping` is set, and the attempts under way are over."""
        failures = 0
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._wake(stopping))
            while not stopping.is_set():
                self._ended.clear()
                claimed_at = time.monotonic()
                claimed = list[Delivery]()
                try:
                    claimed = await self._claim()
                    failures = 0
                except Unavailable:
                    failures += 1
                except Exception:
                    log.exception("claiming deliveries failed")
                    failures += 1
                for delivery in claimed:
                    attempt = delivery.job_id, delivery.tries
                    self._under_way[attempt] = delivery.endpoint_id, claimed_at
                    tasks.create_task(self._attempt(delivery, claimed_at))
                if failures:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stopping.wait(), pause_after(failures))
                elif not claimed:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._ended.wait(), POLL_SECONDS)

    async def _wake(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._ended.set()

    async def _claim(self) -> list[Delivery]:
        """Claim as many deliveries as there is room for."""
        now = self._clock()
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
            async with self._database.autocommit() as repositories:
                await repositories.webhook_deliveries.end_of_disabled(now)
        room = MOST_AT_ONCE - sum(not _is_slow(began) for _, began in self._under_way.values())
        if room <= 0:
            return []
        async with self._database.autocommit() as repositories:
            claimed = await repositories.webhook_deliveries.claim(
                now, now + CLAIMED_FOR, room, FIRST_PLACES, self._places_left()
            )
            named = set[UUID]().union(*(participants_in(each.body or b"") for each in claimed))
            external_ids = await repositories.participants.external_ids(named) if named else {}
        return [
            replace(each, body=None if each.body is None else as_sent(each.body, external_ids))
            for each in claimed
        ]

    def _places_left(self) -> Mapping[UUID, int]:
        """Return how many more may be under way to each endpoint that was sent something."""
        left = dict(self._places)
        for endpoint_id, began in self._under_way.values():
            taken = MOST_AT_ONCE if _is_slow(began) else 1
            left[endpoint_id] = left.get(endpoint_id, FIRST_PLACES) - taken
        return {endpoint_id: max(0, places) for endpoint_id, places in left.items()}

    async def _attempt(self, delivery: Delivery, claimed_at: float) -> None:
        try:
            await self._deliver(delivery, claimed_at)
        except Unavailable:
            # It is sent again once the claim is over: at least once, not exactly once.
            log.warning("the outcome of a delivery is unknown: %s", delivery.job_id)
        except Exception:
            log.exception("delivering failed: %s", delivery.job_id)
        finally:
            del self._under_way[delivery.job_id, delivery.tries]
            self._ended.set()

    async def _deliver(self, delivery: Delivery, claimed_at: float) -> None:
        if delivery.body is None:
            async with self._database.autocommit() as repositories:
                await repositories.jobs.delete([delivery.job_id])
            return
        if time.monotonic() - claimed_at > BEGUN_WITHIN_SECONDS:
            # Its endpoint may have been disabled or have another secret by now.
            async with self._database.autocommit() as repositories:
                await repositories.jobs.give_back(delivery.job_id, delivery.tries, self._clock())
            return
        began = self._clock()
        headers = self._secrets.headers(delivery, delivery.body, began)
        outcome = await self._sender.send(delivery.url, delivery.body, headers)
        endpoint_id = delivery.endpoint_id
        if outcome.delivered:
            places = self._places.get(endpoint_id, FIRST_PLACES)
            self._places[endpoint_id] = min(places + 1, MOST_AT_ONCE)
            async with self._database.autocommit() as repositories:
                await repositories.webhook_deliveries.succeed(delivery, outcome, began)
            WEBHOOK_ATTEMPTS.labels("delivered").inc()
        else:
            self._places.pop(endpoint_id, None)
            await self._fail(delivery, outcome, began)

    async def _fail(self, delivery: Delivery, outcome: Outcome, began: datetime) -> None:
        """Let the delivery wait, or end it, and its endpoint rest, or disable it."""
        now = self._clock()
        is_gone = outcome.status == GONE
        wait = None if is_gone else wait_after(delivery.tries, outcome.retry_after)
        async with self._database.autocommit() as repositories:
            failing_since = await repositories.webhook_deliveries.fail(
                delivery,
                outcome,
                began,
                resume_at=now + rest_after(delivery.failing_since, now),
                due_at=None if wait is None else now + wait,
                reason=FailureReason.DISABLED if is_gone else FailureReason.GAVE_UP,
            )
        WEBHOOK_ATTEMPTS.labels("failed" if wait is None else "postponed").inc()
        if is_gone:
            await self._disable(delivery.endpoint_id, DisabledReason.GONE)
        elif failing_since is not None and now - failing_since >= DISABLED_AFTER:
            await self._disable(delivery.endpoint_id, DisabledReason.FAILING)

    @retried
    async def _disable(self, endpoint_id: UUID, reason: DisabledReason) -> None:
        """Disable an endpoint, unless it is or has not failed enough, and say so.

        To the admins by mail, to the companies' other endpoints by webhook.
        """
        now = self._clock()
        async with self._database.transaction() as repositories:
            endpoints = repositories.webhook_endpoints
            if not (
                await endpoints.disable(endpoint_id, reason, now)
                if reason is DisabledReason.GONE
                else await endpoints.disable_failing(endpoint_id, now - DISABLED_AFTER, now)
            ):
                return
            await repositories.webhook_deliveries.end_of_disabled(now)
            announce(repositories, now, endpoint_disabled(endpoint_id, reason))
            for admin in await repositories.users.list_admins():
                if not admin.disabled:
                    await self._jobs.plan(
                        repositories, mail_about_webhooks(admin.user_id, endpoint_id)
                    )
        log.error("webhook endpoint disabled: %s: %s", endpoint_id, reason)


def _is_slow(began: float) -> bool:
    return time.monotonic() - began > SLOW_SECONDS
