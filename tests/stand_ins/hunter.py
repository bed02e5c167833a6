"""Hunter's API v2, as documented: the email verifier, and the combined enrichment.

The verdict is the one that the local part begins with: `invalid…`, `accept_all…`, `webmail…`,
`disposable…`, `unknown…`; `blocked…` is valid and blocked, everybody else is valid. Of
`nobody…` the enrichment knows nothing.

Of the errors' ids `authentication_failed`, `wrong_params`, `invalid_email` and `claimed_email`
are Hunter's; the others are made up in their manner. A client judges by the status.
"""

from typing import Any

from aiohttp import web

from tests.stand_ins.clearbit import company_of, person_of
from tests.stand_ins.scripted import Call, Endpoint, StandIn, Step, json_response

TEST_KEY = "test-api-key"

# status: result, score
VERDICTS = {
    "valid": ("deliverable", 100),
    "invalid": ("undeliverable", 0),
    "accept_all": ("risky", 60),
    "webmail": ("risky", 75),
    "disposable": ("risky", 30),
    "unknown": ("risky", 40),
}

ERRORS = {
    400: ("wrong_params", "You are missing the email parameter"),
    401: ("authentication_failed", "No user found for the API key supplied"),
    403: ("too_many_requests", "You have reached the rate limit"),
    404: ("not_found", "The requested resource does not exist"),
    422: ("unprocessable_entity", "Your request is valid but the resource could not be made"),
    429: ("usage_exceeded", "You have reached your usage limit"),
    451: (
        "claimed_email",
        "The person behind the requested resource has asked not to be processed",
    ),
    500: ("server_error", "Something went wrong on Hunter's end"),
}


class Hunter(StandIn):
    """Hunter. `verifier` and `finder` take a script each."""

    def __init__(self, key: str = TEST_KEY) -> None:
        self.verifier = Verifier()
        self.finder = Finder()
        super().__init__(key, self.verifier, self.finder)

    def refuse(self, request: web.Request) -> web.Response | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        keys = {request.query.get("api_key"), request.headers.get("X-API-KEY")}
        if scheme == "Bearer":
            keys.add(token)
        if keys - {None} != {self.key}:
            return failure(401)
        email = request.query.get("email")
        if not email:
            return failure(400)
        if "@" not in email:
            return failure(400, "invalid_email", "The supplied email is invalid")
        if request.path == Finder.path and request.query.get("clearbit_format") != "true":
            return failure(400, details="The stand-in knows no shape but Clearbit's")
        return None

    def unknown_route(self) -> web.Response:
        return failure(404)


class Verifier(Endpoint):
    path = "/v2/email-verifier"

    def document(self, email: str) -> Any:
        return verification(email, usual_verdict(email), block=email.startswith("blocked"))

    def answer(self, status: int, email: str) -> web.Response:
        return answer(status, self.document(email))

    def usual_status(self, email: str) -> int:
        return 200


class Finder(Endpoint):
    """The combined enrichment, with `clearbit_format=true`."""

    path = "/v2/combined/find"

    def document(self, email: str) -> Any:
        return {
            "data": {"person": person_of(email), "company": company_of(email)},
            "meta": {"params": {"email": email, "clearbit_format": True}},
        }

    def answer(self, status: int, email: str) -> web.Response:
        return answer(status, self.document(email))


def verdict(status: str, **changes: Any) -> Step:
    """A 200 with that verdict, any text; `changes` are to members of `data`."""

    async def step(call: Call) -> web.StreamResponse:
        return json_response(verification(call.email, status, **changes))

    return step


def usual_verdict(email: str) -> str:
    """The verdict that the local part begins with."""
    return next((status for status in VERDICTS if email.startswith(status)), "valid")


def verification(email: str, status: str, **changes: Any) -> Any:
    """The documented body of the verifier."""
    result, score = VERDICTS.get(status, VERDICTS["unknown"])
    page = {
        "domain": "beta.example",
        "uri": "http://beta.example/p",
        "extracted_on": "2020-06-17",
        "last_seen_on": "2020-06-17",
        "still_on_page": True,
    }
    data = {
        "status": status,
        "result": result,
        "_deprecation_notice": "Using result is deprecated, use status instead",
        "score": score,
        "email": email,
        "regexp": True,
        "gibberish": False,
        "disposable": status == "disposable",
        "webmail": status == "webmail",
        "mx_records": status != "invalid",
        "smtp_server": status != "invalid",
        "smtp_check": status not in {"invalid", "unknown"},
        "accept_all": status == "accept_all",
        "block": False,
        "sources": [page] if status == "valid" else [],
    }
    return {"data": {**data, **changes}, "meta": {"params": {"email": email}}}


def answer(status: int, document: Any) -> web.Response:
    if status < 300:
        # What is in the body of a 202 is not documented; a client asks again by the status.
        return json_response(document if status == 200 else {"data": {}}, status)
    return failure(status)


def failure(status: int, error: str | None = None, details: str | None = None) -> web.Response:
    usual_error, usual_details = ERRORS.get(status, ERRORS[500])
    described = {"id": error or usual_error, "code": status, "details": details or usual_details}
    return json_response({"errors": [described]}, status)
