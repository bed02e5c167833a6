"""Hostile bytes are input too: whatever comes, the answer is a problem of the client's making.

Tables rather than parameters, because one service answers a thousand of them in a second.
"""

import gzip
import json
import logging
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import asyncpg
import pytest

from service.api.http.problem_types import PROBLEM_TYPES
from service.api.http.problems import CONTENT_TYPE
from tests.api.assertions import assert_problem
from tests.api.wire import json_request, request, send
from tests.factories import PASSWORD, Answer, Api, Person, new_email

API: Final = "/api/v1"
KIB_16: Final = 16 * 1024
LATIN_1: Final = '{"email": "é"}'.encode("latin-1")
UTF_16: Final = '{"email": "a"}'.encode("utf-16")


class Call(NamedTuple):
    """A call with a body, and a body that has the right shape."""

    method: str
    path: str
    body: dict[str, Any]
    optional: frozenset[str] = frozenset()


CALLS: Final = [
    Call(
        "POST",
        "/auth/register",
        {"email": "x@example.com", "password": PASSWORD, "referral_code": "NONE"},
        frozenset({"referral_code"}),
    ),
    Call("POST", "/auth/login", {"email": "x@example.com", "password": PASSWORD}),
    Call("POST", "/auth/refresh", {"refresh_token": "x"}),
    Call("POST", "/auth/password/change", {"current_password": "x", "new_password": PASSWORD}),
    Call("DELETE", "/users/me", {"password": "x"}),
    Call("POST", "/referral-code", {"expires_at": "2001-01-01T00:00:00Z", "code": "ABCD"}),
    Call("PUT", "/referral-code", {"expires_at": "2001-01-01T00:00:00Z", "code": "ABCD"}),
    Call(
        "PATCH",
        "/referral-code",
        {"expires_at": "2001-01-01T00:00:00Z"},
        frozenset({"expires_at"}),
    ),
]


