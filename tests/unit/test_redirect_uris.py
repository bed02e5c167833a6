"""Where a client's browsers may be sent: exactly where it says, and on loopback to any port."""

import pytest

from service.domain.oauth import Client
from service.domain.scopes import Scope


def client_of(*redirect_uris: str) -> Client:
    return Client(
        client_id="client",
        name="A native app",
        secret_hash=None,
        redirect_uris=redirect_uris,
        scopes=frozenset(Scope),
    )


@pytest.mark.parametrize(
    ("registered", "sent"),
    [
        ("http://127.0.0.1/callback", "http://127.0.0.1:51004/callback"),
        ("http://127.0.0.1/callback", "http://127.0.0.1/callback"),
        ("http://127.0.0.1/callback", "http://127.0.0.1:1/callback"),
        ("http://127.0.0.1/callback", "http://127.0.0.1:65535/callback"),
        ("http://127.0.0.1:8080/callback", "http://127.0.0.1:51004/callback"),
        ("http://127.0.0.1:8080/callback", "http://127.0.0.1/callback"),
        ("http://[::1]/callback?app=1", "http://[::1]:51004/callback?app=1"),
        ("http://127.0.0.1", "http://127.0.0.1:51004"),
        ("http://127.0.0.1?app=1", "http://127.0.0.1:51004?app=1"),
        ("https://app.example/callback", "https://app.example/callback"),
    ],
)
def test_it_may(registered: str, sent: str) -> None:
    assert client_of("com.example.app:/callback", registered).accepts_redirect(sent)


@pytest.mark.parametrize(
    ("registered", "sent"),
    [
        # Only the port is free.
        ("http://127.0.0.1/callback", "http://127.0.0.1:51004/other"),
        ("http://127.0.0.1/callback", "http://127.0.0.1:51004/callback/"),
        ("http://127.0.0.1/callback", "http://127.0.0.1:51004/callback?x=1"),
        ("http://127.0.0.1/callback", "http://127.0.0.1:51004/callback#x"),
        ("http://127.0.0.1/callback", "http://127.0.0.1:51004/Callback"),
        ("http://127.0.0.1/callback", "https://127.0.0.1:51004/callback"),
        ("http://127.0.0.1/callback", "http://[::1]:51004/callback"),
        ("http://127.0.0.1/callback", "http://127.0.0.2:51004/callback"),
        ("http://127.0.0.1/callback", "http://localhost:51004/callback"),
        ("http://127.0.0.1", "http://127.0.0.1:51004/"),
        # Only of the loopback addresses.
        ("http://localhost/callback", "http://localhost:51004/callback"),
        ("https://app.example/callback", "https://app.example:51004/callback"),
        ("https://127.0.0.1/callback", "https://127.0.0.1:51004/callback"),
        # It is a port, and nothing else.
        ("http://127.0.0.1/callback", "http://127.0.0.1:/callback"),
        ("http://127.0.0.1/callback", "http://127.0.0.1:0/callback"),
        ("http://127.0.0.1/callback", "http://127.0.0.1:65536/callback"),
        ("http://127.0.0.1/callback", "http://127.0.0.1:+80/callback"),
        ("http://127.0.0.1/callback", "http://127.0.0.1:\u0665\u0661/callback"),
        ("http://127.0.0.1/callback", "http://127.0.0.1:80@evil.example/callback"),
        ("http://127.0.0.1/callback", "http://127.0.0.1:80.evil.example/callback"),
        ("http://127.0.0.1/callback", "http://127.0.0.1.evil.example/callback"),
        ("http://127.0.0.1/callback", "http://user@127.0.0.1:51004/callback"),
        ("http://127.0.0.1/callback", "http://127.0.0.1:51004\\@evil.example/callback"),
        ("http://127.0.0.1/callback", "HTTP://127.0.0.1:51004/callback"),
        ("http://127.0.0.1/callback", "http://127.0.0.1:51004/callback\n"),
        ("http://127.0.0.1/callback", ""),
    ],
)
def test_it_may_not(registered: str, sent: str) -> None:
    assert not client_of("com.example.app:/callback", registered).accepts_redirect(sent)
