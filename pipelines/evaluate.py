"""The evaluate stage: `python -m pipelines.evaluate <table>` measures every trained run of a table.

Each run's weights meet every sample of the table's test split exactly once. Writes `metrics.json`, all that the tables
of the report are made from, and `evaluation/<run>/`: pictures of what a run got right and wrong, and their numbers.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import paths, tracking
from pipelines.command import end_process, run_stage
from pipelines.config import Params, Table
from pipelines.files import write_json
from pipelines.page import csv_text
from pipelines.plan import row_folder, trained
from pipelines.test_sets import TestData, read_tests
from pipelines.training.run import Run

if TYPE_CHECKING:
    from torch import nn

    from pipelines.pictures import Details, Images
    from pipelines.training.reader import SplitReader
    from tasks.base import Evaluation

log = logging.getLogger(__name__)


def evaluate(params: Params, scale: str, table_name: str) -> None:
    """Evaluate all runs of a table, write what they reached and tell MLflow."""
    runs = params.runs(table_name, scale)
    table = params.tables[table_name]
    results = paths.results(scale, table_name)
    records = {name: trained(params, scale, name) for name in runs}
    tests = read_tests(params, scale, table_name)

    from pipelines.pictures import details

    fresh = results / ".evaluation.fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    measured: dict[str, dict[str, Any]] = {}
    drawn: dict[Path, Future[None]] = {}
    with ThreadPoolExecutor(1) as drawing:  # a net's pictures are drawn while the next one is at work
        for name, run in runs.items():
            weights = row_folder(params, scale, name) / "weights.pt"
            described, metrics, own = _measure(run, weights, records[name], table, tests, partial(_finish, drawn))
            measured[name] = {**described, **metrics}
            spool = paths.spool(scale, name, records[name]["fingerprint"])
            found = partial(details, run.task, own, tests[0].test_set, _images(tests[0].reader))
            drawn[spool] = drawing.submit(_draw, found, fresh / name, spool, metrics)
            log.info("%s: %s", name, _shown(own.metrics))
        _finish(drawn)
    shutil.rmtree(results / "evaluation", ignore_errors=True)
    fresh.replace(results / "evaluation")
    write_json(results / "metrics.json", {"scale": scale, "table": table_name, "runs": measured})
    tracking.send(list(drawn))


def _measure(
    run: Run,
    weights: Path,
    record: dict[str, Any],
    table: Table,
    tests: Sequence[TestData],
    when_quiet: Callable[[], None],
) -> tuple[dict[str, Any], dict[str, float], Evaluation]:
    """What a run is, what it reaches on all test sets, and its evaluation on the table's own.

    when_quiet: returns when nothing else is at work, for a latency to be measured.
    """
    from pipelines.training.job import counts, trained_net

    net = trained_net(run, record["num_outputs"], weights)
    evaluations = [_evaluation(net, run, weights, record, data) for data in tests]
    when_quiet()
    metrics = {**evaluations[0].metrics, **_detector_costs(net, run, table.num_outputs, tests[0].reader)}
    tested: dict[str, Any] = {}
    for data, evaluation in zip(tests, evaluations, strict=True):
        metrics |= data.prefixed(evaluation.metrics)
        tested |= data.prefixed(_tested_on(data))
    described = {**_described(run, record), **counts(run, table.num_outputs), **_data(table, record), **tested}
    return described, metrics, evaluations[0]


def _draw(found: Callable[[], Details], folder: Path, spool: Path, metrics: Mapping[str, float]) -> None:
    tracking.log_evaluation(spool, metrics, write_details(found(), folder))


def _finish(drawn: Mapping[Path, Future[None]]) -> None:
    """Wait until all is drawn, and raise what was raised there."""
    for each in drawn.values():
        each.result()


def _shown(metrics: Mapping[str, float]) -> str:
    """The metrics in a line, without the ends of their intervals."""
    ends = ("_low", "_high")
    shown = {key: value for key, value in metrics.items() if isinstance(value, float) and not key.endswith(ends)}
    return ", ".join(f"{key} {value:.3f}" for key, value in shown.items())


def _data(table: Table, record: dict[str, Any]) -> dict[str, Any]:
    """What a run learned from."""
    return {
        "dataset": table.dataset,
        "data_digest": record["data_digest"],
        "num_outputs": record["num_outputs"],
    }


def _tested_on(data: TestData) -> dict[str, Any]:
    return {
        "test_dataset": data.dataset,
        "test_split": data.split,
        "test_digest": data.index.digest,
        "num_classes": len(data.index.classes),
        "eval_samples": data.index.splits[data.split].samples,
    }


def _evaluation(net: nn.Module, run: Run, weights: Path, record: dict[str, Any], data: TestData) -> Evaluation:
    from pipelines.training.evaluation import evaluate_run
    from tasks import TASKS

    task, num_outputs, classes = TASKS[run.task], record["num_outputs"], data.test_set.classes
    if task.num_outputs and num_outputs != (wanted := task.num_outputs(classes)):
        raise ValueError(f"{weights}: the net has {num_outputs} outputs, the classes of {data.shards} need {wanted}")
    for number, (learned, tested) in enumerate(zip(record["classes"], classes, strict=False)):
        if task.num_outputs and learned != tested:
            raise ValueError(f"{weights}: the net means {learned!r} by its class {number}, {data.shards} {tested!r}")
    evaluation = evaluate_run(net, run, data.shards, data.split, data.test_set)
    samples = evaluation.metrics["samples"]
    assert samples == data.index.splits[data.split].samples, f"{samples} samples were evaluated"
    return evaluation


def _detector_costs(net: nn.Module, run: Run, num_outputs: int, reader: SplitReader) -> dict[str, float]:
    """What a detector takes of time here, for the first test image, and of Mult-Adds behind its proposals."""
    if run.detection is None:
        return {}
    import numpy as np

    from pipelines.training.job import counted_spec
    from tasks.latency import latency_ms
    from tasks.nets.complexity import proposals_share

    images, _ = reader.decode_central(np.zeros(1, np.int64), run.input_size, 1.0, run.augment.antialias)
    share = proposals_share(counted_spec(run, num_outputs), run.resolution)
    return {"latency_ms": latency_ms(net, images)} | ({} if share is None else {"proposals_share": share})


def _images(reader: SplitReader) -> Images:
    import numpy as np

    def images(places: Sequence[int], size: int = 96) -> list[Any]:
        pictures, _ = reader.decode_central(np.array(places), size, 1.0, antialias=True)
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
