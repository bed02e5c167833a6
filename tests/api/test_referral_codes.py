"""Referral codes: one live one a user, with a mandatory expiry, found by email address."""

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final
from urllib.parse import quote

import asyncpg
import pytest

from service.domain import referral_codes
from service.domain.referral_codes import ALPHABET
from service.repositories.jobs import JobRepository
from tests.api.assertions import assert_problem
from tests.api.wire import request, send
from tests.factories import Answer, Api, Person

CODE_MEMBERS: Final = {"code", "created_at", "expires_at", "max_uses", "uses"}
PUBLIC_MEMBERS: Final = {"code", "expires_at", "referrer_id"}
DAYS: Final = {"expires_in_days": 7}
METHODS: Final = pytest.mark.parametrize("method", ["POST", "PUT"])


async def make(api: Api, method: str, owner: Person, **wish: Any) -> Answer:
    return await api.call(method, "/referral-code", wish, by=owner)


def moment(answer: Answer, member: str) -> datetime:
    text: str = answer.json()[member]
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


@METHODS
async def test_a_code_is_made_and_shown(api: Api, anna: Person, method: str) -> None:
    before = datetime.now(UTC)
    made = await make(api, method, anna, expires_in_days=7)
    assert made.status == 201
    assert made.headers["Location"] == "/api/v1/referral-code"
    code = made.json()
    assert set(code) == CODE_MEMBERS
    assert len(code["code"]) == 10
    assert set(code["code"]) <= set(ALPHABET)
    assert not set("0O1IL") & set(ALPHABET)
    assert (code["max_uses"], code["uses"]) == (None, 0)
    assert before <= moment(made, "created_at") <= datetime.now(UTC)
    assert moment(made, "expires_at") - moment(made, "created_at") == timedelta(days=7)
    shown = await api.get("/referral-code", by=anna)
    assert (shown.status, shown.json()) == (200, code)


async def test_a_repeated_request_is_told_again_where_the_code_is(api: Api, anna: Person) -> None:
    headers = {"Idempotency-Key": "one"}
    answers = [await api.post("/referral-code", DAYS, by=anna, headers=headers) for _ in range(2)]
    assert [answer.status for answer in answers] == [201, 201]
    assert {answer.headers["Location"] for answer in answers} == {"/api/v1/referral-code"}
    refused = await api.post("/referral-code", DAYS, by=anna)
    assert "Location" not in refused.headers


async def test_anyone_finds_a_code_by_email(api: Api, anna: Person) -> None:
    made = (await make(api, "POST", anna, **DAYS)).json()
    for email in (anna.email, "ANNA@example.com", "anna@EXAMPLE.com", "anna%40example.com"):
        found = await api.get(f"/referral-code/{email}")
        assert found.status == 200
        assert set(found.json()) == PUBLIC_MEMBERS
        assert found.json()["code"] == made["code"]
        assert found.json()["expires_at"] == made["expires_at"]
        assert found.json()["referrer_id"] == anna.user_id


# RFC 5322's atext, each character where a client or a proxy may make something else of it.
LOCAL_PARTS: Final = [
    "a{b}",
    "{email}",
    "{}",
    "a/b+c",
    "a/./b",
    "/",
    "a%b",
    "a%2Fb",
    "a%7Bb",
    "%25",
    "a+b",
    "o'hara",
    "a?b#c",
    "a&b=c",
    "!#$%&'*+-/?=^_`{|}~",
    "a.b~c",
    "-a-",
]


@pytest.mark.parametrize("local_part", LOCAL_PARTS)
async def test_a_code_is_found_by_every_valid_email_address(api: Api, local_part: str) -> None:
    email = f"{local_part}@example.com"
    owner = await api.new_person(email)
    code = await api.new_code(owner)
    spellings = {
        quote(email, safe=""),
        quote(email, safe="@").lower(),
        "".join(f"%{byte:02X}" for byte in email.encode()),
        # As clients write it that encode no more than they have to.
        re.sub(r"[%/?#]", lambda found: quote(found[0], safe=""), email),
    }
    for spelling in spellings:
        found = await send(api, request("GET", f"/api/v1/referral-code/{spelling}"))
        assert found.status == 200, (spelling, found.body)
        assert found.json()["code"] == code


async def test_an_unknown_email_and_one_without_a_code_get_the_same_answer(
    api: Api, anna: Person
) -> None:
    problems = []
    for email in (anna.email, "nobody@example.com", "nobody", "%20"):
        answer = await api.get(f"/referral-code/{email}")
        assert_problem(answer, 404, "referral-code-not-found")
        problem = answer.json()
        del problem["request_id"]
        problems.append(problem)
    assert problems == [problems[0]] * 4


