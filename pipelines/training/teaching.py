"""A run's teacher (`teacher`): a trained net whose predictions are learned in place of labels.

Its predictions are computed once and kept, or asked for at every step; either way of each image as the teacher would
see it in evaluation, so that the losses are the same. What is kept is read by every run that has the same teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipelines.files import locked
from pipelines.progress import counted
from pipelines.shards import read_index
from pipelines.training.origins import Origin
from pipelines.training.precision import resolved
from pipelines.training.reader import Teaching, evaluation_batches
from pipelines.training.run import Precision, Run
from pipelines.training.snapshots import load_snapshot
from tasks import TASKS
from tasks.base import predictions
from tasks.nets import NetSpec, build, check_input_size

Rows = npt.NDArray[np.float32]

BATCH_SIZE = 64


@dataclass(frozen=True)
class Teacher:
    """A frozen net to learn from, picklable.

    teaching: what the batches bring of it: its predictions, or the images that it is to be asked about.
    """

    task: str
    weights: Path
    spec: NetSpec
    teaching: Teaching

    def load(self) -> nn.Module:
        """The net, in evaluation mode and without gradients."""
        net = build(self.spec)
        net.load_state_dict(load_snapshot(self.weights))
        return net.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def check_teacher(run: Run, num_outputs: int, classes: Sequence[str], origin: Origin) -> None:
    """Raise ValueError where a teacher's predictions are not what the run could learn.

    classes: of the run's data, in label order; empty where these have none, as faces that nobody has labelled.
    """
    assert origin.run is not None and origin.spec is not None, "a teacher is a run"
    where = f"run {run.name}: teacher {origin.name}"
    if origin.run.task != run.task:
        raise ValueError(f"{where} is of task {origin.run.task}, the run of task {run.task}")
    if origin.spec.num_classes != num_outputs:
        raise ValueError(f"{where} has {origin.spec.num_classes} outputs, the run {num_outputs}")
    for number, (theirs, ours) in enumerate(zip(origin.classes or (), classes, strict=False)):
        if TASKS[run.task].num_outputs and theirs != ours:
            raise ValueError(f"{where} means {theirs!r} by its output {number}, the run {ours!r}")
    try:
        check_input_size(origin.spec.net, origin.run.input_size)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def make_teacher(origin: Origin, stored: Path | None) -> Teacher:
    """A run's teacher as its workers need it; stored: where its predictions are kept, None to ask it at every step."""
    assert origin.run is not None and origin.spec is not None, "a teacher is a run"
    augment = origin.run.augment
    teaching = Teaching(stored, origin.run.input_size, augment.central_fraction, augment.antialias)
    return Teacher(origin.run.task, origin.weights.resolve(), origin.spec, teaching)


def store_predictions(teacher: Teacher, shards: Path, split: str, precision: Precision, threads: int) -> None:
    """Ask the teacher about every image of a split, once, and keep (samples, outputs) float32 in `teaching.stored`.

    The rows are NaN until they are computed: a killed pass goes on where it was. Raises ValueError for predictions that
    are not finite.
    """
    path = teacher.teaching.stored
    assert path is not None
    with locked(path.parent):
        if path.exists():
            return
        part = path.with_name(f"{path.name}.part")
        if not part.exists():
            _write_blank(part, (read_index(shards).splits[split].samples, teacher.spec.num_classes))
        rows = np.lib.format.open_memmap(part, mode="r+")
        _predict(teacher, shards, split, precision, threads, rows)
        rows.flush()
        part.replace(path)


def _write_blank(path: Path, shape: tuple[int, int]) -> None:
    """A file of NaN that is whole or not there: what is left out of a new file reads as zeros, like predictions."""
    fresh = path.with_name(f"{path.name}.new")
    rows = np.lib.format.open_memmap(fresh, mode="w+", dtype=np.float32, shape=shape)
    rows[:] = np.nan
    rows.flush()
    fresh.replace(path)


def _predict(
    teacher: Teacher,
    shards: Path,
    split: str,
    precision: Precision,
    threads: int,
    rows: np.memmap[tuple[int, int], np.dtype[np.float32]],
) -> None:
    task, teaching = TASKS[teacher.task], teacher.teaching
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = teacher.load().to(device)
    undone = np.isnan(rows[:, 0])
    first = int(undone.argmax()) if undone.any() else len(rows)
    done = max(first - BATCH_SIZE, 0)  # the last batch once more: a kill may have cut it
    batches = evaluation_batches(
        shards,
        split,
        size=teaching.size,
        batch_size=BATCH_SIZE,
        central_fraction=teaching.central_fraction,
        antialias=teaching.antialias,
        threads=threads,
        targets=lambda _: {},
        start_sample=done,
    )
    mixed = torch.autocast(device, torch.bfloat16, enabled=resolved(precision, on_gpu=device == "cuda") == "bf16-mixed")
    with counted(f"{teacher.weights.parent.name} teaches {shards.name}", len(rows), done) as advance, mixed:
        for batch in batches:
            taught = predictions(task, net, batch.images.to(device)).float().cpu().numpy()
            if not np.isfinite(taught).all():
                raise ValueError(f"{teacher.weights}: its predictions of {shards} are not finite")
            rows[done : done + len(taught)] = taught
            done += len(taught)
            advance(len(taught))
    assert done == len(rows), f"{done} of {len(rows)} samples"
