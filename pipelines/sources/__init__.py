"""The data sets' upstream layouts: the only code that knows them."""

from __future__ import annotations

from pipelines.sources import celeba, coco, im2gps, imagenet, lfw, stanford_dogs, web_dogs, yfcc100m_faces, yfcc100m_geo
from pipelines.sources.base import Source

SOURCES: dict[str, Source] = {
    "celeba": celeba.SOURCE,
    "coco": coco.SOURCE,
    "im2gps": im2gps.SOURCE,
    "im2gps3k": im2gps.SOURCE,
    "imagenet": imagenet.SOURCE,
    "lfw": lfw.SOURCE,
    "stanford_dogs": stanford_dogs.SOURCE,
    "web_dogs": web_dogs.SOURCE,
    "yfcc100m_faces": yfcc100m_faces.SOURCE,
    "yfcc100m_geo": yfcc100m_geo.SOURCE,
}
