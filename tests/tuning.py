"""A project on the tiny data, for searches around its runs."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import yaml

from pipelines.config import _merge, load

ROOT = Path(__file__).parents[1]
SCALE = "small"
QUICK = {
    "optimizer": {"learning_rate": 0.1, "weight_average": None},
    "schedule": {"decay_rate": 0.9, "warmup_steps": 0},
    "net_options": {"batch_norm_decay": 0.5},
}


@cache
def _sample():
    return load(ROOT / "params.yaml").scales["sample"]


def write_project(folder, tiny_shards, **changes):
    """A folder to search in: the code, the tiny data, and a params.yaml with a run `row` and one that needs another.

    The data's own val split is what the table tests on. changes: of the values that all runs have.
    """
    for name in ("pipelines", "tasks"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "data" / SCALE / "shards").mkdir(parents=True)
    (folder / "data" / SCALE / "shards" / "tiny").symlink_to(tiny_shards)
    sample = _sample()
    recipe = sample.recipes["imagenet"].defaults
    small = {"resolution_divisor": 2, "epochs": 3, "batch_size": 8, "decode_threads": 0, "log_steps": 1}
    augment = {**recipe["augment"], "min_saturation": 1.0, "max_saturation": 1.0, "min_area": 0.8}
    defaults = _merge({**recipe, **small, "augment": augment}, changes)
    dataset = sample.datasets["imagenet"].model_dump()
    net = {"net": "mobilenet", "width": 0.25, "resolution": 64}
    table = {
        "task": "imagenet",
        "dataset": "tiny",
        "test": {"dataset": "tiny", "split": "val"},
        "num_outputs": 1000,
        "runs": {"row": dict(net), "pupil": {**net, "teacher": "row"}, "tuned": {**net, "init_from": "row"}},
    }
    recipes = {"first": {"defaults": defaults, "runs": {}}}
    params = {
        "scale": SCALE,
        "tables": {"first": table},
        "scales": {SCALE: {"datasets": {"tiny": dataset}, "recipes": recipes}},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


def command(folder, *arguments):
    environment = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.tune", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process):
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output.splitlines()
