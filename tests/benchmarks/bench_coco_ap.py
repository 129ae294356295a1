"""COCO's twelve figures against pycocotools, COCO's own code, and faster-coco-eval: 5,000 images of 100 detections.

    python -m tests.benchmarks.bench_coco_ap [--images 5000] [--detections 100] [--rounds 5] [--json PATH]

Objects and detections are made here: 80 categories and about seven objects an image, as in COCO, most of them found
about where they are, and false detections besides. Ours is timed from the tensors of batches of 64 images to the
figures; the peers from annotations and an array of detections that were made before. In every round all must agree to
1e-9. What our interval of AP takes, which the peers do not have, is told apart.
Times are process CPU time, all threads together. The methods take turns in random order within each round; a ratio is
the median over rounds of peer time / own time, its spread their 10th and 90th percentiles. Memory is by how much a
method raises the peak of a process of its own. At full size a round takes two minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import torch

from tasks import coco_ap
from tasks.coco_ap import CocoAP
from tests.benchmarks.record import Figure, faster, ratios, said, write
from tests.memory import peak_kib

CATEGORIES = 80
OBJECTS = 7.3  # of an image, in the mean
WIDTH, HEIGHT = 640, 480
BATCH = 64
PEER, FASTER, OURS, INTERVAL = "pycocotools", "faster-coco-eval", "CocoAP", "CocoAP with its interval"


class Scenes(NamedTuple):
    """The same objects and detections as the peers read them and as ours does."""

    dataset: dict[str, Any]  # of COCO's JSON
    rows: np.ndarray  # (D, 7): image, x, y, width, height, score, category
    detections: list[dict[str, torch.Tensor]]  # of each image
    objects: list[list[dict[str, Any]]]


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) x, y, width, height; of all three sizes."""
    sides = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2))).clip(max=(WIDTH, HEIGHT))
    return np.hstack([rng.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - sides), sides])


