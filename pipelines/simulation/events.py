"""A clock, processes that wait for it, and what they queue for.

A process is a generator that yields the time at which it goes on, or NEVER and is woken. This is all of SimPy that the
simulation would use, in fewer lines than its processes; queues are computed when they are joined, without events.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Generator, Iterable

NEVER = math.inf
Process = Generator[float, None, None]


class Clock:
    """Runs processes in the order of their times, and of their asking where those are equal."""

    def __init__(self) -> None:
        self.now = 0.0
        self._waiting: list[tuple[float, int, Process]] = []
        self._asked = 0

    def start(self, process: Process) -> None:
        """Have a process go on now: a new one, or one that waits for ever."""
        self._asked += 1
        heapq.heappush(self._waiting, (self.now, self._asked, process))

    def run(self) -> None:
        """Until every process has ended or waits for ever."""
        waiting = self._waiting
        while waiting:
            self.now, _, process = waiting[0]
            time = next(process, NEVER)
            assert time >= self.now, f"a process asks for {time} at {self.now}"
            if time == NEVER:
                # It may have started others meanwhile, none of them before itself.
                heapq.heappop(waiting)
            else:
                self._asked += 1
                heapq.heapreplace(waiting, (time, self._asked, process))


class Pool:
    """Equal units of a resource, a core or one direction of a link, taken first come, first served."""

    def __init__(self, units: int = 1) -> None:
        self._free = [0.0] * units  # when each unit is free again, a heap
        self.busy = 0.0  # seconds that were asked for

    def take(self, now: float, seconds: float) -> float:
        """Queue for a unit from `now`; when it has been held for `seconds`. Calls come in the order of time."""
        end = max(now, self._free[0]) + seconds
        heapq.heapreplace(self._free, end)
        self.busy += seconds
        return end


def in_turns(pool: Pool, clock: Clock, seconds: float, quantum: float) -> Iterable[float]:
    """Hold a unit for `seconds` in all, at most `quantum` at a time, and go to the end of the queue in between."""
    while seconds > 0:
        piece = min(quantum, seconds)
        yield pool.take(clock.now, piece)
        seconds -= piece
