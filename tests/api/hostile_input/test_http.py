"""Hostile HTTP: sizes, media types, framing, headers, paths and queries."""

import asyncio
import gzip
import json
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import asyncpg
import pytest

from service.api.http.problems import CONTENT_TYPE
from service.domain.pages import Cursor
from tests.api.assertions import assert_problem
from tests.api.hostile_input.conftest import API, CALLS, KIB_16, assert_refused, post_text
from tests.api.wire import json_request, request, send
from tests.factories import PASSWORD, Api, Person


async def test_a_body_over_16_kib_is_too_large(api: Api, anna: Person) -> None:
    for call in CALLS:
        for size in (KIB_16 + 1, 100 * 1024):
            body = json.dumps(call.body).encode()
            answer = await post_text(api, call, body + b" " * (size - len(body)), anna)
            assert_problem(answer, 413, "body-too-large")


async def test_a_body_of_16_kib_is_not_too_large(api: Api) -> None:
    body = json.dumps({"email": "anna@example.com", "password": PASSWORD}).encode()
    answer = await api.post(
        "/auth/register",
        data=body + b" " * (KIB_16 - len(body)),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status == 201


async def test_chunks_that_add_up_to_more_than_16_kib_are_too_large(api: Api) -> None:
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    headers = [b"Content-Type: application/json", b"Transfer-Encoding: chunked"]
    raw = request("POST", f"{API}/auth/login", headers, chunk * 18 + b"0\r\n\r\n")
    assert_problem(await send(api, raw), 413, "body-too-large")


async def test_another_media_type_is_not_supported(api: Api, anna: Person) -> None:
    for call in CALLS:
        for media_type in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/octet-stream",
            "application/jsonp",
            "x",
            ";;;",
            "application/json; charset=latin-1",
            "application/json; charset=rot13",
            'application/json; charset="',
        ):
            answer = await api.call(
                call.method, call.path, by=anna, data=b"{}", headers={"Content-Type": media_type}
            )
            assert answer.status == 415, (call.path, media_type)
            assert_problem(answer, 415, "unsupported-media-type")


async def test_a_body_without_a_media_type_is_not_supported(api: Api) -> None:
    raw = request("POST", f"{API}/auth/login", [b"Content-Length: 2"], b"{}")
    assert_problem(await send(api, raw), 415, "unsupported-media-type")


@pytest.mark.parametrize("media_type", ["application/json; charset=UTF-8", "Application/JSON"])
async def test_json_in_utf_8_is_supported_however_it_is_called(api: Api, media_type: str) -> None:
    body = json.dumps({"email": "anna@example.com", "password": PASSWORD}).encode()
    answer = await api.post("/auth/register", data=body, headers={"Content-Type": media_type})
    assert answer.status == 201


async def test_a_compressed_body_is_refused_and_not_unpacked(api: Api) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    for encoding, body in [
        ("gzip", gzip.compress(b"{}")),
        ("gzip", bomb),
        ("gzip", b"not gzip"),
        ("deflate", b"\xff"),
        ("br", b"\xff"),
        ("zstd", b"\xff"),
        ("gzip, gzip", gzip.compress(b"{}")),
        ("nonsense", b"{}"),
    ]:
        headers = [
            b"Content-Type: application/json",
            b"Content-Encoding: " + encoding.encode(),
            b"Content-Length: %d" % len(body),
        ]
        answer = await send(api, request("POST", f"{API}/auth/login", headers, body))
        assert_problem(answer, 415, "unsupported-media-type")


@pytest.mark.parametrize("expectation", [b"100-continue", b"100-CONTINUE", b"a-miracle", b""])
async def test_an_expectation_is_met_or_ignored(api: Api, anna: Person, expectation: bytes) -> None:
    login = {"email": anna.email, "password": PASSWORD}
    raw = json_request("POST", f"{API}/auth/login", login, [b"Expect: " + expectation])
    assert (await send(api, raw)).status == 200
    nowhere = await send(api, request("GET", "/nowhere", [b"Expect: " + expectation]))
    assert_problem(nowhere, 404, "not-found")


