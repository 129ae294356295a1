"""What a command imports before it knows that it has something to do: neither torch nor anything else that is heavy."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from pipelines.section import read_yaml

ROOT = Path(__file__).parents[3]
HEAVY = {
    *("torch", "torchvision", "torchmetrics", "pytorch_lightning", "lightning_fabric", "ray", "mlflow", "numba"),
    *("matplotlib", "scipy", "pandas", "onnx", "onnxruntime", "h5py", "tflite"),
}
# By module: a request that is refused where nothing has been made yet, and what the refusal names. None: it would do
# something.
REQUESTS = {
    "cells": (["planet_9800"], "yfcc100m_geo"),
    "choose": (["--table", "imagenet", "--max-mult-adds", "150M"], "metrics.json"),
    "dogs_overlap": (["dogs", "imagenet"], "dogs"),
    "evaluate": (["imagenet"], "imagenet"),
    "fetch": (["imagenet"], None),
    "import_weights": (["absent.h5", "out.pt"], "absent.h5"),
    "predict": (["detection_ssd300_mobilenet", "images", "out"], "coco"),
    "report": ([], None),
    "shard": (["imagenet"], "imagenet"),
    "simulate": (["--workers", "0", "--out", "out"], "workers"),
    "tracking": (["absent"], "absent"),
    "tracking.registry": (["absent"], "card.json"),
    "train": (["imagenet"], "imagenet"),
    "tune": (["imagenet_w025_r128"], "imagenet"),
}
WITHOUT_PARAMS = {"dogs_overlap", "import_weights", "tracking", "tracking.registry"}
REFUSED = [name for name, (_, named) in REQUESTS.items() if named]
WITH_PARAMS = sorted(REQUESTS.keys() - WITHOUT_PARAMS)


# Each command runs in a process of its own, forked from one that has imported what all of them need: to start Python
# and import that anew takes ten times as long as the rest.
FORKS = """
import io, json, os, runpy, sys
from contextlib import redirect_stderr, redirect_stdout
import pipelines.command

def answer(name, arguments):
    sys.argv = [name, *arguments]
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
        try:
            runpy.run_module(f"pipelines.{name}", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code
    packages = sorted({module.split(".")[0] for module in sys.modules})
    return code, output.getvalue(), errors.getvalue().splitlines(), packages

for name, arguments in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        print(json.dumps([name, *answer(name, arguments)]), flush=True)
        os._exit(0)
    os.wait()
"""


class Answer(NamedTuple):
    """How a command ended, what it said, and the packages that it imported."""

    code: int
    output: str
    errors: list[str]
    packages: set[str]


def ask_all(folder, requests):
    """By name, the answers to requests in a folder."""
    command = [sys.executable, "-c", FORKS, json.dumps(requests)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    answers = {}
    for line in done.stdout.splitlines():
        name, code, output, errors, packages = json.loads(line)
        answers[name] = Answer(code, output, errors, set(packages))
        assert "argparse" in packages
    assert list(answers) == list(requests)
    return answers


def project(folder, params):
    """A folder with the project's code and nothing made yet."""
    for name in ("pipelines", "tasks"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "params.yaml").write_text(yaml.dump(params, Dumper=yaml.CSafeDumper))
    return folder


@pytest.fixture(scope="module")
def params():
    return read_yaml(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def helped():
    return ask_all(ROOT, {name: ["--help"] for name in REQUESTS})


@pytest.fixture(scope="module")
def refused(tmp_path_factory, params):
    """Requests for what needs something that is not there."""
    return ask_all(project(tmp_path_factory.mktemp("empty"), params), {name: REQUESTS[name][0] for name in REFUSED})


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory, params):
    """Requests where a value in params.yaml is one that no run may have."""
    wrong = copy.deepcopy(params)
    wrong["tables"]["imagenet"]["runs"]["imagenet_w025_r128"]["width"] = -0.25
    folder = project(tmp_path_factory.mktemp("wrong"), wrong)
    requests = {name: REQUESTS[name][0] for name in WITH_PARAMS}
    return ask_all(folder, {**requests, "simulate": ["--out", "out"]})


def test_all_commands_are_tried():
    mains = [path for path in (ROOT / "pipelines").rglob("*.py") if '__name__ == "__main__"' in path.read_text()]
    names = {".".join(path.relative_to(ROOT / "pipelines").with_suffix("").parts) for path in mains}
    assert {name.removesuffix(".__main__") for name in names} == set(REQUESTS)


@pytest.mark.parametrize("name", REQUESTS)
def test_help_comes_without_heavy_imports(helped, name):
    answer = helped[name]
    assert answer.code == 0, answer.errors
    assert answer.output.startswith("usage: ")
    assert not answer.packages & HEAVY


@pytest.mark.parametrize("name", WITH_PARAMS)
def test_a_mistake_in_params_is_told_without_heavy_imports(mistaken, name):
    answer = mistaken[name]
    (line,) = answer.errors
    assert (answer.code, line[: len("error: params.yaml: ")]) == (1, "error: params.yaml: ")
    assert "imagenet_w025_r128: width: " in line
    assert not answer.packages & HEAVY


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_there_is_told_without_heavy_imports(refused, name):
    answer = refused[name]
    (line,) = answer.errors
    assert (answer.code, line[: len("error: ")]) == (1, "error: ")
    assert REQUESTS[name][1] in line
    assert not answer.packages & HEAVY
