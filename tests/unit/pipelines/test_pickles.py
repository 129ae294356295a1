"""Pickles in the place of what is read: each is refused in one line, and none is run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from pipelines.images import check
from pipelines.shards import Index, Split, Stored, write_shard
from pipelines.tracking.model_flavor import ImageModel
from pipelines.training.job import trained_net
from pipelines.training.launch import launch
from pipelines.training.loop import CHECKPOINT
from pipelines.training.reader import SplitReader, Teaching
from pipelines.training.snapshots import load_snapshot

JPEG = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
FIELDS = json.dumps({"name": "a", "label": 0}).encode()
FIRST = np.zeros(1, np.int64)


class Intruder:
    """Its pickle makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def intruder(tmp_path):
    made = tmp_path / "made"
    yield Intruder(made)
    assert not made.exists()
    pickle.loads(pickle.dumps(Intruder(made)))  # it would have
    assert made.exists()


def refused(read, *arguments) -> str:
    """The one line that says why."""
    with pytest.raises(ValueError) as error:
        read(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def shards(folder: Path, image: bytes, fields: bytes, offsets: bytes | None = None) -> Path:
    """A shard of one sample, with an index that vouches for every byte of it."""
    shard = write_shard(folder, "train-000000", [Stored(0, image, fields, 8, 8)])
    if offsets is not None:
        (folder / shard.offsets_name).write_bytes(offsets)
        shard = replace(shard, offsets_sha256=hashlib.sha256(offsets).hexdigest())
    (folder / "index.json").write_bytes(Index("tiny", ("a",), {"train": Split(1, (shard,))}, {}, {}).to_json())
    return folder


def decode_first(folder: Path) -> None:
    SplitReader(folder, "train").decode_central(FIRST, 8, 1.0, antialias=False)


def test_in_an_upstream_archive(intruder):
    assert refused(check, pickle.dumps(intruder), 10**6, 10**6) == "not an image"


def test_in_a_shard_as_an_image(intruder, tmp_path):
    line = refused(decode_first, shards(tmp_path, pickle.dumps(intruder), FIELDS))
    assert line.startswith(f"{tmp_path}/train-000000.tar, sample 00000000: ")


def test_in_a_shard_as_fields(intruder, tmp_path):
    folder = shards(tmp_path, JPEG, pickle.dumps(intruder))
    assert "train-000000.tar" in refused(decode_first, folder)


def test_in_a_shards_offsets(intruder, tmp_path):
    file = io.BytesIO()
    np.save(file, np.array([[intruder] * 6], dtype=object), allow_pickle=True)
    assert "train-000000.npy" in refused(decode_first, shards(tmp_path, JPEG, FIELDS, file.getvalue()))


def test_in_a_teachers_predictions(intruder, tmp_path):
    path = tmp_path / "predictions.npy"
    np.save(path, np.array([intruder], dtype=object), allow_pickle=True)
    line = refused(Teaching(path, 8, 1.0, False).targets, None, FIRST)
    assert line.startswith(f"{path} holds no predictions: ")
    path.write_bytes(pickle.dumps(intruder))
    assert refused(Teaching(path, 8, 1.0, False).targets, None, FIRST).startswith(f"{path} holds no predictions: ")


def saved(intruder: Intruder, path: Path, **content: object) -> Path:
    """A file as torch saves it, whole and with right checksums."""
    torch.save({**content, "more": intruder}, path)
    return path


def test_in_a_runs_checkpoint(intruder, make_job, one_thread):
    job = make_job()
    path = saved(intruder, job.folder / CHECKPOINT, seconds=0.0)
    assert str(path) in refused(launch, job)


def test_in_a_servers_snapshot(intruder, tmp_path):
    path = saved(intruder, tmp_path / "server-0.pt")
    assert str(path) in refused(load_snapshot, path)


def test_in_the_weights_of_a_finished_run(intruder, make_job, tmp_path):
    path = saved(intruder, tmp_path / "weights.pt")
    assert str(path) in refused(trained_net, make_job().run, 3, path)


def test_in_the_weights_of_a_model_that_mlflow_keeps(intruder, tmp_path):
    path = saved(intruder, tmp_path / "weights.pt")
    assert str(path) in refused(ImageModel, str(path), "imagenet", {"net": "mobilenet", "width": 0.25})


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_in_a_bare_pickle_with_a_weights_name(intruder, tmp_path, legacy):
    path = tmp_path / "weights.pt"
    torch.save(intruder, path, _use_new_zipfile_serialization=not legacy)
    for read in (load_snapshot, lambda file: ImageModel(str(file), "imagenet", {"net": "mobilenet"})):
        assert str(path) in refused(read, path)
