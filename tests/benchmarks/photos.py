"""Photographs made for the benchmarks, and shards of them: 500 x 375, quality 90, 4:2:0, each different.

Their power spectrum is that of natural photographs, with shapes and a little grain. With some 60 kB each is larger than
a photograph of that size and quality: all decoders pay more for entropy decoding, and ratios come out rather too low.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageDraw

from pipelines.images import check
from pipelines.shards import INDEX, Index, Split, Stored, write_shard

HEIGHT, WIDTH, SIZE = 375, 500, 224
SHARDS = 8


def photo(rng: np.random.Generator) -> bytes:
    """A JPEG of 1/f noise with weak colour, shapes and a little grain."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequency[0, 0] = np.inf

    def noise(contrast: float) -> np.ndarray:
        phases = rng.normal(size=(2, *frequency.shape))
        plane = np.fft.irfft2((phases[0] + 1j * phases[1]) / frequency**1.4, (HEIGHT, WIDTH))
        return contrast * plane / plane.std()

    light, warm = noise(45), noise(15)
    pixels = np.stack([light + warm, light, light - warm], axis=-1) + 128
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.integers(0, WIDTH), rng.integers(0, HEIGHT)
        corners = (int(x), int(y), int(x + rng.integers(8, 120)), int(y + rng.integers(8, 120)))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape(corners, fill=tuple(rng.integers(0, 256, 3).tolist()))
    grainy = np.asarray(image) + rng.normal(0, 2, (HEIGHT, WIDTH, 1))
    file = io.BytesIO()
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90, subsampling="4:2:0")
    return file.getvalue()


def shrunk(jpeg: bytes, short_side: int) -> bytes:
    """What the shard stage stores of it where `stored_short_side` is set."""
    return check(jpeg, HEIGHT * WIDTH, len(jpeg), short_side).image


def write_images(folder: Path, jpegs: list[bytes]) -> list[Path]:
    """The images as the train split of a data set; its shards. A rest that does not fill all shards is left out."""
    per_shard = len(jpegs) // SHARDS
    shards = []
    for number in range(SHARDS):
        samples = []
        for key in range(number * per_shard, (number + 1) * per_shard):
            fields = {"name": f"n00000000/n00000000_{key}.JPEG", "sha256": "0" * 64, "label": key % 1000}
            height, width, *_ = simplejpeg.decode_jpeg_header(jpegs[key])
            samples.append(Stored(key, jpegs[key], json.dumps(fields).encode(), height, width))
        shards.append(write_shard(folder, f"train-{number:06d}", samples))
    split = Split(samples=SHARDS * per_shard, shards=tuple(shards))
    index = Index(dataset="bench", classes=(), splits={"train": split}, skipped={}, reencoded={})
    (folder / INDEX).write_bytes(index.to_json())
    return [folder / shard.name for shard in shards]
