"""MobileNet in the HDF5 files of Keras: `keras.applications.MobileNet`, with and without its last layer.

Three layouts are read: weights as Keras 2 wrote them, which the published files have; the same within a whole model
(`model.save("x.h5")`); and Keras 3's `x.weights.h5`. Names of layers are those of
https://github.com/keras-team/keras/blob/master/keras/src/applications/mobilenet.py

Keras pads an odd side under stride 2 otherwise than SAME does. Images whose sides are multiples of 32, as all sizes are
for which weights are published, have none.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.weights.mobilenet import MAX_BYTES, Array, Classifier, Convolution, Published

MAX_DEPTH, MAX_MEMBERS = 8, 1000  # of groups in a file; Keras's have 4 and some 60
_BLOCKS = range(1, 14)
LAYERS = ("conv1", *(f"conv_{part}_{block}" for block, part in product(_BLOCKS, ("dw", "pw"))))
TOP = ("conv_preds/kernel", "conv_preds/bias")
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_OPTIMIZER = ("optimizer_weights/", "optimizer/")  # of Keras 2 and 3; passed over

# `x.weights.h5` numbers the layers of a class by their order in the net, and the variables of a layer.
_CLASSES = {
    "conv2d": ("conv1", *(f"conv_pw_{block}" for block in _BLOCKS), "conv_preds"),
    "depthwise_conv2d": tuple(f"conv_dw_{block}" for block in _BLOCKS),
    "batch_normalization": tuple(f"{layer}_bn" for layer in LAYERS),
}
_NUMBERED = {
    f"layers/{kind}{f'_{number}' if number else ''}/vars/{index}": f"{layer}/{part}"
    for kind, layers in _CLASSES.items()
    for number, layer in enumerate(layers)
    for index, part in enumerate(NORM if kind == "batch_normalization" else ("kernel", "bias"))
}


def read(path: Path) -> Published:
    """What the file at `path` holds. Raises ValueError for a file that is no MobileNet of Keras, or not a whole one."""
    arrays = _arrays(path)
    weights = {_name(where): array for where, array in arrays.items()}
    wanted = [*(f"{layer}/kernel" for layer in LAYERS), *(f"{layer}_bn/{part}" for layer in LAYERS for part in NORM)]
    if any(name in weights for name in TOP):
        wanted += TOP
    if missing := [name for name in wanted if name not in weights]:
        raise ValueError(f"not a MobileNet of Keras: {missing[0]} is missing ({len(missing)} of {len(wanted)} are)")
    if unknown := sorted(weights.keys() - set(wanted)):
        raise ValueError(f"not a MobileNet of Keras: it has {unknown[0]} ({len(unknown)} of its weights are unknown)")
    if len(arrays) > len(wanted):
        raise ValueError(f"not a MobileNet of Keras: it has {len(arrays)} weights for {len(wanted)} names")
    convolutions = [
        Convolution(layer, _torch_axes(layer, weights), *(weights[f"{layer}_bn/{part}"] for part in NORM))
        for layer in LAYERS
    ]
    classifier = None
    if TOP[0] in weights:
        classifier = Classifier("conv_preds", _torch_axes("conv_preds", weights), weights[TOP[1]])
    return Published(convolutions, classifier, None, "Keras")


def _torch_axes(layer: str, weights: dict[str, Array]) -> Array:
    """A kernel (H, W, in, out) as (out, in, H, W); a depthwise one (H, W, channels, 1) as (channels, 1, H, W)."""
    kernel = weights[f"{layer}/kernel"]
    if kernel.ndim != 4:
        raise ValueError(f"{layer}'s kernel has shape {kernel.shape}, not four dimensions")
    return kernel.transpose((2, 3, 0, 1) if layer.startswith("conv_dw") else (3, 2, 0, 1))


def _name(where: str) -> str:
    """`layer/part` of a place in a file: of layers/conv2d/vars/0, or of conv1/scopes/kernel:0."""
    parts = where.split("/")
    part = parts[-1].split(":")[0].removeprefix("depthwise_")
    return _NUMBERED.get(where, f"{parts[0]}/{part}")


def _arrays(path: Path) -> dict[str, Array]:
    """All arrays of floats that lie in the file itself, by their places.

    Links, and data in other files, are not followed. Whole numbers are no weights: Dropout's seed.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError("an .h5 file needs the package h5py, of the extra `weights`") from None
    datasets: dict[str, Any] = {}
    try:
        with h5py.File(path, "r") as file:
            _collect(file, "", 0, datasets)
            claimed = sum(4 * item.size for item in datasets.values())
            if claimed <= MAX_BYTES:
                return {where: np.asarray(item[...], np.float32) for where, item in datasets.items()}
    except Exception as error:  # h5py raises nearly anything on broken input
        raise ValueError(f"not a whole HDF5 file ({error})") from error
    raise ValueError(f"its weights claim to have {claimed:,} bytes; allowed are {MAX_BYTES:,}")


def _collect(group: Any, before: str, depth: int, found: dict[str, Any]) -> None:
    """Put what lies in a group, and in those below it, into `found`, whatever that may cost left aside unread."""
    import h5py

    if depth > MAX_DEPTH or len(group) > MAX_MEMBERS:
        raise ValueError(f"{before or 'its root'} has {len(group)} members at depth {depth}")
    for name in group:
        place = f"{before}{name}"
        if f"{place}/".startswith(_OPTIMIZER) or not isinstance(group.get(name, getlink=True), h5py.HardLink):
            continue
        item = group[name]
        if isinstance(item, h5py.Group):
            _collect(item, f"{place}/", depth + 1, found)
        elif item.dtype.kind == "f" and not item.external and not item.is_virtual:
            if item.chunks and math.prod(item.chunks) * item.dtype.itemsize > MAX_BYTES:
                raise ValueError(f"{place} has chunks of {item.chunks}")
            found[place.removeprefix("model_weights/")] = item
