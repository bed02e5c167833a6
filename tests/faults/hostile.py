"""`python -m tests.faults.hostile`: thousands of requests made from our own OpenAPI document.

Schemathesis makes them, in all its phases and with all its checks: no answer is a 500, each has a
status, a type, headers and a body that the document describes, and invalid requests are refused.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Final

import psycopg
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink

from service import embedded
from tests.e2e.company import new_company
from tests.e2e.processes import ROOT, free_port, run, service_process
from tests.factories import new_secrets

HERE: Final = Path(__file__).parent
# Not the password of the document's examples, with which the account would be erased.
ADMIN: Final = {"ADMIN_EMAIL": "root@example.com", "ADMIN_PASSWORD": "seven grey geese by the lake"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--seconds", type=int, default=100)
    parsed = parser.parse_args()
    print(f"seed {parsed.seed}", flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostile-")))
        environment = {
            **new_secrets(),
            "DATABASE_URL": stack.enter_context(embedded.postgresql(folder, durable=False)),
            "REDIS_URL": stack.enter_context(embedded.valkey(folder)),
            "ARGON2_MEMORY_KIB": "64",
            "ARGON2_PASSES": "1",
            "RATE_LIMIT_REGISTER": "off",
            "RATE_LIMIT_LOGIN": "off",
            "RATE_LIMIT_LOOKUP": "off",
            "RATE_LIMIT_WRITE": "off",
            "SMTP_URL": stack.enter_context(_mail_server()),
            "MAIL_FROM": "referrals@example.com",
            "LOG_LEVEL": "warning",
            **ADMIN,
        }
        service = stack.enter_context(service_process(environment))
        made = run("admin", "create", ADMIN["ADMIN_EMAIL"], environment=service.environment)
        assert made.returncode == 0, made.stderr
        stack.enter_context(_admin_stays(service.environment["DATABASE_URL"]))
        authorization, known = new_company(service)
        company = {"COMPANY": authorization, "KNOWN": json.dumps(known)}
        command = [
            *(str(Path(sys.executable).with_name("st")), f"--config-file={HERE}/schemathesis.toml"),
            *("run", f"{service.url}/openapi.json", "--checks=all", "--continue-on-failure"),
            *(f"--seed={parsed.seed}", f"--max-time={parsed.seconds}", "--max-examples=40"),
        ]
        hooks = {"SCHEMATHESIS_HOOKS": "tests.faults.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
        whole = {**os.environ, **service.environment, **company, **hooks}
        return subprocess.run(command, env=whole, cwd=folder).returncode


@contextmanager
def _mail_server() -> Iterator[str]:
    """Yield the URL of a server that accepts every mail: without one, some calls answer 503."""
    server = Controller(Sink(), hostname="127.0.0.1", port=free_port())
    server.start()
    try:
        yield f"smtp://{server.hostname}:{server.port}"
    finally:
        server.stop()


@contextmanager
def _admin_stays(database_url: str) -> Iterator[None]:
    """Undo what the admin's own requests do to the admin: being disabled would end the run."""
    ended = Event()

    def mend() -> None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            while not ended.wait(0.2):
                connection.execute("UPDATE users SET disabled_at = NULL WHERE role = 'admin'")

    thread = Thread(target=mend)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
