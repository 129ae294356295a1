"""What MLflow is to be told of a run, kept in a folder of its own until it is sent.

Stages write here, to files alone: nothing in this module can wait for a server. A spool holds, or links to, all that is
to be sent, so that it can be sent at any later time, whatever became of the run's own files:

    record.json        the run: its name, params, tags, and how it ended
    artifacts/         files to be kept with the MLflow run: the curve, once training has ended, and what else there is
    weights.pt         the model's weights, until they are sent
    system.jsonl       system metrics of the machine that ran the stage
    evaluation.json, figures/

    mlflow-*.json      the sender's: how far it has got, with each store (`position`)
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.files import link, read_json, write_json
from pipelines.training.curve import read_curve

log = logging.getLogger(__name__)

RECORD, CURVE, SYSTEM = "record.json", "curve.jsonl", "system.jsonl"
ARTIFACTS, WEIGHTS = "artifacts", "weights.pt"
EVALUATION, FIGURES = "evaluation.json", "figures"
RUNNING, FINISHED = "RUNNING", "FINISHED"
PARENT = "parent"  # the tag that holds the id of the record which this one is shown below; both of one experiment


class Data(NamedTuple):
    """The data set that a run learned from. digest: changes whenever the shards do. source: where they lie."""

    name: str
    digest: str
    source: str


class Model(NamedTuple):
    """A trained net, as `model_flavor` makes it again: from values and weights, never from a pickle.

    weights: a `state_dict` file. task: a key of `tasks.TASKS`. net: the fields of a `tasks.nets.NetSpec`.
    input_size: side of the square images that it was trained on, in pixels.
    """

    weights: Path
    task: str
    net: dict[str, Any]
    input_size: int


@dataclass(frozen=True)
class Record:
    """A run as MLflow shall show it; `record.json`.

    id: names one training, wherever it is sent: the MLflow run carries it as the tag `spool`.
    curve: where the rows are written while the run trains. commit_steps: a restarted run goes on from a multiple of
    this step count, the last or, where the checkpoint of it is damaged, the one before. Empty and 0: there is none.
    started, ended: Unix seconds; None: when it is sent.
    """

    id: str
    experiment: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    curve: str = ""
    commit_steps: int = 0
    data: dict[str, str] | None = None
    started: float | None = None
    status: str = RUNNING
    ended: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, dict[str, float]] = field(default_factory=dict)
    model: dict[str, Any] | None = None


def begin(
    spool: Path,
    *,
    experiment: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str | None],
    data: Data,
    curve: Path,
    commit_steps: int,
) -> None:
    """Say that a run begins, or goes on: a spool that is there already keeps its id, params and tags.

    spool: a folder for this run and its fingerprint alone. params: may be nested, and become dotted names. tags: those
    that are None are left out. A finished run whose curve is not that of `curve` was trained anew: a new MLflow run.
    """
    record = read_record(spool)
    if record is not None and record.status != FINISHED:
        (spool / ARTIFACTS / CURVE).unlink(missing_ok=True)  # taken by a `finish` that was killed
        _write(spool, replace(record, status=RUNNING, ended=None))
        return
    if record is not None:
        if read_curve(curve)[:1] == read_curve(spool / ARTIFACTS / CURVE)[:1]:  # a row carries the time it was made
            return
        spool.rename(spool.with_name(f"{spool.name}-{record.id[:8]}"))
    spool.mkdir(parents=True, exist_ok=True)
    fresh = Record(
        id=uuid.uuid4().hex,
        experiment=experiment,
        name=name,
        params=flatten(params),
        tags={"data_digest": data.digest, **{key: value for key, value in tags.items() if value is not None}},
        curve=str(curve),
        commit_steps=commit_steps,
        data=data._asdict(),
        started=time.time(),
    )
    _write(spool, fresh)


def finish(
    spool: Path,
    *,
    status: str = FINISHED,
    metrics: Mapping[str, float] | None = None,
    histograms: Mapping[str, Mapping[str, float]] | None = None,
    artifacts: Iterable[Path] = (),
    model: Model | None = None,
) -> None:
    """Say how a run ended: FINISHED, or FAILED or KILLED, which may go on later. To be called before its files move.

    metrics: final scalars. histograms: name -> {whole number: count}, shown as a curve over that number.
    artifacts: small files, copied. The weights are linked: they take no space of their own.
    """
    record = read_record(spool)
    assert record is not None, f"{spool}: finish before begin"
    if record.status == FINISHED:
        return
    rows = read_curve(Path(record.curve))
    if status == FINISHED:
        _take(spool, [Path(record.curve), *artifacts])
    if model is not None:
        link(model.weights, spool / WEIGHTS)
    ended = replace(
        record,
        status=status,
        ended=rows[-1]["time"] if rows else record.started,  # not now: a repeat must say the same
        metrics=dict(metrics or {}),
        histograms={name: {str(at): n for at, n in counts.items()} for name, counts in (histograms or {}).items()},
        model=None if model is None else {**model._asdict(), "weights": WEIGHTS},
    )
    _write(spool, ended)


def log_evaluation(spool: Path, metrics: Mapping[str, float], figures: Sequence[Path] = ()) -> None:
    """Add what an evaluation of the run has measured; to say the same again adds nothing. Figures are copied.

    A run that was trained elsewhere, and came here as a file, has no spool: MLflow is told nothing of it from here.
    """
    if read_record(spool) is None:
        log.info("%s: trained elsewhere, so MLflow is not told of its evaluation", spool.name)
        return
    old, kept = read_evaluation(spool), [figure.name for figure in figures]
    if old is not None and (old["metrics"], old["figures"]) == (dict(metrics), kept):
        return
    folder = spool / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        shutil.copyfile(figure, folder / figure.name)
    write_json(spool / EVALUATION, {"time": time.time(), "metrics": dict(metrics), "figures": kept})


def log_report(spools: Path, folder: Path, name: str) -> Path:
    """The spool, below `spools`, of a report: a run of the experiment `report` that keeps all files of `folder`.

    A report of the same bytes is the same run: it is sent once.
    """
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    spool = spools / f"report_{name}-{digest.hexdigest()[:12]}"
    if read_record(spool) is None:
        shutil.copytree(folder, spool / ARTIFACTS, dirs_exist_ok=True)
        _write(spool, Record(digest.hexdigest()[:32], "report", name, params={}, tags={}, status=FINISHED))
    return spool


def read_record(spool: Path) -> Record | None:
    """The record of a spool; None where there is none."""
    return Record(**read_json(spool / RECORD)) if (spool / RECORD).exists() else None


def curve_of(spool: Path, record: Record) -> Path:
    """The curve: the copy that was taken when training ended, before that the file that is being written."""
    taken = spool / ARTIFACTS / CURVE
    return taken if taken.exists() or not record.curve else Path(record.curve)


def final_rows(record: Record, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the curve that no restart of the run will write again, from the older of its checkpoints either."""
    if record.status == FINISHED or not rows:
        return rows
    saved = (rows[-1]["step"] - 1) // record.commit_steps  # a row is written before the checkpoint of its step
    return [row for row in rows if row["step"] <= (saved - 1) * record.commit_steps]


def read_evaluation(spool: Path) -> dict[str, Any] | None:
    """The newest evaluation: its time, metrics and the names of its figures; None where there is none."""
    path = spool / EVALUATION
    evaluation: dict[str, Any] | None = read_json(path) if path.exists() else None
    return evaluation


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"optimizer": {"decay": 0.9}} -> {"optimizer.decay": "0.9"}; what is not text becomes JSON."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _take(spool: Path, files: Iterable[Path]) -> None:
    (spool / ARTIFACTS).mkdir(exist_ok=True)
    for file in files:
        shutil.copyfile(file, spool / ARTIFACTS / file.name)


def _write(spool: Path, record: Record) -> None:
    write_json(spool / RECORD, asdict(record))
