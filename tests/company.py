"""A company with its own accounts: a client that sends its secret with each call."""

import base64
import itertools
from dataclasses import dataclass
from typing import Any

from service.domain.scopes import OF_CLIENTS, Scope
from tests.factories import Answer, Api
from tests.oauth import new_application

_numbers = itertools.count(1)


def basic(client_id: str, secret: str) -> dict[str, str]:
    """Return the header of a client that authenticates with each call."""
    encoded = base64.b64encode(f"{client_id}:{secret}".encode()).decode()
    return {"Authorization": f"Basic {encoded}"}


@dataclass(frozen=True)
class Company:
    """The back end of a company that reports its users."""

    api: Api
    client_id: str
    secret: str

    async def call(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, **options: Any
    ) -> Answer:
        headers = basic(self.client_id, self.secret) | dict(options.pop("headers", {}))
        if key is not None:
            headers["Idempotency-Key"] = key
        return await self.api.call(method, path, body, headers=headers, **options)

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.call("GET", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.call("POST", path, body, **options)

    async def put(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.call("PUT", path, body, **options)

    async def patch(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.call("PATCH", path, body, **options)

    async def delete(self, path: str, **options: Any) -> Answer:
        return await self.call("DELETE", path, **options)

    async def use_rules(self, rules: dict[str, Any], programme: str = "default") -> int:
        """Replace the rules; return their version."""
        shown = (await self.get(f"/programmes/{programme}")).json()
        body = {"version": shown["version"], "rules": rules}
        answer = await self.put(f"/programmes/{programme}/rules", body)
        assert answer.status == 201, answer.body
        version: int = answer.json()["version"]
        return version

    async def new_referrer(self, external_id: str | None = None, **members: Any) -> Any:
        """Create a participant with a code; return it."""
        body = {
            "external_id": external_id or new_id("referrer"),
            "code": {"expires_in_days": 30},
            **members,
        }
        answer = await self.post("/participants", body)
        assert answer.status == 201, answer.body
        return answer.json()

    async def sign_up(self, code: str, external_id: str | None = None, **members: Any) -> Answer:
        """Report a sign-up with a code."""
        body = {"code": code, "external_id": external_id or new_id("referee"), **members}
        return await self.post("/referrals", body)

    async def report(self, kind: str, external_id: str, **members: Any) -> Answer:
        """Report an event, with an id of its own unless one is given."""
        body = {"id": new_id(kind), "type": kind, "external_id": external_id, **members}
        return await self.post("/events", body)


def new_id(prefix: str) -> str:
    """Return an id that no other test uses."""
    return f"{prefix}-{next(_numbers)}"


async def new_company(api: Api, *scopes: Scope) -> Company:
    """Create a client with these scopes, or with all that a client can have."""
    client = await new_application(api, redirect_uris=[], own_scopes=scopes or OF_CLIENTS)
    return Company(api, client.client_id, client.secret or "")
