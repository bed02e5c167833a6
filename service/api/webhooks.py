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
            "description": "An `https://` URL with a public host, and without a user, a password "
            "or a fragment.",
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
        metadata={
            "description": "The types of messages to send to the endpoint. An empty list means all "
            "types."
        },
    )


class NewEndpointSchema(RequestSchema):
    url = _url(required=True)
    types = _types()


class EndpointChangeSchema(ChangeSchema):
    url = _url()
    types = _types()
    disabled = TrueOrFalse(
        metadata={
            "description": "Whether the endpoint is disabled. Once you have the response to a "
            "request that disables it, nothing more is sent, and pending deliveries have failed."
        }
    )


class RotationSchema(RequestSchema):
    overlap_hours = WholeNumber(
        load_default=24,
        validate=validate.Range(0, LONGEST_OVERLAP_HOURS, error=BETWEEN),
        metadata={
            "description": "How many hours messages are signed with the previous secret as well. "
            "Send 0 if a secret has leaked: from then on, only the new one signs."
        },
    )


class ReplaySchema(RequestSchema):
    since = Moment(
        required=True,
        metadata={
            "description": "Only messages created at or after this time. They are kept for 30 days."
        },
    )
    only_failed = TrueOrFalse(
        load_default=True,
        metadata={
            "description": "Whether to send only messages that could not be delivered; `false` "
            "also repeats those that were."
        },
    )


class EndpointSchema(Schema):
    id = fields.UUID(attribute="endpoint_id")
    url = fields.String(metadata={"example": _URL})
    types = fields.List(fields.String(metadata={"example": EventType.REFERRAL_QUALIFIED}))
    disabled_at = Moment(allow_none=True)
    disabled_reason = fields.String(
        allow_none=True,
        metadata={
            "description": "Why the endpoint is disabled; null if it is not. `requested`: by a "
            "request. `gone`: it responded with 410. `failing`: every attempt failed for five days."
        },
    )
    failing_since = Moment(
        allow_none=True,
        metadata={
            "description": "Since when attempts have been failing; null if the last one succeeded."
        },
    )
    secret_number = fields.Integer(metadata={"description": "Increases with each rotation."})
    previous_until = Moment(
        allow_none=True,
        metadata={
            "description": "When the previous secret stops signing, which may be in the past. Null "
            "if the endpoint has never been rotated, or was last rotated without an overlap."
        },
    )
    created_at = Moment()


class EndpointsSchema(PageSchema):
    items = fields.List(fields.Nested(EndpointSchema))


