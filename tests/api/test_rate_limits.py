"""Too many requests: counted by address and by account, before anything is done for them."""

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network
from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis

from service.domain.rate_limits import RateLimit
from service.domain.scopes import FOR_CLIENTS, Scope
from service.security.password_hashing import PasswordHasher
from service.settings.settings import Settings
from tests.api.assertions import assert_problem
from tests.api.scopes import SCOPE_OF
from tests.factories import PASSWORD, Api, running
from tests.oauth import new_application

pytestmark = pytest.mark.usefixtures("database", "redis")
LOOKUP = "/referral-code/nobody@example.com"
PROXY = ip_network("127.0.0.1")


async def test_the_headers_show_the_policy_and_what_is_left(settings: Settings) -> None:
    limited = replace(settings, rate_limit_lookup=RateLimit(3, 60))
    async with running(limited) as api:
        for left in (2, 1, 0):
            answer = await api.get(LOOKUP)
            assert answer.status == 404
            assert answer.headers["RateLimit-Policy"] == '"lookup";q=3;w=60'
            assert answer.headers["RateLimit"] == f'"lookup";r={left};t=60'
            assert "Retry-After" not in answer.headers
        refused = await api.get(LOOKUP)
        assert_problem(refused, 429, "too-many-requests")
        assert refused.headers["RateLimit-Policy"] == '"lookup";q=3;w=60'
        assert refused.headers["RateLimit"] == '"lookup";r=0;t=60'
        assert refused.headers["Retry-After"] == "60"


async def test_a_look_up_too_many_does_not_reach_the_database(
    settings: Settings, redis: Redis
) -> None:
    """Redis is asked for the code with the same request that counts, PostgreSQL only afterwards."""
    async with running(replace(settings, rate_limit_lookup=RateLimit(1, 60))) as api:
        for email, found in (("first@example.com", 1), ("second@example.com", 0)):
            await api.get(f"/referral-code/{email}")
            # That nobody has the email address is cached, once PostgreSQL has said so.
            kept = [key async for key in redis.scan_iter(f"*{{code:{email}}}")]
            assert len(kept) == found
        malformed = await api.get("/referral-code/no-email")
        assert_problem(malformed, 429, "too-many-requests")


async def test_without_a_limit_there_are_no_headers(api: Api) -> None:
    answer = await api.get(LOOKUP)
    assert "RateLimit" not in answer.headers
    assert "RateLimit-Policy" not in answer.headers


async def test_the_window_ends_when_retry_after_says(settings: Settings) -> None:
    async with running(replace(settings, rate_limit_lookup=RateLimit(2, 1))) as api:
        answers = [await api.get(LOOKUP) for _ in range(3)]
        assert [answer.status for answer in answers] == [404, 404, 429]
        assert answers[-1].headers["Retry-After"] == "1"
        await asyncio.sleep(1.01)
        assert (await api.get(LOOKUP)).status == 404


async def test_two_processes_count_together(settings: Settings) -> None:
    limited = replace(settings, rate_limit_lookup=RateLimit(3, 60))
    async with running(limited) as one, running(limited) as two:
        answers = [await api.get(LOOKUP) for api in (one, two, one, two)]
        assert [answer.status for answer in answers] == [404, 404, 404, 429]


async def test_registrations_are_limited_for_an_address(settings: Settings) -> None:
    async with running(replace(settings, rate_limit_register=RateLimit(2, 60))) as api:
        answers = [await api.register() for _ in range(3)]
        assert [answer.status for answer in answers] == [201, 201, 429]
        assert answers[0].headers["RateLimit-Policy"] == '"register";q=2;w=60'


async def test_logins_are_limited_for_an_address(settings: Settings) -> None:
    """Whatever accounts they are for; the right password does not help. Windows of accounts are
    counted too, and not shown: they would reveal what others do."""
    async with running(replace(settings, rate_limit_login=RateLimit(3, 60))) as api:
        await api.register("anna@example.com")
        for number in range(3):
            answer = await api.log_in(f"nobody{number}@example.com")
            assert answer.status == 401
            assert answer.headers["RateLimit-Policy"] == '"login";q=3;w=60'
            assert answer.headers["RateLimit"] == f'"login";r={2 - number};t=60'
        assert_problem(await api.log_in("anna@example.com"), 429, "too-many-requests")


