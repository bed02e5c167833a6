"""Combined enrichment: Hunter's, or Clearbit's for customers who still have a key."""

from datetime import timedelta
from http import HTTPStatus
from typing import Final

from service.domain.clock import Clock
from service.domain.emails import Email
from service.domain.enrichment import Enrichment, clean
from service.providers import hunter
from service.providers.http import HttpClient
from service.providers.settings import EnrichmentSettings

ASK_CLEARBIT_AGAIN_AFTER: Final = timedelta(minutes=2)
"""A lookup of a person not known before takes minutes."""
_LATER_AT_CLEARBIT: Final = {
    *hunter.LATER,
    HTTPStatus.PAYMENT_REQUIRED,
    HTTPStatus.TOO_MANY_REQUESTS,
}


class Enricher:
    """The person and the company of an email address, in the shape that Clearbit defined."""

    def __init__(self, settings: EnrichmentSettings, http: HttpClient, clock: Clock) -> None:
        self._settings = settings
        self._http = http
        self._clock = clock

    async def enrich(self, email: Email) -> Enrichment | None:
        """Return what is known, None for nothing; raise RetryLater or ProviderUnavailable."""
        source, key = self._settings.provider, self._settings.api_key
        url, params = f"{self._settings.url}/v2/combined/find", {"email": email.mailbox}
        if source == "clearbit":
            headers = {"Authorization": f"Bearer {key}"}
            reply = await self._http.call(source, "GET", url, params=params, headers=headers)
            hunter.raise_if_later(reply, "Clearbit", _LATER_AT_CLEARBIT, ASK_CLEARBIT_AGAIN_AFTER)
            document = reply.document
        else:
            headers, params["clearbit_format"] = {"X-API-KEY": key}, "true"
            reply = await self._http.call(source, "GET", url, params=params, headers=headers)
            hunter.raise_if_later(reply, "Hunter")
            document = reply.member("data")
        if reply.status != HTTPStatus.OK or not isinstance(document, dict):
            return None
        person, company = clean(document.get("person")), clean(document.get("company"))
        if not person and not company:
            return None
        return Enrichment(person=person, company=company, source=source, fetched_at=self._clock())
