"""The tables against counting by hand and other libraries; the pictures by the pixels that they are made of."""

import base64
import io
import re
import subprocess
import sys
from collections import Counter
from functools import cache

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.datasets import load_sample_image
from sklearn.metrics import average_precision_score, roc_curve
from sklearn.neighbors import NearestNeighbors

from pipelines.pictures import details, embeddings, photo_grid
from pipelines.pictures.attributes import ends, examples
from pipelines.pictures.base import readable
from pipelines.pictures.embeddings import chosen, nearest, visible
from tasks import base
from tasks.base import Evaluation

SIX = (
    "n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02086240-Shih-Tzu",
    "n02093428-American_Staffordshire_terrier", "n02098105 soft-coated wheaten terrier", "n02113186-Cardigan",
)  # fmt: skip


def no_images(places):
    raise AssertionError("no photographs are asked for")


def paint(places):
    """A picture of one colour for each place."""
    return [np.full((40, 30, 3), colour(place), np.uint8) for place in places]


def colour(place):
    return (place % 16 * 16, place // 16 * 16, 77)


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)


@cache
def dogs(classes, samples):
    """True and predicted labels, and what is shown of them; the last class has no samples."""
    rng = np.random.default_rng(0)
    true = rng.integers(len(classes) - 1, size=samples)
    predicted = np.where(rng.uniform(size=samples) < 0.6, true, rng.integers(len(classes), size=samples))
    counts = np.zeros((len(classes),) * 2, np.int64)
    np.add.at(counts, (true, predicted), 1)
    shown = details("stanford_dogs", Evaluation({}, {"confusion": counts}), base.TestSet(classes), no_images)
    return true.tolist(), predicted.tolist(), shown


@pytest.mark.parametrize("classes", [SIX, tuple(f"n{number:08d}-breed_{number}" for number in range(120))], ids=len)
def test_the_tables_of_breeds_count_right(classes):
    true, predicted, shown = dogs(classes, 30 * len(classes))
    assert [record["class"] for record in shown.tables["per_class"]] == list(classes)
    for label, record in enumerate(shown.tables["per_class"][:-1]):
        answers = [b for a, b in zip(true, predicted, strict=True) if a == label]
        mistakes = Counter(answer for answer in answers if answer != label)
        correct = answers.count(label)
        assert (record["samples"], record["correct"]) == (len(answers), correct)
        assert record["accuracy"] == correct / len(answers)
        bounds = binomtest(correct, len(answers)).proportion_ci(method="wilson")
        assert (record["low"], record["high"]) == pytest.approx((bounds.low, bounds.high), abs=1e-6)
        assert record["confused"] == max(mistakes.values())
        assert mistakes[classes.index(record["most_confused_with"])] == record["confused"]
    last = shown.tables["per_class"][-1]
    assert (last["samples"], last["accuracy"], last["most_confused_with"], last["confused"]) == (0, None, None, 0)
    assert "Left out for want of images: 1." in shown.pictures[1].caption
    pairs = Counter((classes[a], classes[b]) for a, b in zip(true, predicted, strict=True) if a != b)
    listed = [(record["true"], record["predicted"], record["count"]) for record in shown.tables["confusion"]]
    assert {(a, b): count for a, b, count in listed} == pairs
    assert len(listed) == len(pairs)
    assert [count for *_, count in listed] == sorted(pairs.values(), reverse=True)


def test_the_map_of_breeds_is_darker_where_the_share_is_larger():
    true, predicted, shown = dogs(SIX, 180)
    found = re.findall(rb"data:image/png;base64,\s*([^\"]+)", shown.pictures[0].files[".svg"])
    (cells,) = (cells for cells in map(pixels, map(base64.b64decode, found)) if cells.shape == (6, 6, 3))
    shares = [
        [Counter(b for a, b in zip(true, predicted, strict=True) if a == row)[column] / max(true.count(row), 1)
         for column in range(6)] for row in range(5)
    ]  # fmt: skip
    order = np.argsort(np.ravel(shares), kind="stable")
    light = cells[:5].sum(axis=2).ravel()[order]
    assert (np.diff(light) <= 0).all()
    assert light[0] - light[-1] > 300
    assert np.ptp(cells[5]) == 0  # grey: a class without samples
    assert [picture.name for picture in shown.pictures] == ["confusion", "per_class"]
    again = dogs.__wrapped__(SIX, 180)[2]
    assert [picture.files for picture in shown.pictures] == [picture.files for picture in again.pictures]


def test_a_perfect_net_has_no_table_of_confused_pairs():
    counts = np.diag([3, 4]).astype(np.int64)
    shown = details("stanford_dogs", Evaluation({}, {"confusion": counts}), base.TestSet(["a", "b"]), no_images)
    assert list(shown.tables) == ["per_class"]
    assert [record["most_confused_with"] for record in shown.tables["per_class"]] == [None, None]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("n02085620-Chihuahua", "Chihuahua"),
        ("n02093428 American Staffordshire terrier", "American Staffordshire terrier"),
        ("n02086240-Shih-Tzu", "Shih-Tzu"),
        ("5_o_Clock_Shadow", "5 o Clock Shadow"),
    ],
)
def test_names_for_people(name, words):
    assert readable(name) == words


