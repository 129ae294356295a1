"""Predict how a table's runs scale: images per second and staleness for so many workers and parameter servers.

    python -m pipelines.simulate --out FOLDER [--table imagenet] [--scale paper] [--workers 1,2,4] [--servers 1,2]
                                 [--gigabits 25] [--images-per-second R]

Writes scaling.csv, and scaling.png and .svg of the nets with the most and the fewest parameters; prints how many
servers each asynchronous run needs. Nothing is trained. What a step and an exchange cost, measured or assumed, is in
pipelines/simulation/costs.py; bench_simulation sets predictions beside real runs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.command import one_line_errors, stage_parser
from pipelines.config import load
from pipelines.simulation.cluster import Cluster, Outcome, simulate
from pipelines.simulation.costs import Costs, Machine, all_reduce_rate, costs, machine_of, workload
from pipelines.training.run import Run

log = logging.getLogger(__name__)

WORKERS, SERVERS = (1, 2, 4, 8, 16, 32, 64, 128, 256), (1, 2, 4, 8, 16, 32)
ENOUGH = 0.9  # of the ideal rate, or of the best that any number of servers gives
MOST = {"workers": 4096, "servers": 1024}


class Candidate(NamedTuple):
    """A run of the table, and what its steps and exchanges cost."""

    run: Run
    parameters: int
    costs: Costs

    def outcome(self, workers: int, servers: int) -> Outcome:
        """What so many workers and servers make of it; a second question costs nothing."""
        return _outcome(self.costs, self.run.servers.staleness, self.run.servers.max_staleness, workers, servers)

    def efficiency(self, workers: int, servers: int) -> float:
        """The share of the ideal rate, which is that of workers that exchange nothing."""
        return self.outcome(workers, servers).images_per_second / (workers * self.costs.ideal_rate)

    def all_reduce_rate(self, workers: int) -> float:
        """Images per second of synchronous data-parallel training, at the most."""
        return all_reduce_rate(self.costs, workers, Machine.hop)


class Need(NamedTuple):
    """How many servers a run needs at its number of workers.

    enough: the fewest that keep `ENOUGH` of the ideal rate; None where none of those tried does. worthwhile: the fewest
    that come as close to the best of them.
    """

    run: Run
    now: float
    enough: int | None
    worthwhile: int
    then: float
    all_reduce: float


@cache
def _outcome(of: Costs, policy: Any, max_staleness: int, workers: int, servers: int) -> Outcome:
    rounds = max(10, 64 // workers)
    return simulate(of, Cluster(workers, servers, policy=policy, max_staleness=max_staleness, rounds=rounds))


def candidates(
    runs: Sequence[Run], num_outputs: int, gigabits: float, images_per_second: float | None
) -> list[Candidate]:
    """Every run with its costs."""
    found = []
    for run in runs:
        work = workload(run, num_outputs)
        found.append(Candidate(run, work.parameters, costs(work, machine_of(run, gigabits, images_per_second))))
    return found


def records(candidate: Candidate, workers: Sequence[int], servers: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each number of workers and of servers."""
    rows = []
    for num_workers in workers:
        for num_servers in servers:
            outcome = candidate.outcome(num_workers, num_servers)
            rows.append(
                {
                    "run": candidate.run.name,
                    "workers": num_workers,
                    "servers": num_servers,
                    "images_per_second": round(outcome.images_per_second, 1),
                    "efficiency": round(candidate.efficiency(num_workers, num_servers), 4),
                    "mean_staleness": round(outcome.staleness, 2),
                    "server_utilisation": round(outcome.server_busy, 4),
                    "link_utilisation": round(outcome.link_busy, 4),
                    "ddp_images_per_second": round(candidate.all_reduce_rate(num_workers), 1),
                }
            )
    return rows


def need(candidate: Candidate, servers: Sequence[int]) -> Need:
    """What a run's number of servers is, and what it should be, of those tried."""
    run = candidate.run
    shares = {number: candidate.efficiency(run.num_workers, number) for number in sorted(servers)}
    enough = next((number for number, share in shares.items() if share >= ENOUGH), None)
    worthwhile = next(number for number, share in shares.items() if share >= ENOUGH * max(shares.values()))
    return Need(
        run=run,
        now=candidate.efficiency(run.num_workers, run.servers.num_servers),
        enough=enough,
        worthwhile=worthwhile,
        then=shares[worthwhile],
        all_reduce=candidate.all_reduce_rate(run.num_workers) / (run.num_workers * candidate.costs.ideal_rate),
    )


