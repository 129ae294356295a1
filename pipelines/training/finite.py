"""Gradients that are not finite: refused and counted, whoever applies them.

One rule for all kinds: the weights, slots and BatchNorm statistics stay as they were, the refusal is counted under
"not_finite", and after `Run.max_not_finite` of them in a row the run ends with a line that says so. Parameter servers
then wait for another push; in `local` and `ddp`, where steps are places in the data, the step counts as made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tasks.optim import Flat, FlatState, LocalOptimizer


def is_finite(vector: Tensor) -> bool:
    """Whether no element of a vector is infinite or NaN: by its sum, which is one pass over memory and almost always
    enough; a sum of finite numbers can overflow, and then each is looked at.
    """
    return bool(torch.isfinite(vector.sum())) or bool(torch.isfinite(vector).all())


def complaint(run: str, in_row: int, step: int) -> str:
    """Why a run stops."""
    return (
        f"run {run}: {in_row} gradients in a row were not finite, at step {step}; lower learning_rate, set clip_norm "
        "or look at the data (max_not_finite in params.yaml says how many are borne)"
    )


class FiniteOptimizer(LocalOptimizer):
    """A `LocalOptimizer` that refuses a gradient that is not finite.

    refused: how many it has; in_row: how many since the last one that it applied. Ranks of a data-parallel run see the
    same gradient, and so refuse the same ones.
    """

    def __init__(
        self, net: nn.Module, finish: Callable[[Flat], None], make_state: Callable[[Tensor], FlatState]
    ) -> None:
        super().__init__(net, finish, make_state)
        self.refused = self.in_row = 0

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As of a `LocalOptimizer`, for a finite gradient; after any other one only the step is another."""
        before = self.flat.statistics.clone()  # forward changes them, by images that may be to blame
        loss = None if closure is None else closure()
        self.finish(self.flat)
        if is_finite(self.flat.gradient):
            self.flat_state.apply(self.flat.gradient)
            self.in_row = 0
        else:
            self.flat.statistics.copy_(before)
            self.flat_state.step += 1
            self.refused += 1
            self.in_row += 1
        return loss
