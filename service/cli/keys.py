"""`keys`: makes secrets and rotates the signing keys."""

import argparse
import json
import secrets
import sys
import tempfile
from pathlib import Path

from service.cli.console import Commands, Environment
from service.cli.resources import read_file
from service.domain.clock import utc_now
from service.domain.operators import OperatorError
from service.security.signing_keys import JWKS_MAX_AGE, SigningKey, SigningKeys
from service.settings.schema import load
from service.settings.settings import KeySettings


def add_commands(commands: Commands) -> None:
    keys = commands.group("keys", "Generate and rotate secrets.")
    generate = keys.add("generate", _generate)
    generate.add_argument("--file", type=Path, help="write them to this file, unless it exists")
    # It may be what makes the file that ENV_FILE names.
    generate.set_defaults(reads_settings=False)
    keys.add("rotate", _rotate).add_argument(
        "--file", type=Path, help="the env file to change; otherwise the line is printed"
    )


def _generate(parsed: argparse.Namespace, _: Environment) -> None:
    """Print new secrets, as lines of an env file."""
    if parsed.file is None:
        print(_new_secrets(), end="")
    elif write_secrets(parsed.file):
        print(f"New secrets are in {parsed.file}.")
    else:
        print(f"{parsed.file} already exists; it was not changed.")


def _rotate(parsed: argparse.Namespace, environ: Environment) -> None:
    """Add the next signing key, and drop those no longer needed."""
    if parsed.file and not parsed.file.is_file():
        raise OperatorError(f"There is no file {parsed.file}.")
    settings = load(KeySettings, {**environ, **(read_file(parsed.file) if parsed.file else {})})
    keys = settings.signing_keys.rotated(utc_now(), settings.access_token_ttl)
    line = _signing_keys_line(keys)
    if parsed.file is None:
        print(line)
    else:
        lines = parsed.file.read_text().splitlines()
        kept = [old for old in lines if not old.startswith("SIGNING_KEYS=")]
        write_private(parsed.file, "\n".join([*kept, line, ""]))
    print(
        f"Restart every process within {JWKS_MAX_AGE.seconds // 60} minutes; "
        f"the new key signs from {keys.keys[-1].signs_from.isoformat(timespec='seconds')}.",
        file=sys.stderr,
    )


def write_secrets(file: Path) -> bool:
    """Write new secrets to the file; return False, and leave it, where it exists."""
    if file.exists():
        return False
    write_private(file, _new_secrets())
    return True


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all; raise OperatorError."""
    try:
        handle, name = tempfile.mkstemp(dir=file.parent)
        with open(handle, "w") as temporary:  # noqa: PTH123  # mkstemp gives a descriptor
            temporary.write(text)
        Path(name).rename(file)
    except OSError as error:
        raise OperatorError(f"Cannot write {file}: {error.strerror}.") from error


def _new_secrets() -> str:
    return (
        f"{_signing_keys_line(SigningKeys([SigningKey.generate()]))}\n"
        f"REFRESH_TOKEN_KEYS={secrets.token_urlsafe(32)}\n"
        f"HASH_KEY={secrets.token_urlsafe(32)}\n"
    )


def _signing_keys_line(keys: SigningKeys) -> str:
    return f"SIGNING_KEYS='{json.dumps(keys.to_jwks(), separators=(',', ':'))}'"
