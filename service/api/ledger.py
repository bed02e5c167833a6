"""The ledger: balances, transfers, payouts and adjustments."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, request_schema, response_schema
from marshmallow import Schema, fields, validate

from service.api.company import CompanyId, WhoSchema, answer_client_once, fingerprint_of, who_of
from service.api.docs.describe import IDEMPOTENCY_KEY, in_path
from service.api.http.app_keys import SERVICES
from service.api.http.authentication import current_client, needs
from service.api.http.fields import BETWEEN, Moment, TrimmedText, WholeNumber, readable
from service.api.http.prebuilt import PrebuiltResponse
from service.api.http.requests import own_cursor, page_in, read_body, read_id, read_query
from service.api.http.responses import PageSchema, answer, respond, write_items
from service.api.rewards import WhoseQuery, whose
from service.api.rules import Unit, whole
from service.domain.errors import (
    BalanceTooLow,
    IdReused,
    NotAllowed,
    ProgrammeNotFound,
    TransferNotFound,
)
from service.domain.events import LARGEST_AMOUNT
from service.domain.ledger import Account, Balance, ListedTransfer, Transfer, TransferKind
from service.domain.pages import BalanceCursor, Page
from service.domain.programmes import PROGRAMME_KEY
from service.domain.scopes import Scope
from service.repositories.idempotency_keys import Answer
from service.use_cases.ledger import Movement

LONGEST_NOTE: Final = 500


def _note(example: str, **options: Any) -> TrimmedText:
    return TrimmedText(
        metadata={
            "description": "A note in your own words. The participant can read it with *List "
            "transfers*.",
            "example": example,
        },
        validate=[
            validate.Length(1, LONGEST_NOTE, error="A note must have {min} to {max} characters."),
            readable("A note", lines=True),
        ],
        **options,
    )


class RedemptionSchema(WhoSchema):
    id = CompanyId(
        required=True,
        metadata={
            "description": "Your own id for the redemption, such as a payout number. An id is "
            "redeemed only once, ever: to retry a call, send the same id.",
            "example": "payout-7",
        },
    )
    unit = Unit(required=True, metadata={"example": "EUR"})
    amount = whole(
        1,
        LARGEST_AMOUNT,
        required=True,
        metadata={"description": "In minor units; at most what is available.", "example": 500},
    )
    note = _note("Bank transfer")


class AdjustmentSchema(WhoSchema):
    id = CompanyId(
        required=True,
        metadata={
            "description": "Your own id for the adjustment. An id counts only once, ever: to retry "
            "a call, send the same id.",
            "example": "goodwill-3",
        },
    )
    unit = Unit(required=True, metadata={"example": "EUR"})
    amount = WholeNumber(
        required=True,
        validate=[
            validate.Range(-LARGEST_AMOUNT, LARGEST_AMOUNT, error=BETWEEN),
            validate.NoneOf([0], error="This must not be 0."),
        ],
        metadata={
            "description": "In minor units. Positive to add to what is available, negative to take "
            "from it.",
            "example": 250,
        },
    )
    note = _note("Goodwill", required=True)


class TransferSchema(Schema):
    id = fields.UUID(attribute="transfer_id")
    kind = fields.Enum(
        TransferKind,
        by_value=True,
        metadata={
            "description": "`grant`: a reward was given. `release`: a reward became available. "
            "`reversal`: all or part of a reward was taken back. `redemption`: an amount was paid "
            "out or spent. `cancellation`: a redemption was cancelled. `adjustment`: an amount was "
            "added or taken away by hand."
        },
    )
    from_ = fields.Enum(
        Account,
        by_value=True,
        attribute="from_account",
        data_key="from",
        metadata={
            "description": "The account that the amount came from: `programme`, or one of the "
            "participant's."
        },
    )
    to = fields.Enum(
        Account,
        by_value=True,
        attribute="to_account",
        metadata={"description": "The account that the amount went to."},
    )
    participant_id = fields.UUID()
    unit = fields.String(metadata={"example": "EUR"})
    amount = fields.Integer(
        metadata={"description": "In minor units; always positive.", "example": 500}
    )
    reward_id = fields.UUID(
        allow_none=True,
        metadata={
            "description": "The reward that was given, released or reversed; otherwise null."
        },
    )
    external_id = fields.String(
        allow_none=True,
        metadata={
            "description": "Your own id for the redemption or adjustment; otherwise null.",
            "example": "payout-7",
        },
    )
    cancels = fields.UUID(
        allow_none=True,
        metadata={"description": "The redemption that a cancellation undoes; otherwise null."},
    )
    cancelled_at = Moment(
        allow_none=True,
        metadata={
            "description": "When the redemption was cancelled; null if it was not. Do not pay out "
            "a cancelled redemption."
        },
    )
    note = fields.String(
        allow_none=True,
        metadata={
            "description": "Your note, which the participant can read; null if there is none."
        },
    )
    created_at = Moment()


class TransfersSchema(PageSchema):
    items = fields.List(fields.Nested(TransferSchema))


class BalanceSchema(Schema):
    participant_id = fields.UUID()
    unit = fields.String(metadata={"example": "EUR"})
    pending = fields.Integer(
        metadata={"description": "Given, but not yet available; like all amounts, in minor units."}
    )
    available = fields.Integer(
        metadata={
            "description": "What can be redeemed. Negative if rewards were reversed after they had "
            "been paid out: later rewards are offset against the debt."
        }
    )
    redeemed = fields.Integer(metadata={"description": "Paid out or spent."})


class BalancesSchema(PageSchema):
    items = fields.List(fields.Nested(BalanceSchema))


class LiabilitySchema(Schema):
    unit = fields.String(metadata={"example": "EUR"})
    pending = fields.Integer()
    available = fields.Integer(
        metadata={"description": "The sum of all positive available balances."}
    )
    debts = fields.Integer(
        metadata={
            "description": "What participants owe: the sum of all negative available balances, as "
            "a positive number."
        }
    )
    redeemed = fields.Integer()


class LiabilitiesSchema(Schema):
    items = fields.List(fields.Nested(LiabilitySchema))


@docs(
    tags=["Rewards"],
    summary="List balances",
    description="Lists balances, those of the newest participants first. Users see only their own; "
    "clients and admins see one participant's, or all of a programme.",
    refuses=(NotAllowed,),
)
@querystring_schema(WhoseQuery)
@response_schema(
    BalancesSchema, 200, description="A page of balances, one per participant and unit."
)
@needs(Scope.PROGRAMME_READ, own=Scope.REWARDS_READ)
async def list_balances(request: web.Request) -> web.Response:
    query = read_query(request)
    cursor = own_cursor(request, query["cursor"])
    page = await request.app[SERVICES].ledger.balances(
        await whose(request, query),
        query["limit"],
        None if cursor is None else BalanceCursor.decode(cursor),
    )
    return PrebuiltResponse(write_balances(page))


def write_balances(page: Page[Balance]) -> bytes:
    """Return the page as BalancesSchema writes it, in an eighth of the time."""
    items = [
        {
            "participant_id": str(participant_id),
            "unit": unit,
            "pending": pending,
            "available": available,
            "redeemed": redeemed,
        }
        for participant_id, unit, pending, available, redeemed in page.items
    ]
    return write_items(BalancesSchema, items, page)


@docs(
    tags=["Rewards"],
    summary="List transfers",
    description="Lists every transfer ever made, newest first: a balance is the sum of its "
    "transfers. Users see only their own, including the notes; clients and admins see one "
    "participant's, or all of a programme.",
    refuses=(NotAllowed,),
)
@querystring_schema(WhoseQuery)
@response_schema(TransfersSchema, 200, description="A page of transfers.")
@needs(Scope.PROGRAMME_READ, own=Scope.REWARDS_READ)
async def list_transfers(request: web.Request) -> web.Response:
    query = read_query(request)
    page = await request.app[SERVICES].ledger.transfers(
        await whose(request, query), *page_in(request, query)
    )
    return PrebuiltResponse(write_transfers(page))


def write_transfers(page: Page[ListedTransfer]) -> bytes:
    """Return the page as TransfersSchema writes it, in a tenth of the time."""
    items = [
        {
            "id": str(one.transfer_id),
            "kind": one.kind,
            "from": one.from_account,
            "to": one.to_account,
            "participant_id": str(one.participant_id),
            "unit": one.unit,
            "amount": one.amount,
            "reward_id": None if one.reward_id is None else str(one.reward_id),
            "external_id": one.external_id,
            "cancels": None if one.cancels is None else str(one.cancels),
            "cancelled_at": one.cancelled_at,
            "note": one.note,
            "created_at": one.created_at,
        }
        for one in page.items
    ]
    return write_items(TransfersSchema, items, page)


@docs(
    tags=["Rewards"],
    summary="Redeem an amount",
    description="Moves an amount from `available` to `redeemed`, because it is paid out or spent. "
    "Repeating the call returns the first transfer. If that has a `cancelled_at`, redeem the "
    "amount again under a new id.",
    parameters=[IDEMPOTENCY_KEY],
    refuses=(BalanceTooLow, IdReused, NotAllowed),
)
@request_schema(
    RedemptionSchema, example={"id": "payout-7", "external_id": "u-1", "unit": "EUR", "amount": 500}
)
@response_schema(TransferSchema, 200, description="The transfer, which had already been made.")
@response_schema(TransferSchema, 201, description="The new transfer.")
@needs(Scope.REWARDS_WRITE)
async def redeem(request: web.Request) -> web.Response:
    return await _move(request, request.app[SERVICES].ledger.redeem)


@docs(
    tags=["Rewards"],
    summary="Adjust a balance",
    description="Adds an amount to what is available, or takes it away, independently of the "
    "rules. What is available can become negative.",
    parameters=[IDEMPOTENCY_KEY],
    refuses=(IdReused, NotAllowed),
)
@request_schema(
    AdjustmentSchema,
    example={
        "id": "goodwill-3",
        "external_id": "u-1",
        "unit": "EUR",
        "amount": 250,
        "note": "Sorry for the delay",
    },
)
@response_schema(TransferSchema, 200, description="The transfer, which had already been made.")
@response_schema(TransferSchema, 201, description="The new transfer.")
@needs(Scope.REWARDS_WRITE)
async def adjust(request: web.Request) -> web.Response:
    return await _move(request, request.app[SERVICES].ledger.adjust)


@docs(
    tags=["Rewards"],
    summary="Cancel a redemption",
    description="Makes the amount of a redemption available again, such as after a failed payout. "
    "Repeating the call changes nothing.",
    refuses=(TransferNotFound, NotAllowed),
)
@response_schema(TransferSchema, 200, description="The cancellation, which had already been made.")
@response_schema(
    TransferSchema, 201, description="The cancellation: a transfer back to `available`."
)
@needs(Scope.REWARDS_WRITE)
async def cancel_redemption(request: web.Request) -> web.Response:
    made_by = current_client(request)
    transfer_id = read_id(request, "transfer_id", TransferNotFound)
    made, is_new = await request.app[SERVICES].ledger.cancel(transfer_id, made_by)
    return respond(request, made, HTTPStatus.CREATED if is_new else HTTPStatus.OK)


@docs(
    tags=["Rewards"],
    summary="Show a programme's liability",
    description="Shows what is pending, available, owed by participants, and redeemed, by unit.",
    parameters=[in_path("key", "The programme's key.", "default")],
    refuses=(ProgrammeNotFound, NotAllowed),
)
@response_schema(LiabilitiesSchema, 200, description="The sums of all balances, one item per unit.")
@needs(Scope.PROGRAMME_READ)
async def show_liability(request: web.Request) -> web.Response:
    key = request.match_info["key"]
    if not PROGRAMME_KEY.fullmatch(key):
        raise ProgrammeNotFound
    items = await request.app[SERVICES].ledger.liability(key)
    return respond(request, {"items": items})


async def _move(request: web.Request, move: Callable[..., Any]) -> web.Response:
    made_by = current_client(request)
    members = await read_body(request)
    fingerprint = fingerprint_of(request, members)
    asked = Movement(
        external_id=members.pop("id"), fingerprint=fingerprint, who=who_of(members), **members
    )

    def write(made: tuple[Transfer, bool]) -> Answer:
        transfer, is_new = made
        return answer(request, transfer, HTTPStatus.CREATED if is_new else HTTPStatus.OK)

    return await answer_client_once(request, lambda once: move(asked, made_by, once), write)
