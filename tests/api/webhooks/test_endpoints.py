"""Endpoints: who may make how many, where they may lead, their secrets, and what disables them."""

import asyncio
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest

from service.domain.scopes import Scope
from service.use_cases.webhook_deliveries import FIRST_PLACES
from tests.api.assertions import assert_problem
from tests.api.webhooks.conftest import (
    SLOW_HOST,
    deliveries_of,
    listen,
    secrets_of,
    send_test,
    until_ended,
)
from tests.company import Company, new_company
from tests.factories import Api
from tests.oauth import new_admin
from tests.stand_ins.webhooks import Got, Receiver
from tests.waiting import until

PATH = "/webhook-endpoints"
URL = "https://hooks.example.com/referrals"


async def test_an_endpoint_is_created_shown_changed_and_deleted(company: Company) -> None:
    created = await company.post(PATH, {"url": URL, "types": ["referral.qualified"]})
    assert created.status == 201
    endpoint = created.json()
    assert created.headers["Location"] == f"/api/v1{PATH}/{endpoint['id']}"
    assert endpoint == {
        "id": endpoint["id"],
        "url": URL,
        "types": ["referral.qualified"],
        "disabled_at": None,
        "disabled_reason": None,
        "failing_since": None,
        "secret_number": 1,
        "previous_until": None,
        "created_at": endpoint["created_at"],
    }
    path = f"{PATH}/{endpoint['id']}"
    assert (await company.get(path)).json() == endpoint
    assert (await company.get(PATH)).json() == {"items": [endpoint], "next_cursor": None}
    changed = (await company.patch(path, {"types": [], "url": f"{URL}/2"})).json()
    assert (changed["types"], changed["url"]) == ([], f"{URL}/2")
    assert (await company.delete(path)).status == 204
    assert_problem(await company.patch(path, {}), 422, "validation-failed", ["#"])
    for call in (company.get(path), company.delete(path), company.patch(path, {"disabled": True})):
        assert_problem(await call, 404, "webhook-endpoint-not-found")
    assert (await company.get(PATH)).json()["items"] == []


async def test_an_admin_may_what_a_client_may_and_others_may_not(api: Api) -> None:
    admin = await new_admin(api)
    assert (await api.post(PATH, {"url": URL}, by=admin)).status == 201
    anna = await api.new_person()
    assert (await api.get(PATH, by=anna)).status == 403
    reporter = await new_company(api, Scope.EVENTS_WRITE)
    assert_problem(await reporter.get(PATH), 403, "insufficient-scope")


async def test_of_many_at_once_twenty_are_made(
    company: Company, database: asyncpg.Connection
) -> None:
    """Without webhook_endpoints_slot_once there would be more."""
    made = await asyncio.gather(
        *(company.post(PATH, {"url": f"{URL}/{number}"}) for number in range(32))
    )
    refused = [answer for answer in made if answer.status != 201]
    assert len(made) - len(refused) == 20
    for answer in refused:
        assert_problem(answer, 422, "webhook-url-refused", ["#/url"])
    listed = (await company.get(f"{PATH}?limit=15")).json()
    rest = (await company.get(f"{PATH}?cursor={listed['next_cursor']}")).json()
    assert (len(listed["items"]), len(rest["items"])) == (15, 5)
    one = next(answer for answer in made if answer.status == 201).json()["id"]
    assert (await company.delete(f"{PATH}/{one}")).status == 204
    assert (await company.post(PATH, {"url": URL})).status == 201
    assert (await company.post(PATH, {"url": URL})).status == 422


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com.evil/",
        "https://localhost/",
        "https://user@hooks.example.com/",
        "https://hooks.example.com/#fragment",
        "https://10.0.0.1/",
        "https://[::1]/",
        "https://0x7f.1/",
        "https://hooks.example.com:99999/",
        "https://hooks.example.com/ ",
        "https://hooks.example.com/é",
        f"{URL}/{'x' * 2000}",
        "ftp://hooks.example.com/",
        "//hooks.example.com/",
        "https:///path",
        "",
        "\x00",
        "https://[",
    ],
)
async def test_a_url_is_refused_with_a_pointer(public_only: Api, url: str) -> None:
    company = await new_company(public_only)
    answer = await company.post(PATH, {"url": url})
    assert_problem(answer, 422, "webhook-url-refused", ["#/url"])


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"url": URL, "types": ["referral.invented"]}, "#/types/0"),
        ({"url": URL, "types": [{}]}, "#/types/0"),
        ({"url": URL, "types": "referral.created"}, "#/types"),
        ({"url": 7}, "#/url"),
        ({}, "#/url"),
        ({"url": "\ud800"}, "#/url"),
        ({"url": URL, "disabled": True}, "#/disabled"),
    ],
)
async def test_a_body_is_refused_with_a_pointer(
    company: Company, body: dict[str, Any], pointer: str
) -> None:
    answer = await company.post(PATH, body)
    assert_problem(answer, 422, "validation-failed", [pointer])


