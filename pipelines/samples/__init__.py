"""Tiny look-alike data sets, written as the upstream archives they stand for: what `sample:` URLs name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipelines.samples import imagenet, stanford_dogs

SAMPLES: dict[str, Callable[..., Any]] = {  # (folder, **options: int)
    "imagenet": imagenet.write,
    "stanford_dogs": stanford_dogs.write,
}
