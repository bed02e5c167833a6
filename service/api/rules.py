"""The rules of a programme as JSON: their schema, and what contradicts itself in them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, get_args

from marshmallow import ValidationError, fields, validate, validates_schema

from service.api.http.fields import (
    BETWEEN,
    Amount,
    MatchingText,
    RequestSchema,
    Text,
    WholeNumber,
    by_rule,
)
from service.domain.events import REFUND
from service.domain.programmes import (
    EMAIL_CONFIRMED,
    MILESTONE,
    QUALIFIED,
    SIGN_UP,
    WITHOUT_AMOUNT,
    FraudAction,
    FraudRules,
)
from service.domain.units import check_unit

MOST_REWARDS: Final = 20
LONGEST_WINDOW_DAYS: Final = 3660
LARGEST_COUNT: Final = 10**9
_NEVER_EVENTS: Final = frozenset({QUALIFIED, MILESTONE, REFUND})
"""What qualifies nobody: two are consequences, and a refund takes back."""


class EventType(MatchingText):
    def __init__(self, **options: Any) -> None:
        error = "A type must be 1 to 64 characters of a-z, 0-9, _ and ., beginning with a letter."
        super().__init__("[a-z][a-z0-9_.]{0,63}", error, **options)


class Unit(Text):
    """A currency, or a company's own unit."""

    def __init__(self, **options: Any) -> None:
        super().__init__(validate=by_rule(check_unit), **options)


def whole(smallest: int, largest: int, **options: Any) -> WholeNumber:
    """Return a field for a whole number between the two."""
    return WholeNumber(validate=validate.Range(smallest, largest, error=BETWEEN), **options)


class MinimumSchema(RequestSchema):
    amount = Amount(required=True)
    unit = Unit(required=True)


class QualificationSchema(RequestSchema):
    on = EventType(
        required=True,
        metadata={
            "description": "What makes a referral qualify: `signup`, `email_confirmed`, or the "
            "type of an event.",
            "example": "purchase",
        },
    )
    minimum = fields.Nested(
        MinimumSchema,
        metadata={"description": "The least that the event must be worth, net of its refunds."},
    )
    within_days = whole(
        1,
        LONGEST_WINDOW_DAYS,
        metadata={
            "description": "How many days after the sign-up the referral can qualify; no limit if "
            "omitted."
        },
    )

    @validates_schema(skip_on_field_errors=False)
    def _check(self, data: Mapping[str, Any], **_: Any) -> None:
        on, faults = data.get("on"), {}
        if on in _NEVER_EVENTS:
            faults["on"] = ["A referral cannot qualify on this."]
        if "minimum" in data and on in WITHOUT_AMOUNT:
            faults["minimum"] = [f"{on} has no amount."]
        if "within_days" in data and on == SIGN_UP:
            faults["within_days"] = ["A sign-up qualifies at once; omit this."]
        if faults:
            raise ValidationError(faults)


class TierSchema(RequestSchema):
    from_ = whole(
        2,
        LARGEST_COUNT,
        data_key="from",
        attribute="from",
        required=True,
        metadata={
            "description": "The position of the first of the referrer's qualified referrals to "
            "which the tier applies, such as 6 for the sixth."
        },
    )
    amount = Amount(metadata={"description": "Replaces the reward's `amount`."})
    basis_points = whole(
        1, 10_000, metadata={"description": "Replaces the reward's `basis_points`."}
    )


