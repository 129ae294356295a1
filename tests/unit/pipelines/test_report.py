"""The report from a full metrics.json: every number in it is checked against the input, the paper or arithmetic."""

from __future__ import annotations

import csv
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import report as report_stage
from pipelines.config import load
from pipelines.figures import RESOLUTION_COLORS, Curve, loss_figure
from pipelines.paper import load_paper

PARAMS = load(Path(__file__).parents[3] / "params.yaml")
PAPER = load_paper()


def mobilenet(width: float, resolution: int, outputs: int, min_depth: int = 8) -> tuple[int, int, int]:
    """Mult-Adds, weights, and weights with BatchNorm and biases: Table 1's arithmetic, not this code's."""
    depths = [max(int(d * width), min_depth) for d in (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)]
    side = resolution // 2
    weights, norm = 27 * depths[0], 2 * depths[0]
    mult_adds = weights * side**2
    for number, (before, after) in enumerate(pairwise(depths), start=1):
        side = math.ceil(side / (2 if number in (2, 4, 6, 12) else 1))
        weights += 9 * before + before * after
        mult_adds += (9 * before + before * after) * side**2
        norm += 2 * before + 2 * after
    head = depths[-1] * outputs
    return mult_adds + head, weights + head, weights + head + norm + outputs


# Mult-Adds, parameters, parameters with BatchNorm and biases of the other nets.
OTHERS = {
    "imagenet_conv_w100_r224": ("conv_mobilenet", 4867293184, 29281120, 29294088),
    "imagenet_shallow_w100_r224": ("shallow_mobilenet", 307323392, 2875328, 2887976),
    "imagenet_googlenet": ("googlenet", 1498376192, 6609344, 6624904),
    "imagenet_vgg16": ("vgg16", 15470264320, 138344128, 138357544),
    "imagenet_squeezenet": ("squeezenet", 818924576, 1244448, 1248424),
    "imagenet_alexnet": ("alexnet", 714188480, 61090496, 61100840),
    "imagenet_inception_v2": ("inception_v2", 1934857216, 11167384, 11188288),
    "web_dogs_inception_v3": ("inception_v3", 5711413856, 21996896, 22031448),
    "stanford_dogs_inception_v3": ("inception_v3", 5711413856, 21996896, 22031448),
    "geolocation_inception_v3": ("inception_v3", 5731238496, 41821536, 41865768),
    "face_attributes_nn2": ("facenet_nn2", 1596440576, 7358144, 7374024),
    "face_embedding_nn2": ("facenet_nn2", 1596530688, 7448256, 7464224),
    "detection_ssd300_vgg": ("ssd300_vgg", 34858153472, 35630272, 35641826),
    "detection_ssd300_inception_v2": ("ssd300_inception_v2", 3782704544, 13767896, 13794391),
    "detection_ssd300_mobilenet": ("ssd300_mobilenet", 1237129408, 6791360, 6819839),
    "detection_faster300_vgg": ("faster_rcnn_vgg", 64304090112, 138491584, 138505035),
    "detection_faster300_inception_v2": ("faster_rcnn_inception_v2", 118217148256, 13296280, 13317219),
    "detection_faster300_mobilenet": ("faster_rcnn_mobilenet", 25224412096, 6043072, 6065995),
    "detection_faster600_vgg": ("faster_rcnn_vgg", 149540339712, 138491584, 138505035),
    "detection_faster600_inception_v2": ("faster_rcnn_inception_v2", 129565855104, 13296280, 13317219),
    "detection_faster600_mobilenet": ("faster_rcnn_mobilenet", 30493700224, 6043072, 6065995),
}
# Of the data to test on: how many classes they have, and how many samples.
TESTED = {
    "imagenet": (12, 240), "stanford_dogs": (6, 96), "im2gps": (0, 48), "celeba": (40, 162), "coco": (6, 80),
    "lfw": (0, 278),
}  # fmt: skip
FURTHER = {"im2gps3k": (0, 120)}
PICTURES = (
    *("stanford_dogs_w100_r224", "geolocation_w100_r224"),
    *("face_attributes_w100_r224", "detection_ssd300_mobilenet", "face_embedding_w100_r160"),
)
RADII = (1, 25, 200, 750, 2500)


