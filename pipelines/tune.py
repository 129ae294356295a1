"""A search around one row: `python -m pipelines.tune <run>` trains variations of it and says which values are best.

Values are drawn by the laws of --search, which may name any value that a run's result depends on:

  --search optimizer.learning_rate=log:0.001:0.1 --search width=uniform:0.3:1 --search batch_size=choice:16,32,64

Without it: the learning rate up to ten times lower and higher, and as far as the run has them the optimizer's decay,
momentum and weight_decay, and schedule.decay_rate. Trial 0 has the run's own values.

Each trial is a training run of its own, of the run's kind, side by side with others as the cluster (RAY_ADDRESS) or
this machine allows. At epoch 1, 3, 9, ... it is measured by its task's evaluator, and goes on if it is among the best
third of those that came so far (ASHA); --reduction has another number in place of three. Compared is the evaluator's
first metric, more of which is better; --metric and --mode say otherwise.

What trials are measured on is never the test split:
  - data with labels: their val split, unless a table tests on it; else the last tenth of the samples of train, in the
    order of the shards, which no trial learns from
  - data without labels: the val split of the data set that the table tests on, unless a table tests on that very split

Killed or interrupted, the same command goes on; with more --trials it goes on beyond the end. It writes, into
results/<scale>/tuning/<run>/, trials.csv, best.yaml (to be put into params.yaml) and trials.png (and .svg).
"""

from __future__ import annotations

import argparse
import logging

from pipelines import tracking
from pipelines.cluster import leave_cluster
from pipelines.command import end_process, one_line_errors, stage_parser
from pipelines.config import Params, load
from pipelines.files import locked
from pipelines.tuning.search import MODES, Options, Search, make_search
from pipelines.tuning.trial import FAILED, Rung, Trial, clear

log = logging.getLogger(__name__)


def tune(params: Params, scale: str, name: str, options: Options) -> Search:
    """Search around a run, write what was found and tell MLflow; returns the search, all of whose trials have ended.

    Raises ValueError for what cannot be searched, and where no trial could be trained to its end.
    """
    from pipelines.tuning import told

    search = make_search(params, scale, name, options)
    log.info(
        "%s: %d trials, %d to run; rungs at epochs %s; measured on %d images: %s",
        *(name, len(search.trials), len(search.pending), ", ".join(f"{epoch:g}" for epoch in search.rungs)),
        *(search.measured.samples, search.measured.rule),
    )
    with locked(search.folder), tracking.sending() as track:
        told.begin_search(search)
        for spool in told.spools(search):
            track(spool)
        for trial in search.trials:
            if trial.ended is not None:  # told before, unless a kill came between
                told.begin_trial(search, trial)
                told.end_trial(search, trial)
        try:
            _run(search)
        except BaseException as error:
            told.end_search(search, "FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        told.end_search(search)
    return search


def _run(search: Search) -> None:
    from pipelines.tuning import told
    from pipelines.tuning.outcome import write_outcome

    def ended(trial: Trial) -> None:
        told.end_trial(search, trial)
        clear(trial)
        write_outcome(search)
        _say_ended(search, trial)

    try:
        if search.pending:
            from pipelines.tuning.asha import Watcher, run_trials

            run_trials(
                search,
                Watcher(
                    started=lambda trial: told.begin_trial(search, trial),
                    reached=lambda trial, rung: _say_reached(search, trial, rung),
                    ended=ended,
                ),
            )
    finally:
        leave_cluster()
    write_outcome(search)
    _say_best(search)


def _say_reached(search: Search, trial: Trial, rung: Rung) -> None:
    values = ", ".join(f"{key} {value}" for key, value in trial.values.items())
    value = f"{search.metric(rung.metrics)} {rung.value:.4g}"
    log.info("%s: epoch %g, %s (%.0f s); %s", trial.name, rung.epoch, value, rung.seconds, values)


def _say_ended(search: Search, trial: Trial) -> None:
    assert trial.ended is not None
    status, why = trial.ended
    left = len(search.pending)
    log.info("%s: %s%s; %d of %d left", trial.name, status, f" ({why})" if why else "", left, len(search.trials))


def _say_best(search: Search) -> None:
    """Raises ValueError where no trial was trained to its end."""
    best = search.best()
    if best is None:
        failures = [trial.ended for trial in search.trials if trial.ended and trial.ended[0] == FAILED]
        raise ValueError(
            f"{len(failures)} of {len(search.trials)} trials failed, none came to its end: {failures[0][1]}"
        )
    last = best.rungs[-1]
    value = f"{search.metric(last.metrics)} {last.value:.4g}"
    log.info("best: %s, %s; %s says what to put into params.yaml", best.name, value, search.results / "best.yaml")


def _parser() -> argparse.ArgumentParser:
    own = Options()
    parser = stage_parser(__doc__)
    parser.add_argument("run", help="a run of params.yaml")
    parser.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="KEY=LAW",
        help="a value to search: KEY=log:LOW:HIGH, KEY=uniform:LOW:HIGH or KEY=choice:A,B,...; may come many times",
    )
    parser.add_argument("--trials", type=_positive, default=own.trials, help=f"how many (default: {own.trials})")
    parser.add_argument("--concurrent", type=_positive, help="trials at once, at most (default: as many as fit)")
    parser.add_argument("--epochs", type=float, help="of the longest trials (default: the run's own)")
    parser.add_argument(
        "--reduction", type=_reduction, default=own.reduction, help=f"one in so many goes on (default: {own.reduction})"
    )
    parser.add_argument("--seed", type=_natural, default=own.seed, help=f"of the draws (default: {own.seed})")
    parser.add_argument("--metric", help="of the task's evaluator (default: its first)")
    parser.add_argument("--mode", choices=MODES, default=own.mode, help=f"which is better (default: {own.mode})")
    return parser


def _at_least(low: int, text: str) -> int:
    value = int(text)
    if value < low:
        raise argparse.ArgumentTypeError(f"{value} is below {low}")
    return value


def _natural(text: str) -> int:
    return _at_least(0, text)


def _positive(text: str) -> int:
    return _at_least(1, text)


def _reduction(text: str) -> int:
    return _at_least(2, text)


def main(argv: list[str] | None = None) -> None:
    arguments = vars(_parser().parse_args(argv))
    name, scale = arguments.pop("run"), arguments.pop("scale")
    with one_line_errors():
        params = load()
        tune(params, scale or params.scale, name, Options(**arguments))


if __name__ == "__main__":
    main()
    end_process()
