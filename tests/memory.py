"""How much memory a process has held at most, for tests that measure it in a process of their own."""

from pathlib import Path


def peak_kib() -> int:
    """The peak of this process's resident memory in KiB (Linux).

    Not `ru_maxrss`: that one begins at the peak of the process that started this one (getrusage(2) counts what
    was before the exec), so that below a large pytest it never moves.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])
