"""One training step of MobileNet 1.0-224 on the CPU beside timm's `mobilenetv1_100`, in the same format and precision.

    python -m tests.benchmarks.bench_step [--batch-size 32] [--rounds 10] [--threads N] [--json PATH]

A step is forward, cross entropy and backward, without an optimizer. Both nets take turns in one process, in random
order within each round, after one round unrecorded. The ratio is ours over timm's images per second in the same round;
its median is reported with the 10th and 90th percentile. Seconds are of CPU time, summed over threads, which other
work on the machine disturbs less than the clock. The process keeps freed memory, as one that trains here does, and
both nets have that. "format" is that of the images and weights handed over: our net turns its images to channels_last
by itself.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipelines.training.allocator import keep_freed_memory
from pipelines.training.precision import resolved
from tasks.nets import NetSpec, build
from tests.benchmarks.record import Figure, faster, ratios, said, write

RESOLUTION = 224


class Setting(NamedTuple):
    """How both nets are run."""

    name: str
    channels_last: bool
    bfloat16: bool


SETTINGS = (
    Setting("fp32 nchw", channels_last=False, bfloat16=False),
    Setting("fp32 channels_last", channels_last=True, bfloat16=False),
    Setting("bf16 channels_last", channels_last=True, bfloat16=True),
)


def nets() -> dict[str, Callable[[], nn.Module]]:
    """Who is compared, by name."""
    import timm

    return {
        "ours": lambda: build(NetSpec("mobilenet")),
        "timm": lambda: timm.create_model("mobilenetv1_100"),
    }


def train_step(net: nn.Module, images: Tensor, labels: Tensor, bfloat16: bool) -> None:
    """Forward, loss, backward; the gradients are dropped."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = nn.functional.cross_entropy(net(images), labels)
    loss.backward()
    net.zero_grad()


def measure(setting: Setting, batch_size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of CPU time of each net's steps, round by round."""
    memory_format = torch.channels_last if setting.channels_last else torch.contiguous_format
    images = torch.randn(batch_size, 3, RESOLUTION, RESOLUTION).contiguous(memory_format=memory_format)
    labels = torch.randint(1000, (batch_size,))
    compared = {name: make().to(memory_format=memory_format) for name, make in nets().items()}
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    for recorded in [False] + rounds * [True]:
        for name in random.sample(list(compared), len(compared)):
            start = time.process_time()
            train_step(compared[name], images, labels, setting.bfloat16)
            if recorded:
                seconds[name].append(time.process_time() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10, help="recorded rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    random.seed(0)
    print(f"torch {torch.__version__}, {arguments.threads} threads, batch {arguments.batch_size}")
    figures: dict[str, Figure] = {}
    for setting in SETTINGS:
        if setting.bfloat16 and resolved("auto", on_gpu=False) != "bf16-mixed":
            print(f"{setting.name:20} left out: this CPU does not multiply bfloat16")
            continue
        seconds = measure(setting, arguments.batch_size, arguments.rounds)
        ours, theirs = seconds["ours"], seconds["timm"]
        rates = "  ".join(
            f"{name} {arguments.batch_size / median(values):6.1f} images/s" for name, values in seconds.items()
        )
        print(f"{setting.name:20} {rates}  ratio {said(ratios(theirs, ours), 2)}", flush=True)
        title = f"Training step of MobileNet 1.0-224, {setting.name}"
        figures |= faster(title, ours, theirs, "timm `mobilenetv1_100`", "ms")
    if arguments.json:
        write(arguments.json, "bench_step", figures, {"threads": arguments.threads})


if __name__ == "__main__":
    main()
