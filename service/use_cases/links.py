"""Share links: where they lead."""

from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

from service.domain.errors import InvalidInput
from service.domain.programmes import DEFAULT_PROGRAMME_ID
from service.domain.referral_codes import normalise_code
from service.use_cases.programmes import Programmes
from service.use_cases.shared import Shared


class Links:
    def __init__(self, shared: Shared, programmes: Programmes) -> None:
        self._shared = shared
        self._programmes = programmes

    async def follow(self, text: str) -> str | None:
        """Return the landing page of the code's programme, with the code if it is live.

        A text that is no live code leads to the landing page of the programme `default`. None if
        the programme has no landing page.
        """
        shared = self._shared
        async with shared.database.autocommit() as repositories:
            code, programme_id = None, DEFAULT_PROGRAMME_ID
            typed = None
            with suppress(InvalidInput):
                typed = normalise_code(text)
            if typed is not None:
                found = await repositories.referral_code_uses.find_in_programme(
                    typed, shared.clock(), confirmed_only=shared.confirmation_required
                )
                if found is not None:
                    code, programme_id = found
            programme = await self._programmes.find_by_id(repositories, programme_id)
        url = programme.landing_url
        return url if url is None or code is None else _with_code(url, code)


def _with_code(url: str, code: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, f"ref={code}")))))
