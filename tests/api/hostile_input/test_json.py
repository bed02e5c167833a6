"""Hostile JSON: wrong types, nasty texts, odd members."""

import json
from typing import Final

import asyncpg

from tests.api.assertions import assert_problem
from tests.api.hostile_input.conftest import (
    CALLS,
    LATIN_1,
    UTF_16,
    Call,
    assert_refused,
    post_text,
    with_literal,
)
from tests.factories import PASSWORD, Api, Person, new_email

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
            if (call.method, name) == ("DELETE", "empty"):
                continue  # as good as {}: no member is needed
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


async def test_a_call_whose_members_are_all_optional_takes_no_body_for_an_empty_object(
    api: Api, anna: Person, admin: Person
) -> None:
    """Unless some member is needed after all."""
    for headers in ({}, {"Content-Type": "application/json"}):
        answer = await api.delete("/users/me", by=anna, data=b"", headers=headers)
        assert_problem(answer, 422, "validation-failed", ["#/password"])
        nothing = await api.patch("/programmes/default", by=admin, data=b"", headers=headers)
        assert_problem(nothing, 400, "bad-request")
    space = await api.delete("/users/me", by=anna, data=b" ")
    assert_problem(space, 415, "unsupported-media-type")


async def test_a_call_without_a_body_takes_none_or_an_empty_object(api: Api, anna: Person) -> None:
    """Without `check_no_body` a member that nobody reads is answered as if it had been heeded."""
    logout = Call("POST", "/auth/logout", {})
    refused = {
        '{"everywhere": true}': (422, ["#/everywhere"]),
        '{"a": null, "a": null}': (422, ["#/a"]),
        "[]": (422, ["#"]),
        "null": (422, ["#"]),
        "{": (400, []),
        " ": (400, []),
    }
    for text, (status, pointers) in refused.items():
        answer = await post_text(api, logout, text, anna)
        assert answer.status == status, (text, answer.body)
        assert [error["pointer"] for error in answer.json().get("errors", [])] == pointers, text
    form = await api.call("POST", "/auth/logout", by=anna, data={"a": "b"})
    assert_problem(form, 415, "unsupported-media-type")
    assert (await api.get("/users/me", by=anna)).status == 200
    assert (await api.delete("/auth/sessions", {"not": "looked at"}, by=anna)).status == 204
    for text in ("{}", ""):
        person = await api.new_person()
        assert (await post_text(api, logout, text, person)).status == 204
