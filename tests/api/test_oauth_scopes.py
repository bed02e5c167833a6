"""Which token may call which route: every scope on every route."""

from typing import Any
from uuid import UUID

import pytest

from service.api.http import app_keys
from service.api.http.front import API
from service.domain.scopes import FOR_CLIENTS, OF_CLIENTS, Scope
from service.domain.users import Role
from tests.api.assertions import assert_problem
from tests.api.scopes import OWN_SCOPE_OF, SCOPE_OF, call_of, routes_of_api
from tests.factories import Answer, Api, Person
from tests.oauth import TOKEN, Application, new_admin, new_application

PUBLIC = {
    ("GET", f"{API}/referral-code/{{email}}"),
    ("GET", f"{API}/codes/{{code}}"),
    ("POST", f"{API}/auth/register"),
    ("POST", f"{API}/auth/login"),
    ("POST", f"{API}/auth/refresh"),
    ("POST", f"{API}/auth/password/forgot"),
    ("POST", f"{API}/auth/password/reset"),
    ("POST", f"{API}/auth/email/confirm"),
    ("POST", f"{API}/auth/email/resend"),
    ("POST", f"{API}/auth/undo"),
    ("GET", f"{API}/auth/providers"),
    ("GET", f"{API}/auth/providers/{{provider}}/start"),
    ("GET", f"{API}/auth/providers/{{provider}}/callback"),
}
"""What needs no token. A new route has to be here, or its handler to have a scope."""
FOR_CLIENTS_THEMSELVES = {
    *(call for call, scope in SCOPE_OF.items() if scope in FOR_CLIENTS),
    ("GET", f"{API}/referrals/{{referrer_id}}"),
}
"""What a client may call without a user, if an operator has given it the scope."""
FIRST_PARTY_ONLY = {
    ("DELETE", f"{API}/users/me"),
    ("POST", f"{API}/auth/email/change"),
    ("POST", f"{API}/auth/password/change"),
    ("DELETE", f"{API}/auth/sessions"),
    ("GET", f"{API}/users/me/identities"),
    ("DELETE", f"{API}/users/me/identities/{{identity_id}}"),
    ("DELETE", f"{API}/auth/sessions/{{session_id}}"),
}
"""What no other application may call, whatever its user allows; the last: of other sessions."""
RULES = {"qualify": {"on": "signup"}}
NOBODY = "01890000-0000-7000-8000-000000000000"
BODIES: dict[tuple[str, str], Any] = {
    ("DELETE", f"{API}/users/me"): {"password": "a long walk by the river"},
    ("POST", f"{API}/auth/password/change"): {"current_password": "x", "new_password": "y"},
    ("POST", f"{API}/auth/email/change"): {
        "new_email": "nonsense",  # of a sound one there is 503: this service sends no mail
        "password": "a long walk by the river",
    },
    ("POST", f"{API}/referral-code"): {"expires_in_days": 7},
    ("PUT", f"{API}/referral-code"): {"expires_in_days": 7},
    ("PATCH", f"{API}/referral-code"): {"expires_in_days": 7},
    ("PATCH", f"{API}/admin/users/{{user_id}}"): {"disabled": True},
    ("POST", f"{API}/participants"): {"external_id": "u-1"},
    ("PATCH", f"{API}/participants/{{participant_id}}"): {"trusted": True},
    ("PUT", f"{API}/participants/{{participant_id}}/code"): {"expires_in_days": 7},
    ("POST", f"{API}/referrals"): {"code": "NOBODY", "external_id": "u-1"},
    ("POST", f"{API}/events"): {"id": "order-1", "type": "purchase", "external_id": "u-1"},
    ("POST", f"{API}/redemptions"): {"id": "p-1", "external_id": "u-1", "unit": "EUR", "amount": 1},
    ("POST", f"{API}/adjustments"): {
        "id": "a-1",
        "external_id": "u-1",
        "unit": "EUR",
        "amount": 1,
        "note": "x",
    },
    ("POST", f"{API}/referees/{{referral_id}}/decisions"): {"decision": "reject", "reason": "x"},
    ("POST", f"{API}/programmes"): {"key": "spring", "name": "Spring", "rules": RULES},
    ("PATCH", f"{API}/programmes/{{key}}"): {"paused": False},
    ("PUT", f"{API}/programmes/{{key}}/rules"): {"version": 9, "rules": RULES},
    ("POST", f"{API}/programmes/{{key}}/rules/try"): {"rules": RULES, "referral": {}, "events": []},
    ("POST", f"{API}/webhook-endpoints"): {"url": "https://hooks.example.com/"},
    ("PATCH", f"{API}/webhook-endpoints/{{endpoint_id}}"): {"disabled": True},
    ("POST", f"{API}/webhook-endpoints/{{endpoint_id}}/rotate"): {"overlap_hours": 1},
    ("POST", f"{API}/webhook-endpoints/{{endpoint_id}}/replay"): {"since": "2026-11-21T09:30:00Z"},
}
Route = tuple[str, str]


