"""No change of the OpenAPI document breaks a client that was generated from the one before.

The document that clients know is openapi.json beside this file. Where these tests say that it is
no longer the present one, `make openapi` mends that, unless clients would break.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.api import openapi_changes
from tests.api.openapi_changes import (
    KNOWN,
    breaking_changes,
    known_document,
    main,
    present_document,
)

Document = dict[str, Any]
Change = Callable[[Any, Any], Any]
"""What is changed in the calls of an address, by method, and in the schemas, by name."""

JSON = "application/json"
DOCUMENT: Document = {
    "info": {"version": "1.4.0"},
    "paths": {
        "/things": {
            "get": {
                "operationId": "listThings",
                "tags": ["Things"],
                "security": [],
                "parameters": [
                    {
                        "in": "query",
                        "name": "limit",
                        "schema": {"type": "integer", "maximum": 100, "default": 20},
                    }
                ],
                "responses": {
                    "200": {
                        "headers": {"RateLimit": {"schema": {"type": "string"}}},
                        "content": {JSON: {"schema": {"$ref": "#/components/schemas/Things"}}},
                    },
                    "404": {},
                },
            },
            "post": {
                "operationId": "makeThing",
                "tags": ["Things"],
                "security": [{"token": ["write", "more"]}, {"key": []}],
                "parameters": [],
                "requestBody": {
                    "required": True,
                    "content": {JSON: {"schema": {"$ref": "#/components/schemas/NewThing"}}},
                },
                "responses": {"204": {}},
            },
        }
    },
    "components": {
        "schemas": {
            "Things": {
                "type": "object",
                "required": ["items"],
                "properties": {
                    "items": {"type": "array", "items": {"$ref": "#/components/schemas/Thing"}}
                },
            },
            "Thing": {
                "type": "object",
                "required": ["made_at", "kind", "state"],
                "properties": {
                    "made_at": {"type": "string", "format": "date-time"},
                    "kind": {"type": "string", "enum": ["big", "small"]},
                    "state": {"type": "string", "const": "new"},
                    "note": {"type": ["string", "null"]},
                    "part": {"anyOf": [{"properties": {"size": {}}}, {"type": "null"}]},
                },
            },
            "NewThing": {
                "type": "object",
                "required": ["kind"],
                "properties": {
                    "kind": {"type": "string", "enum": ["big", "small"]},
                    "name": {"type": "string", "minLength": 4},
                    "note": {"type": ["string", "null"]},
                },
            },
        }
    },
}
NEEDED = {"in": "query", "name": "since", "schema": {"type": "string"}, "required": True}
BODY = {"required": True, "content": {}}
BREAKING: dict[str, tuple[Change, str]] = {
    "a call is removed": (lambda calls, _: calls.pop("post"), "POST /things: the call is gone"),
    "a call gets another name": (
        lambda calls, _: calls["get"].update(operationId="showThings"),
        "GET /things: operationId was listThings, is showThings",
    ),
    "a call moves to another section": (
        lambda calls, _: calls["get"].update(tags=["Others"]),
        "GET /things: tags was ['Things'], is ['Others']",
    ),
    "a schema is removed": (
        lambda calls, schemas: calls["post"].update(requestBody=BODY) or schemas.pop("NewThing"),
        "the schema NewThing is gone",
    ),
    "a public call needs a token": (
        lambda calls, _: calls["get"].update(security=[{"token": []}]),
        "GET /things: no token is no longer enough",
    ),
    "a call needs another scope": (
        lambda calls, _: calls["post"].update(security=[{"token": ["admin"]}, {"key": []}]),
        "POST /things: {'token': ['write', 'more']} is no longer enough",
    ),
    "a call needs two tokens": (
        lambda calls, _: calls["post"].update(security=[{"token": [], "key": []}]),
        "POST /things: {'key': []} is no longer enough",
    ),
    "a success is removed": (
        lambda calls, _: calls["get"]["responses"].pop("200"),
        "GET /things: 200 is gone",
    ),
    "a refusal is removed": (
        lambda calls, _: calls["get"]["responses"].pop("404"),
        "GET /things: 404 is gone",
    ),
    "an answer has another type": (
        lambda calls, _: calls["get"]["responses"]["200"].update(content={"text/csv": {}}),
        "GET /things: 200: application/json is gone",
    ),
    "an answer loses a header": (
        lambda calls, _: calls["get"]["responses"]["200"].pop("headers"),
        "GET /things: 200: the header RateLimit is gone",
    ),
    "an answer loses a member": (
        lambda _, schemas: schemas["Thing"]["properties"].pop("note"),
        "GET /things: 200: #/items/-/note is gone",
    ),
    "an answer may lack a member": (
        lambda _, schemas: schemas["Things"].update(required=[]),
        "GET /things: 200: #: required was ['items'], is []",
    ),
    "a member of an answer has another type": (
        lambda _, schemas: schemas["Thing"]["properties"]["kind"].update(type="integer"),
        "GET /things: 200: #/items/-/kind: type was string, is integer",
    ),
    "a member of an answer may be null": (
        lambda _, schemas: schemas["Thing"]["properties"]["kind"].update(type=["string", "null"]),
        "GET /things: 200: #/items/-/kind: type was string, is ['string', 'null']",
    ),
    "a member of an answer is no time any more": (
        lambda _, schemas: schemas["Thing"]["properties"]["made_at"].pop("format"),
        "GET /things: 200: #/items/-/made_at: format was date-time, is None",
    ),
    "a member of an answer has a value more": (
        lambda _, schemas: schemas["Thing"]["properties"]["kind"]["enum"].append("huge"),
        "GET /things: 200: #/items/-/kind: enum was ['big', 'small'], is ['big', 'small', 'huge']",
    ),
    "a member of an answer has any value": (
        lambda _, schemas: schemas["Thing"]["properties"]["kind"].pop("enum"),
        "GET /things: 200: #/items/-/kind: enum was ['big', 'small'], is None",
    ),
    "a constant changes": (
        lambda _, schemas: schemas["Thing"]["properties"]["state"].update(const="old"),
        "GET /things: 200: #/items/-/state: enum was ['new'], is ['old']",
    ),
    "a member becomes a choice": (
        lambda _, schemas: schemas["Thing"]["properties"]["note"].update(anyOf=[{}]),
        "GET /things: 200: #/items/-/note: anyOf was None, is [{}]",
    ),
    "a choice loses a member": (
        lambda _, schemas: schemas["Thing"]["properties"]["part"]["anyOf"][0]["properties"].clear(),
        "GET /things: 200: #/items/-/part/size is gone",
    ),
    "a parameter is removed": (
        lambda calls, _: calls["get"]["parameters"].pop(),
        "GET /things: parameter limit is gone",
    ),
    "a parameter is required now": (
        lambda calls, _: calls["get"]["parameters"][0].update(required=True),
        "GET /things: parameter limit is now required",
    ),
    "a new parameter is required": (
        lambda calls, _: calls["get"]["parameters"].append(NEEDED),
        "GET /things: parameter since is now required",
    ),
    "a parameter allows less": (
        lambda calls, _: calls["get"]["parameters"][0]["schema"].update(maximum=50),
        "GET /things: parameter limit: #: maximum was 100, is 50",
    ),
    "a parameter has another default": (
        lambda calls, _: calls["get"]["parameters"][0]["schema"].update(default=50),
        "GET /things: parameter limit: the default was 20",
    ),
    "a body loses a member": (
        lambda _, schemas: schemas["NewThing"]["properties"].pop("name"),
        "POST /things: #/name is gone",
    ),
    "a body needs a member more": (
        lambda _, schemas: schemas["NewThing"].update(required=["kind", "name"]),
        "POST /things: #: required was ['kind'], is ['kind', 'name']",
    ),
    "a member of a body is null no more": (
        lambda _, schemas: schemas["NewThing"]["properties"]["note"].update(type="string"),
        "POST /things: #/note: type was ['string', 'null'], is string",
    ),
    "a member of a body has to be longer": (
        lambda _, schemas: schemas["NewThing"]["properties"]["name"].update(minLength=6),
        "POST /things: #/name: minLength was 4, is 6",
    ),
    "a member of a body has a pattern": (
        lambda _, schemas: schemas["NewThing"]["properties"]["name"].update(pattern="^x"),
        "POST /things: #/name: pattern was None, is ^x",
    ),
    "a member of a body has a value less": (
        lambda _, schemas: schemas["NewThing"]["properties"]["kind"].update(enum=["big"]),
        "POST /things: #/kind: enum was ['big', 'small'], is ['big']",
    ),
    "a body takes no unknown members any more": (
        lambda _, schemas: schemas["NewThing"].update(additionalProperties=False),
        "POST /things: #: additionalProperties was None, is False",
    ),
    "a body has another type": (
        lambda calls, _: calls["post"].update(requestBody=BODY),
        "POST /things: application/json is gone",
    ),
    "a call takes no body any more": (
        lambda calls, _: calls["post"].pop("requestBody"),
        "POST /things: the request's body is gone",
    ),
    "a call without a body needs one": (
        lambda calls, _: calls["get"].update(requestBody=BODY),
        "GET /things: a body is now required",
    ),
}
HARMLESS: dict[str, Change] = {
    "a new call": lambda calls, _: calls.update(put=calls["post"]),
    "a new refusal": lambda calls, _: calls["get"]["responses"].update({"429": {}}),
    "a new type": lambda calls, _: calls["get"]["responses"]["200"]["content"].update(csv={}),
    "no token is needed any more": lambda calls, _: calls["post"].update(security=[]),
    "a scope less is needed": lambda calls, _: calls["post"]["security"][0].update(token=["write"]),
    "another token is enough": lambda calls, _: calls["post"]["security"].append({"cookie": []}),
    "a new parameter": lambda calls, _: calls["get"]["parameters"].append(
        {**NEEDED, "required": False}
    ),
    "a parameter allows more": lambda calls, _: calls["get"]["parameters"][0]["schema"].update(
        maximum=200
    ),
    "a parameter may be a fraction": lambda calls, _: calls["get"]["parameters"][0][
        "schema"
    ].update(type="number"),
    "a new member of an answer": lambda _, schemas: schemas["Thing"]["properties"].update(x={}),
    "a new member of a choice": lambda _, schemas: schemas["Thing"]["properties"]["part"]["anyOf"][
        0
    ]["properties"].update(colour={}),
    "a member is always there": lambda _, schemas: schemas["Thing"]["required"].append("note"),
    "a member is never null": lambda _, schemas: schemas["Thing"]["properties"]["note"].update(
        type="string"
    ),
    "an answer has a value less": lambda _, schemas: schemas["Thing"]["properties"]["kind"].update(
        enum=["big"]
    ),
    "a new member of a body": lambda _, schemas: schemas["NewThing"]["properties"].update(x={}),
    "a body needs a member less": lambda _, schemas: schemas["NewThing"].update(required=[]),
    "a body may have null": lambda _, schemas: schemas["NewThing"]["properties"]["name"].update(
        type=["string", "null"]
    ),
    "a body has a value more": lambda _, schemas: schemas["NewThing"]["properties"]["kind"][
        "enum"
    ].append("huge"),
    "a body may be shorter": lambda _, schemas: schemas["NewThing"]["properties"]["name"].update(
        minLength=1
    ),
    "a body need not be sent": lambda calls, _: calls["post"]["requestBody"].update(required=False),
}


def changed(change: Change) -> Document:
    """Return a copy of DOCUMENT with a change."""
    copy = deepcopy(DOCUMENT)
    change(copy["paths"]["/things"], copy["components"]["schemas"])
    assert copy != DOCUMENT
    return copy


def test_no_change_breaks_a_client() -> None:
    assert breaking_changes(known_document(), present_document()) == [], (
        "keep what clients know, or raise the major version in service/api/docs/components.py"
    )


def test_the_document_that_clients_know_is_the_present_one() -> None:
    assert known_document() == present_document(), "run: make openapi"


def test_whatever_call_is_removed_clients_break() -> None:
    without = known_document()
    calls = []
    for path, operations in without["paths"].items():
        calls += [f"{method.upper()} {path}: the call is gone" for method in operations]
        operations.clear()
    assert len(calls) > 30
    assert breaking_changes(known_document(), without) == calls


def test_whatever_answer_is_removed_clients_break() -> None:
    without = known_document()
    answers = []
    for path, operations in without["paths"].items():
        for method, operation in operations.items():
            call = f"{method.upper()} {path}"
            answers += [f"{call}: {status} is gone" for status in operation["responses"]]
            operation["responses"].clear()
    assert len(answers) > 300
    assert breaking_changes(known_document(), without) == answers


def test_whatever_member_is_removed_clients_break() -> None:
    for name in known_document()["components"]["schemas"]:
        without = known_document()
        members = without["components"]["schemas"][name].pop("properties")
        changes = breaking_changes(known_document(), without)
        for member in members:
            told = f"/{member} is gone"
            assert any(change.endswith(told) for change in changes), f"{name}: {member}"


@pytest.mark.parametrize(("change", "told"), BREAKING.values(), ids=BREAKING)
def test_what_breaks_a_client_is_told(change: Change, told: str) -> None:
    assert told in breaking_changes(DOCUMENT, changed(change))


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_breaks_no_client_is_not_told(change: Change) -> None:
    assert breaking_changes(DOCUMENT, changed(change)) == []


@pytest.mark.parametrize(
    ("version", "may"), [("2.0.0", True), ("10.0.0", True), ("1.5.0", False), ("0.9.0", False)]
)
def test_a_new_major_version_may_break_clients_and_no_other_may(version: str, may: bool) -> None:
    without = changed(lambda calls, _: calls.pop("get"))
    without["info"] = {"version": version}
    assert (breaking_changes(DOCUMENT, without) == []) is may


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the document that clients know, in its place."""
    copy = tmp_path / KNOWN.name
    copy.write_text(KNOWN.read_text())
    monkeypatch.setattr(openapi_changes, "KNOWN", copy)
    return copy


def test_the_command_takes_the_present_document(copy: Path) -> None:
    earlier = present_document()
    earlier["paths"].popitem()
    copy.write_text(json.dumps(earlier))
    assert main() == 0
    assert json.loads(copy.read_text()) == present_document()
    copy.unlink()
    assert main() == 0
    assert json.loads(copy.read_text()) == present_document()


def test_the_command_refuses_to_break_clients(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = present_document()
    other["paths"]["/gone"] = {"get": next(iter(other["paths"].values()))["post"]}
    copy.write_text(json.dumps(other))
    assert main() == 1
    assert json.loads(copy.read_text()) == other
    assert "GET /gone: the call is gone" in capsys.readouterr().out
