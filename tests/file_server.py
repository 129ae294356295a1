"""A real HTTP server that misbehaves as told: breaks off, throttles, lies, refuses, changes its mind."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit


@dataclass
class Served:
    """A file as the server hands it out."""

    body: bytes
    etag: str | None = '"1"'
    modified: str | None = None
    content_type: str = "application/x-tar"
    ranges: bool = True
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # answered first, one each
    refuses: int | None = None  # the status of every answer
    redirect: str | None = None
    cut: int | None = None  # bytes of a body after which the connection breaks
    cuts: int = 10**9  # how often it does
    claimed_size: int | None = None  # what Content-Range says
    excess: bytes = b""  # what follows the bytes that were asked for
    rate: float | None = None  # bytes per second of each connection
    before: Callable[[Served], None] = lambda served: None  # called ahead of each answer


class Request(NamedTuple):
    """What was asked: the path with its query, and the bytes [start, end) (None: the whole file)."""

    path: str
    span: tuple[int, int] | None


class FileServer:
    """`files` maps a path to what is served there; `requests` is the log."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.files: dict[str, Served] = {}
        self.requests: list[Request] = []
        self.lock = threading.Lock()

    def spans(self) -> list[tuple[int, int]]:
        """The ranges that were asked for."""
        return [request.span for request in self.requests if request.span]


@contextmanager
def serving() -> Iterator[FileServer]:
    """A running server."""

    class Handler(_Handler):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Handler.files = FileServer(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield Handler.files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: FileServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        asked = (int(span[1]), int(span[2]) + 1) if span else None
        with self.files.lock:
            self.files.requests.append(Request(self.path, asked))
            served = self.files.files.get(path, Served(b"", refuses=404))
            served.before(served)
            refusal = served.refusals.pop(0) if served.refusals else None
            cut = served.cut if served.cuts > 0 else None
            served.cuts -= cut is not None
            body, etag = served.body, served.etag
        if refusal:
            self._answer(refusal[0], refusal[1], b"not now")
        elif served.refuses:
            self._answer(served.refuses, {}, b"no")
        elif served.redirect:
            self._answer(302, {"Location": served.redirect}, b"")
        else:
            self._send(served, body, etag, asked, cut)

    def _send(
        self, served: Served, body: bytes, etag: str | None, asked: tuple[int, int] | None, cut: int | None
    ) -> None:
        headers = {"Content-Type": served.content_type}
        headers |= {"ETag": etag} if etag else {}
        headers |= {"Last-Modified": served.modified} if served.modified else {}
        size = served.claimed_size or len(body)
        if asked is None or not served.ranges:
            self._answer(200, headers, body, served.rate, cut)
        elif asked[0] >= size:
            self._answer(416, {"Content-Range": f"bytes */{size}"}, b"")
        else:
            start, end = asked[0], min(asked[1], size)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            self._answer(206, headers, body[start:end] + served.excess, served.rate, cut)

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, rate: float | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        is_cut = cut is not None and cut < len(body)
        try:
            self._write(body[:cut] if is_cut else body, rate)
            if is_cut:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
        except (BrokenPipeError, ConnectionResetError):
            is_cut = True
        self.close_connection = is_cut

    def _write(self, body: bytes, rate: float | None) -> None:
        if rate is None:
            self.wfile.write(body)
            return
        step = max(1, int(rate / 100))
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            time.sleep(0.01)
