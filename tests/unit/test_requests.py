"""Reading a request: whose it is, and what its members may be."""

import itertools
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from marshmallow import ValidationError
from multidict import CIMultiDict

from service.api.http import client_address as client_address_module
from service.api.http.client_address import CLIENT_ADDRESSES, ClientAddresses, client_address
from service.api.http.fields import Moment, RequestSchema, Text, TypedCode, WholeNumber
from service.settings import values

CLIENT, OTHER, PROXY, FAR_PROXY = "203.0.113.5", "198.51.100.6", "10.0.0.1", "10.0.0.2"


def app_trusting(networks: str) -> web.Application:
    """Return an application behind these proxies."""
    app = web.Application()
    app[CLIENT_ADDRESSES] = ClientAddresses(values.networks(networks))
    return app


BEHIND_PROXIES = app_trusting("10.0.0.0/8, fd00::/8")
OPEN = app_trusting("")


def address_of(app: web.Application, remote: str | None, *forwarded: str) -> str:
    headers = CIMultiDict([("X-Forwarded-For", value) for value in forwarded])
    request = make_mocked_request("GET", "/", headers, app=app)
    return client_address(request.clone(remote=remote) if remote is not None else request)


@pytest.mark.parametrize(
    ("remote", "forwarded", "address"),
    [
        pytest.param(CLIENT, [], CLIENT, id="nobody in between"),
        pytest.param(CLIENT, [OTHER], CLIENT, id="a client that invents a header"),
        pytest.param(CLIENT, [PROXY], CLIENT, id="a client that says it is a proxy"),
        pytest.param(PROXY, [CLIENT], CLIENT, id="a proxy"),
        pytest.param(PROXY, [f"{OTHER}, {CLIENT}"], CLIENT, id="what was invented before a proxy"),
        pytest.param(PROXY, [OTHER, CLIENT], CLIENT, id="the same in two headers"),
        pytest.param(PROXY, [f"{CLIENT},{FAR_PROXY}"], CLIENT, id="two proxies"),
        pytest.param(PROXY, [CLIENT, FAR_PROXY], CLIENT, id="two proxies with a header each"),
        pytest.param(
            PROXY, [f"{OTHER}, {CLIENT}, {FAR_PROXY}"], CLIENT, id="invented before two proxies"
        ),
        pytest.param(PROXY, [f" {CLIENT}\t"], CLIENT, id="spaces"),
        pytest.param(PROXY, [], PROXY, id="a proxy that says nothing"),
        pytest.param(PROXY, [""], PROXY, id="a proxy that says nothing in a header"),
        pytest.param(PROXY, [FAR_PROXY], FAR_PROXY, id="a request of a proxy itself"),
        pytest.param(PROXY, ["unknown"], PROXY, id="a proxy that does not know"),
        pytest.param(
            PROXY, [f"{OTHER}, unknown"], PROXY, id="invented before a proxy that does not know"
        ),
        pytest.param(PROXY, [f"{OTHER},"], PROXY, id="invented before an empty one"),
        pytest.param(PROXY, [f"{OTHER}, {CLIENT}:4711"], CLIENT, id="a port"),
        pytest.param(PROXY, [f"{CLIENT}:1, {FAR_PROXY}:2"], CLIENT, id="two proxies with ports"),
        pytest.param(PROXY, [f' "{CLIENT}:4711"\t'], CLIENT, id="quotes"),
        pytest.param(PROXY, [f"[{CLIENT}]"], CLIENT, id="brackets"),
        pytest.param(PROXY, ["2001:db8:1:2::9"], "2001:db8:1:2::/64", id="IPv6, no port"),
        pytest.param(PROXY, ["[2001:db8:1:2::9]:51000"], "2001:db8:1:2::/64", id="IPv6 and port"),
        pytest.param(PROXY, ['"[2001:db8:1:2::9]"'], "2001:db8:1:2::/64", id="IPv6 in brackets"),
        pytest.param(PROXY, [f"[::ffff:{CLIENT}]:4711"], CLIENT, id="IPv4 in IPv6, and a port"),
        pytest.param(PROXY, [f"{OTHER}, {CLIENT}:port"], PROXY, id="a word for a port"),
        pytest.param(PROXY, [f"{OTHER}, {CLIENT}:"], PROXY, id="a port that is left out"),
        pytest.param(PROXY, [f"{OTHER}, [{CLIENT}"], PROXY, id="a bracket alone"),
        pytest.param(PROXY, [f"{OTHER}, for={CLIENT}"], PROXY, id="the words of Forwarded"),
        pytest.param(PROXY, [f"{OTHER}, unknown, {FAR_PROXY}"], FAR_PROXY, id="the nearest"),
        pytest.param(PROXY, [f"{OTHER}, {'1' * 8000}"], PROXY, id="a long one"),
        pytest.param("::ffff:10.0.0.1", [CLIENT], CLIENT, id="a proxy over IPv6 sockets"),
        pytest.param(PROXY, [f"::ffff:{CLIENT}"], CLIENT, id="a client over IPv6 sockets"),
        pytest.param("fd00::1", [CLIENT], CLIENT, id="a proxy with IPv6"),
        pytest.param("2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::/64", id="IPv6: its /64"),
        pytest.param(PROXY, ["2001:DB8:1:2::9"], "2001:db8:1:2::/64", id="IPv6 behind a proxy"),
        pytest.param(PROXY, ["fe80::1%eth0"], "fe80::/64", id="IPv6 with a zone"),
    ],
)
def test_an_address_is_what_trusted_proxies_say_it_is(
    remote: str, forwarded: list[str], address: str
) -> None:
    assert address_of(BEHIND_PROXIES, remote, *forwarded) == address


