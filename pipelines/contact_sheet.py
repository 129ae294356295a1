"""A contact sheet of a data set's shards: what was stored, with its labels, boxes or places drawn on it, for eyes."""

from __future__ import annotations

import io
import logging
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.shards import read_given

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

COLUMNS, ROWS = 8, 3  # of each split
SIDE, CAPTION, MARGIN = 200, 46, 8  # pixels
LINE = SIDE // 6  # characters in a line of a caption
COLORS = ("#ffd400", "#00c8ff", "#ff5ac8", "#7dff5a", "#ff8c3c")  # of boxes, by category


def inspect(shards: Path, sheet: Path) -> None:
    """Draw samples of every split, evenly spread over it, to the PNG `sheet`."""
    from PIL import Image

    from pipelines.training.reader import SplitReader

    index = read_given(shards)
    strips = []
    for split, held in index.splits.items():
        reader = SplitReader(shards, split)
        chosen = np.unique(np.linspace(0, held.samples - 1, COLUMNS * ROWS).astype(np.int64))
        tiles = [_tile(bytes(image), fields, index.classes) for image, fields in reader.read(chosen)]
        strips.append(_strip(f"{index.dataset}, {split}: {len(tiles)} of {held.samples:,} samples", tiles))
    page = Image.new("RGB", (max(strip.width for strip in strips), sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height
    sheet.parent.mkdir(parents=True, exist_ok=True)
    fresh = sheet.with_name(f".{sheet.name}")
    page.save(fresh, "PNG")
    fresh.replace(sheet)
    log.info(f"{sheet}")


def caption(fields: dict[str, Any], classes: Sequence[str]) -> str:
    """What a sample's JSON says of its image, in few words."""
    said = [fields["name"].rpartition("/")[2]]
    if "label" in fields:
        said.append(f"{fields['label']}: {classes[fields['label']]}")
    if "identity" in fields:
        said.append(fields["identity"])
    if "attributes" in fields:
        said.append(", ".join(name for name, value in zip(classes, fields["attributes"], strict=True) if value))
    if "latitude" in fields:
        said.append(f"{fields['latitude']:.3f}, {fields['longitude']:.3f}")
    if "objects" in fields:
        said.append(f"{len(fields['objects'])} objects")
    return "\n".join(line for text in said for line in textwrap.wrap(text, LINE)[:2])


def _tile(image: bytes, fields: dict[str, Any], classes: Sequence[str]) -> Image:
    """The picture, whole, with its boxes, above its caption. EXIF is not obeyed: readers do not either."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.open(io.BytesIO(image)).convert("RGB")
    scale = SIDE / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    draw = ImageDraw.Draw(picture)
    for thing in fields.get("objects", ()):
        left, top, width, height = (value * scale for value in thing["box"])
        color = COLORS[thing["category"] % len(COLORS)]
        draw.rectangle((left, top, left + width, top + height), outline=color, width=1 if thing["crowd"] else 2)
        word = f"{thing['category']}{' crowd' if thing['crowd'] else ''}"
        draw.text((left + 3, top + 1), word, fill=color, font=ImageFont.load_default(11))
    tile = Image.new("RGB", (SIDE, SIDE + CAPTION), "white")
    tile.paste(picture, ((SIDE - picture.width) // 2, SIDE - picture.height))
    text = "\n".join(caption(fields, classes).split("\n")[:4])
    ImageDraw.Draw(tile).multiline_text((0, SIDE + 1), text, fill="black", font=ImageFont.load_default(10), spacing=0)
    return tile


def _strip(title: str, tiles: Sequence[Image]) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    rows = -(-len(tiles) // COLUMNS)
    head, step_x, step_y = 30, SIDE + MARGIN, SIDE + CAPTION + MARGIN
    strip = Image.new("RGB", (COLUMNS * step_x + MARGIN, head + rows * step_y), "white")
    ImageDraw.Draw(strip).text((MARGIN, 6), title, fill="black", font=ImageFont.load_default(15))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, COLUMNS)
        strip.paste(tile, (MARGIN + column * step_x, head + row * step_y))
    return strip
