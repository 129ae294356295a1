"""A run that learns from a teacher: the same losses whether its predictions are kept or asked for."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.training import teaching
from pipelines.training.curve import read_curve
from pipelines.training.job import net_spec
from pipelines.training.loop import CHECKPOINT, CURVE, WEIGHTS, train_local
from pipelines.training.origins import Origin
from pipelines.training.reader import SplitReader, Teaching
from pipelines.training.teaching import Teacher, check_teacher, make_teacher, store_predictions
from tasks.augment import normalise
from tasks.nets import build

ROOT = Path(__file__).parents[4]
SIZE, FRACTION = 48, 0.8


@pytest.fixture(scope="module")
def teacher(tiny_shards, tmp_path_factory):
    """A net with weights and statistics of its own, at another input size than its students'; and where to keep
    its predictions."""
    from pipelines.config import load

    folder = tmp_path_factory.mktemp("teacher")
    spec = replace(net_spec(load().runs("imagenet", "sample")["imagenet_w025_r128"], 3), batch_norm_decay=0.0)
    torch.manual_seed(5)
    net = build(spec)
    images, _ = SplitReader(tiny_shards, "train").decode_central(np.arange(64), SIZE, FRACTION, False)
    net(normalise(images))  # its statistics are those of this batch
    with torch.no_grad():
        net.classifier.weight *= 5  # answers that differ from image to image
    torch.save(net.state_dict(), folder / "weights.pt")
    return Teacher("imagenet", folder / "weights.pt", spec, Teaching(folder / "kept.npy", SIZE, FRACTION, False))


def asked(teacher):
    return replace(teacher, teaching=replace(teacher.teaching, stored=None))


def curve(job):
    return [(row["step"], row["loss"]) for row in read_curve(job.folder / CURVE)]


def test_kept_predictions_are_those_of_a_plain_forward_pass_in_order(teacher, tiny_shards):
    store_predictions(teacher, tiny_shards, "train", "32-true", 2)
    reader = SplitReader(tiny_shards, "train")
    images, _ = reader.decode_central(np.arange(96), SIZE, FRACTION, False)
    with torch.no_grad():
        expected = teacher.load()(normalise(images)).softmax(dim=1).numpy()
    kept = np.load(teacher.teaching.stored)
    assert kept.dtype == np.float32
    np.testing.assert_allclose(kept, expected, atol=1e-6)
    assert np.ptp(kept, axis=0).min() > 1e-3, "rows that are all alike would show nothing"


@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
def test_both_ways_train_the_same_net_bit_for_bit(teacher, tiny_shards, make_job, tmp_path, monkeypatch, precision):
    """Where the teacher is asked about as many images at a time, so that it rounds alike."""
    monkeypatch.setattr(teaching, "BATCH_SIZE", 8)
    kept = replace(teacher, teaching=replace(teacher.teaching, stored=tmp_path / "kept.npy"))
    store_predictions(kept, tiny_shards, "train", precision, 0)
    jobs = [make_job(teacher=each, precision=precision, epochs=1) for each in (kept, asked(teacher))]
    for job in jobs:
        assert job.run.batch_size == 8
        train_local(job)
    assert curve(jobs[0]) == curve(jobs[1])
    assert len({loss for _, loss in curve(jobs[0])}) == 12
    one, other = (torch.load(job.folder / WEIGHTS, weights_only=True) for job in jobs)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_both_ways_give_the_same_losses(teacher, tiny_shards, make_job):
    """With a rate at which the weights stay where they are: rounding grows a thousandfold at each step of a net this
    young, so that two runs that learn could be compared for one step alone."""
    store_predictions(teacher, tiny_shards, "train", "32-true", 0)
    still = {"learning_rate": 1e-9, "weight_average": None}
    jobs = [make_job(teacher=each, optimizer=still) for each in (teacher, asked(teacher), None)]
    for job in jobs:
        train_local(job)
    kept, at_every_step, labels = (curve(job) for job in jobs)
    assert len(kept) == 24
    np.testing.assert_allclose(kept, at_every_step, rtol=1e-5)
    assert not np.allclose(kept, labels, rtol=1e-2), "a teacher changes what is learned"


def test_a_teacher_is_frozen_and_saved_nowhere(teacher, make_job, monkeypatch):
    loaded = []
    load = Teacher.load
    monkeypatch.setattr(Teacher, "load", lambda self: loaded.append(load(self)) or loaded[-1])
    job = make_job(teacher=asked(teacher), checkpoint_steps=5)
    before = copy.deepcopy(teacher.load().state_dict())
    loaded.clear()
    kept = []
    for save in ("save_atomically", "save_snapshot"):
        monkeypatch.setattr(f"pipelines.training.loop.{save}", lambda content, path: kept.append((content, path)))
    train_local(job)
    (net,) = loaded  # once a worker
    assert not any(module.training for module in net.modules())
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    weights = next(content for content, path in kept if path.name == WEIGHTS)
    checkpoint = next(content for content, path in kept if path.name == CHECKPOINT)
    student = build(net_spec(job.run, 3))
    assert weights.keys() == student.state_dict().keys()
    assert len(checkpoint["state"]["weights"]) == sum(parameter.numel() for parameter in student.parameters())


def test_a_killed_pass_goes_on_where_it_was(teacher, tiny_shards, tmp_path, monkeypatch):
    store_predictions(teacher, tiny_shards, "train", "32-true", 0)
    whole = np.load(teacher.teaching.stored)
    path = tmp_path / "broken.npy"
    part = np.lib.format.open_memmap(f"{path}.part", mode="w+", dtype=np.float32, shape=whole.shape)
    part[:70], part[70:] = whole[:70], np.nan
    part[0] = 7.0  # is not computed again
    part[69, 1:] = np.nan  # a row cut short
    part.flush()
    seen = []
    predictions = teaching.predictions
    monkeypatch.setattr(teaching, "predictions", lambda *a: seen.append(len(a[2])) or predictions(*a))
    broken = replace(teacher, teaching=replace(teacher.teaching, stored=path))
    store_predictions(broken, tiny_shards, "train", "32-true", 0)
    assert sum(seen) == 26 + teaching.BATCH_SIZE, "the last batch is, since it may be torn"
    found = np.load(path)
    np.testing.assert_allclose(found[1:], whole[1:], atol=1e-6)
    assert (found[0] == 7.0).all()
    store_predictions(broken, tiny_shards, "train", "32-true", 0)
    assert sum(seen) == 26 + teaching.BATCH_SIZE, "what is there is not asked for again"
    assert not list(tmp_path.glob("*.npy.*"))


def test_a_pass_that_ends_as_it_begins_leaves_nothing_that_passes_for_predictions(
    teacher, tiny_shards, tmp_path, monkeypatch
):
    """The file is made at its full size, of zeros, before anything is written into it."""
    open_memmap = np.lib.format.open_memmap

    def cut_short(*arguments, **options):
        open_memmap(*arguments, **options)
        raise KeyboardInterrupt

    path = tmp_path / "begun.npy"
    begun = replace(teacher, teaching=replace(teacher.teaching, stored=path))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np.lib.format, "open_memmap", cut_short)
        store_predictions(begun, tiny_shards, "train", "32-true", 0)
    assert not path.exists()
    store_predictions(begun, tiny_shards, "train", "32-true", 0)
    np.testing.assert_allclose(np.load(path).sum(axis=1), 1, atol=1e-5)
    assert not list(tmp_path.glob("*.npy.*"))


def test_two_runs_at_once_ask_once(teacher, tiny_shards, tmp_path, monkeypatch):
    shared = replace(teacher, teaching=replace(teacher.teaching, stored=tmp_path / "shared.npy"))
    seen = []
    predictions = teaching.predictions
    monkeypatch.setattr(teaching, "predictions", lambda *a: seen.append(len(a[2])) or predictions(*a))
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(store_predictions, shared, tiny_shards, "train", "32-true", 0) for _ in range(2)]
        assert [run.result() for run in runs] == [None, None]
    assert sum(seen) == 96


CHILD = """
import pickle, sys, time
from pipelines.training import teaching
teaching.BATCH_SIZE = 4
predictions = teaching.predictions
teaching.predictions = lambda *a: time.sleep(0.1) or predictions(*a)
teaching.store_predictions(*pickle.load(open(sys.argv[1], "rb")))
"""


@pytest.mark.slow
def test_a_pass_goes_on_after_a_real_kill(teacher, tiny_shards, tmp_path, monkeypatch):
    store_predictions(teacher, tiny_shards, "train", "32-true", 0)
    path = tmp_path / "killed.npy"
    part = path.with_name("killed.npy.part")
    killed = replace(teacher, teaching=replace(teacher.teaching, stored=path))
    (tmp_path / "arguments").write_bytes(pickle.dumps((killed, tiny_shards, "train", "32-true", 0)))
    with subprocess.Popen([sys.executable, "-c", CHILD, tmp_path / "arguments"], cwd=ROOT) as child:
        while not part.exists() or np.isfinite(np.load(part, mmap_mode="r")[:, -1]).sum() < 20:
            assert child.poll() is None, "the pass ended before it could be killed"
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
    assert not path.exists()
    done = int(np.isfinite(np.load(part)[:, -1]).sum())
    assert 20 <= done < 96
    monkeypatch.setattr(teaching, "BATCH_SIZE", 4)
    seen = []
    predictions = teaching.predictions
    monkeypatch.setattr(teaching, "predictions", lambda *a: seen.append(len(a[2])) or predictions(*a))
    store_predictions(killed, tiny_shards, "train", "32-true", 0)
    assert sum(seen) <= 96 - done + 4
    np.testing.assert_allclose(np.load(path), np.load(teacher.teaching.stored), atol=1e-6)
    assert not part.exists()


def test_predictions_that_are_no_numbers_are_an_error(teacher, tiny_shards, tmp_path):
    state = torch.load(teacher.weights, weights_only=True)
    state["classifier.bias"][:] = float("nan")
    torch.save(state, tmp_path / "weights.pt")
    sick = replace(
        teacher, weights=tmp_path / "weights.pt", teaching=replace(teacher.teaching, stored=tmp_path / "p.npy")
    )
    with pytest.raises(ValueError, match=r"weights\.pt: its predictions of .* are not finite"):
        store_predictions(sick, tiny_shards, "train", "32-true", 0)
    assert not (tmp_path / "p.npy").exists()


def test_a_teacher_runs_in_the_precision_of_its_student(teacher, tiny_shards, make_job, tmp_path):
    """Both ways in bfloat16: nearer to each other than to float32."""
    mixed = replace(teacher, teaching=replace(teacher.teaching, stored=tmp_path / "mixed.npy"))
    store_predictions(mixed, tiny_shards, "train", "bf16-mixed", 0)
    store_predictions(teacher, tiny_shards, "train", "32-true", 0)
    assert np.abs(np.load(mixed.teaching.stored) - np.load(teacher.teaching.stored)).max() > 1e-4
    jobs = [make_job(teacher=each, precision="bf16-mixed", epochs=0.25) for each in (mixed, asked(teacher))]
    for job in jobs:
        train_local(job)
    np.testing.assert_allclose(curve(jobs[0]), curve(jobs[1]), rtol=2e-3)


def test_teachers_that_do_not_fit_are_refused(teacher, make_job):
    run = make_job().run
    origin = Origin("big", teacher.weights, teacher.spec, run.model_copy(update={"name": "big"}), "rgb")
    check_teacher(run, 3, "rgb", origin)
    check_teacher(run, 3, (), origin)  # of data without classes nothing is known
    assert make_teacher(origin, None).teaching.size == run.input_size
    with pytest.raises(ValueError, match=f"run {run.name}: teacher big has 3 outputs, the run 4"):
        check_teacher(run, 4, "rgba", origin)
    with pytest.raises(ValueError, match="teacher big is of task face_attributes, the run of task imagenet"):
        check_teacher(run, 3, "rgb", origin._replace(run=origin.run.model_copy(update={"task": "face_attributes"})))
    with pytest.raises(ValueError, match="teacher big means 'g' by its output 1, the run 'b'"):
        check_teacher(run, 3, "rbg", origin)
    embedding = {"task": "face_embedding"}  # whose outputs are no classes
    same = origin._replace(run=origin.run.model_copy(update=embedding))
    check_teacher(run.model_copy(update=embedding), 3, "rbg", same)
    small = origin._replace(spec=replace(teacher.spec, net="alexnet", width=1.0))
    with pytest.raises(ValueError, match="teacher big: input size 64 is too small for inception_v3; it needs"):
        check_teacher(run, 3, "rgb", small._replace(spec=replace(small.spec, net="inception_v3")))
