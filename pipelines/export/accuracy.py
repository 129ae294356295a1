"""What graphs reach on a table's test sets, by the project's own reader and evaluators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime
import torch

from pipelines.export.runtime import outputs_of
from pipelines.test_sets import TestData
from pipelines.training.evaluation import run_batches
from pipelines.training.run import Run
from tasks import TASKS


def accuracies(
    sessions: Mapping[str, onnxruntime.InferenceSession], run: Run, tests: Sequence[TestData]
) -> dict[str, dict[str, Any]]:
    """The metrics of each graph, named as in metrics.json: every test image once, decoded once for all graphs."""
    found: dict[str, dict[str, Any]] = {name: {} for name in sessions}
    task = TASKS[run.task]
    for data in tests:
        evaluators = {name: task.evaluator(data.test_set) for name in sessions}
        for batch in run_batches(run, data.shards, data.split, data.test_set):
            for name, session in sessions.items():
                outputs = torch.from_numpy(outputs_of(session, batch.images.numpy()))
                evaluators[name].update(outputs, batch.targets)
        for name, evaluator in evaluators.items():
            metrics = evaluator.compute().metrics
            assert metrics["samples"] == data.index.splits[data.split].samples, f"{metrics['samples']} were evaluated"
            found[name] |= data.prefixed(metrics)
    return found
