"""The net for a budget: `python -m pipelines.choose --max-mult-adds 150M` names the best trained run that fits.

Of all runs of a table that were trained and evaluated, the one with the highest accuracy within the limits is chosen,
of equal ones that with fewer Mult-Adds; with --min-accuracy alone, the one with the fewest Mult-Adds that reaches it.
Accuracy is the table's own metric. Mult-Adds and parameters are those of the paper's net, as in the report.

Prints all runs, and why each fits or does not. Writes into the folder --out:

  pareto_<cost>.png, .svg, .csv   accuracy against each cost that is limited (Mult-Adds where none is): who is on the
                                  front, that is, beaten by no other run
  choice.json                     the run and what was asked for
  <run>/                          with --export: model.onnx and model_int8.onnx, labels.txt, input.json (how an image
                                  becomes their input), card.json and card.md (accuracy and latency of each; from what)

Latency is that of one image on this machine's CPU, by ONNX Runtime, the net at the input size it was trained for; only
runs that fit otherwise are measured. An exported run becomes the alias `chosen` in MLflow's registry.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pipelines import paths
from pipelines.budgets import (
    COSTS,
    Budget,
    Candidate,
    amount,
    best,
    milliseconds,
    nearest,
    pareto_front,
    share,
)
from pipelines.command import end_process, one_line_errors, stage_parser
from pipelines.config import Params, load
from pipelines.files import write_json
from pipelines.page import csv_text
from pipelines.report_data import metrics_path, read_metrics
from pipelines.tables import METRICS, Result

LATENCY = "latency_ms"
CHOICE = "choice.json"
SUFFIXES = (".png", ".svg", ".csv")  # of a front
OPTIONS = {"mult_adds": amount, "parameters": amount, LATENCY: milliseconds}  # what reads the limit of each cost


def choose(
    params: Params, scale: str, table: str, budget: Budget, out: Path, *, to_export: bool = False, threads: int = 1
) -> Candidate:
    """Choose a run, print the table of all, write what this module says; returns the choice.

    threads: by which latency is measured. Raises ValueError where nothing is evaluated, where the table's nets cannot
    be exported or measured, and, when all is written, where nothing fits: it names the nearest run.
    """
    from pipelines.export import check_exportable, export
    from pipelines.tracking import registry

    results = read_metrics(scale, table, params.runs(table, scale))
    if not results:
        raise ValueError(f"{metrics_path(scale, table)} has no run; make it again with: {_evaluate(scale, table)}")
    for asked, option in ((to_export, "--export"), (LATENCY in budget.limits, COSTS[LATENCY].option)):
        if asked:
            check_exportable(params, table, option)
    candidates = [candidate(name, result) for name, result in results.items()]
    if LATENCY in budget.limits:
        candidates = with_latency(params, scale, candidates, budget, threads)
    chosen = best(candidates, budget)
    metric = METRICS[metric_of(next(iter(results.values())))]
    print(runs_text(candidates, budget, chosen, metric, threads))
    for name in (name for name in params.tables[table].runs if name not in results):
        print(f"{name} is not evaluated; make it with: {_evaluate(scale, table)}")
    clear(out)
    for cost in budget.limits or ("mult_adds",):
        write_front(out, candidates, budget, chosen, cost, metric)
    if chosen is None:
        raise ValueError(f"no run of {table} at {scale} scale fits {budget}; {nearest_text(candidates, budget)}")
    write_json(out / CHOICE, {"table": table, "scale": scale, "budget": asdict(budget), **asdict(chosen)})
    print(f"\nchosen: {chosen.run}; written to {out}")
    if to_export:
        folder = export(params, scale, chosen.run, results[chosen.run], out, threads)
        print(f"\n{(folder / 'card.md').read_text()}")
        registry.register(folder)
    return chosen


def metric_of(result: Result) -> str:
    """The key of a table's own metric in its results."""
    return next(key for key in METRICS if key in result)


def candidate(name: str, result: Result) -> Candidate:
    """A run by what metrics.json says of it."""
    metric = metric_of(result)
    return Candidate(
        run=name,
        net=result["net"],
        width=result["width"],
        resolution=result["resolution"],
        accuracy=result[metric],
        low=result.get(f"{metric}_low"),
        high=result.get(f"{metric}_high"),
        mult_adds=result["mult_adds"],
        parameters=result["parameters"],
    )


def with_latency(
    params: Params, scale: str, candidates: Iterable[Candidate], budget: Budget, threads: int
) -> list[Candidate]:
    """The candidates, with the latency of those that fit the budget otherwise."""
    from pipelines.export import latencies

    known = list(candidates)
    measured = latencies(params, scale, [one.run for one in known if not budget.misses(one)], threads)

    def timed(one: Candidate) -> Candidate:
        if one.run not in measured:
            return one
        found = measured[one.run]
        return replace(one, latency_ms=found.median_ms, latency_p10_ms=found.p10_ms, latency_p90_ms=found.p90_ms)

    return [timed(one) for one in known]


