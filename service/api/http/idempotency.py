"""Repeated POSTs get the first response (draft-ietf-httpapi-idempotency-key-header)."""

import hmac
import json
import re
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar
from uuid import UUID

from aiohttp import web

from service.api.http.app_keys import SERVICES, SETTINGS
from service.api.http.client_address import client_address
from service.api.http.problem_types import BadRequest
from service.api.http.problems import problem_of
from service.domain.errors import Conflict, IdempotencyKeyReused, InvalidInput
from service.domain.idempotency import IdempotencyKey
from service.domain.keyed_hashes import keyed_hash
from service.repositories.idempotency_keys import Answer
from service.use_cases.idempotency import AlreadyAnswered, AnswerOnce

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
T = TypeVar("T")


async def answer_once(
    request: web.Request,
    owner: UUID | str | None,
    work: Callable[[AnswerOnce[T]], Awaitable[T]],
    render: Callable[[T], Answer],
) -> web.Response:
    """Return the result of `work` as rendered, or the first response to the same request.

    Keys belong to their owner, a user's id or `client:ID`, or, if nobody is signed in, to the
    client's address. A refusal by a rule is kept as a response too; a failure or a full queue,
    which says nothing about the request, is not.
    """
    key = await _read_key(request, owner)
    once = AnswerOnce(key, render)
    try:
        return _response(render(await work(once)))
    except AlreadyAnswered as repetition:
        response = _response(repetition.answer)
        response.headers["Idempotency-Replayed"] = "true"
        return response
    except IdempotencyKeyReused:
        raise
    except (Conflict, InvalidInput) as error:
        if key is not None:
            response = problem_of(error, request)
            assert isinstance(response.body, bytes)
            await request.app[SERVICES].refusals.keep(key, Answer(response.status, response.body))
        raise


async def _read_key(request: web.Request, owner: UUID | str | None) -> IdempotencyKey | None:
    text = request.headers.get("Idempotency-Key")
    if text is None:
        return None
    if not _KEY.fullmatch(text):
        raise BadRequest(
            "An Idempotency-Key has 1 to 255 printable ASCII characters and no spaces."
        )
    call = f"{request.method} {request.path}\n"
    # As a document: a client may repeat it with its members in another order.
    body = json.dumps(json.loads((await request.read()).decode("utf-8-sig")), sort_keys=True)
    hash_key = request.app[SETTINGS].hash_key
    fingerprint = hmac.digest(hash_key, b"request " + (call + body).encode(), "sha256")
    if owner is not None:
        scope = str(owner)
    else:
        scope = f"address {keyed_hash(hash_key, 'idempotency', client_address(request))}"
    return IdempotencyKey(scope, text, fingerprint, owner if isinstance(owner, UUID) else None)


def _response(answer: Answer) -> web.Response:
    refused = answer.status >= 400
    return web.Response(
        status=answer.status,
        body=answer.body,
        content_type="application/problem+json" if refused else "application/json",
    )
