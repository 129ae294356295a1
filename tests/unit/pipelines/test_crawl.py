"""Crawls of a real HTTP server that misbehaves, of an S3 server, of files and of a mirror; kills; memory."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from urllib.parse import quote, urlsplit

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import HTTPStore

from pipelines import crawl_part, transport
from pipelines.crawl import Crawl, Part, Wanted, crawl, crawled, read_part

ROOT = Path(__file__).parents[3]


def jpeg(number: int, size: int = 3000) -> bytes:
    """What begins like a JPEG; no crawl looks further."""
    return b"\xff\xd8\xff" + number.to_bytes(4, "big") * (size // 4)


class Server:
    """`routes`: path -> what answers there. `asked` counts requests; `most` is how many were answered at once."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.routes: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: Counter[str] = Counter()
        self.at: defaultdict[str, list[float]] = defaultdict(list)
        self.now, self.most = Counter[str](), Counter[str]()
        self.pause = 0.0
        self.lock = threading.Lock()

    def image(self, number: int, **options: int) -> str:
        """Serve an image and return its URL."""
        self.routes[f"/{number}.jpg"] = sends(jpeg(number, **options))
        return f"{self.url}/{number}.jpg"

    def at_path(self, path: str, answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
        self.routes[path] = answer
        return self.url + path


def sends(body: bytes, status: int = 200, claims: int | None = None, **headers: str):
    """Answers with `body`; claims: the length that is stated instead of its own."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Type": "image/jpeg", **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body) if claims is None else claims))
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = claims is not None

    return answer


def chunked(body: bytes):
    """Answers without stating the length."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(body), 100):
            block = body[start : start + 100]
            handler.wfile.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")

    return answer


def resets(body: bytes):
    """Breaks off in the middle of the body."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        linger = b"\x01\0\0\0\0\0\0\0"  # on, 0 seconds: closing sends a reset
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        os.close(handler.connection.detach())
        handler.close_connection = True

    return answer


def in_turn(*answers: Callable[[BaseHTTPRequestHandler], None]):
    """The first answer once, then the second, ...; the last for ever."""
    left = list(answers)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


def drips(handler: BaseHTTPRequestHandler) -> None:
    """Sends a byte now and then, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    for byte in jpeg(0):
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            host = self.headers["Host"].partition(":")[0]
            with running.lock:
                running.asked[self.path] += 1
                running.at[self.path].append(time.monotonic())
                running.now[host] += 1
                running.now["all"] += 1
                for name in (host, "all"):
                    running.most[name] = max(running.most[name], running.now[name])
            time.sleep(running.pause)
            with running.lock:  # before the answer, on which the next request may follow
                running.now.subtract([host, "all"])
            try:
                running.routes.get(urlsplit(self.path).path, sends(b"no", 404))(self)
            except (BrokenPipeError, ConnectionResetError, ValueError, OSError):
                self.close_connection = True

    http = ThreadingHTTPServer(("0.0.0.0", 0), Handler)  # all of 127.0.0.0/8: many hosts
    http.daemon_threads = True
    http.handle_error = lambda *_: None  # what was reset on purpose
    running = Server(http.server_port)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield running
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PAUSE", 0.01)


def options(**changes: object) -> Crawl:
    values = {
        "mirror": None, "connections": 4, "per_host": 4, "attempts": 3, "timeout_seconds": 2, "max_bytes": 10_000,
        "part_size": 100,
    }  # fmt: skip
    return Crawl.model_validate({**values, **changes})


def listed(*urls: str | tuple[str, ...]) -> list[Wanted]:
    """One image for each URL or tuple of URLs."""
    alternatives = [url if isinstance(url, tuple) else (url,) for url in urls]
    return [Wanted(f"k{number}", urls, {"label": number % 7}) for number, urls in enumerate(alternatives)]


def run(folder: Path, wanted: list[Wanted], **changes: object) -> dict:
    return crawl(lambda: iter(wanted), folder, options(**changes), None)


def fate(folder: Path, url: str, **changes: object) -> str:
    """The cause of death of a single URL, or "fetched"."""
    result = run(folder, listed(url), **changes)
    assert result["wanted"] == 1
    return "fetched" if result["fetched"] else next(iter(result["dead"]))


def fetched(folder: Path) -> dict[str, tuple[bytes, dict]]:
    """key -> image and fields, read with `tarfile` alone."""
    found = {}
    for path in sorted((folder / "crawl").glob("part-*.tar")):
        with tarfile.open(path, "r:") as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
        for name, data in files.items():
            if not name.endswith(".json"):
                known = json.loads(files[f"{name.partition('.')[0]}.json"])
                assert known["sha256"] == hashlib.sha256(data).hexdigest()
                found[known["key"]] = (data, known["fields"])
    return found


def dead(folder: Path) -> dict[str, str]:
    """URL -> cause, as the parts' lists have it."""
    lines = [line for path in (folder / "crawl").glob("*.dead.jsonl") for line in path.read_text().splitlines()]
    return {line["url"]: line["cause"] for line in map(json.loads, lines)}


def names(folder: Path) -> list[str]:
    """The files of a crawl, but for the note of who has answered."""
    return sorted(path.name for path in (folder / "crawl").iterdir() if path.name != "answered.json")


def test_images_lie_in_plain_tars_with_their_fields(server: Server, tmp_path: Path) -> None:
    wanted = listed(*(server.image(number, size=1000 + 77 * number) for number in range(10)))
    assert run(tmp_path, wanted, part_size=4) == {"wanted": 10, "fetched": 10, "dead": {}}
    sizes = {f"k{n}": (jpeg(n, 1000 + 77 * n), {"label": n % 7}) for n in range(10)}
    assert fetched(tmp_path) == sizes
    parts = [f"part-00000{part}" for part in range(3)]
    assert names(tmp_path) == [
        "crawl.json",
        *(f"{part}.{end}" for part in parts for end in ("dead.jsonl", "json", "tar")),
    ]
    record = json.loads((tmp_path / "crawl/crawl.json").read_text())
    assert [part["fetched"] for part in record["parts"]] == [4, 4, 2]
    for part in record["parts"]:
        data = (tmp_path / "crawl" / part["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (part["bytes"], part["sha256"])
    with tarfile.open(tmp_path / "crawl/part-000001.tar") as tar:
        assert sorted(tar.getnames()) == [f"{number:08d}.{end}" for number in range(4, 8) for end in ("jpg", "json")]
    read = [image for part in crawled(tmp_path) for image in read_part(part)]
    assert [image.key for image in read] == [f"k{number}" for number in range(10)]  # the list's order
    for key, image, fields, place in read:
        assert (image, fields) == sizes[key]
        assert place.path.read_bytes()[place.offset : place.offset + len(image)] == image


@pytest.mark.parametrize(
    ("answer", "cause", "times"),
    [
        (sends(b"", 404), "HTTP 404", 1),
        (sends(b"", 410), "HTTP 410", 1),
        (sends(b"", 403), "HTTP 403", 1),
        (sends(jpeg(1), 206), "HTTP 206", 1),
        (sends(b"", 503), "HTTP 503", 3),
        (sends(b"", 429), "HTTP 429", 3),
        (in_turn(sends(b"", 503), sends(b"", 408), sends(jpeg(1))), "fetched", 3),
        (in_turn(sends(b"", 503), sends(b"", 404)), "HTTP 404", 2),
        (resets(jpeg(1)), "broken off", 3),
        (in_turn(resets(jpeg(1)), sends(jpeg(1))), "fetched", 2),
        (sends(jpeg(1), claims=5000), "broken off", 3),  # more is promised than comes
        (sends(b""), "empty", 1),
        (chunked(b""), "empty", 1),
        (sends(b"\xef\xbb\xbf\n <!DOCTYPE html><title>Sorry</title>"), "web page", 1),
        (sends(b"<p>Sorry</p>" * 500, Content_Type="text/html; charset=utf-8"), "web page", 1),
        (sends(b"Sorry"), "not an image", 1),
        (sends(b"RIFF\x10\0\0\0WEBPVP8 "), "not an image", 1),
        (sends(jpeg(1), Content_Type="text/html"), "fetched", 1),
        (sends(jpeg(1, 10_000)), "too large", 1),
        (sends(b"\xff\xd8\xff", claims=10**12), "too large", 1),
        (chunked(jpeg(1, 12_000)), "too large", 1),
        (chunked(jpeg(1)), "fetched", 1),
        (sends(b"", 302), "HTTP 302", 1),
        (sends(b"", 302, Location="ftp://127.0.0.1/a.jpg"), "bad URL", 1),
        (sends(b"", 302, Location="file:///etc/passwd"), "bad URL", 1),
        (sends(b"", 302, Location="/a.jpg"), "too many redirects", 11),
        (lambda handler: handler.wfile.write(b"220 mail.example.org ESMTP\r\n\r\n"), "bad answer", 1),
    ],
)  # fmt: skip
def test_every_answer_has_one_fate(server: Server, tmp_path: Path, answer, cause: str, times: int) -> None:
    check_fate(server, tmp_path, answer, cause, times)


def check_fate(server: Server, folder: Path, answer, cause: str, times: int, **changes: object) -> None:
    url = server.at_path("/a.jpg", answer)
    assert fate(folder, url, **changes) == cause
    assert server.asked == {"/a.jpg": times}
    assert dead(folder) == ({} if cause == "fetched" else {url: cause})


@pytest.mark.parametrize(
    ("answer", "cause", "times"),
    [(drips, "timeout", 3), (in_turn(drips, sends(jpeg(1))), "fetched", 2)],
)
def test_an_attempt_ends_with_its_time(server: Server, tmp_path: Path, answer, cause: str, times: int) -> None:
    check_fate(server, tmp_path, answer, cause, times, timeout_seconds=0.5)


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("http://nowhere.invalid/a.jpg", "unknown host"),
        ("http://127.0.0.1:1/a.jpg", "no connection"),
        ("http:///a.jpg", "bad URL"),
        ("http://[::1/a.jpg", "bad URL"),
        ("http://" + "a" * 70 + ".org/a.jpg", "bad URL"),
        ("ftp://127.0.0.1/a.jpg", "bad URL"),
        ("a.jpg", "bad URL"),
        ("", "bad URL"),
    ],
)
def test_urls_that_lead_nowhere(tmp_path: Path, url: str, cause: str) -> None:
    assert fate(tmp_path, url, attempts=1) == cause


def test_no_url_however_odd_ends_a_crawl(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:1")
    rng = random.Random(0)
    letters = "abc:/?#[]@!$&'()*+,;=%20%zz \\\t\n\0\x7f\u00e4\u4e2d\ud7ff.-_~|^`{}<>\"0189"
    urls = set()
    for number in range(300):
        text = "".join(rng.choice(letters) for _ in range(rng.randrange(30)))
        starts = (
            "http://127.0.0.1:1/",
            "http://127.0.0.1:1",
            "https://9\0",
            "http://[",
            "s3://",
            "s3://toys/",
            "file://",
            "",
        )
        urls.add(starts[number % len(starts)] + text)
    result = run(tmp_path, [*listed(*sorted(urls)), Wanted("good", (server.image(1),), {})], attempts=1, part_size=999)
    assert result["fetched"] == 1
    known = {"bad URL", "no connection", "unknown host", "no such file", "HTTP 404", "timeout"}
    assert set(result["dead"]) <= known


def test_no_answer_however_odd_ends_a_crawl(server: Server, tmp_path: Path) -> None:
    rng = random.Random(0)
    heads = (
        b"", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Type: \xff;;=\r\n\r\n", b"HTTP/1.1 302 \r\nLocation: ",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", b"HTTP/1.1 9 OK\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
    )  # fmt: skip

    def answer(body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
        def send(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(body)
            handler.close_connection = True

        return send

    urls = [server.at_path(f"/{n}", answer(heads[n % 8] + rng.randbytes(50) + b"\r\n\r\n")) for n in range(80)]
    result = run(tmp_path, listed(*urls, server.image(1)), attempts=1)
    assert result["fetched"] == 1
    assert sum(result["dead"].values()) == 80


def test_a_server_without_tls_gives_no_secure_connection(server: Server, tmp_path: Path) -> None:
    assert fate(tmp_path, f"https://127.0.0.1:{server.port}/a.jpg") == "no secure connection"


def test_why_http_does_not_go_through_obstore(server: Server) -> None:
    url = server.at_path("/a.jpg", chunked(jpeg(1)))
    store = HTTPStore.from_url(url, client_options={"allow_http": True})
    with pytest.raises(GenericError, match="Content-Length Header missing"):
        obstore.get(store, "")


def test_of_a_large_answer_little_is_read(server: Server, tmp_path: Path) -> None:
    sent = []

    def floods(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(jpeg(1, 2**16))
            sent.append(2**16)

    assert fate(tmp_path, server.at_path("/a.jpg", floods), timeout_seconds=20) == "too large"
    assert sum(sent) < 2**24  # what the sockets' buffers took, of 64 MB


def test_what_comes_beyond_the_stated_length_is_not_taken(server: Server, tmp_path: Path) -> None:
    cause = fate(tmp_path, server.at_path("/a.jpg", sends(jpeg(1), claims=2000)))
    assert cause in ("fetched", "bad answer")  # as the excess comes later, or with the rest
    assert fetched(tmp_path) in ({}, {"k0": (jpeg(1)[:2000], {"label": 0})})  # that it is cut, sharding sees


def test_redirects_are_followed_with_their_query(server: Server, tmp_path: Path) -> None:
    server.image(7)
    server.at_path("/old/a", sends(b"", 301, Location="../new?x=1%2C2&y=a%20b"))
    server.at_path("/new", sends(b"", 307, Location=f"{server.url.replace('127.0.0.1', 'localhost')}/7.jpg"))
    assert fate(tmp_path, f"{server.url}/old/a?id=3") == "fetched"
    assert server.asked == {"/old/a?id=3": 1, "/new?x=1%2C2&y=a%20b": 1, "/7.jpg": 1}


def test_urls_are_asked_for_as_they_are_listed(server: Server, tmp_path: Path) -> None:
    paths = ["/a%2Cb.jpg?sig=x%2Fy+z", "/a,b(1).jpg?u=http://c.org/d"]
    for path in paths:
        server.routes[urlsplit(path).path] = sends(jpeg(1))
    server.routes["/" + quote("ä ö.jpg")] = sends(jpeg(2))
    assert run(tmp_path, listed(*(server.url + path for path in [*paths, "/ä ö.jpg"])))["fetched"] == 3
    assert set(server.asked) == {*paths, "/" + quote("ä ö.jpg")}


def test_the_first_url_that_answers_is_taken(server: Server, tmp_path: Path) -> None:
    gone, page = server.at_path("/gone", sends(b"", 410)), server.at_path("/page", sends(b"<html>"))
    wanted = listed((gone, page, server.image(1), server.image(2)), (gone + "?1", page + "?1"), server.image(3))
    assert run(tmp_path, wanted) == {"wanted": 3, "fetched": 2, "dead": {"HTTP 410": 1}}  # that of the first URL
    assert server.asked["/2.jpg"] == 0
    assert fetched(tmp_path)["k0"][0] == jpeg(1)
    assert dead(tmp_path) == {gone: "HTTP 410", page: "web page", gone + "?1": "HTTP 410", page + "?1": "web page"}


def test_other_formats_keep_their_names(server: Server, tmp_path: Path) -> None:
    files = {"png": b"\x89PNG\r\n\x1a\n...", "gif": b"GIF89a...", "bmp": b"BM...", "jpg": jpeg(1)}
    wanted = listed(*(server.at_path(f"/{end}", sends(body)) for end, body in files.items()))
    assert run(tmp_path, wanted)["fetched"] == 4
    with tarfile.open(tmp_path / "crawl/part-000000.tar") as tar:
        assert {name[-3:] for name in tar.getnames()} == {*files, "son"}
    assert [image.image for part in crawled(tmp_path) for image in read_part(part)] == list(files.values())


@pytest.mark.parametrize(("connections", "per_host"), [(6, 2), (3, 8)])
def test_no_host_is_asked_more_than_so_often_at_once(
    server: Server, tmp_path: Path, connections: int, per_host: int
) -> None:
    server.pause = 0.02
    urls = [server.image(number).replace("127.0.0.1", f"127.0.0.{1 + number // 20}") for number in range(80)]
    run(tmp_path, listed(*urls), connections=connections, per_host=per_host, timeout_seconds=5)
    hosts = {host: most for host, most in server.most.items() if host != "all"}
    assert len(hosts) == 4
    assert max(hosts.values()) <= per_host
    assert server.most["all"] <= connections
    assert server.most["all"] >= min(connections, 3)  # the list begins with 20 of one host, which hold up no other


def test_a_host_that_many_redirect_to_is_not_asked_too_often(server: Server, tmp_path: Path) -> None:
    server.pause = 0.01
    target = server.image(1)
    server.at_path("/moved", sends(b"", 302, Location=target))
    urls = [f"http://127.0.0.{2 + number}:{server.port}/moved" for number in range(20)]
    assert run(tmp_path, listed(*urls), connections=20, per_host=2)["fetched"] == 20
    assert server.most["127.0.0.1"] <= 2


def test_a_server_is_given_the_time_it_asks_for(server: Server, tmp_path: Path) -> None:
    url = server.at_path("/a.jpg", in_turn(sends(b"", 429, Retry_After="1"), sends(jpeg(1))))
    other = server.at_path(
        "/b.jpg", in_turn(sends(b"", 503, Retry_After="Wed, 21 Oct 2099 07:28:00 GMT"), sends(jpeg(2)))
    )
    assert run(tmp_path, listed(url, other))["fetched"] == 2
    asked = server.at["/a.jpg"]
    assert 1.0 <= asked[1] - asked[0] < 3.0


def test_nothing_is_fetched_again(server: Server, tmp_path: Path) -> None:
    wanted = listed(*(server.image(n) for n in range(9)), *(f"{server.url}/gone{n}" for n in range(4)))
    result = run(tmp_path, wanted, part_size=5)
    files = {name: (tmp_path / "crawl" / name).read_bytes() for name in names(tmp_path)}
    server.asked.clear()
    assert run(tmp_path, wanted, part_size=5, connections=1, attempts=9, timeout_seconds=9) == result
    assert result == {"wanted": 13, "fetched": 9, "dead": {"HTTP 404": 4}}
    assert not server.asked
    assert {name: (tmp_path / "crawl" / name).read_bytes() for name in names(tmp_path)} == files


@pytest.mark.parametrize("change", ["url", "fields", "key", "order"])
def test_a_changed_list_starts_the_parts_that_differ_anew(server: Server, tmp_path: Path, change: str) -> None:
    wanted = listed(*(server.image(number) for number in range(15)))
    run(tmp_path, wanted, part_size=5)
    server.asked.clear()
    if change == "order":
        wanted[6], wanted[7] = wanted[7], wanted[6]
    else:
        new = {"url": {"urls": (server.image(99),)}, "fields": {"fields": {"label": 9}}, "key": {"key": "new"}}
        wanted[6] = wanted[6]._replace(**new[change])
    run(tmp_path, wanted, part_size=5)
    assert set(server.asked.values()) == {1}
    assert set(server.asked) == {urlsplit(item.urls[0]).path for item in wanted[5:10]}
    assert fetched(tmp_path) == {
        item.key: (jpeg(int(item.urls[0].split("/")[-1][:-4])), item.fields) for item in wanted
    }
    assert len(names(tmp_path)) == 3 * 3 + 1


def test_other_bounds_start_all_parts_anew_and_a_shorter_list_leaves_no_part(server: Server, tmp_path: Path) -> None:
    wanted = listed(*(server.image(number, size=1000 * number + 8) for number in range(4)))
    assert run(tmp_path, wanted, part_size=2)["fetched"] == 4
    assert run(tmp_path, wanted, part_size=2, max_bytes=1500)["dead"] == {"too large": 2}
    assert run(tmp_path, wanted[:2], part_size=2)["wanted"] == 2
    assert names(tmp_path) == ["crawl.json", *(f"part-000000.{end}" for end in ("dead.jsonl", "json", "tar"))]
    assert run(tmp_path, []) == {"wanted": 0, "fetched": 0, "dead": {}}
    assert names(tmp_path) == ["crawl.json"]
    assert crawled(tmp_path) == []


PROGRAM = """
import json, sys
from pathlib import Path
from pipelines import transport
from pipelines.command import one_line_errors
from pipelines.crawl import Crawl, Wanted, crawl
transport.PAUSE = 0.01
url, options = sys.argv[1], json.loads(sys.argv[2])
def wanted():
    for number in range(60):
        yield Wanted(str(number), (f"{url}/gone/{number}", f"{url}/{number}.jpg")[number % 3 > 0:], {})
with one_line_errors():
    print(json.dumps(crawl(wanted, Path("."), Crawl.model_validate(options), None)))
"""


def start(server: Server, folder: Path, **changes: object) -> subprocess.Popen[str]:
    """A process that crawls 60 images, of which every third is also listed at a URL that is gone."""
    for number in range(60):
        server.image(number)
    command = [sys.executable, "-c", PROGRAM, server.url, options(timeout_seconds=9, **changes).model_dump_json()]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def noted(folder: Path) -> set[str]:
    """The URL paths whose fate is on the disk, in complete parts and in others."""
    found = set()
    for path in (folder / "crawl").glob("*dead*"):
        found |= {
            urlsplit(json.loads(line)["url"]).path for line in path.read_text().splitlines(True) if line[-1] == "\n"
        }
    for path in (folder / "crawl").glob("*.tar*"):
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.name.endswith("json") and (text := tar.extractfile(member).read()).endswith(b"}"):
                        found.add(urlsplit(json.loads(text)["url"]).path)
        except tarfile.ReadError:  # empty yet, or torn
            continue
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert json.loads(out) == {"wanted": 60, "fetched": 60, "dead": {}}
    return err


@pytest.mark.slow
@pytest.mark.parametrize("part_size", [25, 1000])
def test_after_kills_nothing_that_was_noted_is_asked_for_again(server: Server, tmp_path: Path, part_size: int) -> None:
    server.pause = 0.03
    known: set[str] = set()
    total: Counter[str] = Counter()
    for more in (8, 22, 20):
        process = start(server, tmp_path, part_size=part_size)
        wait_until(lambda more=more: server.asked.total() >= more)
        process.kill()
        process.communicate()
        assert not known & set(server.asked)
        known = noted(tmp_path)
        total += server.asked
        server.asked.clear()
    assert 20 < len(known) < 80
    finish(start(server, tmp_path, part_size=part_size))
    assert not known & set(server.asked)
    total += server.asked
    assert len(total) == 80
    assert sum(times - 1 for times in total.values()) <= 3 * 4  # what was under way at each of three kills
    assert fetched(tmp_path) == {str(number): (jpeg(number), {}) for number in range(60)}
    assert all(name == "crawl.json" or name.count(".") == 1 or "dead.jsonl" in name for name in names(tmp_path))


def test_ctrl_c_ends_at_once(server: Server, tmp_path: Path) -> None:
    server.pause = 0.1
    process = start(server, tmp_path)
    wait_until(lambda: server.asked.total() > 8)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "interrupted; run the same command again to go on from here\n")
    assert noted(tmp_path)


def test_a_full_disk_is_told_and_gone_on_from(server: Server, tmp_path: Path) -> None:
    server.pause = 0.02
    process = start(server, tmp_path)
    limit = 40_000  # no file may grow beyond this: writing there fails as on a full disk
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith("error: ") and err.endswith("File too large; run this again to go on from here\n")
    known = noted(tmp_path)
    assert len(known) > 8
    server.asked.clear()
    finish(start(server, tmp_path))
    assert not known & set(server.asked)


def unfinish(folder: Path) -> tuple[Path, Path]:
    """Give part 0 its temporary names again; returns tar and list of dead."""
    record = json.loads((folder / "crawl/part-000000.json").read_text())
    at = crawl_part.paths(folder / "crawl", 0, record["digest"])
    at.tar.rename(at.tar_part)
    at.dead.rename(at.dead_part)
    return at.tar_part, at.dead_part


def test_a_kill_between_record_and_names_costs_nothing(server: Server, tmp_path: Path) -> None:
    wanted = listed(*(server.image(number) for number in range(5)), server.url + "/gone")
    result = run(tmp_path, wanted)
    tar, _ = unfinish(tmp_path)
    server.asked.clear()
    assert run(tmp_path, wanted) == result
    unfinish(tmp_path)
    (tmp_path / "crawl/part-000000.json").unlink()  # all was noted, and the tar closed, but no more
    assert run(tmp_path, wanted) == result
    assert not server.asked
    assert not tar.exists()


def test_a_torn_end_is_dropped_and_nothing_else(server: Server, tmp_path: Path) -> None:
    wanted = listed(*(server.image(number, size=700) for number in range(6)), *(f"{server.url}/{n}" for n in "abc"))
    result = run(tmp_path, wanted)
    whole = (tmp_path / "crawl/part-000000.tar").read_bytes()
    lines = (tmp_path / "crawl/part-000000.dead.jsonl").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        ends = [member.offset_data + member.size for member in tar.getmembers() if member.name.endswith(".json")]
    for cut in (*range(0, len(whole), 1031), *ends, ends[2] + 512, len(whole)):
        at_line = cut * len(lines) // len(whole)
        tar_part, dead_part = unfinish(tmp_path)
        tar_part.write_bytes(whole[:cut])
        dead_part.write_bytes(lines[:at_line])
        (tmp_path / "crawl/part-000000.json").unlink()
        server.asked.clear()
        assert run(tmp_path, wanted) == result
        assert server.asked.total() == sum(end > cut for end in ends) + 3 - lines[:at_line].count(b"\n")
        assert len(fetched(tmp_path)) == 6
        whole_now = (tmp_path / "crawl/part-000000.tar").read_bytes()
        assert (
            json.loads((tmp_path / "crawl/crawl.json").read_text())["parts"][0]["sha256"]
            == hashlib.sha256(whole_now).hexdigest()
        )
        whole, lines = whole_now, (tmp_path / "crawl/part-000000.dead.jsonl").read_bytes()
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
            ends = [member.offset_data + member.size for member in tar.getmembers() if member.name.endswith(".json")]


def test_zeros_that_a_power_cut_leaves_are_no_image(server: Server, tmp_path: Path) -> None:
    wanted = listed(*(server.image(number) for number in range(6)))
    run(tmp_path, wanted)
    tar, _ = unfinish(tmp_path)
    (tmp_path / "crawl/part-000000.json").unlink()
    data = tar.read_bytes()
    tar.write_bytes(data[:9000] + bytes(len(data) - 9000))
    server.asked.clear()
    run(tmp_path, wanted)
    assert server.asked.total() == 4
    assert {image for image, _ in fetched(tmp_path).values()} == {jpeg(number) for number in range(6)}


@pytest.mark.parametrize("loss", ["tar", "cut", "dead.jsonl"])
def test_a_complete_part_that_was_damaged_is_named_and_fetched_anew(server: Server, tmp_path: Path, loss: str) -> None:
    wanted = listed(*(server.image(number) for number in range(5)))
    run(tmp_path, wanted)
    tar = tmp_path / "crawl/part-000000.tar"
    if loss == "cut":
        tar.write_bytes(tar.read_bytes()[:-1])
    else:
        tar.with_name(f"part-000000.{loss}").unlink()
    if loss != "dead.jsonl":
        with pytest.raises(ValueError, match=r"part-000000\.tar has \d+ bytes, crawl\.json says \d+: fetch"):
            crawled(tmp_path)
    assert run(tmp_path, wanted)["fetched"] == 5
    assert set(server.asked.values()) == {2}


def test_a_flipped_byte_is_found_before_it_is_used(server: Server, tmp_path: Path) -> None:
    run(tmp_path, listed(server.image(1), server.image(2)))
    (part,) = crawled(tmp_path)
    data = bytearray(part.path.read_bytes())
    data[1000] ^= 1
    part.path.write_bytes(data)
    with pytest.raises(ValueError, match=r"part-000000\.tar: member '0000000.\.jpg' is corrupt"):
        list(read_part(part))
    with pytest.raises(ValueError, match=r"part-000000\.tar has 4 members, crawl\.json speaks of 3 images"):
        list(read_part(Part(part.path, 3)))


def test_an_unfinished_crawl_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"crawl/crawl\.json does not exist: fetch the data set first"):
        crawled(tmp_path)
    run(tmp_path, listed(server.image(1)))

    def broken() -> Iterator[Wanted]:
        yield Wanted("k", (server.image(1),), {})
        raise ValueError("list.txt line 2: what is this?")

    with pytest.raises(ValueError, match=r"line 2: what is this"):
        crawl(broken, tmp_path, options(), None)
    with pytest.raises(ValueError, match=r"crawl\.json does not exist"):
        crawled(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ([Wanted("a", ("http://x/1",), {}), Wanted("a", ("http://x/2",), {})], "image 0 of the list, 'a', has the key"),
        ([Wanted("a", (), {})], "image 0 of the list, 'a', has no URL"),
    ],
)
def test_a_list_that_cannot_be_right_is_refused(tmp_path: Path, wanted: list[Wanted], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        run(tmp_path, wanted)


def test_a_machine_that_is_cut_off_does_not_declare_all_dead(server: Server, tmp_path: Path) -> None:
    wanted = listed(*(f"http://127.0.0.1:1/{number}.jpg" for number in range(120)))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"nothing can be reached any more \(no connection 100\): offline\?"):
            run(tmp_path, wanted, part_size=200, attempts=1)
        assert dead(tmp_path) == {}
    found = run(tmp_path, [Wanted("z", (server.image(1),), {}), *wanted], part_size=200, attempts=1, connections=1)
    assert found == {"wanted": 121, "fetched": 1, "dead": {"no connection": 120}}
    # Who has answered once tells later, when none of what is left can be reached.
    for path in (tmp_path / "crawl").glob("part-*"):
        path.unlink()
    again = run(tmp_path, wanted, part_size=200, attempts=1)
    assert again == {"wanted": 120, "fetched": 0, "dead": {"no connection": 120}}


def test_an_outage_in_the_middle_declares_nothing_dead(tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            sends(jpeg(1))(self)
            if next(answered) == 150:
                threading.Thread(target=stop).start()

    def stop() -> None:
        http.shutdown()
        http.server_close()

    def start(port: int) -> ThreadingHTTPServer:
        http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        return http

    answered = count(1)
    http = start(0)
    wanted = listed(*(f"http://127.0.0.1:{http.server_port}/{number}.jpg" for number in range(400)))
    with pytest.raises(ValueError, match=r"nothing can be reached any more \(.*\): offline\?"):
        run(tmp_path, wanted, part_size=60, attempts=1)
    assert dead(tmp_path) == {}
    http = start(http.server_port)
    assert run(tmp_path, wanted, part_size=60, attempts=1) == {"wanted": 400, "fetched": 400, "dead": {}}
    assert next(answered) <= 400 + 10  # nothing that was fetched before is asked for again
    stop()


def test_files_can_be_listed_too(tmp_path: Path) -> None:
    (tmp_path / "my pictures").mkdir()
    (tmp_path / "my pictures/a.jpg").write_bytes(jpeg(1))
    (tmp_path / "large.jpg").write_bytes(jpeg(1, 20_000))
    url = f"file://{tmp_path}"
    assert fate(tmp_path / "1", f"{url}/my%20pictures/a.jpg") == "fetched"
    assert fate(tmp_path / "2", f"{url}/none.jpg") == "no such file"
    assert fate(tmp_path / "3", f"{url}/large.jpg") == "too large"
    assert fate(tmp_path / "4", f"{url}/x/%2e%2e/large.jpg") == "bad URL"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, bytes], object]]:
    """A function that puts an object into s3://toys/ on a local S3 server, which the environment names."""
    import boto3  # here: they take a second that the other tests need not wait
    from moto.server import ThreadedMotoServer

    s3 = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT", f"http://{host}:{port}")
    secrets = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **secrets)
    client.create_bucket(Bucket="toys")
    yield lambda key, body: client.put_object(Bucket="toys", Key=key, Body=body, ACL="public-read")
    s3.stop()


