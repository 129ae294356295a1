"""Runs told to MLflow through a real SQLite store: each thing once, whatever is killed, cut, repeated or away."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import socket
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from pytest_httpserver import HTTPServer

from pipelines import tracking
from pipelines.tracking.__main__ import main
from pipelines.tracking.client import address, connect, store_uri
from pipelines.tracking.position import sent_file
from pipelines.tracking.spool import final_rows, flatten, read_record
from pipelines.training import loop
from pipelines.training.curve import Curve, read_curve
from pipelines.training.snapshots import save_snapshot
from tasks.base import normalise
from tasks.nets import NetSpec, build

PARAMS = {"net": "mobilenet", "optimizer": {"decay": 0.9, "clip_norm": None}}
DATA = tracking.Data("imagenet", "0123456789abcdef" * 4, "data/sample/shards/imagenet")
NET = {"net": "mobilenet", "width": 0.25, "num_classes": 5}
SIZE = 32


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory):
    """A project's folder with no MLFLOW_TRACKING_URI: one new default store for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        folder = tmp_path_factory.mktemp("project")
        patch.chdir(folder)
        yield folder


@pytest.fixture
def client(project):
    return connect()


@pytest.fixture
def run(tmp_path, request):
    return Training(tmp_path, experiment=request.node.name)


class Training:
    """A stage that trains one run: its folder, its spool, the rows that it has written."""

    def __init__(self, folder: Path, experiment: str, name: str = "imagenet_w100_r224") -> None:
        self.spool, self.curve = folder / "work" / "mlflow" / f"{name}-0123456789ab", folder / "curve.jsonl"
        self.experiment, self.name = experiment, name

    def begin(self, params=PARAMS, commit_steps=10):
        tracking.begin(
            self.spool,
            experiment=self.experiment,
            name=self.name,
            params=params,
            tags={"kind": "async", "commit": "c0ffee", "teacher": None},
            data=DATA,
            curve=self.curve,
            commit_steps=commit_steps,
        )

    def train(self, start: int, stop: int, every: int = 1) -> list[dict]:
        curve = Curve(self.curve, every, 10**9, start)
        for step in range(start + 1, stop + 1):
            curve.add(step, 32, {"loss": 1 / step, "learning_rate": 0.1})
        curve.close()
        return [json.loads(line) for line in self.curve.read_text().splitlines()]

    def finish(self, **kwargs):
        tracking.finish(self.spool, metrics={"mult_adds": 568740352, "staleness_mean": 0.9}, **kwargs)

    def found(self, client) -> list:
        experiment = client.get_experiment_by_name(self.experiment)
        return list(client.search_runs([experiment.experiment_id])) if experiment else []

    def the_run(self, client):
        (found,) = self.found(client)
        return found


def history(client, run_id: str, key: str) -> list[tuple[int, float, int]]:
    return [(metric.step, metric.value, metric.timestamp) for metric in client.get_metric_history(run_id, key)]


def assert_has_curve(client, run_id: str, rows: list[dict]) -> None:
    """Every row is there once, under its own step and time."""
    for key in ("loss", "learning_rate", "images_per_second"):
        expected = [(row["step"], row[key], int(row["time"] * 1000)) for row in rows]
        assert history(client, run_id, f"train/{key}") == expected


def weights_file(path: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    net = build(NetSpec(**NET)).eval()
    torch.save(net.state_dict(), path)
    return net


def model_of(weights: Path) -> tracking.Model:
    return tracking.Model(weights=weights, task="imagenet", net=NET, input_size=SIZE)


def test_flatten():
    flat = flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None, "f": "text", "g": True, "h": 5e-05})
    assert flat == {"a.b.c": "1", "a.d": "[1, 2]", "e": "null", "f": "text", "g": "true", "h": "5e-05"}


