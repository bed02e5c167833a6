"""Where the endpoints are, and what they are sent."""

import base64
import re
from urllib.parse import quote_plus

from tests.oauth import INTROSPECT, REVOKE, TOKEN, Application

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
ENDPOINTS = [TOKEN, REVOKE, INTROSPECT]
INVALID_CLIENT = (401, "invalid_client")
INVALID_REQUEST = (400, "invalid_request")
DESCRIPTION = re.compile(r"[\x20-\x21\x23-\x5B\x5D-\x7E]+")
"""RFC 6749, 5.2: what an error_description may be written with."""


def basic(client_id: str, secret: str) -> dict[str, str]:
    """Return the header of RFC 6749, 2.3.1: both are form-encoded first."""
    raw = f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()
    return {"Authorization": f"Basic {base64.b64encode(raw).decode()}"}


def valid_form(application: Application, path: str) -> dict[str, str]:
    """Return a form that the endpoint answers with 200, but for the client's authentication."""
    return {"grant_type": "client_credentials"} if path == TOKEN else {"token": "unknown"}