def picture(found: Sequence[Candidate], workers: Sequence[int], servers: Sequence[int]) -> dict[str, bytes]:
    """The nets with the most and the fewest parameters, by suffix of the file."""
    from pipelines.pictures.scaling import Scaling, scaling_figure

    extremes = {pick(found, key=lambda item: item.parameters).run.name: pick for pick in (max, min)}
    nets = []
    for candidate in sorted((item for item in found if item.run.name in extremes), key=lambda item: -item.parameters):
        run = candidate.run
        nets.append(
            Scaling(
                title=f"{run.name}\n{candidate.parameters / 1e6:,.1f} M parameters, batch {run.batch_size}",
                workers=workers,
                servers={s: [candidate.outcome(w, s).images_per_second for w in workers] for s in servers},
                ideal=[w * candidate.costs.ideal_rate for w in workers],
                all_reduce=[candidate.all_reduce_rate(w) for w in workers],
                chosen=(run.num_workers, run.servers.num_servers),
            )
        )
    return scaling_figure(nets)


def spoken(needs: Sequence[Need], servers: Sequence[int]) -> list[str]:
    """The needs as lines of text, with a heading."""
    heading = (
        f"{'run':34} workers  servers  of ideal  for {ENOUGH:.0%}  worthwhile  of ideal  DDP\n"
        f"{'':34}          (params.yaml)    of ideal"
    )
    lines = [heading]
    for item in needs:
        run = item.run
        enough = "none" if item.enough is None else str(item.enough)
        lines.append(
            f"{run.name:34} {run.num_workers:7}  {run.servers.num_servers:7}  {item.now:8.0%}  {enough:>7}  "
            f"{item.worthwhile:10}  {item.then:8.0%}  {item.all_reduce:.0%}"
        )
    lines.append(
        "of ideal: of workers that exchange nothing. "
        f"worthwhile: the fewest servers within {ENOUGH:.0%} of the best of {', '.join(map(str, servers))}."
    )
    return lines


def numbers(text: str, what: str) -> tuple[int, ...]:
    """Ascending whole numbers of a list like "1,2,4". Raises ValueError that says what is allowed."""
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        found = (0,)
    if found[0] < 1 or found[-1] > MOST[what]:
        raise ValueError(f"--{what} is {text!r}; it must be whole numbers from 1 to {MOST[what]}, as 1,2,4")
    return found


def run_simulation(arguments: Any) -> None:
    """What the command does once its options are parsed."""
    from pipelines.page import csv_text

    workers, servers = numbers(arguments.workers, "workers"), numbers(arguments.servers, "servers")
    for name in ("gigabits", "images_per_second"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be above 0")
    params = load()
    scale = arguments.scale or params.scale
    runs = list(params.runs(arguments.table, scale).values())
    outputs = params.tables[arguments.table].num_outputs
    found = candidates(runs, outputs, arguments.gigabits, arguments.images_per_second)
    rows = []
    for candidate in found:
        rows += records(candidate, workers, servers)
        log.info("simulated %s", candidate.run.name)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "scaling.csv").write_text(csv_text(rows))
    for suffix, content in picture(found, workers, servers).items():
        (arguments.out / f"scaling{suffix}").write_bytes(content)
    needs = [need(candidate, servers) for candidate in found if candidate.run.kind == "async"]
    print("\n".join(spoken(needs, servers)) if needs else f"table {arguments.table}: no run is asynchronous at {scale}")


def main(argv: list[str] | None = None) -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--table", default="imagenet", help="a table of params.yaml (default: %(default)s)")
    parser.add_argument("--workers", default=",".join(map(str, WORKERS)), help="how many (default: %(default)s)")
    parser.add_argument("--servers", default=",".join(map(str, SERVERS)), help="how many (default: %(default)s)")
    parser.add_argument("--gigabits", type=float, default=25.0, help="a second, of a link (default: %(default)s)")
    parser.add_argument(
        "--images-per-second", type=float, metavar="R", help="at which a worker's device trains MobileNet 1.0-224"
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder for the table and the picture")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        run_simulation(arguments)


if __name__ == "__main__":
    main()
