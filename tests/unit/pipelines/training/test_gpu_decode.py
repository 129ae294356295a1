"""Decoding for a GPU against the decoder of the CPU: on the CPU all but nvJPEG itself, which needs a GPU."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.shards import INDEX, Index, Split, Stored, write_shard
from pipelines.training.decode import decode_crop
from pipelines.training.gpu_decode import decode_crops
from pipelines.training.reader import training_batches
from tasks.augment import Bounds

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")
CPU = torch.device("cpu")
BOUNDS = Bounds(0.2, 1.0, 0.75, 1.33, 0.5, 0.1, 0.5, 1.5)
SIDES = [(90, 120), (64, 40), (33, 200), (150, 150)]


def jpeg(height, width, seed=0, mode="RGB"):
    """Smooth colours with a few edges."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=92)
    return file.getvalue()


JPEGS = [jpeg(*sides, seed) for seed, sides in enumerate(SIDES)]


def tensors(jpegs):
    return [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in jpegs]


def on(device, jpegs, boxes, size, antialias=False):
    crops = np.array(boxes, dtype=np.int64)
    return decode_crops(tensors(jpegs), crops, size, antialias, device, lambda number: f"image {number}")


def by_the_cpu(jpegs, boxes, size, antialias=False):
    out = np.empty((len(jpegs), size, size, 3), dtype=np.uint8)
    for data, box, image in zip(jpegs, boxes, out, strict=True):
        decode_crop(data, box, antialias, image)
    return torch.from_numpy(out)


def boxes_within(height, width):
    return st.tuples(st.integers(1, height), st.integers(1, width)).flatmap(
        lambda box: st.tuples(
            st.integers(0, height - box[0]), st.integers(0, width - box[1]), st.just(box[0]), st.just(box[1])
        )
    )


@settings(max_examples=60, deadline=None)
@given(boxes=st.tuples(*(boxes_within(*sides) for sides in SIDES)), size=st.integers(1, 48), antialias=st.booleans())
def test_crops_of_images_of_any_sizes_are_the_cpus_within_rounding(boxes, size, antialias):
    found = on(CPU, JPEGS, boxes, size, antialias)
    assert (found.shape, found.dtype, found.is_contiguous()) == ((len(JPEGS), size, size, 3), torch.uint8, True)
    difference = (found.int() - by_the_cpu(JPEGS, boxes, size, antialias).int()).abs()
    assert difference.max() <= 1


def test_a_grey_jpeg_gives_three_equal_channels():
    found = on(CPU, [JPEGS[0], jpeg(40, 50, mode="L")], [(0, 0, 90, 120), (3, 4, 30, 40)], 20)
    assert (found[1] == found[1, :, :, :1]).all()
    assert found[1].float().std() > 5


def test_what_cannot_be_used_is_named():
    with pytest.raises(ValueError, match=r"^image 1: the crop \(0, 0, 65, 40\) is not within the image of 64 x 40"):
        on(CPU, JPEGS[:2], [(0, 0, 9, 9), (0, 0, 65, 40)], 8)
    for bad in (b"no image", JPEGS[2][:300], JPEGS[2][: len(JPEGS[2]) // 2]):
        with pytest.raises(ValueError, match="^image 2: ."):
            on(CPU, [*JPEGS[:2], bad], [(0, 0, 9, 9)] * 3, 8)


def write(folder, damaged=None):
    """Two shards of the images, four times over; the image `damaged` is cut short."""
    shards = []
    for number in range(2):
        keys = range(number * 8, number * 8 + 8)
        images = {key: JPEGS[key % 4][: 400 if key == damaged else None] for key in keys}
        stored = (Stored(key, images[key], json.dumps({"label": key}).encode(), *SIDES[key % 4]) for key in keys)
        shards.append(write_shard(folder, f"train-{number:06d}", stored))
    index = Index("toy", (), {"train": Split(samples=16, shards=tuple(shards))}, {}, {})
    (folder / INDEX).write_bytes(index.to_json())
    return folder


def read(folder, **changes):
    options = {"size": 24, "batch_size": 5, "seed": 3, "rank": 0, "world": 1, "start_sample": 0, "num_samples": 32}
    options |= {"bounds": BOUNDS, "antialias": False, "threads": 0, "block_shards": 2, "targets": labels_of}
    return training_batches(folder, "train", **{**options, **changes})


def labels_of(fields):
    return {"label": torch.tensor([sample["label"] for sample in fields])}


def test_without_a_decoder_there_a_device_gets_the_cpus_very_pixels(tmp_path):
    folder = write(tmp_path)
    for one, other in zip(read(folder, device=CPU), read(folder), strict=True):
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("antialias", [False, True])
def test_batches_are_the_cpus_within_rounding(tmp_path, threads, antialias):
    folder = write(tmp_path)
    wanted = list(read(folder, antialias=antialias))
    found = list(read(folder, antialias=antialias, threads=threads, device=CPU, decode="gpu"))
    assert len(found) == len(wanted) == 7
    for one, other in zip(found, wanted, strict=True):
        assert (one.images.int() - other.images.int()).abs().max() <= 1
        assert torch.equal(one.distortions, other.distortions)
        assert torch.equal(one.targets["label"], other.targets["label"])


def test_an_image_that_does_not_decode_is_named_with_its_shard(tmp_path):
    folder = write(tmp_path, damaged=11)
    with pytest.raises(ValueError, match=f"^{folder}/train-000001.tar, sample 00000011: ."):
        list(read(folder, device=CPU, decode="gpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("antialias", [False, True])
def test_a_gpus_batches_look_like_the_cpus(tmp_path, antialias):
    """nvJPEG upsamples colour in its own way: some levels at edges, 30 dB over all."""
    folder = write(tmp_path)
    device = torch.device("cuda", 0)
    found = list(read(folder, antialias=antialias, threads=3, device=device, decode="gpu"))
    for one, other in zip(found, read(folder, antialias=antialias), strict=True):
        assert one.images.device == device
        error = (one.images.cpu().float() - other.images.float()).square().mean()
        assert 10 * torch.log10(255**2 / error.clamp(min=1e-6)) > 30
        assert torch.equal(one.targets["label"], other.targets["label"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_what_the_cpu_decodes_reaches_a_gpu_unchanged_while_that_works(tmp_path):
    """The device is kept busy with the images, and their memory is wanted again as soon as they are let go."""
    folder = write(tmp_path)
    device = torch.device("cuda", 0)
    heavy = torch.rand(4096, 4096, device=device)
    sums = []
    for batch in read(folder, threads=3, num_samples=320, device=device):
        heavy = (heavy @ heavy).sigmoid()
        sums.append(batch.images.sum(dtype=torch.int64))
    assert [int(one) for one in sums] == [int(batch.images.sum()) for batch in read(folder, num_samples=320)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_what_a_gpu_cannot_decode_is_named():
    with pytest.raises(ValueError, match="^image 1: ."):
        on(torch.device("cuda", 0), [JPEGS[0], b"no image"], [(0, 0, 9, 9)] * 2, 8)
