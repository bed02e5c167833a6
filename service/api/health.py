"""What operators and their tools ask: is it alive, is it ready, what has it done."""

from typing import Final

from aiohttp import web
from aiohttp_apispec import docs

from service.api.answers import to_json
from service.api.keys import CONTEXT, DATABASE, HASHER, REDIS
from service.api.openapi import refuses
from service.api.problems import problem, problem_type_of
from service.domain.errors import DatabaseUnavailable
from service.metrics import CONTENT_TYPE, DATABASE_CONNECTIONS, HASHES_PENDING, exposition

_JSON: Final = {"application/json": {"schema": {"type": "object"}}}


@docs(
    tags=["Operating"],
    summary="Is the process alive?",
    description="Touches no dependency: a failure means that the process is to be restarted.",
    responses={200: {"description": "It is.", "content": _JSON}},
)
async def live(request: web.Request) -> web.Response:
    return _status({"status": "ok"})


@docs(
    tags=["Operating"],
    summary="Can the process answer?",
    description="Without PostgreSQL it cannot; without Redis it can, from PostgreSQL.",
    responses={200: {"description": "It can; `checks` says with what.", "content": _JSON}},
)
@refuses(DatabaseUnavailable)
async def ready(request: web.Request) -> web.Response:
    checks = {"postgresql": "ok", "redis": "down" if request.app[REDIS].away else "ok"}
    try:
        await request.app[DATABASE].ping()
    except DatabaseUnavailable as error:
        checks["postgresql"] = "down"
        return problem(
            problem_type_of(DatabaseUnavailable),
            error.detail,
            request[CONTEXT].request_id,
            headers={"Retry-After": str(error.retry_after)},
            checks=checks,
        )
    return _status({"status": "degraded" if "down" in checks.values() else "ok", "checks": checks})


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
    for state, count in request.app[DATABASE].connections.items():
        DATABASE_CONNECTIONS.labels(state).set(count)
    HASHES_PENDING.set(request.app[HASHER].pending)
    return web.Response(body=exposition(), headers={"Content-Type": CONTENT_TYPE})


def _status(document: dict[str, object]) -> web.Response:
    return web.Response(body=to_json(document), content_type="application/json")
