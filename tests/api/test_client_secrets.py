"""Clients that send their secret with each call (Basic)."""

import base64
from dataclasses import replace

import pytest

from service.domain.rate_limits import RateLimit
from service.domain.scopes import Scope
from service.settings.settings import Settings
from tests.api.assertions import assert_problem
from tests.company import basic, new_company
from tests.factories import Api, running
from tests.oauth import clients_of, new_admin, new_application

EVENT = {"id": "order-1", "type": "purchase", "external_id": "u-1"}


async def test_a_client_calls_with_its_secret_or_a_token_of_its_own(api: Api) -> None:
    client = await new_application(api, redirect_uris=[], own_scopes=[Scope.EVENTS_WRITE])
    secret = basic(client.client_id, client.secret or "")
    assert (await api.post("/events", EVENT, headers=secret)).status == 201
    token = (await client.send("//oauth/token", grant_type="client_credentials")).json()
    assert (await api.post("/events", EVENT, by=token["access_token"])).status == 200


@pytest.mark.parametrize(
    "header",
    [
        "Basic ",
        "Basic !",
        "Basic " + base64.b64encode(b"\xff\xfe:x").decode(),
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b"nobody:nothing").decode(),
        "Basic " + base64.b64encode(b"a\0b:nothing").decode(),
        "Basic " + base64.b64encode(b"swagger-ui:").decode(),
        "basic " + "A" * 4000,
    ],
)
async def test_wrong_credentials_are_refused_without_making_a_browser_ask(
    api: Api, header: str
) -> None:
    answer = await api.post("/events", EVENT, headers={"Authorization": header})
    assert_problem(answer, 401, "not-authenticated")
    assert answer.json()["detail"].startswith("The Authorization header is not `Bearer TOKEN`")
    assert answer.headers.getall("WWW-Authenticate") == ["Bearer"]


async def test_a_wrong_secret_is_logged_and_not_shown(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    company = await new_company(api)
    caplog.clear()
    await api.get("/programmes", headers=basic(company.client_id, "a wrong secret"))
    await api.get("/programmes", headers=basic("nobody", "a wrong secret"))
    refused = [line for line in caplog.records if line.message == "client.refused"]
    told = [(line.client, line.reason) for line in refused]  # type: ignore[attr-defined]
    assert told == [(company.client_id, "wrong-secret"), (None, "unknown-client")]
    assert "a wrong secret" not in caplog.text


async def test_a_secret_is_good_for_the_api_alone(api: Api) -> None:
    company = await new_company(api)
    answer = await company.get("//docs")
    assert answer.status == 200
    assert_problem(await company.get("/users/me"), 403, "insufficient-scope")


async def test_a_deleted_client_is_refused_at_once(api: Api) -> None:
    company = await new_company(api)
    assert (await company.get("/programmes")).status == 200
    await clients_of(api).delete(company.client_id)
    assert_problem(await company.get("/programmes"), 401, "not-authenticated")


async def test_a_client_without_the_scope_is_refused(api: Api) -> None:
    company = await new_company(api, Scope.PROGRAMME_READ)
    answer = await company.post("/events", EVENT)
    assert_problem(answer, 403, "insufficient-scope")
    assert 'scope="events:write"' in answer.headers["WWW-Authenticate"]


async def test_a_user_is_refused_where_a_client_is_meant_but_an_admin_is_not(api: Api) -> None:
    person, admin = await api.new_person(), await new_admin(api)
    assert_problem(await api.post("/events", EVENT, by=person), 403, "not-allowed")
    assert_problem(await api.get("/programmes", by=person), 403, "not-allowed")
    assert (await api.post("/events", EVENT, by=admin)).status == 201
    decided = await api.get("/programmes", by=admin)
    assert decided.status == 200


@pytest.mark.usefixtures("database", "redis")
async def test_wrong_secrets_count_as_sign_ins(settings: Settings) -> None:
    async with running(replace(settings, rate_limit_login=RateLimit(10, 60))) as api:
        company = await new_company(api)
        wrong = basic(company.client_id, "wrong")
        answers = [await api.get("/programmes", headers=wrong) for _ in range(12)]
        assert [answer.status for answer in answers] == [401] * 10 + [429] * 2
        assert (await company.get("/programmes")).status == 200


@pytest.mark.usefixtures("database", "redis")
async def test_a_clients_calls_can_be_limited(settings: Settings) -> None:
    async with running(replace(settings, rate_limit_client=RateLimit(2, 60))) as api:
        company, other = await new_company(api), await new_company(api)
        statuses = [(await company.get("/programmes")).status for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert (await other.get("/programmes")).status == 200


async def test_an_idempotency_key_belongs_to_its_client(api: Api) -> None:
    first, second = await new_company(api), await new_company(api)
    created = await first.post("/participants", {"external_id": "u-1"}, key="k")
    again = await first.post("/participants", {"external_id": "u-1"}, key="k")
    assert (created.status, again.status, again.body) == (201, 201, created.body)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Location"] == created.headers["Location"]
    assert_problem(
        await first.post("/participants", {"external_id": "u-2"}, key="k"),
        422,
        "idempotency-key-reused",
    )
    other = await second.post("/participants", {"external_id": "u-2"}, key="k")
    assert other.status == 201
