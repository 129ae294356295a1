"""Which stage a second is counted for, and a small `dvc repro` timed."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks import bench_repro
from tests.benchmarks.bench_repro import DVC_FIRST, Line, Stage, cpu_seconds, table, table_text, timed, training_loops
from tests.project import Project

SAID = """
Running stage 'fetch@sample-lfw':
> python -m pipelines.fetch lfw --scale sample
Updating lock file 'dvc.lock'

Stage 'fetch@sample-coco' didn't change, skipping
Running stage 'fetch@sample-im2gps':
Running stage 'train_web_dogs@sample':
web_dogs: 5 of 5 runs to train
"""


def test_a_stages_time_is_from_its_line_to_the_next() -> None:
    clock, cpu = iter([103.0, 107.5, 108.0, 120.0]), iter([2.5, 3.0, 3.5, 23.5])
    found = list(timed(SAID.splitlines(), lambda: next(clock), lambda: next(cpu), began=100.0))
    assert found == [
        Stage(DVC_FIRST, 3.0, 2.5),
        Stage("fetch", 4.5, 0.5),
        Stage("fetch", 0.5, 0.5),
        Stage("train_web_dogs", 12.0, 20.0),
    ]


def test_a_repro_that_runs_nothing_is_all_dvcs() -> None:
    assert list(timed(["Data and pipelines are up to date.\n"], lambda: 7.0, lambda: 1.0, began=5.0)) == [
        Stage(DVC_FIRST, 2.0, 1.0)
    ]


def test_stages_of_a_name_are_one_line_and_all_is_the_last() -> None:
    stages = [Stage("fetch", 4.0, 2.0), Stage("train_a", 10.0, 15.0), Stage("fetch", 2.0, 1.0)]
    lines = table(stages, {"a": 8.0, "b": 3.0})
    assert lines == [Line("fetch", 2, 6.0, 3.0), Line("train_a", 1, 10.0, 15.0, 8.0)]
    *_, fetch, train, whole = table_text(lines).splitlines()
    assert fetch == "| fetch | 2 | 6.0 | 37.5% | 3.0 | 0.50 |  |"
    assert train == "| train_a | 1 | 10.0 | 62.5% | 15.0 | 1.50 | 8.0 |"
    assert whole == "| all | 3 | 16.0 | 100.0% | 18.0 | 1.12 | 8.0 |"


def test_training_loops_are_those_of_rows_trained_since(tmp_path: Path) -> None:
    for row, seconds, changed in (("old", 5.0, 100), ("one", 2.0, 300), ("two", 1.5, 301)):
        record = tmp_path / "results/sample/dogs/train" / row / "run.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"summary": {"seconds": seconds}}))
        os.utime(record, (changed, changed))
    assert training_loops(tmp_path, since=200.0) == {"dogs": 3.5}


def test_cpu_seconds_count_this_process() -> None:
    before, own = cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - own < 0.2:
        pass
    assert cpu_seconds(os.getpid()) - before > 0.1


def test_a_command_that_fails_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ended with exit code 3"):
        bench_repro.repro([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


@pytest.mark.long
def test_a_small_repro_is_timed_and_so_is_the_one_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    monkeypatch.setenv("PATH", project.environment["PATH"])
    target = tmp_path / "repro.json"
    options = ["--folder", str(project.folder), "--command", "dvc repro shard@sample-coco", "--again", "2"]
    monkeypatch.setattr(sys, "argv", ["bench_repro", *options, "--json", str(target)])
    began = time.monotonic()
    bench_repro.main()
    took = time.monotonic() - began
    written = json.loads(target.read_text())
    assert [stage["name"] for stage in written["details"]["stages"]] == [DVC_FIRST, "fetch", "shard"]
    figures = {name: figure["values"] for name, figure in written["figures"].items()}
    assert set(figures) == {"the whole", "again, with nothing to do", "fetch", "shard"}
    assert len(figures["again, with nothing to do"]) == 2
    assert all(stage["cpu"] > 0.1 for stage in written["details"]["stages"])
    assert figures["fetch"][0] + figures["shard"][0] < figures["the whole"][0] < took
    said = capsys.readouterr().out
    assert "Running stage 'shard@sample-coco'" in said
    assert said.count("Data and pipelines are up to date") == 2
