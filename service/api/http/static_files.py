"""Bodies that never change while the process runs: kept in memory, compressed once."""

import gzip
from dataclasses import dataclass
from hashlib import sha256

from aiohttp import ETag, web


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A body, the same for everyone. Browsers keep it, and revalidate it each time."""

    body: bytes
    compressed: bytes
    content_type: str
    etag: ETag
    headers: dict[str, str]

    @classmethod
    def of(
        cls, body: bytes, content_type: str, headers: dict[str, str] | None = None
    ) -> "StaticFile":
        """Return the file; `headers` are sent with it besides those for caching."""
        return cls(
            body=body,
            compressed=gzip.compress(body, mtime=0),
            content_type=content_type,
            # Weak, because the compressed body is a different sequence of bytes.
            etag=ETag(sha256(body).hexdigest()[:32], is_weak=True),
            headers={"Cache-Control": "no-cache", "Vary": "Accept-Encoding", **(headers or {})},
        )

    def respond(self, request: web.Request) -> web.Response:
        """Return the response: the file, or 304 if the client has it."""
        if any(etag.value in {self.etag.value, "*"} for etag in request.if_none_match or ()):
            response = web.Response(status=304, headers=self.headers)
        elif _accepts_gzip(request.headers.get("Accept-Encoding", "")):
            response = web.Response(body=self.compressed, headers=self.headers)
            response.headers["Content-Encoding"] = "gzip"
            response.headers["Content-Type"] = self.content_type
        else:
            response = web.Response(body=self.body, headers=self.headers)
            response.headers["Content-Type"] = self.content_type
        response.etag = self.etag
        return response


def _accepts_gzip(accept_encoding: str) -> bool:
    """Whether the Accept-Encoding header names gzip without refusing it (RFC 9110, 12.5.3)."""
    codings = (coding.partition(";") for coding in accept_encoding.split(","))
    return any(
        name.strip().lower() == "gzip" and weight.replace(" ", "").rstrip("0.") != "q="
        for name, _, weight in codings
    )