async def called(api: Api, route: Route, token: str | None) -> Answer:
    """Call a route with what it takes; the path's ids are nobody's."""
    method, path = route
    filled = path.format(
        session_id=NOBODY,
        identity_id=NOBODY,
        referrer_id=NOBODY,
        user_id=NOBODY,
        email="a@b.example",
        provider="nobody",
        code="NOBODY",
        participant_id=NOBODY,
        referral_id=NOBODY,
        transfer_id=NOBODY,
        table="rewards",
        key="default",
        version=1,
        endpoint_id=NOBODY,
        message_id=NOBODY,
    )
    return await api.call(method, f"/{filled}", BODIES.get(route), by=token)


def test_every_route_of_the_api_is_public_or_has_its_scope() -> None:
    neither = set(map(call_of, routes_of_api())) ^ (PUBLIC | set(SCOPE_OF))
    assert not neither, "give the handler a scope with @needs, or add the call to PUBLIC"
    assert not PUBLIC & set(SCOPE_OF)


def test_every_call_with_a_scope_and_a_body_has_one_here() -> None:
    with_body = {
        call_of(route)
        for route in routes_of_api()
        for schema in getattr(route.handler, "__schemas__", ())
        if schema["location"] == "json"
    }
    assert set(BODIES) == with_body - PUBLIC, "give the call a body in BODIES"


@pytest.fixture
async def application(api: Api) -> Application:
    return await new_application(api)


@pytest.fixture
async def machine(api: Api) -> Application:
    """A client that has for itself all that a client can have."""
    return await new_application(api, redirect_uris=[], own_scopes=OF_CLIENTS)


async def token_of(application: Application, person: Person, scope: Scope) -> str:
    token: str = (await application.tokens_of(person, scope=scope))["access_token"]
    return token


@pytest.mark.parametrize("scope", Scope)
async def test_a_token_calls_the_routes_of_its_scope_and_no_other(
    api: Api, application: Application, scope: Scope
) -> None:
    admin = await new_admin(api)
    token = await token_of(application, admin, scope)
    refused: dict[Route, Answer] = {}
    for route, needed in SCOPE_OF.items():
        if needed is not scope and OWN_SCOPE_OF.get(route) is not scope:
            refused[route] = await called(api, route, token)
    assert len(refused) > 5
    for route, answer in refused.items():
        assert answer.status == 403, route
        assert answer.json()["code"] == "insufficient-scope", route
        challenge = answer.headers["WWW-Authenticate"]
        assert challenge.startswith("Bearer "), route
        assert 'error="insufficient_scope"' in challenge, route
        assert f'scope="{SCOPE_OF[route]}"' in challenge, route
    for route, needed in SCOPE_OF.items():
        if needed is scope:
            # Somebody new each time: some calls end the session, or the account.
            own = await token_of(application, await new_admin(api), scope)
            answer = await called(api, route, own)
            if route in FIRST_PARTY_ONLY:
                assert_problem(answer, 403, "not-allowed")
                continue
            assert answer.status in {200, 201, 202, 204, 401, 404, 409, 422}, (route, answer.body)
            assert answer.status != 401 or answer.json()["code"] == "invalid-credentials", route


@pytest.mark.parametrize("route", SCOPE_OF, ids=" ".join)
async def test_no_route_with_a_scope_answers_without_a_token(api: Api, route: Route) -> None:
    answer = await called(api, route, None)
    assert (answer.status, answer.json()["code"]) == (401, "not-authenticated")


@pytest.mark.parametrize("route", sorted(PUBLIC), ids=" ".join)
async def test_a_public_route_asks_for_no_token(api: Api, route: Route) -> None:
    answer = await called(api, route, None)
    assert answer.status in {200, 400, 404, 422}, answer.body