@pytest.mark.parametrize("email", ["anna@example.com", "nobody@example.com"])
async def test_logins_are_limited_for_an_account_known_or_not(
    settings: Settings, email: str
) -> None:
    """From many addresses, and however it is spelt: delayed longer and longer, never refused."""
    limited = replace(settings, rate_limit_login=RateLimit(3, 60), trusted_proxies=(PROXY,))
    async with running(limited) as api:
        await api.register("anna@example.com")
        spellings = [email, email.upper(), email.title(), email, email.upper(), email]
        delays = [0, 0, 0, 0.1, 0.2, 0.4]
        for number, (spelling, delay) in enumerate(zip(spellings, delays, strict=True)):
            began = time.monotonic()
            answer = await api.post(
                "/auth/login",
                {"email": spelling, "password": "wrong password"},
                headers={"X-Forwarded-For": f"203.0.113.{number}"},
            )
            assert time.monotonic() - began >= delay
            assert answer.status == 401
            assert answer.headers["RateLimit"] == '"login";r=2;t=60'


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        (
            "POST",
            "/auth/password/change",
            {"current_password": "wrong password", "new_password": "another walk by the sea"},
        ),
        ("DELETE", "/users/me", {"password": "wrong password"}),
    ],
)
async def test_a_stolen_token_does_not_help_to_guess_the_password(
    settings: Settings, method: str, path: str, body: dict[str, str]
) -> None:
    async with running(replace(settings, rate_limit_login=RateLimit(4, 60))) as api:
        anna = await api.new_person()
        answers = [await api.call(method, path, body, by=anna) for _ in range(5)]
        assert [answer.status for answer in answers] == [401, 401, 401, 401, 429]


class CountingHasher(PasswordHasher):
    """Counts the passwords that were verified."""

    verified = 0

    async def verify(self, password: str, password_hash: str | None) -> tuple[bool, bool]:
        CountingHasher.verified += 1
        return await super().verify(password, password_hash)


