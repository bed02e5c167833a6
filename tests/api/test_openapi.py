"""The OpenAPI document tells the truth about the routes, and nothing else."""

import re
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped]
from openapi_spec_validator import OpenAPIV31SpecValidator
from redis.asyncio import Redis
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from service.api.docs.components import TAGS
from service.api.docs.openapi import build_openapi
from service.api.docs.pages import DOCS_ROUTES
from service.api.docs.webhooks import describe_webhooks
from service.api.http.problem_types import PROBLEM_TYPES
from service.api.http.problems import CONTENT_TYPE
from service.api.routes import ROUTES
from service.domain.scopes import OF_CLIENTS
from service.domain.webhooks import EventType
from service.settings.settings import Settings, read_settings
from tests.factories import Api, running

Document = dict[str, Any]


@pytest.fixture
async def document(api: Api) -> Document:
    answer = await api.get("//openapi.json")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    written: Document = answer.json()
    return written


def operations_of(document: Document) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, path and operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def resolved(document: Document, thing: Any) -> Any:
    """Return what `thing` refers to, or `thing` if it is no reference."""
    while "$ref" in thing:
        found = document
        for part in thing["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        thing = found
    return thing


def responses_of(document: Document, operation: dict[str, Any]) -> dict[int, Any]:
    """Return the responses by status, without the default that calls without success have."""
    return {
        int(status): resolved(document, response)
        for status, response in operation["responses"].items()
        if status != "default"
    }


def parts_of(thing: Any) -> Iterator[dict[str, Any]]:
    """Yield every object within a document, itself included."""
    if isinstance(thing, dict):
        yield thing
    for part in thing.values() if isinstance(thing, dict) else thing:
        if isinstance(part, dict | list):
            yield from parts_of(part)


def problems_of(document: Document, operation: dict[str, Any]) -> Iterator[tuple[int, str, Any]]:
    """Yield status, code and example of each problem; none under /oauth, by RFC 6749."""
    if operation["tags"] == ["OAuth 2.0"]:
        return
    for status, response in responses_of(document, operation).items():
        if status >= 400:
            for code, example in response["content"][CONTENT_TYPE]["examples"].items():
                yield status, code, example["value"]


def validator_of(document: Document, schema: dict[str, Any]) -> Draft202012Validator:
    """Return a validator of `schema`, which may refer to the document's components."""
    resource = Resource.from_contents(document, default_specification=DRAFT202012)
    registry: Any = Registry().with_resource("document", resource)
    absolute = {"$ref": "document" + schema["$ref"]} if "$ref" in schema else schema
    return Draft202012Validator(absolute, registry=registry, format_checker=FormatChecker())


def faults_of(document: Document, call: str, status: int, answer: Any) -> list[str]:
    """Return what is wrong with an answer, by what is said of a call under /api/v1."""
    method, path = call.split()
    response = responses_of(document, document["paths"][f"/api/v1{path}"][method])[status]
    schema = response["content"]["application/json"]["schema"]
    return [error.message for error in validator_of(document, schema).iter_errors(answer)]


def test_it_is_valid_openapi_3_1(document: Document) -> None:
    assert document["openapi"] == "3.1.0"
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_it_documents_every_route_and_no_other(api: Api, document: Document) -> None:
    pages = {route.handler for route in DOCS_ROUTES}
    routes = {
        (route.method, route.resource.canonical)
        for route in api.app.router.routes()
        if route.method != "HEAD" and route.handler not in pages and route.resource
    }
    assert {(method, path) for method, path, _ in operations_of(document)} == routes


def test_every_operation_says_what_it_does(document: Document) -> None:
    for method, path, operation in operations_of(document):
        told = f"{method} {path}"
        assert operation["summary"], told
        assert len(operation["tags"]) == 1, told
        assert set(operation["tags"]) <= set(TAGS), told
        assert any(200 <= status < 400 for status in responses_of(document, operation)), told


def test_handlers_say_nothing_that_is_not_read() -> None:
    """`@docs` takes any keyword: a misspelt one would be lost."""
    read = {"tags", "summary", "description", "parameters", "responses", "refuses", "locates"}
    added = {"schemas", "produces"}  # by aiohttp-apispec
    for route in ROUTES:
        assert set(getattr(route.handler, "__apispec__", ())) <= read | added, route


def test_every_operation_id_is_unique(document: Document) -> None:
    ids = [operation["operationId"] for _, _, operation in operations_of(document)]
    assert sorted(ids) == sorted(set(ids))


def test_every_pattern_is_one_of_ecma_262_for_the_whole_text(document: Document) -> None:
    """A client's validator knows no \\Z, and looks for a pattern anywhere in the text."""
    for part in parts_of(document):
        if isinstance(pattern := part.get("pattern"), str):
            assert re.fullmatch(r"\^[^\\]*\$", pattern), pattern


def test_every_tag_is_used(document: Document) -> None:
    used = {tag for _, _, operation in operations_of(document) for tag in operation["tags"]}
    assert used == set(TAGS)


def test_every_path_parameter_is_explained(document: Document) -> None:
    for method, path, operation in operations_of(document):
        named = {part.strip("{}") for part in path.split("/") if part.startswith("{")}
        explained = [part for part in operation["parameters"] if part["in"] == "path"]
        assert {part["name"] for part in explained} == named, f"{method} {path}"
        for part in explained:
            assert part["description"], part
            assert part["example"], part


def test_every_problem_is_one_that_the_service_knows(document: Document) -> None:
    for method, path, operation in operations_of(document):
        for status, code, problem in problems_of(document, operation):
            told = f"{method} {path}: {code}"
            assert PROBLEM_TYPES[code].status == problem["status"] == status, told
            assert problem["code"] == code, told
            assert problem["type"] == f"/problems/{code}", told
            errors = validator_of(document, {"$ref": "#/components/schemas/Problem"})
            assert not list(errors.iter_errors(problem)), told


def members_of(document: Document, schema: dict[str, Any], parent: str = "#") -> Iterator[str]:
    """Yield the JSON pointers of all members of an object, and of the objects in it."""
    for name, member in resolved(document, schema).get("properties", {}).items():
        yield f"{parent}/{name}"
        for choice in (member, *member.get("anyOf", ())):
            yield from members_of(document, choice, f"{parent}/{name}")


def test_every_problem_points_to_a_member_of_its_call(document: Document) -> None:
    for method, path, operation in operations_of(document):
        known = {f"#/{one['name']}" for one in operation["parameters"] if "name" in one}
        if "requestBody" in operation:
            [content] = operation["requestBody"]["content"].values()
            known |= set(members_of(document, content["schema"]))
        else:
            known.add("#/member")  # that was not expected
        if path.endswith("/callback"):
            known.add("#/referral_code")  # of the call that started the sign-in
        for _, code, problem in problems_of(document, operation):
            pointers = {error["pointer"] for error in problem.get("errors", ())}
            assert pointers <= known, f"{method} {path}: {code}"


def test_every_example_of_a_body_passes_its_schema(document: Document) -> None:
    kinds = set()
    for method, path, operation in operations_of(document):
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            errors = validator_of(document, content["schema"]).iter_errors(content["example"])
            assert [error.message for error in errors] == [], f"{method} {path}"
            assert content["example"], f"{method} {path}"
            kinds.add(kind)
    assert kinds == {"application/json", "application/x-www-form-urlencoded"}


def test_every_example_of_a_member_passes_its_schema(document: Document) -> None:
    for name, schema in document["components"]["schemas"].items():
        for member, about in schema["properties"].items():
            for example in about.get("examples", ()):
                errors = validator_of(document, about).iter_errors(example)
                assert [error.message for error in errors] == [], f"{name}.{member}"


def test_what_needs_a_token_says_so(document: Document) -> None:
    for method, path, operation in operations_of(document):
        codes = {code for _, code, _ in problems_of(document, operation)}
        secured = operation["security"] != []
        assert secured == ("not-authenticated" in codes), f"{method} {path}"
        names = {name for way in operation["security"] for name in way}
        of_users = {"bearerAuth", "oauth2"} if secured else set()
        scopes = {
            scope for way in operation["security"] for needed in way.values() for scope in needed
        }
        of_clients = {"clientSecret"} if scopes & OF_CLIENTS else set()
        assert names == of_users | of_clients, f"{method} {path}"
    assert document["components"]["securitySchemes"]["bearerAuth"]["scheme"] == "bearer"


def test_unknown_members_are_refused_in_bodies_and_possible_in_answers(document: Document) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["Register"]["additionalProperties"] is False
    assert schemas["Register"]["required"] == ["email", "password"]
    assert "additionalProperties" not in schemas["User"]
    assert schemas["User"]["required"] == list(schemas["User"]["properties"])


def test_marshmallow_fields_are_written_as_json_schema(document: Document) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["User"]["properties"]["referrer_id"]["type"] == ["string", "null"]
    assert schemas["User"]["properties"]["role"]["enum"] == ["user", "admin"]
    assert schemas["Tokens"]["properties"]["token_type"] == {"type": "string", "const": "Bearer"}
    wish = schemas["ReferralCodeWish"]["properties"]
    assert wish["expires_in_days"] == {"type": ["integer", "null"], "minimum": 1, "maximum": 366}
    assert wish["expires_at"]["format"] == "date-time"
    query = document["paths"]["/api/v1/referrals/{referrer_id}"]["get"]["parameters"]
    cursor, limit = sorted(
        (part for part in query if part["in"] == "query"), key=lambda part: str(part["name"])
    )
    assert cursor["schema"] == {"type": "string"}
    assert limit["schema"] == {"type": "integer", "default": 20, "minimum": 1, "maximum": 100}


@pytest.mark.parametrize("path", ["referrals", "rewards", "balances", "transfers"])
def test_a_list_says_which_programme_is_listed_if_none_is_named(
    document: Document, path: str
) -> None:
    parameters = document["paths"][f"/api/v1/{path}"]["get"]["parameters"]
    [programme] = [each for each in parameters if each["name"] == "programme"]
    assert "One programme's are listed: if omitted, " in programme["description"]
    assert "`default`" in programme["description"]


def test_members_that_an_answer_may_lack_are_not_required(document: Document) -> None:
    schemas = document["components"]["schemas"]
    tokens = schemas["OAuthTokens"]
    assert set(tokens["properties"]) - set(tokens["required"]) == {"refresh_token"}
    assert schemas["Introspection"]["required"] == ["active"]


def test_a_constant_is_a_string(document: Document) -> None:
    """openapi-python-client generates nothing of a document with another."""
    constants = [part for part in parts_of(document) if "const" in part]
    assert {part["const"] for part in constants} >= {"Bearer", "accepted", "confirmation-sent"}
    assert [part for part in constants if part["type"] != "string"] == []


def test_every_answer_that_has_a_body_says_of_which_type(document: Document) -> None:
    """A problem everywhere, but for OAuth's own errors and the pages that people see there."""
    for method, path, operation in operations_of(document):
        oauth = path.startswith("/oauth/")
        for status, response in responses_of(document, operation).items():
            types = set(response.get("content", {}))
            if status >= 400 and not oauth:
                assert types == {CONTENT_TYPE}, f"{method} {path} {status}"
            elif status >= 400:
                assert {"application/json"} <= types <= {"application/json", "text/html"}
            elif status in {302, 303}:
                assert "Location" in response["headers"]
                assert not types
            else:
                assert (status == 204 or path == "/oauth/revoke") != bool(types)


def test_406_is_told_of_no_call_that_answers_without_a_body(document: Document) -> None:
    for method, path, operation in operations_of(document):
        responses = responses_of(document, operation)
        success = any("content" in responses[status] for status in responses if status < 400)
        assert (406 in responses) == (success and path.startswith("/api/")), f"{method} {path}"


def test_the_first_answer_is_the_usual_one(document: Document) -> None:
    """Generators take it for the type of the result."""
    for method, path, operation in operations_of(document):
        statuses = list(operation["responses"])
        assert statuses == sorted(statuses), f"{method} {path}"
        usual = statuses[0] < "300" or "default" in statuses
        assert usual, f"{method} {path}"


def test_the_sections_come_in_the_order_of_use(document: Document) -> None:
    told = [tag["name"] for tag in document["tags"]]
    assert told == list(TAGS)
    assert told[:4] == ["Accounts", "Referral codes", "Referrals", "Sessions"]
    tags = [operation["tags"][0] for _, _, operation in operations_of(document)]
    assert tags == sorted(tags, key=told.index)
    ids = [operation["operationId"] for _, _, operation in operations_of(document)]
    assert ids[0] == "register"
    assert ids.index("createReferralCode") < ids.index("findReferralCode")
    assert ids.index("listSessions") < ids.index("endSession")


def test_headers_are_told_where_they_are_sent(document: Document) -> None:
    login = responses_of(document, document["paths"]["/api/v1/auth/login"]["post"])
    assert {"RateLimit", "RateLimit-Policy", "X-Request-Id"} == set(login[200]["headers"])
    assert "WWW-Authenticate" in login[401]["headers"]
    assert {"Retry-After", "RateLimit"} <= set(login[429]["headers"])
    assert "Retry-After" in login[503]["headers"]
    create = responses_of(document, document["paths"]["/api/v1/referral-code"]["post"])
    assert {"Idempotency-Replayed", "Location"} <= set(create[201]["headers"])
    replace = responses_of(document, document["paths"]["/api/v1/referral-code"]["put"])
    assert "Location" in replace[201]["headers"]
    assert "Location" not in replace[200]["headers"]


def test_building_it_again_gives_the_same(document: Document, settings: Settings) -> None:
    app = web.Application()
    app.add_routes(ROUTES)
    assert build_openapi(app, settings.service_name, settings.public_url) == document


async def test_a_client_that_has_it_is_not_sent_it_again(api: Api) -> None:
    first = await api.get("//openapi.json")
    again = await api.get("//openapi.json", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")


async def test_the_answers_of_the_story_pass_their_schemas(api: Api, document: Document) -> None:
    def conforms(path: str, method: str, status: int, answer: Any) -> bool:
        return not faults_of(document, f"{method} {path}", status, answer)

    registered = await api.register("anna@example.com")
    assert conforms("/auth/register", "post", 201, registered.json())
    signed_in = await api.log_in("anna@example.com")
    assert conforms("/auth/login", "post", 200, signed_in.json())
    token = signed_in.json()["access_token"]
    created = await api.post("/referral-code", {"expires_in_days": 30}, by=token)
    assert conforms("/referral-code", "post", 201, created.json())
    changed = await api.patch("/referral-code", {"max_uses": 9}, by=token)
    assert conforms("/referral-code", "patch", 200, changed.json())
    listed = await api.get("/referral-codes", by=token)
    assert listed.json()["items"]
    assert conforms("/referral-codes", "get", 200, listed.json())
    checked = await api.get(f"/codes/{created.json()['code']}")
    assert conforms("/codes/{code}", "get", 200, checked.json())
    found = await api.get("/referral-code/anna@example.com")
    assert conforms("/referral-code/{email}", "get", 200, found.json())
    await api.register("ben@example.com", referral_code=found.json()["code"])
    referrals = await api.get("/referrals/me", by=token)
    assert referrals.json()["items"]
    assert conforms("/referrals/{referrer_id}", "get", 200, referrals.json())
    sessions = await api.get("/auth/sessions", by=token)
    assert conforms("/auth/sessions", "get", 200, sessions.json())


async def test_answers_that_promise_a_mail_pass_their_schemas(
    mail_environment: dict[str, str], database: asyncpg.Connection, redis: Redis, document: Document
) -> None:
    required = read_settings({**mail_environment, "EMAIL_CONFIRMATION": "required"})
    async with running(required) as api:
        registered = await api.register("anna@example.com")
        assert registered.status == 202
        assert faults_of(document, "post /auth/register", 202, registered.json()) == []
        for call in ("/auth/email/resend", "/auth/password/forgot"):
            asked = await api.post(call, {"email": "anna@example.com"})
            assert asked.status == 202
            assert faults_of(document, f"post {call}", 202, asked.json()) == []


def test_every_type_of_webhook_has_an_example_that_passes_its_schema() -> None:
    described = describe_webhooks()
    assert set(described) == {kind.value for kind in EventType}
    for name, webhook in described.items():
        content = webhook["post"]["requestBody"]["content"]["application/json"]
        checker = FormatChecker()
        Draft202012Validator(content["schema"], format_checker=checker).validate(content["example"])
        assert content["example"]["type"] == name
