"""Update rules on a CPU as one pass over memory each: three times as fast as the same rule in torch operations.

Compiled by numba at the first call of a process for a type (0.7 s, 0.4 s from its cache on disk). Without fast-math
every element is computed alone and alike, wherever a vector is cut.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True, error_model="numpy")
def rmsprop(
    weights: NDArray[Any],
    gradient: NDArray[Any],
    mean_square: NDArray[Any],
    velocity: NDArray[Any],
    decay: Any,
    momentum: Any,
    epsilon: Any,
    learning_rate: Any,
) -> None:
    """`rules.RMSprop.update` in place, on 1-D arrays of equal length."""
    rest = weights.dtype.type(1) - decay
    for i in range(len(weights)):
        square = mean_square[i] + rest * (gradient[i] * gradient[i] - mean_square[i])
        step = momentum * velocity[i] + learning_rate * gradient[i] / np.sqrt(square + epsilon)
        mean_square[i] = square
        velocity[i] = step
        weights[i] -= step


@numba.njit(cache=True, error_model="numpy")
def momentum(
    weights: NDArray[Any], gradient: NDArray[Any], velocity: NDArray[Any], momentum: Any, learning_rate: Any
) -> None:
    """`rules.Momentum.update` in place, on 1-D arrays of equal length."""
    for i in range(len(weights)):
        step = momentum * velocity[i] + gradient[i]
        velocity[i] = step
        weights[i] -= learning_rate * step


@numba.njit(cache=True, error_model="numpy")
def average(running: NDArray[Any], values: NDArray[Any], weight: Any) -> None:
    """Move `running` towards `values` by the share `weight`, in place."""
    for i in range(len(running)):
        running[i] += weight * (values[i] - running[i])
