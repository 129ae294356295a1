"""What is shown of a detector: matches against pycocotools', rankings against counting by hand, pictures by pixels."""

import contextlib
import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.pictures import details
from pipelines.pictures.boxes import colour_of
from pipelines.pictures.detection_examples import (
    IMAGES,
    MARGIN,
    SIDE,
    SPACE,
    TITLE,
    Example,
    at_equal_steps,
    boxes_of,
    judge,
    least_score,
    ranked,
    title,
)
from tasks.base import TestSet
from tasks.coco_ap import CocoAP

CATEGORIES = ("1 person", "3 traffic light", "90 toothbrush")
NUMBERS = [1, 3, 90]


def no_images(places, size=96):
    raise AssertionError("no photographs are asked for")


def grey(places, size=96):
    """A picture of one grey for each place."""
    return [np.full((size, size, 3), 40 + place, np.uint8) for place in places]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)


def evaluated(detections, objects, sizes=None):
    """An evaluation of images with detections (x1, y1, x2, y2, score, category) and objects (x, y, width, height,
    category, crowd).
    """
    metric = CocoAP(CATEGORIES)
    found = [torch.tensor(rows, dtype=torch.float64).reshape(-1, 6) for rows in detections]
    answers = [{"boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].long()} for rows in found]
    things = [
        [{"box": row[:4], "category": row[4], "crowd": bool(row[5]), "area": float(row[2] * row[3])} for row in rows]
        for rows in objects
    ]
    metric.update([100 + place for place in range(len(found))], answers, things)
    evaluation = metric.compute()
    evaluation.arrays["image_sizes"] = np.array(sizes or [(100, 150)] * len(found), np.int64).reshape(-1, 2)
    return evaluation


def scene(rng):
    """Detections and objects of an image; on a coarse grid, so that overlaps of exactly a half and ties occur."""
    objects = [
        (*(10 * rng.integers(0, 9, 2)).tolist(), *(10 * rng.integers(1, 9, 2)).tolist(),
         int(rng.choice(NUMBERS)), rng.random() < 0.2)
        for _ in range(rng.integers(0, 7))
    ]  # fmt: skip
    detections = []
    for _ in range(rng.integers(0, 12)):
        x, y, width, height = 10 * rng.integers(1, 9, 4)
        category = rng.choice(NUMBERS)
        if objects and rng.random() < 0.7:
            x, y, width, height, category, _ = objects[rng.integers(len(objects))]
            width, height = width * rng.choice([0.5, 1, 1.5]), height * rng.choice([0.75, 1, 1.25])
        detections.append((x, y, x + width, y + height, rng.integers(1, 10) / 16, category))
    return detections, objects


def trial(seed, images=8):
    rng = np.random.default_rng(seed)
    return [list(part) for part in zip(*(scene(rng) for _ in range(images)), strict=True)]


def matched_by_pycocotools(detections, objects):
    """Of the flat lists: which detections have an object and which are ignored at .5, and which objects are found."""
    numbers = range(1, len(objects) + 1)
    flat = [(image, *row) for image, rows in zip(numbers, objects, strict=True) for row in rows]
    found = [(image, *row) for image, rows in zip(numbers, detections, strict=True) for row in rows]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, answers = COCO(), COCO()
        for data, rows in (
            (truth, [([x, y, w, h], image, category, int(crowd)) for image, x, y, w, h, category, crowd in flat]),
            (answers, [([x1, y1, x2 - x1, y2 - y1], image, c, 0) for image, x1, y1, x2, y2, _, c in found]),
        ):
            data.dataset = {
                "images": [{"id": image} for image in numbers],
                "categories": [{"id": number} for number in NUMBERS],
                "annotations": [
                    {"id": place, "bbox": box, "image_id": image, "category_id": category, "iscrowd": crowd,
                     "area": box[2] * box[3], "ignore": crowd}
                    for place, (box, image, category, crowd) in enumerate(rows, start=1)
                ],
            }  # fmt: skip
            data.createIndex()
        for annotation, row in zip(answers.dataset["annotations"], found, strict=True):
            annotation["score"] = row[5]
        evaluator = COCOeval(truth, answers, "bbox")
        evaluator.evaluate()
    right, ignored, finders = set(), set(), {}
    areas, images = len(evaluator.params.areaRng), len(objects)
    for place, of_image in enumerate(evaluator.evalImgs):
        if of_image is None or place // images % areas:  # of any area
            continue
        for detection, thing, passed in zip(
            of_image["dtIds"], of_image["dtMatches"][0], of_image["dtIgnore"][0], strict=True
        ):
            if passed:
                ignored.add(detection - 1)
            elif thing:
                right.add(detection - 1)
                finders[int(thing) - 1] = detection - 1
    return right, ignored, finders


@pytest.mark.parametrize("seed", range(8))
def test_matches_are_pycocotools(seed):
    detections, objects = trial(seed, images=20)
    arrays = evaluated(detections, objects).arrays
    judged = judge(arrays)
    right, ignored, finders = matched_by_pycocotools(detections, objects)
    assert set(np.flatnonzero(judged.right)) == right
    assert set(np.flatnonzero(judged.ignored)) == ignored
    assert {place: by for place, by in enumerate(judged.found_by.tolist()) if by >= 0} == finders
    assert min(map(len, (right, finders))) > 10


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_the_score_is_that_of_the_highest_f1_and_images_are_in_its_order(seed):
    detections, objects = trial(seed)
    arrays = evaluated(detections, objects).arrays
    judged = judge(arrays)
    right, ignored, _ = matched_by_pycocotools(detections, objects)
    rows = [(image, row[4]) for image, rows in enumerate(detections) for row in rows]
    things = [sum(not row[5] for row in rows) for rows in objects]

    def tally(least, image=None):
        kept = {place for place, (of, score) in enumerate(rows) if score >= least and image in (None, of)} - ignored
        found, total = len(kept & right), sum(things) if image is None else things[image]
        return found, len(kept) - found, total

    def f1(least, image=None):
        found, false, total = tally(least, image)
        return 2 * found / max(found + false + total, 1)

    scores = {score for place, (_, score) in enumerate(rows) if place not in ignored}
    least = least_score(arrays, judged)
    if not scores:
        assert least == np.inf
        return
    assert least in scores
    assert f1(least) == max(map(f1, scores))
    shown = ranked(arrays, judged, least)
    for image in shown:
        assert (image.found, image.false, image.objects) == tally(least, image.place)
    assert {image.place for image in shown} == {place for place in range(8) if any(tally(least, place))}
    order = [(-f1(least, image.place), -image.objects, image.place) for image in shown]
    assert order == sorted(order)


def test_examples_go_from_the_best_image_to_the_worst_at_equal_steps():
    images = [Example(place, 1, 0, 0) for place in range(15)]
    assert [image.place for image in at_equal_steps(images)] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert at_equal_steps(images[:3]) == images[:3]
    assert at_equal_steps([]) == []
    assert IMAGES == 8


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Example(7, 3, 2, 0), "image 7: 2 of 3 found, none false"),
        (Example(0, 0, 0, 4), "image 0: no object, 4 false"),
    ],
)
def test_titles_say_what_was_found(image, said):
    assert title(image) == said


