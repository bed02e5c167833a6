"""Whether the answers are right: some of them are compared with the database."""

import http.client
import json
import random
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg

from tests.load.workloads import DRAWS, SEED, Request

COMPARED: Final = DRAWS // 100
LIVE_CODE: Final = """
    SELECT c.code, c.expires_at, c.owner_id
      FROM users u
      JOIN referral_codes c ON c.owner_id = u.user_id
     WHERE u.email_key = %s
       AND c.ended_at IS NULL
       AND c.expires_at > now()
"""


def check(url: str, database_url: str, look_ups: list[Request]) -> None:
    """Compare one of a hundred look-ups; raise AssertionError at a wrong answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    found = 0
    with psycopg.connect(database_url) as database:
        for look_up in random.Random(SEED).sample(look_ups, COMPARED):
            connection.request("GET", look_up.path)
            response = connection.getresponse()
            body: dict[str, Any] = json.loads(response.read())
            row = database.execute(LIVE_CODE, [look_up.path.rpartition("/")[2]]).fetchone()
            if row is None:
                assert response.status == 404, body
                continue
            code, expires_at, owner_id = row
            expected = {
                "code": code,
                "expires_at": expires_at.isoformat().replace("+00:00", "Z"),
                "referrer_id": str(owner_id),
            }
            assert (response.status, body) == (200, expected), body
            found += 1
    connection.close()
    print(f"{COMPARED} answers are as the database has it, {found} of them with a code.")
