"""Trained nets that another run needs, and those to start from (`init_from`); `teaching` has those to learn from.

What does not fit is refused before anything is trained: nets are compared on the meta device, which costs no memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipelines.training.run import Run
from pipelines.training.snapshots import read_checked, reason
from tasks.nets import DETECTORS, NetSpec, build

BODY = "body."
DETECTOR_HEADS = ("logits.", "offsets.")  # of SSD and of Faster R-CNN's second stage


class Origin(NamedTuple):
    """A trained net. spec, run and classes (in label order) are None for a file of weights, which says neither."""

    name: str
    weights: Path
    spec: NetSpec | None = None
    run: Run | None = None
    classes: Sequence[str] | None = None


@dataclass(frozen=True)
class Initial:
    """Weights to start from. keep_head: the predictors of classes too, which are otherwise as random as without them.
    into: where the names of the weights begin in the net: "body." for a classifier's in a detector. part: where those
    begin in the file that are taken: "body." of another kind of detector.
    """

    weights: Path
    keep_head: bool
    into: str = ""
    part: str = ""


def initial(run: Run, spec: NetSpec, classes: Sequence[str], origin: Origin) -> Initial:
    """What `init_from` means for a run. Raises ValueError where the weights are not those of such a net.

    What predicts classes is kept where both nets tell the same classes apart, in the same order; of a file, which does
    not name its classes, where it has as many. A detector starts from a classifier by its body, and by what it derives
    from the rest (`tasks.nets.ssd.reduced_fc`); or from a detector: one of another kind by the body of that.
    """
    net = _meta(spec)
    where = f"run {run.name}: init_from {origin.name}"
    try:
        state = _meta(origin.spec).state_dict() if origin.spec else load_weights(origin.weights)
    except ValueError as error:
        raise ValueError(f"run {run.name}: init_from {error}") from None
    its_heads = _detector_heads(state)
    into = BODY if spec.net in DETECTORS and its_heads.isdisjoint(_detector_heads(net.state_dict())) else ""
    part = BODY if into and its_heads else ""
    state = _part(state, part)
    wanted = net.get_submodule(into.removesuffix(".")).state_dict()
    head = heads_of(net, into)
    stray = sorted(state.keys() - wanted.keys())
    if stray and not into:
        raise ValueError(f"{where} has {stray[0]!r}, which {spec.net} of width {spec.width} has not")
    for name, tensor in wanted.items():
        found = tuple(state[name].shape) if name in state else None
        if not name.startswith(head) and found != tuple(tensor.shape):
            raise ValueError(f"{where}: {name!r} is {found or 'absent'}, it must be {tuple(tensor.shape)}")
    if into:
        try:
            _derived(net, state)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    for key in ("padding", "activation", "batch_norm_epsilon"):
        theirs, ours = getattr(origin.spec or spec, key), getattr(spec, key)
        if theirs != ours:
            raise ValueError(f"{where} was trained with {key} {theirs}, the run has {ours}")
    fits = all(name in state and state[name].shape == wanted[name].shape for name in wanted if name.startswith(head))
    same = origin.classes is None or list(origin.classes) == list(classes)
    return Initial(origin.weights.resolve(), keep_head=not into and fits and same, into=into, part=part)


def load_weights(path: Path) -> dict[str, Tensor]:
    """A file of weights: tensors by name. Raises ValueError for anything else; nothing of it is run."""
    try:
        state = read_checked(path)
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        raise ValueError(f"{path} holds no weights: {reason(error)}") from None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"{path} holds no weights: it is not a dict of tensors by name")
    return state


def heads_of(net: nn.Module, into: str = "") -> tuple[str, ...]:
    """How the names of the parameters begin that predict classes, e.g. "classifier."; none in a detector's body."""
    if into:
        return ()
    if hasattr(net, "losses"):
        return DETECTOR_HEADS
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return (f"{layers[-1]}.",)


def initialise(net: nn.Module, start: Initial) -> None:
    """Put the weights and statistics of `start` into a net."""
    part = net.get_submodule(start.into.removesuffix("."))
    head, wanted = heads_of(net, start.into), part.state_dict()
    found = _part(load_weights(start.weights), start.part)
    if start.into:
        net.load_state_dict(_derived(net, found), strict=False)
    state = {
        name: value
        for name, value in found.items()
        if name in wanted and (start.keep_head or not name.startswith(head))
    }
    missing, _ = part.load_state_dict(state, strict=False)
    assert all(name.startswith(head) for name in missing), missing


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _derived(net: nn.Module, classifier: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a detector makes of a classifier's weights for its layers outside its body."""
    derive = getattr(net, "derive", None)
    return derive(classifier) if derive else {}


def _detector_heads(state: Mapping[str, Tensor]) -> set[str]:
    """The names of a detector's predictors, of which no other kind has one; none of a classifier."""
    return {name for name in state if name.startswith(DETECTOR_HEADS)}


def _meta(spec: NetSpec) -> nn.Module:
    with torch.device("meta"):
        return build(spec)
