"""A tiny data set and runs on it, for tests of what trains, and what they train on."""

import atexit
import gc
import json
import os
from functools import cache

import numpy as np
import pytest
import simplejpeg

from pipelines.config import load
from pipelines.shards import Index, Split, Stored, read_index, write_shard
from pipelines.training.run import Run

NUM_CLASSES = 3

gc.disable()  # while the tests are collected: what is imported stays, and looking through it takes 4 s of 15


def pytest_collection_finish():
    """Nothing of what the imports have made is looked through again, but at the very end, to be taken down."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(10_000, 10, 50)
    atexit.register(gc.unfreeze)


def pytest_xdist_auto_num_workers(config):
    """All fast tests share the cores. Those of Ray, of servers and of kills have them for themselves, one after
    another; a few that are named start sooner in one process.
    """
    all_fast = config.args_source is config.ArgsSource.TESTPATHS and config.getoption("markexpr").startswith("not (")
    if not all_fast:
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else each process has as many threads as there are cores
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of them compiles every file again
    return os.cpu_count()


def _stored(key, generator):
    """An image whose class is the channel that is bright."""
    label = key % NUM_CLASSES
    pixels = generator.integers(0, 90, (40, 48, 3), dtype=np.uint8)
    pixels[..., label] += 120
    fields = json.dumps({"name": f"{key}.JPEG", "label": label}).encode()
    return Stored(key, simplejpeg.encode_jpeg(pixels, quality=90), fields, 40, 48)


@pytest.fixture(scope="session", autouse=True)
def one_row_at_once():
    """A test's rows train in its own process, which has what the test has patched, and one after another, so that the
    test knows which is under way. By default a machine with several cores would train them side by side.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROWS_AT_ONCE", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def no_syncs():
    """No test cuts the power, and on a busy disk each file that is made safe from that is waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory):
    """96 training images in 3 shards and 30 to evaluate on, in 3 classes that any net can tell apart."""
    folder = tmp_path_factory.mktemp("tiny_shards")
    generator = np.random.default_rng(0)
    train = [
        write_shard(folder, f"train-{part:06d}", (_stored(key, generator) for key in range(32 * part, 32 * part + 32)))
        for part in range(3)
    ]
    val = [write_shard(folder, "val-000000", (_stored(key, generator) for key in range(30)))]
    splits = {"train": Split(96, tuple(train)), "val": Split(30, tuple(val))}
    index = Index("tiny", tuple("rgb"), splits, {}, {})
    (folder / "index.json").write_bytes(index.to_json())
    return folder


@cache
def _row():
    return load().runs("imagenet", "sample")["imagenet_w025_r128"].model_dump()


@pytest.fixture
def make_job(tiny_shards, tmp_path):
    """Makes a Job of MobileNet 0.25 at 64 px on the tiny data; keywords replace values of its Run."""
    from pipelines.training.job import Job  # imports torch, which most tests do without

    count = 0

    def make(folder=None, *, initial=None, teacher=None, **changes):
        nonlocal count
        count += 1
        base = _row()
        defaults = {
            "resolution": 64,
            "resolution_divisor": 1,
            "epochs": 2,
            "batch_size": 8,
            "decode_threads": 0,
            "log_steps": 1,
            "checkpoint_steps": 5,
            "schedule": {"decay_rate": 0.9, "decay_epochs": 1, "warmup_steps": 0},
            "optimizer": {**base["optimizer"], "learning_rate": 0.1, "clip_norm": None},
            "augment": {**base["augment"], "min_saturation": 1.0, "max_saturation": 1.0, "min_area": 0.8},
        }
        merged = {**base, **defaults}
        for key, value in changes.items():
            whole = not isinstance(value, dict) or merged[key] is None or "rule" in value
            merged[key] = value if whole else {**merged[key], **value}
        run = Run.model_validate(merged)
        folder = folder or tmp_path / f"job_{count}"
        folder.mkdir(exist_ok=True)
        index = read_index(tiny_shards)
        samples = index.splits["train"].samples
        return Job(run, f"{run.name}-{folder.name}", tiny_shards, folder, samples, NUM_CLASSES, initial, teacher)

    return make


@pytest.fixture
def one_thread():
    """Small layers lose more to waiting threads than they gain, above all where other work runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def four_cpus():
    """A Ray cluster of this machine, for the runs of a module."""
    from pipelines.cluster import leave_cluster, use_cluster

    use_cluster({"CPU": 4, "GPU": 0})
    yield
    leave_cluster()
