"""Images for a GPU: those that the CPU decoded, sent there, or JPEGs, decoded and cropped there.

The readers' threads do it, beside the training: a step waits neither for a copy nor for a decoder. Decoding is nvJPEG's
by way of torchvision, then one resize for the whole batch. Its pixels are not those of `decode`, bit for bit: nvJPEG's
arithmetic and its upsampling of colour are its own. It is not strict either: what the shards' digests do not tell of
damage, nobody does. With a device of "cpu" the same code runs on libjpeg, by which it is tested where there is no GPU.
(torchvision calls its decoder deprecated since 0.29, in favour of TorchCodec's; 0.29 has it, with nvJPEG in the wheel.)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipelines.training.split_reader import Fields, Ints, SplitReader


def moved(images: Tensor, device: torch.device) -> Tensor:
    """The images on a device, where they are when this returns."""
    with _beside(device):
        return _handed_over(images.to(device), device)


def decode_on(
    device: torch.device, reader: SplitReader, samples: Ints, crops: Ints, size: int, antialias: bool
) -> tuple[Tensor, list[Fields]]:
    """As `SplitReader.decode`, with the images decoded on a device, where they are when this returns."""
    stored = [(bytearray(jpeg), fields) for jpeg, fields in reader.read(samples)]  # copied before its last check
    jpegs = [torch.frombuffer(jpeg, dtype=torch.uint8) for jpeg, _ in stored]
    with _beside(device):
        images = decode_crops(jpegs, crops, size, antialias, device, lambda number: reader.place(int(samples[number])))
        return images, [fields for _, fields in stored]


def decode_crops(
    jpegs: list[Tensor], crops: Ints, size: int, antialias: bool, device: torch.device, place: Callable[[int], str]
) -> Tensor:
    """Crops (N, size, size, 3) uint8 RGB on a device, of JPEGs, each (bytes,) uint8 on the host.

    crops: (N, 4), top, left, height and width in pixels; they and the resize are as in `decode.crop_resized`. Where it
    antialiases, images are resized one by one. Raises ValueError, with its `place`, for the first image that cannot be
    decoded or does not hold its crop.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        images: list[Tensor] = decode_jpeg(jpegs, mode=ImageReadMode.RGB, device=device)
    except RuntimeError as error:
        raise _of_one(jpegs, device, place) or error from error
    for number, (image, (top, left, height, width)) in enumerate(zip(images, crops.tolist(), strict=True)):
        _, rows, columns = image.shape
        if not (0 <= top < top + height <= rows and 0 <= left < left + width <= columns):
            box = (top, left, height, width)
            raise ValueError(f"{place(number)}: the crop {box} is not within the image of {rows} x {columns} pixels")
    resized = (_antialiased if antialias else _bilinear)(images, torch.from_numpy(crops), size)
    # While the decoded images live: nvJPEG might write the next ones over them, from a stream of its own.
    return _handed_over(resized, device)


def _bilinear(images: list[Tensor], crops: Tensor, size: int) -> Tensor:
    """The four pixels around each output pixel's centre, of all images at once: a launch of a kernel each would take
    longer than the work. They are gathered from all pixels in one row, since images differ in size.
    """
    device = images[0].device
    pixels = torch.cat([image.reshape(-1) for image in images])
    shapes = torch.tensor([image.shape for image in images])
    starts = torch.cumsum(shapes.prod(1), 0) - shapes.prod(1)
    table = torch.cat([starts[:, None], shapes[:, 1:], crops], 1).to(device, non_blocking=True)
    start, rows, columns, top, left, height, width = table[:, :, None].unbind(1)
    above, below, down = _taps(top, height, size)
    before, after, right = _taps(left, width, size)
    plane = torch.arange(3, device=device) * (rows * columns)
    base = (start + plane)[:, None, None]  # (N, 1, 1, 3)

    def at(row: Tensor, column: Tensor) -> Tensor:
        return pixels[base + (row * columns)[:, :, None, None] + column[:, None, :, None]].float()

    down, right = down[:, :, None, None], right[:, None, :, None]
    upper = torch.lerp(at(above, before), at(above, after), right)
    lower = torch.lerp(at(below, before), at(below, after), right)
    return torch.lerp(upper, lower, down).round_().to(torch.uint8)


def _taps(first: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels that each of `size` output pixels lies between on an axis, and its place from 0 to 1 between them.

    first, length: (N, 1), of the crop. Each result: (N, size). Centres are half pixels; the edges repeat.
    """
    places = (torch.arange(size, device=first.device) + 0.5) * (length / size) - 0.5
    places = torch.minimum(places.clamp_(min=0), length - 1)
    low = places.long()
    return first + low, first + torch.minimum(low + 1, length - 1), places - low


def _antialiased(images: list[Tensor], crops: Tensor, size: int) -> Tensor:
    parts = [
        image[:, top : top + height, left : left + width]
        for image, (top, left, height, width) in zip(images, crops.tolist(), strict=True)
    ]
    resized = [
        interpolate(part[None].float(), size=(size, size), mode="bilinear", antialias=max(part.shape[1:]) > size)
        for part in parts
    ]
    return torch.cat(resized).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _of_one(jpegs: list[Tensor], device: torch.device, place: Callable[[int], str]) -> ValueError | None:
    """The error of the first that does not decode by itself."""
    from torchvision.io import decode_jpeg

    for number, jpeg in enumerate(jpegs):
        try:
            decode_jpeg([jpeg], device=device)
        except RuntimeError as error:
            return ValueError(f"{place(number)}: {str(error).splitlines()[0]}")
    return None


def _handed_over(images: Tensor, device: torch.device) -> Tensor:
    """Wait for images that the current stream makes; their memory is kept until the training has used them."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
        images.record_stream(torch.cuda.default_stream(device))
    return images


def _beside(device: torch.device) -> AbstractContextManager[object]:
    """What readers' threads launch runs beside the training, on a stream of their own."""
    return torch.cuda.stream(_stream(device)) if device.type == "cuda" else nullcontext()


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # one for all threads: the allocator keeps a stock for each stream