def make_scenes(images: int, per_image: int) -> Scenes:
    """A detector that finds most objects."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(1, images + 1), rng.poisson(OBJECTS, images).clip(max=per_image))
    count = len(image)
    boxes, category = random_boxes(rng, count).round(2), rng.integers(1, CATEGORIES + 1, count)
    area, crowd = boxes[:, 2] * boxes[:, 3] * rng.uniform(0.4, 1, count), rng.random(count) < 0.01

    total = images * per_image
    found, label, score = random_boxes(rng, total), rng.integers(1, CATEGORIES + 1, total), rng.beta(0.5, 4, total)
    place = (image - 1) * per_image + np.arange(count) - np.searchsorted(image, image)  # the first ones of its image
    shifts = rng.normal(size=(count, 4)) * 0.08 * np.tile(boxes[:, 2:], 2)
    found[place] = np.hstack([boxes[:, :2], boxes[:, 2:].clip(min=1)]) + np.clip(shifts, -0.9, None)
    label[place], score[place] = np.where(rng.random(count) < 0.85, category, label[place]), rng.beta(3, 2, count)
    corners = torch.tensor(np.hstack([found[:, :2], found[:, :2] + found[:, 2:].clip(min=1)]), dtype=torch.float32)
    scores, labels = torch.tensor(score, dtype=torch.float32), torch.tensor(label)

    things: list[list[dict[str, Any]]] = [[] for _ in range(images)]
    annotations = []
    columns = (image.tolist(), category.tolist(), boxes.tolist(), area.tolist(), crowd.tolist())
    for number, (where, what, box, size, many) in enumerate(zip(*columns, strict=True), start=1):
        things[where - 1].append({"category": what, "box": box, "area": size, "crowd": many})
        annotations.append({"id": number, "image_id": where, "category_id": what, "bbox": box, "area": size,
                            "iscrowd": int(many)})  # fmt: skip
    dataset = {
        "images": [{"id": number} for number in range(1, images + 1)],
        "categories": [{"id": number, "name": str(number)} for number in range(1, CATEGORIES + 1)],
        "annotations": annotations,
    }
    exact = corners.double().numpy()
    sides, numbers = exact[:, 2:] - exact[:, :2], np.repeat(np.arange(1, images + 1), per_image)
    rows = np.column_stack([numbers, exact[:, :2], sides, scores.double().numpy(), label])
    parts = (tensor.split(per_image) for tensor in (corners, scores, labels))
    detections = [{"boxes": b, "scores": s, "labels": c} for b, s, c in zip(*parts, strict=True)]
    return Scenes(dataset, rows, detections, things)


def by_pycocotools(scenes: Scenes) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = pycocotools.coco.COCO()
        truth.dataset = scenes.dataset
        truth.createIndex()
        evaluator = pycocotools.cocoeval.COCOeval(truth, truth.loadRes(scenes.rows), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


def by_faster_coco_eval(scenes: Scenes) -> np.ndarray:
    truth = faster_coco_eval.COCO(scenes.dataset)
    evaluator = faster_coco_eval.COCOeval_faster(truth, truth.loadRes(scenes.rows), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return np.asarray(evaluator.stats)[:12]


def with_interval(scenes: Scenes) -> np.ndarray:
    evaluator = CocoAP([f"{number} thing" for number in range(1, CATEGORIES + 1)])
    for start in range(0, len(scenes.objects), BATCH):
        part = slice(start, start + BATCH)
        numbers = range(1, len(scenes.objects) + 1)[part]
        evaluator.update(numbers, scenes.detections[part], scenes.objects[part])
    metrics = evaluator.compute().metrics
    sizes = ("small", "medium", "large")
    names = ("ap", "ap_50", "ap_75", *(f"ap_{size}" for size in sizes), "ar_1", "ar_10", "ar_100")
    return np.array([metrics[name] for name in (*names, *(f"ar_{size}" for size in sizes))])


def by_us(scenes: Scenes) -> np.ndarray:
    with patch.object(coco_ap, "_ap_interval", return_value=(0.0, 1.0)):
        return with_interval(scenes)


METHODS = {PEER: by_pycocotools, FASTER: by_faster_coco_eval, OURS: by_us, INTERVAL: with_interval}


def measure(scenes: Scenes, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each method, round by round. Fails where they do not agree."""
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for number in range(rounds):
        found = {}
        for name in random.sample(list(METHODS), len(METHODS)):
            gc.collect()
            began = time.process_time()
            found[name] = METHODS[name](scenes)
            seconds[name].append(time.process_time() - began)
        for name, figures in found.items():
            np.testing.assert_allclose(figures, found[PEER], rtol=0, atol=1e-9, err_msg=f"{name}, round {number}")
    return seconds


def figures(seconds: dict[str, list[float]], mib: int) -> dict[str, Figure]:
    """What of it is compared from run to run. mib: memory of ours."""
    title = "COCO's twelve figures"
    return {
        **faster(title, seconds[OURS], seconds[PEER], PEER, "s"),
        f"{title} beside the faster peer": Figure(ratios(seconds[FASTER], seconds[OURS]), "ratio", "higher", FASTER),
        **faster(f"{title} with AP's interval", seconds[INTERVAL], seconds[PEER], f"{PEER}, without one", "s"),
        f"{title}, memory": Figure([mib], "MiB", "lower"),
    }


def memory(name: str, images: int, per_image: int) -> int:
    """MiB that a method adds to the peak of a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_coco_ap", "--memory", name]
    command += ["--images", str(images), "--detections", str(per_image)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="of each image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--memory", choices=METHODS, help=argparse.SUPPRESS)  # one method, in a process of its own
    arguments = parser.parse_args()
    scenes = make_scenes(arguments.images, arguments.detections)
    if arguments.memory:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew at what is held now: proc(5)
        before = peak_kib()
        METHODS[arguments.memory](scenes)
        print((peak_kib() - before) // 1024)
        return
    random.seed(0)
    seconds = measure(scenes, arguments.rounds)
    results = {}
    for name, taken in seconds.items():
        mib = memory(name, arguments.images, arguments.detections)
        results[name] = {"seconds": taken, "memory_mib": mib}
        times = said(ratios(seconds[PEER], taken), 1)
        print(f"{name:24} {said(taken, 2)} s   {times} x {PEER}   {mib:,} MiB", flush=True)
    if arguments.json:
        write(arguments.json, "bench_coco_ap", figures(seconds, results[OURS]["memory_mib"]), results)


if __name__ == "__main__":
    main()
