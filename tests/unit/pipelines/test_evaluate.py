"""Trained runs measured: pairs by their places, pictures in their folders, metrics with where they come from."""

import csv
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines import paths, tracking
from pipelines.config import Params, load
from pipelines.evaluate import evaluate, write_details
from pipelines.page import Picture
from pipelines.pictures import Details
from pipelines.samples import lfw as look_alike
from pipelines.section import parsed
from pipelines.shard import write_shards
from pipelines.shards import read_index
from pipelines.sources import lfw
from pipelines.test_sets import read_pairs
from pipelines.train import train
from pipelines.training.reader import SplitReader
from tasks.nets import NetSpec, build
from tasks.nets.complexity import count
from tests.sharding import settings


def test_pairs_are_places_of_the_samples_they_name(tmp_path):
    raw, shards = tmp_path / "raw", tmp_path / "shards"
    raw.mkdir()
    look_alike.write(raw, folds=2, people=4, images=4, pairs=5, size=40, seed=2)
    people = lfw.read_people(raw / "people.txt")
    total = sum(count for fold in people for count in fold.values())
    write_shards("lfw", lfw.SOURCE, raw, shards, settings({"test": total}), 1)
    reader = SplitReader(shards, "test")
    pairs = read_pairs(raw, "lfw", reader)
    listed = lfw.read_pairs(raw / "pairs.txt", people)
    names = [fields["name"] for _, fields in reader.read(np.arange(total))]
    assert len(pairs.first) == len(listed) == 2 * 2 * 5
    for place, pair in enumerate(listed):
        assert names[pairs.first[place]] == pair.first
        assert names[pairs.second[place]] == pair.second
        assert (pairs.same[place], pairs.fold[place]) == (pair.is_same, pair.fold)
    assert read_pairs(raw, "celeba", reader) is None


def test_pictures_their_words_and_their_tables_lie_side_by_side(tmp_path):
    picture = Picture("roc", "A curve", "Of pairs.", "", {".png": b"png", ".svg": b"svg"})
    drawn = write_details(Details([picture], {"roc": [{"far": 0.5, "tar": 1.0}]}), tmp_path / "run")
    assert drawn == [tmp_path / "run" / "roc.png"]
    assert json.loads((tmp_path / "run" / "pictures.json").read_text()) == [
        {"name": "roc", "title": "A curve", "caption": "Of pairs."}
    ]
    assert (tmp_path / "run" / "roc.svg").read_bytes() == b"svg"
    with (tmp_path / "run" / "roc.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"far": "0.5", "tar": "1.0"}]


KEYS = {
    *("net", "width", "resolution", "input_size", "kind", "num_workers", "epochs", "steps", "teacher", "init_from"),
    *("train_seconds", "images_per_second", "mean_staleness", "mult_adds", "parameters", "parameters_all"),
    *("dataset", "data_digest", "num_outputs", "num_classes", "test_dataset", "test_split", "test_digest"),
    *("eval_samples", "samples", "top1", "top5", "top1_low", "top1_high", "top1_correct", "top5_correct"),
    "mean_per_class",
}
CLASSES = {"dogs": "rgb", "two_dogs": "rg", "turned_dogs": "rbg"}  # of data sets with the same images


@pytest.fixture(scope="module")
def dogs(tiny_shards, tmp_path_factory):
    """A table of two rows, trained: a teacher and its student. What MLflow is told stays here."""
    folder = tmp_path_factory.mktemp("dogs")
    for name, classes in CLASSES.items():
        shutil.copytree(tiny_shards, folder / name)
        index = replace(read_index(tiny_shards), dataset="stanford_dogs", classes=tuple(classes))
        (folder / name / "index.json").write_bytes(index.to_json())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "RESULTS", folder / "results")
        patch.setattr(paths, "DATA", folder / "data")
        patch.setattr(paths, "shards", lambda scale, name: folder / name)
        patch.setattr(tracking, "sending", lambda: nullcontext(lambda spool: None))
        patch.setattr(tracking, "send", lambda spools: None)
        train(params(), "small", "dogs")
        yield folder


