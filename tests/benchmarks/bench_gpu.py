"""Training speed on one GPU of the sixteen MobileNets and of Table 13's detectors, beside timm's `mobilenetv1_100`.

    python -m tests.benchmarks.bench_gpu [--batch-size 256] [--rounds 5] [--steps 20] [--seconds 300] [--json PATH]

A step is forward, loss, backward and momentum SGD, in bfloat16 autocast and channels_last, on a batch that lies on the
device: cross entropy of images, or a detector's own losses of images with eight objects each. It is made in up to four
ways: as torch runs it ("eager"); the whole step replayed as one CUDA graph ("captured"); forward and loss by
`torch.compile` ("compiled"); and both. Faster R-CNN is measured as torch runs it: how many boxes are left of its
proposals is known only while it runs. Compiling takes tens of seconds for each net, in the order of the list, timm's
among the first, until `--seconds` have passed since the start; the others are named as not compiled.

All nets take turns in all ways, in random order within each round. Rates are medians over rounds; ratios are taken
within a round, ours at 1.0-224 over timm's at 224 px, way by way and each in its best way, with the 10th and 90th
percentile. Beside each rate: the share of what the device's memory and multipliers allow (see roofline.py), and the
most memory that was in use, of which all nets' weights and batches, and what earlier graphs keep, are a part.

It needs torch, torchvision, timm and numpy beside this repository.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tasks.nets import NetSpec, build
from tests.benchmarks import roofline
from tests.benchmarks.record import Figure, ratios, said, spread, write

OURS, PEER = "mobilenet_w100_r224", "timm_mobilenetv1_100_r224"
DETECTORS = {"ssd300": (300,), "faster_rcnn": (300, 600)}
BODIES = ("mobilenet", "inception_v2", "vgg")
CATEGORIES, OBJECTS = 91, 8
EAGER, CAPTURED, COMPILED, BOTH = "eager", "captured", "compiled", "compiled and captured"
AS_GRAPH = {EAGER: CAPTURED, COMPILED: BOTH}

Loss = Callable[[nn.Module, Tensor, Any], Tensor]
Step = Callable[[], object]


class Contestant(NamedTuple):
    """A net at one input size. waits: whether its step has to know what the device has computed before it goes on."""

    name: str
    resolution: int
    batch_size: int
    make: Callable[[], nn.Module]
    loss: Loss
    waits: bool = False


def classification_loss(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits."""
    return nn.functional.cross_entropy(net(images), labels)


