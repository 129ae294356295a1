"""An epoch of a student whose teacher's predictions are stored beside the one that asks its teacher at every step.

    python -m tests.benchmarks.bench_teaching [--images 480] [--rounds 5] [--epochs 1] [--threads N] [--json PATH]

Both are the sample scale's `face_attributes_w025_r224`, MobileNet 0.25 at 56 px, taught by FaceNet's NN2 at 56 px, on
drawn faces that are made here; the weights are random, which costs the same. On a GPU where there is one. They take
turns, in random order within each round, after one unrecorded. Seconds are of the clock, as the run's own summary has
them: reading, both nets, the optimizer. The ratio is asked over stored in the same round; medians are printed with the
10th and 90th percentiles. Storing is done anew in each round, and pays after storing / (asked - stored) epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import simplejpeg
import torch

from pipelines.config import load
from pipelines.files import read_json
from pipelines.samples.faces import choose_look, draw_face, make_person
from pipelines.shards import INDEX, Index, Split, Stored, write_shard
from pipelines.training.job import Job, net_spec
from pipelines.training.loop import SUMMARY, train_local
from pipelines.training.reader import Teaching
from pipelines.training.run import Run
from pipelines.training.teaching import Teacher, store_predictions
from tasks.nets import build
from tests.benchmarks.record import Figure, faster, ratios, said, write

STUDENT, TEACHER = "face_attributes_w025_r224", "face_attributes_nn2"
ATTRIBUTES = 40
HEIGHT, WIDTH = 134, 111  # about the crops of the sample scale
SHARDS = 2


def write_faces(folder: Path, count: int) -> int:
    """Shards of so many drawn faces, of about 7 kB, that nobody has labelled; how many they hold."""
    per_shard = count // SHARDS

    def face(key: int) -> Stored:
        rng = np.random.default_rng(key)
        person = make_person(rng)
        picture = draw_face(rng, person, choose_look(rng, person), HEIGHT, WIDTH, tall=0.3, turn=4.0)
        fields = json.dumps({"name": f"{key}.jpg"}).encode()
        return Stored(key, simplejpeg.encode_jpeg(picture, 90, colorsubsampling="420"), fields, HEIGHT, WIDTH)

    shards = [
        write_shard(folder, f"train-{part:06d}", map(face, range(part * per_shard, (part + 1) * per_shard)))
        for part in range(SHARDS)
    ]
    splits = {"train": Split(SHARDS * per_shard, tuple(shards))}
    (folder / INDEX).write_bytes(Index("bench", (), splits, {}, {}).to_json())
    return SHARDS * per_shard


def make_teacher(run: Run, folder: Path) -> Teacher:
    """One of random weights, that is asked at every step."""
    spec = net_spec(run, ATTRIBUTES)
    torch.save(build(spec).state_dict(), folder / "weights.pt")
    augment = run.augment
    return Teacher(
        run.task,
        folder / "weights.pt",
        spec,
        Teaching(None, run.input_size, augment.central_fraction, augment.antialias),
    )


def measure(folder: Path, images: int, epochs: int, rounds: int) -> dict[str, list[float]]:
    """Seconds, round by round: of an epoch "asked" and "stored", and of "storing", which is done once for all."""
    params = load()
    samples = write_faces(folder, images)
    values = params.runs("face_attributes", "sample")[STUDENT].model_dump()
    run = Run.model_validate({**values, "epochs": epochs, "worker_gpus": int(torch.cuda.is_available())})
    asked = make_teacher(params.runs("celeba_attributes", "sample")[TEACHER], folder)
    seconds: dict[str, list[float]] = {"asked": [], "stored": [], "storing": []}
    for number in range(rounds + 1):
        stored = replace(asked, teaching=replace(asked.teaching, stored=folder / f"{number}.npy"))
        began = time.perf_counter()
        store_predictions(stored, folder, "train", run.precision, run.decode_threads)
        seconds["storing"].append(time.perf_counter() - began)
        for name, teacher in random.sample([("asked", asked), ("stored", stored)], 2):
            target = folder / f"{name}_{number}"
            target.mkdir()
            train_local(Job(run, target.name, folder, target, samples, ATTRIBUTES, teacher=teacher))
            seconds[name].append(read_json(target / SUMMARY)["seconds"] / epochs)
    return {name: values[1:] for name, values in seconds.items()}  # the first round warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=5, help="recorded rounds")
    parser.add_argument("--epochs", type=int, default=1, help="in a round, of each")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), arguments.images, arguments.epochs, arguments.rounds)
    device = "cuda" if torch.cuda.is_available() else f"cpu, {arguments.threads} threads"
    rounds = zip(seconds["asked"], seconds["stored"], seconds["storing"], strict=True)
    pays = [storing / (asked - stored) if asked > stored else float("inf") for asked, stored, storing in rounds]
    for name, values in seconds.items():
        what = "once" if name == "storing" else "an epoch"
        print(f"{device}: {name:8} {said(values, 2)} s {what}, {arguments.images} images")
    print(f"asked at every step / stored: {said(ratios(seconds['asked'], seconds['stored']), 2)}")
    low, middle, high = (f"{each(pays):.1f}" for each in (min, statistics.median, max))  # some may be infinite
    print(f"storing pays after {middle} epochs (lowest {low}, highest {high})")
    if arguments.json:
        title = "An epoch of distilling with stored predictions"
        figures = faster(title, seconds["stored"], seconds["asked"], "asking the teacher at every step", "s")
        figures["Storing the predictions"] = Figure(seconds["storing"], "s", "lower")
        write(arguments.json, "bench_teaching", figures, {"device": device, "seconds": seconds})


if __name__ == "__main__":
    main()
