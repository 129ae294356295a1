"""The readers that `bench_pipeline` sets side by side do the same work, and its images are what it says."""

from __future__ import annotations

import io
import itertools
import json
import sys
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.training.reader import SplitReader
from tests.benchmarks import bench_pipeline, dali_peer
from tests.benchmarks.photos import HEIGHT, SHARDS, SIZE, WIDTH, photo, shrunk, write_images

IMAGES = 4 * SHARDS + 3


@pytest.fixture(scope="module")
def jpegs():
    rng = np.random.default_rng(0)
    return [photo(rng) for _ in range(IMAGES)]


def test_photos_are_of_the_size_they_are_said_to_be_and_shrink_as_they_are_stored(jpegs):
    image = Image.open(io.BytesIO(jpegs[0]))
    assert (image.height, image.width, image.mode) == (HEIGHT, WIDTH, "RGB")
    small = Image.open(io.BytesIO(shrunk(jpegs[0], 256)))
    assert (small.height, small.width) == (256, round(WIDTH * 256 / HEIGHT))
    wanted = np.asarray(image.resize(small.size, Image.Resampling.BOX), dtype=float)
    assert np.abs(np.asarray(small) - wanted).mean() < 4


def test_a_split_is_written_with_each_image_at_its_own_size(jpegs, tmp_path):
    mixed = [jpeg if number % 2 else shrunk(jpeg, 256) for number, jpeg in enumerate(jpegs)]
    shards = write_images(tmp_path, mixed)
    reader = SplitReader(tmp_path, "train")
    samples = np.arange(4 * SHARDS)
    assert len(shards) == SHARDS
    assert [bytes(image) for image, _ in reader.read(samples)] == mixed[: 4 * SHARDS]
    assert reader.image_sizes(samples)[0].tolist() == [256, HEIGHT] * (2 * SHARDS)


@pytest.mark.long
@pytest.mark.parametrize("name", ["own", *bench_pipeline.PEERS])
def test_each_way_gives_shuffled_crops_with_their_labels(jpegs, tmp_path, name):
    ways = bench_pipeline.ways(tmp_path, write_images(tmp_path, jpegs))
    if name not in ways:
        pytest.skip(dali_peer.LEFT_OUT)
    labels, pixels = [], []
    with closing(ways[name]()) as batches:
        for batch in itertools.islice(batches, 2):
            images, found = (batch.images, batch.targets["label"]) if name == "own" else batch[:2]
            images = torch.as_tensor(images).clone()
            assert len(images) == bench_pipeline.BATCH
            assert sorted(images.shape[1:]) == [3, SIZE, SIZE]
            assert images.dtype == (torch.float32 if name == "pil" else torch.uint8)
            labels += torch.as_tensor(found).tolist()
            pixels.append(images.float().std())
    epoch = list(range(4 * SHARDS))
    assert set(labels) == set(epoch)
    assert labels[: len(epoch)] != epoch
    assert min(pixels) > (0.1 if name == "pil" else 10)


@pytest.mark.long
def test_what_is_measured_is_written(tmp_path, monkeypatch, capsys):
    path = tmp_path / "pipeline.json"
    options = ["--images", "32", "--rounds", "2", "--steps", "1", "--short-side", "128", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["bench_pipeline", *options])
    monkeypatch.setattr(bench_pipeline.os, "sched_setaffinity", lambda *_: None)
    bench_pipeline.main()
    printed = capsys.readouterr().out
    figures = json.loads(path.read_text())["figures"]
    assert (dali_peer.LEFT_OUT in printed) == (not dali_peer.installed())
    assert all(len(figure["values"]) == 2 and min(figure["values"]) > 0 for figure in figures.values())
    peers = set(bench_pipeline.PEERS) - (set() if dali_peer.installed() else {"dali"})
    assert {figure["peer"] for figure in figures.values()} == {None, *(bench_pipeline.PEERS[name] for name in peers)}
    assert all("short side 128" in title for title in figures)
