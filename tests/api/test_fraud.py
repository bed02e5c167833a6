"""Fraud rules at sign-up, and reviews: what is shown, held, rejected, and lifted again."""

from datetime import timedelta
from typing import Any

import pytest

from service.api.http.app_keys import SERVICES
from tests.api.test_rewards import FRIEND, PAID, WELCOME, balance, use_rewards
from tests.company import Company, new_company, new_id
from tests.factories import Api

OFF = dict.fromkeys(
    ["self_referral", "same_device", "same_ip", "disposable_email", "velocity"], "off"
)
MAIL = "ann.smith+shop@gmail.com"
DEVICE = "device-1"
IP, NETWORK = "2001:db8::1", "2001:db8::2:3"


@pytest.fixture
async def company(api: Api) -> Company:
    company = await new_company(api)
    await use_rewards(company, FRIEND, WELCOME)
    return company


async def signed_up(company: Company, referrer: Any, **members: Any) -> Any:
    answer = await company.sign_up(referrer["code"], new_id("referee"), **members)
    assert answer.status == 201, answer.body
    return answer.json()


SIGNALS = {
    "self-referral": ({"email": "annsmith@googlemail.com"}, {"email": MAIL}),
    "same-device": ({"device_id": DEVICE}, {"device_id": DEVICE}),
    "same-ip": ({"ip": IP}, {"ip": NETWORK}),
    "disposable-email": ({}, {"email": "somebody@mailinator.com"}),
}


@pytest.mark.parametrize("action", ["off", "flag", "hold", "reject"])
@pytest.mark.parametrize("flag", SIGNALS)
async def test_each_rule_does_what_it_says(company: Company, flag: str, action: str) -> None:
    fraud = {**OFF, flag.replace("-", "_"): action}
    await use_rewards(company, FRIEND, WELCOME, fraud=fraud)
    of_referrer, of_referee = SIGNALS[flag]
    referrer = await company.new_referrer(**of_referrer)
    referral = await signed_up(company, referrer, **of_referee)
    assert referral["flags"] == ([] if action == "off" else [flag])
    review, state = {"hold": ("open", "pending"), "reject": ("rejected", "rejected")}.get(
        action, ("none", "pending")
    )
    assert (referral["review"], referral["state"]) == (review, state)
    if review != "none":
        assert referral["reason"] == flag
    rewards = (await company.get("/rewards")).json()["items"]
    assert [(one["rule"], one["held"]) for one in rewards] == (
        [] if action == "reject" else [("welcome", action == "hold")]
    )


async def test_the_defaults_hold_what_is_strong_and_show_what_is_weak(company: Company) -> None:
    referrer = await company.new_referrer(email=MAIL, device_id=DEVICE, ip=IP)
    assert (await signed_up(company, referrer, ip=IP))["review"] == "none"
    assert (await signed_up(company, referrer, device_id=DEVICE))["review"] == "open"
    both = await signed_up(company, referrer, email=MAIL, ip=IP)
    assert (both["flags"], both["review"]) == (["self-referral", "same-ip"], "open")


async def test_what_is_held_is_given_when_it_is_approved(company: Company) -> None:
    referrer = await company.new_referrer(device_id=DEVICE)
    referral = await signed_up(company, referrer, device_id=DEVICE)
    [referee] = [referral["id"]]
    bought = {"id": new_id("order"), "type": "purchase", "participant_id": referee, **PAID}
    said = (await company.post("/events", bought)).json()
    assert (said["outcome"], said["referral"]["state"]) == ("under-review", "qualified")
    assert {one["held"] for one in said["rewards"]} == {True}
    assert await balance(company, referrer["external_id"]) == {"EUR": (500, 0, 0)}
    [waiting] = (await company.get("/referrals?review=open")).json()["items"]
    assert waiting["id"] == referee
    verdict = {"decision": "approve", "reason": "Two siblings, says support."}
    approved = await company.post(f"/referees/{referee}/decisions", verdict)
    assert (approved.status, approved.json()["review"]) == (201, "approved")
    assert approved.json()["state"] == "rewarded"
    assert await balance(company, referrer["external_id"]) == {"EUR": (0, 500, 0)}
    assert (await company.get("/referrals?review=open")).json()["items"] == []


