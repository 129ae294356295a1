"""The stream is exact for every division of the work; damaged shards are refused; threads end."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from pipelines.shards import INDEX, Index, Split, Stored, write_shard
from pipelines.training import order, split_reader
from pipelines.training.order import epoch_order, training_stream, uniforms
from pipelines.training.reader import SplitReader, Teaching, evaluation_batches, training_batches
from tasks.augment import Bounds

BOUNDS = Bounds(0.2, 1.0, 0.75, 1.33, 0.5, 0.1, 0.5, 1.5)
SIZES = (7, 5, 9, 1, 6)
TOTAL = sum(SIZES)


def jpeg(sample):
    """A sample's image: its own size and its own colours."""
    rng = np.random.default_rng(sample)
    pixels = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(pixels).resize((12 + sample % 5, 10 + sample % 7), Image.Resampling.BICUBIC)
    image.save(file, "JPEG", quality=95)
    return file.getvalue(), image.height, image.width


def write(folder: Path, sizes=SIZES, split="train", damage=None) -> Path:
    """Shards of the given sizes whose labels are the samples' places; image `damage` is half a JPEG."""
    shards, first = [], 0
    for number, size in enumerate(sizes):
        stored = []
        for sample in range(first, first + size):
            image, height, width = jpeg(sample)
            fields = json.dumps({"name": f"upstream/{sample}", "label": sample}).encode()
            stored.append(Stored(sample, image[: len(image) // 2 if sample == damage else None], fields, height, width))
        shards.append(write_shard(folder, f"{split}-{number:06d}", stored))
        first += size
    splits = {split: Split(samples=first, shards=tuple(shards))}
    index = Index(dataset="toy", classes=("a", "b"), splits=splits, skipped={}, reencoded={})
    (folder / INDEX).write_bytes(index.to_json())
    return folder


def labels_of(fields):
    return {"label": torch.tensor([sample["label"] for sample in fields])}


def train(folder, **changes):
    options = {
        "size": 8,
        "batch_size": 4,
        "seed": 3,
        "rank": 0,
        "world": 1,
        "start_sample": 0,
        "num_samples": 2 * TOTAL,
        "bounds": BOUNDS,
        "antialias": False,
        "threads": 0,
        "block_shards": 2,
        "targets": labels_of,
    }
    return training_batches(folder, "train", **{**options, **changes})


def evaluate(folder, **changes):
    options = {
        "size": 8,
        "batch_size": 4,
        "central_fraction": 0.875,
        "antialias": False,
        "threads": 0,
        "targets": labels_of,
    }
    return evaluation_batches(folder, "train", **{**options, **changes})


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def whole_stream(shards):
    """Three epochs read by one rank in one thread, a batch a sample."""
    return list(train(shards, batch_size=1, num_samples=3 * TOTAL))


sizes = st.lists(st.integers(1, 20), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(sizes=sizes, seed=st.integers(-(2**31), 2**31), epoch=st.integers(0, 1000), block=st.integers(1, 15))
def test_an_epoch_is_a_permutation_in_blocks_of_whole_shards(sizes, seed, epoch, block):
    order = epoch_order(sizes, seed, epoch, block)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    seen = list(dict.fromkeys(shard_of[order].tolist()))
    at = 0
    while at < len(order):  # each block holds `block` shards, the last what is left, and no shard is in two
        members = set()
        for shard in shard_of[order[at:]].tolist():
            if shard not in members and len(members) == block:
                break
            members.add(shard)
            at += 1
        assert len(members) == block or at == len(order)
        assert sum(sizes[shard] for shard in members) == sum(np.isin(shard_of[order[:at]], list(members)))
    assert sorted(seen) == list(range(len(sizes)))


def test_epochs_and_seeds_differ_and_samples_mix():
    sizes = [50] * 8
    orders = [tuple(epoch_order(sizes, seed, epoch, 4).tolist()) for seed in range(3) for epoch in range(4)]
    assert len(set(orders)) == len(orders)
    order = epoch_order(sizes, 0, 0, 8)
    assert abs(stats.spearmanr(order, np.arange(400)).statistic) < 0.2
    first = [epoch_order([1] * 6, 0, epoch, 1)[0] for epoch in range(1200)]
    assert stats.chisquare(np.bincount(first, minlength=6)).pvalue > 1e-3


def test_the_order_never_changes_between_versions():
    """A run that was saved yesterday goes on tomorrow: these numbers are part of the format of a checkpoint."""
    assert epoch_order([3, 2, 4], 1, 2, 2).tolist() == [4, 5, 3, 6, 8, 7, 1, 2, 0]
    numbers = [[0.9205061071413229, 0.20434612753510795], [0.41975874977246064, 0.8690109924068177]]
    assert uniforms(5, np.array([0, 7]), 2).tolist() == numbers


def test_hashes_are_splitmix64s():
    """The first outputs for seed 0 and 1234567, as in the published test vectors of the generator."""
    assert order._hash(0).tolist() == [0xE220A8397B1DCDAF]
    assert order._hash(1234567).tolist() == [6457827717110365317]


def test_uniforms_are_uniform_and_unrelated():
    numbers = uniforms(11, np.arange(20_000), 4)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for column in numbers.T:
        assert stats.kstest(column, stats.uniform.cdf).pvalue > 1e-3
    related = [
        (numbers[:, 0], numbers[:, 1]),
        (numbers[:-1, 0], numbers[1:, 0]),
        (numbers[:, 3], uniforms(12, np.arange(20_000), 4)[:, 3]),
    ]
    for one, other in related:
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def test_uniforms_depend_on_seed_position_and_column_alone():
    positions = np.array([5, 2**40, 0, 5])
    numbers = uniforms(1, positions, 26)
    np.testing.assert_array_equal(numbers[0], numbers[3])
    np.testing.assert_array_equal(uniforms(1, positions[1:2], 3)[0], numbers[1, :3])
    assert len(np.unique(numbers[:3])) == 3 * 26


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_division_of_the_work_gives_the_same_stream(shards, whole_stream, data):
    """For world 1 to 8, threads 0 to 4, resumed at any sample on another world: same samples, same pixels."""
    draw = data.draw
    start = draw(st.integers(0, 2 * TOTAL))
    length = draw(st.integers(0, 3 * TOTAL - start))
    cut = start + draw(st.integers(0, length))
    stream: dict[int, tuple] = {}
    for first, last in ((start, cut), (cut, start + length)):
        world, batch_size = draw(st.integers(1, 8)), draw(st.integers(1, 9))
        together = world * batch_size
        for rank in range(world):
            options = {"rank": rank, "world": world, "batch_size": batch_size, "threads": draw(st.integers(0, 4))}
            batches = train(shards, start_sample=first, num_samples=last - first, **options)
            for step, batch in enumerate(batches):
                window = range(first + step * together, min(first + (step + 1) * together, last))
                positions = [position for position in window if position % world == rank]
                assert len(positions) == len(batch.images) == len(batch.distortions) > 0
                for place, position in enumerate(positions):
                    assert position not in stream
                    stream[position] = tuple(tensor[place] for tensor in (*batch[:2], batch.targets["label"]))
    assert sorted(stream) == list(range(start, start + length))
    for position, parts in stream.items():
        images, distortions, targets = whole_stream[position]
        for part, wanted in zip(parts, (images[0], distortions[0], targets["label"][0]), strict=True):
            assert torch.equal(part, wanted)


def test_the_stream_is_the_epochs_one_after_the_other(shards, whole_stream):
    labels = [int(batch.targets["label"]) for batch in whole_stream]
    for epoch in range(3):
        assert labels[epoch * TOTAL : (epoch + 1) * TOTAL] == epoch_order(SIZES, 3, epoch, 2).tolist()
    far = np.array([5 * TOTAL + 2, 1, 5 * TOTAL + 1])  # several epochs in one batch, in any order
    wanted = [epoch_order(SIZES, 3, position // TOTAL, 2)[position % TOTAL] for position in far.tolist()]
    assert training_stream(SIZES, 3, 2)(far).tolist() == wanted


def test_a_sample_is_cut_anew_each_epoch(whole_stream):
    views = [batch for batch in whole_stream if int(batch.targets["label"]) == 4]
    assert len(views) == 3
    assert not torch.equal(views[0].images, views[1].images)
    assert not torch.equal(views[0].distortions, views[1].distortions)


def test_the_endless_stream_goes_on(shards, whole_stream):
    for threads in (0, 2):
        batches = train(shards, num_samples=None, start_sample=TOTAL, batch_size=1, threads=threads)
        for batch, wanted in zip(islice(batches, 2 * TOTAL), whole_stream[TOTAL:], strict=True):
            assert torch.equal(batch.images, wanted.images)
        assert len(next(batches).images) == 1
        batches.close()


def test_batches_have_the_promised_types(shards):
    for batch in (next(train(shards)), next(evaluate(shards))):
        assert batch.images.shape == (4, 8, 8, 3)
        assert batch.images.dtype == torch.uint8
        assert batch.distortions.dtype == torch.float32
        assert batch.targets["label"].shape == (4,)
    assert next(train(shards)).distortions.shape == (4, 4)
    assert next(evaluate(shards)).distortions.shape == (0, 4)


def test_images_belong_to_their_labels(shards):
    """With the whole image as the only crop, each picture is PIL's of the sample that the label names."""
    whole = Bounds(1.0, 1.0, 0.75, 1.33, 0.0, 0.0, 1.0, 1.0)
    batches = [*train(shards, bounds=whole), *evaluate(shards, central_fraction=1.0)]
    for batch in batches:
        for image, label in zip(batch.images.numpy(), batch.targets["label"].tolist(), strict=True):
            pil = Image.open(io.BytesIO(jpeg(label)[0])).convert("RGB")
            wanted = np.asarray(pil.resize((8, 8), Image.Resampling.BILINEAR)).astype(int)
            assert np.abs(image - wanted).mean() < 10  # PIL antialiases; another sample is some 60 away


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_evaluation_reads_every_sample_once_in_order(shards, threads, batch_size):
    batches = list(evaluate(shards, threads=threads, batch_size=batch_size))
    assert torch.cat([batch.targets["label"] for batch in batches]).tolist() == list(range(TOTAL))
    assert [len(batch.images) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert torch.equal(
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.images for batch in evaluate(shards, batch_size=7)]),
    )


def test_reading_gives_the_stored_bytes(shards):
    samples = np.array([20, 3, 3, 11])
    for sample, (image, fields) in zip(samples.tolist(), SplitReader(shards, "train").read(samples), strict=True):
        assert bytes(image) == jpeg(sample)[0]
        assert fields == {"name": f"upstream/{sample}", "label": sample}


def flip(place):
    def damage(folder):
        path = folder / "train-000002.tar"
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    return damage


def cut(size):
    return lambda folder: os.truncate(folder / "train-000002.tar", size)


def flip_offsets(folder):
    path = folder / "train-000002.npy"
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # the width of the last image
    path.write_bytes(data)


def swap(folder):
    for suffix in ("tar", "npy"):
        one, other = folder / f"train-000002.{suffix}", folder / f"train-000000.{suffix}"
        one.rename(folder / "aside")
        other.rename(one)
        (folder / "aside").rename(other)


def exchange_with_equal_size(folder):
    """A shard of the same size and offsets with the bytes of other images."""
    path = folder / "train-000002.tar"
    data = path.read_bytes()
    path.write_bytes(data[:512] + data[512:1024][::-1] + data[1024:])


DAMAGES = {
    "header": flip(3),
    "pixels": flip(700),
    "last byte": flip(-1),
    "cut in the middle": cut(5000),
    "cut in a header": cut(100),
    "cut to a member": cut(1024),
    "empty": cut(0),
    "offsets": flip_offsets,
    "swapped": swap,
    "exchanged": exchange_with_equal_size,
    "missing": lambda folder: (folder / "train-000002.tar").unlink(),
    "offsets missing": lambda folder: (folder / "train-000002.npy").unlink(),
}


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_refused_before_use(tmp_path, damage, threads):
    folder = write(tmp_path)
    damage(folder)
    touched = set(range(12, 21)) | (set(range(7)) if damage is swap else set())
    for batches in (train(folder, threads=threads), evaluate(folder, threads=threads)):
        with pytest.raises(ValueError, match=r"train-00000[02]\.(tar|npy)"):
            for batch in batches:
                assert not touched & set(batch.targets["label"].tolist())


@pytest.mark.parametrize("threads", [0, 2])
def test_a_bad_image_is_named_by_shard_and_key(tmp_path, threads):
    folder = write(tmp_path, damage=13)
    for batches in (train(folder, threads=threads), evaluate(folder, threads=threads)):
        with pytest.raises(ValueError, match=r"train-000002\.tar, sample 00000013: "):
            list(batches)
    assert not reader_threads()


def test_an_unknown_split_or_folder_is_named(shards, tmp_path):
    with pytest.raises(ValueError, match=r"has no split 'val'; there are: train"):
        SplitReader(shards, "val")
    with pytest.raises(ValueError, match=str(tmp_path)):
        train(tmp_path)


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_closing_early_ends_the_threads(shards):
    batches = train(shards, threads=3, num_samples=None)
    next(batches)
    assert len(reader_threads()) > 1
    batches.close()
    assert not reader_threads()


def test_an_abandoned_iterator_ends_its_threads(shards):
    batches = train(shards, threads=2, num_samples=None)
    next(batches)
    assert reader_threads()
    del batches
    assert not reader_threads()


def test_threads_work_a_bounded_number_of_batches_ahead(shards):
    made = []

    def counted(fields):
        made.append(len(fields))
        return labels_of(fields)

    batches = train(shards, threads=2, num_samples=None, targets=counted)
    for taken in (1, 2, 3):
        next(batches)
        deadline = time.monotonic() + 20
        while len(made) < taken + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(made) == taken + 3
    batches.close()


def open_tars():
    return [path for path in Path("/proc/self/maps").read_text().splitlines() if ".tar" in path]


def test_few_shards_are_open_at_a_time(shards, monkeypatch):
    monkeypatch.setattr(split_reader, "OPEN_SHARDS", 2)
    before = len(open_tars())
    for batch in (batches := train(shards, num_samples=4 * TOTAL)):
        assert batch.images.shape[0] <= 4
        assert len(open_tars()) - before <= 2
    del batches, batch
    assert len(open_tars()) == before


def test_a_column_is_one_field_of_all_samples_in_order(shards):
    reader = SplitReader(shards, "train")
    assert reader.column("label") == list(range(TOTAL))
    assert reader.column("name")[5] == "upstream/5"
    with pytest.raises(ValueError, match="sample 00000000 has no identity; it has name, label"):
        reader.column("identity")


@pytest.mark.parametrize("fraction", [0.5, 0.875, 1.0])
@pytest.mark.parametrize("antialias", [False, True])
def test_the_central_part_is_cut_of_each_side(shards, fraction, antialias):
    """The crop is slim's: as much is left away on either side, rounded down (tf.image.central_crop)."""
    reader = SplitReader(shards, "train")
    samples = np.array([20, 3, 3, 11])
    heights, widths = reader.image_sizes(samples)
    tops, lefts = ((side * (1 - fraction) / 2).astype(int) for side in (heights, widths))
    crops = np.stack([tops, lefts, heights - 2 * tops, widths - 2 * lefts], axis=1)
    images, fields = reader.decode_central(samples, 8, fraction, antialias)
    wanted, _ = reader.decode(samples, crops, 8, antialias)
    assert torch.equal(images, wanted)
    assert [sample["label"] for sample in fields] == samples.tolist()


@pytest.mark.parametrize("start", [0, 9, TOTAL - 1])
def test_evaluation_may_begin_at_any_sample(shards, start):
    whole = torch.cat([batch.images for batch in evaluate(shards)])
    rest = list(evaluate(shards, start_sample=start, threads=2))
    assert torch.equal(torch.cat([batch.images for batch in rest]), whole[start:])
    assert torch.cat([batch.targets["label"] for batch in rest]).tolist() == list(range(start, TOTAL))
    assert list(evaluate(shards, start_sample=TOTAL)) == []


def test_what_a_teacher_says_and_sees_belongs_to_the_sample(shards, tmp_path):
    """Whatever crop the student sees: the teacher's image is the one of evaluation, at the teacher's size."""
    np.save(tmp_path / "said.npy", np.arange(TOTAL * 2, dtype=np.float32).reshape(TOTAL, 2))
    seen = torch.cat([batch.images for batch in evaluate(shards, size=12, central_fraction=0.5)])
    asked, kept = Teaching(None, 12, 0.5, False), Teaching(tmp_path / "said.npy", 12, 0.5, False)
    for rank in (0, 1):
        options = {"rank": rank, "world": 2, "threads": 2}
        ways = (train(shards, teaching=teaching, **options) for teaching in (asked, kept, None))
        for one, other, untaught in zip(*ways, strict=True):
            labels = one.targets["label"]
            assert torch.equal(one.targets["teacher_images"], seen[labels])
            assert torch.equal(other.targets["taught"][:, 0], 2.0 * labels)
            assert one.targets.keys() ^ other.targets.keys() == {"teacher_images", "taught"}
            for batch in (one, other):
                assert torch.equal(batch.images, untaught.images)
                assert torch.equal(batch.distortions, untaught.distortions)
                assert torch.equal(labels, untaught.targets["label"])


def test_batches_by_identity_have_few_people(tmp_path):
    people = [f"p{sample % 4}" for sample in range(24)]
    stored = []
    for sample, person in enumerate(people):
        image, height, width = jpeg(sample)
        fields = json.dumps({"name": str(sample), "identity": person, "label": sample}).encode()
        stored.append(Stored(sample, image, fields, height, width))
    splits = {"train": Split(24, (write_shard(tmp_path, "train-000000", stored),))}
    (tmp_path / INDEX).write_bytes(Index("faces", (), splits, {}, {}).to_json())
    for rank in (0, 1):
        batches = train(tmp_path, batch_size=6, images_per_identity=3, rank=rank, world=2, num_samples=60)
        for batch in batches:
            shown = [people[label] for label in batch.targets["label"].tolist()]
            assert len(set(shown[:3])) == len(set(shown[3:])) == 1
            assert len(set(batch.targets["label"].tolist())) == 6


def with_objects(folder):
    """Shards of pictures with up to two objects, one of them with none."""
    stored = []
    for sample in range(12):
        image, height, width = jpeg(sample)
        boxes = [[1.0, 2.0, 4.0, 5.0], [6.0, 1.0, 3.0, 3.0]][: sample % 3]
        things = [{"category": 1, "box": box, "area": 9.0, "crowd": False} for box in boxes]
        fields = json.dumps({"image_id": sample, "objects": things}).encode()
        stored.append(Stored(sample, image, fields, height, width))
    splits = {"train": Split(samples=12, shards=(write_shard(folder, "train-000000", stored),))}
    index = Index(dataset="toy", classes=("1 a",), splits=splits, skipped={}, reencoded={})
    (folder / INDEX).write_bytes(index.to_json())
    return folder


def kept(fields):
    """Targets that say how each image is seen."""
    views = [sample["view"] for sample in fields]
    ids = [sample.get("image_id", 0) for sample in fields]
    return {
        "crop": torch.tensor([view.crop for view in views]),
        "flipped": torch.tensor([view.flipped for view in views]),
        "image_id": torch.tensor(ids),
    }


@pytest.mark.parametrize("shares", [None, (0.5, 1.0)])
def test_targets_are_told_how_each_image_is_seen(tmp_path, shares):
    """The crop that the pixels are of, and whether they are flipped, the same for every division of the work."""
    folder = with_objects(tmp_path)
    bounds = replace(BOUNDS, min_object_shares=shares)
    options = {"targets": kept, "num_samples": 48, "bounds": bounds}
    (whole,) = train(folder, batch_size=48, **options)
    parts = [list(train(folder, batch_size=3, rank=rank, world=2, threads=2, **options)) for rank in range(2)]
    flips = whole.distortions[:, 0] > 0
    assert torch.equal(whole.targets["flipped"], flips)
    assert 10 < flips.sum() < 38
    for rank in range(2):
        for key, value in whole.targets.items():
            assert torch.equal(torch.cat([batch.targets[key] for batch in parts[rank]]), value[rank::2])
    stored = SplitReader(folder, "train")
    for image, number, crop in zip(whole.images, whole.targets["image_id"], whole.targets["crop"], strict=True):
        (pixels,), _ = stored.decode(np.array([int(number)]), crop[None].numpy(), 8, False)
        assert torch.equal(image, pixels)
    widths = whole.targets["crop"][:, 3]
    assert (widths < 10).any()


def test_crops_show_as_much_of_an_object_as_is_asked_for(tmp_path):
    folder = with_objects(tmp_path)
    bounds = Bounds(0.1, 0.6, 0.5, 2.0, 0.5, 0.0, 1.0, 1.0, min_object_shares=(1.0,))
    stored = SplitReader(folder, "train")
    for batch in train(folder, batch_size=12, num_samples=120, bounds=bounds, targets=kept):
        for number, (top, left, height, width) in zip(
            batch.targets["image_id"].tolist(), batch.targets["crop"].tolist(), strict=True
        ):
            ((_, fields),) = stored.read(np.array([number]))
            whole = [
                left <= x and x + w <= left + width and top <= y and y + h <= top + height
                for x, y, w, h in (thing["box"] for thing in fields["objects"])
            ]
            assert any(whole) or not whole


def test_in_evaluation_images_are_seen_in_their_middle_and_not_flipped(tmp_path):
    folder = with_objects(tmp_path)
    (batch,) = evaluate(folder, batch_size=12, central_fraction=1.0, targets=kept)
    heights, widths = SplitReader(folder, "train").image_sizes(np.arange(12))
    assert batch.targets["crop"].tolist() == [[0, 0, h, w] for h, w in zip(heights, widths, strict=True)]
    assert not batch.targets["flipped"].any()
