"""Clients that others' programs generate from our OpenAPI document tell the whole story.

Each is generated from the document that the running service shows, type-checked where its language
is, and then used as its developer would: register, sign in, create a code, look it up, register a
second account with it, list the referrals, delete the code, sign out.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.peers import install_npm_packages, install_python_packages
from tests.factories import PASSWORD

HERE = Path(__file__).parent / "peers" / "generated"
# It is short-lived: a Java that does not optimise much starts sooner.
JAVA_OPTS = "-XX:TieredStopAtLevel=1"
OPENAPI_GENERATOR = "import openapi_generator_cli; openapi_generator_cli.cli()"


@pytest.fixture(scope="module")
def python() -> Path:
    """A Python with the generators that pip installs, and with what their clients need."""
    return install_python_packages(HERE / "requirements.txt") / "bin" / "python"


@pytest.fixture(scope="module")
def packages() -> Path:
    """A node_modules folder with the generators that npm installs, and what their clients need."""
    return install_npm_packages(HERE) / "node_modules"


def run(*command: str | Path, folder: Path) -> str:
    """Run a program to its end; return what it has written."""
    first = Path(command[0])
    done = subprocess.run(
        command,
        cwd=folder,
        # openapi-python-client looks for ruff, which lies beside its own Python.
        env={**os.environ, "PATH": f"{first.parent}:{os.environ['PATH']}", "JAVA_OPTS": JAVA_OPTS},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tell(*command: str | Path, folder: Path, url: str) -> None:
    """Run a program that tells the story, and look at what has come of it."""
    names = folder.name
    anna, ben = f"anna-{names}@example.com", f"ben-{names}@example.com"
    told = {
        "url": url,
        "anna": {"email": anna, "password": PASSWORD},
        "ben": {"email": ben, "password": PASSWORD},
    }
    seen = json.loads(run(*command, json.dumps(told), folder=folder))
    assert seen["anna"] == seen["me"]
    assert seen["me"]["email"] == anna
    assert seen["me"]["role"] == "user"
    assert seen["me"]["referrer_id"] is None
    assert seen["tokens"]["token_type"] == "Bearer"
    assert seen["tokens"]["user_id"] == seen["me"]["id"]
    assert seen["mailed"] == {"status": "accepted"}
    assert (seen["code"]["uses"], seen["code"]["max_uses"]) == (0, None)
    assert seen["days"] == 30
    assert (seen["again"]["status"], seen["again"]["code"]) == (409, "referral-code-exists")
    assert seen["found"]["code"] == seen["code"]["code"]
    assert seen["found"]["referrer_id"] == seen["me"]["id"]
    assert seen["ben"]["referrer_id"] == seen["me"]["id"]
    assert (seen["refused"]["status"], seen["refused"]["code"]) == (422, "validation-failed")
    assert [error["pointer"] for error in seen["refused"]["errors"]] == ["#/email"]
    referrals = [(referral["email"], referral["code"]) for referral in seen["page"]["items"]]
    assert referrals == [(ben, seen["code"]["code"])]
    assert seen["page"]["next_cursor"] is None
    assert seen["deleted"] == 204
    assert (seen["missing"]["status"], seen["missing"]["code"]) == (404, "referral-code-not-found")
    assert seen["signedOut"] == 204
    assert (seen["lockedOut"]["status"], seen["lockedOut"]["code"]) == (401, "invalid-token")


def tell_in_python(story: str, python: Path, folder: Path, url: str) -> None:
    shutil.copy(HERE / "seen.py", folder)
    shutil.copy(HERE / story, folder / "story.py")  # not the name of what it imports
    tell(python, "story.py", folder=folder, url=url)


def tell_in_typescript(story: str, packages: Path, folder: Path, url: str) -> None:
    """Check the types of the story and of the generated client, compile both, and run them."""
    for name in (story, "told.ts", "tsconfig.json"):
        shutil.copy(HERE / name, folder)
    (folder / "node_modules").symlink_to(packages)
    run("node", packages / "typescript" / "bin" / "tsc", folder=folder)
    tell("node", Path("compiled", story).with_suffix(".js"), folder=folder, url=url)


def test_openapi_python_client(python: Path, live_service: str, tmp_path: Path) -> None:
    document = f"{live_service}/openapi.json"
    run(
        *(python, "-m", "openapi_python_client", "generate", "--fail-on-warning"),
        *("--url", document, "--meta", "none", "--output-path", "client"),
        folder=tmp_path,
    )
    tell_in_python("openapi_python_client.py", python, tmp_path, live_service)


def test_openapi_generator_for_python(python: Path, live_service: str, tmp_path: Path) -> None:
    document = f"{live_service}/openapi.json"
    options = ("generate", "-g", "python", "-i", document, "-o", ".")
    run(python, "-c", OPENAPI_GENERATOR, *options, folder=tmp_path)
    tell_in_python("openapi_generator.py", python, tmp_path, live_service)


def test_openapi_generator_for_axios(
    python: Path, packages: Path, live_service: str, tmp_path: Path
) -> None:
    document = f"{live_service}/openapi.json"
    options = ("generate", "-g", "typescript-axios", "-i", document, "-o", "client")
    run(python, "-c", OPENAPI_GENERATOR, *options, folder=tmp_path)
    tell_in_typescript("typescript-axios.ts", packages, tmp_path, live_service)


def test_hey_api(packages: Path, live_service: str, tmp_path: Path) -> None:
    document = f"{live_service}/openapi.json"
    generator = packages / ".bin" / "openapi-ts"
    run(generator, "-i", document, "-o", "client", "--no-log-file", folder=tmp_path)
    tell_in_typescript("hey-api.ts", packages, tmp_path, live_service)


def test_openapi_typescript(packages: Path, live_service: str, tmp_path: Path) -> None:
    document = f"{live_service}/openapi.json"
    run(
        packages / ".bin" / "openapi-typescript", document, "-o", "client/types.ts", folder=tmp_path
    )
    tell_in_typescript("openapi-fetch.ts", packages, tmp_path, live_service)


def test_redocly_has_nothing_to_complain_of(
    packages: Path, live_service: str, tmp_path: Path
) -> None:
    """By the rules that it recommends, errors and warnings alike."""
    document = f"{live_service}/openapi.json"
    told = run(packages / ".bin" / "redocly", "lint", document, "--format=json", folder=tmp_path)
    found = json.loads(told)
    assert found["problems"] == []
