"""Mangled requests without end: none is a failure of the service, none leaves memory behind.

For FUZZ_SECONDS, or a short while; FUZZ_SEED repeats a run.
"""

import asyncio
import json
import os
import random
import secrets
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Final

from service.domain.clock import moment_text
from tests.e2e.company import new_company
from tests.e2e.processes import Service, service_process
from tests.e2e.test_serving import resident_mib
from tests.factories import PASSWORD

SECONDS: Final = float(os.environ.get("FUZZ_SECONDS", "8"))
SEED: Final = int(os.environ.get("FUZZ_SEED", secrets.randbelow(1_000_000)))
MOST_GROWTH: Final = 64
"""MiB by which the process may grow once it is warm; what is left behind would grow for ever."""
PIECES: Final = [
    *(b"\0", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"%00", b"%ff", b"%", b"%u0000", b"\r", b"\n"),
    *(b"\r\n", b" ", b"\t", b"'", b'"', b"\\", b"\\u0000", b"\\ud800", b"{", b"}", b"[", b"]"),
    *(b"[" * 3000, b'{"a":' * 2000, b"0" * 5000, b"A" * 9000, b"1e999", b"-0", b"NaN", b"null"),
    *(
        b"9223372036854775808",
        b"-1",
        b"1.5",
        b"true",
        b"\xf0\x9f\x92\xa9",
        "é".encode(),
        b"..",
        b"/",
    ),
    *(b"9999-12-31T23:59:59Z", b"0001-01-01T00:00:00+23:59", b"2026-02-30T00:00:00Z", b"@", b"."),
    *(
        b"chunked",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"\r\n\r\n",
        b"0\r\n",
    ),
]
Mangle = Callable[[bytes, random.Random], bytes]


def cut(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data) + 1)
    return data[:begin] + data[begin + rng.randint(0, 20) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(PIECES) + data[at:]


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data)) if data else 0
    return data[:at] + rng.randbytes(1) + data[at + 1 :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data) + 1)
    return data[:begin] + data[begin : begin + 30] * rng.randint(2, 40) + data[begin + 30 :]


def mangled(data: bytes, rng: random.Random) -> bytes:
    ways: list[Mangle] = [cut, insert, flip, repeat]
    for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
        data = rng.choice(ways)(data, rng)
    return data


