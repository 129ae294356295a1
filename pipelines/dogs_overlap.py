"""Which test images of Stanford Dogs are training images of ImageNet: `python -m pipelines.dogs_overlap`.

All images of Stanford Dogs are ImageNet's and have its names. A net that was trained on ImageNet may have seen them, so
that its accuracy on them says too much; the paper pre-trains on images from the web.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from pipelines.archives import members, opened
from pipelines.command import one_line_errors
from pipelines.sources import imagenet
from pipelines.sources.stanford_dogs import LISTS, lists


class Overlap(NamedTuple):
    """How many test images there are, which of them ImageNet trains on, and which breeds that ImageNet lacks."""

    test: int
    seen: list[str]
    absent: list[str]


def imagenet_overlap(folder: Path, imagenet_folder: Path) -> Overlap:
    """The test images that are training images of the ImageNet in `imagenet_folder` too, by their names.

    Of either data set only lists and headers are read. Raises ValueError where they are not as they should be.
    """
    breeds, splits = lists(folder / LISTS)
    path = imagenet_folder / imagenet.TRAIN
    trained: set[str] = set()
    with opened(path) as file:
        outer = members(file, str(path), max_members=imagenet.MAX_IMAGES, max_bytes=imagenet.MAX_TAR_BYTES)
        tars = {tar.name.removesuffix(".tar"): tar for tar in outer}
        for wnid in sorted({breed[:9] for breed in breeds} & tars.keys()):
            archive, limit = f"{path}:{wnid}.tar", imagenet.MAX_IMAGE_BYTES
            images = members(file, archive, max_members=imagenet.MAX_IMAGES, max_bytes=limit, within=tars[wnid])
            trained.update(image.name.removesuffix(".JPEG") for image in images)
    seen = [f"{name}.jpg" for name in splits["test"] if name.split("/")[1] in trained]
    return Overlap(len(splits["test"]), seen, [breed for breed in breeds if breed[:9] not in tars])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help=f"holds {LISTS}, such as data/paper/raw/stanford_dogs")
    parser.add_argument("imagenet", type=Path, help=f"holds {imagenet.TRAIN}, such as data/paper/raw/imagenet")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        test, seen, absent = imagenet_overlap(arguments.folder, arguments.imagenet)
        lines = [f"{len(seen)} of {test} test images ({len(seen) / test:.1%}) are ImageNet training images", *seen]
        if absent:
            lines.append(f"breeds that this ImageNet does not have: {', '.join(absent)}")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
