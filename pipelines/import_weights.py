"""Published weights of MobileNet as weights of this project: `python -m pipelines.import_weights <file> <out.pt>`.

Read are Keras's files (.h5), such as mobilenet_1_0_224_tf.h5, and TFLite's (.tflite) of floats or quantised, such as
mobilenet_v1_1.0_224_quant.tflite. What comes out fits a run with net: mobilenet, the width that is said, padding: same,
activation: relu6 and batch_norm_epsilon: 0.001; ImageNet's classes are in the order of their WNIDs, as here. It can be
named as `init_from`; of a file without the last layer (Keras's no_top) there is a body only. To train on from, take
Keras's files: TFLite's have BatchNorm folded into the weights, and its statistics are lost.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pipelines.command import one_line_errors
from pipelines.files import digest, human

HDF5, TFLITE = b"\x89HDF\r\n\x1a\n", b"TFL3"  # the first eight bytes of a file; of the first eight the last four

logger = logging.getLogger(__name__)


def import_weights(source: Path, target: Path) -> None:
    """Write what `source` holds as a state dict, under a temporary name first, and log what it was.

    Raises ValueError that names `source` where it is not a whole MobileNet v1 of a kind that can be read.
    """
    if target.suffix != ".pt":
        raise ValueError(f"{target} is to hold weights: its name must end in .pt")
    if not target.parent.is_dir():
        raise ValueError(f"{target}: there is no folder {target.parent}")
    with source.open("rb") as file:
        head = file.read(8)
    if head != HDF5 and head[4:] != TFLITE:
        raise ValueError(f"{source} is neither HDF5 (.h5) nor TFLite (.tflite); an archive is to be unpacked first")

    from pipelines.training.snapshots import save_atomically
    from pipelines.weights import keras_h5, tflite_mobilenet
    from pipelines.weights.mobilenet import MAX_BYTES, state_dict

    if source.stat().st_size > MAX_BYTES:
        raise ValueError(f"{source} has {human(source.stat().st_size)}; allowed are {human(MAX_BYTES)}")
    read = keras_h5.read if head == HDF5 else tflite_mobilenet.read
    try:
        published = read(source)
        state = state_dict(published)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    save_atomically(state, target)
    last = published.classifier
    classes = "no classifier" if last is None else f"{last.bias.size} classes"
    size = f" for {published.size[0]} x {published.size[1]} images" if published.size else ""
    what = f"MobileNet of width {published.width:g}{size}, {classes}"
    logger.info(f"{target}: {what}; from {source} ({published.kind}, {digest(source, 'sha256')})")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="published weights: .h5 or .tflite")
    parser.add_argument("out", type=Path, help="weights of this project: .pt")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        import_weights(arguments.file, arguments.out)


if __name__ == "__main__":
    main()
