from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import download as engine
from pipelines.download import download
from pipelines.files import locked
from pipelines.partial import Partial, Remote, part_of, record, sidecar
from tests.file_server import FileServer, Served, serving

BODY = random.Random(0).randbytes(1_000_003)  # no multiple of a chunk, and 16 of them
OTHER = random.Random(1).randbytes(900_001)
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch):
    monkeypatch.setattr(engine, "CHUNK", 2**16)
    monkeypatch.setattr(engine, "BLOCK", 2**12)
    monkeypatch.setattr(engine, "FRUITLESS_TRIES", 2)
    pauses = {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=10), "base": 2}
    monkeypatch.setattr(engine, "RETRY", {**engine.RETRY, "max_retries": 3, "backoff": pauses})
    sleep = engine.asyncio.sleep
    monkeypatch.setattr(engine.asyncio, "sleep", lambda seconds: sleep(seconds / 100))


def serve(server: FileServer, body: bytes = BODY, **faults) -> tuple[str, Served]:
    server.files["/a.tar"] = Served(body, **faults)
    return f"{server.url}/a.tar", server.files["/a.tar"]


def interrupt(server: FileServer, url: str, served: Served, path: Path) -> None:
    """Leave a `.part` with some chunks done."""
    served.before = lambda served: setattr(served, "refuses", 403 if len(server.requests) > 9 else None)
    with pytest.raises(ValueError, match="HTTP 403"):
        download(url, path)
    served.before, served.refuses = lambda served: None, None
    assert sidecar(part_of(path)).exists()
    server.requests.clear()


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("checksum", [None, SHA256, MD5])
def test_a_file_arrives_whole_and_each_byte_is_asked_for_once(server, tmp_path, checksum):
    url, _ = serve(server)
    assert download(url, tmp_path / "a.tar", len(BODY), checksum) == (checksum or SHA256)
    assert (tmp_path / "a.tar").read_bytes() == BODY
    assert left_in(tmp_path) == ["a.tar"]
    peek, *spans = server.spans()
    assert peek == (0, engine.PEEK)
    starts = range(0, len(BODY), engine.CHUNK)
    assert sorted(spans) == [(start, min(start + engine.CHUNK, len(BODY))) for start in starts]


