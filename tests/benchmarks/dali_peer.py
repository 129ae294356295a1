"""NVIDIA DALI on the CPU as a peer of the reader. It is no dependency: where it is absent, it is left out, and said so.

Its fastest way to the same result: the random crop is fused with the decoder, which then decodes what the crop needs,
and the resize is plain bilinear. uint8 comes out of it, in memory that is DALI's own and good until the next batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

LEFT_OUT = "DALI is left out, it is not installed: uv pip install nvidia-dali-cuda120"


def installed() -> bool:
    """Whether DALI can be imported."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def _cropped(jpegs: Any, size: int) -> Any:
    from nvidia.dali import fn, types

    area, aspect = [0.08, 1.0], [3 / 4, 4 / 3]
    images = fn.decoders.image_random_crop(
        jpegs, device="cpu", output_type=types.RGB, random_area=area, random_aspect_ratio=aspect
    )
    return fn.resize(images, size=(size, size), interp_type=types.INTERP_LINEAR, antialias=False)


def decoding(jpegs: list[bytes], size: int) -> Callable[[], np.ndarray]:
    """The function that decodes and crops all images: (N, size, size, 3) uint8, by one thread, nothing ahead of it."""
    from nvidia.dali import fn, pipeline_def

    encoded = [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs]

    @pipeline_def(
        batch_size=len(jpegs), num_threads=1, device_id=None, exec_dynamic=False, exec_async=False, exec_pipelined=False
    )
    def pipeline() -> Any:
        return _cropped(fn.external_source(source=lambda: encoded, no_copy=True), size)

    built = pipeline()
    built.build()
    return lambda: np.asarray(built.run()[0].as_tensor())


def batches(shards: list[Path], size: int, batch_size: int, threads: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless shuffled batches from shards: images (batch_size, size, size, 3) uint8, and labels."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=None)
    def pipeline() -> Any:
        jpegs, fields = fn.readers.webdataset(
            paths=[str(shard) for shard in shards], ext=["jpg", "json"], random_shuffle=True, initial_fill=1000
        )
        return _cropped(jpegs, size), fields

    built = pipeline()
    built.build()
    while True:
        images, fields = built.run()
        labels = [json.loads(bytes(np.asarray(text)))["label"] for text in fields]
        yield np.asarray(images.as_tensor()), np.array(labels)
