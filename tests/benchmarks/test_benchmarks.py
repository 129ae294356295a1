"""The benchmarks still start, and a small one measures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.compare import load

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
pytestmark = pytest.mark.long


def run(name: str, *options: str) -> str:
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *options]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_says_what_it_measures(name: str) -> None:
    assert "--json" in run(name, "--help")


def test_asking_a_teacher_is_set_beside_its_stored_predictions(tmp_path: Path) -> None:
    said = run("bench_teaching", "--images", "32", "--rounds", "2", "--json", str(tmp_path / "teaching.json"))
    assert "asked at every step / stored: " in said
    found = load(tmp_path / "teaching.json")
    seconds = found.details["seconds"]
    assert {name: len(values) for name, values in seconds.items()} == {"asked": 2, "stored": 2, "storing": 2}
    wanted = [asked / stored for asked, stored in zip(seconds["asked"], seconds["stored"], strict=True)]
    assert found.figures["An epoch of distilling with stored predictions"].values == wanted
    assert found.figures["An epoch of distilling with stored predictions, time"].values == seconds["stored"]
    assert found.figures["Storing the predictions"].values == seconds["storing"]


def test_cocos_figures_are_set_beside_pycocotools(tmp_path: Path) -> None:
    options = ("--images", "40", "--detections", "20", "--rounds", "2")
    said = run("bench_coco_ap", *options, "--json", str(tmp_path / "coco.json"))
    assert "x pycocotools" in said
    found = load(tmp_path / "coco.json")
    assert {len(method["seconds"]) for method in found.details.values()} == {2}
    assert all(method["memory_mib"] >= 0 for method in found.details.values())
    seconds = {name: method["seconds"] for name, method in found.details.items()}
    for title, ours, peer in (
        ("COCO's twelve figures", "CocoAP", "pycocotools"),
        ("COCO's twelve figures beside the faster peer", "CocoAP", "faster-coco-eval"),
        ("COCO's twelve figures with AP's interval", "CocoAP with its interval", "pycocotools"),
    ):
        wanted = [theirs / own for theirs, own in zip(seconds[peer], seconds[ours], strict=True)]
        assert found.figures[title].values == wanted
        assert peer in found.figures[title].peer


SMALL = {
    "bench_cells": ("--photos", "20000", "--compared", "500", "--rounds", "2"),
    "bench_feed": ("--images", "16", "--batch-size", "2", "--steps", "2", "--threads", "1", "--rounds", "2"),
    "bench_reader": ("--images", "16", "--rounds", "2"),
    "bench_shard": ("--samples", "20", "--rounds", "2"),
    "bench_sharding": ("--samples", "1000"),
    "bench_step": ("--batch-size", "2", "--rounds", "2"),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_writes_its_figures_round_by_round(name: str, tmp_path: Path) -> None:
    run(name, *SMALL[name], "--json", str(tmp_path / "found.json"))
    found = load(tmp_path / "found.json")
    assert (found.benchmark, found.command[3 : 3 + len(SMALL[name])]) == (name, list(SMALL[name]))
    beside = [figure for figure in found.figures.values() if figure.peer]
    assert beside
    assert {figure.unit for figure in beside} == {"ratio"}
    rounds = 2 if "--rounds" in SMALL[name] else 1
    assert {len(figure.values) for title, figure in found.figures.items() if "memory" not in title} == {rounds}