# When it expires.


@METHODS
@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2027-01-31T09:30:00Z", datetime(2027, 1, 31, 9, 30, tzinfo=UTC)),
        ("2027-01-31t09:30:00.123456z", datetime(2027, 1, 31, 9, 30, 0, 123456, UTC)),
        ("2027-01-31T09:30:00+05:30", datetime(2027, 1, 31, 4, 0, tzinfo=UTC)),
        ("2027-01-31T23:30:00-01:00", datetime(2027, 2, 1, 0, 30, tzinfo=UTC)),
    ],
)
async def test_an_expiry_is_read_with_its_zone_and_told_in_utc(
    api: Api, anna: Person, method: str, text: str, utc: datetime
) -> None:
    api.clock.ahead = datetime(2027, 1, 1, tzinfo=UTC) - datetime.now(UTC)
    anna = await api.signed_in(anna.email)
    made = await make(api, method, anna, expires_at=text)
    assert made.status == 201, made.body
    assert moment(made, "expires_at") == utc
    found = await api.get(f"/referral-code/{anna.email}")
    assert moment(found, "expires_at") == utc


BAD_WISHES: Final[list[tuple[dict[str, Any], str]]] = [
    ({}, "#/expires_at"),
    ({**DAYS, "expires_at": "2027-01-31T09:30:00Z"}, "#/expires_at"),
    ({"expires_at": None}, "#/expires_at"),
    ({"expires_at": ""}, "#/expires_at"),
    ({"expires_at": 1_800_000_000}, "#/expires_at"),
    ({"expires_at": "2027-01-31"}, "#/expires_at"),
    ({"expires_at": "2027-01-31T09:30:00"}, "#/expires_at"),
    ({"expires_at": "2027-01-31 09:30:00Z"}, "#/expires_at"),
    ({"expires_at": "2027-02-30T09:30:00Z"}, "#/expires_at"),
    ({"expires_at": "2027-01-31T24:00:00Z"}, "#/expires_at"),
    ({"expires_at": "2027-01-31T09:30:00+25:00"}, "#/expires_at"),
    ({"expires_at": "0001-01-01T00:00:00+14:00"}, "#/expires_at"),
    ({"expires_at": "9999-12-31T23:59:59-14:00"}, "#/expires_at"),
    ({"expires_at": "tomorrow"}, "#/expires_at"),
    ({"expires_in_days": 0}, "#/expires_in_days"),
    ({"expires_in_days": -1}, "#/expires_in_days"),
    ({"expires_in_days": 367}, "#/expires_in_days"),
    ({"expires_in_days": 2**63}, "#/expires_in_days"),
    ({"expires_in_days": 1.5}, "#/expires_in_days"),
    ({"expires_in_days": "7"}, "#/expires_in_days"),
    ({"expires_in_days": True}, "#/expires_in_days"),
    ({**DAYS, "max_uses": 0}, "#/max_uses"),
    ({**DAYS, "max_uses": -1}, "#/max_uses"),
    ({**DAYS, "max_uses": 10**9 + 1}, "#/max_uses"),
    ({**DAYS, "max_uses": True}, "#/max_uses"),
    ({**DAYS, "max_uses": 1.5}, "#/max_uses"),
    ({"expires_at": None, "expires_in_days": None}, "#/expires_at"),
    ({**DAYS, "code": ""}, "#/code"),
    ({**DAYS, "code": "ABC"}, "#/code"),
    ({**DAYS, "code": "A" * 33}, "#/code"),
    ({**DAYS, "code": "AB CD"}, "#/code"),
    ({**DAYS, "code": " "}, "#/code"),
    ({**DAYS, "code": " ABC "}, "#/code"),
    ({**DAYS, "code": 1234}, "#/code"),
    ({**DAYS, "code": "STRAßE"}, "#/code"),
    ({**DAYS, "code": "AB_CD"}, "#/code"),
    ({**DAYS, "owner_id": "x"}, "#/owner_id"),
    ({**DAYS, "uses": 5}, "#/uses"),
]


@METHODS
async def test_a_wish_that_breaks_a_rule_is_refused(api: Api, anna: Person, method: str) -> None:
    for wish, pointer in BAD_WISHES:
        answer = await make(api, method, anna, **wish)
        assert answer.status == 422, (wish, answer.body)
        assert_problem(answer, 422, "validation-failed", [pointer])
    assert (await api.get("/referral-code", by=anna)).status == 404


