"""Clearbit's combined enrichment, for customers who still have a key: there are no new ones."""

from datetime import timedelta
from http import HTTPStatus
from typing import Final

from service.domain.clock import Clock
from service.domain.emails import Email
from service.domain.enrichment import Enrichment
from service.providers.http import HttpClient
from service.providers.hunter import enrichment_of, raise_if_later
from service.providers.settings import EnrichmentSettings

SOURCE: Final = "clearbit"
ASK_AGAIN_AFTER: Final = timedelta(minutes=2)
"""A lookup of a person not known before takes minutes."""
_LATER: Final = {
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.PAYMENT_REQUIRED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.TOO_MANY_REQUESTS,
}


class ClearbitEnricher:
    """The person and the company of an email address."""

    def __init__(self, settings: EnrichmentSettings, http: HttpClient, clock: Clock) -> None:
        self._settings = settings
        self._http = http
        self._clock = clock

    async def enrich(self, email: Email) -> Enrichment | None:
        """Return what Clearbit knows, None for nothing; raise RetryLater or ProviderUnavailable."""
        reply = await self._http.call(
            SOURCE,
            "GET",
            f"{self._settings.url}/v2/combined/find",
            params={"email": email.mailbox},
            headers={"Authorization": f"Bearer {self._settings.api_key}"},
        )
        raise_if_later(reply, "Clearbit", _LATER, ASK_AGAIN_AFTER)
        if reply.status != HTTPStatus.OK:
            return None
        return enrichment_of(reply.document, SOURCE, self._clock)
