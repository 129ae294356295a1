"""The train stage: `python -m pipelines.train <table>` trains every run of a table that is not finished yet.

A finished run whose fingerprint (its params, the data, the code) still fits is left alone; a broken one goes on from
its last checkpoint. `--run <name>` trains that one alone; ROWS_AT_ONCE=<n> in the environment trains so many at once.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import kept_rows, paths, tracking
from pipelines.cluster import leave_cluster
from pipelines.command import end_process, one_line_errors, stage_parser
from pipelines.config import Params, load
from pipelines.files import locked, read_json
from pipelines.plan import Plan, make_plan
from pipelines.progress import watched
from pipelines.row_order import longest_first
from pipelines.side_by_side import rows_at_once, start_importing, train_side_by_side
from pipelines.training import rows

if TYPE_CHECKING:
    from pipelines.training.job import Job
    from pipelines.training.origins import Initial

log = logging.getLogger(__name__)

# A running average that starts at 0 and 1 has forgotten them after some five times its memory.
BATCH_NORM_MEMORIES = 5


def train(params: Params, scale: str, table: str, only: str | None = None) -> None:
    """Train a table's unfinished runs, as many at once as `rows_at_once` says, and leave a folder for each."""
    plan = make_plan(params, scale, table, only)
    kept_rows.put_back(scale, map(plan.folder, plan.runs))
    unfinished = plan.unfinished(only)
    log.info("%s: %d of %d runs to train", table, len(unfinished), len(plan.runs))
    if not unfinished:
        return
    at_once = 1 if only else min(rows_at_once(plan.runs[name] for name in unfinished), len(unfinished))
    if at_once > 1:
        start_importing()
    # All are checked, and refused where a net cannot be built or learned from, before the first is trained.
    for name in unfinished:
        plan.check(name)
    with tracking.sending() as track:
        if at_once > 1:
            work = {name: work_of(plan, name) for name in unfinished}
            ordered = longest_first(work, {name: plan.runs[name].origins.values() for name in unfinished})
            train_side_by_side(plan, ordered, at_once, _train_apart, lambda name: track(_spool(plan, name)))
            return
        try:
            for number, name in enumerate(unfinished, start=1):
                _train_row(plan, name, f"[{number}/{len(unfinished)}] {name}", track)
        finally:
            leave_cluster()


def _spool(plan: Plan, name: str) -> Path:
    return paths.spool(plan.scale, name, plan.fingerprint(name))


def work_of(plan: Plan, name: str) -> float:
    """Roughly what a run takes, beside others of its table: the Mult-Adds of its net at its input size, and epochs."""
    import torch

    from pipelines.training.job import net_spec
    from tasks.nets import build
    from tasks.nets.complexity import count

    run = plan.runs[name]
    with torch.device("meta"):
        return run.epochs * count(build(net_spec(run, plan.num_outputs)), run.input_size).mult_adds


def _train_apart(plan: Plan, name: str, title: str) -> None:
    """Train a run in a process that does nothing else; MLflow is told by the one that has started it."""
    with one_line_errors():
        try:
            _train_row(plan, name, title, lambda _: None)
        finally:
            leave_cluster()


def _train_row(plan: Plan, name: str, title: str, track: Callable[[Path], None]) -> None:
    with locked(paths.work(plan.scale) / "locks" / name):
        _train_unless_finished(plan, name, title, track)


def _train_unless_finished(plan: Plan, name: str, title: str, track: Callable[[Path], None]) -> None:
    fingerprint, target = plan.fingerprint(name), plan.folder(name)
    if rows.is_finished(target, fingerprint):
        log.info("%s: another process has trained it meanwhile", name)
        return
    job = plan.job(name)
    record = _record(plan, job, fingerprint)
    spool = paths.spool(plan.scale, name, fingerprint)
    track(spool)
    with _tracked(spool, plan, job, record):
        _train_run(job, title)
        record["summary"] = read_json(job.folder / "summary.json")
    rows.finish([job.folder / file for file in ("weights.pt", "curve.jsonl")], record, target)
    kept_rows.keep(plan.scale, target)
    for folder in paths.work(plan.scale).glob(f"{name}-*"):
        shutil.rmtree(folder)


def _train_run(job: Job, title: str) -> None:
    from pipelines.training.launch import launch

    _announce(job, title)
    job.folder.mkdir(parents=True, exist_ok=True)
    with watched(job.folder / "curve.jsonl", job.total_steps, title):
        launch(job)


def _announce(job: Job, title: str) -> None:
    """Say what is about to be trained, what has weight decay, and where the recipe does not suit the run's length."""
    import torch

    from pipelines.training.job import untrained_net
    from tasks.optim import decays

    run = job.run
    with torch.device("meta"):
        net = untrained_net(run, job.num_outputs)
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for name, decayed in decays(net).items():
        sizes[decayed].append(net.get_parameter(name).numel())
    log.info(
        "%s: %s, num_workers %d, %d px, %d steps; weight decay %g on %d tensors (%s weights), "
        "none on %d (%s: depthwise filters, BatchNorm, biases)",
        *(title, run.kind, run.num_workers, run.input_size, job.total_steps, run.optimizer.weight_decay),
        *(len(sizes[True]), f"{sum(sizes[True]):,}", len(sizes[False]), f"{sum(sizes[False]):,}"),
    )
    if job.initial is not None:
        log.info("%s: starts from %s, %s", title, run.init_from, _kept(job.initial))
    if run.frozen:
        log.info("%s: %s of it stay as they are", title, ", ".join(run.frozen))
    if job.teacher is not None:
        log.info("%s: learns from %s, predictions %s", title, run.teacher, run.teacher_outputs)
    decay = run.net_options.batch_norm_decay
    normalised = any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
    if normalised and job.initial is None and job.total_steps * (1 - decay) < BATCH_NORM_MEMORIES:
        steps = job.total_steps
        log.warning("%s: batch_norm_decay %g is too slow for %d steps: its evaluation will be off", title, decay, steps)


def _kept(initial: Initial) -> str:
    if initial.into:
        return "by its body"
    return "its last layer too" if initial.keep_head else "but for its last layer, which is for other classes"


def _record(plan: Plan, job: Job, fingerprint: str) -> dict[str, Any]:
    from pipelines.training.job import counts

    return {
        "fingerprint": fingerprint,
        "run": job.run.model_dump(),
        "data_digest": plan.index.digest,
        "num_samples": job.num_samples,
        "num_outputs": job.num_outputs,
        "classes": list(plan.classes),
        "counts": counts(job.run, plan.params.tables[plan.table].num_outputs),
        "commit": _commit(),
    }


@contextmanager
def _tracked(spool: Path, plan: Plan, job: Job, record: dict[str, Any]) -> Iterator[None]:
    """Tells MLflow that a run begins, and how it ended; the body puts the run's summary into `record`."""
    from pipelines.training.job import net_spec

    run = job.run
    tracking.begin(
        spool,
        experiment=f"{plan.table}-{plan.scale}",
        name=run.name,
        params=record["run"],
        tags={"scale": plan.scale, "kind": run.kind, "fingerprint": record["fingerprint"], "commit": record["commit"]},
        data=tracking.Data(plan.index.dataset, record["data_digest"], str(job.shards)),
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
            job.folder / "weights.pt", run.task, asdict(net_spec(run, job.num_outputs)), run.input_size
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
    end_process()
