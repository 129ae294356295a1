"""Searches on real Ray clusters by the real command: stopped trials, a kill, MLflow, every kind of training."""

import csv
import json
import os
import re
import signal
import time

import pytest

from pipelines.training.curve import read_curve
from tests.tuning import QUICK, SCALE, command, finished, write_project

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

RATE = "optimizer.learning_rate"
# Trial 0 has the run's own rate, with which the tiny data are learned; with the others nothing is.
COMMAND = ["row", "--trials", "4", "--epochs", "9", "--concurrent", "1", "--search", f"{RATE}=choice:1e-6,2e-6,3e-6"]


def trial_folder(folder, number):
    return next(folder.glob(f"results/{SCALE}/work/tuning/row-*")) / f"trial_{number:03d}"


def rungs(folder, number):
    """What a trial has reached, as far as it is written; nothing before the search has begun."""
    try:
        return json.loads((trial_folder(folder, number) / "rungs.json").read_text())
    except (FileNotFoundError, StopIteration):
        return []


def wait_for(what, seconds=300):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"{what} did not come in {seconds} s"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def searched(tiny_shards, tmp_path_factory):
    """A search that was killed while trial 0 was between two rungs, and then run to its end by the same command."""
    folder = write_project(tmp_path_factory.mktemp("search"), tiny_shards, **QUICK)
    process = command(folder, *COMMAND)
    try:
        before = wait_for(lambda: [rung for rung in rungs(folder, 0) if rung["decided"]])
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert not (trial_folder(folder, 0) / "ended.json").exists()
    return folder, before, finished(command(folder, *COMMAND))


def records(folder):
    with (folder / f"results/{SCALE}/tuning/row/trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_asha_stops_the_trials_that_learn_nothing(searched):
    folder, _, output = searched
    first, *others = records(folder)
    assert (first["status"], first["epochs"]) == ("finished", "9.0")
    stopped = [record for record in others if record["status"] == "stopped"]
    assert stopped  # one that is as good as trial 0 by chance, of ten images, may go on
    assert {record["epochs"] for record in stopped} <= {"1", "3"}
    assert float(first["top1"]) > 0.6 > max(float(record["top1"]) for record in others)
    number = int(stopped[0]["trial"])
    assert any(re.fullmatch(rf"trial {number:03d}: stopped; \d of 4 left", line) for line in output)
    best = (folder / f"results/{SCALE}/tuning/row/best.yaml").read_text()
    assert "trial 000 of 4: top1 " in best
    assert "Measured on 10 images: the last tenth of train of tiny" in best


def test_a_killed_search_goes_on_where_it_was(searched):
    folder, before, output = searched
    after = rungs(folder, 0)
    assert after[: len(before)] == before  # each carries the time at which it was measured
    assert [rung["epoch"] for rung in after] == [1, 3, 9.0]
    assert not any(f"trial 000: epoch {before[-1]['epoch']:g}," in line for line in output)
    steps = [row["step"] for row in read_curve(trial_folder(folder, 0) / "curve.jsonl")]
    assert steps == list(range(1, 98))  # 9 epochs of 86 images, 8 a step
    assert not list(folder.glob(f"results/{SCALE}/work/tuning/row-*/trial_*/*.pt"))


def test_mlflow_has_one_run_for_the_search_and_one_below_it_for_each_trial(searched):
    from mlflow.tracking import MlflowClient

    folder, _, _ = searched
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(f"first-{SCALE}-tuning")
    found = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    below = {run.info.run_name: run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert len(found) == 5
    assert sorted(below) == [f"trial {number:03d}" for number in range(4)]
    assert {run.info.status for run in found} == {"FINISHED"}
    for record in records(folder):
        run = below[f"trial {int(record['trial']):03d}"]
        assert run.data.params[RATE] == json.dumps(float(record[RATE]))
        assert run.data.metrics["held_out/top1"] == float(record["top1"])
    history = client.get_metric_history(below["trial 000"].info.run_id, "rungs/top1")
    assert [metric.step for metric in history] == [1, 3, 9]
    assert parent.data.metrics["eval/best_top1"] == float(records(folder)[0]["top1"])
    kept = {file.path for file in client.list_artifacts(parent.info.run_id, "figures")}
    assert kept == {f"figures/{name}" for name in ("best.yaml", "trials.csv", "trials.png", "trials.svg")}


def test_the_same_command_then_has_nothing_to_do_and_more_trials_are_added(searched):
    folder, _, _ = searched
    kept = [rungs(folder, number) for number in range(4)]
    output = finished(command(folder, *COMMAND))
    assert output[0].startswith("row: 4 trials, 0 to run")
    output = finished(command(folder, *COMMAND, "--trials", "5"))
    assert output[0].startswith("row: 5 trials, 1 to run")
    assert [rungs(folder, number) for number in range(4)] == kept
    assert records(folder)[0]["status"] == "finished"
    assert len(records(folder)) == 5


def test_where_all_trials_fail_the_first_one_says_why(tiny_shards, tmp_path):
    folder = write_project(tmp_path, tiny_shards, **QUICK)
    process = command(folder, "row", "--trials", "2", "--epochs", "1", "--metric", "mean_ap")
    output, _ = process.communicate()
    assert process.returncode == 1
    why = "--metric mean_ap is unknown; task imagenet has: samples, top1, "
    assert output.splitlines()[-1].startswith(f"error: 2 of 2 trials failed, none came to its end: {why}")
    assert (
        sum(line.startswith(f"trial 00{number}: failed ({why}") for number in (0, 1) for line in output.splitlines())
        == 2
    )
