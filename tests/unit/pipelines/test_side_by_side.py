"""Which rows may be trained beside which."""

from types import SimpleNamespace

import pytest

from pipelines.side_by_side import rows_at_once, startable

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


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("16", 16), (None, 1)])
def test_how_many(text, number, monkeypatch):
    monkeypatch.delenv("ROWS_AT_ONCE", raising=False)
    if text is not None:
        monkeypatch.setenv("ROWS_AT_ONCE", text)
    assert rows_at_once() == number


@pytest.mark.parametrize("text", ["0", "-2", "two", "1.5", ""])
def test_what_is_no_number(text, monkeypatch):
    monkeypatch.setenv("ROWS_AT_ONCE", text)
    with pytest.raises(ValueError, match=f"^ROWS_AT_ONCE is '{text}'; it must be a whole number above 0"):
        rows_at_once()
