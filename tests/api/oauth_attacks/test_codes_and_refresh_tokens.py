"""What attackers do to authorization codes and refresh tokens."""

import asyncio
from collections import Counter
from datetime import timedelta
from time import perf_counter

import asyncpg
import pytest

from service.domain.oauth import CODE_LIVES
from service.domain.sessions import Credentials
from service.use_cases.credentials import verify_credentials
from service.use_cases.sessions import GRACE
from service.use_cases.shared import Shared
from tests.factories import PASSWORD, Api, Person
from tests.oauth import (
    CALLBACK,
    INVALID_GRANT,
    VERIFIER,
    Application,
    new_admin,
    new_application,
    refusal,
    returned,
)

AFTER_THE_GRACE = GRACE + timedelta(seconds=1)


async def test_of_twenty_parallel_redemptions_of_a_code_one_succeeds(
    application: Application, anna: Person, database: asyncpg.Connection
) -> None:
    code = await application.code_of(anna)
    answers = await asyncio.gather(*(application.redeem(code) for _ in range(20)))
    outcomes = Counter(a.status if a.status == 200 else refusal(a) for a in answers)
    assert outcomes == {200: 1, INVALID_GRANT: 19}
    opened = "SELECT count(*) FROM sessions WHERE client_id = $1"
    assert await database.fetchval(opened, application.client_id) == 1


async def test_a_replayed_code_ends_what_it_gave(application: Application, anna: Person) -> None:
    code = await application.code_of(anna)
    tokens = (await application.redeem(code)).json()
    tokens = await application.refreshed(tokens["refresh_token"])
    assert refusal(await application.redeem(code)) == INVALID_GRANT
    assert not await application.is_alive(tokens), "the live leaf of what the code gave"


@pytest.mark.parametrize(
    "changes",
    [
        {"code_verifier": None},
        {"code_verifier": VERIFIER[:-1] + "4"},
        {"redirect_uri": None},
        {"redirect_uri": f"{CALLBACK}/"},
        {"client_secret": "another"},
        {"client_secret": None},
    ],
)
async def test_who_has_seen_a_code_cannot_sign_its_user_out(
    application: Application, anna: Person, changes: dict[str, str | None]
) -> None:
    code = await application.code_of(anna)
    tokens = (await application.redeem(code)).json()
    assert (await application.redeem(code, **changes)).status in {400, 401}
    assert await application.is_alive(tokens)


async def test_another_client_can_neither_redeem_a_code_nor_end_what_it_gave(
    api: Api, application: Application, anna: Person
) -> None:
    thief = await new_application(api)
    code = await application.code_of(anna)
    assert refusal(await thief.redeem(code)) == INVALID_GRANT
    tokens = (await application.redeem(code)).json()
    assert refusal(await thief.redeem(code)) == INVALID_GRANT
    assert await application.is_alive(tokens)


async def test_a_code_is_good_for_a_minute(
    api: Api, application: Application, anna: Person
) -> None:
    early, late = await application.code_of(anna), await application.code_of(anna)
    api.clock.ahead += CODE_LIVES - timedelta(seconds=5)
    assert (await application.redeem(early)).status == 200
    api.clock.ahead += timedelta(seconds=6)
    assert refusal(await application.redeem(late)) == INVALID_GRANT


async def test_a_code_must_come_from_where_it_was_sent(api: Api, anna: Person) -> None:
    two = [CALLBACK, "https://app.example/other"]
    application = await new_application(api, redirect_uris=two)
    code = await application.code_of(anna)
    assert refusal(await application.redeem(code, redirect_uri=two[1])) == INVALID_GRANT


@pytest.mark.parametrize("code", ["", "x", "A" * 43, "é", "\0", "x" * 10_000])
async def test_a_code_that_was_never_made_is_refused(application: Application, code: str) -> None:
    assert refusal(await application.redeem(code)) in {INVALID_GRANT, (400, "invalid_request")}


async def test_a_code_of_a_user_disabled_since_is_refused(
    api: Api, application: Application, anna: Person
) -> None:
    admin = await new_admin(api)
    code, tokens = await application.code_of(anna), await application.tokens_of(anna)
    path = f"/admin/users/{anna.user_id}"
    assert (await api.patch(path, {"disabled": True}, by=admin)).status == 200
    assert refusal(await application.redeem(code)) == INVALID_GRANT
    assert not await application.is_alive(tokens)


async def test_a_code_of_a_user_erased_since_is_refused(
    api: Api, application: Application, anna: Person
) -> None:
    code, tokens = await application.code_of(anna), await application.tokens_of(anna)
    assert (await api.delete("/users/me", {"password": PASSWORD}, by=anna)).status == 204
    assert refusal(await application.redeem(code)) == INVALID_GRANT
    assert not await application.is_alive(tokens)


async def change_password(api: Api, person: Person) -> None:
    passwords = {"current_password": PASSWORD, "new_password": "quite another long walk"}
    assert (await api.post("/auth/password/change", passwords, by=person)).status == 204


