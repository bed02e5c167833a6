"""A confirmed email address is an event of its account, which a referral may qualify by."""

import asyncpg
import pytest

from tests.api.mailing import ANNA, confirm, mailed, token_in
from tests.company import new_company
from tests.factories import PASSWORD, Api
from tests.stand_ins.smtp import SmtpServer

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("SELECT", id="participants"),
        # The release before made no participants, and this one makes them when it needs them.
        pytest.param("DELETE FROM standings; DELETE FROM participants", id="nobody"),
    ],
)
async def test_a_referral_qualifies_by_a_confirmed_address(
    api: Api, smtp: SmtpServer, database: asyncpg.Connection, before: str
) -> None:
    company = await new_company(api)
    await company.use_rules({"qualify": {"on": "email_confirmed"}, "rewards": []})
    code = await api.new_code(await api.new_person())
    anna = await api.new_person(ANNA, referral_code=code)
    referee = f"/referees/{anna.user_id}"
    assert (await company.get(referee)).json()["state"] == "pending"
    await database.execute(before)
    [mail] = await mailed(smtp, ANNA, "Confirm")
    for _ in range(2):
        assert (await confirm(api, token_in(mail))).status == 204
    shown = (await company.get(referee)).json()
    assert [one["state"] for one in shown["decisions"]] == ["qualified", "pending"]
    assert [one["type"] for one in shown["events"]] == ["email_confirmed"]


async def test_where_addresses_must_be_confirmed_the_referral_comes_qualified(
    strict: Api, smtp: SmtpServer
) -> None:
    company = await new_company(strict)
    await company.use_rules({"qualify": {"on": "email_confirmed", "within_days": 30}})
    code = (await company.new_referrer())["code"]
    body = {"email": ANNA, "password": PASSWORD, "referral_code": code}
    assert (await strict.post("/auth/register", body)).status == 202
    assert (await company.get("/referrals")).json()["items"] == []
    [mail] = await mailed(smtp, ANNA, "Confirm")
    assert (await confirm(strict, token_in(mail))).status == 204
    [referral] = (await company.get("/referrals")).json()["items"]
    assert (referral["state"], referral["sequence"]) == ("qualified", 2)