async def test_a_client_of_http_1_0_is_never_told_to_continue(api: Api) -> None:
    raw = b"GET /api/v1/codes/NOPE HTTP/1.0\r\nHost: localhost\r\nExpect: 100-continue\r\n\r\n"
    assert_problem(await send(api, raw), 404, "referral-code-not-found")


async def test_a_client_that_waits_with_its_body_is_asked_for_it(api: Api, anna: Person) -> None:
    login = {"email": anna.email, "password": PASSWORD}
    raw = json_request("POST", f"{API}/auth/login", login, [b"Expect: 100-continue"])
    head, end, body = raw.partition(b"\r\n\r\n")
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(*api.address)
        writer.write(head + end)
        assert await reader.readuntil(end) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()


NOT_HTTP: Final = {
    "words": b"Good morning\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "NULs": b"\x00" * 100 + b"\r\n\r\n",
    "a version of its own": b"GET / HTTP/9.9\r\n\r\n",
    "a target with a space": b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target with a byte over 127": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
    "a header name with a space": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "a header value with a NUL": b"GET / HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n",
    "a header value with a CR": b"GET / HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n",
    "a negative length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a length in words": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n..",
    "a length and chunks": b"POST / HTTP/1.1\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a long method": b"G" * 20_000 + b" / HTTP/1.1\r\nHost: x\r\n\r\n",
    "PRI of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


async def test_what_is_no_http_is_answered_with_a_problem(api: Api) -> None:
    for name, raw in NOT_HTTP.items():
        answer = await send(api, raw)
        assert answer.status == 400, (name, answer.body)
        assert_problem(answer, 400, "bad-request")
        assert answer.headers["Server"] == "referrals"


TOO_LONG: Final = {
    "a header": ([b"X: " + b"a" * 20_000], "/health/live", 431, "headers-too-large"),
    "a header's name": ([b"a" * 9000 + b": x"], "/health/live", 431, "headers-too-large"),
    "a cookie of 9 kB": ([b"Cookie: a=" + b"b" * 9000], "/health/live", 431, "headers-too-large"),
    "a token": ([b"Authorization: Bearer " + b"a" * 9000], "/x", 431, "headers-too-large"),
    "a header like a path": ([b"X: /" + b"a" * 9000], "/health/live", 431, "headers-too-large"),
    "a path": ([], "/" + "a" * 9000, 414, "uri-too-long"),
    "a query": ([], "/health/live?a=" + "a" * 9000, 414, "uri-too-long"),
    "a path of 20 kB": ([], f"{API}/referral-code/" + "a" * 20_000, 414, "uri-too-long"),
    "an address": ([], "http://localhost/" + "a" * 9000, 414, "uri-too-long"),
}


async def test_what_is_too_long_is_named(api: Api) -> None:
    for name, (headers, target, status, code) in TOO_LONG.items():
        answer = await send(api, request("GET", target, headers))
        assert answer.status == status, (name, answer.body)
        assert_problem(answer, status, code)
    nearly = [b"Cookie: a=" + b"b" * 8000]
    assert (await send(api, request("GET", "/health/live?a=" + "a" * 8000, nearly))).status == 200


async def test_a_thousand_headers_are_no_trouble(api: Api) -> None:
    headers = [b"X-%d: %s" % (number, b"a" * 50) for number in range(1000)]
    answer = await send(api, request("GET", "/health/live", headers))
    assert answer.status in {200, 400}, answer.body


CHUNKS: Final = {
    "a size that is no number": b"zz\r\n{}\r\n0\r\n\r\n",
    "a negative size": b"-2\r\n{}\r\n0\r\n\r\n",
    "a huge size": b"f" * 40 + b"\r\n{}\r\n0\r\n\r\n",
    "more than the size": b"1\r\n{}\r\n0\r\n\r\n",
    "a size with NUL": b"\x002\r\n{}\r\n0\r\n\r\n",
}


async def test_nonsense_in_chunks_is_a_bad_request(api: Api) -> None:
    headers = [b"Content-Type: application/json", b"Transfer-Encoding: chunked"]
    for name, body in CHUNKS.items():
        answer = await send(api, request("POST", f"{API}/auth/login", headers, body))
        assert answer.status == 400, (name, answer.body)
        assert_problem(answer, 400, "bad-request")


BAD_CREDENTIALS: Final = [
    b"",
    b"Bearer",
    b"Bearer ",
    b"Bearer \xff",
    b"Bearer \xff\xfe.\x80.\xed\xa0\x80",
    b"Bearer \xc3\xa9.\xc3\xa9.\xc3\xa9",
    b"Bearer a b",
    b"Bearer ..",
    b"Bearer ....",
    b"Bearer " + b"A" * 3000,
    b"Bearer " + b"." * 3000,
    b"Bearer e30.e30.e30",
    b"Bearer W10.W10.W10",
    b"Bearer bnVsbA.bnVsbA.bnVsbA",
    b"Basic dXNlcjpwYXNz",
    b"\xff",
    b"null",
]


async def test_credentials_of_any_bytes_are_refused(api: Api) -> None:
    for path in ("/users/me", "/referrals/me", "/admin/users", "/referral-code"):
        for value in BAD_CREDENTIALS:
            raw = request("GET", API + path, [b"Authorization: " + value])
            answer = await send(api, raw)
            assert answer.status == 401, (path, value, answer.body)
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


JUNK_HEADERS: Final = [
    b"X-Request-Id",
    b"Accept-Language",
    b"User-Agent",
    b"Origin",
    b"X-Forwarded-For",
    b"Forwarded",
    b"Cookie",
    b"Referer",
    b"If-None-Match",
    b"Range",
    b"Accept-Encoding",
    b"Connection",
]
JUNK_VALUES: Final = [b"\xff\xfe", b"", b"\xed\xa0\x80", b"a" * 4000, b'"', b",;=", b"999.9.9.9"]


async def test_junk_in_a_header_keeps_nobody_from_signing_in(api: Api, anna: Person) -> None:
    login = {"email": anna.email, "password": PASSWORD}
    for name in JUNK_HEADERS:
        for value in JUNK_VALUES:
            raw = json_request("POST", f"{API}/auth/login", login, [name + b": " + value])
            answer = await send(api, raw)
            assert answer.status == 200, (name, value, answer.body)
    sessions = await api.get("/auth/sessions?limit=100", by=anna)
    assert len(sessions.json()["items"]) == 1 + len(JUNK_HEADERS) * len(JUNK_VALUES)


@pytest.mark.parametrize("key", [b"\xff", b"", b"a" * 256, b"two words", b"\xc3\xa9", b"a\tb"])
async def test_a_malformed_idempotency_key_is_a_bad_request(
    api: Api, database: asyncpg.Connection, key: bytes
) -> None:
    body = {"email": "anna@example.com", "password": PASSWORD}
    raw = json_request("POST", f"{API}/auth/register", body, [b"Idempotency-Key: " + key])
    assert_problem(await send(api, raw), 400, "bad-request")
    assert await database.fetchval("SELECT count(*) FROM users") == 0


JUNK: Final = [
    *("%00", "%FF", "%ED%A0%80", "%C0%AF", "%0d%0aX-Evil:%201", "%25", "%2F", "%2e%2e", "%", "%zz"),
    *("a" * 3000, "%F0%9F%99%82", "%20", "*", "'%20OR%201=1--", "9" * 400, "-1", "null", "%5C"),
    *("a@", "@", "a@b@c", "a%0a@example.com", "%EF%BC%A0", "a%2fb@example.com", "a@%00.com"),
    *("x@" + "a" * 300 + ".com", "x@xn--.com", "x@[127.0.0.1]", "%FF@example.com", "a@%FF.com"),
]


async def test_junk_in_an_address_is_not_found(api: Api, anna: Person, admin: Person) -> None:
    for junk in JUNK:
        answer = await send(api, request("GET", f"{API}/referral-code/{junk}"))
        assert answer.status == 404, (junk, answer.body)
        assert answer.headers["Content-Type"] == CONTENT_TYPE
        for method, path, person, status in [
            ("GET", f"{API}/referrals/{junk}", anna, 403),
            ("GET", f"{API}/referrals/{junk}", admin, 404),
            ("DELETE", f"{API}/auth/sessions/{junk}", anna, 404),
            ("GET", f"{API}/admin/users/{junk}", anna, 403),
            ("GET", f"{API}/admin/users/{junk}", admin, 404),
            ("GET", f"/problems/{junk}", anna, 404),
            ("GET", f"/docs/assets/{junk}", anna, 404),
            ("GET", f"/{junk}", anna, 404),
        ]:
            credentials = b"Authorization: Bearer " + person.access_token.encode()
            answer = await send(api, request(method, path, [credentials]))
            assert_refused(answer, (method, path))
            assert answer.status in {status, 404}, (method, path, answer.status)


async def test_junk_in_a_query_is_named_or_ignored(api: Api, anna: Person, admin: Person) -> None:
    for query, pointer in {
        "limit=%00": "#/limit",
        "limit=%FF": "#/limit",
        "limit=": "#/limit",
        "limit=0": "#/limit",
        "limit=-1": "#/limit",
        "limit=101": "#/limit",
        "limit=1.5": "#/limit",
        "limit=1e1": "#/limit",
        "limit=1_0": "#/limit",
        "limit=%2B1": "#/limit",
        "limit=%201": "#/limit",
        "limit=%D9%A1%D9%A2": "#/limit",  # Arabic digits
        f"limit={'9' * 5000}": "#/limit",
        "limit=99999999999999999999": "#/limit",
        "cursor=%FF": "#/cursor",
        "cursor=%00": "#/cursor",
        "cursor=AAAA": "#/cursor",
        f"cursor={'A' * 5000}": "#/cursor",
        f"cursor={'_' * 32}": "#/cursor",
        "cursor=%C3%A9": "#/cursor",
    }.items():
        for path, person in [
            ("/referrals/me", anna),
            ("/auth/sessions", anna),
            ("/admin/users", admin),
        ]:
            credentials = b"Authorization: Bearer " + person.access_token.encode()
            answer = await send(api, request("GET", f"{API}{path}?{query}", [credentials]))
            assert answer.status == 422, (path, query, answer.body)
            assert_problem(answer, 422, "validation-failed", [pointer])
    for query in ("unknown=1", "&&&=", "%FF=%FF", "limit=1&limit=2", "limit[]=1"):
        credentials = b"Authorization: Bearer " + anna.access_token.encode()
        answer = await send(api, request("GET", f"{API}/referrals/me?{query}", [credentials]))
        assert answer.status == 200, (query, answer.body)


async def test_no_list_takes_the_cursor_of_another(api: Api, admin: Person) -> None:
    """All take one without a prefix: they may come from a release that gave none."""
    # The bytes are a place in a list of balances, too.
    place = Cursor(datetime(2026, 11, 21, tzinfo=UTC), UUID(bytes=b"an id and a unit")).encode()
    document = (await api.get("//openapi.json")).json()
    prefixes: dict[str, str] = {}
    for path, operations in document["paths"].items():
        parameters = operations.get("get", {}).get("parameters", [])
        if any(parameter["name"] == "cursor" for parameter in parameters):
            url = "/" + path.format(referrer_id="me", endpoint_id=admin.user_id)
            schema = operations["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            prefixes[url] = schema["$ref"].rpartition("/")[2]
    assert len(set(prefixes.values())) == len(prefixes) > 10
    for url, own in prefixes.items():
        for prefix in {*prefixes.values(), ""} - {own}:
            answer = await api.get(f"{url}?cursor={prefix}.{place}", by=admin)
            assert_problem(answer, 422, "validation-failed", ["#/cursor"])
        for cursor in (f"{own}.{place}", place):
            answer = await api.get(f"{url}?cursor={cursor}", by=admin)
            assert answer.status == (404 if "deliveries" in url else 200), answer.body


async def test_a_cursor_of_any_place_in_time_is_harmless(api: Api, anna: Person) -> None:
    for cursor in ("A" * 32, "AAAAAAAAAAB" + "A" * 21, "__________8" + "A" * 21):
        answer = await api.get(f"/referrals/me?cursor={cursor}", by=anna)
        assert answer.status in {200, 422}, answer.body
