"""From the places in shards to cells, and from cells to nets that choose among them."""

import csv
import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg

from pipelines import cells as stage
from pipelines import paths, tracking
from pipelines.cell_table import COLUMNS, CellTable, cell_files, current_cells, read_cells
from pipelines.cells import cells, read_leaves
from pipelines.config import Params, load
from pipelines.evaluate import evaluate
from pipelines.plan import make_plan
from pipelines.section import parsed
from pipelines.shards import Index, Split, Stored, read_index, write_shard
from pipelines.train import train
from tasks import geocells, s2

CITIES = ((48.85, 2.35), (-33.87, 151.21), (35.68, 139.69))  # the brighter channel says which
LONELY = (-55.0, -140.0)
ELSEWHERE = (10.0, -70.0)  # where photos of the other split are
EACH = 20


def stored(key, place, channel):
    generator = np.random.default_rng([key, channel])
    pixels = generator.integers(0, 90, (40, 48, 3), dtype=np.uint8)
    pixels[..., channel] += 120
    fields = json.dumps({"name": f"{key}.jpg", "latitude": place[0], "longitude": place[1]}).encode()
    return Stored(key, simplejpeg.encode_jpeg(pixels, quality=90), fields, 40, 48)


def photos(count, seed):
    """(place, channel) of so many photos, within some kilometres of the cities in turn."""
    near = np.random.default_rng(seed).normal(scale=0.02, size=(count, 2))
    return [((CITIES[n % 3][0] + near[n, 0], CITIES[n % 3][1] + near[n, 1]), n % 3) for n in range(count)]


