"""Shards dealt to the ranks: every sample once an epoch whatever their sizes, and each rank reads its own part."""

import json
from itertools import pairwise

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.shards import INDEX, Index, Split, Stored, write_shard
from pipelines.training.order import epoch_order, training_stream
from tests.streaming import NO_FOLDER, asked, train

SHARDS, EACH = 4, 24
sizes = st.lists(st.integers(1, 20), min_size=1, max_size=12)
equal_sizes = st.tuples(st.integers(1, 20), st.integers(1, 12)).map(lambda drawn: [drawn[0]] * drawn[1])
seeds, epochs = st.integers(0, 2**31), st.integers(0, 50)
blocks, worlds = st.integers(1, 5), st.integers(1, 8)


def of_ranks(sizes, seed, epoch, block, world):
    """The samples of an epoch by rank, in order."""
    total = sum(sizes)
    positions = np.arange(epoch * total, (epoch + 1) * total)
    samples = training_stream(sizes, seed, block, world)(positions)
    return [samples[positions % world == rank] for rank in range(world)]


def shards_of(sizes, samples):
    """The shard of each sample."""
    return np.repeat(np.arange(len(sizes)), sizes)[samples]


@settings(max_examples=200, deadline=None)
@given(sizes, seeds, epochs, blocks, worlds)
def test_the_ranks_together_see_every_sample_once_an_epoch_and_none_more_than_another(sizes, seed, epoch, block, world):
    ranks = of_ranks(sizes, seed, epoch, block, world)
    assert sorted(np.concatenate(ranks).tolist()) == list(range(sum(sizes)))
    lengths = [len(samples) for samples in ranks]
    assert max(lengths) - min(lengths) <= 1


@settings(max_examples=200, deadline=None)
@given(sizes, seeds, epochs, blocks, worlds)
def test_a_shard_is_read_by_one_rank_unless_a_cut_goes_through_it(sizes, seed, epoch, block, world):
    touched = [set(shards_of(sizes, samples).tolist()) for samples in of_ranks(sizes, seed, epoch, block, world)]
    assert sum(map(len, touched)) <= len(sizes) + world - 1


