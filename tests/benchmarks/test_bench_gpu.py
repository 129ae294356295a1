"""The GPU benchmark in small, as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.benchmarks.bench_gpu"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_measures_two_nets(tmp_path: Path) -> None:
    options = ["--nets", "2", "--batch-size", "32", "--rounds", "2", "--steps", "2"]
    subprocess.run([*COMMAND, *options, "--json", str(tmp_path / "gpu.json")], cwd=ROOT, check=True)
    results = json.loads((tmp_path / "gpu.json").read_text())
    for kind in ("eager", "compiled"):
        assert set(results[kind]["images_per_second"]) == {"mobilenet_w100_r224", "timm_mobilenetv1_100_r224"}
        assert all(rate > 0 for rate in results[kind]["images_per_second"].values())
        assert results[kind]["ratio"] > 0


@pytest.mark.slow
def test_says_in_one_line_that_there_is_no_gpu() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(COMMAND, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == "bench_gpu: torch finds no CUDA device\n"
    assert run.stdout == ""
