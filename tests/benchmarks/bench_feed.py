"""MobileNet 1.0-224 trained from shards beside the same steps on one batch that lies on the device.

    python -m tests.benchmarks.bench_feed [--decode gpu] [--batch-size 256] [--steps 20] [--threads N] [--json PATH]

On a GPU where there is one, in bfloat16 autocast and channels_last; else on the CPU. The reader alone, the copy of a
batch of uint8 to the device alone, the step alone, and the step fed as in a run (by a reader whose threads copy too;
flip and colour on the device) take turns; rates are medians over rounds of wall-clock images per second, with their
10th and 90th percentiles. In a turn a reader makes two batches more than it has threads before the clock runs, so that
as many are under way when it starts as when it stops. With `--decode gpu` the GPU decodes and crops, which takes time
of the step that only the fed one shows, and there is nothing to copy. The ratio is fed over step alone in the same
round: below 1, the slowest of the other three is the limit.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from pipelines.training.gpu_decode import moved
from pipelines.training.reader import training_batches
from tasks.augment import Bounds, distort
from tasks.base import Batch
from tasks.imagenet import collate
from tasks.nets import NetSpec, build
from tests.benchmarks.bench_gpu import training_step
from tests.benchmarks.photos import SHARDS, SIZE, photo, write_images
from tests.benchmarks.record import Figure, ratios, said, write
from tests.benchmarks.roofline import finish

RATES = {
    "reader": "The reader alone",
    "copy": "The copy to the device alone",
    "step": "The training step alone",
    "fed": "The step fed by the reader",
}
BOUNDS = Bounds(0.25, 1.0, 0.75, 1.33, 0.5, 0.12549, 0.5, 1.5)


def endless(folder: Path, batch_size: int, threads: int, device: torch.device | None, decode: str) -> Iterator[Batch]:
    """Training batches as a run reads them."""
    return training_batches(
        folder, "train", size=SIZE, batch_size=batch_size, seed=0, rank=0, world=1, start_sample=0, num_samples=None,
        bounds=BOUNDS, antialias=False, threads=threads, block_shards=SHARDS, targets=collate, device=device,
        decode=decode,
    )  # fmt: skip


def measure(
    device: torch.device, decode: str, folder: Path, batch_size: int, steps: int, threads: int, rounds: int
) -> dict[str, list[float]]:
    """Images per second, round by round: "reader", "copy" (where there is one), "step" and "fed"."""
    net = build(NetSpec("mobilenet")).to(device, memory_format=torch.channels_last)
    images = torch.zeros(batch_size, 3, SIZE, SIZE, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    step = training_step(net, images, labels)

    def feed(batch: Batch) -> None:
        images.copy_(distort(batch.images, batch.distortions.to(device)))
        labels.copy_(batch.targets["label"])
        step()

    on_host = torch.zeros(batch_size, SIZE, SIZE, 3, dtype=torch.uint8)
    there = None if device.type == "cpu" else device
    ways: dict[str, tuple[Callable[[], Iterator[Any]], Callable[[Any], object]]] = {
        "reader": (lambda: endless(folder, batch_size, threads, there if decode == "gpu" else None, decode), id),
        "copy": (lambda: itertools.repeat(on_host), lambda batch: moved(batch, device)),
        "step": (lambda: itertools.repeat(None), lambda _: step()),
        "fed": (lambda: endless(folder, batch_size, threads, there, decode), feed),
    }
    if there is None or decode == "gpu":
        del ways["copy"]
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for _, (name, (start, use)) in itertools.product(range(rounds), ways.items()):
        measured[name].append(batch_size * steps / seconds(start(), use, threads + 2, steps))
    return measured


def seconds(batches: Iterator[Any], use: Callable[[Any], object], before: int, steps: int) -> float:
    """That the use of `steps` batches takes, after that of some others."""
    for batch in itertools.islice(batches, before):
        use(batch)
    finish()
    began = time.perf_counter()
    for batch in itertools.islice(batches, steps):
        use(batch)
    finish()
    return time.perf_counter() - began


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100 if device == "cuda" else 4, help="in a round, of each")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=512, help="how many different ones")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--decode", choices=("cpu", "gpu"), default="cpu")
    arguments = parser.parse_args()
    if arguments.decode == "gpu" and device == "cpu":
        parser.error("--decode gpu: torch finds no CUDA device")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name), [photo(rng) for _ in range(arguments.images)])
        sizes = (arguments.batch_size, arguments.steps, arguments.threads, arguments.rounds)
        measured = measure(torch.device(device), arguments.decode, Path(name), *sizes)
    for name, values in measured.items():
        print(f"{device}, {arguments.threads} threads: {name:7} {said(values, 1)} images/s")
    limit = min(set(measured) - {"fed"}, key=lambda name: median(measured[name]))
    share = ratios(measured["fed"], measured["step"])
    print(f"fed / step alone: {said(share, 3)}; the {limit} is the limit")
    if arguments.json:
        kind = device if arguments.decode == "cpu" else f"{device}, which decodes"
        figures = {f"{RATES[name]}, {kind}": Figure(measured[name], "images/s", "higher") for name in measured}
        title = f"Training from shards, {kind}"
        figures[title] = Figure(share, "ratio", "higher", "the step alone, on one batch on the device")
        write(arguments.json, "bench_feed", figures, {"device": device, "threads": arguments.threads})


if __name__ == "__main__":
    main()