def faces(samples, attributes, seed=0):
    """Scores that say something of the labels; nobody has the last attribute, so that its AP is not defined."""
    rng = np.random.default_rng(seed)
    labels = (rng.uniform(size=(samples, attributes)) < 0.4).astype(np.uint8)
    labels[0], labels[:, -1] = 1, 0
    scores = (1 / (1 + np.exp(-labels - rng.normal(size=labels.shape)))).astype(np.float32)
    ap = [average_precision_score(labels[:, place], scores[:, place]) for place in range(attributes - 1)]
    arrays = {"ap": np.array([*ap, np.nan]), "prevalence": labels.mean(axis=0), "scores": scores, "labels": labels}
    return arrays, [f"attribute_{place}" for place in range(attributes)]


@pytest.mark.parametrize(("samples", "attributes"), [(3, 2), pytest.param(200, 40, marks=pytest.mark.slow)])
def test_attributes_and_the_images_at_both_ends(samples, attributes):
    arrays, names = faces(samples, attributes)
    shown = details("face_attributes", Evaluation({}, arrays), base.TestSet(names), paint)
    assert [picture.name for picture in shown.pictures] == ["attributes", "attribute_examples"]
    table = shown.tables["attributes"]
    assert [record["attribute"] for record in table] == names
    assert [record["ap"] for record in table] == [*arrays["ap"][:-1], None]
    assert [record["prevalence"] for record in table] == pytest.approx(arrays["labels"].mean(axis=0))
    picture = pixels(shown.pictures[1].files[".png"])
    for row, place in enumerate(examples(arrays["ap"], arrays["prevalence"])):
        scores, labels = arrays["scores"][:, place], arrays["labels"][:, place]
        by_score = sorted(range(samples), key=lambda image: -scores[image])
        highest = by_score[: min(5, (samples + 1) // 2)]
        lowest = by_score[::-1][: min(5, samples - len(highest))]
        rights = [*(labels[highest] == 1), *(labels[lowest] == 0)]
        lefts = [photo_grid.MARGIN + photo_grid.STEP * column for column in range(len(highest))]
        lefts += [lefts[-1] + photo_grid.STEP * (column + 1) + photo_grid.GAP for column in range(len(lowest))]
        step = photo_grid.TITLE + photo_grid.SIDE + photo_grid.CAPTION + photo_grid.SPACE
        top = photo_grid.HEADING + photo_grid.TITLE + row * step
        for image, right, left in zip([*highest, *lowest], rights, lefts, strict=True):
            assert tuple(picture[top + 48, left + 48]) == colour(image)
            frame = "#{:02X}{:02X}{:02X}".format(*picture[top + 48, left])
            assert frame == (photo_grid.GREEN if right else photo_grid.ORANGE)


def test_examples_are_the_attributes_furthest_above_chance_and_the_least():
    ap = np.array([0.5, 0.9, np.nan, 0.8, 0.3, 0.7, 0.95, 0.6, 0.2])
    prevalence = np.array([0.1, 0.8, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.15])
    assert examples(ap, prevalence) == [6, 3, 5, 7, 1, 8]
    assert examples(ap[:4], prevalence[:4]) == [3, 0, 1]
    assert examples(ap[2:3], prevalence[2:3]) == []


def test_no_image_is_at_both_ends():
    highest, lowest = ends(np.array([0.2]), np.array([1], np.uint8))
    assert ([tile.place for tile in highest], lowest) == ([0], [])
    highest, lowest = ends(np.linspace(0, 1, 7), np.zeros(7, np.uint8))
    assert [tile.place for tile in highest] == [6, 5, 4, 3]
    assert [tile.place for tile in lowest] == [0, 1, 2]
    assert [tile.right for tile in highest + lowest] == [False] * 4 + [True] * 3


def test_without_any_ap_no_images_are_shown():
    arrays, names = faces(4, 2)
    arrays["ap"][:] = np.nan
    shown, again = (
        details("face_attributes", Evaluation({}, arrays), base.TestSet(names), no_images) for _ in range(2)
    )
    assert [picture.name for picture in shown.pictures] == ["attributes"]
    assert shown == again


def test_a_page_of_photographs_is_small():
    photo = load_sample_image("china.jpg")
    arrays, names = faces(60, 8)

    def crops(places):
        return [photo[place : place + 218, 7 * place : 7 * place + 178] for place in places]

    svg = details("face_attributes", Evaluation({}, arrays), base.TestSet(names), crops).pictures[1].files[".svg"]
    assert svg.count(b"data:image/jpeg") == 60
    assert b"data:image/png" not in svg
    assert len(svg) < 300_000


def people(images, seed=0):
    """Embeddings of people with so many images each, in a mixed order, and all that is evaluated of them."""
    rng = np.random.default_rng(seed)
    identities = rng.permutation(np.repeat(np.arange(len(images)) * 10 + 5, images))
    vectors = rng.normal(size=(10 * len(images) + 6, 8))[identities] + 0.6 * rng.normal(size=(len(identities), 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second = np.triu_indices(len(identities), 1)
    same = identities[first] == identities[second]
    far, tar = np.linspace(0, 1, 5), np.linspace(0.2, 1, 5)
    if same.any():
        far, tar, _ = roc_curve(same, -np.square(vectors[first] - vectors[second]).sum(axis=1))
    arrays = {"embeddings": vectors.astype(np.float32), "identities": identities, "roc_far": far, "roc_tar": tar}
    return Evaluation({"impostor_pairs": int((~same).sum())}, arrays)


def test_neighbours_are_those_that_scikit_learn_finds(monkeypatch):
    monkeypatch.setattr(embeddings, "CHUNK", 7)
    vectors = people([3] * 10).arrays["embeddings"]
    queries = np.arange(1, 30, 2)
    places, distances = nearest(vectors, queries, 6)
    expected, indices = NearestNeighbors(n_neighbors=7).fit(vectors).kneighbors(vectors[queries])
    assert (indices[:, 0] == queries).all()
    assert (places == indices[:, 1:]).all()
    np.testing.assert_allclose(distances, expected[:, 1:] ** 2, atol=1e-5)


def test_the_curve_and_the_nearest_faces():
    evaluation = people([1, 4, 2, 3, 5, 1, 2])
    evaluation.arrays.update(pairs_fpr=np.array([0, 0, 0.1, 1]), pairs_tpr=np.array([0, 0.5, 0.7, 1]))
    shown, again = (details("face_embedding", evaluation, base.TestSet([]), paint) for _ in range(2))
    assert [picture.name for picture in shown.pictures] == ["roc", "neighbours"]
    assert [picture.files for picture in shown.pictures] == [picture.files for picture in again.pictures]
    assert [record["far"] for record in shown.tables["roc"]] == evaluation.arrays["roc_far"].tolist()
    assert [record["tar"] for record in shown.tables["roc"]] == evaluation.arrays["roc_tar"].tolist()
    picture = pixels(shown.pictures[1].files[".png"])
    vectors, identities = evaluation.arrays["embeddings"], evaluation.arrays["identities"]
    places = {colour(place): place for place in range(len(identities))}
    step = photo_grid.SIDE + photo_grid.CAPTION + photo_grid.SPACE
    firsts = []
    for top in range(photo_grid.HEADING, picture.shape[0], step):
        query = places[tuple(picture[top + 48, photo_grid.MARGIN + 48])]
        distances = np.square(vectors - vectors[query]).sum(axis=1)
        near = sorted(set(range(len(identities))) - {query}, key=lambda place: distances[place])[:6]
        for column, place in enumerate(near, start=1):
            left = photo_grid.MARGIN + photo_grid.GAP + photo_grid.STEP * column
            assert tuple(picture[top + 48, left + 48]) == colour(place)
            frame = "#{:02X}{:02X}{:02X}".format(*picture[top + 48, left])
            same = identities[place] == identities[query]
            assert frame == (photo_grid.GREEN if same else photo_grid.ORANGE)
        assert list(identities).count(identities[query]) > 1
        firsts.append(identities[near[0]] == identities[query])
    assert 2 <= len(firsts) <= 6
    assert len(set(firsts)) == 2  # right ones and wrong ones


@pytest.mark.parametrize("broken", [False, True])
def test_without_two_images_of_a_person_or_with_bad_numbers_there_are_no_neighbours(broken):
    evaluation = people([2, 2] if broken else [1, 1, 1])
    if broken:
        evaluation.arrays["embeddings"][0, 0] = np.nan
    shown = details("face_embedding", evaluation, base.TestSet([]), no_images)
    assert [picture.name for picture in shown.pictures] == ["roc"]


def test_queries_are_right_and_wrong_ones_of_different_people():
    person = np.repeat(np.arange(10), 2)
    right = np.arange(20) < 14
    picked = chosen(person, right)
    assert [bool(right[place]) for place in picked] == [True] * 3 + [False] * 3
    assert len(set(person[picked])) == 6
    assert chosen(person, np.arange(20) != 7)[-1] == 7
    assert len(chosen(person, np.arange(20) != 7)) == 6
    assert len(chosen(person, np.ones(20, np.bool_))) == 6
    assert len(chosen(person[:4], np.ones(4, np.bool_))) == 2


def test_a_curve_starts_where_the_axis_does_only_if_it_is_known_there():
    far, tar = visible(np.array([0, 0, 0.2, 1]), np.array([0, 0.4, 0.6, 1]), 0.1)
    assert (far.tolist(), tar.tolist()) == ([0.1, 0.2, 1], [0.4, 0.6, 1])
    far, tar = visible(np.array([0.2, 1]), np.array([0.6, 1]), 0.1)
    assert (far.tolist(), tar.tolist()) == ([0.2, 1], [0.6, 1])


def test_imagenet_has_no_details():
    assert details("imagenet", Evaluation({}), base.TestSet(SIX), no_images) == ([], {})


def test_nothing_heavy_is_imported_before_something_is_drawn():
    code = "import sys, pipelines.pictures; assert not {'matplotlib', 'torch', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
