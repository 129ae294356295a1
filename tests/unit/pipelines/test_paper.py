"""paper.yaml against arithmetic that the paper's own numbers must satisfy, and against params.yaml."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from pipelines.config import load
from pipelines.paper import PAPER_FILE, Costs, Layers, load_paper

PARAMS = Path(__file__).parents[3] / "params.yaml"
PAPER = load_paper()


def column(table: str, key: str) -> list[str | None]:
    return [row.published.get(key) for row in PAPER.runs[table].rows]


def test_has_its_tables_the_grid_and_both_figures():
    numbered = [f"table_{number}" for number in range(1, 15)]
    assert sorted(PAPER.tables) == sorted([*numbered, "table_11_im2gps3k", "table_11_cost", "table_13_cost", "grid"])
    assert list(PAPER.figures) == ["figure_4", "figure_5"]
    assert all(PAPER.tables[name].title.startswith(f"Table {name[6:]}. ") for name in numbered)


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


TABLE_11 = {  # the paper's columns, from the continent to the street
    "Im2GPS": ("51.9 35.4 32.1 21.9 2.5", (123, 84, 76, 52, 6)),
    "PlaNet": ("77.6 64.0 51.1 31.7 11.0", (184, None, 121, 75, 26)),
    "PlaNet MobileNet": ("79.3 60.3 45.2 31.7 11.4", (188, 143, 107, 75, 27)),
}


def test_table_11_is_as_printed_and_its_slip_says_which_shares_are_no_number_of_237_photos():
    radii = [f"within_{km}" for km in (2500, 750, 200, 25, 1)]
    table = PAPER.runs["table_11"]
    assert list(table.columns[:5]) == radii
    rows = {row.label: row.published for row in table.rows if row.published}
    assert {label: " ".join(row[key] for key in radii) for label, row in rows.items()} == {
        label: text for label, (text, _) in TABLE_11.items()
    }
    rounded, twice = {}, {}
    for photos in range(238):
        share = Decimal(100 * photos) / 237
        rounded[share.quantize(Decimal("0.1"), ROUND_HALF_UP)] = photos
        two_digits = share.quantize(Decimal("0.01"), ROUND_HALF_UP)
        twice[two_digits.quantize(Decimal("0.1"), ROUND_HALF_UP)] = photos
    shares = {Decimal(share) for text, _ in TABLE_11.values() for share in text.split()}
    assert shares - set(rounded) == {Decimal("64.0"), Decimal("31.7"), Decimal("45.2")}
    assert shares - set(twice) == {Decimal("64.0")}
    assert (rounded[Decimal("63.7")], rounded[Decimal("64.1")]) == (151, 152)
    for text, counts in TABLE_11.values():
        assert tuple(twice.get(Decimal(share)) for share in text.split()) == counts
    assert "64.0 % is no number of 237 photos: 151 are 63.7 %, 152 are 64.1 %" in table.slips[0]
    assert "31.7 and 45.2 % are 75 and 107 photos rounded twice" in table.slips[0]


def test_what_the_text_says_of_table_11_s_nets_is_of_9800_cells_and_of_an_auxiliary_classifier():
    cost = PAPER.runs["table_11_cost"]
    printed = {row.label: row.published for row in cost.rows if row.run}
    assert printed == {
        "PlaNet": {"billion_mult_adds": "5.74", "parameters": "52"},
        "PlaNet MobileNet": {"billion_mult_adds": "0.58", "parameters": "13"},
    }
    cells = load(PARAMS).tables["geolocation"].num_outputs
    assert cells == 9800
    assert round(1024 * cells / 1e6) == 10
    assert f"{1024 * 26263 / 1e6:.1f}" == "26.9"
    body, trunk = 21_996_896 - 2048 * 120, 768 * 128 + 25 * 128 * 768  # torchvision's Inception V3, of 120 classes
    assert [f"{count / 1e6:.2f}" for count in (body, trunk)] == ["21.75", "2.56"]
    assert f"{(body + trunk + (2048 + 768) * cells) / 1e6:.2f}" == "51.90"
    # The auxiliary 1x1 convolution is applied at 5x5 positions, the 5x5 one at one.
    mult_adds = 5_711_413_856 - 2048 * 120 + 25 * 768 * 128 + 25 * 128 * 768 + (2048 + 768) * cells
    assert f"{mult_adds / 1e9:.3f}" == "5.744"
    remarks = " ".join([*cost.slips, *cost.notes])
    for said in ("26.9 million", "21.75 million", "2.56 of", "51.90 million", "5.744 billion", "They are billions"):
        assert said in remarks


TABLE_13 = """
SSD 300 deeplab-VGG 21.1% 34.9 33.1
SSD 300 Inception V2 22.0% 3.8 13.7
SSD 300 MobileNet 19.3% 1.2 6.8
Faster R-CNN 300 VGG 22.9% 64.3 138.5
Faster R-CNN 300 Inception V2 15.4% 118.2 13.3
Faster R-CNN 300 MobileNet 16.4% 25.2 6.1
Faster R-CNN 600 VGG 25.7% 149.6 138.5
Faster R-CNN 600 Inception V2 21.9% 129.6 13.3
Faster R-CNN 600 MobileNet 19.8% 30.5 6.1
"""


def test_table_13_is_as_printed_in_two_tables_of_the_same_rows():
    reached, cost = (PAPER.runs[name].rows for name in ("table_13", "table_13_cost"))
    assert [(row.label, row.run) for row in reached] == [(row.label, row.run) for row in cost]
    lines = []
    for row, other in zip(reached, cost, strict=True):
        (ap,), counts = row.published.values(), other.published
        lines.append(f"{row.label.replace(',', '')} {ap}% {counts['billion_mult_adds']} {counts['parameters']}")
    assert lines == TABLE_13.strip().splitlines()


def test_the_nets_of_table_13_are_the_runs_that_its_rows_are_named_after():
    nets = {"VGG": "vgg", "deeplab-VGG": "vgg", "Inception V2": "inception_v2", "MobileNet": "mobilenet"}
    params = load(PARAMS)
    runs = params.runs("detection", "paper")
    for row in PAPER.runs["table_13"].rows:
        framework, net = row.label.split(", ")
        kind, resolution = framework.rsplit(" ", 1)
        name = {"SSD": f"ssd{resolution}", "Faster R-CNN": "faster_rcnn"}[kind]
        assert runs[row.key].net == f"{name}_{nets[net]}"
        assert (runs[row.key].resolution, runs[row.key].input_size) == (int(resolution), int(resolution))


def test_what_is_said_of_table_13_s_oddity_is_so():
    published = {row.label: row.published for name in ("table_13", "table_13_cost") for row in PAPER.runs[name].rows}
    reached = {row.label: float(row.published["ap"]) for row in PAPER.runs["table_13"].rows}
    ahead = {of: reached[f"{of}, Inception V2"] > reached[f"{of}, MobileNet"] for of in ("SSD 300", "Faster R-CNN 600")}
    assert ahead == {"SSD 300": True, "Faster R-CNN 600": True}
    dear, cheap = (published[f"Faster R-CNN 300, {net}"]["billion_mult_adds"] for net in ("Inception V2", "MobileNet"))
    assert f"{float(dear) / float(cheap):.1f}" == "4.7"
    (note,) = (note for note in PAPER.runs["table_13"].notes if "15.4" in note)
    assert "4.7 times" in note
    assert (reached["Faster R-CNN 300, Inception V2"], reached["Faster R-CNN 300, MobileNet"]) == (15.4, 16.4)


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
    planned -= {"imagenet_inception_v2"}  # what detectors of Table 13 start from
    shown = {row.run for table in PAPER.runs.values() for row in table.rows if row.run}
    assert shown == planned
    assert len(shown) == 22 + 5 + 2 + 9 + 9 + 5


def test_every_row_has_a_source_but_for_what_the_paper_itself_quotes():
    quoted = {row.label for table in PAPER.runs.values() for row in table.rows if row.run is None and row.net is None}
    assert quoted == {"Im2GPS"}


def test_a_row_is_known_by_its_label_and_by_its_run_and_part():
    for table in PAPER.runs.values():
        assert len({row.label for row in table.rows}) == len(table.rows)
        assert len({(row.key, row.part) for row in table.rows}) == len(table.rows)


def test_parts_are_ways_of_decoding_and_further_test_sets_of_params():
    params = load(PARAMS)
    assert {row.part for table in PAPER.runs.values() for row in table.rows} == {"", "hierarchical", "biggest"}
    for table in PAPER.runs.values():
        data = PAPER.data[table.data]
        for name in {params.table_of(row.run) for row in table.rows if row.run} - {None}:
            tests = {"": params.tables[name].test, **params.tables[name].further_tests}
            assert tests[data.part].dataset == data.dataset


def test_what_is_compared_and_drawn_are_rows():
    for table in PAPER.runs.values():
        rows = {row.run for row in table.rows}
        assert {run for pair in table.compare for run in pair} <= rows
        printed = {row.label for row in table.rows if row.published}
        assert {label for pair in table.compare_printed for label in pair} <= printed
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


NET = "net: {net: mobilenet, width: 1, min_depth: 8, num_classes: 9, resolution: 32}"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"run: x, {NET}, published: {{}}", "must have either run or net"),
        ("published: {}", "must have run, net or published"),
        (f"{NET}, part: biggest, published: {{}}", "has a part, but no run that it is of"),
    ],
)
def test_a_row_of_too_many_sources_or_of_none_is_refused(row: str, message: str, tmp_path: Path):
    text = PAPER_FILE.read_text()
    old = '{label: GoogleNet, run: imagenet_googlenet, published: {top1: "69.8", mult_adds: "1550", parameters: "6.8"}}'
    assert text.count(old) == 1
    broken = tmp_path / "paper.yaml"
    broken.write_text(text.replace(old, f"{{label: GoogleNet, {row}}}"))
    with pytest.raises(ValueError, match=f"row 'GoogleNet' {message}"):
        load_paper(broken)
