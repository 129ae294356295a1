"""How far from the truth a net places photos, and how sure it is of it (paper, Table 11)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tasks import s2
from tasks.base import Evaluation, Targets, TestSet
from tasks.bootstrap import share_interval
from tasks.geocells import descend

RADII_KM = (1, 25, 200, 750, 2500)  # street, city, region, country, continent: the rows of Table 11
FURTHEST_KM = np.pi * s2.RADIUS_KM  # the other side of the Earth
KEPT = 200  # cells whose probabilities are kept of each photo, the likeliest: 3,000 photos of 26,263 cells are 315 MB
BINS, LEAST_IN_BIN = 8, 10  # of the reliability

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]


class PlaceErrors:
    """Collects where photos are placed, and measures the great-circle distance to where they were taken.

    A photo is placed at the position of the likeliest cell; "hierarchical" goes down from the six faces to the
    likeliest part each time (`descend`); "biggest" is the baseline, always the cell with the most training photos. A
    photo whose logits are not finite is as far away as can be.

    metrics: for each way, the two with their names before: "within_<km>" for RADII_KM with "_low", "_high" (95 %,
        bootstrap) and "_correct" (a count), and "median_km". Beside them "cell_accuracy", the share of photos in the
        likeliest cell, those of dropped cells counted as wrong; "calibration_error" (`calibration_error`); "samples".
    arrays: "truth" and "decoded" (N, 2) degrees, the latter NaN where the logits are not finite; "errors_km",
        "hierarchical_errors_km", "biggest_errors_km" (N,); "cell" (N,), the likeliest, its "confidence" (N,), and
        whether it is right, "hit" (N,); "top_cells" and "top_probabilities" (N, K), the K likeliest, in order.
    """

    def __init__(self, test_set: TestSet) -> None:
        assert test_set.places is not None, "the cells' positions are not known"
        self.places = test_set.places
        self.cells = np.array([s2.from_token(token) for token in test_set.classes], dtype=np.uint64)
        self.found = Columns()

    def update(self, outputs: Tensor, targets: Targets) -> None:
        """outputs: logits (N, C); targets["place"]: (N, 2) degrees; targets["label"]: (N,) int64, -1 for no cell."""
        probabilities = outputs.float().softmax(dim=1)
        finite = probabilities.isfinite().all(dim=1)
        probabilities = probabilities.where(finite[:, None], 0.0)
        values, cells = probabilities.topk(min(KEPT, len(self.cells)), dim=1)
        arrays = {
            "truth": targets["place"],
            "label": targets["label"],
            "finite": finite,
            "top_cells": cells,
            "top_probabilities": values,
        }
        found = {name: array.cpu().numpy() for name, array in arrays.items()}
        self.found.append({**found, "hierarchical": descend(probabilities.cpu().numpy(), self.cells)})

    def compute(self) -> Evaluation:
        """All that was taken in."""
        together = self.found.arrays()
        truth, finite, cell = together["truth"], together["finite"], together["top_cells"][:, 0]
        chosen = {
            "": cell,
            "hierarchical_": together["hierarchical"],
            "biggest_": np.full(len(truth), self.places.photos.argmax()),
        }
        errors = {way: s2.distances(self.places.positions[cells], truth) for way, cells in chosen.items()}
        for way in ("", "hierarchical_"):
            errors[way][~finite] = FURTHEST_KM
        hit, confidence = (cell == together["label"]) & finite, together["top_probabilities"][:, 0]
        metrics = {
            **{f"{way}{key}": value for way, km in errors.items() for key, value in _within(km).items()},
            "cell_accuracy": float(hit.mean()),
            "calibration_error": calibration_error(confidence, hit),
            "samples": len(truth),
        }
        decoded = np.where(finite[:, None], self.places.positions[cell], np.nan)
        arrays = {
            "truth": truth,
            "decoded": decoded,
            **{f"{way}errors_km": km for way, km in errors.items()},
            "cell": cell,
            "confidence": confidence,
            "hit": hit,
            "top_cells": together["top_cells"],
            "top_probabilities": together["top_probabilities"],
        }
        return Evaluation(metrics, arrays)


class Columns:
    """Arrays by name that grow at their end, in few large blocks.

    A small block for each batch, kept between the large ones that come and go, would keep these from being used again:
    11 MB a batch at PlaNet's number of cells, as much as if all probabilities were kept.
    """

    def __init__(self) -> None:
        self.blocks: dict[str, npt.NDArray[Any]] = {}
        self.rows = 0

    def append(self, part: dict[str, npt.NDArray[Any]]) -> None:
        """Take in as many rows of each array."""
        for name, array in part.items():
            block = self.blocks.get(name, array[:0])
            if self.rows + len(array) > len(block):
                self.blocks[name] = np.empty((2 * (self.rows + len(array)), *array.shape[1:]), array.dtype)
                self.blocks[name][: self.rows] = block[: self.rows]
            self.blocks[name][self.rows : self.rows + len(array)] = array
        self.rows += len(array)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All rows that were taken in."""
        return {name: block[: self.rows] for name, block in self.blocks.items()}


def _within(errors: Floats) -> dict[str, float]:
    found: dict[str, float] = {"median_km": float(np.median(errors))}
    for km in RADII_KM:
        correct = int((errors <= km).sum())
        low, high = share_interval(correct, len(errors))
        name = f"within_{km}"
        found |= {name: correct / len(errors), f"{name}_low": low, f"{name}_high": high, f"{name}_correct": correct}
    return found


def reliability_bins(confidence: Floats) -> list[npt.NDArray[np.int64]]:
    """The photos in BINS groups of about equal size, by rising confidence; in fewer where each would have too few."""
    order = np.argsort(confidence, kind="stable")
    return np.array_split(order, max(1, min(BINS, len(order) // LEAST_IN_BIN)))


def calibration_error(confidence: Floats, hit: Bools) -> float:
    """The expected calibration error: the mean, over photos, of their bin's |confidence - share of hits|."""
    gaps = [len(group) * abs(confidence[group].mean() - hit[group].mean()) for group in reliability_bins(confidence)]
    return float(sum(gaps) / len(confidence))
