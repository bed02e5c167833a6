"""Hunter (hunter.io, API v2): verifies email addresses, and knows about the people who use them."""

from collections.abc import Collection
from datetime import timedelta
from http import HTTPStatus
from typing import Final

from service.domain.clock import Clock
from service.domain.email_verification import Verdict
from service.domain.emails import Email
from service.domain.enrichment import Enrichment, clean
from service.domain.errors import ProviderUnavailable
from service.domain.jobs import RetryLater
from service.providers.http import HttpClient, Reply
from service.providers.settings import EnrichmentSettings, HunterSettings

SOURCE: Final = "hunter"
POLL_AFTER: Final = timedelta(seconds=5)
_VERDICTS: Final = {verdict.value: verdict for verdict in Verdict}
# A wrong key, which operators fix, and too many calls a second.
_LATER: Final = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}


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
        raise_if_later(reply, "Hunter", _LATER, POLL_AFTER)
        data = reply.member("data") if reply.status == HTTPStatus.OK else None
        status = data.get("status") if isinstance(data, dict) else None
        return _VERDICTS.get(status if isinstance(status, str) else "", Verdict.UNKNOWN)


class HunterEnricher:
    """Combined enrichment, in the shape that Clearbit's customers know."""

    def __init__(self, settings: EnrichmentSettings, http: HttpClient, clock: Clock) -> None:
        self._settings = settings
        self._http = http
        self._clock = clock

    async def enrich(self, email: Email) -> Enrichment | None:
        """Return what Hunter knows, None for nothing; raise RetryLater or ProviderUnavailable."""
        reply = await self._http.call(
            SOURCE,
            "GET",
            f"{self._settings.url}/v2/combined/find",
            params={"email": email.mailbox, "clearbit_format": "true"},
            headers={"X-API-KEY": self._settings.api_key},
        )
        raise_if_later(reply, "Hunter", _LATER, POLL_AFTER)
        if reply.status != HTTPStatus.OK:
            return None
        return enrichment_of(reply.member("data"), SOURCE, self._clock)


def enrichment_of(document: object, source: str, clock: Clock) -> Enrichment | None:
    """Return person and company of a document in Clearbit's shape, None if it has neither."""
    members = document if isinstance(document, dict) else {}
    person, company = clean(members.get("person")), clean(members.get("company"))
    if not person and not company:
        return None
    return Enrichment(person=person, company=company, source=source, fetched_at=clock())


def raise_if_later(reply: Reply, name: str, later: Collection[int], poll_after: timedelta) -> None:
    """Raise RetryLater while the answer is being looked up, ProviderUnavailable for `later`."""
    if reply.status == HTTPStatus.ACCEPTED:
        raise RetryLater(poll_after)
    if reply.status in later:
        raise ProviderUnavailable(f"{name} answers {reply.status}.")