def write(folder, splits):
    folder.mkdir(parents=True)
    found = {}
    for split, samples in splits.items():
        parts = [samples[start : start + EACH] for start in range(0, len(samples), EACH)]
        found[split] = Split(
            len(samples),
            tuple(
                write_shard(
                    folder, f"{split}-{n:06d}", (stored(key, *sample) for key, sample in enumerate(part, EACH * n))
                )
                for n, part in enumerate(parts)
            ),
        )
    index = Index(folder.name, (), found, {}, {})
    (folder / "index.json").write_bytes(index.to_json())


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Photos of three cities, and two lonely ones, to learn from and to be tested on. MLflow is told nothing."""
    folder = tmp_path_factory.mktemp("places")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "RESULTS", folder / "results")
        patch.setattr(paths, "DATA", folder / "data")
        patch.setattr(tracking, "sending", lambda: nullcontext(lambda spool: None))
        patch.setattr(tracking, "send", lambda spools: None)
        lonely = [(LONELY, 0), (LONELY, 1)]
        write(paths.shards("small", "yfcc100m_geo"), {"train": [*photos(60, 0), *lonely], "val": [(ELSEWHERE, 0)] * 40})
        write(paths.shards("small", "im2gps"), {"test": photos(30, 1)})
        write(paths.shards("small", "im2gps3k"), {"test": photos(12, 2)})
        cells(params(), "small", "few")
        train(params(), "small", "geolocation")
        yield folder


def params(keep_from=5, **table):
    sample = load().scales["sample"]
    base = sample.recipes["imagenet"].defaults
    changes = {"resolution_divisor": 2, "epochs": 12, "batch_size": 8}
    changes["optimizer"] = {**base["optimizer"], "learning_rate": 0.02}
    changes["augment"] = {**base["augment"], "min_saturation": 1.0, "max_saturation": 1.0}
    values = {
        "task": "geolocation",
        "dataset": "yfcc100m_geo",
        "cells": {"partition": "few", "position": "mean"},
        "test": {"dataset": "im2gps", "split": "test"},
        "further_tests": {"im2gps3k": {"dataset": "im2gps3k", "split": "test"}},
        "num_outputs": 9800,
        "runs": {"small_net": {"net": "mobilenet", "width": 0.25, "resolution": 64}},
        **table,
    }
    names = ("yfcc100m_geo", "im2gps", "im2gps3k")
    places = {"dataset": "yfcc100m_geo", "split": "train"}
    small = {
        "datasets": {name: sample.datasets[name].model_dump() for name in names},
        "partitions": {
            "few": {**places, "split_above": 30, "keep_from": keep_from},
            "many": {**places, "split_above": 4, "keep_from": 1},
            "none": {**places, "split_above": 30, "keep_from": 25},
        },
        "recipes": {"geolocation": {"defaults": base | changes, "runs": {}}},
    }
    return parsed(Params, {"scale": "small", "tables": {"geolocation": values}, "scales": {"small": small}}, "")


def test_cells_are_made_of_the_training_photos_alone(project):
    table = read_cells(paths.cells("small", "few"))
    ids = np.array([s2.from_token(token) for token in table.tokens], dtype=np.uint64)
    assert (ids[:-1] < ids[1:]).all()
    assert table.photos.tolist() == [20, 20, 20]  # and not the two lonely ones, which are fewer than 5
    centres, means = table.positions["centre"], table.positions["mean"]
    assert centres == pytest.approx(s2.centres(ids), abs=1e-7)
    for place in CITIES:
        assert s2.distances(means, np.array([place] * 3)).min() < 5
    assert s2.distances(centres, means).min() > 5, "the cells are large, the cities are not in their middle"


def test_a_table_of_cells_reads_as_it_was_written(tmp_path):
    ids = s2.parents(s2.leaves(np.array([10.0, -10.0]), np.array([179.9, -179.9])), 10)
    written = CellTable(
        tuple(s2.token(cell) for cell in ids.tolist()),
        np.array([5, 6]),
        {"centre": s2.centres(ids), "mean": np.array([[10.0, 179.95], [-10.0, -179.95]])},
    )
    for name, content in cell_files(written, {"split_above": 7}).items():
        (tmp_path / name).write_bytes(content)
    assert json.loads((tmp_path / "cells.json").read_text()) == {"split_above": 7}
    found = read_cells(tmp_path)
    assert found.tokens == written.tokens
    assert found.photos.tolist() == [5, 6]
    assert all(found.positions[name] == pytest.approx(written.positions[name], abs=1e-7) for name in written.positions)
    with (tmp_path / "cells.csv").open() as file:
        assert tuple(csv.DictReader(file).fieldnames) == COLUMNS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("token,count\n89c,5\n", r"cells\.csv has the columns token, count; they must be token, photos"),
        ("", r"cells\.csv has the columns none; they must be"),
        (",".join(COLUMNS) + "\n", r"cells\.csv is no table of cells"),
        (",".join(COLUMNS) + "\n89c,5,x,0,0,0\n", r"cells\.csv is no table of cells: .*'x'"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, text, message):
    (tmp_path / "cells.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_cells(tmp_path)


def test_a_map_lies_beside_the_table_and_nothing_else(project):
    cells(params(), "small", "many")
    folder = paths.cells("small", "many")
    assert {path.name for path in folder.iterdir()} == {"cells.csv", "cells.json", "cells.png", "cells.svg"}
    assert (folder / "cells.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.parent.glob(".*.fresh"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    cells(params(), "small", "many")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sum(read_cells(folder).photos) == 62, "the lonely ones too"


def test_a_partition_without_cells_is_refused_and_leaves_nothing(project):
    with pytest.raises(ValueError, match="partition none: no cell holds keep_from 25 of the 62 photos"):
        cells(params(), "small", "none")
    assert not paths.cells("small", "none").exists()
    with pytest.raises(ValueError, match="few: keep_from 31 is above split_above 30"):
        params(keep_from=31)
    with pytest.raises(ValueError, match="partition 'more' is unknown; there are: few, many, none"):
        cells(params(), "small", "more")


def test_leaves_are_those_of_every_photo_in_order(project):
    found = read_leaves(paths.shards("small", "yfcc100m_geo"), "train")
    places = np.array([place for place, _ in photos(60, 0)] + [LONELY] * 2)
    assert found.tolist() == sorted(s2.leaves(places[:, 0], places[:, 1]).tolist())


def test_photos_without_a_place_are_refused(tiny_shards):
    with pytest.raises(ValueError, match=r"train-000000\.tar: sample 0 has no latitude; it has name, label"):
        read_leaves(tiny_shards, "train")
    with pytest.raises(ValueError, match="has no split 'all'; there are: train, val"):
        read_leaves(tiny_shards, "all")


@pytest.mark.slow
def test_a_net_learns_cells_and_is_measured_in_kilometres_on_each_test_set(project):
    evaluate(params(), "small", "geolocation")
    (found,) = json.loads((project / "results/small/geolocation/metrics.json").read_text())["runs"].values()
    assert (found["num_outputs"], found["num_classes"], found["samples"], found["eval_samples"]) == (3, 0, 30, 30)
    assert found["within_25_correct"] > 20, "of 30 photos, where guessing gives 10"
    assert found["biggest_within_25_correct"] == 10
    assert (found["test_dataset"], found["im2gps3k_test_dataset"]) == ("im2gps", "im2gps3k")
    assert (found["im2gps3k_samples"], found["im2gps3k_eval_samples"]) == (12, 12)
    assert found["im2gps3k_biggest_within_25_correct"] == 4
    assert found["parameters"] > 9800 * 256
    with (project / "results/small/geolocation/evaluation/small_net/photos.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert sum(float(row["error_km"]) <= 25 for row in rows) == found["within_25_correct"]


@pytest.mark.slow
def test_the_position_of_a_cell_is_read_from_params(project):
    """The cells are hundreds of kilometres wide: their centres are far from the cities in them."""
    evaluate(params(cells={"partition": "few", "position": "centre"}), "small", "geolocation")
    (found,) = json.loads((project / "results/small/geolocation/metrics.json").read_text())["runs"].values()
    centres = read_cells(paths.cells("small", "few")).positions["centre"]
    truths = np.array([place for place, _ in photos(30, 1)])
    reachable = (np.stack([s2.distances(np.repeat(c[None], 30, axis=0), truths) for c in centres]) <= 25).any(axis=0)
    assert found["within_25_correct"] <= reachable.sum() < 20


@pytest.mark.slow
def test_a_test_set_that_is_not_given_is_left_out_and_said_so(project, caplog):
    folder = paths.shards("small", "im2gps3k")
    whole = (folder / "index.json").read_bytes()
    (folder / "index.json").write_bytes(Index("im2gps3k", (), {}, {}, {}).to_json())
    try:
        with caplog.at_level("WARNING"):
            evaluate(params(), "small", "geolocation")
    finally:
        (folder / "index.json").write_bytes(whole)
    (found,) = json.loads((project / "results/small/geolocation/metrics.json").read_text())["runs"].values()
    assert not [key for key in found if key.startswith("im2gps3k")]
    assert "im2gps3k is not given: geolocation goes without it" in caplog.text


def test_other_cells_are_other_classes_and_the_row_is_trained_again(project):
    assert make_plan(params(), "small", "geolocation").unfinished(None) == []
    cells(params(), "small", "many")
    finer = params(cells={"partition": "many", "position": "mean"})
    plan = make_plan(finer, "small", "geolocation")
    assert plan.unfinished(None) == ["small_net"]
    assert plan.num_outputs == len(plan.classes) == len(read_cells(paths.cells("small", "many")).tokens)
    with pytest.raises(ValueError, match="it was trained for other cells; run: python -m pipelines.train geolocation"):
        evaluate(finer, "small", "geolocation")


def test_cells_that_are_not_made_yet_and_a_table_without_any_are_refused(project):
    with pytest.raises(ValueError, match="make it with: python -m pipelines.cells none --scale small"):
        make_plan(params(cells={"partition": "none", "position": "mean"}), "small", "geolocation")
    with pytest.raises(ValueError, match="run small_net: task geolocation chooses among cells"):
        make_plan(params(cells=None), "small", "geolocation").check("small_net")
    with pytest.raises(ValueError, match="partition 'more' is unknown; there are: few, many, none"):
        params(cells={"partition": "more", "position": "mean"})


def test_cells_of_other_values_or_other_photos_are_not_used(project):
    assert current_cells(params(), "small", "few").photos.tolist() == [20, 20, 20]
    again = "few is of other photos, or of other values in params.yaml; make it with: python -m pipelines.cells few"
    with pytest.raises(ValueError, match=again):
        make_plan(params(keep_from=4), "small", "geolocation")
    index = paths.shards("small", "yfcc100m_geo") / "index.json"
    whole = index.read_bytes()
    try:
        index.write_bytes(replace(read_index(index.parent), skipped={"placeholder": 1}).to_json())
        with pytest.raises(ValueError, match=again):
            make_plan(params(), "small", "geolocation")
        with pytest.raises(ValueError, match="it was trained on other shards"):
            evaluate(params(), "small", "geolocation")
    finally:
        index.write_bytes(whole)


def test_cells_must_be_of_the_data_that_are_learned_from():
    with pytest.raises(ValueError, match=r"cells\.partition: few is of yfcc100m_geo, not of im2gps"):
        params(dataset="im2gps")


def test_a_further_test_set_has_a_plain_name():
    with pytest.raises(ValueError, match="further_tests"):
        params(further_tests={"": {"dataset": "im2gps3k", "split": "test"}})


@pytest.mark.slow
def test_several_processes_read_the_same_places(project, monkeypatch):
    shards = paths.shards("small", "yfcc100m_geo").absolute()
    alone = read_leaves(shards, "train")
    monkeypatch.setattr(stage, "FEW_PHOTOS", 0)
    assert read_leaves(shards, "train").tolist() == alone.tolist()


def test_every_photo_of_a_cell_is_assigned_to_it(project):
    leaves = read_leaves(paths.shards("small", "yfcc100m_geo"), "train")
    table = read_cells(paths.cells("small", "few"))
    ids = np.array([s2.from_token(token) for token in table.tokens], dtype=np.uint64)
    places = geocells.assign(leaves, ids)
    assert np.bincount(places[places >= 0]).tolist() == table.photos.tolist()
    assert (places < 0).sum() == 2
