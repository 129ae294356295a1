"""COCO's figures against pycocotools, which reads the same scenes from files; their interval against the truth."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasks import coco_ap
from tasks.coco_ap import CocoAP

CATEGORIES = ("1 person", "3 car", "17 cat", "90 toothbrush")
NUMBERS = [int(name.split()[0]) for name in CATEGORIES]
FIGURES = ("ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large",
           "ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")  # fmt: skip


def thing(box, category=1, area=None, crowd=False):
    return {"category": category, "box": list(box), "area": box[2] * box[3] if area is None else area, "crowd": crowd}


def found(boxes=(), scores=(), labels=()):
    """What a detector says of an image."""
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def scene(rng, categories, most):
    """(detections, objects) of an image; on a coarse grid, so that overlaps of exactly a threshold and ties occur."""
    things = []
    for _ in range(rng.integers(0, 9) * (rng.random() < 0.8)):
        x, y, width, height = (10 * rng.integers(-1, 12, size=2)).tolist() + (10 * rng.integers(0, 15, size=2)).tolist()
        area = float(width * height * rng.choice([1.0, 0.7]))
        things.append(thing((x, y, width, height), int(rng.choice(categories)), area, bool(rng.random() < 0.15)))
    boxes, labels = [], []
    for _ in range(rng.integers(0, most) * (rng.random() < 0.8)):
        copied = things[rng.integers(len(things))] if things and rng.random() < 0.6 else None
        x, y, width, height = copied["box"] if copied else 10 * rng.integers(0, 15, size=4)
        shift = rng.choice([0, 0, 1, 2.5, 5, 10], size=4)
        x, y, width, height = x - shift[0], y + shift[1], width + shift[2], max(height - shift[3], 0)
        boxes.append((x, y, x + width, y + height))
        labels.append(copied["category"] if copied and rng.random() < 0.9 else int(rng.choice(NUMBERS)))
    scores = rng.random(len(boxes)).round(int(rng.choice([1, 6])))
    return found(boxes, scores, labels), things


def scenes(seed, images=12, categories=NUMBERS, most=30):
    """By upstream's number, in no order."""
    rng = np.random.default_rng(seed)
    numbers = rng.choice(10**12, images, replace=False).tolist()
    return {number: scene(rng, categories, most) for number in numbers}


def evaluated(images, categories=CATEGORIES, batch=5):
    evaluator = CocoAP(categories)
    numbers = list(images)
    for start in range(0, len(numbers), batch):
        part = numbers[start : start + batch]
        evaluator.update(part, [images[number][0] for number in part], [images[number][1] for number in part])
    return evaluator.compute()


def written(folder, images, numbers):
    """The scenes as COCO's two files."""
    annotations = [
        {"image_id": image, "category_id": it["category"], "bbox": it["box"], "area": it["area"],
         "iscrowd": int(it["crowd"])}
        for image, (_, things) in images.items() for it in things
    ]  # fmt: skip
    results = [
        {"image_id": image, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for image, (said, _) in images.items()
        for (x1, y1, x2, y2), score, label in zip(
            *(said[key].tolist() for key in ("boxes", "scores", "labels")), strict=True
        )
    ]
    there = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": number, "name": str(number)} for number in numbers],
        "annotations": [{"id": place, **it} for place, it in enumerate(annotations, start=1)],
    }
    (folder / "instances.json").write_text(json.dumps(there))
    (folder / "results.json").write_text(json.dumps(results))
    return results


