"""A block that is freed and allocated again costs no pages a second time."""

import platform
import subprocess
import sys

import pytest

BLOCK = 96 * 2**20  # bytes; glibc maps what is above 32 MiB by itself
FAULTS = f"""
import resource, sys
import numpy as np
from pipelines.training.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(6):
    np.ones({BLOCK}, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(6):
    np.ones({BLOCK}, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_pages_of_a_freed_block_are_used_again():
    def faults(kept):
        command = [sys.executable, "-c", FAULTS, kept]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("given back") > 100
    assert faults("kept") < 10
