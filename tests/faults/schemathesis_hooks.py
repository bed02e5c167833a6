"""Signs Schemathesis in, again and again: what it sends ends its own sessions too."""

import json
import os
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any

import schemathesis


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
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {token}"}
