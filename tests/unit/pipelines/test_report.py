"""The report from a full metrics.json: every number in it is checked against the input, the paper or arithmetic."""

from __future__ import annotations

import csv
import json
import math
import re
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import report as report_stage
from pipelines.config import Params, load
from pipelines.figures import RESOLUTION_COLORS
from pipelines.paper import load_paper
from pipelines.tables import count_difference, data_statement, departures, runs_table

ROOT = Path(__file__).parents[3]
PAPER = load_paper()
DATA = PAPER.data["imagenet"]

# Mult-Adds, parameters and parameters with BatchNorm and biases of the 16 models: arithmetic, not this code.
WEIGHTS = {100: (4209088, 4231976), 75: (2568144, 2585560), 50: (1319648, 1331592), 25: (463600, 470072)}
MULT_ADDS = {
    (100, 224): 568740352, (100, 192): 418121728, (100, 160): 290675200, (100, 128): 186400768,
    (75, 224): 325400448, (75, 192): 239273472, (75, 160): 166396800, (75, 128): 106770432,
    (50, 224): 149497088, (50, 192): 109970432, (50, 160): 76524800, (50, 128): 49160192,
    (25, 224): 41030272, (25, 192): 30212608, (25, 160): 21059200, (25, 128): 13570048,
}  # fmt: skip
OTHERS = {
    "imagenet_conv_w100_r224": ("conv_mobilenet", 4867293184, 29281120, 29294088),
    "imagenet_shallow_w100_r224": ("shallow_mobilenet", 307323392, 2875328, 2887976),
    "imagenet_googlenet": ("googlenet", 1498376192, 6609344, 6624904),
    "imagenet_vgg16": ("vgg16", 15470264320, 138344128, 138357544),
    "imagenet_squeezenet": ("squeezenet", 818924576, 1244448, 1248424),
    "imagenet_alexnet": ("alexnet", 714188480, 61090496, 61100840),
}


def result(net: str, width: float, resolution: int, cost: tuple[int, int, int], correct: int, **changed: Any) -> dict:
    share, samples = correct / 240, 240
    row = {
        "net": net, "width": width, "resolution": resolution, "input_size": resolution // 4,
        "kind": "local", "num_workers": 1, "top1": share, "top1_low": share - 0.06, "top1_high": share + 0.05,
        "top5": min(1.0, share + 0.2), "top1_correct": correct, "top5_correct": min(240, correct + 48),
        "samples": samples, "mult_adds": cost[0], "parameters": cost[1], "parameters_all": cost[2], "steps": 300,
        "epochs": 7.0, "train_seconds": 20.125, "images_per_second": 310.5, "mean_staleness": None,
    }  # fmt: skip
    return row | changed


def sample_metrics() -> dict[str, Any]:
    runs = {}
    for number, ((width, resolution), mult_adds) in enumerate(MULT_ADDS.items()):
        cost = (mult_adds, *WEIGHTS[width])
        runs[f"imagenet_w{width:03d}_r{resolution}"] = result(
            "mobilenet", width / 100, resolution, cost, 200 - 7 * number
        )
    for name, (net, *cost) in OTHERS.items():
        runs[name] = result(net, 1.0, 224, tuple(cost), 150)
    runs["imagenet_w100_r224"] |= {"kind": "async", "num_workers": 2, "mean_staleness": 0.9375}
    runs["imagenet_vgg16"]["epochs"] = 1.0
    return {
        "scale": "sample", "table": "imagenet", "dataset": "imagenet", "data_digest": "sha256:" + "ab" * 32,
        "num_classes": 12, "eval_samples": 240, "runs": runs,
    }  # fmt: skip


def paper_metrics() -> dict[str, Any]:
    """As if run on ImageNet: the paper's classes, images and input sizes, and its accuracies plus half a point."""
    metrics = sample_metrics() | {"scale": "anything", "num_classes": 1000, "eval_samples": 50000}
    for row in metrics["runs"].values():
        row |= {"input_size": row["resolution"], "epochs": 100.0, "samples": 50000}
        row |= {"top1": 0.7112, "top1_low": 0.7072, "top1_high": 0.7152, "top1_correct": 35560}
    return metrics


@pytest.fixture(scope="module")
def params() -> Params:
    return load(ROOT / "params.yaml")


