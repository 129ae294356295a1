import pytest

from pipelines.row_order import in_order, longest_first


def test_runs_come_after_those_that_they_need():
    assert in_order("dogs", {"fine": ["coarse"], "coarse": ["first"], "first": []}) == ["first", "coarse", "fine"]


def test_runs_that_need_each_other_are_named():
    with pytest.raises(ValueError, match=r"table dogs: runs need each other: (one <- two <- one|two <- one <- two)"):
        in_order("dogs", {"one": ["two"], "two": ["one"]})


def test_the_dearest_run_is_first():
    assert longest_first({"small": 1, "large": 9, "middle": 3}, {"small": [], "large": [], "middle": []}) == [
        *("large", "middle", "small")
    ]


def test_a_run_counts_with_the_longest_chain_behind_it():
    work = {"large": 5, "short": 1, "first": 1, "second": 2, "third": 4}
    needs = {"large": [], "short": ["first"], "first": [], "second": ["first"], "third": ["second"]}
    assert longest_first(work, needs) == ["first", "second", "large", "third", "short"]


def test_what_is_done_is_waited_for_no_more():
    assert longest_first({"fine": 2, "other": 1}, {"fine": ["done"], "other": []}) == ["fine", "other"]
