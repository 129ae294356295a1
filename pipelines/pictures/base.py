"""What the pictures of an evaluation have in common: what they come as, what photographs come from, readable names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.page import Picture
from pipelines.tables import Record

# Places in the order of evaluation -> (H, W, 3) RGB pictures, of any sizes.
Images = Callable[[Sequence[int]], list[npt.NDArray[np.uint8]]]


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
