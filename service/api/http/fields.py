"""The fields and base schemas that requests and responses are declared with."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

from marshmallow import (
    EXCLUDE,
    Schema,
    ValidationError,
    fields,
    pre_load,
    validate,
    validates_schema,
)

from service.domain.clock import moment_text
from service.domain.errors import InvalidInput
from service.domain.events import LARGEST_AMOUNT

LARGEST_PAGE: Final = 100
BETWEEN: Final = "This must be between {min} and {max}."
_JOINERS: Final = "\u200c\u200d"
"""Some scripts need them, Persian for one, and so do emoji of several people."""
_IN_NAMES: Final = str.maketrans("", "", _JOINERS)
_IN_LINES: Final = str.maketrans("", "", f"{_JOINERS}\n\r\t\u00a0\u202f")


def by_rule(check: Callable[[str], object]) -> Callable[[str], None]:
    """Validate with a rule of the domain, a function that raises InvalidInput."""

    def validator(text: str) -> None:
        try:
            check(text)
        except InvalidInput as error:
            raise ValidationError(error.detail) from error

    return validator


def readable(what: str, *, lines: bool = False) -> Callable[[str], None]:
    """Validate that nothing in a text hides or reverses it, or what people read beside it.

    `what` begins the message. A text may have several `lines`, a name not.
    """

    def validator(text: str) -> None:
        if not text.translate(_IN_LINES if lines else _IN_NAMES).isprintable():
            raise ValidationError(
                f"{what} must not have control characters or bidirectional marks."
            )

    return validator


class RequestSchema(Schema):
    """A body. Unknown members are refused; null for an optional member means it is absent."""

    error_messages = {  # noqa: RUF012  # marshmallow declares it so
        "unknown": "There is no such member.",
        "type": "This is not an object.",
    }

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        field_obj.error_messages |= {
            "required": "This member is missing.",
            "null": "This member must not be null.",
        }
        if isinstance(field_obj, fields.List):
            field_obj.error_messages |= {"invalid": "This is not a list."}
            field_obj.inner.error_messages |= {"null": "This must not be null."}
        # For the documentation: `_leave_out` removes the value before the field sees it.
        field_obj.allow_none = not field_obj.required

    @pre_load
    def _leave_out(self, data: Any, **_: Any) -> Any:
        if not isinstance(data, dict):
            return data
        optional = {name for name, field in self.fields.items() if not field.required}
        return {
            name: value for name, value in data.items() if value is not None or name not in optional
        }


class ChangeSchema(RequestSchema):
    """A body of what is to be changed: at least one member."""

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _something(self, data: Any, original: Any, **_: Any) -> None:
        if isinstance(original, dict) and all(original.get(name) is None for name in self.fields):
            raise ValidationError("Send at least one member to change.")


class Text(fields.String):
    """A string that can be encoded as UTF-8: JSON can escape half a surrogate pair."""

    default_error_messages = {  # noqa: RUF012  # marshmallow declares it so
        "invalid": "This is not a string.",
        "invalid_utf8": "This is not Unicode text.",
    }

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.make_error("invalid_utf8") from error
        return text


class MatchingText(Text):
    """Text that matches a pattern as a whole, in a dialect that JSON Schema shares."""

    def __init__(self, pattern: str, error: str, **options: Any) -> None:
        metadata = {"pattern": f"^{pattern}$", **options.pop("metadata", {})}
        super().__init__(metadata=metadata, **options)
        self._pattern, self._error = re.compile(pattern), error

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        if not self._pattern.fullmatch(text):  # unlike `$`, not before a line break at the end
            raise ValidationError(self._error)
        return text


class TrimmedText(Text):
    """Text without the white space around it, which is often pasted along."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        return super()._deserialize(value, attr, data, **kwargs).strip()


class TypedCode(Text):
    """A referral code as typed or pasted; only white space means none."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        return super()._deserialize(value, attr, data, **kwargs).strip() or None


class WholeNumber(fields.Integer):
    """A JSON number without a fraction, not a string or `true`, which Python takes for 1.

    30.0 is one too (JSON Schema 2020-12, 4.2.3): some languages write every number that way.
    """

    default_error_messages = {  # noqa: RUF012  # marshmallow declares it so
        "invalid": "This is not a whole number."
    }

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if type(value) is float and value.is_integer():
            return int(value)
        if type(value) is not int:
            raise self.make_error("invalid")
        return value


class Amount(WholeNumber):
    """An amount in minor units, written as a JSON integer: neither 5.0 nor 5e3."""

    def __init__(self, *, smallest: int = 1, **options: Any) -> None:
        limits = validate.Range(smallest, LARGEST_AMOUNT, error=BETWEEN)
        super().__init__(validate=limits, **options)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if type(value) is float:
            raise self.make_error("invalid")
        return super()._deserialize(value, attr, data, **kwargs)


class TrueOrFalse(fields.Boolean):
    """A JSON true or false, not 1, which Python takes for true."""

    default_error_messages = {  # noqa: RUF012  # marshmallow declares it so
        "invalid": "This is neither true nor false."
    }

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class OneOf(fields.Enum[Any]):
    """One of the values of an enum."""

    default_error_messages = {  # noqa: RUF012  # marshmallow declares it so
        "unknown": "This is not one of {choices}."
    }

    def __init__(self, values: type[Enum], **options: Any) -> None:
        super().__init__(values, by_value=True, **options)


class Moment(fields.AwareDateTime):
    """A time with an offset (RFC 3339); in UTC inside the service and in responses."""

    _RFC_3339 = re.compile(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:[0-5]\d)", re.ASCII | re.IGNORECASE
    )

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, str) or not self._RFC_3339.fullmatch(value):
            raise ValidationError("This is not a time with a UTC offset (RFC 3339).")
        moment = super()._deserialize(value.upper(), attr, data, **kwargs)
        try:
            return moment.astimezone(UTC)
        except OverflowError as error:
            raise self.make_error("invalid", input=value, obj_type=self.OBJ_TYPE) from error

    def _serialize(self, value: datetime | None, attr: Any, obj: Any, **kwargs: Any) -> Any:
        return value and moment_text(value)


class QuerySchema(Schema):
    """A query string. Unknown parameters are ignored."""

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        field_obj.error_messages |= {"required": "This parameter is missing."}

    class Meta:
        unknown = EXCLUDE


class QueryNumber(fields.Integer):
    """Decimal digits of ASCII; `int` would also take other scripts' digits, `1_0` and `+1`."""

    default_error_messages = WholeNumber.default_error_messages
    _DIGITS = re.compile("-?[0-9]+")

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not self._DIGITS.fullmatch(value):
            raise self.make_error("invalid")
        return super()._deserialize(value, attr, data, **kwargs)


class PageQuery(QuerySchema):
    """Which page of a list is requested."""

    limit = QueryNumber(
        load_default=20,
        validate=validate.Range(1, LARGEST_PAGE, error=BETWEEN),
        metadata={"description": "The largest number of items to return."},
    )
    cursor = fields.String(
        load_default=None,
        metadata={"description": "`next_cursor` of the previous page; omit it for the first page."},
    )
