"""LFW: the look-alike against an independent reading, both protocols' pairs, and every way to disagree."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import shutil
import tarfile
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.samples import lfw as sample
from pipelines.sources import lfw
from pipelines.sources.base import NoOptions, Sample
from pipelines.sources.lfw import PairCounts, count_pairs, read_pairs, read_people
from tests.sharding import settings, sharded, stored

TGZ, PEOPLE, PAIRS = "lfw.tgz", "people.txt", "pairs.txt"
OPTIONS = {"folds": 3, "people": 6, "images": 4, "pairs": 7, "size": 63}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lfw")
    sample.write(folder, **OPTIONS)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "raw")
    return tmp_path / "raw"


def everything(folder: Path) -> list[Sample]:
    return [one for unit in lfw.units(folder, NoOptions()) for one in lfw.samples(unit)]


def images(path: Path) -> dict[str, bytes]:
    """Name below the archive's folder -> bytes."""
    with tarfile.open(path, "r:gz") as tar:
        files = [member for member in tar.getmembers() if member.isfile()]
        return {member.name.split("/", 1)[1]: tar.extractfile(member).read() for member in files}


def tgz_of(path: Path, files: dict[str, bytes], **header: object) -> None:
    with tarfile.open(path, "w:gz", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in header.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))


def listed(folder: Path) -> list[dict[str, int]]:
    """`people.txt`, read as torchvision does: https://github.com/pytorch/vision, torchvision/datasets/lfw.py."""
    lines = (folder / PEOPLE).read_text().splitlines()
    folds, start = [], 1
    for _ in range(int(lines[0])):
        count = int(lines[start])
        rows = [line.strip().split("\t") for line in lines[start + 1 : start + count + 1]]
        folds.append({name: int(number) for name, number in rows})
        start += count + 1
    assert start == len(lines)
    return folds


def edit(path: Path, line: int, new: str | None) -> None:
    """Replace a line, counted from 1; None takes it out."""
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [] if new is None else [new]
    path.write_text("\n".join(lines) + "\n")


# The source.


def test_every_image_has_the_name_of_its_person(whole: Path) -> None:
    found = everything(whole)
    assert {one.name: one.image for one in found} == images(whole / TGZ)
    assert {one.split for one in found} == {"test"}
    assert all(one.fields == {"identity": one.name.split("/")[0]} and one.place is None for one in found)
    counts = Counter(one.fields["identity"] for one in found)
    assert counts == {name: count for fold in listed(whole) for name, count in fold.items()}
    assert lfw.classes(whole) == []


