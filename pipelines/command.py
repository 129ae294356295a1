"""The command line that all stages share: `python -m pipelines.<stage> [name] [--scale S]`."""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from pipelines.config import Params, load


def stage_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the option that every stage has; `doc` is the stage module's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", help="a block of scales: in params.yaml (default: the scale it names)")
    return parser


TERMINATED = 128 + signal.SIGTERM


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns a user's mistake (ValueError), or what the machine refuses (OSError, as no space), into one line on
    stderr and exit code 1, and Ctrl-C into exit code 130.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:  # Lightning's and Ray's answer to SIGTERM: with code 0 DVC would take the stage for done
        sys.exit(end.code or TERMINATED)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from here", file=sys.stderr)
        sys.exit(130)


def run_stage(
    stage: Callable[[Params, str, str], None], what: str, doc: str | None, argv: list[str] | None = None
) -> None:
    """Parse `<what> [--scale S]`, load `params.yaml` and call `stage(params, scale, name)`."""
    parser = stage_parser(doc)
    parser.add_argument(what, help=f"a {what} of params.yaml")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        params = load()
        stage(params, arguments.scale or params.scale, getattr(arguments, what))


def end_process() -> NoReturn:
    """End the process of a stage that has done its work, with exit code 0.

    Python would first take apart, object by object, all that torch, Lightning and MLflow have loaded: 1.5 s of each of
    the graph's stages. Here only what was registered for the end is called, and nothing else has anything to lose.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
