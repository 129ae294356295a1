"""The look-alike ILSVRC2012, read back with `tarfile`, SciPy and Pillow alone: none of our own readers."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps
from scipy.io import loadmat

from pipelines.samples import SAMPLES
from pipelines.samples.drawing import HUES, SHAPES, draw

FILES = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
FIELDS = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images")
OPTIONS = {"classes": 12, "train": 4, "val": 3}

write = SAMPLES["imagenet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write(folder, **OPTIONS)
    return folder


def contents(tar: tarfile.TarFile) -> dict[str, bytes]:
    return {member.name: tar.extractfile(member).read() for member in tar.getmembers() if member.isfile()}


@pytest.fixture(scope="module")
def train(folder: Path) -> dict[str, dict[str, bytes]]:
    """Inner tar -> its images."""
    with tarfile.open(folder / FILES[1], "r:") as outer:
        return {name: contents(tarfile.open(fileobj=io.BytesIO(data))) for name, data in contents(outer).items()}


@pytest.fixture(scope="module")
def val(folder: Path) -> dict[str, bytes]:
    with tarfile.open(folder / FILES[2], "r:") as tar:
        return contents(tar)


@pytest.fixture(scope="module")
def devkit(folder: Path) -> dict[str, bytes]:
    with tarfile.open(folder / FILES[0], "r:gz") as tar:
        return contents(tar)


def test_the_archives_have_the_upstream_layout(folder: Path, train: dict, val: dict) -> None:
    assert sorted(path.name for path in folder.iterdir()) == list(FILES)
    assert len(train) == 12
    for tar, images in train.items():
        wnid = tar.removesuffix(".tar")
        assert len(wnid) == 9
        assert wnid[0] == "n"
        assert wnid[1:].isdigit()
        assert sorted(images) == sorted(f"{wnid}_{number}.JPEG" for number in range(1, 5))
    assert list(val) == [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 37)]


def test_the_synsets_have_the_upstream_form(train: dict, devkit: dict) -> None:
    table = loadmat(io.BytesIO(devkit["ILSVRC2012_devkit_t12/data/meta.mat"]))["synsets"]
    assert table.dtype.names == FIELDS
    assert table.shape == (15, 1)
    # As torchvision reads it: https://github.com/pytorch/vision/blob/main/torchvision/datasets/imagenet.py
    meta = loadmat(io.BytesIO(devkit["ILSVRC2012_devkit_t12/data/meta.mat"]), squeeze_me=True)["synsets"]
    children = list(zip(*meta, strict=True))[4]
    leaves = [row for row, number in zip(meta, children, strict=True) if number == 0]
    identifiers, wnids, words = list(zip(*leaves, strict=True))[:3]
    assert list(identifiers) == list(range(1, 13))
    assert sorted(f"{wnid}.tar" for wnid in wnids) == sorted(train)
    assert list(wnids) != sorted(wnids)
    assert wnids[0] != min(wnids)
    assert len(set(words)) == 12
    assert [row["num_train_images"] for row in leaves] == [4] * 12
    groups = [row for row in meta if row["num_children"] > 0]
    assert len(groups) >= 2
    known = set(range(1, 16))
    for group in groups:
        assert len(group["children"]) == group["num_children"]
        assert set(group["children"]) <= known


def test_the_ground_truth_has_the_upstream_form(val: dict, devkit: dict) -> None:
    truth = devkit["ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"].decode()
    assert not truth.endswith("\n")
    numbers = [int(line) for line in truth.split("\n")]
    assert len(numbers) == len(val)
    assert Counter(numbers) == dict.fromkeys(range(1, 13), 3)
    assert numbers != sorted(numbers)


def kind(data: bytes) -> str:
    image = Image.open(io.BytesIO(data))
    if image.getexif().get(0x0112, 1) != 1:
        return "turned"
    return image.format if image.format != "JPEG" else {"L": "grey", "RGB": "rgb"}.get(image.mode, image.mode)


def test_odd_images_come_twice_in_train_and_in_val(train: dict, val: dict) -> None:
    in_train = Counter(kind(image) for images in train.values() for image in images.values())
    assert in_train == {"grey": 2, "CMYK": 2, "turned": 2, "PNG": 2, "rgb": 40}
    in_val = Counter(kind(image) for image in val.values())
    assert in_val == {"grey": 1, "CMYK": 1, "turned": 1, "PNG": 1, "rgb": 32}


def test_sizes_vary_about_the_one_asked_for(train: dict) -> None:
    sizes = [Image.open(io.BytesIO(image)).size for images in train.values() for image in images.values()]
    assert all(96 <= max(size) <= 160 for size in sizes)
    assert len(set(sizes)) > 30
    assert any(width % 2 for width, _ in sizes)
    assert any(height % 2 for _, height in sizes)
    assert {width > height for width, height in sizes} == {True, False}


def test_every_image_shows_its_class_upright(train: dict) -> None:
    """The drawing comes back from the file, whatever the file's kind."""
    for label, tar in enumerate(sorted(train)):
        for number, data in enumerate(train[tar].values()):
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            rng = np.random.default_rng([0, 0, label, number])
            rng.uniform(), rng.integers(6)  # size and aspect
            drawn = draw(rng, list(SHAPES)[label // 4], list(HUES)[label % 4], image.height, image.width)
            expected = np.asarray(Image.fromarray(drawn).convert(image.mode).convert("RGB"))
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - expected).mean() < 12


def test_the_same_options_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write(tmp_path, **OPTIONS)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    write(tmp_path, **OPTIONS, seed=1)
    assert all((tmp_path / name).read_bytes() != (folder / name).read_bytes() for name in FILES)


def test_nothing_in_the_devkit_depends_on_the_time(folder: Path, devkit: dict) -> None:
    assert devkit["ILSVRC2012_devkit_t12/data/meta.mat"][:116] == b"MATLAB 5.0 MAT-file".ljust(116)
    assert (folder / FILES[0]).read_bytes()[4:8] == bytes(4)  # gzip's time


def test_more_classes_change_no_picture_of_the_first(train: dict, tmp_path: Path) -> None:
    write(tmp_path, classes=24, train=4, val=1)
    with tarfile.open(tmp_path / FILES[1]) as outer:
        data = contents(outer)
    assert len(data) == 24
    with tarfile.open(fileobj=io.BytesIO(data["n90001357.tar"])) as inner:
        again = contents(inner)
    same = [again[name] == image for name, image in train["n90001357.tar"].items() if kind(image) == "rgb"]
    assert same.count(True) >= 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"classes": 1}, "classes 1 is not in 2..24"),
        ({"classes": 25}, "classes 25 is not in 2..24"),
        ({"classes": 2, "train": 3}, r"train 3 is not in 4\.\."),
        ({"classes": 2, "val": 1}, r"val 1 is not in 2\.\."),
        ({"size": 8}, r"size 8 is not in 32\.\."),
    ],
)
def test_options_without_room_are_refused(tmp_path: Path, options: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        write(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_colour_families_survive_a_mirror_and_a_dim_light() -> None:
    """What augmentation does to a picture leaves the hue of its shape alone."""
    for index, hue in enumerate(HUES):
        picture = draw(np.random.default_rng(index), "disc", hue, 96, 128)
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(picture[:, ::-1]) // 2, 90)
        middle = Image.fromarray(simplejpeg.decode_jpeg(jpeg)[32:64, 44:84]).convert("HSV")
        turns = np.median(np.asarray(middle)[:, :, 0]) / 256
        distance = {name: abs((turns - centre + 0.5) % 1 - 0.5) for name, centre in HUES.items()}
        assert min(distance, key=distance.get) == hue
