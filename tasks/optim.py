"""The flat vectors that update rules work on, their state, and serial training's optimizer.

A net's parameters are views of one flat vector (`flatten`). The same `FlatState` applies a gradient to the whole vector
in serial and data-parallel training and to a slice of it in a parameter server, which makes one asynchronous worker
equal serial training bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tasks import kernels
from tasks.rules import Rule, numbers_like


class FlatState:
    """A flat vector of weights with the slots of its rule, its running average and the number of its updates.

    weights: (P,) float32, changed in place by `apply`. average_decay: of the running average that is evaluated in place
    of the weights; None keeps none. As TensorFlow's `ExponentialMovingAverage(decay, num_updates)`, the average forgets
    faster at first: its decay is min(average_decay, (1 + step) / (10 + step)).
    """

    def __init__(
        self, weights: Tensor, rule: Rule, learning_rate: Callable[[int], float], average_decay: float | None
    ) -> None:
        self.weights = weights
        self.rule = rule
        self.learning_rate = learning_rate
        self.average_decay = average_decay
        self.slots = rule.slots(weights)
        if average_decay is not None:
            self.slots["average"] = weights.clone()
        self.step = 0

    @torch.no_grad()
    def apply(self, gradient: Tensor, scale: float = 1.0) -> None:
        """One update with the learning rate of the present step times `scale`; gradient: (P,) float32."""
        rate = self.learning_rate(self.step) * scale
        self.rule.update(self.weights, gradient, self.slots, rate)
        if self.average_decay is not None:
            share = 1 - min(self.average_decay, (1 + self.step) / (10 + self.step))
            if self.weights.device.type == "cpu":
                running, weights = self.slots["average"].numpy(), self.weights.numpy()
                kernels.average(running, weights, *numbers_like(self.weights, share))
            else:
                self.slots["average"].lerp_(self.weights, share)
        self.step += 1

    @property
    def evaluated(self) -> Tensor:
        """(P,) the weights to evaluate and export: the running average where one is kept."""
        return self.weights if self.average_decay is None else self.slots["average"]

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later `load_state_dict` needs to go on bit for bit."""
        return {"step": self.step, "weights": self.weights, "slots": self.slots}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of the same length and slots; raises ValueError where they differ."""
        if state["slots"].keys() != self.slots.keys() or len(state["weights"]) != len(self.weights):
            raise ValueError(
                f"a state of {len(state['weights'])} weights with slots {sorted(state['slots'])} does not fit "
                f"{len(self.weights)} weights with slots {sorted(self.slots)}"
            )
        self.weights.copy_(state["weights"])
        for name, slot in self.slots.items():
            slot.copy_(state["slots"][name])
        self.step = state["step"]


class Flat(NamedTuple):
    """A net's tensors as views of flat vectors.

    weights, gradient: (P,) float32, the parameters that are trained, first those with weight decay, and their gradient.
    statistics: (S,) float32, the floating-point buffers: BatchNorm's running means and variances.
    num_decayed: how many leading weights have weight decay.
    bound: each parameter and the view of `gradient` that is its `grad`.
    """

    weights: Tensor
    gradient: Tensor
    statistics: Tensor
    num_decayed: int
    bound: list[tuple[nn.Parameter, Tensor]]

    def clear_gradient(self) -> None:
        """Zero the gradient and bind it again to the parameters: `Module.zero_grad` lets go of it."""
        self.gradient.zero_()
        for parameter, view in self.bound:
            parameter.grad = view


def decays(net: nn.Module) -> dict[str, bool]:
    """By name of the parameters that are trained, whether weight decay applies: not to depthwise filters, BatchNorm and
    biases.

    Paper, section 3.2: "very little or no weight decay" on the depthwise filters; slim leaves BatchNorm and biases out.
    """
    rule = {}
    for prefix, module in net.named_modules():
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            rule[f"{prefix}.{name}" if prefix else name] = parameter.ndim > 1 and not depthwise
    return rule


Home = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def anywhere(weights: Tensor, gradient: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - a Home
    """The home of vectors that only this process needs: where they are."""
    return weights, gradient


def flatten(net: nn.Module, home: Home = anywhere) -> Flat:
    """Rebind each parameter that is trained, gradient and float buffer of `net` to a view of a flat vector, values and
    strides kept.

    home: says where weights and gradient are to lie; given these two and the statistics, it returns the two.
    """
    decayed = decays(net)
    trained = [(name, parameter) for name, parameter in net.named_parameters() if name in decayed]
    named = sorted(trained, key=lambda item: not decayed[item[0]])  # stable: decayed ones first
    parameters = [parameter for _, parameter in named]
    weights = _pack([parameter.data for parameter in parameters])
    buffers = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
    statistics = _pack(buffers) if buffers else weights.new_zeros(0)  # a net without BatchNorm
    weights, gradient = home(weights, torch.zeros_like(weights), statistics)
    bound = list(zip(parameters, _views(gradient, parameters), strict=True))
    for parameter, data in zip(parameters, _views(weights, parameters), strict=True):
        parameter.data = data
    for buffer, data in zip(buffers, _views(statistics, buffers), strict=True):
        buffer.data = data
    flat = Flat(weights, gradient, statistics, sum(p.numel() for name, p in named if decayed[name]), bound)
    flat.clear_gradient()
    return flat


def _pack(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors' elements end to end, each in the order in which it lies in memory."""
    return torch.cat([tensor.detach().as_strided((tensor.numel(),), (1,)) for tensor in tensors])