def pycocotools(folder, images, numbers=NUMBERS):
    """The evaluator after its three steps; `stats` are the twelve figures."""
    results = written(folder, images, numbers)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(folder / "instances.json")
        said = truth.loadRes(str(folder / "results.json")) if results else COCO()  # it cannot read an empty list
        if not results:
            said.dataset = {key: truth.dataset[key] for key in ("images", "categories")} | {"annotations": []}
            said.createIndex()
        evaluator = COCOeval(truth, said, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def check(folder, images, categories=CATEGORIES):
    """All figures and curves are pycocotools's, and those that it does not define are left out."""
    ours = evaluated(images, categories)
    peer = pycocotools(folder, images, [int(name.split()[0]) for name in categories])
    expected = {name: value for name, value in zip(FIGURES, peer.stats, strict=True) if value != -1}
    expected.setdefault("ap", 0.0)
    assert set(ours.metrics) == {*expected, "ap_low", "ap_high", "samples"}
    assert {name: ours.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12, rel=0)
    precision = np.ma.masked_less(peer.eval["precision"][:, :, :, 0, 2], 0)
    for name, curve in (
        ("ap", precision.mean(axis=(0, 1))),
        ("precision_50", precision[0].mean(axis=1)),
        ("precision_75", precision[5].mean(axis=1)),
    ):
        np.testing.assert_allclose(ours.arrays[name], curve.filled(np.nan), rtol=0, atol=1e-12, err_msg=name)
    return ours


@pytest.fixture(autouse=True)
def few_splits(monkeypatch):
    monkeypatch.setattr(coco_ap, "SPLITS", 3)


@pytest.mark.parametrize("seed", range(40))
def test_equals_pycocotools(tmp_path, seed):
    check(tmp_path, scenes(seed))


@pytest.mark.parametrize("seed", range(5))
def test_equals_pycocotools_where_more_is_found_than_counts(tmp_path, seed):
    images = scenes(seed, images=6, categories=[17], most=800)
    for said, _ in images.values():
        said["labels"][said["labels"] != 1] = 17
    assert max((said["labels"] == 17).sum() for said, _ in images.values()) > 100
    check(tmp_path, images)


@pytest.mark.parametrize("seed", range(5))
def test_equals_pycocotools_with_classes_that_no_image_has(tmp_path, seed):
    ours = check(tmp_path, scenes(seed, categories=[3, 90]))
    assert np.isnan(ours.arrays["ap"]).tolist() == [True, False, True, False]
    assert (ours.arrays["objects"] > 0).tolist() == [False, True, False, True]


@pytest.mark.parametrize("seed", range(5))
def test_equals_pycocotools_with_one_class(tmp_path, seed):
    images = scenes(seed, categories=[17])
    for said, _ in images.values():
        said["labels"][:] = 17
    ours = check(tmp_path, images, ["17 cat"])
    assert ours.metrics["ap"] == pytest.approx(ours.arrays["ap"][0], abs=1e-15)


def test_equals_pycocotools_on_sizes_that_are_no_whole_numbers(tmp_path):
    rng = np.random.default_rng(0)
    images = scenes(0, images=30)
    for said, things in images.values():
        said["boxes"] += torch.tensor(rng.random(said["boxes"].shape).cumsum(axis=1), dtype=torch.float32)
        for it in things:
            it["box"], it["area"] = [value + round(rng.random(), 2) for value in it["box"]], it["area"] + rng.random()
    check(tmp_path, images)


def test_equals_pycocotools_where_boxes_have_the_bounds_of_a_size(tmp_path):
    sides = (31, 32, 33, 95, 96, 97)
    things = [thing((0, 200 * place, side, side), NUMBERS[place % 2]) for place, side in enumerate(sides)]
    boxes = [(0, 200 * place, side, side + 200 * place) for place, side in enumerate(sides)]
    said = found(boxes, np.linspace(0.1, 0.9, 6), [NUMBERS[place % 2] for place in range(6)])
    check(tmp_path, {4: (said, things)})


@pytest.mark.parametrize("what", ["no objects", "no detections", "neither", "crowds alone", "no images"])
def test_equals_pycocotools_where_there_is_nothing(tmp_path, what):
    images = {} if what == "no images" else scenes(1)
    for number, (said, things) in images.items():
        nothing, none = what in ("no detections", "neither"), what in ("no objects", "neither")
        crowds = [{**it, "crowd": True} for it in things] if what == "crowds alone" else things
        images[number] = (found() if nothing else said, [] if none else crowds)
    metrics = check(tmp_path, images).metrics
    assert metrics["samples"] == len(images)
    assert metrics["ap"] == 0.0
    if what == "no detections":
        assert (metrics["ap_low"], metrics["ap_high"]) == (0.0, 0.0)
    else:
        assert set(metrics) == {"ap", "ap_low", "ap_high", "samples"}
        assert (metrics["ap_low"], metrics["ap_high"]) == (0.0, 1.0)


def test_by_hand():
    """Of two objects one is found, beside a detection with a higher score where nothing is: precision 1/2 up to 1/2."""
    things = [thing((0, 0, 40, 40)), thing((100, 100, 10, 10))]
    said = found([(200, 200, 240, 240), (0, 0, 40, 40)], [0.9, 0.8], [1, 1])
    metrics = evaluated({7: (said, things)}, ["1 person"]).metrics
    ap = 51 / 101 / 2  # recalls 0 to 0.50
    assert metrics == pytest.approx(
        {"ap": ap, "ap_50": ap, "ap_75": ap, "ap_small": 0, "ap_medium": 0.5, "ar_1": 0, "ar_10": 0.5,
         "ar_100": 0.5, "ar_small": 0, "ar_medium": 1, "ap_low": 0, "ap_high": 1, "samples": 1}
    )  # fmt: skip


def test_neither_batches_nor_the_order_of_images_matter():
    images = scenes(3)
    assert any(len(said["scores"].unique()) < len(said["scores"]) for said, _ in images.values())
    expected = evaluated(images).metrics
    assert evaluated(images, batch=1).metrics == expected
    assert evaluated(dict(reversed(images.items())), batch=100).metrics == expected


def test_labels_that_are_no_category_count_nowhere(capfd):
    images = scenes(4)
    expected = evaluated(images)
    for said, _ in images.values():
        for name, more in found([(0, 0, 50, 50)] * 2, [1.0, 0.5], [0, 12]).items():
            said[name] = torch.cat([more, said[name]])
    again = evaluated(images)
    assert again.metrics == expected.metrics
    for name, values in expected.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], values)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("spoiled", ["boxes", "scores"])
