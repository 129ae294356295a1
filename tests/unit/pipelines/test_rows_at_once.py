"""How many rows train at once: what the environment asks for, or what the machine bears."""

import os
from types import SimpleNamespace

import pytest

from pipelines import side_by_side
from pipelines.side_by_side import rows_at_once

GIB = 1024**3
PAGE = 4096


def runs(*gpus):
    return [SimpleNamespace(bundles=[{"CPU": 1.0, "GPU": 0.0}, {"CPU": 1.0, "GPU": amount}]) for amount in gpus]


@pytest.fixture
def container(monkeypatch, tmp_path):
    """A folder for what a container is limited to: nothing at first."""
    monkeypatch.setattr(side_by_side, "CONTAINER", tmp_path)
    return tmp_path


@pytest.fixture
def machine(monkeypatch, container):
    """Nobody asks for a number on this machine, of as many cores and bytes of memory as it is called with."""
    for name in ("ROWS_AT_ONCE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def make(cores, memory):
        values = {"SC_PAGE_SIZE": PAGE, "SC_PHYS_PAGES": int(memory) // PAGE}
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(cores)})
        monkeypatch.setattr(os, "sysconf", values.__getitem__)

    return make


@pytest.mark.parametrize(
    ("cores", "gib", "number"), [(1, 64, 1), (2, 23.5, 2), (16, 23.5, 3), (16, 12, 2), (16, 11.9, 1), (8, 2, 1)]
)
def test_unasked_as_many_as_there_are_cores_and_memory_for(machine, cores, gib, number):
    machine(cores, gib * GIB)
    assert rows_at_once(runs(0.0, 0.0)) == number


@pytest.mark.parametrize(
    ("limits", "number"),
    [
        ({"cpu.max": "max 100000", "memory.max": "max"}, 16),
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "350000 100000", "memory.max": "max"}, 3),
        ({"cpu.max": "50000 100000"}, 1),
        ({"memory.max": f"{12 * GIB}"}, 2),
        ({"cpu.max": "max 100000", "memory.max": f"{GIB}"}, 1),
    ],
)
def test_unasked_a_container_has_what_it_is_limited_to(machine, container, limits, number):
    machine(16, 256 * GIB)
    for name, words in limits.items():
        (container / name).write_text(f"{words}\n")
    assert rows_at_once(runs(0.0)) == number


def test_unasked_one_where_a_run_has_a_gpu(machine):
    machine(16, 256 * GIB)
    assert rows_at_once(runs(0.0, 0.0)) == 16
    assert rows_at_once(runs(0.0, 0.5)) == 1


def test_unasked_one_on_a_named_cluster(machine, monkeypatch):
    machine(16, 256 * GIB)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert rows_at_once(runs(0.0)) == 1
    monkeypatch.setenv("RAY_ADDRESS", "")  # names none
    assert rows_at_once(runs(0.0)) == 16


@pytest.mark.parametrize("text", ["1", "16"])
@pytest.mark.parametrize("address", ["", "127.0.0.1:6379"])
def test_what_is_asked_for_is_done(machine, text, address, monkeypatch):
    machine(2, 2 * GIB)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("ROWS_AT_ONCE", text)
    assert rows_at_once(runs(0.0, 1.0)) == int(text)


@pytest.mark.parametrize("text", ["0", "-2", "two", "1.5", ""])
def test_what_is_no_number(text, monkeypatch):
    monkeypatch.setenv("ROWS_AT_ONCE", text)
    with pytest.raises(ValueError, match=f"^ROWS_AT_ONCE is '{text}'; it must be a whole number above 0"):
        rows_at_once([])