def test_a_finished_run_is_there_with_all_that_was_said(run, client, project):
    run.begin()
    rows = run.train(0, 25)
    (run.curve.parent / "summary.json").write_text('{"steps": 25}')
    run.finish(histograms={"staleness": {0: 20, 3: 5}}, artifacts=[run.curve.parent / "summary.json"])
    tracking.send([run.spool])

    found = run.the_run(client)
    assert found.info.run_name == "imagenet_w100_r224"
    assert (found.info.status, found.info.end_time) == ("FINISHED", int(rows[-1]["time"] * 1000))
    assert found.info.start_time <= int(rows[0]["time"] * 1000)
    assert found.data.params == {"net": "mobilenet", "optimizer.decay": "0.9", "optimizer.clip_norm": "null"}
    assert found.data.tags["kind"] == "async"
    assert found.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert "teacher" not in found.data.tags
    assert found.data.tags["data_digest"] == DATA.digest
    (used,) = found.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("imagenet", DATA.digest[:36])
    assert json.loads(used.dataset.source) == {"uri": DATA.source}
    assert_has_curve(client, found.info.run_id, rows)
    assert found.data.metrics["mult_adds"] == 568740352
    assert [at[:2] for at in history(client, found.info.run_id, "staleness")] == [(0, 20), (3, 5)]
    assert {file.path for file in client.list_artifacts(found.info.run_id)} == {"curve.jsonl", "summary.json"}
    assert Path(found.info.artifact_uri).is_relative_to(project / "mlruns")


def test_nothing_is_doubled_when_the_sender_forgets(run, client):
    """A kill between sending and remembering leaves an older position, or none."""
    run.begin()
    position = sent_file(run.spool, address())
    weights_file(run.curve.parent / "weights.pt")
    states = []
    for stop in (25, 45):
        run.train(stop - 25 if stop == 25 else 25, stop)
        tracking.send([run.spool])
        states.append(position.read_bytes())
    rows = run.train(45, 60)
    run.finish(histograms={"staleness": {0: 1}}, model=model_of(run.curve.parent / "weights.pt"))
    tracking.log_evaluation(run.spool, {"top1": 0.5})
    tracking.send([run.spool])
    for state in states:
        position.write_bytes(state)
        tracking.send([run.spool])
    position.unlink()
    tracking.send([run.spool])

    found = run.the_run(client)
    assert_has_curve(client, found.info.run_id, rows)
    for key in ("mult_adds", "staleness", "eval/top1"):
        assert len(history(client, found.info.run_id, key)) == 1
    assert len(found.outputs.model_outputs) == len(found.inputs.dataset_inputs) == 1
    assert len(client.search_logged_models([found.info.experiment_id])) == 1


def test_rows_that_a_restart_writes_again_are_not_sent_before(run, client):
    run.begin(commit_steps=10)
    before = run.train(0, 26)
    tracking.send([run.spool])
    run_id = run.the_run(client).info.run_id
    assert_has_curve(client, run_id, before[:10])  # the checkpoint of step 20 may be damaged

    tracking.finish(run.spool, status="FAILED")
    tracking.send([run.spool])
    assert run.the_run(client).info.status == "FAILED"

    run.begin(params={**PARAMS, "net": "vgg16"})  # goes on from step 20; what was logged stays
    after = run.train(20, 30)
    assert after[:20] == before[:20]
    assert after[20:] != before[20:]
    tracking.send([run.spool])
    assert run.the_run(client).info.status == "RUNNING"
    run.finish()
    tracking.send([run.spool])
    found = run.the_run(client)
    assert (found.info.run_id, found.info.status) == (run_id, "FINISHED")
    assert found.data.params["net"] == "mobilenet"
    assert_has_curve(client, run_id, after)


