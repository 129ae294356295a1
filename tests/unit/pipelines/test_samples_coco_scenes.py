"""The look-alike COCO's scenes: what overlaps and how far, sizes, and that what is hidden is little.

The oracles read the pictures and annotations alone: areas of unions by a grid of all edges, masks by Pillow.
"""

from __future__ import annotations

import itertools
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pipelines.config import load
from pipelines.fetch import _sample
from pipelines.samples.coco_scenes import CROWDED, CYCLE, EMPTY, HOLLOW, Thing, categories, scene
from pipelines.samples.drawing import HUES

Scene = tuple[np.ndarray, list[Thing]]
SMALL, LARGE = 32**2, 96**2  # square pixels: pycocotools' `areaRng`


def drawn(seed: int, phase: int, overlap: float, height: int = 180, width: int = 240) -> Scene:
    return scene(np.random.default_rng(seed), categories(6), height, width, phase, overlap)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """As the sample scale has them."""
    return [drawn(seed, seed % CYCLE, 0.3) for seed in range(160)]


def corners(box: Any) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height


def common(one: Any, other: Any) -> float:
    (a, b, c, d), (e, f, g, h) = corners(one), corners(other)
    return max(min(c, g) - max(a, e), 0) * max(min(d, h) - max(b, f), 0)


def covered(box: Any, others: list[Any]) -> float:
    """The share of a box that lies in any of the others: cells between all edges, each counted once."""
    left, top, right, bottom = corners(box)
    spans = [corners(other) for other in others]
    xs = sorted({np.clip(x, left, right) for span in [corners(box), *spans] for x in span[::2]})
    ys = sorted({np.clip(y, top, bottom) for span in [corners(box), *spans] for y in span[1::2]})
    area = sum(
        (x1 - x0) * (y1 - y0)
        for x0, x1 in itertools.pairwise(xs)
        for y0, y1 in itertools.pairwise(ys)
        if any(a <= x0 and x1 <= c and b <= y0 and y1 <= d for a, b, c, d in spans)
    )
    return area / ((right - left) * (bottom - top))


def mask(thing: Thing, picture: np.ndarray) -> np.ndarray:
    """The pixels that an object would show if nothing hid it, a ring's with its hole: half of their 4 x 4 dots."""
    height, width = picture.shape[:2]
    image = Image.new("1", (4 * width, 4 * height))
    for polygon in thing.annotation["segmentation"]:
        ImageDraw.Draw(image).polygon((4 * np.array(polygon) - 0.5).tolist(), fill=1)
    return np.asarray(image).reshape(height, 4, width, 4).mean(axis=(1, 3)) >= 0.5


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    phase=st.integers(0, CYCLE - 1),
    overlap=st.sampled_from([0.0, 0.05, 0.3, 0.5]),
    height=st.integers(32, 240),
    width=st.integers(32, 240),
)
def test_boxes_cover_no_more_of_each_other_than_they_may(
    seed: int, phase: int, overlap: float, height: int, width: int
) -> None:
    picture, things = drawn(seed, phase, overlap, height, width)
    assert picture.shape == (height, width, 3)
    crowds = [thing for thing in things if thing.annotation["iscrowd"]]
    assert len(crowds) == (phase == CROWDED)
    assert (1 <= len(things) - len(crowds) <= 5) or crowds or (phase == EMPTY and not things)
    for one, other in itertools.combinations(things, 2):
        smaller = min(thing.box[2] * thing.box[3] for thing in (one, other))
        allowed = 0 if one in crowds or other in crowds else overlap
        assert common(one.box, other.box) <= allowed * smaller + 1e-6
    for thing in things:
        left, top, right, bottom = corners(thing.box)
        assert 0 < left < right < width
        assert 0 < top < bottom < height
        assert covered(thing.box, [other.box for other in things if other is not thing]) <= overlap + 1e-9


def apart(one: Thing, other: Thing) -> float:
    """Pixels between two boxes, along the axis where they are further apart."""
    (a, b, c, d), (e, f, g, h) = corners(one.box), corners(other.box)
    return max(e - c, a - g, f - d, b - h)


def test_without_overlap_objects_do_not_even_touch_nor_do_crowds_ever(scenes: list[Scene]) -> None:
    for seed in range(60):
        _, things = drawn(seed, 0, overlap=0.0)
        assert all(apart(*pair) > 2.99 for pair in itertools.combinations(things, 2))
    pairs = [pair for _, things in scenes for pair in itertools.combinations(things, 2)]
    with_crowd = [apart(*pair) for pair in pairs if any(thing.annotation["iscrowd"] for thing in pair)]
    assert len(with_crowd) >= 20
    assert min(with_crowd) > 2  # a crowd's box is in whole pixels


