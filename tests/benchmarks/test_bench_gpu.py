"""The GPU benchmark in small, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks.compare import load

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.benchmarks.bench_gpu"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_measures_two_nets(tmp_path: Path) -> None:
    options = ["--nets", "2", "--batch-size", "32", "--rounds", "2", "--steps", "2"]
    subprocess.run([*COMMAND, *options, "--json", str(tmp_path / "gpu.json")], cwd=ROOT, check=True)
    found = load(tmp_path / "gpu.json")
    titles = ("mobilenet_w100_r224", "Training step of MobileNet 1.0-224 on a GPU")
    assert set(found.figures) == {f"{title}, {kind}" for title in titles for kind in ("eager", "compiled")}
    assert all(len(figure.values) == 2 and min(figure.values) > 0 for figure in found.figures.values())
    assert found.details == {"batch_size": 32, "not_compiled": []}
    assert found.machine["gpu"] == torch.cuda.get_device_name(0)


@pytest.mark.slow
def test_runs_where_little_else_is_installed(tmp_path: Path) -> None:
    """It is copied to machines with a GPU that have torch, torchvision, timm, Lightning and numpy."""
    absent = ("cv2", "mlflow", "numba", "obstore", "pydantic", "ray", "scipy", "simplejpeg", "webdataset", "yaml")
    script = (
        f"import sys; sys.modules |= dict.fromkeys({absent!r})\n"
        "from pathlib import Path\n"
        "from tests.benchmarks import bench_gpu\n"
        "from torch import nn\n"
        "chosen = [bench_gpu.Contestant(name, 32, lambda: nn.Conv2d(3, 4, 1)) for name in 'ab']\n"
        "bandwidth = 1.5 * 2 * 4 * 32 * 32 * 19 * 2\n"  # twice what 1.5 images a second move
        "figures = bench_gpu.report('eager', chosen, {'a': [1.0, 2.0]}, {'a': 0.5}, bandwidth)\n"
        "bench_gpu.write(Path(sys.argv[1]), 'bench_gpu', figures, {})\n"
    )
    path = tmp_path / "gpu.json"
    run = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert load(path).figures["a, eager"].values == [1.0, 2.0]
    assert "50% of the bound, 0.5 GiB" in run.stdout.splitlines()[0]
    assert run.stdout.splitlines()[1].split() == ["eager", "b", "not", "compiled"]


@pytest.mark.slow
def test_says_in_one_line_that_there_is_no_gpu() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(COMMAND, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == "bench_gpu: torch finds no CUDA device\n"
    assert run.stdout == ""
