"""Participants: people whom only a company knows, their codes, and what it decides about them."""

from typing import Any, Final
from uuid import UUID

from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, request_schema, response_schema
from marshmallow import Schema, ValidationError, fields

from service.api.company import (
    CompanyId,
    ProgrammeKey,
    SignalsSchema,
    answer_client_once,
    locate,
    with_parsed_email,
)
from service.api.docs.describe import IDEMPOTENCY_KEY
from service.api.http.app_keys import SERVICES, SETTINGS
from service.api.http.authentication import needs
from service.api.http.fields import (
    ChangeSchema,
    Moment,
    QuerySchema,
    Text,
    TrimmedText,
    TrueOrFalse,
    readable,
)
from service.api.http.requests import Rule, read_body, read_id, read_query
from service.api.http.responses import PageSchema, answer, no_content, respond
from service.api.referral_codes import ReferralCodeSchema, ReferralCodeWishSchema, expiry_rule
from service.api.users import email_rule
from service.domain.errors import (
    NotAllowed,
    ParticipantErased,
    ParticipantNotFound,
    ReferralCodeNotFound,
    ReferralCodeTaken,
)
from service.domain.pages import Page
from service.domain.referral_codes import NewReferralCode, check_expiry
from service.domain.scopes import Scope
from service.repositories.idempotency_keys import Answer
from service.use_cases.participants import NewParticipant, ParticipantChange, ShownParticipant, Who

LONGEST_PUBLIC_NAME: Final = 40


