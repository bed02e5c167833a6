"""What clients did, what they were answered, and when: what the checker judges."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "create",
    "replace",
    "delete",
    "show",
    "register",
    "look_up",
    "take_part",
    "sign_up",
    "report",
    "redeem",
    "cancel",
    "adjust",
    "review",
]
UNKNOWN = 0
"""The status of a request without an answer, or with one that leaves open what happened."""


@dataclass(kw_only=True, slots=True)
class Operation:
    """One request, or a request and its repetitions with one Idempotency-Key.

    Times are monotonic seconds. An operation of unknown outcome has no end: it may take effect
    at any time.
    """

    kind: Kind
    owner: str
    """The email address of the referrer whose code the operation reads or writes."""
    begun: float
    ended: float = math.inf
    status: int = UNKNOWN
    code: str | None = None
    """The code sent, or for `show` and `look_up` the one received."""
    max_uses: int | None = None
    uses: int | None = None
    """The uses that `show` reported of a code with `max_uses`."""
    email: str | None = None
    """The email address that is registered."""
    user_id: str | None = None
    """The id of the account in the answer."""

    certain: bool = True
    """Whether it happened, if its outcome is unknown."""

    def __str__(self) -> str:
        parts = [str(self.status or "unknown"), self.code, self.email]
        parts += [f"max_uses {self.max_uses}"] if self.max_uses else []
        parts += [f"uses {self.uses}"] if self.uses is not None else []
        what = " ".join(filter(None, parts))
        return f"{self.kind} of {self.owner} at {self.begun:.3f} to {self.ended:.3f}: {what}"

    @property
    def known(self) -> bool:
        return self.status != UNKNOWN


@dataclass(kw_only=True, slots=True)
class Call:
    """What a company reported, and the answer: a request, or repetitions with one key.

    Times are monotonic seconds.
    """

    kind: Kind
    body: Mapping[str, Any]
    about: str = ""
    """The referral or the redemption that its path names."""
    status: int = UNKNOWN
    answer: Any = None
    begun: float = 0.0
    ended: float = math.inf

    def __str__(self) -> str:
        answer = f"{self.status or 'nothing'} {self.answer or ''}".strip()
        return f"{self.kind} {self.about}{dict(self.body)} was answered {answer}"

    @property
    def acknowledged(self) -> bool:
        return self.status in {200, 201}


@dataclass(frozen=True)
class Window:
    """When a look-up may give an old code: in [begin, end], any that was live after `since`."""

    begin: float
    end: float
    since: float


@dataclass
class History:
    """Everything that happened in one run."""

    operations: list[Operation] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """What is wrong by itself: a status that no rule allows, two live codes at one instant."""
