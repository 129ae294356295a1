"""What a step and an exchange cost a worker, a server and the links between them: from a run's values and a machine's.

Every figure of `Machine` was measured or is assumed, as said beside it; none of it was measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from pipelines.training.run import Run

# Forward is one pass of Mult-Adds, backward two: the gradient of the input and that of the weights.
PASSES, BACKWARD_SHARE = 3, 2 / 3
FLOAT_BYTES = 4
# A device is measured by MobileNet 1.0-224; its Mult-Adds are as `tasks.nets.complexity` counts them.
CORE_IMAGES_PER_SECOND = 13.0  # of a core of an AMD EPYC at 2.6 GHz, float32, channels_last: bench_step
MEASURE_POINTWISE, MEASURE_DEPTHWISE = 551_354_368, 17_385_984


class Workload(NamedTuple):
    """What one step of a run consists of, before any machine is named.

    mult_adds: of all layers but depthwise ones, on one image. parameters: that have gradients. statistics: BatchNorm's
    floats, which travel beside them.
    """

    mult_adds: int
    depthwise_mult_adds: int
    parameters: int
    statistics: int
    batch_size: int
    decode_threads: int
    on_gpu: bool


@dataclass(frozen=True)
class Machine:
    """A worker's device and host, a server's host, and the links; rates are a second's.

    What benchmarks measured is of two cores of an Intel Xeon or an AMD EPYC. Assumed: each worker and each server has a
    link of its own and as many cores as its process keeps busy, and Ray fills the link (a quarter to a half of it has
    been reported, github.com/ray-project/ray/issues/1684 and 1325: `link_bytes` is what a transfer reaches).
    """

    # ResNet-50 (4.09 billion Mult-Adds) trains at 2,600 images/s on an A100 in mixed precision and channels_last:
    # github.com/huggingface/pytorch-image-models/issues/1491.
    mult_adds: float = PASSES * 4.09e9 * 2_600
    # Assumed, so that MobileNet 1.0-224 trains at 6,000 images/s: its activations, some 190 MB of memory traffic an
    # image in bfloat16 with BatchNorm and ReLU unfused, at three quarters of an A100's 1.55 TB/s.
    depthwise_mult_adds: float = 0.454e12
    # Assumed: some 500 kernels are started one after another in a step of a net of 30 layers, whatever its size.
    least_step: float = 0.010
    decoded: float = 1_100.0  # images of 500 x 375 by one thread: bench_reader
    device_bytes: float = 10e9  # assumed: between GPU and pageable memory
    serialised_bytes: float = 5.6e9  # into Ray's object store: 17 MB in 3 ms
    copied_bytes: float = 13e9  # out of it: 17 MB in 1.3 ms
    applied: float = 0.77e9  # parameters, by RMSprop with a running average: bench_simulation
    # s of a worker and of a server for each call that carries a slice. bench_simulation has 2.0 and 2.1 ms of CPU on a
    # machine that is busy otherwise; with half of it the parts of bench_exchange's 15 ms on a quiet one add up.
    request: float = 0.001
    serve: float = 0.001
    latency: float = 0.0003  # s of a message in Ray beside those: of an empty call's 1.9 ms and more
    link_bytes: float = 25e9 / 8
    hop: float = 0.00005  # assumed: s of a message between hosts of one data centre

    def with_device(self, images_per_second: float) -> Machine:
        """The same with a device that trains MobileNet 1.0-224 at so many images/s, and other nets in proportion."""
        now = PASSES * (MEASURE_POINTWISE / self.mult_adds + MEASURE_DEPTHWISE / self.depthwise_mult_adds)
        faster = images_per_second * now
        return replace(self, mult_adds=self.mult_adds * faster, depthwise_mult_adds=self.depthwise_mult_adds * faster)


def machine_of(run: Run, gigabits: float, images_per_second: float | None) -> Machine:
    """What a run trains on: an A100 where it asks for a GPU, else its cores; or the device that is said to be as fast.

    gigabits: a second, that a link carries.
    """
    machine = replace(Machine(), link_bytes=gigabits * 1e9 / 8)
    if images_per_second is None and not run.worker_gpus:
        images_per_second = CORE_IMAGES_PER_SECOND * run.worker_cpus
    return machine if images_per_second is None else machine.with_device(images_per_second)


@dataclass(frozen=True)
class Costs:
    """Seconds and bytes of one worker's step and of its exchange with the servers.

    What is said of the whole vector is shared out evenly among the servers.
    """

    batch_size: int
    step: float  # of a worker: forward, backward
    collect: float  # of a worker: the gradient to its host
    serialise: float  # of a worker: the push into the object store
    load: float  # of a worker: the replies into its weights
    request: float  # of a worker, for each call to a server
    serve: float  # of a server, for each call
    apply: float  # of the servers: the update
    answer: float  # of the servers: the reply into the object store
    push_bytes: float
    pull_bytes: float
    gradient_bytes: float  # what an all-reduce exchanges
    link_bytes: float  # a second, of one direction of a link
    latency: float  # of a message

    @property
    def ideal_rate(self) -> float:
        """Images per second of a worker that exchanges nothing."""
        return self.batch_size / self.step

    def alone(self, num_servers: int) -> float:
        """Seconds of a round of one worker that never waits for another, with one server: the sum of all its parts.

        With more servers the parts overlap and this is more than it takes.
        """
        transfers = (self.push_bytes + self.pull_bytes) / self.link_bytes
        worker = self.step + self.collect + self.serialise + self.load + num_servers * self.request
        return worker + transfers + 2 * self.latency + self.service(num_servers)

    def service(self, num_servers: int) -> float:
        """Seconds of a server for one push."""
        return self.serve + (self.apply + self.answer) / num_servers


def workload(run: Run, num_outputs: int) -> Workload:
    """What a step of a run consists of, at the input size that it is trained with."""
    import torch

    from pipelines.training.job import untrained_net
    from tasks.nets.complexity import count

    with torch.device("meta"):
        net = untrained_net(run, num_outputs)
    counted = count(net, run.input_size)
    depthwise = sum(cost.mult_adds for kind, cost in counted.by_kind.items() if kind.startswith("conv dw"))
    return Workload(
        mult_adds=counted.mult_adds - depthwise,
        depthwise_mult_adds=depthwise,
        parameters=sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad),
        statistics=sum(buffer.numel() for buffer in net.buffers() if buffer.is_floating_point()),
        batch_size=run.batch_size,
        decode_threads=max(1, run.decode_threads),
        on_gpu=run.worker_gpus > 0,
    )


def costs(work: Workload, machine: Machine) -> Costs:
    """What a step and an exchange take on a machine.

    A step takes as long as the slowest of three that go on side by side: computing, starting kernels, and decoding the
    next images. Nothing of an exchange overlaps with them: `RemoteOptimizer.step` pushes and pulls before the next.
    """
    computing = work.mult_adds / machine.mult_adds + work.depthwise_mult_adds / machine.depthwise_mult_adds
    decoding = 1 / (work.decode_threads * machine.decoded)
    gradient = FLOAT_BYTES * work.parameters
    push = gradient + 2 * FLOAT_BYTES * work.statistics  # as pulled, and after the step
    pull = gradient + FLOAT_BYTES * work.statistics
    to_device = pull / machine.device_bytes if work.on_gpu else 0.0
    return Costs(
        batch_size=work.batch_size,
        step=max(machine.least_step, work.batch_size * max(PASSES * computing, decoding)),
        collect=gradient / machine.device_bytes if work.on_gpu else 0.0,
        serialise=push / machine.serialised_bytes,
        load=pull / machine.copied_bytes + to_device,
        request=machine.request,
        serve=machine.serve,
        apply=work.parameters / machine.applied,
        answer=pull / machine.serialised_bytes,
        push_bytes=push,
        pull_bytes=pull,
        gradient_bytes=gradient,
        link_bytes=machine.link_bytes,
        latency=machine.latency + machine.hop,
    )


def all_reduce_rate(costs: Costs, num_workers: int, hop: float, slowdown: float = 1.0) -> float:
    """Images per second of synchronous data-parallel training, at the most.

    By arithmetic: a ring all-reduce sends each worker 2 (W - 1) / W of the gradient in 2 (W - 1) messages (Patarasuk,
    Yuan 2009), and torch's DDP hides it behind the backward pass. slowdown: of the slowest worker, for which all wait.
    """
    passed = 2 * (num_workers - 1)
    exchange = passed / num_workers * costs.gradient_bytes / costs.link_bytes + passed * hop
    step = costs.step * slowdown
    return num_workers * costs.batch_size / (step + max(0.0, exchange - BACKWARD_SHARE * step))