def params(test="dogs"):
    sample = load().scales["sample"]
    row = {"net": "mobilenet", "width": 0.25, "resolution": 64}
    base = sample.recipes["imagenet"].defaults
    changes = {"resolution_divisor": 2, "epochs": 4, "batch_size": 8}
    changes["optimizer"] = {**base["optimizer"], "learning_rate": 0.02}
    changes["augment"] = {**base["augment"], "min_saturation": 1.0, "max_saturation": 1.0}
    table = {
        "task": "stanford_dogs",
        "dataset": "dogs",
        "test": {"dataset": test, "split": "val"},
        "num_outputs": 120,
        "runs": {"student": {**row, "teacher": "teacher"}, "teacher": row},
    }
    datasets = dict.fromkeys(CLASSES, sample.datasets["imagenet"].model_dump())
    recipes = {"dogs": {"defaults": base | changes, "runs": {}}}
    small = {"datasets": datasets, "recipes": recipes}
    return parsed(Params, {"scale": "small", "tables": {"dogs": table}, "scales": {"small": small}}, "")


def test_what_trained_runs_reached_is_written_with_where_it_comes_from(dogs):
    evaluate(params(), "small", "dogs")
    written = json.loads((dogs / "results/small/dogs/metrics.json").read_text())
    assert (written["scale"], written["table"]) == ("small", "dogs")
    assert list(written["runs"]) == ["student", "teacher"]
    digest = read_index(dogs / "dogs").digest
    for name, found in written["runs"].items():
        assert set(found) == KEYS
        assert found["data_digest"] == found["test_digest"] == digest
        assert (found["dataset"], found["test_dataset"], found["test_split"]) == ("dogs", "dogs", "val")
        assert (found["num_outputs"], found["num_classes"], found["samples"], found["eval_samples"]) == (3, 3, 30, 30)
        assert (found["input_size"], found["resolution"], found["steps"]) == (32, 64, 48)
        assert found["teacher"] == (None if name == "teacher" else "teacher")
        assert found["parameters"] == count(build(NetSpec("mobilenet", 0.25, 120)), 64).parameters, (
            "the paper's classes"
        )
        assert found["top1_correct"] == correct(dogs, name)
        assert found["top1_correct"] > 10, "a net that says the same of all images would show nothing"


def test_a_picture_that_cannot_be_written_leaves_what_was_there(dogs, monkeypatch):
    evaluate(params(), "small", "dogs")
    results = dogs / "results/small/dogs"
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file() and "train" not in path.parts}

    def fails(_, folder):
        raise OSError(f"{folder.name}: no space left")

    monkeypatch.setattr("pipelines.evaluate.write_details", fails)
    with pytest.raises(OSError, match="^student: no space left$"):
        evaluate(params(), "small", "dogs")
    assert {path: path.read_bytes() for path in before} == before


def correct(folder, name):
    """How many of the test images a run's weights are right about, by a plain forward pass."""
    net = build(NetSpec("mobilenet", 0.25, 3)).eval()
    net.load_state_dict(torch.load(folder / "results/small/dogs/train" / name / "weights.pt", weights_only=True))
    reader = SplitReader(folder / "dogs", "val")
    images, fields = reader.decode_central(np.arange(30), 32, 0.875, antialias=False)
    with torch.no_grad():
        guesses = net(images.permute(0, 3, 1, 2) / 127.5 - 1).argmax(dim=1)
    return int((guesses == torch.tensor([sample["label"] for sample in fields])).sum())


def test_pictures_of_a_run_that_is_gone_go_too(dogs):
    results = dogs / "results/small/dogs"
    (results / "evaluation" / "gone").mkdir(parents=True, exist_ok=True)
    evaluate(params(), "small", "dogs")
    before = (results / "metrics.json").read_bytes()
    evaluate(params(), "small", "dogs")
    assert (results / "metrics.json").read_bytes() == before
    assert {path.name for path in (results / "evaluation").iterdir()} == {"student", "teacher"}
    assert not list(results.glob(".*"))
    for name in ("student", "teacher"):
        words = json.loads((results / "evaluation" / name / "pictures.json").read_text())
        assert words
        for picture in words:
            assert (results / "evaluation" / name / f"{picture['name']}.png").stat().st_size > 1000


def test_nets_that_mean_something_else_are_refused(dogs):
    with pytest.raises(ValueError, match="weights.pt: the net has 3 outputs, the classes of .*two_dogs need 2"):
        evaluate(params("two_dogs"), "small", "dogs")
    with pytest.raises(ValueError, match="weights.pt: the net means 'g' by its class 1, .*turned_dogs 'b'"):
        evaluate(params("turned_dogs"), "small", "dogs")


def test_runs_that_are_not_trained_are_named_with_the_command(dogs):
    record = dogs / "results/small/dogs/train/student/run.json"
    text = record.read_text()
    record.unlink()
    with pytest.raises(ValueError, match="student: there is no such run; run: python -m pipelines.train dogs --scale"):
        evaluate(params(), "small", "dogs")
    record.write_text(text)
