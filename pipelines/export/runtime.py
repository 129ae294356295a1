"""ONNX Runtime on this machine's CPU: sessions, outputs, and how long one image takes."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

WARM_UP = 10  # passes
PASSES, SECONDS = 500, 2.0  # at most, whichever comes first; but never fewer than
FEWEST = 10
ERRORS = 3  # of ONNX Runtime's levels: warnings are left out


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one pass of one image: the median, and between which values the middle 80 % of passes lie."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    passes: int
    threads: int

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.median_ms:.3g} ms ({self.p10_ms:.3g} to {self.p90_ms:.3g}), {threads}"


def open_session(model: bytes, threads: int = 0) -> onnxruntime.InferenceSession:
    """A session on the CPU. threads: that share the work of a pass; 0: one for each core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def outputs_of(session: onnxruntime.InferenceSession, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(N, C) what a graph says of images (N, S, S, 3)."""
    outputs: npt.NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return outputs


def latency(model: bytes, image: npt.NDArray[np.uint8], threads: int) -> Latency:
    """How long a graph takes for one image (1, S, S, 3) uint8, from pixels to outputs."""
    session = open_session(model, threads)
    for _ in range(WARM_UP):
        outputs_of(session, image)
    taken: list[float] = []
    while len(taken) < FEWEST or (len(taken) < PASSES and sum(taken) < SECONDS):
        began = time.perf_counter()
        outputs_of(session, image)
        taken.append(time.perf_counter() - began)
    low, middle, high = (1e3 * np.percentile(taken, (10, 50, 90))).tolist()
    return Latency(middle, low, high, len(taken), threads)


def processor() -> str:
    """The processor's name as the system tells it, else its architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