class Requests:
    """Requests that are right, but for one part."""

    def __init__(self, service: Service, rng: random.Random) -> None:
        self._rng = rng
        self._url = f"{service.url}/api/v1"
        account = {"email": "anna@example.com", "password": PASSWORD}
        self._post("/auth/register", account, {})
        self._tokens = self._post("/auth/login", account, {})
        # Of another session: refreshed twice with one token it ends.
        others = self._post("/auth/login", account, {})
        bearer = {"Authorization": f"Bearer {self._tokens['access_token']}"}
        self._post("/referral-code", {"expires_in_days": 7}, bearer)
        self._cursor = b"eyJhdCI6MX0"
        company, known = new_company(service)
        self._company = b"Authorization: " + company.encode()
        participant = f"/api/v1/participants/{known['participant_id']}".encode()
        self._bodies: list[tuple[bytes, bytes, Any]] = [
            (b"POST", b"/api/v1/auth/register", {**account, "referral_code": "ABCD-1234"}),
            (b"POST", b"/api/v1/auth/login", account),
            (b"POST", b"/api/v1/auth/refresh", {"refresh_token": others["refresh_token"]}),
            (
                b"PUT",
                b"/api/v1/referral-code",
                {"expires_at": "2027-01-01T00:00:00Z", "max_uses": 5},
            ),
            (b"POST", b"/api/v1/referral-code", {"expires_in_days": 3, "code": "SPRING-2027"}),
            (b"PATCH", b"/api/v1/referral-code", {"expires_in_days": 5, "max_uses": 7}),
            (
                b"POST",
                b"/api/v1/auth/password/change",
                {"current_password": "x", "new_password": "y"},
            ),
            (b"DELETE", b"/api/v1/users/me", {"password": "not this one"}),
        ]
        self._reports: list[tuple[bytes, bytes, Any]] = [
            (
                b"POST",
                b"/api/v1/participants",
                {"external_id": "u-1", "email": "a@example.com", "ip": "192.0.2.1"},
            ),
            (
                b"POST",
                b"/api/v1/participants",
                {"external_id": "u-3", "code": {"code": "U-3-2027", "expires_in_days": 9}},
            ),
            (b"PATCH", participant, {"trusted": True, "public_name": "Anna"}),
            (b"PUT", participant + b"/code", {"expires_in_days": 9, "max_uses": 5}),
            (
                b"POST",
                b"/api/v1/referrals",
                {"code": known["code"], "external_id": "u-2", "clicked_at": _ago(2)},
            ),
            (
                b"POST",
                b"/api/v1/events",
                {"id": "order-1", "type": "purchase", "external_id": "u-2", "amount": 4900}
                | {"unit": "EUR", "occurred_at": _ago(1)},
            ),
            (
                b"POST",
                b"/api/v1/events",
                {"id": "refund-1", "type": "refund", "refunds": "order-1", "external_id": "u-2"},
            ),
            (
                b"PUT",
                b"/api/v1/programmes/shop/rules",
                {"version": 9, "rules": {"qualify": {"on": "purchase", "within_days": 30}}},
            ),
            (
                b"POST",
                b"/api/v1/programmes/shop/rules/try",
                {
                    "rules": {"qualify": {"on": "purchase"}},
                    "referral": {"registered_at": _ago(2)},
                    "events": [{"id": "order-1", "type": "purchase"}],
                },
            ),
            (
                b"POST",
                b"/api/v1/referees/%s/decisions" % known["referral_id"].encode(),
                {"decision": "reject", "reason": "The same person."},
            ),
        ]
        self._reads = [
            b"/api/v1/participants?external_id=u-1",
            participant,
            b"/api/v1/programmes/shop/rules/1",
            b"/api/v1/referees/" + known["referral_id"].encode(),
            b"/api/v1/referrals?state=pending&limit=5&cursor=" + self._cursor,
        ]
        self._targets = [
            b"/api/v1/referral-code/anna%40example.com",
            b"/api/v1/referral-codes?limit=5&cursor=" + self._cursor,
            b"/api/v1/codes/SPRING-2027",
            b"/api/v1/referrals/me?limit=20&cursor=" + self._cursor,
            b"/api/v1/auth/sessions?limit=5&cursor=" + self._cursor,
            b"/api/v1/users/me",
            b"/api/v1/auth/providers/google/callback?state=abc&code=def",
            b"/oauth/authorize?response_type=code&client_id=swagger-ui&state=x&code_challenge=y",
            b"/problems/not-found",
            b"/docs",
        ]

    def _post(self, path: str, body: Any, headers: dict[str, str]) -> Any:
        sent = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(self._url + path, json.dumps(body).encode(), sent)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def next(self) -> bytes:
        rng = self._rng
        token = self._tokens["access_token"].encode()
        by_company = rng.random() < 0.4
        bodies = self._reports if by_company else self._bodies
        method, body = b"GET", b""
        target = rng.choice(self._reads if by_company else self._targets)
        authorization = self._company if by_company else b"Authorization: Bearer " + token
        headers = [b"Host: localhost", authorization]
        part = rng.choice(["target", "header", "token", "body", "body", "form", "everything"])
        if part in {"body", "everything"}:
            method, target, document = rng.choice(bodies)
            body = mangled(json.dumps(document).encode(), rng)
            headers += [
                b"Content-Type: application/json",
                b"Idempotency-Key: " + rng.randbytes(4).hex().encode(),
            ]
        elif part == "form":
            method, target = (
                b"POST",
                rng.choice([b"/oauth/token", b"/oauth/revoke", b"/oauth/authorize"]),
            )
            body = mangled(
                b"grant_type=refresh_token&client_id=swagger-ui&refresh_token=abc&token=x", rng
            )
            headers.append(b"Content-Type: application/x-www-form-urlencoded")
        elif part == "target":
            target = mangled(target, rng)
        elif part == "token":
            name, _, value = authorization.partition(b" ")
            headers[1] = name + b" " + mangled(value, rng)
        else:
            names = [
                b"Cookie",
                b"Accept",
                b"Origin",
                b"X-Request-Id",
                b"X-Forwarded-For",
                b"User-Agent",
            ]
            headers.append(mangled(rng.choice(names) + b": a=b, */*;q=0.5, 10.0.0.1", rng))
        headers += [b"Content-Length: %d" % len(body), b"Connection: close"]
        request = (
            method + b" " + target + b" HTTP/1.1\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body
        )
        return mangled(request, rng) if part == "everything" else request


def _ago(hours: int) -> str:
    return moment_text(datetime.now(UTC) - timedelta(hours=hours))


async def status_of(service: Service, request: bytes) -> int | None:
    """Return the status of the answer, None where the connection ends or waits without one."""
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        # What the service waits for never comes: a part of a request is none.
        async with asyncio.timeout(0.5):
            line = await reader.readline()
    except (TimeoutError, OSError):
        return None
    finally:
        writer.transport.abort()
    return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else None


async def test_no_mangled_request_is_a_failure_of_the_service(environment: dict[str, str]) -> None:
    print(f"FUZZ_SEED={SEED}")
    with service_process(environment, LOG_LEVEL="error") as service:
        requests = Requests(service, random.Random(SEED))
        warm_at, end = monotonic() + SECONDS / 2, monotonic() + SECONDS
        warm: int | None = None
        told: dict[int | None, int] = {}
        while monotonic() < end:
            batch = [requests.next() for _ in range(20)]
            for request, status in zip(
                batch,
                await asyncio.gather(*(status_of(service, one) for one in batch)),
                strict=True,
            ):
                assert status is None or status < 500 or status == 503, request
                told[status] = told.get(status, 0) + 1
            if warm is None and monotonic() > warm_at:
                warm = resident_mib(service.process.pid)
        assert warm is not None
        assert resident_mib(service.process.pid) < warm + MOST_GROWTH
        print(dict(sorted(told.items(), key=str)), warm, resident_mib(service.process.pid))
    assert {200, 400, 401, 404, 422} <= set(told), told
