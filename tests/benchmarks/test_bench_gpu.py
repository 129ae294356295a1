"""The GPU benchmark in small, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.benchmarks import bench_gpu
from tests.benchmarks.compare import load
from tests.benchmarks.roofline import Device, Work

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.benchmarks.bench_gpu"]
TITLE = "Training step of MobileNet 1.0-224 on a GPU"
SSD = "ssd300_mobilenet_r300"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_measures_three_nets_in_four_ways(tmp_path: Path) -> None:
    sizes = ["--nets", "3", "--batch-size", "32", "--detector-batch-size", "4", "--rounds", "2", "--steps", "2"]
    subprocess.run([*COMMAND, *sizes, "--json", str(tmp_path / "gpu.json")], cwd=ROOT, check=True)
    found = load(tmp_path / "gpu.json")
    ways = (bench_gpu.EAGER, bench_gpu.CAPTURED, bench_gpu.COMPILED, bench_gpu.BOTH)
    rates = {f"{name}, {way}" for name in (bench_gpu.OURS, bench_gpu.PEER, SSD) for way in ways}
    assert set(found.figures) == rates | {f"{TITLE}, {kind}" for kind in (*ways, "each in its best way")}
    assert all(len(figure.values) == 2 and min(figure.values) > 0 for figure in found.figures.values())
    assert found.machine["gpu"] == torch.cuda.get_device_name(0)


def test_lists_all_that_is_asked_for() -> None:
    names = [contestant.name for contestant in bench_gpu.contestants(256, 16)]
    assert len(names) == len(set(names)) == 16 + 1 + 9
    assert names[:3] == [bench_gpu.OURS, bench_gpu.PEER, SSD]


def test_each_rate_is_set_beside_its_bound(capsys: pytest.CaptureFixture[str]) -> None:
    net = bench_gpu.Contestant("net", 32, 2, nn.Identity, bench_gpu.classification_loss)
    made = bench_gpu.Prepared({}, {"net": Work(1000, 500, 10)}, {("net", "eager"): 0.5})
    rates = {("net", "eager"): [1.0, 3.0], ("net", "captured"): [4.0, 4.0]}  # ten seconds a step of two images at best
    found = bench_gpu.report([net], made, rates, Device(100.0, 100.0))
    assert {name: figure.values for name, figure in found.items()} == {
        "net, eager": [1.0, 3.0],
        "net, captured": [4.0, 4.0],
    }
    eager, captured, compiled = capsys.readouterr().out.splitlines()
    assert eager.endswith("2 (1 to 3) images/s, 1000% of the bound, 0.5 GiB")
    assert captured.endswith("4 (4 to 4) images/s, 2000% of the bound")
    assert compiled.split(maxsplit=1) == ["net", "not compiled: no time was left"]


def test_the_best_way_of_each_is_compared() -> None:
    rates = {
        (bench_gpu.OURS, "eager"): [2.0, 4.0],
        (bench_gpu.OURS, "compiled"): [8.0, 9.0],
        (bench_gpu.PEER, "eager"): [4.0, 3.0],
        (bench_gpu.PEER, "captured"): [1.0, 1.0],
    }
    found = bench_gpu.compared(rates)
    assert {name: figure.values for name, figure in found.items()} == {
        f"{TITLE}, eager": [0.5, 4 / 3],
        f"{TITLE}, each in its best way": [2.0, 3.0],
    }


@pytest.mark.slow
def test_runs_where_little_else_is_installed(tmp_path: Path) -> None:
    """It is copied to machines with a GPU that have torch, torchvision, timm, Lightning and numpy. Here on a CPU."""
    absent = ("cv2", "mlflow", "numba", "obstore", "pydantic", "ray", "scipy", "simplejpeg", "webdataset", "yaml")
    script = (
        f"import sys; sys.modules |= dict.fromkeys({absent!r})\n"
        "from functools import partial\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from tasks.nets import NetSpec, build\n"
        "from tests.benchmarks import bench_gpu, roofline\n"
        "torch.compile = partial(torch.compile, backend='eager')\n"  # traces the whole, and needs no C++ compiler
        f"names = (bench_gpu.OURS, bench_gpu.PEER, {SSD!r}, 'faster_rcnn_mobilenet_r300')\n"
        "chosen = [each._replace(resolution=64) for each in bench_gpu.contestants(2, 2) if each.name in names]\n"
        "spec = NetSpec('faster_rcnn_mobilenet', num_classes=bench_gpu.CATEGORIES, second_stage_boxes=2)\n"
        "chosen[-1] = chosen[-1]._replace(make=lambda: build(spec))\n"  # a CPU may be slow in bfloat16
        "device = torch.device('cpu')\n"
        "made = bench_gpu.prepared(chosen, device, float('inf'))\n"
        "rates = bench_gpu.rates(made.steps, dict.fromkeys(names, 2), 2, 1)\n"
        "figures = bench_gpu.report(chosen, made, rates, roofline.Device(1e12, 1e12))\n"
        "bench_gpu.write(Path(sys.argv[1]), 'bench_gpu', figures, {})\n"
    )
    path = tmp_path / "gpu.json"
    subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, check=True)
    found = load(path).figures
    both = {f"{name}, {way}" for name in (bench_gpu.OURS, bench_gpu.PEER, SSD) for way in ("eager", "compiled")}
    ratios = {f"{TITLE}, {kind}" for kind in ("eager", "compiled", "each in its best way")}
    assert set(found) == both | ratios | {"faster_rcnn_mobilenet_r300, eager"}
    assert all(len(figure.values) == 2 and min(figure.values) > 0 for figure in found.values())


@pytest.mark.slow
def test_says_in_one_line_that_there_is_no_gpu() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(COMMAND, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == "bench_gpu: torch finds no CUDA device\n"
    assert run.stdout == ""
