"""A company with its own accounts, in five calls."""

from tests.company import new_company
from tests.factories import Api

RULES = {
    "qualify": {"on": "purchase", "minimum": {"amount": 2000, "unit": "EUR"}, "within_days": 30}
}


async def test_a_referral_is_followed_from_sign_up_to_refund(api: Api) -> None:
    company = await new_company(api)
    await company.use_rules(RULES)

    created = await company.post(
        "/participants", {"external_id": "u-1", "code": {"expires_in_days": 365}}
    )
    assert created.status == 201
    referrer = created.json()
    assert referrer["share_url"].endswith(f"/r/{referrer['code']}")

    signed_up = await company.post("/referrals", {"code": referrer["code"], "external_id": "u-2"})
    assert signed_up.status == 201
    assert signed_up.json()["state"] == "pending"
    assert signed_up.json()["referrer_id"] == referrer["participant_id"]

    purchase = {
        "id": "order-1001",
        "type": "purchase",
        "external_id": "u-2",
        "amount": 4900,
        "unit": "EUR",
    }
    bought = await company.post("/events", purchase)
    assert (bought.status, bought.json()["outcome"]) == (201, "qualified")
    assert bought.json()["referral"]["state"] == "qualified"
    again = await company.post("/events", purchase)
    assert (again.status, again.json()["outcome"]) == (200, "qualified")

    refund = {"id": "refund-77", "type": "refund", "refunds": "order-1001", "external_id": "u-2"}
    refunded = await company.post("/events", refund)
    assert (refunded.status, refunded.json()["outcome"]) == (201, "reversed")

    shown = (await company.get(f"/referees/{signed_up.json()['id']}")).json()
    assert shown["state"] == "reversed"
    assert [(one["state"], one["event_id"]) for one in shown["decisions"]] == [
        ("reversed", "refund-77"),
        ("qualified", "order-1001"),
        ("pending", None),
    ]
    assert [event["id"] for event in shown["events"]] == ["refund-77", "order-1001"]
