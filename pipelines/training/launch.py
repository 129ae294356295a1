"""Starts a run's workers, by kind: in this process, or on Ray Train with or without parameter servers.

Ray is imported by the first run that needs it, and one cluster serves all the runs of a process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

from pipelines.cluster import use_cluster
from pipelines.training.job import Job
from pipelines.training.loop import (
    CHECKPOINT,
    WEIGHTS,
    export,
    train_async,
    train_ddp,
    train_extra,
    train_local,
    write_summary,
)
from pipelines.training.parameter_server import assemble
from pipelines.training.snapshots import load_newest, remove
from pipelines.training.teaching import Teacher, store_predictions


def launch(job: Job) -> None:
    """Train a run to its end; leaves its weights, summary and curve in `job.folder`.

    Raises ValueError where the cluster is too small for it, where too many gradients in a row were not finite, and what
    a worker raised of ValueError and OSError; Ray Train's error where workers failed otherwise, more often than the run
    allows.
    """
    if job.teacher is not None and job.teacher.teaching.stored is not None:
        _ask_teacher(job, job.teacher)
    if not (job.folder / WEIGHTS).exists():  # else: killed between the end of training and the collection of results
        LAUNCHERS[job.run.kind](job)
    remove(job.folder / CHECKPOINT)


def _ask_teacher(job: Job, teacher: Teacher) -> None:
    """Have the teacher's predictions stored: in this process, or by one worker of the cluster that the run is for."""
    run = job.run
    arguments = (teacher, job.shards, "train", run.precision, run.decode_threads)
    if run.kind == "local" or (teacher.teaching.stored and teacher.teaching.stored.exists()):
        store_predictions(*arguments)
        return
    import ray
    from ray.exceptions import RayTaskError

    use_cluster(*run.bundles)
    ask = ray.remote(num_cpus=run.worker_cpus, num_gpus=run.worker_gpus)(store_predictions)
    try:
        ray.get(ask.remote(*arguments))
    except RayTaskError as error:  # its text is a traceback
        raise error.cause from None


def _launch_ddp(job: Job) -> None:
    from ray.train.torch import TorchConfig

    load_newest(job.folder / CHECKPOINT)  # says in this process what workers will find
    _fit(train_ddp, job, TorchConfig(backend=None))


def _launch_async(job: Job) -> None:
    from pipelines.training.async_backend import ParameterServerConfig

    plan, run = job.servers, job.run
    for index in range(plan.num_servers):
        load_newest(plan.snapshot(index))  # says in this process what servers will find
    backend = ParameterServerConfig(
        plan=plan,
        server_cpus=run.servers.cpus,
        extra_workers=tuple(partial(train_extra, job, rank) for rank in range(run.num_workers, run.world)),
        extra_resources={"CPU": run.worker_cpus, "GPU": run.worker_gpus},
    )
    _fit(train_async, job, backend)
    final = assemble(plan)
    seconds = final.record["seconds"]
    rates = {worker: pushes / seconds for worker, pushes in final.record["pushes"].items()}
    write_summary(job, {**final.record, "pushes_per_second": rates})
    export(job, final.weights, final.statistics)
    for index in range(plan.num_servers):
        remove(plan.snapshot(index))


LAUNCHERS: dict[str, Callable[[Job], None]] = {"local": train_local, "ddp": _launch_ddp, "async": _launch_async}


def _fit(train: Callable[[dict[str, Any]], Any], job: Job, torch_config: Any) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    run = job.run
    use_cluster(*run.bundles)
    resources = {"CPU": run.worker_cpus, **({"GPU": run.worker_gpus} if run.worker_gpus else {})}
    trainer = TorchTrainer(
        train,
        train_loop_config={"job": job},
        torch_config=torch_config,
        scaling_config=ScalingConfig(
            num_workers=run.num_workers, use_gpu=run.worker_gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=job.name,
            storage_path=str(job.folder / "ray"),
            failure_config=FailureConfig(max_failures=run.max_failures),
        ),
    )
    try:
        given_up = _interruptibly(trainer.fit).return_value
    except WorkerGroupError as error:  # its text is of several lines and tracebacks
        plain = [each for each in error.worker_failures.values() if isinstance(each, ValueError | OSError)]
        raise plain[0] if plain else error from None
    if given_up is not None:
        raise ValueError(given_up)


def _interruptibly(work: Callable[[], Any]) -> Any:
    """Call `work` in a thread, wait for it and return what it does.

    In the main thread Ray Train would put a handler of its own in place of Ctrl-C's, and leave it there: the process
    would then end with exit code 0, which DVC takes for a finished stage.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
