"""Which runs of a table are to be trained, in which order, and from what: `params.yaml` against what is on the disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipelines import paths
from pipelines.cell_table import current_cells
from pipelines.config import Params
from pipelines.files import digest
from pipelines.row_order import closure, in_order
from pipelines.shards import Index, read_given
from pipelines.training import rows
from pipelines.training.run import Run

if TYPE_CHECKING:
    from pipelines.training.job import Job
    from pipelines.training.origins import Origin

log = logging.getLogger(__name__)
SPLIT = "train"

# The files whose code decides what a run's weights become.
CODE = ("pipelines/training", "tasks")
SHARDS = Path("pipelines/shards.py")
HARMLESS = {
    *(Path("tasks/nets/complexity.py"), Path("tasks/verification.py"), Path("tasks/average_precision.py")),
    *(Path("tasks/place_errors.py"), Path("tasks/bootstrap.py"), Path("tasks/coco_ap.py"), Path("tasks/latency.py")),
    *(Path("pipelines/training/run.py"), Path("pipelines/training/evaluation.py")),
    *(Path("pipelines/training/rows.py"), Path("pipelines/training/curve.py"), Path("pipelines/training/allocator.py")),
}


@dataclass(frozen=True)
class Plan:
    """A table's runs at one scale, those that others need first, with the data that they learn from.

    classes: what the outputs of its nets mean, in order; empty where nothing is labelled.
    """

    params: Params
    scale: str
    table: str
    runs: Mapping[str, Run]
    shards: Path
    index: Index
    classes: tuple[str, ...]
    code: str

    def folder(self, name: str) -> Path:
        """Where a run's finished row lies."""
        return row_folder(self.params, self.scale, name)

    def fingerprint(self, name: str) -> str:
        """A digest of everything that a run depends on; the nets that it needs are trained by now."""
        run = self.runs[name]
        origins: dict[str, Any] = {key: digest(self._weights(wanted), "sha256") for key, wanted in run.origins.items()}
        if run.teacher is not None:
            origins["view"] = _view(self._run(run.teacher))
        return rows.fingerprint(
            run=run.identity(),
            outputs=self.params.tables[self.table].num_outputs,
            data=self.index.digest,
            classes=self.classes,
            code=self.code,
            origins=origins,
        )

    def unfinished(self, only: str | None) -> list[str]:
        """The runs to train, in order; of `only` alone where it is named.

        Raises ValueError for one that needs a net that is not trained.
        """
        found: list[str] = []
        for name, run in self.runs.items():
            waits = [wanted for wanted in run.origins.values() if wanted in found]
            if only == name and waits:
                raise ValueError(
                    f"run {name} needs {waits[0]}, which is not trained; "
                    f"run: python -m pipelines.train {self.table} --scale {self.scale} --run {waits[0]}"
                )
            if waits or not rows.is_finished(self.folder(name), self.fingerprint(name)):
                found.append(name)
        return found if only is None else [name for name in found if name == only]

    def check(self, name: str) -> None:
        """Raise ValueError where a run's net cannot be built, its data lack what it learns from, or the nets that it
        needs do not fit it.
        """
        from pipelines.training.job import net_spec
        from pipelines.training.origins import initial
        from pipelines.training.teaching import check_teacher

        run = self.runs[name]
        try:
            self._check_net(run)
            self._check_data(run)
        except ValueError as error:
            raise ValueError(f"run {name}: {error}") from None
        for key, wanted in run.origins.items():
            origin, outputs = self._origin(wanted), self.num_outputs
            if key == "teacher":
                check_teacher(run, outputs, self.classes, origin)
            else:
                initial(run, net_spec(run, outputs), self.classes, origin)

    def _check_net(self, run: Run) -> None:
        import torch

        from pipelines.training.job import check_kind, untrained_net
        from tasks import TASKS
        from tasks.nets import check_input_size

        if run.task not in TASKS:
            raise ValueError(f"task {run.task!r} is unknown; there are: {', '.join(sorted(TASKS))}")
        with torch.device("meta"):
            untrained_net(run, self.num_outputs)
        check_kind(run)
        check_input_size(run.net, run.input_size)

    def _check_data(self, run: Run) -> None:
        import numpy as np

        from pipelines.training.reader import SplitReader
        from tasks import TASKS
        from tasks.base import View

        task = TASKS[run.task]
        first = np.zeros(1, np.int64)
        reader = SplitReader(self.shards, SPLIT)
        _, fields = next(reader.read(first))
        (height,), (width,) = reader.image_sizes(first)
        fields["view"] = View((0, 0, int(height), int(width)), flipped=False)
        if run.augment.min_object_shares is not None and "objects" not in fields:
            raise ValueError(f"augment.min_object_shares is set, but {self.shards} has no objects")
        if run.images_per_identity and "identity" not in fields:
            raise ValueError(f"images_per_identity is set, but {self.shards} has no identities")
        if run.teacher is None and not task.collator(self.classes)([fields]):
            raise ValueError(f"{self.shards} has no labels for task {task.name}; it needs a teacher")
        if run.teacher is None and task.by_identity and run.images_per_identity is None:
            raise ValueError(f"task {task.name} compares images of one person: set images_per_identity, or a teacher")

    def job(self, name: str) -> Job:
        """A run as its workers need it; the nets that it needs are trained by now."""
        from pipelines.training.job import Job, net_spec
        from pipelines.training.origins import initial
        from pipelines.training.teaching import make_teacher

        run = self.runs[name]
        nets = {key: self._origin(wanted) for key, wanted in run.origins.items()}
        spec = net_spec(run, self.num_outputs)
        unique = paths.job_name(name, self.fingerprint(name))
        start, teacher = nets.get("init_from"), nets.get("teacher")
        return Job(
            run=run,
            name=unique,
            shards=self.shards.resolve(),
            folder=(paths.work(self.scale) / unique).resolve(),
            num_samples=self.index.splits[SPLIT].samples,
            num_outputs=self.num_outputs,
            initial=start and initial(run, spec, self.classes, start),
            teacher=teacher and make_teacher(teacher, self._predictions(run, teacher)),
            classes=self.classes,
            data_digest=self.index.digest,
        )

    @property
    def num_outputs(self) -> int:
        """Of the table's nets: one for each class that there is, or as many as the table says."""
        from tasks import TASKS

        table = self.params.tables[self.table]
        by_class = TASKS[table.task].num_outputs
        return by_class(self.classes) if by_class and self.classes else table.num_outputs

    def _run(self, name: str) -> Run:
        table = self.params.table_of(name)
        assert table is not None, name
        return self.params.runs(table, self.scale)[name]

    def _weights(self, name: str) -> Path:
        return Path(name) if self.params.table_of(name) is None else self.folder(name) / "weights.pt"

    def _origin(self, name: str) -> Origin:
        from pipelines.training.job import net_spec
        from pipelines.training.origins import Origin

        weights = self._weights(name)
        if name in self.runs:
            spec = net_spec(self.runs[name], self.num_outputs)
            return Origin(name, weights, spec, self.runs[name], self.classes)
        if self.params.table_of(name) is None:
            return Origin(name, weights)
        record, origin = trained(self.params, self.scale, name), self._run(name)
        return Origin(name, weights, net_spec(origin, record["num_outputs"]), origin, record["classes"])

    def _predictions(self, run: Run, teacher: Origin) -> Path | None:
        """Where a teacher's predictions of the table's data are kept; None for a run that asks it at every step."""
        if run.teacher_outputs == "step":
            return None
        assert teacher.run is not None
        unique = rows.fingerprint(
            weights=digest(teacher.weights, "sha256"),
            view=_view(teacher.run),
            precision=run.precision,
            data=self.index.digest,
            code=self.code,
        )
        return paths.predictions(self.scale, self.index.dataset, unique).resolve()


