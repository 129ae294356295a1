"""From shards to shuffled batches of 64 in the trainer's process, on two cores: this reader, DALI, and webdataset.

    python -m tests.benchmarks.bench_pipeline [--rounds 11] [--steps 12] [--short-side N] [--json PATH]

Wall-clock images per second, from tars in the page cache, to random-resized crops of 224 with their labels. All read
the same shards with two threads or two worker processes: `own` as a run reads them with decode_threads 2; `dali` with
its reader of webdataset's tars (see `dali_peer`); `pil` with webdataset and PIL + torchvision's recipe in a DataLoader
of two workers, which gives normalised float32; and `pil_uint8` with the same without the normalisation. They take
turns in random order in each round. In a turn a reader is started and makes some batches, more than any is ahead of
the consumer, before the clock runs: what a start costs (processes, digests, indices) is not part of it. A ratio is the
median over rounds of own rate / peer's rate, its spread their 10th and 90th percentiles.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from pipelines.training.reader import training_batches
from tasks.augment import Bounds
from tasks.imagenet import collate
from tests.benchmarks import dali_peer
from tests.benchmarks.photos import SHARDS, SIZE, photo, shrunk, write_images
from tests.benchmarks.record import Figure, ratios, said, write

BATCH, CORES = 64, 2
WARM = 8  # batches: DataLoader's workers are 4 ahead, DALI 2, the reader's threads 3
GOALS = {"dali": 1.8, "pil": 3.5}
PEERS = {
    "dali": "DALI's webdataset reader on the CPU, uint8",
    "pil": "webdataset + PIL + torchvision's usual recipe, float32",
    "pil_uint8": "webdataset + PIL + torchvision's crop and flip, uint8",
}
BOUNDS = Bounds(0.08, 1.0, 3 / 4, 4 / 3, 0.5, 0.0, 1.0, 1.0)

Way = Callable[[], Iterator[Any]]


def own(folder: Path) -> Iterator[Any]:
    """Endless batches as a run reads them."""
    return training_batches(
        folder, "train", size=SIZE, batch_size=BATCH, seed=0, rank=0, world=1, start_sample=0, num_samples=None,
        bounds=BOUNDS, antialias=False, threads=CORES, block_shards=SHARDS, targets=collate,
    )  # fmt: skip


def usual(shards: list[Path], finish: list[Any]) -> Iterator[Any]:
    """Endless batches of webdataset and PIL; `finish` turns the crop into a tensor."""
    recipe = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), *finish])

    def sample(stored: dict[str, Any]) -> tuple[torch.Tensor, int]:
        return recipe(Image.open(io.BytesIO(stored["jpg"])).convert("RGB")), json.loads(stored["json"])["label"]

    data = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=len(shards)).shuffle(1000).map(sample)
    batches = iter(DataLoader(data.repeat(), BATCH, num_workers=CORES))
    try:
        yield from batches
    finally:
        del batches  # ends its workers


def ways(folder: Path, shards: list[Path]) -> dict[str, Way]:
    """How batches are made, by name."""
    normalised = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    found: dict[str, Way] = {
        "own": lambda: own(folder),
        "pil": lambda: usual(shards, normalised),
        "pil_uint8": lambda: usual(shards, [transforms.PILToTensor()]),
    }
    if dali_peer.installed():
        found["dali"] = lambda: dali_peer.batches(shards, SIZE, BATCH, CORES)
    return found


def rate(way: Way, steps: int) -> float:
    """Images per second of `steps` batches, once it runs."""
    with closing(way()) as batches:  # type: ignore[type-var]  # all are generators
        for _ in itertools.islice(batches, WARM):
            pass
        began = time.perf_counter()
        for _ in itertools.islice(batches, steps):
            pass
        return BATCH * steps / (time.perf_counter() - began)


def compared(rates: dict[str, list[float]], stored: str) -> dict[str, Figure]:
    """The figures: the own rate, and its ratio to each peer's. Prints them."""
    title = f"From shards to shuffled batches of {BATCH}, {CORES} cores, {stored}"
    found = {f"{title}, rate": Figure(rates["own"], "images/s", "higher")}
    for name, values in rates.items():
        print(f"{name:10} {said(values, 0)} images/s")
    for name, peer in PEERS.items():
        if name in rates:
            ratio = ratios(rates["own"], rates[name])
            goal = f", goal {GOALS[name]}" if name in GOALS else ""
            print(f"own / {name:10} {said(ratio, 2)}x{goal}")
            found[f"{title}, beside {name}"] = Figure(ratio, "ratio", "higher", peer)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="how many different ones")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=12, help="batches that are timed in a turn")
    parser.add_argument("--short-side", type=int, help="of the stored images; default: they are stored as they come")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[-CORES:]
    if len(cores) < CORES:
        parser.error(f"this process may use {len(cores)} core; it takes {CORES}")
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    jpegs, stored = [photo(rng) for _ in range(arguments.images)], "500 x 375"
    if arguments.short_side is not None:
        jpegs = [shrunk(jpeg, arguments.short_side) for jpeg in jpegs]
        stored = f"short side {arguments.short_side}"
    with tempfile.TemporaryDirectory() as name:
        found = ways(Path(name), write_images(Path(name), jpegs))
        rates: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(arguments.rounds):
            for name in random.sample(list(found), len(found)):
                rates[name].append(rate(found[name], arguments.steps))

    kilobytes = round(float(np.mean([len(jpeg) for jpeg in jpegs])) / 1e3, 1)
    print(f"{len(jpegs)} images of {kilobytes} kB on average, {CORES} cores")
    if not dali_peer.installed():
        print(dali_peer.LEFT_OUT)
    figures = compared(rates, stored)
    if arguments.json:
        write(arguments.json, "bench_pipeline", figures, {"mean_kilobytes": kilobytes, "goals": GOALS})


if __name__ == "__main__":
    main()
