"""Several processes deliver together, and admins hear of what they disabled."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network

import asyncpg
import pytest
from redis.asyncio import Redis

from service.settings.settings import Settings, read_settings
from tests.api.webhooks.conftest import listen, send_test, until_ended
from tests.company import Company, new_company
from tests.factories import Api, running
from tests.oauth import new_admin
from tests.stand_ins.smtp import Mail, SmtpServer
from tests.stand_ins.webhooks import Receiver
from tests.waiting import until


@pytest.fixture
async def others(settings: Settings, api: Api) -> AsyncIterator[list[Api]]:
    """Two more processes, as far as their memory goes."""
    async with running(settings) as second, running(settings) as third:
        yield [second, third]


async def test_each_message_is_delivered_by_one_of_several(
    company: Company, receiver: Receiver, others: list[Api]
) -> None:
    endpoint_id = await listen(company, receiver)
    sent = [await send_test(company, endpoint_id) for _ in range(60)]
    await until(lambda: receiver.has_got(60))
    await until_ended(company, endpoint_id)
    assert sorted(got.message_id for got in receiver.got) == sorted(sent)


async def test_one_of_several_finds_out_whether_an_endpoint_answers_again(
    company: Company, receiver: Receiver, others: list[Api], database: asyncpg.Connection
) -> None:
    """Without locking the endpoint's row, each would send a delivery when its rest is over."""
    endpoint_id = await listen(company, receiver)
    receiver.status = 500
    await send_test(company, endpoint_id)
    await until(lambda: receiver.has_got(1))
    for _ in range(20):
        await send_test(company, endpoint_id)
    for round_ in range(2, 8):
        receiver.hanging = True
        await database.execute("UPDATE webhook_endpoints SET resume_at = now()")
        await until(lambda sent=round_: receiver.has_got(sent))  # type: ignore[misc]
        await asyncio.sleep(0.2)
        assert len(receiver.got) == round_
        receiver.hanging = False

        async def rests() -> bool:
            found: bool = await database.fetchval(
                "SELECT resume_at < now() + interval '20 s' FROM webhook_endpoints"
            )
            return found

        await until(rests)


async def test_admins_are_mailed_about_an_endpoint_that_was_disabled(
    environment: dict[str, str], database: asyncpg.Connection, redis: Redis, receiver: Receiver
) -> None:
    async with SmtpServer().serving() as smtp:
        told = {"SMTP_URL": smtp.url, "MAIL_FROM": "referrals@example.com"}
        settings = read_settings({**environment, **told})
        settings = replace(settings, webhook_networks=(ip_network("127.0.0.0/8"),))
        async with running(settings) as api:
            company = await new_company(api)
            admin = await new_admin(api)
            endpoint_id = await listen(company, receiver)
            receiver.status = 410
            await send_test(company, endpoint_id)

            def about_webhooks() -> list[Mail]:
                return [one for one in smtp.mails if "webhooks" in one.message["Subject"]]

            [mail] = await until(about_webhooks)
            assert mail.rcpt_tos == (admin.email,)
            assert "127.0.0.1 was disabled, because it responded with 410 (Gone)" in " ".join(
                mail.text.split()
            )
            assert receiver.url not in mail.text


async def begin_a_delivery(company: Company, receiver: Receiver) -> str:
    """Have a test sent to the receiver, which hangs; return the endpoint's id."""
    endpoint_id = await listen(company, receiver)
    receiver.hanging = True
    await send_test(company, endpoint_id)
    await until(lambda: receiver.has_got(1))
    return endpoint_id


async def test_a_delivery_of_a_killed_process_is_made_again(
    company: Company, receiver: Receiver, database: asyncpg.Connection
) -> None:
    endpoint_id = await begin_a_delivery(company, receiver)
    # As another process finds it: claimed, and not heard of since.
    receiver.hanging = False
    company.api.clock.ahead = timedelta(seconds=31)
    await until_ended(company, endpoint_id)
    assert len({got.message_id for got in receiver.got}) == 1


async def test_a_delivery_that_is_claimed_again_while_it_is_under_way_ends_once(
    company: Company, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """So it is by the same process, if its machine's clock is set forward."""
    endpoint_id = await begin_a_delivery(company, receiver)
    company.api.clock.ahead = timedelta(seconds=31)
    await until(lambda: receiver.has_got(2))
    receiver.hanging = False
    [delivery] = await until_ended(company, endpoint_id)
    assert delivery["state"] == "delivered"
    await send_test(company, endpoint_id)
    await until_ended(company, endpoint_id)
    assert "crashed" not in caplog.text
