"""Runs told to a real `mlflow server` that dies and comes back, by senders that are cut off and killed."""

from __future__ import annotations

import http.client
import json
import logging
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from pipelines import tracking
from pipelines.files import read_json
from pipelines.training.curve import Curve
from tasks.nets import NetSpec, build
from tests.mlflow_server import Server, running, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROJECT = Path(__file__).parents[2]
NET = {"net": "mobilenet", "width": 0.25, "num_classes": 5}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def store(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)


def begin(folder: Path, experiment: str) -> Path:
    folder.mkdir(exist_ok=True)
    spool = folder / "mlflow"
    tracking.begin(
        spool,
        experiment=experiment,
        name=folder.name,
        params={"width": 0.25},
        tags={"kind": "async"},
        data=tracking.Data("imagenet", "d" * 64, "data/sample/shards/imagenet"),
        curve=folder / "curve.jsonl",
        commit_steps=5,
    )
    return spool


def train(folder: Path, start: int, stop: int) -> None:
    curve = Curve(folder / "curve.jsonl", 1, 10**9, start)
    for step in range(start + 1, stop + 1):
        curve.add(step, 32, {"loss": 1 / step})
    curve.close()


def finish(spool: Path) -> None:
    folder = spool.parent
    torch.save(build(NetSpec(**NET)).state_dict(), folder / "weights.pt")
    model = tracking.Model(folder / "weights.pt", task="imagenet", net=NET, input_size=32)
    tracking.finish(spool, metrics={"mult_adds": 1e6}, histograms={"staleness": {0: 9, 1: 2}}, model=model)
    tracking.log_evaluation(spool, {"top1": 0.5})


