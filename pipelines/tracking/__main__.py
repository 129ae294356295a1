"""Sends to MLflow all that runs have left unsent: `python -m pipelines.tracking [folder]`.

Prints a line for each run. A run that is still training, or whose training was killed, is sent as far as it is final.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines import paths
from pipelines.command import one_line_errors
from pipelines.tracking import sender, store
from pipelines.tracking.client import PATIENT, QUIET, set_environment
from pipelines.tracking.spool import RECORD


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.tracking",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", type=Path, default=paths.RESULTS, help="where to look (default: results)")
    folder = parser.parse_args(argv).folder
    with one_line_errors():
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; run this from the project's folder, after a training")
        set_environment({**QUIET, **PATIENT})
        spools = sorted(path.parent for path in folder.rglob(RECORD))
        if sender.look(store(), spools, show=print):
            sys.exit(1)


if __name__ == "__main__":
    main()
