"""A confirmed email address counts as an event of the referral programme."""

from tests.api.mailing import confirm, mailed, token_in
from tests.company import Company, new_company
from tests.factories import PASSWORD, Api, new_email
from tests.stand_ins.smtp import SmtpServer

RULES = {"qualify": {"on": "email_confirmed", "within_days": 30}}


async def registered(company: Company) -> str:
    """Have somebody register with a company's code; return the email address."""
    referrer, email = await company.new_referrer(), new_email()
    body = {"email": email, "password": PASSWORD, "referral_code": referrer["code"]}
    answer = await company.api.post("/auth/register", body)
    assert answer.status in {201, 202}, answer.body
    return email


async def state_of(company: Company) -> list[tuple[str, str]]:
    """Return the state of the one referral, and why it changed, oldest first."""
    [referral] = (await company.get("/referrals")).json()["items"]
    shown = (await company.get(f"/referees/{referral['id']}")).json()
    assert all(" " in event["id"] for event in shown["events"]), "no company's id has a space"
    return [(one["state"], one["reason"]) for one in reversed(shown["decisions"])]


async def test_a_referral_qualifies_once_its_referee_confirms(api: Api, smtp: SmtpServer) -> None:
    company = await new_company(api)
    await company.use_rules(RULES)
    email = await registered(company)
    assert await state_of(company) == [("pending", "signed-up")]
    token = token_in((await mailed(smtp, email, "Confirm"))[0])
    assert (await confirm(api, token)).status == 204
    qualified = [("pending", "signed-up"), ("qualified", "qualified")]
    assert await state_of(company) == qualified
    assert (await confirm(api, token)).status == 204
    assert await state_of(company) == qualified


async def test_where_addresses_must_be_confirmed_the_referral_comes_qualified(
    strict: Api, smtp: SmtpServer
) -> None:
    company = await new_company(strict)
    await company.use_rules(RULES)
    email = await registered(company)
    assert (await company.get("/referrals")).json()["items"] == []
    token = token_in((await mailed(smtp, email, "Confirm"))[0])
    assert (await confirm(strict, token)).status == 204
    assert await state_of(company) == [("pending", "signed-up"), ("qualified", "qualified")]
