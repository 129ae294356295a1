"""Training speed of the sixteen MobileNets on one GPU, beside timm's `mobilenetv1_100` at 224 px.

    python -m tests.benchmarks.bench_gpu [--batch-size 256] [--rounds 5] [--steps 20] [--seconds 420] [--json PATH]

A step is forward, cross entropy, backward and momentum SGD, in bfloat16 autocast and channels_last, on images that lie
on the device. All nets take turns, in random order within each round. Rates are medians over rounds; ratios are taken
within a round, ours at 1.0-224 over timm's, and reported with the 10th and 90th percentile. First as torch runs the
nets, then through `torch.compile`, which takes tens of seconds for each net: nets are compiled in the order of the
list, timm's among the first, until `--seconds` have passed since the start; the others are named as not compiled.
Beside each rate: the share of what the bandwidth of its memory allows (see roofline.py), and the most that was in use.

It needs torch, torchvision, timm and numpy beside this repository.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tasks.nets import NetSpec, build
from tests.benchmarks.record import Figure, ratios, said, spread, write
from tests.benchmarks.roofline import copy_bandwidth, images_per_second

OURS, PEER = "mobilenet_w100_r224", "timm_mobilenetv1_100_r224"


class Contestant(NamedTuple):
    """A net at one input size."""

    name: str
    resolution: int
    make: Callable[[], nn.Module]


def contestants() -> list[Contestant]:
    """Ours at 1.0-224, timm's, then our other fifteen."""
    import timm

    ours = [
        Contestant(
            f"mobilenet_w{round(100 * width):03}_r{resolution}",
            resolution,
            lambda width=width: build(NetSpec("mobilenet", width=width)),
        )
        for width in (1.0, 0.75, 0.5, 0.25)
        for resolution in (224, 192, 160, 128)
    ]
    return [ours[0], Contestant(PEER, 224, lambda: timm.create_model("mobilenetv1_100")), *ours[1:]]


def prepared(
    chosen: list[Contestant], batch_size: int
) -> tuple[dict[str, nn.Module], dict[str, tuple[Tensor, Tensor]]]:
    """The nets and their batches by name, on the device; nets of one input size share a batch."""
    labels = torch.randint(1000, (batch_size,), device="cuda")
    images: dict[int, Tensor] = {}
    for size in {contestant.resolution for contestant in chosen}:
        noise = torch.randn(batch_size, 3, size, size, device="cuda")
        images[size] = noise.contiguous(memory_format=torch.channels_last)
    nets = {name: make().cuda().to(memory_format=torch.channels_last) for name, _, make in chosen}
    return nets, {name: (images[resolution], labels) for name, resolution, _ in chosen}


def training_step(net: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """One step of `net` on that batch, to be called again and again."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def rates(steps: dict[str, Callable[[], None]], batch_size: int, rounds: int, repeats: int) -> dict[str, list[float]]:
    """Images per second of each net, round by round, after two rounds of one step each that are not recorded."""
    measured: dict[str, list[float]] = {name: [] for name in steps}
    for step in [*steps.values(), *steps.values()]:
        step()
    for _ in range(rounds):
        for name in random.sample(list(steps), len(steps)):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                steps[name]()
            torch.cuda.synchronize()
            measured[name].append(batch_size * repeats / (time.perf_counter() - start))
    return measured


def compiled(nets: dict[str, nn.Module], batches: dict[str, tuple[Tensor, Tensor]], deadline: float) -> dict[str, Any]:
    """The steps of the nets that could be compiled in time, in order."""
    torch._dynamo.config.recompile_limit = len(nets) + 1  # they share one forward; past the limit `fullgraph` raises
    steps: dict[str, Any] = {}
    for name, net in nets.items():
        start = time.perf_counter()
        if start > deadline:
            break
        step = training_step(torch.compile(net, fullgraph=True, dynamic=False), *batches[name])
        step()
        torch.cuda.synchronize()
        print(f"compiled {name} in {time.perf_counter() - start:.0f} s", flush=True)
        steps[name] = step
    return steps


def peak_memory(steps: dict[str, Callable[[], None]]) -> dict[str, float]:
    """GiB in use at the height of a step, with all nets' weights and batches on the device."""
    peaks = {}
    for name, step in steps.items():
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        peaks[name] = torch.cuda.max_memory_allocated() / 2**30
    return peaks


def report(
    title: str, chosen: list[Contestant], measured: dict[str, list[float]], peaks: dict[str, float], bandwidth: float
) -> dict[str, Figure]:
    """Print and return our nets' rates, and the ratio of ours to timm's."""
    for name, resolution, make in chosen:
        rate = "not compiled"
        if name in measured:
            share = spread(measured[name]).median / images_per_second(make, resolution, title, bandwidth)
            rate = f"{said(measured[name], 0)} images/s, {share:.0%} of the bound, {peaks[name]:.1f} GiB"
        print(f"{title:9} {name:26} {rate}")
    own = [name for name in measured if name != PEER]
    figures = {f"{name}, {title}": Figure(measured[name], "images/s", "higher") for name in own}
    if OURS in measured and PEER in measured:
        share = ratios(measured[OURS], measured[PEER])
        ratio = f"Training step of MobileNet 1.0-224 on a GPU, {title}"
        figures[ratio] = Figure(share, "ratio", "higher", "timm `mobilenetv1_100`")
        print(f"{title:9} ratio to timm {said(share, 3)}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="in a round, of each net")
    parser.add_argument("--seconds", type=float, default=420.0, help="no net is compiled later than this")
    parser.add_argument("--nets", type=int, help="only the first few of the list")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    deadline = time.perf_counter() + arguments.seconds
    if not torch.cuda.is_available():
        sys.exit("bench_gpu: torch finds no CUDA device")
    torch.manual_seed(0)
    random.seed(0)
    torch.backends.cudnn.benchmark = True
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, batch {arguments.batch_size}", flush=True)

    bandwidth = copy_bandwidth(torch.device("cuda"))
    print(f"memory is copied at {bandwidth / 1e12:.2f} TB/s", flush=True)
    chosen = contestants()[: arguments.nets]
    nets, batches = prepared(chosen, arguments.batch_size)
    eager = {name: training_step(net, *batches[name]) for name, net in nets.items()}
    sizes = (arguments.batch_size, arguments.rounds, arguments.steps)
    peaks = {"eager": peak_memory(eager)}
    figures = report("eager", chosen, rates(eager, *sizes), peaks["eager"], bandwidth)
    steps = compiled(nets, batches, deadline)
    peaks["compiled"] = peak_memory(steps)
    figures |= report("compiled", chosen, rates(steps, *sizes), peaks["compiled"], bandwidth)
    if arguments.json:
        missing = [name for name in nets if name not in steps]
        details = {"batch_size": arguments.batch_size, "not_compiled": missing}
        write(arguments.json, "bench_gpu", figures, {**details, "bytes_per_second": bandwidth, "peak_gib": peaks})


if __name__ == "__main__":
    main()
