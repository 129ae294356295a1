"""A run that is killed goes on from its last checkpoint and ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipelines.training.curve import read_curve
from pipelines.training.loop import CHECKPOINT, CURVE, WEIGHTS, train_local

ROOT = Path(__file__).parents[2]
CHILD = """
import pickle, sys
from pipelines.training.loop import train_local
train_local(pickle.load(open(sys.argv[1], "rb")))
"""


@pytest.fixture
def train_and_kill(tmp_path):
    """Trains a job in a process of its own and kills it once the curve has reached a step."""
    import pickle

    def run(job, step):
        (tmp_path / "job.pickle").write_bytes(pickle.dumps(job))
        with subprocess.Popen([sys.executable, "-c", CHILD, tmp_path / "job.pickle"], cwd=ROOT) as child:
            while not any(row["step"] >= step for row in read_curve(job.folder / CURVE)):
                assert child.poll() is None, "the run ended before it could be killed"
                time.sleep(0.005)
            os.kill(child.pid, signal.SIGKILL)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("step", [7, 13])
def test_sigkill_then_again_gives_the_same_weights_bit_for_bit(make_job, train_and_kill, step):
    straight, broken = make_job(epochs=4), make_job(epochs=4)
    train_local(straight)
    train_and_kill(broken, step)
    assert (broken.folder / CHECKPOINT).exists()
    assert not (broken.folder / WEIGHTS).exists()
    train_local(broken)
    one, other = (torch.load(job.folder / WEIGHTS, weights_only=True) for job in (straight, broken))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    curves = [read_curve(job.folder / CURVE) for job in (straight, broken)]
    assert [row["step"] for row in curves[1]] == list(range(1, straight.total_steps + 1))
    assert [row["loss"] for row in curves[0]] == [row["loss"] for row in curves[1]]


@pytest.mark.slow
def test_decode_threads_change_nothing(make_job):
    weights = []
    for threads in (0, 2):
        job = make_job(decode_threads=threads)
        train_local(job)
        weights.append(torch.load(job.folder / WEIGHTS, weights_only=True))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
