"""The end of a stage's process."""

import subprocess
import sys

PROGRAM = """
import atexit
from pipelines.command import end_process

class Noisy:
    def __del__(self):
        print("taken apart")

noisy = Noisy()
atexit.register(print, "registered")
print("said, and not flushed", end="; ")
end_process()
"""


def test_a_process_that_ends_at_once_loses_nothing_that_it_said() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("said, and not flushed; registered\n", "")
