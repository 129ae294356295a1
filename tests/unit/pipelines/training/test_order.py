"""Batches by identity: an order that is a function of the position, whoever asks for it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.training.order import balanced_stream

COUNTS = {"ada": 5, "bo": 1, "cleo": 3, "dai": 2, "edo": 8}
PEOPLE = np.array([name for name, count in COUNTS.items() for _ in range(count)])[
    np.random.default_rng(3).permutation(19)
]
worlds = st.integers(1, 4)
images = st.integers(1, 6)


def dealt(world, rank, count, images, seed=1):
    """The first samples of a rank."""
    return balanced_stream(PEOPLE, seed, world, images)(rank + world * np.arange(count))


@given(worlds, images, st.data())
def test_each_run_of_a_rank_shows_one_person_and_as_many_images_as_there_are(world, images, data):
    rank = data.draw(st.integers(0, world - 1))
    runs = dealt(world, rank, 12 * images, images).reshape(12, images)
    for run in runs:
        (person,) = set(PEOPLE[run])
        assert person != "bo", "one image makes no pair"
        assert len(set(run)) == min(images, COUNTS[person])


@given(worlds, images)
def test_everybody_comes_once_a_round_over_all_ranks(world, images):
    """A round of four people is dealt to the ranks in turn."""
    first = [PEOPLE[dealt(world, rank, 12 * images, images)[::images]] for rank in range(world)]
    visits = np.stack(first, axis=1).ravel()
    for start in range(0, 12, 4):
        assert sorted(visits[start : start + 4]) == ["ada", "cleo", "dai", "edo"]


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


def test_people_with_one_image_each_are_refused():
    with pytest.raises(ValueError, match="none of the 3 people has two images"):
        balanced_stream(np.array(["a", "b", "c"]), 1, 1, 2)
