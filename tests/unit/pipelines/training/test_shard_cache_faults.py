"""What is cut off, wrong, damaged, evicted or killed leaves nothing that is taken for a shard, and is fetched anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.training import cache_room, shard_cache
from pipelines.training.reader import SplitReader
from pipelines.training.shard_cache import open_cache
from tests.file_server import Served
from tests.streaming import NO_FOLDER, asked, cached, from_folder, same, train

ROOT = Path(__file__).parents[4]
FETCH = """
import sys
from pathlib import Path
from pipelines.shards import read_split
from pipelines.training.shard_cache import open_cache
cache = open_cache(Path("tiny"), sys.argv[1])
shards = read_split(cache.folder, "train").shards
cache.fetch(shards)
print(*(len(cache.offsets(shard)) for shard in shards))
"""


def test_room_that_others_hold_is_waited_for_and_then_an_error(streamed, index, tmp_path, monkeypatch):
    streamed(1.2)
    cache = open_cache(NO_FOLDER, index.digest)
    one, two, _ = index.splits["train"].shards
    monkeypatch.setattr(shard_cache, "PATIENCE", 0.5)
    part = cache_room.part_of(cache.folder / two.name)
    part.write_bytes(bytes(two.bytes))
    lock = cache_room.held(cache_room.lock_of(cache.folder / two.name))  # as a process has that is fetching it
    with lock, pytest.raises(ValueError, match="may hold .* for 0.5 s other downloads have left no"):
        cache.fetch([one])
    cache.fetch([one])  # that process is dead: what it left is removed
    assert not part.exists()


def test_evicted_shards_are_fetched_again_while_batches_are_read(streamed, server, tiny_shards, index, monkeypatch):
    """Three readers whose places differ share a cache of two shards: none gets anything but its own batches."""
    streamed(2)
    monkeypatch.setattr(shard_cache.ShardCache, "require_room", lambda *_: None)
    monkeypatch.setattr(shard_cache, "TRIES", 50)
    theirs = from_folder(monkeypatch, lambda: train(tiny_shards))

    def one(start: int) -> int:
        batches = train(NO_FOLDER, digest=index.digest, start_sample=start, num_samples=192 - start)
        return same(batches, theirs[start // 8 :])

    with ThreadPoolExecutor(3) as pool:
        assert [*pool.map(one, (0, 32, 64))] == [24, 20, 16]
    assert sum(asked(server).values()) > 8


@pytest.mark.parametrize("bad", ["train-000001.tar", "train-000001.npy"])
@pytest.mark.parametrize("how", ["other bytes", "cut", "gone"])
def test_wrong_bytes_are_an_error_after_one_retry(streamed, server, index, tmp_path, bad, how):
    body = server.files[f"/tiny/{bad}"].body
    wrong = {"other bytes": body[:-1] + b"?", "cut": body[:-512]}.get(how)
    server.files[f"/tiny/{bad}"] = Served(b"", refuses=404) if wrong is None else Served(wrong)
    reader = SplitReader(NO_FOLDER, "train", index.digest)
    said = {"other bytes": "has sha256 .*, the index says", "cut": "bytes, the index says", "gone": ""}[how]
    with pytest.raises(ValueError, match=f"^{server.url}/tiny/{bad}.*{said}"):
        reader.image_sizes(np.array([40]))
    assert asked(server)[bad] == 2
    assert cached(tmp_path) == (set(), set())
    server.files[f"/tiny/{bad}"] = Served(body)
    reader.image_sizes(np.array([40]))  # and no trace of it is left


def test_bytes_that_are_wrong_once_are_fetched_again(streamed, server, index):
    name = "/tiny/train-000001.tar"
    body = server.files[name].body

    def mend(served: Served) -> None:
        served.body, served.before = body[::-1], lambda later: setattr(later, "body", body)

    server.files[name] = replace(server.files[name], before=mend)
    assert SplitReader(NO_FOLDER, "train", index.digest).image_sizes(np.array([40]))[0] == 40
    assert asked(server)["train-000001.tar"] == 2


def test_what_a_disk_has_damaged_is_found_before_it_is_used(streamed, server, index, tmp_path):
    open_cache(NO_FOLDER, index.digest).fetch(index.splits["train"].shards)
    (tar,) = (tmp_path / "cache").glob("*/train-000001.tar")
    good = tar.read_bytes()
    tar.write_bytes(good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
    reader = SplitReader(NO_FOLDER, "train", index.digest)
    assert [fields["name"] for _, fields in reader.read(np.array([40]))] == ["40.JPEG"]
    assert tar.read_bytes() == good
    assert asked(server)["train-000001.tar"] == 2


def start(digest):
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, digest], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until_asked(server, name):
    deadline = time.monotonic() + 60
    while not asked(server)[name]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_two_processes_share_what_either_fetches(streamed, server, index):
    server.files["/tiny/train-000000.tar"].rate = 5e4  # for two seconds
    processes = [start(index.digest)]
    wait_until_asked(server, "train-000000.tar")
    processes.append(start(index.digest))
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out.split() == ["32", "32", "32"]
    assert set(asked(server).values()) == {1}


def test_a_kill_in_mid_download_leaves_nothing_that_is_taken_for_a_shard(streamed, server, index, tmp_path):
    server.files["/tiny/train-000000.tar"].rate = 2e4
    process = start(index.digest)
    wait_until_asked(server, "train-000000.tar")
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finished, parts = cached(tmp_path)
    assert "train-000000.tar.part" in parts
    assert "train-000000.tar" not in finished
    server.files["/tiny/train-000000.tar"].rate = None
    streamed(1.5)  # so that what was left must go
    reader = SplitReader(NO_FOLDER, "train", index.digest)
    assert [fields["name"] for _, fields in reader.read(np.array([0, 40]))] == ["0.JPEG", "40.JPEG"]
    assert cached(tmp_path)[1] == set()


def test_a_full_disk_is_named(streamed, index, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    cache = open_cache(NO_FOLDER, index.digest)
    monkeypatch.setattr(shard_cache, "make_room", full)
    with pytest.raises(ValueError, match="No space left on device, while train-000000.tar was fetched"):
        cache.fetch(index.splits["train"].shards[:1])
