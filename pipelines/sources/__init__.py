"""The data sets' upstream layouts: the only code that knows them."""

from __future__ import annotations

from pipelines.sources import imagenet, stanford_dogs
from pipelines.sources.base import Source

SOURCES: dict[str, Source] = {"imagenet": imagenet.SOURCE, "stanford_dogs": stanford_dogs.SOURCE}
