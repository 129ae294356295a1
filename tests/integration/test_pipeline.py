"""`dvc repro` on a small copy of the project: nothing twice, one row alone, on again after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from pipelines.side_by_side import rows_at_once
from pipelines.training.curve import read_curve
from tests.project import OTHERS, ROWS, Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

# Where a shell started the tests in the background, children would ignore Ctrl-C.
FOREGROUND = {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("project"))
    made.repro()
    return made


def start_training(project, **options):
    command = [sys.executable, "-m", "pipelines.train", "imagenet"]
    return subprocess.Popen(command, cwd=project.folder, env=project.environment, **options)


def test_the_graph_ends_in_metrics_that_dvc_shows(project):
    metrics = json.loads((project.folder / "results/sample/imagenet/metrics.json").read_text())
    assert set(metrics["runs"]) == set(ROWS)
    assert all(run["samples"] == 50 for run in metrics["runs"].values())
    assert metrics["runs"]["imagenet_w025_r128"]["mult_adds"] == 13_570_048
    project.run("dvc", "repro")  # the report too, of which most rows are not in this params.yaml
    shown = project.run("dvc", "metrics", "show").splitlines()
    for name in ROWS:
        (line,) = (line for line in shown if f"metrics/{name}.json" in line)
        assert str(metrics["runs"][name]["mult_adds"]) in line.split()
    assert (project.folder / "results/sample/report/index.html").read_text().count("not run") > 20


def test_a_second_repro_runs_nothing(project):
    assert "Data and pipelines are up to date" in project.run("dvc", "repro")


@pytest.mark.parametrize(
    ("table", "origin", "needs_it"),
    [
        ("web_dogs", "web_dogs_w075_r192", "stanford_dogs"),
        ("celeba_attributes", "face_attributes_nn2", "face_attributes"),
    ],
)
def test_what_starts_from_a_net_or_learns_from_it_is_trained_again_with_it(project, table, origin, needs_it):
    project.set_row(origin, table, seed=5)
    said = project.repro(f"evaluate_{needs_it}")
    rows = len(OTHERS[needs_it])
    assert f"{table}: 1 of 1 runs to train" in said
    assert f"{needs_it}: 1 of {rows} runs to train" in said
    assert re.findall(r"^(\w+): \d+ of", said, re.MULTILINE) == [table, needs_it]
    assert "Data and pipelines are up to date" in project.repro(f"evaluate_{needs_it}")
    project.set_row(OTHERS[needs_it][0], needs_it, seed=6)
    said = project.repro(f"evaluate_{needs_it}")
    assert re.findall(r"^(\w+): \d+ of", said, re.MULTILINE) == [needs_it]
    assert f"{needs_it}: 1 of {rows} runs to train" in said


def test_a_teacher_of_the_same_table_is_trained_first_and_again(project):
    project.set_row("face_embedding_nn2", "face_embeddings", seed=5)
    said = project.repro("evaluate_face_embeddings")
    assert "face_embeddings: 2 of 2 runs to train" in said
    assert said.index("[1/2] face_embedding_nn2") < said.index("[2/2] face_embedding_w075_r128")
    project.set_row("face_embedding_w075_r128", "face_embeddings", seed=6)
    assert "face_embeddings: 1 of 2 runs to train" in project.repro("evaluate_face_embeddings")


def test_editing_one_row_trains_that_row_alone(project):
    before, curves = project.fingerprints(), project.curves()
    project.set_row(ROWS[1], seed=7)
    assert "imagenet: 1 of 2 runs to train" in project.repro()
    after = project.fingerprints()
    assert after[ROWS[0]] == before[ROWS[0]]
    assert project.curves()[ROWS[0]] == curves[ROWS[0]]
    assert after[ROWS[1]] != before[ROWS[1]]


def test_rows_are_trained_side_by_side_and_the_lock_file_is_right(project, monkeypatch):
    for name in ROWS:
        project.set_row(name, seed=8, epochs=12)
    monkeypatch.setitem(project.environment, "ROWS_AT_ONCE", "2")
    said = project.repro()
    assert "imagenet: 2 of 2 runs to train" in said
    spans = []
    for curve in (read_curve(project.row(name) / "curve.jsonl") for name in ROWS):
        assert [row["step"] for row in curve] == list(range(1, 12 * 320 // 32 + 1))
        spans.append((curve[0]["time"], curve[-1]["time"]))
    assert max(begin for begin, _ in spans) < min(end for _, end in spans)
    monkeypatch.setitem(project.environment, "ROWS_AT_ONCE", "1")
    assert "Data and pipelines are up to date" in project.repro()
    for name in ROWS:
        project.set_row(name, epochs=2)
    project.repro()  # for the tests that follow


@pytest.mark.long
def test_by_default_rows_share_the_machine_and_ctrl_c_leaves_each_its_checkpoint(project, monkeypatch):
    for name in ROWS:
        project.set_row(name, seed=9, epochs=12)
    for known in (os.environ, project.environment):
        monkeypatch.delitem(known, "ROWS_AT_ONCE")
    begun = ROWS[: rows_at_once([])]
    work = project.folder / "results/sample/work"
    stage = start_training(project, **FOREGROUND)
    while not all(list(work.glob(f"{name}-*/checkpoint.pt")) for name in begun):
        assert stage.poll() is None, "the stage ended before it could be interrupted"
        time.sleep(0.01)
    os.killpg(stage.pid, signal.SIGINT)
    assert stage.wait(timeout=60) == 128 + signal.SIGINT
    assert {name for name in ROWS if list(work.glob(f"{name}-*/checkpoint.pt"))} == {*begun}
    interrupted = time.time()
    assert "imagenet: 2 of 2 runs to train" in project.repro()
    for name in ROWS:
        curve = read_curve(project.row(name) / "curve.jsonl")
        assert [row["step"] for row in curve] == list(range(1, 12 * 320 // 32 + 1))
        assert (curve[0]["time"] < interrupted) == (name in begun)  # gone on with
    for name in ROWS:
        project.set_row(name, epochs=2)
    project.repro()  # for the tests that follow


def test_words_in_the_code_train_nothing(project):
    curves = project.curves()
    code = project.folder / "tasks" / "losses.py"
    code.write_text(code.read_text() + "# a remark\n")
    assert "imagenet: 0 of 2 runs to train" in project.repro()
    assert project.curves() == curves


def test_a_killed_stage_keeps_its_finished_rows_and_goes_on_with_the_broken_one(project):
    for name in ROWS:
        project.set_row(name, seed=11, epochs=8)
    fingerprints = project.fingerprints()
    stage = subprocess.Popen(
        ["dvc", "repro", "evaluate_imagenet"], cwd=project.folder, env=project.environment, start_new_session=True
    )
    steps = 8 * 320 // 32
    work = project.folder / "results/sample/work"

    def curve():
        return [row for path in work.glob(f"{ROWS[1]}-*/curve.jsonl") for row in read_curve(path)]

    while not any(row["step"] >= 20 for row in curve()):
        assert stage.poll() is None, "the stage ended before it could be killed"
        time.sleep(0.01)
    os.killpg(stage.pid, signal.SIGKILL)
    stage.wait()
    finished = project.fingerprints()
    assert finished[ROWS[0]] != fingerprints[ROWS[0]]
    assert finished[ROWS[1]] == fingerprints[ROWS[1]]
    curves = project.curves()
    assert "imagenet: 1 of 2 runs to train" in project.repro()
    assert project.curves()[ROWS[0]] == curves[ROWS[0]]
    assert [row["step"] for row in read_curve(project.row(ROWS[1]) / "curve.jsonl")] == list(range(1, steps + 1))
    assert not list(work.glob("imagenet_*"))


def test_a_changed_config_never_takes_up_an_old_checkpoint(project):
    project.set_row(ROWS[1], seed=12)
    stage = subprocess.Popen(
        ["dvc", "repro", "evaluate_imagenet"], cwd=project.folder, env=project.environment, start_new_session=True
    )
    work = project.folder / "results/sample/work"
    while not list(work.glob(f"{ROWS[1]}-*/checkpoint.pt")):
        assert stage.poll() is None, "the stage ended before it could be killed"
        time.sleep(0.01)
    os.killpg(stage.pid, signal.SIGKILL)
    stage.wait()
    project.set_row(ROWS[1], seed=11)
    before = (project.folder / "results/sample/imagenet/metrics.json").read_text()
    project.set_row(ROWS[1], seed=13)
    project.repro()
    rows = read_curve(project.row(ROWS[1]) / "curve.jsonl")
    assert rows[0]["step"] == 1  # from the beginning: its own checkpoint is the only one that it would go on from
    assert (project.folder / "results/sample/imagenet/metrics.json").read_text() != before


@pytest.mark.ray
@pytest.mark.parametrize("row", ROWS)
def test_ctrl_c_fails_the_stage_in_a_ray_run_and_in_the_local_one_after_it(project, row):
    project.set_row(ROWS[0], kind="ddp", num_workers=2, seed=20 + ROWS.index(row), epochs=40)
    project.set_row(ROWS[1], seed=20 + ROWS.index(row), epochs=40)
    stage = start_training(project, **FOREGROUND)
    work = project.folder / "results/sample/work"
    while not any(read_curve(path) for path in work.glob(f"{row}-*/curve.jsonl")):
        assert stage.poll() is None, "the stage ended before it could be interrupted"
        time.sleep(0.01)
    os.killpg(stage.pid, signal.SIGINT)
    assert stage.wait(timeout=60) not in (0, None)
    assert list(work.glob(f"{row}-*"))  # what it goes on from


def test_sigterm_fails_the_stage_which_goes_on_later(project):
    for name in ROWS:
        project.set_row(name, kind="local", num_workers=1, seed=30, epochs=40)
    stage = start_training(project)
    work = project.folder / "results/sample/work"
    while not any(row["step"] >= 10 for path in work.glob(f"{ROWS[0]}-*/curve.jsonl") for row in read_curve(path)):
        assert stage.poll() is None, "the stage ended before it could be terminated"
        time.sleep(0.01)
    stage.terminate()
    assert stage.wait(timeout=60) == 128 + signal.SIGTERM  # Lightning would have it 0: a finished stage for DVC
    assert list(work.glob(f"{ROWS[0]}-*/checkpoint.pt"))


def test_two_processes_train_a_row_once(project):
    for name in ROWS:
        project.set_row(name, kind="local", num_workers=1, seed=31, epochs=2)
    stages = [start_training(project, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [stage.communicate(timeout=120)[1] for stage in stages]
    assert [stage.returncode for stage in stages] == [0, 0], said
    trained = [line for text in said for line in text.splitlines() if re.search(r"imagenet_\w+: \d+ steps, loss", line)]
    assert len(trained) == len(ROWS)
    assert "another process has trained it meanwhile" in "".join(said)