@pytest.mark.parametrize("overlap", [pytest.param(0.3, marks=pytest.mark.slow), 0.5])
def test_more_than_half_of_every_object_is_seen(overlap: float) -> None:
    seen = []
    for seed in range(80):
        picture, things = drawn(seed, 0, overlap)
        masks = [mask(thing, picture) for thing in things]
        for index, own in enumerate(masks):
            others = np.any([np.zeros_like(own), *masks[:index], *masks[index + 1 :]], axis=0)
            seen.append(np.sum(own & ~others) / own.sum())
    assert 0.5 < min(seen) < 0.95


def test_one_of_two_overlapping_objects_hides_a_part_of_the_other(scenes: list[Scene]) -> None:
    """Where both polygons are, one object is seen: sometimes the larger, sometimes the smaller."""
    in_front = Counter[str]()
    for picture, things in scenes:
        hue = np.asarray(Image.fromarray(picture).convert("HSV"))[..., 0] / 256
        whole = [thing for thing in things if not thing.annotation["iscrowd"] and thing.category.shape != HOLLOW]
        masks = {id(thing): mask(thing, picture) for thing in things if not thing.annotation["iscrowd"]}
        for pair in itertools.combinations(whole, 2):
            hidden = np.logical_and(*(masks[id(thing)] for thing in pair))
            if hidden.sum() < 40 or pair[0].category.hue == pair[1].category.hue:
                continue
            third = [masks[key] for key in masks.keys() - {id(thing) for thing in pair}]
            shown = hue[hidden & ~np.any([np.zeros_like(hidden), *third], axis=0)]
            off = [np.abs((shown - HUES[thing.category.hue] + 0.5) % 1 - 0.5) < 0.09 for thing in pair]
            first, second = (np.mean(each) for each in off)
            assert max(first, second) > 0.9
            assert min(first, second) < 0.1
            larger = np.argmax([thing.box[2] * thing.box[3] for thing in pair])
            in_front["larger" if np.argmax([first, second]) == larger else "smaller"] += 1
    assert min(in_front["larger"], in_front["smaller"]) >= 3, in_front


def test_box_and_area_are_those_of_the_whole_polygons(scenes: list[Scene]) -> None:
    for thing in (thing for _, things in scenes for thing in things if not thing.annotation["iscrowd"]):
        polygons = [np.reshape(polygon, (-1, 2)) for polygon in thing.annotation["segmentation"]]
        points = np.concatenate(polygons)
        assert corners(thing.box) == pytest.approx([*points.min(axis=0), *points.max(axis=0)], abs=1e-6)
        area = sum(abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2 for x, y in map(np.transpose, polygons))
        assert thing.annotation["area"] == pytest.approx(area, abs=0.05)


def test_the_same_state_draws_the_same_scene() -> None:
    for phase in (0, CROWDED):
        (one, things), (again, those) = drawn(7, phase, 0.3), drawn(7, phase, 0.3)
        assert np.array_equal(one, again)
        assert things == those
        assert not np.array_equal(one, drawn(8, phase, 0.3)[0])


@pytest.mark.slow
def test_the_sample_scale_has_objects_of_all_sizes_and_some_that_overlap(tmp_path: Path) -> None:
    """The 80 test images are what a detection table is measured on."""
    origin = load().dataset("coco", "sample").origin
    assert origin is not None
    write, options = _sample(origin)
    write(tmp_path, **options)
    with zipfile.ZipFile(tmp_path / "annotations_trainval2014.zip") as archive:
        listed = json.loads(archive.read("annotations/instances_val2014.json"))["annotations"]
    images: dict[int, list[Any]] = {int(line): [] for line in (tmp_path / "mscoco_minival_ids.txt").read_text().split()}
    for each in listed:
        images.get(each["image_id"], []).append(each)
    objects = [each for things in images.values() for each in things if not each["iscrowd"]]
    sizes = Counter(
        "small" if each["area"] < SMALL else "medium" if each["area"] <= LARGE else "large" for each in objects
    )
    assert min(sizes["small"], sizes["medium"], sizes["large"]) >= 25, sizes
    assert min(Counter(each["category_id"] for each in objects).values()) >= 10
    overlapping = [
        any(common(one["bbox"], other["bbox"]) for one, other in itertools.combinations(things, 2))
        for things in images.values()
    ]
    assert len(images) == 80
    assert 0.2 <= np.mean(overlapping) <= 0.4