def runs_text(
    candidates: Iterable[Candidate], budget: Budget, chosen: Candidate | None, metric: str, threads: int
) -> str:
    """All runs as lines of text, the cheapest first, each with its verdict."""
    timed = LATENCY in budget.limits
    header = ["run", metric, "Mult-Adds", "parameters", *([f"ms, threads: {threads}"] if timed else []), ""]
    rows = [header]
    for one in sorted(candidates, key=lambda one: (one.mult_adds, -one.accuracy)):
        misses = budget.misses(one)
        verdict = "chosen" if one == chosen else "; ".join(misses) or "fits"
        costs = [f"{one.mult_adds / 1e6:,.2f} M", f"{one.parameters / 1e6:,.3f} M"]
        rows.append([one.run, f"{one.accuracy:.1%}", *costs, *([_latency(one)] if timed else []), verdict])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for first, *rest, verdict in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells, verdict]).rstrip())
    return "\n".join(lines)


def _latency(one: Candidate) -> str:
    if one.latency_ms is None:
        return "not measured"
    return f"{one.latency_ms:.3g} ({one.latency_p10_ms:.3g} to {one.latency_p90_ms:.3g})"


def nearest_text(candidates: Sequence[Candidate], budget: Budget) -> str:
    """Which run comes nearest where none fits, and what it breaks; of runs whose latency is limited a measured one."""
    measured = [one for one in candidates if one.latency_ms is not None]
    found = nearest(measured or candidates, budget)
    return f"nearest is {found.run}: {'; '.join(budget.misses(found))}"


def clear(out: Path) -> None:
    """Make the folder, or take out what an earlier choice left there: it would be taken for that of this budget."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (CHOICE, *(f"pareto_{cost}{suffix}" for cost in COSTS for suffix in SUFFIXES)):
        (out / name).unlink(missing_ok=True)


def write_front(
    out: Path, candidates: Iterable[Candidate], budget: Budget, chosen: Candidate | None, cost: str, metric: str
) -> None:
    """Write the Pareto front against one cost as a picture and a table; nothing where that cost is known of no run."""
    from pipelines.pictures.front import front_figure

    known = sorted((one for one in candidates if one.cost(cost) is not None), key=lambda one: one.cost(cost) or 0)
    if not known:
        return
    front = pareto_front(known, cost)
    files = front_figure(
        known,
        front,
        chosen,
        cost=cost,
        ylabel=f"{metric}, %",
        limit=budget.limits.get(cost),
        min_accuracy=budget.min_accuracy,
    )
    records = [
        {**asdict(one), "on_front": str(one in front).lower(), "fits": str(not budget.misses(one)).lower()}
        for one in known
    ]
    files[".csv"] = csv_text(records).encode()
    for suffix, content in files.items():
        target = out / f"pareto_{cost}{suffix}"
        fresh = target.with_name(f".{target.name}.new")
        fresh.write_bytes(content)
        fresh.replace(target)


def read_budget(given: Mapping[str, str | None]) -> Budget:
    """A budget from the texts of the options, by a key of COSTS or "min_accuracy". Raises ValueError for a bad one."""
    limits = {name: read(text, COSTS[name].option) for name, read in OPTIONS.items() if (text := given[name])}
    accuracy = given["min_accuracy"]
    return Budget(limits, None if accuracy is None else share(accuracy, "--min-accuracy"))


def _evaluate(scale: str, table: str) -> str:
    return f"python -m pipelines.evaluate {table} --scale {scale}"


def _parser() -> argparse.ArgumentParser:
    parser = stage_parser(__doc__)
    parser.add_argument("--table", default="imagenet", help="a table of params.yaml (default: imagenet)")
    amounts = "such as 600M, 4.2M or 1e8"
    parser.add_argument("--max-mult-adds", dest="mult_adds", metavar="N", help=f"of one image, {amounts}")
    parser.add_argument("--max-params", dest="parameters", metavar="N", help=f"weights, {amounts}")
    parser.add_argument("--max-latency-ms", dest=LATENCY, metavar="MS", help="of one image, measured here")
    parser.add_argument("--min-accuracy", metavar="A", help="such as 0.7 or 70%%")
    parser.add_argument("--out", type=Path, help="a folder (default: results/<scale>/<table>/choice)")
    parser.add_argument("--export", action="store_true", help="write the chosen run as ONNX, float32 and int8")
    parser.add_argument("--threads", type=int, default=1, help="by which latency is measured (default: 1)")
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    with one_line_errors():
        budget = read_budget(vars(arguments))
        if arguments.threads < 1:
            raise ValueError(f"--threads is {arguments.threads}; it must be at least 1")
        params = load()
        scale = arguments.scale or params.scale
        out = arguments.out or paths.results(scale, arguments.table) / "choice"
        choose(params, scale, arguments.table, budget, out, to_export=arguments.export, threads=arguments.threads)


if __name__ == "__main__":
    main()
    end_process()