@METHODS
@pytest.mark.parametrize(
    ("wish", "pointers"),
    [
        (
            {"expires_in_days": 0, "max_uses": 0, "code": "!", "x": 1},
            ["#/expires_in_days", "#/max_uses", "#/code", "#/x"],
        ),
        ({"max_uses": 0, "code": "!"}, ["#/expires_at", "#/max_uses", "#/code"]),
        ({"expires_at": "tomorrow", "expires_in_days": 0}, ["#/expires_at", "#/expires_in_days"]),
    ],
)
async def test_all_that_is_wrong_with_a_wish_is_told_at_once(
    api: Api, anna: Person, method: str, wish: dict[str, Any], pointers: list[str]
) -> None:
    assert_problem(await make(api, method, anna, **wish), 422, "validation-failed", pointers)


@METHODS
@pytest.mark.parametrize(
    "wish",
    [
        pytest.param({**DAYS, "code": None}, id="no code"),
        pytest.param({**DAYS, "expires_at": None}, id="no moment"),
        pytest.param({**DAYS, "max_uses": None}, id="no limit"),
        pytest.param({**DAYS, "code": None, "expires_at": None, "max_uses": None}, id="all"),
        pytest.param({"expires_in_days": 7.0}, id="a whole number with a point"),
        pytest.param({"expires_in_days": 7e0, "code": " abcd \n"}, id="white space around a code"),
    ],
)
async def test_what_clients_write_for_the_same_is_taken(
    api: Api, anna: Person, method: str, wish: dict[str, Any]
) -> None:
    made = await make(api, method, anna, **wish)
    assert (made.status, made.json()["max_uses"]) == (201, None)
    assert moment(made, "expires_at") - moment(made, "created_at") == timedelta(days=7)
    assert made.json()["code"] == "ABCD" or wish.get("code") is None


async def test_null_is_left_out_where_a_moment_is_given(api: Api, anna: Person) -> None:
    expires_at = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    wish = {"expires_at": expires_at, "expires_in_days": None}
    assert (await make(api, "POST", anna, **wish)).status == 201


@METHODS
async def test_an_expiry_lies_after_now_and_within_366_days(
    api: Api, anna: Person, method: str
) -> None:
    now = datetime.now(UTC)
    zone = timezone(timedelta(hours=-11))
    for expires_at in (now - timedelta(seconds=1), now + timedelta(days=366, seconds=5)):
        answer = await make(api, method, anna, expires_at=expires_at.astimezone(zone).isoformat())
        assert_problem(answer, 422, "validation-failed", ["#/expires_at"])
    for expires_at in (now + timedelta(days=366), now + timedelta(seconds=5)):
        answer = await make(api, "PUT", anna, expires_at=expires_at.astimezone(zone).isoformat())
        assert answer.status in {200, 201}


async def test_an_expired_code_is_over_and_not_in_the_way(api: Api, anna: Person) -> None:
    made = await make(api, "POST", anna, expires_in_days=1, code="ANNA-2026")
    assert (await api.get(f"/referral-code/{anna.email}")).status == 200  # and kept
    remaining = moment(made, "expires_at") - datetime.now(UTC)
    api.clock.ahead = remaining - timedelta(seconds=5)
    anna = await api.signed_in(anna.email)
    assert (await api.get("/referral-code", by=anna)).status == 200
    assert (await api.get(f"/referral-code/{anna.email}")).status == 200
    api.clock.ahead = remaining + timedelta(milliseconds=1)
    for answer in (
        await api.get("/referral-code", by=anna),
        await api.delete("/referral-code", by=anna),
        await api.get(f"/referral-code/{anna.email}"),
    ):
        assert_problem(answer, 404, "referral-code-not-found")
    assert (await make(api, "POST", anna, **DAYS, code="ANNA-2026")).status == 201


async def test_to_replace_an_expired_code_is_to_create_one(api: Api, anna: Person) -> None:
    await make(api, "POST", anna, expires_in_days=1)
    api.clock.ahead = timedelta(days=1, seconds=1)
    anna = await api.signed_in(anna.email)
    assert (await make(api, "PUT", anna, **DAYS)).status == 201


# One live code.


async def test_a_second_code_is_refused_while_one_is_live(api: Api, anna: Person) -> None:
    first = await make(api, "POST", anna, **DAYS)
    answer = await make(api, "POST", anna, **DAYS)
    assert_problem(answer, 409, "referral-code-exists")
    assert (await api.get("/referral-code", by=anna)).json() == first.json()


async def test_a_replaced_code_dies_at_once(api: Api, anna: Person) -> None:
    old = await api.new_code(anna)
    replaced = await make(api, "PUT", anna, **DAYS)
    assert replaced.status == 200
    assert "Location" not in replaced.headers
    assert replaced.json()["code"] != old
    assert set(replaced.json()) == CODE_MEMBERS
    assert (await api.register(referral_code=old)).status == 422
    assert (await api.register(referral_code=replaced.json()["code"])).status == 201


