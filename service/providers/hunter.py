"""Hunter (hunter.io, API v2), which verifies email addresses."""

from collections.abc import Collection
from datetime import timedelta
from http import HTTPStatus
from typing import Final

from service.domain.email_verification import Verdict
from service.domain.emails import Email
from service.domain.errors import ProviderUnavailable
from service.domain.jobs import RetryLater
from service.providers.http import HttpClient, Reply
from service.providers.settings import HunterSettings

SOURCE: Final = "hunter"
POLL_AFTER: Final = timedelta(seconds=5)
_VERDICTS: Final = {verdict.value: verdict for verdict in Verdict}
# A wrong key, which operators fix, and too many calls a second.
LATER: Final = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}


class HunterVerifier:
    """The Email Verifier. Its answer is its `status`: `result` and `score` are deprecated."""

    def __init__(self, settings: HunterSettings, http: HttpClient) -> None:
        self._settings = settings
        self._http = http

    async def verify(self, email: Email) -> Verdict:
        """Return the verdict; raise RetryLater or ProviderUnavailable.

        It is UNKNOWN where Hunter will not say: the person does not want to be processed (451),
        or the month's credits are used up (429).
        """
        reply = await self._http.call(
            SOURCE,
            "GET",
            f"{self._settings.url}/v2/email-verifier",
            params={"email": email.mailbox},
            headers={"X-API-KEY": self._settings.api_key},
        )
        raise_if_later(reply, "Hunter")
        data = reply.member("data") if reply.status == HTTPStatus.OK else None
        status = data.get("status") if isinstance(data, dict) else None
        return _VERDICTS.get(status if isinstance(status, str) else "", Verdict.UNKNOWN)


def raise_if_later(
    reply: Reply, name: str, later: Collection[int] = LATER, poll_after: timedelta = POLL_AFTER
) -> None:
    """Raise RetryLater while the answer is being looked up, ProviderUnavailable for `later`."""
    if reply.status == HTTPStatus.ACCEPTED:
        raise RetryLater(poll_after)
    if reply.status in later:
        raise ProviderUnavailable(f"{name} answers {reply.status}.")