class PublicName(TrimmedText):
    """What a leaderboard shows: nothing that hides or reverses the text beside it."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        name = super()._deserialize(value, attr, data, **kwargs)
        if len(name) > LONGEST_PUBLIC_NAME:
            raise ValidationError(f"A name must have at most {LONGEST_PUBLIC_NAME} characters.")
        readable("A name")(name)
        return name


class NewParticipantSchema(SignalsSchema):
    external_id = CompanyId(
        required=True,
        metadata={"description": "Your own id for the participant.", "example": "u-1"},
    )
    programme = ProgrammeKey()
    code = fields.Nested(
        ReferralCodeWishSchema,
        metadata={
            "description": "Creates a referral code as well, unless the participant already has a "
            "live one."
        },
    )


class ParticipantChangeSchema(ChangeSchema):
    trusted = TrueOrFalse(
        metadata={
            "description": "Whether sign-ups with the participant's code are exempt from the fraud "
            "rules."
        }
    )
    blocked = TrueOrFalse(
        metadata={
            "description": "Whether the participant is blocked: the code cannot be used, and "
            "pending rewards are held. What is already available can still be redeemed."
        }
    )
    public_name = PublicName(
        metadata={
            "description": "The name shown on leaderboards, of at most 40 characters. An empty "
            "string removes it."
        }
    )


class ParticipantSchema(Schema):
    participant_id = fields.UUID(attribute="participant.participant_id")
    external_id = fields.String(
        attribute="participant.external_id",
        allow_none=True,
        metadata={
            "description": "Your own id for the participant; null for an account of this service.",
            "example": "u-1",
        },
    )
    programme = fields.String(metadata={"example": "default"})
    code = fields.String(
        allow_none=True,
        metadata={
            "description": "The live referral code; null if there is none, the participant is "
            "blocked, or the programme has ended.",
            "example": "7GXKQ2MPRT",
        },
    )
    share_url = fields.String(
        allow_none=True,
        metadata={
            "description": "The link that shares the code; null without a live code.",
            "example": "https://referrals.example.com/r/7GXKQ2MPRT",
        },
    )
    trusted = fields.Boolean(attribute="participant.trusted")
    blocked = fields.Boolean(attribute="participant.blocked")
    public_name = fields.String(attribute="participant.public_name", allow_none=True)
    created_at = Moment(attribute="participant.created_at")


class ParticipantsSchema(PageSchema):
    items = fields.List(fields.Nested(ParticipantSchema))


class ParticipantQuery(QuerySchema):
    external_id = CompanyId(
        required=True, metadata={"description": "Your own id for the participant."}
    )
    programme = Text(
        load_default=None, metadata={"description": "The programme's key; `default` if omitted."}
    )


@docs(
    tags=["Programmes"],
    summary="Create a participant",
    description="Creates a participant for one of your users, identified by your own id. With "
    "`code`, also creates a referral code to share. Accounts of this service take part in the "
    "programme `default` without this call.",
    parameters=[IDEMPOTENCY_KEY],
    refuses=(ReferralCodeTaken(field="code/code"), ParticipantErased, NotAllowed),
    locates=(201,),
)
@request_schema(
    NewParticipantSchema, example={"external_id": "u-1", "code": {"expires_in_days": 365}}
)
@response_schema(ParticipantSchema, 200, description="The participant, who already existed.")
@response_schema(ParticipantSchema, 201, description="The new participant.")
@needs(Scope.EVENTS_WRITE)
async def create_participant(request: web.Request) -> web.Response:
    members = await read_body(request, email_rule("email"), _code_expiry_rule(request))
    members = with_parsed_email(members)
    code = members.pop("code", None)
    who = Who(external_id=members.pop("external_id"), programme=members.pop("programme", None))
    new = NewParticipant(who=who, code=code and NewReferralCode(**code), **members)

    def write(made: tuple[ShownParticipant, bool]) -> Answer:
        shown, is_new = made
        return answer(request, _shared(request, shown), 201 if is_new else 200)

    response = await answer_client_once(
        request, lambda once: request.app[SERVICES].participants.create(new, once), write
    )
    return locate(request, response, "participants", "participant_id")


@docs(tags=["Programmes"], summary="Find a participant by your own id", refuses=(NotAllowed,))
@querystring_schema(ParticipantQuery)
@response_schema(ParticipantsSchema, 200, description="A list of one participant, or an empty one.")
@needs(Scope.PROGRAMME_READ)
async def find_participants(request: web.Request) -> web.Response:
    found = await request.app[SERVICES].participants.find_external(Who(**read_query(request)))
    return respond(request, Page([_shared(request, one) for one in found], None))


@docs(tags=["Programmes"], summary="Show a participant", refuses=(ParticipantNotFound, NotAllowed))
@response_schema(ParticipantSchema, 200, description="The participant.")
@needs(Scope.PROGRAMME_READ)
async def show_participant(request: web.Request) -> web.Response:
    shown = await request.app[SERVICES].participants.find(_id_in(request))
    return respond(request, _shared(request, shown))


@docs(
    tags=["Programmes"],
    summary="Trust, block or name a participant",
    description="Changes the members that are sent. The code of a blocked participant is not live.",
    refuses=(ParticipantNotFound, NotAllowed),
)
@request_schema(ParticipantChangeSchema, example={"blocked": True})
@response_schema(ParticipantSchema, 200, description="The changed participant.")
@needs(Scope.PROGRAMME_MANAGE)
async def change_participant(request: web.Request) -> web.Response:
    change = ParticipantChange(**await read_body(request))
    shown = await request.app[SERVICES].participants.change(_id_in(request), change)
    return respond(request, _shared(request, shown))


@docs(
    tags=["Programmes"],
    summary="Create or replace a participant's code",
    description="Ends the live code, if there is one, immediately. A sign-up still counts if its "
    "link was clicked before that.",
    refuses=(ParticipantNotFound, ReferralCodeTaken, NotAllowed),
)
@request_schema(ReferralCodeWishSchema, example={"expires_in_days": 90})
@response_schema(ReferralCodeSchema, 200, description="The code that replaced a live one.")
@response_schema(ReferralCodeSchema, 201, description="The code, if none was live.")
@needs(Scope.EVENTS_WRITE)
async def replace_participant_code(request: web.Request) -> web.Response:
    wish = NewReferralCode(**await read_body(request, expiry_rule(request)))
    code, replaced = await request.app[SERVICES].participants.replace_code(_id_in(request), wish)
    return respond(request, code, 200 if replaced else 201)


@docs(
    tags=["Programmes"],
    summary="Delete a participant's code",
    responses={204: {"description": "The code is no longer live."}},
    refuses=(ParticipantNotFound, ReferralCodeNotFound, NotAllowed),
)
@needs(Scope.EVENTS_WRITE)
async def delete_participant_code(request: web.Request) -> web.Response:
    await request.app[SERVICES].participants.delete_code(_id_in(request))
    return no_content()


@docs(
    tags=["Programmes"],
    summary="Erase a participant",
    description="Erases your id, the public name and the hashes used by fraud rules, and ends the "
    "code. Amounts and decisions are kept, but no longer identify a person. Signing up again under "
    "the same id never makes a new referral. An account of this service is erased by its owner or "
    "an admin instead.",
    responses={204: {"description": "The participant is erased."}},
    refuses=(ParticipantNotFound, NotAllowed),
)
@needs(Scope.EVENTS_WRITE)
async def erase_participant(request: web.Request) -> web.Response:
    await request.app[SERVICES].participants.erase(_id_in(request))
    return no_content()


def _code_expiry_rule(request: web.Request) -> Rule:
    now = request.app[SERVICES].clock()
    return "code/expires_at", lambda its: check_expiry(its["code"]["expires_at"], now)


def _id_in(request: web.Request) -> UUID:
    return read_id(request, "participant_id", ParticipantNotFound)


def _shared(request: web.Request, shown: ShownParticipant) -> dict[str, Any]:
    """Return the participant with the address that shares the code."""
    code = shown.code and shown.code.code
    return {
        "participant": shown.participant,
        "programme": shown.programme,
        "code": code,
        "share_url": code and f"{request.app[SETTINGS].public_url}/r/{code}",
    }
