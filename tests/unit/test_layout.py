"""The shape of the project: one-way imports, light entry points, a fixed top level."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

from pipelines.config import load

ROOT = Path(__file__).parents[2]
STAGES = ("fetch", "shard", "cells", "train", "evaluate", "report")
RAY_MODULES = {"asha", "async_backend", "cluster", "launch", "loop", "pool"}
LAYERS = {  # of pipelines: what each package may import of it beside itself
    "pictures": {"budgets", "figures", "page", "tables"},
    "samples": set(),
    "training": {"cluster", "files", "progress", "section", "shards"},
    "weights": set(),
}
TOP_LEVEL = {
    *("README.md", "pyproject.toml", "dvc.yaml", "params.yaml"),
    *("pipelines", "tasks", "infra", "tests"),
    *("dvc.lock", "LICENSE"),
}


def modules(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports(path):
    """Every dotted name that a file imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def packages(path):
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", modules("tasks"), ids=str)
def test_tasks_know_nothing_of_how_they_are_run(path):
    assert not packages(path) & {"pipelines", "ray", "dvc", "mlflow", "webdataset", "pathlib", "os"}


@pytest.mark.parametrize("path", modules("pipelines"), ids=str)
def test_heavy_systems_are_imported_in_few_places(path):
    found = packages(path)
    assert "ray" not in found or path.stem in RAY_MODULES
    assert "mlflow" not in found or path.parent.name == "tracking"
    assert "matplotlib" not in found or path.stem == "figures" or path.parent.name == "pictures"
    assert not found & {"h5py", "tflite"} or path.parent.name == "weights"
    assert not found & {"dvc", "tests", "infra"}


@pytest.mark.parametrize("path", modules("pipelines"), ids=str)
def test_nothing_imports_a_stage(path):
    assert not imports(path) & {f"pipelines.{stage}" for stage in STAGES}


@pytest.mark.parametrize("package", LAYERS)
def test_packages_of_pipelines_rest_on_what_is_below_them(package):
    found = {
        name for path in modules(f"pipelines/{package}") for name in imports(path) if name.startswith("pipelines.")
    }
    assert {name.split(".")[1] for name in found} <= {package, *LAYERS[package]}


@pytest.mark.parametrize(
    ("stage", "known"),
    [
        ("fetch", "imagenet"),
        ("shard", "imagenet"),
        ("cells", "planet_9800"),
        ("train", "imagenet"),
        ("evaluate", "imagenet"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(stage, known):
    command = [sys.executable, "-m", f"pipelines.{stage}", "nothing_of_that_name"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ")
    assert "'nothing_of_that_name' is unknown; there are: " in line
    assert known in line


@cache
def definitions():
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def names(stage):
    """The stages of dvc.yaml that run a stage's command: fetch, or train_imagenet and the like."""
    return [name for name in definitions() if name == stage or name.startswith(f"{stage}_")]


def code_deps(name):
    return {Path(dep) for dep in definitions()[name]["deps"] if "$" not in dep}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_own_code(stage):
    assert names(stage)
    for name in names(stage):
        assert all((ROOT / dep).exists() for dep in code_deps(name))
        assert Path(f"pipelines/{stage}.py") in code_deps(name)


def test_code_that_makes_a_row_train_again_makes_the_stages_run_again():
    from pipelines.plan import CODE, SHARDS

    for name in names("train") + names("evaluate"):
        assert {*map(Path, CODE), SHARDS} <= code_deps(name)


def test_stages_depend_on_the_data_and_the_tables_that_their_runs_need():
    params = load()
    for name, table in params.tables.items():
        shards = {f"data/${{item.scale}}/shards/{table.dataset}"}
        runs = [run for scale in params.scales for run in params.runs(name, scale).values()]
        others = {params.table_of(wanted) for run in runs for wanted in run.origins.values()} - {name, None}
        for other in {params.table_of(run.teacher) for run in runs if run.teacher} - {name}:
            how = {f"tables.{other}", f"scales.${{item.scale}}.recipes.{other}"}  # what decides how a teacher sees
            assert how <= set(definitions()[f"train_{name}"]["params"])
        files = {run.init_from for run in runs if run.init_from and params.table_of(run.init_from) is None}
        assert files <= set(definitions()[f"train_{name}"]["deps"])
        trained = {f"results/${{item.scale}}/{other}/train" for other in others}
        cells = {f"data/${{item.scale}}/cells/${{tables.{name}.cells.partition}}"} if table.cells else set()
        assert shards | cells | trained <= set(definitions()[f"train_{name}"]["deps"])
        tests = {test.dataset for test in (table.test, *table.further_tests.values())}
        tested = {f"data/${{item.scale}}/shards/{test}" for test in tests}
        tested |= shards | cells | {f"results/${{item.scale}}/{name}/train"}
        assert tested <= set(definitions()[f"evaluate_{name}"]["deps"])
        for part in ("train", "evaluation", "metrics.json"):
            assert f"results/${{item.scale}}/{name}/{part}" in definitions()["report"]["deps"]
    assert {name.partition("_")[2] for name in names("train")} == set(params.tables)
    assert {name.partition("_")[2] for name in names("evaluate")} == set(params.tables)


def test_the_top_level_is_fixed():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name.split(os.sep)[0] for name in files.splitlines() if not name.startswith(".")} <= TOP_LEVEL


def test_the_lock_file_pins_every_dependency_and_names_no_host():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    lines = (ROOT / "infra" / "requirements.lock").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    assert {re.match(r"[\w-]+", name)[0].lower() for name in wanted} <= pinned
    assert not [line for line in lines if "://" in line or line.startswith("-")]