async def test_a_code_granted_with_a_password_changed_since_is_refused(
    api: Api, application: Application, anna: Person
) -> None:
    code, tokens = await application.code_of(anna), await application.tokens_of(anna)
    await change_password(api, anna)
    assert refusal(await application.redeem(code)) == INVALID_GRANT
    assert not await application.is_alive(tokens)


async def test_a_password_changed_while_it_is_being_checked_gives_no_tokens(
    api: Api, application: Application, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check_slowly(shared: Shared, email: str, password: str) -> Credentials:
        credentials = await verify_credentials(shared, email, password)
        await change_password(api, anna)
        return credentials

    monkeypatch.setattr("service.use_cases.oauth.verify_credentials", check_slowly)
    answer = await application.allowed_by(anna)
    monkeypatch.undo()
    if answer.status == 303 and "code" in returned(answer):
        assert refusal(await application.redeem(returned(answer)["code"])) == INVALID_GRANT
    else:
        assert answer.status == 401


async def test_a_code_redeemed_while_the_password_changes_leaves_no_session_behind(
    api: Api, application: Application
) -> None:
    async def alive_after(delay: float) -> bool:
        person = await api.new_person()
        code = await application.code_of(person)
        changing = asyncio.create_task(change_password(api, person))
        await asyncio.sleep(delay)
        answer = await application.redeem(code)
        await changing
        return answer.status == 200 and await application.is_alive(answer.json())

    started = perf_counter()
    await change_password(api, await api.new_person())
    took = perf_counter() - started
    # From before the change to after it, in small steps.
    assert not any([await alive_after(step / 20 * took) for step in range(25)])


# Refresh tokens


async def test_twenty_parallel_refreshes_give_one_child(
    application: Application, anna: Person
) -> None:
    parent = (await application.tokens_of(anna))["refresh_token"]
    answers = await asyncio.gather(*(application.refresh(parent) for _ in range(20)))
    assert {answer.status for answer in answers} == {200}
    children = {answer.json()["refresh_token"] for answer in answers}
    assert len(children) == 1
    assert children != {parent}
    assert await application.is_alive(answers[0].json())


async def test_the_parent_gives_the_same_child_for_a_while(
    api: Api, application: Application, anna: Person
) -> None:
    parent = await application.tokens_of(anna)
    child = await application.refreshed(parent["refresh_token"])
    api.clock.ahead += GRACE - timedelta(seconds=2)
    again = await application.refreshed(parent["refresh_token"])
    assert again["refresh_token"] == child["refresh_token"]
    assert await application.is_alive(again)


@pytest.mark.parametrize(
    ("rotations", "wait"),
    [(1, AFTER_THE_GRACE), (2, timedelta()), (2, AFTER_THE_GRACE), (3, timedelta())],
    ids=["parent late", "grandparent at once", "grandparent late", "its parent at once"],
)
async def test_an_older_refresh_token_ends_the_session_and_its_live_leaf(
    api: Api, application: Application, anna: Person, rotations: int, wait: timedelta
) -> None:
    old = await application.tokens_of(anna)
    leaf = old
    for _ in range(rotations):
        leaf = await application.refreshed(leaf["refresh_token"])
    api.clock.ahead += wait
    assert (await api.get("/users/me", by=leaf["access_token"])).status == 200
    assert refusal(await application.refresh(old["refresh_token"])) == INVALID_GRANT
    assert not await application.is_alive(leaf)
    assert (await api.get("/users/me", by=old["access_token"])).status == 401


async def test_a_stolen_refresh_token_is_of_no_use_to_another_client_and_lives_on(
    api: Api, application: Application, anna: Person
) -> None:
    tokens = await application.tokens_of(anna)
    for public in (True, False):
        thief = await new_application(api, public=public)
        assert refusal(await thief.refresh(tokens["refresh_token"])) == INVALID_GRANT
    first_party = await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})
    assert first_party.status == 401
    assert await application.is_alive(tokens)


async def test_an_old_refresh_token_from_another_client_ends_nothing(
    api: Api, application: Application, anna: Person
) -> None:
    old = await application.tokens_of(anna)
    leaf = await application.refreshed(
        (await application.refreshed(old["refresh_token"]))["refresh_token"]
    )
    thief = await new_application(api)
    assert refusal(await thief.refresh(old["refresh_token"])) == INVALID_GRANT
    assert await application.is_alive(leaf)


async def test_a_first_party_refresh_token_is_of_no_use_to_a_client(
    api: Api, application: Application, anna: Person
) -> None:
    assert refusal(await application.refresh(anna.refresh_token)) == INVALID_GRANT
    refreshed = await api.post("/auth/refresh", {"refresh_token": anna.refresh_token})
    assert refreshed.status == 200


@pytest.mark.parametrize("kind", ["access_token", "nothing", "hostile"])
async def test_what_is_no_refresh_token_is_refused(
    application: Application, anna: Person, kind: str
) -> None:
    tokens = await application.tokens_of(anna)
    sent = {**tokens, "nothing": "", "hostile": "\0é\ud7ff" + "=" * 100}[kind]
    assert refusal(await application.refresh(sent)) in {INVALID_GRANT, (400, "invalid_request")}
    assert await application.is_alive(tokens)
