"""Tiny look-alike data sets, written as the upstream archives they stand for: what `sample:` URLs name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipelines.samples import celeba, coco, im2gps, imagenet, lfw, stanford_dogs, web_dogs, yfcc100m

SAMPLES: dict[str, Callable[..., Any]] = {  # (folder, **options: int)
    "celeba": celeba.write,
    "coco": coco.write,
    "im2gps": im2gps.write,
    "im2gps3k": im2gps.write_3k,
    "imagenet": imagenet.write,
    "lfw": lfw.write,
    "stanford_dogs": stanford_dogs.write,
    "web_dogs": web_dogs.write,
    "yfcc100m": yfcc100m.write,
}