@pytest.mark.parametrize("route", [route for route in SCOPE_OF if route[0] == "GET"], ids=" ".join)
async def test_head_needs_the_scope_of_get(
    api: Api, application: Application, route: Route
) -> None:
    other = next(scope for scope in Scope if scope is not SCOPE_OF[route])
    token = await token_of(application, await new_admin(api), other)
    assert (await called(api, ("HEAD", route[1]), token)).status == 403


@pytest.mark.parametrize("route", SCOPE_OF, ids=" ".join)
async def test_a_client_without_a_user_is_refused_where_a_user_is_needed(
    api: Api, machine: Application, route: Route
) -> None:
    own = await machine.send(TOKEN, grant_type="client_credentials")
    assert set(own.json()["scope"].split()) == OF_CLIENTS
    answer = await called(api, route, own.json()["access_token"])
    if route in FOR_CLIENTS_THEMSELVES:
        assert answer.status in {200, 201, 404, 409, 422}, answer.body
    else:
        assert_problem(answer, 403, "insufficient-scope")


async def test_me_is_nobody_to_a_client_without_a_user(api: Api, machine: Application) -> None:
    own = await machine.send(TOKEN, grant_type="client_credentials")
    answer = await api.get("/referrals/me", by=own.json()["access_token"])
    assert answer.status in {403, 404}


async def test_an_admins_token_is_worth_what_the_admin_is_now(
    api: Api, application: Application
) -> None:
    admin = await new_admin(api)
    token = await token_of(application, admin, Scope.ADMIN)
    assert (await api.get("/admin/users", by=token)).status == 200
    async with api.app[app_keys.SERVICES].database.transaction() as repositories:
        await repositories.users.set_role(UUID(admin.user_id), Role.USER, None)
    assert (await api.get("/admin/users", by=token)).status == 403


async def test_a_first_party_token_has_all_that_its_user_may(api: Api) -> None:
    person, admin = await api.new_person(), await new_admin(api)
    for route, scope in SCOPE_OF.items():
        if route[0] == "GET":
            assert (await called(api, route, admin.access_token)).status in {200, 404, 422}
            of_somebody = "referrer_id" in route[1] or "referral_id" in route[1]
            refused = of_somebody or (scope in FOR_CLIENTS and route not in OWN_SCOPE_OF)
            expected = {403} if refused else {200, 404}
            assert (await called(api, route, person.access_token)).status in expected


async def test_an_application_ends_its_own_session_and_no_other(
    api: Api, application: Application
) -> None:
    """Whether there is such a session or not: it learns nothing."""
    person = await api.new_person()
    tokens = await application.tokens_of(person)
    token = tokens["access_token"]
    sessions = (await api.get("/auth/sessions", by=person)).json()["items"]
    [own] = [one["id"] for one in sessions if one["client_id"] == application.client_id]
    others = [one["id"] for one in sessions if one["id"] != own]
    for session_id in (*others, NOBODY, "nonsense"):
        answer = await api.delete(f"/auth/sessions/{session_id}", by=token)
        assert_problem(answer, 403, "not-allowed")
    assert (await api.get("/users/me", by=person)).status == 200
    assert (await api.delete(f"/auth/sessions/{own}", by=token)).status == 204
    assert not await application.is_alive(tokens)


async def test_an_application_takes_nothing_away_from_its_user(
    api: Api, application: Application
) -> None:
    person = await api.new_person()
    token = await token_of(application, person, Scope.PROFILE)
    passwords = {"current_password": person.password, "new_password": "quite another long walk"}
    change = {"new_email": "thief@example.com", "password": person.password}
    answers = [
        await api.delete("/users/me", {"password": person.password}, by=token),
        await api.delete("/auth/sessions", by=token),
        await api.post("/auth/password/change", passwords, by=token),
        await api.post("/auth/email/change", change, by=token),
    ]
    for answer in answers:
        assert_problem(answer, 403, "not-allowed")
    assert (await api.get("/users/me", by=person)).json()["email"] == person.email
    assert (await api.log_in(person.email)).status == 200
    assert (await api.post("/auth/logout", by=token)).status == 204


async def test_the_documentations_own_page_is_no_other_application(api: Api) -> None:
    page = f"{api.app[app_keys.SETTINGS].public_url}/docs/oauth2-redirect.html"
    swagger_ui = Application(api, "swagger-ui", None, page)
    person = await api.new_person()
    token = (await swagger_ui.tokens_of(person))["access_token"]
    assert (await api.delete("/auth/sessions", by=token)).status == 204
    assert (await api.get("/users/me", by=person)).status == 401
    assert (await api.delete("/users/me", {"password": person.password}, by=token)).status == 204