def test_that_a_proxy_writes_no_address_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_address_module, "_unreadable", itertools.count())
    address_of(BEHIND_PROXIES, PROXY, f"{CLIENT}:4711")
    address_of(BEHIND_PROXIES, CLIENT, "unknown")  # anybody's word
    assert caplog.messages == []
    for _ in range(3):
        address_of(BEHIND_PROXIES, PROXY, f"{OTHER}, _hidden\n")
        address_of(BEHIND_PROXIES, PROXY, "x" * 8000)
    [line] = caplog.messages
    assert "X-Forwarded-For" in line
    assert repr(" _hidden\n") in line


def test_only_short_headers_are_remembered() -> None:
    """Or clients, who begin the header as they like, would fill the memory."""
    kept = BEHIND_PROXIES[CLIENT_ADDRESSES].remembered.cache_info
    invented = f"{OTHER}, " * 100
    assert address_of(BEHIND_PROXIES, PROXY, invented + CLIENT) == CLIENT
    before = kept()
    assert address_of(BEHIND_PROXIES, PROXY, invented + CLIENT) == CLIENT
    assert kept() == before
    for _ in range(2):
        assert address_of(BEHIND_PROXIES, PROXY, f"{OTHER}, {CLIENT}") == CLIENT
    assert kept().hits > before.hits


@pytest.mark.parametrize("invented", [OTHER, PROXY, CLIENT, "::1"])
def test_without_trusted_proxies_no_header_counts(invented: str) -> None:
    assert address_of(OPEN, CLIENT, invented) == CLIENT


