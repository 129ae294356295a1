"""Shards that vanish, are replaced or written over under a running job: nothing of them is used, and they are named."""

import shutil

import numpy as np
import pytest
import torch

from pipelines.training import split_reader
from pipelines.training.job import bounds
from pipelines.training.reader import SplitReader, training_batches
from tasks import TASKS

SHARDS = [f"train-{number:06d}.tar" for number in range(3)]


@pytest.fixture
def batches(make_job):
    """An epoch of a folder's shards, one shard after the other: twelve batches of eight."""
    run = make_job().run

    def begin(folder):
        return training_batches(
            folder,
            "train",
            size=32,
            batch_size=8,
            seed=0,
            rank=0,
            world=1,
            start_sample=0,
            num_samples=96,
            bounds=bounds(run),
            antialias=False,
            threads=0,
            block_shards=1,
            targets=TASKS[run.task].collator(()),
        )

    return begin


def damaged(path):
    """A shard's bytes, with another bit in them."""
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    return bytes(data)


def replace(path, data=None):
    """Put a shard of these bytes in the place of one."""
    fresh = path.with_name("fresh")
    fresh.write_bytes(damaged(path) if data is None else data)
    fresh.replace(path)


def write_over(path, data=None):
    """Give a shard these bytes; its file stays the same one."""
    data = damaged(path) if data is None else data
    before = path.stat().st_ino
    with path.open("r+b") as file:
        file.write(data)
    assert path.stat().st_ino == before


def vanish(path):
    path.unlink()


def until_error(batches):
    """The batches up to the error, and the error's text."""
    found = []
    try:
        for batch in batches:
            found.append(batch.images)
    except ValueError as error:
        return found, str(error)
    return found, None


@pytest.mark.parametrize(
    ("change", "says"),
    [(replace, "has sha256"), (write_over, "has sha256"), (vanish, "does not exist, but the index lists it")],
)
def test_no_sample_of_a_shard_is_used_once_it_has_changed(batches, tiny_shards, tmp_path, change, says):
    straight = [batch.images for batch in batches(tiny_shards)]
    lengths = []
    for name in SHARDS:
        folder = tmp_path / name
        shutil.copytree(tiny_shards, folder)
        running = batches(folder)
        first = next(running).images  # of one shard
        change(folder / name)
        found, error = until_error(running)
        found = [first, *found]
        assert all(torch.equal(one, other) for one, other in zip(found, straight, strict=False))
        assert error.startswith(f"{folder / name} {says}")
        lengths.append(len(found))
    assert sorted(lengths) == [1, 4, 8]  # the one that was being read, those that were to come


@pytest.mark.parametrize("change", [replace, write_over])
def test_a_shard_of_the_same_bytes_is_verified_once_more_and_used(batches, tiny_shards, tmp_path, monkeypatch, change):
    verified = []
    read_offsets = split_reader.read_offsets
    monkeypatch.setattr(split_reader, "read_offsets", lambda *a: verified.append(a[1].name) or read_offsets(*a))
    straight = [batch.images for batch in batches(tiny_shards)]
    assert sorted(verified) == SHARDS
    folder = tmp_path / "shards"
    shutil.copytree(tiny_shards, folder)
    running = batches(folder)
    found = [next(running).images]
    name = verified[-1]
    change(folder / name, (folder / name).read_bytes())
    rest, error = until_error(running)
    assert error is None
    assert all(torch.equal(one, other) for one, other in zip(found + rest, straight, strict=True))
    assert sorted(verified) == sorted([*SHARDS, *SHARDS, name])


def test_a_shard_that_is_written_over_while_a_block_of_it_is_read_spoils_the_block(tiny_shards, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(tiny_shards, folder)
    reader = SplitReader(folder, "train")
    samples = reader.read(np.arange(8))
    next(samples)
    path = folder / SHARDS[0]
    write_over(path)
    with pytest.raises(ValueError, match=f"^{path} has sha256 "):
        list(samples)