def test_buckets_are_read_unsigned_where_there_are_no_credentials(bucket, tmp_path: Path, monkeypatch) -> None:
    bucket("data/images/a b.jpg", jpeg(1))
    bucket("page.jpg", b"<!doctype html>")
    bucket("large.jpg", jpeg(1, 20_000))
    for name in transport.AWS_CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    urls = [f"s3://toys/{key}" for key in ("data/images/a b.jpg", "none.jpg", "page.jpg", "large.jpg")]
    wanted = listed(*urls, "s3://nobodys/a.jpg")
    expected = {"wanted": 5, "fetched": 1, "dead": {"HTTP 404": 2, "too large": 1, "web page": 1}}
    started = time.monotonic()
    assert run(tmp_path / "unsigned", wanted, timeout_seconds=5) == expected
    assert time.monotonic() - started < 5  # nobody was asked for credentials
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    assert run(tmp_path / "signed", wanted, timeout_seconds=5) == expected
    assert fetched(tmp_path / "signed")["k0"][0] == jpeg(1)


@pytest.mark.parametrize(
    ("status", "cause", "times"),
    [(403, "HTTP 403", 1), (401, "HTTP 401", 1), (503, "HTTP 503", 3), (500, "HTTP 500", 3)],
)
def test_a_bucket_that_refuses(
    server: Server, tmp_path: Path, monkeypatch, status: int, cause: str, times: int
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT", server.url)
    for name in transport.AWS_CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    server.at_path("/toys/a.jpg", sends(b"<Error/>", status))
    assert fate(tmp_path, "s3://toys/a.jpg", timeout_seconds=5) == cause
    assert server.asked["/toys/a.jpg"] == times


def write_mirror(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for url, body in files.items():
            info = tarfile.TarInfo(quote(url, safe=""))
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return path


def test_a_mirror_stands_in_for_the_network(tmp_path: Path) -> None:
    files = {
        "http://a.example/1.jpg?x=ä&y=1,2": jpeg(1), "https://b.example/page": b"<html>", "http://c.example/": b"",
        "s3://d/large.jpg": jpeg(2, 20_000), "http://e.example/text": b"text",
    }  # fmt: skip
    mirror = write_mirror(tmp_path / "mirror.tar", files)
    wanted = listed(*files, ("http://nowhere.example/1.jpg", "http://a.example/1.jpg?x=ä&y=1,2"), "http://f.example/")

    def go(folder: str) -> dict:
        return crawl(lambda: iter(wanted), tmp_path / folder, options(mirror="mirror.tar", part_size=3), mirror)

    result = go("one")
    assert result == {"wanted": 7, "fetched": 2, "dead": {
        "empty": 1, "not an image": 1, "not in the mirror": 1, "too large": 1, "web page": 1}}  # fmt: skip
    assert go("two") == result
    for name in names(tmp_path / "one"):  # the same bytes every time
        assert (tmp_path / "one/crawl" / name).read_bytes() == (tmp_path / "two/crawl" / name).read_bytes()
    write_mirror(mirror, {**files, "http://a.example/1.jpg?x=ä&y=1,2": jpeg(5)})
    go("one")
    assert {image for image, _ in fetched(tmp_path / "one").values()} == {jpeg(5)}
    with pytest.raises(ValueError, match=r"crawl\.mirror is None, but the mirror's path is .*mirror\.tar"):
        crawl(lambda: iter(wanted), tmp_path, options(), mirror)


def test_each_part_is_told_where_there_is_no_terminal(server: Server, tmp_path: Path, caplog, capsys) -> None:
    caplog.set_level(logging.INFO)
    run(tmp_path, listed(server.image(1), server.url + "/gone", server.image(2)), part_size=2)
    told = ["part-000000.tar: 1 of 2 images; dead: {'HTTP 404': 1}", "part-000001.tar: 1 of 1 images; dead: none"]
    assert sorted(message.rpartition("/")[2] for message in caplog.messages) == told
    assert capsys.readouterr() == ("", "")


MEMORY = """
from pathlib import Path
from pipelines.crawl import Crawl, Wanted, crawl
from tests.memory import peak_kib
def wanted(count):
    for number in range(count):
        yield Wanted(f"key-{number:09d}", tuple(f"http://host{number}.example/{k}.jpg" for k in "ab"), {})
options = Crawl(mirror="m.tar", connections=1, per_host=1, attempts=1, timeout_seconds=1, max_bytes=1, part_size=1000)
for count in (4_000, 200_000):
    result = crawl(lambda: wanted(count), Path("crawled"), options, Path("m.tar"))
    assert result == {"wanted": count, "fetched": 0, "dead": {"not in the mirror": count}}, result
    print(peak_kib())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_list(tmp_path: Path) -> None:
    write_mirror(tmp_path / "m.tar", {"http://a.example/": jpeg(1)})
    answer = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    short, long = map(int, answer.stdout.split())
    assert long - short < 8_000  # kB, for 196,000 more images of two URLs


def test_a_process_out_of_file_descriptors_calls_no_url_dead(server: Server, tmp_path: Path) -> None:
    class Refusing(asyncio.SelectorEventLoop):
        async def sock_connect(self, *_: object) -> None:
            raise OSError(24, "Too many open files")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", Refusing)
        patch.setattr(asyncio.events, "new_event_loop", Refusing)
        with pytest.raises((OSError, ValueError), match="Too many open files"):
            run(tmp_path, listed(server.image(1)))
    assert noted(tmp_path) == set()
