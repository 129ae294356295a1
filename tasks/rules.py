"""TensorFlow's update rules on flat vectors, and the learning rate by global step."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tasks import kernels


class Rule(Protocol):
    """How a gradient changes the weights: a picklable record of numbers."""

    def slots(self, weights: Tensor) -> dict[str, Tensor]:
        """The vectors that the rule keeps beside `weights`, as they are before the first step."""

    def update(self, weights: Tensor, gradient: Tensor, slots: dict[str, Tensor], learning_rate: float) -> None:
        """Apply one gradient to `weights` and `slots` in place; all are 1-D and of equal length."""


@dataclass(frozen=True)
class RMSprop:
    """RMSProp as TensorFlow's `ApplyRMSProp` kernel computes it, which the paper's authors used.

        mean_square <- mean_square + (1 - decay) * (gradient ** 2 - mean_square)      (starts at one)
        velocity    <- momentum * velocity + learning_rate * gradient / sqrt(mean_square + epsilon)
        weights     <- weights - velocity

    Differs from `torch.optim.RMSprop` in three ways: the mean square starts at one and not at zero; epsilon is inside
    the root; the learning rate is inside the velocity, so that a lower rate leaves what has gathered there as it is.
    https://www.tensorflow.org/api_docs/python/tf/raw_ops/ApplyRMSProp
    """

    decay: float
    momentum: float
    epsilon: float

    def slots(self, weights: Tensor) -> dict[str, Tensor]:
        """See `Rule`."""
        return {"mean_square": torch.ones_like(weights), "velocity": torch.zeros_like(weights)}

    def update(self, weights: Tensor, gradient: Tensor, slots: dict[str, Tensor], learning_rate: float) -> None:
        """See `Rule`."""
        mean_square, velocity = slots["mean_square"], slots["velocity"]
        if weights.device.type == "cpu":
            vectors = [vector.numpy() for vector in (weights, gradient, mean_square, velocity)]
            kernels.rmsprop(*vectors, *numbers_like(weights, self.decay, self.momentum, self.epsilon, learning_rate))
            return
        mean_square.lerp_(gradient.square(), 1 - self.decay)
        velocity.mul_(self.momentum).addcdiv_(gradient, (mean_square + self.epsilon).sqrt_(), value=learning_rate)
        weights.sub_(velocity)


@dataclass(frozen=True)
class Adagrad:
    """AdaGrad as TensorFlow's `ApplyAdagrad` kernel computes it: FaceNet's rule (arXiv 1503.03832, section 3).

        accumulator <- accumulator + gradient ** 2                        (starts at `initial_accumulator`)
        weights     <- weights - learning_rate * gradient / sqrt(accumulator)

    Differs from `torch.optim.Adagrad` where its accumulator starts at zero: there is no epsilon.
    https://www.tensorflow.org/api_docs/python/tf/raw_ops/ApplyAdagrad
    """

    initial_accumulator: float

    def slots(self, weights: Tensor) -> dict[str, Tensor]:
        """See `Rule`."""
        return {"accumulator": torch.full_like(weights, self.initial_accumulator)}

    def update(self, weights: Tensor, gradient: Tensor, slots: dict[str, Tensor], learning_rate: float) -> None:
        """See `Rule`."""
        accumulator = slots["accumulator"].addcmul_(gradient, gradient)
        weights.addcdiv_(gradient, accumulator.sqrt(), value=-learning_rate)


@dataclass(frozen=True)
class Momentum:
    """Gradient descent with momentum as TensorFlow's `ApplyMomentum` kernel computes it, without Nesterov's step.

        velocity <- momentum * velocity + gradient                        (starts at zero)
        weights  <- weights - learning_rate * velocity

    Faster R-CNN's rule in Huang et al. (arXiv 1611.10012). Unlike in `RMSprop`, the learning rate is outside the
    velocity: a lower rate slows what has gathered there too. It is `torch.optim.SGD` without dampening.
    https://www.tensorflow.org/api_docs/python/tf/raw_ops/ResourceApplyMomentum
    """

    momentum: float

    def slots(self, weights: Tensor) -> dict[str, Tensor]:
        """See `Rule`."""
        return {"velocity": torch.zeros_like(weights)}

    def update(self, weights: Tensor, gradient: Tensor, slots: dict[str, Tensor], learning_rate: float) -> None:
        """See `Rule`."""
        velocity = slots["velocity"]
        if weights.device.type == "cpu":
            vectors = [vector.numpy() for vector in (weights, gradient, velocity)]
            kernels.momentum(*vectors, *numbers_like(weights, self.momentum, learning_rate))
            return
        weights.sub_(velocity.mul_(self.momentum).add_(gradient), alpha=learning_rate)


@dataclass(frozen=True)
class Staircase:
    """The learning rate by global step: `initial * rate ** drops`, after a linear warm-up over `warmup` steps.

    steps: a number of steps from one drop to the next, or the ascending steps from which on there is one more drop.
    Neither need be whole. The Inception recipe decays by 0.94 every two epochs (arXiv 1512.00567, section 8); Faster
    R-CNN's rate falls by 10 at steps 900,000 and 1,200,000 (arXiv 1611.10012).
    """

    initial: float
    rate: float
    steps: float | tuple[float, ...]
    warmup: int

    def __call__(self, step: int) -> float:
        drops = bisect_right(self.steps, step) if isinstance(self.steps, tuple) else int(step / self.steps)
        decayed = self.initial * self.rate**drops
        return decayed * min(1.0, (step + 1) / self.warmup) if self.warmup else decayed


def numbers_like(vector: Tensor, *values: float) -> list[Any]:
    """Numbers of the vector's own type: in a wider one, a kernel would compute in that."""
    convert = vector.numpy().dtype.type
    return [convert(value) for value in values]