HAND = (  # the first found, a worse copy of it, one in the crowd, one of another category, one with a low score
    [[(20, 10, 60, 30, 0.9, 1), (20, 10, 60, 28, 0.8, 1), (85, 5, 95, 15, 0.7, 3), (20, 10, 60, 30, 0.6, 90),
      (100, 60, 140, 90, 0.1, 3)]],
    [[(20, 10, 40, 20, 1, False), (80, 0, 60, 40, 3, True), (100, 60, 40, 30, 3, False)]],
)  # fmt: skip


def test_what_is_drawn_on_an_image_and_with_which_names():
    arrays = evaluated(*HAND).arrays
    judged = judge(arrays)
    assert least_score(arrays, judged) == np.float32(0.9)  # 2/3; with all of them 4/6 as well, and then the higher one
    names = ["person", "traffic light", "toothbrush"]
    boxes = boxes_of(arrays, judged, 0.5, names, 0)
    assert [(box.label, box.dashed) for box in boxes] == [
        ("person 0.90", False), ("person 0.80", False), ("traffic light 0.70", False), ("toothbrush 0.60", False),
        ("", True), ("traffic light, crowd", True), ("traffic light, missed", True),
    ]  # fmt: skip
    assert [box.colour for box in boxes] == [colour_of(place) for place in (0, 0, 1, 2, 0, 1, 1)]
    assert boxes[0].corners == boxes[4].corners == (20, 10, 60, 30)
    assert boxes[-1].corners == (100, 60, 140, 90)
    assert [box.label for box in boxes_of(arrays, judged, 0.05, names, 0)][-1] == ""  # now it is found


