"""What a client may do for itself and for users, and how all of it ends with the client."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from service.domain.oauth import Client, ClientFaulty
from service.domain.scopes import OF_CLIENTS, Scope
from service.domain.sessions import Credentials
from service.use_cases.credentials import verify_credentials
from service.use_cases.shared import Shared
from tests.api.assertions import assert_problem
from tests.api.conftest import no_jobs
from tests.factories import Api, Person
from tests.oauth import (
    CALLBACK,
    INTROSPECT,
    TOKEN,
    Application,
    Browser,
    clients_of,
    new_admin,
    new_application,
    refusal,
    returned,
)

INACTIVE = {"active": False}
UNAUTHORIZED = (400, "unauthorized_client")
INVALID_CLIENT = (401, "invalid_client")


@pytest.fixture
async def application(api: Api) -> Application:
    """A client that acts for users, and for itself."""
    return await new_application(api, own_scopes=OF_CLIENTS)


async def own_token(application: Application) -> str:
    answer = await application.send(TOKEN, grant_type="client_credentials")
    assert answer.status == 200, answer.body
    token: str = answer.json()["access_token"]
    return token


async def introspected(application: Application, token: str) -> Any:
    answer = await application.send(INTROSPECT, token=token)
    assert answer.status == 200, answer.body
    return answer.json()


# Grants


async def test_a_client_for_users_may_do_nothing_for_itself(api: Api, anna: Person) -> None:
    """Whatever users may allow it, the admin calls included."""
    client = await new_application(api, scopes=frozenset(Scope))
    for scope in (None, "referrals:read", "admin", "profile"):
        answer = await client.send(TOKEN, grant_type="client_credentials", scope=scope)
        assert refusal(answer) == UNAUTHORIZED
    assert await client.is_alive(await client.tokens_of(anna))


async def test_a_client_for_itself_does_nothing_for_users(api: Api, anna: Person) -> None:
    machine = await new_application(api, redirect_uris=[], own_scopes=[Scope.REFERRALS_READ])
    assert (await Browser(api).open(machine.wish())).status == 400
    assert refusal(await machine.redeem("a code")) == UNAUTHORIZED
    for token in (anna.refresh_token, await own_token(machine), "nothing"):
        assert refusal(await machine.refresh(token)) == UNAUTHORIZED
    answer = await api.get(f"/referrals/{anna.user_id}", by=await own_token(machine))
    assert answer.status == 200


async def test_a_resource_server_gets_no_tokens_at_all(api: Api) -> None:
    server = await new_application(api, redirect_uris=[], resource_server=True)
    for grant in ("authorization_code", "refresh_token", "client_credentials"):
        assert refusal(await server.send(TOKEN, grant_type=grant)) == UNAUTHORIZED


async def test_a_client_has_for_itself_what_the_operator_said(api: Api, anna: Person) -> None:
    client = await new_application(api, scopes=frozenset(Scope), own_scopes=[Scope.REFERRALS_READ])
    for wider in ("admin", "profile", "codes:read", "referrals:read admin"):
        answer = await client.send(TOKEN, grant_type="client_credentials", scope=wider)
        assert refusal(answer) == (400, "invalid_scope")
    token = await own_token(client)
    assert (await api.get(f"/referrals/{anna.user_id}", by=token)).status == 200
    assert_problem(await api.get("/admin/users", by=token), 403, "insufficient-scope")


def client_of(**changes: Any) -> Client:
    usual: dict[str, Any] = {
        "client_id": "shop",
        "name": "Shop",
        "secret_hash": b"hash",
        "redirect_uris": (CALLBACK,),
        "scopes": frozenset({Scope.PROFILE}),
    }
    return Client(**{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"own_scopes": frozenset({Scope.PROFILE})}, "profile means nothing to a client"),
        ({"own_scopes": frozenset({Scope.CODES_READ, Scope.ADMIN})}, "codes:read means nothing"),
        ({"own_scopes": frozenset({Scope.CODES_WRITE})}, "codes:write means nothing"),
        ({"secret_hash": None, "own_scopes": OF_CLIENTS}, "keep no secret"),
        ({"secret_hash": None, "resource_server": True}, "keep no secret"),
        ({"secret_hash": None, "redirect_uris": ()}, "needs a redirect URI"),
        ({"redirect_uris": ()}, "could do nothing"),
        ({"scopes": frozenset()}, "that users can allow"),
        ({"name": " "}, "needs a name"),
        ({"redirect_uris": ("http://app.example",)}, "not an address that browsers"),
        ({"redirect_uris": ("https://[::1",)}, "not an address that browsers"),
    ],
)
def test_a_client_that_makes_no_sense_is_refused_with_words(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ClientFaulty, match=words):
        client_of(**changes).completed()


# The end of a client, and of what it was given


@pytest.fixture
def security_log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    caplog.set_level(logging.INFO, "service.security")
    return lambda: [
        {"event": record.getMessage(), **vars(record)}
        for record in caplog.records
        if record.name == "service.security" and record.getMessage().startswith("client.")
    ]


async def test_with_a_client_all_that_it_was_given_ends(
    api: Api,
    other: Api,
    application: Application,
    anna: Person,
    database: asyncpg.Connection,
    security_log: Callable[[], list[dict[str, Any]]],
) -> None:
    tokens, code = await application.tokens_of(anna), await application.code_of(anna)
    own, first_party = await own_token(application), anna.access_token
    for of_api in (api, other):  # each has it that the sessions are open
        assert (await of_api.get("/users/me", by=tokens["access_token"])).status == 200
        assert (await of_api.get("/admin/users", by=own)).status == 200
    assert await clients_of(api).delete(application.client_id) == 2
    open_ones = "SELECT count(*) FROM sessions WHERE ended_at IS NULL AND client_id = $1"
    assert await database.fetchval(open_ones, application.client_id) == 0, "with the client"
    await no_jobs(database)
    for of_api in (api, other):
        answer = await of_api.get("/users/me", by=tokens["access_token"])
        assert_problem(answer, 401, "invalid-token")
        assert_problem(await of_api.get("/admin/users", by=own), 401, "invalid-token")
        assert (await of_api.get("/users/me", by=first_party)).status == 200
    assert refusal(await application.refresh(tokens["refresh_token"])) == INVALID_CLIENT
    assert refusal(await application.redeem(code)) == INVALID_CLIENT
    unredeemed = "SELECT count(*) FROM authorization_codes WHERE redeemed_at IS NULL"
    assert await database.fetchval(unredeemed) == 0
    [line] = [line for line in security_log() if line["event"] != "client.refused"]
    assert (line["event"], line["client"]) == ("client.deleted", application.client_id)


async def test_the_tokens_of_other_clients_live_on(
    api: Api, application: Application, anna: Person
) -> None:
    bystander = await new_application(api)
    tokens = await bystander.tokens_of(anna)
    await clients_of(api).delete(application.client_id)
    assert await bystander.is_alive(tokens)


async def test_however_many_sessions_a_client_has_they_end_and_no_job_is_huge(
    api: Api, application: Application, anna: Person, database: asyncpg.Connection
) -> None:
    await database.execute(
        "INSERT INTO sessions (session_id, user_id, client_id, created_at, refreshed_at,"
        " expires_at) SELECT gen_random_uuid(), $1, $2, now(), now(), now() + interval '1 day'"
        " FROM generate_series(1, 2500)",
        anna.user_id,
        application.client_id,
    )
    await database.execute("CREATE TABLE seen AS SELECT payload FROM jobs")
    await database.execute(
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO seen VALUES (NEW.payload); RETURN NULL; END'"
    )
    await database.execute(
        "CREATE TRIGGER seeing AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION see()"
    )
    try:
        assert await clients_of(api).delete(application.client_id) == 2500
        sizes = await database.fetch("SELECT jsonb_array_length(payload) AS size FROM seen")
    finally:
        await database.execute("DROP TRIGGER seeing ON jobs; DROP FUNCTION see; DROP TABLE seen")
    assert [row["size"] for row in sizes] == 25 * [100]
    assert await database.fetchval("SELECT count(*) FROM sessions WHERE ended_at IS NULL") == 1


async def test_deleting_twice_is_told(api: Api, application: Application) -> None:
    await clients_of(api).delete(application.client_id)
    with pytest.raises(ClientFaulty, match="There is no client"):
        await clients_of(api).delete(application.client_id)


# Changes

Change = Callable[[Client], Client]
NARROWER: list[Change] = [
    lambda client: replace(client, scopes=client.scopes - {Scope.CODES_WRITE}),
    lambda client: replace(client, own_scopes=frozenset({Scope.REFERRALS_READ})),
    lambda client: replace(client, own_scopes=frozenset()),
    lambda client: replace(client, redirect_uris=()),
]
ELSEWHERE = "https://app.example/elsewhere"
MOVED: Change = lambda client: replace(client, redirect_uris=(ELSEWHERE,))  # noqa: E731
NOT_NARROWER: list[Change] = [
    lambda client: client,
    lambda client: replace(client, name="Another name"),
    lambda client: replace(client, resource_server=True),
    lambda client: replace(client, redirect_uris=(*client.redirect_uris, f"{CALLBACK}/2")),
]


@pytest.mark.parametrize("change", NARROWER)
async def test_what_a_client_has_lost_no_token_keeps(
    api: Api, application: Application, anna: Person, database: asyncpg.Connection, change: Change
) -> None:
    tokens, code = await application.tokens_of(anna), await application.code_of(anna)
    own = await own_token(application)
    changed = await clients_of(api).update(application.client_id, change)
    assert (changed.narrowed, changed.ended) == (True, 2)
    await no_jobs(database)
    assert_problem(await api.get("/admin/users", by=own), 401, "invalid-token")
    assert_problem(await api.get("/users/me", by=tokens["access_token"]), 401, "invalid-token")
    for answer in (
        await application.refresh(tokens["refresh_token"]),
        await application.redeem(code),
    ):
        assert refusal(answer) in {(400, "invalid_grant"), UNAUTHORIZED}


@pytest.mark.parametrize("change", NOT_NARROWER)
async def test_a_client_that_loses_nothing_keeps_its_sessions(
    api: Api, application: Application, anna: Person, change: Change
) -> None:
    tokens, own = await application.tokens_of(anna), await own_token(application)
    changed = await clients_of(api).update(application.client_id, change)
    assert (changed.narrowed, changed.ended) == (False, 0)
    assert await application.is_alive(tokens)
    assert (await api.get("/admin/users", by=own)).status == 200


async def test_a_code_does_not_reach_an_address_that_is_no_longer_the_clients(
    api: Api, application: Application, anna: Person
) -> None:
    tokens, code = await application.tokens_of(anna), await application.code_of(anna)
    await clients_of(api).update(application.client_id, MOVED)
    assert refusal(await application.redeem(code)) == (400, "invalid_grant")
    assert (await Browser(api).open(application.wish())).status == 400
    assert await application.is_alive(tokens), "users need not allow it again"
    there = replace(application, redirect_uri=ELSEWHERE)
    assert await there.is_alive(await there.tokens_of(anna))


async def test_a_client_that_is_wider_asks_its_users_again(
    api: Api, application: Application, anna: Person
) -> None:
    client = await new_application(api, scopes=[Scope.PROFILE])
    tokens = await client.tokens_of(anna)
    await clients_of(api).update(
        client.client_id,
        lambda old: replace(old, scopes=frozenset({Scope.PROFILE, Scope.CODES_READ})),
    )
    assert (await client.refreshed(tokens["refresh_token"]))["scope"] == "profile"
    assert (await client.tokens_of(anna))["scope"] == "profile codes:read"


@pytest.mark.parametrize("change", [*NARROWER, MOVED, None])
async def test_a_client_that_changes_while_its_user_signs_in_gets_no_code(
    api: Api,
    application: Application,
    anna: Person,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    change: Change | None,
) -> None:
    """Without the share lock, and the look behind it, the code would outlive the change."""
    clients = clients_of(api)

    async def check_slowly(shared: Shared, email: str, password: str) -> Credentials:
        credentials = await verify_credentials(shared, email, password)
        if change is None:
            await clients.delete(application.client_id)
        else:
            await clients.update(application.client_id, change)
        return credentials

    monkeypatch.setattr("service.use_cases.oauth.verify_credentials", check_slowly)
    answer = await application.allowed_by(anna)
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Location" not in answer.headers
    assert await database.fetchval("SELECT count(*) FROM authorization_codes") == 0


async def test_a_client_is_changed_while_its_tokens_are_given_and_none_is_left(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    """Codes redeemed and clients signed in at the very moment of a deletion."""
    for _ in range(5):
        client = await new_application(api, own_scopes=OF_CLIENTS)
        codes = [await client.code_of(anna) for _ in range(3)]
        await asyncio.gather(
            *(client.redeem(code) for code in codes),
            clients_of(api).delete(client.client_id),
            *(client.send(TOKEN, grant_type="client_credentials") for _ in range(3)),
        )
        left = "SELECT count(*) FROM sessions WHERE client_id = $1 AND ended_at IS NULL"
        assert await database.fetchval(left, client.client_id) == 0


# Secrets


async def test_a_replaced_secret_works_for_the_overlap(
    api: Api, application: Application, database: asyncpg.Connection
) -> None:
    client, secret = await clients_of(api).rotate_secret(application.client_id, timedelta(hours=24))
    renewed = replace(application, secret=secret)
    assert secret != application.secret
    for one in (application, renewed):
        assert await own_token(one)
    stored = await database.fetchrow("SELECT * FROM oauth_clients")
    assert secret not in str(stored)
    assert (application.secret or "") not in str(stored)
    api.clock.ahead += timedelta(hours=24)
    assert client.previous_secret_expires_at is not None
    assert client.previous_secret_expires_at <= api.clock()
    assert refusal(await application.send(TOKEN, grant_type="x")) == INVALID_CLIENT
    assert await own_token(renewed)


async def test_of_two_replacements_in_the_overlap_the_second_is_refused_unless_both_are_to_end(
    api: Api, application: Application
) -> None:
    clients, day = clients_of(api), timedelta(hours=24)
    _, second = await clients.rotate_secret(application.client_id, day)
    with pytest.raises(ClientFaulty, match="--overlap 0"):
        await clients.rotate_secret(application.client_id, day)
    for works in (application, replace(application, secret=second)):
        assert await own_token(works)
    _, third = await clients.rotate_secret(application.client_id, timedelta())
    for ended in (application, replace(application, secret=second)):
        assert refusal(await ended.send(TOKEN, grant_type="x")) == INVALID_CLIENT
    assert await own_token(replace(application, secret=third))
    await clients.rotate_secret(application.client_id, day)


async def test_of_replacements_at_once_one_is_made(api: Api, application: Application) -> None:
    """Without FOR UPDATE a second would end the first one's overlap."""
    made = await asyncio.gather(
        *(
            clients_of(api).rotate_secret(application.client_id, timedelta(hours=1))
            for _ in range(8)
        ),
        return_exceptions=True,
    )
    faults = [one for one in made if isinstance(one, ClientFaulty)]
    assert len(faults) == 7
    [(_, secret)] = [one for one in made if not isinstance(one, BaseException)]
    assert await own_token(application)
    assert await own_token(replace(application, secret=secret))


