"""Trials with workers of their own, on real Ray clusters."""

from dataclasses import replace

import pytest

from pipelines.training.curve import read_curve
from tests.tuning import QUICK, SCALE, command, finished, write_project

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]  # a minute each: they start several Ray Train runs


@pytest.mark.parametrize("kind", ["ddp", "async"])
def test_a_trial_of_workers_learns_as_if_it_had_never_been_halted(kind, tiny_shards, tmp_path, monkeypatch, one_thread):
    """A single worker, so that a straight run in this process is the oracle, bit for bit."""
    from pipelines.config import load
    from pipelines.training.loop import train_local
    from pipelines.tuning.search import Options, make_search

    monkeypatch.chdir(write_project(tmp_path, tiny_shards, kind=kind, **QUICK))
    finished(command(tmp_path, "row", "--trials", "1", "--epochs", "2", "--search", "width=choice:0.25"))
    (trial,) = make_search(load(), SCALE, "row", Options(["width=choice:0.25"], 1, epochs=2)).trials
    assert [rung.epoch for rung in trial.rungs] == [1, 2]
    (tmp_path / "straight").mkdir()
    run = trial.job.run.model_copy(update={"kind": "local"})
    straight = replace(trial.job, run=run, folder=tmp_path / "straight")
    train_local(straight)
    losses = [
        [(row["step"], row["loss"]) for row in read_curve(job.folder / "curve.jsonl")] for job in (straight, trial.job)
    ]
    assert len(losses[0]) == 22
    assert losses[0] == losses[1]
