"""Where webhooks may go, whatever notation an address is written in."""

from ipaddress import ip_network

import pytest

from service.domain.errors import WebhookUrlRefused
from service.domain.webhook_addresses import check_url, may_connect

NOT_PUBLIC = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:a00:1::1",
    "2002:7f00:1::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "2606:4700::1%eth0",
    "nonsense",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "100.128.0.1", "172.32.0.1", "::ffff:8.8.8.8", "2606:4700::1111"]
OWN = (ip_network("10.1.0.0/16"), ip_network("fd00::/8"))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_nothing_is_sent_to_what_is_not_public(address: str) -> None:
    assert not may_connect(address, (), encrypted=True)
    assert not may_connect(address, (), encrypted=False)


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_is_reached_by_https_alone(address: str) -> None:
    assert may_connect(address, (), encrypted=True)
    assert not may_connect(address, OWN, encrypted=False)


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"])
def test_a_companys_own_network_is_reached_in_any_way(address: str) -> None:
    for encrypted in (True, False):
        assert may_connect(address, OWN, encrypted=encrypted)
        assert not may_connect("10.2.0.1", OWN, encrypted=encrypted)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com",
        "https://hooks.example.com:8443/a/b?c=d&e=%20",
        "HTTPS://HOOKS.EXAMPLE.COM/",
        "https://hooks.example.com./",
        "https://xn--bcher-kva.example/",
        "https://8.8.8.8/",
        "https://[2606:4700::1111]:443/",
        "https://a.b/" + "x" * 1988,
    ],
)
def test_a_url_is_accepted(url: str) -> None:
    check_url(url, ())


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",
        "https:hooks.example.com",
        "https:///hooks.example.com",
        "https://",
        "https://localhost/",
        "https://localhost./",
        "https://hooks/",
        "https://.example.com/",
        "https://hooks..example.com/",
        "https://user@hooks.example.com/",
        "https://user:password@hooks.example.com/",
        "https://@hooks.example.com/",
        "https://hooks.example.com/#",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:65536/",
        "https://hooks.example.com:x/",
        "https://hooks.example.com\\@127.0.0.1/",
        "https://hooks.example.com /",
        "https://hooks.example.com/\n",
        "https://hooks.example.com/\x00",
        "https://bücher.example/",
        "https://①②⑦.⓪.⓪.①/",
        "https://127。0。0。1/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://127.0.0.1./",
        "https://0177.0.0.1/",
        "https://0x7f.0.0.1/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://017700000001/",
        "https://127.0.0.0x1/",
        "https://%31%32%37.0.0.1/",
        "https://256.256.256.256/",
        "https://10.0.0.1:8443/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:7f00:1]/",
        "https://[64:ff9b::a00:1]/",
        "https://[fe80::1%25eth0]/",
        "https://[::1/",
        "https://[hooks.example.com]/",
        "https://a.b/" + "x" * 1989,
        "gopher://hooks.example.com/",
        "javascript:alert(1)",
    ],
)
def test_a_url_is_refused(url: str) -> None:
    with pytest.raises(WebhookUrlRefused) as refused:
        check_url(url, ())
    assert refused.value.field == "url"


@pytest.mark.parametrize(
    "url", ["http://10.1.2.3:8000/", "http://hooks.internal/", "https://10.1.0.1/"]
)
def test_with_networks_of_its_own_a_company_need_not_encrypt(url: str) -> None:
    check_url(url, OWN)
    with pytest.raises(WebhookUrlRefused):
        check_url(url.replace("10.1", "10.2").replace("hooks.internal", "8.8.8.8"), OWN)
