"""Labels of the sample archives against an independent reading, and every way in which archives can disagree."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from pipelines.samples import SAMPLES
from pipelines.sources import SOURCES, imagenet
from pipelines.sources.base import NoOptions, Sample

DEVKIT, TRAIN, VAL = "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"

SOURCE = SOURCES["imagenet"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    SAMPLES["imagenet"](tmp_path, classes=5, train=3, val=2)
    return tmp_path


def contents(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers() if member.isfile()}


def tar_of(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def change(path: Path, **changes: bytes | None) -> None:
    """Rewrite an archive with some members replaced; None leaves a member out."""
    data = path.read_bytes()
    files = contents(data)
    for name, value in changes.items():
        files.pop(name) if value is None else files.update({name: value})
    path.write_bytes(gzip.compress(tar_of(files)) if path.suffix == ".gz" else tar_of(files))


def change_meta(folder: Path, row: int, field: str, value: object) -> None:
    table = loadmat(io.BytesIO(contents((folder / DEVKIT).read_bytes())[META]))["synsets"]
    table[row, 0][field] = value
    file = io.BytesIO()
    savemat(file, {"synsets": table})
    change(folder / DEVKIT, **{META: file.getvalue()})


def everything(folder: Path) -> list[Sample]:
    return [sample for unit in SOURCE.units(folder, NoOptions()) for sample in SOURCE.samples(unit)]


def test_labels_are_ranks_of_wnids_in_train_and_val(folder: Path) -> None:
    devkit = contents((folder / DEVKIT).read_bytes())
    rows = loadmat(io.BytesIO(devkit[META]), squeeze_me=True)["synsets"]
    wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if row["num_children"] == 0}
    rank_of = {wnid: rank for rank, wnid in enumerate(sorted(wnid_of.values()))}
    expected = {}
    for tar, data in contents((folder / TRAIN).read_bytes()).items():
        wnid = tar[:9]
        expected |= {f"{wnid}/{name}": ("train", image, rank_of[wnid]) for name, image in contents(data).items()}
    val = contents((folder / VAL).read_bytes())
    for (name, image), number in zip(sorted(val.items()), devkit[TRUTH].split(), strict=True):
        expected[name] = ("val", image, rank_of[wnid_of[int(number)]])
    found = everything(folder)
    assert len(found) == 5 * (3 + 2)
    assert {sample.name: (sample.split, sample.image, sample.fields["label"]) for sample in found} == expected
    assert any(int(number) - 1 != rank_of[wnid_of[int(number)]] for number in devkit[TRUTH].split())


def test_places_point_at_the_very_bytes(folder: Path) -> None:
    for sample in everything(folder):
        data = sample.place.path.read_bytes()
        assert data[sample.place.offset : sample.place.offset + len(sample.image)] == sample.image


def test_classes_are_named_in_label_order(folder: Path) -> None:
    assert SOURCE.classes(folder)[:2] == ["n90001357 red disc, disc in red", "n90002714 blue disc, disc in blue"]
    assert len(SOURCE.classes(folder)) == 5


def test_units_are_small_independent_and_picklable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = everything(folder)
    monkeypatch.setattr(imagenet, "VAL_UNIT", 3)
    units = pickle.loads(pickle.dumps(SOURCE.units(folder, NoOptions())))
    assert len(units) == 5 + 4  # 10 validation images in slices of 3
    assert [sample for unit in units for sample in SOURCE.samples(unit)] == whole
    backwards = {sample.name for unit in reversed(units) for sample in SOURCE.samples(unit)}
    assert backwards == {sample.name for sample in whole}


def test_missing_archives_are_named(folder: Path) -> None:
    for name in (VAL, TRAIN, DEVKIT):
        (folder / name).unlink()
        with pytest.raises(ValueError, match=rf"{name} does not exist"):
            SOURCE.units(folder, NoOptions())


def test_a_class_that_one_side_lacks_is_named(folder: Path) -> None:
    change(folder / TRAIN, **{"n90002714.tar": None})
    with pytest.raises(ValueError, match=r"train\.tar holds 4 classes, .* lists 5; in one of them only: n90002714"):
        SOURCE.units(folder, NoOptions())


def test_a_number_of_images_that_the_devkit_denies_is_an_error(folder: Path) -> None:
    change_meta(folder, 0, "num_train_images", 7)
    with pytest.raises(ValueError, match=r"img_train\.tar:n\d{8}\.tar holds 3 images, meta\.mat of .* says 7"):
        everything(folder)


def test_an_image_in_the_wrong_inner_tar_is_an_error(folder: Path) -> None:
    tars = contents((folder / TRAIN).read_bytes())
    first, second = sorted(tars)[:2]
    change(folder / TRAIN, **{first: tars[second]})
    with pytest.raises(ValueError, match=rf"{first}: member '{second[:9]}_1\.JPEG' is not an image of {first[:9]}"):
        everything(folder)


def test_a_validation_image_without_ground_truth_is_an_error(folder: Path) -> None:
    change(folder / VAL, **{"ILSVRC2012_val_00000003.JPEG": None})
    with pytest.raises(ValueError, match=r"img_val\.tar holds 9 images, .*ground_truth\.txt .* has 10 lines"):
        SOURCE.units(folder, NoOptions())


@pytest.mark.parametrize("number", [b"0", b"6", b"8", b"-1", b"1.0", b"x", "\u0661".encode()])
def test_ground_truth_that_is_no_leaf_is_an_error(folder: Path, number: bytes) -> None:
    change(folder / DEVKIT, **{TRUTH: b"1\n" * 3 + number + b"\n1" * 6})
    with pytest.raises(ValueError, match=r"ground_truth\.txt line 4: .* is not an ILSVRC2012_ID in 1\.\.5"):
        SOURCE.units(folder, NoOptions())


def test_identifiers_that_skip_or_repeat_are_an_error(folder: Path) -> None:
    change_meta(folder, 2, "ILSVRC2012_ID", 4)
    with pytest.raises(ValueError, match=r"meta\.mat: the ILSVRC2012_IDs of the 5 leaves are not 1\.\.5"):
        SOURCE.classes(folder)
    change_meta(folder, 2, "ILSVRC2012_ID", 3)
    change_meta(folder, 2, "WNID", "n90001357")
    change_meta(folder, 3, "WNID", "n90001357")
    with pytest.raises(ValueError, match=r"two of the 5 leaves have the same WNID"):
        SOURCE.classes(folder)


def test_a_devkit_that_is_not_one_is_an_error(folder: Path) -> None:
    kit = folder / DEVKIT
    whole = kit.read_bytes()
    for broken in (b"", b"junk", whole[:100], np.random.default_rng(0).bytes(3000)):
        change(kit, **{META: broken})
        with pytest.raises(ValueError, match=r"meta\.mat is not the devkit's list of synsets"):
            SOURCE.classes(folder)
        kit.write_bytes(whole)
    for name in (META, TRUTH):
        change(kit, **{name: None})
        with pytest.raises(ValueError, match=rf"{DEVKIT} has no member {Path(name).name}"):
            SOURCE.classes(folder)
        kit.write_bytes(whole)
    kit.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=DEVKIT):
        SOURCE.classes(folder)


def test_a_cut_archive_is_an_error_wherever_it_is_cut(folder: Path) -> None:
    for name in (TRAIN, VAL):
        whole = (folder / name).read_bytes()
        for kept in (0.1, 0.5, 0.9):
            (folder / name).write_bytes(whole[: int(len(whole) * kept)])
            with pytest.raises(ValueError, match=name):
                everything(folder)
        (folder / name).write_bytes(whole)
