"""A student of each kind, on a real Ray cluster, in front of a teacher that has learned the tiny data."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.training.job import net_spec
from pipelines.training.loop import WEIGHTS, train_local
from pipelines.training.origins import Initial
from pipelines.training.reader import Teaching, evaluation_batches
from pipelines.training.teaching import Teacher
from tasks import TASKS
from tasks.base import TestSet, evaluate
from tasks.nets import build

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.usefixtures("four_cpus")]
STEADY = {"learning_rate": 0.02}
WELL = 0.8  # of guesses among three classes, one third is right


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The folder of the teacher's weights, which the first test leaves there."""
    return tmp_path_factory.mktemp("learned")


@pytest.fixture
def teacher(learned, make_job, tmp_path):
    job = make_job(folder=learned, epochs=6, augment={"central_fraction": 1.0}, optimizer=STEADY)
    if not (learned / WEIGHTS).exists():
        train_local(job)
    assert top1(job) > WELL
    return Teacher("imagenet", learned / WEIGHTS, net_spec(job.run, 3), Teaching(tmp_path / "kept.npy", 64, 1.0, False))


def top1(job):
    net = build(net_spec(job.run, 3))
    net.load_state_dict(torch.load(job.folder / WEIGHTS, weights_only=True))
    options = {"size": 64, "batch_size": 30, "central_fraction": 1.0, "antialias": False, "threads": 0}
    task = TASKS["imagenet"]
    batches = evaluation_batches(job.shards, "val", targets=task.collator("rgb"), **options)
    return evaluate(task, net, batches, TestSet("rgb"), "cpu").metrics["top1"]


@pytest.mark.parametrize(
    "stored", [pytest.param(True, id="kept"), pytest.param(False, id="asked", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("kind", ["local", "ddp", "async"])
def test_students_learn_what_their_teacher_knows(kind, stored, teacher, make_job):
    from pipelines.training.launch import launch

    if not stored:
        teacher = replace(teacher, teaching=replace(teacher.teaching, stored=None))
    # Two workers of ddp make half as many updates of an epoch.
    workers = {"kind": kind, "num_workers": 1 if kind == "local" else 2, "epochs": 16 if kind == "ddp" else 8}
    job = make_job(teacher=teacher, **workers, optimizer={**STEADY, "momentum": 0.5})
    before = teacher.weights.read_bytes()
    launch(job)
    assert top1(job) > WELL
    assert teacher.weights.read_bytes() == before
    assert (teacher.teaching.stored is not None) is stored
    if stored:
        assert np.isfinite(np.load(teacher.teaching.stored)).all()


def test_a_student_of_a_liar_learns_lies(teacher, make_job, learned):
    """It is the teacher that is learned from, and not the labels."""
    state = torch.load(teacher.weights, weights_only=True)
    state["classifier.weight"], state["classifier.bias"] = (
        state[f"classifier.{n}"].roll(1, 0) for n in ("weight", "bias")
    )
    torch.save(state, learned / "liar.pt")
    liar = replace(teacher, weights=learned / "liar.pt", teaching=replace(teacher.teaching, stored=None))
    job = make_job(teacher=liar, epochs=6, optimizer=STEADY)
    train_local(job)
    assert top1(job) < 1 - WELL


def test_a_teacher_that_fails_elsewhere_fails_here_in_one_line(teacher, make_job, tmp_path):
    from pipelines.training.launch import launch

    state = torch.load(teacher.weights, weights_only=True)
    torch.save({**state, "classifier.bias": state["classifier.bias"] * float("nan")}, tmp_path / "sick.pt")
    job = make_job(teacher=replace(teacher, weights=tmp_path / "sick.pt"), kind="ddp", num_workers=2)
    with pytest.raises(ValueError, match=r"sick\.pt: its predictions of .* are not finite") as error:
        launch(job)
    assert "\n" not in str(error.value)
    assert not teacher.teaching.stored.exists()


def test_a_teacher_is_not_asked_for_a_run_that_the_cluster_is_too_small_for(teacher, make_job):
    from pipelines.training.launch import launch

    job = make_job(teacher=teacher, kind="ddp", num_workers=2, worker_gpus=500)
    with pytest.raises(ValueError, match="the run needs 1000 GPU and the Ray cluster has 0"):
        launch(job)
    assert not list(teacher.teaching.stored.parent.glob("kept.npy*"))


def test_one_worker_and_one_server_equal_serial_training(teacher, make_job):
    """Bit for bit, also where a run starts from weights and learns from a teacher."""
    from pipelines.training.launch import launch

    start = Initial(teacher.weights, keep_head=True)
    serial = make_job(teacher=teacher, initial=start, epochs=1)
    remote = make_job(teacher=teacher, initial=start, epochs=1, kind="async", servers={"num_servers": 1})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a Ray worker of one CPU
    try:
        launch(serial)
    finally:
        torch.set_num_threads(threads)
    launch(remote)
    one, other = (torch.load(job.folder / WEIGHTS, weights_only=True) for job in (serial, remote))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
