"""Detections in folders of images: coordinates against painted rectangles and by hand, and COCO's own reading."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import nn

from pipelines import paths, predict
from pipelines.config import Params, load
from pipelines.image_folder import find_pictures
from pipelines.pictures.boxes import colour_of
from pipelines.predict import Detector, predict_pictures
from pipelines.section import parsed
from pipelines.shards import Index, Split, Stored, read_index, write_shard
from pipelines.training.job import net_spec
from pipelines.training.reader import SplitReader
from tasks.nets import build

CATEGORIES = {1: "person", 3: "car", 90: "toothbrush"}


class Says(nn.Module):
    """A net that finds the same in every image, and keeps what it saw."""

    def __init__(self, *rows):
        super().__init__()
        self.rows, self.seen = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6), []

    def forward(self, images):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.seen.append(images.clone())
        return self.rows[None]


class Bright(nn.Module):
    """A net that finds the bright part of an image."""

    def forward(self, images):
        bright = images[0].mean(dim=0) > 0
        rows, columns = bright.any(dim=1).nonzero(), bright.any(dim=0).nonzero()
        side = len(bright)
        box = [columns.min() / side, rows.min() / side, (columns.max() + 1) / side, (rows.max() + 1) / side]
        return torch.tensor([[[*box, 0.9, 3], [0] * 6]])


def detector(net, size=64, central_fraction=0.875, antialias=False):
    return Detector(net.eval(), "cpu", size, central_fraction, antialias, CATEGORIES)


def run(net, folder, out, draw_above=0.3, threads=2, **view):
    predict_pictures(detector(net, **view), find_pictures(folder), out, draw_above, threads)
    return json.loads((out / "detections.json").read_text()), json.loads((out / "images.json").read_text())


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def photos(tmp_path):
    """Images of all kinds and sizes, whose names end with numbers."""
    rng, folder = np.random.default_rng(0), tmp_path / "photos"
    shapes = {"a_12.jpg": (96, 64, 3), "b/c/7.jpeg": (50, 200, 3), "b/grey_3.png": (40, 40), "rgba5.PNG": (31, 77, 4)}
    for name, shape in shapes.items():
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, *shape[2:]), dtype=np.uint8))
        save(folder / name, np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)))
    save(folder / "8.webp", rng.integers(0, 256, (300, 20, 3), dtype=np.uint8))
    (folder / "notes.txt").write_text("no image")
    return folder


SIZES = {"8.webp": (20, 300), "a_12.jpg": (64, 96), "b/c/7.jpeg": (200, 50), "b/grey_3.png": (40, 40),
         "rgba5.PNG": (77, 31)}  # fmt: skip


def test_boxes_are_mapped_from_the_central_crop_to_pixels_of_the_image(tmp_path):
    save(tmp_path / "in/1.png", np.zeros((64, 96, 3), np.uint8))
    rows = [(0.25, 0.5, 0.75, 1.0, 0.5, 3), (0.0, 0.0, 1.0, 1.0, 0.25, 1), (0, 0, 0, 0, 0, 0)]
    found, images = run(Says(*rows), tmp_path / "in", tmp_path / "out")
    # The central 0.875 of 64 rows begins at 4 and has 56, of 96 columns at 6 and has 84.
    assert found == [
        {"image_id": 1, "category_id": 3, "bbox": [27.0, 32.0, 42.0, 28.0], "score": 0.5},
        {"image_id": 1, "category_id": 1, "bbox": [6.0, 4.0, 84.0, 56.0], "score": 0.25},
    ]
    assert images == {
        "images": [{"id": 1, "file_name": "1.png", "width": 96, "height": 64}],
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
        "annotations": [],
    }


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize(("height", "width"), [(240, 640), (300, 120), (97, 101)])
@pytest.mark.parametrize("fraction", [1.0, 0.8])
def test_a_bright_rectangle_is_where_it_was_painted(tmp_path, suffix, height, width, fraction):
    pixels = np.zeros((height, width, 3), np.uint8)
    left, top, right, bottom = (round(s) for s in (0.3 * width, 0.45 * height, 0.5 * width, 0.85 * height))
    pixels[top:bottom, left:right] = 255
    save(tmp_path / f"in/x{suffix}", pixels, **({"quality": 95} if suffix in (".jpg", ".webp") else {}))
    (found,), _ = run(Bright(), tmp_path / "in", tmp_path / "out", size=200, central_fraction=fraction)
    pixel = np.array([width, height] * 2) / 200  # of what the net saw, in the image
    assert (np.abs(np.subtract(found["bbox"], [left, top, right - left, bottom - top])) <= 1.5 * pixel + 1).all()


@pytest.mark.parametrize("antialias", [False, True])
def test_the_net_sees_what_it_sees_in_evaluation(tmp_path, antialias):
    rng, shards, folder = np.random.default_rng(1), tmp_path / "shards", tmp_path / "in"
    shards.mkdir()
    folder.mkdir()
    stored = []
    for number, (height, width) in enumerate([(80, 120), (301, 97), (33, 64)]):
        jpeg = simplejpeg.encode_jpeg(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), quality=90)
        (folder / f"{number}.jpg").write_bytes(jpeg)
        stored.append(Stored(number, jpeg, b"{}", height, width))
    splits = {"test": Split(3, (write_shard(shards, "test-000000", iter(stored)),))}
    (shards / "index.json").write_bytes(Index("tiny", (), splits, {}, {}).to_json())
    images, _ = SplitReader(shards, "test").decode_central(np.arange(3), 64, 0.875, antialias)
    net = Says()
    run(net, folder, tmp_path / "out", antialias=antialias)
    assert [tuple(seen.shape) for seen in net.seen] == [(1, 3, 64, 64)] * 3
    torch.testing.assert_close(torch.cat(net.seen), images.permute(0, 3, 1, 2) / 127.5 - 1, rtol=0, atol=1e-6)
    assert net.seen[0].is_contiguous(memory_format=torch.channels_last)


def test_pycocotools_reads_what_is_written(photos, tmp_path):
    rows = [(0.1, 0.2, 0.6, 0.9, 0.9, 90), (0.1, 0.1, 0.3, 0.3, 1e-7, 3), (0, 0, 1, 1, 1e-8, 12), (0,) * 6]
    found, images = run(Says(*rows), photos, tmp_path / "out")
    truth = COCO(tmp_path / "out/images.json")
    results = truth.loadRes(str(tmp_path / "out/detections.json"))
    assert {image["file_name"]: (image["width"], image["height"]) for image in images["images"]} == SIZES
    assert [image["file_name"] for image in images["images"]] == sorted(SIZES)
    assert [image["id"] for image in images["images"]] == [8, 12, 7, 3, 5]
    assert [result["image_id"] for result in found] == [8, 8, 12, 12, 7, 7, 3, 3, 5, 5]
    assert [result["score"] for result in found[:2]] == [0.9, 1e-7], "best first; 12 is no category"
    for number in truth.getImgIds():
        best, _ = results.loadAnns(results.getAnnIds(number))
        (image,) = truth.loadImgs(number)
        assert truth.loadCats(best["category_id"])[0]["name"] == "toothbrush"
        x, y, w, h = best["bbox"]
        assert 0 <= x < x + w <= image["width"]
        assert 0 <= y < y + h <= image["height"]


def test_no_detection_is_an_empty_list(photos, tmp_path):
    found, images = run(Says(), photos, tmp_path / "out")
    assert found == []
    assert len(images["images"]) == len(SIZES)


def drawn(out):
    return {path.relative_to(out / "drawn").as_posix(): path for path in (out / "drawn").rglob("*") if path.is_file()}


def test_boxes_of_a_high_score_are_drawn(tmp_path):
    save(tmp_path / "in/a/wide.png", np.full((400, 600, 3), 90, np.uint8))
    rows = [(0.1, 0.2, 0.5, 0.9, 0.5, 3), (0.6, 0.2, 0.9, 0.9, 0.45, 1)]
    for threshold, shown in [(0.5, [3]), (0.4, [3, 1]), (0.6, [])]:
        out = tmp_path / str(threshold)
        run(Says(*rows), tmp_path / "in", out, draw_above=threshold, central_fraction=1.0)
        pixels = np.asarray(Image.open(drawn(out)["a/wide.jpg"])).astype(int)
        assert pixels.shape == (400, 600, 3)
        for category, x in ((3, 60), (1, 360)):
            line = pixels[200:300, x + 1]  # the left side of its box
            assert (np.abs(line - colour_of(category)).max() < 60) == (category in shown)
        label = pixels[50:80, 60:200]
        assert (np.abs(label - colour_of(3)).max(axis=2) < 30).any() == (3 in shown)


def test_pictures_lie_as_the_images_do_and_small_ones_are_larger(photos, tmp_path):
    run(Says(), photos, tmp_path / "out")
    sizes = {name: Image.open(path).size for name, path in drawn(tmp_path / "out").items()}
    assert sizes == {"8.jpg": (5 * 20, 5 * 300), "a_12.jpg": (5 * 64, 5 * 96), "b/c/7.jpg": (6 * 200, 6 * 50),
                     "b/grey_3.jpg": (320, 320), "rgba5.jpg": (10 * 77, 10 * 31)}  # fmt: skip
    assert {Image.open(path).format for path in drawn(tmp_path / "out").values()} == {"JPEG"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"detections.json", "images.json", "drawn"}


SMALL = {  # a detector of the paper that takes any size, with random weights
    "net": "ssd300_mobilenet", "width": 1.0, "resolution": 96, "resolution_divisor": 1.5,
    "detection": {"proposals": 300, "second_stage_boxes": 64, "score_threshold": 1e-8, "nms_iou": 0.6,
                  "max_detections": 20},
}  # fmt: skip
CLASSES = tuple(f"{number} some thing" for number in range(1, 91) if number != 12)


@pytest.fixture(scope="module")
def params():
    sample = load().scales["sample"]
    row = {"net": "mobilenet", "width": 0.25, "resolution": 64, "resolution_divisor": 2}
    tables = {
        "coco": {"task": "object_detection", "dataset": "dots", "test": {"dataset": "dots", "split": "val"},
                 "num_outputs": 91, "runs": {"ssd": SMALL, "untrained": SMALL}},
        "dogs": {"task": "stanford_dogs", "dataset": "dots", "test": {"dataset": "dots", "split": "val"},
                 "num_outputs": 120, "runs": {"hounds": row}},
    }  # fmt: skip
    recipe = {"defaults": sample.recipes["imagenet"].defaults, "runs": {}}
    datasets = {"dots": sample.datasets["imagenet"].model_dump()}
    small = {"datasets": datasets, "recipes": {"coco": recipe, "dogs": recipe}}
    return parsed(Params, {"scale": "small", "tables": tables, "scales": {"small": small}}, "")


@pytest.fixture(scope="module")
def weights(params):
    torch.manual_seed(0)
    return build(net_spec(params.runs("coco", "small")["ssd"], 91)).state_dict()


@pytest.fixture
def command(params, weights, tiny_shards, tmp_path, monkeypatch):
    """Runs the command beside a finished row of "ssd"; returns the folder that it wrote."""
    shards, row = tmp_path / "shards", tmp_path / "results/small/coco/train/ssd"
    shutil.copytree(tiny_shards, shards)
    index = replace(read_index(shards), classes=CLASSES)
    (shards / "index.json").write_bytes(index.to_json())
    row.mkdir(parents=True)
    torch.save(weights, row / "weights.pt")
    record = {"fingerprint": "f", "run": params.runs("coco", "small")["ssd"].model_dump(), "num_outputs": 91}
    record |= {"data_digest": index.digest, "classes": CLASSES}
    (row / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "shards", lambda scale, name: shards)
    monkeypatch.setattr(predict, "load", lambda: params)

    def call(folder, out="out", *options, name="ssd"):
        predict.main([name, str(folder), str(tmp_path / out), *options])
        return tmp_path / out

    return call


def by_image(out):
    """Lines of the file as they are, by image: equal lines are equal to the last bit."""
    found = {}
    for line in (out / "detections.json").read_text().splitlines()[1:-1]:
        line = line.removesuffix(",")
        found.setdefault(json.loads(line)["image_id"], []).append(line)
    return found


def test_what_is_found_in_an_image_does_not_depend_on_the_others(command, photos, tmp_path):
    together = by_image(command(photos, "together"))
    assert set(together) == {8, 12, 7, 3, 5}
    assert len({tuple(line.split('"category_id"')[1] for line in lines) for lines in together.values()}) == 5
    for number, name in [(12, "a_12.jpg"), (3, "b/grey_3.png")]:
        alone = tmp_path / f"only_{number}" / f"x{number}{Path(name).suffix}"
        alone.parent.mkdir()
        shutil.copy(photos / name, alone)
        assert by_image(command(alone.parent, f"alone_{number}")) == {number: together[number]}
    turned = tmp_path / "turned"  # the other way round
    for place, (number, name) in enumerate([(5, "rgba5.PNG"), (3, "b/grey_3.png"), (12, "a_12.jpg")]):
        turned.mkdir(exist_ok=True)
        shutil.copy(photos / name, turned / f"{place}_{number}{Path(name).suffix}")
    assert by_image(command(turned, "turned_out")) == {number: together[number] for number in (5, 3, 12)}


def test_a_trained_detector_says_what_its_net_says(command, params, weights, photos, tmp_path):
    shutil.copytree(photos / "b/c", tmp_path / "one")
    out = command(tmp_path / "one")
    net = build(net_spec(params.runs("coco", "small")["ssd"], 91)).eval()
    net.load_state_dict(weights)
    pixels = np.array(Image.open(tmp_path / "one/7.jpeg"))
    crop = torch.from_numpy(pixels[3:47, 12:188]).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        size = params.runs("coco", "small")["ssd"].input_size
        rows = net(nn.functional.interpolate(crop, (size, size), mode="bilinear") / 127.5 - 1)[0]
    wanted = [row for row in rows.tolist() if row[5] != 12]
    found = [json.loads(line) for line in by_image(out)[7]]
    assert [result["category_id"] for result in found] == [int(row[5]) for row in wanted]
    for result, (x1, y1, x2, y2, score, _) in zip(found, wanted, strict=True):
        box = [12 + 176 * x1, 3 + 44 * y1, 176 * (x2 - x1), 44 * (y2 - y1)]
        assert result["bbox"] == pytest.approx(box, abs=0.5)
        assert result["score"] == pytest.approx(score, abs=1e-3)
    assert len(found) >= 15, "a few detections show little"
    categories = json.loads((out / "images.json").read_text())["categories"]
    assert categories == [{"id": number, "name": "some thing"} for number in range(1, 91) if number != 12]


def test_values_can_be_given_in_place_of_the_runs_own(params):
    own = predict.detector_run(params, "small", "ssd", {})
    assert own == params.runs("coco", "small")["ssd"]
    other = predict.detector_run(params, "small", "ssd", {"score_threshold": 0.5, "max_detections": 3})
    assert other.detection.model_dump() == SMALL["detection"] | {"score_threshold": 0.5, "max_detections": 3}
    assert net_spec(other, 91).suppression == (0.5, 0.6, 3)


def test_options_reach_the_net(command, photos, tmp_path):
    few = by_image(command(photos, "few", "--max-detections", "2"))
    assert [len(lines) for lines in few.values()] == [2] * len(SIZES)
    none = command(photos, "none", "--score-threshold", "1")
    assert json.loads((none / "detections.json").read_text()) == []


def refused(call, capsys):
    with pytest.raises(SystemExit) as end:
        call()
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [
        (["--score-threshold", "1.5"], "ssd", "score_threshold: Input should be less than or equal to 1 (given: 1.5)"),
        (["--nms-iou", "-1"], "ssd", "nms_iou: Input should be greater than 0 (given: -1.0)"),
        (["--max-detections", "0"], "ssd", "max_detections: Input should be greater than 0 (given: 0)"),
        (["--score-threshold", "nan"], "ssd", "score_threshold: Input should be a finite number (given: nan)"),
        (["--draw-above", "nan"], "ssd", "draw_above is nan; scores are between 0 and 1"),
        (["--scale", "huge"], "ssd", "scale 'huge' is unknown; there are: small"),
        ([], "cats", "run 'cats' is unknown; those that do are: ssd, untrained"),
        ([], "hounds", "run 'hounds' is of task stanford_dogs and finds no objects; those that do are: ssd, untrained"),
        ([], "untrained", "there is no such run; run: python -m pipelines.train coco --scale small"),
    ],
)
def test_a_mistake_is_one_line(command, photos, tmp_path, capsys, options, name, said):
    before = sorted(tmp_path.iterdir())
    line = refused(lambda: command(photos, "out", *options, name=name), capsys)
    assert line.startswith("error: ")
    assert line.endswith(said)
    assert sorted(tmp_path.iterdir()) == before


def test_folders_that_cannot_be_used_are_refused(command, photos, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("kept")
    (tmp_path / "empty").mkdir()
    assert refused(lambda: command(photos, "full"), capsys).endswith(
        "full exists and is not an empty folder; name another"
    )
    assert "is in" in refused(lambda: command(photos, "photos/out"), capsys)
    assert refused(lambda: command(tmp_path / "absent"), capsys).endswith("absent does not exist")
    assert "holds no image" in refused(lambda: command(tmp_path / "empty"), capsys)
    assert (tmp_path / "full/mine.txt").read_text() == "kept"
    assert not (tmp_path / "out").exists()
    assert (command(photos, "empty") / "images.json").exists()


@pytest.mark.parametrize("name", ["0.jpg", "b/z.png"])
def test_a_broken_image_is_named_and_nothing_is_left(command, photos, tmp_path, capsys, name):
    (photos / name).write_bytes((photos / "a_12.jpg").read_bytes()[:700])
    before = sorted(tmp_path.iterdir())
    line = refused(lambda: command(photos), capsys)
    assert line == f"error: {photos / name}: truncated"
    assert sorted(tmp_path.iterdir()) == before


def test_images_are_held_a_few_at_a_time(tmp_path, monkeypatch):
    for number in range(60):
        save(tmp_path / f"in/{number}.png", np.zeros((8, 8, 3), np.uint8))
    looked, drawn_already, most = [], [], []
    look, draw = predict._look, predict._draw

    def counting_look(detector, picture):
        looked.append(picture)
        most.append(len(looked) - len(drawn_already))
        return look(detector, picture)

    def counting_draw(*arguments):
        result = draw(*arguments)
        drawn_already.append(result)
        return result

    monkeypatch.setattr(predict, "_look", counting_look)
    monkeypatch.setattr(predict, "_draw", counting_draw)
    run(Says(), tmp_path / "in", tmp_path / "out", threads=2)
    assert len(looked) == 60
    assert max(most) <= 10
