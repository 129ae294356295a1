"""MobileNet 1.0-224 trained from shards beside the same steps on one batch that lies on the device.

    python -m tests.benchmarks.bench_feed [--batch-size 256] [--steps 20] [--threads N] [--rounds 5] [--json PATH]

On a GPU where there is one, in bfloat16 autocast and channels_last; else on the CPU. The reader alone, the step alone
and the step fed by the reader (decode and crop on the CPU, uint8 to the device, flip and colour there) take turns;
rates are medians over rounds of wall-clock images per second. The ratio is fed over step alone: below 1, the slower of
the other two is the limit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch

from pipelines.training.reader import training_batches
from tasks.augment import Bounds, distort
from tasks.base import Batch
from tasks.imagenet import collate
from tasks.nets import NetSpec, build
from tests.benchmarks.bench_gpu import training_step
from tests.benchmarks.bench_reader import SHARDS, SIZE, photo, write_images

BOUNDS = Bounds(0.25, 1.0, 0.75, 1.33, 0.5, 0.12549, 0.5, 1.5)


def endless(folder: Path, batch_size: int, threads: int) -> Iterator[Batch]:
    """Training batches as a run reads them."""
    return training_batches(
        folder, "train", size=SIZE, batch_size=batch_size, seed=0, rank=0, world=1, start_sample=0, num_samples=None,
        bounds=BOUNDS, antialias=False, threads=threads, block_shards=SHARDS, targets=collate,
    )  # fmt: skip


def measure(
    device: str, folder: Path, batch_size: int, steps: int, threads: int, rounds: int
) -> dict[str, list[float]]:
    """Images per second, round by round: "reader", "step" and "fed"."""
    net = build(NetSpec("mobilenet")).to(device, memory_format=torch.channels_last)
    images = torch.zeros(batch_size, 3, SIZE, SIZE, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    step = training_step(net, images, labels)

    def feed(batch: Batch) -> None:
        images.copy_(distort(batch.images.to(device, non_blocking=True), batch.distortions.to(device)))
        labels.copy_(batch.targets["label"])
        step()

    def batches() -> Iterator[Batch]:
        """So many batches of a reader that starts now: none is made before the clock runs."""
        return itertools.islice(endless(folder, batch_size, threads), steps)

    ways: dict[str, Callable[[], object]] = {
        "reader": lambda: [None for _ in batches()],
        "step": lambda: [step() for _ in range(steps)],
        "fed": lambda: [feed(batch) for batch in batches()],
    }
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for round_, (name, work) in itertools.product(range(-1, rounds), ways.items()):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if round_ >= 0:  # the first warms up
            measured[name].append(batch_size * steps / (time.perf_counter() - start))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help="in a round, of each")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=512, help="how many different ones")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name), [photo(rng) for _ in range(arguments.images)])
        sizes = (arguments.batch_size, arguments.steps, arguments.threads, arguments.rounds)
        measured = measure(device, Path(name), *sizes)
    rates = {name: median(values) for name, values in measured.items()}
    for name, rate in rates.items():
        print(f"{device}, {arguments.threads} threads: {name:7} {rate:9.0f} images/s")
    limit = min(("reader", "step"), key=lambda name: rates[name])
    print(f"fed / step alone: {rates['fed'] / rates['step']:.3f}; the {limit} is the limit")
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": device, "images_per_second": measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
