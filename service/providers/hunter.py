"""Hunter (hunter.io, API v2): verifies e-mails, and tells about the people behind them."""

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
from service.settings.settings import EnrichmentSettings, HunterSettings

SOURCE: Final = "hunter"
POLL_AFTER: Final = timedelta(seconds=5)
_VERDICTS: Final = {verdict.value: verdict for verdict in Verdict}

# What would go well another time: a wrong key, which operators mend, and too many calls a second.
_LATER: Final = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}


class HunterVerifier:
    """The Email Verifier. Its answer is its `status`: `result` and `score` are the older words."""

    def __init__(self, settings: HunterSettings, http: HttpClient) -> None:
        self._settings = settings
        self._http = http

    async def verify(self, email: Email) -> Verdict:
        """Return the verdict.

        It is UNKNOWN where Hunter will not say: the person does not want to be processed (451),
        or the month's credits are gone (429). Raises RetryLater while Hunter is still asking the
        mail server (202), and ProviderUnavailable if another try may succeed.
        """
        reply = await self._http.call(
            SOURCE,
            "GET",
            f"{self._settings.url}/v2/email-verifier",
            params={"email": email.mailbox},
            headers={"X-API-KEY": self._settings.api_key},
        )
        if reply.status == HTTPStatus.ACCEPTED:
            raise RetryLater(POLL_AFTER)
        _raise_if_later(reply)
        return _VERDICTS.get(_status_of(reply), Verdict.UNKNOWN)


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
        if reply.status == HTTPStatus.ACCEPTED:
            raise RetryLater(POLL_AFTER)
        _raise_if_later(reply)
        data = reply.document.get("data") if isinstance(reply.document, dict) else None
        return enrichment_of(data, SOURCE, self._clock) if reply.status == HTTPStatus.OK else None


def enrichment_of(document: object, source: str, clock: Clock) -> Enrichment | None:
    """Return person and company of a document in Clearbit's shape, None if it has neither."""
    members = document if isinstance(document, dict) else {}
    person, company = clean(members.get("person")), clean(members.get("company"))
    if not person and not company:
        return None
    return Enrichment(person=person, company=company, source=source, fetched_at=clock())


def _raise_if_later(reply: Reply) -> None:
    if reply.status in _LATER:
        raise ProviderUnavailable(f"Hunter answers {reply.status}.")


def _status_of(reply: Reply) -> str:
    """Return the text that Hunter has put where the status belongs, whatever else it sent."""
    data = reply.document.get("data") if isinstance(reply.document, dict) else None
    status = data.get("status") if isinstance(data, dict) else None
    return status if reply.status == HTTPStatus.OK and isinstance(status, str) else ""
