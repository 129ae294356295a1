"""Decoding against PIL + torchvision's usual recipe and DALI, and reading against webdataset: one process, one core.

    python -m tests.benchmarks.bench_reader [--images 200] [--rounds 11] [--json PATH]

Times are process CPU time. The methods take turns in random order within each round, so that what else the machine
does falls on all of them; a ratio is the median over rounds of peer time / own time, its spread their 10th and 90th
percentiles. The images are made (`photos`): 500 x 375, quality 90, 4:2:0. `plain_256` and `antialias_256` decode what
the shard stage stores of them with `stored_short_side` 256; the peer has the images as they came all the same.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image
from torchvision import transforms

from pipelines.training.decode import decode_crop
from pipelines.training.order import epoch_order
from pipelines.training.reader import SplitReader
from tests.benchmarks import dali_peer
from tests.benchmarks.photos import SHARDS, SIZE, photo, shrunk, write_images
from tests.benchmarks.record import Figure, faster, ratios, said, spread, write

SHORT_SIDE = 256
DALI = "DALI on the CPU"
PEERS = {"decoding": "PIL + torchvision's usual recipe", "reading": "webdataset"}
CROP = "Decode and random-resized-crop to 224, uint8"
TITLES = {
    "plain": CROP,
    "antialias": f"{CROP}, antialiased",
    "plain_256": f"{CROP}, from a short side of {SHORT_SIDE}",
    "antialias_256": f"{CROP}, antialiased, from a short side of {SHORT_SIDE}",
    "reading": "Reading a sample without decoding it",
}
GOALS = {
    "plain": 2.5,
    "plain / dali": 1.9,
    "antialias": 1.8,
    "plain_256": 4.8,
    "reading": 8.0,
    "psnr_db": 45.0,
    "reading_us": 10.0,
}
Box = tuple[int, int, int, int]


def random_boxes(jpegs: list[bytes]) -> list[Box]:
    """A crop of each image, as torchvision's recipe draws it."""
    crop = transforms.RandomResizedCrop
    sizes = [simplejpeg.decode_jpeg_header(jpeg)[:2] for jpeg in jpegs]
    return [tuple(crop.get_params(torch.empty(3, *size), [0.08, 1.0], [3 / 4, 4 / 3])) for size in sizes]


def decoding(jpegs: list[bytes], boxes: list[Box]) -> dict[str, Callable[[], object]]:
    """The methods, each over all images."""
    small = [shrunk(jpeg, SHORT_SIDE) for jpeg in jpegs]
    small_boxes = random_boxes(small)
    recipe = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    batch = np.empty((len(jpegs), SIZE, SIZE, 3), dtype=np.uint8)

    def usual() -> None:
        for jpeg in jpegs:
            recipe(Image.open(io.BytesIO(jpeg)).convert("RGB"))

    def own(jpegs: list[bytes], boxes: list[Box], antialias: bool) -> None:
        for jpeg, box, out in zip(jpegs, boxes, batch, strict=True):
            decode_crop(jpeg, box, antialias, out)

    return {
        "peer": usual,
        "plain": lambda: own(jpegs, boxes, False),
        "antialias": lambda: own(jpegs, boxes, True),
        "plain_256": lambda: own(small, small_boxes, False),
        "antialias_256": lambda: own(small, small_boxes, True),
        **({"dali": dali_peer.decoding(jpegs, SIZE)} if dali_peer.installed() else {}),
    }


def reading(folder: Path, jpegs: list[bytes]) -> dict[str, Callable[[], object]]:
    """Every image's bytes, copied, and its parsed fields; webdataset in stored order, the reader in a shuffled one."""
    shards = write_images(folder, jpegs)
    reader = SplitReader(folder, "train")
    order = epoch_order(reader.shard_sizes, seed=0, epoch=0, block_shards=SHARDS)
    for _ in reader.read(order):  # the digests are compared once, before the clock runs
        pass
    stored = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False)

    def own() -> None:
        for first in range(0, len(order), 64):
            for image, _ in reader.read(order[first : first + 64]):
                bytes(image)

    def peer() -> None:
        for sample in stored:
            json.loads(sample["json"])

    return {"peer": peer, "reading": own}


def timed(methods: dict[str, Callable[[], object]], rounds: int, images: int) -> dict[str, np.ndarray]:
    """CPU seconds per image, by method and round."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for method in methods.values():
        method()
    for _ in range(rounds):
        for name in random.sample(list(methods), len(methods)):
            began = time.process_time()
            methods[name]()
            seconds[name].append((time.process_time() - began) / images)
    return {name: np.array(values) for name, values in seconds.items()}


def compared(part: str, times: dict[str, np.ndarray]) -> dict[str, Figure]:
    """The figures of one part, decoding or reading. Prints them."""
    found: dict[str, Figure] = {}
    for name, seconds in times.items():
        us, who = 1e6 * spread(seconds).median, PEERS[part] if name == "peer" else name
        print(f"{part:9} {who:32} {us:9.1f} us {1e6 / us:9.0f}/s {said(ratios(times['peer'], seconds), 2)}x")
        if name in TITLES:
            found |= faster(TITLES[name], seconds, times["peer"], PEERS[part], "us")
    if "dali" in times:
        ratio = ratios(times["dali"], times["plain"])
        print(f"{part:9} plain / dali: {said(ratio, 2)}x")
        found[f"{CROP}, beside DALI"] = Figure(ratio, "ratio", "higher", DALI)
    return found


def likeness(jpegs: list[bytes], boxes: list[Box], antialias: bool) -> dict[str, float]:
    """Mean and least PSNR, in dB, of own crops against PIL's antialiased bilinear ones of the same boxes."""
    out = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    values = []
    for jpeg, box in zip(jpegs, boxes, strict=True):
        top, left, height, width = box
        decode_crop(jpeg, box, antialias, out)
        image = Image.open(io.BytesIO(jpeg)).convert("RGB").crop((left, top, left + width, top + height))
        wanted = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR), dtype=float)
        values.append(10 * np.log10(255**2 / max(((out - wanted) ** 2).mean(), 1e-6)))
    return {"mean": round(float(np.mean(values)), 2), "min": round(float(np.min(values)), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    jpegs = [photo(rng) for _ in range(arguments.images)]
    boxes = random_boxes(jpegs)

    kilobytes = round(float(np.mean([len(jpeg) for jpeg in jpegs])) / 1e3, 1)
    print(f"{len(jpegs)} images of {kilobytes} kB on average; goals: {GOALS}")
    if not dali_peer.installed():
        print(dali_peer.LEFT_OUT)
    figures = compared("decoding", timed(decoding(jpegs, boxes), arguments.rounds, len(jpegs)))
    with tempfile.TemporaryDirectory() as folder:
        times = timed(reading(Path(folder), jpegs), arguments.rounds, len(jpegs) // SHARDS * SHARDS)
    figures |= compared("reading", times)
    psnr = {name: likeness(jpegs, boxes, name == "antialias") for name in ("plain", "antialias")}
    print(f"PSNR against PIL, same boxes, dB: {psnr}")
    if arguments.json:
        write(arguments.json, "bench_reader", figures, {"mean_kilobytes": kilobytes, "goals": GOALS, "psnr_db": psnr})


if __name__ == "__main__":
    main()