def detection_loss(net: nn.Module, images: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """The sum of a detector's losses."""
    losses: dict[str, Tensor] = net.losses(images, targets)  # type: ignore[operator]
    return torch.stack(list(losses.values())).sum()


def contestants(batch_size: int, detector_batch_size: int) -> list[Contestant]:
    """Ours at 1.0-224, timm's, SSD on MobileNet, our other fifteen, the other detectors."""
    import timm

    ours = [
        Contestant(
            f"mobilenet_w{round(100 * width):03}_r{resolution}",
            *(resolution, batch_size),
            lambda width=width: build(NetSpec("mobilenet", width=width)),
            classification_loss,
        )
        for width in (1.0, 0.75, 0.5, 0.25)
        for resolution in (224, 192, 160, 128)
    ]
    peer = Contestant(PEER, 224, batch_size, lambda: timm.create_model("mobilenetv1_100"), classification_loss)
    first, *detectors = [
        Contestant(
            f"{kind}_{body}_r{resolution}",
            *(resolution, detector_batch_size),
            lambda net=f"{kind}_{body}": build(NetSpec(net, num_classes=CATEGORIES)),
            detection_loss,
            waits=kind == "faster_rcnn",
        )
        for kind, resolutions in DETECTORS.items()
        for resolution in resolutions
        for body in BODIES
    ]
    return [ours[0], peer, first, *ours[1:], *detectors]


def batch(contestant: Contestant, device: torch.device) -> tuple[Tensor, Any]:
    """Images of noise, and labels or objects, on the device."""
    count, size = contestant.batch_size, contestant.resolution
    noise = torch.randn(count, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    if contestant.loss is classification_loss:
        return noise, torch.randint(1000, (count,), device=device)
    corners = torch.rand(count, OBJECTS, 2, 2, device=device).sort(dim=2).values  # of each side the lesser first
    labels = torch.randint(1, CATEGORIES, (count, OBJECTS), device=device)
    return noise, {"boxes": corners.flatten(2), "labels": labels, "crowd": torch.zeros_like(labels, dtype=torch.bool)}


def training_step(net: nn.Module, images: Tensor, targets: Any, loss: Loss = classification_loss) -> Step:
    """One step of `net` on that batch, to be called again and again."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            found = loss(net, images, targets)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()

    return step


def captured(step: Step, pool: Any) -> Step:
    """The step as one CUDA graph, which the CPU starts with one call. Graphs of a pool are not to run side by side."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # what is chosen, made and allocated at first is not to be part of it
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        step()
    return graph.replay


class Prepared(NamedTuple):
    """What is measured. steps: by net and way. asked, peaks: of each net's step, and the GiB in use at its height."""

    steps: dict[tuple[str, str], Step]
    asked: dict[str, roofline.Work]
    peaks: dict[tuple[str, str], float]


def prepared(chosen: Sequence[Contestant], device: torch.device, deadline: float) -> Prepared:
    """Every net in every way that it has; on a CPU nothing is captured, and what memory is in use is not known."""
    made = Prepared({}, {}, {})
    torch._dynamo.config.recompile_limit = len(chosen) + 1  # they share two losses; past the limit `fullgraph` raises
    on_gpu = device.type == "cuda"
    pool = torch.cuda.graph_pool_handle() if on_gpu else None
    batches = {(c.resolution, c.batch_size, c.loss): batch(c, device) for c in chosen}
    entrants = [
        (c, c.make().to(device, memory_format=torch.channels_last), batches[c.resolution, c.batch_size, c.loss])
        for c in chosen
    ]

    def add(contestant: Contestant, way: str, step: Step) -> None:
        name = contestant.name
        made.steps[name, way] = step
        step()
        if on_gpu:
            made.peaks[name, way] = peak_memory(step)
            if not contestant.waits:
                made.steps[name, AS_GRAPH[way]] = captured(step, pool)

    for contestant, net, shown in entrants:
        step = training_step(net, *shown, contestant.loss)
        made.asked[contestant.name] = roofline.work(step, net)
        add(contestant, EAGER, step)
    for contestant, net, shown in entrants:
        began = time.perf_counter()
        if contestant.waits or began > deadline:
            continue
        loss = torch.compile(contestant.loss, fullgraph=True, dynamic=False)
        add(contestant, COMPILED, training_step(net, *shown, loss))
        print(f"compiled {contestant.name} in {time.perf_counter() - began:.0f} s", flush=True)
    return made


def peak_memory(step: Step) -> float:
    """GiB in use at the height of a step, with all that was there before."""
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def rates(
    steps: Mapping[tuple[str, str], Step], sizes: Mapping[str, int], rounds: int, repeats: int
) -> dict[tuple[str, str], list[float]]:
    """Images per second in each way, round by round. sizes: of batches, by net."""
    measured: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key in random.sample(list(steps), len(steps)):
            steps[key]()
            roofline.finish()
            began = time.perf_counter()
            for _ in range(repeats):
                steps[key]()
            roofline.finish()
            measured[key].append(sizes[key[0]] * repeats / (time.perf_counter() - began))
    return measured


def report(
    chosen: Sequence[Contestant], made: Prepared, measured: Mapping[tuple[str, str], list[float]], can: roofline.Device
) -> dict[str, Figure]:
    """Print and return all rates, and the ratios of ours to timm's."""
    for contestant in chosen:
        name, asked = contestant.name, made.asked[contestant.name]
        for way in (EAGER, CAPTURED, COMPILED, BOTH):
            if (name, way) not in measured:
                continue
            rate = measured[name, way]
            bound = contestant.batch_size / roofline.least_seconds(asked, can, way in (COMPILED, BOTH))
            peak = f", {made.peaks[name, way]:.1f} GiB" if (name, way) in made.peaks else ""
            print(f"{name:32} {way:21} {said(rate, 0)} images/s, {spread(rate).median / bound:.0%} of the bound{peak}")
        if (name, COMPILED) not in measured and not contestant.waits:
            print(f"{name:32} not compiled: no time was left")
    figures = {f"{name}, {way}": Figure(rate, "images/s", "higher") for (name, way), rate in measured.items()}
    return figures | compared(measured)


def compared(measured: Mapping[tuple[str, str], list[float]]) -> dict[str, Figure]:
    """Ours at 1.0-224 over timm's in each way that both have, and each in its best. Prints them."""
    ways = {name: [way for who, way in measured if who == name] for name in (OURS, PEER)}
    pairs = {way: (way, way) for way in ways[OURS] if way in ways[PEER]}
    if pairs:
        own, theirs = (max(ways[name], key=lambda way: spread(measured[name, way]).median) for name in (OURS, PEER))
        pairs["each in its best way"] = (own, theirs)
    found = {}
    for title, (own, theirs) in pairs.items():
        share = ratios(measured[OURS, own], measured[PEER, theirs])
        print(f"{title} ({own}, {theirs}): {said(share, 3)}x timm's")
        name = f"Training step of MobileNet 1.0-224 on a GPU, {title}"
        found[name] = Figure(share, "ratio", "higher", "timm `mobilenetv1_100`")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--detector-batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="in a round, of each net in each way")
    parser.add_argument("--seconds", type=float, default=300.0, help="no net is compiled later than this")
    parser.add_argument("--nets", type=int, help="only the first few of the list")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    deadline = time.perf_counter() + arguments.seconds
    if not torch.cuda.is_available():
        sys.exit("bench_gpu: torch finds no CUDA device")
    torch.manual_seed(0)
    random.seed(0)
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {arguments.batch_size}", flush=True)
    can = roofline.measured(device)
    print(f"{can.bytes / 1e12:.2f} TB/s copied, {can.operations / 1e12:.0f} T operations/s in bfloat16", flush=True)
    chosen = contestants(arguments.batch_size, arguments.detector_batch_size)[: arguments.nets]
    made = prepared(chosen, device, deadline)
    sizes = {contestant.name: contestant.batch_size for contestant in chosen}
    figures = report(chosen, made, rates(made.steps, sizes, arguments.rounds, arguments.steps), can)
    if arguments.json:
        details = {"batch_sizes": sizes, "device": can._asdict()}
        peaks = {f"{name}, {way}": peak for (name, way), peak in made.peaks.items()}
        write(arguments.json, "bench_gpu", figures, {**details, "peak_gib": peaks})


if __name__ == "__main__":
    main()
