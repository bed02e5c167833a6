"""Signs Schemathesis in, again and again: what it sends ends its own sessions too.

Every other call of a company is made by one, with its secret, and about what there is.
"""

import itertools
import json
import os
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any, Final

import schemathesis

KNOWN: Final = json.loads(os.environ["KNOWN"])
"""Values of parameters in paths that lead to something."""
_turns = itertools.cycle([True, False])


@schemathesis.auth(refresh_interval=1)
class Admin:
    """The account that ADMIN_EMAIL and ADMIN_PASSWORD name."""

    def get(self, *about: Any) -> str:
        body = {"email": os.environ["ADMIN_EMAIL"], "password": os.environ["ADMIN_PASSWORD"]}
        request = urllib.request.Request(
            f"{os.environ['PUBLIC_URL']}/api/v1/auth/login",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        for _ in range(30):  # until the account is enabled again, which it has disabled itself
            with (
                suppress(urllib.error.HTTPError),
                urllib.request.urlopen(request, timeout=10) as answer,
            ):
                token: str = json.load(answer)["access_token"]
                return token
            time.sleep(0.1)
        raise RuntimeError("the admin cannot sign in")

    def set(self, case: Any, token: str, _: Any) -> None:
        by_company = "Programmes" in case.operation.tags and next(_turns)
        authorization = os.environ["COMPANY"] if by_company else f"Bearer {token}"
        case.headers = {**(case.headers or {}), "Authorization": authorization}


def before_call(_: Any, case: Any, __: Any) -> None:
    """Let every other valid request be about what there is."""
    meta = case.meta
    valid = meta is not None and all(part.mode.is_positive for part in meta.components.values())
    if valid and case.path_parameters and next(_turns):
        case.path_parameters = {
            name: KNOWN.get(name, value) for name, value in case.path_parameters.items()
        }


schemathesis.hook(before_call)  # by its name; a decorator without types would not pass mypy
