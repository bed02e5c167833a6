"""What the stories in Python print at their end: the variables of these names."""

import json
import sys
from collections.abc import Mapping
from typing import Any

PARSED = ("anna", "ben", "me", "tokens", "mailed", "code", "again", "found", "refused", "page")


def tell(story: Mapping[str, Any]) -> None:
    code = story["code"]
    seen = {name: story[name] for name in (*PARSED, "missing")} | {
        "days": (code.expires_at - code.created_at).days,
        "deleted": story["deleted"].status_code,
        "signedOut": story["signed_out"].status_code,
        "lockedOut": story["locked_out"],
    }
    json.dump(
        seen, sys.stdout, default=lambda it: it.to_dict() if hasattr(it, "to_dict") else str(it)
    )