@settings(max_examples=200, deadline=None)
@given(equal_sizes, seeds, epochs, blocks, worlds)
def test_of_shards_of_one_size_a_rank_reads_its_share(sizes, seed, epoch, block, world):
    for samples in of_ranks(sizes, seed, epoch, block, world):
        touched = len(set(shards_of(sizes, samples).tolist()))
        assert touched <= -(-len(sizes) // world) + 1
        if len(sizes) % world == 0:
            assert touched == len(sizes) // world


@settings(max_examples=100, deadline=None)
@given(sizes, seeds, blocks, worlds, st.data())
def test_any_stretch_is_the_same_wherever_one_begins(sizes, seed, block, world, data):
    end = 3 * sum(sizes)
    start = data.draw(st.integers(0, end))
    whole = training_stream(sizes, seed, block, world)(np.arange(end))
    np.testing.assert_array_equal(training_stream(sizes, seed, block, world)(np.arange(start, end)), whole[start:])
    any_order = np.random.default_rng(start).permutation(end)
    np.testing.assert_array_equal(training_stream(sizes, seed, block, world)(any_order), whole[any_order])


@settings(max_examples=100, deadline=None)
@given(sizes, seeds, epochs, blocks, worlds)
def test_a_rank_reads_few_shards_at_a_time(sizes, seed, epoch, block, world):
    """Its samples are those of a block of shards, then those of another: no shard comes in two blocks."""
    for samples in of_ranks(sizes, seed, epoch, block, world):
        shards = shards_of(sizes, samples)
        order = list(dict.fromkeys(shards.tolist()))
        for at in range(block, len(order), block):
            begins = np.flatnonzero(shards == order[at])[0]
            assert set(shards[:begins].tolist()) == set(order[:at])
            assert not set(shards[begins:].tolist()) & set(order[:at])


@settings(deadline=None)
@given(sizes, seeds, epochs, blocks)
def test_one_rank_has_the_order_that_is_dealt_by_samples(sizes, seed, epoch, block):
    (samples,) = of_ranks(sizes, seed, epoch, block, 1)
    np.testing.assert_array_equal(samples, epoch_order(sizes, seed, epoch, block))


def test_a_rank_has_other_shards_each_epoch():
    parts = [frozenset(shards_of([5] * 12, of_ranks([5] * 12, 1, epoch, 2, 3)[0]).tolist()) for epoch in range(40)]
    assert all(len(part) == 4 for part in parts)
    assert len(set(parts)) > 30
    assert frozenset.union(*parts) == set(range(12))


def test_the_order_never_changes_between_versions():
    """A run that was saved yesterday goes on tomorrow: these numbers are part of the format of a checkpoint."""
    samples = training_stream([3, 2, 4], 1, 2, 2)(np.arange(18))
    assert samples.tolist() == [6, 4, 5, 2, 3, 0, 8, 1, 7, 5, 0, 6, 4, 2, 3, 8, 1, 7]


@pytest.fixture(scope="module")
def tiny_shards(tmp_path_factory):
    """Four shards of one size; a label is a sample's place."""
    folder = tmp_path_factory.mktemp("tiny_shards")
    image = simplejpeg.encode_jpeg(np.zeros((24, 24, 3), np.uint8))

    def stored(sample):
        return Stored(sample, image, json.dumps({"name": str(sample), "label": sample}).encode(), 24, 24)

    bounds = pairwise(range(0, (SHARDS + 1) * EACH, EACH))
    shards = [
        write_shard(folder, f"train-{number:06d}", map(stored, range(*place))) for number, place in enumerate(bounds)
    ]
    index = Index("tiny", (), {"train": Split(SHARDS * EACH, tuple(shards))}, {}, {})
    (folder / INDEX).write_bytes(index.to_json())
    return folder


def labels(batches):
    return [batch.targets["label"].tolist() for batch in batches]


@pytest.mark.parametrize("threads", [0, 2])
def test_ranks_have_as_many_batches_and_go_on_after_any_step(tiny_shards, threads):
    total, world, size = SHARDS * EACH, 3, 8
    options = {"world": world, "batch_size": size, "deal": "shards", "block_shards": 2}
    whole = [labels(train(tiny_shards, rank=rank, num_samples=2 * total, **options)) for rank in range(world)]
    assert [[len(batch) for batch in batches] for batches in whole] == [[size] * (2 * total // world // size)] * world
    for epoch in (0, 1):
        seen = [place for batches in whole for batch in batches[4 * epoch : 4 * epoch + 4] for place in batch]
        assert sorted(seen) == list(range(total))
    for rank, done in ((0, 1), (1, 5), (2, 3)):
        start = done * world * size
        rest = train(
            tiny_shards, rank=rank, start_sample=start, num_samples=2 * total - start, threads=threads, **options
        )
        assert labels(rest) == whole[rank][done:]


def test_two_machines_together_fetch_each_shard_once_an_epoch(streamed, server, index, tmp_path, monkeypatch):
    """Where samples are dealt, each of them fetches all."""
    fetched = {}
    for deal in ("shards", "samples"):
        server.requests.clear()
        ranks = []
        for rank in range(2):
            monkeypatch.setenv("SHARD_CACHE", str(tmp_path / f"{deal} {rank}"))
            options = {"digest": index.digest, "rank": rank, "world": 2, "num_samples": SHARDS * EACH}
            ranks.append(train(NO_FOLDER, deal=deal, **options))
        seen = [place for batches in zip(*ranks, strict=True) for batch in batches for place in labels([batch])[0]]
        assert sorted(seen) == list(range(SHARDS * EACH))
        fetched[deal] = {name: count for name, count in asked(server).items() if name.endswith(".tar")}
    names = [f"train-{number:06d}.tar" for number in range(SHARDS)]
    assert fetched == {"shards": dict.fromkeys(names, 1), "samples": dict.fromkeys(names, 2)}


def test_the_next_shard_of_a_rank_is_fetched_ahead_and_no_other(streamed, server, index, tmp_path):
    options = {"digest": index.digest, "world": 2, "deal": "shards", "num_samples": SHARDS * EACH, "rank": 1}
    batches = train(NO_FOLDER, **options)
    next(batches)
    batches.close()  # what was begun is brought to its end
    own = {f"train-{shard:06d}.tar" for shard in shards_of([EACH] * SHARDS, of_ranks([EACH] * SHARDS, 3, 0, 1, 2)[1])}
    assert len(own) == 2
    assert {name for name in asked(server) if name.endswith(".tar")} <= own
