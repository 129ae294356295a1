"""Starts a run's workers, by kind: in this process, or on Ray Train with or without parameter servers.

Ray is imported by the first run that needs it, and one cluster serves all the runs of a process: the one that
`RAY_ADDRESS` names (inside `ray job submit` too), else one that this process starts and stops.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from threading import Thread
from typing import Any

from pipelines.job import Job
from pipelines.loop import CHECKPOINT, WEIGHTS, export, train_async, train_ddp, train_local, write_summary
from pipelines.parameter_server import assemble

# Ray Train asks its workers how they are every 2 s, and a run's end waits for that question. The preemption watcher
# (an actor more for each run) does not work with replica groups.
RAY_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def launch(job: Job) -> None:
    """Train a run to its end; leaves its weights, summary and curve in `job.folder`.

    Raises ValueError where the cluster is too small for it, and Ray Train's error where workers failed more often than
    the run allows.
    """
    if not (job.folder / WEIGHTS).exists():  # else: killed between the end of training and the collection of results
        LAUNCHERS[job.run.kind](job)
    (job.folder / CHECKPOINT).unlink(missing_ok=True)


def _launch_ddp(job: Job) -> None:
    from ray.train.torch import TorchConfig

    _fit(train_ddp, job, TorchConfig(backend=None))


def _launch_async(job: Job) -> None:
    from pipelines.async_backend import ParameterServerConfig

    plan = job.servers
    _fit(train_async, job, ParameterServerConfig(plan=plan, server_cpus=job.run.servers.cpus))
    final = assemble(plan)
    seconds = final.record["seconds"]
    rates = {worker: pushes / seconds for worker, pushes in final.record["pushes"].items()}
    write_summary(job, {**final.record, "pushes_per_second": rates})
    export(job, final.weights, final.statistics)
    for index in range(plan.num_servers):
        plan.snapshot(index).unlink()


LAUNCHERS: dict[str, Callable[[Job], None]] = {"local": train_local, "ddp": _launch_ddp, "async": _launch_async}


def _fit(train: Callable[[dict[str, Any]], None], job: Job, torch_config: Any) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    run = job.run
    servers = run.servers.num_servers * run.servers.cpus if run.kind == "async" else 0
    use_cluster({"CPU": run.num_workers * run.worker_cpus + servers, "GPU": run.num_workers * run.worker_gpus})
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
    _interruptibly(trainer.fit)


def _interruptibly(work: Callable[[], Any]) -> None:
    """Call `work` in a thread and wait for it.

    In the main thread Ray Train would put a handler of its own in place of Ctrl-C's, and leave it there: the process
    would then end with exit code 0, which DVC takes for a finished stage.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def use_cluster(wanted: dict[str, float]) -> None:
    """Connect to a Ray cluster, or start one here; ValueError where it can never hold what is wanted.

    wanted: amounts of "CPU" and "GPU". A cluster started here counts as many CPUs as are wanted, even on a machine with
    fewer; one that an earlier run started for less is started anew.
    """
    os.environ.update({name: value for name, value in RAY_ENVIRONMENT.items() if name not in os.environ})
    import ray

    # Ray tells on every start that its clusters are guarded by a token, which is as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(ignore_reinit_error=True, **quiet)
    else:
        if ray.is_initialized() and ray.cluster_resources().get("CPU", 0) < wanted["CPU"]:
            ray.shutdown()
        if not ray.is_initialized():
            logical = max(os.cpu_count() or 1, math.ceil(wanted["CPU"]))
            ray.init(address="local", num_cpus=logical, include_dashboard=False, **quiet)
    there = ray.cluster_resources()
    for name, amount in wanted.items():
        if amount > there.get(name, 0.0):
            raise ValueError(
                f"the run needs {amount:g} {name} and the Ray cluster has {there.get(name, 0.0):g}; lower num_workers, "
                "worker_cpus, worker_gpus or servers in params.yaml, or name a larger cluster in RAY_ADDRESS"
            )


def leave_cluster() -> None:
    """Disconnect from Ray, if a run has connected; stops a cluster that was started here."""
    import sys

    if "ray" in sys.modules:
        import ray

        ray.shutdown()