def test_photographs_have_their_own_shape_and_boxes_where_they_belong():
    sizes = [(40, 80), (200, 100)]  # height, width: 200x400 and 400x200 in the picture
    evaluation = evaluated([[(20, 10, 60, 30, 0.9, 1)], [(10, 100, 90, 180, 0.8, 1)]],
                           [[(20, 10, 40, 20, 1, False)], [(10, 0, 80, 60, 90, False)]], sizes)  # fmt: skip
    shown = details("object_detection", evaluation, TestSet(CATEGORIES), grey)
    assert [picture.name for picture in shown.pictures] == ["detections", "categories", "precision_recall"]
    picture = pixels(shown.pictures[0].files[".png"])
    top, left = MARGIN + TITLE, MARGIN
    assert tuple(picture[top + 190, left + 390]) == (40, 40, 40)
    assert tuple(picture[top + 210, left + 200]) == (255, 255, 255)
    assert tuple(picture[top + 100, left + 101]) == colour_of(0)  # x1 of 20 px is 100 px
    assert tuple(picture[top + 148, left + 200]) == colour_of(0)  # y2 of 30 px is 150 px
    assert tuple(picture[top + 100, left + 200]) == (40, 40, 40)
    assert picture.shape[0] == top + SIDE + SPACE
    second = picture[top:, left + SIDE + 24 :]
    assert tuple(second[390, 190]) == (41, 41, 41)
    assert tuple(second[390, 210]) == (255, 255, 255)
    assert "2 of the test images" in shown.pictures[0].caption
    assert "that score at least 0.9," in shown.pictures[0].caption
    svg = shown.pictures[0].files[".svg"]
    assert svg.count(b"data:image/jpeg") == 2
    assert b"pixelated" not in svg
    assert b"data:image/png" not in svg


def test_the_table_and_the_bars_of_categories():
    shown = details("object_detection", evaluated(*HAND), TestSet(CATEGORIES), grey)
    assert [list(record.values())[:3] for record in shown.tables["categories"]] == [
        [1, "person", 1], [3, "traffic light", 1], [90, "toothbrush", 0],
    ]  # fmt: skip
    person, light, toothbrush = (record["ap"] for record in shown.tables["categories"])
    assert person == pytest.approx(1.0)
    assert toothbrush is None
    assert 0.9 < light <= 1.0  # what lies in the crowd does not count
    assert "Without an AP, for want of objects: 1." in shown.pictures[1].caption
    drawn = pixels(shown.pictures[1].files[".png"])
    blue = (drawn == [0x00, 0x72, 0xB2]).all(axis=2)
    rows = np.flatnonzero(blue.any(axis=1))
    assert np.count_nonzero(np.diff(rows) > 1) == 1  # two bars


@pytest.mark.slow
def test_without_detections_without_objects_and_without_either_there_are_pictures_all_the_same():
    crowd = [(10, 10, 50, 50, 1, True)]
    for detections, objects, drawn in (
        ([[], []], [[(0, 0, 9, 9, 1, False)], []], 1),
        ([[(0, 0, 9, 9, 0.5, 3)], []], [[], []], 1),
        ([[], []], [[], []], 0),
        ([[(20, 20, 40, 40, 0.5, 1)]], [crowd], 0),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            evaluation = evaluated(detections, objects)
            images = grey if drawn else no_images
            shown, again = (details("object_detection", evaluation, TestSet(CATEGORIES), images) for _ in range(2))
        names = [picture.name for picture in shown.pictures]
        assert names == ["detections"] * drawn + ["categories", "precision_recall"]
        assert shown == again
        assert len(shown.tables["categories"]) == 3
    nothing = evaluated([[]], [[(0, 0, 9, 9, 1, False)]])
    caption = details("object_detection", nothing, TestSet(CATEGORIES), grey).pictures[0].caption
    assert "There are no detections to be drawn" in caption
