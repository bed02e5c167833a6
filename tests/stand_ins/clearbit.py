"""Clearbit's combined enrichment, as documented. Of `nobody…` it knows nothing (404)."""

import time
from binascii import Error as NotBase64
from typing import Any

from aiohttp import BasicAuth, web

from tests.stand_ins.scripted import Endpoint, StandIn, json_response

ERRORS = {
    400: ("params_invalid", "Invalid parameters."),
    401: ("auth_required", "You must provide an API key."),
    402: ("over_quota", "Your account is over its quota."),
    403: ("forbidden", "Your account may not make this call."),
    404: ("unknown_record", "Unknown person."),
    422: ("email_invalid", "Invalid email."),
    429: ("rate_limit", "Rate limit exceeded. Limit is 600 requests per minute."),
    500: ("internal_error", "Something went wrong."),
}


class Clearbit(StandIn):
    """Clearbit. `finder` takes a script."""

    def __init__(self, key: str = "sk_test") -> None:
        self.finder = Finder()
        super().__init__(key, self.finder)

    def refuse(self, request: web.Request) -> web.Response | None:
        key = key_of(request.headers.get("Authorization", ""))
        if key is None:
            return failure(401)
        if key != self.key:
            return failure(401, "invalid_api_key", "Invalid API key provided.")
        email = request.query.get("email")
        if not email:
            return failure(400)
        return failure(422) if "@" not in email else None

    def unknown_route(self) -> web.Response:
        return failure(404, "unknown_route", "Unknown route.")


class Finder(Endpoint):
    path = "/v2/combined/find"

    def document(self, email: str) -> Any:
        return {"person": person_of(email), "company": company_of(email)}

    def answer(self, status: int, email: str) -> web.Response:
        if status == 200:
            return json_response(self.document(email), headers=limits())
        if status < 300:
            return web.Response(status=status, headers=limits())
        return failure(status)


def key_of(authorization: str) -> str | None:
    """The key: the token, or the user of a basic authentication."""
    scheme, _, token = authorization.partition(" ")
    if scheme == "Bearer":
        return token or None
    try:
        return BasicAuth.decode(authorization).login or None
    except (ValueError, NotBase64):
        return None


def limits(remaining: int = 599) -> dict[str, str]:
    return {
        "X-RateLimit-Limit": "600",
        "X-RateLimit-Remaining": str(remaining),
        "X-RateLimit-Reset": str(int(time.time()) + 60),
    }


def failure(status: int, error: str | None = None, message: str | None = None) -> web.Response:
    usual_error, usual_message = ERRORS.get(status, ERRORS[500])
    described = {"type": error or usual_error, "message": message or usual_message}
    return json_response(
        {"error": described}, status, headers=limits(remaining=0 if status == 429 else 599)
    )


def person_of(email: str) -> dict[str, Any]:
    """The documented sample, with that email address."""
    return {
        "id": "d54c54ad-40be-4305-8a34-0ab44710b90d",
        "name": {"fullName": "Alex MacCaw", "givenName": "Alex", "familyName": "MacCaw"},
        "email": email,
        "location": "San Francisco, CA, US",
        "timeZone": "America/Los_Angeles",
        "utcOffset": -8,
        "geo": {
            "city": "San Francisco",
            "state": "California",
            "stateCode": "CA",
            "country": "United States",
            "countryCode": "US",
            "lat": 37.7749295,
            "lng": -122.4194155,
        },
        "bio": "O'Reilly author, software engineer & traveller.",
        "site": "http://alexmaccaw.com",
        "avatar": "https://avatars.example/d54c54ad-40be-4305-8a34-0ab44710b90d",
        "employment": {
            "domain": "clearbit.com",
            "name": "Clearbit",
            "title": "Founder and CEO",
            "role": "ceo",
            "seniority": "executive",
        },
        "facebook": {"handle": "amaccaw"},
        "github": {"handle": "maccman", "followers": 2932, "following": 94},
        "twitter": {"handle": "maccaw", "id": "2006261", "followers": 15248},
        "linkedin": {"handle": "pub/alex-maccaw/78/929/ab5"},
        "fuzzy": False,
        "emailProvider": False,
        "indexedAt": "2016-11-07T00:00:00.000Z",
    }


def company_of(email: str) -> dict[str, Any]:
    """The documented sample, at the email address's domain."""
    domain = email.rpartition("@")[2]
    return {
        "id": "c5a6a9c5-303a-455a-935c-9dffcd2ed756",
        "name": "Clearbit",
        "legalName": "APIHub, Inc",
        "domain": domain,
        "domainAliases": [f"www.{domain}"],
        "site": {"phoneNumbers": [], "emailAddresses": [f"hello@{domain}"]},
        "category": {
            "sector": "Information Technology",
            "industryGroup": "Software & Services",
            "industry": "Internet Software & Services",
            "subIndustry": "Internet Software & Services",
        },
        "tags": ["Technology", "SAAS", "B2B"],
        "description": "Data for every team.",
        "foundedYear": 2013,
        "location": "90 Sheridan St, San Francisco, CA 94103, USA",
        "geo": {
            "city": "San Francisco",
            "state": "California",
            "stateCode": "CA",
            "country": "United States",
            "countryCode": "US",
            "lat": 37.7688472,
            "lng": -122.4057055,
        },
        "logo": f"https://logos.example/{domain}",
        "metrics": {
            "employees": 120,
            "employeesRange": "51-250",
            "raised": 17_000_000,
            "annualRevenue": None,
        },
        "emailProvider": False,
        "type": "private",
        "tech": ["google_analytics", "stripe"],
        "indexedAt": "2016-11-07T00:00:00.000Z",
    }