def _views(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Pieces of `vector` with the shapes and strides of `like`, in order."""
    starts = accumulate((tensor.numel() for tensor in like), initial=0)  # one more than pieces: the last is the end
    return [vector.as_strided(t.shape, t.stride(), start) for t, start in zip(like, starts, strict=False)]


@torch.no_grad()
def finish_gradient(flat: Flat, weight_decay: float, clip_norm: float | None) -> None:
    """Add L2 weight decay to the gradient, then clip its global norm, both in place.

    The decay is part of the loss, as in slim, so that it passes through the mean square (not AdamW's way).
    """
    if weight_decay:
        head = slice(0, flat.num_decayed)
        flat.gradient[head].add_(flat.weights[head], alpha=weight_decay)
    if clip_norm is not None:
        norm = flat.gradient.norm()
        if flat.gradient.is_cuda or norm > clip_norm:  # a GPU is not waited for, to be asked
            flat.gradient.mul_(clip_norm / norm.clamp(min=clip_norm))


class FlatOptimizer(torch.optim.Optimizer):
    """What optimizers of a flattened net have in common; a subclass says what a step does with the gradient.

    finish: completes the flat gradient (weight decay, clipping). `steps`: how many are made, resumed ones included.
    """

    steps: int

    def __init__(self, net: nn.Module, finish: Callable[[Flat], None], home: Home = anywhere) -> None:
        self.flat = flatten(net, home)
        self.finish = finish
        super().__init__(net.parameters(), {})

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: ARG002 - views of the flat gradient must stay
        """Clear the flat gradient in place."""
        self.flat.clear_gradient()


class LocalOptimizer(FlatOptimizer):
    """Applies a `FlatState`'s rule to a whole net in this process: serial and data-parallel training."""

    def __init__(
        self, net: nn.Module, finish: Callable[[Flat], None], make_state: Callable[[Tensor], FlatState]
    ) -> None:
        super().__init__(net, finish)
        self.flat_state = make_state(self.flat.weights)

    @property
    def steps(self) -> int:  # type: ignore[override]
        """Updates made so far."""
        return self.flat_state.step

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Run the closure (forward and backward), then apply the gradient."""
        loss = None if closure is None else closure()
        self.finish(self.flat)
        self.flat_state.apply(self.flat.gradient)
        return loss