async def test_a_secret_is_not_cached_and_rotates_with_an_overlap(
    company: Company, receiver: Receiver
) -> None:
    endpoint_id = await listen(company, receiver)
    path = f"{PATH}/{endpoint_id}"
    shown = await company.get(f"{path}/secret")
    assert shown.headers["Cache-Control"] == "no-store"
    first = shown.json()
    assert first["secret"].startswith("whsec_")
    assert first["previous"] is None
    rotated = await company.post(f"{path}/rotate")
    assert rotated.status == 200
    assert rotated.json()["secret_number"] == 2
    assert rotated.json()["previous_until"] is not None
    second = await secrets_of(company, endpoint_id)
    assert second["previous"] == first["secret"] != second["secret"]
    assert_problem(await company.post(f"{path}/rotate", {}), 409, "rotation-under-way")
    await send_test(company, endpoint_id)
    [got] = await until(lambda: receiver.got)
    assert got.verified_by(first["secret"])
    assert got.verified_by(second["secret"])
    leaked = await company.post(f"{path}/rotate", {"overlap_hours": 0})
    assert leaked.json()["previous_until"] is None
    third = await secrets_of(company, endpoint_id)
    assert third["previous"] is None
    assert third["secret"] not in {first["secret"], second["secret"]}
    receiver.secret = None
    await send_test(company, endpoint_id)
    await until(lambda: len(receiver.got) == 2)
    assert receiver.got[1].verified_by(third["secret"])
    assert not receiver.got[1].verified_by(second["secret"])
    for hours in (-1, 169, 1.5, "1"):
        assert (await company.post(f"{path}/rotate", {"overlap_hours": hours})).status == 422


