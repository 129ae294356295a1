"""Decoding against PIL + torchvision's usual recipe, and reading against webdataset: one process, one core.

    python -m tests.benchmarks.bench_reader [--images 200] [--rounds 11] [--json PATH]

Times are process CPU time. The methods take turns in random order within each round, so that what else the machine
does falls on all of them; a ratio is the median over rounds of peer time / own time, its spread their 10th and 90th
percentiles. The images are made here: 500 x 375, quality 90, 4:2:0, power spectrum of natural photographs plus shapes.
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
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image, ImageDraw
from torchvision import transforms

from pipelines.shards import INDEX, Index, Split, Stored, write_shard
from pipelines.training.decode import decode_crop
from pipelines.training.order import epoch_order
from pipelines.training.reader import SplitReader

HEIGHT, WIDTH, SIZE = 375, 500, 224
SHARDS = 8
GOALS = {"plain": 2.3, "antialias": 1.7, "reading": 8.0, "psnr_db": 45.0, "reading_us": 10.0}


def photo(rng: np.random.Generator) -> bytes:
    """A JPEG of 1/f noise with weak colour, shapes and a little grain.

    With some 60 kB it is larger than photographs of that size and quality are: both sides pay more for entropy
    decoding, and ratios come out rather too low.
    """
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequency[0, 0] = np.inf

    def noise(contrast: float) -> np.ndarray:
        phases = rng.normal(size=(2, *frequency.shape))
        plane = np.fft.irfft2((phases[0] + 1j * phases[1]) / frequency**1.4, (HEIGHT, WIDTH))
        return contrast * plane / plane.std()

    light, warm = noise(45), noise(15)
    pixels = np.stack([light + warm, light, light - warm], axis=-1) + 128
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.integers(0, WIDTH), rng.integers(0, HEIGHT)
        corners = (int(x), int(y), int(x + rng.integers(8, 120)), int(y + rng.integers(8, 120)))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape(corners, fill=tuple(rng.integers(0, 256, 3).tolist()))
    grainy = np.asarray(image) + rng.normal(0, 2, (HEIGHT, WIDTH, 1))
    file = io.BytesIO()
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90, subsampling="4:2:0")
    return file.getvalue()


def decoding(jpegs: list[bytes], boxes: list[tuple[int, int, int, int]]) -> dict[str, Callable[[], None]]:
    """The methods, each over all images."""
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

    def own(antialias: bool) -> None:
        for jpeg, box, out in zip(jpegs, boxes, batch, strict=True):
            decode_crop(jpeg, box, antialias, out)

    return {"peer": usual, "plain": lambda: own(False), "antialias": lambda: own(True)}


def write_images(folder: Path, jpegs: list[bytes]) -> list[Path]:
    """The images as the train split of a data set; its shards."""
    per_shard = len(jpegs) // SHARDS
    shards = []
    for number in range(SHARDS):
        samples = []
        for key in range(number * per_shard, (number + 1) * per_shard):
            fields = {"name": f"n00000000/n00000000_{key}.JPEG", "sha256": "0" * 64, "label": key % 1000}
            samples.append(Stored(key, jpegs[key], json.dumps(fields).encode(), HEIGHT, WIDTH))
        shards.append(write_shard(folder, f"train-{number:06d}", samples))
    split = Split(samples=SHARDS * per_shard, shards=tuple(shards))
    index = Index(dataset="bench", classes=(), splits={"train": split}, skipped={}, reencoded={})
    (folder / INDEX).write_bytes(index.to_json())
    return [folder / shard.name for shard in shards]


def reading(folder: Path, jpegs: list[bytes]) -> dict[str, Callable[[], None]]:
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


def timed(methods: dict[str, Callable[[], None]], rounds: int, images: int) -> dict[str, np.ndarray]:
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


def compared(times: dict[str, np.ndarray], peer: str) -> dict[str, dict[str, Any]]:
    """Each method's median microseconds per image, and its ratio to the peer."""
    results = {}
    for name, seconds in times.items():
        ratios = times["peer"] / seconds
        results[peer if name == "peer" else name] = {
            "us": round(float(np.median(seconds)) * 1e6, 2),
            "ratio": round(float(np.median(ratios)), 3),
            "spread": [round(float(value), 3) for value in np.percentile(ratios, [10, 90])],
            "peer": peer,
        }
    return results


def likeness(jpegs: list[bytes], boxes: list[tuple[int, int, int, int]], antialias: bool) -> dict[str, float]:
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
    blank = torch.empty(3, HEIGHT, WIDTH)
    crop = transforms.RandomResizedCrop
    boxes = [tuple(crop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3])) for _ in jpegs]

    results: dict[str, Any] = {
        "images": len(jpegs),
        "mean_kilobytes": round(float(np.mean([len(jpeg) for jpeg in jpegs])) / 1e3, 1),
        "goals": GOALS,
    }
    times = timed(decoding(jpegs, boxes), arguments.rounds, len(jpegs))
    results["decoding"] = compared(times, "PIL + torchvision")
    with tempfile.TemporaryDirectory() as folder:
        times = timed(reading(Path(folder), jpegs), arguments.rounds, len(jpegs) // SHARDS * SHARDS)
    results["reading"] = compared(times, "webdataset")
    results["psnr_db"] = {name: likeness(jpegs, boxes, name == "antialias") for name in ("plain", "antialias")}

    print(f"{results['images']} images of {results['mean_kilobytes']} kB on average; goals: {GOALS}")
    for part in ("decoding", "reading"):
        for name, row in results[part].items():
            low, high = row["spread"]
            speed = f"{row['us']:9.1f} us {1e6 / row['us']:9.0f}/s"
            print(f"{part:9} {name:18} {speed} {row['ratio']:6.2f}x ({low:.2f}-{high:.2f})")
    print(f"PSNR against PIL, same boxes, dB: {results['psnr_db']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