async def test_what_a_rule_rejected_is_given_once_it_is_approved(company: Company) -> None:
    await use_rewards(company, FRIEND, WELCOME, fraud={**OFF, "same_device": "reject"})
    referrer = await company.new_referrer(device_id=DEVICE)
    referee = (await signed_up(company, referrer, device_id=DEVICE))["id"]
    bought = {"id": new_id("order"), "type": "purchase", "participant_id": referee, **PAID}
    assert (await company.post("/events", bought)).json()["rewards"] == []
    verdict = {"decision": "approve", "reason": "Two siblings."}
    approved = await company.post(f"/referees/{referee}/decisions", verdict)
    assert approved.json()["state"] == "rewarded"
    assert await balance(company, referrer["external_id"]) == {"EUR": (0, 500, 0)}


async def test_rejecting_after_the_payout_leaves_a_debt(company: Company) -> None:
    referrer = await company.new_referrer()
    referral = await signed_up(company, referrer)
    bought = {"id": new_id("order"), "type": "purchase", "participant_id": referral["id"], **PAID}
    await company.post("/events", bought)
    who = {"external_id": referrer["external_id"], "unit": "EUR", "amount": 500}
    await company.post("/redemptions", {"id": new_id("payout"), **who})
    verdict = {"decision": "reject", "reason": "The same person."}
    rejected = await company.post(f"/referees/{referral['id']}/decisions", verdict)
    assert rejected.json()["state"] == "reversed"
    assert await balance(company, referrer["external_id"]) == {"EUR": (0, -500, 500)}


async def test_nobody_looks_at_a_trusted_referrer(company: Company) -> None:
    referrer = await company.new_referrer(email=MAIL, device_id=DEVICE, ip=IP)
    await company.patch(f"/participants/{referrer['participant_id']}", {"trusted": True})
    referral = await signed_up(company, referrer, email=MAIL, device_id=DEVICE, ip=IP)
    assert (referral["flags"], referral["review"]) == ([], "none")


async def test_referees_of_one_referrer_are_compared_and_not_those_of_others(
    company: Company,
) -> None:
    one, other = await company.new_referrer(), await company.new_referrer()
    flags = [
        (await signed_up(company, referrer, device_id=DEVICE, ip=IP))["flags"]
        for referrer in (one, other, one, one)
    ]
    assert flags == [[], [], ["same-device"], ["same-device", "same-ip"]]


async def test_several_addresses_of_one_mailbox_are_flagged_but_for_the_first(
    company: Company,
) -> None:
    """As those of accounts are: test_referral_flags.py."""
    one, other = await company.new_referrer(), await company.new_referrer()
    found = [
        await signed_up(company, referrer, email=email)
        for referrer, email in (
            (one, "carl@gmail.com"),
            (one, "c.arl+1@gmail.com"),
            (one, "carl+2@googlemail.com"),
            (other, "carl+3@gmail.com"),
        )
    ]
    assert [(one["flags"], one["review"]) for one in found] == [
        ([], "none"),
        (["self-referral"], "open"),
        (["self-referral"], "open"),
        ([], "none"),
    ]


async def test_an_address_is_compared_for_a_while_only(api: Api, company: Company) -> None:
    referrer = await company.new_referrer(ip=IP)
    for days, flags in ((29, ["same-ip"]), (31, [])):
        api.clock.ahead = timedelta(days=days)
        code = (
            await company.put(
                f"/participants/{referrer['participant_id']}/code", {"expires_in_days": 300}
            )
        ).json()["code"]
        assert (await signed_up(company, {"code": code}, ip=IP))["flags"] == flags


async def test_the_21st_sign_up_within_an_hour_is_shown(api: Api, company: Company) -> None:
    referrer = await company.new_referrer()
    flags = [(await signed_up(company, referrer))["flags"] for _ in range(21)]
    assert flags == [[]] * 20 + [["velocity"]]
    api.clock.ahead = timedelta(hours=1, minutes=1)
    assert (await signed_up(company, referrer))["flags"] == []


async def test_an_account_is_recognized_by_its_mailbox(api: Api, company: Company) -> None:
    anna = await api.new_person("ann.smith@gmail.com")
    referral = await signed_up(company, {"code": await api.new_code(anna)}, email=MAIL)
    assert (referral["flags"], referral["review"]) == (["self-referral"], "open")


