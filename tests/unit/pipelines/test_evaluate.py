"""What evaluation needs beside the batches: pairs by their places, pictures in their folders."""

import csv
import json

import numpy as np
import pytest

from pipelines.evaluate import read_pairs, write_details
from pipelines.page import Picture
from pipelines.pictures import Details
from pipelines.samples import lfw as look_alike
from pipelines.shard import write_shards
from pipelines.sources import lfw
from pipelines.training.reader import SplitReader
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


def test_a_net_of_other_classes_is_refused(make_job, tiny_shards):
    from pipelines.evaluate import _evaluation
    from tasks.base import TestSet

    with pytest.raises(ValueError, match="the net has 5 outputs, .* has 3 classes"):
        _evaluation(make_job().run, tiny_shards / "weights.pt", 5, tiny_shards, "val", TestSet("rgb"))