def test_units_are_small_independent_and_picklable(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = everything(whole)
    monkeypatch.setattr(lfw, "UNIT", 10)
    units = pickle.loads(pickle.dumps(lfw.units(whole, NoOptions())))
    assert len(units) == -(-len(every) // 10) > 3
    assert [one for unit in units for one in lfw.samples(unit)] == every
    assert {one.name for unit in reversed(units) for one in lfw.samples(unit)} == {one.name for one in every}


@pytest.mark.parametrize(
    ("name", "root"), [("lfw-funneled.tgz", "lfw_funneled"), ("lfw-deepfunneled.tgz", "lfw-deepfunneled")]
)
def test_the_aligned_archives_are_read_too(folder: Path, name: str, root: str) -> None:
    before = everything(folder)
    files = {f"{root}/{image}": data for image, data in images(folder / TGZ).items()}
    tgz_of(folder / name, {f"{root}/pairs_01.txt": b"more than images", **files})
    with pytest.raises(ValueError, match=rf"raw holds lfw\.tgz and {name}: it must hold one of lfw\.tgz, lfw-funneled"):
        lfw.units(folder, NoOptions())
    (folder / TGZ).unlink()
    assert everything_named(folder) == {one.name: one.image for one in before}
    (folder / name).rename(folder / TGZ)  # an archive under another's name
    with pytest.raises(ValueError, match=rf"{TGZ} holds 0 images, people.txt counts {len(before)}"):
        lfw.units(folder, NoOptions())


def everything_named(folder: Path) -> dict[str, bytes]:
    return {one.name: one.image for one in everything(folder)}


def test_missing_files_are_named(folder: Path) -> None:
    for name, says in ((PAIRS, "pairs.txt does not exist"), (PEOPLE, "people.txt does not exist"),
                       (TGZ, "raw holds no archive: it must hold one of lfw.tgz, lfw-funneled.tgz")):  # fmt: skip
        (folder / name).unlink()
        with pytest.raises(ValueError, match=says):
            lfw.units(folder, NoOptions())


def test_the_archive_holds_what_people_txt_counts(folder: Path) -> None:
    files = {f"lfw/{name}": data for name, data in images(folder / TGZ).items()}
    count = len(files)
    first = sorted(files)[0]
    less = {name: data for name, data in files.items() if name != first}
    for changed, says in (
        (less, f"holds {count - 1} images.* {count}; .*: {first[4:]}"),
        ({**files, "lfw/No_One/No_One_0001.jpg": b"x"}, rf"holds {count + 1} images, .*: No_One/No_One_0001\.jpg"),
        ({**files, f"{first[:-8]}0077.jpg": b"x"}, rf"holds {count + 1} images, .*_0077\.jpg"),
        ({**files, f"{first[:-8]}7.jpg": b"x"}, rf"holds {count + 1} images, .*_7\.jpg"),
    ):  # fmt: skip
        tgz_of(folder / TGZ, changed)
        with pytest.raises(ValueError, match=rf"{TGZ} {says}"):
            lfw.units(folder, NoOptions())


@pytest.mark.parametrize(
    ("name", "header", "says"),
    [
        ("lfw/../../evil.jpg", {}, "is not a path inside the archive"),
        ("/etc/evil.jpg", {}, "is not a path inside the archive"),
        ("lfw/A/A_0001.jpg", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}, "is not a plain file"),
        ("lfw/A/A_0001.jpg", {"type": tarfile.LNKTYPE, "linkname": "x", "size": 0}, "is not a plain file"),
        ("lfw/A/A_0001.jpg", {"type": tarfile.CHRTYPE, "size": 0}, "is not a plain file"),
    ],
)
def test_a_hostile_member_is_refused(folder: Path, name: str, header: dict[str, object], says: str) -> None:
    tgz_of(folder / TGZ, {name: b"x"}, **header)
    with pytest.raises(ValueError, match=rf"{TGZ}: member .* {says}"):
        lfw.units(folder, NoOptions())


def test_a_cut_or_damaged_archive_is_an_error(folder: Path) -> None:
    data = (folder / TGZ).read_bytes()
    broken = [data[:kept] for kept in (0, 9, 100, len(data) // 2, len(data) - 200, len(data) - 9, len(data) - 1)]
    broken += [
        data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :] for place in (1, 5000, 20_000, len(data) - 6)
    ]
    broken += [gzip.decompress(data), b"<html>" * 100, gzip.compress(b"<html>" * 100), gzip.compress(b"")]
    for these in broken:
        (folder / TGZ).write_bytes(these)
        with pytest.raises(ValueError, match=TGZ):
            lfw.units(folder, NoOptions())


# The protocols.


def test_pairs_are_the_lists_own_by_the_names_of_the_images(whole: Path) -> None:
    lines = [line.split("\t") for line in (whole / PAIRS).read_text().splitlines()]
    folds, count = map(int, lines.pop(0))
    assert (folds, count, len(lines)) == (3, 7, 3 * 2 * 7)
    pairs = read_pairs(whole / PAIRS, read_people(whole / PEOPLE))
    names = images(whole / TGZ)
    for place, (pair, row) in enumerate(zip(pairs, lines, strict=True)):
        name, number, *other = row
        second, second_number = (name, other[0]) if len(other) == 1 else other
        assert pair.fold == place // 14
        assert pair.is_same == (place % 14 < 7) == (len(row) == 3)
        assert pair.first == f"{name}/{name}_{int(number):04d}.jpg"
        assert pair.second == f"{second}/{second}_{int(second_number):04d}.jpg"
        assert {pair.first, pair.second} <= names.keys()


def test_the_numbers_of_all_pairs_are_those_that_counting_gives(whole: Path) -> None:
    people = read_people(whole / PEOPLE)
    assert people == listed(whole)
    every = [(one.split("/")[0], two.split("/")[0]) for one, two in combinations(images(whole / TGZ), 2)]
    counts = count_pairs(people)
    assert counts == PairCounts(sum(one == two for one, two in every), sum(one != two for one, two in every))
    assert counts.total == len(every)


def test_upstreams_numbers_tell_rates_that_the_6000_pairs_cannot() -> None:
    """13,233 images; how they are spread over the people does not change the total."""
    everyone = [{f"{fold}_{number}": 2 for number in range(574)} for fold in range(10)] + [{"last": 1753}]
    counts = count_pairs(everyone)
    assert counts.total == 87_549_528
    assert counts.genuine == 5740 + 1753 * 1752 // 2
    assert 1 / counts.impostor < 1e-4 < 1 / 3000
    assert count_pairs([{"a": 1}, {"b": 1}]) == PairCounts(0, 1)
    assert count_pairs([{"a": 1}]) == PairCounts(0, 0)


@pytest.mark.parametrize(
    ("line", "new", "says"),
    [
        (1, "4", r"people\.txt is cut: it ends where the number of people in fold 4 should stand"),
        (1, "2", r"people\.txt line 16: \['6'\] is more than the counts before it announce"),
        (1, "0", r"people\.txt line 1: \['0'\] is not the number of folds in 1\.\.9999"),
        (1, "3\t300", r"people\.txt line 1: \['3', '300'\] is not the number of folds"),
        (2, "7", r"people\.txt line 9: \['6'\] is not a name and a number"),
        (2, "5", r"people\.txt line 8: .* is not the number of people in fold 2"),
        (2, "\u0661", r"people\.txt line 2: .* is not the number of people in fold 1"),
        (3, None, r"people\.txt line 8: \['6'\] is not a name and a number of images in 1\.\.9999"),
        (22, None, r"people\.txt is cut: it ends where a person of fold 3 should stand"),
        (3, "Some One 4", r"people\.txt line 3: \['Some One 4'\] is not a name and a number"),
        (3, "Some_One\t0", r"people\.txt line 3: .* is not a name and a number of images in 1\.\.9999"),
        (3, "Some_One\t-1", r"people\.txt line 3: .* is not a name and a number of images in 1\.\.9999"),
        (3, "Some_One\t10000", r"people\.txt line 3: .* is not a name and a number of images in 1\.\.9999"),
        (3, "..\t2", r"people\.txt line 3: .* is not a name"),
        (3, "a/b\t2", r"people\.txt line 3: .* is not a name"),
        (3, "Some_One\t3", r"holds \d+ images, people\.txt counts \d+|'.*' is not in people\.txt"),
    ],
)
def test_a_list_of_people_that_contradicts_itself_is_an_error(folder: Path, line: int, new: str, says: str) -> None:
    edit(folder / PEOPLE, line, new)
    with pytest.raises(ValueError, match=says):
        lfw.units(folder, NoOptions())


def test_a_person_in_two_folds_is_an_error(folder: Path) -> None:
    lines = (folder / PEOPLE).read_text().splitlines()
    edit(folder / PEOPLE, 12, lines[4])
    name = lines[4].split("\t")[0]
    with pytest.raises(ValueError, match=rf"people\.txt line 12: {name} comes twice"):
        read_people(folder / PEOPLE)


PERSON = [("Ada", 3), ("Bo", 2), ("Cleo", 2), ("Dai", 2)]
GOOD = ["2\t1", "Ada\t1\t3", "Ada\t1\tBo\t2", "Cleo\t1\t2", "Cleo\t1\tDai\t2"]


@pytest.mark.parametrize(
    ("line", "new", "says"),
    [
        (1, "3\t1", r"has 3 folds, people\.txt has 2"),
        (1, "1\t1", r"has 1 folds, people\.txt has 2"),
        (1, "2", r"line 1: \['2'\] is not a number of folds and one of pairs"),
        (1, "2 1", r"line 1: \['2 1'\] is not a number of folds and one of pairs"),
        (1, "2\t0", r"line 1: .* is not a number of folds and one of pairs in 1\.\.9999"),
        (1, "2\t2", r"line 3: .* is not name, number, number, as a genuine pair is"),
        (5, None, r"is cut: it ends where a pair of fold 2 should stand"),
        (5, "Cleo\t1\tDai\t2\nCleo\t2\tDai\t2", r"line 6: .* is more than the counts before it announce"),
        (2, "Ada\t1\tBo\t2", r"line 2: .* is not name, number, number, as a genuine pair is"),
        (3, "Ada\t1\t2", r"line 3: .* is not name, number, name, number, as an impostor pair is"),
        (2, "Eve\t1\t2", r"line 2: 'Eve' is not in people\.txt"),
        (3, "Ada\t1\tEve\t1", r"line 3: 'Eve' is not in people\.txt"),
        (2, "Ada\t1\t4", r"line 2: '4' is not an image of Ada in 1\.\.3"),
        (2, "Ada\t0\t3", r"line 2: '0' is not an image of Ada in 1\.\.3"),
        (3, "Ada\t1\tBo\t3", r"line 3: '3' is not an image of Bo in 1\.\.2"),
        (3, "Ada\t1\tBo\tx", r"line 3: 'x' is not an image of Bo in 1\.\.2"),
        (2, "Ada\t2\t2", r"line 2: .* is not two images of one person"),
        (3, "Ada\t1\tAda\t2", r"line 3: .* is not images of two people"),
        (4, "Ada\t1\t2", r"line 4: Ada is in fold 2 and in fold 1"),
        (5, "Cleo\t1\tBo\t2", r"line 5: Bo is in fold 2 and in fold 1"),
    ],
)
def test_pairs_that_contradict_the_people_or_themselves_are_an_error(
    tmp_path: Path, line: int, new: str | None, says: str
) -> None:
    path = tmp_path / PAIRS
    path.write_text("\n".join(GOOD) + "\n")
    people = [dict(PERSON[:2]), dict(PERSON[2:])]
    assert len(read_pairs(path, people)) == 4
    edit(path, line, new)
    with pytest.raises(ValueError, match=rf"pairs\.txt {says}"):
        read_pairs(path, people)


@pytest.mark.parametrize("again", ["Ada\t1\t3", "Ada\t3\t1"])
def test_a_pair_that_comes_twice_is_an_error(tmp_path: Path, again: str) -> None:
    (tmp_path / PAIRS).write_text("\n".join(["1\t2", "Ada\t1\t3", again, "Ada\t1\tBo\t2", "Ada\t1\tBo\t1"]))
    with pytest.raises(
        ValueError, match=r"pairs\.txt line 3: the pair Ada/Ada_000\d\.jpg, Ada/Ada_000\d\.jpg comes twice"
    ):
        read_pairs(tmp_path / PAIRS, [dict(PERSON)])


def test_a_list_cut_anywhere_is_an_error(folder: Path) -> None:
    """Only a cut within the last number can pass: fewer of its digits are a number too."""
    for name in (PEOPLE, PAIRS):
        text = (folder / name).read_bytes()
        last = len(text.rstrip()) - len(text.split()[-1])
        for kept in {0, 1, 2, *range(0, last, 7), last}:
            (folder / name).write_bytes(text[:kept])
            with pytest.raises(ValueError, match=name):
                lfw.units(folder, NoOptions())
        (folder / name).write_bytes(text)


def test_ends_of_lines_do_not_matter(folder: Path) -> None:
    before = lfw.units(folder, NoOptions())
    for name in (PEOPLE, PAIRS):
        text = (folder / name).read_bytes()
        for new in (text.replace(b"\n", b"\r\n"), text.rstrip(), text + b"\n\n"):
            (folder / name).write_bytes(new)
            assert lfw.units(folder, NoOptions()) == before


def test_a_list_of_a_terabyte_is_refused_unread(folder: Path) -> None:
    for name in (PAIRS, PEOPLE):
        with (folder / name).open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(ValueError, match=f"{name} has {1 << 40} bytes, allowed are {1 << 24}"):
            lfw.units(folder, NoOptions())


# Sharding.


def test_shards_hold_every_image_whatever_the_number_of_processes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lfw, "UNIT", 15)
    wanted = images(whole / TGZ)
    index = sharded("lfw", lfw.SOURCE, whole, tmp_path / "out", settings({"test": len(wanted)}))
    assert index.classes == ()
    assert index.splits["test"].samples == len(wanted)
    assert index.reencoded == {"cmyk": 2, "png": 2, "turned": 2}
    samples = stored(tmp_path / "out").items()
    found = {name: (one.fields["sha256"], one.fields["identity"]) for name, one in samples}
    assert found == {name: (hashlib.sha256(data).hexdigest(), name.split("/")[0]) for name, data in wanted.items()}


# The look-alike.


def test_the_archive_has_upstreams_names_and_odd_files_twice(whole: Path) -> None:
    with tarfile.open(whole / TGZ, "r:gz") as tar:
        members = tar.getmembers()
    folders = [member.name for member in members if member.isdir()]
    assert folders[0] == members[0].name == "lfw"
    assert sorted(folders[1:]) == sorted(f"lfw/{name}" for fold in listed(whole) for name in fold)
    assert (whole / TGZ).read_bytes()[3:8] == bytes(5)  # gzip's flags and time
    kinds = Counter()
    for data in images(whole / TGZ).values():
        image = Image.open(io.BytesIO(data))
        turned = image.getexif().get(0x0112, 1) != 1
        kinds["turned" if turned else image.format if image.format != "JPEG" else image.mode] += 1
        assert image.size == (63, 63)
    assert {kind: count for kind, count in kinds.items() if kind != "RGB"} == {
        "L": 2, "CMYK": 2, "PNG": 2, "turned": 2,
    }  # fmt: skip


def test_folds_have_people_of_one_image_and_of_several(whole: Path) -> None:
    folds = listed(whole)
    assert [len(fold) for fold in folds] == [6, 6, 6]
    for fold in folds:
        assert sorted(fold.values())[:3] == [1, 1, min(sorted(fold.values())[2:])]
        assert max(fold.values()) >= 5
        assert list(fold) == sorted(fold)
    names = [name for fold in folds for name in fold]
    assert len(set(names)) == 18
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-") for name in names)


def test_the_same_options_give_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    sample.write(tmp_path, **OPTIONS)
    assert all((tmp_path / name).read_bytes() == (whole / name).read_bytes() for name in (TGZ, PEOPLE, PAIRS))
    sample.write(tmp_path, **OPTIONS, seed=1)
    assert all((tmp_path / name).read_bytes() != (whole / name).read_bytes() for name in (TGZ, PEOPLE, PAIRS))


@pytest.mark.parametrize(
    "options", [{}, {"folds": 2, "people": 3, "images": 3, "pairs": 9}, {"folds": 20, "people": 7}]
)
def test_the_options_at_their_bounds_write_what_the_source_reads(tmp_path: Path, options: dict[str, int]) -> None:
    sample.write(tmp_path, **options, size=32)
    people = read_people(tmp_path / PEOPLE)
    assert lfw.units(tmp_path, NoOptions())
    pairs = read_pairs(tmp_path / PAIRS, people)
    assert Counter(pair.is_same for pair in pairs) == dict.fromkeys((True, False), len(pairs) // 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"folds": 1}, "folds 1 is not in 2"),
        ({"people": 2}, "people 2 is not in 3"),
        ({"folds": 20, "people": 8}, "people 8 is not in 3..7"),
        ({"images": 2}, "images 2 is not in 3"),
        ({"images": 3, "pairs": 10}, "pairs 10 is not in 1..9"),
        ({"size": 9}, "size 9 is not in 32"),
    ],
)
def test_options_without_room_are_refused(tmp_path: Path, options: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=f"sample lfw: {says}"):
        sample.write(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_genuine_pairs_are_more_alike_than_impostor_pairs(tmp_path: Path) -> None:
    """By the colour of the middle of the picture alone, with the light taken out."""
    sample.write(tmp_path, folds=10, people=6, images=6, pairs=30)
    colours = {}
    for one in everything(tmp_path):
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(one.image)))
        if picture.mode == "RGB":  # grey ones have no colour to compare
            colour = np.median(np.asarray(picture)[52:75, 48:77].reshape(-1, 3), axis=0)
            colours[one.name] = colour / np.linalg.norm(colour)
    every = read_pairs(tmp_path / PAIRS, read_people(tmp_path / PEOPLE))
    pairs = [pair for pair in every if {pair.first, pair.second} <= colours.keys()]
    assert len(pairs) > 500
    distance = np.array([np.linalg.norm(colours[pair.first] - colours[pair.second]) for pair in pairs])
    is_same = np.array([pair.is_same for pair in pairs])
    assert np.mean(distance[is_same][:, None] < distance[~is_same][None]) > 0.85  # area under the ROC curve
