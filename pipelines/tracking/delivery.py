"""Brings what is new in a spool to MLflow, each thing once.

The spool remembers how far the sending has got. What is repeated, after a kill between sending and remembering or
after an answer that was lost, is looked up first (the run, the model) or is something that MLflow takes as said already
(equal params, equal metrics of equal time and step, files of the same name).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.tracking import spool as spools
from pipelines.tracking.client import address, connect
from pipelines.tracking.model import model_of, send_model
from pipelines.tracking.position import Sent, read_sent, sent_file, was_undone, write_sent
from pipelines.tracking.spool import CURVE, PARENT, RUNNING, SYSTEM, Record
from pipelines.training.curve import read_curve

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

MAX_METRICS, MAX_PARAMS, MAX_DIGEST = 1000, 100, 36  # MLflow's: in a request, in a request, characters
MAX_MODEL_METRICS = 100  # said again, more in one request fail in MLflow 3.17: it compares a hundred with all of them
COMMIT_TAG, PARENT_TAG = "mlflow.source.git.commit", "mlflow.parentRunId"
# Without it the page opens an experiment on the traces of language models, which these are not.
TRAINING_VIEW = {"mlflow.experimentKind": "custom_model_development"}


def deliver(spool: Path) -> str:
    """Send what is new in a spool; returns it in words. Raises whatever MLflow raises."""
    from mlflow.exceptions import MlflowException

    record = spools.read_record(spool)
    assert record is not None, f"{spool} has no record"
    client = connect()
    try:
        return _deliver_record(client, spool, record)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    sent_file(spool, address()).unlink(missing_ok=True)  # the store was emptied: it gets everything again
    return _deliver_record(client, spool, record)


def _deliver_record(client: MlflowClient, spool: Path, record: Record) -> str:
    curve = spools.curve_of(spool, record)
    rows = read_curve(curve)
    sent = read_sent(spool, record, address())
    if was_undone(sent, curve, rows):
        client.delete_run(sent.run_id)
        sent = Sent(sent.id, sent.store)
    said = []
    if not sent.opened:
        _open(client, record, sent)
        write_sent(spool, sent)
        said.append(f"MLflow run {sent.run_id}")
    if record.status == RUNNING != sent.end[0]:
        client.update_run(sent.run_id, status=RUNNING)
        sent.end = [RUNNING, None]
    count = _send_rows(client, spool, sent, CURVE, "train/", spools.final_rows(record, rows))
    count += _send_rows(client, spool, sent, SYSTEM, "", read_curve(spool / SYSTEM))
    if count:
        said.append(f"{count} rows")
    step = rows[-1]["step"] if rows else 0
    if record.status != RUNNING and sent.end != [record.status, record.ended]:
        _send_end(client, spool, record, sent.run_id, step)
        sent.end = [record.status, record.ended]
        write_sent(spool, sent)
        said.append(record.status.lower())
    if _send_evaluation(client, spool, sent, step):
        write_sent(spool, sent)
        said.append("evaluation")
    return ", ".join(said)


def _open(client: MlflowClient, record: Record, sent: Sent) -> None:
    """Find the record's MLflow run, which a lost answer may have left, or create it; then say what it is made of."""
    from mlflow.entities import Param

    experiment_id = _experiment(client, record.experiment)
    found = _runs(client, experiment_id, record.id)
    if found:
        sent.run_id = found[0]
    else:
        commit = {COMMIT_TAG: record.tags["commit"]} if "commit" in record.tags else {}
        start = None if record.started is None else int(record.started * 1000)
        above = {PARENT_TAG: _parent(client, experiment_id, record)} if PARENT in record.tags else {}
        tags = {**record.tags, **commit, **above, "spool": record.id}
        sent.run_id = client.create_run(experiment_id, start, tags, record.name).info.run_id
    params = [Param(key, value) for key, value in record.params.items()]
    for at in range(0, len(params), MAX_PARAMS):
        client.log_batch(sent.run_id, params=params[at : at + MAX_PARAMS])
    if record.data is not None:
        _send_data(client, sent.run_id, record.data)
    sent.opened = True


