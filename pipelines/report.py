"""The report stage: `python -m pipelines.report` sets the paper's numbers and ours side by side.

Reads the `metrics.json` of every table of params.yaml, the curves of its runs, and the evaluation pictures that
`paper.yaml` asks for; writes a folder with `index.html` (one page, complete in itself), `report.md`, `tables/*.csv`,
the figures, and `plots/` and `metrics/` for `dvc plots` and `dvc metrics`. The same input gives the same bytes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipelines import paths, tracking
from pipelines.command import end_process, one_line_errors, stage_parser
from pipelines.comparisons import comparisons, data_statement, departures, printed_comparisons, results_of
from pipelines.config import Params, load
from pipelines.figures import Curve, Point, accuracy_figure, loss_figure, staleness_figure
from pipelines.files import replace_folder
from pipelines.page import Picture, Section, csv_text, html_page, markdown_page
from pipelines.paper import Figure, Paper, Runs, load_paper
from pipelines.report_data import Inputs, Losses, read_inputs
from pipelines.tables import Record, Result, Table, runs_table, training_table

log = logging.getLogger(__name__)
DVC_METRICS = (  # columns of `dvc metrics show`, each where a run has it
    *("top1", "top1_low", "top1_high", "top5", "mean_per_class"),
    *("within_1", "within_25", "within_200", "within_750", "within_2500", "median_km"),
    *("mean_ap", "mean_ap_low", "mean_ap_high"),
    *("tar", "tar_low", "tar_high", "pair_accuracy", "eer"),
    *("ap", "ap_low", "ap_high", "ap_small", "ap_medium", "ap_large", "latency_ms"),
    *("mult_adds", "parameters"),
)


def report(params: Params, scale: str) -> None:
    """Write the report of a scale: all of it, or nothing."""
    folder = paths.report(scale)
    replace_folder(folder, report_files(load_paper(), read_inputs(params, scale)))
    tracking.send([tracking.log_report(paths.spools(scale), folder, scale)])
    log.info("%s", folder / "index.html")


def report_files(paper: Paper, inputs: Inputs) -> dict[str, bytes]:
    """The whole report: file name -> content."""
    tables = published_tables(paper, inputs)
    final_losses = {run: rows[-1][1] for run, rows in inputs.losses.items()}
    training = training_table(list(inputs.planned), inputs.results, final_losses)
    sections = [
        *(paper_section(title, paper, inputs, tables) for title in paper.sections),
        Section("Training", [*training_pictures(inputs), training]),
    ]
    summary = summarise(paper, inputs, [tables[name] for name in paper.runs])
    texts = {
        "index.html": html_page(paper, inputs.scale, summary, sections),
        "report.md": markdown_page(paper, inputs.scale, summary, sections),
        **dvc_files(inputs.results, inputs.losses),
        **{f"tables/{table.name}.csv": csv_text(table.records) for section in sections for table in section.tables},
    }
    pictures = [picture for section in sections for picture in section.pictures]
    drawn = {f"{picture.name}{suffix}": data for picture in pictures for suffix, data in picture.files.items()}
    return drawn | {name: text.encode() for name, text in texts.items()}


def published_tables(paper: Paper, inputs: Inputs) -> dict[str, Table]:
    """Every table of paper.yaml beside ours, by name."""
    from pipelines.cost_tables import cost_table, net_cost

    rows = [row for table in paper.runs.values() for row in table.rows]
    counted = {row.key: net_cost(row.net) for row in rows if row.net is not None}
    results = {**inputs.results, **counted}
    tables = {}
    for name, table in paper.tables.items():
        if not isinstance(table, Runs):
            tables[name] = cost_table(name, table)
            continue
        compared = comparisons(table, paper, inputs.results, inputs.errors)
        printed = printed_comparisons(table, paper)
        found = runs_table(name, table, paper, inputs.scale, results)
        tables[name] = replace(found, comparisons=compared, printed_comparisons=printed)
    return tables


def paper_section(title: str, paper: Paper, inputs: Inputs, tables: Mapping[str, Table]) -> Section:
    """A chapter of paper.yaml: figures, tables, then evaluation pictures."""
    names = [name for name, table in paper.tables.items() if table.section == title]
    figures = [
        accuracy_picture(name, figure, paper, inputs) for name, figure in paper.figures.items() if figure.table in names
    ]
    runs = [name for name in names if name in paper.runs]
    evaluated = [picture for name in runs for picture in evaluation_pictures(name, paper, inputs)]
    return Section(title, [*figures, *(tables[name] for name in names), *evaluated])


def accuracy_picture(name: str, figure: Figure, paper: Paper, inputs: Inputs) -> Picture:
    """Figure 4 or 5: our points, and the paper's where it prints them."""
    table = paper.runs[figure.table]
    data = paper.data[table.data]
    points = figure_points(figure, table, paper, inputs)
    found = results_of(table, inputs.results)
    ours = f"ours, {inputs.scale} data" if departures(found, data) else "ours"
    caption = f"{figure.caption} Vertical lines are 95 % intervals."
    if len(found) < len(table.rows):
        caption += f" Not run: {len(table.rows) - len(found)} of the {len(table.rows)} models."
    chance = 100 / (found[0]["num_classes"] if found else data.num_classes)
    files = accuracy_figure(points, paper.columns[figure.x].title, chance, ours)
    return Picture(name, figure.title, caption, data_statement(inputs.scale, found, data), files)


