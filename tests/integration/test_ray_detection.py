"""Detectors learn by every kind of training, on a real Ray cluster: images with crowds and without any object too."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.shards import Index, Split, Stored, write_shard
from pipelines.training.curve import read_curve
from pipelines.training.job import net_spec
from pipelines.training.loop import CURVE, WEIGHTS
from pipelines.training.reader import evaluation_batches
from tasks import TASKS
from tasks.base import TestSet, evaluate
from tasks.nets import build

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400), pytest.mark.usefixtures("four_cpus")]
CATEGORIES = ("1 red box", "3 blue box")
COLOURS = {1: (230, 30, 30), 3: (30, 30, 230)}
IMAGES, OUTPUTS = 48, 4
BOXES = {"proposals": 12, "second_stage_boxes": 4, "score_threshold": 0.01, "nms_iou": 0.5, "max_detections": 10}


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """Grey pictures with one or two boxes in a colour; of each eight, one has a crowd too and one has nothing."""
    folder, rng = tmp_path_factory.mktemp("boxes"), np.random.default_rng(5)
    splits = {}
    for split in ("train", "test"):
        shard = write_shard(folder, f"{split}-000000", [_drawn(key, rng) for key in range(IMAGES)])
        splits[split] = Split(IMAGES, (shard,))
    (folder / "index.json").write_bytes(Index("boxes", CATEGORIES, splits, {}, {}).to_json())
    return folder


def _drawn(key, rng):
    pixels = rng.integers(110, 140, (72, 96, 3), dtype=np.uint8)
    things = []
    for side in range(0 if key % 8 == 7 else 1 + key % 2):
        category = (1, 3)[int(rng.integers(2))]
        width, height = rng.integers(24, 44), rng.integers(28, 60)
        x, y = 48 * side + rng.integers(0, 48 - width), rng.integers(0, 72 - height)
        pixels[y : y + height, x : x + width] = COLOURS[category]
        box = [float(value) for value in (x, y, width, height)]
        things.append({"category": category, "box": box, "area": box[2] * box[3], "crowd": False})
    if key % 8 == 3:
        things.append({"category": 1, "box": [0.0, 0.0, 96.0, 20.0], "area": 900.0, "crowd": True})
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    fields = json.dumps({"image_id": key + 1, "objects": things}).encode()
    return Stored(key, file.getvalue(), fields, 72, 96)


def trained(make_job, shards, net, kind, epochs):
    from pipelines.training.launch import launch

    job = make_job(
        task="object_detection",
        net=net,
        width=1.0,
        resolution=64,
        kind=kind,
        num_workers=1 if kind == "local" else 2,
        batch_size=8 if kind == "local" else 4,
        epochs=epochs,
        detection=BOXES,
        optimizer={"rule": "momentum", "momentum": 0.9, "learning_rate": 0.04, "weight_decay": 0.0, "clip_norm": 10.0,
                   "weight_average": None},
        augment={"min_area": 0.5, "min_object_shares": (0.5, 1.0), "brightness": 0.0},
    )  # fmt: skip
    job = replace(job, shards=shards, classes=CATEGORIES, num_outputs=OUTPUTS, num_samples=IMAGES)
    launch(job)
    return job


@pytest.mark.parametrize(
    ("net", "kind"),
    [
        ("ssd300_mobilenet", "local"),
        ("ssd300_mobilenet", "ddp"),
        pytest.param("ssd300_mobilenet", "async", marks=pytest.mark.long),
        ("faster_rcnn_mobilenet", "async"),
    ],
)
def test_boxes_are_learned(net, kind, boxes, make_job):
    job = trained(make_job, boxes, net, kind, epochs=8)
    rows = read_curve(job.folder / CURVE)
    assert rows[-1]["step"] == job.total_steps
    losses = [row["loss"] for row in rows]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])  # of what it begins with, within 48 steps
    evaluated = build(net_spec(job.run, OUTPUTS))
    evaluated.load_state_dict(torch.load(job.folder / WEIGHTS, weights_only=True))
    task = TASKS["object_detection"]
    options = {"size": 64, "batch_size": 8, "central_fraction": 1.0, "antialias": False, "threads": 0}
    batches = evaluation_batches(boxes, "test", targets=task.collator(CATEGORIES), **options)
    found = evaluate(task, evaluated, batches, TestSet(CATEGORIES), "cpu").metrics
    assert found["samples"] == IMAGES
    assert 0 <= found["ap"] <= 1
