"""A reverse proxy that serves something below a path, which it takes off."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Final
from urllib.parse import urlsplit

LOOPBACK: Final = "127.0.0.1"
_OF_THE_CONNECTION: Final = {"connection", "keep-alive", "transfer-encoding"}


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    target = ""
    prefix = ""
    as_it_is: tuple[str, ...] = ()

    def _pass_on(self) -> None:
        path = self.path
        if path.startswith(f"{self.prefix}/"):
            path = path.removeprefix(self.prefix)
        elif path not in self.as_it_is:
            self.send_error(404, "Not below the path")
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = http.client.HTTPConnection(urlsplit(self.target).netloc, timeout=20)
        connection.request(self.command, path, body or None, dict(self.headers.items()))
        answer = connection.getresponse()
        sent = answer.read()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _OF_THE_CONNECTION:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
        connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _pass_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def below(prefix: str, port: int, target: str, as_it_is: tuple[str, ...] = ()) -> Iterator[None]:
    """Serve `target` below the prefix at that port; pass on the paths `as_it_is` untouched."""
    handler = type("Proxy", (_Proxy,), {"target": target, "prefix": prefix, "as_it_is": as_it_is})
    with ThreadingHTTPServer((LOOPBACK, port), handler) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
