"""The graph as a job: submitted from a laptop to a cluster with a token, and home through DVC's remote."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.project import ROOT, ROWS, Project

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
TOKEN = "f" * 64


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def laptop(tmp_path_factory):
    """A project that has made nothing yet, with a remote, and data of its own that are nobody's business."""
    project = Project(tmp_path_factory.mktemp("laptop"))
    shutil.copytree(ROOT / "infra", project.folder / "infra")
    shutil.copy(ROOT / ".gitignore", project.folder)
    project.run("dvc", "remote", "add", "--default", "store", str(tmp_path_factory.mktemp("remote")))
    for folder in ("data", "results"):
        (project.folder / folder).mkdir()
        (project.folder / folder / "private.txt").write_text("stays at home")
    return project


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A running head of two CPUs: the environment of who submits to it, and the folder that its nodes share."""
    folder = tmp_path_factory.mktemp("cluster")
    shared = folder / "shared"
    port, dashboard, agent = free_ports(3)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{plain['PATH']}"
    guarded = {**plain, "PATH": scripts, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    of_nodes = {"JOB_FOLDER": str(shared), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/server.db"}
    command = ["ray", "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2",
               "--dashboard-host=127.0.0.1", f"--dashboard-agent-listen-port={agent}",
               "--disable-usage-stats"]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as sockets:  # their paths must be short
        command.append(f"--temp-dir={sockets}")
        started = subprocess.Popen(command, env={**guarded, **of_nodes}, stdout=subprocess.PIPE, text=True)
        assert any("ray status" in line for line in started.stdout), "the cluster did not start"
        yield {**guarded, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}, shared
        started.send_signal(signal.SIGTERM)
        started.wait(timeout=60)
        started.stdout.close()


def submit(laptop, environment, *command):
    """The job's exit code and what it said; a head that has only just started has no agent to take it yet."""
    deadline = time.monotonic() + 90
    while True:
        answer = subprocess.run(
            ["ray", "job", "submit", "--working-dir", ".", "--", *command],
            cwd=laptop.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        said = answer.stdout + answer.stderr
        if "No available agent" not in said or time.monotonic() > deadline:
            return answer.returncode, said


@pytest.fixture(scope="module")
def trained(laptop, cluster):
    """What the job said that has made a table on the cluster."""
    environment, _ = cluster
    code, said = submit(laptop, environment, "infra/job", "dvc", "repro", "--pull", "evaluate_imagenet")
    assert code == 0, said
    return said


def test_code_travels_and_data_does_not(trained, cluster):
    _, shared = cluster
    assert "imagenet: 2 of 2 runs to train" in trained
    assert (shared / "pipelines" / "train.py").exists()
    assert not list(shared.rglob("private.txt"))
    assert (shared / "results/sample/imagenet/metrics.json").exists()


def test_results_come_home_by_the_run_cache(trained, laptop):
    """The three commands of the README; then one row alone is trained anew at home."""
    laptop.run("dvc", "pull", "--run-cache", "--allow-missing")
    said = laptop.run("dvc", "repro", "--pull", "evaluate_imagenet")
    assert "Running stage" not in said
    assert said.count("is cached - skipping run") == 4, said  # fetch, shard, train, evaluate
    assert not list((laptop.folder / "data/sample/raw/imagenet").glob("*.tar"))
    assert (laptop.folder / "results/sample/imagenet/metrics.json").exists()
    laptop.set_row(ROWS[1], seed=7)
    assert "imagenet: 1 of 2 runs to train" in laptop.repro()


def test_the_tracking_server_has_the_runs(trained, cluster):
    from mlflow.tracking import MlflowClient

    _, shared = cluster
    client = MlflowClient(f"sqlite:///{shared.parent}/server.db")
    runs = client.search_runs([client.get_experiment_by_name("imagenet-sample").experiment_id])
    assert {run.info.run_name for run in runs} == set(ROWS)
    assert all("eval/top1" in run.data.metrics for run in runs)


@pytest.mark.long
def test_one_row_is_a_job_too_and_the_others_stay_as_they_are(trained, laptop, cluster):
    environment, _ = cluster
    laptop.set_row(ROWS[0], seed=8)
    command = ["python", "-m", "pipelines.train", "imagenet", "--run", ROWS[0]]
    code, said = submit(laptop, environment, "infra/job", *command)
    assert code == 0, said
    assert "imagenet: 1 of 1 runs to train" in said
    code, said = submit(laptop, environment, "infra/job", "dvc", "repro", "--pull", "train_imagenet")
    assert code == 0, said
    assert "imagenet: 1 of 2 runs to train" in said  # the row that was changed at home, and not the one trained alone


def test_who_has_no_token_submits_nothing(laptop, cluster):
    environment, _ = cluster
    code, said = submit(laptop, {**environment, "RAY_AUTH_TOKEN": "0" * 64}, "infra/job", "true")
    assert code != 0
    assert "authentication" in said.lower()


@pytest.mark.parametrize(
    ("arguments", "changes", "error"),
    [
        ([], {}, "error: usage: infra/job COMMAND"),
        (["true"], {"PATH": "/usr/bin:/bin"}, "error: the node's PATH has no dvc"),
    ],
)
def test_a_job_that_cannot_work_says_why_in_a_line(laptop, arguments, changes, error):
    environment = {**laptop.environment, **changes}
    command = [laptop.folder / "infra/job", *arguments]
    answer = subprocess.run(command, cwd=laptop.folder, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith(error)
