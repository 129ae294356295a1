"""Batches by identity: an order that is a function of the position, whoever asks for it."""

import io
import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.shards import INDEX, Index, Split, Stored, write_shard
from pipelines.training.order import balanced_stream
from pipelines.training.reader import training_batches
from tasks.augment import Bounds

COUNTS = {"ada": 5, "bo": 1, "cleo": 3, "dai": 2, "edo": 8}
PEOPLE = np.array([name for name, count in COUNTS.items() for _ in range(count)])[
    np.random.default_rng(3).permutation(19)
]
worlds = st.integers(1, 4)
images = st.integers(1, 6)
crowds = st.lists(st.integers(0, 9), min_size=2, max_size=40).filter(lambda people: max(Counter(people).values()) > 1)


def dealt(world, rank, count, images, seed=1, people=PEOPLE):
    """The first samples of a rank."""
    return balanced_stream(people, seed, world, images)(rank + world * np.arange(count))


@settings(deadline=None)
@given(crowds, worlds, images, st.integers(0, 2**31), st.data())
def test_each_run_of_a_rank_shows_one_person_and_as_many_images_as_there_are(crowd, world, images, seed, data):
    people, counts = np.array([f"p{number}" for number in crowd]), Counter(f"p{number}" for number in crowd)
    rank = data.draw(st.integers(0, world - 1))
    for run in dealt(world, rank, 12 * images, images, seed, people).reshape(12, images):
        (person,) = set(people[run].tolist())
        assert counts[person] > 1, "one image makes no pair"
        assert len(set(run.tolist())) == min(images, counts[person])


@settings(deadline=None)
@given(crowds, worlds, images)
def test_everybody_comes_once_a_round_over_all_ranks(crowd, world, images):
    """A round of people is dealt to the ranks in turn, and the next one goes on where it ended."""
    people = np.array(crowd)
    everybody = sorted(person for person, count in Counter(crowd).items() if count > 1)
    visits = np.stack(
        [people[dealt(world, rank, 3 * len(everybody) * images, images, 1, people)[::images]] for rank in range(world)],
        axis=1,
    ).ravel()
    for start in range(0, len(visits), len(everybody)):
        assert sorted(visits[start : start + len(everybody)].tolist()) == everybody


@settings(deadline=None)
@given(worlds, images, st.integers(0, 200), st.integers(1, 40))
def test_any_stretch_of_the_stream_is_the_same_wherever_one_begins(world, images, start, count):
    stream = balanced_stream(PEOPLE, 7, world, images)
    whole = stream(np.arange(start + count))
    np.testing.assert_array_equal(stream(np.arange(start, start + count)), whole[start:])
    shuffled = np.random.default_rng(count).permutation(start + count)
    np.testing.assert_array_equal(stream(shuffled), whole[shuffled])


def test_a_seed_decides_the_order_and_rounds_differ():
    assert dealt(1, 0, 40, 2).tolist() == dealt(1, 0, 40, 2).tolist()
    assert dealt(1, 0, 40, 2).tolist() != dealt(1, 0, 40, 2, seed=2).tolist()
    rounds = dealt(1, 0, 40, 2).reshape(5, 8)
    assert len({tuple(one) for one in rounds.tolist()}) > 1
    seen = {sample for sample in dealt(1, 0, 400, 2).tolist() if PEOPLE[sample] == "edo"}
    assert len(seen) == COUNTS["edo"], "all images of a person come in the end"


def test_the_order_never_changes_between_versions():
    """A run that was saved yesterday goes on tomorrow: these numbers are part of the format of a checkpoint."""
    assert dealt(2, 1, 8, 2).tolist() == [3, 17, 7, 15, 8, 3, 9, 16]


def test_people_with_one_image_each_are_refused():
    with pytest.raises(ValueError, match="none of the 3 people has two images"):
        balanced_stream(np.array(["a", "b", "c"]), 1, 1, 2)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Shards whose samples are those of PEOPLE; a label is a sample's place."""
    folder = tmp_path_factory.mktemp("faces")
    stored = []
    for sample, person in enumerate(PEOPLE.tolist()):
        file = io.BytesIO()
        Image.new("RGB", (10, 12), (12 * sample, 0, 0)).save(file, "JPEG")
        fields = json.dumps({"name": str(sample), "identity": person, "label": sample}).encode()
        stored.append(Stored(sample, file.getvalue(), fields, 12, 10))
    shards = (write_shard(folder, "train-000000", stored[:11]), write_shard(folder, "train-000001", stored[11:]))
    (folder / INDEX).write_bytes(Index("faces", (), {"train": Split(19, shards)}, {}, {}).to_json())
    return folder


def batches(folder, **changes):
    options = {"size": 4, "seed": 3, "rank": 0, "world": 1, "start_sample": 0, "threads": 0, "block_shards": 2}
    bounds = Bounds(0.2, 1.0, 0.75, 1.33, 0.5, 0.1, 0.5, 1.5)
    collated = {"targets": lambda fields: {"label": torch.tensor([sample["label"] for sample in fields])}}
    return training_batches(
        folder, "train", bounds=bounds, antialias=False, **{**options, **collated, "batch_size": 6, **changes}
    )


@settings(max_examples=30, deadline=None)
@given(world=worlds, images=st.integers(1, 4), people=st.integers(1, 3), done=st.integers(0, 5), threads=worlds)
def test_batches_are_of_few_people_and_go_on_after_any_step(faces, world, images, people, done, threads):
    size = images * people
    for rank in range(world):
        options = {"rank": rank, "world": world, "batch_size": size, "images_per_identity": images}
        whole = [batch.targets["label"] for batch in batches(faces, num_samples=8 * size * world, **options)]
        for labels in whole:
            assert len(labels) == size
            assert all(len(set(one)) == 1 for one in PEOPLE[labels.numpy()].reshape(people, images).tolist())
        start, count = done * size * world, (8 - done) * size * world
        rest = batches(faces, start_sample=start, num_samples=count, threads=threads, **options)
        assert [batch.targets["label"].tolist() for batch in rest] == [labels.tolist() for labels in whole[done:]]


def test_data_without_identities_are_refused(tiny_shards):
    with pytest.raises(ValueError, match="sample 00000000 has no identity; it has name, label"):
        batches(tiny_shards, images_per_identity=2, num_samples=None)