@pytest.mark.slow
def test_rows_are_sent_once_where_training_goes_on_from_the_older_checkpoint(
    run, client, make_job, monkeypatch, caplog, one_thread
):
    with monkeypatch.context() as patch:
        patch.chdir(Path(__file__).parents[3])  # where params.yaml is
        straight, broken = (make_job(epochs=3, checkpoint_steps=5) for _ in range(2))
    run.curve = broken.folder / "curve.jsonl"
    run.begin(commit_steps=5)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="stopped at step 25"):
        patch.setattr(loop, "save_snapshot", stopping_at(25))
        loop.train_local(broken)
    tracking.send([run.spool])
    before, sent = read_curve(run.curve), read_record(run.spool)
    assert len(before) == 25
    run_id = run.the_run(client).info.run_id
    assert_has_curve(client, run_id, before[:15])
    assert final_rows(sent, before) == before[:15]

    newest = broken.folder / loop.CHECKPOINT
    newest.write_bytes(newest.read_bytes()[:-1000])
    loop.train_local(broken)
    assert f"{newest} is damaged" in caplog.text
    loop.train_local(straight)
    run.finish()
    tracking.send([run.spool])
    rows = read_curve(run.curve)
    assert rows[:15] == before[:15]
    assert rows[15:25] != before[15:25]
    assert [row["loss"] for row in rows] == [row["loss"] for row in read_curve(straight.folder / "curve.jsonl")]
    assert run.the_run(client).info.run_id == run_id, "rows that were sent were made again"
    assert_has_curve(client, run_id, rows)


def stopping_at(step: int):
    def save(content, path):
        if content["state"]["step"] == step:
            raise OSError(f"stopped at step {step}")
        save_snapshot(content, path)

    return save


def test_training_that_lost_its_checkpoint_replaces_the_mlflow_run(run, client):
    run.begin(commit_steps=10)
    run.train(0, 31)
    tracking.send([run.spool])
    first = run.the_run(client).info.run_id
    rows = run.train(0, 31)  # as many rows again: only their times differ
    run.finish()
    tracking.send([run.spool])
    found = run.the_run(client)
    assert found.info.run_id != first
    assert_has_curve(client, found.info.run_id, rows)


def test_a_run_that_is_trained_anew_is_another_one_and_the_old_one_is_still_sent(run, client, tmp_path):
    run.begin()
    old = run.train(0, 5)
    run.finish()
    run.begin()  # by a stage that was killed before it put the run's files into place: nothing new
    run.curve.unlink()
    run.begin()
    new = run.train(0, 5)
    run.finish()
    main([str(tmp_path)])
    by_start = sorted(run.found(client), key=lambda found: found.info.start_time)
    assert len(by_start) == 2
    for found, rows in zip(by_start, (old, new), strict=True):
        assert_has_curve(client, found.info.run_id, rows)


def test_a_curve_longer_than_a_request_and_not_numbers(run, client):
    run.begin()
    rows = run.train(0, 500)
    torn = run.curve.read_text() + '{"step": 501, "time": 1'
    run.curve.write_text(torn.replace(f'"loss": {rows[7]["loss"]}', '"loss": NaN'))
    run.finish()
    tracking.send([run.spool])
    losses = history(client, run.the_run(client).info.run_id, "train/loss")
    assert len(losses) == 500
    assert [step for step, value, _ in losses if math.isnan(value)] == [8]


def test_the_model_predicts_what_the_net_does(run, client, monkeypatch):
    import mlflow

    net = weights_file(run.curve.parent / "weights.pt")
    run.begin()
    run.train(0, 3)
    run.finish(model=model_of(run.curve.parent / "weights.pt"))
    (run.curve.parent / "weights.pt").unlink()  # moved on, before anything was sent
    tracking.send([run.spool])
    assert not (run.spool / "weights.pt").exists()

    (output,) = run.the_run(client).outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert (str(logged.status), logged.source_run_id) == ("READY", run.the_run(client).info.run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri())
    model = mlflow.pyfunc.load_model(logged.model_uri)
    assert str(model.metadata.signature.inputs) == f"[Tensor('uint8', (-1, {SIZE}, {SIZE}, 3))]"
    assert str(model.metadata.signature.outputs) == f"[Tensor('float32', (-1, {NET['num_classes']}))]"
    assert model.metadata.load_input_example(logged.artifact_location).shape == (1, SIZE, SIZE, 3)
    images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = net(normalise(torch.from_numpy(images))).softmax(dim=1).numpy()
    np.testing.assert_allclose(model.predict(images), expected, rtol=1e-4)
    with pytest.raises(Exception, match="shape"):
        model.predict(images[:, :16])


