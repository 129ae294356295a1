"""The whole shard stage on a million small images: samples/s for 1 and 2 processes, and memory against their number.

    python -m tests.benchmarks.bench_sharding [--samples 1000000] [--folder /tmp] [--json PATH]

The archives are plain tars of 10,000 JPEGs of 24 x 24 pixels (0.9 kB), made here. Each run is a process of its own; its
peak of resident memory is the operating system's figure, that of the pool's workers apart. The results for 1 and for 2
processes are compared by the digest of their index, which holds those of all bytes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from pipelines.archives import members, opened, read
from pipelines.config import Sharding
from pipelines.shard import write_shards
from pipelines.sources.base import NoOptions, Place, Sample, Source
from tests.benchmarks.record import Figure, write
from tests.memory import peak_kib

UNIT = 10_000  # images of an archive
PICTURES = 997  # different ones, taken in turns


def make_archives(folder: Path, samples: int) -> None:
    """Tars of UNIT JPEGs, so many in all."""
    rng = np.random.default_rng(0)
    jpegs = [simplejpeg.encode_jpeg(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8), 85) for _ in range(PICTURES)]
    for first in range(0, samples, UNIT):
        with tarfile.open(folder / f"{first:09d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(first, min(first + UNIT, samples)):
                info = tarfile.TarInfo(f"{number:09d}.jpg")
                info.size = len(jpegs[number % PICTURES])
                tar.addfile(info, BytesIO(jpegs[number % PICTURES]))


def classes(_folder: Path) -> list[str]:
    return ["one"]


def units(folder: Path, _options: NoOptions) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def samples(path: Path) -> Iterator[Sample]:
    with opened(path) as file:
        for image in members(file, str(path), max_members=UNIT, max_bytes=10**6):
            data = read(file, str(path), image)
            yield Sample("train", image.name, data, {"label": 0}, Place(path, image.offset))


SOURCE = Source(classes, units, samples)


def run(raw: Path, target: Path, count: int, processes: int) -> None:
    """In a process of its own: shard, and print what it took."""
    settings = Sharding(
        seed=1,
        samples_per_shard=10_000,
        stored_short_side=None,
        max_pixels=10**6,
        max_bytes=10**6,
        bad_images="error",
        samples={"train": count},
    )
    began = time.monotonic()
    index = write_shards("bench", SOURCE, raw, target, settings, processes)
    seconds = time.monotonic() - began
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024  # not below the parent's at their start
    found = {"seconds": seconds, "parent_mb": peak_kib() // 1024, "worker_mb": workers, "digest": index.digest}
    print(json.dumps(found))


def measured(folder: Path, count: int, processes: int) -> dict[str, Any]:
    """One run over `count` images."""
    arguments = [str(folder / str(count)), str(folder / f"shards_{count}_{processes}"), str(count), str(processes)]
    command = [sys.executable, "-m", "tests.benchmarks.bench_sharding", "--run", *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def figures(results: list[dict[str, Any]]) -> dict[str, Figure]:
    """What of the runs over all images is compared: of one round, as a run takes minutes."""
    found = {}
    for result in results[1:]:
        title, count = f"The shard stage, processes: {result['processes']}", result["samples"]
        found[title] = Figure([count / result["seconds"]], "samples/s", "higher")
        found[f"{title}, memory of the parent"] = Figure([result["parent_mb"]], "MiB", "lower")
    one, two = (result["seconds"] for result in results[1:])
    return {**found, "The shard stage with two processes": Figure([one / two], "ratio", "higher", "with one process")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="needs 5 kB a sample")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)  # one run, in a process of its own
    arguments = parser.parse_args()
    if arguments.run:
        raw, target, count, processes = arguments.run
        run(Path(raw), Path(target), int(count), int(processes))
        return
    results = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        digests: dict[int, set[str]] = {}
        for count, processes in ((arguments.samples // 10, 2), (arguments.samples, 1), (arguments.samples, 2)):
            if not (folder / str(count)).exists():
                (folder / str(count)).mkdir()
                make_archives(folder / str(count), count)
            result = {"samples": count, "processes": processes, **measured(folder, count, processes)}
            results.append(result)
            digests.setdefault(count, set()).add(result["digest"])
            print(
                f"{count:>9,} samples, {processes} processes: {count / result['seconds']:8,.0f} samples/s, "
                f"peak {result['parent_mb']} MB in the parent, {result['worker_mb']} MB in a worker",
                flush=True,
            )
        print("the same bytes:", all(len(found) == 1 for found in digests.values()))
    if arguments.json:
        write(arguments.json, "bench_sharding", figures(results), {"runs": results})


if __name__ == "__main__":
    main()