async def test_a_public_client_has_no_secret_to_replace(api: Api) -> None:
    public = await new_application(api, public=True)
    with pytest.raises(ClientFaulty, match="has no secret"):
        await clients_of(api).rotate_secret(public.client_id, timedelta())


# Introspection


async def test_a_client_learns_of_its_own_tokens_alone(
    api: Api, application: Application, anna: Person
) -> None:
    tokens, own = await application.tokens_of(anna), await own_token(application)
    foreign = await new_application(api, own_scopes=OF_CLIENTS)
    server = await new_application(api, redirect_uris=[], resource_server=True)
    for token in (tokens["access_token"], tokens["refresh_token"], own):
        assert (await introspected(application, token))["active"] is True
        assert await introspected(foreign, token) == INACTIVE
        assert (await introspected(server, token))["active"] is True


async def test_a_token_of_the_services_own_sign_in_is_no_clients_business(
    api: Api, application: Application
) -> None:
    admin = await new_admin(api)
    for token in (admin.access_token, admin.refresh_token):
        assert await introspected(application, token) == INACTIVE


async def test_a_resource_server_that_is_one_no_longer_learns_nothing(
    api: Api, application: Application, anna: Person
) -> None:
    server = await new_application(api, own_scopes=OF_CLIENTS, resource_server=True)
    token = (await application.tokens_of(anna))["access_token"]
    assert (await introspected(server, token))["active"] is True
    changed = await clients_of(api).update(
        server.client_id, lambda client: replace(client, resource_server=False)
    )
    assert changed.narrowed is False
    assert await introspected(server, token) == INACTIVE


async def test_a_client_that_may_less_tells_the_user_so_at_the_door(
    api: Api, application: Application, anna: Person
) -> None:
    await clients_of(api).update(
        application.client_id, lambda client: replace(client, scopes=frozenset({Scope.PROFILE}))
    )
    told = returned(await Browser(api).open(application.wish(scope="codes:read")))
    assert told["error"] == "invalid_scope"
    assert (await application.tokens_of(anna))["scope"] == "profile"
