"""Results beside published numbers, row by row: of which data they are, and how they differ."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from pipelines.comparisons import data_statement, departures
from pipelines.paper import load_paper
from pipelines.tables import count_difference, runs_table

PAPER = load_paper()
FULL = {  # of the full test set at full input size
    "imagenet": {"test_dataset": "imagenet", "num_classes": 1000, "eval_samples": 50000, "samples": 50000},
    "dogs": {"test_dataset": "stanford_dogs", "num_classes": 120, "eval_samples": 8580, "samples": 8580},
    "face_attributes": {"test_dataset": "celeba", "num_classes": 40, "eval_samples": 19962, "samples": 19962},
    "coco": {"test_dataset": "coco", "num_classes": 80, "eval_samples": 8059, "samples": 8059},
    "face_embeddings": {"test_dataset": "lfw", "num_classes": 0, "eval_samples": 13233, "samples": 13233},
}


def full_results(table: str) -> dict[str, dict[str, Any]]:
    """Every row of a published table as if run at paper scale: 0.7112 of everything, plus or minus 0.004."""
    published = PAPER.runs[table]
    result = {"resolution": 224, "input_size": 224, "epochs": 100.0, "teacher": None, "mult_adds": 1, "parameters": 1}
    for key in published.columns:
        if PAPER.columns[key].kind in ("proportion", "measured", "ours"):
            result |= {key: 0.7112, f"{key}_low": 0.7072, f"{key}_high": 0.7152, f"{key}_correct": 35560}
    return {row.key: {**result, **FULL[published.data]} for row in published.rows}


def test_whether_data_compares_is_read_from_the_results_and_not_from_the_scale():
    results = full_results("table_4")
    table = runs_table("table_4", PAPER.runs["table_4"], PAPER, "anything", results)
    assert table.statement == (
        "Accuracies are of 50,000 test images of 1,000 classes at full input size, as the paper's are."
    )
    conv, mobilenet = table.rows
    assert [cell.text for cell in mobilenet[1:6]] == ["70.6", "71.1", "70.7 to 71.5", "35,560 of 50,000", "+0.5"]
    assert conv[5].text == "-0.6"  # 71.12 - 71.7 = -0.58
    smaller = [results["imagenet_w100_r224"] | {"eval_samples": 49999}]
    data = PAPER.data["imagenet"]
    assert departures(smaller, data) == ["49,999 test images (the paper: 50,000)"]
    assert "anything scale are of the anything data" in data_statement("anything", smaller, data)


def test_one_row_on_smaller_inputs_is_marked_but_its_neighbour_is_not():
    results = full_results("table_4")
    results["imagenet_conv_w100_r224"]["input_size"] = 112
    table = runs_table("table_4", PAPER.runs["table_4"], PAPER, "paper", results)
    assert [row[5].text for row in table.rows] == ["-0.6, other data", "+0.5"]
    assert "inputs divided by 2." in table.statement


def test_dogs_compare_with_the_paper_on_their_full_test_set():
    table = runs_table("table_10", PAPER.runs["table_10"], PAPER, "paper", full_results("table_10"))
    assert "8,580 test images of 120 breeds at full input size, as the paper's are." in table.statement
    assert [row[5].text for row in table.rows] == ["-12.9", "-12.2", "-10.8", "-10.8", "-9.4"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "table_12",
            "Accuracies are of 19,962 test images of 40 attributes at full input size. "
            "The paper's are of a data set of its own that is not public.",
        ),
        (
            "table_14",
            "Accuracies are of 13,233 test images at full input size. The paper does not say what data its are of.",
        ),
    ],
)
def test_what_is_of_other_data_than_the_paper_s_never_compares(name: str, said: str):
    table = runs_table(name, PAPER.runs[name], PAPER, "paper", full_results(name))
    assert table.statement == f"{said} Ours cannot be compared with the paper's; Mult-Adds and parameters can."
    assert {record["comparable"] for record in table.records} == {"false"}
    differences = [
        row[4] for row, line in zip(table.rows, PAPER.runs[name].rows, strict=True) if "run" in line.published
    ]
    assert all(cell.mark == "apart" and cell.text.endswith(", other data") for cell in differences)


def test_another_test_set_of_the_same_size_does_not_compare():
    results = full_results("table_10")
    results["stanford_dogs_w100_r224"]["test_dataset"] = "wolves"
    table = runs_table("table_10", PAPER.runs["table_10"], PAPER, "paper", results)
    assert "tested on wolves (the paper: stanford_dogs)" in table.statement
    assert [record["comparable"] for record in table.records] == ["true", "false", "true", "true", "true"]


def test_a_table_of_which_nothing_was_run_says_so_alone():
    table = runs_table("table_14", PAPER.runs["table_14"], PAPER, "paper", {})
    assert table.statement == "None of these was run."
    assert all(row[2].text == "not run" for row in table.rows)


def test_a_metric_that_a_test_set_does_not_have_is_left_empty_if_the_paper_has_not_printed_it():
    results = full_results("table_14")
    del results["face_embedding_nn2"]["pair_accuracy"]
    table = runs_table("table_14", PAPER.runs["table_14"], PAPER, "paper", results)
    place = table.header.index(("Listed pairs, %", "ours"))
    assert [row[place].text for row in table.rows] == ["-", "71.1", "71.1", "71.1", "71.1"]
    assert [record["pair_accuracy"] for record in table.records] == [None, 0.7112, 0.7112, 0.7112, 0.7112]
    del results["face_embedding_nn2"]["tar"]
    with pytest.raises(KeyError, match="tar"):
        runs_table("table_14", PAPER.runs["table_14"], PAPER, "paper", results)


def test_detectors_compare_with_the_paper_on_its_test_images():
    results = full_results("table_13")
    del results["detection_ssd300_vgg"]["ap_large"]
    table = runs_table("table_13", PAPER.runs["table_13"], PAPER, "paper", results)
    assert table.statement == (
        "Accuracies are of 8,059 test images of 80 categories at full input size, as the paper's are."
    )
    assert len(table.header) == 1 + 4 + 5
    vgg, inception = table.rows[:2]
    assert [cell.text for cell in vgg] == [
        "SSD 300, deeplab-VGG", "21.1", "71.1", "70.7 to 71.5", "+50.0", "71.1", "71.1", "71.1", "71.1", "-",
    ]  # fmt: skip
    assert inception[-1].text == "71.1"
    assert (table.records[0]["ap_paper"], table.records[0]["ap"], table.records[0]["ap_large"]) == (0.211, 0.7112, None)
    results["detection_ssd300_vgg"]["eval_samples"] = 5000  # the other minival
    table = runs_table("table_13", PAPER.runs["table_13"], PAPER, "paper", results)
    assert "5,000 or 8,059 test images" not in table.statement
    assert "5,000 test images (the paper: 8,059)" in table.statement
    assert [row[4].mark for row in table.rows] == ["apart", *[""] * 8]


def test_the_cost_of_detectors_has_their_latency_and_the_share_behind_proposals_where_there_are_any():
    cost = {"mult_adds": 25_224_412_096, "parameters": 6_043_072, "latency_ms": 12.345, "input_size": 300}
    cost |= {**FULL["coco"], "resolution": 300}
    results = {row.key: dict(cost) for row in PAPER.runs["table_13_cost"].rows}
    results["detection_faster300_mobilenet"]["proposals_share"] = 0.93016
    table = runs_table("table_13_cost", PAPER.runs["table_13_cost"], PAPER, "sample", results)
    assert table.statement == ""
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows["Faster R-CNN 300, MobileNet"] == [
        "25.2", "25.224", "equal", "6.1", "6.043", "-0.057 (-0.93%)", "93.0", "12.3", "300",
    ]  # fmt: skip
    assert rows["SSD 300, MobileNet"][-3:] == ["-", "12.3", "300"]


def geolocation_results(*parts: str) -> dict[str, dict[str, Any]]:
    """Both runs on the full Im2GPS, 61.2 % at every radius, and on further test sets by the names of their parts.

    Decoded in the second way 10 more photos are right; of the biggest cell 5 are.
    """
    runs = {}
    for run in ("geolocation_inception_v3", "geolocation_w100_r224"):
        runs[run] = {
            "resolution": 224,
            "input_size": 224,
            "epochs": 10.0,
            "mult_adds": 577751552,
            "parameters": 13220288,
        }
        for part, samples in {"": 237, **dict.fromkeys(parts, 2997)}.items():
            found = {"samples": samples, "eval_samples": samples, "test_dataset": part or "im2gps", "num_classes": 0}
            found |= {"cell_accuracy": 0.1234}
            for way, correct in (("", 145), ("hierarchical_", 155), ("biggest_", 5)):
                found[f"{way}median_km"] = 1234.5 + correct
                for km in (1, 25, 200, 750, 2500):
                    share = correct / samples
                    ends = {"": share, "_low": share - 0.01, "_high": share + 0.02, "_correct": correct}
                    found |= {f"{way}within_{km}{end}": value for end, value in ends.items()}
            runs[run] |= {f"{part}_{key}" if part else key: value for key, value in found.items()}
    return runs


def test_shares_in_brief_and_the_parts_of_a_run_stand_in_rows_of_their_own():
    table = runs_table("table_11", PAPER.runs["table_11"], PAPER, "paper", geolocation_results())
    assert table.statement == "Accuracies are of 237 test images at full input size, as the paper's are."
    assert table.header[:4] == [
        ("", "Model"),
        *(("Continent, 2500 km", part) for part in ("paper", "ours", "photos, interval")),
    ]
    texts = {row[0].text: [cell.text for cell in row[1:4]] + [cell.text for cell in row[-2:]] for row in table.rows}
    ours = ["61.2", "145 of 237, 60.2 to 63.2", "1,380", "12.3"]  # 1,379.5 km
    assert texts == {
        "Im2GPS": ["51.9", "-", "-", "-", "-"],
        "PlaNet": ["77.6", *ours],
        "PlaNet MobileNet": ["79.3", *ours],
        "PlaNet MobileNet, hierarchical": ["-", "65.4", "155 of 237, 64.4 to 67.4", "1,390", "-"],
        "PlaNet, hierarchical": ["-", "65.4", "155 of 237, 64.4 to 67.4", "1,390", "-"],
        "Always the biggest cell": ["-", "2.1", "5 of 237, 1.1 to 4.1", "1,240", "-"],
    }
    records = {record["model"]: record for record in table.records}
    assert records["Im2GPS"]["within_1_paper"] == 0.025
    assert (records["Im2GPS"]["within_1"], records["Im2GPS"]["samples"]) == (None, None)
    assert (records["Im2GPS"]["run"], records["Im2GPS"]["comparable"]) == (None, "false")
    biggest = records["Always the biggest cell"]
    assert (biggest["run"], biggest["part"]) == ("geolocation_w100_r224", "biggest")
    assert (biggest["within_25_correct"], biggest["within_25"], biggest["samples"]) == (5, 5 / 237, 237)
    assert biggest["cell_accuracy"] is None
    assert biggest["comparable"] == "true"


def test_a_further_test_set_has_its_own_metrics_counts_and_data():
    results = geolocation_results("im2gps3k")
    table = runs_table("table_11_im2gps3k", PAPER.runs["table_11_im2gps3k"], PAPER, "paper", results)
    assert table.statement == (
        "Accuracies are of 2,997 test images at full input size. The paper does not test on it. "
        "Ours cannot be compared with the paper's; Mult-Adds and parameters can."
    )
    assert "paper" not in {part for _, part in table.header}
    assert [cell.text for cell in table.rows[0][1:3]] == ["4.8", "145 of 2,997, 3.8 to 6.8"]
    assert [cell.text for cell in table.rows[-1][1:3]] == ["0.2", "5 of 2,997, -0.8 to 2.2"]
    assert {(record["samples"], record["comparable"]) for record in table.records} == {(2997, "false")}
    assert not [key for key in table.records[0] if key.endswith("_paper")]
    results["geolocation_w100_r224"]["im2gps3k_eval_samples"] = 120
    statement = data_statement("sample", list(results.values()), PAPER.data["im2gps3k"])
    assert "of the sample data: 120 test images (Im2GPS3k: 2,997)." in statement


def test_a_further_test_set_that_is_not_given_is_told_from_a_run_that_was_not_made():
    results = geolocation_results()
    del results["geolocation_inception_v3"]
    table = runs_table("table_11_im2gps3k", PAPER.runs["table_11_im2gps3k"], PAPER, "paper", results)
    shown = {row[0].text: {cell.text for cell in row[1:]} for row in table.rows}
    assert shown["PlaNet"] == shown["PlaNet, hierarchical"] == {"not run", "-"}
    assert shown["PlaNet MobileNet"] == shown["Always the biggest cell"] == {"not given", "-"}
    assert table.statement == "Im2GPS3k was not given; nothing was tested on it."


def test_counts_alone_are_of_no_data_and_in_the_units_of_their_column():
    results = geolocation_results()
    for label in ("PlaNet, 26,263 cells", "PlaNet MobileNet, 26,263 cells"):
        results[label] = {"mult_adds": 594609664, "parameters": 30078400}
    table = runs_table("table_11_cost", PAPER.runs["table_11_cost"], PAPER, "sample", results)
    assert table.statement == ""
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows["PlaNet MobileNet"] == ["0.58", "0.578", "equal", "13", "13.220", "equal"]
    assert rows["PlaNet MobileNet, 26,263 cells"][:3] == ["0.58", "0.595", "+0.015 (+2.52%)"]
    record = table.records[1]
    assert record == {
        "model": "PlaNet MobileNet", "run": "geolocation_w100_r224",
        "mult_adds_paper": 580000000, "mult_adds": 577751552,
        "parameters_paper": 13000000, "parameters": 13220288,
    }  # fmt: skip


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