@pytest.mark.parametrize("size", [1, engine.PEEK, 2**16, 2**16 + 1])
def test_a_file_of_any_size_arrives(server, tmp_path, size):
    url, _ = serve(server, BODY[:size])
    download(url, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == BODY[:size]


@pytest.mark.parametrize("etag", ['"1"', 'W/"1"', None])
def test_connections_that_break_off_are_gone_on_with(server, tmp_path, etag):
    url, _ = serve(server, etag=etag, cut=30_000)
    download(url, tmp_path / "a.tar", len(BODY), SHA256)
    assert (tmp_path / "a.tar").read_bytes() == BODY
    assert sum(start % engine.CHUNK > 20_000 for start, _ in server.spans()) > len(BODY) // engine.CHUNK


def test_an_answer_that_is_too_long_harms_no_other_byte(server, tmp_path):
    url, served = serve(server, excess=bytes(1000))
    with pytest.raises(ValueError, match=r"broken off 2 times at byte [\d,]+: more came than was asked for"):
        download(url, tmp_path / "a.tar")
    served.excess = b""
    download(url, tmp_path / "a.tar", len(BODY), SHA256)


def test_a_connection_that_never_brings_a_byte_is_given_up(server, tmp_path):
    url, served = serve(server, etag=None)
    served.before = lambda served: setattr(served, "cut", 0 if len(server.requests) > 4 else None)
    with pytest.raises(ValueError, match=r"a.tar: broken off 2 times at byte [\d,]+: "):
        download(url, tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, tmp_path, status):
    url, _ = serve(server, refusals=[(status, {"Retry-After": "1"})] * 3)
    assert download(url, tmp_path / "a.tar") == SHA256


@pytest.mark.parametrize(
    ("status", "reason", "requests"),
    [(401, "Unauthorized", 1), (403, "Forbidden", 1), (404, "Not Found", 1), (410, "Gone", 1), (503, "Service", 4)],
)
def test_a_refusal_names_url_and_status(server, tmp_path, status, reason, requests):
    url, _ = serve(server, refuses=status)
    with pytest.raises(ValueError, match=rf"^{url}: HTTP {status} {reason}[ \w]*$"):
        download(url, tmp_path / "a.tar")
    assert len(server.requests) == requests
    assert left_in(tmp_path) == []


def test_a_refusal_in_the_middle_keeps_what_is_there(server, tmp_path):
    url, served = serve(server)
    interrupt(server, url, served, tmp_path / "a.tar")
    done = [tuple(span) for span in json.loads((tmp_path / "a.tar.part.json").read_text())["done"]]
    download(url, tmp_path / "a.tar", len(BODY), SHA256)
    peek, *spans = server.spans()
    assert merged([*done, *spans]) == [(0, len(BODY))]
    assert sum(end - start for start, end in [*done, *spans]) == len(BODY)
    assert not any(start < end_done and start_done < end for start, end in [peek] for start_done, end_done in done)


def merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    partial = Partial(Remote("", 0, ""))
    for start, end in spans:
        partial.add(start, end)
    return partial.done


def test_a_server_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^http://127.0.0.1:9/a.tar: .*error sending request"):
        download("http://127.0.0.1:9/a.tar", tmp_path / "a.tar")


def test_an_unknown_scheme_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^gopher://host/a.tar: .*nable to recognise URL"):
        download("gopher://host/a.tar", tmp_path / "a.tar")


def test_another_size_is_refused_before_anything_is_fetched(server, tmp_path):
    url, _ = serve(server)
    with pytest.raises(ValueError, match=rf"{url} has 1,000,003 bytes, but 1,000,004 are expected"):
        download(url, tmp_path / "a.tar", len(BODY) + 1)
    assert server.spans() == [(0, engine.PEEK)]
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("page", "content_type"),
    [
        (b"<p>Sorry</p>" * 1000, "text/html; charset=utf-8"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><title>Quota exceeded</title>", "application/octet-stream"),
        (b"<html><body>Log in</body></html>", "application/x-tar"),
    ],
)
@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_page_is_no_archive(server, tmp_path, page, content_type, ranges):
    url, _ = serve(server, page, content_type=content_type, ranges=ranges)
    with pytest.raises(ValueError, match=rf"{url} is a web page .* login, quota"):
        download(url, tmp_path / "a.tar", len(BODY), SHA256)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("faults", [{}, {"cut": 500_000, "cuts": 2}])
def test_a_server_without_ranges_gives_one_stream(server, tmp_path, caplog, faults):
    caplog.set_level(logging.INFO)
    url, _ = serve(server, ranges=False, **faults)
    download(url, tmp_path / "a.tar", len(BODY), SHA256)
    assert (tmp_path / "a.tar").read_bytes() == BODY
    assert "knows no ranges" in caplog.text


def test_a_server_without_ranges_that_keeps_breaking_off_is_given_up(server, tmp_path):
    url, _ = serve(server, ranges=False, cut=500_000)
    with pytest.raises(ValueError, match="broken off 2 times at byte 5"):
        download(url, tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()


def test_a_wrong_checksum_is_refused_and_the_next_try_starts_clean(server, tmp_path):
    url, served = serve(server, BODY[:-1] + b"x")
    with pytest.raises(ValueError, match=rf"a.tar: expected {SHA256}, but {url} gave sha256:"):
        download(url, tmp_path / "a.tar", len(BODY), SHA256)
    assert left_in(tmp_path) == []
    served.body = BODY
    download(url, tmp_path / "a.tar", len(BODY), SHA256)
    assert (tmp_path / "a.tar").read_bytes() == BODY


@pytest.mark.parametrize(
    "change",
    [
        {"etag": '"2"', "body": BODY[::-1]},
        {"body": OTHER},
        {"body": OTHER[:1000]},
        {"ranges": False, "body": BODY},
        {"etag": None, "modified": "Wed, 21 Oct 2015 07:28:00 GMT", "body": BODY[::-1]},
    ],
    ids=["etag", "shorter", "much shorter", "no ranges", "no etag"],
)
def test_a_file_that_changed_since_is_fetched_anew(server, tmp_path, caplog, change):
    url, served = serve(server)
    interrupt(server, url, served, tmp_path / "a.tar")
    vars(served).update(change)
    caplog.set_level(logging.INFO)
    download(url, tmp_path / "a.tar")
    assert "fetching the rest" not in caplog.text
    assert (tmp_path / "a.tar").read_bytes() == change["body"]
    assert left_in(tmp_path) == ["a.tar"]


def test_without_a_version_only_a_checksum_lets_a_download_go_on(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    url, served = serve(server, etag=None)
    interrupt(server, url, served, tmp_path / "a.tar")
    download(url, tmp_path / "a.tar", len(BODY), SHA256)
    assert "fetching the rest" in caplog.text
    (tmp_path / "a.tar").unlink()
    server.requests.clear()
    interrupt(server, url, served, tmp_path / "a.tar")
    caplog.clear()
    served.body = BODY[::-1]  # nothing that the server says tells it from the first
    download(url, tmp_path / "a.tar")
    assert "states no version, and no checksum would tell a mixture; starting again" in caplog.text
    assert (tmp_path / "a.tar").read_bytes() == BODY[::-1]


def test_a_file_that_changes_meanwhile_is_of_one_version(server, tmp_path):
    def change(served: Served) -> None:
        if len(server.requests) == 8:
            served.etag, served.body = '"2"', BODY[::-1]

    url, _ = serve(server, before=change)
    download(url, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == BODY[::-1]


def test_a_file_that_never_rests_is_given_up(server, tmp_path):
    url, _ = serve(server, before=lambda served: setattr(served, "etag", f'"{len(server.requests)}"'))
    with pytest.raises(ValueError, match="changed 3 times while it was being fetched"):
        download(url, tmp_path / "a.tar")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("loss", ["sidecar", "part", "end of part"])
def test_a_part_that_cannot_be_trusted_is_fetched_anew(server, tmp_path, loss):
    url, served = serve(server)
    interrupt(server, url, served, tmp_path / "a.tar")
    part = tmp_path / "a.tar.part"
    if loss == "end of part":
        with part.open("r+b") as file:
            file.truncate(1000)
    else:
        (part if loss == "part" else sidecar(part)).unlink()
    download(url, tmp_path / "a.tar", len(BODY), SHA256)
    assert (tmp_path / "a.tar").read_bytes() == BODY


def test_a_foreign_sidecar_is_named(server, tmp_path):
    url, served = serve(server)
    interrupt(server, url, served, tmp_path / "a.tar")
    (tmp_path / "a.tar.part.json").write_text("{")
    with pytest.raises(ValueError, match=r"a.tar.part.json is not JSON"):
        download(url, tmp_path / "a.tar")


@pytest.mark.parametrize("is_complete", [False, True])
def test_another_url_does_not_go_on_from_it(server, tmp_path, is_complete):
    url, served = serve(server)
    interrupt(server, url, served, tmp_path / "a.tar")
    if is_complete:
        complete(tmp_path / "a.tar.part", url)
    server.files["/mirror.tar"] = Served(OTHER)
    download(f"{server.url}/mirror.tar", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == OTHER


def complete(part: Path, url: str) -> None:
    """What a kill between the last byte and the checksum leaves."""
    part.write_bytes(BODY)
    record(part, Partial(Remote(url, len(BODY), '"1"'), [(0, len(BODY))]))


def test_a_complete_part_is_only_verified(server, tmp_path):
    complete(tmp_path / "a.tar.part", f"{server.url}/a.tar")
    assert download(f"{server.url}/a.tar", tmp_path / "a.tar", len(BODY), MD5) == MD5
    assert (tmp_path / "a.tar").read_bytes() == BODY
    assert left_in(tmp_path) == ["a.tar"]
    assert server.requests == []


def test_a_disk_that_is_too_small_is_told_in_bytes(server, tmp_path):
    url, _ = serve(server, claimed_size=10**18)
    with pytest.raises(
        ValueError, match=rf"{tmp_path}: needs 1.0 EB, but the disk has .* free: .* bytes\) are missing"
    ):
        download(url, tmp_path / "a.tar")
    assert left_in(tmp_path) == []


def test_space_that_the_parts_hold_is_not_asked_for_again(tmp_path, monkeypatch):
    free, held = 10**9, 64 * 2**20
    monkeypatch.setattr(engine.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))  # others write meanwhile
    with (tmp_path / "a.tar.part").open("wb") as file:
        file.write(bytes(held))
    engine.require_space({tmp_path / "a.tar": free - held // 2, tmp_path / "b.tar": held // 4})
    with pytest.raises(ValueError, match="are missing"):
        engine.require_space({tmp_path / "a.tar": free + 10 * held})


def test_redirects_are_followed_and_queries_kept(server, tmp_path):
    serve(server)
    server.files["/old"] = Served(b"", redirect="/a.tar")
    download(f"{server.url}/old?token=a%20b&x=1", tmp_path / "a.tar", len(BODY), SHA256)
    assert server.requests[0].path == "/old?token=a%20b&x=1"


def test_without_a_terminal_one_line_is_logged(server, tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO)
    url, _ = serve(server)
    download(url, tmp_path / "a.tar")
    assert len(caplog.messages) == 1
    assert "1.0 MB fetched in" in caplog.text
    assert capsys.readouterr() == ("", "")


def test_a_locked_folder_is_waited_for(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    order = []

    def second() -> None:
        with locked(tmp_path / "raw"):
            order.append("second")

    with locked(tmp_path / "raw"):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.2)
        order.append("first")
    waiting.join(5)
    assert order == ["first", "second"]
    assert "another process" in caplog.text


ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda pair: (pair[0], sum(pair))), max_size=12)


@given(done=ranges, chunk=st.integers(1, 40))
def test_what_is_missing_is_all_that_is_not_done(done, chunk):
    partial = Partial(Remote("", 80, ""))
    for start, end in done:
        partial.add(start, end)
    covered = {byte for start, end in done for byte in range(start, end)}
    missing = [byte for start, end in partial.missing(chunk) for byte in range(start, end)]
    assert missing == sorted(set(range(80)) - covered)
    assert all(0 < end - start <= chunk for start, end in partial.missing(chunk))
    assert all(high < low for (_, high), (low, _) in zip(partial.done, partial.done[1:], strict=False))
