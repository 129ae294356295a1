"""The evaluate stage: `python -m pipelines.evaluate <table>` measures every trained run of a table.

Each run's weights meet every sample of the table's test split exactly once. Writes `metrics.json`, all that the tables
of the report are made from, and `evaluation/<run>/`: pictures of what a run got right and wrong, and their numbers.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import paths, tracking
from pipelines.command import end_process, run_stage
from pipelines.config import Params, Table
from pipelines.files import write_json
from pipelines.page import csv_text
from pipelines.plan import row_folder, trained
from pipelines.shards import Index, read_index
from pipelines.training.run import Run

if TYPE_CHECKING:
    from pipelines.pictures import Details, Images
    from pipelines.training.reader import SplitReader
    from tasks.base import Evaluation, Pairs, TestSet

log = logging.getLogger(__name__)
BATCH_SIZE = 64
PICTURE_SIZE = 96  # side of the images in pictures, px


def evaluate(params: Params, scale: str, table_name: str) -> None:
    """Evaluate all runs of a table, write what they reached and tell MLflow."""
    runs = params.runs(table_name, scale)
    table = params.tables[table_name]
    shards = paths.shards(scale, table.test.dataset)
    index = read_index(shards)
    results = paths.results(scale, table_name)
    records = {name: trained(params, scale, name) for name in runs}

    from pipelines.pictures import details
    from pipelines.training.job import counts
    from pipelines.training.reader import SplitReader
    from tasks.base import TestSet

    reader = SplitReader(shards, table.test.split)
    test_set = TestSet(index.classes, read_pairs(paths.raw(scale, table.test.dataset), index.dataset, reader))
    fresh = results / ".evaluation.fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    measured, spools = {}, []
    for name, run in runs.items():
        weights = row_folder(params, scale, name) / "weights.pt"
        evaluation = _evaluation(run, weights, records[name], shards, table.test.split, test_set)
        metrics = evaluation.metrics
        assert metrics["samples"] == index.splits[table.test.split].samples, (
            f"{metrics['samples']} samples were evaluated"
        )
        counted = counts(run, table.num_outputs)
        measured[name] = {**_described(run, records[name]), **counted, **_data(table, records[name], index), **metrics}
        drawn = write_details(details(run.task, evaluation, test_set, _images(reader)), fresh / name)
        spools.append(paths.spool(scale, name, records[name]["fingerprint"]))
        tracking.log_evaluation(spools[-1], metrics, drawn)
        shown = ", ".join(f"{key} {value:.3f}" for key, value in metrics.items() if isinstance(value, float))
        log.info("%s: %s", name, shown)
    shutil.rmtree(results / "evaluation", ignore_errors=True)
    fresh.replace(results / "evaluation")
    write_json(results / "metrics.json", {"scale": scale, "table": table_name, "runs": measured})
    tracking.send(spools)


def _data(table: Table, record: dict[str, Any], index: Index) -> dict[str, Any]:
    """What a run learned from and was tested on."""
    return {
        "dataset": table.dataset,
        "data_digest": record["data_digest"],
        "num_outputs": record["num_outputs"],
        "test_dataset": table.test.dataset,
        "test_split": table.test.split,
        "test_digest": index.digest,
        "num_classes": len(index.classes),
        "eval_samples": index.splits[table.test.split].samples,
    }


def read_pairs(raw: Path, dataset: str, reader: SplitReader) -> Pairs | None:
    """The pairs that a data set's publisher compares, by the samples' places in a split; None where it has none."""
    import numpy as np

    from pipelines.sources import SOURCES
    from tasks.base import Pairs

    read = SOURCES[dataset].pairs
    if read is None:
        return None
    pairs = read(raw)
    places = {name: place for place, name in enumerate(reader.column("name"))}
    first, second = (
        [places[name] for name in side] for side in zip(*((p.first, p.second) for p in pairs), strict=True)
    )
    same, fold = zip(*((pair.is_same, pair.fold) for pair in pairs), strict=True)
    return Pairs(np.array(first), np.array(second), np.array(same), np.array(fold))


def _evaluation(
    run: Run, weights: Path, record: dict[str, Any], shards: Path, split: str, test_set: TestSet
) -> Evaluation:
    import torch

    from pipelines.training.job import net_spec
    from pipelines.training.parameter_server import load_snapshot
    from pipelines.training.reader import evaluation_batches
    from tasks import TASKS
    from tasks.base import evaluate as evaluate_net
    from tasks.nets import build

    task, num_outputs = TASKS[run.task], record["num_outputs"]
    if task.by_class and num_outputs != len(test_set.classes):
        raise ValueError(f"{weights}: the net has {num_outputs} outputs, {shards} has {len(test_set.classes)} classes")
    for number, (learned, tested) in enumerate(zip(record["classes"], test_set.classes, strict=False)):
        if task.by_class and learned != tested:
            raise ValueError(f"{weights}: the net means {learned!r} by its output {number}, {shards} {tested!r}")
    net = build(net_spec(run, num_outputs))
    net.load_state_dict(load_snapshot(weights))
    batches = evaluation_batches(
        shards,
        split,
        size=run.input_size,
        batch_size=BATCH_SIZE,
        central_fraction=run.augment.central_fraction,
        antialias=run.augment.antialias,
        threads=run.decode_threads,
        targets=task.collate,
    )
    return evaluate_net(task, net, batches, test_set, "cuda" if torch.cuda.is_available() else "cpu")


def _images(reader: SplitReader) -> Images:
    import numpy as np

    def images(places: Sequence[int]) -> list[Any]:
        pictures, _ = reader.decode_central(np.array(places), PICTURE_SIZE, 1.0, antialias=True)
        return list(pictures.numpy())

    return images


def write_details(found: Details, folder: Path) -> list[Path]:
    """Write pictures, their words (`pictures.json`) and tables into a folder; returns the pictures for MLflow."""
    folder.mkdir(parents=True)
    for picture in found.pictures:
        for suffix, content in picture.files.items():
            (folder / f"{picture.name}{suffix}").write_bytes(content)
    for name, records in found.tables.items():
        (folder / f"{name}.csv").write_text(csv_text(records))
    words = [{"name": p.name, "title": p.title, "caption": p.caption} for p in found.pictures]
    (folder / "pictures.json").write_text(json.dumps(words, indent=2) + "\n")
    return [folder / f"{picture.name}.png" for picture in found.pictures]


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
        "teacher": run.teacher,
        "init_from": run.init_from,
    }


def main(argv: list[str] | None = None) -> None:
    run_stage(evaluate, "table", __doc__, argv)


if __name__ == "__main__":
    main()
    end_process()
