"""What fits a budget, what is best and what is on the front, against definitions; amounts as people write them."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.budgets import COSTS, Budget, Candidate, amount, best, milliseconds, nearest, pareto_front, share


def candidate(run="a", accuracy=0.5, mult_adds=100, parameters=10, latency_ms=None):
    return Candidate(run, "mobilenet", 1.0, 224, accuracy, None, None, mult_adds, parameters, latency_ms)


SMALL = st.integers(1, 5)  # so that many are equal
CANDIDATES = st.lists(
    st.builds(
        candidate,
        accuracy=SMALL.map(lambda tenths: tenths / 10),
        mult_adds=SMALL,
        parameters=SMALL,
        latency_ms=st.none() | SMALL.map(float),
    ),
    min_size=1,
    max_size=8,
).map(lambda found: [replace(one, run=f"run{number}") for number, one in enumerate(found)])
BUDGETS = st.builds(
    Budget,
    st.dictionaries(st.sampled_from(list(COSTS)), SMALL.map(float), max_size=3),
    st.none() | SMALL.map(lambda tenths: tenths / 10),
)


def allowed(one, budget):
    """Written out: what the budget says of each quantity that is known."""
    accurate = budget.min_accuracy is None or one.accuracy >= budget.min_accuracy
    cheap = [
        "mult_adds" not in budget.limits or one.mult_adds <= budget.limits["mult_adds"],
        "parameters" not in budget.limits or one.parameters <= budget.limits["parameters"],
        "latency_ms" not in budget.limits or one.latency_ms is None or one.latency_ms <= budget.limits["latency_ms"],
    ]
    return accurate and all(cheap)


@given(CANDIDATES, BUDGETS)
def test_the_best_fits_and_no_other_that_fits_is_better(candidates, budget):
    chosen = best(candidates, budget)
    fitting = [one for one in candidates if allowed(one, budget)]
    assert [one for one in candidates if not budget.misses(one)] == fitting
    if not fitting:
        assert chosen is None
        return
    assert chosen in fitting
    for other in fitting:
        if budget.min_accuracy is not None and not budget.limits:
            assert chosen.mult_adds <= other.mult_adds
            assert chosen.mult_adds < other.mult_adds or chosen.accuracy >= other.accuracy
        else:
            assert chosen.accuracy >= other.accuracy
            assert chosen.accuracy > other.accuracy or chosen.mult_adds <= other.mult_adds


@given(CANDIDATES, BUDGETS)
def test_the_nearest_needs_the_smallest_factor_on_every_limit(candidates, budget):
    """A factor by which all limits are eased lets the nearest in first."""

    def fits(one, factor):
        eased = {name: limit * factor for name, limit in budget.limits.items()}
        wanted = None if budget.min_accuracy is None else budget.min_accuracy / factor
        return allowed(one, Budget(eased, wanted))

    found = nearest(candidates, budget)
    assert (budget.excess(found) <= 1) == allowed(found, budget)
    for factor in (1 + 1e-9, 1.26, 1.51, 1.7, 2.1, 2.6, 3.1, 4.1, 5.1):
        if any(fits(one, factor) for one in candidates):
            assert fits(found, factor)
            break


@given(CANDIDATES, st.sampled_from(list(COSTS)))
def test_nobody_beats_who_is_on_the_front_and_somebody_beats_all_others(candidates, cost):
    known = [one for one in candidates if one.cost(cost) is not None]

    def beats(one, other):
        no_worse = one.cost(cost) <= other.cost(cost) and one.accuracy >= other.accuracy
        return no_worse and (one.cost(cost), one.accuracy) != (other.cost(cost), other.accuracy)

    front = pareto_front(candidates, cost)
    expected = {one.run for one in known if not any(beats(other, one) for other in known)}
    assert {one.run for one in front} == expected
    assert len(front) == len(expected)
    assert [one.cost(cost) for one in front] == sorted(one.cost(cost) for one in front)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("600M", 600e6), ("4.2M", 4_200_000), ("1e8", 100_000_000), ("40k", 40_000), ("40K", 40_000)),
        *(("1.5G", 1_500_000_000), ("1.5b", 1_500_000_000), ("568740352", 568740352), ("40_000", 40_000), (" 3 ", 3)),
    ],
)
def test_amounts_as_people_write_them(text, value):
    assert amount(text, "--max-params") == value


def test_an_amount_is_not_off_by_a_rounding():
    for tenths, (suffix, multiple) in product(range(1, 400), {"K": 3, "M": 6, "G": 9}.items()):
        assert amount(f"{tenths // 10}.{tenths % 10}{suffix}", "--max-params") == tenths * 10 ** (multiple - 1)


@pytest.mark.parametrize("text", ["", "M", "4,2M", "4.2MM", "-1", "0", "nan", "inf", "many", "1e", "0x10", "1M\n2"])
def test_what_is_no_amount_is_told_with_its_option(text):
    with pytest.raises(ValueError, match=r"^--max-params is '.*'; it must be a number above 0, such as 600M") as error:
        amount(text, "--max-params")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="--max-latency-ms is .* milliseconds"):
        milliseconds(text, "--max-latency-ms")


def test_accuracies_are_shares_or_per_cent():
    assert share("0.7", "--min-accuracy") == share("70%", "--min-accuracy") == share(" 70 % ", "--min-accuracy") == 0.7
    assert share("1", "--min-accuracy") == share("100%", "--min-accuracy") == 1.0
    for text in ("70", "101%", "-0.1", "0", "%", "good"):
        with pytest.raises(ValueError, match="--min-accuracy is .*between 0 and 1"):
            share(text, "--min-accuracy")
    assert milliseconds("12.5", "--max-latency-ms") == 12.5
