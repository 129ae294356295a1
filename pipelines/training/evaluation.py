"""A trained net over a split: what the evaluate stage measures, a search compares, and an exported graph is held to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from pipelines.training.allocator import keep_freed_memory
from pipelines.training.reader import evaluation_batches
from pipelines.training.run import Run
from tasks import TASKS
from tasks.base import Batch, Evaluation, TestSet, evaluate

BATCH_SIZE = 64
DETECTOR_BATCH_SIZE = 8  # of larger images; VGG's first maps of 64 at 600 px would take 12 GB


def run_batches(run: Run, shards: Path, split: str, test_set: TestSet) -> Iterator[Batch]:
    """Every sample of a split once, as a run's net sees it in evaluation. Errors are as in `evaluation_batches`."""
    return evaluation_batches(
        shards,
        split,
        size=run.input_size,
        batch_size=BATCH_SIZE if run.detection is None else DETECTOR_BATCH_SIZE,
        central_fraction=run.augment.central_fraction,
        antialias=run.augment.antialias,
        threads=run.decode_threads,
        targets=TASKS[run.task].collator(test_set.classes),
    )


def evaluate_run(net: nn.Module, run: Run, shards: Path, split: str, test_set: TestSet) -> Evaluation:
    """What a run's net reaches on a split; on a GPU where there is one."""
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return evaluate(TASKS[run.task], net, run_batches(run, shards, split, test_set), test_set, device)
