"""The data sets' upstream layouts: the only code that knows them."""

from __future__ import annotations

from pipelines.sources import imagenet
from pipelines.sources.base import Source

SOURCES: dict[str, Source] = {"imagenet": imagenet.SOURCE}