class SecretsSchema(Schema):
    secret = fields.String(metadata={"example": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
    previous = fields.String(
        allow_none=True,
        metadata={"description": "The previous secret while it still signs; otherwise null."},
    )


class MessageSchema(Schema):
    message_id = fields.UUID(metadata={"description": "The `webhook-id` of the message."})


class ReplayedSchema(Schema):
    messages = fields.Integer(metadata={"description": "How many messages will be sent again."})


class AttemptSchema(Schema):
    at = Moment()
    status = fields.Integer(
        allow_none=True,
        metadata={"description": "The status of the response; null if there was none."},
    )
    error = fields.String(
        allow_none=True,
        metadata={
            "description": "Why there was no response; otherwise null.",
            "example": "timeout",
        },
    )
    milliseconds = fields.Integer()


class DeliverySchema(Schema):
    message_id = fields.UUID()
    type = fields.String(metadata={"example": EventType.REFERRAL_QUALIFIED})
    state = fields.Enum(DeliveryState, by_value=True)
    reason = fields.String(
        allow_none=True,
        metadata={
            "description": "Why the delivery failed: `gave-up` after ten attempts, or `disabled` "
            "with the endpoint. Otherwise null."
        },
    )
    created_at = Moment()
    attempts = fields.List(fields.Nested(AttemptSchema), metadata={"description": "Oldest first."})


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
    summary="Create a webhook endpoint",
    description="Creates an endpoint for messages from now on, of all types unless `types` lists "
    "some. There can be at most 20.",
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


@docs(tags=["Webhooks"], summary="List webhook endpoints", refuses=(NotAllowed,))
@querystring_schema(PageQuery)
@response_schema(EndpointsSchema, 200, description="A page of endpoints, newest first.")
@needs(Scope.PROGRAMME_MANAGE)
async def list_endpoints(request: web.Request) -> web.Response:
    page = await request.app[SERVICES].webhooks.page(*read_page(request))
    return respond(request, page)


@docs(tags=["Webhooks"], summary="Show a webhook endpoint", refuses=_REFUSES)
@response_schema(EndpointSchema, 200, description="The endpoint.")
@needs(Scope.PROGRAMME_MANAGE)
async def show_endpoint(request: web.Request) -> web.Response:
    return respond(request, await request.app[SERVICES].webhooks.find(_id_in(request)))


@docs(
    tags=["Webhooks"],
    summary="Change, disable or enable a webhook endpoint",
    description="Changes the members that are sent. To deliver what an endpoint has missed while "
    "it was disabled, enable it and *Replay messages*.",
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
    summary="Delete a webhook endpoint",
    responses={204: {"description": "The endpoint is deleted, and nothing more is sent to it."}},
    refuses=_REFUSES,
)
@needs(Scope.PROGRAMME_MANAGE)
async def delete_endpoint(request: web.Request) -> web.Response:
    await request.app[SERVICES].webhooks.delete(_id_in(request))
    return no_content()


@docs(
    tags=["Webhooks"],
    summary="Show an endpoint's signing secret",
    description="Shows the secret with which a Standard Webhooks library verifies signatures.",
    refuses=_REFUSES,
)
@response_schema(
    SecretsSchema, 200, description="The signing secret, and the previous one while it still signs."
)
@needs(Scope.PROGRAMME_MANAGE)
async def show_secret(request: web.Request) -> web.Response:
    secrets = await request.app[SERVICES].webhooks.secrets_of(_id_in(request))
    return respond(request, secrets)


@docs(
    tags=["Webhooks"],
    summary="Rotate an endpoint's signing secret",
    description="Replaces the signing secret. For `overlap_hours`, messages are signed with both "
    "the new and the previous secret, so that a receiver that knows either can verify them.",
    refuses=(RotationUnderWay, *_REFUSES),
)
@request_schema(RotationSchema, example={"overlap_hours": 24})
@response_schema(EndpointSchema, 200, description="The endpoint after the rotation.")
@needs(Scope.PROGRAMME_MANAGE)
async def rotate_secret(request: web.Request) -> web.Response:
    overlap = timedelta(hours=(await read_body(request))["overlap_hours"])
    endpoint = await request.app[SERVICES].webhooks.rotate(_id_in(request), overlap)
    return respond(request, endpoint)


@docs(
    tags=["Webhooks"],
    summary="Send a test message",
    description="Sends a message of the type `webhook.test`, whatever the endpoint's types.",
    refuses=(Conflict, *_REFUSES),
)
@response_schema(MessageSchema, 202, description="The message will be sent.")
@needs(Scope.PROGRAMME_MANAGE)
async def send_test(request: web.Request) -> web.Response:
    message_id = await request.app[SERVICES].webhooks.test(_id_in(request))
    return respond(request, {"message_id": message_id}, 202)


@docs(
    tags=["Webhooks"],
    summary="Replay messages",
    description="Sends failed messages again, under the same ids. Messages that no endpoint was "
    "subscribed to when they were created are not kept.",
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


@docs(tags=["Webhooks"], summary="List an endpoint's deliveries", refuses=_REFUSES)
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
    summary="Retry a delivery",
    description="Sends the message to the endpoint again now, whether or not it was delivered "
    "before.",
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
