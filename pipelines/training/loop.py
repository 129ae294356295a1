"""The function that each worker of a run executes: net, task, reader and optimizer joined in one Lightning fit.

Three kinds share it. `local` and `ddp` apply gradients with a `LocalOptimizer` and keep checkpoints of their own;
in `async` the parameter servers own the weights, the progress and the snapshots, and the worker owns nothing.
What a worker returns is why the run is given up: Ray Train takes an error for a worker that is to be replaced.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from pipelines.files import write_json
from pipelines.training.allocator import keep_freed_memory
from pipelines.training.curve import Curve
from pipelines.training.extra_workers import failures, persevere
from pipelines.training.finite import FiniteOptimizer, complaint
from pipelines.training.first_net import first_net
from pipelines.training.job import Job, bounds
from pipelines.training.precision import worker_precision
from pipelines.training.reader import training_batches
from pipelines.training.remote_optimizer import Line, RemoteOptimizer, Servers
from pipelines.training.run import Run
from pipelines.training.snapshots import load_newest, save_atomically, save_snapshot
from tasks import TASKS
from tasks.base import Batch
from tasks.module import TaskModule
from tasks.optim import Flat, FlatOptimizer, FlatState, finish_gradient, flatten

CHECKPOINT, WEIGHTS, SUMMARY, CURVE = "checkpoint.pt", "weights.pt", "summary.json", "curve.jsonl"

# Lightning and torch speak of things that are so by design here.
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
warnings.filterwarnings("ignore", message=".*does not have a `__len__`.*")
warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # BatchNorm that is frozen


def train_local(job: Job) -> None:
    """Train in this process, from the newest checkpoint where there is one; leaves weights, summary and curve.

    Raises ValueError where too many gradients in a row are not finite.
    """
    given_up = _train_flat(job, rank=0, trainer_options={"devices": 1})
    if given_up is not None:
        raise ValueError(given_up)


def train_ddp(config: dict[str, Any]) -> str | None:
    """One worker of synchronous data-parallel training, run by Ray Train; `config["job"]` is the Job."""
    import ray.train
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

    options = {"devices": "auto", "strategy": RayDDPStrategy(), "plugins": [RayLightningEnvironment()]}
    return _train_flat(config["job"], ray.train.get_context().get_world_rank(), options)


def train_async(config: dict[str, Any]) -> str | None:
    """One worker of asynchronous training, run by Ray Train; it stops when the servers have made their last step."""
    import ray.train

    from pipelines.training.async_backend import RayServers

    job: Job = config["job"]
    return train_with_servers(job, RayServers.connect(job.servers), ray.train.get_context().get_world_rank())


def train_extra(job: Job, rank: int) -> None:
    """One of a run's `extra_workers`: a task, which Ray starts where there is room, and anew where its machine dies.

    Goes on after errors of its own as often as the run allows each (`max_failures`).
    """
    from pipelines.training.async_backend import RayServers

    def work() -> None:
        try:
            servers = RayServers.connect(job.servers)
        except ValueError:  # there are none: the run has ended
            return
        train_with_servers(job, servers, rank)

    persevere(work, job.folder, rank, job.run.max_failures)


def train_with_servers(job: Job, servers: Servers, rank: int) -> str | None:
    """Push gradients to `servers` until they are done, or have given the run up: returns why, then."""
    run = job.run
    given = run.servers
    max_lead = given.max_staleness if given.staleness == "wait" else None
    line = Line(given.num_servers, given.wire, given.overlap, given.shared_memory)

    def make_optimizer(module: TaskModule, net: nn.Module) -> RemoteOptimizer:
        return RemoteOptimizer(net, _finish(run), servers, line, rank, run.batch_size, lambda: module.metrics, max_lead)

    stop = _Stop(lambda optimizer: optimizer.finished or optimizer.failed)
    optimizer: RemoteOptimizer = _fit(job, rank, make_optimizer, [stop], {"devices": 1}, endless=True)
    return complaint(run.name, optimizer.in_row, optimizer.version) if optimizer.failed else None


def _train_flat(job: Job, rank: int, trainer_options: dict[str, Any]) -> str | None:
    recorder = _Recorder(job)

    def make_optimizer(_: TaskModule, net: nn.Module) -> FiniteOptimizer:
        optimizer = FiniteOptimizer(net, _finish(job.run), partial(_state, job))
        checkpoint = load_newest(job.folder / CHECKPOINT)
        if checkpoint is not None:
            optimizer.flat_state.load_state_dict(checkpoint["state"])
            optimizer.flat.statistics.copy_(checkpoint["statistics"])
            optimizer.refused = checkpoint["refused"]
            recorder.seconds_before = checkpoint["seconds"]
        recorder.optimizer = optimizer
        return optimizer

    stop = _Stop(partial(_failed, job))
    callbacks = [recorder, stop] if rank == 0 else [stop]
    optimizer: FiniteOptimizer = _fit(job, rank, make_optimizer, callbacks, trainer_options, endless=False)
    return complaint(job.run.name, optimizer.in_row, optimizer.steps) if _failed(job, optimizer) else None


def _failed(job: Job, optimizer: FiniteOptimizer) -> bool:
    return optimizer.in_row >= job.run.max_not_finite


def _state(job: Job, weights: Tensor) -> FlatState:
    return FlatState(weights, job.rule, job.learning_rate, job.run.optimizer.weight_average)


def _finish(run: Run) -> Callable[[Flat], None]:
    return partial(finish_gradient, weight_decay=run.optimizer.weight_decay, clip_norm=run.optimizer.clip_norm)


def _fit(
    job: Job,
    rank: int,
    make_optimizer: Callable[[TaskModule, nn.Module], FlatOptimizer],
    callbacks: list[Any],
    trainer_options: dict[str, Any],
    *,
    endless: bool,
) -> Any:
    """One Lightning fit of one worker; the reader starts where the optimizer, once made, says that it stands.

    Returns the optimizer, as it is at the end.
    """
    keep_freed_memory()
    run = job.run
    net = first_net(job)
    module = TaskModule(
        TASKS[run.task],
        net,
        lambda net: make_optimizer(module, net),
        lambda steps: run.seed * 1_000_003 + steps * run.world + rank,
        job.teacher.load() if job.teacher is not None and job.teacher.teaching.stored is None else None,
    )
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="gpu" if run.worker_gpus else "cpu",
        precision=worker_precision(run, rank),
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        **trainer_options,
    )
    trainer.fit(module, train_dataloaders=_Batches(job, rank, module, endless=endless))
    return module.optimizer


class _Batches:
    """The batches that are left to one worker; read when the optimizer is there to say how many steps are made."""

    def __init__(self, job: Job, rank: int, module: TaskModule, *, endless: bool) -> None:
        self.job, self.rank, self.module, self.endless = job, rank, module, endless

    def __iter__(self) -> Iterator[Batch]:
        run = self.job.run
        done = self.module.optimizer.steps
        together = run.batch_size * run.world
        return training_batches(
            self.job.shards,
            "train",
            size=run.input_size,
            batch_size=run.batch_size,
            seed=run.seed,
            rank=self.rank,
            world=run.world,
            start_sample=done * together,
            num_samples=None if self.endless else (self.job.total_steps - done) * together,
            bounds=bounds(run),
            antialias=run.augment.antialias,
            threads=run.decode_threads,
            block_shards=run.block_shards,
            deal=run.deal,
            targets=TASKS[run.task].collator(self.job.classes),
            images_per_identity=run.images_per_identity,
            teaching=None if self.job.teacher is None else self.job.teacher.teaching,
            digest=self.job.data_digest,
            device=self.module.device if run.worker_gpus else None,
            decode=run.decode,
        )


class _Stop(pl.Callback):
    """Ends the fit once its optimizer is through."""

    def __init__(self, through: Callable[[Any], bool]) -> None:
        self.through = through

    def on_train_batch_end(self, trainer: pl.Trainer, module: TaskModule, *_: Any) -> None:  # type: ignore[override]
        trainer.should_stop = self.through(module.optimizer)


class _Recorder(pl.Callback):
    """Writes the curve and the checkpoints of a run, and at its end the weights and the summary.

    Under `ddp` the curve's loss is that of rank 0's part of each batch; its images per second are everyone's.
    """

    optimizer: FiniteOptimizer
    seconds_before = 0.0

    def __init__(self, job: Job) -> None:
        self.job = job

    def on_train_start(self, *_: Any) -> None:
        self.curve = Curve(self.job.folder / CURVE, self.job.run.log_steps, self.job.total_steps, self.optimizer.steps)
        self.began = time.monotonic()

    def on_train_batch_end(self, _: pl.Trainer, module: TaskModule, *__: Any) -> None:  # type: ignore[override]
        steps = self.optimizer.steps
        rate = self.job.learning_rate(steps - 1)
        self.curve.add(steps, self.job.samples_per_step, {**module.metrics, "learning_rate": rate})
        if steps % self.job.run.checkpoint_steps == 0 and steps < self.job.total_steps:
            content = {
                "state": self.optimizer.flat_state.state_dict(),
                "statistics": self.optimizer.flat.statistics,
                "seconds": self._seconds(),
                "refused": self.optimizer.refused,
            }
            save_snapshot(content, self.job.folder / CHECKPOINT)

    def on_train_end(self, *_: Any) -> None:
        self.curve.close()
        if _failed(self.job, self.optimizer):
            return
        steps = self.optimizer.steps
        assert steps == self.job.total_steps, f"{steps} of {self.job.total_steps} steps"
        refused = {"not_finite": self.optimizer.refused} if self.optimizer.refused else {}
        write_summary(self.job, {"seconds": self._seconds(), "refused": refused})
        export(self.job, self.optimizer.flat_state.evaluated, self.optimizer.flat.statistics)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began


def export(job: Job, weights: Tensor, statistics: Tensor) -> None:
    """Write a finished run's flat vectors as the state dict of its net: plain contiguous tensors by name."""
    net = first_net(job)  # for what is frozen
    flat = flatten(net)
    flat.weights.copy_(weights)
    flat.statistics.copy_(statistics)
    # The counters of BatchNorm are not floats and do not travel: each layer has seen every update.
    state = {
        name: value.contiguous() if value.is_floating_point() else torch.tensor(job.total_steps)
        for name, value in net.state_dict().items()
    }
    save_atomically(state, job.folder / WEIGHTS)


def write_summary(job: Job, record: dict[str, Any]) -> None:
    """What a finished run says of itself: steps, seconds, images per second, and what its servers counted."""
    images = job.total_steps * job.samples_per_step
    seconds = record["seconds"]
    rates = {"images_per_second": images / seconds, "updates_per_second": job.total_steps / seconds}
    failed = {"extra_worker_failures": found} if (found := failures(job.folder)) else {}
    summary = {"steps": job.total_steps, "images": images, **rates, **record, **failed}
    write_json(job.folder / SUMMARY, summary)