def test_a_detectors_model_predicts_boxes(run, client, monkeypatch):
    import mlflow

    weights, spec = run.curve.parent / "weights.pt", NetSpec("ssd300_mobilenet", num_classes=5, max_detections=7)
    net = build(spec).eval()
    torch.save(net.state_dict(), weights)
    run.begin()
    run.train(0, 3)
    run.finish(model=tracking.Model(weights=weights, task="object_detection", net=asdict(spec), input_size=SIZE))
    tracking.send([run.spool])
    (output,) = run.the_run(client).outputs.model_outputs
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri())
    model = mlflow.pyfunc.load_model(client.get_logged_model(output.model_id).model_uri)
    assert str(model.metadata.signature.outputs) == "[Tensor('float32', (-1, 7, 6))]"
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = net.to(memory_format=torch.channels_last)(normalise(torch.from_numpy(images))).numpy()
    assert expected.shape == (2, 7, 6)
    np.testing.assert_allclose(model.predict(images), expected, rtol=1e-4, atol=1e-5)


def test_an_evaluation_joins_the_run_and_its_model_once(run, client, tmp_path):
    weights_file(tmp_path / "weights.pt")
    run.begin()
    run.train(0, 7)
    run.finish(model=model_of(tmp_path / "weights.pt"))
    (tmp_path / "confusion.png").write_bytes(b"png")
    for metrics in ({"top1": 0.5}, {"top1": 0.5}, {"top1": 0.75}):
        tracking.log_evaluation(run.spool, metrics, [tmp_path / "confusion.png"])
        tracking.send([run.spool])
    found = run.the_run(client)
    assert [point[:2] for point in history(client, found.info.run_id, "eval/top1")] == [(7, 0.5), (7, 0.75)]
    assert [file.path for file in client.list_artifacts(found.info.run_id, "figures")] == ["figures/confusion.png"]
    model = client.get_logged_model(found.outputs.model_outputs[0].model_id)
    assert {metric.key: metric.value for metric in model.metrics}["eval/top1"] in (0.5, 0.75)


def test_a_run_that_was_trained_elsewhere_is_not_told_of(run, client, caplog):
    with caplog.at_level(logging.WARNING, logger="pipelines"):
        tracking.log_evaluation(run.spool, {"top1": 0.5})
        tracking.send([run.spool])
    assert not run.spool.exists()
    assert not caplog.messages


def test_a_report_is_one_run_for_the_same_bytes(client, tmp_path):
    report = tmp_path / "report"
    (report / "tables").mkdir(parents=True)
    for text in ("a", "a", "b"):
        (report / "index.html").write_text(text)
        (report / "tables" / "t4.csv").write_text("1,2")
        tracking.send([tracking.log_report(tmp_path / "work", report, "sample")])
    found = client.search_runs([client.get_experiment_by_name("report").experiment_id])
    assert [one.info.status for one in found] == ["FINISHED"] * 2
    for one in found:
        assert {file.path for file in client.list_artifacts(one.info.run_id)} == {"index.html", "tables"}


def test_a_run_created_by_a_request_that_was_given_up_is_removed(run, client):
    run.begin()
    run.train(0, 25)
    tracking.send([run.spool])
    found = run.the_run(client)
    client.create_run(found.info.experiment_id, tags={"spool": found.data.tags["spool"]})  # answered too late
    run.finish()
    tracking.send([run.spool])
    assert run.the_run(client).info.run_id == found.info.run_id


def test_an_emptied_store_gets_everything_again(run, client):
    run.begin()
    rows = run.train(0, 25)
    tracking.send([run.spool])
    state = sent_file(run.spool, address())
    gone = run.the_run(client).info.run_id
    state.write_text(state.read_text().replace(gone, "0" * 32))  # a run that the store does not know
    run.finish()
    tracking.send([run.spool])
    assert_has_curve(client, run.the_run(client).info.run_id, rows)