async def test_of_two_rotations_at_once_one_succeeds(company: Company, receiver: Receiver) -> None:
    endpoint_id = await listen(company, receiver)
    path = f"{PATH}/{endpoint_id}/rotate"
    answers = await asyncio.gather(*(company.post(path, {}) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 7


async def test_once_a_rotation_is_answered_the_new_secret_alone_will_do(
    company: Company, receiver: Receiver, database: asyncpg.Connection, slow_name: None
) -> None:
    """Without waiting, an attempt that was signed before the rotation would come after it."""
    endpoint_id = await listen(company, receiver, host=SLOW_HOST)
    await send_test(company, endpoint_id)
    await until(partial(is_claimed, database))
    await company.post(f"{PATH}/{endpoint_id}/rotate", {"overlap_hours": 1})
    receiver.secret = (await secrets_of(company, endpoint_id))["secret"]
    came_after = not receiver.got
    [delivery] = await until_ended(company, endpoint_id)
    assert (delivery["state"], receiver.refused) == ("delivered", 0)
    assert not came_after


async def is_claimed(database: asyncpg.Connection) -> bool:
    claimed: bool = await database.fetchval(
        "SELECT EXISTS (SELECT FROM jobs WHERE kind = 'delivery' AND tries = 1)"
    )
    return claimed


async def test_rotating_under_load_loses_nothing_with_either_secret(company: Company) -> None:
    """Without the previous signature, a receiver that changes its secret later refuses some."""
    async with (
        AsyncExitStack() as stack,
        Receiver().serving() as prompt,
        Receiver().serving() as late,
    ):
        prompt_id, late_id = await listen(company, prompt), await listen(company, late)
        sent = 0

        async def load() -> None:
            nonlocal sent
            while True:
                await asyncio.gather(send_test(company, prompt_id), send_test(company, late_id))
                sent += 1

        loading = asyncio.create_task(load())
        stack.callback(loading.cancel)
        await until(lambda: len(prompt.got) > 20)
        for endpoint_id in (prompt_id, late_id):
            await company.post(f"{PATH}/{endpoint_id}/rotate", {"overlap_hours": 1})
        prompt.secret = (await secrets_of(company, prompt_id))["secret"]  # at once; `late` later
        await until(lambda: len(prompt.got) > 60 and len(late.got) > 60)
        loading.cancel()
        await until_ended(company, prompt_id)
        await until_ended(company, late_id)
        assert prompt.refused == late.refused == 0


async def test_an_attempt_under_way_comes_before_the_answer_to_disabling(
    company: Company, receiver: Receiver, database: asyncpg.Connection, slow_name: None
) -> None:
    """Without waiting for it, it would come after the answer."""
    endpoint_id = await listen(company, receiver, host=SLOW_HOST)
    await send_test(company, endpoint_id)
    await until(partial(is_claimed, database))
    await company.patch(f"{PATH}/{endpoint_id}", {"disabled": True})
    assert len(receiver.got) == 1


async def test_once_disabling_is_answered_no_attempt_follows(
    company: Company, receiver: Receiver
) -> None:
    """Whatever is sent meanwhile."""
    endpoint_id = await listen(company, receiver)
    path = f"{PATH}/{endpoint_id}"
    for _ in range(5):
        loading = asyncio.gather(*(company.post(f"{path}/test") for _ in range(40)))
        await until(lambda: len(receiver.got) > 3)
        disabled = await company.patch(path, {"disabled": True})
        answered = time.monotonic()
        assert disabled.json()["disabled_reason"] == "requested"
        assert {answer.status for answer in await loading} <= {202, 409}
        await asyncio.sleep(0.2)
        assert [got for got in receiver.got if got.at > answered] == []
        deliveries = await until_ended(company, endpoint_id)
        failed = [one for one in deliveries if one["state"] == "failed"]
        assert {one["reason"] for one in failed} <= {"disabled"}
        assert (await company.patch(path, {"disabled": False})).json()["disabled_at"] is None
        receiver.got.clear()


async def test_disabling_a_receiver_that_hangs_takes_no_longer_than_sending(
    company: Company, receiver: Receiver
) -> None:
    endpoint_id = await listen(company, receiver)
    receiver.hanging = True
    await send_test(company, endpoint_id)
    await until(lambda: receiver.got)
    began = time.monotonic()
    assert (await company.patch(f"{PATH}/{endpoint_id}", {"disabled": True})).status == 200
    assert time.monotonic() - began < 6


async def test_an_endpoint_that_answers_410_is_disabled(
    company: Company, receiver: Receiver, database: asyncpg.Connection
) -> None:
    async with Receiver().serving() as other:
        other_id = await listen(company, other)
        endpoint_id = await listen(company, receiver)
        receiver.script = [410]
        await send_test(company, endpoint_id)
        [told] = await until(lambda: other.got)
        assert told.document["type"] == "endpoint.disabled"
        assert told.document["data"] == {"endpoint": {"id": endpoint_id, "disabled_reason": "gone"}}
        shown = (await company.get(f"{PATH}/{endpoint_id}")).json()
        assert shown["disabled_reason"] == "gone"
        assert (await company.get(f"{PATH}/{other_id}")).json()["disabled_at"] is None
        [delivery] = await until_ended(company, endpoint_id)
        assert (delivery["state"], delivery["reason"]) == ("failed", "disabled")
        assert len(receiver.got) == 1


async def test_an_endpoint_that_failed_for_five_days_is_disabled(
    company: Company, receiver: Receiver
) -> None:
    """With one message alone it would not be: that may be what it cannot digest."""
    endpoint_id = await listen(company, receiver)
    path = f"{PATH}/{endpoint_id}"
    receiver.status = 500
    first = await send_test(company, endpoint_id)
    await until(lambda: receiver.got)
    clock = company.api.clock
    clock.ahead = timedelta(days=5, seconds=1)
    await until(lambda: len(receiver.got) == 2)
    assert {got.message_id for got in receiver.got} == {first}
    await asyncio.sleep(0.1)
    assert (await company.get(path)).json()["disabled_at"] is None
    clock.ahead += timedelta(hours=1)
    await send_test(company, endpoint_id)

    async def disabled() -> Any:
        clock.ahead += timedelta(seconds=30)
        return (await company.get(path)).json()["disabled_reason"]

    assert await until(disabled) == "failing"
    assert {one["reason"] for one in await until_ended(company, endpoint_id)} == {"disabled"}
    enabled = (await company.patch(path, {"disabled": False})).json()
    assert (enabled["failing_since"], enabled["disabled_reason"]) == (None, None)


async def test_while_an_endpoint_rests_one_delivery_at_a_time_finds_out(
    company: Company, receiver: Receiver
) -> None:
    """And the others wait without counting an attempt."""
    endpoint_id = await listen(company, receiver)
    receiver.status = 500
    await send_test(company, endpoint_id)
    await until(lambda: receiver.got)
    for _ in range(30):
        await send_test(company, endpoint_id)
    await asyncio.sleep(0.3)
    assert len(receiver.got) == 1
    receiver.status = 204
    company.api.clock.ahead = timedelta(seconds=10)
    deliveries = await until_ended(company, endpoint_id)
    assert {one["state"] for one in deliveries} == {"delivered"}
    assert sum(len(one["attempts"]) for one in deliveries) == 20  # as a page has


async def test_deliveries_are_paged_and_filtered(company: Company, receiver: Receiver) -> None:
    endpoint_id = await listen(company, receiver)
    sent = [await send_test(company, endpoint_id) for _ in range(7)]
    await until(lambda: len(receiver.got) == 7)
    await until_ended(company, endpoint_id)
    path = f"{PATH}/{endpoint_id}/deliveries"
    seen, cursor = [], ""
    while True:
        page = (await company.get(f"{path}?state=delivered&limit=3{cursor}")).json()
        seen += [one["message_id"] for one in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == sent[::-1]
    assert (await company.get(f"{path}?state=failed")).json()["items"] == []
    assert (await company.get(f"{path}?state=lost")).status == 422
    nobody = "01890000-0000-7000-8000-000000000000"
    assert_problem(await company.post(f"{path}/{nobody}/retry"), 404, "not-found")
    assert_problem(await company.post(f"{path}/nonsense/retry"), 404, "not-found")
    answer = await company.get(f"{PATH}/{nobody}/deliveries")
    assert_problem(answer, 404, "webhook-endpoint-not-found")


async def test_what_is_deleted_is_sent_nothing_more(company: Company, receiver: Receiver) -> None:
    endpoint_id = await listen(company, receiver)
    got: list[Got] = receiver.got
    loading = asyncio.gather(*(send_test(company, endpoint_id) for _ in range(20)))
    await loading
    assert (await company.delete(f"{PATH}/{endpoint_id}")).status == 204
    answered = time.monotonic()
    await asyncio.sleep(0.2)
    assert [one for one in got if one.at > answered] == []


async def test_deliveries_of_a_disabled_endpoint_are_shown(
    company: Company, receiver: Receiver
) -> None:
    endpoint_id = await listen(company, receiver)
    receiver.hanging = True  # so that one waits for the two whose answers are not known
    await asyncio.gather(*(send_test(company, endpoint_id) for _ in range(FIRST_PLACES + 1)))
    await until(lambda: receiver.has_got(FIRST_PLACES))
    await company.patch(f"{PATH}/{endpoint_id}", {"disabled": True})
    [delivery] = await deliveries_of(company, endpoint_id, "?state=failed")
    assert (delivery["state"], delivery["reason"], delivery["attempts"]) == (
        "failed",
        "disabled",
        [],
    )


async def test_a_type_that_is_named_twice_is_kept_once(company: Company) -> None:
    body = {"url": URL, "types": ["reward.created", "referral.created", "reward.created"]}
    created = (await company.post(PATH, body)).json()
    assert created["types"] == ["reward.created", "referral.created"]
    changed = await company.patch(f"{PATH}/{created['id']}", {"types": ["webhook.test"] * 2})
    assert changed.json()["types"] == ["webhook.test"]
