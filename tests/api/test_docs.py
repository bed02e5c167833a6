"""The pages that show the OpenAPI document, and what they load."""

import re
from hashlib import sha256
from pathlib import Path

import pytest

from service.api.docs import pages as docs
from tests.factories import Api

ASSETS = Path(docs.__file__).parent / "assets"
SUM = re.compile(r"^ {4}([0-9a-f]{64})  (\S+)$", re.MULTILINE)


@pytest.mark.parametrize("page", ["/docs", "/redoc", "/docs/oauth2-redirect.html"])
async def test_a_page_and_what_it_loads_is_served_under_a_strict_policy(
    api: Api, page: str
) -> None:
    answer = await api.get(f"/{page}")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert "http" not in policy

    links = re.findall(r'(?:src|href)="([^"]+)"', answer.body.decode())
    assert links
    for link in links:
        loaded = await api.get(f"/{link}" if link.startswith("/") else f"//docs/{link}")
        assert loaded.status == 200, link


@pytest.mark.parametrize("accept", ["text/html", "*/*", "application/json", ""])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_root_leads_to_the_docs(api: Api, method: str, accept: str) -> None:
    headers = {"Accept": accept}
    answer = await api.call(method, "//", headers=headers, allow_redirects=False)
    assert (answer.status, answer.headers["Location"]) == (302, "/docs")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    followed = await api.call(method, "//", headers=headers)
    assert followed.status == 200


async def test_the_root_has_links_for_those_who_do_not_follow(api: Api) -> None:
    answer = await api.get("//", allow_redirects=False)
    links = re.findall(r'href="([^"]+)"', answer.body.decode())
    assert links == ["/docs", "/redoc", "/openapi.json", "/health/ready"]
    for link in links:
        assert (await api.get(f"/{link}")).status == 200


async def test_a_bundle_is_sent_compressed_to_whom_that_suits(api: Api) -> None:
    path = "//docs/assets/swagger-ui-bundle.js"
    plain = await api.get(path, headers={"Accept-Encoding": "gzip;q=0, identity"})
    assert "Content-Encoding" not in plain.headers
    assert plain.body == (ASSETS / "swagger-ui-bundle.js").read_bytes()
    compressed = await api.get(path, headers={"Accept-Encoding": "br, gzip"})
    assert compressed.headers["Content-Encoding"] == "gzip"
    assert compressed.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert int(compressed.headers["Content-Length"]) < len(plain.body) / 3
    assert compressed.body == plain.body


async def test_a_browser_that_has_a_file_is_not_sent_it_again(api: Api) -> None:
    path = "//docs/assets/swagger-ui.css"
    first = await api.get(path)
    assert first.headers["Cache-Control"] == "no-cache"
    again = await api.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    other = await api.get(path, headers={"If-None-Match": 'W/"another"'})
    assert other.status == 200


@pytest.mark.parametrize("name", ["VERSIONS.md", "..%2Fdocs.py", "%2e%2e", "nothing.js"])
async def test_nothing_else_is_served(api: Api, name: str) -> None:
    answer = await api.get(f"//docs/assets/{name}")
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_the_vendored_files_are_those_that_versions_names() -> None:
    sums = {name: sum_ for sum_, name in SUM.findall((ASSETS / "VERSIONS.md").read_text())}
    ours = {"docs.html", "docs.js", "redoc.html", "redoc.js", "pages.css"}
    served = {path.name for path in ASSETS.iterdir() if path.suffix not in {".md", ".txt"}}
    assert {name for name in served if "LICENSE" not in name and "NOTICE" not in name} == (
        set(sums) | ours
    )
    for name, sum_ in sums.items():
        assert sha256((ASSETS / name).read_bytes()).hexdigest() == sum_, name
