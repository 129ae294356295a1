"""What a user can afford, and which trained runs that allows: budgets, the best run within one, the Pareto front."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from math import inf
from typing import NamedTuple

MULTIPLES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}


class Cost(NamedTuple):
    """A cost that may be limited: how it is called, by which option, and how an amount of it is shown.

    axis, unit: what a picture's axis says, and in multiples of what.
    """

    title: str
    option: str
    form: str
    axis: str
    unit: float

    def shown(self, amount: float) -> str:
        """`568,740,352 Mult-Adds`."""
        return f"{self.form.format(amount)} {self.title}"


COSTS = {  # by the name of a candidate's field
    "mult_adds": Cost("Mult-Adds", "--max-mult-adds", "{:,.0f}", "Mult-Adds, millions", 1e6),
    "parameters": Cost("parameters", "--max-params", "{:,.0f}", "parameters, millions", 1e6),
    "latency_ms": Cost("ms", "--max-latency-ms", "{:.4g}", "latency of one image, ms", 1.0),
}


@dataclass(frozen=True)
class Candidate:
    """A run that was trained and evaluated: what it reached and what it costs.

    accuracy: its table's own metric, in [0, 1]; low, high: the ends of the 95 % interval, None where there is none.
    mult_adds, parameters: of the paper's net, as the tables have them. latency_ms: of one image through the net as it
    was trained, the median and between what the middle 80 % of passes lie; None: not measured.
    """

    run: str
    net: str
    width: float
    resolution: int
    accuracy: float
    low: float | None
    high: float | None
    mult_adds: int
    parameters: int
    latency_ms: float | None = None
    latency_p10_ms: float | None = None
    latency_p90_ms: float | None = None

    def cost(self, name: str) -> float | None:
        """One of COSTS; None where it was not measured."""
        value: float | None = getattr(self, name)
        return value


@dataclass(frozen=True)
class Budget:
    """limits: the most that each cost may be, by a key of COSTS. min_accuracy: in [0, 1]; None: any will do."""

    limits: Mapping[str, float]
    min_accuracy: float | None = None

    def misses(self, candidate: Candidate) -> list[str]:
        """In words, what a candidate breaks; empty where it fits. A cost that was not measured breaks nothing."""
        found = []
        for name, limit in self.limits.items():
            cost = candidate.cost(name)
            if cost is not None and cost > limit:
                found.append(f"{COSTS[name].shown(cost)}, more than {COSTS[name].form.format(limit)}")
        if self.min_accuracy is not None and candidate.accuracy < self.min_accuracy:
            found.append(f"{percent(candidate.accuracy)}, less than {percent(self.min_accuracy)}")
        return found

    def excess(self, candidate: Candidate) -> float:
        """By what factor a candidate breaks the limit that it breaks most; at most 1 where it fits."""
        costs = {name: candidate.cost(name) for name in self.limits}
        factors = [cost / self.limits[name] for name, cost in costs.items() if cost is not None]
        if self.min_accuracy is not None:
            factors.append(self.min_accuracy / candidate.accuracy if candidate.accuracy else inf)
        return max(factors, default=0.0)

    def __str__(self) -> str:
        """As the options that ask for it."""
        options = [f"{COSTS[name].option} {COSTS[name].form.format(limit)}" for name, limit in self.limits.items()]
        if self.min_accuracy is not None:
            options.append(f"--min-accuracy {percent(self.min_accuracy)}")
        return " ".join(options)


def percent(share: float) -> str:
    """`70.6 %`."""
    return f"{100 * share:.4g} %"


def amount(text: str, option: str) -> float:
    """A count such as 600M, 4.2M, 1e8 or 40_000. Raises ValueError that names the option for what is none."""
    number, suffix = re.fullmatch(r"(.*?)([KMGB]?)", text.strip().upper(), re.DOTALL).groups()  # type: ignore[union-attr]
    return float(
        _positive(number, option, text, "a number above 0, such as 600M, 4.2M, 40K or 1e8") * MULTIPLES[suffix]
    )


def milliseconds(text: str, option: str) -> float:
    """A time such as 12.5. Raises ValueError that names the option for what is none."""
    return float(_positive(text, option, text, "a number of milliseconds above 0, such as 12.5"))


def share(text: str, option: str) -> float:
    """An accuracy such as 0.7 or 70%. Raises ValueError that names the option for what is none."""
    allowed = "between 0 and 1, such as 0.7, or between 0% and 100%, such as 70%"
    number = text.strip()
    found = _positive(number.removesuffix("%"), option, text, allowed) / (100 if number.endswith("%") else 1)
    if found > 1:
        raise ValueError(f"{option} is {text!r}; it must be {allowed}")
    return float(found)


def _positive(number: str, option: str, text: str, allowed: str) -> Decimal:
    try:
        found = Decimal(number)
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite() or found <= 0:
        raise ValueError(f"{option} is {text!r}; it must be {allowed}")
    return found


def best(candidates: Sequence[Candidate], budget: Budget) -> Candidate | None:
    """The most accurate candidate that fits, of equal ones that with fewer Mult-Adds, then fewer parameters.

    Where the budget limits no cost and asks for an accuracy alone, the one with the fewest Mult-Adds that reaches it.
    None where none fits.
    """
    fitting = [candidate for candidate in candidates if not budget.misses(candidate)]

    def by_accuracy(candidate: Candidate) -> tuple[float, ...]:
        return -candidate.accuracy, candidate.mult_adds, candidate.parameters

    def by_cost(candidate: Candidate) -> tuple[float, ...]:
        return candidate.mult_adds, -candidate.accuracy, candidate.parameters

    key = by_cost if budget.min_accuracy is not None and not budget.limits else by_accuracy
    return min(fitting, key=key, default=None)


def nearest(candidates: Sequence[Candidate], budget: Budget) -> Candidate:
    """The candidate that breaks its worst limit by the smallest factor, the more accurate of equal ones."""
    return min(candidates, key=lambda candidate: (budget.excess(candidate), -candidate.accuracy, candidate.mult_adds))


def pareto_front(candidates: Sequence[Candidate], cost: str) -> list[Candidate]:
    """The candidates that no other beats: cheaper and not less accurate, or as cheap and more accurate. By cost.

    Those whose cost was not measured are left out; equal ones are all there.
    """
    measured = [(value, candidate) for candidate in candidates if (value := candidate.cost(cost)) is not None]
    measured.sort(key=lambda pair: (pair[0], -pair[1].accuracy))
    front: list[tuple[float, Candidate]] = []
    for value, candidate in measured:
        if not front or candidate.accuracy > front[-1][1].accuracy or _equal(front[-1], (value, candidate)):
            front.append((value, candidate))
    return [candidate for _, candidate in front]


def _equal(one: tuple[float, Candidate], other: tuple[float, Candidate]) -> bool:
    return (one[0], one[1].accuracy) == (other[0], other[1].accuracy)
