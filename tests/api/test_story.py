"""The whole product in one test: what a stranger does first."""

from tests.factories import Api


async def test_a_code_is_made_found_used_and_its_referral_seen(api: Api) -> None:
    anna = await api.new_person()
    code = await api.new_code(anna)

    found = await api.get(f"/referral-code/{anna.email.upper()}")
    assert found.status == 200
    assert found.json()["code"] == code
    assert found.json()["referrer_id"] == anna.user_id

    bert = await api.new_person(referral_code=code.lower())
    assert (await api.get("/users/me", by=bert)).json()["referrer_id"] == anna.user_id

    referrals = (await api.get(f"/referrals/{anna.user_id}", by=anna)).json()
    assert [referral["id"] for referral in referrals["items"]] == [bert.user_id]
    assert referrals["next_cursor"] is None

    assert (await api.delete("/referral-code", by=anna)).status == 204
    assert (await api.get(f"/referral-code/{anna.email}")).status == 404
