"""What a search varies: values of a run by their dotted keys, each with the law that it is drawn by.

The points of a search are Halton's, scrambled by the seed: they fill a space of a few values more evenly than
independent draws, and the first of them are the same however many are asked for (Bousquet et al. 2017, "Critical
Hyper-Parameters: No Random, No Cry", arXiv 1706.03200).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.section import parsed
from pipelines.training.run import EXECUTION, Run

Values = dict[str, Any]  # by dotted key

DIGITS = 4  # significant ones of a drawn number: it is to be read, and pasted into params.yaml
FIXED = ("name", "task", "kind", "init_from", "teacher", "epochs")  # epochs: the budget of a trial, `--epochs`
FORM = "KEY=log:LOW:HIGH, KEY=uniform:LOW:HIGH or KEY=choice:A,B,..."

# What is searched where nothing is said, of the keys that a run has; the learning rate is added, around the run's own.
DEFAULTS = {
    "optimizer.decay": "uniform:0.8:0.99",
    "optimizer.momentum": "uniform:0.6:0.98",
    "optimizer.weight_decay": "log:1e-6:1e-3",
    "schedule.decay_rate": "uniform:0.7:1",
}
RATE, AROUND = "optimizer.learning_rate", 10  # times lower and higher


@dataclass(frozen=True)
class Law:
    """How a value is drawn. text: as it is given. options: of a choice; else the ends of a range, low and high."""

    text: str
    kind: str
    options: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """The value that so large a share, in [0, 1), of the law lies below."""
        return DRAWS[self.kind](self.options, share)


def _log(ends: tuple[Any, ...], share: float) -> float:
    return _between(ends, math.exp(math.log(ends[0]) + share * (math.log(ends[1]) - math.log(ends[0]))))


def _uniform(ends: tuple[Any, ...], share: float) -> float:
    return _between(ends, ends[0] + share * (ends[1] - ends[0]))


def _choice(options: tuple[Any, ...], share: float) -> Any:
    return options[int(share * len(options))]


def _between(ends: tuple[Any, ...], value: float) -> float:
    """A short number, which rounding has not put out of the range."""
    low, high = ends
    return float(min(max(float(f"{value:.{DIGITS}g}"), low), high))


DRAWS = {"log": _log, "uniform": _uniform, "choice": _choice}


def parse_space(texts: Iterable[str]) -> dict[str, Law]:
    """The law of each key, from `KEY=LAW` texts. Raises ValueError that says what is wrong and what is allowed."""
    space: dict[str, Law] = {}
    for text in texts:
        key, equals, law = text.partition("=")
        if not key or not equals:
            raise ValueError(f"--search {text!r} must be {FORM}")
        if key in space:
            raise ValueError(f"--search {key}: it is given twice")
        try:
            space[key] = _parse_law(law)
        except ValueError as error:
            raise ValueError(f"--search {text}: {error}") from None
    return space


def _parse_law(text: str) -> Law:
    kind, _, rest = text.partition(":")
    if kind not in DRAWS:
        raise ValueError(f"law {kind!r} is unknown; there are: {', '.join(DRAWS)} ({FORM})")
    if kind == "choice":
        options = tuple(_value(option) for option in rest.split(","))
        if "" in options:
            raise ValueError("an option is empty")
        return Law(text, kind, options)
    ends = [_number(end) for end in rest.split(":")]
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise ValueError("a range is LOW:HIGH, two numbers, the lower one first")
    if kind == "log" and ends[0] <= 0:
        raise ValueError(f"the low end is {ends[0]:g}; of a logarithm it must be above 0")
    return Law(text, kind, tuple(ends))


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not finite")
    return number


def _value(text: str) -> Any:
    """A number, true, false or null as JSON has them; anything else is a word."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if value is None or isinstance(value, str | int | float) else text


def default_space(run: Run) -> dict[str, Law]:
    """What is searched where nothing is said."""
    rate = run.optimizer.learning_rate
    texts = {RATE: f"log:{rate / AROUND:g}:{rate * AROUND:g}", **DEFAULTS}
    return parse_space(f"{key}={law}" for key, law in texts.items() if key in searchable(run))


def searchable(run: Run) -> Values:
    """What of a run can be searched, and its own value of each: all that its result depends on but `FIXED`."""
    return _leaves(run.model_dump(exclude={**EXECUTION, **dict.fromkeys(FIXED, True)}))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Values:
    leaves: Values = {}
    for key, value in values.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def check_space(run: Run, space: Mapping[str, Law]) -> None:
    """Raise ValueError for a key that the run has not or that is fixed, and for a value that no run may have."""
    known = searchable(run)
    for key, law in space.items():
        if key not in known:
            raise ValueError(f"--search {key}: run {run.name} has no such value to search; it has: {', '.join(known)}")
        for value in law.options:
            changed(run, {key: value}, f"--search {key}={law.text}")


def changed(run: Run, values: Mapping[str, Any], where: str) -> Run:
    """The run with other values. Raises ValueError, beginning with `where`, for one that no run may have."""
    blocks = run.model_dump()
    for key, value in values.items():
        *path, last = key.split(".")
        block = blocks
        for part in path:
            block = block[part]
        block[last] = value
    return parsed(Run, blocks, where)


def draw(run: Run, space: Mapping[str, Law], trials: int, seed: int) -> list[Values]:
    """The values of each trial: first the run's own, then points of the space. More trials begin with the same ones."""
    from scipy.stats import qmc

    own = {key: searchable(run)[key] for key in space}
    points = qmc.Halton(len(space), scramble=True, rng=seed).random(trials - 1).tolist() if trials > 1 else []
    laws = space.items()
    return [own, *({key: law.at(share) for (key, law), share in zip(laws, point, strict=True)} for point in points)]


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"optimizer.decay": 0.9} -> {"optimizer": {"decay": 0.9}}, as params.yaml has it."""
    blocks: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        block = blocks
        for part in path:
            block = block.setdefault(part, {})
        block[last] = value
    return blocks