class RewardRuleSchema(RequestSchema):
    name = MatchingText(
        "[a-z][a-z0-9-]{0,31}",
        "A name must be 1 to 32 characters of a-z, 0-9 and -, beginning with a letter.",
        required=True,
        metadata={"description": "The name of the rule, unique within these rules."},
    )
    to = Text(
        required=True,
        validate=validate.OneOf(["referrer", "referee"], error="This must be referrer or referee."),
        metadata={"description": "Who gets the reward: `referrer` or `referee`."},
    )
    on = EventType(
        required=True,
        metadata={
            "description": "What earns the reward: `signup`, `qualified`, `milestone`, or the type "
            "of an event. With an event type, every such event since the sign-up earns it once the "
            "referral has qualified."
        },
    )
    unit = Unit(required=True)
    amount = Amount(
        metadata={
            "description": "In minor units. Exactly one of `amount` and `basis_points` is required."
        }
    )
    basis_points = whole(
        1,
        10_000,
        metadata={
            "description": "The reward in hundredths of a percent of the event's net amount, "
            "rounded down: 1000 is 10%."
        },
    )
    max_amount = Amount(
        metadata={
            "description": "The most that `basis_points` can give, in minor units; no limit if "
            "omitted."
        }
    )
    hold_days = whole(
        0,
        366,
        metadata={
            "description": "How many days after the event the reward stays pending; 0 if omitted. "
            "Cover your refund period: a reward that was already paid out when the refund arrives "
            "leaves a debt. If a refund makes a later event the one that qualifies the referral, "
            "the hold counts from that event, even if the first hold had ended."
        },
    )
    tiers = fields.List(
        fields.Nested(TierSchema),
        validate=validate.Length(max=MOST_REWARDS, error="There can be at most {max} tiers."),
        metadata={
            "description": "Different amounts that apply from a given one of the referrer's "
            "qualified referrals on, in ascending order of `from`."
        },
    )
    max_per_referrer = whole(
        1,
        LARGEST_COUNT,
        metadata={
            "description": "The most of these rewards that one referrer's referrals can earn; no "
            "limit if omitted. A reversed reward makes room for another."
        },
    )
    max_total = whole(
        1, LARGEST_COUNT, metadata={"description": "The same limit for the whole programme."}
    )
    times = whole(
        1,
        LARGEST_COUNT,
        metadata={
            "description": "How many events of a referral earn the reward, counted from the first; "
            "no limit if omitted."
        },
    )
    within_days = whole(
        1,
        LONGEST_WINDOW_DAYS,
        metadata={
            "description": "How many days after the sign-up events earn the reward; no limit if "
            "omitted."
        },
    )
    at = whole(
        1,
        LARGEST_COUNT,
        metadata={
            "description": "For a milestone: how many qualified referrals it takes. Exactly one of "
            "`at` and `every` is required."
        },
    )
    every = whole(
        1,
        LARGEST_COUNT,
        metadata={
            "description": "For a milestone that repeats: how many more qualified referrals it "
            "takes each time."
        },
    )

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _check(self, data: Mapping[str, Any], original: Any, **_: Any) -> None:
        if not isinstance(original, dict):
            return
        given = _given(original)
        faults = dict(_faults_of_reward(data, given))
        if isinstance(tiers := original.get("tiers"), list):
            worth = "basis_points" if "basis_points" in given else "amount"
            faults["tiers"] = list(_faults_of_tiers(data, tiers, worth))
        faults = {member: found for member, found in faults.items() if found}
        if faults:
            raise ValidationError(faults)


_DEFAULT: Final = FraudRules()


def _action(sign: str, default: FraudAction) -> Text:
    actions = get_args(FraudAction)
    return Text(
        validate=validate.OneOf(actions, error="This must be off, flag, hold or reject."),
        metadata={"description": f"What to do if {sign}; `{default}` if omitted."},
    )


class FraudRulesSchema(RequestSchema):
    self_referral = _action(
        "the email address leads to the mailbox of the referrer or of another of their referees",
        _DEFAULT.self_referral,
    )
    same_device = _action(
        "the referrer or another of their referees has used the device", _DEFAULT.same_device
    )
    same_ip = _action(
        "the referrer has used the IP address in the last 30 days, or two other of their referees "
        "in the last 7",
        _DEFAULT.same_ip,
    )
    disposable_email = _action(
        "the email address is from a disposable email service", _DEFAULT.disposable_email
    )
    velocity = _action(
        "the referrer has had more than 20 sign-ups within an hour", _DEFAULT.velocity
    )