async def test_attempts_are_counted_before_a_password_is_hashed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 60 wrong passwords at one instant 5 cost a hash."""
    monkeypatch.setattr("service.services.PasswordHasher", CountingHasher)
    async with running(replace(settings, rate_limit_login=RateLimit(5, 60))) as api:
        await api.register("anna@example.com")
        CountingHasher.verified = 0
        wrong = {"email": "anna@example.com", "password": "wrong password"}
        answers = await asyncio.gather(*(api.post("/auth/login", wrong) for _ in range(60)))
        assert sorted(answer.status for answer in answers) == [401] * 5 + [429] * 55
        assert CountingHasher.verified == 5


FORWARDED = [
    # X-Forwarded-For of each request, trusted proxies, statuses with a limit of 2
    (["203.0.113.1"] * 3, True, [404, 404, 429]),
    (["203.0.113.1", "203.0.113.2", "203.0.113.3"], True, [404, 404, 404]),
    # An address of IPv6 counts with its /64, which is what one client has.
    (["2001:db8::1", "2001:db8::2", "2001:db8::3"], True, [404, 404, 429]),
    (["2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:3::1"], True, [404, 404, 404]),
    (["::ffff:203.0.113.1", "203.0.113.1", "203.0.113.1"], True, [404, 404, 429]),
    # From the right, as far as trusted proxies have written it: the left is the client's word.
    (["10.0.0.1, 203.0.113.1", "10.0.0.2, 203.0.113.1", "x, 203.0.113.1"], True, [404, 404, 429]),
    (["203.0.113.1, 127.0.0.1", "203.0.113.2, 127.0.0.1", "203.0.113.3"], True, [404, 404, 404]),
    # Some proxies add the port, which differs with each connection.
    (["203.0.113.1:51000", "203.0.113.1:51001", "203.0.113.1"], True, [404, 404, 429]),
    (["203.0.113.1:51000", "203.0.113.2:51000", "203.0.113.3:51000"], True, [404, 404, 404]),
    (["[2001:db8::1]:1", "[2001:db8::1]:2", '"[2001:db8::1]"'], True, [404, 404, 429]),
    # Anything else than an address ends the search: left of it anyone may have written anything.
    (["10.0.0.1, x:4711", "10.0.0.2, x:4711", "10.0.0.3, x:4711"], True, [404, 404, 429]),
    (["10.0.0.1, unknown", "10.0.0.2, ", "10.0.0.3, _x"], True, [404, 404, 429]),
    # Without trusted proxies the header is anybody's word.
    (["203.0.113.1", "203.0.113.2", "203.0.113.3"], False, [404, 404, 429]),
]


@pytest.mark.parametrize(("sent", "trusted", "expected"), FORWARDED)
async def test_the_address_is_the_clients_as_far_as_proxies_are_trusted(
    settings: Settings, sent: list[str], trusted: bool, expected: list[int]
) -> None:
    limited = replace(
        settings, rate_limit_lookup=RateLimit(2, 60), trusted_proxies=(PROXY,) if trusted else ()
    )
    async with running(limited) as api:
        answers = [await api.get(LOOKUP, headers={"X-Forwarded-For": value}) for value in sent]
        assert [answer.status for answer in answers] == expected


async def test_redis_forgets_a_window_that_has_ended(settings: Settings, redis: Redis) -> None:
    async with running(replace(settings, rate_limit_lookup=RateLimit(2, 60))) as api:
        await api.get(LOOKUP)
        [key] = [name async for name in redis.scan_iter("limit:*")]
        assert 59_000 < await redis.pttl(key) <= 60_000


async def test_the_window_in_the_memory_of_a_process_ends_too(
    settings: Settings, database: asyncpg.Connection
) -> None:
    away = replace(settings, redis_url="redis://127.0.0.1:1", rate_limit_login=RateLimit(1, 3600))
    async with running(away) as api:
        answers = [await api.log_in("nobody@example.com", PASSWORD) for _ in range(2)]
        assert [answer.status for answer in answers] == [401, 429]
        assert answers[1].headers["Retry-After"] == "3600"
        api.clock.ahead = timedelta(seconds=3601)
        assert (await api.log_in("nobody@example.com", PASSWORD)).status == 401


async def test_guessing_from_elsewhere_locks_nobody_out(settings: Settings) -> None:
    """Neither from one address nor from many, wherever the owner signs in."""
    limited = replace(settings, rate_limit_login=RateLimit(7, 60), trusted_proxies=(PROXY,))
    async with running(limited) as api:
        anna = "anna@example.com"

        async def log_in(address: str, password: str = PASSWORD) -> int:
            body = {"email": anna, "password": password}
            headers = {"X-Forwarded-For": address}
            return (await api.post("/auth/login", body, headers=headers)).status

        await api.register(anna)
        assert await log_in("203.0.113.1") == 200
        guesses = [await log_in("198.51.100.1", "wrong") for _ in range(9)]
        assert guesses == [401] * 5 + [429] * 4
        guesses = [await log_in(f"198.51.100.{number}", "wrong") for number in range(2, 6)]
        assert guesses == [401] * 4
        assert await log_in("203.0.113.1") == 200
        assert await log_in("203.0.113.2") == 200


async def test_windows_of_users_and_emails_are_not_shown(settings: Settings) -> None:
    limited = replace(
        settings, rate_limit_verification=RateLimit(2, 60), rate_limit_mail=RateLimit(2, 60)
    )
    async with running(limited) as api:
        anna = await api.new_person("anna@example.com")
        for left in (1, 0):
            answer = await api.get("/email-verification/bert@example.com", by=anna)
            assert answer.headers["RateLimit-Policy"] == '"verification";q=2;w=60'
            assert answer.headers["RateLimit"] == f'"verification";r={left};t=60'
        for left, email in ((1, "anna@example.com"), (0, "nobody@example.com")):
            answer = await api.post("/auth/password/forgot", {"email": email})
            assert answer.headers["RateLimit-Policy"] == '"mail";q=2;w=60'
            assert answer.headers["RateLimit"] == f'"mail";r={left};t=60'


# What a signed-in user changes.

DAYS = {"expires_in_days": 7}


async def test_what_a_user_changes_is_limited_in_all_sessions_together(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with running(replace(settings, rate_limit_write=RateLimit(3, 60))) as api:
        await api.register("anna@example.com")
        await database.execute("UPDATE users SET role = 'admin'")
        anna = await api.signed_in("anna@example.com")
        elsewhere = await api.signed_in(anna.email)
        for left, person in ((2, anna), (1, elsewhere), (0, anna)):
            answer = await api.put("/referral-code", DAYS, by=person)
            assert answer.status in {200, 201}
            assert answer.headers["RateLimit-Policy"] == '"write";q=3;w=60'
            assert answer.headers["RateLimit"] == f'"write";r={left};t=60'
        for method, path in WRITES:
            answer = await api.call(method, path, {}, by=elsewhere)
            assert_problem(answer, 429, "too-many-requests")
            assert answer.headers["RateLimit"] == '"write";r=0;t=60'
            assert answer.headers["Retry-After"] == "60"
        bert = await api.new_person()
        assert (await api.put("/referral-code", DAYS, by=bert)).status == 201


ENDING_SESSIONS = {
    ("POST", "/api/v1/auth/logout"),
    ("DELETE", "/api/v1/auth/sessions"),
    ("DELETE", "/api/v1/auth/sessions/{session_id}"),
}
WRITES = [
    (method, path.removeprefix("/api/v1").format(user_id=UUID(int=0), identity_id=UUID(int=0)))
    for (method, path), scope in sorted(SCOPE_OF.items())
    if method != "GET"
    and (method, path) not in ENDING_SESSIONS
    # Those of clients refuse a user, before anything is counted.
    and scope not in FOR_CLIENTS - {Scope.ADMIN}
]


async def test_reading_and_signing_out_are_no_writes(settings: Settings) -> None:
    """Or a thief would keep the owner from ending the thief's session."""
    async with running(replace(settings, rate_limit_write=RateLimit(1, 60))) as api:
        anna = await api.new_person("anna@example.com")
        elsewhere = [await api.signed_in(anna.email) for _ in range(2)]
        assert (await api.put("/referral-code", DAYS, by=anna)).status == 201
        assert (await api.delete("/referral-code", by=anna)).status == 429
        for path in ("/users/me", "/referral-code", "/auth/sessions", "/referrals/me"):
            assert (await api.get(path, by=anna)).status == 200
        assert (await api.post("/auth/logout", by=elsewhere[0])).status == 204
        newest = (await api.get("/auth/sessions", by=anna)).json()["items"][0]
        assert (await api.delete(f"/auth/sessions/{newest['id']}", by=anna)).status == 204
        assert (await api.delete("/auth/sessions", by=anna)).status == 204


