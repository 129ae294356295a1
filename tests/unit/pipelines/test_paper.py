"""paper.yaml against arithmetic that the paper's own numbers must satisfy, and against params.yaml."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from pipelines.config import load
from pipelines.paper import PAPER_FILE, Costs, Layers, load_paper

PARAMS = Path(__file__).parents[3] / "params.yaml"
PAPER = load_paper()


def column(table: str, key: str) -> list[str | None]:
    return [row.published.get(key) for row in PAPER.runs[table].rows]


def test_has_its_tables_the_grid_and_both_figures():
    numbered = [f"table_{number}" for number in (*range(1, 11), 12, 14)]
    assert sorted(PAPER.tables) == sorted([*numbered, "grid"])
    assert list(PAPER.figures) == ["figure_4", "figure_5"]
    assert all(table.title.startswith(f"Table {name[6:]}. ") for name, table in PAPER.tables.items() if name != "grid")


# The paper's tables once more, typed from its text and not from the YAML.
@pytest.mark.parametrize(
    ("table", "printed"),
    [
        ("table_4", "71.7 4866 29.3 | 70.6 569 4.2"),
        ("table_5", "68.4 325 2.6 | 65.3 307 2.9"),
        ("table_6", "70.6 569 4.2 | 68.4 325 2.6 | 63.7 149 1.3 | 50.6 41 0.5"),
        ("table_7", "70.6 569 4.2 | 69.1 418 4.2 | 67.2 290 4.2 | 64.4 186 4.2"),
        ("table_8", "70.6 569 4.2 | 69.8 1550 6.8 | 71.5 15300 138"),
        ("table_9", "60.2 76 1.32 | 57.5 1700 1.25 | 57.2 720 60"),
        ("table_10", "84 5000 23.2 | 83.3 569 3.3 | 81.9 325 1.9 | 81.9 418 3.3 | 80.5 239 1.9"),
        (
            "table_12",
            "88.7 568 3.2 | 88.1 149 0.8 | 87.2 45 0.2 | 88.1 185 3.2 | 87.7 48 0.8 | 86.4 15 0.2 | 86.9 1600 7.5",
        ),
        ("table_14", "83 1600 7.5 | 79.4 286 4.9 | 78.3 185 5.5 | 75.2 166 3.4 | 72.5 108 3.8"),
    ],
)
def test_rows_are_as_printed(table: str, printed: str):
    keys = (PAPER.runs[table].columns[0], "mult_adds", "parameters")
    rows = zip(*(column(table, key) for key in keys), strict=True)
    first = [list(row) for row in rows if row[0] is not None]  # without those that the paper does not have
    assert first == [row.split() for row in printed.split(" | ")]


def test_shares_sum_as_the_slip_says():
    table = PAPER.tables["table_2"]
    assert isinstance(table, Costs)
    mult_adds, parameters = (sum(map(Decimal, shares)) for shares in zip(*table.rows.values(), strict=True))
    assert (mult_adds, parameters) == (Decimal("99.29"), Decimal("100.00"))
    assert mult_adds + Decimal("1.91") - Decimal("1.19") == Decimal("100.01")
    assert any("1.91 %, not 1.19 %" in slip and "99.29 %" in slip for slip in table.slips)


def test_layer_list_weighs_what_the_paper_says():
    table = PAPER.tables["table_1"]
    assert isinstance(table, Layers)
    weighted = [shape for _, shape, _ in table.rows if shape[0].isdigit()]
    assert len(weighted) == 28  # "MobileNet has 28 layers", section 3.2
    weights = 0
    for shape in weighted:
        product = 1
        for side in shape.removesuffix(" dw").split("x"):
            product *= int(side)
        weights += product
    assert weights == 4_209_088


def test_example_rows_follow_from_the_cost_formulas_of_section_3():
    table = PAPER.tables["table_3"]
    assert isinstance(table, Costs)
    full = 9 * 512 * 512
    weights = {  # parameters, and positions they are applied at
        "convolution": (full, 14 * 14),
        "depthwise separable": (9 * 512 + 512 * 512, 14 * 14),
        "alpha 0.75": (9 * 384 + 384 * 384, 14 * 14),
        "rho 0.714": (9 * 384 + 384 * 384, 10 * 10),
    }
    for row, (mult_adds, parameters) in table.rows.items():
        count, positions = weights[row]
        assert float(mult_adds) == pytest.approx(count * positions / 1e6, rel=0.002)
        assert float(parameters) == pytest.approx(count / 1e6, abs=0.005)


def test_every_run_exists_and_every_run_is_shown_but_for_pre_training():
    params = load(PARAMS)
    planned = {run for table in params.tables if table != "web_dogs" for run in params.runs(table)}
    shown = {row.run for table in PAPER.runs.values() for row in table.rows if row.run}
    assert shown == planned
    assert len(shown) == 22 + 5 + 9 + 5


def test_what_is_compared_and_drawn_are_rows():
    for table in PAPER.runs.values():
        rows = {row.run for row in table.rows}
        assert {run for pair in table.compare for run in pair} <= rows
        assert table.pictures is None or table.pictures in rows


def test_a_model_has_the_same_numbers_wherever_it_is_printed():
    seen: dict[tuple[str, str], set[str]] = {}
    for table in PAPER.runs.values():
        for row in table.rows:
            for key, text in row.published.items():
                seen.setdefault((row.key, key), set()).add(text)
    assert {key: texts for key, texts in seen.items() if len(texts) > 1} == {}


def test_grid_is_alpha_times_rho_with_eight_printed_accuracies():
    grid = PAPER.runs["grid"].rows
    wanted = [f"imagenet_w{w}_r{r}" for w in ("100", "075", "050", "025") for r in (224, 192, 160, 128)]
    assert [row.key for row in grid] == wanted
    assert sum("top1" in row.published for row in grid) == 8
    for width in range(4):  # slim's accuracies fall with the resolution
        accuracies = [float(row.published["slim_top1"]) for row in grid[4 * width : 4 * width + 4]]
        assert accuracies == sorted(accuracies, reverse=True)


def test_sections_columns_and_data_that_tables_name_are_there():
    assert {table.section for table in PAPER.tables.values()} == set(PAPER.sections)
    assert {table.data for table in PAPER.runs.values()} == set(PAPER.data)
    for table in PAPER.runs.values():
        assert set(table.columns) <= set(PAPER.columns)
        assert all(set(row.published) <= set(table.columns) for row in table.rows)
    for figure in PAPER.figures.values():
        assert figure.table in PAPER.runs
        assert figure.x in PAPER.columns


def test_a_wrong_key_is_refused_by_name(tmp_path: Path):
    broken = tmp_path / "paper.yaml"
    broken.write_text("title: x\nsurprise: 1\n")
    with pytest.raises(ValueError, match=r"paper\.yaml: citation: Field required"):
        load_paper(broken)


@pytest.mark.parametrize(
    "both", ["", ", run: x, net: {net: mobilenet, width: 1, min_depth: 8, num_classes: 9, resolution: 32}"]
)
def test_a_row_of_neither_a_run_nor_a_net_or_of_both_is_refused(both: str, tmp_path: Path):
    text = PAPER_FILE.read_text()
    old = "{label: GoogleNet, run: imagenet_googlenet, "
    assert text.count(old) == 1
    broken = tmp_path / "paper.yaml"
    broken.write_text(text.replace(old, f"{{label: GoogleNet{both}, "))
    with pytest.raises(ValueError, match=r"row 'GoogleNet' must have either run or net"):
        load_paper(broken)
