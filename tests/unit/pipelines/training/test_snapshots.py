"""Snapshots on a disk that fails: what is damaged is found, what was before is used, and a full disk breaks nothing."""

import errno
import logging
import os
import resource
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from pipelines.training import loop
from pipelines.training.curve import read_curve
from pipelines.training.loop import CHECKPOINT, CURVE, WEIGHTS, train_local
from pipelines.training.parameter_server import ParameterShard
from pipelines.training.snapshots import load_newest, load_snapshot, previous, save_atomically, save_snapshot
from tests.servers import plan, push, started


def content(step):
    return {"step": step, "weights": torch.arange(64.0) + step, "slots": {"average": torch.ones(64)}}


def same(one, other):
    return (
        one["step"] == other["step"]
        and torch.equal(one["weights"], other["weights"])
        and torch.equal(one["slots"]["average"], other["slots"]["average"])
    )


def flip(path, place):
    """Turn one bit of a file over."""
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(damaged)


def flip_a_weight(path, weights):
    """Turn over one bit of a tensor's data in a file."""
    flip(path, path.read_bytes().index(weights.numpy().tobytes()) + 21)


@contextmanager
def largest_file(size):
    """Let this process write no file beyond a size: it is then told so as by a full disk, in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_flipped_bit_anywhere_is_found_or_harmless(tmp_path):
    path = tmp_path / "server_0.pt"
    save_atomically(content(1), path)
    whole = path.read_bytes()
    found = 0
    for place in range(0, len(whole), 5):
        flip(path, place)
        try:
            assert same(load_snapshot(path), content(1)), f"byte {place} of {len(whole)}"
        except ValueError as error:
            assert str(error).startswith(f"{path} is damaged: ")
            assert "\n" not in str(error)
            found += 1
        path.write_bytes(whole)
    start = whole.index(torch.arange(64.0).add(1).numpy().tobytes())
    for place in range(start, start + 256, 5):
        flip(path, place)
        with pytest.raises(ValueError, match="the checksum of .* is another"):
            load_snapshot(path)
        path.write_bytes(whole)
    print(f"{found} of {len(whole) // 5} flipped bits found, the others change nothing")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_file_is_found_and_the_one_before_is_used_and_said(tmp_path, caplog, share):
    path = tmp_path / "server_0.pt"
    for step in (1, 2):
        save_snapshot(content(step), path)
    os.truncate(path, int(share * path.stat().st_size))
    with caplog.at_level(logging.WARNING):
        assert same(load_newest(path), content(1))
    (line,) = caplog.messages
    assert line.startswith(f"{path} is damaged: ")
    assert line.endswith(f"going on from the one before, {previous(path)}")


def test_the_newest_of_two_whole_ones_is_used_in_silence(tmp_path, caplog):
    path = tmp_path / "checkpoint.pt"
    assert load_newest(path) is None
    for step in (1, 2, 3):
        save_snapshot(content(step), path)
    assert same(load_newest(path), content(3))
    assert same(load_snapshot(previous(path)), content(2))
    assert not caplog.messages


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, caplog):
    path = tmp_path / "checkpoint.pt"
    save_snapshot(content(1), path)
    path.replace(previous(path))
    assert same(load_newest(path), content(1))


def test_two_damaged_ones_are_an_error_that_names_them(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        save_snapshot(content(step), path)
    path.write_bytes(b"")
    previous(path).write_bytes(b"")
    message = r"checkpoint.pt is damaged: .*; .*checkpoint.pt.previous is damaged: .*; delete checkpoint.pt\* to begin"
    with pytest.raises(ValueError, match=message):
        load_newest(path)


@pytest.mark.parametrize("save", [save_atomically, save_snapshot])
def test_a_write_that_is_cut_leaves_what_was_there_and_nothing_else(tmp_path, save):
    path = tmp_path / "checkpoint.pt"
    save(content(1), path)
    large = {**content(2), "weights": torch.zeros(1_000_000)}
    with largest_file(100_000), pytest.raises(OSError, match=f"File too large: '{path}'"):
        save(large, path)
    assert os.listdir(tmp_path) == ["checkpoint.pt"]
    assert same(load_snapshot(path), content(1))
    save(large, path)
    assert load_snapshot(path)["step"] == 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MiB: room for four checkpoints of 3.5 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_stops_a_run_which_goes_on_when_there_is_room(make_job, small_disk):
    straight = make_job(epochs=2)
    train_local(straight)
    job = make_job(small_disk, epochs=2)
    (small_disk / "filler").write_bytes(bytes(2**24 - 5_000_000))  # room for one
    with pytest.raises(OSError) as full:
        train_local(job)
    assert full.value.errno == errno.ENOSPC
    assert str(full.value) == f"[Errno 28] No space left on device: '{job.folder / CHECKPOINT}'"
    assert not list(small_disk.glob("*.tmp"))
    assert load_snapshot(job.folder / CHECKPOINT)["state"]["step"] == 5
    (small_disk / "filler").unlink()
    train_local(job)
    one, other = (load_snapshot(each.folder / WEIGHTS) for each in (straight, job))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_ends_the_same(make_job, monkeypatch, caplog):
    straight, broken = make_job(epochs=3), make_job(epochs=3)
    train_local(straight)
    saved = []

    def save(content, path):
        saved.append(content["state"]["step"])
        with largest_file(100_000 if saved == [5, 10, 15, 20] else resource.RLIM_INFINITY):
            save_snapshot(content, path)

    monkeypatch.setattr(loop, "save_snapshot", save)
    with pytest.raises(OSError, match="File too large"):
        train_local(broken)
    assert saved == [5, 10, 15, 20]
    checkpoint = broken.folder / CHECKPOINT
    flip_a_weight(checkpoint, load_snapshot(checkpoint)["state"]["weights"])
    saved.clear()
    with caplog.at_level(logging.WARNING):
        train_local(broken)
    assert f"{checkpoint} is damaged" in caplog.text
    assert f"going on from the one before, {previous(checkpoint)}" in caplog.text
    one, other = (load_snapshot(job.folder / WEIGHTS) for job in (straight, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert saved == [15, 20, 25, 30, 35]  # from step 10 of 20: two times checkpoint_steps are made again
    assert [row["step"] for row in read_curve(broken.folder / CURVE)] == list(range(1, 37))


def test_a_server_comes_back_from_the_snapshot_before_a_damaged_one(tmp_path, caplog):
    shard, reply = started(plan(tmp_path))
    for sequence in range(1, 11):  # snapshots of steps 4 and 8
        reply = shard.push(push(reply, sequence))
    shard.curve.close()
    path = shard.plan.snapshot(0)
    flip_a_weight(path, load_snapshot(path)["state"]["weights"])
    with caplog.at_level(logging.WARNING):
        back = ParameterShard(shard.plan, 0)
    assert "server_0.pt is damaged" in caplog.text
    assert back.step == 4  # of 10: 2 since the last snapshot, and the 4 before it
    for sequence in range(5, 101):
        reply = back.push(push(back.pull(0), sequence))
    assert (back.finished, back.record()["pushes"]) == (True, {0: 100})


def test_a_server_whose_disk_is_full_says_so_and_keeps_its_snapshot(tmp_path):
    shard = ParameterShard(plan(tmp_path), 0)
    reply = shard.start(0, np.zeros(100_000, np.float32), np.zeros(2, np.float32))
    for sequence in range(1, 4):
        reply = shard.push(push(reply, sequence))
    with largest_file(100_000), pytest.raises(OSError, match=r"File too large: '.*server_0.pt'"):
        shard.push(push(reply, 4))
    assert not list(tmp_path.glob("*.tmp"))
    assert load_snapshot(shard.plan.snapshot(0))["state"]["step"] == 0
    assert shard.step == 4  # the update is made, and is lost only if the server dies before its next snapshot
    for sequence in range(5, 9):
        reply = shard.push(push(shard.pull(0), sequence))
    assert load_snapshot(shard.plan.snapshot(0))["state"]["step"] == 8