def figure_points(figure: Figure, table: Runs, paper: Paper, inputs: Inputs) -> list[Point]:
    """A point for each planned row that was run, or whose accuracy and cost the paper prints."""
    points = []
    unit = paper.columns[figure.x].unit
    for row in table.rows:
        run, result = inputs.planned.get(row.key), inputs.results.get(row.key)
        cost = float(result[figure.x] / unit) if result else row.published.get(figure.x)
        printed = row.published.get("top1")
        ours = (100 * result["top1_low"], 100 * result["top1"], 100 * result["top1_high"]) if result else None
        if run is not None and cost is not None:
            points.append(Point(run.width, run.resolution, float(cost), ours, float(printed) if printed else None))
    return points


def evaluation_pictures(name: str, paper: Paper, inputs: Inputs) -> list[Picture]:
    """What the evaluation of one run of a table shows; names and titles say which table and run it is of."""
    table = paper.runs[name]
    if table.pictures is None or table.pictures not in inputs.results:
        return []
    statement = data_statement(inputs.scale, [inputs.results[table.pictures]], paper.data[table.data])
    label = next(row.label for row in table.rows if row.run == table.pictures and not row.part)
    of = f"{table.title.split('. ')[0]}, {label}"
    return [
        picture._replace(name=f"{name}_{picture.name}", title=f"{picture.title}. {of}", statement=statement)
        for picture in inputs.pictures(table.pictures)
    ]


def training_pictures(inputs: Inputs) -> list[Picture]:
    """The curves of all runs, a figure for each table, and how late gradients were where runs were asynchronous."""
    curves: dict[str, list[Curve]] = {}
    for name, rows in inputs.losses.items():
        run, (steps, values) = inputs.planned[name], zip(*rows, strict=True)
        taught = run.teacher is not None
        curve = Curve(name, run.net, run.width, run.resolution, taught, steps, values)
        curves.setdefault(inputs.table_of[name], []).append(curve)
    caption = "Mean over the logged steps. A step is one update of the weights."
    pictures = [
        Picture(f"curves_{table}", f"Training loss, {table}", caption, "", loss_figure(found))
        for table, found in curves.items()
    ]
    if inputs.staleness:
        caption = f"All {sum(inputs.staleness.values()):,} gradients that the asynchronous runs pushed."
        figure = staleness_figure(inputs.staleness)
        pictures.append(Picture("staleness", "Staleness of gradients", caption, "", figure))
    return pictures


def summarise(paper: Paper, inputs: Inputs, compared: Sequence[Table]) -> dict[str, str]:
    """What the report says in a few lines, by its terms."""
    marks = {
        (record["run"], column): cell.mark
        for table in compared
        for row, record in zip(table.rows, table.records, strict=True)
        for column, cell in zip(table.header, row, strict=True)
        if record["run"] and cell.mark in ("same", "differs")
    }
    same = sum(mark == "same" for mark in marks.values())
    summary = {}
    for name, data in paper.data.items():
        runs = {row.run for table in paper.runs.values() if table.data == name for row in table.rows}
        results = [result for run, result in inputs.results.items() if run in runs]
        summary[f"Accuracies, {data.dataset}"] = data_statement(inputs.scale, results, data)
    for dataset, digests in shards_of(inputs.results).items():
        summary[f"Shards, {dataset}"] = ", ".join(sorted(digests))
    summary["Runs"] = f"{len(inputs.results)} of {len(inputs.planned)}"
    summary["Mult-Adds, parameters"] = (
        f"{same} of the {len(marks)} printed counts are met to the last printed digit; "
        "the notes under the tables take up the others"
    )
    return summary


def shards_of(results: Mapping[str, Result]) -> dict[str, set[str]]:
    """The data sets that runs learned from and were tested on, with the digest of their shards: one, if all is new."""
    found: dict[str, set[str]] = {}
    for result in results.values():
        found.setdefault(result["dataset"], set()).add(result["data_digest"])
        for key in (key for key in result if key.endswith("test_dataset")):  # one of each test set
            found.setdefault(result[key], set()).add(result[f"{key.removesuffix('dataset')}digest"])
    return found


def dvc_files(results: Mapping[str, Result], losses: Mapping[str, Losses]) -> dict[str, str]:
    """What `dvc plots` and `dvc metrics` show: cost and accuracy on ImageNet, each run's curve and line of metrics."""
    keys = ("net", "width", "resolution", "mult_adds", "parameters", "top1", "top1_low", "top1_high")
    points = [
        Record(run=run, **{key: result[key] for key in keys})
        for run, result in results.items()
        if result["test_dataset"] == "imagenet"
    ]
    files = {"plots/accuracy_vs_mult_adds.csv": csv_text(points)} if points else {}
    for run, rows in losses.items():
        files[f"plots/curves/{run}.csv"] = csv_text([Record(run=run, step=step, loss=loss) for step, loss in rows])
    for run, result in results.items():
        shown = {key: result[key] for key in DVC_METRICS if key in result}
        files[f"metrics/{run}.json"] = json.dumps(shown, indent=2) + "\n"
    return files


def main(argv: list[str] | None = None) -> None:
    arguments = stage_parser(__doc__).parse_args(argv)
    with one_line_errors():
        params = load()
        report(params, arguments.scale or params.scale)


if __name__ == "__main__":
    main()
    end_process()
