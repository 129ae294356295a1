"""Results beside published numbers, row by row: of which data they are, and how they differ."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from pipelines.paper import load_paper
from pipelines.tables import comparisons, count_difference, data_statement, departures, runs_table

PAPER = load_paper()
FULL = {  # of the full test set at full input size
    "imagenet": {"test_dataset": "imagenet", "num_classes": 1000, "eval_samples": 50000, "samples": 50000},
    "dogs": {"test_dataset": "stanford_dogs", "num_classes": 120, "eval_samples": 8580, "samples": 8580},
    "face_attributes": {"test_dataset": "celeba", "num_classes": 40, "eval_samples": 19962, "samples": 19962},
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


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ((0.80, 0.78, 0.82), "+1.0 points; the intervals overlap."),
        ((0.80, 0.796, 0.804), "+1.0 points; the intervals are apart."),
        ((0.78, 0.77, 0.785), "-1.0 points; the intervals overlap."),  # they meet in one point
    ],
)
def test_two_runs_are_compared_by_difference_and_by_intervals(student: tuple[float, float, float], said: str):
    table = PAPER.runs["table_12"]
    results = full_results("table_12")
    keys = ("mean_ap", "mean_ap_low", "mean_ap_high")
    results["face_attributes_nn2"] |= dict(zip(keys, (0.79, 0.785, 0.795), strict=True))
    results["face_attributes_w050_r128"] |= {"teacher": "face_attributes_nn2", **dict(zip(keys, student, strict=True))}
    sentences = comparisons(table, PAPER, results)
    assert len(sentences) == len(table.compare)
    assert f"0.5 MobileNet-128 minus Baseline, its teacher: {said}" in sentences


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
