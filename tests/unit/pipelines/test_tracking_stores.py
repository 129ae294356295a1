"""One spool told to several MLflow stores in turn: each has each thing once, and no password is written down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipelines import tracking
from pipelines.tracking.client import address
from pipelines.tracking.position import read_sent, write_sent
from pipelines.tracking.spool import read_record
from pipelines.training.curve import Curve, read_curve
from tasks.nets import NetSpec, build

NET = {"net": "mobilenet", "width": 0.25, "num_classes": 5}
EXPERIMENT = "stores"


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # below which a database's artifacts go
        yield [f"sqlite:///{folder}/{name}.db" for name in ("one", "other")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The spool of a run that has trained 20 steps and is not finished."""
    spool = tmp_path / "mlflow"
    tracking.begin(
        spool,
        experiment=EXPERIMENT,
        name=tmp_path.name,
        params={"width": 0.25},
        tags={"kind": "local"},
        data=tracking.Data("imagenet", "d" * 64, "data/sample/shards/imagenet"),
        curve=tmp_path / "curve.jsonl",
        commit_steps=5,
    )
    train(tmp_path, 0, 20)
    return spool


def train(folder: Path, start: int, stop: int) -> None:
    curve = Curve(folder / "curve.jsonl", 1, 10**9, start)
    for step in range(start + 1, stop + 1):
        curve.add(step, 32, {"loss": 1 / step})
    curve.close()


def finish(spool: Path) -> None:
    torch.save(build(NetSpec(**NET)).state_dict(), spool.parent / "weights.pt")
    model = tracking.Model(spool.parent / "weights.pt", task="imagenet", net=NET, input_size=32)
    tracking.finish(spool, metrics={"mult_adds": 1e6}, histograms={"staleness": {0: 9, 1: 2}}, model=model)


def send(spool: Path, store: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        tracking.send([spool])


def complaints(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("pipelines")]


def assert_has_each_thing_once(spool: Path, store: str, evaluations: int, has_model: bool) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    experiment_id = client.get_experiment_by_name(EXPERIMENT).experiment_id
    (run,) = client.search_runs([experiment_id], f"tags.spool = '{read_record(spool).id}'")
    run_id, rows = run.info.run_id, read_curve(spool.parent / "curve.jsonl")
    points = client.get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == [(row["step"], row["loss"]) for row in rows]
    counts = {"mult_adds": 1, "staleness": 2, "eval/top1": evaluations}
    assert {key: len(client.get_metric_history(run_id, key)) for key in counts} == counts
    assert run.info.status == "FINISHED"
    assert len(run.inputs.dataset_inputs) == 1
    assert len(run.outputs.model_outputs if run.outputs else []) == has_model
    assert len(client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")) == has_model
    assert [file.path for file in client.list_artifacts(run_id)] == ["curve.jsonl"]


@pytest.mark.slow
def test_stores_that_are_told_in_turn_have_each_thing_once(run, stores, caplog):
    one, other = stores
    send(run, one)  # while it trains
    train(run.parent, 20, 30)
    send(run, other)
    finish(run)
    tracking.log_evaluation(run, {"top1": 0.5})
    for store in (one, other, one, other):
        send(run, store)
    tracking.log_evaluation(run, {"top1": 0.75})
    for store in (other, one, other):
        send(run, store)
    assert complaints(caplog) == []
    # The first store to be told of the end gets the weights, which are not kept twice for ever.
    assert_has_each_thing_once(run, one, evaluations=2, has_model=True)
    assert_has_each_thing_once(run, other, evaluations=2, has_model=False)


@pytest.mark.slow
def test_a_store_that_is_told_all_again_has_each_thing_once(run, stores, caplog):
    """As by a sender whose positions are lost, or that names the same store in another way."""
    finish(run)
    tracking.log_evaluation(run, {"top1": 0.5, **{f"ap_{n}": n / 7 for n in range(150)}})  # as a detector's
    for _ in range(3):
        send(run, stores[0])
        (position,) = run.glob("mlflow-*.json")
        position.unlink()
    assert complaints(caplog) == []
    assert_has_each_thing_once(run, stores[0], evaluations=1, has_model=True)


def test_a_position_is_named_by_the_address_without_its_password(run, monkeypatch):
    names = set()
    for uri in ("http://host:5000", "http://me:hunter2@host:5000", "http://you:hunter3@host:5000?token=hunter4"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        write_sent(run, read_sent(run, read_record(run), address()))
        names |= {path.name for path in run.glob("mlflow-*.json")}
    assert len(names) == 1
    assert "hunter" not in (run / names.pop()).read_text()