def test_a_client_without_an_address_has_the_same_as_the_next_one() -> None:
    """A Unix socket has none: then there is one limit for all."""
    assert address_of(BEHIND_PROXIES, None, OTHER) == address_of(BEHIND_PROXIES, None, CLIENT)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-21T09:30:00Z", datetime(2026, 11, 21, 9, 30, tzinfo=UTC)),
        ("2026-11-21t09:30:00z", datetime(2026, 11, 21, 9, 30, tzinfo=UTC)),
        ("2026-11-21T09:30:00+00:00", datetime(2026, 11, 21, 9, 30, tzinfo=UTC)),
        ("2026-11-21T09:30:00-00:00", datetime(2026, 11, 21, 9, 30, tzinfo=UTC)),
        ("2026-11-21T11:30:00+02:00", datetime(2026, 11, 21, 9, 30, tzinfo=UTC)),
        ("2026-11-20T23:30:00-10:00", datetime(2026, 11, 21, 9, 30, tzinfo=UTC)),
        ("2026-11-21T09:30:00.5Z", datetime(2026, 11, 21, 9, 30, 0, 500_000, tzinfo=UTC)),
        ("2026-11-21T09:30:00.123456Z", datetime(2026, 11, 21, 9, 30, 0, 123_456, tzinfo=UTC)),
        ("2026-11-21T09:30:00.1234567Z", datetime(2026, 11, 21, 9, 30, 0, 123_456, tzinfo=UTC)),
        ("2028-02-29T00:00:00Z", datetime(2028, 2, 29, tzinfo=UTC)),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_a_moment_is_read_in_utc(text: str, moment: datetime) -> None:
    read = Moment().deserialize(text)
    assert read == moment
    assert read.tzinfo is UTC


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("2026-11-21T09:30:00", id="no zone"),
        pytest.param("2026-11-21", id="a day"),
        pytest.param("2026-11-21 09:30:00Z", id="a space for T"),
        pytest.param("2026-11-21T09:30Z", id="no seconds"),
        pytest.param("20261121T093000Z", id="ISO 8601's short form"),
        pytest.param("2026-W47-6T09:30:00Z", id="a week"),
        pytest.param("2026-325T09:30:00Z", id="a day of the year"),
        pytest.param("2026-11-21T09:30:00,5Z", id="a comma"),
        pytest.param("2026-11-21T09:30:00.Z", id="a point without digits"),
        pytest.param("2026-11-21T09:30:00+0200", id="an offset without a colon"),
        pytest.param("2026-11-21T09:30:00+02", id="an offset in hours"),
        pytest.param("2026-11-21T09:30:00+24:00", id="an offset of a day"),
        pytest.param("2026-11-21T09:30:00+02:60", id="an offset of 60 minutes"),
        pytest.param("2026-11-21T09:30:00 Europe/Berlin", id="a zone's name"),
        pytest.param("2026-13-01T00:00:00Z", id="a month 13"),
        pytest.param("2026-02-29T00:00:00Z", id="no leap year"),
        pytest.param("2026-11-21T24:00:00Z", id="an hour 24"),
        pytest.param("2026-11-21T09:30:60Z", id="a second 60"),
        pytest.param("0000-01-01T00:00:00Z", id="the year 0"),
        pytest.param("0001-01-01T00:00:00+23:59", id="before the year 1 in UTC"),
        pytest.param("9999-12-31T23:59:59-23:59", id="behind the year 9999 in UTC"),
        pytest.param("+12026-11-21T09:30:00Z", id="a year of five digits"),
        pytest.param(" 2026-11-21T09:30:00Z", id="a space before it"),
        pytest.param("2026-11-21T09:30:00Z\n", id="a newline behind it"),
        pytest.param("\u0662\u0660\u0662\u0666-11-21T09:30:00Z", id="Arabic digits"),
        pytest.param("\ud800", id="half a surrogate pair"),
        pytest.param("", id="empty"),
        pytest.param("tomorrow", id="a word"),
        pytest.param(1_795_253_400, id="a number"),
        pytest.param(1e400, id="infinity"),
        pytest.param(True, id="true"),
        pytest.param(None, id="null"),
        pytest.param(["2026-11-21T09:30:00Z"], id="a list"),
        pytest.param({}, id="an object"),
    ],
)
def test_what_is_no_moment_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        Moment().deserialize(value)


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 11, 21, 9, 30, tzinfo=UTC), "2026-11-21T09:30:00Z"),
        (datetime(2026, 11, 21, 9, 30, 0, 5, tzinfo=UTC), "2026-11-21T09:30:00.000005Z"),
        (
            datetime(2026, 11, 21, 11, 30, tzinfo=timezone(timedelta(hours=2))),
            "2026-11-21T09:30:00Z",
        ),
        (None, None),
    ],
)
def test_a_moment_is_written_in_utc(moment: datetime | None, text: str | None) -> None:
    assert Moment().serialize("at", {"at": moment}) == text


@pytest.mark.parametrize("value", [0, 1, -1, 10**30, 1.0, -30.0, 1e30])
def test_a_whole_number_is_taken(value: float) -> None:
    """However it is written: 30.0 is an integer in JSON Schema."""
    number = WholeNumber().deserialize(value)
    assert number == value
    assert type(number) is int


@pytest.mark.parametrize("value", [True, "1", 1.5, 1e400, float("nan"), None, [], {}])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        WholeNumber().deserialize(value)


@pytest.mark.parametrize("value", ["", "text", "nul\0", "\U0001f600", "e\u0301"])
def test_a_text_is_taken_as_it_is(value: str) -> None:
    assert Text().deserialize(value) == value


@pytest.mark.parametrize(
    ("value", "code"),
    [("ANNA", "ANNA"), (" ANNA\n", "ANNA"), ("\u00a0ANNA", "ANNA"), ("", None), (" \t", None)],
)
def test_a_typed_code_has_no_white_space_around_it(value: str, code: str | None) -> None:
    assert TypedCode().deserialize(value) == code


class Members(RequestSchema):
    needed = Text(required=True)
    optional = Text()
    usual = WholeNumber(load_default=5)


def test_null_leaves_an_optional_member_out() -> None:
    assert Members().load({"needed": "x", "optional": None, "usual": None}) == {
        "needed": "x",
        "usual": 5,
    }


@pytest.mark.parametrize(
    ("body", "members"),
    [
        ({"needed": None}, {"needed"}),
        ({"needed": "x", "other": None}, {"other"}),
        (None, {"_schema"}),
        ([None], {"_schema"}),
    ],
)
def test_null_is_no_value_of_any_other_member(body: Any, members: set[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        Members().load(body)
    assert set(caught.value.messages_dict) == members


@pytest.mark.parametrize("value", ["\ud800", "text\udfff", 5, True, None, [], {}])
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        Text().deserialize(value)
