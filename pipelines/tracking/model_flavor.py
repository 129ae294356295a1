"""Makes a net that MLflow keeps into a model again: the loader module of the `python_function` flavor.

MLflow copies this file and `tasks/` next to the weights, and imports it by its bare name from there. The weights are a
plain `state_dict` and the net is built from its spec: nothing is unpickled.
"""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tasks import TASKS
from tasks.augment import normalise
from tasks.nets import NetSpec, build


class ImageModel:
    """A trained net on the CPU, for images in and its task's predictions out."""

    def __init__(self, weights: str, task: str, net: dict[str, Any]) -> None:
        self.net = build(NetSpec(**net)).to(memory_format=torch.channels_last).eval()
        self.net.load_state_dict(_read(weights))
        self.task = TASKS[task]

    @torch.inference_mode()
    def predict(self, images: npt.NDArray[np.uint8], params: dict[str, Any] | None = None) -> npt.NDArray[np.float32]:
        """What the task predicts: (N, num_classes) float32 probabilities of a classifier, (N, max_detections, 6) rows
        of x1, y1, x2, y2 in [0, 1], score and label of a detector. images: (N, S, S, 3) uint8, RGB, S as trained on.
        """
        del params  # MLflow passes it; there are none
        predictions: npt.NDArray[np.float32] = self.task.predict(self.net(normalise(torch.from_numpy(images)))).numpy()
        return predictions


def _read(weights: str) -> dict[str, torch.Tensor]:
    try:
        state: dict[str, torch.Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(f"{weights} holds more than tensors: {reason}") from None
    return state


def _load_pyfunc(path: str, model_config: dict[str, Any]) -> ImageModel:
    """Called by MLflow with the weights' path and the flavor's `config`."""
    return ImageModel(path, model_config["task"], model_config["net"])
