"""The net for a budget: what the command prints and writes, and how it tells what cannot be."""

import csv
import json
from pathlib import Path

import pytest

from pipelines import choose as stage
from pipelines import paths
from pipelines.budgets import COSTS, Budget, Candidate
from pipelines.choose import choose, main, read_budget, runs_text
from pipelines.config import load

ROOT = Path(__file__).parents[3]
PARAMS = load()


def result(top1, mult_adds, parameters, **other):
    sizes = {"net": "mobilenet", "width": 1.0, "resolution": 224, "mult_adds": mult_adds, "parameters": parameters}
    return {**sizes, "top1": top1, "top1_low": top1 - 0.05, "top1_high": top1 + 0.05, **other}


RESULTS = {
    "imagenet_w100_r224": result(0.7, 568_740_352, 4_209_088),
    "imagenet_w050_r224": result(0.6, 149_500_000, 1_320_000),
    "imagenet_w050_r160": result(0.6, 76_520_000, 1_320_000),
    "imagenet_vgg16": result(0.65, 15_470_000_000, 138_000_000, net="vgg16"),
}


@pytest.fixture
def metrics(tmp_path, monkeypatch):
    """Four runs of ImageNet, evaluated."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")

    def write(results, table="imagenet"):
        path = tmp_path / "results" / "sample" / table / "metrics.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"scale": "sample", "table": table, "runs": results}))

    write(RESULTS)
    return write


def test_the_choice_is_printed_and_written_with_its_front(metrics, tmp_path, capsys):
    chosen = choose(PARAMS, "sample", "imagenet", Budget({"mult_adds": 2e8, "parameters": 4.2e6}), tmp_path / "out")
    assert chosen.run == "imagenet_w050_r160", "as accurate as the other, and cheaper"
    said = capsys.readouterr().out
    assert "imagenet_w100_r224  70.0%     568.74 M     4.209 M  568,740,352 Mult-Adds, more than 200,000,000; " in said
    assert "4,209,088 parameters, more than 4,200,000" in said
    assert "imagenet_w050_r160  60.0%      76.52 M     1.320 M  chosen\n" in said
    assert "imagenet_w050_r224  60.0%     149.50 M     1.320 M  fits\n" in said
    assert "imagenet_googlenet is not evaluated; make it with: python -m pipelines.evaluate imagenet" in said
    written = json.loads((tmp_path / "out" / "choice.json").read_text())
    assert (written["run"], written["accuracy"], written["mult_adds"]) == ("imagenet_w050_r160", 0.6, 76_520_000)
    assert written["budget"] == {"limits": {"mult_adds": 2e8, "parameters": 4.2e6}, "min_accuracy": None}
    with (tmp_path / "out" / "pareto_mult_adds.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["imagenet_w050_r160", "imagenet_w050_r224", "imagenet_w100_r224", "imagenet_vgg16"]
    assert [row["on_front"] for row in rows.values()] == ["true", "false", "true", "false"]
    assert [row["fits"] for row in rows.values()] == ["true", "true", "false", "false"]
    with (tmp_path / "out" / "pareto_parameters.csv").open() as file:
        front = {row["run"] for row in csv.DictReader(file) if row["on_front"] == "true"}
    assert front == {"imagenet_w050_r160", "imagenet_w050_r224", "imagenet_w100_r224"}, "equal ones are both on it"
    for cost in ("mult_adds", "parameters"):
        assert (tmp_path / "out" / f"pareto_{cost}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (tmp_path / "out" / f"pareto_{cost}.svg").read_bytes()
    assert len(list((tmp_path / "out").iterdir())) == 7, "nothing half-made is left"


def test_the_cheapest_that_reaches_an_accuracy(metrics, tmp_path):
    def chosen(**limits):
        return choose(PARAMS, "sample", "imagenet", Budget(limits, 0.6), tmp_path).run

    assert chosen() == "imagenet_w050_r160"
    assert chosen(mult_adds=1e9) == "imagenet_w100_r224"
    assert choose(PARAMS, "sample", "imagenet", Budget({}), tmp_path).run == "imagenet_w100_r224"


def test_where_nothing_fits_the_nearest_is_told_in_one_line(metrics, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        main(["--scale", "sample", "--max-mult-adds", "70M", "--min-accuracy", "60%", "--out", str(tmp_path / "out")])
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: no run of imagenet at sample scale fits --max-mult-adds 70,000,000 --min-accuracy 60 %; "
        "nearest is imagenet_w050_r160: 76,520,000 Mult-Adds, more than 70,000,000"
    )
    assert (tmp_path / "out" / "pareto_mult_adds.csv").exists(), "a front shows what there is"
    assert not (tmp_path / "out" / "choice.json").exists()


def test_an_older_choice_does_not_outlive_one_that_failed(metrics, tmp_path):
    choose(PARAMS, "sample", "imagenet", Budget({}), tmp_path / "out")
    with pytest.raises(ValueError, match="fits"):
        choose(PARAMS, "sample", "imagenet", Budget({"parameters": 1.0}), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"pareto_parameters{end}" for end in stage.SUFFIXES}


def test_other_tables_have_their_own_metric(metrics, tmp_path, capsys):
    of_faces = {key: value for key, value in result(0, 10, 10).items() if not key.startswith("top1")}
    reached = {"mean_ap": 0.4, "attribute_accuracy": 0.9, "mean_ap_low": 0.3, "mean_ap_high": 0.5}
    metrics({"face_attributes_w025_r128": {**of_faces, **reached}}, "face_attributes")
    chosen = choose(PARAMS, "sample", "face_attributes", Budget({}), tmp_path)
    assert (chosen.accuracy, chosen.low, chosen.high) == (0.4, 0.3, 0.5)
    assert "mean AP" in capsys.readouterr().out


def test_only_runs_that_fit_otherwise_are_measured(metrics, tmp_path, monkeypatch, capsys):
    """With a stand-in for the measuring: what is real is tested on an export."""
    asked = []

    class Found:
        median_ms, p10_ms, p90_ms = 2.0, 1.9, 2.25

    def latencies(params, scale, runs, threads):
        asked.extend(runs)
        return dict.fromkeys(runs, Found)

    monkeypatch.setattr("pipelines.export.latencies", latencies)
    budget = Budget({"mult_adds": 2e8, "latency_ms": 3.0})
    assert choose(PARAMS, "sample", "imagenet", budget, tmp_path, threads=2).run == "imagenet_w050_r160"
    assert asked == ["imagenet_w050_r224", "imagenet_w050_r160"]
    said = capsys.readouterr().out
    assert "ms, threads: 2" in said
    assert "2 (1.9 to 2.25)  chosen" in said
    assert "not measured  568,740,352 Mult-Adds" in said
    with (tmp_path / "pareto_latency_ms.csv").open() as file:
        assert {row["run"]: row["latency_ms"] for row in csv.DictReader(file)} == dict.fromkeys(asked, "2.0")
    with pytest.raises(ValueError, match="nearest is imagenet_w050_r160: 2 ms, more than 1$"):
        choose(PARAMS, "sample", "imagenet", Budget({"mult_adds": 2e8, "latency_ms": 1.0}), tmp_path)
    asked.clear()
    with pytest.raises(ValueError, match="nearest is imagenet_w050_r160: 76,520,000 Mult-Adds"):
        choose(PARAMS, "sample", "imagenet", Budget({"mult_adds": 1e6, "latency_ms": 1.0}), tmp_path)
    assert asked == []


@pytest.mark.parametrize(
    ("limits", "to_export", "option"), [({}, True, "--export"), ({"latency_ms": 1.0}, False, "--max-latency-ms")]
)
def test_detectors_are_chosen_but_not_exported(metrics, tmp_path, limits, to_export, option):
    tables = PARAMS.tables
    (table,) = [name for name, one in tables.items() if one.task == "object_detection"]
    run = next(iter(tables[table].runs))
    found = {key: value for key, value in result(0, 10, 10).items() if not key.startswith("top1")}
    metrics({run: {**found, "ap": 0.2, "ap_low": 0.1, "ap_high": 0.3}}, table)
    assert choose(PARAMS, "sample", table, Budget({"mult_adds": 10.0}), tmp_path).run == run
    with pytest.raises(
        ValueError, match=f"^{option}: nets of task object_detection are not exported to ONNX; .*imagenet"
    ):
        choose(PARAMS, "sample", table, Budget(limits), tmp_path, to_export=to_export)


def test_mistakes_are_told_by_what_to_do(metrics, tmp_path):
    with pytest.raises(ValueError, match="table 'nothing' is unknown; there are: .*imagenet"):
        choose(PARAMS, "sample", "nothing", Budget({}), tmp_path)
    with pytest.raises(
        ValueError, match=r"stanford_dogs.metrics.json does not exist; make it with: .*evaluate stanford_dogs"
    ):
        choose(PARAMS, "sample", "stanford_dogs", Budget({}), tmp_path)
    metrics({})
    with pytest.raises(ValueError, match="has no run; make it again with: "):
        choose(PARAMS, "sample", "imagenet", Budget({}), tmp_path)


def test_a_run_that_has_not_been_trained_cannot_be_exported(metrics, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    with pytest.raises(ValueError, match="shards.imagenet"):
        choose(PARAMS, "sample", "imagenet", Budget({}), tmp_path, to_export=True)


def test_columns_stand_below_each_other():
    rows = (("a", 0.5, 10**9, 10**6), ("a_long_name", 1.0, 10**3, 10**9))
    many = [Candidate(run, "mobilenet", 1.0, 224, share, None, None, *costs) for run, share, *costs in rows]
    lines = runs_text(many, Budget({}), many[1], "top-1", 1).splitlines()
    assert [line.split()[0] for line in lines] == ["run", "a_long_name", "a"]
    assert len({line.index(" M  ") for line in lines[1:]}) == 1


def test_a_budget_is_read_from_its_options():
    given = {"mult_adds": "600M", "parameters": None, "latency_ms": "2", "min_accuracy": "50%"}
    assert read_budget(given) == Budget({"mult_adds": 600e6, "latency_ms": 2.0}, 0.5)
    assert read_budget(dict.fromkeys(given)) == Budget({})


def test_every_cost_has_its_option():
    assert set(COSTS) == set(stage.OPTIONS)