def dead_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://me:hunter2@127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def hanging():
    """A server that accepts connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://me:hunter2@127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def failing(httpserver: HTTPServer):
    httpserver.expect_request(re.compile(".*")).respond_with_data("oops", status=500)
    return httpserver.url_for("").replace("http://", "http://me:hunter2@")


@pytest.mark.parametrize("kind", ["dead", pytest.param("hanging", marks=pytest.mark.slow), "failing"])
def test_a_server_that_is_away_delays_nothing_and_gets_all_later(kind, request, run, client, monkeypatch, caplog):
    uri = dead_port() if kind == "dead" else request.getfixturevalue(kind)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with caplog.at_level(logging.WARNING, logger="pipelines"), tracking.sending(period=0.01) as watch:
        began = time.monotonic()
        run.begin()
        watch(run.spool)
        for start in range(0, 50, 10):
            run.train(start, start + 10)
            time.sleep(0.02)
        run.finish()
        trained = time.monotonic() - began
        left = time.monotonic()
    waited = time.monotonic() - left
    assert trained < 1
    assert waited < 5
    (line,) = caplog.messages
    assert "1 of 1 runs" in line
    assert "send it later: python -m pipelines.tracking" in line
    assert "\n" not in line

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    main([str(run.spool.parent)])
    rows = [json.loads(row) for row in run.curve.read_text().splitlines()]
    assert_has_curve(client, run.the_run(client).info.run_id, rows)
    told = caplog.text + "".join(path.read_text() for path in run.spool.glob("*.json"))
    assert "hunter2" not in told


def test_the_command_tells_of_each_run_and_fails_if_one_is_not_sent(run, client, monkeypatch, tmp_path, capsys):
    runs = [Training(tmp_path / name, run.experiment, name) for name in ("a", "b", "c")]
    for one in runs:
        one.curve.parent.mkdir()
        one.begin()
        one.train(0, 30)
    runs[0].finish()
    (runs[1].spool / "record.json").write_text("{")  # not a server's fault: the others are sent
    runs[2].curve.unlink()
    for expected in ("a-0123456789ab: MLflow run [0-9a-f]{32}, 30 rows, finished", "a-.*: nothing new"):
        with pytest.raises(SystemExit) as stopped:
            main([str(tmp_path)])
        first, second, third = capsys.readouterr().out.splitlines()
        assert stopped.value.code == 1
        assert re.fullmatch(expected, first)
        assert re.match(r"b-.*: not sent: ValueError: .*record.json is not JSON", second)
        assert re.match(r"c-.*: (MLflow run [0-9a-f]{32}|nothing new)", third)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nowhere")])
    assert "nowhere is not a folder" in capsys.readouterr().err


def test_two_senders_do_not_send_the_same_spool(run, client, tmp_path):
    run.begin()
    rows = run.train(0, 400)
    run.finish()
    threads = [threading.Thread(target=tracking.send, args=([run.spool],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracking.send([run.spool])
    assert_has_curve(client, run.the_run(client).info.run_id, rows)


def test_system_metrics_are_kept_while_a_run_trains(run, client):
    with tracking.sending(period=0.05) as watch:
        run.begin()
        watch(run.spool)
        rows = run.train(0, 40)
        time.sleep(0.5)
        run.finish()
        time.sleep(0.2)
        sampled = (run.spool / "system.jsonl").read_text().count("\n")
    run_id = run.the_run(client).info.run_id
    assert_has_curve(client, run_id, rows)
    points = history(client, run_id, "system/cpu_utilization_percentage")
    assert [step for step, _, _ in points] == list(range(sampled))
    assert all(0 <= value <= 100 for _, value, _ in points)


def test_spools_on_a_file_system_without_links(run, tmp_path):
    """/dev/shm is another file system than tmp_path: a link between the two fails."""
    elsewhere = Path("/dev/shm") / f"{tmp_path.name}-weights.pt"
    if not elsewhere.parent.is_dir() or elsewhere.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    elsewhere.write_bytes(b"weights")
    try:
        run.begin()
        run.train(0, 1)
        run.finish(model=model_of(elsewhere))
    finally:
        elsewhere.unlink()
    assert (run.spool / "weights.pt").read_bytes() == b"weights"
    shutil.rmtree(run.spool)
