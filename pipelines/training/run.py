"""One training run as `params.yaml` describes it: one row of a table, with every value that its result depends on."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from pipelines.section import Fraction, Positive, Section, Seed


class Updates(Section):
    """What all update rules have around them."""

    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip_norm: Annotated[float, Field(gt=0)] | None
    weight_average: Fraction | None  # decay of the running average of the weights; null: none is kept


class RMSpropUpdates(Updates):
    """`tasks.rules.RMSprop`."""

    rule: Literal["rmsprop"]
    decay: Fraction
    momentum: Fraction
    epsilon: Annotated[float, Field(gt=0)]


class AdagradUpdates(Updates):
    """`tasks.rules.Adagrad`."""

    rule: Literal["adagrad"]
    initial_accumulator: Annotated[float, Field(gt=0)]


class MomentumUpdates(Updates):
    """`tasks.rules.Momentum`."""

    rule: Literal["momentum"]
    momentum: Fraction


Precision = Literal["32-true", "bf16-mixed", "auto"]
Optimizer = Annotated[RMSpropUpdates | AdagradUpdates | MomentumUpdates, Field(discriminator="rule")]


def _ascending(epochs: tuple[float, ...]) -> tuple[float, ...]:
    if any(later <= earlier for earlier, later in pairwise(epochs)):
        raise ValueError("Epochs should ascend")
    return epochs


Epochs = Annotated[float, Field(gt=0)]
ListedEpochs = Annotated[tuple[Epochs, ...], Field(min_length=1), AfterValidator(_ascending)]


class Schedule(Section):
    """Decay in steps: the learning rate is multiplied by decay_rate every decay_epochs, or at each of those listed."""

    decay_rate: Annotated[float, Field(gt=0, le=1)]
    decay_epochs: Annotated[  # tagged, so that an error is about the one that is meant
        Annotated[Epochs, Tag("number")] | Annotated[ListedEpochs, Tag("list")],
        Discriminator(lambda given: "list" if isinstance(given, list | tuple) else "number"),
    ]
    warmup_steps: Annotated[int, Field(ge=0)]


class NetOptions(Section):
    """What the convolutional nets can be asked for beside width, input size and classes."""

    padding: Literal["same", "symmetric"]
    activation: Literal["relu", "relu6"]
    batch_norm_decay: Fraction
    batch_norm_epsilon: Annotated[float, Field(gt=0)]
    dropout: Fraction
    min_depth: Positive


class Detection(Section):
    """How many boxes a detector looks at, and which of them it shows: see `tasks.nets.NetSpec`."""

    proposals: Positive  # of an image; Faster R-CNN's, as the next
    second_stage_boxes: Positive
    score_threshold: Fraction
    nms_iou: Annotated[float, Field(gt=0, le=1)]
    max_detections: Positive  # of an image


class Augment(Section):
    """Bounds of the random crop, flip and colour of training images."""

    min_area: Fraction
    max_area: Fraction
    min_aspect: Annotated[float, Field(gt=0)]
    max_aspect: Annotated[float, Field(gt=0)]
    flip: Fraction
    brightness: Fraction
    min_saturation: Annotated[float, Field(ge=0)]
    max_saturation: Annotated[float, Field(ge=0)]
    # Of an object's area, that a crop has to show (`tasks.box_crops`); null: crops do not look at what is there.
    min_object_shares: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] | None = None
    antialias: bool
    central_fraction: Annotated[float, Field(gt=0, le=1)]  # of each side, in evaluation

    @model_validator(mode="after")
    def _is_ordered(self) -> Augment:
        for name in ("area", "aspect", "saturation"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low > high:
                raise ValueError(f"min_{name} {low} is above max_{name} {high}")
        return self


class Servers(Section):
    """Asynchronous training: how many parameter servers, and what a late gradient means to them."""

    num_servers: Positive
    staleness: Literal["none", "scale", "drop", "wait"]
    max_staleness: Positive  # read by "drop" and "wait"
    snapshot_steps: Positive
    cpus: Annotated[float, Field(ge=0)]  # that Ray sets aside for each
    wire: Literal["float32", "bfloat16"] = "float32"  # of gradients and weights that travel between machines
    # A step's exchange runs beside the next one's computation, whose gradient is one update of its own older for it.
    overlap: bool = False
    shared_memory: bool = True  # with servers of a worker's own machine, instead of sending


# How a run is executed, watched and evaluated.
_WATCHING = (
    *("worker_cpus", "worker_gpus", "max_failures", "decode_threads", "log_steps", "checkpoint_steps"),
    *("teacher_outputs", "max_not_finite"),
)
MAX_NOT_FINITE = 10
_PARTS: Any = {
    "servers": {"cpus", "snapshot_steps", "shared_memory"},
    "augment": {"central_fraction"},
    "detection": {"score_threshold", "nms_iou", "max_detections"},
}
_LATER = {"deal": "samples", "decode": "cpu", "frozen": ()}
_LATER_OF_SERVERS = {"wire": "float32", "overlap": False}
EXECUTION: Any = {**dict.fromkeys(_WATCHING, True), **_PARTS}


class Run(Section):
    """One training run: one row of a table, with every value its result depends on."""

    name: str
    task: str
    net: str
    width: Annotated[float, Field(gt=0)]
    resolution: Positive  # the paper's input size: what Mult-Adds are counted at
    resolution_divisor: Annotated[float, Field(ge=1)]
    # Weights to start from: those of another run, or a .pt file (see pipelines/import_weights.py), which is to be named
    # among its stage's deps in dvc.yaml too, so that `dvc repro` sees it change; null: random ones.
    init_from: str | None = None
    # Parameters whose names begin so keep the values of init_from, as ["body.features.0."].
    frozen: tuple[str, ...] = ()
    teacher: str | None = None  # a run whose predictions are learned in place of labels; null: labels
    # The teacher's predictions are computed once and kept beside the shards, or at every step: the losses are the same.
    teacher_outputs: Literal["stored", "step"] = "stored"
    images_per_identity: Positive | None = None  # of a batch, which then has few people; null: images at random
    kind: Literal["local", "ddp", "async"]
    num_workers: Positive
    # Of an asynchronous run, beside num_workers: they join while there is room for them in the cluster, and go with it.
    extra_workers: Annotated[int, Field(ge=0)] = 0
    worker_cpus: Annotated[float, Field(gt=0)]
    worker_gpus: Annotated[float, Field(ge=0)]
    max_failures: Annotated[int, Field(ge=-1)]  # of workers, before the run is given up; -1: never
    # Gradients in a row that are not finite, before the run is given up. One may come of a bad batch. Weights that have
    # run away give no others, since a refused gradient leaves them as they are, and ten of those tell it.
    max_not_finite: Positive = MAX_NOT_FINITE
    epochs: Annotated[float, Field(gt=0)]
    batch_size: Positive  # of one worker
    seed: Seed
    # auto: bf16-mixed where the device multiplies bfloat16 in hardware, else 32-true (`precision.resolved`). It is the
    # same run on every machine, and its result then depends on the machine, to the rounding of bfloat16.
    precision: Precision
    decode_threads: Annotated[int, Field(ge=0)]  # 0: images are decoded where they are used
    # Where training images are decoded; a GPU's pixels differ a little. Evaluation's, and a teacher's, are the CPU's.
    decode: Literal["cpu", "gpu"] = "cpu"
    block_shards: Positive  # shards whose samples are shuffled together
    # What workers are dealt, each epoch anew: samples of all shards, in an order that is the same for any number of
    # workers, or shards, so that a machine that streams them fetches its own part alone (`order.training_stream`).
    deal: Literal["samples", "shards"] = "samples"
    log_steps: Positive
    checkpoint_steps: Positive
    optimizer: Optimizer
    schedule: Schedule
    net_options: NetOptions
    detection: Detection | None = None  # of detectors; null: classifiers have none
    augment: Augment
    servers: Servers

    @model_validator(mode="after")
    def _is_trainable(self) -> Run:
        if abs(self.input_size * self.resolution_divisor - self.resolution) > 1e-3 * self.resolution:
            raise ValueError(f"resolution {self.resolution} is not a multiple of {self.resolution_divisor}")
        if self.kind == "local" and self.num_workers != 1:
            raise ValueError(f"kind local has 1 worker, not num_workers {self.num_workers}; use ddp or async")
        if self.kind != "async" and self.extra_workers:
            raise ValueError(f"extra_workers is {self.extra_workers}; kind {self.kind} has none, use async or 0")
        if self.deal == "shards" and self.images_per_identity is not None:
            raise ValueError("deal is shards; with images_per_identity people are dealt, use samples")
        if self.frozen and self.init_from is None:
            raise ValueError(f"frozen is {', '.join(self.frozen)}; without init_from there is nothing to keep")
        if self.decode == "gpu" and not self.worker_gpus:
            raise ValueError("decode is gpu, but worker_gpus is 0: use cpu, or give workers a GPU")
        each = self.images_per_identity
        if each is not None and (self.batch_size % each or not 2 <= each < self.batch_size):  # else no pairs to compare
            raise ValueError(
                f"images_per_identity is {each}; it must divide batch_size {self.batch_size} and be above 1"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The values that decide what the weights become: a run that differs in others alone is the same run."""
        values = {**self.model_dump(exclude=EXECUTION), "input_size": self.input_size}
        if self.kind != "async":
            del values["servers"]
        # As if there were no other: rows that were trained before there was are the same.
        for block, defaults in ((values, _LATER), (values.get("servers", {}), _LATER_OF_SERVERS)):
            for key, value in defaults.items():
                if block.get(key) == value:
                    del block[key]
        return values

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What its workers and servers each take of a cluster: amounts of "CPU" and "GPU"."""
        servers = self.servers.num_servers if self.kind == "async" else 0
        worker = {"CPU": self.worker_cpus, "GPU": self.worker_gpus}
        return [worker] * self.num_workers + [{"CPU": self.servers.cpus, "GPU": 0.0}] * servers

    @property
    def world(self) -> int:
        """How many workers the data is dealt to: those that may join have their places in it."""
        return self.num_workers + self.extra_workers

    @property
    def origins(self) -> dict[str, str]:
        """The trained nets that this run needs, by what it needs them for: "init_from", "teacher"."""
        wanted = {"init_from": self.init_from, "teacher": self.teacher}
        return {key: name for key, name in wanted.items() if name is not None}

    @property
    def input_size(self) -> int:
        """Side of the square images that the net is trained on, in pixels."""
        return round(self.resolution / self.resolution_divisor)
