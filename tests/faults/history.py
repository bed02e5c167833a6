"""What clients did and were told, and when: the material that the checker judges."""

import math
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["create", "replace", "delete", "show", "register", "look_up"]
UNKNOWN = 0
"""The status of a request without an answer, or with one that leaves open what happened."""


@dataclass(kw_only=True)
class Operation:
    """One request, or a request and its repetitions with one Idempotency-Key.

    Times are monotonic seconds. An operation of unknown outcome has no end: it may take effect
    at any time.
    """

    kind: Kind
    owner: str
    """The e-mail of the referrer whose register the operation reads or writes."""
    begun: float
    ended: float = math.inf
    status: int = UNKNOWN
    code: str | None = None
    """The code sent, or for `show` and `look_up` the one received."""
    max_uses: int | None = None
    uses: int | None = None
    """What `show` told of the uses of a code that has `max_uses`."""
    email: str | None = None
    """Who registers."""
    user_id: str | None = None
    """The account that the answer names."""

    certain: bool = True
    """Whether it happened, if its outcome is unknown."""

    def __str__(self) -> str:
        told = [str(self.status or "unknown"), self.code, self.email]
        told += [f"max_uses {self.max_uses}"] if self.max_uses else []
        told += [f"uses {self.uses}"] if self.uses is not None else []
        what = " ".join(filter(None, told))
        return f"{self.kind} of {self.owner} at {self.begun:.3f} to {self.ended:.3f}: {what}"

    @property
    def known(self) -> bool:
        return self.status != UNKNOWN


@dataclass(frozen=True)
class Window:
    """While a look-up may give an old code: in [begin, end] any that was live after `since`."""

    begin: float
    end: float
    since: float


@dataclass
class History:
    """Everything that happened in one run."""

    operations: list[Operation] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """What needed no checker: a status that no rule allows, two live codes at one instant."""
