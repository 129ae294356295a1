"""What the pictures of an evaluation have in common: what they come as, what photographs come from, readable names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipelines.page import Picture
from pipelines.tables import Record


class Images(Protocol):
    """What photographs come from."""

    def __call__(self, places: Sequence[int], size: int = 96) -> list[npt.NDArray[np.uint8]]:
        """(H, W, 3) RGB pictures of the test images at places in the order of evaluation, about `size` px high."""


class Details(NamedTuple):
    """What an evaluation shows beside its metrics.

    pictures: their `statement` is empty, the report knows what data it is of. tables: records for
    `pipelines.page.csv_text` by the table's name; one without any record is left out.
    """

    pictures: list[Picture]
    tables: dict[str, list[Record]]


def readable(name: str) -> str:
    """A class's name for people: "n02099601-golden_retriever" or "n02099601 golden_retriever" -> "golden retriever"."""
    return re.sub(r"^n\d{8}[- ]", "", name).replace("_", " ")
