"""Shards that vanish or are replaced under a running job: what was verified is used to its end, the rest is refused.

A shard that a reader has touched stays mapped, whatever becomes of its name; any other is verified when it is touched.
(One that is written over in place, name and inode kept, is not noticed once it is touched: nothing here does that.)
"""

import shutil

import pytest
import torch

from pipelines.training.job import bounds
from pipelines.training.reader import training_batches
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


def replace(path):
    """Put a shard with another bit in it in the place of one."""
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    fresh = path.with_name("fresh")
    fresh.write_bytes(data)
    fresh.replace(path)


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
    ("change", "says"), [(replace, "has sha256"), (vanish, "does not exist, but the index lists it")]
)
def test_a_shard_that_changes_is_refused_or_was_read_before(batches, tiny_shards, tmp_path, change, says):
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
        lengths.append(len(found))
        if error is None:
            assert len(found) == 12
        else:
            assert error.startswith(f"{folder / name} {says}")
    assert sorted(lengths) == [4, 8, 12]  # the touched one to its end; the others not a sample of them