def _view(teacher: Run) -> dict[str, Any]:
    """What a teacher sees of an image; a run's identity says nothing of how the run is evaluated."""
    return {"size": teacher.input_size, **teacher.augment.model_dump(include={"central_fraction", "antialias"})}


def make_plan(params: Params, scale: str, table: str, only: str | None = None) -> Plan:
    """The plan of a table, or of one run of it and those of the table that it needs.

    Raises ValueError for shards that are absent, an unknown run, runs that need each other, and nets that are not
    trained in another table or not there as files.
    """
    runs = params.runs(table, scale)
    if only is not None and only not in runs:
        raise ValueError(f"run {only!r} is unknown; table {table} has: {', '.join(runs)}")
    needs = {name: [wanted for wanted in run.origins.values() if wanted in runs] for name, run in runs.items()}
    order = in_order(table, needs)
    wanted_runs = set(runs) if only is None else closure(only, needs)
    planned = {name: runs[name] for name in order if name in wanted_runs}
    for name, run in planned.items():
        for key, wanted in run.origins.items():
            if params.table_of(wanted) is None and not Path(wanted).is_file():
                raise ValueError(f"run {name}: {key}: {wanted} does not exist")
            if params.table_of(wanted) not in (None, table):
                trained(params, scale, wanted)
    shards = paths.shards(scale, params.tables[table].dataset)
    python = {path for folder in CODE for path in Path(folder).rglob("*.py")} | {SHARDS}
    code = rows.code_digest(python - HARMLESS)
    index = read_given(shards)
    return Plan(params, scale, table, planned, shards, index, classes_of(params, scale, table, index), code)


def classes_of(params: Params, scale: str, table: str, index: Index) -> tuple[str, ...]:
    """What the outputs of a table's nets mean, in order: its cells, or else the classes of the data of `index`."""
    wanted = params.tables[table].cells
    return index.classes if wanted is None else current_cells(params, scale, wanted.partition).tokens


def row_folder(params: Params, scale: str, name: str) -> Path:
    """Where the finished row of a run of any table lies."""
    table = params.table_of(name)
    assert table is not None, name
    return paths.results(scale, table) / "train" / name


def trained(params: Params, scale: str, name: str) -> dict[str, Any]:
    """The record of a finished run of any table. Raises ValueError that says how to make it where there is none that
    was trained with these params on these shards.
    """
    table = params.table_of(name)
    assert table is not None, name
    folder = row_folder(params, scale, name)
    record = rows.read_record(folder)
    index = read_given(paths.shards(scale, params.tables[table].dataset))
    if record is None:
        found = "there is no such run"
    elif record["data_digest"] != index.digest:
        found = "it was trained on other shards"
    elif not _is_of(params.runs(table, scale)[name], record):
        found = "it was trained with other params"
    elif params.tables[table].cells and record["classes"] != list(classes_of(params, scale, table, index)):
        found = "it was trained for other cells"
    else:
        return record
    raise ValueError(f"{folder}: {found}; run: python -m pipelines.train {table} --scale {scale}")


def _is_of(run: Run, record: dict[str, Any]) -> bool:
    """Whether a record is of a run; one that an earlier version wrote may lack what is known of runs today."""
    try:
        return "classes" in record and Run.model_validate(record["run"]).identity() == run.identity()
    except ValidationError:
        return False