def evaluated(folder: Path) -> None:
    """Makes `folder` a project's after `evaluate`: metrics.json, and the folder of each run."""
    metrics = sample_metrics()
    table = folder / "results/sample/imagenet"
    for number, (name, row) in enumerate(metrics["runs"].items()):
        folder = table / "train" / name
        folder.mkdir(parents=True)
        steps = range(5, 305, 5) if number else range(1, 1001)
        rows = [{"step": s, "time": 1.0, "loss": 2.5 * math.exp(-s / 100) + number / 100} for s in steps]
        (folder / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        counts = {"0": 20, "1": 270, "3": 10} if row["kind"] == "async" else None
        summary = {"steps": 300} | ({"staleness": counts} if counts else {})
        (folder / "run.json").write_text(json.dumps({"summary": summary}))
    (table / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An evaluated project to change, as the current folder."""
    monkeypatch.chdir(tmp_path)
    evaluated(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    """A finished report, to read only: drawing takes seconds."""
    folder = tmp_path_factory.mktemp("project")
    evaluated(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report_stage.report(params, "sample")
    return folder / "results/sample/report"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """Collects tables as text and everything that a browser would load; fails on tags that do not match."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.ids += [values["id"]] if "id" in values else []
        self.loaded += [values["src"]] if "src" in values else []
        self.links += [values["href"]] if tag == "a" else []
        assert tag not in ("script", "link", "iframe", "object")
        if tag == "tr":
            self.rows.setdefault(self.ids[-1], []).append([])
        if tag in ("td", "th"):
            self.rows[self.ids[-1]][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[self.ids[-1]][-1][-1] += data
        if self.ids:
            self.text[self.ids[-1]] = self.text.get(self.ids[-1], "") + data

    def close(self) -> None:
        super().close()
        assert self.open == []


def test_writes_every_file(made: Path):
    files = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    names = [*(f"table_{number}" for number in range(1, 10)), "grid", "runs"]
    figures = ["figure_4", "figure_5", "curves", "staleness"]
    assert files == {
        "index.html", "report.md", "plots/accuracy_vs_mult_adds.csv",
        *(f"tables/{name}.csv" for name in names),
        *(f"{figure}.{kind}" for figure in figures for kind in ("png", "svg")),
        *(f"plots/curves/{run}.csv" for run in sample_metrics()["runs"]),
        *(f"metrics/{run}.json" for run in sample_metrics()["runs"]),
    }  # fmt: skip


def test_page_is_well_formed_and_loads_nothing(made: Path):
    text = (made / "index.html").read_text()
    page = Page(text)
    assert len(page.loaded) == 4
    assert all(url.startswith("data:image/svg+xml;base64,") for url in page.loaded)
    assert "url(" not in text
    assert "@import" not in text
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        assert link in {PAPER.url, *(f"#{name}" for name in page.ids)} or (made / link).is_file()


def test_a_row_on_the_page(made: Path):
    rows = Page((made / "index.html").read_text()).rows
    conv, mobilenet = rows["table_4"][2:]
    assert mobilenet == [
        "MobileNet",
        "70.6", "83.3", "77.3 to 88.3", "200 of 240", "+12.7, other data",
        "569", "568.74", "equal",
        "4.2", "4.209", "equal",
    ]  # fmt: skip
    assert conv[6:] == ["4866", "4,867.29", "+1.29 (+0.03%)", "29.3", "29.281", "equal"]
    assert rows["table_7"][4][6:9] == ["290", "290.68", "equal, cut off"]
    assert rows["table_9"][3][6:9] == ["1700", "818.92", "-881.08 (-51.83%)"]
    layers = rows["table_1"][2:]
    assert [row[0] for row in layers if row[1] != row[4]] == ["body.conv13.depthwise"]
    assert all(row[2:4] == row[5:7] for row in layers)
    assert sum(int(row[7].replace(",", "")) for row in layers) == 568740352
    shares = {row[0]: row[1:] for row in rows["table_2"][2:]}
    assert shares["conv 1x1"] == ["94.86", "94.86", "equal", "74.59", "74.59", "equal"]
    assert shares["conv 3x3"][:3] == ["1.19", "1.91", "+0.72 (+60.14%)"]
    assert all(row[3] == row[6] == "equal" for row in rows["table_3"][2:])


def test_every_count_that_differs_is_explained_under_its_table():
    for name, published in PAPER.runs.items():
        table = runs_table(name, published, PAPER, sample_metrics())
        differing = {row[0].text for row in table.rows if any(cell.mark == "differs" for cell in row)}
        for label in differing:
            assert any(label in text for text in (*table.slips, *table.notes)), (name, label)


def test_markdown_has_the_same_cells_as_the_page(made: Path):
    page = Page((made / "index.html").read_text())
    lines = (made / "report.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("| ")]
    for name, rows in page.rows.items():
        for row in rows[1 if name == "runs" else 2 :]:
            assert row in cells, (name, row)


def test_csv_is_the_input_unrounded(made: Path):
    metrics = sample_metrics()["runs"]
    for table, published in PAPER.runs.items():
        rows = read_csv(made / f"tables/{table}.csv")
        assert [row["run"] for row in rows] == [row.run for row in published.rows]
        for row, printed in zip(rows, published.rows, strict=True):
            source = metrics[row["run"]]
            assert float(row["top1"]) == source["top1"]
            assert (float(row["top1_low"]), float(row["top1_high"])) == (source["top1_low"], source["top1_high"])
            assert (int(row["top1_correct"]), int(row["samples"])) == (source["top1_correct"], 240)
            assert (int(row["mult_adds"]), int(row["parameters"])) == (source["mult_adds"], source["parameters"])
            assert row["comparable"] == "false"
            if "mult_adds" in printed.published:
                assert int(row["mult_adds_paper"]) == int(printed.published["mult_adds"]) * 1_000_000
                assert float(row["top1_paper"]) == pytest.approx(float(printed.published["top1"]) / 100, abs=1e-12)
            else:
                assert (row["mult_adds_paper"], row["top1_paper"]) == ("", "")


def test_curves_are_averaged_down_and_exact_where_short(made: Path):
    short = read_csv(made / "plots/curves/imagenet_alexnet.csv")
    assert [int(row["step"]) for row in short] == list(range(5, 305, 5))
    assert float(short[0]["loss"]) == 2.5 * math.exp(-5 / 100) + 21 / 100
    long = read_csv(made / "plots/curves/imagenet_w100_r224.csv")
    assert [int(row["step"]) for row in long] == list(range(5, 1005, 5))
    assert float(long[0]["loss"]) == pytest.approx(sum(2.5 * math.exp(-s / 100) for s in range(1, 6)) / 5)


def test_runs_table_has_loss_staleness_and_cost(made: Path):
    rows = {row["run"]: row for row in read_csv(made / "tables/runs.csv")}
    assert len(rows) == 22
    assert rows["imagenet_w100_r224"]["mean_staleness"] == "0.9375"
    assert rows["imagenet_w100_r192"]["mean_staleness"] == ""
    assert float(rows["imagenet_alexnet"]["final_loss"]) == 2.5 * math.exp(-3) + 0.21
    assert rows["imagenet_alexnet"]["parameters_all"] == "61100840"


def test_plot_data_has_a_row_for_every_run(made: Path):
    rows = read_csv(made / "plots/accuracy_vs_mult_adds.csv")
    wanted = {name: (row["mult_adds"], row["top1"]) for name, row in sample_metrics()["runs"].items()}
    assert {row["run"]: (int(row["mult_adds"]), float(row["top1"])) for row in rows} == wanted


def test_says_on_the_face_of_each_table_what_the_accuracies_are_of(made: Path):
    text = Page((made / "index.html").read_text()).text
    for name in (*PAPER.runs, *PAPER.figures):
        assert "12 classes (the paper: 1,000)" in text[name]
        assert "240 validation images (the paper: 50,000), inputs divided by 4" in text[name]
        assert "cannot be compared with the paper's" in text[name]
    assert "trained for 1 to 7 epochs" in text["table_8"]
    assert "trained for" not in text["table_7"]


def test_whether_data_compares_is_read_from_the_metrics_and_not_from_the_scale():
    metrics = paper_metrics()
    table = runs_table("table_4", PAPER.runs["table_4"], PAPER, metrics)
    assert "50,000 validation images of 1,000 classes" in table.statement
    conv, mobilenet = table.rows
    assert [cell.text for cell in mobilenet[1:6]] == ["70.6", "71.1", "70.7 to 71.5", "35,560 of 50,000", "+0.5"]
    assert conv[5].text == "-0.6"  # 71.12 - 71.7 = -0.58
    smaller = metrics | {"eval_samples": 49999}
    assert departures(smaller, [], DATA) == ["49,999 validation images (the paper: 50,000)"]
    assert "anything scale are of the anything data" in data_statement(smaller, [], DATA)


def test_one_row_on_smaller_inputs_is_marked_but_its_neighbour_is_not():
    metrics = paper_metrics()
    metrics["runs"]["imagenet_conv_w100_r224"]["input_size"] = 112
    table = runs_table("table_4", PAPER.runs["table_4"], PAPER, metrics)
    assert [row[5].text for row in table.rows] == ["-0.6, other data", "+0.5"]
    assert "inputs divided by 2." in table.statement


@pytest.mark.parametrize(
    ("printed", "exact", "shown"),
    [
        ("569", "568.740352", "equal"),
        ("290", "290.6752", "equal, cut off"),
        ("4.2", "4.209088", "equal"),
        ("1.32", "1.319648", "equal"),
        ("0.5", "0.4636", "equal"),
        ("4866", "4867.294208", "+1.29 (+0.03%)"),
        ("60", "61.090496", "+1.09 (+1.82%)"),
        ("41", "40.499999", "-0.50 (-1.22%)"),
        ("41", "40.5", "equal"),
        ("41", "42", "+1.00 (+2.44%)"),
    ],
)
def test_counts_are_compared_in_the_last_printed_digit(printed: str, exact: str, shown: str):
    assert count_difference(printed, Decimal(exact), decimals=2).text == shown


def test_a_run_without_results_stays_as_not_run(project: Path, params: Params):
    path = project / "results/sample/imagenet/metrics.json"
    metrics = sample_metrics()
    del metrics["runs"]["imagenet_w075_r224"], metrics["runs"]["imagenet_vgg16"]
    path.write_text(json.dumps(metrics))
    report_stage.report(params, "sample")
    page = Page((project / "results/sample/report/index.html").read_text())
    missing = ["not run", "-", "-", "-", "325", "not run", "-", "2.6", "not run", "-"]
    assert page.rows["table_5"][2] == ["0.75 MobileNet", "68.4", *missing]
    assert next(row for row in page.rows["runs"] if row[0] == "imagenet_vgg16")[1] == "not run"
    assert "Not run: 1 of the 16 models" in page.text["figure_4"]
    row = read_csv(project / "results/sample/report/tables/table_5.csv")[0]
    assert (row["mult_adds_paper"], row["mult_adds"], row["top1"]) == ("325000000", "", "")
    summary = (project / "results/sample/report/report.md").read_text()
    assert "- Runs: 20 of 22" in summary


def test_no_metrics_is_an_error_with_the_command(project: Path, params: Params):
    (project / "results/sample/imagenet/metrics.json").unlink()
    wanted = (
        r"results/sample/imagenet/metrics\.json does not exist.*python -m pipelines\.evaluate imagenet --scale sample"
    )
    with pytest.raises(ValueError, match=wanted):
        report_stage.report(params, "sample")


def test_broken_metrics_and_missing_curves_are_errors_that_name_the_file(project: Path, params: Params):
    curve = project / "results/sample/imagenet/train/imagenet_vgg16/curve.jsonl"
    curve.unlink()
    with pytest.raises(ValueError, match=r"imagenet_vgg16/curve\.jsonl: missing or empty"):
        report_stage.report(params, "sample")
    (project / "results/sample/imagenet/metrics.json").write_text('{"scale": ')
    with pytest.raises(ValueError, match=r"metrics\.json is not JSON"):
        report_stage.report(params, "sample")
    assert not (project / "results/sample/report").exists()


def test_results_of_a_run_that_is_no_longer_planned_are_an_error(project: Path, params: Params):
    path = project / "results/sample/imagenet/metrics.json"
    metrics = sample_metrics()
    metrics["runs"]["imagenet_old"] = metrics["runs"]["imagenet_vgg16"]
    path.write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match=r"metrics\.json has imagenet_old, which params\.yaml lacks"):
        report_stage.report(params, "sample")


def test_same_input_same_bytes_and_nothing_of_an_older_report_stays(made: Path, project: Path, params: Params):
    again = project / "results/sample/report"
    again.mkdir()
    (again / "left_over.csv").write_text("of an older report")
    report_stage.report(params, "sample")
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (made, again)
    )
    assert first == second
    assert not list(again.parent.glob(".report*"))


def test_figure_4_has_every_point_where_it_belongs(made: Path):
    svg = (made / "figure_4.svg").read_text()
    marker = r'<use [^>]* x="([\d.]+)" y="([\d.]+)" style="fill: (#\w+); stroke: #ffffff'
    drawn = [(float(x), float(y), color) for x, y, color in re.findall(marker, svg)]
    runs = [sample_metrics()["runs"][row.run] for row in PAPER.runs["grid"].rows]
    assert [color for _, _, color in drawn] == [RESOLUTION_COLORS[run["resolution"]].lower() for run in runs]
    for positions, values in (
        ([x for x, _, _ in drawn], [math.log(run["mult_adds"]) for run in runs]),
        ([-y for _, y, _ in drawn], [run["top1"] for run in runs]),
    ):
        slope, offset = np.polyfit(values, positions, 1)
        assert slope > 0
        assert np.abs(slope * np.array(values) + offset - positions).max() < 1e-3  # points; the figure is 490 wide
    hollow = re.findall(r'style="fill-opacity: 0; stroke: (#\w+)', svg)
    printed = [row.run[-3:] for row in PAPER.runs["grid"].rows if "top1" in row.published]
    legend = "#666666"
    assert sorted(hollow) == sorted([RESOLUTION_COLORS[int(size)].lower() for size in printed] + [legend])
    assert (made / "figure_4.png").read_bytes().startswith(b"\x89PNG")
