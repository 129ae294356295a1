"""The report stage: `python -m pipelines.report` sets the paper's numbers and ours side by side.

Reads the `metrics.json` of every table that `paper.yaml` has rows of, and the curves of its runs; writes a folder with
`index.html` (one page, complete in itself), `report.md`, `tables/*.csv`, the figures, and `plots/` and `metrics/` for
`dvc plots` and `dvc metrics`. The same input gives the same bytes.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from pipelines import paths, tracking
from pipelines.command import one_line_errors, stage_parser
from pipelines.config import Params, Run, load
from pipelines.curve import read_curve
from pipelines.figures import Curve, Point, accuracy_figure, loss_figure, staleness_figure
from pipelines.page import Picture, Section, csv_text, html_page, markdown_page
from pipelines.paper import Figure, Paper, Runs, load_paper
from pipelines.rows import read_record
from pipelines.tables import Metrics, Record, Table, data_statement, departures, runs_table, training_table

log = logging.getLogger(__name__)
CURVE_POINTS = 200  # a longer curve is averaged down to so many
DVC_METRICS = ("top1", "top1_low", "top1_high", "top5", "mult_adds", "parameters")  # columns of `dvc metrics show`

Losses = Sequence[tuple[int, float]]  # (global step, mean training loss since the entry before)


def report(params: Params, scale: str) -> None:
    """Write the report of a scale: all of it, or nothing."""
    paper = load_paper()
    names = list(dict.fromkeys(table.results for table in paper.runs.values()))
    metrics = {name: read_metrics(scale, name, params.runs(name, scale)) for name in names}
    planned = {run: values for name in names for run, values in params.runs(name, scale).items()}
    folders = {run: paths.results(scale, name) / "train" / run for name in names for run in metrics[name]["runs"]}
    losses = {run: read_losses(folder) for run, folder in folders.items()}
    staleness = sum((read_staleness(folder) for folder in folders.values()), Counter[int]())
    folder = paths.report(scale)
    replace_folder(folder, report_files(paper, scale, metrics, planned, losses, staleness))
    tracking.send([tracking.log_report(paths.spools(scale), folder, scale)])
    log.info("%s", folder / "index.html")


def read_metrics(scale: str, table: str, planned: Mapping[str, Run]) -> Metrics:
    """What the runs of a table reached. Raises ValueError that names the file and the command that makes it."""
    path = paths.results(scale, table) / "metrics.json"
    command = f"python -m pipelines.evaluate {table} --scale {scale}"
    try:
        metrics: Metrics = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; make it with: {command}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); make it again with: {command}") from None
    if stray := set(metrics["runs"]) - set(planned):
        raise ValueError(f"{path} has {min(stray)}, which params.yaml lacks; make it again with: {command}")
    return metrics


def read_losses(folder: Path) -> Losses:
    """The training loss of a run, averaged down to CURVE_POINTS entries. Raises ValueError for a run without any."""
    rows = read_curve(folder / "curve.jsonl")
    if not rows:
        raise ValueError(f"{folder / 'curve.jsonl'}: missing or empty; train the run again: python -m pipelines.train")
    size = math.ceil(len(rows) / CURVE_POINTS)
    bins = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [(part[-1]["step"], fmean(row["loss"] for row in part)) for part in bins]


def read_staleness(folder: Path) -> Counter[int]:
    """How many gradients of a run arrived how many updates late; empty where it was not asynchronous."""
    record = read_record(folder)
    counts = record["summary"].get("staleness", {}) if record else {}
    return Counter({int(updates): pushes for updates, pushes in counts.items()})


def report_files(
    paper: Paper,
    scale: str,
    metrics: Mapping[str, Metrics],
    planned: Mapping[str, Run],
    losses: Mapping[str, Losses],
    staleness: Mapping[int, int],
) -> dict[str, bytes]:
    """The whole report: file name -> content. Inputs by table (metrics) or by run (the rest)."""
    from pipelines.cost_tables import cost_table

    results = {run: result for table in metrics.values() for run, result in table["runs"].items()}
    compared = [runs_table(name, table, paper, metrics[table.results]) for name, table in paper.runs.items()]
    costs = [cost_table(name, table) for name, table in paper.tables.items() if not isinstance(table, Runs)]
    training = training_table(list(planned), results, {run: rows[-1][1] for run, rows in losses.items()})
    sections = [
        Section("Accuracy and cost", accuracy_pictures(paper, metrics, planned), compared),
        Section("Where the cost lies", [], costs),
        Section("Training", training_pictures(planned, losses, staleness), [training]),
    ]
    summary = summarise(paper, metrics, planned, compared)
    texts = {
        "index.html": html_page(paper, scale, summary, sections),
        "report.md": markdown_page(paper, scale, summary, sections),
        **dvc_files(results, losses),
        **{f"tables/{table.name}.csv": csv_text(table.records) for section in sections for table in section.tables},
    }
    pictures = [picture for section in sections for picture in section.pictures]
    drawn = {f"{picture.name}{suffix}": data for picture in pictures for suffix, data in picture.files.items()}
    return drawn | {name: text.encode() for name, text in texts.items()}


def accuracy_pictures(paper: Paper, metrics: Mapping[str, Metrics], planned: Mapping[str, Run]) -> list[Picture]:
    """Figures 4 and 5: our points, and the paper's where it prints them."""
    pictures = []
    for name, figure in paper.figures.items():
        table = paper.runs[figure.table]
        measured = metrics[table.results]
        points = figure_points(figure, table, paper, measured, planned)
        found = [measured["runs"][row.run] for row in table.rows if row.run in measured["runs"]]
        data = paper.data[measured["dataset"]]
        ours = f"ours, {measured['scale']} data" if departures(measured, found, data) else "ours"
        caption = f"{figure.caption} Vertical lines are 95 % intervals."
        if len(found) < len(table.rows):
            caption += f" Not run: {len(table.rows) - len(found)} of the {len(table.rows)} models."
        files = accuracy_figure(points, paper.columns[figure.x].title, 100 / measured["num_classes"], ours)
        statement = data_statement(measured, found, data)
        pictures.append(Picture(name, figure.title, caption, statement, files))
    return pictures


