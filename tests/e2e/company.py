"""A company that reports to a service in a process of its own."""

import json
import urllib.request
from typing import Any

from service.domain.scopes import OF_CLIENTS
from tests.company import basic
from tests.e2e.processes import Service, run


def new_company(service: Service) -> tuple[str, dict[str, Any]]:
    """Make a client, and what it can report about.

    Returns its `Authorization`, and the values of parameters in paths that lead to something.
    """
    scopes = " ".join(sorted(OF_CLIENTS))
    options = ["--confidential", "--scope", scopes]
    made = run("clients", "create", "Shop", *options, environment=service.environment)
    assert made.returncode == 0, made.stderr
    told = dict(line.split("=", 1) for line in made.stdout.splitlines() if "=" in line)
    authorization = basic(told["client_id"], told["client_secret"])

    def post(path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json", **authorization}
        request = urllib.request.Request(
            f"{service.url}/api/v1{path}", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    rules = {"qualify": {"on": "purchase"}}
    post("/programmes", {"key": "shop", "name": "Shop", "rules": rules})
    referrer = post("/participants", {"external_id": "u-1", "code": {"expires_in_days": 9}})
    referral = post("/referrals", {"code": referrer["code"], "external_id": "u-2"})
    post("/events", {"id": "order-1001", "type": "purchase", "external_id": "u-2"})
    return authorization["Authorization"], {
        "participant_id": referrer["participant_id"],
        "referral_id": referral["id"],
        "key": "shop",
        "version": "1",
        "code": referrer["code"],
    }