def assert_arrived_once(uri: str, spool: Path, experiment: str, runs: int = 1) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    found = client.search_runs([experiment_id])
    assert len(found) == runs
    (run,) = (run for run in found if run.info.run_name == spool.parent.name)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"width": "0.25"}
    rows = [json.loads(line) for line in (spool.parent / "curve.jsonl").read_text().splitlines()]
    for key in ("loss", "images_per_second"):
        metrics = client.get_metric_history(run.info.run_id, f"train/{key}")
        assert [(metric.step, metric.value) for metric in metrics] == [(row["step"], row[key]) for row in rows]
    for key, count in {"mult_adds": 1, "staleness": 2, "eval/top1": 1}.items():
        assert len(client.get_metric_history(run.info.run_id, key)) == count
    assert len(run.inputs.dataset_inputs) == len(run.outputs.model_outputs) == 1
    models = client.search_logged_models([experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert [str(model.status) for model in models] == ["READY"]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["curve.jsonl"]


def test_a_server_dead_at_first_killed_in_between_and_away_at_the_end(server, tmp_path, caplog):
    server.kill()
    slowest = 0.0

    def at_work(work: Callable[[], object]) -> None:
        nonlocal slowest
        began = time.monotonic()
        work()
        slowest = max(slowest, time.monotonic() - began)

    command = [sys.executable, "-m", "pipelines.tracking", str(tmp_path)]
    early, run = tmp_path / "early", tmp_path / "run"
    with caplog.at_level(logging.WARNING, logger="pipelines"):
        with tracking.sending(period=0.1) as watch:
            at_work(lambda: watch(begin(early, "faults")))
            at_work(lambda: train(early, 0, 20))
            at_work(lambda: finish(early / "mlflow"))
        with tracking.sending(period=0.1) as watch:
            at_work(lambda: watch(begin(run, "faults")))
            at_work(lambda: train(run, 0, 20))
            server.start()
            wait_for(lambda: rows_sent(run / "mlflow") >= 10, 60)
            server.kill()
            at_work(lambda: train(run, 20, 60))
            at_work(lambda: finish(run / "mlflow"))
    assert slowest < 1
    assert len(caplog.messages) == 2  # one for each training: what came and went meanwhile is not worth a word
    for line in caplog.messages:
        assert "lacks the latest of 1 of 1 runs (ConnectionRefusedError" in line
        assert line.endswith("send it later: python -m pipelines.tracking")
    at_once = {**os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}  # else it is patient, for those who wait for it
    away = subprocess.run(command, cwd=PROJECT, env=at_once, capture_output=True, text=True, check=False)
    assert away.returncode == 1
    assert away.stdout.startswith("mlflow: not sent: ConnectionRefusedError")
    server.start()
    there = subprocess.run(command, cwd=PROJECT, env={**os.environ}, capture_output=True, text=True, check=True)
    first, second = there.stdout.splitlines()
    assert re.fullmatch(r"mlflow: MLflow run [0-9a-f]{32}, \d+ rows, finished, evaluation", first)
    assert re.fullmatch(r"mlflow: \d+ rows, finished, evaluation", second)
    again = subprocess.run(command, cwd=PROJECT, env={**os.environ}, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines() == ["mlflow: nothing new"] * 2
    for folder in (early, run):
        assert_arrived_once(server.uri, folder / "mlflow", "faults", runs=2)


def rows_sent(spool: Path) -> int:
    """How many rows of the curve have arrived, as far as the sender knows."""
    return max((read_json(path)["rows"].get("curve.jsonl", 0) for path in spool.glob("mlflow-*.json")), default=0)


@contextmanager
def wire(server: Server, fault: Callable[[], None]) -> Iterator[str]:
    """The URI of a proxy: the server gets every request, but the first time one is made nobody gets its answer.

    fault: called in place of that answer.
    """
    seen = set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            # A file that is made again is the same request, though it says another time.
            request = (self.command, self.path, b"" if "/mlflow-artifacts/" in self.path else body)
            is_new = request not in seen
            seen.add(request)
            self.close_connection = True
            if is_new:
                fault()
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.getheader("Content-Type", ""))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()


def test_every_answer_lost_once(server, tmp_path, monkeypatch, caplog):
    spool = begin(tmp_path / "run", "answers")
    train(spool.parent, 0, 30)
    finish(spool)
    with wire(running(server), fault=lambda: None) as uri, caplog.at_level(logging.WARNING, logger="pipelines"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        looks = 0
        while not looks or caplog.messages:
            caplog.clear()
            tracking.send([spool])
            looks += 1
            assert looks < 200, caplog.text
    assert looks > 15  # create, params, data set, rows, end, artifacts, model, outputs, status, evaluation, ...
    assert_arrived_once(server.uri, spool, "answers")


def send_or_exit(spool: Path, uri: str) -> None:
    """In a process of its own: exit code 1 where something did not get through."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    failed = []
    logging.getLogger("pipelines").addFilter(lambda record: failed.append(record) or True)
    logging.getLogger("pipelines.tracking.sender").addFilter(lambda record: failed.append(record) or True)
    tracking.send([spool])
    sys.exit(len(failed))


def test_a_sender_killed_at_every_request(server, tmp_path):
    """SIGKILL after the server has done what was asked and before the sender knows."""
    spool = begin(tmp_path / "run", "kills")
    train(spool.parent, 0, 30)
    finish(spool)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["mlflow.pyfunc", "mlflow.tracking", __name__])
    sender = None
    exits = []
    with wire(running(server), fault=lambda: os.kill(sender.pid, signal.SIGKILL)) as uri:
        while not exits or exits[-1]:
            sender = processes.Process(target=send_or_exit, args=(spool, uri))
            sender.start()
            sender.join()
            exits.append(sender.exitcode)
            assert len(exits) < 200, exits
    assert exits.count(-signal.SIGKILL) > 15
    assert set(exits) == {0, -signal.SIGKILL}
    assert_arrived_once(server.uri, spool, "kills")


PREDICT = """
import mlflow, sys
model = mlflow.pyfunc.load_model(sys.argv[1])
print(model.predict(model.input_example).shape, sorted(name for name in sys.modules if name == "pipelines"))
"""


def test_the_model_needs_nothing_of_the_project(server, tmp_path):
    """Loaded from the server by a Python that does not see this project's code."""
    from mlflow.tracking import MlflowClient

    spool = begin(tmp_path / "run", "models")
    train(spool.parent, 0, 3)
    finish(spool)
    running(server)
    tracking.send([spool])
    client = MlflowClient(server.uri)
    experiment_id = client.get_experiment_by_name("models").experiment_id
    (model,) = client.search_logged_models([experiment_id])
    command = [sys.executable, "-I", "-c", PREDICT, model.model_uri]
    loaded = subprocess.run(command, cwd=tmp_path, env={**os.environ}, capture_output=True, text=True, check=False)
    assert loaded.stdout.splitlines()[-1:] == ["(1, 5) []"], loaded.stderr