@pytest.fixture(autouse=True)
def nothing_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No log line of the service afterwards has a traceback or is an error."""
    yield
    failures = [
        record
        for phase in ("setup", "call")
        for record in caplog.get_records(phase)
        if record.exc_info or (record.levelno >= logging.ERROR and record.name != "asyncio")
    ]
    assert failures == []


def assert_refused(answer: Answer, told: object) -> None:
    """The answer is one of the 4xx problems."""
    assert 400 <= answer.status < 500, (told, answer.status, answer.body)
    assert answer.headers["Content-Type"] == CONTENT_TYPE, told
    assert PROBLEM_TYPES[answer.json()["code"]].status == answer.status, told
    assert answer.headers["X-Request-Id"] == answer.json()["request_id"], told


async def post_text(api: Api, call: Call, text: str | bytes, by: Person) -> Answer:
    """Send the call with exactly this text for a body."""
    return await api.call(
        call.method,
        call.path,
        by=by,
        data=text.encode() if isinstance(text, str) else text,
        headers={"Content-Type": "application/json"},
    )


def with_literal(body: dict[str, Any], member: str, literal: str) -> str:
    """Return the body as JSON, with `literal` as it stands for the value of a member."""
    members = [f'"{name}": {json.dumps(value)}' for name, value in body.items() if name != member]
    return "{" + ", ".join([*members, f'"{member}": {literal}']) + "}"


WRONG_TYPES: Final = {
    "integer": "5",
    "huge": "1" + "0" * 400,
    "fraction": "1.5",
    "infinite": "1e400",
    "true": "true",
    "false": "false",
    "list": '["a"]',
    "object": '{"$ne": ""}',
    "deep": "[" * 200 + "]" * 200,
    "half a surrogate pair": '"\\ud800"',
    "the other half": '"\\udc00abcdefgh"',
    "halves in the wrong order": '"abcdefgh\\udc00\\ud800"',
}

NASTY_TEXTS: Final = {
    "empty": '""',
    "space": '" "',
    "5000 characters": json.dumps("x7-Q" * 1250),
    "NUL": '"\\u0000"',
    "NUL inside": '"abcd\\u0000efgh"',
    "NUL in an e-mail": '"a\\u0000@example.com"',
    "surrogate in an e-mail": '"a\\ud800@example.com"',
    "bell": '"\\u0007"',
    "right to left": '"\\u202e\\u2066"',
    "SQL": '"\' OR 1=1; --"',
    "format": '"%s%n{0}{{7*7}}${x}"',
    "newline": '"a\\r\\nX-Evil: 1"',
}


async def test_a_member_of_the_wrong_type_is_named(api: Api, anna: Person) -> None:
    for call in CALLS:
        for member in call.body:
            for name, literal in WRONG_TYPES.items():
                answer = await post_text(api, call, with_literal(call.body, member, literal), anna)
                assert answer.status == 422, (call, member, name, answer.body)
                assert answer.json()["code"] == "validation-failed"
                pointers = [error["pointer"] for error in answer.json()["errors"]]
                assert f"#/{member}" in pointers, (call, name, pointers)


async def test_nothing_where_something_is_required_is_named(api: Api, anna: Person) -> None:
    for call in CALLS:
        for member in set(call.body) - call.optional - {"code"}:
            null = await post_text(api, call, with_literal(call.body, member, "null"), anna)
            assert_problem(null, 422, "validation-failed", [f"#/{member}"])
            left_out = {name: value for name, value in call.body.items() if name != member}
            answer = await api.call(call.method, call.path, left_out, by=anna)
            assert_problem(answer, 422, "validation-failed", [f"#/{member}"])


async def test_a_nasty_text_is_refused_and_found_nowhere(
    api: Api, anna: Person, database: asyncpg.Connection
) -> None:
    for call in CALLS:
        for member in call.body:
            for name, literal in NASTY_TEXTS.items():
                if member == "referral_code" and name in {"empty", "space"}:
                    continue  # which is no code
                text = with_literal({**call.body, "email": new_email()}, member, literal)
                if "email" not in call.body:
                    text = with_literal(call.body, member, literal)
                answer = await post_text(api, call, text, anna)
                assert_refused(answer, (call.path, member, name))
    assert await database.fetchval("SELECT count(*) FROM users") == 1
    assert (await api.get("/users/me", by=anna)).status == 200


NOT_JSON: Final = {
    "empty": b"",
    "space": b"  ",
    "unfinished": b"{",
    "single quotes": b"{'email': 'a'}",
    "trailing comma": b'{"a": 1,}',
    "trailing words": b'{"a": 1} x',
    "comment": b"{/* */}",
    "form": b"email=a&password=b",
    "NUL": b"\x00",
    "newline in a string": b'{"email": "a\nb"}',
    "bad escape": b'{"email": "\\x41"}',
    "not UTF-8": b'{"email": "\xff\xfe"}',
    "overlong UTF-8": b'{"email": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"email": "\xed\xa0\x80"}',
    "unfinished UTF-8": b'{"email": "\xe2\x82"}',
    "Latin-1": LATIN_1,
    "UTF-16": UTF_16,
    "NaN": b'{"email": NaN}',
    "-Infinity": b'{"email": -Infinity}',
    "5000 digits": b'{"max_uses": 1' + b"0" * 5000 + b"}",
    "deeper than the stack, unfinished": b'{"a":' * 3000,
}


async def test_a_body_that_is_no_json_is_a_bad_request(api: Api, anna: Person) -> None:
    for call in CALLS:
        for name, body in NOT_JSON.items():
            answer = await post_text(api, call, body, anna)
            assert answer.status == 400, (call.path, name, answer.body)
            assert_problem(answer, 400, "bad-request")


async def test_brackets_deeper_than_the_stack_are_refused(api: Api, anna: Person) -> None:
    """Python 3.11 gives up reading them, later ones find that they are no object."""
    for call in CALLS:
        answer = await post_text(api, call, b"[" * 8000 + b"]" * 8000, anna)
        assert answer.status in {400, 422}, (call.path, answer.body)


async def test_json_that_is_no_object_is_refused(api: Api, anna: Person) -> None:
    for call in CALLS:
        for text in ("[]", "[{}]", '"text"', "5", "1.5", "null", "true"):
            answer = await post_text(api, call, text, anna)
            assert_problem(answer, 422, "validation-failed", ["#"])


async def test_members_that_nobody_knows_are_named(api: Api, anna: Person) -> None:
    for call in CALLS:
        for name, pointer in {
            "is_admin": "#/is_admin",
            "__proto__": "#/__proto__",
            "a/b~c": "#/a~1b~0c",
            "\0": "#/\0",
            "": "#/",
        }.items():
            answer = await api.call(call.method, call.path, {**call.body, name: 1}, by=anna)
            pointers = [error["pointer"] for error in answer.json()["errors"]]
            assert answer.status == 422, call
            assert pointers.count(pointer) == 1, call  # beside rules that the body breaks
        half = with_literal(call.body, "\\ud800", "1")
        assert_refused(await post_text(api, call, half, anna), call)


async def test_a_member_that_is_there_twice_is_named(api: Api, anna: Person) -> None:
    """One of the two would be taken, and another program may take the other one."""
    for call in CALLS:
        for member, value in call.body.items():
            for literal in (json.dumps(value), '"another"'):
                text = json.dumps(call.body)[:-1] + f', "{member}": {literal}}}'
                answer = await post_text(api, call, text, anna)
                assert answer.status == 422, (call, member, answer.body)
                pointers = [error["pointer"] for error in answer.json()["errors"]]
                assert f"#/{member}" in pointers, (call, pointers)
    assert (await api.get("/users/me", by=anna)).status == 200


REPEATED: Final = {
    '{"email": "a@example.com", "password": "x", "email": "a@example.com"}': {"#/email"},
    '{"email": "a@example.com", "password": "x", "\\u0065mail": "b"}': {"#/email"},
    '{"email": 5, "email": 6}': {"#/email", "#/password"},
    '{"email": {"a": 1, "a": 2}, "password": "x"}': {"#/email", "#/email/a"},
    '{"email": "a@example.com", "password": [[{"a/b": 1, "a/b": 1}]]}': {
        "#/password",
        "#/password/0/0/a~1b",
    },
    '{"email": "a@example.com", "password": "x", "y": {"z": {"~": 1, "~": {"~": 1, "~": 1}}}}': {
        "#/y",
        "#/y/z/~0",
        "#/y/z/~0/~0",
    },
    '[{"a": 1, "a": 1}]': {"#", "#/0/a"},
}


async def test_so_it_is_at_any_depth(api: Api) -> None:
    for text, pointers in REPEATED.items():
        answer = await api.post(
            "/auth/login", data=text, headers={"Content-Type": "application/json"}
        )
        assert_problem(answer, 422, "validation-failed", sorted(pointers))


async def test_thousands_of_them_take_no_time(api: Api) -> None:
    names = "".join(f'"{number}": 1, ' for number in range(1200))
    for text in (
        f'{{{names}"email": 1, "email": 2}}',
        '{"a": 1, "a": ' * 90 + "1" + "}" * 90,
        '{"b": ' + "[" * 900 + "]" * 900 + ', "a": 1, "a": 1}',
    ):
        answer = await api.post(
            "/auth/login", data=text, headers={"Content-Type": "application/json"}
        )
        assert answer.status == 422, answer.body


async def test_a_byte_order_mark_is_no_part_of_the_document(api: Api, anna: Person) -> None:
    login = json.dumps({"email": anna.email, "password": PASSWORD}).encode()
    headers = {"Content-Type": "application/json"}
    marked = await api.post("/auth/login", data=b"\xef\xbb\xbf" + login, headers=headers)
    assert marked.status == 200
    for body in (b"\xef\xbb\xbf", b"\xef\xbb\xbf" * 2 + login, b"\xef\xbb" + login):
        assert_problem(
            await api.post("/auth/login", data=body, headers=headers), 400, "bad-request"
        )


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


async def test_a_cursor_of_any_place_in_time_is_harmless(api: Api, anna: Person) -> None:
    for cursor in ("A" * 32, "AAAAAAAAAAB" + "A" * 21, "__________8" + "A" * 21):
        answer = await api.get(f"/referrals/me?cursor={cursor}", by=anna)
        assert answer.status in {200, 422}, answer.body
