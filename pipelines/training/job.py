"""One run as the processes that train and evaluate it need it: values of `params.yaml` turned into those of `tasks`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from pipelines.training.messages import ServerPlan
from pipelines.training.origins import Initial
from pipelines.training.run import Run, Updates
from pipelines.training.snapshots import load_snapshot
from pipelines.training.teaching import Teacher
from tasks.augment import Bounds
from tasks.detection import OBJECT_DETECTION
from tasks.nets import CLASSIFIERS, DETECTORS, NetSpec, build
from tasks.nets.complexity import count
from tasks.nets.frozen import freeze
from tasks.rules import Adagrad, Momentum, RMSprop, Rule, Staircase

_KINDS = {False: "a classifier", True: "a detector"}
# By the name in `params.yaml`; a record's fields are named as the values there.
RULES: dict[str, Callable[..., Rule]] = {"rmsprop": RMSprop, "adagrad": Adagrad, "momentum": Momentum}


@dataclass(frozen=True)
class Job:
    """One run as a worker needs it: picklable, with absolute paths and nothing left to look up.

    shards: the data set's folder. folder: the run's own, for checkpoints, snapshots, curve and weights; on storage
    that every node sees. name: unlike any other run's, so that nothing is taken over from a run that was different.
    initial: weights to start from. teacher: whose predictions are learned in place of labels.
    classes: what the data's labels mean, in label order; empty where nothing is labelled.
    data_digest: of the shards' index, for workers that stream them; None: of the index that lies in `shards`.
    """

    run: Run
    name: str
    shards: Path
    folder: Path
    num_samples: int
    num_outputs: int
    initial: Initial | None = None
    teacher: Teacher | None = None
    classes: tuple[str, ...] = ()
    data_digest: str | None = None

    @property
    def samples_per_step(self) -> int:
        """Images behind one update of the weights: all workers' together unless each updates alone."""
        return self.run.batch_size * (self.run.num_workers if self.run.kind == "ddp" else 1)

    @property
    def total_steps(self) -> int:
        """Updates of the weights in the whole run."""
        return math.ceil(self.run.epochs * self.num_samples / self.samples_per_step)

    @property
    def rule(self) -> Rule:
        """The update rule."""
        updates = self.run.optimizer
        return RULES[updates.rule](**updates.model_dump(exclude={"rule", *Updates.model_fields}))

    @property
    def learning_rate(self) -> Staircase:
        """The learning rate by update of the weights: the servers' global step in asynchronous training."""

        def in_steps(epochs: float) -> float:
            return epochs * self.num_samples / self.samples_per_step

        schedule = self.run.schedule
        listed = schedule.decay_epochs
        steps = tuple(in_steps(epochs) for epochs in listed) if isinstance(listed, tuple) else in_steps(listed)
        return Staircase(self.run.optimizer.learning_rate, schedule.decay_rate, steps, schedule.warmup_steps)

    @property
    def servers(self) -> ServerPlan:
        """What the parameter servers of an asynchronous run are told."""
        servers = self.run.servers
        return ServerPlan(
            name=self.name,
            num_servers=servers.num_servers,
            num_workers=self.run.num_workers,
            folder=self.folder,
            rule=self.rule,
            learning_rate=self.learning_rate,
            average_decay=self.run.optimizer.weight_average,
            total_steps=self.total_steps,
            policy=servers.staleness,
            max_staleness=servers.max_staleness,
            snapshot_steps=servers.snapshot_steps,
            log_steps=self.run.log_steps,
            max_not_finite=self.run.max_not_finite,
            wire=servers.wire,
        )


def net_spec(run: Run, num_outputs: int) -> NetSpec:
    """The net of a run, with as many outputs as asked for."""
    options = run.net_options.model_dump() | (run.detection.model_dump() if run.detection else {})
    return NetSpec(net=run.net, width=run.width, num_classes=num_outputs, **options)


def untrained_net(run: Run, num_outputs: int) -> nn.Module:
    """The net of a run as it is built, without gradients for what is frozen.

    Raises ValueError for a net that cannot be built, and where `frozen` fits no parameter or all.
    """
    net = build(net_spec(run, num_outputs))
    freeze(net, run.frozen)
    return net


def trained_net(run: Run, num_outputs: int, weights: Path) -> nn.Module:
    """The net of a finished run, with the weights that it left."""
    with torch.device("meta"):  # random weights would be made for nothing
        net = build(net_spec(run, num_outputs))
    net.load_state_dict(load_snapshot(weights), assign=True)
    return net


def check_kind(run: Run) -> None:
    """Raise ValueError where a run's net is a classifier and its task needs a detector, or the other way round."""
    detects = run.task == OBJECT_DETECTION.name
    if (run.net in DETECTORS) != detects:
        needed = DETECTORS if detects else CLASSIFIERS
        raise ValueError(f"net is {run.net!r}; task {run.task} needs one of: {', '.join(sorted(needed))}")
    if (run.detection is not None) != detects:
        raise ValueError(f"detection must be {'given' if detects else 'null'}: {run.net} is {_KINDS[detects]}")
    if detects and run.teacher is not None:
        raise ValueError(f"teacher is {run.teacher}; a detector learns from boxes, so it must be null")


def bounds(run: Run) -> Bounds:
    """What a run's training images are distorted by."""
    return Bounds(**run.augment.model_dump(exclude={"antialias", "central_fraction"}))


def counted_spec(run: Run, num_outputs: int) -> NetSpec:
    """The net of a run as the paper counts it: with 300 proposals, however many the run looks at."""
    return replace(net_spec(run, num_outputs), proposals=NetSpec.proposals)


def counts(run: Run, num_outputs: int) -> dict[str, int]:
    """Mult-Adds and parameters of a run's net at the paper's input size, for so many outputs."""
    with torch.device("meta"):
        counted = count(build(counted_spec(run, num_outputs)), run.resolution)
    return {
        "mult_adds": counted.mult_adds,
        "parameters": counted.parameters,
        "parameters_all": counted.parameters_all,
    }
