"""Writing shards against webdataset.ShardWriter and the standard library's tarfile: one process, one core.

    python -m tests.benchmarks.bench_shard [--samples 1000] [--rounds 11] [--json PATH]

All write the same members, from memory into a folder in memory (/dev/shm), at two sizes: ImageNet's images as they
come and shrunk to a short side of 256. Ours also hashes every byte, which takes most of its time, and writes the
offsets; the others do neither. Times are process CPU time. The methods take turns in random order within each round,
so that what else the machine does falls on all of them; a ratio is the median over rounds of peer time / own time, its
spread their 10th and 90th percentiles.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset

from pipelines.shards import Stored, write_shard
from tests.benchmarks.record import Figure, faster, ratios, said, spread, write

SIZES = {"as they come": 110_000, "short side 256": 30_000}  # mean bytes of an image
PEER, OURS = "webdataset.ShardWriter", "write_shard"


def samples_of(count: int, mean: int) -> list[Stored]:
    """Random bytes about as long as images are: writing does not look at them."""
    rng = np.random.default_rng(0)
    fields = {"sha256": "0" * 64, "width": 500, "height": 375, "label": 7}
    return [
        Stored(key, rng.bytes(int(mean * rng.uniform(0.5, 1.5))),
               json.dumps({"name": f"n01440764/n01440764_{key}.JPEG", **fields}).encode(), 375, 500)
        for key in range(count)
    ]  # fmt: skip


def by_webdataset(folder: Path, samples: list[Stored]) -> Path:
    with webdataset.ShardWriter(
        str(folder / "peer-%06d.tar"), maxcount=len(samples), verbose=0, encoder=False
    ) as writer:
        for sample in samples:
            writer.write({"__key__": f"{sample.key:08d}", "jpg": sample.image, "json": sample.fields})
    return folder / "peer-000000.tar"


def by_tarfile(folder: Path, samples: list[Stored]) -> Path:
    with tarfile.open(folder / "tarfile.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for end, data in (("jpg", sample.image), ("json", sample.fields)):
                info = tarfile.TarInfo(f"{sample.key:08d}.{end}")
                info.size, info.mode = len(data), 0o444
                tar.addfile(info, io.BytesIO(data))
    return folder / "tarfile.tar"


def by_us(folder: Path, samples: list[Stored]) -> Path:
    return folder / write_shard(folder, "train-000000", samples).name


METHODS: dict[str, Callable[[Path, list[Stored]], Path]] = {
    PEER: by_webdataset,
    "tarfile": by_tarfile,
    OURS: by_us,
}


def digest(tar: Path) -> str:
    """Of the members' names and contents: what must not depend on who wrote them."""
    total = hashlib.sha256()
    with tarfile.open(tar, "r:") as file:
        for member in file.getmembers():
            total.update(member.name.encode() + file.extractfile(member).read())
    return total.hexdigest()


def measure(count: int, mean: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds per sample of each method, round by round."""
    samples = samples_of(count, mean)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        assert len({digest(method(folder, samples)) for method in METHODS.values()}) == 1
        for _ in range(rounds):
            for name in random.sample(list(METHODS), len(METHODS)):
                began = time.process_time()
                METHODS[name](folder, samples)
                seconds[name].append((time.process_time() - began) / count)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: dict[str, Figure] = {}
    for size, mean in SIZES.items():
        seconds = measure(arguments.samples, mean, arguments.rounds)
        print(f"images {size}, about {mean // 1000} kB:")
        for name, values in seconds.items():
            rate = 1 / spread(values).median
            print(f"  {name:24} {rate:>8,.0f} samples/s/core   {said(ratios(seconds[PEER], values), 2)} x {PEER}")
        figures |= faster(f"Writing shards, images of {mean // 1000} kB", seconds[OURS], seconds[PEER], PEER, "us")
    if arguments.json:
        write(arguments.json, "bench_shard", figures, {"samples": arguments.samples})


if __name__ == "__main__":
    main()
