"""In which order a table's rows are trained, where some need others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter


def in_order(table: str, needs: Mapping[str, list[str]]) -> list[str]:
    """Runs after those that they need. Raises ValueError that names runs that need each other.

    needs: of each run of a table, those that it needs.
    """
    try:
        return [*TopologicalSorter(needs).static_order()]
    except CycleError as error:
        raise ValueError(f"table {table}: runs need each other: {' <- '.join(error.args[1])}") from None


def longest_first(work: Mapping[str, float], needs: Mapping[str, Iterable[str]]) -> list[str]:
    """Runs by their work together with that of the longest chain of runs behind them, which need them: what takes long
    and is begun last leaves all but one core idle at the end.

    work: of each run, above 0, in any unit. needs: of each run, those that it needs; those without work are done.
    """
    left = {name: [wanted for wanted in needs[name] if wanted in work] for name in work}
    length = dict(work)
    for name in reversed([*TopologicalSorter(left).static_order()]):
        for wanted in left[name]:
            length[wanted] = max(length[wanted], work[wanted] + length[name])
    return sorted(work, key=lambda name: -length[name])


def closure(name: str, needs: Mapping[str, list[str]]) -> set[str]:
    """A run and all that it needs, as far as they lead."""
    return {name}.union(*(closure(wanted, needs) for wanted in needs[name]))
