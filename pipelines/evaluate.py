"""The evaluate stage: `python -m pipelines.evaluate <table>` measures every trained run of a table.

Each run's weights meet every evaluation sample exactly once. Writes `metrics.json`, all that the report is made from.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pipelines import paths, rows, tracking
from pipelines.command import run_stage
from pipelines.config import Params, Run
from pipelines.files import write_json
from pipelines.shards import Index, read_index

log = logging.getLogger(__name__)
BATCH_SIZE = 64
SPLIT = "val"


def evaluate(params: Params, scale: str, table_name: str) -> None:
    """Evaluate all runs of a table, write its `metrics.json` and tell MLflow."""
    runs = params.runs(table_name, scale)
    table = params.tables[table_name]
    shards = paths.shards(scale, table.dataset)
    index = read_index(shards)
    results = paths.results(scale, table_name)
    records = {name: _record(run, results / "train" / name, index, table_name) for name, run in runs.items()}

    from pipelines.job import counts

    measured, spools = {}, []
    for name, run in runs.items():
        metrics = _metrics(run, results / "train" / name / "weights.pt", shards, len(index.classes))
        assert metrics["samples"] == index.splits[SPLIT].samples, f"{metrics['samples']} samples were evaluated"
        measured[name] = {**_described(run, records[name]), **counts(run, table.num_classes), **metrics}
        spools.append(paths.spool(scale, name, records[name]["fingerprint"]))
        tracking.log_evaluation(spools[-1], metrics)
        shown = ", ".join(f"{key} {value:.3f}" for key, value in metrics.items() if isinstance(value, float))
        log.info("%s: %s", name, shown)
    write_json(results / "metrics.json", {**_data(scale, table_name, table.dataset, index), "runs": measured})
    tracking.send(spools)


def _record(run: Run, folder: Path, index: Index, table: str) -> dict[str, Any]:
    record = rows.read_record(folder)
    if record is None:
        found = "there is no such run"
    elif record["data_digest"] != index.digest:
        found = "it was trained on other shards"
    elif Run.model_validate(record["run"]).identity() != run.identity():
        found = "it was trained with other params"
    else:
        return record
    raise ValueError(f"{folder}: {found}; run: python -m pipelines.train {table}")


def _data(scale: str, table: str, dataset: str, index: Index) -> dict[str, Any]:
    return {
        "scale": scale,
        "table": table,
        "dataset": dataset,
        "data_digest": index.digest,
        "num_classes": len(index.classes),
        "eval_samples": index.splits[SPLIT].samples,
    }


def _metrics(run: Run, weights: Path, shards: Path, num_classes: int) -> dict[str, float]:
    import torch

    from pipelines.job import net_spec
    from pipelines.reader import evaluation_batches
    from tasks import TASKS
    from tasks.base import evaluate as evaluate_net
    from tasks.nets import build

    task = TASKS[run.task]
    net = build(net_spec(run, num_classes))
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    batches = evaluation_batches(
        shards,
        SPLIT,
        size=run.input_size,
        batch_size=BATCH_SIZE,
        central_fraction=run.augment.central_fraction,
        antialias=run.augment.antialias,
        threads=run.decode_threads,
        targets=task.collate,
    )
    return evaluate_net(task, net, batches, num_classes, "cuda" if torch.cuda.is_available() else "cpu")


def _described(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    summary = record["summary"]
    staleness = {int(updates): pushes for updates, pushes in summary.get("staleness", {}).items()}
    pushes = sum(staleness.values())
    mean = sum(updates * count for updates, count in staleness.items()) / pushes if pushes else None
    return {
        "net": run.net,
        "width": run.width,
        "resolution": run.resolution,
        "input_size": run.input_size,
        "kind": run.kind,
        "num_workers": run.num_workers,
        "epochs": run.epochs,
        "steps": summary["steps"],
        "train_seconds": summary["seconds"],
        "images_per_second": summary["images_per_second"],
        "mean_staleness": mean,
    }


def main(argv: list[str] | None = None) -> None:
    run_stage(evaluate, "table", __doc__, argv)


if __name__ == "__main__":
    main()
