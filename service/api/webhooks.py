"""Webhook endpoints: where companies listen, their secrets, and what they were sent."""

from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, request_schema, response_schema
from marshmallow import Schema, fields, validate

from service.api.company import answer_client_once, locate
from service.api.docs.describe import IDEMPOTENCY_KEY
from service.api.http.app_keys import SERVICES, SETTINGS
from service.api.http.authentication import needs
from service.api.http.fields import (
    BETWEEN,
    ChangeSchema,
    Moment,
    PageQuery,
    RequestSchema,
    Text,
    TrueOrFalse,
    WholeNumber,
)
from service.api.http.requests import Rule, page_in, read_body, read_id, read_page, read_query
from service.api.http.responses import PageSchema, answer, no_content, respond
from service.domain.errors import (
    Conflict,
    NotAllowed,
    NotFound,
    RotationUnderWay,
    WebhookEndpointNotFound,
    WebhookUrlRefused,
)
from service.domain.scopes import Scope
from service.domain.webhook_addresses import check_url
from service.domain.webhook_deliveries import DeliveryState
from service.domain.webhooks import EventType
from service.use_cases.webhooks import EndpointChange, NewEndpoint

LONGEST_OVERLAP_HOURS: Final = 168
_URL: Final = "https://hooks.example.com/referrals"


def _url(**options: Any) -> Text:
    return Text(
        metadata={
            "description": "Begins with `https://`, has a public host, no user and no fragment.",
            "example": _URL,
        },
        **options,
    )


class _Types(fields.List[EventType]):
    """Each type once, in the order of the request."""

    def _deserialize(self, *arguments: Any, **options: Any) -> list[EventType | None]:
        return list(dict.fromkeys(super()._deserialize(*arguments, **options)))


def _types() -> _Types:
    return _Types(
        fields.Enum(EventType, by_value=True, error_messages={"unknown": "There is no such type."}),
        metadata={"description": "What it is sent. All types if there are none."},
    )


class NewEndpointSchema(RequestSchema):
    url = _url(required=True)
    types = _types()


class EndpointChangeSchema(ChangeSchema):
    url = _url()
    types = _types()
    disabled = TrueOrFalse(
        metadata={
            "description": "Once a request that disables it is answered, nothing more is sent; "
            "what waits has failed."
        }
    )


class RotationSchema(RequestSchema):
    overlap_hours = WholeNumber(
        load_default=24,
        validate=validate.Range(0, LONGEST_OVERLAP_HOURS, error=BETWEEN),
        metadata={
            "description": "How long the previous secret signs along. 0, if one has leaked: only "
            "the new one signs from now on."
        },
    )


class ReplaySchema(RequestSchema):
    since = Moment(required=True, metadata={"description": "Messages are kept for 30 days."})
    only_failed = TrueOrFalse(
        load_default=True, metadata={"description": "`false` sends again what was delivered, too."}
    )


class EndpointSchema(Schema):
    id = fields.UUID(attribute="endpoint_id")
    url = fields.String(metadata={"example": _URL})
    types = fields.List(fields.String(metadata={"example": EventType.REFERRAL_QUALIFIED}))
    disabled_at = Moment(allow_none=True)
    disabled_reason = fields.String(
        allow_none=True,
        metadata={
            "description": "`requested`; `gone`: it answered 410; `failing`: every attempt failed "
            "for five days."
        },
    )
    failing_since = Moment(
        allow_none=True, metadata={"description": "Null if the last attempt succeeded."}
    )
    secret_number = fields.Integer(metadata={"description": "Grows with each rotation."})
    previous_until = Moment(
        allow_none=True, metadata={"description": "Until when the previous secret signs along."}
    )
    created_at = Moment()


class EndpointsSchema(PageSchema):
    items = fields.List(fields.Nested(EndpointSchema))


