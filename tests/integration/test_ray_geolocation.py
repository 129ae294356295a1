"""Places are learned by every kind of training, on a real Ray cluster."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.shards import Index, Split, Stored, read_index, write_shard
from pipelines.training.job import net_spec
from pipelines.training.loop import WEIGHTS
from pipelines.training.reader import SplitReader, evaluation_batches
from tasks import TASKS, s2
from tasks.base import Places, TestSet, evaluate
from tasks.nets import build

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.usefixtures("four_cpus")]
CITIES = np.array([[48.85, 2.35], [-33.87, 151.21], [35.68, 139.69]])  # of the tiny data's classes
NOWHERE = [-55.0, -140.0]  # in no cell
WELL = 0.8


@pytest.fixture(scope="module")
def places(tiny_shards, tmp_path_factory):
    """The tiny data with places for labels; each eighth training photo is from nowhere. And the cells of the cities."""
    folder = tmp_path_factory.mktemp("places")
    splits = {}
    for split, held in read_index(tiny_shards).splits.items():
        reader = SplitReader(tiny_shards, split)
        samples = [
            relabelled(key, jpeg, fields, lost=split == "train" and key % 8 == 0)
            for key, (jpeg, fields) in enumerate(reader.read(np.arange(held.samples)))
        ]
        splits[split] = Split(held.samples, (write_shard(folder, f"{split}-000000", samples),))
    (folder / "index.json").write_bytes(Index("places", (), splits, {}, {}).to_json())
    cells = np.sort(s2.parents(s2.leaves(*CITIES.T), 6))
    return folder, tuple(s2.token(cell) for cell in cells.tolist()), s2.centres(cells)


def relabelled(key, jpeg, fields, lost):
    latitude, longitude = NOWHERE if lost else CITIES[fields["label"]].tolist()
    return Stored(key, bytes(jpeg), json.dumps({"latitude": latitude, "longitude": longitude}).encode(), 40, 48)


@pytest.mark.parametrize("kind", ["local", "ddp", "async"])
def test_places_are_learned(kind, places, make_job):
    from pipelines.training.launch import launch

    shards, tokens, centres = places
    workers = {"kind": kind, "num_workers": 1 if kind == "local" else 2, "epochs": 16 if kind == "ddp" else 8}
    job = make_job(task="geolocation", **workers, optimizer={"learning_rate": 0.02, "momentum": 0.5})
    job = replace(job, shards=shards, classes=tokens, num_outputs=len(tokens))
    launch(job)
    net = build(net_spec(job.run, len(tokens)))
    net.load_state_dict(torch.load(job.folder / WEIGHTS, weights_only=True))
    task = TASKS["geolocation"]
    options = {"size": 64, "batch_size": 30, "central_fraction": 1.0, "antialias": False, "threads": 0}
    batches = evaluation_batches(shards, "val", targets=task.collator(tokens), **options)
    test_set = TestSet(tokens, places=Places(centres, np.ones(len(tokens), np.int64)))
    found = evaluate(task, net, batches, test_set, "cpu").metrics
    assert found["samples"] == 30
    assert found["within_750"] == found["cell_accuracy"] > WELL
    assert found["biggest_within_750"] == pytest.approx(1 / 3)
