"""Which rows may be trained beside which, and what their processes are."""

import logging
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.side_by_side import startable, train_side_by_side

ROOM = {"CPU": 8.0, "GPU": 2.0}


def plan(**runs):
    """Of each run what it takes of a GPU machine, and what it needs."""
    return SimpleNamespace(
        runs={
            name: SimpleNamespace(bundles=[{"CPU": 2.0, "GPU": gpus}], origins=dict(enumerate(needs)))
            for name, (gpus, needs) in runs.items()
        }
    )


FREE = plan(a=(1.0, []), b=(1.0, []), c=(1.0, []), d=(0.0, []))


def test_so_many_start_as_are_wanted_in_order():
    assert startable(FREE, ["a", "b", "c", "d"], [], 3, None) == ["a", "b", "c"]
    assert startable(FREE, ["c", "d"], ["a", "b"], 3, None) == ["c"]


def test_a_run_waits_for_room_and_a_smaller_one_passes_it():
    assert startable(FREE, ["a", "b", "c", "d"], [], 4, ROOM) == ["a", "b", "d"]
    assert startable(FREE, ["c"], ["b", "d"], 4, ROOM) == ["c"]


def test_a_run_that_is_too_large_starts_alone():
    large = plan(a=(5.0, []), b=(1.0, []))
    assert startable(large, ["a"], ["b"], 4, ROOM) == []
    assert startable(large, ["a"], [], 4, ROOM) == ["a"]


def test_a_run_waits_for_those_that_it_needs():
    needy = plan(teacher=(0.0, []), student=(0.0, ["teacher"]), tuned=(0.0, ["student"]))
    assert startable(needy, ["teacher", "student", "tuned"], [], 9, ROOM) == ["teacher"]
    assert startable(needy, ["student", "tuned"], ["teacher"], 9, ROOM) == []
    assert startable(needy, ["student", "tuned"], [], 9, ROOM) == ["student"]


def test_a_room_without_gpus_does_not_limit_them():
    assert startable(FREE, ["a", "b", "c", "d"], [], 9, {"CPU": 6.0}) == ["a", "b", "c"]


def row(plan, name, title):
    """Stands for a training: tells who it is, waits for its neighbour, fails or goes on for ever, by its name."""
    import torch

    print(f"{title}: {torch.get_num_threads()} threads")
    folder = Path(plan.folder)
    (folder / name).write_text(str(os.getpid()))
    deadline = time.monotonic() + 60
    while name.startswith("pair") and len(list(folder.glob("pair*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    if name == "bad":
        print("error: what was wrong", file=sys.stderr)
        sys.exit(1)
    if name == "endless":
        time.sleep(600)


def rows_of(folder, *names):
    found = plan(**{name: (0.0, []) for name in names})
    found.table, found.folder = "table", str(folder)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("asked", [True, False])
def test_rows_have_a_process_and_a_share_of_the_cores_each(asked, tmp_path, caplog, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(4)})
    if not asked:
        monkeypatch.delenv("ROWS_AT_ONCE")
    caplog.set_level(logging.INFO)
    begun = []
    train_side_by_side(rows_of(tmp_path, "pair1", "pair2"), ["pair1", "pair2"], 2, row, begun.append)
    assert begun == ["pair1", "pair2"]
    processes = {int(path.read_text()) for path in tmp_path.iterdir()}
    assert len(processes | {os.getpid()}) == 3
    threads = os.environ.get("OMP_NUM_THREADS") or 2
    assert {f"[1/2] pair1: {threads} threads", f"[2/2] pair2: {threads} threads"} <= set(caplog.messages)


@pytest.mark.slow
def test_unasked_a_row_that_takes_all_cores_has_nothing_beside_it(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.delenv("ROWS_AT_ONCE")

    def begins(name):
        if name == "second":
            with pytest.raises(ProcessLookupError):
                os.kill(int((tmp_path / "first").read_text()), 0)

    names = ["first", "second"]
    train_side_by_side(rows_of(tmp_path, *names), names, 2, row, begins)
    assert {path.name for path in tmp_path.iterdir()} == {*names}


@pytest.mark.slow
def test_after_a_row_that_fails_no_other_is_begun(tmp_path, caplog, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    caplog.set_level(logging.INFO)
    names = ["first", "bad", "last"]
    with pytest.raises(ValueError, match="^table: bad failed, as told above; not begun: 1 runs$"):
        train_side_by_side(rows_of(tmp_path, *names), names, 1, row, lambda _: None)
    assert {path.name for path in tmp_path.iterdir()} == {"first", "bad"}
    assert "bad: error: what was wrong" in caplog.messages


@pytest.mark.slow
def test_an_interrupt_ends_those_under_way(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def begins(name):
        deadline = time.monotonic() + 60
        while name == "second" and not (tmp_path / "endless").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        if name == "second":
            raise KeyboardInterrupt

    names = ["endless", "second"]
    with pytest.raises(KeyboardInterrupt):
        train_side_by_side(rows_of(tmp_path, *names), names, 2, row, begins)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "endless").read_text()), 0)
