"""In which order a table's rows are trained, where some need others."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter


def in_order(table: str, needs: Mapping[str, list[str]]) -> list[str]:
    """Runs after those that they need, and first those with the most of others behind them, one behind the other: at
    the end such a chain would leave all but one core idle. Raises ValueError that names runs that need each other.

    needs: of each run of a table, those that it needs.
    """
    try:
        order = [*TopologicalSorter(needs).static_order()]
    except CycleError as error:
        raise ValueError(f"table {table}: runs need each other: {' <- '.join(error.args[1])}") from None
    behind = dict.fromkeys(order, 0)
    for name in reversed(order):
        for wanted in needs[name]:
            behind[wanted] = max(behind[wanted], behind[name] + 1)
    return sorted(order, key=lambda name: -behind[name])


def closure(name: str, needs: Mapping[str, list[str]]) -> set[str]:
    """A run and all that it needs, as far as they lead."""
    return {name}.union(*(closure(wanted, needs) for wanted in needs[name]))
