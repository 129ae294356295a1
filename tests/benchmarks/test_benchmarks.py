"""The benchmarks still start, and a small one measures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
pytestmark = pytest.mark.slow


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
    figures = json.loads((tmp_path / "teaching.json").read_text())
    seconds = figures["seconds"]
    assert {name: len(values) for name, values in seconds.items()} == {"asked": 2, "stored": 2, "storing": 2}
    wanted = [asked / stored for asked, stored in zip(seconds["asked"], seconds["stored"], strict=True)]
    assert figures["ratios"] == wanted


def test_cocos_figures_are_set_beside_pycocotools(tmp_path: Path) -> None:
    options = ("--images", "40", "--detections", "20", "--rounds", "2")
    said = run("bench_coco_ap", *options, "--json", str(tmp_path / "coco.json"))
    assert "x pycocotools" in said
    figures = json.loads((tmp_path / "coco.json").read_text())
    peer, ours = figures["pycocotools"]["seconds"], figures["CocoAP"]["seconds"]
    assert figures["CocoAP"]["ratios"] == [theirs / own for theirs, own in zip(peer, ours, strict=True)]
    assert {len(figure["seconds"]) for figure in figures.values()} == {2}
    assert all(figure["memory_mib"] >= 0 for figure in figures.values())