def test_a_detection_that_is_not_finite_counts_against_the_net(spoiled, value):
    things = [thing((0, 0, 40, 40)), thing((100, 100, 40, 40))]
    said = found([(0, 0, 40, 40), (100, 100, 140, 140)], [0.1, 0.8], [1, 1])
    said[spoiled][0] = value
    wrong = found([(200, 200, 240, 240), (100, 100, 140, 140)], [0.9, 0.8], [1, 1])
    spoiled_metrics, expected = (evaluated({1: (each, things)}).metrics for each in (said, wrong))
    assert spoiled_metrics["ap"] == expected["ap"] == pytest.approx(51 / 101 / 2)


def test_the_arrays_are_what_was_seen():
    images = {
        9: (found(), [thing((5, 6, 10, 20), 90, crowd=True)]),
        2: (found([(1, 2, 3, 4), (5, 6, 7, 8)], [0.25, 0.5], [17, 3]), []),
        5: (found([(0, 0, 1, 1)], [1.0], [90]), [thing((0, 0, 1, 2), 90), thing((0, 0, 1, 1), 1)]),
    }
    arrays = evaluated(images, batch=2).arrays
    expected = {
        "objects": [1, 0, 0, 1],
        "detection_image": [1, 1, 2],
        "detection_boxes": [[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 1, 1]],
        "detection_category": [2, 1, 3],
        "detection_score": [0.25, 0.5, 1.0],
        "object_image": [0, 2, 2],
        "object_boxes": [[5, 6, 15, 26], [0, 0, 1, 2], [0, 0, 1, 1]],
        "object_category": [3, 3, 0],
        "object_crowd": [True, False, False],
    }
    assert {name: arrays[name].tolist() for name in expected} == expected
    assert {name: arrays[name].dtype for name in arrays if arrays[name].dtype == np.float32} == {
        "detection_boxes": np.float32, "detection_score": np.float32, "object_boxes": np.float32,
    }  # fmt: skip
    assert arrays["precision_50"].shape == arrays["precision_75"].shape == (101,)


