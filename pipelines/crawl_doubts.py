"""URLs that could not be reached: are their hosts gone, or is this machine cut off?

What could not be reached is only in doubt until some host has answered again; then it is dead. So an outage in the
middle of a crawl does not declare thousands of images dead that were never asked for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pipelines.files import read_json, write_json
from pipelines.transport import UNREACHABLE, DeadError, Get

OFFLINE = 100  # images in a row that could not be reached


class Doubt(NamedTuple):
    """An image of which URLs could not be reached, and none had it."""

    part: int
    number: int
    unreachable: list[tuple[str, str]]  # and with what cause


class Doubts:
    """The images in doubt since the last answer of any host.

    answered: a file that keeps a URL whose host has answered, for later runs. bury: called for what is dead indeed.
    """

    def __init__(self, answered: Path, bury: Callable[[Doubt], None]) -> None:
        self.answered, self.bury = answered, bury
        self.pending: list[tuple[float, Doubt]] = []  # and since when, by the monotonic clock
        self.proof: str | None = read_json(answered) if answered.exists() else None

    async def add(self, doubt: Doubt, get: Get) -> None:
        """Hold an image in doubt; raises as `settle` when there are OFFLINE of them."""
        self.pending.append((time.monotonic(), doubt))
        if len(self.pending) >= OFFLINE:
            await self.settle(get)

    def heard_of(self, url: str, asked: float) -> None:
        """A host has answered what it was asked at that time: what could not be reached before then is dead."""
        if self.proof is None:
            write_json(self.answered, url)
        self.proof = url
        self._bury_before(asked)

    async def settle(self, get: Get) -> None:
        """Decide: dead if a host that has answered before still does, or where none ever has and it is little.

        Raises ValueError otherwise; nothing is noted then, and the next try asks again.
        """
        is_online = self.proof is None and len(self.pending) < OFFLINE
        if self.proof is not None and self.pending:
            try:
                await get(self.proof)
                is_online = True
            except DeadError as dead:
                is_online = dead.cause not in UNREACHABLE
        if is_online:
            self._bury_before(time.monotonic())
        elif self.pending:
            causes = Counter(cause for _, doubt in self.pending for _, cause in doubt.unreachable)
            told = ", ".join(f"{cause} {count}" for cause, count in causes.items())
            raise ValueError(
                f"{self.answered.parent}: nothing can be reached any more ({told}): offline? What was fetched stays"
            )

    def _bury_before(self, moment: float) -> None:
        dead = [doubt for noted, doubt in self.pending if noted < moment]
        self.pending = [(noted, doubt) for noted, doubt in self.pending if noted >= moment]
        for doubt in dead:
            self.bury(doubt)