class SecretsSchema(Schema):
    secret = fields.String(metadata={"example": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
    previous = fields.String(
        allow_none=True, metadata={"description": "The previous secret while it signs along."}
    )


class MessageSchema(Schema):
    message_id = fields.UUID(metadata={"description": "What the receiver sees as `webhook-id`."})


class ReplayedSchema(Schema):
    messages = fields.Integer(metadata={"description": "How many are sent again."})


class AttemptSchema(Schema):
    at = Moment()
    status = fields.Integer(
        allow_none=True, metadata={"description": "Of the answer; null without one."}
    )
    error = fields.String(
        allow_none=True, metadata={"description": "Why there was no answer.", "example": "timeout"}
    )
    milliseconds = fields.Integer()


class DeliverySchema(Schema):
    message_id = fields.UUID()
    type = fields.String(metadata={"example": EventType.REFERRAL_QUALIFIED})
    state = fields.Enum(DeliveryState, by_value=True)
    reason = fields.String(
        allow_none=True,
        metadata={"description": "Why it failed: `gave-up` after ten attempts, or `disabled`."},
    )
    created_at = Moment()
    attempts = fields.List(
        fields.Nested(AttemptSchema), metadata={"description": "The oldest first."}
    )


class DeliveriesSchema(PageSchema):
    items = fields.List(fields.Nested(DeliverySchema))


class DeliveryQuery(PageQuery):
    state = fields.Enum(
        DeliveryState,
        by_value=True,
        load_default=None,
        metadata={"description": "Only deliveries in this state."},
    )


_REFUSES: Final = (WebhookEndpointNotFound, NotAllowed)


@docs(
    tags=["Webhooks"],
    summary="Create an endpoint",
    description="There can be twenty.",
    parameters=[IDEMPOTENCY_KEY],
    refuses=(WebhookUrlRefused, NotAllowed),
    locates=(201,),
)
@request_schema(
    NewEndpointSchema, example={"url": _URL, "types": [EventType.REFERRAL_QUALIFIED.value]}
)
@response_schema(EndpointSchema, 201, description="The new endpoint.")
@needs(Scope.PROGRAMME_MANAGE)
async def create_endpoint(request: web.Request) -> web.Response:
    new = NewEndpoint(**await read_body(request, _url_rule(request)))
    response = await answer_client_once(
        request,
        lambda once: request.app[SERVICES].webhooks.create(new, once),
        lambda endpoint: answer(request, endpoint, 201),
    )
    return locate(request, response, "webhook-endpoints", "id")


@docs(tags=["Webhooks"], summary="List the endpoints", refuses=(NotAllowed,))
@querystring_schema(PageQuery)
@response_schema(EndpointsSchema, 200, description="A page of endpoints, newest first.")
@needs(Scope.PROGRAMME_MANAGE)
async def list_endpoints(request: web.Request) -> web.Response:
    page = await request.app[SERVICES].webhooks.page(*read_page(request))
    return respond(request, page)


@docs(tags=["Webhooks"], summary="Show an endpoint", refuses=_REFUSES)
@response_schema(EndpointSchema, 200, description="The endpoint.")
@needs(Scope.PROGRAMME_MANAGE)
async def show_endpoint(request: web.Request) -> web.Response:
    return respond(request, await request.app[SERVICES].webhooks.find(_id_in(request)))


@docs(
    tags=["Webhooks"],
    summary="Change, disable or enable an endpoint",
    description="To send what it missed while it was disabled, enable it and *Send messages "
    "again*.",
    refuses=(WebhookUrlRefused, *_REFUSES),
)
@request_schema(EndpointChangeSchema, example={"disabled": True})
@response_schema(EndpointSchema, 200, description="The changed endpoint.")
@needs(Scope.PROGRAMME_MANAGE)
async def change_endpoint(request: web.Request) -> web.Response:
    change = EndpointChange(**await read_body(request, _url_rule(request)))
    endpoint = await request.app[SERVICES].webhooks.change(_id_in(request), change)
    return respond(request, endpoint)


@docs(
    tags=["Webhooks"],
    summary="Delete an endpoint",
    responses={204: {"description": "It is deleted, and is sent nothing more."}},
    refuses=_REFUSES,
)
@needs(Scope.PROGRAMME_MANAGE)
async def delete_endpoint(request: web.Request) -> web.Response:
    await request.app[SERVICES].webhooks.delete(_id_in(request))
    return no_content()


@docs(
    tags=["Webhooks"],
    summary="Show the secret of an endpoint",
    description="Give it to a library for Standard Webhooks, which checks signatures with it.",
    refuses=_REFUSES,
)
@response_schema(SecretsSchema, 200, description="The secret.")
@needs(Scope.PROGRAMME_MANAGE)
async def show_secret(request: web.Request) -> web.Response:
    secrets = await request.app[SERVICES].webhooks.secrets_of(_id_in(request))
    return respond(request, secrets)


@docs(
    tags=["Webhooks"],
    summary="Rotate the secret of an endpoint",
    description="The previous secret signs along for a while, so that no receiver refuses anything "
    "meanwhile.",
    refuses=(RotationUnderWay, *_REFUSES),
)
@request_schema(RotationSchema, example={"overlap_hours": 24})
@response_schema(EndpointSchema, 200, description="The endpoint, with another secret.")
@needs(Scope.PROGRAMME_MANAGE)
async def rotate_secret(request: web.Request) -> web.Response:
    overlap = timedelta(hours=(await read_body(request))["overlap_hours"])
    endpoint = await request.app[SERVICES].webhooks.rotate(_id_in(request), overlap)
    return respond(request, endpoint)


@docs(
    tags=["Webhooks"],
    summary="Send a test",
    description="A message of the type `webhook.test`, whatever the endpoint's types are.",
    refuses=(Conflict, *_REFUSES),
)
@response_schema(MessageSchema, 202, description="The test will be sent.")
@needs(Scope.PROGRAMME_MANAGE)
async def send_test(request: web.Request) -> web.Response:
    message_id = await request.app[SERVICES].webhooks.test(_id_in(request))
    return respond(request, {"message_id": message_id}, 202)


@docs(
    tags=["Webhooks"],
    summary="Send messages again",
    description="What failed since then, under the same ids. What nobody listened to at the time "
    "was not kept.",
    refuses=(Conflict, *_REFUSES),
)
@request_schema(ReplaySchema, example={"since": "2026-11-21T09:30:00Z"})
@response_schema(ReplayedSchema, 202, description="The messages will be sent.")
@needs(Scope.PROGRAMME_MANAGE)
async def replay(request: web.Request) -> web.Response:
    body = await read_body(request)
    messages = await request.app[SERVICES].webhooks.replay(
        _id_in(request), body["since"], only_failed=body["only_failed"]
    )
    return respond(request, {"messages": messages}, 202)


@docs(tags=["Webhooks"], summary="List the deliveries to an endpoint", refuses=_REFUSES)
@querystring_schema(DeliveryQuery)
@response_schema(DeliveriesSchema, 200, description="A page of deliveries, newest first.")
@needs(Scope.PROGRAMME_MANAGE)
async def list_deliveries(request: web.Request) -> web.Response:
    query = read_query(request)
    page = await request.app[SERVICES].webhooks.deliveries(
        _id_in(request), query["state"], *page_in(request, query)
    )
    return respond(request, page)


@docs(
    tags=["Webhooks"],
    summary="Send a message again",
    description="Now, whatever became of it.",
    refuses=(NotFound, Conflict, *_REFUSES),
)
@response_schema(MessageSchema, 202, description="The message will be sent.")
@needs(Scope.PROGRAMME_MANAGE)
async def retry_delivery(request: web.Request) -> web.Response:
    endpoint_id, message_id = _id_in(request), read_id(request, "message_id", NotFound)
    await request.app[SERVICES].webhooks.retry(endpoint_id, message_id)
    return respond(request, {"message_id": message_id}, 202)


def _id_in(request: web.Request) -> UUID:
    return read_id(request, "endpoint_id", WebhookEndpointNotFound)


def _url_rule(request: web.Request) -> Rule:
    networks = request.app[SETTINGS].webhook_networks
    return "url", lambda its: check_url(its["url"], networks)
