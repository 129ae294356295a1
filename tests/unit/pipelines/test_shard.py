"""Sharding end to end on real archives: what comes out, for any number of processes, and what faults leave behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipelines import shard
from pipelines.manifest import check_fetched
from pipelines.samples import SAMPLES
from pipelines.samples.drawing import HUES
from pipelines.shard import main, write_shards
from pipelines.shards import INDEX, Index, read_index, read_split, verify
from pipelines.sources import SOURCES
from pipelines.sources.base import NoOptions, Sample, Source
from tests.sharding import digests, settings, stored

IMAGENET = SOURCES["imagenet"]
COUNTS = {"train": 48, "val": 24}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    SAMPLES["imagenet"](folder, classes=12, train=4, val=2)
    return folder


@pytest.fixture(scope="module")
def shards(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "imagenet"
    write_shards("imagenet", IMAGENET, raw, folder, settings(COUNTS), processes=1)
    return folder


def upstream(raw: Path) -> dict[str, Sample]:
    return {sample.name: sample for unit in IMAGENET.units(raw, NoOptions()) for sample in IMAGENET.samples(unit)}


def test_every_upstream_image_is_stored_once_with_its_label(raw: Path, shards: Path) -> None:
    expected = upstream(raw)
    changed = 0
    for split in COUNTS:
        samples = stored(shards, split)
        assert [one.key for one in samples.values()] == [f"{number:08d}" for number in range(COUNTS[split])]
        assert sorted(samples) == sorted(name for name, sample in expected.items() if sample.split == split)
        for name, (_, _, image, fields) in samples.items():
            sample = expected[name]
            height, width, colours, _ = simplejpeg.decode_jpeg_header(image)
            assert fields == {
                "name": sample.name, "sha256": hashlib.sha256(sample.image).hexdigest(),
                "width": width, "height": height, "label": sample.fields["label"],
            }  # fmt: skip
            assert colours in ("YCbCr", "Gray")
            changed += image != sample.image
    assert changed == 9  # CMYK, PNG and turned: twice each in train, once in val


def test_the_index_tells_what_is_there(raw: Path, shards: Path) -> None:
    index = read_index(shards)
    assert index.dataset == "imagenet"
    assert index.classes == tuple(IMAGENET.classes(raw))
    assert {name: split.samples for name, split in index.splits.items()} == COUNTS
    assert [shard.samples for shard in index.splits["train"].shards] == [20, 20, 8]
    assert [shard.name for shard in index.splits["val"].shards] == ["val-000000.tar", "val-000001.tar"]
    assert index.skipped == {}
    assert index.reencoded == {"cmyk": 3, "png": 3, "turned": 3}
    every = [one for split in index.splits.values() for one in split.shards]
    for one in every:
        verify(shards, one)
    assert {path.name for path in shards.iterdir()} == {
        INDEX, *(shard.name for shard in every), *(shard.offsets_name for shard in every),
    }  # fmt: skip


def test_one_and_four_processes_write_the_same_bytes(raw: Path, shards: Path, tmp_path: Path) -> None:
    write_shards("imagenet", IMAGENET, raw, tmp_path / "four", settings(COUNTS), processes=4)
    assert digests(tmp_path / "four") == digests(shards)


def test_samples_are_shuffled_by_the_seed(raw: Path, shards: Path, tmp_path: Path) -> None:
    order = list(stored(shards, "train"))
    labels = [one.fields["label"] for one in stored(shards, "train").values()]
    assert order != sorted(order)
    assert len(set(labels[:20])) > 6  # every shard has of nearly every class
    write_shards("imagenet", IMAGENET, raw, tmp_path / "other", settings(COUNTS, seed=1), processes=1)
    assert order != (other := list(stored(tmp_path / "other", "train")))
    assert sorted(order) == sorted(other)


def test_labels_fit_what_the_pictures_show(shards: Path) -> None:
    """Archive, devkit, ground truth and shard together: the hue in the middle of a picture is its class's."""
    for split in COUNTS:
        right = []
        for _, _, image, fields in stored(shards, split).values():
            pixels = np.asarray(Image.open(io.BytesIO(image)).convert("HSV")).reshape(-1, 3)
            strong = pixels[pixels[:, 1] > 110, 0]
            counts = {hue: np.sum(np.abs((strong / 256 - turn + 0.5) % 1 - 0.5) < 0.07) for hue, turn in HUES.items()}
            right.append(max(counts, key=counts.get) == list(HUES)[fields["label"] % 4])
        assert np.mean(right) > 0.75  # by chance: 0.25