async def test_a_deleted_code_dies_at_once_and_can_be_had_again(api: Api, anna: Person) -> None:
    code = await api.new_code(anna, code="ANNA-2026")
    deleted = await api.delete("/referral-code", by=anna)
    assert (deleted.status, deleted.body) == (204, b"")
    assert_problem(await api.get("/referral-code", by=anna), 404, "referral-code-not-found")
    assert_problem(await api.delete("/referral-code", by=anna), 404, "referral-code-not-found")
    assert (await api.register(referral_code=code)).status == 422
    assert await api.new_code(anna, code="ANNA-2026") == "ANNA-2026"


async def test_a_used_up_code_makes_room_for_another(api: Api, anna: Person) -> None:
    code = await api.new_code(anna, max_uses=2)
    for uses in (1, 2):
        assert (await api.register(referral_code=code)).status == 201
        shown = await api.get("/referral-code", by=anna)
        if uses == 1:
            assert (shown.json()["uses"], shown.json()["max_uses"]) == (1, 2)
    assert_problem(shown, 404, "referral-code-not-found")
    assert (await make(api, "POST", anna, **DAYS)).status == 201


@METHODS
async def test_a_drawn_code_that_another_holds_is_drawn_again(
    api: Api, anna: Person, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bert = await api.new_person()
    taken, free = await api.new_code(anna), "ABCDEFGHJK"
    drawn = iter([taken, taken, free])
    monkeypatch.setattr(referral_codes, "generate_code", lambda: next(drawn))
    made = await make(api, method, bert, **DAYS)
    assert (made.status, made.json()["code"]) == (201, free)


# Chosen codes.


@METHODS
@pytest.mark.parametrize("chosen", ["anna", "ANNA-2026", "a" * 32, "0O1IL", "----", "1234"])
async def test_a_code_may_be_chosen(api: Api, anna: Person, method: str, chosen: str) -> None:
    made = await make(api, method, anna, **DAYS, code=chosen)
    assert (made.status, made.json()["code"]) == (201, chosen.upper())


@METHODS
async def test_a_chosen_code_that_another_holds_is_refused(
    api: Api, anna: Person, method: str
) -> None:
    await api.new_code(anna, code="SPRING")
    bert = await api.new_person()
    answer = await make(api, method, bert, **DAYS, code="spring")
    assert_problem(answer, 409, "referral-code-taken", ["#/code"])


async def test_a_replacement_that_is_refused_leaves_the_live_code_alone(
    api: Api, anna: Person
) -> None:
    await api.new_code(anna, code="SPRING")
    bert = await api.new_person()
    own = await api.new_code(bert)
    for wish in ({**DAYS, "code": "SPRING"}, {"expires_at": "2001-01-01T00:00:00Z"}):
        assert (await make(api, "PUT", bert, **wish)).status in {409, 422}
        assert (await api.get(f"/referral-code/{bert.email}")).json()["code"] == own


async def test_the_own_code_may_be_chosen_again(api: Api, anna: Person) -> None:
    """And it begins to count anew."""
    code = await api.new_code(anna, code="SPRING")
    await api.register(referral_code=code)
    replaced = await make(api, "PUT", anna, **DAYS, code="spring")
    assert (replaced.status, replaced.json()["code"], replaced.json()["uses"]) == (200, "SPRING", 0)


async def test_codes_are_of_their_owner_alone(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    bert = await api.new_person()
    codes = {await api.new_code(anna), await api.new_code(bert)}
    assert len(codes) == 2
    await api.delete("/referral-code", by=bert)
    assert (await api.get("/referral-code", by=anna)).status == 200
    live = "SELECT count(*) FROM referral_codes WHERE ended_at IS NULL"
    assert await database.fetchval(live) == 1


async def test_a_write_plans_the_invalidation_in_its_own_transaction(
    api: Api, anna: Person, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a process that is killed before it removes from the cache what is old."""

    async def none(*_: Any) -> list[Any]:
        return []

    monkeypatch.setattr(JobRepository, "oldest", none)  # or they would be done at once
    for method, body in (("POST", DAYS), ("PUT", DAYS), ("PATCH", DAYS), ("DELETE", None)):
        await database.execute("DELETE FROM jobs")
        answer = await api.call(method, "/referral-code", body, by=anna)
        assert answer.status < 300
        [job] = await database.fetch("SELECT kind, payload, xmin FROM jobs")
        assert (job["kind"], job["payload"]) == ("forget", f'["code:{anna.email}"]'), method
        written = "SELECT max(xmin::text::bigint) FROM referral_codes"
        assert int(job["xmin"]) == await database.fetchval(written), method