def _send_data(client: MlflowClient, run_id: str, data: Mapping[str, str]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    dataset = Dataset(data["name"], data["digest"][:MAX_DIGEST], "local", json.dumps({"uri": data["source"]}))
    inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "train")])]
    try:
        client.log_inputs(run_id, inputs)
    except MlflowException:  # as where another process has told an experiment of its data at the same moment
        client.log_inputs(run_id, inputs)


def _parent(client: MlflowClient, experiment_id: str, record: Record) -> str:
    found = _runs(client, experiment_id, record.tags[PARENT])
    if not found:
        raise RuntimeError(f"{record.name}: the run above it is not there yet")  # the next look sends it first
    return found[0]


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, tags=TRAINING_VIEW))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return _experiment(client, name)  # another process has created it just now


def _runs(client: MlflowClient, experiment_id: str, record_id: str) -> list[str]:
    found = client.search_runs([experiment_id], f"tags.spool = '{record_id}'", order_by=["attributes.start_time"])
    return [run.info.run_id for run in found]


def _send_rows(
    client: MlflowClient, spool: Path, sent: Sent, name: str, prefix: str, rows: list[dict[str, Any]]
) -> int:
    """Send the rows beyond those that are there, in batches; returns how many."""
    start = sent.rows.get(name, 0)
    size = MAX_METRICS // max((len(row) for row in rows), default=1)
    for at in range(start, len(rows), size):
        batch = rows[at : at + size]
        client.log_batch(sent.run_id, [metric for row in batch for metric in _metrics_of(row, prefix)])
        sent.rows[name] = at + len(batch)
        if name == CURVE:
            sent.last = batch[-1]["time"]
        write_sent(spool, sent)
    return max(0, len(rows) - start)


def _metrics_of(row: Mapping[str, Any], prefix: str) -> list[Metric]:
    values = {prefix + key: value for key, value in row.items() if key not in ("step", "time")}
    return _metrics(values, row["time"], row["step"])


def _metrics(values: Mapping[str, float], seconds: float, step: int, model_id: str | None = None) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(key, value, int(seconds * 1000), step, model_id=model_id) for key, value in values.items()]


def _send_end(client: MlflowClient, spool: Path, record: Record, run_id: str, step: int) -> None:
    seconds = time.time() if record.ended is None else record.ended
    metrics = _metrics(record.metrics, seconds, step)
    for name, counts in record.histograms.items():
        metrics += [metric for at, count in counts.items() for metric in _metrics({name: count}, seconds, int(at))]
    for at in range(0, len(metrics), MAX_METRICS):
        client.log_batch(run_id, metrics[at : at + MAX_METRICS])
    if (spool / spools.ARTIFACTS).exists():
        client.log_artifacts(run_id, str(spool / spools.ARTIFACTS))
    experiment_id = client.get_run(run_id).info.experiment_id
    if record.model is not None:
        send_model(client, spool, record, run_id, experiment_id)
    for twin in _runs(client, experiment_id, record.id):
        if twin != run_id:  # created by a request that was given up, and answered nobody
            client.delete_run(twin)
    client.set_terminated(run_id, record.status, int(seconds * 1000))


def _send_evaluation(client: MlflowClient, spool: Path, sent: Sent, step: int) -> bool:
    """Send the newest evaluation unless it is there; returns whether there was one to send."""
    evaluation = spools.read_evaluation(spool)
    if evaluation is None or evaluation["time"] == sent.evaluated:
        return False
    values = {f"eval/{key}": value for key, value in evaluation["metrics"].items()}
    metrics = _metrics(values, evaluation["time"], step, model_of(client, sent.run_id))
    for at in range(0, len(metrics), MAX_MODEL_METRICS):
        client.log_batch(sent.run_id, metrics[at : at + MAX_MODEL_METRICS])
    if evaluation["figures"]:
        client.log_artifacts(sent.run_id, str(spool / spools.FIGURES), spools.FIGURES)
    sent.evaluated = evaluation["time"]
    return True