def test_webdataset_reads_the_shards(shards: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted(shards.glob("val-*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).to_tuple("jpg", "json")
    assert [(image, json.loads(fields)) for image, fields in dataset] == [
        (one.image, one.fields) for one in stored(shards, "val").values()
    ]


def test_a_stored_side_shrinks_what_is_larger(raw: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    index = write_shards("imagenet", IMAGENET, raw, small, settings(COUNTS, stored_short_side=70), processes=1)
    before = {name: min(Image.open(io.BytesIO(sample.image)).size) for name, sample in upstream(raw).items()}
    for split in COUNTS:
        for name, (_, _, image, fields) in stored(small, split).items():
            assert min(fields["width"], fields["height"]) == min(before[name], 70)
            assert simplejpeg.decode_jpeg_header(image)[:2] == (fields["height"], fields["width"])
    shrunk = sum(count for change, count in index.reencoded.items() if "shrunk" in change)
    assert shrunk == sum(side > 70 for side in before.values()) > 40


# A data set whose archive is compressed: images have no place, and wait in the spool. Three of its images are bad.

JPEG = simplejpeg.encode_jpeg(np.full((40, 50, 3), 90, np.uint8))
TOY_IMAGES = [JPEG + bytes([number]) for number in range(7)] + [b"", JPEG[:-9], b"<html>no longer here</html>"]


def toy_samples(unit: int) -> Iterator[Sample]:
    for number, image in list(enumerate(TOY_IMAGES))[unit::2]:
        yield Sample("train", f"{number}.jpg", image, {"boxes": [[number, 2.5]], "text": '\u2603 \n "'})


TOY = Source(lambda _: [], lambda *_: [0, 1], toy_samples)


def test_a_bad_image_stops_the_work_and_is_named(raw: Path, tmp_path: Path) -> None:
    target = tmp_path / "toy"
    with pytest.raises(ValueError, match=r"^image 8\.jpg: truncated$"):
        write_shards("toy", TOY, raw, target, settings({"train": 10}), processes=1)
    with pytest.raises(ValueError, match=r"img_train\.tar: image n90001357/n90001357_1\.JPEG: too many pixels$"):
        write_shards("imagenet", IMAGENET, raw, target, settings(COUNTS, max_pixels=100), processes=1)
    assert list(tmp_path.iterdir()) == []


def test_bad_images_are_skipped_and_counted_where_the_params_say_so(raw: Path, tmp_path: Path) -> None:
    target = tmp_path / "toy"
    skip = settings({"train": 10}, bad_images="skip")
    index = write_shards("toy", TOY, raw, target, skip, processes=1)
    assert index.skipped == {"empty": 1, "not an image": 1, "truncated": 1}
    assert index.splits["train"].samples == 7
    found = stored(target, "train").items()
    by_name = {name: (image, fields["boxes"], fields["text"]) for name, (_, _, image, fields) in found}
    assert by_name == {
        f"{number}.jpg": (TOY_IMAGES[number], [[number, 2.5]], "\u2603 \n \"") for number in range(7)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ({"train": 49, "val": 24}, "hold 48 samples of split 'train', shard.samples in params.yaml says 49"),
        ({"train": 48}, "hold 24 samples of split 'val', shard.samples in params.yaml says 0"),
        ({**COUNTS, "test": 5}, "hold 0 samples of split 'test', shard.samples in params.yaml says 5"),
    ],
)
def test_another_number_of_samples_is_an_error(raw: Path, tmp_path: Path, samples: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        write_shards("imagenet", IMAGENET, raw, tmp_path / "out", settings(samples), processes=1)
    assert list(tmp_path.iterdir()) == []


def test_archives_without_one_image_to_store_are_not_taken_for_a_data_set_that_is_not_given(tmp_path: Path) -> None:
    source = Source(lambda _: [], lambda *_: [0], lambda _: iter([Sample("train", "0.jpg", b"", {})]))
    with pytest.raises(ValueError, match="data set toy: the archives hold no image that can be stored"):
        write_shards("toy", source, tmp_path, tmp_path / "out", settings({"train": 1}, bad_images="skip"), processes=1)


def test_a_failure_leaves_the_former_shards_and_success_replaces_them(raw: Path, shards: Path, tmp_path: Path) -> None:
    target = tmp_path / "imagenet"
    first: Index = write_shards("imagenet", IMAGENET, raw, target, settings(COUNTS, samples_per_shard=7), processes=1)
    before = digests(target)
    with pytest.raises(ValueError, match="too many bytes"):
        write_shards("imagenet", IMAGENET, raw, target, settings(COUNTS, max_bytes=100), processes=1)
    assert digests(target) == before
    assert read_index(target) == first
    write_shards("imagenet", IMAGENET, raw, target, settings(COUNTS), processes=1)
    assert digests(target) == digests(shards)
    assert list(tmp_path.iterdir()) == [target]


def in_a_process(raw: Path, target: Path, processes: int, before: str = "") -> subprocess.Popen:
    """`write_shards` in a process of its own, after the lines `before`; it prints the units as they are checked."""
    code = f"""
import sys
sys.path[:0] = {[os.getcwd(), *sys.path]!r}
from pathlib import Path
from pipelines import shard
from pipelines.config import Sharding
from pipelines.sources import SOURCES
if __name__ == "__main__":
    def shown(results, total, what):
        for number, result in enumerate(results):
            print(what, number, flush=True)
            yield result
    shard._progress = shown
    {before}
    settings = Sharding.model_validate({settings(COUNTS).model_dump()!r})
    shard.write_shards("imagenet", SOURCES["imagenet"], *map(Path, {[str(raw), str(target)]!r}), settings, {processes})
"""
    script = target.with_suffix(".py")
    script.write_text(code)
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("last", ["check 5", "write 2"])
@pytest.mark.slow
def test_a_kill_leaves_no_target_and_the_next_run_goes_on_to_the_same_end(
    raw: Path, shards: Path, tmp_path: Path, last: str
) -> None:
    target = tmp_path / "imagenet"
    process = in_a_process(raw, target, 1, before="import time; flush = shard._flush; "
                           "shard._flush = lambda path: (time.sleep(0.5), flush(path))")  # fmt: skip
    for line in process.stdout:
        if line.strip() == last:
            process.kill()
            break
    process.wait()
    process.stdout.close(), process.stderr.close()
    part = target.with_name("imagenet.part")
    assert not target.exists()
    done = {path: path.stat().st_ino for path in [*part.glob("spool/*.npz"), *part.glob("*.shard.json")]}
    assert len(done) >= (5 if last == "check 5" else 2)
    made = {path: path.stat().st_mtime_ns for path in done}
    seen = {}

    def looked_at(folder: Path) -> Index:
        seen.update({path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in done})
        return finish(folder)

    finish = shard._finish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard, "_finish", looked_at)
        write_shards("imagenet", IMAGENET, raw, target, settings(COUNTS), processes=1)
    assert seen == {path: (done[path], made[path]) for path in done}  # none was made a second time
    assert digests(target) == digests(shards)
    assert not part.exists()


def test_work_on_other_settings_or_archives_is_not_gone_on_with(raw: Path, shards: Path, tmp_path: Path) -> None:
    target = tmp_path / "imagenet"
    part = target.with_name("imagenet.part")

    def stop(folder: Path) -> Index:
        raise OSError("no space")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(shard, "_finish", stop)
        write_shards("imagenet", IMAGENET, raw, target, settings(COUNTS, seed=9), processes=1)
    assert list(part.glob("*.shard.json"))
    write_shards("imagenet", IMAGENET, raw, target, settings(COUNTS), processes=1)
    assert digests(target) == digests(shards)


def test_an_archive_that_changes_between_the_passes_is_an_error(raw: Path, tmp_path: Path) -> None:
    mine = tmp_path / "raw"
    shutil.copytree(raw, mine)
    path = mine / "ILSVRC2012_img_val.tar"
    gather = shard._gather

    def flip(*arguments: object) -> object:
        result = gather(*arguments)
        data = bytearray(path.read_bytes())
        data[700] ^= 1  # within the first image
        path.write_bytes(data)
        return result

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="changed while it was sharded"):
        patch.setattr(shard, "_gather", flip)
        write_shards("imagenet", IMAGENET, mine, tmp_path / "out", settings(COUNTS), processes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_parent(raw: Path, tmp_path: Path) -> None:
    process = in_a_process(raw, tmp_path / "imagenet", 2)
    process.stdout.readline()
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    process.stdout.close(), process.stderr.close()
    deadline = time.monotonic() + 10
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))


@pytest.mark.slow
def test_an_error_in_a_worker_is_the_same_error(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"img_train\.tar: image n90001357/n90001357_1\.JPEG: too many pixels$"):
        write_shards("imagenet", IMAGENET, raw, tmp_path / "out", settings(COUNTS, max_pixels=100), processes=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_worker_is_an_error_not_a_hang(raw: Path, tmp_path: Path) -> None:
    process = in_a_process(raw, tmp_path / "imagenet", 2)
    process.stdout.readline()
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a worker process was killed; has the machine run out of memory?" in errors
    assert not (tmp_path / "imagenet").exists()


def test_a_full_disk_leaves_no_shards_and_the_next_run_goes_on(raw: Path, shards: Path, tmp_path: Path) -> None:
    """Stood in for by a limit on the size of files, which also makes a write fail in the middle."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " \
            "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))"  # fmt: skip
    target = tmp_path / "imagenet"
    process = in_a_process(raw, target, 1, before=limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "File too large" in errors
    assert not target.exists()
    write_shards("imagenet", IMAGENET, raw, target, settings(COUNTS), processes=1)
    assert digests(target) == digests(shards)
    assert not target.with_name("imagenet.part").exists()


FLAT = """
import io, json, sys, tarfile
from pathlib import Path
sys.path[:0] = {path!r}
import numpy as np, simplejpeg
from pipelines.archives import members, opened, read
from pipelines.config import Sharding
from pipelines.shard import write_shards
from pipelines.sources.base import Place, Sample, Source
from tests.memory import peak_kib

folder, units, side = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
noise = np.random.default_rng(0).integers(0, 256, (200, 260, 3), dtype=np.uint8)
jpeg = simplejpeg.encode_jpeg(noise, 90)

def samples(unit):
    path = folder / f"{{unit}}.tar"
    with opened(path) as file:
        for member in members(file, str(path), max_members=1000, max_bytes=10**6):
            place = Place(path, member.offset)
            yield Sample("train", member.name, read(file, str(path), member), {{"label": 1}}, place)

folder.mkdir()
for unit in range(units):
    with tarfile.open(folder / f"{{unit}}.tar", "w") as tar:
        for number in range(50):
            info = tarfile.TarInfo(f"{{unit}}-{{number}}.jpg")
            info.size = len(jpeg)
            tar.addfile(info, io.BytesIO(jpeg))
settings = Sharding(seed=0, samples_per_shard=50, stored_short_side=side, max_pixels=10**6, max_bytes=10**6,
                    bad_images="error", samples={{"train": 50 * units}})
source = Source(lambda _: [], lambda *_: list(range(units)), samples)
write_shards("flat", source, folder, folder / "out", settings, processes=1)
print(peak_kib(), 50 * units * len(jpeg) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("side", [None, 100])
def test_memory_does_not_grow_with_the_data(tmp_path: Path, side: int | None) -> None:
    peaks, sizes = [], []
    for units in (4, 40):
        command = [
            sys.executable,
            "-c",
            FLAT.format(path=[os.getcwd(), *sys.path]),
            str(tmp_path / str(units)),
            str(units),
        ]
        done = subprocess.run([*command, json.dumps(side)], capture_output=True, text=True, check=True)
        peak, size = map(int, done.stdout.split())
        peaks.append(peak), sizes.append(size)
    assert sizes[1] - sizes[0] > 70_000  # KiB
    assert peaks[1] - peaks[0] < 10_000


PARAMS = """
scale: sample
tables: {}
scales:
  sample:
    recipes: {}
    datasets:
      imagenet: &dataset
        origin: "sample:imagenet"
        homepage: "https://image-net.org"
        files: {}
        shard: {seed: 0, samples_per_shard: 20, stored_short_side: null, max_pixels: 1000000, max_bytes: 1000000,
                bad_images: error, samples: {train: 48, val: 24}}
      unheard: *dataset
"""


def test_the_stage_shards_what_was_fetched(
    raw: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    Path("params.yaml").write_text(PARAMS)
    folder = Path("data/sample/raw/imagenet")
    folder.parent.mkdir(parents=True)
    folder.symlink_to(raw)

    def fails() -> str:
        with pytest.raises(SystemExit) as caught:
            main(["imagenet", "--scale", "sample"])
        assert caught.value.code == 1
        return capsys.readouterr().err

    again = "python -m pipelines.fetch imagenet --scale sample"
    assert f"manifest.json does not exist; make it with: {again}" in fails()
    listed = [{"name": path.name, "bytes": path.stat().st_size} for path in sorted(raw.glob("ILSVRC*"))]
    (raw / "manifest.json").write_text(json.dumps({"files": [*listed, {"name": "more.tar", "bytes": 5}]}))
    for file in listed:
        times = {"mtime_ns": (raw / file["name"]).stat().st_mtime_ns}
        (raw / f"{file['name']}.verified.json").write_text(json.dumps(times))
    assert f"more.tar has 0 bytes, data/sample/raw/imagenet/manifest.json says 5; mend it with: {again}" in fails()
    (raw / "manifest.json").write_text(json.dumps({"files": listed}))
    check_fetched(raw, True, again)
    record = raw / f"{listed[0]['name']}.verified.json"
    record.write_text(json.dumps({"mtime_ns": times["mtime_ns"] + 1}))
    assert f"was changed after it was verified; verify it again with: {again}" in fails()
    record.write_text(json.dumps({"mtime_ns": (raw / listed[0]["name"]).stat().st_mtime_ns}))
    main(["imagenet", "--scale", "sample"])
    assert digests(Path("data/sample/shards/imagenet")) == digests(shards)
    with pytest.raises(SystemExit):
        main(["unheard"])
    assert "data set 'unheard' has no source; there are: celeba, coco" in capsys.readouterr().err


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Runs the stage for an origin and a manifest, and returns what it logs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    caplog.set_level("INFO")

    def run(origin: str, manifest: dict, *options: str) -> list[str]:
        Path("params.yaml").write_text(PARAMS.replace('"sample:imagenet"', origin))
        folder = Path("data/sample/raw/imagenet")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        caplog.clear()
        main(["imagenet", *options])
        return caplog.messages

    return run


SHARDS = Path("data/sample/shards/imagenet")
NOT_GIVEN = {"dataset": "imagenet", "files": [], "given": False}


def test_shards_of_a_data_set_come_and_go_with_its_origin(raw: Path, shards: Path, stage) -> None:
    folder = Path("data/sample/raw/imagenet")
    assert stage("null", NOT_GIVEN) == [f"{SHARDS}: imagenet is not given (origin: null), there are no samples"]
    assert [path.name for path in SHARDS.iterdir()] == [INDEX]  # and there were no archives that it could have read
    assert read_index(SHARDS) == Index("imagenet", (), {}, {}, {})
    shutil.copytree(raw, folder, dirs_exist_ok=True)
    stage("somewhere", {"files": []})
    assert digests(SHARDS) == digests(shards)

    def stop(part: Path) -> Index:
        raise OSError("no space")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(shard, "_finish", stop)
        shard.write_no_shards("imagenet", folder, SHARDS, settings(COUNTS))
    assert digests(SHARDS) == digests(shards)
    stage("null", NOT_GIVEN)
    assert [path.name for path in SHARDS.iterdir()] == [INDEX]
    stage("somewhere", {"files": []})
    assert digests(SHARDS) == digests(shards)
    assert {path.name for path in SHARDS.parent.iterdir()} == {"imagenet", ".lock"}


def test_who_wants_samples_of_a_data_set_that_is_not_given_is_told_the_key(stage, capsys) -> None:
    stage("null", NOT_GIVEN)
    says = (
        f"{SHARDS} has no split: data set imagenet is not given; "
        "say in params.yaml (scales.sample.datasets.imagenet.origin) where it is"
    )
    with pytest.raises(ValueError, match=re.escape(says)):
        read_split(SHARDS, "val")
    with pytest.raises(SystemExit):
        stage("null", NOT_GIVEN, "--inspect")
    assert capsys.readouterr().err == f"error: {says}\n"


@pytest.mark.parametrize(
    ("origin", "manifest", "was"),
    [("null", {"files": []}, "was not null yet"), ("somewhere", NOT_GIVEN, "was null")],
)
def test_a_manifest_of_the_time_before_the_origin_was_changed_is_refused(stage, capsys, origin, manifest, was) -> None:
    with pytest.raises(SystemExit):
        stage(origin, manifest)
    message = f"manifest.json is of the time when the origin in params.yaml {was}; make it anew with: python -m "
    assert f"{message}pipelines.fetch imagenet --scale sample\n" in capsys.readouterr().err
    assert not SHARDS.exists()
