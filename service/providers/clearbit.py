"""Clearbit's combined enrichment, for those who still have a key: there are no new ones."""

from datetime import timedelta
from http import HTTPStatus
from typing import Final

from service.domain.clock import Clock
from service.domain.emails import Email
from service.domain.enrichment import Enrichment
from service.domain.errors import ProviderUnavailable
from service.domain.jobs import RetryLater
from service.providers.http import HttpClient
from service.providers.hunter import enrichment_of
from service.settings.settings import EnrichmentSettings

SOURCE: Final = "clearbit"
ASK_AGAIN_AFTER: Final = timedelta(minutes=2)
"""A person who was not known before takes it minutes."""
_LATER: Final = {
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.PAYMENT_REQUIRED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.TOO_MANY_REQUESTS,
}


class ClearbitEnricher:
    """Person and company behind an e-mail."""

    def __init__(self, settings: EnrichmentSettings, http: HttpClient, clock: Clock) -> None:
        self._settings = settings
        self._http = http
        self._clock = clock

    async def enrich(self, email: Email) -> Enrichment | None:
        """Return what Clearbit knows, None for nothing.

        Raises RetryLater while it is being looked up (202), and ProviderUnavailable if another try
        may succeed.
        """
        reply = await self._http.call(
            SOURCE,
            "GET",
            f"{self._settings.url}/v2/combined/find",
            params={"email": email.mailbox},
            headers={"Authorization": f"Bearer {self._settings.api_key}"},
        )
        if reply.status == HTTPStatus.ACCEPTED:
            raise RetryLater(ASK_AGAIN_AFTER)
        if reply.status in _LATER:
            raise ProviderUnavailable(f"Clearbit answers {reply.status}.")
        if reply.status != HTTPStatus.OK:
            return None
        return enrichment_of(reply.document, SOURCE, self._clock)