async def test_a_write_that_the_token_does_not_allow_uses_up_nobodys_limit(
    settings: Settings,
) -> None:
    async with running(replace(settings, rate_limit_write=RateLimit(1, 60))) as api:
        anna = await api.new_person("anna@example.com")
        ended = await api.signed_in(anna.email)
        await api.post("/auth/logout", by=ended)
        for token in (ended.access_token, "nonsense", anna.refresh_token):
            assert (await api.put("/referral-code", DAYS, by=token)).status == 401
        assert (await api.patch(f"/admin/users/{anna.user_id}", {}, by=anna)).status == 403
        foreign = await (await new_application(api)).tokens_of(anna)
        refused = await api.delete("/users/me", {}, by=foreign["access_token"])
        assert_problem(refused, 403, "not-allowed")
        assert (await api.put("/referral-code", DAYS, by=anna)).status == 201


async def test_of_20_writes_at_one_instant_as_many_are_done_as_the_limit_allows(
    settings: Settings,
) -> None:
    async with running(replace(settings, rate_limit_write=RateLimit(5, 60))) as api:
        anna = await api.new_person("anna@example.com")
        answers = await asyncio.gather(
            *(api.put("/referral-code", DAYS, by=anna) for _ in range(20))
        )
        assert sorted(answer.status for answer in answers) == [*[200] * 4, 201, *[429] * 15]


async def test_writes_are_limited_while_redis_is_away(
    settings: Settings, database: asyncpg.Connection
) -> None:
    away = replace(settings, redis_url="redis://127.0.0.1:1", rate_limit_write=RateLimit(1, 60))
    async with running(away) as api:
        anna = await api.new_person("anna@example.com")
        answers = [await api.put("/referral-code", DAYS, by=anna) for _ in range(2)]
        assert [answer.status for answer in answers] == [201, 429]


async def test_the_document_says_which_writes_are_limited(api: Api) -> None:
    paths = (await api.get("//openapi.json")).json()["paths"]
    for method, path in SCOPE_OF:
        if method != "GET":
            responses = paths[path][method.lower()]["responses"]
            assert ("429" in responses) is ((method, path) not in ENDING_SESSIONS)
