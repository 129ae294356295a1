"""Kills of real processes, a full disk, two fetchers at once, and an S3 server: what a fetch must survive."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import download as engine
from pipelines.download import download
from tests.file_server import Served, serving

ROOT = Path(__file__).parents[2]
BODY = random.Random(0).randbytes(4_000_001)
CHUNK = 2**17
PROGRAM = f"""
import logging, sys
from pathlib import Path
from pipelines import download as engine
from pipelines.command import one_line_errors
from pipelines.fetch import Archive, fetch_archives
from pipelines.files import locked
engine.CHUNK, engine.BLOCK = {CHUNK}, 2**12
with one_line_errors(), locked(Path("raw")):
    [file] = fetch_archives([Archive(Path("raw/a.tar"), sys.argv[1], None, None)], "")
    print(file["checksum"])
"""


@pytest.fixture
def server():
    with serving() as running:
        running.files["/a.tar"] = Served(BODY, rate=2e6)  # of each of 4 connections: half a second in all
        yield running


def start(url: str, folder: Path) -> subprocess.Popen[str]:
    """A process that fetches into `folder`/raw."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where a shell started the tests in the background, children would ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str], body: bytes = BODY) -> str:
    """Its stderr, after it has ended well."""
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, f"sha256:{hashlib.sha256(body).hexdigest()}\n"), err
    return err


def done(folder: Path) -> list[tuple[int, int]]:
    """What the sidecar calls done."""
    sidecar = folder / "raw/a.tar.part.json"
    return [(start, end) for start, end in json.loads(sidecar.read_text())["done"]] if sidecar.exists() else []


def size(spans: list[tuple[int, int]]) -> int:
    return sum(end - start for start, end in spans)


def wait_for(folder: Path, num_bytes: int) -> None:
    """Return as soon as so many bytes are called done."""
    deadline = time.monotonic() + 30
    while size(done(folder)) < num_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def overlap(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(low, high) for low, high in first for start, end in second if low < end and start < high]


@pytest.mark.slow
def test_after_kills_no_byte_that_was_done_is_asked_for_again(server, tmp_path):
    known: list[tuple[int, int]] = []
    for _ in range(4):
        process = start(f"{server.url}/a.tar", tmp_path)
        wait_for(tmp_path, size(known) + random.randrange(1, 6) * CHUNK)
        time.sleep(random.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert overlap(server.spans(), known) == []
        server.requests.clear()
        assert not (tmp_path / "raw/a.tar").exists()
        part, known = (tmp_path / "raw/a.tar.part").read_bytes(), done(tmp_path)
        assert all(part[start:end] == BODY[start:end] for start, end in known)
    err = finish(start(f"{server.url}/a.tar", tmp_path))
    assert "are here; fetching the rest" in err
    assert overlap(server.spans(), known) == []
    assert size(server.spans()) == len(BODY) - size(known) + engine.PEEK
    assert (tmp_path / "raw/a.tar").read_bytes() == BODY
    assert not list((tmp_path / "raw").glob("*.part*"))


def test_ctrl_c_ends_at_once_and_is_gone_on_from(server, tmp_path):
    served = server.files["/a.tar"]
    served.before = lambda served: setattr(served, "rate", 1e3 if len(server.requests) > 6 else None)
    process = start(f"{server.url}/a.tar", tmp_path)
    wait_for(tmp_path, CHUNK)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)  # the chunks under way would take two minutes
    assert (process.returncode, err) == (130, "interrupted; run the same command again to go on from here\n")
    known = done(tmp_path)
    served.before = lambda served: setattr(served, "rate", None)
    server.requests.clear()
    finish(start(f"{server.url}/a.tar", tmp_path))
    assert overlap(server.spans(), known) == []


@pytest.mark.slow
def test_two_fetchers_take_turns(server, tmp_path):
    served = server.files["/a.tar"]
    served.rate = 2e5
    first = start(f"{server.url}/a.tar", tmp_path)
    wait_for(tmp_path, CHUNK)
    second = start(f"{server.url}/a.tar", tmp_path)
    assert second.stderr is not None
    assert "another process is at work" in second.stderr.readline()
    served.rate = None
    finish(first)
    finish(second)
    assert size(server.spans()) == len(BODY) + engine.PEEK


def test_the_death_of_one_fetcher_lets_the_next_go_on(server, tmp_path):
    server.files["/a.tar"].rate = 2e5
    first = start(f"{server.url}/a.tar", tmp_path)
    wait_for(tmp_path, CHUNK)
    second = start(f"{server.url}/a.tar", tmp_path)
    assert second.stderr is not None
    assert "another process is at work" in second.stderr.readline()
    server.files["/a.tar"].rate = None
    first.kill()
    first.communicate()
    assert "are here; fetching the rest" in finish(second)


@pytest.mark.slow
def test_a_disk_that_fills_up_is_told_and_gone_on_from(server, tmp_path):
    server.files["/a.tar"].rate = 1e6
    process = start(f"{server.url}/a.tar", tmp_path)
    wait_for(tmp_path, 4 * CHUNK)
    limit = 12 * CHUNK  # no file may grow beyond this from now on; writing there fails as on a full disk
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    _, err = process.communicate(timeout=30)
    message = "error: raw/a.tar.part: the disk is full: File too large; run this again to go on from here\n"
    assert (process.returncode, err) == (1, message)
    known = done(tmp_path)
    assert size(known) >= 4 * CHUNK
    assert not (tmp_path / "raw/a.tar").exists()
    server.requests.clear()
    finish(start(f"{server.url}/a.tar", tmp_path))
    assert overlap(server.spans(), known) == []


@pytest.fixture
def bucket(monkeypatch):
    """A function that puts an object into s3://toys/ on a local S3 server, which the environment names."""
    import boto3  # here: they take a second that the other tests need not wait
    from moto.server import ThreadedMotoServer

    s3 = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="toys")
    yield lambda key, body: client.put_object(Bucket="toys", Key=key, Body=body)
    s3.stop()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [False, True])
def test_an_s3_object_is_gone_on_with_unless_it_changed(bucket, tmp_path, changes):
    bucket("raw/a.tar", BODY * 4)
    process = start("s3://toys/raw/a.tar", tmp_path)
    wait_for(tmp_path, 8 * CHUNK)
    process.kill()
    process.communicate()
    body = (BODY[::-1] if changes else BODY) * 4
    bucket("raw/a.tar", body)
    err = finish(start("s3://toys/raw/a.tar", tmp_path), body)
    assert ("has changed" if changes else "are here; fetching the rest") in err
    assert (tmp_path / "raw/a.tar").read_bytes() == body


@pytest.mark.parametrize("url", ["s3://toys/raw/none.tar", "s3://nobodys/raw/a.tar"])
def test_an_s3_object_that_is_not_there_is_named(bucket, tmp_path, url):
    with pytest.raises(ValueError, match=f"^{url}: HTTP 404 Not Found$"):
        download(url, tmp_path / "a.tar")