class RulesSchema(RequestSchema):
    qualify = fields.Nested(QualificationSchema, required=True)
    rewards = fields.List(
        fields.Nested(RewardRuleSchema),
        validate=validate.Length(max=MOST_REWARDS, error="There can be at most {max} rewards."),
    )
    fraud = fields.Nested(
        FraudRulesSchema,
        metadata={
            "description": "What to do when a sign-up matches a fraud rule: ignore it (`off`), "
            "show it (`flag`), also hold the rewards for a review (`hold`), or reject the referral "
            "(`reject`). Sign-ups with the code of a trusted referrer are exempt."
        },
    )

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _check(self, data: Mapping[str, Any], original: Any, **_: Any) -> None:
        rewards, qualify = data.get("rewards"), data.get("qualify", {})
        if not rewards:
            return
        # Of what is null nothing is in `rewards`.
        places = [place for place, one in enumerate(original["rewards"]) if one is not None]
        faults: dict[int, dict[str, list[str]]] = {}
        names: set[str] = set()
        for place, reward in zip(places, rewards, strict=True):
            found = dict(_faults_of_percentage(reward, qualify))
            name = reward.get("name")
            if name is not None and name in names:
                found["name"] = ["Another reward has this name."]
            names.add(name)
            if found:
                faults[place] = found
        if faults:
            raise ValidationError({"rewards": faults})


def _faults_of_percentage(
    reward: Mapping[str, Any], qualify: Mapping[str, Any]
) -> Iterator[tuple[str, list[str]]]:
    """Yield why the reward cannot be a part of what qualifies, by member."""
    if "basis_points" not in reward or reward.get("on") != QUALIFIED:
        return
    unit = qualify.get("minimum", {}).get("unit")
    if qualify.get("on") in WITHOUT_AMOUNT:
        yield "basis_points", [f"{qualify['on']} has no amount."]
    elif "unit" in reward and unit not in {None, reward["unit"]}:
        yield "unit", ["This must be the unit of qualify.minimum."]


def _faults_of_reward(
    reward: Mapping[str, Any], has: Collection[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yield what contradicts itself in a reward, by member, but for its tiers.

    `has` are the members that are given, also if what they are is wrong.
    """
    on, by_percentage = reward.get("on"), "basis_points" in has
    milestone = on == MILESTONE
    wrong = {
        "on": on == REFUND and "A refund cannot earn a reward.",
        "amount": by_percentage is ("amount" in has)
        and "Give exactly one of amount and basis_points.",
        "basis_points": by_percentage
        and on in WITHOUT_AMOUNT - {QUALIFIED}
        and f"{on} has no amount.",
        "max_amount": "max_amount" in reward
        and not by_percentage
        and "This applies only to basis_points.",
        "at": milestone
        and ("at" in has) is ("every" in has)
        and "Give exactly one of at and every.",
        "to": milestone
        and reward.get("to") == "referee"
        and "A milestone can only reward the referrer.",
    }
    only = [("at", not milestone), ("every", not milestone)]
    only += [("times", on in WITHOUT_AMOUNT), ("within_days", on in WITHOUT_AMOUNT)]
    wrong |= {
        name: "This does not apply to rewards of this kind; omit it."
        for name, fault in only
        if fault and name in reward
    }
    yield from ((name, [fault]) for name, fault in wrong.items() if fault)


def _faults_of_tiers(reward: Mapping[str, Any], given: Sequence[Any], worth: str) -> Iterator[str]:
    """Yield what contradicts itself in a reward's tiers; what they hold is checked already."""
    if reward.get("on") in {SIGN_UP, EMAIL_CONFIRMED, MILESTONE}:
        yield "Tiers apply only to referrals that have qualified, not to signup, email_confirmed "
        "or milestone."
    starts = [tier["from"] for tier in reward.get("tiers", ()) if "from" in tier]
    if any(later <= earlier for earlier, later in pairwise(starts)):
        yield "Each tier must have a higher `from` than the one before."
    tiers = [_given(tier) for tier in given if isinstance(tier, dict)]
    if any(members & {"amount", "basis_points"} != {worth} for members in tiers):
        yield f"Each tier must have `from` and, like the reward, {worth}."


def _given(document: Mapping[str, Any]) -> set[str]:
    """Return the members that are not null."""
    return {name for name, value in document.items() if value is not None}


RULES_EXAMPLE: Final = {
    "qualify": {"on": "purchase", "minimum": {"amount": 2000, "unit": "EUR"}, "within_days": 30},
    "rewards": [
        {"name": "welcome", "to": "referee", "on": "signup", "unit": "points", "amount": 100},
        {
            "name": "friend",
            "to": "referrer",
            "on": "qualified",
            "unit": "EUR",
            "amount": 500,
            "hold_days": 14,
        },
    ],
}
