"""What a run's `precision` is on the device at hand."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from pipelines.training.run import Precision, Run

log = logging.getLogger(__name__)


def resolved(precision: Precision, *, on_gpu: bool) -> Literal["32-true", "bf16-mixed"]:
    """The precision itself; of "auto" bf16-mixed where this device multiplies bfloat16 in hardware, else 32-true."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if (_gpu_multiplies_bfloat16() if on_gpu else _cpu_multiplies_bfloat16()) else "32-true"


def worker_precision(run: Run, rank: int) -> Literal["32-true", "bf16-mixed"]:
    """What a worker trains in; the first one of a run says what "auto" has come to."""
    found = resolved(run.precision, on_gpu=run.worker_gpus > 0)
    if run.precision == "auto" and rank == 0:
        log.info(f"{run.name}: precision auto is {found} here")
    return found


def _gpu_multiplies_bfloat16() -> bool:
    """Of compute capability 8.0 and above: older ones emulate it. False where there is no GPU."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_multiplies_bfloat16() -> bool:
    """With AMX tiles or AVX512-BF16: other CPUs convert each number to float32 and back, many times slower."""
    able = torch.cpu.get_capabilities()  # of an architecture that has no such thing it does not name it
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))
