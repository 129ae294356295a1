"""Shards streamed through a bounded cache are those of the folder, fetched once, ahead, and within the bound."""

from __future__ import annotations

import time

import pytest

from pipelines.training import cache_room, shard_cache
from pipelines.training.reader import SplitReader, evaluation_batches
from pipelines.training.shard_cache import configured, open_cache
from tests.file_server import Served
from tests.streaming import NO_FOLDER, asked, bytes_held, cached, from_folder, labels_of, s3_bucket, same, train


@pytest.fixture(scope="module")
def bucket(tiny_shards):
    with s3_bucket(tiny_shards) as found:
        yield found


@pytest.mark.parametrize("threads", [0, 3])
def test_a_bucket_gives_the_batches_of_the_folder(bucket, tiny_shards, index, tmp_path, monkeypatch, threads):
    environment, _ = bucket
    for name, value in {**environment, "SHARD_CACHE": str(tmp_path / "cache"), "SHARD_CACHE_BYTES": "1000000"}.items():
        monkeypatch.setenv(name, value)
    theirs = from_folder(monkeypatch, lambda: train(tiny_shards))
    assert same(train(NO_FOLDER, digest=index.digest, threads=threads), theirs) == 24


def test_a_bucket_that_holds_other_shards_is_refused(streamed, server, index):
    server.files["/tiny/index.json"] = Served(b"{}")
    said = f"^{server.url}/tiny/index.json has sha256 44136fa.*, but the shards that are meant have {index.digest}"
    with pytest.raises(ValueError, match=said):
        SplitReader(NO_FOLDER, "train", index.digest)


def test_evaluation_streams_too_by_the_index_of_the_folder(streamed, server, tiny_shards, tmp_path, monkeypatch):
    options = {"size": 16, "batch_size": 8, "central_fraction": 0.875, "antialias": False, "targets": labels_of}
    theirs = from_folder(monkeypatch, lambda: evaluation_batches(tiny_shards, "train", threads=0, **options))
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "index.json").write_bytes((tiny_shards / "index.json").read_bytes())
    assert same(evaluation_batches(folder, "train", threads=2, **options), theirs) == 12
    assert asked(server)["train-000002.tar"] == 1


def test_a_bound_is_kept_and_the_least_recently_used_shard_goes_first(streamed, index, tmp_path, monkeypatch):
    bound = streamed(2)
    held = []
    make_room = cache_room.make_room
    monkeypatch.setattr(shard_cache, "make_room", lambda *a: held.append(bytes_held(tmp_path)) or make_room(*a))
    cache = open_cache(NO_FOLDER, index.digest)
    one, two, three = index.splits["train"].shards
    for shard in (one, two, one, three):  # the first is used again before the third wants room
        cache.fetch([shard])
        held.append(bytes_held(tmp_path))
        time.sleep(0.01)  # file systems' clocks are coarse
    assert cached(tmp_path) == ({f"train-00000{number}.{kind}" for number in (0, 2) for kind in ("tar", "npy")}, set())
    assert 0 < max(held) <= bound
    assert bytes_held(tmp_path) == sum(shard.bytes + shard.offsets_bytes for shard in (one, three))


def test_an_epoch_through_a_small_cache_fetches_each_shard_once(streamed, server, tiny_shards, index, monkeypatch):
    """Three blocks of one shard fit, and there are no more in an epoch: two epochs fetch each shard once."""
    theirs = from_folder(monkeypatch, lambda: train(tiny_shards))
    streamed(3)
    assert same(train(NO_FOLDER, digest=index.digest, threads=2), theirs) == 24
    assert set(asked(server).values()) == {1}


def test_the_next_block_is_fetched_before_it_is_wanted_and_not_waited_for(streamed, server, index, tmp_path):
    for name, served in server.files.items():
        served.rate = 2e5 if name.endswith(".tar") else None  # half a second each
    batches = train(NO_FOLDER, digest=index.digest)
    next(batches)  # of the first block's four
    assert sum(name.endswith(".tar") for name in cached(tmp_path)[0]) == 1
    deadline = time.monotonic() + 10
    while sum(name.endswith(".tar") for name in cached(tmp_path)[0]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    batches.close()
    assert sum(count for name, count in asked(server).items() if name.endswith(".tar")) == 2


@pytest.mark.parametrize("machines", [["one", "one"], ["one", "two"]], ids=["of one machine", "of two machines"])
def test_ranks_share_what_their_machine_fetches(streamed, server, index, tmp_path, monkeypatch, machines):
    """Where samples are dealt, ranks read of every shard: a machine fetches each once, however many ranks it has."""
    ranks = []
    for rank, machine in enumerate(machines):
        monkeypatch.setenv("SHARD_CACHE", str(tmp_path / machine))
        ranks.append(train(NO_FOLDER, digest=index.digest, rank=rank, world=2, num_samples=96))
    seen = [batch.targets["label"].tolist() for batches in zip(*ranks, strict=True) for batch in batches]
    assert sum(map(len, seen)) == 96
    assert set(asked(server).values()) == {len(set(machines))}


def test_a_bound_that_is_too_small_is_an_error_that_says_the_numbers(streamed, index):
    bound = streamed(2.5)
    with pytest.raises(
        ValueError, match=f"^SHARD_CACHE_BYTES is {bound:,}; it must hold the 3 shards of tiny .* up to"
    ):
        train(NO_FOLDER, digest=index.digest)
    bound = streamed(0.3)
    cache = open_cache(NO_FOLDER, index.digest)
    with pytest.raises(ValueError, match=f"^SHARD_CACHE_BYTES is {bound:,}; it must hold the 1 shards"):
        cache.fetch(index.splits["train"].shards[:1])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SHARDS_URL", "ftp://host/shards", "SHARDS_URL is 'ftp://host/shards'; it must begin with one of: s3, gs, az"),
        ("SHARD_CACHE", "", "SHARDS_URL is set, so SHARD_CACHE must be a folder on this machine's disk"),
        ("SHARD_CACHE_BYTES", "50 GB", "SHARD_CACHE_BYTES is '50 GB'; with SHARDS_URL it must be a number of bytes"),
    ],
)
def test_settings_that_are_wrong_are_named(streamed, monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{said}"):
        configured()