def figure_points(
    figure: Figure, table: Runs, paper: Paper, metrics: Metrics, planned: Mapping[str, Run]
) -> list[Point]:
    """A point for each planned row that was run, or whose accuracy and cost the paper prints."""
    points = []
    unit = paper.columns[figure.x].unit
    for row in table.rows:
        run, result = planned.get(row.run), metrics["runs"].get(row.run)
        cost = float(result[figure.x] / unit) if result else row.published.get(figure.x)
        printed = row.published.get("top1")
        ours = (100 * result["top1_low"], 100 * result["top1"], 100 * result["top1_high"]) if result else None
        if run is not None and cost is not None:
            points.append(Point(run.width, run.resolution, float(cost), ours, float(printed) if printed else None))
    return points


def training_pictures(
    planned: Mapping[str, Run], losses: Mapping[str, Losses], staleness: Mapping[int, int]
) -> list[Picture]:
    """The curves of all runs, and how late gradients were where runs were asynchronous."""
    curves = []
    for name, rows in losses.items():
        run, (steps, values) = planned[name], zip(*rows, strict=True)
        curves.append(Curve(run.net, run.width, run.resolution, steps, values))
    caption = "Mean over the logged steps. A step is one update of the weights."
    pictures = [Picture("curves", "Training loss", caption, "", loss_figure(curves))]
    if staleness:
        caption = f"All {sum(staleness.values()):,} gradients that the asynchronous runs pushed."
        pictures.append(Picture("staleness", "Staleness of gradients", caption, "", staleness_figure(staleness)))
    return pictures


def summarise(
    paper: Paper, metrics: Mapping[str, Metrics], planned: Mapping[str, Run], compared: Sequence[Table]
) -> dict[str, str]:
    """What the report says in a few lines, by its terms."""
    marks = {
        (record["run"], column): cell.mark
        for table in compared
        for row, record in zip(table.rows, table.records, strict=True)
        for column, cell in zip(table.header, row, strict=True)
        if cell.mark in ("same", "differs")
    }
    same = sum(mark == "same" for mark in marks.values())
    summary = {}
    for name, measured in metrics.items():
        results = list(measured["runs"].values())
        summary[f"Accuracies, {name}"] = data_statement(measured, results, paper.data[measured["dataset"]])
        summary[f"Data, {name}"] = f"shards {measured['data_digest']}"
    done = sum(len(measured["runs"]) for measured in metrics.values())
    summary["Runs"] = f"{done} of {len(planned)}"
    summary["Mult-Adds, parameters"] = (
        f"{same} of the {len(marks)} printed counts are met to the last printed digit; "
        "the notes under the tables explain the others"
    )
    return summary


def dvc_files(results: Mapping[str, Mapping[str, float]], losses: Mapping[str, Losses]) -> dict[str, str]:
    """What `dvc plots` and `dvc metrics` show: cost and accuracy of every run, its curve, and its line of metrics."""
    keys = ("net", "width", "resolution", "mult_adds", "parameters", "top1", "top1_low", "top1_high")
    points = [Record(run=run, **{key: result[key] for key in keys}) for run, result in results.items()]
    files = {"plots/accuracy_vs_mult_adds.csv": csv_text(points)}
    for run, rows in losses.items():
        files[f"plots/curves/{run}.csv"] = csv_text([Record(run=run, step=step, loss=loss) for step, loss in rows])
    for run, result in results.items():
        files[f"metrics/{run}.json"] = json.dumps({key: result[key] for key in DVC_METRICS}, indent=2) + "\n"
    return files


def replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put `files` in place as a whole folder, instead of what an earlier report left there."""
    fresh = folder.with_name(f".{folder.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    for name, content in files.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)


def main(argv: list[str] | None = None) -> None:
    arguments = stage_parser(__doc__).parse_args(argv)
    with one_line_errors():
        params = load()
        report(params, arguments.scale or params.scale)


if __name__ == "__main__":
    main()