def test_what_a_net_says_in_half_precision_is_taken_as_it_is():
    said = {name: value.bfloat16() if name != "labels" else value for name, value in scenes(5).popitem()[1][0].items()}
    things = [thing((0, 0, 40, 40), 3)]
    whole = {name: value.float() if name != "labels" else value for name, value in said.items()}
    assert evaluated({1: (said, things)}).metrics == evaluated({1: (whole, things)}).metrics


def test_mistakes_are_named():
    evaluator = CocoAP(CATEGORIES)
    evaluator.update([7], [found()], [[]])
    with pytest.raises(ValueError, match="image 7 comes twice"):
        evaluator.update([7], [found()], [[]])
    with pytest.raises(ValueError, match="image 8 comes twice"):
        evaluator.update([8, 8], [found()] * 2, [[]] * 2)
    with pytest.raises(ValueError, match=r"image 8: category 12 is none of \[1, 3, 17, 90\]"):
        evaluator.update([8], [found()], [[thing((0, 0, 1, 1), 12)]])
    with pytest.raises(ValueError, match="'person' does not begin with its number"):
        CocoAP(["person"])
    with pytest.raises(ValueError, match=r"categories \[3, 1\]: their numbers must ascend"):
        CocoAP(["3 car", "1 person"])
    with pytest.raises(AssertionError, match=r"x2 < x1 or y2 < y1 in \[\[2.0, 0.0, 1.0, 1.0\]\]"):
        evaluator.update([9], [found([(0, 0, 1, 1), (2, 0, 1, 1)], [0.5, 0.5], [1, 1])], [[]])


def test_the_interval_equals_pycocotools_on_halves(tmp_path):
    images = scenes(6, images=21)
    rng, reached = np.random.default_rng(coco_ap.SEED), []
    for _ in range(3):
        shuffled = rng.permutation(sorted(images)).tolist()
        for half in (shuffled[:10], shuffled[10:]):
            reached.append(pycocotools(tmp_path, {number: images[number] for number in half}).stats[0])
    metrics = evaluated(images).metrics
    expected = 2 * metrics["ap"] - np.quantile(reached, (0.975, 0.025))
    assert 0 < expected[0] < metrics["ap"] < expected[1] < 1
    np.testing.assert_allclose((metrics["ap_low"], metrics["ap_high"]), expected, rtol=1e-12)


def photos(rng, count):
    """Numbered images of one detector in one world, so that its AP has a true value; some are harder than others."""
    images = {}
    for number in range(count):
        things, others, hard = rng.poisson(2.0), rng.poisson(2.0), rng.normal()
        corners, sides = rng.uniform(0, 300, (things, 2)), rng.uniform(20, 100, (things, 2))
        labels = rng.choice(NUMBERS, things, p=[0.6, 0.2, 0.1, 0.1]).tolist()
        near = corners + rng.normal(size=(things, 2)) * 0.06 * np.exp(hard / 2) * sides
        far = rng.uniform(0, 300, (others, 2))
        boxes = np.vstack([np.hstack([near, near + sides]), np.hstack([far, far + 50])])
        logits = rng.normal(size=things + others) + np.repeat([1.0 - hard / 2, 0.0], [things, others])
        said = found(boxes, 1 / (1 + np.exp(-logits)), labels + rng.choice(NUMBERS, others).tolist())
        boxes = np.hstack([corners, sides]).tolist()
        images[number] = said, [thing(box, label) for box, label in zip(boxes, labels, strict=True)]
    return images


@pytest.mark.slow
def test_the_interval_holds_the_truth_and_is_no_wider_than_it_must_be(monkeypatch):
    rng = np.random.default_rng(0)
    truth = evaluated(photos(rng, 3000), batch=3000).metrics["ap"]
    monkeypatch.setattr(coco_ap, "SPLITS", 40)
    sets = [evaluated(photos(rng, 80), batch=80).metrics for _ in range(50)]
    estimates, low, high = (np.array([metrics[name] for metrics in sets]) for name in ("ap", "ap_low", "ap_high"))
    assert estimates.mean() > truth  # a bias that the interval has to take off
    assert ((low <= truth) & (truth <= high)).mean() >= 0.8
    assert (high - low).mean() == pytest.approx(2 * 1.96 * estimates.std(), rel=0.25)
