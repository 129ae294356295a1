"""Cells of photos in arrays against Google's S2, called once a point as Python has it: one process, one core.

    python -m tests.benchmarks.bench_cells [--photos 1000000] [--compared 20000] [--rounds 7] [--json PATH]

The photos are in 2,000 made-up towns. For each of `--compared` of them both find the leaf, the partition, and the cell;
the results are compared. Times are process CPU time; the two take turns in random order within each round; a ratio is
the median over rounds of peer time / own time, its spread their 10th and 90th percentiles. Then ours alone is timed on
all photos, and the peak of resident memory taken for them and for ten times as many, in processes of their own.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from s2geometry import S2CellId, S2LatLng

from tasks import geocells, s2
from tests.benchmarks.record import Figure, ratios, said, write
from tests.memory import peak_kib

TOWNS = 2000
BLOCK = 100_000  # photos that are made at a time
SHARE = 10_000 / 91_000_000  # of all photos, above which a cell is split: PlaNet's
PEER = "s2geometry"
TITLES = {
    "leaves": "S2 cells of photos",
    "partition": "PlaNet's partition of photos",
    "assign": "The cell of each photo",
}


class Work(NamedTuple):
    """What the methods are given. leaves: as the photos come; in_order: sorted."""

    latitude: np.ndarray
    longitude: np.ndarray
    leaves: np.ndarray
    in_order: np.ndarray
    cells: np.ndarray
    split_above: int


def photos(count: int) -> Iterator[np.ndarray]:
    """(2, BLOCK) latitudes and longitudes, until there are `count`."""
    rng = np.random.default_rng(0)
    towns = np.degrees([np.arcsin(rng.uniform(-0.9, 0.95, TOWNS)), rng.uniform(-np.pi, np.pi, TOWNS)])
    chances = 1 / np.arange(1, TOWNS + 1)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        spread = 10 ** rng.uniform(-3, 0.5, size)  # degrees
        places = towns[:, rng.choice(TOWNS, size, p=chances / chances.sum())] + spread * rng.normal(size=(2, size))
        yield np.clip(places, [[-90], [-180]], [[90], [180]])


def prepare(count: int) -> Work:
    latitude, longitude = np.concatenate(list(photos(count)), axis=1)
    leaves = s2.leaves(latitude, longitude)
    in_order, split_above = np.sort(leaves), max(10, round(count * SHARE))
    return Work(latitude, longitude, leaves, in_order, geocells.partition(in_order, split_above, 1).cells, split_above)


def leaves_by_peer(work: Work) -> list[int]:
    points = zip(work.latitude.tolist(), work.longitude.tolist(), strict=True)
    return [S2CellId(S2LatLng.FromDegrees(*point)).id() for point in points]


def partition_by_peer(work: Work) -> list[int]:
    """A cell at a time; photos in order are counted by bisection, which is faster than one by one."""
    leaves, found = work.in_order.tolist(), []
    cells = [S2CellId.FromFacePosLevel(face, 0, 0) for face in range(6)]
    while cells:
        cell = cells.pop()
        held = bisect_left(leaves, cell.range_max().id() + 1) - bisect_left(leaves, cell.range_min().id())
        if held > work.split_above and not cell.is_leaf():
            cells += map(cell.child, range(4))
        elif held:
            found.append(cell.id())
    return sorted(found)


def assign_by_peer(work: Work) -> list[int]:
    """The last cell that begins before a leaf holds it, or none does."""
    cells = [S2CellId(cell) for cell in work.cells.tolist()]
    firsts, found = [cell.range_min().id() for cell in cells], []
    for leaf in work.leaves.tolist():
        place = bisect_right(firsts, leaf) - 1
        found.append(place if cells[place].contains(S2CellId(leaf)) else -1)
    return found


METHODS: dict[str, tuple[Callable[[Work], Any], Callable[[Work], Any]]] = {
    "leaves": (leaves_by_peer, lambda work: s2.leaves(work.latitude, work.longitude)),
    "partition": (partition_by_peer, lambda work: geocells.partition(work.in_order, work.split_above, 1).cells),
    "assign": (assign_by_peer, lambda work: geocells.assign(work.leaves, work.cells)),
}


def seconds(method: Callable[[Work], Any], work: Work) -> float:
    began = time.process_time()
    method(work)
    return time.process_time() - began


def compared(few: Work, many: Work, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Of each of ours, round by round: the peer's time over it, and its seconds for all photos."""
    results = {}
    for name, methods in METHODS.items():
        theirs, ours = (method(few) for method in methods)
        assert theirs == ours.tolist(), f"{name}: not what {PEER} finds"
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for which in random.sample((0, 1), 2):
                times[which].append(seconds(methods[which], few))
        results[name] = {"ratios": ratios(*times), "seconds": [seconds(methods[1], many) for _ in range(rounds)]}
    return results


def figures(methods: dict[str, dict[str, list[float]]], kib: int) -> dict[str, Figure]:
    """What of it is compared from run to run. kib: the peak of memory of most photos."""
    found = {"Photos' cells, memory": Figure([kib / 1024], "MiB", "lower")}
    for name, result in methods.items():
        found[TITLES[name]] = Figure(result["ratios"], "ratio", "higher", f"{PEER}, photo by photo")
        found[f"{TITLES[name]}, time"] = Figure(result["seconds"], "s", "lower")
    return found


def run(count: int) -> None:
    """In a process of its own: the leaves, their partition and its cells' means; print what is held at most."""
    before = peak_kib()
    leaves, done = np.empty(count, dtype=np.uint64), 0
    for latitude, longitude in photos(count):
        leaves[done : done + len(latitude)] = s2.leaves(latitude, longitude)
        done += len(latitude)
    leaves.sort()
    cells = geocells.partition(leaves, max(10, round(count * SHARE)), 1).cells
    geocells.means(leaves, cells)
    print(peak_kib() - before)


def memory_of(count: int) -> int:
    """KiB of resident memory that `run` takes beside the interpreter's."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_cells", "--run", str(count)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1_000_000)
    parser.add_argument("--compared", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)  # one run, in a process of its own
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run)
        return
    many = prepare(arguments.photos)
    methods = compared(prepare(arguments.compared), many, arguments.rounds)
    for name, result in methods.items():
        print(
            f"{name:10} {said(result['seconds'], 4)} s for {arguments.photos:,} photos, {len(many.cells):,} cells   "
            f"{said(result['ratios'], 1)} x {PEER} at {arguments.compared:,}"
        )
    memory = {count: memory_of(count) for count in (arguments.photos, 10 * arguments.photos)}
    for count, kib in memory.items():
        print(f"{count:>10,} photos: {kib / 1024:.0f} MB of memory, {8 * count / 2**20:.0f} MB of them the leaves")
    (few, least), (more, most) = memory.items()
    growth = (most - least) * 1024 / (more - few)
    print(f"each further photo: {growth:.1f} bytes")
    if arguments.json:
        details = {"memory_kib": memory, "bytes_per_photo": round(growth, 2)}
        write(arguments.json, "bench_cells", figures(methods, most), details)


if __name__ == "__main__":
    main()
