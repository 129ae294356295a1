"""The train stage: `python -m pipelines.train <table>` trains every run of a table that is not finished yet.

A finished run whose fingerprint (its params, the data, the code) still fits is left alone; a broken one goes on from
its last checkpoint. `--run <name>` trains that one alone.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import paths, rows, tracking
from pipelines.cluster import leave_cluster
from pipelines.command import one_line_errors, stage_parser
from pipelines.config import Params, Run, load
from pipelines.files import locked, read_json
from pipelines.progress import watched
from pipelines.shards import Index, read_index

if TYPE_CHECKING:
    from pipelines.job import Job

log = logging.getLogger(__name__)

# A running average that starts at 0 and 1 has forgotten them after some five times its memory.
BATCH_NORM_MEMORIES = 5

# The files whose code decides what a run's weights become.
CODE = ("async_backend", "decode", "job", "launch", "loop", "parameter_server", "reader", "remote_optimizer", "shards")
COUNTING = Path("tasks/nets/complexity.py")


def train(params: Params, scale: str, table: str, only: str | None = None) -> None:
    """Train a table's unfinished runs one after another and leave a folder for each."""
    runs = params.runs(table, scale)
    if only is not None and only not in runs:
        raise ValueError(f"run {only!r} is unknown; table {table} has: {', '.join(runs)}")
    dataset = params.tables[table].dataset
    shards = paths.shards(scale, dataset)
    index = read_index(shards)
    code = rows.code_digest(
        {*Path("tasks").rglob("*.py"), *(Path("pipelines") / f"{name}.py" for name in CODE)} - {COUNTING}
    )
    unfinished = {}
    for name, run in runs.items():
        fingerprint = rows.fingerprint(run=run.identity(), data=index.digest, code=code)
        if only in (None, name) and not _is_finished(paths.results(scale, table) / "train" / name, fingerprint):
            unfinished[name] = fingerprint
    log.info("%s: %d of %d runs to train", table, len(unfinished), len(runs))
    if not unfinished:
        return

    # All are planned, and refused where a net cannot be built, before the first is trained.
    jobs = [_job(runs[name], printed, index, shards, paths.work(scale)) for name, printed in unfinished.items()]
    num_classes = params.tables[table].num_classes
    planned = [(job, _record(job, unfinished[job.run.name], index, num_classes)) for job in jobs]
    try:
        with tracking.sending() as track:
            for number, (job, record) in enumerate(planned, start=1):
                name = job.run.name
                target = paths.results(scale, table) / "train" / name
                with locked(paths.work(scale) / "locks" / name):
                    if _is_finished(target, record["fingerprint"]):
                        log.info("%s: another process has trained it meanwhile", name)
                        continue
                    spool = paths.spool(scale, name, record["fingerprint"])
                    track(spool)
                    with _tracked(spool, job, record, scale, table, dataset):
                        _train_run(job, f"[{number}/{len(planned)}] {name}")
                        record["summary"] = read_json(job.folder / "summary.json")
                    rows.finish([job.folder / file for file in ("weights.pt", "curve.jsonl")], record, target)
                    for folder in paths.work(scale).glob(f"{name}-*"):
                        shutil.rmtree(folder)
    finally:
        leave_cluster()


def _is_finished(folder: Path, fingerprint: str) -> bool:
    record = rows.read_record(folder)
    return record is not None and record["fingerprint"] == fingerprint


def _job(run: Run, fingerprint: str, index: Index, shards: Path, work: Path) -> Job:
    from pipelines.job import Job
    from tasks.nets import check_input_size

    check_input_size(run.net, run.input_size)
    name = paths.job_name(run.name, fingerprint)
    folder = (work / name).resolve()
    return Job(run, name, shards.resolve(), folder, index.splits["train"].samples, len(index.classes))


def _train_run(job: Job, title: str) -> None:
    from pipelines.launch import launch

    _announce(job, title)
    job.folder.mkdir(parents=True, exist_ok=True)
    with watched(job.folder / "curve.jsonl", job.total_steps, title):
        launch(job)


def _announce(job: Job, title: str) -> None:
    """Say what is about to be trained, what has weight decay, and where the recipe does not suit the run's length."""
    import torch

    from pipelines.job import net_spec
    from tasks.nets import build
    from tasks.optim import decays

    run = job.run
    with torch.device("meta"):
        net = build(net_spec(run, job.num_classes))
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for name, decayed in decays(net).items():
        sizes[decayed].append(net.get_parameter(name).numel())
    log.info(
        "%s: %s, num_workers %d, %d px, %d steps; weight decay %g on %d tensors (%s weights), "
        "none on %d (%s: depthwise filters, BatchNorm, biases)",
        *(title, run.kind, run.num_workers, run.input_size, job.total_steps, run.optimizer.weight_decay),
        *(len(sizes[True]), f"{sum(sizes[True]):,}", len(sizes[False]), f"{sum(sizes[False]):,}"),
    )
    decay = run.net_options.batch_norm_decay
    normalised = any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
    if normalised and job.total_steps * (1 - decay) < BATCH_NORM_MEMORIES:
        steps = job.total_steps
        log.warning("%s: batch_norm_decay %g is too slow for %d steps: its evaluation will be off", title, decay, steps)


def _record(job: Job, fingerprint: str, index: Index, num_classes: int) -> dict[str, Any]:
    from pipelines.job import counts

    return {
        "fingerprint": fingerprint,
        "run": job.run.model_dump(),
        "data_digest": index.digest,
        "num_samples": job.num_samples,
        "num_classes": job.num_classes,
        "counts": counts(job.run, num_classes),
        "commit": _commit(),
    }


@contextmanager
def _tracked(spool: Path, job: Job, record: dict[str, Any], scale: str, table: str, dataset: str) -> Iterator[None]:
    """Tells MLflow that a run begins, and how it ended; the body puts the run's summary into `record`."""
    from pipelines.job import net_spec

    run = job.run
    tracking.begin(
        spool,
        experiment=f"{table}-{scale}",
        name=run.name,
        params=record["run"],
        tags={"scale": scale, "kind": run.kind, "fingerprint": record["fingerprint"], "commit": record["commit"]},
        data=tracking.Data(dataset, record["data_digest"], str(job.shards)),
        curve=job.folder / "curve.jsonl",
        commit_steps=run.servers.snapshot_steps if run.kind == "async" else run.checkpoint_steps,
    )
    try:
        yield
    except BaseException as error:
        tracking.finish(spool, status="FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    summary = record["summary"]
    tracking.finish(
        spool,
        metrics={**record["counts"], **{key: value for key, value in summary.items() if not isinstance(value, dict)}},
        histograms={key: summary[key] for key in ("staleness", "pushes_per_second") if key in summary},
        model=tracking.Model(
            job.folder / "weights.pt", run.task, asdict(net_spec(run, job.num_classes)), run.input_size
        ),
    )


def _commit() -> str | None:
    """The commit that trained the run; None outside a Git checkout, and where there is no Git."""
    if shutil.which("git") is None:
        return None
    answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    return answer.stdout.strip() or None


def main(argv: list[str] | None = None) -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("table", help="a table of params.yaml")
    parser.add_argument("--run", help="train this run of the table alone")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        params = load()
        train(params, arguments.scale or params.scale, arguments.table, arguments.run)


if __name__ == "__main__":
    main()
