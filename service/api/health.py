"""What operators and their tools ask: is it alive, is it ready, what has it done?"""

from contextlib import suppress
from typing import Final

from aiohttp import web
from aiohttp_apispec import docs

from service.api.docs.describe import json_of
from service.api.http.app_keys import ACCESS_LOG, CONTEXT, SERVICES, STOPPING
from service.api.http.prebuilt import PrebuiltResponse
from service.api.http.problems import problem
from service.api.http.responses import to_json
from service.domain.clock import utc_now
from service.domain.errors import DatabaseUnavailable, MigrationsPending, NotFound, Unavailable
from service.domain.jobs import JobKind
from service.telemetry.metrics import (
    CONTENT_TYPE,
    DATABASE_CONNECTIONS,
    HASHES_PENDING,
    JOBS_OLDEST_SECONDS,
    JOBS_PARKED,
    JOBS_PENDING,
    REVIEWS_OLDEST_SECONDS,
    REVIEWS_OPEN,
    WEBHOOK_ENDPOINTS,
    exposition,
)
from service.use_cases.jobs import Jobs
from service.use_cases.referrals import Referrals
from service.use_cases.webhooks import Webhooks

METRICS: Final = "/metrics"


@docs(
    tags=["Operating"],
    summary="Is the process alive?",
    description="Touches no dependency: a failure means that the process is to be restarted.",
    responses={200: json_of("The process is alive.")},
)
async def live(request: web.Request) -> web.Response:
    return PrebuiltResponse(to_json({"status": "ok"}))


@docs(
    tags=["Operating"],
    summary="Can the process answer?",
    description="It cannot without PostgreSQL, on a schema that is older than the release, and "
    "while it is stopping; without Redis it can, from PostgreSQL.",
    responses={200: json_of("The process can answer; `checks` has the state of its servers.")},
    refuses=(DatabaseUnavailable, MigrationsPending, Unavailable),
)
async def ready(request: web.Request) -> web.Response:
    if request.app[STOPPING].is_set():
        raise Unavailable("The process is about to end.")
    checks = {"postgresql": "ok", "redis": "ok" if request.app[SERVICES].redis.answers else "down"}
    try:
        await request.app[SERVICES].database.check_schema()
    except (DatabaseUnavailable, MigrationsPending) as error:
        if isinstance(error, DatabaseUnavailable):
            checks["postgresql"] = "down"
        return problem(error, request[CONTEXT].request_id, checks=checks)
    status = "degraded" if "down" in checks.values() else "ok"
    return PrebuiltResponse(to_json({"status": status, "checks": checks}))


@docs(
    tags=["Operating"],
    summary="Metrics for Prometheus",
    responses={
        200: {
            "description": "Prometheus' text format, summed over the workers.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    },
)
async def metrics(request: web.Request) -> web.Response:
    # Otherwise /%6detrics would get past a proxy that hides /metrics from the public.
    if request.raw_path.partition("?")[0] != METRICS:
        raise NotFound
    return await metrics_of(request.app)


async def metrics_of(app: web.Application) -> web.Response:
    """Return the answer with the metrics of an application and of its sibling processes."""
    app[ACCESS_LOG].flush()  # measures the requests so far
    for state, count in app[SERVICES].database.connections.items():
        DATABASE_CONNECTIONS.labels(state).set(count)
    HASHES_PENDING.set(app[SERVICES].hasher.pending)
    with suppress(Unavailable):  # then the last known figures are shown
        await _measure_jobs(app[SERVICES].jobs)
        await _measure_reviews(app[SERVICES].referrals)
        await _measure_endpoints(app[SERVICES].webhooks)
    return web.Response(body=exposition(), headers={"Content-Type": CONTENT_TYPE})


async def _measure_reviews(referrals: Referrals) -> None:
    waiting, oldest = await referrals.reviews()
    REVIEWS_OPEN.set(waiting)
    REVIEWS_OLDEST_SECONDS.set((utc_now() - oldest).total_seconds() if oldest else 0)


async def _measure_jobs(jobs: Jobs) -> None:
    backlogs = {backlog.kind: backlog for backlog in await jobs.backlogs()}
    now = utc_now()
    for kind in JobKind:
        backlog = backlogs.get(kind)
        oldest = backlog.oldest if backlog else None
        JOBS_PENDING.labels(kind).set(backlog.pending if backlog else 0)
        JOBS_PARKED.labels(kind).set(backlog.parked if backlog else 0)
        JOBS_OLDEST_SECONDS.labels(kind).set((now - oldest).total_seconds() if oldest else 0)


async def _measure_endpoints(webhooks: Webhooks) -> None:
    counts = await webhooks.count()
    WEBHOOK_ENDPOINTS.labels("live").set(counts.live)
    WEBHOOK_ENDPOINTS.labels("resting").set(counts.resting)
    WEBHOOK_ENDPOINTS.labels("disabled").set(counts.disabled)