async def test_a_milestone_waits_for_the_reviews_of_those_who_led_to_it(company: Company) -> None:
    two = {"name": "two", "to": "referrer", "on": "milestone", "at": 2, "unit": "EUR", "amount": 7}
    await company.use_rules({"qualify": {"on": "signup"}, "rewards": [two]})
    referrer = await company.new_referrer(device_id=DEVICE)
    held = await signed_up(company, referrer, device_id=DEVICE)
    await signed_up(company, referrer)
    assert await balance(company, referrer["external_id"]) == {"EUR": (7, 0, 0)}
    await company.post(
        f"/referees/{held['id']}/decisions", {"decision": "approve", "reason": "Fine."}
    )
    await company.api.app[SERVICES].sweeps.release_due()
    assert await balance(company, referrer["external_id"]) == {"EUR": (0, 7, 0)}


async def test_a_milestone_that_is_still_pending_waits_for_a_new_review(
    api: Api, company: Company
) -> None:
    one = {"name": "one", "to": "referrer", "on": "milestone", "at": 1, "unit": "EUR", "amount": 7}
    await company.use_rules({"qualify": {"on": "signup"}, "rewards": [{**one, "hold_days": 3}]})
    referrer = await company.new_referrer(device_id=DEVICE)
    await signed_up(company, referrer)
    held = await signed_up(company, referrer, device_id=DEVICE)
    [reward] = (await company.get("/rewards")).json()["items"]
    assert reward["held"]
    api.clock.ahead = timedelta(days=4)
    await company.api.app[SERVICES].sweeps.release_due()
    assert await balance(company, referrer["external_id"]) == {"EUR": (7, 0, 0)}
    await company.post(
        f"/referees/{held['id']}/decisions", {"decision": "approve", "reason": "Fine."}
    )
    await company.api.app[SERVICES].sweeps.release_due()
    assert await balance(company, referrer["external_id"]) == {"EUR": (0, 7, 0)}


async def test_a_referrer_does_not_see_what_fraud_rules_have_found(api: Api) -> None:
    company = await new_company(api)
    person = await api.new_person()
    code = await api.new_code(person)
    for referee in ("u-1", "u-2"):
        signed_up = await company.sign_up(code, referee, device_id="d-1")
    assert signed_up.json()["flags"] == ["same-device"]
    listed = (await api.get("/referrals/me", by=person)).json()["items"]
    assert [one["flags"] for one in listed] == [[], []]


@pytest.mark.parametrize(
    ("action", "seen", "known"),
    [
        ("hold", ["signed-up", "qualified"], ["signed-up", "self-referral", "qualified"]),
        ("reject", ["signed-up", "review-rejected"], ["signed-up", "self-referral"]),
    ],
)
async def test_a_referee_does_not_see_what_fraud_rules_have_found(
    api: Api, company: Company, action: str, seen: list[str], known: list[str]
) -> None:
    await company.use_rules({"qualify": {"on": "signup"}, "fraud": {"self_referral": action}})
    code = await api.new_code(await api.new_person("ann.smith@gmail.com"))
    referee = await api.new_person("annsmith@gmail.com", referral_code=code)
    path = f"/referees/{referee.user_id}"
    for answer, reasons in (
        (await company.get(path), known),
        (await api.get(path, by=referee), seen),
    ):
        shown = answer.json()
        told = sorted(shown["decisions"], key=lambda one: one["sequence"])
        assert [one["reason"] for one in told] == reasons
        assert [one["sequence"] for one in told] == list(range(1, len(reasons) + 1))
        assert (shown["reason"], shown["sequence"]) == (reasons[-1], len(reasons))
    await company.post(f"{path}/decisions", {"decision": "approve", "reason": "Two people."})
    reasons = [one["reason"] for one in (await api.get(path, by=referee)).json()["decisions"]]
    assert reasons[-1] == "signed-up"
    assert "self-referral" not in reasons


async def test_approving_lifts_flags(api: Api, company: Company) -> None:
    referrer = await company.new_referrer()
    first, second, third = [
        await signed_up(company, referrer, email=f"me+{number}@example.com") for number in range(3)
    ]
    assert [one["flags"] for one in (first, second, third)] == [
        [],
        ["self-referral"],
        ["self-referral"],
    ]
    for one in (second, third):
        verdict = {"decision": "approve", "reason": "A family."}
        approved = await company.post(f"/referees/{one['id']}/decisions", verdict)
        assert (approved.json()["flags"], approved.json()["review"]) == ([], "approved")
    fourth = await signed_up(company, referrer, email="me+4@example.com")
    assert fourth["flags"] == ["self-referral"], "the first one still has the mailbox"