def measured(table: str, number: int) -> dict[str, Any]:
    """What the task of a table measures, made up: the better the lower the number."""
    classes, samples = TESTED[PARAMS.tables[table].test.dataset]
    if table == "geolocation":
        return placed(number, samples)
    correct = round(samples * (0.83 - 0.03 * number))
    share = correct / samples
    ends = {"low": share - 0.06, "high": share + 0.05}
    if "attributes" in table:
        found = {"mean_ap": share, **{f"mean_ap_{end}": value for end, value in ends.items()}}
        return {**found, "chance_ap": 0.2345678, "attribute_accuracy": 0.87654321, "attributes": 40, "samples": samples}
    if table == "detection":
        return detected(number, samples)
    if table == "face_embeddings":
        found = {"tar": share, **{f"tar_{end}": value for end, value in ends.items()}, "tar_1e3": share + 0.1}
        pairs = {"impostor_pairs": 37811, "genuine_pairs": 692, "false_accepts": 3, "pair_accuracy": 0.9123}
        return {**found, **pairs, "pair_accuracy_std": 0.01, "eer": 0.0876, "auc": 0.95, "samples": samples}
    found = {"top1": share, **{f"top1_{end}": value for end, value in ends.items()}, "top1_correct": correct}
    top5 = {"top5": min(1.0, share + 0.2), "top5_correct": min(samples, correct + samples // 5)}
    return {**found, **top5, "samples": samples} | ({"mean_per_class": share - 0.0123} if classes == 6 else {})


def detected(number: int, samples: int) -> dict[str, Any]:
    """The metrics of a detection run; there are no large objects. The first three propose nothing."""
    found = {"ap": 0.4321 - 0.02 * number, "ap_low": 0.40 - 0.02 * number, "ap_high": 0.45 - 0.02 * number}
    found |= {"ap_50": 0.7123, "ap_75": 0.5432, "ap_small": 0.1234, "ap_medium": 0.4567, "ar_100": 0.6}
    share = {"proposals_share": 0.93016} if number > 2 else {}
    return {**found, **share, "latency_ms": 12.345 + number, "samples": samples}


def errors_of(number: int, samples: int) -> list[float]:
    """How far a geolocation run places each photo from the truth, km; of the second run some nearer, some further."""
    errors = [0.4 * 1.22 ** (photo * 7 % 48) for photo in range(samples)]
    moved = [3.0 if photo % 5 == 0 else 0.3 if photo % 3 == 0 else 1.0 for photo in range(samples)]
    return [error * factor if number else error for error, factor in zip(errors, moved, strict=True)]


def placed(number: int, samples: int) -> dict[str, Any]:
    """The metrics of a geolocation run: of those errors, of a second way of decoding and of a baseline."""
    errors = errors_of(number, samples)
    ways = {"": errors, "hierarchical_": [0.5 * error for error in errors], "biggest_": [300.0 + e for e in errors]}
    found: dict[str, Any] = {"samples": samples, "cell_accuracy": 0.21875, "calibration_error": 0.0625}
    for way, kilometres in ways.items():
        found[f"{way}median_km"] = float(np.median(kilometres))
        for radius in RADII:
            correct = sum(error <= radius for error in kilometres)
            share = correct / samples
            ends = {"": share, "_low": share * 0.9, "_high": share * 0.9 + 0.1, "_correct": correct}
            found |= {f"{way}within_{radius}{end}": value for end, value in ends.items()}
    return found


def of_test_set(dataset: str, classes: int, samples: int) -> dict[str, Any]:
    digest = {"test_split": "test", "test_digest": digest_of(dataset)}
    return {"test_dataset": dataset, **digest, "num_classes": classes, "eval_samples": samples}


def digest_of(dataset: str) -> str:
    return f"sha256:{len(dataset):02d}" + "ab" * 31


def sample_metrics(table: str = "imagenet") -> dict[str, Any]:
    data = PARAMS.tables[table]
    classes, samples = TESTED[data.test.dataset]
    runs = {}
    for number, (name, run) in enumerate(PARAMS.runs(table, "sample").items()):
        shape = (run.width, run.resolution, data.num_outputs, run.net_options.min_depth)
        net, *cost = OTHERS.get(name) or ("mobilenet", *mobilenet(*shape))
        runs[name] = {
            "net": net, "width": run.width, "resolution": run.resolution, "kind": "local", "num_workers": 1,
            "input_size": run.resolution if run.resolution % 4 else run.resolution // 4,
            "epochs": 7.0, "steps": 300, "train_seconds": 20.125, "images_per_second": 310.5, "mean_staleness": None,
            "mult_adds": cost[0], "parameters": cost[1], "parameters_all": cost[2],
            "dataset": data.dataset, "data_digest": digest_of(data.dataset), "num_outputs": classes or 128,
            "teacher": run.teacher, "init_from": run.init_from,
            **of_test_set(data.test.dataset, classes, samples), **measured(table, number),
        }  # fmt: skip
        for part, test in data.further_tests.items():
            found = {**of_test_set(test.dataset, *FURTHER[test.dataset]), **placed(number, FURTHER[test.dataset][1])}
            runs[name] |= {f"{part}_{key}": value for key, value in found.items()}
    if table == "imagenet":
        runs["imagenet_w100_r224"] |= {"kind": "async", "num_workers": 2, "mean_staleness": 0.9375}
        runs["imagenet_vgg16"]["epochs"] = 1.0
    return {"scale": "sample", "table": table, "runs": runs}


def evaluated(folder: Path) -> None:
    """Makes `folder` a project's after `evaluate`: metrics.json of each table, the folders of runs, some pictures."""
    number = 0
    for table in PARAMS.tables:
        metrics = sample_metrics(table)
        results = folder / "results/sample" / table
        for name, row in metrics["runs"].items():
            row_folder = results / "train" / name
            row_folder.mkdir(parents=True)
            steps = range(5, 305, 5) if number else range(1, 1001)
            rows = [{"step": s, "time": 1.0, "loss": 2.5 * math.exp(-s / 100) + number / 100} for s in steps]
            (row_folder / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            counts = {"0": 20, "1": 270, "3": 10} if row["kind"] == "async" else None
            summary = {"steps": 300} | ({"staleness": counts} if counts else {})
            (row_folder / "run.json").write_text(json.dumps({"summary": summary}))
            if name in PICTURES:
                draw_pictures(results / "evaluation" / name)
            if table == "geolocation":
                write_photos(results / "evaluation" / name, list(metrics["runs"]).index(name))
            number += 1
        (results / "metrics.json").write_text(json.dumps(metrics))


def write_photos(folder: Path, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{photo},{error!r},0.5" for photo, error in enumerate(errors_of(number, TESTED["im2gps"][1]))]
    (folder / "photos.csv").write_text("\n".join(["photo,error_km,confidence", *lines, ""]))


def draw_pictures(folder: Path) -> None:
    """Two pictures of an evaluation, one with its data."""
    folder.mkdir(parents=True)
    words = []
    for picture in ("first", "second"):
        words.append({"name": picture, "title": f"The {picture} one", "caption": f"Of {folder.name} & others."})
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 2"><text y="1">{picture}</text></svg>'
        (folder / f"{picture}.svg").write_text(svg)
        (folder / f"{picture}.png").write_bytes(b"\x89PNG" + folder.name.encode())
    (folder / "first.csv").write_text("breed,correct\n1,2\n")
    (folder / "other.csv").write_text("of no picture\n")
    (folder / "pictures.json").write_text(json.dumps(words))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An evaluated project to change, as the current folder."""
    monkeypatch.chdir(tmp_path)
    evaluated(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished report, to read only: drawing takes seconds."""
    folder = tmp_path_factory.mktemp("project")
    evaluated(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report_stage.report(PARAMS, "sample")
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


def every_run() -> dict[str, dict[str, Any]]:
    return {name: row for table in PARAMS.tables for name, row in sample_metrics(table)["runs"].items()}


def test_the_arithmetic_of_these_tests_is_that_of_the_paper():
    assert mobilenet(1.0, 224, 1000) == (568740352, 4209088, 4231976)
    assert mobilenet(0.25, 128, 1000) == (13570048, 463600, 470072)


def test_writes_every_file(made: Path):
    files = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    names = [
        *(f"table_{number}" for number in range(1, 15)),
        "table_11_im2gps3k",
        "table_11_cost",
        "table_13_cost",
        "grid",
        "runs",
    ]
    drawn = [f"table_{number}_{picture}" for number in (10, 11, 12, 13, 14) for picture in ("first", "second")]
    figures = ["figure_4", "figure_5", *(f"curves_{table}" for table in PARAMS.tables), "staleness", *drawn]
    assert files == {
        "index.html", "report.md", "plots/accuracy_vs_mult_adds.csv",
        *(f"tables/{name}.csv" for name in names),
        *(f"{figure}.{kind}" for figure in figures for kind in ("png", "svg")),
        *(f"table_{number}_first.csv" for number in (10, 11, 12, 13, 14)),
        *(f"plots/curves/{run}.csv" for run in every_run()),
        *(f"metrics/{run}.json" for run in every_run()),
    }  # fmt: skip


def test_page_is_well_formed_and_loads_nothing(made: Path):
    text = (made / "index.html").read_text()
    page = Page(text)
    assert len(page.loaded) == 2 + 8 + 1 + 10  # accuracy, curves, staleness, evaluation
    assert all(url.startswith("data:image/svg+xml;base64,") for url in page.loaded)
    assert "url(" not in text
    assert "@import" not in text
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        assert link in {PAPER.url, *(f"#{name}" for name in page.ids)} or (made / link).is_file()


def test_chapters_are_those_of_the_paper_file_and_each_table_is_in_its_own(made: Path):
    text = (made / "index.html").read_text()
    chapters = re.split(r"<h2>(.*?)</h2>", text)[1:]
    assert chapters[::2] == [*PAPER.sections, "Training"]
    for title, chapter in zip(chapters[::2], chapters[1::2], strict=True):
        found = set(re.findall(r'<section id="(\w+)">', chapter)) & set(PAPER.tables)
        assert found == {name for name, table in PAPER.tables.items() if table.section == title}


def test_a_row_on_the_page(made: Path):
    rows = Page((made / "index.html").read_text()).rows
    conv, net = rows["table_4"][2:]
    assert net == [
        "MobileNet",
        "70.6", "82.9", "76.9 to 87.9", "199 of 240", "+12.3, other data",
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


def test_rows_of_other_tasks_have_their_own_metrics(made: Path):
    rows = Page((made / "index.html").read_text()).rows
    dogs = {row[0]: row[1:] for row in rows["table_10"][2:]}
    assert dogs["1.0 MobileNet-224"] == [  # 77 of 96
        "83.3", "80.2", "74.2 to 85.2", "77 of 96", "-3.1, other data",
        "79.0", "569", "567.84", "-1.16 (-0.20%)", "3.3", "3.308", "equal",
    ]  # fmt: skip
    assert dogs["Inception V3"][6:] == ["5000", "5,711.41", "+711.41 (+14.23%)", "23.2", "21.997", "-1.203 (-5.19%)"]
    faces = {row[0]: row[1:] for row in rows["table_12"][2:]}
    assert faces["0.25 MobileNet-128"] == [  # 110 of 162
        "86.4", "67.9", "61.9 to 72.9", "-18.5, other data",
        "23.5", "87.7", "15", "15.03", "equal", "0.2", "0.218", "equal",
    ]  # fmt: skip
    embeddings = {row[0]: row[1:] for row in rows["table_14"][2:]}
    assert embeddings["1.0 MobileNet-128"] == [  # 214 of 278
        "78.3", "77.0", "71.0 to 82.0", "-1.3, other data",
        "87.0", "91.2", "8.8", "185", "185.51", "equal, cut off", "5.5", "3.316", "-2.184 (-39.71%)", "37,811",
    ]  # fmt: skip


def test_detectors_have_their_ap_by_size_and_what_they_cost(made: Path):
    rows = Page((made / "index.html").read_text()).rows
    reached, cost = ({row[0]: row[1:] for row in rows[name][2:]} for name in ("table_13", "table_13_cost"))
    assert reached["SSD 300, MobileNet"] == [
        "19.3", "39.2", "36.0 to 41.0", "+19.9, other data", "71.2", "54.3", "12.3", "45.7", "-",
    ]  # fmt: skip
    assert cost["SSD 300, MobileNet"] == ["1.2", "1.237", "equal", "6.8", "6.791", "equal", "-", "14.3", "75"]
    assert cost["Faster R-CNN 600, VGG"] == [
        "149.6", "149.540", "-0.060 (-0.04%)", "138.5", "138.492", "equal", "93.0", "18.3", "150",
    ]  # fmt: skip
    text = Page((made / "index.html").read_text()).text["table_13"]
    assert "SSD 300, MobileNet minus SSD 300, deeplab-VGG: -4.0 points; the intervals overlap." in text
    assert text.count("In our results:") == 6


def test_a_net_that_is_only_counted_has_its_count_alone(made: Path):
    rows = {row[0]: row[1:] for row in Page((made / "index.html").read_text()).rows["table_12"][2:]}
    assert rows["0.25 MobileNet-224, 8 channels"][:6] == ["-"] * 6
    assert rows["0.25 MobileNet-224, 8 channels"][6:9] == ["45", "40.78", "-4.22 (-9.37%)"]
    assert rows["0.25 MobileNet-128, 8 channels"][6:9] == ["15", "13.32", "-1.68 (-11.17%)"]
    assert rows["0.25 MobileNet-128, 8 channels"][9:] == ["0.2", "0.218", "equal"]
    record = next(row for row in read_csv(made / "tables/table_12.csv") if row["model"].endswith("128, 8 channels"))
    mult_adds, parameters, _ = mobilenet(0.25, 128, 40)
    assert (int(record["mult_adds"]), int(record["parameters"])) == (mult_adds, parameters)
    assert (record["run"], record["mean_ap"], record["samples"], record["comparable"]) == ("", "", "", "false")


def test_rows_that_the_paper_lacks_stand_beside_those_it_has(made: Path):
    rows = {row[0]: row[1:] for row in Page((made / "index.html").read_text()).rows["table_12"][2:]}
    assert rows["1.0 MobileNet-224, labels"][:4] == ["-", "80.2", "74.2 to 85.2", "-"]  # 130 of 162
    assert rows["1.0 MobileNet-224, labels"][6:9] == ["-", "567.76", "-"]


def test_says_how_our_students_stand_to_their_teacher_and_to_labels(made: Path):
    text = Page((made / "index.html").read_text()).text["table_12"]
    # 134 of 162 both; 110 and 134; 134 and 130.
    overlap, apart = "the intervals overlap", "the intervals are apart"
    assert f"1.0 MobileNet-224 minus Baseline, its teacher: +0.0 points; {overlap}." in text
    assert f"0.25 MobileNet-128 minus Baseline, its teacher: -14.8 points; {apart}." in text
    assert f"1.0 MobileNet-224 minus 1.0 MobileNet-224, labels: +2.5 points; {overlap}." in text
    assert text.count("In our results:") == 8
    assert "- In our results: 1.0 MobileNet-224 minus Baseline, its teacher: +0.0" in (made / "report.md").read_text()


def test_table_11_has_shares_in_brief_further_ways_and_test_sets_and_cost(made: Path):
    rows = Page((made / "index.html").read_text()).rows
    errors = np.array(errors_of(1, 48))
    found = {row[0]: row[1:] for row in rows["table_11"][2:]}
    for place, km in enumerate(reversed(RADII)):
        correct = int((errors <= km).sum())
        low = 100 * correct / 48 * 0.9
        ours = [f"{100 * correct / 48:.1f}", f"{correct} of 48, {low:.1f} to {low + 10:.1f}"]
        assert found["PlaNet MobileNet"][3 * place + 1 : 3 * place + 3] == ours
        correct = int((0.5 * errors <= km).sum())
        assert found["PlaNet MobileNet, hierarchical"][3 * place : 3 * place + 2] == ["-", f"{100 * correct / 48:.1f}"]
    assert found["Im2GPS"] == [
        "51.9",
        "-",
        "-",
        "35.4",
        "-",
        "-",
        "32.1",
        "-",
        "-",
        "21.9",
        "-",
        "-",
        "2.5",
        *["-"] * 4,
    ]
    assert found["Always the biggest cell"][-2:] == [f"{300 + np.median(errors_of(1, 48)):.0f}", "-"]
    further = {row[0]: row[1:] for row in rows["table_11_im2gps3k"][2:]}
    correct = int((np.array(errors_of(0, 120)) <= 2500).sum())
    assert further["PlaNet"][0] == f"{100 * correct / 120:.1f}"
    assert further["PlaNet"][1].startswith(f"{correct} of 120, ")
    assert {row[0]: row[1:] for row in rows["table_11_cost"][2:]} == {
        "PlaNet": ["5.74", "5.731", "-0.009 (-0.15%)", "52", "41.822", "-10.178 (-19.57%)"],
        "PlaNet MobileNet": ["0.58", "0.578", "equal", "13", "13.220", "equal"],
        "PlaNet, 26,263 cells": ["5.74", "5.765", "+0.025 (+0.43%)", "52", "75.538", "+23.538 (+45.26%)"],
        "PlaNet MobileNet, 26,263 cells": ["0.58", "0.595", "+0.015 (+2.52%)", "13", "30.078", "+17.078 (+131.37%)"],
    }


def test_says_which_differences_of_table_11_are_significant(made: Path):
    text = Page((made / "index.html").read_text()).text["table_11"]
    first, second = (np.array(errors_of(number, 48)) <= 200 for number in (1, 0))
    region = 100 * (first.mean() - second.mean())
    assert "In our results: PlaNet MobileNet minus PlaNet, 48 photos, in points: continent" in text
    assert f"region {region:+.1f} (" in text
    assert "As printed: PlaNet MobileNet minus PlaNet, 237 photos each, in points: continent +1.7 (" in text
    assert text.count("As printed:") == 2
    assert "- As printed: PlaNet MobileNet minus Im2GPS, 237 photos each" in (made / "report.md").read_text()


def test_photos_that_are_missing_or_not_those_that_were_counted_are_an_error(project: Path):
    photos = project / "results/sample/geolocation/evaluation/geolocation_inception_v3/photos.csv"
    photos.write_text("\n".join(photos.read_text().splitlines()[:-1]) + "\n")
    command = "python -m pipelines.evaluate geolocation --scale sample"
    with pytest.raises(
        ValueError, match=rf"photos\.csv has 47 photos, metrics\.json 48; make it again with: {command}"
    ):
        report_stage.report(PARAMS, "sample")
    photos.unlink()
    with pytest.raises(ValueError, match=rf"inception_v3/photos\.csv does not exist; make it with: {command}"):
        report_stage.report(PARAMS, "sample")


def test_evaluation_pictures_have_their_tables_name_and_their_data(made: Path):
    page = Page((made / "index.html").read_text())
    assert "The first one. Table 10, 1.0 MobileNet-224" in page.text["table_10_first"]
    assert "6 breeds (the paper: 120)" in page.text["table_10_first"]
    assert "Of face_embedding_w100_r160 & others." in page.text["table_14_second"]
    assert (made / "table_12_second.png").read_bytes() == b"\x89PNGface_attributes_w100_r224"
    assert {"table_10_first.csv", "table_10_first.svg"} <= set(page.links)
    assert "![The first one. Table 10, 1.0 MobileNet-224](table_10_first.png)" in (made / "report.md").read_text()


def test_every_count_that_differs_is_explained_under_its_table(made: Path):
    page = Page((made / "index.html").read_text())
    for name, table in PAPER.runs.items():
        for row in page.rows[name][2:]:
            if any(re.search(r"\([+-][\d.]+%\)", cell) for cell in row):
                label = row[0].split(",")[0]
                assert any(label in text for text in (*table.slips, *table.notes)), (name, label)


def test_markdown_has_the_same_cells_as_the_page(made: Path):
    page = Page((made / "index.html").read_text())
    lines = (made / "report.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("| ")]
    for name, rows in page.rows.items():
        for row in rows[1 if name == "runs" else 2 :]:
            assert row in cells, (name, row)


def test_csv_is_the_input_unrounded(made: Path):
    metrics = every_run()
    for table, published in PAPER.runs.items():
        rows = read_csv(made / f"tables/{table}.csv")
        assert [row["model"] for row in rows] == [row.label for row in published.rows]
        part = PAPER.data[published.data].part
        accuracy = published.columns[0]
        of_data = (accuracy, f"{accuracy}_low", f"{accuracy}_high")
        for row, printed in zip(rows, published.rows, strict=True):
            if printed.run is None:
                continue
            assert row["run"] == printed.run
            source = metrics[printed.run]
            for key in {*of_data, "samples", "mult_adds", "parameters"} & set(row):
                way = printed.part if key in of_data else ""
                assert float(row[key]) == source["_".join(filter(None, (part, way, key)))]
            assert row.get("comparable", "false") == "false"
            for key, unit in (("mult_adds", 1e6), (accuracy, 0.01)):
                if f"{key}_paper" in row and table not in ("table_11_cost", "table_13_cost"):
                    wanted, found = printed.published.get(key), row[f"{key}_paper"]
                    assert float(found or "nan") == pytest.approx(float(wanted or "nan") * unit, rel=1e-12, nan_ok=True)
    dogs = {row["run"]: row for row in read_csv(made / "tables/table_10.csv")}["stanford_dogs_w075_r192"]
    source = metrics["stanford_dogs_w075_r192"]
    assert float(dogs["mean_per_class"]) == source["mean_per_class"]
    assert int(dogs["top1_correct"]) == source["top1_correct"]


def test_curves_are_averaged_down_and_exact_where_short(made: Path):
    short = read_csv(made / "plots/curves/imagenet_alexnet.csv")
    assert [int(row["step"]) for row in short] == list(range(5, 305, 5))
    assert float(short[0]["loss"]) == 2.5 * math.exp(-5 / 100) + 21 / 100
    long = read_csv(made / "plots/curves/imagenet_w100_r224.csv")
    assert [int(row["step"]) for row in long] == list(range(5, 1005, 5))
    assert float(long[0]["loss"]) == pytest.approx(sum(2.5 * math.exp(-s / 100) for s in range(1, 6)) / 5)


def test_curves_that_share_a_panel_and_a_resolution_are_told_apart_by_their_runs(made: Path):
    svg = (made / "curves_celeba_attributes.svg").read_text()
    labels = re.findall(r"<!-- (face\w+) -->", svg)  # matplotlib says in a comment what it draws as outlines
    assert labels == ["facenet_nn2", "face_attributes_w100_r224_labels", "face_attributes_w100_r224_labels_decay"]
    assert re.findall(r"<!-- (224|128) -->", (made / "curves_face_attributes.svg").read_text()) == ["224", "128"] * 3


def test_runs_table_has_the_task_s_metric_loss_staleness_and_cost(made: Path):
    rows = {row["run"]: row for row in read_csv(made / "tables/runs.csv")}
    assert list(rows) == list(every_run())
    assert rows["imagenet_w100_r224"]["mean_staleness"] == "0.9375"
    assert rows["imagenet_w100_r192"]["mean_staleness"] == ""
    assert float(rows["imagenet_alexnet"]["final_loss"]) == 2.5 * math.exp(-3) + 0.21
    assert rows["imagenet_alexnet"]["parameters_all"] == "61100840"
    for name, metric, key in (
        ("web_dogs_w100_r224", "top-1", "top1"),
        ("geolocation_inception_v3", "within 25 km", "within_25"),
        ("face_attributes_nn2", "mean AP", "mean_ap"),
        ("face_embedding_w075_r128", "TAR at FAR 1e-4", "tar"),
        ("detection_faster600_vgg", "COCO AP", "ap"),
    ):
        assert (rows[name]["metric"], float(rows[name]["reached"])) == (metric, every_run()[name][key])
    assert rows["face_attributes_w050_r128"]["teacher"] == "face_attributes_nn2"
    assert rows["stanford_dogs_w100_r192"]["init_from"] == "web_dogs_w100_r192"


def test_plot_data_has_a_row_for_every_run_on_imagenet(made: Path):
    rows = read_csv(made / "plots/accuracy_vs_mult_adds.csv")
    wanted = {name: (row["mult_adds"], row["top1"]) for name, row in sample_metrics()["runs"].items()}
    assert {row["run"]: (int(row["mult_adds"]), float(row["top1"])) for row in rows} == wanted


def test_dvc_metrics_are_those_that_a_run_has(made: Path):
    for name, keys in (
        ("stanford_dogs_w100_r224", ["top1", "top1_low", "top1_high", "top5", "mean_per_class"]),
        ("geolocation_w100_r224", [*(f"within_{radius}" for radius in RADII), "median_km"]),
        ("face_attributes_nn2", ["mean_ap", "mean_ap_low", "mean_ap_high"]),
        ("face_embedding_nn2", ["tar", "tar_low", "tar_high", "pair_accuracy", "eer"]),
        ("detection_ssd300_vgg", ["ap", "ap_low", "ap_high", "ap_small", "ap_medium", "latency_ms"]),
    ):
        found = json.loads((made / f"metrics/{name}.json").read_text())
        assert found == {key: every_run()[name][key] for key in (*keys, "mult_adds", "parameters")}


def test_says_on_the_face_of_each_table_what_the_accuracies_are_of(made: Path):
    text = Page((made / "index.html").read_text()).text
    for name in {*PAPER.runs, *PAPER.figures} - {"table_11_cost", "table_13_cost"}:  # which have none
        assert "Ours cannot be compared with the paper's; Mult-Adds and parameters can." in text[name]
    for name in (*(name for name, table in PAPER.runs.items() if table.data == "imagenet"), *PAPER.figures):
        assert "12 classes (the paper: 1,000)" in text[name]
        assert "240 test images (the paper: 50,000), inputs divided by 4" in text[name]
    assert "6 breeds (the paper: 120), 96 test images (the paper: 8,580)" in text["table_10"]
    assert "data: 6 categories (the paper: 80), 80 test images (the paper: 8,059), inputs" in text["table_13"]
    assert (
        "data: 162 test images (CelebA: 19,962), inputs divided by 4. The paper's are of a data set" in text["table_12"]
    )
    assert "data: 278 test images (LFW: 13,233), inputs divided by 4. The paper does not say" in text["table_14"]
    assert "data: 48 test images (the paper: 237), inputs divided by 4." in text["table_11"]
    assert "data: 48 test images (the paper: 237)" in text["table_11_first"]
    assert (
        "data: 120 test images (Im2GPS3k: 2,997), inputs divided by 4. The paper does not" in text["table_11_im2gps3k"]
    )
    assert "for 1 to 7 epochs" in text["table_8"]
    assert "epochs" not in text["table_7"]


def test_summary_counts_runs_and_names_every_version_of_data(made: Path):
    summary = (made / "report.md").read_text().split("\n\n")[2]
    assert f"- Runs: {len(every_run())} of {len(every_run())}" in summary
    faces, places = ("celeba", "yfcc100m_faces", "lfw"), ("yfcc100m_geo", "im2gps", "im2gps3k")
    for dataset in ("imagenet", "web_dogs", "stanford_dogs", "coco", *places, *faces):
        assert f"- Shards, {dataset}: {digest_of(dataset)}" in summary
    assert "Accuracies, celeba: Accuracies at sample scale are of the sample data: 162 test images" in summary
    assert "Accuracies, im2gps3k: Accuracies at sample scale are of the sample data: 120 test images" in summary


@pytest.mark.slow
def test_a_run_without_results_stays_as_not_run(project: Path):
    without = {"imagenet": ["imagenet_w075_r224", "imagenet_vgg16"], "face_attributes": ["face_attributes_w100_r224"]}
    for table, names in without.items():
        metrics = sample_metrics(table)
        for name in names:
            del metrics["runs"][name]
        (project / f"results/sample/{table}/metrics.json").write_text(json.dumps(metrics))
    report_stage.report(PARAMS, "sample")
    page = Page((project / "results/sample/report/index.html").read_text())
    missing = ["not run", "-", "-", "-", "325", "not run", "-", "2.6", "not run", "-"]
    assert page.rows["table_5"][2] == ["0.75 MobileNet", "68.4", *missing]
    assert next(row for row in page.rows["runs"] if row[0] == "imagenet_vgg16")[1] == "not run"
    assert "Not run: 1 of the 16 models" in page.text["figure_4"]
    assert "1.0 MobileNet-224 minus Baseline: not run." in page.text["table_12"]
    assert "table_12_first" not in page.ids
    row = read_csv(project / "results/sample/report/tables/table_5.csv")[0]
    assert (row["mult_adds_paper"], row["mult_adds"], row["top1"]) == ("325000000", "", "")
    assert (
        f"- Runs: {len(every_run()) - 3} of {len(every_run())}"
        in (project / "results/sample/report/report.md").read_text()
    )


@pytest.mark.slow
def test_a_table_that_is_not_evaluated_is_shown_as_not_run(project: Path, caplog):
    (project / "results/sample/face_embeddings/metrics.json").unlink()
    report_stage.report(PARAMS, "sample")
    assert "face_embeddings is not evaluated: its rows are shown as not run" in caplog.text
    assert "python -m pipelines.evaluate face_embeddings --scale sample" in caplog.text
    table = (project / "results/sample/report/tables/table_14.csv").read_text()
    assert all(",,," in line for line in table.splitlines()[1:])


def test_no_metrics_at_all_is_an_error_with_the_command(project: Path):
    for metrics in (project / "results/sample").glob("*/metrics.json"):
        metrics.unlink()
    wanted = r"imagenet/metrics\.json does not exist.*python -m pipelines\.evaluate imagenet --scale sample"
    with pytest.raises(ValueError, match=wanted):
        report_stage.report(PARAMS, "sample")


def test_missing_pictures_of_a_run_that_was_evaluated_are_an_error(project: Path):
    (project / "results/sample/stanford_dogs/evaluation/stanford_dogs_w100_r224/second.svg").unlink()
    wanted = r"w100_r224/second\.svg does not exist.*python -m pipelines\.evaluate stanford_dogs --scale sample"
    with pytest.raises(ValueError, match=wanted):
        report_stage.report(PARAMS, "sample")


def test_more_curves_than_colours_are_told_apart_by_dashes():
    curves = [Curve(f"run_{i}", f"net_{i}", 1.0, 300, False, [0, 1], [1, i]) for i in range(9)]
    svg = loss_figure(curves)[".svg"].decode()
    lines = re.findall(
        r'style="fill: none;((?: stroke-dasharray: [^;]*;)?(?: stroke-dashoffset: 0;)? stroke: #\w+);', svg
    )
    assert len(set(lines)) >= 9
    assert "<!-- net_8 -->" in svg
    assert "other nets" not in svg


def test_broken_metrics_and_missing_curves_are_errors_that_name_the_file(project: Path):
    curve = project / "results/sample/imagenet/train/imagenet_vgg16/curve.jsonl"
    curve.unlink()
    with pytest.raises(ValueError, match=r"imagenet_vgg16/curve\.jsonl: missing or empty"):
        report_stage.report(PARAMS, "sample")
    (project / "results/sample/imagenet/metrics.json").write_text('{"scale": ')
    with pytest.raises(ValueError, match=r"metrics\.json is not JSON"):
        report_stage.report(PARAMS, "sample")
    assert not (project / "results/sample/report").exists()


def test_results_of_a_run_that_is_no_longer_planned_are_an_error(project: Path):
    path = project / "results/sample/imagenet/metrics.json"
    metrics = sample_metrics()
    metrics["runs"]["imagenet_old"] = metrics["runs"]["imagenet_vgg16"]
    path.write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match=r"metrics\.json has imagenet_old, which params\.yaml lacks"):
        report_stage.report(PARAMS, "sample")


@pytest.mark.slow
def test_same_input_same_bytes_and_nothing_of_an_older_report_stays(made: Path, project: Path):
    again = project / "results/sample/report"
    again.mkdir()
    (again / "left_over.csv").write_text("of an older report")
    report_stage.report(PARAMS, "sample")
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
    runs = [sample_metrics()["runs"][row.key] for row in PAPER.runs["grid"].rows]
    assert [color for _, _, color in drawn] == [RESOLUTION_COLORS[run["resolution"]].lower() for run in runs]
    for positions, values in (
        ([x for x, _, _ in drawn], [math.log(run["mult_adds"]) for run in runs]),
        ([-y for _, y, _ in drawn], [run["top1"] for run in runs]),
    ):
        slope, offset = np.polyfit(values, positions, 1)
        assert slope > 0
        assert np.abs(slope * np.array(values) + offset - positions).max() < 1e-3  # points; the figure is 490 wide
    hollow = re.findall(r'style="fill-opacity: 0; stroke: (#\w+)', svg)
    printed = [row.key[-3:] for row in PAPER.runs["grid"].rows if "top1" in row.published]
    legend = "#666666"
    assert sorted(hollow) == sorted([RESOLUTION_COLORS[int(size)].lower() for size in printed] + [legend])
    assert (made / "figure_4.png").read_bytes().startswith(b"\x89PNG")
